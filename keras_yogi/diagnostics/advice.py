"""Faults that the figures show, in words. Every threshold is a constant here."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_yogi.diagnostics.gauge import Gauge, Reading
from keras_yogi.diagnostics.looks import Look
from keras_yogi.diagnostics.parts import Part

GROWTH = 1000.0
"""How many times an effective learning rate may be what it was, or what it is elsewhere."""
STALE_SIGNAL = 1e-3
"""|m̂| / √v̂ below which the last gradient of a weight lies far back: at β₁ = 0.9, 50 steps."""
STALE_SHARE = 1e-3
"""Share of a variable's weights from which on they are not single ones."""
EPSILON_SHARE = 0.99
"""Share of a variable's weights, of those that a gradient has reached, where √v̂ < ε."""
UNTOUCHED_ROWS = 0.5
"""Share of an embedding's rows that no gradient has reached."""
UPDATE_RATIO = 0.1
"""Norm of the update over norm of the weights, of variables with two dimensions or more."""
SKIPPED_SHARE = 0.01
"""Share of the steps that `skip_nonfinite` has left out."""


def warnings(gauge: Gauge, reading: Reading, earlier: dict[str, float]) -> list[str]:
    """What is wrong, one sentence each.

    Args:
        gauge: whose reading it is.
        reading: the figures now.
        earlier: `high_rates` of an earlier reading; empty without one.
    """
    found = list(_skipped(reading))
    if reading.step == 0:
        return found
    fresh = _Fresh(gauge, reading)
    now = high_rates(reading) if earlier else {}
    growth = {
        name: now[name] / before for name, before in earlier.items() if before and name in now
    }
    for place, name in enumerate(reading.names):
        found += _of_variable(gauge, reading, place, fresh, growth.get(name, 0.0))
    return found


def high_rates(reading: Reading) -> dict[str, float]:
    """By variable, the 99.9th percentile of the effective learning rates of the weights that a
    gradient has reached. The others' is a constant, and may hide what happens.
    """
    found = {}
    for place, name in enumerate(reading.names):
        told = reading.weights_of(place)
        if told is not None and not told[0].untouched.all():
            rates = told[0].effective_learning_rate[~told[0].untouched]
            found[name] = float(np.quantile(rates, 0.999))
    return found


def _skipped(reading: Reading) -> Iterator[str]:
    total = reading.step + reading.skipped_steps
    if reading.skipped_steps and reading.skipped_steps / total >= SKIPPED_SHARE:
        yield (
            f"{reading.skipped_steps} of {total} steps were skipped, because a gradient was not "
            "finite: lower the learning rate or look at the data"
        )


def _of_variable(
    gauge: Gauge, reading: Reading, place: int, fresh: "_Fresh", growth: float
) -> Iterator[str]:
    name = reading.names[place]
    figure = {key: values[place] for key, values in reading.of_variables.items()}
    norms = [figure[f"{what}_norm"] for what in ("weight", "momentum", "velocity", "update")]
    told = reading.weights_of(place)
    if told is None:
        if np.any(np.isinf(norms)) or np.isnan(norms[0]):
            yield f"`{name}` or its slots hold NaN or infinity"
        return
    if not np.all(np.isfinite(norms)):
        yield f"`{name}` or its slots hold NaN or infinity"
        return
    seen, _ = told
    touched = ~seen.untouched
    if not touched.any():
        yield f"no gradient has reached `{name}`"
        return
    yield from _forgetting(gauge.part_of(place), name, seen, fresh.rate(place))
    if growth >= GROWTH:
        since = f"since the earlier report its 99.9th percentile has grown {growth:,.0f}-fold"
        yield f"effective learning rate of `{name}`: {since}: {_remedy(gauge.part_of(place))}"
    share = np.mean(seen.epsilon_dominates[touched])
    if share >= EPSILON_SHARE:
        yield (
            f"ε dominates {_percent(share)} of `{name}`: it trains like SGD with momentum; "
            "a smaller epsilon lets its second moment act"
        )
    if place in reading.untouched_rows:
        rows, all_rows = reading.untouched_rows[place]
        if rows >= UNTOUCHED_ROWS * all_rows:
            yield f"{rows:,} of the {all_rows:,} rows of `{name}` were never touched"
    ratio = figure["update_to_weight_ratio"]
    if len(gauge.variables[place].shape) >= 2 and norms[0] and ratio >= UPDATE_RATIO:
        yield (
            f"one update changes `{name}` by {_percent(ratio)} of its norm: "
            "the learning rate is too large for it"
        )


def _forgetting(part: Part, name: str, seen: Look, fresh: float | None) -> Iterator[str]:
    if not fresh:
        return
    rate = seen.effective_learning_rate
    stale = ~seen.untouched & (seen.signal_to_noise < STALE_SIGNAL)
    grown = stale & (rate >= GROWTH * fresh)
    share = grown.sum() / np.count_nonzero(~seen.untouched)
    if share >= STALE_SHARE:
        times = float(np.median(rate[grown])) / fresh
        yield (
            f"effective learning rate of `{name}` has grown {times:,.0f}-fold in {_percent(share)} "
            f"of its weights, where no gradient has come for long: {_remedy(part)}"
        )


def _remedy(part: Part) -> str:
    whose = type(part.rule).__name__.removesuffix("Rule")
    other = "try Yogi or a larger ε" if whose == "Adam" else "try a larger ε"
    return f"{whose}'s second moment is forgetting; {other}"


class _Fresh:
    """Median effective learning rates where gradients come: of a variable or, if none come there,
    of all that its optimizer trains.
    """

    def __init__(self, gauge: Gauge, reading: Reading) -> None:
        self._gauge, self._reading = gauge, reading
        self._of_parts: dict[int, float | None] = {}

    def _rates(self, place: int) -> Any:
        told = self._reading.weights_of(place)
        if told is None:
            return np.array([])
        seen, _ = told
        return seen.effective_learning_rate[seen.signal_to_noise >= STALE_SIGNAL]

    def rate(self, place: int) -> float | None:
        own = self._rates(place)
        if len(own):
            return float(np.median(own))
        part = self._gauge.part_of(place)
        if id(part.optimizer) not in self._of_parts:
            others = [
                self._rates(i)
                for i in range(len(self._reading.names))
                if self._gauge.part_of(i) is part
            ]
            rates = np.concatenate(others)
            self._of_parts[id(part.optimizer)] = float(np.median(rates)) if len(rates) else None
        return self._of_parts[id(part.optimizer)]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
