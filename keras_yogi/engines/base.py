"""The reference implementation, which updates one variable after another; and `Backend`."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_yogi import half_precision, row_gradients
from keras_yogi.half_precision import compute_dtype
from keras_yogi.rules import Rule, StepScalars

Tensor = Any
Scalars = Mapping[str, StepScalars]
"""The scalars of a step, by the dtype of the computation."""


@dataclass(frozen=True)
class Limits:
    """Sizes, in elements, at which a fused engine changes its method. The defaults are
    TensorFlow's.

    Attributes:
        pack_up_to: the largest variable whose slots share arrays with others'. Packing moves
            gradient and step through memory once more, and saves about ten operations per variable.
        array_up_to: the largest shared array: 2 MiB of float32, which stay in a cache until the
            next read. Several arrays keep all cores busy, and not all of them wait for the last
            gradient. On PyTorch also the size of the pieces in which large variables are updated.
        compile_from: the smallest shared array whose update is compiled. In a smaller one, starting
            an operation costs as much as its work. TensorFlow only.
        call_up_to: the most elements that one compiled call updates, if it updates several
            variables. A call costs tens of microseconds, whatever its size; a few calls keep all
            cores busy. TensorFlow only.
        compile: False: use no XLA. TensorFlow only.
    """

    pack_up_to: int = 49_152
    array_up_to: int = 524_288
    compile_from: int = 65_536
    call_up_to: int = 1_048_576
    compile: bool = True


class Group:
    """Some model variables and their slots, updated one after another.

    Attributes:
        variables: the model variables, by their index in the list that the optimizer was built
            with.
        slots: the slots of each variable, in the rule's order; in half precision the residual is
            last.
    """

    def __init__(
        self,
        variables: Mapping[int, Any],
        slots: Mapping[int, Sequence[Any]],
        lazy_rows: bool,
    ) -> None:
        """Takes variables and slots by index. `lazy_rows`: leave rows without a gradient alone."""
        self.variables = dict(variables)
        self.slots: Any = dict(slots)
        self.lazy_rows = lazy_rows

    @property
    def shared_arrays(self) -> Sequence[Any]:
        """Variables that hold the slots of several model variables."""
        return ()

    def step(self, rule: Rule, scalars: Scalars, gradients: Mapping[int, Tensor]) -> None:
        """Takes one step for the variables that have a gradient.

        Args:
            rule: the update.
            scalars: the scalars of this step.
            gradients: by index; dense, or row gradients from `row_gradients.coalesce`.
        """
        self.update(rule, scalars, gradients, self.variables, self.slots)

    def update(
        self,
        rule: Rule,
        scalars: Scalars,
        gradients: Mapping[int, Tensor],
        variables: Mapping[int, Any],
        slots: Any,
    ) -> None:
        """Like `step`, with the given storage: under tf.distribute, that of one replica."""
        for index, gradient in gradients.items():
            if row_gradients.is_rows(gradient) and self.lazy_rows:
                update_rows(rule, scalars, gradient, variables[index], slots[index])
            else:
                gradient = row_gradients.dense(gradient)
                update_variable(rule, scalars, gradient, variables[index], slots[index])


def updated(
    rule: Rule, scalars: Scalars, gradient: Tensor, values: Sequence[Tensor]
) -> list[Tensor]:
    """New values of a variable and its slots, each in its own dtype.

    Args:
        rule: the update.
        scalars: the scalars of this step.
        gradient: of the variable's shape, in any floating dtype.
        values: the values of the variable, of its slots in the rule's order and, if it keeps one,
            of its residual.
    """
    weights, slots = moved(rule, scalars, gradient, values)
    new = (weights, *slots)
    if len(values) > len(new):
        variable, residual = half_precision.split(weights, values[0].dtype)
        new = (variable, *slots, residual)
    return [ops.cast(x, old.dtype) for x, old in zip(new, values, strict=True)]


def moved(
    rule: Rule, scalars: Scalars, gradient: Tensor, values: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """New weights and slots in the dtype of the computation; arguments as in `updated`."""
    last_slot = 1 + len(rule.initial_values)
    variable, slots, residual = values[0], values[1:last_slot], values[last_slot:]
    dtype = compute_dtype(variable.dtype)
    gradient, *slots = (ops.cast(x, dtype) for x in (gradient, *slots))
    weights = half_precision.read(variable, *residual)
    return rule.update(gradient, weights, tuple(slots), scalars[dtype])


def update_variable(
    rule: Rule, scalars: Scalars, gradient: Tensor, variable: Any, slots: Sequence[Any]
) -> None:
    """Updates a variable and its slots with a dense gradient."""
    storages = (variable, *slots)
    old = [ops.convert_to_tensor(storage) for storage in storages]
    for storage, value in zip(storages, updated(rule, scalars, gradient, old), strict=True):
        storage.assign(value)


def update_rows(
    rule: Rule, scalars: Scalars, gradient: Tensor, variable: Any, slots: Sequence[Any]
) -> None:
    """Updates those rows of a table and its slots that have a gradient."""
    indices, rows = new_rows(rule, scalars, gradient, variable, slots)
    for storage, values in zip((variable, *slots), rows, strict=True):
        row_gradients.scatter(storage, values, indices)


def new_rows(
    rule: Rule, scalars: Scalars, gradient: Tensor, variable: Any, slots: Sequence[Any]
) -> tuple[Tensor, list[Tensor]]:
    """Computes the row indices and the new rows that `update_rows` writes to table and slots."""
    gradient, any_row = row_gradients.without_padding(gradient)
    old = [row_gradients.gather(each, gradient.indices) for each in (variable, *slots)]
    new = updated(rule, scalars, gradient.values, old)
    if any_row is not None:
        new = [ops.where(any_row, x, before) for x, before in zip(new, old, strict=True)]
    return gradient.indices, new


class Engine:
    """Takes steps: each group updates its own variables."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self.groups = list(groups)
        dtypes = {compute_dtype(v.dtype) for group in self.groups for v in group.variables.values()}
        # Variables that are never trained, such as counters, may have any dtype.
        self.dtypes = sorted(dtype for dtype in dtypes if "float" in dtype)

    def step(self, rule: Rule, scalars: Scalars, gradients: Mapping[int, Tensor]) -> None:
        """Takes one step for the variables that have a gradient; arguments as in `Group.step`."""
        self.step_on_this_replica(rule, scalars, gradients)

    def step_without_gradients(self, rule: Rule, scalars: Scalars, indices: Iterable[int]) -> None:
        """Like `step`, for a rule that needs no gradient: it gets zeros."""
        self.step(rule, scalars, self.zeros(indices))

    def zeros(self, indices: Iterable[int]) -> dict[int, Tensor]:
        """A gradient of zeros for each of these variables."""
        variables = {i: v for group in self.groups for i, v in group.variables.items()}
        return {
            i: ops.zeros(variables[i].shape, compute_dtype(variables[i].dtype)) for i in indices
        }

    def step_on_this_replica(
        self, rule: Rule, scalars: Scalars, gradients: Mapping[int, Tensor]
    ) -> None:
        """Like `step`; other replicas, if there are any, take the same step themselves."""
        for group, of_group in self.gradients_by_group(gradients):
            group.step(rule, scalars, of_group)

    def shared_arrays(self) -> list[Any]:
        """Variables that hold the slots of several model variables."""
        return [array for group in self.groups for array in group.shared_arrays]

    def gradients_by_group(
        self, gradients: Mapping[int, Tensor]
    ) -> Iterable[tuple[Group, dict[int, Tensor]]]:
        """Each group that has gradients, with them, in the order of its variables."""
        for group in self.groups:
            of_group = {i: gradients[i] for i in group.variables if i in gradients}
            if of_group:
                yield group, of_group


