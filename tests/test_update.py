"""The update against the float64 reference: weights and slots, at every step, on every road."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import (
    MODES,
    TOLERANCE,
    assert_same_trajectory,
    hard_gradients,
    initial_weights,
    reference_trajectory,
    trajectory,
)

import keras_yogi
from keras_yogi import rules

LEARNING_RATE = 0.0625  # exact in float32, which is what Keras keeps a learning rate in

CASES = {
    "adam": dict(rule="adam", beta_2=0.9),
    "adam, defaults": dict(rule="adam"),
    "adam, epsilon_hat": dict(rule="adam", beta_2=0.9, epsilon=1e-2, epsilon_hat=True),
    "adam, amsgrad": dict(rule="adam", beta_2=0.9, amsgrad=True),
    "adam, no momentum": dict(rule="adam", beta_1=0.0, beta_2=0.9),
    "adam, no memory": dict(rule="adam", beta_1=0.5, beta_2=0.0, epsilon=1e-2),
    "yogi": dict(rule="yogi", beta_2=0.9, epsilon=1e-3, initial_accumulator_value=1e-6),
    "yogi, from zero": dict(rule="yogi", beta_2=0.9, epsilon=1e-3, initial_accumulator_value=0.0),
    "yogi, from one": dict(rule="yogi", beta_2=0.9, epsilon=1e-2, initial_accumulator_value=1.0),
    "yogi, epsilon_hat": dict(
        rule="yogi", beta_2=0.25, epsilon=1e-2, epsilon_hat=True, initial_accumulator_value=1e-6
    ),
    "yogi, tanh": dict(
        rule="yogi", beta_2=0.9, epsilon=1e-3, activation="tanh", initial_accumulator_value=0.0
    ),
    "yogi, proximal": dict(
        rule="yogi",
        beta_2=0.9,
        epsilon=1e-3,
        initial_accumulator_value=1e-6,
        l1_regularization_strength=0.5,
        l2_regularization_strength=0.25,
    ),
}


def optimizer_of(rule, fused=False, **hyperparameters):
    return {"adam": keras_yogi.Adam, "yogi": keras_yogi.Yogi}[rule](
        LEARNING_RATE, fused=fused, **hyperparameters
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_update_is_the_published_one(case, fused, mode, dtype):
    weights, gradients = initial_weights(), hard_gradients()
    actual = trajectory(optimizer_of(fused=fused, **case), weights, gradients, mode, dtype)
    weights = [w.astype(dtype) for w in weights]
    expected = reference_trajectory(weights, gradients, learning_rate=LEARNING_RATE, **case)
    assert_same_trajectory(actual, expected, TOLERANCE[dtype])


def test_the_gradients_are_hard():
    """They hold what the comparison needs: zeros, and velocities on both sides of g²."""
    gradients = hard_gradients()
    states = reference_trajectory(
        initial_weights(), gradients, learning_rate=LEARNING_RATE, **CASES["yogi"]
    )
    above = below = zero = 0
    for state, row in zip(states, gradients, strict=False):
        for variable, g in zip(state, row, strict=True):
            above += np.sum(np.square(g) > variable["velocity"])
            below += np.sum((np.square(g) < variable["velocity"]) & (g != 0))
            zero += np.sum(g == 0)
    assert min(above, below, zero) > 20


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.9, 0.999, 1 - 1e-6])
def test_bias_correction_keeps_its_digits_in_float32(beta):
    """1 − βᵗ computed in float32 loses them: for β = 0.999 and t = 1 it is off by 1.3e-5."""
    for step in [1, 2, 10, 1000, 10**7]:
        exact = -np.expm1(np.float64(step) * np.log(beta)) if beta else 1.0
        ours = float(rules.moving_average_weight(beta, np.float32(step)))
        assert ours == pytest.approx(exact, rel=3e-7)  # a few float32 roundings of 6e-8


@pytest.mark.parametrize(
    ("arguments", "share"),
    [({}, 0.03), ({"initial_accumulator_value": 0.0, "epsilon": 1e-6}, 1.0)],
)
def test_first_step_of_yogi_on_a_small_gradient(arguments, share):
    """What its docstring says: 0.001 / (√(1e-6 / 0.001) + 0.001) = 0.031 of η, by default."""
    states = trajectory(keras_yogi.Yogi(1.0, **arguments), [np.zeros(1)], [[np.full(1, 1e-3)]])
    assert -states[-1][0]["weights"] == pytest.approx(share, rel=0.03)  # "3 %" has one digit


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("optimizer_class", "start"),
    [(keras_yogi.Adam, {}), (keras_yogi.Yogi, {"initial_accumulator_value": 2.0**-20})],
)
def test_half_precision_rounds_only_what_it_stores(optimizer_class, start, dtype):
    """One step from slots that half precision holds: the float32 step, rounded once at the end."""
    weights, gradients = [np.array([0.5, -2.0, 3.0])], [[np.array([2.0**-10, 0.5, -40.0])]]
    single = trajectory(optimizer_class(0.5, **start), weights, gradients)
    half = trajectory(optimizer_class(0.5, **start), weights, gradients, dtype=dtype)
    for name in ("weights", "momentum", "velocity"):
        np.testing.assert_array_equal(
            half[1][0][name], tf.constant(single[1][0][name], dtype).numpy(), err_msg=name
        )


def test_an_average_that_keeps_nothing_is_its_value_to_the_bit():
    """1 + (1e-9 − 1) would be 0 in float32."""
    average, value = np.float32(1.0), np.float32(1e-9)
    assert rules.moving_average(average, value, 0.0) == value


def test_the_scalars_of_a_step_are_computed_once(monkeypatch):
    """One variable after another, but bias corrections once a dtype; a step that fails leaves none
    behind for the next one.
    """
    computed = []

    class Counting(keras_yogi.Adam):
        def step_scalars(self, learning_rate, dtype, step=None):
            computed.append(dtype)
            return super().step_scalars(learning_rate, dtype, step)

    def trained(optimizer, fail=False):
        dtypes = ("float32", "float64", "float16", "float32")  # half precision in float32
        variables = [keras.Variable(np.ones(3), dtype=dtype) for dtype in dtypes]
        gradients = [tf.cast([1.0, -2.0, 0.5], v.dtype) for v in variables]
        optimizer.build(variables)
        if fail:
            optimizer.learning_rate = 100.0
            with monkeypatch.context() as context:
                context.setattr(optimizer, "new_values", lambda *values: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    optimizer.apply(gradients)
            optimizer.learning_rate = 0.5
        for _ in range(2):
            optimizer.apply(gradients)
        return [v.numpy().tobytes() for v in variables]

    expected = trained(keras_yogi.Adam(0.5, fused=False))
    assert trained(Counting(0.5, fused=False)) == expected
    assert computed == ["float32", "float64"] * 2
    assert trained(Counting(0.5, fused=False), fail=True) == expected


def test_a_step_leaves_nothing_in_checkpoints():
    """TensorFlow saves lists and dictionaries that are attributes, and what is in them."""
    optimizer = keras_yogi.Adam(0.5, fused=False)
    variable = keras.Variable(np.ones(3))
    optimizer.build([variable])
    names = set(optimizer._trackable_children())
    optimizer.apply([tf.ones(3)])
    tf.function(lambda: optimizer.apply([tf.ones(3)]))()
    assert set(optimizer._trackable_children()) == names
    assert not {name for name in names if "shared" in name}
