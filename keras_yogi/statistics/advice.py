"""Faults that the statistics show, in words. Every threshold is a constant."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from keras_yogi.any_optimizer import number, rule_of
from keras_yogi.rules import AdamRule
from keras_yogi.statistics.collector import Statistics, StatisticsCollector
from keras_yogi.statistics.figures import quantiles
from keras_yogi.statistics.views import VariableView

GROWTH = 1000.0
"""How many times an effective learning rate may be what it was, or what it is elsewhere."""
STALE_SIGNAL = 1e-3
"""|m̂| / √v̂ below which the last gradient of a weight lies far back: at β₁ = 0.9, 50 steps."""
STALE_SHARE = 1e-3
"""Share of a variable's weights from which on they are not single ones."""
HELD_BACK_SHARE = 0.98
"""Share of the weights that gradients have reached where v₀ or ε makes the steps small."""
EPSILON_SHARE = 0.99
"""Share of the weights that gradients have reached where √v̂ < ε."""
MIN_STEPS = 20
"""Steps before which momentum and velocity are those of few batches."""
INITIAL_ROWS = 0.5
"""Share of an embedding's rows whose slots have their initial values."""
UPDATE_RATIO = 0.1
"""Norm of the update over norm of the weights, of variables with two dimensions or more."""
SKIPPED_SHARE = 0.01
"""Share of the steps that `skip_nonfinite` has skipped."""


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
    for name in collector.views if found.step else ():
        growth = rates[name] / earlier[name] if name in rates and earlier.get(name) else 0.0
        sentences += _of_variable(collector, found, name, growth)
    return sentences


def high_rates(collector: StatisticsCollector, found: Statistics) -> dict[str, float]:
    """By variable, the 99.9th percentile of 1 / (√v̂ + ε): a schedule of η has no part in it."""
    return {
        name: figures["effective_lr_p99_9"] / rate
        for name, figures in found.variables.items()
        if "effective_lr_p99_9" in figures
        and (rate := found.learning_rates[collector.views[name].optimizer.name])
    }


def silent_start(optimizer: Any) -> str | None:
    """One sentence with the arguments to change, if v₀ or ε holds the whole model back; else None.

    Yogi's default v₀ = 1e-6 and ε = 1e-3 are meant for gradients of 1e-3 and more. An Embedding
    under a mean loss has smaller ones: each of its rows has but a small part in the loss.

    It reads a sample, and changes nothing. `optimizer` is one of ours, built.
    """
    if number(optimizer.iterations) < MIN_STEPS:
        return None
    found = StatisticsCollector(optimizer).estimate(compiled=False)
    if not found.get("held_back_share", 0.0) >= HELD_BACK_SHARE:
        return None
    initial = getattr(optimizer.rule, "initial_accumulator_value", 0.0)
    v0 = f"initial_accumulator_value={initial:g} and " if initial else ""
    return (
        "Nearly all weights hardly move, because their gradients are far smaller than those that "
        f"{v0}epsilon={optimizer.rule.epsilon:g} are meant for: try {_remedy(optimizer.rule)}"
    )


def _remedy(rule: Any) -> str:
    epsilon = f"epsilon={min(1e-6, rule.epsilon / 1000):g}"
    has_initial = getattr(rule, "initial_accumulator_value", 0.0)
    return f"initial_accumulator_value=0.0, {epsilon}" if has_initial else epsilon


def _of_variable(
    collector: StatisticsCollector, found: Statistics, name: str, growth: float
) -> Iterator[str]:
    figures, view = found.variables[name], collector.views[name]
    shape = view.variable.shape
    if not np.all(np.isfinite([value for key, value in figures.items() if key.endswith("_norm")])):
        yield f"`{name}` or its slots hold NaN or infinity"
        return
    if figures.get("reached_share") == 0:
        yield f"no gradient has reached `{name}`"
        return
    if view.can_forget and "effective_lr_max" in figures:
        yield from _forgetting(collector, found, name)
    if growth >= GROWTH:
        yield (
            f"the effective learning rate of `{name}` has grown: its 99.9th percentile is "
            f"{growth:,.0f} times that of the earlier report: {_smaller_rates(view)}"
        )
    share = figures.get("initial_velocity_share", 0.0)
    if found.step >= MIN_STEPS and share and figures["held_back_share"] >= HELD_BACK_SHARE:
        yield (
            f"v₀ dominates {_percent(share)} of `{name}`: its gradients are far below √v₀, so "
            f"it hardly moves; try {_remedy(rule_of(view.optimizer))}"
        )
    elif (share := figures.get("epsilon_share", 0.0)) >= EPSILON_SHARE:
        yield (
            f"ε dominates {_percent(share)} of `{name}`: it trains like SGD with momentum; "
            "a smaller epsilon lets its second moment act"
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
            f"long: {_smaller_rates(collector.views[name])}"
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


def _smaller_rates(view: VariableView) -> str:
    if not view.can_forget:
        return "try a larger ε"
    other = (
        "try Yogi or a larger ε"
        if isinstance(rule_of(view.optimizer), AdamRule)
        else "try a larger ε"
    )
    return f"the second moment of {type(view.optimizer).__name__} forgets; {other}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