class Backend:
    """The parts of an optimizer that depend on Keras's backend; here without a fused engine."""

    limits = Limits()

    def check_strategy(self) -> None:
        """Raises a ValueError if one worker's step would overwrite another's."""

    def check_conditional_updates(self, names: Iterable[str]) -> None:
        """Raises a ValueError if Keras would update inside a condition, where replicas in a graph
        cannot exchange gradients.

        Args:
            names: the arguments that make Keras do so.
        """

    def unsupported_reason(self) -> str | None:
        """Why the fused engine is not available; None if it is."""
        return f"it is not available where Keras runs on {keras.config.backend()}"

    def colocated_with(self, variable: Any) -> contextlib.AbstractContextManager[None]:
        """A context that places new variables on the device of another one."""
        return contextlib.nullcontext()

    def packed_groups(
        self,
        variables: Mapping[int, Any],
        initial_values: Mapping[int, Mapping[str, float]],
        limits: Limits,
    ) -> Mapping[int, Any]:
        """The group of each small variable whose slots share arrays from the start, by index.

        Args:
            variables: the model variables, by index.
            initial_values: the initial values of each variable's slots, by name; equal for
                variables of one dtype.
            limits: sizes.
        """
        return {}

    def unfused_engine(self, group: Group) -> Engine:
        """An engine that updates one variable after another."""
        return Engine([group])

    def fused_engine(self, group: Group, packs: Mapping[int, Any], limits: Limits) -> Engine:
        """An engine that updates small variables together, and large ones in few operations.

        Args:
            group: the variables and slots that share no arrays.
            packs: the group of each other variable, by index.
            limits: sizes.
        """
        raise NotImplementedError(self.unsupported_reason())
