"""What statistics can be read of an optimizer: ours, Keras's Adam, or any other, wrapped or not.

Every use of an underscore name of Keras's optimizers is in this file, because nothing public gives
the same: `_trainable_variables` is the list that an optimizer was built with, `_momentums` (SGD:
`momentums`), `_velocities` and `_velocity_hats` are its slots, and `_learning_rate` tells a number
from a schedule, which is to be asked for the step before the present one.
"""

from collections import Counter
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_yogi import checks
from keras_yogi.half_precision import compute_dtype
from keras_yogi.rules import AdamRule, AdaptiveRule
from keras_yogi.statistics.device_read import array_of, number, tensor
from keras_yogi.statistics.per_weight import SQUARES, RuleFigures, Terms, rule_figures, rule_terms


class OptimizerView(NamedTuple):
    """Variables of one optimizer that have the same figures and the same dtype."""

    optimizer: Any
    is_lazy: bool  # rows of the variables move only when a batch names them
    dtype: str  # of the variables
    variables: list[Any]
    slots: dict[str, list[Any]]  # in the rule's order; of other optimizers, as far as they exist

    @property
    def rule(self) -> AdaptiveRule | None:
        """The rule that the optimizer follows now; None if only norms can be computed."""
        return _rule_of(self.optimizer)

    @property
    def figures(self) -> RuleFigures:
        """Which figures are defined."""
        figures = RuleFigures() if (rule := self.rule) is None else rule_figures(rule)
        # The last step did not move the rows that it did not name.
        return figures._replace(update=False, can_forget=False) if self.is_lazy else figures

    @property
    def streams(self) -> dict[str, list[Any]]:
        """The variables under the name "weight", and the slots."""
        return {"weight": self.variables, **self.slots}

    @property
    def compute_dtype(self) -> str:
        return compute_dtype(self.dtype)

    def reading_order(self) -> list[int]:
        """Indices of the variables, those whose slots share an array next to each other."""
        first = next(iter([*self.slots.values(), self.variables]))
        return sorted(range(len(first)), key=lambda index: id(array_of(first[index])[0]))

    def progress(self) -> tuple[Any, Any]:
        """The steps made, and the learning rate of the last one: scalar tensors."""
        iterations, source = self.optimizer.iterations, self.optimizer._learning_rate
        if isinstance(source, keras.optimizers.schedules.LearningRateSchedule):
            batches = iterations * (self.optimizer.gradient_accumulation_steps or 1)
            return tensor(iterations), tensor(source(ops.maximum(batches - 1, 0)))
        return tensor(iterations), tensor(self.optimizer.learning_rate)

    def terms(self, streams: Terms, step: Any, rate: Any) -> Terms:
        """The terms of weights, of which `streams` holds the values and slots."""
        if (rule := self.rule) is None:
            return {name: streams[name] for name in SQUARES if name in streams}
        return rule_terms(rule, self.figures, streams, step, rate)

    def note(self) -> str:
        """What is left out of the figures, in one sentence; empty if nothing is."""
        name, figures = type(self.optimizer).__name__, self.figures
        if self.rule is None:
            return f"{name}: only norms are known, of {', '.join(self.streams)}"
        if self.is_lazy:
            tables = ", ".join(f"`{checks.path(v)}`" for v in self.variables)
            return (
                f'with sparse_update="lazy", rows of {tables} move only when a batch names them: '
                "update figures are those of the other variables"
            )
        if not figures.update:
            return f"{name}: only norms are known: `update` of its rule does not end in `descend`"
        if not figures.effective_lr:
            return (
                f"{name}: no effective learning rates, because `descend` of its rule does not "
                "subtract `learning_rate_per_weight` times the momentum"
            )
        return ""


