"""Learning rates set by hand, by a schedule and by a callback, in float64 by hand."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import ops
from support.backend import FIT_MODES, MODES, in_eager_and_compiled, tensor
from support.cases import CASES, LEARNING_RATE, plain_case
from support.comparison import TOLERANCE, assert_agrees
from support.training import hard_gradients, initial_weights, ones_of, take_steps, variables_of

import keras_yogi

pytestmark = pytest.mark.float64

# Exact dyadic numbers: Keras keeps the rate in float32, whatever the weights are.
RATES = [2.0 ** -(3 + i % 4) for i in range(15)]


@in_eager_and_compiled
@plain_case
def test_learning_rate_set_by_hand_counts_at_once(case, mode):
    weights, gradients = initial_weights(), hard_gradients()
    reference = case.keras_reference(weights)
    traced = []

    class Counting(case.optimizer_class):
        def apply(self, grads, trainable_variables=None):
            traced.append(grads)
            super().apply(grads, trainable_variables)

    optimizer = replace(case, optimizer_class=Counting).optimizer()
    variables = variables_of(weights, "float64")
    optimizer.build(variables)
    step = MODES[mode](optimizer, variables)
    for i, (rate, row) in enumerate(zip(RATES, gradients, strict=True)):
        if i % 2:
            optimizer.learning_rate = rate
        else:
            optimizer.learning_rate.assign(rate)
        step([tensor(g, "float64") for g in row])
        reference.apply(row, rate)
    assert_agrees(optimizer, variables, reference, TOLERANCE["float64"])
    assert len(traced) == (len(gradients) if mode == "eager" else 1)


schedules = keras.optimizers.schedules
SCHEDULES = {
    "exponential": (
        schedules.ExponentialDecay(0.25, decay_steps=2, decay_rate=0.5),
        lambda step: 0.25 * 0.5 ** (step / 2),
    ),
    "staircase": (
        schedules.ExponentialDecay(0.25, decay_steps=3, decay_rate=0.5, staircase=True),
        lambda step: 0.25 * 0.5 ** (step // 3),
    ),
    "piecewise": (
        schedules.PiecewiseConstantDecay([2, 5], [0.25, 0.5, 0.125]),
        lambda step: 0.25 if step <= 2 else 0.5 if step <= 5 else 0.125,
    ),
    "cosine": (
        schedules.CosineDecay(0.25, decay_steps=10),
        lambda step: 0.125 * (1 + np.cos(np.pi * min(step, 10) / 10)),
    ),
}


@pytest.mark.parametrize(("schedule", "by_hand"), SCHEDULES.values(), ids=SCHEDULES)
@plain_case
def test_schedules(case, schedule, by_hand):
    """Step 0 of a schedule is the first step; with accumulation it counts every call."""
    weights, gradients = initial_weights(), hard_gradients()
    for arguments in ({}, {"gradient_accumulation_steps": 2}):
        optimizer, variables = case.optimizer(schedule, **arguments), variables_of(weights)
        as_stored = [w.astype("float32") for w in weights]
        reference = case.keras_reference(as_stored, **arguments)
        take_steps(optimizer, variables, gradients)
        for step, row in enumerate(gradients):
            reference.apply(row, by_hand(step))
        # The schedule itself computes in float32; near the cosine's end that is 1e-6 of it.
        assert_agrees(optimizer, variables, reference, 4 * TOLERANCE["float32"])


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "jit"])
@plain_case
def test_callable_learning_rate(case, mode):
    """What it reads is read in every step. (jax.jit would keep what was read as it traced.)"""
    weights, gradients = initial_weights(), hard_gradients()
    rate = keras.Variable(1.0, dtype="float32")
    optimizer, variables = case.optimizer(lambda: rate.value / 2), variables_of(weights, "float64")
    reference = case.keras_reference(weights)
    optimizer.build(variables)
    step = MODES[mode](optimizer, variables)
    for value, row in zip(RATES, gradients, strict=True):
        rate.assign(value)
        step([tensor(g, "float64") for g in row])
        reference.apply(row, value / 2)
    assert_agrees(optimizer, variables, reference, TOLERANCE["float64"])


@in_eager_and_compiled
@plain_case
def test_a_learning_rate_is_not_rounded_to_float32_for_float64_weights(case, mode):
    """The first step of Adam, and of Yogi from zero, is η itself where ε is 0."""
    start = {"initial_accumulator_value": 0.0} if case.optimizer_class is keras_yogi.Yogi else {}
    optimizer = case.optimizer(lambda: 0.01, epsilon=0.0, **start)
    variables = ones_of((3,), (2, 2), (250, 250), dtype="float64")
    take_steps(optimizer, variables, [[np.ones(v.shape) for v in variables]], mode)
    for variable in variables:
        np.testing.assert_allclose(variable.numpy(), 0.99, rtol=0, atol=1e-14)


FACTOR = 0.5
LEARNING_RATE_CALLBACKS = {
    "LearningRateScheduler": (
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * FACTOR),
        [LEARNING_RATE * FACTOR ** (epoch + 1) for epoch in range(4)],
    ),
    # Nothing improves by 1e9: the second epoch and every later one end with a reduction.
    "ReduceLROnPlateau": (
        lambda: keras.callbacks.ReduceLROnPlateau("loss", FACTOR, patience=1, min_delta=1e9),
        [LEARNING_RATE * f for f in [1, 1, FACTOR, FACTOR**2]],
    ),
}


@pytest.mark.parametrize(
    ("case", "callback", "mode"),
    [
        *(("yogi", "LearningRateScheduler", mode) for mode in FIT_MODES),
        ("adam", "ReduceLROnPlateau", list(FIT_MODES)[-1]),
    ],
)
def test_callbacks_that_change_the_learning_rate(case, callback, mode):
    """The loss is the mean output of a linear layer, its gradient the mean input of the batch."""
    x = np.random.default_rng(13).normal(size=(16, 3)).astype("float32")
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((3,)), layer])
    case, (callback, rates) = CASES[case], LEARNING_RATE_CALLBACKS[callback]
    model.compile(case.optimizer(), loss=lambda y, p: ops.mean(p), **FIT_MODES[mode])
    model.fit(x, x[:, :1], batch_size=4, epochs=4, shuffle=False, verbose=0, callbacks=[callback()])
    reference = case.keras_reference([np.ones((3, 1))])
    for rate in rates:
        for batch in np.split(x.astype("float64"), 4):
            reference.apply([batch.mean(axis=0)[:, None]], rate)
    # The float32 mean of four numbers differs from the float64 one by a rounding or two.
    assert_agrees(model.optimizer, layer.weights, reference, 2 * TOLERANCE["float32"])
