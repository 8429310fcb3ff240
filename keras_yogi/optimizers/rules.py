"""The update rules: pure functions of tensors.

A rule knows no variable, no optimizer and no backend. `g` is the gradient, `m` the first moment
(slot "momentum"), `v` the second (slot "velocity"), `w` the weights, all of one shape and dtype.
"""

import math
from typing import Any, NamedTuple

from keras import ops

Tensor = Any


def moving_average(average: Tensor, value: Tensor, beta: float) -> Tensor:
    """`β average + (1 − β) value`, written as a correction so that β is rounded once."""
    if beta == 0.0:  # average + (value − average) would be rounded
        return value
    return average + (value - average) * (1.0 - beta)


def adam_velocity(v: Tensor, g: Tensor, beta_2: float) -> Tensor:
    """v forgets: however large it was, it decays to g² at the rate β₂ (Kingma & Ba, Alg. 1)."""
    return moving_average(v, ops.square(g), beta_2)


def yogi_velocity(v: Tensor, g: Tensor, beta_2: float, activation: str = "sign") -> Tensor:
    """v moves towards g² by at most (1 − β₂) g² a step (Zaheer et al., Alg. 2)."""
    square = ops.square(g)
    gap = square - v
    towards = ops.sign(gap) if activation == "sign" else _tanh(gap * 10.0)
    return v + towards * square * (1.0 - beta_2)


def _tanh(x: Tensor) -> Tensor:
    """keras.ops.tanh would give float32 for float64 on JAX."""
    minus_twice = ops.expm1(ops.abs(x) * -2.0)
    return ops.sign(x) * -minus_twice / (minus_twice + 2.0)


class StepScalars(NamedTuple):
    """What is the same for every weight in one step; scalars of the weights' dtype."""

    learning_rate: Tensor  # η
    correction_1: Tensor  # 1 − β₁ᵗ
    correction_2: Tensor  # 1 − β₂ᵗ


def bias_correction(beta: float, step: Tensor) -> Tensor:
    """1 − βᵗ, the weight that a moving average from zero has gathered after t = `step` steps.

    Computed as −expm1(t ln β): 1 − 0.999 in float32 would be wrong by 1.3e-5, relative.
    """
    if beta == 0.0:  # ln 0 is not a number; one step has gathered everything
        return ops.ones_like(step)
    return -ops.expm1(step * math.log(beta))


def learning_rate_per_weight(
    v: Tensor, scalars: StepScalars, epsilon: float, epsilon_hat: bool
) -> Tensor:
    """What m is multiplied with in the update of each weight.

    η / (1 − β₁ᵗ) / (√v̂ + ε) with v̂ = v / (1 − β₂ᵗ), or, with `epsilon_hat`, the same with ε
    added to √v before the bias correction (Kingma & Ba, end of section 2).
    """
    root = ops.sqrt(v)
    scale = ops.sqrt(scalars.correction_2)
    denominator = (root + epsilon) / scale if epsilon_hat else root / scale + epsilon
    return scalars.learning_rate / scalars.correction_1 / denominator


def proximal(w: Tensor, rate: Tensor, l1: float, l2: float) -> Tensor:
    """argmin over x of ‖x − w‖² / (2 rate) + l1 |x| + l2 x² / 2, for every weight on its own."""
    shrunk = ops.sign(w) * ops.relu(ops.abs(w) - rate * l1)
    return shrunk / (rate * l2 + 1.0)
