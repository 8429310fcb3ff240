"""What the slots say of every single weight, and totals over many weights."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_yogi.rules import AdaptiveRule, Tensor, YogiRule

Terms = dict[str, Any]
Totals = dict[str, float]


class RuleFigures(NamedTuple):
    """Which statistics are true of a rule."""

    update: bool = False  # `descend` does what `update` does
    effective_lr: bool = False  # `descend` subtracts `learning_rate_per_weight` × momentum
    can_forget: bool = False  # the last slot falls where no gradient comes


@lru_cache
def rule_figures(rule: AdaptiveRule) -> RuleFigures:
    """Tries a rule out on random numbers, because a user's own rule may replace any method."""
    random = np.random.default_rng(0).normal(size=(3, 8)).astype("float32")
    gradient, momentum, weights = map(ops.convert_to_tensor, random)
    weights = weights if rule.reads_weights else ops.zeros_like(weights)
    further = range(1, len(rule.initial_values))
    slots = (momentum, *(place * ops.square(momentum) for place in further))
    scalars = rule.scalars(0.01, 100, "float32")

    def agree(found: Tensor, expected: Tensor) -> bool:
        found, expected = map(ops.convert_to_numpy, (found, expected))
        return np.allclose(found, expected, rtol=1e-4, atol=1e-7)

    updated, new_slots = rule.update(gradient, weights, slots, scalars)
    descended = rule.descend(weights, new_slots, scalars)
    rate = rule.learning_rate_per_weight(new_slots, scalars)
    has_update = agree(updated, descended)
    # Yogi's proximal step comes after that, and has the same rate.
    is_proximal = isinstance(rule, YogiRule) and type(rule).descend is YogiRule.descend
    has_rate = is_proximal or agree(descended, weights - rate * new_slots[0])
    _, resting = rule.update(ops.zeros_like(gradient), weights, slots, scalars)
    forgets = bool(ops.convert_to_numpy(ops.any(resting[-1] < slots[-1])))
    return RuleFigures(has_update, has_update and has_rate, forgets)


def rule_terms(
    rule: AdaptiveRule, figures: RuleFigures, streams: Terms, step: Tensor, rate: Tensor
) -> Terms:
    """The terms of each weight, as far as `figures` says that they are true.

    Args:
        rule: the update.
        figures: of the rule.
        streams: "weight" and the slots by name, in the rule's order and in its compute dtype.
        step: t, the steps made.
        rate: η of the last step.
    """
    weights, slots = streams["weight"], tuple(streams[name] for name in rule.initial_values)
    computed_in = keras.backend.standardize_dtype(weights.dtype)
    initial = [ops.convert_to_tensor(x, computed_in) for x in rule.initial_values.values()]
    changed = [ops.not_equal(*pair) for pair in zip(slots, initial, strict=True)]
    terms = {**streams, "is_reached": ops.any(ops.stack(changed), axis=0)}
    scalars = rule.scalars(rate, ops.maximum(step, 1), computed_in)
    if figures.update:
        origin = weights if rule.reads_weights else ops.zeros_like(weights)
        terms["update"] = rule.descend(origin, slots, scalars) - origin
    if figures.effective_lr:
        per_momentum, root = rule.learning_rate_per_weight(slots, scalars), ops.sqrt(slots[-1])
        size, corrected = ops.abs(slots[0]), root / ops.sqrt(scalars.correction_2)
        noise = size / scalars.correction_1 / corrected
        terms |= {
            "root_velocity": corrected,
            "effective_lr": per_momentum * scalars.correction_1,
            "signal_to_noise": ops.where(ops.equal(size, 0.0), ops.zeros_like(size), noise),
            "relative_step": size * per_momentum / scalars.learning_rate,
            "below_epsilon": (root if rule.epsilon_hat else corrected) < rule.epsilon,
            "near_initial": ops.logical_and(slots[-1] <= 2.0 * initial[-1], initial[-1] > 0.0),
        }
    return terms


SQUARES = ("weight", "momentum", "velocity", "update")
SHARES = {"epsilon_share": "below_epsilon", "initial_velocity_share": "near_initial"}
EXTREMES = {"effective_lr_min": min, "effective_lr_max": max}


def totals(terms: Terms, multiplicity: Any = 1.0, row: int = 0) -> Totals:
    """Sums, and extremes, over weights of which each stands for `multiplicity` weights.

    `row` is the length of the rows of an embedding's table; 0 of any other variable.
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
        rate, found["lr_reached"] = terms["effective_lr"], found["reached"]
        found |= {name: np.sum(multiplicity * (reached & terms[name])) for name in SHARES.values()}
        found["effective_lr_min"] = rate.min(where=reached, initial=np.inf)
        found["effective_lr_max"] = rate.max(where=reached, initial=-np.inf)
    return {name: float(value) for name, value in found.items()}


def combine(many: Iterable[Totals]) -> Totals:
    """The totals of several parts of the weights together."""
    combined: Totals = {}
    for name, value in (item for each in many for item in each.items()):
        parts = (combined[name], value) if name in combined else (value,)
        combined[name] = EXTREMES.get(name, sum)(parts)
    return combined


def figures_of(total: Totals) -> dict[str, float]:
    """The figures that follow from totals; NaN for what no weight has."""
    found = {f"{name}_norm": total[name] ** 0.5 for name in SQUARES if name in total}
    if "update" in total:
        weight, update = total["updated_weight"], total["update"]
        ratio = (update / weight) ** 0.5 if weight else np.inf
        found["update_to_weight_ratio"] = ratio if update else 0.0
    if "reached" in total:
        found["reached_share"] = total["reached"] / total["count"]
    if "lr_reached" in total:
        reached = total["lr_reached"] or np.nan
        found |= {name: total[name] * reached / reached for name in EXTREMES}
        found |= {name: total[term] / reached for name, term in SHARES.items()}
    if "initial_rows" in total:
        found["initial_rows"] = total["initial_rows"]
    return found
