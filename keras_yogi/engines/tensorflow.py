"""The fused engine on TensorFlow: the update of `base`, in few operations.

Small variables are updated together (see `packed`). Large ones are updated in place, several per
call, by the rule compiled with XLA. (TensorFlow's own ResourceApplyAdam is one loop and a little
faster on large variables, but less accurate: in float32 it computes 1 − 0.999, off by 1.3e-5.)
"""

import collections
import contextlib
import copy
import functools
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_yogi import checks, half_precision, row_gradients
from keras_yogi.engines.base import (
    Backend,
    Engine,
    Group,
    Limits,
    Scalars,
    chunks,
    new_rows,
    new_weights_and_slots,
    update_variable,
    write_rows,
)
from keras_yogi.engines.compiled import Compiler, compiler, is_compiled_here
from keras_yogi.engines.packed import PackedGroup
from keras_yogi.rules import Rule

EAGER_GRAPHS = 16
"""The most graphs of whole steps per rule in an eager loop: one for each set of gradients."""
PATIENCE = 20
"""How often a set of gradients, after the first that has a graph, must come to get one."""


class CompiledGroup(Group):
    """Large variables of one dtype on one device, updated in place by one compiled call."""

    def __init__(
        self,
        variables: Mapping[int, tf.Variable],
        slots: Mapping[int, Sequence[tf.Variable]],
        lazy_rows: bool,
        compiled: Compiler,
    ) -> None:
        super().__init__(variables, slots, lazy_rows)
        self._compiled = compiled

    def update(self, rule: Rule, scalars: Scalars, gradients: Mapping[int, tf.Tensor]) -> None:
        if not is_compiled_here():
            super().update(rule, scalars, gradients)
            return
        members, row_updates = [], []
        for index, gradient in gradients.items():
            storage = self.storage(index)
            if row_gradients.is_rows(gradient):
                # First all rows with a gradient of zero, and then those that have one: the dense
                # gradient is never made.
                row_updates.append((storage, *new_rows(rule, scalars, gradient, storage)))
                gradient = tf.zeros((), storage[0].dtype)
            members.append((gradient, storage))
        weights = self._compiled(update_in_place, rule)(members, scalars)
        if weights:
            parts = [(storage[0], storage[-1]) for _, storage in members]
            self._compiled(split_in_place, rule)(weights, parts)
        for row_update in row_updates:
            write_rows(*row_update)


def update_in_place(
    rule: Rule, members: Sequence[tuple[tf.Tensor, Sequence[tf.Variable]]], scalars: Scalars
) -> list[tf.Tensor]:
    """Updates variables and their slots.

    Args:
        rule: the update.
        members: pairs of a gradient, which may be a scalar for every weight, and what it updates:
            a variable and its slots.
        scalars: the scalars of this step.

    Returns:
        The weights of variables that keep a residual, for `split_in_place`; an empty list if none
        does. In one program XLA would compute them once for each part, and copy their inputs.
    """
    whole = []
    for gradient, (variable, *slots) in members:
        gradient = tf.broadcast_to(gradient, variable.shape)
        if len(slots) == len(rule.initial_values):
            update_variable(rule, scalars, gradient, (variable, *slots))
            continue
        old = [tf.convert_to_tensor(each) for each in (variable, *slots)]
        weights, new = new_weights_and_slots(rule, scalars, gradient, old)
        for slot, value in zip(slots[:-1], new, strict=True):
            slot.assign(value)
        whole.append(weights)
    return whole


def split_in_place(
    _rule: Rule, weights: Sequence[tf.Tensor], parts: Sequence[tuple[tf.Variable, tf.Variable]]
) -> None:
    """Stores weights in half-precision variables and their residuals."""
    for whole, (variable, residual) in zip(weights, parts, strict=True):
        half_precision.write(variable, residual, whole)


class TensorFlowEngine(Engine):
    """Takes steps on TensorFlow: each group on the device of its variables."""

    def step(self, rule: Rule, scalars: Scalars, gradients: Mapping[int, tf.Tensor]) -> None:
        if tf.distribute.has_strategy():
            raise ValueError(
                "The optimizer must be created and built inside the scope of the strategy that it "
                f"trains under. Received: {type(tf.distribute.get_strategy()).__name__}"
            )
        super().step(rule, scalars, gradients)

    def step_on_this_replica(
        self, rule: Rule, scalars: Scalars, gradients: Mapping[int, tf.Tensor]
    ) -> None:
        for group, of_group in self.gradients_by_group(gradients):
            with tf.device(first_variable(group).device):
                group.step(rule, scalars, of_group)


