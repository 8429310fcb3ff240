"""Gradients of an Embedding: some rows of a table, each of which may come in several pieces.

TensorFlow hands them out as tf.IndexedSlices. The gradient of a row is the sum of its pieces, and
only the sum may be clipped or squared: keras.optimizers.Adam up to 3.15 squares the pieces.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeAlias, TypeGuard

import keras
from keras import ops

Tensor: TypeAlias = Any  # of the backend

# Per thread, because every replica of a tf.distribute.MirroredStrategy is one.
_indices_of_step: ContextVar[Mapping[Any, Tensor]] = ContextVar("indices_of_step")


@contextlib.contextmanager
def apart(
    gradients: Sequence[Tensor | None], keys: Sequence[int | None]
) -> Iterator[list[Tensor | None]]:
    """Gradients with the rows' values alone, while the indices wait for `together`.

    Values of different rows are scaled and clipped as any tensor is, so that all of Keras's
    treatment of gradients is right for them, and costs what the rows cost.
    """
    pairs = zip(keys, gradients, strict=True)
    token = _indices_of_step.set({key: g.indices for key, g in pairs if is_rows(g)})
    try:
        yield [values_of(g) for g in gradients]
    finally:
        _indices_of_step.reset(token)


def together(
    gradients: Sequence[Tensor], variables: Sequence[Any], keys: Sequence[int]
) -> list[Tensor]:
    """The gradients of a step that `apart` has begun, as rows again where they were."""
    indices = _indices_of_step.get({})
    return [
        rows(g, indices[key], tuple(v.shape)) if key in indices else g
        for g, v, key in zip(gradients, variables, keys, strict=True)
    ]


def values_of(gradient: Tensor | None) -> Tensor | None:
    return gradient.values if is_rows(gradient) else gradient


if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def is_rows(gradient: Any) -> TypeGuard[Any]:
        """Whether it is a gradient of some rows."""
        return isinstance(gradient, tf.IndexedSlices)

    def rows(values: Tensor, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A gradient of some rows of a table of this shape."""
        return tf.IndexedSlices(values, indices, tf.constant(shape, indices.dtype))

    def summed(gradient: Tensor) -> Tensor:
        """The same gradient, in which no row comes in several pieces.

        As many rows as there were pieces, because XLA compiles for fixed shapes: what is left over
        is zero and has a negative index.
        """
        _, places = tf.unique(gradient.indices)
        pieces = tf.size(places)
        return tf.IndexedSlices(
            tf.math.unsorted_segment_sum(gradient.values, places, pieces),
            tf.math.unsorted_segment_max(gradient.indices, places, pieces),
            gradient.dense_shape,
        )

    def without_left_over(gradient: Tensor) -> Tensor:
        """What is left over repeats a row, so that whatever is computed of it, storing it twice
        does no harm.
        """
        indices = gradient.indices
        own = tf.range(tf.size(indices))
        one = tf.argmax(indices, output_type=tf.int32)
        source = tf.where(indices < 0, one, own)
        return tf.IndexedSlices(
            tf.gather(gradient.values, source), tf.gather(indices, source), gradient.dense_shape
        )

    def dense(gradient: Tensor) -> Tensor:
        """The gradient of the whole table, which is zero in every other row."""
        return tf.convert_to_tensor(gradient) if is_rows(gradient) else gradient

    def read(variable: Any, indices: Tensor) -> Tensor:
        """Rows of a variable, without a copy of all of it."""
        return tf.gather(_native(variable), indices)

    def write(variable: Any, values: Tensor, indices: Tensor) -> None:
        """Overwrites rows of a variable."""
        native = _native(variable)
        native.scatter_update(tf.IndexedSlices(tf.cast(values, native.dtype), indices))
        # From now on TensorFlow would copy all of the variable whenever it is read as a whole, as
        # Keras's Embedding does in every step, in case rows are written meanwhile. Without that,
        # writing rows copies it if, and only if, somebody still holds what was read before.
        if hasattr(native, "handle") and not tf.__internal__.get_enclosing_xla_context():
            tf.raw_ops.DisableCopyOnRead(resource=native.handle)

    def _native(variable: Any) -> Any:
        return variable.value if isinstance(variable, keras.Variable) else variable

    def checked(gradient: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
        """The gradient, if its rows can be those of a table of this shape; else a ValueError
        that begins with `what`. Which rows they are is known in eager mode alone.
        """
        if not is_rows(gradient):
            return gradient
        dense_shape = shape if gradient.dense_shape is None else gradient.dense_shape
        parts = (gradient.values, gradient.indices, dense_shape)  # they may be lists
        gradient = tf.IndexedSlices(*map(tf.convert_to_tensor, parts))
        values, indices = gradient.values.shape, gradient.indices
        table = tf.get_static_value(gradient.dense_shape)
        if table is not None and tuple(table) != shape:
            raise ValueError(
                f"{what} be of rows of a table of its shape {shape}. "
                f"Received: rows of {tuple(table.tolist())}"
            )
        if not values[1:].is_compatible_with(shape[1:]):
            raise ValueError(
                f"{what} be of rows of shape {shape[1:]}. Received: {tuple(values[1:])}"
            )
        if not indices.dtype.is_integer:
            raise ValueError(f"{what} name rows by integers. Received: {indices.dtype.name}")
        if not indices.shape.is_compatible_with(values[:1]):
            raise ValueError(
                f"{what} name one index a row. Received: {indices.shape[0]} for {values[0]} rows"
            )
        if tf.executing_eagerly() and bool(tf.reduce_any((indices < 0) | (indices >= shape[0]))):
            raise ValueError(f"{what} name rows in [0, {shape[0]}). Received: {indices.numpy()}")
        return gradient

else:  # gradients of these backends are dense, or sparse tensors, which are made dense

    def is_rows(gradient: Any) -> TypeGuard[Any]:
        return False

    def rows(values: Tensor, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
        raise NotImplementedError

    def summed(gradient: Tensor) -> Tensor:
        raise NotImplementedError

    def read(variable: Any, indices: Tensor) -> Tensor:
        raise NotImplementedError

    def write(variable: Any, values: Tensor, indices: Tensor) -> None:
        raise NotImplementedError

    without_left_over = summed

    def dense(gradient: Tensor) -> Tensor:
        """The dense gradient; repeated rows of a sparse one are summed."""
        if keras.config.backend() == "torch" and getattr(gradient, "is_sparse", False):
            return gradient.to_dense()
        return ops.convert_to_tensor(gradient, sparse=False)

    def checked(gradient: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
        """Sparse tensors of these backends carry their shape, which is checked like any other."""
        return gradient