def unwrapped(optimizer: Any) -> list[Any]:
    """The optimizers in a keras.optimizers.LossScaleOptimizer or MultiOptimizer; of any other
    optimizer, itself; of None, none.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return [each for each in getattr(optimizer, "optimizers", [optimizer]) if each is not None]


def skipped_steps(optimizer: Any) -> int:
    """The steps that `skip_nonfinite` has left out."""
    return sum(int(getattr(each, "skipped_steps", 0)) for each in unwrapped(optimizer))


def batches_made(optimizer: Any) -> int:
    """The batches that an optimizer was trained with, skipped and accumulated ones included."""
    several = unwrapped(optimizer)
    made = [int(number(o.iterations)) * (o.gradient_accumulation_steps or 1) for o in several]
    return max(made, default=0) + skipped_steps(optimizer)


def optimizer_views(optimizer: Any) -> list[OptimizerView]:
    """Views of all variables that have slots, of the optimizers in `optimizer` that are built."""
    return [view for each in unwrapped(optimizer) if each.built for view in _views(each)]


def _views(optimizer: Any) -> list[OptimizerView]:
    variables = list(optimizer._trainable_variables)
    if _is_ours(optimizer):
        slots = {name: optimizer.slots()[name] for name in optimizer.rule.initial_values}
    else:
        slots = _keras_slots(optimizer, variables)
    # Gradients of tables are rows on TensorFlow alone, and not if Keras accumulates them.
    may_be_lazy = getattr(optimizer, "sparse_update", "") == "lazy"
    may_be_lazy &= keras.config.backend() == "tensorflow"
    may_be_lazy &= not optimizer.gradient_accumulation_steps
    indices: dict[tuple[bool, str], list[int]] = {}
    for index, variable in enumerate(variables):
        # Keras keeps no slot for a variable that it overwrites with its gradient.
        if np.prod(variable.shape) and all(of_all[index] is not None for of_all in slots.values()):
            dtype = keras.backend.standardize_dtype(variable.dtype)
            indices.setdefault((may_be_lazy and row_length(variable) > 0, dtype), []).append(index)
    views = []
    for key, chosen in indices.items():
        own_slots = {name: [of_all[i] for i in chosen] for name, of_all in slots.items()}
        views.append(OptimizerView(optimizer, *key, [variables[i] for i in chosen], own_slots))
    return views


def _is_ours(optimizer: Any) -> bool:
    # Not by its class, whose module asks for statistics itself.
    return isinstance(getattr(optimizer, "rule", None), AdaptiveRule)


def _rule_of(optimizer: Any) -> AdaptiveRule | None:
    owner = next(cls for cls in type(optimizer).__mro__ if "update_step" in vars(cls))
    if owner.__module__.split(".")[0] not in ("keras", "keras_yogi"):
        return None  # it updates in a way of its own
    if _is_ours(optimizer):
        return optimizer.rule
    if isinstance(optimizer, keras.optimizers.Adam):  # it adds ε before the bias correction
        names = ("beta_1", "beta_2", "epsilon", "amsgrad")
        return AdamRule(**{name: getattr(optimizer, name) for name in names}, epsilon_hat=True)
    return None


def _keras_slots(optimizer: Any, variables: list[Any]) -> dict[str, list[Any]]:
    names = ("momentum", "momentum", "velocity", "velocity_hat")
    attributes = ("_momentums", "momentums", "_velocities", "_velocity_hats")
    shapes = [tuple(v.shape) for v in variables]
    slots = {}
    for name, attribute in zip(names, attributes, strict=True):
        of_all = getattr(optimizer, attribute, None)
        if isinstance(of_all, list) and len(of_all) == len(variables):
            pairs = zip(of_all, shapes, strict=True)
            if all(slot is None or tuple(slot.shape) == shape for slot, shape in pairs):
                slots[name] = of_all
    return slots


def row_length(variable: Any) -> int:
    """The length of the rows of what Keras's Embedding looks rows up in; 0 of other variables."""
    name = checks.path(variable).split("/")[-1].split(":")[0]
    is_table = name == "embeddings" and len(variable.shape) == 2
    return int(variable.shape[1]) if is_table else 0


def variable_names(variables: list[Any]) -> list[str]:
    """The variables' paths, fit for tags: different, and the same for a model made once more.

    The model's name comes first in all paths, and is left out: "sequential", then "sequential_1".
    """
    paths = [checks.path(v).replace(":", "_").split("/") for v in variables]
    if len({path[0] for path in paths}) == 1 and all(len(path) > 2 for path in paths):
        paths = [path[1:] for path in paths]
    repeats: Counter[str] = Counter()
    names = []
    for path in map("/".join, paths):
        names.append(f"{path}#{repeats[path]}" if repeats[path] else path)
        repeats[path] += 1
    return names
