"""AdaptiveOptimizer: a rule and an engine as a Keras optimizer.

This file alone uses underscore names of the optimizer's Keras base class. Nothing public gives the
same:

- `_backend_update_step` receives all gradients of a step, clipped; `update_step` sees one.
- `_clip_gradients` is overridden so that Keras clips the values of row gradients.
- `_trainable_variables` is the list that the optimizer was built with, `_get_variable_index` a
  variable's index in it, `_var_key` the key by which Keras knows a variable.
- `_use_weight_decay` knows which variables are excluded from weight decay.
- `_track_variable` adds a slot that `add_variable` has not made to `optimizer.variables`.
- `_learning_rate` tells a number from a schedule; `_iterations` counts batches where `iterations`
  counts steps.
- `_apply_weight_decay`, `_update_model_variables_moving_average` and
  `_overwrite_model_variables_with_average_value` compute in the variable's dtype; weights in half
  precision need float32.
"""

import dataclasses
import sys
import warnings
from collections.abc import Sequence
from typing import Any, Self, Unpack

import keras
from keras import ops

from keras_yogi import checks, engines, half_precision, row_gradients, step_conditions
from keras_yogi.checks import Fused, KerasArguments, LearningRate, SparseUpdate
from keras_yogi.half_precision import RESIDUAL
from keras_yogi.optimizers import configuration, state
from keras_yogi.rules import AdaptiveRule, DecayRule, StepScalars, Tensor
from keras_yogi.statistics import advice

_OPTIONS = {
    "sparse_update": lambda name, value: checks.one_of(name, value, ("exact", "lazy")),
    "fused": checks.auto_or_boolean,
    "skip_nonfinite": checks.boolean,
    "keep_residual": checks.boolean,
}
"""Arguments that do not change the formula, each with its check."""

_FIXED_BY_BUILD = {*_OPTIONS, "use_ema", "gradient_accumulation_steps"}
"""Arguments that `build` depends on: they cannot be changed after it."""

_NEEDS_FLOAT32_GRADIENTS = (
    *("clipnorm", "clipvalue", "global_clipnorm"),
    *("loss_scale_factor", "gradient_accumulation_steps"),
)
"""With one of these arguments, Keras computes with the gradients."""

_CHECKS = {**_OPTIONS, **checks.KERAS_CHECKS}


