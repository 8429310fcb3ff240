"""The fused engine: the same update as one variable after another, in few operations.

Small variables are updated together (see `packing`); larger ones by the rule compiled with XLA,
which makes a loop for each array it writes, several variables in a call. What the engine does not
serve goes through `update_step`. (TensorFlow's own ResourceApplyAdam is one loop and a little
faster on large variables, but less right: in float32 it computes 1 − 0.999, off by 1.3e-5.)
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from keras_yogi.engine.packing import Pack, PackedSlot

PACK_UP_TO = 49_152
"""Elements of a variable that still shares an array. Packing moves a gradient and a step once
more through memory, and saves about ten operations a variable: up to this size that pays.
"""

ARRAY_UP_TO = 524_288
"""Elements of a pack: 2 MiB of float32, so that an array is still in the cache when it is next
read, and several packs keep all cores busy and need not all wait for the last gradient.
"""

COMPILE_FROM = 65_536
"""Elements of neighbours in a pack, or of a variable that the engine does not serve, from which on
compiling pays: in fewer the start of an operation costs as much as what it does.
"""

CALL_UP_TO = 1_048_576
"""Elements of the variables that one compiled call updates, if there are several. A call costs
tens of microseconds, whatever it does; a few calls keep all cores busy.
"""

# Places in the list that the optimizer was built with, model variables, gradients.
Chunk: TypeAlias = list[tuple[int, tf.Variable, tf.Tensor]]


def serves(variable: tf.Variable) -> bool:
    """Half precision is computed in another dtype than it is stored in: not here."""
    return variable.dtype in (tf.float32, tf.float64)


@functools.cache
def xla_is_available() -> bool:
    """Not every build of TensorFlow can compile for the CPU: ask it, once."""
    try:
        with tf.init_scope():
            tf.function(lambda: tf.zeros(()) + 1.0, jit_compile=True)()
    except (tf.errors.OpError, NotImplementedError, ValueError):
        return False
    return True


class FusedEngine:
    """Carries out the steps of one optimizer, which holds the rule and the slots."""

    def __init__(self, optimizer: Any, variables: Sequence[Any]) -> None:
        self._optimizer = optimizer
        self._paths = [getattr(v, "path", v.name) for v in variables]
        self._packs = [Pack(group) for group in _groups(variables)]
        self._places = {
            index: (pack, place) for pack in self._packs for place, index in enumerate(pack.indices)
        }
        self._large = {
            index
            for index, variable in enumerate(map(_native, variables))
            if index not in self._places and serves(variable)
        }
        # Graphs are made once. All that is fixed in them is part of the key.
        self._graphs: dict[Any, Callable[..., Any]] = {}

    def packed_slot(
        self, index: int, slot: str, initializer: Callable[..., Any]
    ) -> PackedSlot | None:
        """The slot of the model variable at `index` if it is packed, else None."""
        if index not in self._places:
            return None
        pack, place = self._places[index]
        if slot not in pack.arrays:
            pack.add_array(slot, initializer)
        # The names that Keras gives to slots.
        name = f"{self._paths[index].replace('/', '_').replace(':', '_')}_{slot}"
        return PackedSlot(pack, place, slot, name, f"{self._optimizer.name}/{name}")

    def serves_rows(self, index: int) -> bool:
        """Whether a gradient of some rows is of use for the model variable at `index`, if all
        rows move: for a small one, being updated with the others is.
        """
        return index in self._large

    def update(
        self,
        indices: Sequence[int],
        variables: Sequence[tf.Variable],
        gradients: Sequence[tf.Tensor],
        learning_rate: Any,
    ) -> None:
        """Carries out one step.

        Args:
            indices: places of the variables in the list that the optimizer was built with.
            variables: the model variables that have a gradient.
            gradients: one tensor each, or a tf.IndexedSlices of `rows.summed`.
            learning_rate: η, a number or a scalar.
        """
        update = functools.partial(self._update, tuple(indices), variables)
        if tf.executing_eagerly():
            update = self._graph("update", tuple(indices), update, jit_compile=False)
            learning_rate = tf.convert_to_tensor(learning_rate)
        update(list(gradients), learning_rate)

    def rule(self, elements: int) -> Callable[..., Any]:
        """The optimizer's `new_values` for a variable of so many elements: compiled, if large."""
        rule = self._optimizer.new_values
        if elements < COMPILE_FROM or not xla_is_available():
            return rule
        compiled = self._graph("rule", None, rule, jit_compile=True)
        return lambda *values: compiled(*tf.nest.map_structure(tf.convert_to_tensor, values))

    def _graph(self, name: str, key: Any, body: Callable[..., Any], jit_compile: bool) -> Any:
        key = (name, key, self._optimizer.constants())
        if key not in self._graphs:
            self._graphs[key] = tf.function(
                body,
                autograph=False,
                jit_compile=jit_compile,
                # How many rows a batch names must not decide on the graph of a whole step.
                reduce_retracing=not jit_compile,
            )
        return self._graphs[key]

    def _update(
        self,
        indices: tuple[int, ...],
        variables: Sequence[tf.Variable],
        gradients: Sequence[tf.Tensor],
        learning_rate: Any,
    ) -> None:
        @functools.cache
        def scalars(dtype: tf.DType) -> Any:  # values, where the optimizer may have variables
            of_step = self._optimizer.step_scalars(learning_rate, dtype.name)
            return tf.nest.map_structure(tf.convert_to_tensor, of_step)

        pairs = dict(zip(indices, zip(variables, gradients, strict=True), strict=True))
        for index in [i for i, (_, g) in pairs.items() if isinstance(g, tf.IndexedSlices)]:
            self._update_table(index, *pairs.pop(index), learning_rate, scalars)
        for pack in self._packs:
            for first, last in pack.runs(pairs.keys()):
                run = [pairs.pop(index) for index in pack.indices[first:last]]
                self._update_run(pack, first, last, run, scalars(pack.dtype))
        large = []
        for index, (variable, gradient) in pairs.items():
            if index in self._large and xla_is_available():
                large.append((index, variable, tf.cast(gradient, variable.dtype)))
            else:
                self._optimizer.update_step(gradient, variable, learning_rate)
        for chunk in _chunks(large):
            self._update_large(chunk, scalars(chunk[0][1].dtype))

    def _update_table(
        self,
        index: int,
        variable: tf.Variable,
        gradient: tf.IndexedSlices,
        learning_rate: Any,
        scalars: Callable[[tf.DType], Any],
    ) -> None:
        """Updates a table of which some rows have a gradient."""
        if self._optimizer.sparse_update == "lazy":
            self._optimizer.update_rows(gradient, variable, learning_rate)
        elif not xla_is_available():
            self._optimizer.update_step(tf.convert_to_tensor(gradient), variable, learning_rate)
        else:
            # All rows as if none had a gradient, which therefore need not be spread out over a
            # table, and then those that have one.
            chunk = [(index, variable, tf.zeros((), variable.dtype))]
            self._optimizer.update_rows(
                gradient,
                variable,
                learning_rate,
                lambda: self._update_large(chunk, scalars(variable.dtype)),
            )

    def _update_large(self, chunk: Chunk, scalars: Any) -> None:
        of_all = self._optimizer.slots().values()
        update = self._graph("large", None, self._update_each, jit_compile=True)
        update([(g, v, [of_slot[i].value for of_slot in of_all]) for i, v, g in chunk], scalars)

    def _update_each(
        self,
        variables: Sequence[tuple[tf.Tensor, tf.Variable, Sequence[tf.Variable]]],
        scalars: Any,
    ) -> None:
        """Updates variables by their gradients (or a scalar, for every weight) and slots."""
        for gradient, variable, slots in variables:
            weights, *values = map(tf.convert_to_tensor, (variable, *slots))
            gradient = tf.broadcast_to(gradient, weights.shape)
            weights, new = self._optimizer.new_values(gradient, weights, tuple(values), scalars)
            for slot, value in zip(slots, new, strict=True):
                self._optimizer.assign(slot, value)
            self._optimizer.assign(variable, weights)

    def _update_run(
        self,
        pack: Pack,
        first: int,
        last: int,
        run: Sequence[tuple[tf.Variable, tf.Tensor]],
        scalars: Any,
    ) -> None:
        """Updates variables that lie side by side in a pack, as if they were one."""
        update = functools.partial(self._update_pack, pack, first, last)
        if pack.starts[last] - pack.starts[first] >= COMPILE_FROM and xla_is_available():
            # The arrays are written inside of what is compiled, so that it needs no others.
            key = (self._packs.index(pack), first, last)
            update = self._graph("pack", key, update, jit_compile=True)
        joined = pack.join([gradient for _, gradient in run], first, last)
        whole = self._optimizer.step_depends_on_weights
        old = pack.join([variable for variable, _ in run], first, last) if whole else None
        weights = update(joined, old, scalars)
        for (variable, _), part in zip(run, pack.split(weights, first, last), strict=True):
            variable.assign(part) if whole else variable.assign_add(part)

    def _update_pack(
        self,
        pack: Pack,
        first: int,
        last: int,
        gradient: tf.Tensor,
        weights: tf.Tensor | None,
        scalars: Any,
    ) -> tf.Tensor:
        """Updates the slots of neighbours in a pack; returns their weights, joined. Without
        weights it returns what is to be added to them.
        """
        weights = tf.zeros_like(gradient) if weights is None else weights
        names = list(self._optimizer.slots())
        values = tuple(pack.read(name, first, last) for name in names)
        weights, values = self._optimizer.new_values(gradient, weights, values, scalars)
        for name, value in zip(names, values, strict=True):
            pack.write(name, first, last, value)
        return weights