class DistributedEngine(Engine):
    """Takes steps under a tf.distribute strategy: sums the gradients of the replicas; each replica
    then updates its own copies of a group by one call.
    """

    def __init__(self, groups: Iterable[Group], strategy: tf.distribute.Strategy) -> None:
        super().__init__(groups)
        self._strategy = strategy
        self._copies = {group: self._copies_of(group) for group in self.groups}

    def _copies_of(self, group: Group) -> list[Group]:
        """The same group on each replica of this process, with the replica's own variables.
        TensorFlow finds these by itself, but not in a compiled function.
        """

        def copies(variable: tf.Variable) -> Sequence[tf.Variable]:
            if isinstance(variable, tf.distribute.DistributedValues):
                return self._strategy.experimental_local_results(variable)
            # CentralStorageStrategy has one copy, in a wrapper.
            return [variable.get() if hasattr(variable, "get") else variable]

        def on_replica(replica: int) -> Group:
            local_group = copy.copy(group)
            local_group.variables, local_group.slots = tf.nest.map_structure(
                lambda variable: copies(variable)[replica], (group.variables, group.slots)
            )
            return local_group

        return [on_replica(replica) for replica in range(len(copies(first_variable(group))))]

    def step(self, rule: Rule, scalars: Scalars, gradients: Mapping[int, tf.Tensor]) -> None:
        context = tf.distribute.get_replica_context()
        if context is None:
            raise ValueError(
                "`apply` must be called on a replica, inside of `strategy.run`. "
                "Received: a call in the cross-replica context"
            )
        self._check_xla()
        # TensorFlow aborts the process if it has to sum slices without rows.
        gradients = {
            index: row_gradients.with_padding(g) if row_gradients.is_rows(g) else g
            for index, g in gradients.items()
        }
        summed = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        self.step_reduced(rule, scalars, summed)

    def _check_xla(self) -> None:
        """Raises a ValueError where a program of XLA would need the variables of several devices:
        TensorFlow compiles the steps of all replicas into one, unless all of them are GPUs.
        """
        distribute = tf.__internal__.distribute
        if not tf.__internal__.get_enclosing_xla_context() or (
            distribute.strategy_supports_no_merge_call()
        ):
            return
        devices = {first_variable(own).device for own in next(iter(self._copies.values()))}
        if len(devices) > 1:
            raise ValueError(
                f"`jit_compile` must be False under {type(self._strategy).__name__} with replicas "
                "on several devices, unless all of them are GPUs: XLA compiles for one device. "
                f"Received: a step compiled by XLA for {len(devices)} devices"
            )

    def step_reduced(
        self, rule: Rule, scalars: Scalars, gradients: Mapping[int, tf.Tensor]
    ) -> None:
        update = functools.partial(self._update, rule)
        tf.__internal__.distribute.interim.maybe_merge_call(
            update, self._strategy, scalars, gradients
        )

    def _update(
        self,
        rule: Rule,
        strategy: tf.distribute.Strategy,
        scalars: Scalars,
        gradients: Mapping[int, tf.Tensor],
    ) -> None:
        for group, of_group in self.gradients_by_group(gradients):
            strategy.extended.update(
                first_variable(group),
                functools.partial(self._update_on_a_replica, rule, self._copies[group]),
                args=(scalars, of_group),  # each replica gets its own
                group=False,
            )

    def _update_on_a_replica(
        self,
        rule: Rule,
        copies: Sequence[Group],
        variable: tf.Variable,
        scalars: Scalars,
        gradients: Mapping[int, tf.Tensor],
    ) -> None:
        # The rows of several replicas are concatenated.
        gradients = {
            index: row_gradients.coalesce(g) if row_gradients.is_rows(g) else g
            for index, g in gradients.items()
        }
        local_group = next(group for group in copies if first_variable(group) is variable)
        local_group.step(rule, scalars, gradients)


class FusedEngine(TensorFlowEngine):
    """A `TensorFlowEngine` that runs the repeated steps of an eager loop as graphs."""

    def __init__(self, groups: Iterable[Group]) -> None:
        super().__init__(groups)
        # By the type of rule: weight decay of half precision is a rule of its own.
        self._graphs = collections.defaultdict[type[Rule], EagerGraphs](EagerGraphs)

    def step(self, rule: Rule, scalars: Scalars, gradients: Mapping[int, tf.Tensor]) -> None:
        step: Callable[..., None] = functools.partial(super().step, rule)
        if tf.executing_eagerly():
            step = self._graphs[type(rule)].find(rule, gradients, step)
        step(scalars, dict(gradients))


