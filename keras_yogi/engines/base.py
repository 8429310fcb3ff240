"""One variable after another, on any backend: the specification of an update."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_yogi import row_gradients
from keras_yogi.rules import AdaptiveRule, StepScalars

Tensor = Any
Scalars = Mapping[str, StepScalars]
"""The step's scalars, by the dtype that an update is computed in."""


@dataclass(frozen=True)
class Limits:
    """Sizes, in elements, at which the TensorFlow engine does otherwise.

    Attributes:
        pack_up_to: of a variable whose slots share arrays with others'. Packing moves a gradient
            and a step once more through memory, and saves about ten operations a variable.
        array_up_to: of a shared array: 2 MiB of float32, which stay in a cache until they are next
            read; several arrays keep all cores busy, and need not all wait for the last gradient.
        compile_from: of a shared array whose update is compiled. In a smaller one the start of an
            operation costs as much as what it does.
        call_up_to: of all variables that one compiled call updates, if there are several. A call
            costs tens of microseconds, whatever it does; a few calls keep all cores busy.
        compile: False does without XLA.
    """

    pack_up_to: int = 49_152
    array_up_to: int = 524_288
    compile_from: int = 65_536
    call_up_to: int = 1_048_576
    compile: bool = True


def compute_dtype(dtype: Any) -> str:
    """What variables of this dtype are updated in.

    Half precision holds neither 1 − β₂ = 0.001 next to 1 nor ε = 1e-8: compute in float32, and
    round once when storing. float64 stays float64.
    """
    name = keras.backend.standardize_dtype(dtype)
    return "float32" if name in ("float16", "bfloat16") else name


class Group:
    """Some model variables and their slots, updated one after another.

    Attributes:
        variables: the model variables, by their index in the list that the optimizer was built
            with.
        slots: of each variable, in the rule's order.
    """

    def __init__(
        self,
        variables: Mapping[int, Any],
        slots: Mapping[int, Sequence[Any]],
        lazy_rows: bool,
    ) -> None:
        """Takes variables and slots by index; `lazy_rows`: rows without a gradient stay."""
        self.variables = dict(variables)
        self.slots: Any = dict(slots)
        self.lazy_rows = lazy_rows

    @property
    def shared_arrays(self) -> Sequence[Any]:
        """Variables that hold the slots of several model variables."""
        return ()

    def step(self, rule: AdaptiveRule, scalars: Scalars, gradients: Mapping[int, Tensor]) -> None:
        """Updates once the variables that have a gradient.

        Args:
            rule: the update.
            scalars: of this step.
            gradients: by index, dense or of rows that `row_gradients.coalesce` returned.
        """
        self.update(rule, scalars, gradients, self.variables, self.slots)

    def update(
        self,
        rule: AdaptiveRule,
        scalars: Scalars,
        gradients: Mapping[int, Tensor],
        variables: Mapping[int, Any],
        slots: Any,
    ) -> None:
        """As `step`, on given storage: under tf.distribute, that of one replica."""
        for index, gradient in gradients.items():
            if row_gradients.is_rows(gradient) and self.lazy_rows:
                update_rows(rule, scalars, gradient, variables[index], slots[index])
            else:
                gradient = row_gradients.dense(gradient)
                update_variable(rule, scalars, gradient, variables[index], slots[index])


def update_variable(
    rule: AdaptiveRule, scalars: Scalars, gradient: Tensor, variable: Any, slots: Sequence[Any]
) -> None:
    """Updates a variable and its slots by a dense gradient."""
    dtype = compute_dtype(variable.dtype)
    gradient, weights, *old = (ops.cast(x, dtype) for x in (gradient, variable, *slots))
    weights, new = rule.update(gradient, weights, tuple(old), scalars[dtype])
    for storage, value in zip((variable, *slots), (weights, *new), strict=True):
        storage.assign(ops.cast(value, storage.dtype))


def update_rows(
    rule: AdaptiveRule, scalars: Scalars, gradient: Tensor, variable: Any, slots: Sequence[Any]
) -> None:
    """Updates the rows of a table, and of its slots, that have a gradient."""
    indices, rows = new_rows(rule, scalars, gradient, variable, slots)
    for storage, values in zip((variable, *slots), rows, strict=True):
        row_gradients.scatter(storage, values, indices)


def new_rows(
    rule: AdaptiveRule, scalars: Scalars, gradient: Tensor, variable: Any, slots: Sequence[Any]
) -> tuple[Tensor, list[Tensor]]:
    """What `update_rows` stores: row indices, and for the table and each slot the new rows."""
    dtype = compute_dtype(variable.dtype)
    gradient, any_row = row_gradients.replace_padding(gradient)
    storages = (variable, *slots)
    old = [ops.cast(row_gradients.gather(each, gradient.indices), dtype) for each in storages]
    weights, values = rule.update(
        ops.cast(gradient.values, dtype), old[0], tuple(old[1:]), scalars[dtype]
    )
    pairs = zip((weights, *values), old, strict=True)
    return gradient.indices, [ops.where(any_row, new, before) for new, before in pairs]


class Engine:
    """Carries out steps: each group updates its own variables."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self.groups = list(groups)
        dtypes = {compute_dtype(v.dtype) for group in self.groups for v in group.variables.values()}
        # What is never trained, such as a counter or a label, may have any dtype.
        self.dtypes = sorted(dtype for dtype in dtypes if "float" in dtype)

    def step(self, rule: AdaptiveRule, scalars: Scalars, gradients: Mapping[int, Tensor]) -> None:
        """Updates once the variables that have a gradient; arguments as in `Group.step`."""
        self.step_on_this_replica(rule, scalars, gradients)

    def step_on_this_replica(
        self, rule: AdaptiveRule, scalars: Scalars, gradients: Mapping[int, Tensor]
    ) -> None:
        """As `step`, where other replicas, if there are any, take the same step by themselves."""
        for group, of_group in self.gradients_by_group(gradients):
            group.step(rule, scalars, of_group)

    def shared_arrays(self) -> list[Any]:
        """Variables that hold the slots of several model variables."""
        return [array for group in self.groups for array in group.shared_arrays]

    def gradients_by_group(
        self, gradients: Mapping[int, Tensor]
    ) -> Iterable[tuple[Group, dict[int, Tensor]]]:
        """The groups that have gradients, each with its own, in the order of its variables."""
        for group in self.groups:
            of_group = {i: gradients[i] for i in group.variables if i in gradients}
            if of_group:
                yield group, of_group
