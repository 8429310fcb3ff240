"""The variables of an optimizer, as statistics see them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_yogi import checks
from keras_yogi.any_optimizer import (
    decays,
    is_ours,
    rule_of,
    slots_of,
    trained_variables,
    unwrapped,
)
from keras_yogi.half_precision import compute_dtype
from keras_yogi.rules import defined_figures, forgets
from keras_yogi.statistics.figures import NORMS, Terms, rule_terms


class VariableView(NamedTuple):
    """A variable of an optimizer, with its slots and what moves it."""

    optimizer: Any
    variable: Any
    slots: dict[str, Any]  # in the rule's order; of other optimizers, as far as they exist
    row_length: int  # of a table; 0 of other variables
    is_lazy: bool  # a step moves only the rows that its batch names
    decays: bool

    @property
    def streams(self) -> dict[str, Any]:
        """The variable under the name "weight", and the slots."""
        return {"weight": self.variable, **self.slots}

    @property
    def kind(self) -> tuple[Any, ...]:
        """The same for variables whose terms are computed alike."""
        return self.optimizer.name, str(self.variable.dtype), self.is_lazy, self.decays

    @property
    def size(self) -> int:
        return int(np.prod(self.variable.shape))

    @property
    def can_forget(self) -> bool:
        """Whether the second moment of a weight falls where no gradient comes."""
        rule = rule_of(self.optimizer)
        return rule is not None and not self.is_lazy and forgets(rule)

    def terms(self, streams: Terms, step: Any, rate: Any) -> Terms:
        """The terms of weights of this kind, of which `streams` holds the values and slots."""
        dtype, rule = compute_dtype(self.variable.dtype), rule_of(self.optimizer)
        streams = {name: ops.cast(values, dtype) for name, values in streams.items()}
        if rule is None:
            return {name: streams[name] for name in NORMS if name in streams}
        has = defined_figures(type(rule)) - ({"update"} if self.is_lazy else set())
        decay = self.optimizer.weight_decay if self.decays else None
        return rule_terms(rule, streams, step, rate, has, decay)

    @property
    def note(self) -> str:
        """What is left out of the figures, in one sentence; empty if nothing is."""
        name, rule = type(self.optimizer).__name__, rule_of(self.optimizer)
        if rule is None:
            return f"{name}: only norms are known, of {', '.join(self.streams)}"
        if "update" not in (has := defined_figures(type(rule))):
            return f"{name}: only norms are known: its rule has an `update` without a `descend`"
        if "effective_lr" not in has:
            lacks = "a `descend` without a `learning_rate_per_weight`"
            return f"{name}: no effective learning rates: its rule has {lacks}"
        if self.is_lazy:
            return (
                f'with sparse_update="lazy", rows of `{checks.path(self.variable)}` move only if '
                "a batch contains them: its update and the whole model's are not known"
            )
        return ""


def views(optimizer: Any) -> dict[str, VariableView]:
    """By name, all variables that have slots, of the optimizers in `optimizer` that are built."""
    found = [view for each in unwrapped(optimizer) if each.built for view in _views(each)]
    return dict(zip(_names([view.variable for view in found]), found, strict=True))


def _views(optimizer: Any) -> Iterator[VariableView]:
    slots = slots_of(optimizer)
    # Gradients are rows on TensorFlow alone, and not if Keras accumulates them.
    may_be_lazy = getattr(optimizer, "sparse_update", "") == "lazy"
    may_be_lazy &= keras.config.backend() == "tensorflow"
    may_be_lazy &= not optimizer.gradient_accumulation_steps
    for index, variable in enumerate(trained_variables(optimizer)):
        own = {name: of_all[index] for name, of_all in slots.items()}
        # Keras keeps no slot for a variable that it overwrites with its gradient.
        is_trained = "float" in keras.backend.standardize_dtype(variable.dtype)
        if not (is_trained and np.prod(variable.shape)) or any(x is None for x in own.values()):
            continue
        # A table is what gradients of some rows have come for; before there are any, Keras's.
        takes_rows = optimizer.takes_rows(variable) if is_ours(optimizer) else None
        is_keras_table = checks.path(variable).split("/")[-1].split(":")[0] == "embeddings"
        row = int(np.prod(variable.shape[1:])) if takes_rows or is_keras_table else 0
        is_lazy = may_be_lazy and (is_keras_table if takes_rows is None else takes_rows)
        yield VariableView(optimizer, variable, own, row, is_lazy, decays(optimizer, variable))


def _names(variables: list[Any]) -> list[str]:
    """The variables' paths, fit for tags: different, and the same for a model made once more.

    The model's name comes first in all paths, and is left out: "sequential", then "sequential_1".
    """
    paths = [checks.path(v).replace(":", "_").split("/") for v in variables]
    if len({path[0] for path in paths}) == 1 and all(len(path) > 2 for path in paths):
        paths = [path[1:] for path in paths]
    names = ["/".join(path) for path in paths]
    repeats = [names[:index].count(name) for index, name in enumerate(names)]
    return [f"{n}#{count}" if count else n for n, count in zip(names, repeats, strict=True)]
