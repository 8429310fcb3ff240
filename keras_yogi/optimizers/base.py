"""What Adam and Yogi share: hyperparameters, slots, and how a rule is applied to a variable.

Every use of an underscore name of Keras is in this file, because nothing public gives the same:
`_trainable_variables`, the list that the optimizer was built with; `_get_variable_index`, the
place of a variable in it (Keras's own guide for authors of optimizers uses it), and `_var_key`,
what it goes by;
`_backend_update_step`, which receives all gradients of a step at once, after Keras has clipped
them, where `update_step` sees one; `_track_variable`, which puts a slot that is not a Keras
variable into `optimizer.variables`.
"""

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

import keras
import numpy as np
from keras import ops

from keras_yogi.engine import choice, gradients
from keras_yogi.engine.state import HiddenScalar
from keras_yogi.optimizers import arguments, calls, rules
from keras_yogi.optimizers.arguments import KerasArguments
from keras_yogi.optimizers.rules import StepScalars, Tensor

Slots = tuple[Tensor, ...]


class AdaptiveOptimizer(keras.optimizers.Optimizer):
    """Base of the optimizers that divide a momentum by the root of a velocity.

    The flow of one gradient: `apply` sums repeated rows and, on request, skips a step that is not
    finite; Keras clips, decays the weights and hands each variable to `update_step`, which reads
    the slots, calls the rule (`new_values`) and stores what it returns. A subclass gives
    `second_moments`.
    """

    # Names of constructor arguments that are attributes too, besides the learning rate and Keras's.
    hyperparameters: ClassVar[tuple[str, ...]] = (
        "beta_1",
        "beta_2",
        "epsilon",
        "epsilon_hat",
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
        self.fused = fused if fused == "auto" else arguments.boolean("fused", fused)
        self.skip_nonfinite = arguments.boolean("skip_nonfinite", skip_nonfinite)
        self._engine = None
        # How much of β₂ᵗ is to be taken off 1 to correct v: all of it; none after `warm_start`.
        self._velocity_bias = HiddenScalar(1.0)

    # Storage

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Names of the slots, in the rule's order."""
        return ("momentum", "velocity")

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the slots, one of each name per variable.

        Args:
            variables: the model variables that the optimizer is to train.

        Raises:
            ValueError: `fused=True`, and the fused engine cannot serve these variables.
        """
        if self.built:
            return
        variables = calls.variable_list("variables", variables)
        obstacle = choice.obstacle(variables)
        if self.fused is True and obstacle:
            raise arguments.reject("fused", f'False or "auto" here: {obstacle}', True)
        if self.fused and not obstacle:
            self._engine = choice.fused_engine(self, variables)
        super().build(variables)
        # Keras's own order, so that files and checkpoints move to and from keras.optimizers.Adam.
        self._momentums, self._velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"], ["zeros", self.initial_velocity]
        )
        self._more_slots = [
            self.add_optimizer_variables(variables, name) for name in self.slot_names[2:]
        ]
        if self.skip_nonfinite:
            self._skipped_steps = self.add_variable(
                (), "zeros", "int32", "only_first_replica", name="skipped_steps"
            )

    def initial_velocity(self, shape: Sequence[int], dtype: str) -> Tensor:
        """What a velocity holds before the first step: a Keras initializer."""
        return ops.zeros(shape, dtype)

    def add_variable_from_reference(
        self,
        reference_variable: keras.Variable,
        name: str | None = None,
        initializer: Any = "zeros",
    ) -> Any:
        """Adds one variable like a model variable: Keras's own, or a part of the engine's."""
        slot = None
        if self._engine is not None and name in self.slot_names:
            index = self._get_variable_index(reference_variable)
            initial = keras.initializers.get(initializer)
            slot = self._engine.packed_slot(index, name, initial)
        if slot is None:
            return super().add_variable_from_reference(reference_variable, name, initializer)
        self._track_variable(slot)
        return slot

    @property
    def engine(self) -> str:
        """What carries out the steps: "fused", or "unfused": one variable after another."""
        return "fused" if self._engine is not None else "unfused"

    def slots(self) -> dict[str, list[keras.Variable]]:
        """The slots' names, and one variable each per model variable, in the rule's order."""
        of_all = [self._momentums, self._velocities, *self._more_slots]
        return dict(zip(self.slot_names, of_all, strict=True))

    def get_slot(self, variable: keras.Variable, name: str) -> Tensor:
        """The value of a slot for one model variable.

        Args:
            variable: a model variable that the optimizer was built with.
            name: "momentum", "velocity", or what else the optimizer keeps.

        Returns:
            A tensor of the variable's shape and dtype.

        Raises:
            ValueError: the optimizer is not built, does not know the variable, or has no such slot.
        """
        return ops.copy(self._slot(variable, name).value)

    def _slot(self, variable: keras.Variable, name: str) -> keras.Variable:
        if not self.built:
            raise ValueError(
                f"Slots need an optimizer that is built: call `{self.name}.build(variables)` "
                f"or train a step first. Received: name={name!r}"
            )
        arguments.one_of("name", name, self.slots())
        try:
            index = self._get_variable_index(variable)
        except (KeyError, AttributeError):
            raise arguments.reject(
                "variable", "one of the variables that the optimizer was built with", variable
            ) from None
        return self.slots()[name][index]

    @property
    def skipped_steps(self) -> int:
        """How many steps `skip_nonfinite` has left out; 0 without it."""
        return int(self._skipped_steps.numpy()) if self.built and self.skip_nonfinite else 0

    def set_slot(self, variable: keras.Variable, name: str, value: Tensor) -> None:
        """Overwrites a slot of one model variable; arguments and errors as in `get_slot`.

        Args:
            variable: a model variable that the optimizer was built with.
            name: "momentum", "velocity", or what else the optimizer keeps.
            value: of the variable's shape.
        """
        slot = self._slot(variable, name)
        calls.same_shapes([slot], [value])
        slot.assign(value)

    def start_from_unbiased_velocity(self) -> None:
        """From now on v̂ = v: the velocity holds what it should, and needs no correction."""
        self._velocity_bias.assign(0.0)

    def _indexed_variables(self) -> list[keras.Variable]:
        """What files keep by number: exactly what Keras's own Adam keeps, in its order."""
        counter = self._skipped_steps if self.built and self.skip_nonfinite else None
        return [v for v in self.variables if v is not counter]

    def save_own_variables(self, store: Any) -> None:
        """Writes the state into `store`, as Keras asks when a model is saved.

        Args:
            store: maps names to arrays.
        """
        for index, variable in enumerate(self._indexed_variables()):
            store[str(index)] = variable.numpy()
        if self.skipped_steps:
            store["skipped_steps"] = np.array(self.skipped_steps)
        if float(self._velocity_bias.value) != 1.0:
            store["velocity_bias"] = np.array(float(self._velocity_bias.value))

    def load_own_variables(self, store: Any) -> None:
        """Takes the state from `store`, all of it or, with a warning or an error, nothing.

        Args:
            store: what `save_own_variables` of this class or of keras.optimizers.Adam has filled.

        Raises:
            ValueError: an array has another shape than the variable that it is for.
        """
        saved = {key: np.asarray(store[key]) for key in store.keys()}  # noqa: SIM118
        skipped_steps = int(saved.pop("skipped_steps", 0))
        velocity_bias = float(saved.pop("velocity_bias", 1.0))
        variables = self._indexed_variables()
        if len(saved) != len(variables):
            hint = "" if self.built else " It has not been built yet: build or train it first."
            warnings.warn(
                f"Nothing was loaded into optimizer '{self.name}', because it has "
                f"{len(variables)} variables, and the saved one has {len(saved)}.{hint}",
                stacklevel=2,
            )
            return
        names = [str(index) for index in range(len(variables))]
        if strange := [name for name in saved if name not in names]:
            raise ValueError(
                f"The state of '{self.name}' must be stored under the names {', '.join(names)}. "
                f"Received: {', '.join(strange)}"
            )
        calls.same_shapes(variables, [saved[name] for name in names])
        for name, variable in zip(names, variables, strict=True):
            variable.assign(saved[name])
        if self.built and self.skip_nonfinite:
            self._skipped_steps.assign(skipped_steps)
        self._velocity_bias.assign(velocity_bias)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Sets all of `optimizer.variables`, or, with an error, none.

        Args:
            weights: one array for each of `optimizer.variables`, of its shape.

        Raises:
            ValueError: the optimizer is not built, or the arrays are not of that number and shape.
        """
        if self.built:
            if len(weights) != len(self.variables):
                raise ValueError(
                    f"`weights` must hold {len(self.variables)} arrays, one for each of "
                    f"`optimizer.variables`. Received: {len(weights)}"
                )
            calls.same_shapes(self.variables, weights)
        super().set_weights(weights)

    # Settings that may change later

    @property
    def learning_rate(self) -> Any:
        """η: Keras's variable, or what the schedule or the callable gives now."""
        return super().learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        is_scalar = ops.is_tensor(learning_rate) and tuple(learning_rate.shape) == ()
        if not is_scalar:
            learning_rate = arguments.learning_rate(learning_rate)
        if callable(self._learning_rate) and not callable(learning_rate):
            raise TypeError(
                "The learning rate is a schedule or a callable: assign another one, or make the "
                "optimizer with a number as its `learning_rate`."
            )
        keras.optimizers.Optimizer.learning_rate.fset(self, learning_rate)

    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Excludes variables from weight decay, as `keras.optimizers.Optimizer` does.

        Args:
            var_list: variables. Defaults to None.
            var_names: parts of the names of variables. Defaults to None.

        Raises:
            ValueError: the optimizer is built already.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay` must be called before the optimizer is built. "
                f"Received: an optimizer of {len(self._trainable_variables)} variables"
            )
        super().exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """With `use_ema`, gives the variables their averages, as Keras does at the end of `fit`.

        Args:
            var_list: the variables that the optimizer was built with, in that order: on TensorFlow
                Keras hands out the averages by position.

        Raises:
            ValueError: `var_list` is another list.
        """
        if self.use_ema:
            known = [self._var_key(v) for v in self._trainable_variables]
            rule = "the variables that the optimizer was built with, in their order"
            if hasattr(var_list, "assign") or [self._var_key(v) for v in var_list] != known:
                raise arguments.reject("var_list", rule, var_list)
        super().finalize_variable_values(var_list)

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
        if trainable_variables is not None:
            trainable_variables = calls.variable_list("trainable_variables", trainable_variables)
        if grads and (self.built or trainable_variables is not None):
            known = (
                self._trainable_variables if trainable_variables is None else trainable_variables
            )
            grads = calls.dense_gradients(grads, known)
        if self.skip_nonfinite and not self.built and trainable_variables is not None:
            # Here, because variables cannot be made inside a condition.
            with keras.name_scope(self.name, caller=self):
                self.build(list(trainable_variables))
        apply = super().apply
        if not self.skip_nonfinite or not self.built or all(g is None for g in grads):
            apply(grads, trainable_variables)
            return
        gradients.apply_if_finite(
            grads,
            lambda grads: apply(grads, trainable_variables),
            self._skipped_steps,
            state=[
                v
                for v in (*self._trainable_variables, *self.variables)
                if v is not self._skipped_steps
            ],
        )

    def _backend_update_step(
        self, grads: list[Tensor], trainable_variables: list[Any], learning_rate: Any
    ) -> None:
        if self._engine is None:
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        indices = [self._get_variable_index(v) for v in trainable_variables]
        native = [v.value if isinstance(v, keras.Variable) else v for v in trainable_variables]
        self._engine.update(indices, native, grads, learning_rate)

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Any) -> None:
        """Updates one variable and its slots: the specification of the optimizer.

        Args:
            gradient: of the variable's shape.
            variable: a model variable that the optimizer was built with.
            learning_rate: η, a number or a scalar tensor.
        """
        index = self._get_variable_index(variable)
        slots = [of_all[index] for of_all in self.slots().values()]

        # Half precision holds neither 1 − β₂ = 0.001 next to 1 nor ε = 1e-8: compute in float32,
        # round once when storing. float64 stays float64 throughout.
        dtype = keras.backend.standardize_dtype(variable.dtype)
        dtype = "float32" if dtype in ("float16", "bfloat16") else dtype
        gradient, weights, *values = [
            ops.cast(x, dtype)
            for x in (
                gradients.with_rows_summed(gradient),
                variable,
                *(slot.value for slot in slots),
            )
        ]
        new_weights, new_slots = self.new_values(
            gradient,
            weights,
            tuple(values),
            self.step_scalars(learning_rate, dtype),
        )
        for slot, value in zip(slots, new_slots, strict=True):
            self.assign(slot, value)
        self.assign(variable, new_weights)

    def step_scalars(self, learning_rate: Any, dtype: str) -> StepScalars:
        """What the rule needs to know of the step that is being made."""
        step = ops.cast(self.iterations + 1, dtype)
        # 1 − β₂ᵗ, or 1 where the velocity did not start from zero but from where it belongs
        bias = ops.cast(self._velocity_bias.value, dtype)
        correction_2 = rules.bias_correction(self.beta_2, step)
        return StepScalars(
            ops.convert_to_tensor(learning_rate, dtype),
            rules.bias_correction(self.beta_1, step),
            bias * correction_2 + (1.0 - bias),
        )

    # The rule

    def new_values(
        self, gradient: Tensor, weights: Tensor, slots: Slots, scalars: StepScalars
    ) -> tuple[Tensor, Slots]:
        """The rule: new weights and new slots. A pure function of tensors of one dtype.

        Args:
            gradient: g.
            weights: w, of the gradient's shape.
            slots: the values of `slots()`, in that order, of the same shape.
            scalars: the step's learning rate and bias corrections.
        """
        momentum = rules.moving_average(slots[0], gradient, self.beta_1)
        second = self.second_moments(gradient, *slots[1:])
        rate = rules.learning_rate_per_weight(second[-1], scalars, self.epsilon, self.epsilon_hat)
        return self.descend(weights, momentum, rate), (momentum, *second)

    def second_moments(self, gradient: Tensor, velocity: Tensor, *others: Tensor) -> Slots:
        """New values of the slots after the momentum; the root is taken of the last."""
        raise NotImplementedError

    @property
    def step_depends_on_weights(self) -> bool:
        """Whether what is added to the weights depends on them: where it does not, `new_values`
        may be given zeros for them, and returns the step.
        """
        return False

    def descend(self, weights: Tensor, momentum: Tensor, rate: Tensor) -> Tensor:
        """New weights, given what each weight's momentum is to be multiplied with."""
        return weights - rate * momentum

    def constants(self) -> tuple[Any, ...]:
        """What a graph of the rule holds as fixed numbers."""
        return tuple(getattr(self, name) for name in self.hyperparameters)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as Keras serializes them."""
        return {
            **super().get_config(),
            **dict(zip(self.hyperparameters, self.constants(), strict=True)),
        }
