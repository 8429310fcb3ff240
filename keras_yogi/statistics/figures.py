"""Figures: what the slots say of every single weight, and what follows for many of them."""

from collections.abc import Container, Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_yogi.rules import AdaptiveRule, Tensor

FIGURES = {
    "learning_rate": "η of the last step",
    "weight_norm": "Euclidean norm of the weights",
    "momentum_norm": "Euclidean norm of the momentum m",
    "velocity_norm": "Euclidean norm of the velocity v",
    "update_norm": "Euclidean norm of what the last step has added to the weights: the update, "
    "η m̂ / (√v̂ + ε), and weight decay",
    "update_to_weight_ratio": "norm of what the last step has added / norm of the weights",
    "reached_share": "share of the weights that gradients have reached: their slots have changed",
    "effective_lr_min": "smallest η / (√v̂ + ε) of the weights that gradients have reached",
    "effective_lr_median": "median η / (√v̂ + ε) of the weights that gradients have reached",
    "effective_lr_p99_9": "99.9th percentile of η / (√v̂ + ε), of weights with gradients",
    "effective_lr_max": "largest η / (√v̂ + ε) of the weights that gradients have reached",
    "epsilon_share": "share with √v̂ < ε, of the weights that gradients have reached",
    "initial_velocity_share": "share with v ≤ 2 v₀, of the weights that gradients have reached",
    "held_back_share": "share with either, and a last step of less than η / 20",
    "signal_to_noise_median": "median |m̂| / √v̂ of the weights that gradients have reached",
    "initial_rows": "rows of embeddings whose slots have their initial values",
    "skipped_steps": "steps that `skip_nonfinite` has skipped",
}
"""All figures, in order, with their descriptions."""

NORMS = ("weight", "momentum", "velocity", "update")
EXTREMES = {"effective_lr_min": min, "effective_lr_max": max}
SHARES = ("epsilon_share", "initial_velocity_share", "held_back_share")
QUANTILES = {
    "effective_lr": {"effective_lr_median": 0.5, "effective_lr_p99_9": 0.999},
    "signal_to_noise": {"signal_to_noise_median": 0.5},
}
SMALL_STEP = 0.05
"""What |m̂| / (√v̂ + ε), the last step in units of η, is below where v₀ or ε holds a weight back.
Where v follows the gradients, it is larger in many."""

Terms = dict[str, Any]
"""Of some weights, tensors or arrays by name."""
Totals = dict[str, float]


def rule_terms(
    rule: AdaptiveRule, streams: Terms, step: Tensor, rate: Tensor, has: Container[str], decay: Any
) -> Terms:
    """What the slots say of each weight after `step` steps, the last with η = `rate`.

    `streams` holds "weight" and the slots, in the rule's order and in its compute dtype, `has` what
    is true of the rule, "update" and "effective_lr"; `decay` is λ or None.
    """
    weights, slots = streams["weight"], tuple(streams[name] for name in rule.initial_values)
    dtype = keras.backend.standardize_dtype(weights.dtype)
    initial = [ops.convert_to_tensor(x, dtype) for x in rule.initial_values.values()]
    changed = [ops.not_equal(*pair) for pair in zip(slots, initial, strict=True)]
    terms = {**streams, "is_reached": ops.any(ops.stack(changed), axis=0)}
    scalars = rule.scalars(rate, ops.maximum(step, 1), dtype)
    if "update" in has:
        origin = weights if rule.reads_weights else ops.zeros_like(weights)
        update = rule.descend(origin, slots, scalars) - origin
        if decay:  # w = (1 − η λ) w₀ + update, and w₀ is gone
            decayed = decay * scalars.learning_rate * ops.cast(step > 0, dtype)
            update = (update - decayed * weights) / (1.0 - decayed)
        terms["update"] = update
    if "effective_lr" in has:
        per_momentum, root = rule.learning_rate_per_weight(slots, scalars), ops.sqrt(slots[-1])
        size, corrected = ops.abs(slots[0]), root / ops.sqrt(scalars.correction_2)
        noise = size / scalars.correction_1 / corrected
        below_epsilon = (root if rule.epsilon_hat else corrected) < rule.epsilon
        near_initial = ops.logical_and(slots[-1] <= 2.0 * initial[-1], initial[-1] > 0.0)
        held_back = ops.logical_or(below_epsilon, near_initial)
        is_small = size * per_momentum < SMALL_STEP * scalars.learning_rate
        terms |= {
            "root_velocity": corrected,
            "effective_lr": per_momentum * scalars.correction_1,
            "signal_to_noise": ops.where(ops.equal(size, 0.0), ops.zeros_like(size), noise),
            "epsilon_share": below_epsilon,
            "initial_velocity_share": near_initial,
            "held_back_share": ops.logical_and(held_back, is_small),
        }
    return terms