class AdaptiveOptimizer(keras.optimizers.Optimizer):
    """Base class of `keras_yogi.Adam` and `keras_yogi.Yogi`: a Keras optimizer that follows a rule.

    `apply` checks the gradients, sums repeated rows and, with `skip_nonfinite`, skips a step that
    is not finite. Keras scales and clips the gradients and decays the weights. The engine then
    updates weights and slots by `rule.update`.

    The fields of the rule are attributes of the optimizer: `optimizer.beta_1 = 0.5` replaces the
    rule. Graphs that were traced before keep the old rule, as with every Keras optimizer.

    Args:
        learning_rate: η ≥ 0: a number, a `keras.optimizers.schedules.LearningRateSchedule`, or a
            callable without arguments.
        rule: the update, a frozen `keras_yogi.rules.AdaptiveRule`.
        sparse_update: "exact" or "lazy", see `keras_yogi.Adam`. Defaults to "exact".
        fused: "auto", True or False, see `keras_yogi.Adam`. Defaults to "auto".
        skip_nonfinite: skip steps whose gradients are not finite. Defaults to False.
        keep_residual: keep what half precision cannot hold of a weight, see `keras_yogi.Adam`.
            Defaults to True.
        **keras_arguments: arguments of every Keras optimizer, see `keras_yogi.Adam`.

    Raises:
        ValueError: an argument is unknown or has an invalid value.
    """

    engine_limits = engines.backend.limits
    """Sizes at which the fused engine changes its method. Set them before `build`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        # In `__dict__`: Keras refuses attributes before `__init__`.
        self.__dict__["_constructor_arguments"] = configuration.given_arguments(cls, args, kwargs)
        return self

    def __init__(
        self,
        learning_rate: LearningRate,
        rule: AdaptiveRule,
        *,
        sparse_update: SparseUpdate = "exact",
        fused: Fused = "auto",
        skip_nonfinite: bool = False,
        keep_residual: bool = True,
        **keras_arguments: Unpack[KerasArguments],
    ) -> None:
        engines.backend.check_strategy()
        super().__init__(
            learning_rate=checks.learning_rate(learning_rate),
            **checks.keras_arguments(type(self), keras_arguments),
        )
        self.sparse_update = sparse_update
        self.fused = fused
        self.skip_nonfinite = skip_nonfinite
        self.keep_residual = keep_residual
        self._rule = rule
        self._engine = engines.Engine([])
        self._is_fused = False
        # In `__dict__`: TensorFlow would save an attribute that is a dict in checkpoints.
        self.__dict__["_gradient_kinds"] = {}
        self._known_counts = (0, 0)

    # Hyperparameters

    @property
    def rule(self) -> AdaptiveRule:
        """The update rule: a hashable value whose methods are pure functions of tensors."""
        return self._rule

    def __getattr__(self, name: str) -> Any:
        """Finds the fields of the rule; no other name exists."""
        if name in _fields(self):
            return getattr(self.__dict__["_rule"], name)
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        """Checks every assignment, also after construction."""
        built = self.__dict__.get("built", False)
        if name in _fields(self):
            rule = dataclasses.replace(self._rule, **{name: value})
            if built and rule.initial_values != self._rule.initial_values:
                raise _fixed_by_build(name, value)
            name, value = "_rule", rule
        elif name in _CHECKS:
            value = _CHECKS[name](name, value)
            if built and name in _FIXED_BY_BUILD and value != getattr(self, name):
                raise _fixed_by_build(name, value)
        super().__setattr__(name, value)

    def _set_learning_rate(self, learning_rate: Any) -> None:
        is_held = ops.is_tensor(learning_rate) or hasattr(learning_rate, "assign")
        if not is_held or tuple(learning_rate.shape) != ():
            learning_rate = checks.learning_rate(learning_rate)
        if callable(self._learning_rate) and not callable(learning_rate):
            raise TypeError(
                "This optimizer was created with a `LearningRateSchedule` or a callable: assign "
                "another one, or make the optimizer with a number as its `learning_rate`."
            )
        keras.optimizers.Optimizer.learning_rate.fset(self, learning_rate)

    # Keras's own getter: torch.compile cannot follow one that calls super().
    learning_rate = property(
        keras.optimizers.Optimizer.learning_rate.fget,
        _set_learning_rate,
        doc="η: Keras's variable, or the present value of the schedule or the callable.",
    )

    def get_config(self) -> dict[str, Any]:
        """A dict of the constructor's arguments, as Keras serializes them.

        A subclass need not override it. Its own arguments are included: the value of the attribute
        of the same name or, without one, the value that the constructor was given.
        """
        config = super().get_config()
        config |= {name: getattr(self, name) for name in (*_fields(self), *_OPTIONS)}
        for name in configuration.parameters(type(self)) - config.keys() - {"rule"}:
            value = getattr(self, name, self._constructor_arguments.get(name))
            config[name] = keras.saving.serialize_keras_object(value)
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        """Creates an optimizer from a config. It is not built.

        `fused=True` becomes "auto" where the fused engine is not available (JAX, a TPU), so that a
        file from elsewhere loads. The numbers are the same.

        Args:
            config: a dict that `get_config` returned, here or elsewhere.
            custom_objects: a dict of classes and functions by name, or None, as Keras takes it.
                Defaults to None.

        Raises:
            ValueError: a key is unknown or a value is invalid.
            TypeError: Keras does not find a class that the config names.
        """
        return configuration.construct(cls, config, custom_objects)

    # Slots

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the slots, one of each name per variable, and the engine that updates them. A
        second call does nothing.

        Args:
            variables: a list of the model variables to train.

        Raises:
            ValueError: `variables` is not a list of different variables of known shapes, or
                `fused=True` and the fused engine is not available.
        """
        if self.built:
            return
        variables = checks.variable_list("variables", variables)
        reason = self._unfused_reason()
        if self.fused is True and reason:
            raise checks.reject("fused", f'False or "auto" here: {reason}', True)
        self._is_fused = bool(self.fused) and not reason
        super().build(variables)
        trained = {i: v for i, v in enumerate(variables) if _has_slots(v)}
        initial_values = {i: self._initial_values(v) for i, v in trained.items()}
        lazy_rows = self.sparse_update == "lazy"
        limits = self.engine_limits if self._is_fused else None
        packs = engines.backend.packed_groups(trained, initial_values, lazy_rows, limits)
        names = list(self._rule.initial_values)
        if any(RESIDUAL in values for values in initial_values.values()):
            names.append(RESIDUAL)
        slots: dict[str, list[Any]] = {name: [None] * len(variables) for name in names}
        # In Keras's order, so that files and checkpoints fit keras.optimizers.Adam, too.
        for together in (names[:2], *([name] for name in names[2:])):
            for index, variable in trained.items():
                for name in together:
                    if name in initial_values[index]:
                        initial = initial_values[index][name]
                        slot = self._new_slot(packs.get(index), index, variable, name, initial)
                        slots[name][index] = slot
        for name, of_all in slots.items():
            setattr(self, _attribute(name), of_all)
        if self.skip_nonfinite:
            self._skipped_steps = self._counter("skipped_steps")
            self._skipped_in_a_row = self._counter("skipped_in_a_row")
        alone = {index: variable for index, variable in trained.items() if index not in packs}
        own_slots = {i: [slots[name][i] for name in initial_values[i]] for i in alone}
        group = engines.Group(alone, own_slots, lazy_rows)
        self._engine = engines.backend.engine(group, packs, limits)

    def _unfused_reason(self) -> str | None:
        if self._overrides_update_step():
            return f"{type(self).__name__} overrides `update_step`"
        return engines.backend.unsupported_reason()

    def _overrides_update_step(self) -> bool:
        is_replaced = "update_step" in self.__dict__  # on this object alone
        return is_replaced or type(self).update_step is not AdaptiveOptimizer.update_step

    def _initial_values(self, variable: Any) -> dict[str, float]:
        """The initial values of a variable's slots, by name."""
        keeps_residual = self.keep_residual and half_precision.is_half(variable.dtype)
        return {**self._rule.initial_values, **({RESIDUAL: 0} if keeps_residual else {})}

    def _new_slot(self, pack: Any, index: int, variable: Any, name: str, initial: float) -> Any:
        # The name that Keras would give the slot.
        slot_name = f"{checks.path(variable).replace('/', '_').replace(':', '_')}_{name}"
        if pack is not None:
            with keras.name_scope(self.name, caller=self):
                slot = pack.slot(index, name, slot_name)
            self._track_variable(slot)
            return slot
        if name != RESIDUAL:
            is_float = "float" in keras.backend.standardize_dtype(variable.dtype)
            initializer = _constant(initial) if initial and is_float else "zeros"
            return self.add_variable_from_reference(variable, name, initializer)
        with engines.backend.colocated_with(variable):
            layout = getattr(variable, "_layout", None)
            return self.add_variable(
                variable.shape, "zeros", "int16", layout=layout, name=slot_name
            )

    def add_variable(  # noqa: D417, because `**kwargs` explains `*args`
        self,
        shape: Sequence[int],
        initializer: Any = "zeros",
        dtype: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> keras.Variable:
        """Adds a variable to the optimizer, as Keras does, but never in half precision: slots,
        averages and accumulators of float16 and bfloat16 weights are kept in float32.

        Args:
            shape: a tuple of integers.
            initializer: as Keras takes it. Defaults to "zeros".
            dtype: a dtype; float16 and bfloat16 become float32. Defaults to None: Keras's default
                dtype.
            **kwargs: further arguments, by name or by position, as Keras takes them.
        """
        dtype = half_precision.compute_dtype(dtype or keras.config.floatx())
        return super().add_variable(shape, initializer, dtype, *args, **kwargs)

    @property
    def engine(self) -> str:
        """The engine in use: "fused", or "unfused": one variable after another."""
        return "fused" if self._is_fused else "unfused"

    @property
    def trained_variables(self) -> list[Any]:
        """The list that the optimizer was built with."""
        return self._trainable_variables

    def takes_rows(self, variable: Any) -> bool | None:
        """Whether gradients of a variable have come as some of its rows, as those of an Embedding
        do on TensorFlow; None before this object's first gradient.

        Args:
            variable: a model variable that the optimizer was built with.
        """
        return self._gradient_kinds.get(self.index_of(variable))

    def index_of(self, variable: Any) -> int:
        """The index of a model variable in `trained_variables`, an integer ≥ 0.

        Args:
            variable: a Keras variable, or the backend's own.

        Raises:
            ValueError: the optimizer is not built, or was built without this variable.
        """
        try:
            return self._get_variable_index(variable)
        except (KeyError, AttributeError):
            rule = (
                "one of the variables that the optimizer was built with (make a new optimizer for "
                "another set of variables, for example after unfreezing layers)"
            )
            raise checks.reject("variable", rule, variable) from None

    def slots(self) -> dict[str, list[keras.Variable]]:
        """The variables that hold the slots.

        Returns:
            A dict from slot name to a list of variables, in the rule's order. A list has one entry
            per model variable, of its shape and dtype (float32 for float16 and bfloat16), or None
            where a variable has no such slot. "residual" is last, if there is one: int16, as it is
            stored.

        Raises:
            ValueError: the optimizer is not built.
        """
        if not self.built:
            raise ValueError(
                f"Slots need an optimizer that is built: call `{self.name}.build(variables)` or "
                "train a step first. Received: an optimizer that is not built"
            )
        names = [n for n in (*self._rule.initial_values, RESIDUAL) if hasattr(self, _attribute(n))]
        return {name: getattr(self, _attribute(name)) for name in names}

    def get_slot(self, variable: keras.Variable, name: str) -> Tensor:
        """The value of a slot for one model variable.

        Args:
            variable: a model variable that the optimizer was built with.
            name: a string: "momentum", "velocity", or another key of `slots()`. "residual" is what
                a variable in float16 or bfloat16 cannot hold of its weight: `cast(variable,
                "float32") + get_slot(variable, "residual")` is the weight.

        Returns:
            A tensor, which is a copy, of the variable's shape and dtype; float32 for float16 and
            bfloat16.

        Raises:
            ValueError: the optimizer is not built, does not know the variable, or has no such slot.
        """
        value = self._slot(variable, name).value
        if name == RESIDUAL:
            return half_precision.residual(ops.convert_to_tensor(variable), value)
        return ops.copy(value)

    def set_slot(self, variable: keras.Variable, name: str, value: Tensor) -> None:
        """Overwrites a slot of one model variable.

        Args:
            variable: a model variable that the optimizer was built with.
            name: a string, as in `get_slot`. Setting "residual" sets the weight to variable +
                value: both are written.
            value: a tensor or array of the variable's shape; it is cast to the slot's dtype.

        Raises:
            ValueError: as in `get_slot`, or `value` has another shape.
        """
        slot = self._slot(variable, name)
        checks.same_shapes([slot], [value])
        if name == RESIDUAL:
            weights = ops.cast(variable, "float32") + ops.cast(value, "float32")
            half_precision.write(variable, slot, weights)
        else:
            slot.assign(value)

    def _residual(self, variable: Any) -> Any:
        """The residual of a variable; None if it keeps none."""
        residuals = getattr(self, _attribute(RESIDUAL), None)
        return None if residuals is None else residuals[self.index_of(variable)]

    def _slot(self, variable: keras.Variable, name: str) -> keras.Variable:
        slots = self.slots()
        checks.one_of("name", name, slots)
        slot = slots[name][self.index_of(variable)]
        if slot is None:
            rule = f"one that has the slot {name!r}"
            raise checks.reject("variable", rule, variable)
        return slot

    @property
    def skipped_steps(self) -> int:
        """The number of steps that `skip_nonfinite` has skipped; 0 without it."""
        return int(ops.copy(self._skipped_steps)) if self.counters else 0

    @property
    def counters(self) -> tuple[keras.Variable, ...]:
        """With `skip_nonfinite`, the numbers of skipped steps: in all, and in a row until now."""
        if not (self.built and self.skip_nonfinite):
            return ()
        return self._skipped_steps, self._skipped_in_a_row

    def _counter(self, name: str) -> keras.Variable:
        return self.add_variable((), "zeros", "int32", "only_first_replica", name=name)

    # Applying gradients

    def apply(
        self,
        grads: Sequence[Tensor | None],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        """Updates the variables once.

        Args:
            grads: a list with one gradient per variable: a tensor or array of the variable's shape
                and a floating dtype, a tf.IndexedSlices (repeated rows are summed first), or None
                (the variable and its slots stay unchanged).
            trainable_variables: a list of the variables, in the order of `grads`; the first call
                with it builds the optimizer. Defaults to None: the variables that it was built
                with.

        Raises:
            ValueError: a gradient has another shape or dtype or names rows that do not exist, all
                gradients are None, `grads` and the variables differ in number, the optimizer was
                built without one of the variables, or it is not built and gets none. Weights and
                slots are then unchanged.
        """
        grads = checks.gradient_list(grads)
        if not grads or (trainable_variables is None and not self.built):
            super().apply(grads)  # does nothing, or raises Keras's error
            return
        if trainable_variables is None:
            variables = self.trained_variables
        else:
            variables = checks.variable_list("trainable_variables", trainable_variables)
        conditional = ("gradient_accumulation_steps", "ema_overwrite_frequency")
        engines.backend.check_conditional_updates(
            n for n in conditional if getattr(self, n) is not None
        )
        grads = checks.gradients(grads, variables)
        if not self.built:  # Keras would build inside of `skip_nonfinite`'s condition
            with keras.name_scope(self.name, caller=self):
                self.build(variables)
        grads = [self._coalesced(g, v) for g, v in zip(grads, variables, strict=True)]
        if not self.skip_nonfinite or all(g is None for g in grads):
            with step_conditions.wait_for_batch(grads):
                self._apply(grads, variables)
            return
        counters = {id(counter) for counter in self.counters}
        everything = (*self.trained_variables, *self.variables)
        step_conditions.apply_if_finite(
            grads,
            lambda grads: self._apply(grads, variables),
            self.counters,
            state=[v for v in everything if id(v) not in counters],
        )

    def _apply(self, grads: Sequence[Tensor | None], variables: Sequence[Any]) -> None:
        if not self.ema_overwrite_frequency or keras.config.backend() != "jax":
            super().apply(grads, variables)
            return
        # Before `apply`, as Keras does: the step changes `iterations`.
        overwrites = ops.equal((self.iterations + 1) % self.ema_overwrite_frequency, 0)
        super().apply(grads, variables)
        self._take_residuals_of_averages(overwrites)

    def _take_residuals_of_averages(self, overwritten: Tensor) -> None:
        """On JAX, Keras itself overwrites variables with their averages. Sets the residuals
        accordingly.
        """
        averages = self._model_variables_moving_average
        for variable, average in zip(self._trainable_variables, averages, strict=True):
            slot = self._residual(variable)
            if average is not None and slot is not None:
                weights = half_precision.read(variable, slot)
                weights = ops.where(overwritten, average.value, weights)
                half_precision.write(variable, slot, weights)

    def _coalesced(self, gradient: Tensor | None, variable: Any) -> Tensor | None:
        """Sums repeated rows. Makes the gradient dense where Keras needs all of it."""
        kinds, index = self._gradient_kinds, self.index_of(variable)
        if gradient is None:
            return None
        kinds[index] = kinds.get(index, False) or row_gradients.is_rows(gradient)
        if any(getattr(self, name) is not None for name in _NEEDS_FLOAT32_GRADIENTS):
            # Otherwise Keras would compute in half precision.
            values = row_gradients.values_of(gradient)
            dtype = half_precision.compute_dtype(gradient.dtype)
            gradient = row_gradients.with_values(gradient, ops.cast(values, dtype))
        if not row_gradients.is_rows(gradient):
            return gradient
        # Keras adds up whole gradients, and assigns one to a variable without slots.
        if self.gradient_accumulation_steps or not _has_slots(variable):
            return row_gradients.dense(gradient)
        return row_gradients.coalesce(gradient)

    def _clip_gradients(self, grads: list[Tensor]) -> list[Tensor]:
        """Clips the values of row gradients like any tensor: all other rows are zero."""
        clipped = super()._clip_gradients([row_gradients.values_of(g) for g in grads])
        return [row_gradients.with_values(g, c) for g, c in zip(grads, clipped, strict=True)]

    def _backend_update_step(
        self, grads: list[Tensor], trainable_variables: list[Any], learning_rate: Any
    ) -> None:
        """Updates the variables by gradients that Keras has scaled and clipped."""
        if self._overrides_update_step():
            # Keras sums the replicas' gradients and calls `update_step` for each variable.
            grads = [row_gradients.remove_padding(g) for g in grads]
            super()._backend_update_step(grads, trainable_variables, learning_rate)
        else:
            indices = map(self.index_of, trainable_variables)
            gradients = dict(zip(indices, grads, strict=True))
            self._engine.step(self._rule, self._scalars(learning_rate), gradients)

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        """w ← w − w · `weight_decay` · η. For half precision the engine computes it."""
        if self.weight_decay is None:
            return
        half = [v for v in variables if half_precision.is_half(v.dtype)]
        others = [v for v in variables if not half_precision.is_half(v.dtype)]
        if others:
            super()._apply_weight_decay(others)
        decayed = [v for v in half if self._use_weight_decay(v)]
        if decayed:
            rule = DecayRule(self._rule, self.weight_decay)
            scalars = self._scalars(self.learning_rate)
            zeros = {self.index_of(v): ops.zeros(v.shape, "float32") for v in decayed}
            self._engine.step_reduced(rule, scalars, zeros)

    def _update_model_variables_moving_average(self, trainable_variables: Sequence[Any]) -> None:
        """Hands Keras the full weights to average: variable plus residual."""
        whole = [
            half_precision.read(v, self._residual(v)) if half_precision.is_half(v.dtype) else v
            for v in trainable_variables
        ]
        super()._update_model_variables_moving_average(whole)

    def _overwrite_model_variables_with_average_value(
        self, trainable_variables: Sequence[Any]
    ) -> None:
        if not any(half_precision.is_half(v.dtype) for v in trainable_variables):
            super()._overwrite_model_variables_with_average_value(trainable_variables)
            return
        averages = self._model_variables_moving_average
        for variable, average in zip(trainable_variables, averages, strict=True):
            if average is not None:
                half_precision.write(variable, self._residual(variable), average.value)

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Any) -> None:
        """Updates one variable and its slots. A subclass may override it.

        Args:
            gradient: a tensor of the variable's shape and a floating dtype, or a tf.IndexedSlices
                of some of its rows.
            variable: a model variable that the optimizer was built with.
            learning_rate: η, a number or a scalar tensor.

        Raises:
            ValueError: the optimizer was built without this variable.
        """
        if row_gradients.is_rows(gradient):
            # Again: the rows of several replicas are concatenated.
            gradient = row_gradients.coalesce(gradient)
        gradients = {self.index_of(variable): gradient}
        self._engine.step_on_this_replica(self._rule, self._scalars(learning_rate), gradients)

    def _scalars(self, learning_rate: Any) -> dict[str, StepScalars]:
        step, dtypes = self.iterations + 1, self._engine.dtypes
        return {dtype: self._rule.scalars(learning_rate, step, dtype) for dtype in dtypes}

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """With `use_ema`, sets the variables to their averages, as Keras does at the end of `fit`.

        Warns if nearly no weight moves because v₀ or ε is large, and if `skip_nonfinite` has
        skipped most steps.

        Args:
            var_list: a list of the variables that the optimizer was built with, in that order. On
                TensorFlow, Keras assigns the averages by position.

        Raises:
            ValueError: with `use_ema`, `var_list` is another list.
        """
        if self.use_ema:
            known = [self._var_key(v) for v in self._trainable_variables]
            rule = "the variables that the optimizer was built with, in their order"
            if hasattr(var_list, "assign") or [self._var_key(v) for v in var_list] != known:
                raise checks.reject("var_list", rule, var_list)
        super().finalize_variable_values(var_list)
        if self.use_ema and keras.config.backend() == "jax":
            # Keras makes a weight and its average one buffer, which the next `fit` would donate
            # twice.
            for variable in var_list:
                variable.assign(ops.copy(variable.value))
        if sys.exc_info()[0] is not None:  # `fit` ends with an error, which is not to be hidden
            return
        if self.built and (warning := advice.silent_start(self)):
            warnings.warn(warning, stacklevel=2)
        if self.built and self.skip_nonfinite:
            self._warn_if_most_steps_were_skipped()

    def _warn_if_most_steps_were_skipped(self) -> None:
        """Counts the steps since its last call: a model that has diverged skips every step."""
        batches = int(ops.copy(self._iterations)) + self.skipped_steps
        counts = (self.skipped_steps, batches)
        known, self._known_counts = self._known_counts, counts
        skipped, made = (max(now - then, 0) for now, then in zip(counts, known, strict=True))
        if 2 * skipped > made:
            warnings.warn(
                f"skip_nonfinite skipped {skipped} of {made} steps, because a gradient was not "
                "finite: the model has probably diverged. Go back to earlier weights, with a lower "
                "learning rate or `global_clipnorm`.",
                stacklevel=3,
            )

    # Files

    def _trackable_children(self, save_type: str = "checkpoint", **options: Any) -> dict[str, Any]:
        """Adds the arrays that slots share to a SavedModel, whose functions use them."""
        children = super()._trackable_children(save_type, **options)
        if save_type == "savedmodel":
            locations = [v.location for v in self.variables if hasattr(v, "location")]
            arrays = {id(array): array for array, _ in locations}
            children |= {f"array_{i}": array for i, array in enumerate(arrays.values())}
        return children

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Sets all of `optimizer.variables` or, with an error, none.

        Args:
            weights: a list of arrays, one of its shape for each of `optimizer.variables`.

        Raises:
            ValueError: the optimizer is not built, or the number or a shape of the arrays is wrong.
        """
        if self.built:
            if len(weights) != len(self.variables):
                raise ValueError(
                    f"`weights` must hold {len(self.variables)} arrays, one for each of "
                    f"`optimizer.variables`. Received: {len(weights)}"
                )
            checks.same_shapes(self.variables, weights)
        super().set_weights(weights)

    def save_own_variables(self, store: Any) -> None:
        """Writes the state into `store`. Keras calls it when a model is saved.

        Args:
            store: a mutable mapping from names to arrays.
        """
        state.save(self, store)

    def load_own_variables(self, store: Any) -> None:
        """Loads the state from `store`: all of it or, with a warning or an error, nothing.

        Args:
            store: a mapping that `save_own_variables` of this class or of keras.optimizers.Adam
                filled.

        Raises:
            ValueError: an array has an unknown name or the wrong shape.
        """
        state.load(self, store)


def _fields(optimizer: AdaptiveOptimizer) -> tuple[str, ...]:
    rule = optimizer.__dict__.get("_rule")
    return () if rule is None else tuple(field.name for field in dataclasses.fields(rule))


def _fixed_by_build(name: str, value: Any) -> ValueError:
    rule = "set before the optimizer is built: `build` depends on it"
    return checks.reject(name, rule, value)


def _has_slots(variable: Any) -> bool:
    return not getattr(variable, "overwrite_with_gradient", False)


def _attribute(slot_name: str) -> str:
    """The name that keras.optimizers.Adam gives a list of slots: checkpoints can be exchanged."""
    plurals = {"momentum": "_momentums", "velocity": "_velocities"}
    return plurals.get(slot_name, f"_{slot_name}s")


def _constant(value: float) -> Any:
    """An initializer. keras.initializers.Constant would round float64 values to float32."""
    return lambda shape, dtype=None: ops.zeros(shape, dtype) + value
