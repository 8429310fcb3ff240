"""Slots of many small variables, end to end in one array.

An update of a thousand weights costs what starting its dozen operations costs, so small variables
are updated together. Their slots lie side by side:

    model variables      kernel (3, 2)        bias (2,)   scale ()
                         ┌──┬──┬──┬──┬──┬──┐  ┌──┬──┐     ┌──┐
    "momentum" array     │ 0│ 1│ 2│ 3│ 4│ 5│  │ 6│ 7│     │ 8│
                         └──┴──┴──┴──┴──┴──┘  └──┴──┘     └──┘
    "velocity" array     likewise

A step joins the gradients in the same order, calls the rule once, and gives each variable its
part of the result. To everything else (files, checkpoints, `get_slot`) a `PackedSlot` looks like
the Keras variable that it stands for.
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

ROW = 16
"""Elements of float32 in 64 bytes. TensorFlow splits an array of such rows without copying it."""


class Pack:
    """Small model variables of one dtype on one device, and one array for each slot name."""

    def __init__(self, variables: dict[int, tf.Variable]) -> None:
        """Takes the variables by their places in the list that the optimizer was built with."""
        # Whole rows first, so that they stay whole.
        self.indices = sorted(variables, key=lambda i: -_unit(variables[i].shape.num_elements()))
        self.shapes = [variables[index].shape for index in self.indices]
        self.sizes = [shape.num_elements() for shape in self.shapes]
        self.starts = [0, *itertools.accumulate(self.sizes)]
        # Never odd: XLA on the CPU makes loops over an odd length that take twice as long.
        self.length = self.starts[-1] + self.starts[-1] % 2
        self.dtype = next(iter(variables.values())).dtype
        self.device = next(iter(variables.values())).device
        self.arrays: dict[str, tf.Variable] = {}

    def add_array(self, name: str, initializer: Callable[..., Any]) -> None:
        """Makes the array of a slot, with the same initial value everywhere."""
        with tf.init_scope(), tf.device(self.device):
            initial = initializer((self.length,), self.dtype.name)
            self.arrays[name] = tf.Variable(initial, trainable=False, name=f"packed_{name}")

    def runs(self, present: Collection[int]) -> Iterator[tuple[int, int]]:
        """Neighbours whose variables are all in `present`: (first, last + 1) places in the pack."""
        places = [k for k, index in enumerate(self.indices) if index in present]
        for _, group in itertools.groupby(enumerate(places), key=lambda pair: pair[1] - pair[0]):
            run = [place for _, place in group]
            yield run[0], run[-1] + 1

    def read(self, name: str, first: int, last: int) -> tf.Tensor:
        return tf.convert_to_tensor(self._part(name, first, last))

    def write(self, name: str, first: int, last: int, value: tf.Tensor) -> None:
        self._part(name, first, last).assign(value)

    def join(self, tensors: Sequence[Any], first: int, last: int) -> tf.Tensor:
        """What belongs to some neighbours, end to end as in the arrays."""
        parts = [tf.reshape(tf.cast(tensor, self.dtype), [-1]) for tensor in tensors]
        if self._is_whole(first, last) and self.length > self.starts[-1]:
            parts.append(tf.zeros([1], self.dtype))
        return tf.concat(parts, 0)

    def split(self, joined: tf.Tensor, first: int, last: int) -> list[tf.Tensor]:
        """What belongs to each of some neighbours, in its shape: the reverse of `join`."""
        parts: list[tf.Tensor] = []
        start = 0
        for unit, sizes in itertools.groupby(self.sizes[first:last], key=_unit):
            lengths = [size // unit for size in sizes]
            end = start + unit * sum(lengths)
            rows = tf.reshape(joined[start:end], [-1, unit] if unit > 1 else [-1])
            parts += tf.split(rows, lengths)
            start = end
        shapes = self.shapes[first:last]
        return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]

    def _part(self, name: str, first: int, last: int) -> Any:
        array = self.arrays[name]
        if self._is_whole(first, last):
            return array
        return array[self.starts[first] : self.starts[last]]

    def _is_whole(self, first: int, last: int) -> bool:
        return last - first == len(self.sizes)


class PackedSlot(tf.__internal__.tracking.Trackable):
    """One model variable's part of a pack: what Keras and TensorFlow see of it."""

    trainable = False

    def __init__(self, pack: Pack, place: int, slot: str, name: str, path: str) -> None:
        self._pack, self._place, self._slot = pack, place, slot
        self.name, self.path = name, path

    @property
    def shape(self) -> tf.TensorShape:
        return self._pack.shapes[self._place]

    @property
    def dtype(self) -> str:
        return self._pack.dtype.name

    @property
    def location(self) -> tuple[tf.Variable, int]:
        """The array that it is a part of, and where in it its first element lies."""
        return self._pack.arrays[self._slot], self._pack.starts[self._place]

    @property
    def value(self) -> tf.Tensor:
        flat = self._pack.read(self._slot, self._place, self._place + 1)
        return tf.reshape(flat, self.shape)

    def assign(self, value: Any) -> None:
        value = tf.cast(keras.ops.convert_to_tensor(value), self.dtype)
        if value.shape != self.shape:
            raise ValueError(
                f"`{self.path}` must be given a value of its shape {tuple(self.shape)}. "
                f"Received: shape {tuple(value.shape)}"
            )
        flat = tf.reshape(value, [-1])
        self._pack.write(self._slot, self._place, self._place + 1, flat)

    def scatter_update(self, rows: tf.IndexedSlices) -> None:
        """Overwrites some rows, each of which is named once."""
        indices = tf.expand_dims(rows.indices, -1)
        self.assign(tf.tensor_scatter_nd_update(self.value, indices, rows.values))

    def numpy(self) -> np.ndarray:
        return self.value.numpy()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.numpy(), dtype)

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> tf.Tensor:
        return tf.convert_to_tensor(self.value, dtype=dtype, name=name)

    def __repr__(self) -> str:
        return f"<PackedSlot path={self.path}, shape={tuple(self.shape)}, dtype={self.dtype}>"

    # tf.train.Checkpoint saves and restores it as it does the variable that it stands for, so that
    # a checkpoint does not know which variables were packed.

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {"VARIABLE_VALUE": self.value}

    def _restore_from_tensors(self, restored: dict[str, tf.Tensor]) -> None:
        self.assign(restored["VARIABLE_VALUE"])


def _unit(elements: int) -> int:
    return ROW if elements % ROW == 0 else 1