def _chunks(variables: Chunk) -> Iterator[Chunk]:
    """Variables of one dtype that are updated by one call. Sorted by shape, so that the same
    program serves many of a model's chunks.
    """
    by_shape = sorted(variables, key=lambda entry: (entry[1].dtype.name, tuple(entry[1].shape)))
    chunk: Chunk = []
    size = 0
    for entry in by_shape:
        elements = entry[1].shape.num_elements()
        if chunk and (size + elements > CALL_UP_TO or chunk[0][1].dtype != entry[1].dtype):
            yield chunk
            chunk, size = [], 0
        chunk.append(entry)
        size += elements
    if chunk:
        yield chunk


def _native(variable: Any) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _groups(variables: Sequence[Any]) -> list[dict[int, tf.Variable]]:
    """The small variables by dtype and device, not too many: what may lie in one array."""
    groups: list[dict[int, tf.Variable]] = []
    open_groups: dict[Any, tuple[dict[int, tf.Variable], int]] = {}  # with their elements
    for index, variable in enumerate(variables):
        native = _native(variable)
        if getattr(variable, "overwrite_with_gradient", False) or not serves(native):
            continue
        kind, elements = (native.dtype, native.device), native.shape.num_elements()
        if elements > PACK_UP_TO:
            continue
        group, filled = open_groups.get(kind, ({}, ARRAY_UP_TO))
        if filled + elements > ARRAY_UP_TO:
            group, filled = {}, 0
            groups.append(group)
        group[index] = native
        open_groups[kind] = group, filled + elements
    return [group for group in groups if len(group) > 1]
