"""The reference implementation, which updates one variable after another; and `Backend`."""

import contextlib
import math
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

    def arguments_for(
        self, indices: Iterable[int]
    ) -> tuple[Mapping[int, Any], Mapping[int, Sequence[Any]], bool]:
        """The arguments that make a group of some of the variables."""
        indices = list(indices)
        variables = {index: self.variables[index] for index in indices}
        return variables, {index: self.slots[index] for index in indices}, self.lazy_rows

    def storage(self, index: int) -> Sequence[Any]:
        """A variable and its slots: what a step reads and writes."""
        return (self.variables[index], *self.slots[index])

    def step(self, rule: Rule, scalars: Scalars, gradients: Mapping[int, Tensor]) -> None:
        """Takes one step for the variables that have a gradient.

        Args:
            rule: the update.
            scalars: the scalars of this step.
            gradients: by index; dense, or row gradients from `row_gradients.coalesce`.
        """
        remaining = dict(gradients)
        for index, gradient in gradients.items():
            if self.lazy_rows and row_gradients.is_rows(gradient):
                update_rows(rule, scalars, remaining.pop(index), self.storage(index))
        if remaining:
            self.update(rule, scalars, remaining)

    def update(self, rule: Rule, scalars: Scalars, gradients: Mapping[int, Tensor]) -> None:
        """Updates whole variables: rows without a gradient have a gradient of zero."""
        for index, gradient in gradients.items():
            update_variable(rule, scalars, row_gradients.dense(gradient), self.storage(index))


def chunks(variables: Mapping[int, Any], size: float) -> list[list[int]]:
    """Indices of the backend's own variables, in lists of one dtype and device. A list of several
    variables has at most `size` elements.
    """
    by_kind: dict[Any, list[list[int]]] = {}
    filled: dict[Any, int] = {}
    for index, variable in variables.items():
        kind, elements = (variable.dtype, variable.device), math.prod(variable.shape)
        if kind not in by_kind or filled[kind] + elements > size:
            by_kind.setdefault(kind, []).append([])
            filled[kind] = 0
        by_kind[kind][-1].append(index)
        filled[kind] += elements
    return [indices for of_kind in by_kind.values() for indices in of_kind]


def new_values(
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
    weights, slots = new_weights_and_slots(rule, scalars, gradient, values)
    new = (weights, *slots)
    if len(values) > len(new):
        variable, residual = half_precision.split(weights, values[0].dtype)
        new = (variable, *slots, residual)
    return [ops.cast(x, old.dtype) for x, old in zip(new, values, strict=True)]


def new_weights_and_slots(
    rule: Rule, scalars: Scalars, gradient: Tensor, values: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """New weights and slots in the dtype of the computation; arguments as in `new_values`."""
    last_slot = 1 + len(rule.initial_values)
    variable, slots, residual = values[0], values[1:last_slot], values[last_slot:]
    dtype = compute_dtype(variable.dtype)
    gradient, *slots = (ops.cast(x, dtype) for x in (gradient, *slots))
    weights = half_precision.read(variable, *residual)
    return rule.update(gradient, weights, tuple(slots), scalars[dtype])


def update_variable(rule: Rule, scalars: Scalars, gradient: Tensor, storage: Sequence[Any]) -> None:
    """Updates a variable and its slots with a dense gradient."""
    old = [ops.convert_to_tensor(each) for each in storage]
    for each, value in zip(storage, new_values(rule, scalars, gradient, old), strict=True):
        each.assign(value)


def update_rows(rule: Rule, scalars: Scalars, gradient: Tensor, storage: Sequence[Any]) -> None:
    """Updates those rows of a table and its slots that have a gradient."""
    write_rows(storage, *new_rows(rule, scalars, gradient, storage))


def new_rows(
    rule: Rule, scalars: Scalars, gradient: Tensor, storage: Sequence[Any]
) -> tuple[Tensor, list[Tensor]]:
    """The indices of the rows that have a gradient, and their new values in table and slots."""
    gradient, any_row = row_gradients.replace_padding(gradient)
    old = [row_gradients.gather(each, gradient.indices) for each in storage]
    new = new_values(rule, scalars, gradient.values, old)
    if any_row is not None:
        new = [ops.where(any_row, x, before) for x, before in zip(new, old, strict=True)]
    return gradient.indices, new


def write_rows(storage: Sequence[Any], indices: Tensor, rows: Sequence[Tensor]) -> None:
    """Overwrites rows of a table and its slots."""
    for each, values in zip(storage, rows, strict=True):
        row_gradients.scatter(each, values, indices)


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

    def step_reduced(self, rule: Rule, scalars: Scalars, gradients: Mapping[int, Tensor]) -> None:
        """Like `step`, with gradients that are the same on every replica."""
        self.step(rule, scalars, gradients)

    def step_on_this_replica(
        self, rule: Rule, scalars: Scalars, gradients: Mapping[int, Tensor]
    ) -> None:
        """Like `step`; other replicas, if there are any, take the same step themselves."""
        for group, of_group in self.gradients_by_group(gradients):
            group.step(rule, scalars, of_group)

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
        lazy_rows: bool,
        limits: Limits | None,
    ) -> Mapping[int, Any]:
        """The group of each small variable whose slots share arrays from the start, by index.

        Args:
            variables: the model variables, by index.
            initial_values: the initial values of each variable's slots, by name; equal for
                variables of one dtype.
            lazy_rows: leave rows without a gradient alone.
            limits: sizes; None: no variables share arrays.
        """
        return {}

    def engine(self, group: Group, packs: Mapping[int, Any], limits: Limits | None) -> Engine:
        """Makes the engine that updates these variables.

        Args:
            group: the variables and slots that share no arrays.
            packs: the group of each other variable, by index.
            limits: sizes; None: update one variable after another.
        """
        return Engine([group])
