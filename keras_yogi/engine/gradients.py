"""Gradients as an optimizer receives them: dense, row by row, finite or not."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

Tensor = Any
Gradients = Sequence[Tensor | None]

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def with_rows_summed(gradient: Tensor) -> Tensor:
        """The dense gradient. An Embedding's tf.IndexedSlices may name a row several times: the
        gradient of that row is the sum of its pieces, and only the sum may be clipped or squared.
        """
        return (
            tf.convert_to_tensor(gradient) if isinstance(gradient, tf.IndexedSlices) else gradient
        )

    def checked_rows(gradient: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
        """The gradient, if its rows can be those of a table of this shape; else a ValueError
        that begins with `what`. Which rows they are is known in eager mode alone.
        """
        if not isinstance(gradient, tf.IndexedSlices):
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

    def apply_if_finite(
        gradients: Gradients,
        apply: Callable[[Gradients], None],
        skipped_steps: keras.Variable,
        state: Sequence[keras.Variable],
    ) -> None:
        """Calls `apply(gradients)` if every gradient on every replica is finite, else counts the
        step in `skipped_steps`. `state` lists the other variables that `apply` may change.
        """

        def apply_or_skip(finite: Tensor, apply_finite: Callable[[], None]) -> None:
            def skip() -> None:
                skipped_steps.assign_add(1)

            tf.cond(finite, apply_finite, skip)

        if tf.__internal__.distribute.strategy_supports_no_merge_call():
            apply_or_skip(_all_finite(gradients), lambda: apply(gradients))
            return

        # A replica may not branch around the merge_call inside `apply`: the branch is taken once,
        # for all replicas, on a count of faulty replicas that they have summed among themselves.
        replica_context = tf.distribute.get_replica_context()
        faulty = tf.cast(tf.logical_not(_all_finite(gradients)), "float32")
        faulty_replicas = replica_context.all_reduce(tf.distribute.ReduceOp.SUM, faulty)

        def for_all_replicas(
            strategy: tf.distribute.Strategy, faulty_replicas: Tensor, gradients: Gradients
        ) -> None:
            apply_or_skip(
                tf.equal(strategy.experimental_local_results(faulty_replicas)[0], 0.0),
                lambda: strategy.extended.call_for_each_replica(apply, args=(gradients,)),
            )

        replica_context.merge_call(for_all_replicas, args=(faulty_replicas, gradients))

else:

    def with_rows_summed(gradient: Tensor) -> Tensor:
        """The dense gradient; repeated rows of a sparse one are summed."""
        if keras.config.backend() == "torch" and getattr(gradient, "is_sparse", False):
            return gradient.to_dense()
        return ops.convert_to_tensor(gradient, sparse=False)

    def checked_rows(gradient: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
        """Sparse tensors of these backends carry their shape, which is checked like any other."""
        return gradient

    def apply_if_finite(
        gradients: Gradients,
        apply: Callable[[Gradients], None],
        skipped_steps: keras.Variable,
        state: Sequence[keras.Variable],
    ) -> None:
        """Calls `apply(gradients)`, then undoes it where a gradient was not finite and counts
        the step in `skipped_steps`: JAX traces both branches of a condition, so that side effects
        in a branch would leak out of it. `state` lists the other variables that `apply` changes.
        """
        finite = _all_finite(gradients)
        before = [ops.copy(variable.value) for variable in state]
        apply(gradients)
        for variable, old in zip(state, before, strict=True):
            variable.assign(ops.where(finite, variable.value, old))
        skipped_steps.assign_add(ops.cast(ops.logical_not(finite), skipped_steps.dtype))


def _all_finite(gradients: Gradients) -> Tensor:
    """A boolean scalar: no gradient has a NaN or an infinity."""
    return ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in gradients if g is not None]))
