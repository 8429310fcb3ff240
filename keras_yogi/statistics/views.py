"""What statistics can be read of an optimizer: ours, Keras's Adam, or any other, wrapped or not.

Every use of an underscore name of Keras's optimizers is in this file, because nothing public gives
the same: `_trainable_variables` is the list that an optimizer was built with, `_momentums` (SGD:
`momentums`), `_velocities` and `_velocity_hats` are its slots, `_use_weight_decay` knows what is
excluded, `_iterations` counts batches where `iterations` counts steps, and `_learning_rate` tells a
number from a schedule, which is to be asked for the step before the present one.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_yogi import checks
from keras_yogi.half_precision import compute_dtype
from keras_yogi.rules import AdamRule, AdaptiveRule, YogiRule
from keras_yogi.statistics.figures import NORMS, Defined, Terms, rule_terms


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
        return rule is not None and not self.is_lazy and _forgets(rule)

    def terms(self, streams: Terms, step: Any, rate: Any) -> Terms:
        """The terms of weights of this kind, of which `streams` holds the values and slots."""
        dtype, rule = compute_dtype(self.variable.dtype), rule_of(self.optimizer)
        streams = {name: ops.cast(values, dtype) for name, values in streams.items()}
        if rule is None:
            return {name: streams[name] for name in NORMS if name in streams}
        has_update, has_rate = _defined(type(rule))
        defined = Defined(has_update and not self.is_lazy, has_rate)
        decay = self.optimizer.weight_decay if self.decays else None
        return rule_terms(rule, defined, streams, step, rate, decay)

    @property
    def note(self) -> str:
        """What is left out of the figures, in one sentence; empty if nothing is."""
        name, rule = type(self.optimizer).__name__, rule_of(self.optimizer)
        if rule is None:
            return f"{name}: only norms are known, of {', '.join(self.streams)}"
        has_update, has_rate = _defined(type(rule))
        if not has_update:
            return f"{name}: only norms are known: its rule has an `update` without a `descend`"
        if not has_rate:
            return (
                f"{name}: no effective learning rates: its rule has a `descend` without a "
                "`learning_rate_per_weight`"
            )
        if self.is_lazy:
            return (
                f'with sparse_update="lazy", rows of `{checks.path(self.variable)}` move only when '
                "a batch names them: its update is left out, and so is that of the whole model"
            )
        return ""


@lru_cache
def _defined(rule: type[AdaptiveRule]) -> Defined:
    """A rule says what is true of it: a method is not true of another one that a subclass replaces
    without it. (Yogi's proximal step comes after the step that the rate is of.)
    """

    def place(method: str) -> int:
        return next(i for i, cls in enumerate(rule.__mro__) if method in vars(cls))

    update, descend, rate = map(place, ("update", "descend", "learning_rate_per_weight"))
    has_rate = rate <= update and (rate <= descend or rule.descend is YogiRule.descend)
    return Defined(descend <= update, descend <= update and has_rate)


@lru_cache
def _forgets(rule: AdaptiveRule) -> bool:
    one, zero = ops.ones(()), ops.zeros(())
    slots = (one,) * len(rule.initial_values)
    _, (*_, rested) = rule.update(zero, zero, slots, rule.scalars(0.0, 1000, "float32"))
    return bool(ops.convert_to_numpy(rested < one))


def views(optimizer: Any) -> dict[str, VariableView]:
    """By name, all variables that have slots, of the optimizers in `optimizer` that are built."""
    found = [view for each in unwrapped(optimizer) if each.built for view in _views(each)]
    return dict(zip(_names([view.variable for view in found]), found, strict=True))


def _views(optimizer: Any) -> Iterator[VariableView]:
    variables, is_ours = list(optimizer._trainable_variables), _is_ours(optimizer)
    if is_ours:
        slots = {name: optimizer.slots()[name] for name in optimizer.rule.initial_values}
    else:
        names = ("momentum", "momentum", "velocity", "velocity_hat")
        attributes = ("_momentums", "momentums", "_velocities", "_velocity_hats")
        pairs = [(n, getattr(optimizer, a, None)) for n, a in zip(names, attributes, strict=True)]
        slots = {n: of_all for n, of_all in pairs if of_all and len(of_all) == len(variables)}
    # Gradients are rows on TensorFlow alone, and not if Keras accumulates them.
    may_be_lazy = getattr(optimizer, "sparse_update", "") == "lazy"
    may_be_lazy &= keras.config.backend() == "tensorflow"
    may_be_lazy &= not optimizer.gradient_accumulation_steps
    for index, variable in enumerate(variables):
        own = {name: of_all[index] for name, of_all in slots.items()}
        # Keras keeps no slot for a variable that it overwrites with its gradient.
        if not np.prod(variable.shape) or any(slot is None for slot in own.values()):
            continue
        # A table is what gradients of some rows have come for; before there are any, Keras's.
        takes_rows = optimizer.takes_rows(variable) if is_ours else None
        is_keras_table = checks.path(variable).split("/")[-1].split(":")[0] == "embeddings"
        row = int(np.prod(variable.shape[1:])) if takes_rows or is_keras_table else 0
        is_lazy = may_be_lazy and (is_keras_table if takes_rows is None else takes_rows)
        decays = bool(optimizer._use_weight_decay(variable))
        yield VariableView(optimizer, variable, own, row, is_lazy, decays)


def _is_ours(optimizer: Any) -> bool:
    # Not by its class, whose module asks for statistics itself.
    return isinstance(getattr(optimizer, "rule", None), AdaptiveRule)


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


def unwrapped(optimizer: Any) -> list[Any]:
    """The optimizers in a keras.optimizers.LossScaleOptimizer or MultiOptimizer; of any other
    optimizer, itself; of None, none.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return [each for each in getattr(optimizer, "optimizers", [optimizer]) if each is not None]


def rule_of(optimizer: Any) -> AdaptiveRule | None:
    """The rule that an optimizer follows now; None if only norms can be computed."""
    if type(optimizer).update_step.__module__.split(".")[0] not in ("keras", "keras_yogi"):
        return None  # it updates in a way of its own
    if _is_ours(optimizer):
        return optimizer.rule
    if isinstance(optimizer, keras.optimizers.Adam):  # it adds ε before the bias correction
        names = ("beta_1", "beta_2", "epsilon", "amsgrad")
        return AdamRule(**{name: getattr(optimizer, name) for name in names}, epsilon_hat=True)
    return None


def progress(optimizer: Any) -> tuple[Any, Any]:
    """The steps that an optimizer has made, and the learning rate of the last: scalar tensors."""
    iterations, rate = optimizer.iterations, optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        batches = iterations * (optimizer.gradient_accumulation_steps or 1)
        rate = rate(ops.maximum(batches - 1, 0))
    else:
        rate = optimizer.learning_rate
    return ops.convert_to_tensor(iterations), ops.convert_to_tensor(rate)


def skipped_steps(optimizer: Any) -> int:
    """The steps that `skip_nonfinite` has left out."""
    return sum(int(getattr(each, "skipped_steps", 0)) for each in unwrapped(optimizer))


def batches_made(optimizer: Any) -> int:
    """The batches that an optimizer was trained with, skipped and accumulated ones included."""
    made = [int(number(each._iterations)) for each in unwrapped(optimizer)]
    return max(made, default=0) + skipped_steps(optimizer)


def number(scalar: Any) -> float:
    """The value of a scalar, a variable, a tensor or a number: 0.05 for 0.05 in float32."""
    return float(str(np.asarray(ops.convert_to_numpy(scalar))[()]))
