"""Steps that are taken only if there is a batch, or only if every gradient is finite."""

import contextlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_yogi import row_gradients

Tensor = Any
Gradients = Sequence[Tensor | None]
Counters = Sequence[keras.Variable]
"""The numbers of skipped steps: in all, and in a row until now."""

LONG = 100
"""After so many skipped steps in a row a warning says that the model has probably diverged."""

DIVERGED = (
    f"keras_yogi: skip_nonfinite skipped {LONG} steps in a row, because a gradient was not finite: "
    "the model has probably diverged. Go back to earlier weights, with a lower learning rate or "
    "`global_clipnorm`."
)

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def wait_for_batch(gradients: Gradients) -> contextlib.AbstractContextManager[None]:
        """A context whose operations wait for a gradient, and so for a batch.

        When a dataset of unknown size ends, the training step fails, because it gets no batch. In a
        graph, operations that do not need the batch would have run by then: weight decay, averages,
        the step count. They wait for the last layer's gradient, which backpropagation computes
        first: that of the last layer that the batch reaches.
        """
        if tf.executing_eagerly():
            return contextlib.nullcontext()
        values = [row_gradients.values_of(g) for g in reversed(gradients) if g is not None]
        values = [value for value in values if tf.is_symbolic_tensor(value)]  # others are constants
        if not values:
            return contextlib.nullcontext()
        return tf.control_dependencies([next(filter(_needs_data, values), values[0])])

    def _needs_data(value: Tensor) -> bool:
        """Whether a tensor of a graph is computed from more than variables and constants. The
        gradient of a penalty on weights alone, for example, is not.
        """
        operations, seen = [value.op], set()
        while operations:
            operation = operations.pop()
            if operation in seen:
                continue
            seen.add(operation)
            gives = {output.dtype for output in operation.outputs} - {tf.resource, tf.variant}
            if gives and operation.type.startswith(("Placeholder", "Iterator", "Optional")):
                return True
            operations += [each.op for each in operation.inputs]
        return False

    def apply_if_finite(
        gradients: Gradients,
        apply: Callable[[Gradients], None],
        counters: Counters,
        state: Sequence[keras.Variable],
    ) -> None:
        """Calls `apply(gradients)` if every gradient on every replica is finite; otherwise counts a
        skipped step. `state` lists the other variables that `apply` may change.
        """
        skipped_steps, in_a_row = counters

        def apply_or_skip(finite: Tensor, apply_finite: Callable[[], None]) -> None:
            def take() -> None:
                in_a_row.assign(0)
                apply_finite()

            def skip() -> None:
                skipped_steps.assign_add(1)
                in_a_row.assign_add(1)
                _warn_after_many(tf.equal(in_a_row, LONG))

            tf.cond(finite, take, skip)

        if tf.__internal__.distribute.strategy_supports_no_merge_call():
            apply_or_skip(_all_finite(gradients), lambda: apply(gradients))
            return

        # A replica may not branch around the merge_call inside `apply`. So one branch is taken for
        # all replicas, depending on the number of replicas whose gradients are not finite.
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

    def _warn_after_many(are_many: Tensor) -> None:
        if tf.executing_eagerly():
            if are_many:
                warnings.warn(DIVERGED, stacklevel=2)
        elif not tf.__internal__.get_enclosing_xla_context():  # XLA cannot print
            tf.cond(
                are_many, lambda: tf.group(tf.print(DIVERGED, output_stream=sys.stderr)), tf.no_op
            )

    def _all_finite(gradients: Gradients) -> Tensor:
        """A boolean scalar: whether no gradient has a NaN or an infinity."""
        values = [row_gradients.values_of(g) for g in gradients if g is not None]
        return ops.all(ops.stack([ops.all(ops.isfinite(v)) for v in values]))

else:

    def wait_for_batch(gradients: Gradients) -> contextlib.AbstractContextManager[None]:
        """Does nothing: other backends get a batch before they begin a step."""
        return contextlib.nullcontext()

    def apply_if_finite(
        gradients: Gradients,
        apply: Callable[[Gradients], None],
        counters: Counters,
        state: Sequence[keras.Variable],
    ) -> None:
        """Calls `apply(gradients)` if every gradient is finite; otherwise counts a skipped step.
        `state` lists the other variables that `apply` may change.
        """
        skipped_steps, in_a_row = counters
        finite = _all_finite(gradients)
        if _is_known(finite):
            if finite:
                in_a_row.assign(0)
                apply(gradients)
            else:
                skipped_steps.assign_add(1)
                in_a_row.assign_add(1)
                if int(in_a_row.value) == LONG:
                    warnings.warn(DIVERGED, stacklevel=2)
            return
        everything = [*state, *counters]  # Keras may read any of an optimizer's variables
        new = _new_values(finite, gradients, apply, everything)
        for variable, value in zip(everything, new, strict=True):
            variable.assign(value)
        skipped = ops.cast(ops.logical_not(finite), skipped_steps.dtype)
        skipped_steps.assign_add(skipped)
        in_a_row.assign((in_a_row + 1) * skipped)

    def _all_finite(gradients: Gradients) -> Tensor:
        """A boolean scalar: whether no gradient has a NaN or an infinity."""
        reduced = _reduced([g for g in gradients if g is not None])
        return ops.all(ops.isfinite(ops.stack(reduced)))


if keras.config.backend() == "jax":
    import jax

    def _reduced(values: Sequence[Tensor]) -> list[Tensor]:
        """One number per tensor, finite if the whole tensor is: 0 · ∞ is NaN.

        The largest magnitude would not do: over several CPU devices a maximum loses NaN.
        """
        return [ops.sum(value * 0) for value in values]

    def _is_known(flag: Tensor) -> bool:
        """Whether the flag has a value: it has none while JAX is tracing."""
        return not isinstance(flag, jax.core.Tracer)

    def _new_values(
        finite: Tensor,
        gradients: Gradients,
        apply: Callable[[Gradients], None],
        state: Sequence[keras.Variable],
    ) -> list[Tensor]:
        """One condition over all values: one for each of them would compile slowly on JAX."""

        def applied(old: list[Tensor]) -> list[Tensor]:
            # JAX traces both branches: an assignment to a variable would leak out of its branch.
            with keras.StatelessScope(zip(state, old, strict=True)) as scope:
                apply(gradients)
            return [scope.get_current_value(variable) for variable in state]

        return jax.lax.cond(finite, applied, lambda old: old, [v.value for v in state])

elif keras.config.backend() == "torch":
    import torch

    def _reduced(values: Sequence[Tensor]) -> list[Tensor]:
        """Numbers that are finite if all tensors are: the largest magnitudes. Empty tensors have
        none.
        """
        of_some = [value for value in values if value.numel()]
        return [ops.zeros(()), *(torch._foreach_norm(of_some, torch.inf) if of_some else ())]

    def _is_known(flag: Tensor) -> bool:
        """Whether the flag has a value: not under torch.compile, nor on the device "meta"."""
        return not torch.compiler.is_compiling() and not flag.is_meta

    def _new_values(
        finite: Tensor,
        gradients: Gradients,
        apply: Callable[[Gradients], None],
        state: Sequence[keras.Variable],
    ) -> list[Tensor]:
        """Takes the step, and a selection undoes it: torch.compile traces no branch."""
        before = [ops.copy(variable.value) for variable in state]
        apply(gradients)
        return [ops.where(finite, v.value, old) for v, old in zip(state, before, strict=True)]