class Sample(NamedTuple):
    """Terms of some weights, as arrays."""

    terms: Terms
    multiplicity: np.ndarray  # how many weights each of them stands for


def totals(sample: Sample, row: int = 0) -> Totals:
    """Sums and extremes over weights. `row` is the length of the rows of a table, else 0."""
    terms, multiplicity = sample
    wide = {name: terms[name].astype("float64") for name in NORMS if name in terms}
    found = {name: np.sum(multiplicity * np.square(values)) for name, values in wide.items()}
    if (reached := terms.get("is_reached")) is not None:
        found["count"], found["reached"] = multiplicity.sum(), np.sum(multiplicity * reached)
        if row:
            found["initial_rows"] = np.sum(~reached.reshape(-1, row).any(axis=1))
    if "effective_lr" in terms:
        rate, found["lr_reached"] = terms["effective_lr"], found["reached"]
        found |= {name: np.sum(multiplicity * (reached & terms[name])) for name in SHARES}
        found["effective_lr_min"] = rate.min(where=reached, initial=np.inf)
        found["effective_lr_max"] = rate.max(where=reached, initial=-np.inf)
    return {name: float(value) for name, value in found.items()}


def combine(parts: Sequence[Totals]) -> Totals:
    """The totals of several parts together; no update if that of a part is unknown."""
    names = dict.fromkeys(name for part in parts for name in part)
    if not all("update" in part for part in parts):
        names.pop("update", None)
    values = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: EXTREMES.get(name, sum)(of_parts) for name, of_parts in values.items()}


def figures(total: Totals, samples: Iterable[Sample]) -> dict[str, float]:
    """The figures that follow from totals and samples; NaN for what no weight has."""
    found = {f"{name}_norm": total[name] ** 0.5 for name in NORMS if name in total}
    if "update" in total:
        update, weight = found["update_norm"], found["weight_norm"]
        found["update_to_weight_ratio"] = update / weight if weight else np.inf if update else 0.0
    if "reached" in total:
        found["reached_share"] = total["reached"] / total["count"]
    if "lr_reached" in total:
        reached = total["lr_reached"] or np.nan
        found |= {name: total[name] * reached / reached for name in EXTREMES}
        found |= {name: total[name] / reached for name in SHARES}
        with_rates = [(s, s.terms["is_reached"]) for s in samples if "effective_lr" in s.terms]
        for term, fractions in QUANTILES.items():
            values = np.concatenate([each.terms[term][mask] for each, mask in with_rates])
            multiplicity = np.concatenate([each.multiplicity[mask] for each, mask in with_rates])
            found_here = quantiles(values, multiplicity, [*fractions.values()])
            found |= dict(zip(fractions, found_here, strict=True))
    if "initial_rows" in total:
        found["initial_rows"] = total["initial_rows"]
    return {name: found[name] for name in FIGURES if name in found}


def quantiles(
    values: np.ndarray, multiplicity: np.ndarray, fractions: Sequence[float]
) -> list[float]:
    """For each fraction, the smallest value that so large a share of the weights does not exceed;
    NaN of none. `multiplicity` is how many weights each value stands for.
    """
    if not len(values):
        return [np.nan] * len(fractions)
    if np.all(multiplicity == multiplicity[0]):
        values = np.sort(values)  # much faster than argsort
    else:
        order = np.argsort(values)
        values, multiplicity = values[order], multiplicity[order]
    ends = np.cumsum(multiplicity)
    return values[np.searchsorted(ends, np.array(fractions) * ends[-1] * (1 - 1e-12))].tolist()
