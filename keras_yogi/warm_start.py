"""The Yogi paper's initialisation of the velocity, from one large batch."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import keras
from keras import ops

from keras_yogi import checks
from keras_yogi.checks import KerasArguments
from keras_yogi.optimizers.base import AdaptiveOptimizer
from keras_yogi.rules import AdaptiveRule, Slots, StepScalars, Tensor


def warm_start(
    model: keras.Model,
    x: Any,
    y: Any = None,
    batch_size: int = 32,
    steps: int | None = None,
) -> None:
    """Sets the velocity to the squared gradient of one large batch at the initial weights.

    v₀ = ḡ², where ḡ is the mean of the gradients of the first `steps` batches, taken as `fit`
    takes them (loss, sample weights, clipping, mixed precision, distribution), in order. A
    velocity that starts where it belongs must not be divided by 1 − β₂ᵗ: from here on v̂ = v.
    Weights, metrics, batch-norm statistics and random seeds are left as they were. Keras's own
    progress bar shows how far it is.

    A weight whose gradient is zero on all of that data starts with v₀ = 0, so that its first
    steps can be up to 1 / √(1 − β₂) times the learning rate (32 for β₂ = 0.999). Give data that
    reaches every weight; for embeddings with rare rows, prefer Yogi without a warm start.

    Under "mixed_float16", Keras leaves out batches whose scaled gradients overflow; a warning says
    so, and how many batches were used.

    Args:
        model: compiled with a loss and with `keras_yogi.Adam` or `keras_yogi.Yogi` (a
            keras.optimizers.LossScaleOptimizer around it is fine), not yet trained.
        x: inputs, as `fit` takes them: arrays, a tf.data.Dataset, a keras.utils.PyDataset, …
        y: targets, where `x` does not hold them. Defaults to None.
        batch_size: samples of one batch ≥ 1, if `x` is of arrays. Defaults to 32.
        steps: batches to use ≥ 1. Defaults to None: all of `x`, once.

    Raises:
        ValueError: the model is not compiled, its optimizer is another one or has already made
            steps, an argument breaks its rule, or a gradient is not finite.

    Example:
        >>> import keras, keras_yogi, numpy as np
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer=keras_yogi.Yogi(0.01), loss="mse")
        >>> keras_yogi.warm_start(model, np.ones((64, 3)), np.ones((64, 1)))

    References:
        Zaheer, Reddi, Sachan, Kale & Kumar, "Adaptive Methods for Nonconvex Optimization",
        NeurIPS 2018, section 5.
    """
    optimizer = _optimizer_of(model)
    checks.integer("batch_size", batch_size, at_least=1)
    if steps is not None:
        checks.integer("steps", steps, at_least=1)

    strategy = getattr(model, "distribute_strategy", None)  # TensorFlow's models have one
    with strategy.scope() if strategy else contextlib.nullcontext():
        recorder = _GradientSum(
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
        model.fit(x, y, steps_per_epoch=steps, shuffle=False, callbacks=[callback], **batches)

    if not optimizer.built:
        with strategy.scope() if strategy else contextlib.nullcontext():
            model.optimizer.build(model.trainable_variables)
    trained = [
        v for v in model.trainable_variables if not getattr(v, "overwrite_with_gradient", False)
    ]
    batches_seen = int(ops.convert_to_numpy(recorder.iterations))
    means = [recorder.get_slot(v, "sum") / max(batches_seen, 1) for v in trained]
    faulty = [v.path for v, g in zip(trained, means, strict=True) if not ops.all(ops.isfinite(g))]
    if faulty or not batches_seen:
        raise ValueError(
            "`x` must be data whose gradients are finite. Received: a NaN or an infinity in "
            + (", ".join(faulty) or "every batch")
        )
    if scaled:
        _warn_of_batches_left_out(stand_in, batches_seen)
    for variable, mean in zip(trained, means, strict=True):
        optimizer.set_slot(variable, "velocity", ops.square(mean))
    optimizer.bias_correction = "momentum"


class _GradientSumRule(AdaptiveRule):
    """Adds gradients up, and leaves the weights alone."""

    @property
    def initial_values(self) -> Mapping[str, float]:
        return {"sum": 0.0}

    @property
    def reads_weights(self) -> bool:
        return False

    def update(
        self, gradient: Tensor, weights: Tensor, slots: Slots, scalars: StepScalars
    ) -> tuple[Tensor, Slots]:
        return weights, (slots[0] + gradient,)


class _GradientSum(AdaptiveOptimizer):
    """Stands in for the optimizer in `fit`."""

    def __init__(self, **keras_arguments: Unpack[KerasArguments]) -> None:
        super().__init__(0.0, _GradientSumRule(), **keras_arguments)


def _with_falling_scale(
    recorder: _GradientSum, scaled: keras.optimizers.LossScaleOptimizer
) -> keras.optimizers.LossScaleOptimizer:
    """Scales losses as the model's own optimizer does, but never raises the scale again: it tells
    in the end whether a batch was left out.
    """
    return keras.optimizers.LossScaleOptimizer(
        recorder, initial_scale=scaled.initial_scale, dynamic_growth_steps=2**31 - 1
    )


def _warn_of_batches_left_out(
    stand_in: keras.optimizers.LossScaleOptimizer, batches_seen: int
) -> None:
    first, last = stand_in.initial_scale, float(ops.convert_to_numpy(stand_in.dynamic_scale))
    if last < first:
        warnings.warn(
            f"`warm_start` has used {batches_seen} batches and left others out: there, gradients "
            f"times Keras's loss scale of {first} were not finite in float16. To use them too, "
            "compile the model with keras.optimizers.LossScaleOptimizer(optimizer, "
            f"initial_scale=...) of {last} or less",
            stacklevel=3,
        )


def _optimizer_of(model: keras.Model) -> AdaptiveOptimizer:
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    if not isinstance(optimizer, AdaptiveOptimizer):
        rule = "compiled with a loss and with keras_yogi.Adam or keras_yogi.Yogi"
        raise checks.reject("model", rule, optimizer)
    if int(ops.convert_to_numpy(optimizer.iterations)) > 0:
        rule = "not yet trained: a warm start would throw its velocities away"
        raise checks.reject(
            "model", rule, f"{int(ops.convert_to_numpy(optimizer.iterations))} steps"
        )
    return optimizer


def _is_of_arrays(x: Any) -> bool:
    return all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(x))


@contextlib.contextmanager
def _untouched(
    model: keras.Model, stand_in: keras.optimizers.Optimizer
) -> Iterator[keras.callbacks.Callback]:
    """Lets `fit` run with another optimizer, with the callback that it must be given, and leaves
    the model afterwards as it was.
    """
    before: list[tuple[keras.Variable, Any]] = []

    def remember(logs: Any = None) -> None:  # as soon as `fit` has built the model
        variables = {id(v): v for v in [*model.variables, *model.metrics_variables]}
        before.extend((v, keras.ops.convert_to_numpy(v)) for v in variables.values())

    optimizer, history = model.optimizer, getattr(model, "history", None)
    model.optimizer, model.train_function = stand_in, None
    try:
        yield keras.callbacks.LambdaCallback(on_train_begin=remember)
    finally:
        model.optimizer, model.history, model.train_function = optimizer, history, None
        for variable, value in before:
            variable.assign(value)
