"""What the slots say of every single weight, and sums over many: pure functions of tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_yogi.diagnostics import reading
from keras_yogi.rules import AdaptiveRule, StepScalars, Tensor


class Look(NamedTuple):
    """Of each weight, in the notation of `keras_yogi.Adam`."""

    effective_learning_rate: Tensor  # η / (√v̂ + ε)
    root: Tensor  # √v̂
    update: Tensor  # what the slots as they stand would add to the weight
    signal_to_noise: Tensor  # |m̂| / √v̂; 0 where m is
    epsilon_dominates: Tensor  # √v̂ < ε
    at_initial_velocity: Tensor  # v = v₀
    untouched: Tensor  # v = v₀ and m = 0: no gradient has come here


def look(
    rule: AdaptiveRule,
    weights: Tensor,
    slots: Sequence[Tensor],
    scalars: StepScalars,
    initial_velocity: Tensor,
) -> Look:
    """Looks at weights of one dtype, and their slots in the rule's order.

    Args:
        rule: whose update it is.
        weights: w.
        slots: momentum, velocity and what else the rule keeps; the root is taken of the last.
        scalars: the learning rate and the bias corrections of the last step that was made.
        initial_velocity: v₀, a scalar.
    """
    momentum, velocity = slots[:2]
    rate = rule.learning_rate_per_weight(tuple(slots), scalars)
    from_zero = ops.zeros_like(weights)
    origin = weights if rule.reads_weights else from_zero
    root = ops.sqrt(slots[-1])
    corrected = root / ops.sqrt(scalars.correction_2)
    no_momentum = ops.equal(momentum, 0.0)
    at_initial = ops.equal(velocity, initial_velocity)
    noise = ops.abs(momentum) / scalars.correction_1 / corrected
    return Look(
        rate * scalars.correction_1,
        corrected,
        rule.descend(origin, tuple(slots), scalars) - origin,
        ops.where(no_momentum, from_zero, noise),
        (root if rule.epsilon_hat else corrected) < rule.epsilon,
        at_initial,
        ops.logical_and(at_initial, no_momentum),
    )


SQUARES = ("weights", "momentum", "velocity", "update")
COUNTS = ("epsilon_dominates", "at_initial_velocity")
EXTREMES = {"least": np.min, "most": np.max, "most_touched": np.max}
"""Of the effective learning rates, and how those of several variables become one."""


def summands(streams: dict[str, Tensor], seen: Look | None) -> dict[str, Tensor]:
    """Of each weight, what is to be summed: squares, and ones where a count goes up.

    Args:
        streams: "weights" and slots by name.
        seen: the same weights, looked at; None where no rule is known.

    Returns:
        As many of `SQUARES` and `COUNTS` as can be had.
    """
    # A velocity is a square already: in float32 its own square is 0 below 1e-23. JAX has no more.
    wide = "float32" if keras.config.backend() == "jax" else "float64"
    everything = streams if seen is None else {**streams, "update": seen.update}
    found = {
        name: ops.square(ops.cast(everything[name], wide)) for name in SQUARES if name in everything
    }
    if seen is not None:
        found |= {name: ops.cast(getattr(seen, name), wide) for name in COUNTS}
    return found


def sums(
    added: dict[str, Tensor], seen: Look | None, owners: Tensor, count: int
) -> tuple[list[str], Tensor]:
    """Sums and extremes over the weights of each variable.

    Args:
        added: what `summands` gives.
        seen: the same weights, looked at; None where no rule is known.
        owners: for each weight the number of its variable, in order.
        count: of variables.

    Returns:
        Names, and a row of values for each: one a variable. `EXTREMES` are of the effective
        learning rates; "most_touched" is -inf where no gradient has come.
    """
    found = {name: reading.sum_of_each(each, owners, count) for name, each in added.items()}
    if seen is not None:
        rate = ops.cast(seen.effective_learning_rate, found["weights"].dtype)
        touched = ops.where(seen.untouched, -np.inf, rate)
        of_each = [reading.max_of_each(each, owners, count) for each in (-rate, rate, touched)]
        found |= zip(EXTREMES, [-of_each[0], *of_each[1:]], strict=True)
    return [*found], ops.stack([*found.values()])