class EagerGraphs:
    """Graphs of whole steps, for sets of gradients that repeat.

    Making a graph takes a hundred times as long as a step. So a loop gets none if its set of
    gradients, or a hyperparameter, changes in every step; and only the first graph is made at once,
    when its set comes for the second time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # threads may share an optimizer
        self._has_made_one = False
        self._rule: Rule | None = None
        self._seen: collections.Counter[frozenset[int]] = collections.Counter()
        self._graphs: dict[frozenset[int], Callable[..., None]] = {}

    def find(
        self, rule: Rule, gradients: Iterable[int], step: Callable[..., None]
    ) -> Callable[..., None]:
        """A graph of `step`; `step` itself the first times, or if there are enough graphs."""
        key = frozenset(gradients)
        with self._lock:
            if rule != self._rule:
                self._rule, self._seen, self._graphs = rule, collections.Counter(), {}
            comes_again = self._seen[key] >= (PATIENCE if self._has_made_one else 1)
            if key not in self._graphs and comes_again and len(self._graphs) < EAGER_GRAPHS:
                # reduce_retracing: batches differ in their number of rows.
                graph = tf.function(step, autograph=False, reduce_retracing=True)
                self._graphs[key], self._has_made_one = graph, True
            # A bound on memory, for a loop whose set is new in every step.
            if key in self._seen or len(self._seen) < 64 * EAGER_GRAPHS:
                self._seen[key] += 1
            return self._graphs.get(key, step)


class TensorFlowBackend(Backend):
    """Looks up TensorFlow's strategy and devices, and makes groups."""

    def check_strategy(self) -> None:
        strategy = tf.distribute.get_strategy()
        if isinstance(strategy, tf.distribute.ParameterServerStrategy):
            raise checks.reject("strategy", "one whose workers train synchronously", strategy)

    def check_conditional_updates(self, names: Iterable[str]) -> None:
        merges = tf.__internal__.distribute.strategy_supports_no_merge_call
        if tf.executing_eagerly() or merges():
            return
        for name in names:
            strategy = type(tf.distribute.get_strategy()).__name__
            raise ValueError(
                f"`{name}` must be None in a graph under {strategy}: Keras updates inside a "
                "condition, where replicas cannot sum their gradients. Compile with "
                "run_eagerly=True, or call `apply` outside of tf.function. "
                f"Received: {name} in a graph"
            )

    def unsupported_reason(self) -> str | None:
        if isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy):
            return "it has not been tested on a TPU"
        return None

    def colocated_with(self, variable: Any) -> contextlib.AbstractContextManager[None]:
        return tf.distribute.get_strategy().extended.colocate_vars_with(native(variable))

    def packed_groups(
        self,
        variables: Mapping[int, Any],
        initial_values: Mapping[int, Mapping[str, float]],
        lazy_rows: bool,
        limits: Limits | None,
    ) -> Mapping[int, PackedGroup]:
        if limits is None:
            return {}
        floats = {i: native(v) for i, v in variables.items() if is_float(native(v))}
        small = {i: v for i, v in floats.items() if v.shape.num_elements() <= limits.pack_up_to}
        groups, compiled = {}, compiler()
        for indices in chunks(small, limits.array_up_to):
            if len(indices) > 1:
                members, initial = {i: small[i] for i in indices}, initial_values[indices[0]]
                group = PackedGroup(members, initial, lazy_rows, limits, compiled)
                groups.update(dict.fromkeys(indices, group))
        return groups

    def engine(self, group: Group, packs: Mapping[int, Any], limits: Limits | None) -> Engine:
        group, floats = with_native_variables(group), {}
        if limits and limits.compile:
            floats = {i: v for i, v in group.variables.items() if is_float(v)}
        # Sorted by shape, so that calls can share a compiled program.
        by_shape = dict(sorted(floats.items(), key=lambda item: tuple(item[1].shape)))
        compiled = compiler()
        large = [
            CompiledGroup(*group.arguments_for(indices), compiled)
            for indices in chunks(by_shape, limits.call_up_to if limits else 0)
        ]
        rest = Group(*group.arguments_for(i for i in group.variables if i not in floats))
        # dict.fromkeys: each group once, in order
        single = [
            Group(*rest.arguments_for(indices)) for indices in chunks(rest.variables, math.inf)
        ]
        groups = [*dict.fromkeys(packs.values()), *large, *single]
        if tf.distribute.has_strategy():
            return DistributedEngine(groups, tf.distribute.get_strategy())
        return FusedEngine(groups) if limits else TensorFlowEngine(groups)


def with_native_variables(group: Group) -> Group:
    """The same group, of TensorFlow's own variables."""
    variables = {index: native(variable) for index, variable in group.variables.items()}
    slots = {index: [native(slot) for slot in group.slots[index]] for index in variables}
    return Group(variables, slots, group.lazy_rows)


def first_variable(group: Group) -> tf.Variable:
    return next(iter(group.variables.values()))


def native(variable: Any) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable


def is_float(variable: tf.Variable) -> bool:
    """Whether a variable has a floating dtype. Others, such as counters, are never trained."""
    return bool(variable.dtype.is_floating)
