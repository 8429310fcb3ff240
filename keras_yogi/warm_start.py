"""The Yogi paper's initialisation of the velocity, from one large batch."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Unpack

import keras
from keras import ops

from keras_yogi import checks
from keras_yogi.any_optimizer import number, to_numpy
from keras_yogi.checks import KerasArguments
from keras_yogi.optimizers.base import AdaptiveOptimizer
from keras_yogi.rules import AdaptiveRule, Slots, StepScalars, Tensor


def warm_start(
    model: keras.Model,
    x: Any,
    y: Any = None,
    batch_size: int = 32,
    steps: int | None = None,
    verbose: int | str = "auto",
) -> None:
    """Sets the velocity to the squared gradient of one large batch at the initial weights.

    v₀ = ḡ², where ḡ is the mean gradient of the first `steps` batches, in order and computed as
    in `fit` (loss, sample weights, clipping, mixed precision, distribution). The call takes as long
    as that many batches of `fit`, and meanwhile needs the memory of a second optimizer. Weights,
    metrics, batch-norm statistics (if the model is built), the model's random seeds and
    `model.history` do not change; after an error the optimizer does not, either.

    **Size of the steps.** With `bias_correction="both"`, the default of Adam and Yogi, v̂ is its
    value without a warm start plus about ḡ² / ((1 − β₂) t). So steps are no longer than without a
    warm start, except Yogi's where ḡ² is below `initial_accumulator_value`. Where ḡ is large they
    are shorter at first: a warm-up of the learning rate for each weight, over about 1 / (1 − β₂)
    steps. Try a larger learning rate than without.

    `bias_correction="none"` is the start of the paper: v̂ = v and m̂ = m. Where ḡ is far below the
    gradients of later batches, a step is then up to 7 times the learning rate; 32 times with
    "momentum", or with β₁ = 0. A convolutional variational autoencoder then diverges at learning
    rates at which it otherwise trains well. Choose a smaller learning rate there.

    Variables that a custom `train_step` does not train keep their velocity.

    Under "mixed_float16", Keras skips batches whose scaled gradients overflow. A warning then says
    how many batches were used.

    Args:
        model: compiled with a loss and with `keras_yogi.Adam` or `keras_yogi.Yogi` (a
            keras.optimizers.LossScaleOptimizer around it is fine), not yet trained.
        x: inputs, as `fit` takes them: arrays, a tf.data.Dataset, a keras.utils.PyDataset, …
        y: targets, if `x` does not hold them. Defaults to None.
        batch_size: samples per batch, an integer ≥ 1; used if `x` holds arrays. Defaults to 32.
        steps: number of batches, an integer ≥ 1. Defaults to None: all of `x`, once.
        verbose: Keras's progress bar, as in `fit`: "auto", 0 (silent), 1 or 2. Defaults to "auto".

    Raises:
        ValueError: the model is not compiled, its optimizer is another one or has already made
            steps, an argument is invalid, there is no data, or a gradient is not finite.

    Example:
        >>> import keras, keras_yogi, numpy as np
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer=keras_yogi.Yogi(0.01), loss="mse")
        >>> keras_yogi.warm_start(model, np.ones((64, 3)), np.ones((64, 1)), verbose=0)

    References:
        Zaheer, Reddi, Sachan, Kale & Kumar, "Adaptive Methods for Nonconvex Optimization",
        NeurIPS 2018, section 5.
    """
    optimizer = _optimizer_of(model)
    checks.integer("batch_size", batch_size, at_least=1)
    if steps is not None:
        checks.integer("steps", steps, at_least=1)
    if verbose not in ("auto", 0, 1, 2):
        raise checks.reject("verbose", '"auto", 0, 1 or 2', verbose)

    strategy = getattr(model, "distribute_strategy", None)  # only TensorFlow's models have one
    with strategy.scope() if strategy else contextlib.nullcontext():
        recorder = _GradientSum(
            lambda: optimizer.trained_variables if optimizer.built else model.trainable_variables,
            name="gradient_sum",
            clipnorm=optimizer.clipnorm,
            clipvalue=optimizer.clipvalue,
            global_clipnorm=optimizer.global_clipnorm,
            loss_scale_factor=optimizer.loss_scale_factor,
        )
        scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        stand_in = _with_falling_scale(recorder, model.optimizer) if scaled else recorder
    batches = {"batch_size": batch_size} if _is_of_arrays(x) else {}
    with _untouched(model, stand_in) as callback:
        model.fit(
            x,
            y,
            steps_per_epoch=steps,
            shuffle=False,
            verbose=verbose,
            callbacks=[callback],
            **batches,
        )

    velocities, batches_seen = recorder.squared_means()
    if not velocities:
        raise ValueError(
            "`x` must hold at least one batch for which `train_step` gives the model's optimizer "
            f"finite gradients. Received: x of type {type(x).__name__} without such a batch"
        )
    if scaled:
        _warn_of_batches_left_out(stand_in, batches_seen)
    if not optimizer.built:
        with strategy.scope() if strategy else contextlib.nullcontext():
            model.optimizer.build(model.trainable_variables)
    for variable, velocity in velocities:
        optimizer.set_slot(variable, "velocity", velocity)


class _GradientSumRule(AdaptiveRule):
    """Sums gradients, counts them, and leaves the weights unchanged.

    The step count would be wrong: at the end of a dataset of unknown size TensorFlow runs the
    operations that do not depend on the batch once more.
    """

    @property
    def initial_values(self) -> Mapping[str, float]:
        return {"sum": 0.0, "count": 0.0}

    @property
    def reads_weights(self) -> bool:
        return False

    def update(
        self, gradient: Tensor, weights: Tensor, slots: Slots, scalars: StepScalars
    ) -> tuple[Tensor, Slots]:
        total, count = slots
        is_finite = ops.cast(ops.isfinite(gradient), count.dtype)
        return weights, (total + gradient, count + is_finite)


class _GradientSum(AdaptiveOptimizer):
    """Replaces the optimizer during `fit`."""

    def __init__(
        self,
        variables: Callable[[], Sequence[keras.Variable]],
        **keras_arguments: Unpack[KerasArguments],
    ) -> None:
        super().__init__(0.0, _GradientSumRule(), **keras_arguments)
        self._all_variables = variables

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Builds for all variables: the first step may name only some of them."""
        super().build(self._all_variables() or variables)

    def squared_means(self) -> tuple[list[tuple[keras.Variable, Tensor]], int]:
        """The squared mean gradient of each variable that had gradients, and the number of batches.

        Raises:
            ValueError: a gradient was not finite.
        """
        found: list[tuple[keras.Variable, Tensor]] = []
        faulty: list[str] = []
        batches = 0
        if not self.built:
            return found, batches
        for variable, slot in zip(self.trained_variables, self.slots()["sum"], strict=True):
            if slot is None or "float" not in keras.backend.standardize_dtype(variable.dtype):
                continue  # Keras overwrites it with its gradient, or it is never trained
            total, count = (self.get_slot(variable, name) for name in ("sum", "count"))
            seen = int(ops.max(count, initial=0.0))
            if not ops.all(ops.isfinite(total)):
                faulty.append(checks.path(variable))
            elif seen:
                found.append((variable, ops.square(total / seen)))
                batches = max(batches, seen)
        if faulty:
            raise ValueError(
                "`x` must be data whose gradients are finite. Received: a NaN or an infinity in "
                f"{checks.shown(faulty)}"
            )
        return found, batches


