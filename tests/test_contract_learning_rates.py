"""Learning rates set by hand, by a schedule and by a callback, in float64 by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import (
    LEARNING_RATE,
    KerasReference,
    assert_agrees,
    default_case,
    in_eager_and_graph,
    plain_case,
    train,
    variables_of,
)
from keras import ops
from reference import MODES, TOLERANCE, hard_gradients, initial_weights

# Exact dyadic numbers: Keras keeps the rate in float32, whatever the weights are.
RATES = [2.0 ** -(3 + i % 4) for i in range(15)]


@in_eager_and_graph
@plain_case
def test_learning_rate_set_by_hand_counts_at_once(case, mode):
    weights, gradients = initial_weights(), hard_gradients()
    reference = KerasReference(case, weights)
    optimizer, variables = case.optimizer(), variables_of(weights, "float64")
    optimizer.build(variables)
    traced = []

    def apply(*row):
        traced.append(row)
        optimizer.apply(list(row), variables)

    step = MODES[mode](apply)
    for i, (rate, row) in enumerate(zip(RATES, gradients, strict=True)):
        if i % 2:
            optimizer.learning_rate = rate
        else:
            optimizer.learning_rate.assign(rate)
        reference.learning_rate = rate
        step(*[tf.constant(g, "float64") for g in row])
        reference.apply(row)
    assert_agrees(optimizer, variables, reference, TOLERANCE["float64"])
    assert len(traced) == (1 if mode == "graph" else len(gradients))


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
        reference = KerasReference(case, [w.astype("float32") for w in weights], **arguments)
        train(optimizer, variables, gradients)
        for step, row in enumerate(gradients):
            reference.learning_rate = by_hand(step)
            reference.apply(row)
        # The schedule itself computes in float32; near the cosine's end that is 1e-6 of it.
        assert_agrees(optimizer, variables, reference, 4 * TOLERANCE["float32"])


@in_eager_and_graph
@plain_case
def test_callable_learning_rate(case, mode):
    weights, gradients = initial_weights(), hard_gradients()
    rate = tf.Variable(1.0, dtype="float32")
    optimizer, variables = case.optimizer(lambda: rate / 2), variables_of(weights, "float64")
    reference = KerasReference(case, weights)
    optimizer.build(variables)
    step = MODES[mode](lambda *row: optimizer.apply(list(row), variables))
    for value, row in zip(RATES, gradients, strict=True):
        rate.assign(value)
        reference.learning_rate = value / 2
        step(*[tf.constant(g, "float64") for g in row])
        reference.apply(row)
    assert_agrees(optimizer, variables, reference, TOLERANCE["float64"])


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


@pytest.mark.parametrize("compile_arguments", [{}, {"jit_compile": True}])
@pytest.mark.parametrize(
    ("callback", "rates"), LEARNING_RATE_CALLBACKS.values(), ids=LEARNING_RATE_CALLBACKS
)
@default_case
def test_callbacks_that_change_the_learning_rate(case, callback, rates, compile_arguments):
    """The loss is the mean output of a linear layer, its gradient the mean input of the batch."""
    x = np.random.default_rng(13).normal(size=(16, 3)).astype("float32")
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile(case.optimizer(), loss=lambda y, p: ops.mean(p), **compile_arguments)
    model.fit(x, x[:, :1], batch_size=4, epochs=4, shuffle=False, verbose=0, callbacks=[callback()])
    reference = KerasReference(case, [np.ones((3, 1))])
    for rate in rates:
        reference.learning_rate = rate
        for batch in np.split(x.astype("float64"), 4):
            reference.apply([batch.mean(axis=0)[:, None]])
    # The float32 mean of four numbers differs from the float64 one by a rounding or two.
    assert_agrees(model.optimizer, layer.weights, reference, 2 * TOLERANCE["float32"])
