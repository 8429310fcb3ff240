"""What the slots say of every single weight, and totals over many weights."""

import dataclasses
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_yogi.rules import AdaptiveRule, Tensor, YogiRule

Terms = dict[str, Any]
Totals = dict[str, float]


@dataclasses.dataclass(frozen=True)
class RuleFigures:
    """Which statistics are true of a rule."""

    update: bool  # `descend` does what `update` does
    effective_lr: bool  # `learning_rate_per_weight` times the momentum is what `descend` subtracts
    can_forget: bool  # √v̂ falls where no gradient comes


@lru_cache
def rule_figures(rule: AdaptiveRule) -> RuleFigures:
    """Tries a rule out on random numbers, because a rule of a user's own may replace any method."""
    random = np.random.default_rng(0)
    gradient, weights, momentum = random.normal(size=(3, 8)).astype("float32")
    weights = weights if rule.reads_weights else np.zeros_like(weights)
    others = [momentum**2 * (place + 1) for place in range(len(rule.initial_values) - 1)]
    slots = tuple(map(ops.convert_to_tensor, (momentum, *others)))
    gradient, weights = map(ops.convert_to_tensor, (gradient, weights))
    scalars = rule.scalars(0.01, 100, "float32")

    def agree(found: Tensor, expected: Tensor) -> bool:
        return bool(np.allclose(*map(ops.convert_to_numpy, (found, expected)), 1e-4, 1e-7))

    updated, new_slots = rule.update(gradient, weights, slots, scalars)
    descended = rule.descend(weights, new_slots, scalars)
    rate = rule.learning_rate_per_weight(new_slots, scalars)
    has_update = agree(updated, descended)
    # Yogi's own `descend` goes on with a proximal step, whose length is the same rate.
    is_proximal = isinstance(rule, YogiRule) and type(rule).descend is YogiRule.descend
    is_rate = is_proximal or agree(descended, weights - rate * new_slots[0])
    _, resting = rule.update(ops.zeros_like(gradient), weights, slots, scalars)
    forgets = bool(ops.convert_to_numpy(ops.any(resting[-1] < slots[-1])))
    return RuleFigures(has_update, has_update and is_rate, forgets)


def per_weight_terms(
    rule: AdaptiveRule,
    figures: RuleFigures,
    streams: Terms,
    step: Tensor,
    learning_rate: Tensor,
    stored_dtype: str,
) -> Terms:
    """The terms of each weight, as far as they are true of the rule.

    Args:
        rule: the update.
        figures: which terms are wanted.
        streams: "weight" and the slots by name, in the rule's order and in its compute dtype.
        step: t, the steps made.
        learning_rate: η of the last step.
        stored_dtype: of the slots, in which their initial values are rounded.

    Returns:
        The streams, "is_reached" and, as far as they are wanted, "update", "effective_lr",
        "signal_to_noise", "root" (√v̂), "below_epsilon", "near_initial" and "relative_step".
    """
    weights, slots = streams["weight"], tuple(streams[name] for name in rule.initial_values)
    dtype = keras.backend.standardize_dtype(weights.dtype)
    initial = [
        ops.cast(ops.cast(value, stored_dtype), dtype) for value in rule.initial_values.values()
    ]
    terms = dict(streams)
    is_reached = ops.not_equal(slots[0], initial[0])
    for slot, value in zip(slots[1:], initial[1:], strict=True):
        is_reached = ops.logical_or(is_reached, ops.not_equal(slot, value))
    terms["is_reached"] = is_reached
    scalars = rule.scalars(learning_rate, ops.maximum(step, 1), dtype)
    if figures.update:
        origin = weights if rule.reads_weights else ops.zeros_like(weights)
        terms["update"] = rule.descend(origin, slots, scalars) - origin
    if figures.effective_lr:
        rate = rule.learning_rate_per_weight(slots, scalars)
        root = ops.sqrt(slots[-1])
        terms["root"] = root / ops.sqrt(scalars.correction_2)
        terms["effective_lr"] = rate * scalars.correction_1
        size = ops.abs(slots[0])
        noise = size / scalars.correction_1 / terms["root"]
        terms["signal_to_noise"] = ops.where(ops.equal(size, 0.0), ops.zeros_like(size), noise)
        terms["relative_step"] = size * rate / scalars.learning_rate
        terms["below_epsilon"] = (root if rule.epsilon_hat else terms["root"]) < rule.epsilon
        terms["near_initial"] = ops.logical_and(slots[-1] <= 2.0 * initial[-1], initial[-1] > 0.0)
    return terms


SQUARES = ("weight", "momentum", "velocity", "update")
SHARES = {"epsilon_share": "below_epsilon", "initial_velocity_share": "near_initial"}


def totals(terms: Terms, multiplicity: Any = 1.0, row: int = 0) -> Totals:
    """Sums, and extremes of the effective learning rates, over all weights that are given.

    Args:
        terms: what `per_weight_terms` gives, as arrays.
        multiplicity: how many weights each of them stands for.
        row: length of the rows of an embedding's table; 0 of any other variable.
    """
    wide = {name: terms[name].astype("float64") for name in SQUARES if name in terms}
    found = {name: np.sum(multiplicity * np.square(values)) for name, values in wide.items()}
    if "update" in terms:
        found["updated_weight"] = found["weight"]
    if "is_reached" in terms:
        reached = terms["is_reached"]
        found["count"] = np.sum(multiplicity * np.ones(len(reached)))
        found["reached"] = np.sum(multiplicity * reached)
        if row:
            found["initial_rows"] = np.sum(~reached.reshape(-1, row).any(axis=1))
    if "effective_lr" in terms:
        found["lr_reached"] = found["reached"]
        found |= {name: np.sum(multiplicity * (reached & terms[name])) for name in SHARES.values()}
        found["lr_min"] = terms["effective_lr"].min(where=reached, initial=np.inf)
        found["lr_max"] = terms["effective_lr"].max(where=reached, initial=-np.inf)
    return found


def combine(many: Iterable[Totals]) -> Totals:
    """The totals of several parts of the weights together."""
    values: dict[str, list[float]] = {}
    for each in many:
        for name, value in each.items():
            values.setdefault(name, []).append(float(value))
    how = {"lr_min": min, "lr_max": max}
    return {name: float(how.get(name, sum)(of_all)) for name, of_all in values.items()}


def figures_of(total: Totals) -> dict[str, float]:
    """The figures that follow from totals; those of weights that no gradient has reached are NaN."""
    found = {f"{name}_norm": total[name] ** 0.5 for name in SQUARES if name in total}
    if "update" in total:
        weight, update = total["updated_weight"], total["update"]
        ratio = (update / weight) ** 0.5 if weight else np.inf
        found["update_to_weight_ratio"] = ratio if update else 0.0
    if "reached" in total:
        found["reached_share"] = total["reached"] / total["count"]
    if "lr_reached" in total:
        reached = total["lr_reached"] or np.nan
        found |= {name: total[term] / reached for name, term in SHARES.items()}
        for name in ("lr_min", "lr_max"):
            found[f"effective_{name}"] = total[name] if total["lr_reached"] else np.nan
    if "initial_rows" in total:
        found["initial_rows"] = total["initial_rows"]
    return found
