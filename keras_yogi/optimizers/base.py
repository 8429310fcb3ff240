"""What Adam and Yogi share: hyperparameters, and how a rule is applied to a variable."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Unpack

import keras
from keras import ops

from keras_yogi.engine import choice, finite, rows
from keras_yogi.optimizers import arguments, calls, rules
from keras_yogi.optimizers.arguments import KerasArguments
from keras_yogi.optimizers.frame import AdaptiveRule
from keras_yogi.optimizers.rules import StepScalars, Tensor
from keras_yogi.optimizers.shared import Shared
from keras_yogi.optimizers.slots import SlotOptimizer


class AdaptiveOptimizer(AdaptiveRule, SlotOptimizer):
    """Base of the optimizers that divide a momentum by the root of a velocity.

    The flow of one gradient: `apply` sums repeated rows and, on request, skips a step that is not
    finite; Keras clips, decays the weights and hands all variables to `update_all`: to the fused
    engine, or one after another to `update_step`, which reads the slots, calls the rule
    (`new_values`) and stores what it returns. A subclass gives `second_moments`.

    Args:
        learning_rate: η ≥ 0: a number, a `keras.optimizers.schedules.LearningRateSchedule`, or a
            callable without arguments.
        beta_1: β₁ in [0, 1), the decay rate of the momentum.
        beta_2: β₂ in [0, 1), the decay rate of the velocity.
        epsilon: ε ≥ 0, in units of the gradient.
        epsilon_hat: add ε to √v before the bias correction. Defaults to False.
        sparse_update: "exact" or "lazy", see `keras_yogi.Adam`. Defaults to "exact".
        fused: "auto", True or False, see `keras_yogi.Adam`. Defaults to "auto".
        skip_nonfinite: leave out steps whose gradients are not finite. Defaults to False.
        **keras_arguments: Keras's own, see `keras_yogi.Adam`.

    Raises:
        ValueError: an argument breaks its rule or is unknown.
    """

    # Names of constructor arguments that are attributes too, besides the learning rate and Keras's.
    hyperparameters: ClassVar[tuple[str, ...]] = (
        "beta_1",
        "beta_2",
        "epsilon",
        "epsilon_hat",
        "sparse_update",
        "fused",
        "skip_nonfinite",
    )

    def __init__(
        self,
        learning_rate: Any,
        beta_1: float,
        beta_2: float,
        epsilon: float,
        *,
        epsilon_hat: bool = False,
        sparse_update: str = "exact",
        fused: bool | str = "auto",
        skip_nonfinite: bool = False,
        **keras_arguments: Unpack[KerasArguments],
    ) -> None:
        choice.check_strategy()
        super().__init__(
            learning_rate=arguments.learning_rate(learning_rate),
            **arguments.keras_arguments(type(self), keras_arguments),
        )
        self.beta_1 = arguments.fraction("beta_1", beta_1)
        self.beta_2 = arguments.fraction("beta_2", beta_2)
        self.epsilon = arguments.non_negative("epsilon", epsilon)
        self.epsilon_hat = arguments.boolean("epsilon_hat", epsilon_hat)
        self.sparse_update = arguments.one_of("sparse_update", sparse_update, ("exact", "lazy"))
        self.fused = fused if fused == "auto" else arguments.boolean("fused", fused)
        self.skip_nonfinite = arguments.boolean("skip_nonfinite", skip_nonfinite)
        self._shared = Shared()

    # Applying gradients

    def apply(
        self,
        grads: Sequence[Tensor | None],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        """Updates the variables once.

        Args:
            grads: one gradient per variable; a tensor, a tf.IndexedSlices (repeated rows are
                summed before anything else) or None (the variable and its slots stay).
            trainable_variables: the variables, in the order of `grads`. Defaults to those that the
                optimizer was built with; the first call with them builds it.
        """
        grads = calls.gradient_list(grads)
        if trainable_variables is None and not self.built:
            super().apply(grads)  # which says what is missing
            return
        if trainable_variables is None:
            variables = self.trained_variables
        else:
            variables = calls.variable_list("trainable_variables", trainable_variables)
        if not grads:
            return
        grads = calls.checked_gradients(grads, variables)
        if not self.built:  # before Keras does, which may be inside a condition
            with keras.name_scope(self.name, caller=self):
                self.build(variables)
        for variable in variables:
            self.index_of(variable)  # a ValueError, if it is unknown
        grads = [self._summed(g, v) for g, v in zip(grads, variables, strict=True)]
        if not self.skip_nonfinite or all(g is None for g in grads):
            self._apply(grads, variables)
            return
        finite.apply_if_finite(
            grads,
            lambda grads: self._apply(grads, variables),
            self._skipped_steps,
            state=[
                v
                for v in (*self.trained_variables, *self.variables)
                if v is not self._skipped_steps
            ],
        )

    def _summed(self, gradient: Tensor | None, variable: Any) -> Tensor | None:
        """Each row of an Embedding once; all rows, where there is no use for fewer."""
        if not rows.is_rows(gradient):
            return gradient
        keep = self.sparse_update == "lazy" or (
            self._engine is not None and self._engine.serves_rows(self.index_of(variable))
        )
        keep = keep and not getattr(variable, "overwrite_with_gradient", False)
        # Accumulated gradients are dense, Keras makes the variables for it.
        keep = keep and not self.gradient_accumulation_steps
        return rows.summed(gradient) if keep else rows.dense(gradient)

    def _apply(self, grads: Sequence[Tensor | None], variables: Sequence[Any]) -> None:
        pairs = zip(grads, variables, strict=True)
        keys = [self.index_of(v) if rows.is_rows(g) else None for g, v in pairs]
        with rows.apart(grads, keys) as values:
            super().apply(values, variables)

    def update_all(
        self, gradients: Sequence[Tensor], variables: Sequence[Any], learning_rate: Any
    ) -> None:
        """One step on all variables that have a gradient, which Keras has scaled and clipped.

        Args:
            gradients: one per variable; where only some rows have one, what stands in for them.
            variables: model variables that the optimizer was built with.
            learning_rate: η, a number or a scalar tensor.
        """
        indices = [self.index_of(v) for v in variables]
        gradients = rows.together(gradients, variables, indices)
        if self._engine is None:
            with self._shared.in_a_step():
                super().update_all(gradients, variables, learning_rate)
            return
        native = [v.value if isinstance(v, keras.Variable) else v for v in variables]
        self._engine.update(indices, native, gradients, learning_rate)

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Any) -> None:
        """Updates one variable and its slots: the specification of the optimizer.

        Args:
            gradient: of the variable's shape, or a tf.IndexedSlices of some of its rows.
            variable: a model variable that the optimizer was built with.
            learning_rate: η, a number or a scalar tensor.
        """
        if rows.is_rows(gradient) and self.sparse_update == "lazy":
            # Once more, because rows of several replicas come one after another.
            self.update_rows(rows.summed(gradient), variable, learning_rate)
        else:
            self._update(rows.dense(gradient), variable, learning_rate)

    def update_rows(
        self,
        gradient: Tensor,
        variable: keras.Variable,
        learning_rate: Any,
        update_others: Callable[[], None] = lambda: None,
    ) -> None:
        """Updates some rows of one variable and of its slots.

        Args:
            gradient: a tf.IndexedSlices of `rows.summed`.
            variable: as in `update_step`.
            learning_rate: as in `update_step`.
            update_others: is called when the rows have been read and not yet been written, and may
                do anything to them. Defaults to nothing.
        """
        gradient = rows.without_left_over(gradient)
        indices = gradient.indices
        self._update(
            gradient.values,
            variable,
            learning_rate,
            read=lambda whole: rows.read(whole, indices),
            store=lambda whole, values: rows.write(whole, values, indices),
            between=update_others,
        )

    def _update(
        self,
        gradient: Tensor,
        variable: keras.Variable,
        learning_rate: Any,
        read: Callable[[Any], Tensor] = ops.convert_to_tensor,
        store: Callable[[Any, Tensor], None] | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        index = self.index_of(variable)
        stored = [variable, *(of_all[index] for of_all in self.slots().values())]

        # Half precision holds neither 1 − β₂ = 0.001 next to 1 nor ε = 1e-8: compute in float32,
        # round once when storing. float64 stays float64 throughout.
        dtype = keras.backend.standardize_dtype(variable.dtype)
        dtype = "float32" if dtype in ("float16", "bfloat16") else dtype
        gradient, weights, *values = [ops.cast(x, dtype) for x in (gradient, *map(read, stored))]
        between()
        rule = self.new_values
        if self._compiler is not None and store is None:  # some rows are never as many twice
            rule = self._compiler.rule(math.prod(weights.shape))
        scalars = self._shared.get(dtype, lambda: self.step_scalars(learning_rate, dtype))
        weights, slots = rule(gradient, weights, tuple(values), scalars)
        store = store or self.assign
        for place, new in zip(stored, (weights, *slots), strict=True):
            store(place, new)

    def step_scalars(self, learning_rate: Any, dtype: str, step: Any = None) -> StepScalars:
        """What the rule needs to know of a step.

        Args:
            learning_rate: η, a number or a scalar tensor.
            dtype: what the step is computed in.
            step: t = 1, 2, … Defaults to that of the step being made.
        """
        step = ops.cast(self.iterations + 1 if step is None else step, dtype)
        # 1 − β₂ᵗ, or 1 where the velocity did not start from zero but from where it belongs
        bias = ops.cast(self._velocity_bias.value, dtype)
        correction_2 = rules.bias_correction(self.beta_2, step)
        return StepScalars(
            ops.convert_to_tensor(learning_rate, dtype),
            rules.bias_correction(self.beta_1, step),
            bias * correction_2 + (1.0 - bias),
        )

    # Hyperparameters

    def constants(self) -> tuple[Any, ...]:
        """What a graph of the rule holds as fixed numbers."""
        return tuple(getattr(self, name) for name in self.hyperparameters)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as Keras serializes them."""
        return {
            **super().get_config(),
            **dict(zip(self.hyperparameters, self.constants(), strict=True)),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "AdaptiveOptimizer":
        """The optimizer that `get_config`, here or elsewhere, has described.

        Where the fused engine cannot serve (another backend, tf.distribute), `fused=True` is read
        as "auto": a file from elsewhere loads, and the numbers are the same.

        Args:
            config: what `get_config` has returned.
            custom_objects: as Keras takes them. Defaults to None.
        """
        if config.get("fused") is True and choice.obstacle([]):
            config = {**config, "fused": "auto"}
        return super().from_config(config, custom_objects)
