"""Faults that the statistics show, in words. Every threshold is a constant."""

from collections.abc import Iterable, Iterator

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
"""Share of an embedding's rows whose slots have their initial values."""
UPDATE_RATIO = 0.1
"""Norm of the update over norm of the weights, of variables with two dimensions or more."""
SKIPPED_SHARE = 0.01
"""Share of the steps that `skip_nonfinite` has left out."""


def warnings(
    collector: StatisticsCollector, found: Statistics, earlier: dict[str, float]
) -> list[str]:
    """What is wrong, one sentence each. `earlier` holds the `high_rates` of an earlier moment."""
    sentences = []
    skipped = int(found.model["skipped_steps"])
    if skipped and skipped >= SKIPPED_SHARE * (found.step + skipped):
        sentences.append(
            f"{skipped} of {found.step + skipped} steps were skipped, because a gradient was not "
            "finite: lower the learning rate or look at the data"
        )
    rates = high_rates(collector, found)
    for name in collector.variables if found.step else ():
        growth = rates[name] / earlier[name] if name in rates and earlier.get(name) else 0.0
        sentences += _of_variable(collector, found, name, growth)
    return sentences


def high_rates(collector: StatisticsCollector, found: Statistics) -> dict[str, float]:
    """By variable, the 99.9th percentile of 1 / (√v̂ + ε): a schedule of η has no part in it."""
    return {
        name: figures["effective_lr_p99_9"] / rate
        for name, figures in found.variables.items()
        if "effective_lr_p99_9" in figures
        and (rate := found.learning_rates[collector.view_of[name].optimizer.name])
    }


def _of_variable(
    collector: StatisticsCollector, found: Statistics, name: str, growth: float
) -> Iterator[str]:
    figures, view = found.variables[name], collector.view_of[name]
    shape = collector.variables[name].shape
    if not np.all(np.isfinite([value for key, value in figures.items() if key.endswith("_norm")])):
        yield f"`{name}` or its slots hold NaN or infinity"
        return
    if figures.get("reached_share") == 0:
        yield f"no gradient has reached `{name}`"
        return
    if view.figures.can_forget and view.figures.effective_lr:
        yield from _forgetting(collector, found, name)
    if growth >= GROWTH:
        yield (
            f"the effective learning rate of `{name}` has grown: its 99.9th percentile is "
            f"{growth:,.0f} times that of the earlier report: {_smaller_rates(view)}"
        )
    share = figures.get("epsilon_share", 0.0)
    if share >= HELD_BACK_SHARE:
        yield (
            f"ε dominates {_percent(share)} of `{name}`: it trains like SGD with momentum; "
            "a smaller epsilon lets its second moment act"
        )
    elif found.step >= MIN_STEPS and is_held_back([found.samples[name]]):
        yield (
            f"v₀ dominates {_percent(figures['initial_velocity_share'])} of `{name}`: its "
            f"gradients are too small for it, and it hardly moves; try {remedy(view.rule)}"
        )
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


def _forgetting(collector: StatisticsCollector, found: Statistics, name: str) -> Iterator[str]:
    terms = found.samples[name].terms
    usual = _usual_rate(found, [name]) or _usual_rate(found, found.samples)
    stale = terms["is_reached"] & (terms["signal_to_noise"] < STALE_SIGNAL)
    rates = terms["effective_lr"][stale & (terms["effective_lr"] >= GROWTH * usual)]
    share = len(rates) / terms["is_reached"].sum()
    if usual and share >= STALE_SHARE:
        yield (
            f"the effective learning rate of `{name}` is {np.median(rates) / usual:,.0f} times "
            f"the usual one in {_percent(share)} of its weights, where no gradient has come for "
            f"long: {_smaller_rates(collector.view_of[name])}"
        )


def _usual_rate(found: Statistics, names: Iterable[str]) -> float:
    """The median effective learning rate of variables where gradients come; 0 if none come."""
    fresh = []
    for terms, multiplicity in (found.samples[name] for name in names):
        mask = terms.get("signal_to_noise", np.zeros(len(multiplicity))) >= STALE_SIGNAL
        fresh += [(terms["effective_lr"][mask], multiplicity[mask])] if mask.any() else []
    if not fresh:
        return 0.0
    rates, multiplicity = map(np.concatenate, zip(*fresh, strict=True))
    return quantiles(rates, multiplicity, [0.5])[0]


def _smaller_rates(view: OptimizerView) -> str:
    if not view.figures.can_forget:
        return "try a larger ε"
    other = "try Yogi or a larger ε" if isinstance(view.rule, AdamRule) else "try a larger ε"
    return f"the second moment of {type(view.optimizer).__name__} forgets; {other}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