def _with_falling_scale(
    recorder: _GradientSum, scaled: keras.optimizers.LossScaleOptimizer
) -> keras.optimizers.LossScaleOptimizer:
    """Scales losses as the model's optimizer does, but never raises the scale: in the end the scale
    shows whether a batch was skipped.
    """
    return keras.optimizers.LossScaleOptimizer(
        recorder, initial_scale=scaled.initial_scale, dynamic_growth_steps=2**31 - 1
    )


def _warn_of_batches_left_out(
    stand_in: keras.optimizers.LossScaleOptimizer, batches_seen: int
) -> None:
    first, last = stand_in.initial_scale, number(stand_in.dynamic_scale)
    if last < first:
        warnings.warn(
            f"`warm_start` used {batches_seen} batches and skipped others, whose gradients times "
            f"Keras's loss scale of {first} were not finite in float16. To use them too, compile "
            "the model with keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=...) "
            f"of {last} or less",
            stacklevel=3,
        )


def _optimizer_of(model: keras.Model) -> AdaptiveOptimizer:
    checks.not_of_keras_2("model", model)
    optimizer = getattr(model, "optimizer", None)
    checks.not_of_keras_2("model.optimizer", optimizer)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    if not isinstance(optimizer, AdaptiveOptimizer):
        has = "no optimizer" if optimizer is None else f"the optimizer {type(optimizer).__name__}"
        raise ValueError(
            "`model` must be compiled with a loss and with keras_yogi.Adam or keras_yogi.Yogi. "
            f"Received: a {type(model).__name__} with {has}"
        )
    if (steps := int(number(optimizer.iterations))) > 0:
        raise ValueError(
            "`model` must be untrained: a warm start would overwrite the velocities of its "
            f"optimizer. Received: an optimizer that has made {steps} steps"
        )
    return optimizer


def _is_of_arrays(x: Any) -> bool:
    return all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(x))


_SET_BY_FIT = ("optimizer", "train_function", "history", "stop_training")


@contextlib.contextmanager
def _untouched(
    model: keras.Model, stand_in: keras.optimizers.Optimizer
) -> Iterator[keras.callbacks.Callback]:
    """Lets `fit` run with another optimizer, and restores the model afterwards. Yields the callback
    that `fit` needs for this.
    """
    before: dict[int, keras.Variable] = {}
    values: list[tuple[Any, Any]] = []

    def remember(logs: Any = None) -> None:
        before.update((id(v), v) for v in [*model.variables, *model.metrics_variables])
        parts = [part for variable in before.values() for part in _parts(variable)]
        values.extend((part, to_numpy(part)) for part in parts)

    attributes = {name: getattr(model, name) for name in _SET_BY_FIT if hasattr(model, name)}
    model.optimizer, model.train_function = stand_in, None
    try:
        yield keras.callbacks.LambdaCallback(on_train_begin=remember)
    finally:
        for name in _SET_BY_FIT:
            if name in attributes:
                setattr(model, name, attributes[name])
            elif hasattr(model, name):
                delattr(model, name)
        for part, value in values:
            part.assign(value)
        for metric in model.metrics if before else ():
            if any(id(v) not in before for v in metric.variables):  # made by the first batch
                metric.reset_state()


def _parts(variable: keras.Variable) -> Sequence[Any]:
    """The parts of a variable: under tf.distribute, one of TensorFlow's on each replica."""
    parts = getattr(variable.value, "values", None)
    return parts if isinstance(parts, tuple) else (variable,)
