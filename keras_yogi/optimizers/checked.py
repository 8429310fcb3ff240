"""Keras's optimizer, as the rest of the package needs it: checked, and without underscores.

Every use of an underscore name of Keras is in this file, because nothing public gives the same:
`_trainable_variables`, the list that the optimizer was built with; `_get_variable_index`, the
place of a variable in it (Keras's own guide for authors of optimizers uses it), and `_var_key`,
what it goes by; `_backend_update_step`, which receives all gradients of a step at once, after
Keras has clipped them, where `update_step` sees one; `_track_variable`, which puts a slot that is
not a Keras variable into `optimizer.variables`.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_yogi.optimizers import arguments, calls
from keras_yogi.optimizers.rules import Tensor


class CheckedOptimizer(keras.optimizers.Optimizer):
    """Refuses bad values for what may change after construction, and names what Keras hides."""

    @property
    def trained_variables(self) -> list[Any]:
        """The list that the optimizer was built with."""
        return self._trainable_variables

    def index_of(self, variable: Any) -> int:
        """The place of a model variable in the list that the optimizer was built with.

        Args:
            variable: a Keras variable, or the backend's own.

        Raises:
            ValueError: the optimizer was not built with it.
        """
        try:
            return self._get_variable_index(variable)
        except (KeyError, AttributeError):
            rule = "one of the variables that the optimizer was built with"
            raise arguments.reject("variable", rule, variable) from None

    def track(self, slot: Any) -> None:
        """Puts a slot that is not a Keras variable into `variables`.

        Args:
            slot: what saves and restores like a variable.
        """
        self._track_variable(slot)

    def update_all(
        self, gradients: Sequence[Tensor], variables: Sequence[Any], learning_rate: Any
    ) -> None:
        """One step on all variables that have a gradient, which Keras has scaled and clipped.

        Here one variable after another, on every replica; the gradients of replicas are summed.

        Args:
            gradients: one per variable.
            variables: model variables that the optimizer was built with.
            learning_rate: η, a number or a scalar tensor.
        """
        super()._backend_update_step(gradients, variables, learning_rate)

    def _backend_update_step(
        self, grads: list[Tensor], trainable_variables: list[Any], learning_rate: Any
    ) -> None:
        self.update_all(grads, trainable_variables, learning_rate)

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
                "This optimizer was created with a `LearningRateSchedule` or a callable: assign "
                "another one, or make the optimizer with a number as its `learning_rate`."
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
        if self.use_ema and keras.config.backend() == "jax":
            # Keras assigns the averages themselves: a weight and its average are then one buffer,
            # which the next `fit` would donate twice.
            for variable in var_list:
                variable.assign(ops.copy(variable.value))
