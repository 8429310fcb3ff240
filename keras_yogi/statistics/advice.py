"""Faults that the statistics show, in words. Every threshold is a constant here."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_yogi.rules import AdamRule
from keras_yogi.statistics.collector import Statistics, StatisticsCollector
from keras_yogi.statistics.optimizer_view import OptimizerView
from keras_yogi.statistics.sampling import quantiles
from keras_yogi.statistics.silent_start import HELD_BACK_SHARE, MIN_STEPS, is_held_back, remedy

GROWTH = 1000.0
"""How many times an effective learning rate may be what it was, or what it is elsewhere."""
STALE_SIGNAL = 1e-3
"""|m̂| / √v̂ below which the last gradient of a weight lies far back: at β₁ = 0.9, 50 steps."""
STALE_SHARE = 1e-3
"""Share of a variable's weights from which on they are not single ones."""
INITIAL_ROWS = 0.5
"""Share of an embedding's rows whose slots hold their initial values."""
UPDATE_RATIO = 0.1
"""Norm of the update over norm of the weights, of variables with two dimensions or more."""
SKIPPED_SHARE = 0.01
"""Share of the steps that `skip_nonfinite` has left out."""


def warnings(
    collector: StatisticsCollector, statistics: Statistics, earlier: dict[str, float]
) -> list[str]:
    """What is wrong, one sentence each.

    Args:
        collector: what the statistics are from.
        statistics: the figures now.
        earlier: `high_rates` of earlier statistics; empty without any.
    """
    found = list(_skipped(statistics))
    if statistics.step == 0:
        return found
    growth = {
        name: rate / earlier[name]
        for name, rate in high_rates(collector, statistics).items()
        if earlier.get(name)
    }
    for name in collector.variables:
        found += _of_variable(collector, statistics, name, growth.get(name, 0.0))
    return found


def high_rates(collector: StatisticsCollector, statistics: Statistics) -> dict[str, float]:
    """By variable, the 99.9th percentile of 1 / (√v̂ + ε): a schedule of η has no part in it."""
    found = {}
    for name, figures in statistics.variables.items():
        rate = statistics.learning_rates[collector.view_of[name].optimizer.name]
        if rate and "effective_lr_p99_9" in figures:
            found[name] = figures["effective_lr_p99_9"] / rate
    return found


def _skipped(statistics: Statistics) -> Iterator[str]:
    skipped = int(statistics.model["skipped_steps"])
    total = statistics.step + skipped
    if skipped and skipped / total >= SKIPPED_SHARE:
        yield (
            f"{skipped} of {total} steps were skipped, because a gradient was not finite: lower "
            "the learning rate or look at the data"
        )


def _of_variable(
    collector: StatisticsCollector, statistics: Statistics, name: str, growth: float
) -> Iterator[str]:
    figures, shape = statistics.variables[name], collector.variables[name].shape
    if not np.all(np.isfinite([value for key, value in figures.items() if key.endswith("_norm")])):
        yield f"`{name}` or its slots hold NaN or infinity"
        return
    if figures.get("reached_share") == 0:
        yield f"no gradient has reached `{name}`"
        return
    if "effective_lr_max" in figures:
        yield from _forgetting(collector, statistics, name)
        if growth >= GROWTH:
            yield (
                f"the effective learning rate of `{name}` has grown: its 99.9th percentile is "
                f"{growth:,.0f} times that of the earlier report: "
                f"{_smaller_rates(collector.view_of[name])}"
            )
        yield from _domination(collector.view_of[name].rule, statistics, name)
    rows = figures.get("initial_rows", 0.0)
    if rows and rows >= INITIAL_ROWS * shape[0]:
        yield (
            f"{rows:,.0f} of the {shape[0]:,} rows of `{name}` have the slots they started with: "
            "no gradient has reached them, or only a small one, long ago"
        )
    ratio = figures.get("update_to_weight_ratio", 0.0)
    if len(shape) >= 2 and figures["weight_norm"] and ratio >= UPDATE_RATIO:
        yield (
            f"one update changes `{name}` by {_percent(ratio)} of its norm: "
            "the learning rate is too large for it"
        )


def _domination(rule: Any, statistics: Statistics, name: str) -> Iterator[str]:
    epsilon_share = statistics.variables[name]["epsilon_share"]
    if epsilon_share >= HELD_BACK_SHARE:
        yield (
            f"ε dominates {_percent(epsilon_share)} of `{name}`: it trains like SGD with "
            f"momentum; a smaller epsilon lets its second moment act: try {remedy(rule)}"
        )
    elif statistics.step >= MIN_STEPS and is_held_back([statistics.samples[name]]):
        share = _percent(statistics.variables[name]["initial_velocity_share"])
        yield (
            f"v₀ dominates {share} of `{name}`: its gradients are too small to change the "
            f"velocity, and it hardly moves; try {remedy(rule)}"
        )


def _forgetting(
    collector: StatisticsCollector, statistics: Statistics, name: str
) -> Iterator[str]:
    view, (terms, _) = collector.view_of[name], statistics.samples[name]
    usual = _usual_rate(collector, statistics, name)
    if not view.figures.can_forget or not usual:
        return
    rate = terms["effective_lr"]
    stale = terms["is_reached"] & (terms["signal_to_noise"] < STALE_SIGNAL)
    large = stale & (rate >= GROWTH * usual)
    share = large.sum() / terms["is_reached"].sum()
    if share >= STALE_SHARE:
        yield (
            f"the effective learning rate of `{name}` is {np.median(rate[large]) / usual:,.0f} "
            f"times the usual one in {_percent(share)} of its weights, where no gradient has come "
            f"for long: {_smaller_rates(view)}"
        )


def _smaller_rates(view: OptimizerView) -> str:
    if not view.figures.can_forget:
        return "try a larger ε"
    other = "try Yogi or a larger ε" if isinstance(view.rule, AdamRule) else "try a larger ε"
    return f"the second moment of {type(view.optimizer).__name__} forgets; {other}"


def _usual_rate(collector: StatisticsCollector, statistics: Statistics, name: str) -> float:
    """The median effective learning rate where gradients come: of a variable or, if none come
    there, of all variables. 0 if none come anywhere.
    """
    for names in ([name], collector.variables):
        found = [statistics.samples[each] for each in names]
        fresh = [
            (each.terms["effective_lr"][mask], each.multiplicity[mask])
            for each in found
            if (mask := each.terms.get("signal_to_noise", np.zeros(0)) >= STALE_SIGNAL).any()
        ]
        if fresh:
            return quantiles(*map(np.concatenate, zip(*fresh, strict=True)), [0.5])[0]
    return 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
