"""Finds trainings that do not start, because v₀ or ε is far larger than what gradients make of v.

Yogi's default v₀ = 1e-6 and ε = 1e-3 are meant for gradients of 1e-3 and more. An Embedding under a
mean loss has smaller ones, because each of its rows has but a small part in the loss.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_yogi.statistics.collector import Sample, StatisticsCollector
from keras_yogi.statistics.device_read import number
from keras_yogi.statistics.sampling import quantiles

HELD_BACK_SHARE = 0.99
"""Share of the weights that gradients have reached where √v̂ < ε or v ≤ 2 v₀."""
SMALL_STEP = 0.05
"""What |m̂| / (√v̂ + ε), the last step in units of η, is below in 99 % of these weights. Where v
follows the gradients, it is larger in many."""
MIN_STEPS = 20
"""Steps before which momentum and velocity are those of few batches."""


def is_held_back(samples: Iterable[Sample]) -> bool:
    """Whether v₀ or ε makes the steps of nearly all weights small that gradients have reached."""
    held, steps = [], []
    for each in samples:
        if "relative_step" in each.terms:
            held.append(each.reached("below_epsilon")[0] | each.reached("near_initial")[0])
            steps.append(each.reached("relative_step"))
    if not any(map(len, held)):
        return False
    step, multiplicity = map(np.concatenate, zip(*steps, strict=True))
    share = np.average(np.concatenate(held), weights=multiplicity)
    return bool(share >= HELD_BACK_SHARE and quantiles(step, multiplicity, [0.99])[0] < SMALL_STEP)


def warning_for(optimizer: Any) -> str | None:
    """One sentence with the arguments to change, if v₀ or ε holds back the training; else None.

    It reads a sample, and changes nothing. `optimizer` is one of ours, built.
    """
    if number(optimizer.iterations) < MIN_STEPS:
        return None
    if not is_held_back(StatisticsCollector(optimizer).estimate(compiled=False).samples.values()):
        return None
    initial = getattr(optimizer.rule, "initial_accumulator_value", 0.0)
    v0 = f"initial_accumulator_value={initial:g} and " if initial else ""
    return (
        "Nearly all weights hardly move, because their gradients are far smaller than those that "
        f"{v0}epsilon={optimizer.rule.epsilon:g} are meant for: try {remedy(optimizer.rule)}"
    )


def remedy(rule: Any) -> str:
    """The arguments to try."""
    epsilon = f"epsilon={min(1e-6, rule.epsilon / 1000):g}"
    has_initial = getattr(rule, "initial_accumulator_value", 0.0)
    return f"initial_accumulator_value=0.0, {epsilon}" if has_initial else epsilon
