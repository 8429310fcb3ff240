"""The tests are tested: optimizers with a known mistake must fail the comparison that ours pass.

The first two are what a well-known textbook prints for TensorFlow: `p − η m̂ / √v̂ + ε`, which
adds ε to the weights, and an Adam that never advances t.
"""

import functools

import numpy as np
import pytest
from keras import ops
from reference import (
    TOLERANCE,
    assert_same_trajectory,
    hard_gradients,
    initial_weights,
    reference_trajectory,
    trajectory,
)

import keras_yogi
from keras_yogi.optimizers import rules

LEARNING_RATE = 0.0625
HYPERPARAMETERS = dict(beta_2=0.9, epsilon=1e-3)


class EpsilonAddedToWeights:
    def new_values(self, gradient, weights, slots, scalars):
        epsilon, self.epsilon = self.epsilon, 0.0
        weights, slots = super().new_values(gradient, weights, slots, scalars)
        self.epsilon = epsilon
        return weights + epsilon, slots


class StepNeverAdvanced:
    """Bias correction frozen at step 1: also what counting in a Python int does under `fit`."""

    def step_scalars(self, learning_rate, dtype):
        with_t = functools.partial(rules.bias_correction, step=ops.ones((), dtype))
        return rules.StepScalars(learning_rate, with_t(self.beta_1), with_t(self.beta_2))


class StepOneLate:
    @property
    def iterations(self):
        return super().iterations + 1


class NoBiasCorrection:
    def step_scalars(self, learning_rate, dtype):
        one = ops.ones((), dtype)
        return rules.StepScalars(learning_rate, one, one)


class EpsilonInsideTheRoot:
    def new_values(self, gradient, weights, slots, scalars):
        m = rules.moving_average(slots[0], gradient, self.beta_1)
        (v,) = self.second_moments(gradient, m, *slots[1:])
        root = ops.sqrt(v / scalars.correction_2 + self.epsilon)
        return weights - scalars.learning_rate * m / scalars.correction_1 / root, (m, v)


class EpsilonBeforeBiasCorrection:
    def __init__(self, *args, **kwargs):
        super().__init__(*args, epsilon_hat=True, **kwargs)


class NoEpsilon:
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "epsilon": 1e-12})


class NoMomentum:
    def __init__(self, *args, **kwargs):
        super().__init__(*args, beta_1=0.0, **kwargs)


class VelocityNeverMoves:
    def second_moments(self, gradient, momentum, velocity, *others):
        return (velocity, *others)


class OtherRulesVelocity:
    """Adam's velocity in Yogi, Yogi's in Adam."""

    def second_moments(self, gradient, momentum, velocity, *others):
        other = rules.adam_velocity if isinstance(self, keras_yogi.Yogi) else rules.yogi_velocity
        return (other(velocity, gradient, self.beta_2),)


class NoSign:
    def second_moments(self, gradient, momentum, velocity, *others):
        return (velocity + (1 - self.beta_2) * ops.square(gradient),)


class OtherSign:
    def second_moments(self, gradient, momentum, velocity, *others):
        square = ops.square(gradient)
        return (ops.abs(velocity - (1 - self.beta_2) * ops.sign(square - velocity) * square),)


class FromZero:
    def initial_velocity(self, shape, dtype):
        return ops.zeros(shape, dtype)


FOR_BOTH = [
    EpsilonAddedToWeights,
    StepNeverAdvanced,
    StepOneLate,
    NoBiasCorrection,
    EpsilonInsideTheRoot,
    EpsilonBeforeBiasCorrection,
    NoEpsilon,
    NoMomentum,
    VelocityNeverMoves,
    OtherRulesVelocity,
    NoSign,
]
WRONG = [
    *((wrong, keras_yogi.Adam) for wrong in FOR_BOTH),
    *((wrong, keras_yogi.Yogi) for wrong in [*FOR_BOTH, OtherSign, FromZero]),
]


def compare(optimizer, dtype="float32"):
    rule = "yogi" if isinstance(optimizer, keras_yogi.Yogi) else "adam"
    v0 = 1e-6 if rule == "yogi" else 0.0
    weights, gradients = initial_weights(), hard_gradients()
    assert_same_trajectory(
        trajectory(optimizer, weights, gradients, "graph", dtype),
        reference_trajectory(
            weights,
            gradients,
            rule=rule,
            learning_rate=LEARNING_RATE,
            initial_accumulator_value=v0,
            **HYPERPARAMETERS,
        ),
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize(("wrong", "right"), WRONG, ids=lambda c: c.__name__)
def test_wrong_rule_is_caught(wrong, right, fused):
    class Mutant(wrong, right):
        pass

    with pytest.raises(AssertionError, match="is off by"):
        compare(Mutant(LEARNING_RATE, fused=fused, **HYPERPARAMETERS))


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("right", [keras_yogi.Adam, keras_yogi.Yogi])
def test_right_rule_passes_the_same_comparison(right, fused):
    compare(right(LEARNING_RATE, fused=fused, **HYPERPARAMETERS))


def test_textbook_adds_epsilon_to_weights_and_ours_does_not():
    """Where there is no gradient, nothing may move. The textbook's TensorFlow Yogi drifts by ε."""
    steps, epsilon = 100, 1e-3
    gradients = [[np.ones(1)]] + [[np.zeros(1)]] * steps
    m, v, textbook = 0.0, 0.0, 0.0
    for t, ((g,),) in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, v + 0.001 * np.sign(g * g - v) * g * g
        textbook = textbook - 0.0 * m / (1 - 0.9**t) / np.sqrt(v / (1 - 0.999**t)) + epsilon
    assert textbook == pytest.approx((steps + 1) * epsilon)
    ours = trajectory(keras_yogi.Yogi(0.0, epsilon=epsilon), [np.zeros(1)], gradients)
    assert ours[-1][0]["weights"] == 0.0


def test_textbook_adam_never_advances_t_and_ours_does():
    """A constant gradient of 1 and ε = 0 must move a weight by η a step: 1.25 in ten. With t = 1
    forever the textbook's Adam moves it by 2.185.
    """
    eta, steps = 0.125, 10
    m = v = textbook = 0.0
    for _ in range(steps):
        m, v = 0.9 * m + 0.1, 0.999 * v + 0.001
        textbook -= eta * (m / (1 - 0.9)) / np.sqrt(v / (1 - 0.999))
    ours = trajectory(keras_yogi.Adam(eta, epsilon=0.0), [np.zeros(1)], [[np.ones(1)]] * steps)
    assert ours[-1][0]["weights"] == pytest.approx(-eta * steps, rel=1e-6)
    assert textbook == pytest.approx(-2.1851, abs=1e-4)
