"""Row gradients: an Embedding's gradient names some rows of a table, possibly more than once.

On TensorFlow they are tf.IndexedSlices. The gradient of a row is the sum of its pieces, and only
the sum may be clipped or squared; keras.optimizers.Adam up to 3.15 squares the pieces. Other
backends have dense gradients, or sparse tensors, which are made dense.
"""

from typing import Any, TypeAlias, TypeGuard

import keras
from keras import ops

from keras_yogi.half_precision import compute_dtype

Tensor: TypeAlias = Any  # of the backend

_ROWS: Any = ()
if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    class Rows(tf.IndexedSlices):
        """tf.IndexedSlices that Keras can divide by a loss scale."""

        def __truediv__(self, divisor: Any) -> Tensor:
            return with_values(self, self.values / divisor)

    _ROWS = tf.IndexedSlices


def is_rows(gradient: Any) -> TypeGuard[Any]:
    """Whether a gradient is a row gradient."""
    return isinstance(gradient, _ROWS)


def values_of(gradient: Tensor) -> Tensor:
    """The values of a gradient: all of a dense one, the rows of a row gradient."""
    return gradient.values if is_rows(gradient) else gradient


def with_values(gradient: Tensor, values: Tensor) -> Tensor:
    """The gradient with other values; a row gradient keeps its indices."""
    if not is_rows(gradient):
        return values
    return Rows(values, gradient.indices, gradient.dense_shape)


if keras.config.backend() == "tensorflow":

    def _summable(values: Tensor) -> Tensor:
        """In float32 instead of half precision: in bfloat16, 256 + 1 is 256."""
        return tf.cast(values, compute_dtype(values.dtype))

    def coalesce(gradient: Tensor) -> Tensor:
        """The same gradient with repeated rows summed.

        The number of rows does not change, because XLA compiles for fixed shapes: padding is added,
        zeros with index −1.
        """
        _, targets = tf.unique(gradient.indices)
        pieces = tf.size(targets)
        return Rows(
            tf.math.unsorted_segment_sum(_summable(gradient.values), targets, pieces),
            # The maximum of an empty segment is the smallest integer.
            tf.maximum(tf.math.unsorted_segment_max(gradient.indices, targets, pieces), -1),
            gradient.dense_shape,
        )

    def with_padding(gradient: Tensor) -> Tensor:
        """The same gradient and one row of padding, for operations that fail without rows."""
        shape = tf.concat([[1], tf.shape(gradient.values)[1:]], 0)
        row = tf.zeros(shape, gradient.values.dtype)
        indices = tf.concat([gradient.indices, [-1]], 0)
        return tf.IndexedSlices(tf.concat([gradient.values, row], 0), indices, gradient.dense_shape)

    def replace_padding(gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """The gradient without its padding. Under XLA, which needs fixed shapes, replaces padding
        (index < 0) with copies of a real row; writing the same row twice is harmless.

        Returns:
            The gradient and, under XLA, a boolean scalar: False if there is no real row, so that
            nothing may change. Without XLA, None.
        """
        indices = gradient.indices
        if tf.__internal__.get_enclosing_xla_context():
            # One more index, so that argmax is defined if a batch names no row.
            a_real_row = tf.argmax(tf.concat([indices, [-1]], 0), output_type=tf.int32)
            source = tf.where(indices < 0, a_real_row, tf.range(tf.size(indices)))
            any_row = tf.reduce_any(tf.gather(indices, source) >= 0)
        else:
            source, any_row = tf.squeeze(tf.where(indices >= 0), 1), None
        values = tf.gather(gradient.values, source)
        indices = tf.maximum(tf.gather(indices, source), 0)
        return tf.IndexedSlices(values, indices, gradient.dense_shape), any_row

    def remove_padding(gradient: Tensor) -> Tensor:
        """The gradient without its padding, for a user's code. Under XLA, which ignores such rows
        when it writes, it stays.
        """
        if not is_rows(gradient) or tf.__internal__.get_enclosing_xla_context():
            return gradient
        return replace_padding(gradient)[0]

    def dense(gradient: Tensor) -> Tensor:
        """The gradient of the whole table, zero in all other rows."""
        if not is_rows(gradient):
            return gradient
        values, rows = _summable(gradient.values), gradient.dense_shape[0]
        # Padding has the index −1, which is left out.
        table = tf.math.unsorted_segment_sum(values, gradient.indices, rows)
        return tf.cast(table, gradient.dtype)

    def gather(variable: Any, indices: Tensor) -> Tensor:
        """Rows of a variable, without copying the whole variable."""
        return tf.gather(_native(variable), indices)

    def scatter(variable: Any, values: Tensor, indices: Tensor) -> None:
        """Overwrites rows of a variable."""
        native = _native(variable)
        native.scatter_update(tf.IndexedSlices(tf.cast(values, native.dtype), indices))
        # From now on TensorFlow would copy the variable whenever it is read as a whole, as Keras's
        # Embedding does in every step, in case rows are written meanwhile. With copies disabled,
        # writing rows copies the variable only if a value read before is still in use.
        if hasattr(native, "handle") and not tf.__internal__.get_enclosing_xla_context():
            tf.raw_ops.DisableCopyOnRead(resource=native.handle)

    def _native(variable: Any) -> Any:
        return variable.value if isinstance(variable, keras.Variable) else variable

    def with_shape(gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The gradient; a shape that is unknown now is checked when the step runs."""
        if gradient.shape.is_fully_defined():
            return gradient
        return tf.ensure_shape(gradient, shape)

    def checked(gradient: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
        """The gradient, if it is dense or its rows fit a table of this shape; else a ValueError
        that begins with `what`. Row indices are checked in eager mode only, where they are known.
        """
        if not is_rows(gradient):
            return gradient
        dense_shape = shape if gradient.dense_shape is None else gradient.dense_shape
        parts = (gradient.values, gradient.indices, dense_shape)  # may be lists
        gradient = tf.IndexedSlices(*map(tf.convert_to_tensor, parts))
        values, indices = gradient.values.shape, gradient.indices
        table = tf.get_static_value(gradient.dense_shape)
        if table is not None and tuple(table) != shape:
            raise ValueError(
                f"{what} have its shape {shape} as dense_shape. Received: {tuple(table.tolist())}"
            )
        if not values[1:].is_compatible_with(shape[1:]):
            raise ValueError(
                f"{what} have rows of shape {shape[1:]}. Received: {tuple(values[1:])}"
            )
        if not indices.dtype.is_integer:
            raise ValueError(f"{what} name rows by integers. Received: {indices.dtype.name}")
        if not indices.shape.is_compatible_with(values[:1]):
            raise ValueError(
                f"{what} have one index per row. Received: {indices.shape[0]} for {values[0]} rows"
            )
        if tf.executing_eagerly():
            outside = tf.boolean_mask(indices, (indices < 0) | (indices >= shape[0]))
            if len(outside):
                raise ValueError(
                    f"{what} name rows in [0, {shape[0]}). Received: {int(outside[0])}"
                )
        return gradient

else:

    def remove_padding(gradient: Tensor) -> Tensor:
        return gradient

    def dense(gradient: Tensor) -> Tensor:
        """The dense gradient; repeated rows of a sparse one are summed."""
        if keras.config.backend() == "torch" and ops.is_tensor(gradient):
            return gradient.to_dense() if gradient.is_sparse else gradient
        return ops.convert_to_tensor(gradient, sparse=False)

    def with_shape(gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The gradient: on these backends its shape is always known."""
        return gradient

    def checked(gradient: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
        """The gradient: sparse tensors of these backends have a shape, checked like any other."""
        return gradient
