"""Slots of many small variables, end to end in shared arrays.

Updating a thousand weights takes no longer than starting the dozen operations of the update. So
small variables are updated together. Their slots lie side by side:

    model variables      kernel (3, 2)        bias (2,)   scale ()
                         ┌──┬──┬──┬──┬──┬──┐  ┌──┬──┐     ┌──┐
    "momentum" array     │ 0│ 1│ 2│ 3│ 4│ 5│  │ 6│ 7│     │ 8│
                         └──┴──┴──┴──┴──┴──┘  └──┴──┘     └──┘
    "velocity" array     likewise, and the "residual" array of half precision

A step concatenates the gradients in the same order, calls the rule once, and gives each variable
its part of the result. For everything else (files, checkpoints, `get_slot`) a `PackedSlot` behaves
like the Keras variable that it replaces.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_yogi import row_gradients
from keras_yogi.engines.base import Group, Limits, Scalars, new_values
from keras_yogi.engines.compiled import Compiler, is_compiled_here
from keras_yogi.half_precision import compute_dtype, is_half, slot_dtype
from keras_yogi.rules import Rule


class ArrayPart:
    """The part of a shared array that belongs to one variable."""

    def __init__(self, array: tf.Variable, start: int, shape: tf.TensorShape) -> None:
        self.array, self.start, self.shape = array, start, shape
        self._end = start + shape.num_elements()

    @property
    def dtype(self) -> str:
        return self.array.dtype.name

    @property
    def value(self) -> tf.Tensor:
        return tf.reshape(self.array[self.start : self._end], self.shape)

    def assign(self, value: Any) -> Any:
        flat = tf.reshape(value, [-1])
        if isinstance(self.array, tf.distribute.DistributedValues):  # parts cannot be assigned
            parts = [self.array[: self.start], flat, self.array[self._end :]]
            self.array.assign(tf.concat(parts, 0))
        else:
            self.array[self.start : self._end].assign(flat)

    def scatter_update(self, rows: tf.IndexedSlices) -> None:
        """Overwrites some rows; no index may repeat."""
        if not self.shape.num_elements():  # rows without columns, which TensorFlow refuses
            return
        indices = tf.expand_dims(rows.indices, -1)
        self.assign(tf.tensor_scatter_nd_update(self.value, indices, rows.values))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.value, dtype)

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> tf.Tensor:
        value = self.value if dtype is None else tf.cast(self.value, dtype)
        return tf.convert_to_tensor(value, name=name)


class PackedGroup(Group):
    """Small variables of one dtype on one device, which share one array per slot name.

    `slots` holds the arrays, in the rule's order; the array of residuals, if any, is last.
    """

    def __init__(
        self,
        variables: Mapping[int, Any],
        initial_values: Mapping[str, float],
        lazy_rows: bool,
        limits: Limits,
        compiled: Compiler,
    ) -> None:
        """Takes native variables by index, and makes one array per initial value."""
        self.dtype = next(iter(variables.values())).dtype
        super().__init__(variables, {}, lazy_rows)
        self.shapes = [variable.shape for variable in variables.values()]
        self.sizes = [shape.num_elements() for shape in self.shapes]
        self.starts = dict(
            zip(variables, itertools.accumulate(self.sizes, initial=0), strict=False)
        )
        # An even length: on the CPU, XLA's loops over an odd length take twice as long ("1 x
        # 1,000,001" of benchmarks/update_cost.py).
        self.padding = sum(self.sizes) % 2
        self._compiled = compiled
        self._compile = limits.compile and sum(self.sizes) >= limits.compile_from
        first = next(iter(variables.values()))
        self.slot_names = list(initial_values)
        length = sum(self.sizes) + self.padding
        with tf.init_scope(), tf.distribute.get_strategy().extended.colocate_vars_with(first):
            self.slots = [
                tf.Variable(
                    tf.fill([length], tf.constant(initial, slot_dtype(name, self.dtype))),
                    trainable=False,
                    name=f"packed_{name}",
                )
                for name, initial in initial_values.items()
            ]

    def slot(self, index: int, slot_name: str, name: str) -> "PackedSlot":
        """The slot of a variable, with the name that Keras would give it."""
        array = self.slots[self.slot_names.index(slot_name)]
        return PackedSlot(array, self.starts[index], self.variables[index].shape, name)

    def storage(self, index: int) -> Sequence[Any]:
        variable = self.variables[index]
        parts = (ArrayPart(array, self.starts[index], variable.shape) for array in self.slots)
        return (variable, *parts)

    def update(self, rule: Rule, scalars: Scalars, gradients: Mapping[int, tf.Tensor]) -> None:
        compiles = self._compile and is_compiled_here()
        present = sum(self.variables[index].shape.num_elements() for index in gradients)
        is_most = 2 * present >= sum(self.sizes)
        # Another thread may train variables that have no gradient here. A compiled program locks
        # the arrays; without one, the parts of these variables must not be read and written.
        if len(gradients) < len(self.variables) and not (compiles and is_most):
            super().update(rule, scalars, gradients)
            return
        gradients = {index: row_gradients.dense(g) for index, g in gradients.items()}
        same = all(gradient.dtype == self.dtype for gradient in gradients.values())
        dtype = self.dtype if same else tf.as_dtype(compute_dtype(self.dtype))
        sizes = zip(self.variables, self.sizes, strict=True)
        flat_gradient = self._join(
            [gradients[i] if i in gradients else tf.zeros([size]) for i, size in sizes], dtype
        )
        replaces = rule.reads_weights or is_half(self.dtype)
        variables = list(self.variables.values())
        flat_weights = self._join(variables, self.dtype) if replaces else None
        mask = None
        if len(gradients) < len(variables):
            repeats = [*self.sizes, self.padding]
            mask = tf.repeat([*(i in gradients for i in self.variables), False], repeats)
        update = self._compiled if compiles else functools.partial
        flat = update(update_arrays, rule)(flat_gradient, flat_weights, mask, self.slots, scalars)
        for (index, variable), part in zip(self.variables.items(), self._split(flat), strict=True):
            if index in gradients:
                variable.assign(part) if replaces else variable.assign_add(part)

    def _join(self, tensors: Sequence[Any], dtype: tf.DType) -> tf.Tensor:
        """One tensor per variable, concatenated in the order of the arrays."""
        parts = [tf.reshape(tf.cast(tensor, dtype), [-1]) for tensor in tensors]
        return tf.concat([*parts, *[tf.zeros([1], dtype)] * self.padding], 0)

    def _split(self, joined: tf.Tensor) -> list[tf.Tensor]:
        """The reverse of `_join`: one tensor per variable, in its shape."""
        parts = tf.split(joined, [*self.sizes, self.padding])[: len(self.sizes)]
        return [tf.reshape(part, shape) for part, shape in zip(parts, self.shapes, strict=True)]


def update_arrays(
    rule: Rule,
    gradient: tf.Tensor,
    weights: tf.Tensor | None,
    mask: tf.Tensor | None,
    arrays: Sequence[tf.Variable],
    scalars: Scalars,
) -> tf.Tensor:
    """Updates arrays of slots, where the mask is True if there is one.

    Returns:
        The new weights; their change, if no weights are given.
    """
    old = [tf.convert_to_tensor(array) for array in arrays]
    weights = tf.zeros_like(gradient) if weights is None else weights
    weights, *new = new_values(rule, scalars, gradient, [weights, *old])
    for array, value, before in zip(arrays, new, old, strict=True):
        array.assign(value if mask is None else tf.where(mask, value, before))
    return weights


class PackedSlot(keras.Variable):
    """One model variable's slot: a Keras variable whose value is a part of a shared array."""

    def __init__(self, array: tf.Variable, start: int, shape: tf.TensorShape, name: str) -> None:
        self.location = array, start
        self._part = ArrayPart(array, start, shape)
        dtype = self._part.dtype
        super().__init__("zeros", shape, dtype, trainable=False, autocast=False, name=name)

    def _initialize_with_initializer(self, initializer: Any) -> None:
        self._value = self._part  # the array has its initial value

    @property
    def value(self) -> tf.Tensor:
        value = super().value  # another one inside of a keras.StatelessScope
        return value.value if value is self._part else value

    def _direct_assign(self, value: Any) -> None:
        value = tf.ensure_shape(value, self.shape)  # if it is not known yet
        self._part.assign(tf.cast(value, self.dtype))

    # Checkpoints and SavedModels treat it as the variable that it replaces, so that they do not
    # depend on which variables were packed.

    @property
    def _shared_name(self) -> str:
        return self.name

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {"VARIABLE_VALUE": self.value}

    def _restore_from_tensors(self, restored: dict[str, tf.Tensor]) -> None:
        self.assign(restored["VARIABLE_VALUE"])

    def _copy_trackable_to_cpu(self, object_map: Any) -> None:
        if self not in object_map:
            with tf.init_scope(), tf.device("CPU:0"):
                object_map[self] = self._variable()
        object_map[self].assign(self.value)

    def _export_to_saved_model_graph(
        self, object_map: Any, tensor_map: Any, options: Any, **more: Any
    ) -> list[Any]:
        with tf.init_scope():
            variable = self._variable()
        resources = variable._export_to_saved_model_graph(object_map, tensor_map, options, **more)
        object_map[self] = object_map[variable]
        return resources

    def _write_object_proto(self, proto: Any, options: Any) -> None:
        with tf.init_scope():
            self._variable()._write_object_proto(proto, options)

    def _variable(self) -> tf.Variable:
        """A new variable of the same shape and dtype."""
        return tf.Variable(tf.zeros(self.shape, self.dtype), trainable=False, name=self.name)
