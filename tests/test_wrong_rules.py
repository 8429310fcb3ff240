"""The tests are tested: optimizers with a known mistake must fail the comparison that ours pass.

The first two are what a well-known textbook prints for TensorFlow: `p − η m̂ / √v̂ + ε`, which
adds ε to the weights, and an Adam that never advances t.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from keras import ops
from support.backend import COMPILED, ENGINES
from support.cases import CASES, LEARNING_RATE
from support.comparison import TOLERANCE, assert_same_trajectory
from support.reference import reference_trajectory
from support.training import hard_gradients, initial_weights, trajectory

import keras_yogi
from keras_yogi.optimizers import AdaptiveOptimizer
from keras_yogi.rules import AdamRule, YogiRule


class EpsilonAddedToWeights:
    def descend(self, weights, slots, scalars):
        return replace(self, epsilon=0.0)._right(weights, slots, scalars) + self.epsilon

    def _right(self, weights, slots, scalars):
        return super().descend(weights, slots, scalars)


class StepNeverAdvanced:
    """Bias correction frozen at step 1: also what counting in a Python int does under `fit`."""

    def scalars(self, learning_rate, step, dtype):
        return super().scalars(learning_rate, 1, dtype)


class StepOneLate:
    def scalars(self, learning_rate, step, dtype):
        return super().scalars(learning_rate, step + 1, dtype)


class EpsilonInsideTheRoot:
    def learning_rate_per_weight(self, slots, scalars):
        root = ops.sqrt(slots[-1] / scalars.correction_2 + self.epsilon)
        return scalars.learning_rate / scalars.correction_1 / root


class VelocityNeverMoves:
    def second_moments(self, gradient, momentum, velocity, *others):
        return (velocity, *others)


class OtherRulesVelocity:
    """Adam's velocity in Yogi, Yogi's in Adam."""

    def second_moments(self, gradient, momentum, velocity, *others):
        other = AdamRule if isinstance(self, YogiRule) else YogiRule
        return other(beta_2=self.beta_2).second_moments(gradient, momentum, velocity)


class NoSign:
    def second_moments(self, gradient, momentum, velocity, *others):
        return (velocity + (1 - self.beta_2) * ops.square(gradient),)


class OtherSign:
    def second_moments(self, gradient, momentum, velocity, *others):
        square = ops.square(gradient)
        return (ops.abs(velocity - (1 - self.beta_2) * ops.sign(square - velocity) * square),)


class ZeroForV:
    """The root of the momentum's square: v is kept, and not used."""

    def learning_rate_per_weight(self, slots, scalars):
        return super().learning_rate_per_weight((slots[0], ops.square(slots[0])), scalars)


def with_fields(**fields):
    return lambda rule: replace(rule, **fields)


# A mistake is a class that is put before the right rule, or other values of its fields.
FOR_BOTH = {
    **{
        wrong.__name__: wrong
        for wrong in (
            EpsilonAddedToWeights,
            StepNeverAdvanced,
            StepOneLate,
            EpsilonInsideTheRoot,
            VelocityNeverMoves,
            OtherRulesVelocity,
            NoSign,
            ZeroForV,
        )
    },
    "no bias correction": with_fields(bias_correction="none"),
    "v not corrected": with_fields(bias_correction="momentum"),
    "epsilon before the bias correction": with_fields(epsilon_hat=True),
    "no epsilon": with_fields(epsilon=1e-12),
    "no momentum": with_fields(beta_1=0.0),
    "another memory": with_fields(beta_2=0.91),
}
FOR_YOGI = {
    **FOR_BOTH,
    "OtherSign": OtherSign,
    "from zero": with_fields(initial_accumulator_value=0.0),
    "another activation": with_fields(activation="tanh"),
}
WRONG = [("adam", name) for name in FOR_BOTH] + [("yogi", name) for name in FOR_YOGI]


def rule_of(case):
    rules = {"adam": AdamRule, "yogi": YogiRule}
    return rules[case.name](**case.hyperparameters)


def wrong_rule(case, name):
    wrong, right = FOR_YOGI[name], rule_of(case)
    if not isinstance(wrong, type):
        return wrong(right)
    mutant = dataclass(frozen=True)(type(name, (wrong, type(right)), {}))
    return mutant(**case.hyperparameters)


def compare(case, rule, engine):
    weights, gradients = initial_weights(), hard_gradients()
    optimizer = AdaptiveOptimizer(LEARNING_RATE, rule, **ENGINES[engine])
    assert_same_trajectory(
        trajectory(optimizer, weights, gradients, COMPILED),
        reference_trajectory(case.keras_reference(weights), gradients),
        TOLERANCE["float32"],
    )


@pytest.mark.parametrize(("case", "wrong"), WRONG)
def test_wrong_rule_is_caught(case, wrong):
    with pytest.raises(AssertionError, match="is off by"):
        compare(CASES[case], wrong_rule(CASES[case], wrong), "unfused")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("case", "wrong"), [("adam", "NoSign"), ("yogi", "EpsilonAddedToWeights")])
def test_wrong_rule_is_caught_in_every_engine(case, wrong, engine):
    with pytest.raises(AssertionError, match="is off by"):
        compare(CASES[case], wrong_rule(CASES[case], wrong), engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", ["adam", "yogi"])
def test_right_rule_passes_the_same_comparison(case, engine):
    compare(CASES[case], rule_of(CASES[case]), engine)


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
