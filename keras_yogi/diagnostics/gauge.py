"""Reads an optimizer's figures: from the slots to one number per variable and per model."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_yogi import checks
from keras_yogi.diagnostics import groups, looks, quantiles
from keras_yogi.diagnostics.groups import FRACTIONS, Array, Group, Seen, groups_of, merged
from keras_yogi.diagnostics.looks import Look
from keras_yogi.diagnostics.parts import Part, names, parts
from keras_yogi.diagnostics.sampling import THOROUGH, Precision, limit

FIGURES = (
    "weight_norm",
    "momentum_norm",
    "velocity_norm",
    "update_norm",
    "update_to_weight_ratio",
    "effective_learning_rate_min",
    "effective_learning_rate_median",
    "effective_learning_rate_p99_9",
    "effective_learning_rate_max",
    "effective_learning_rate_max_touched",
    "epsilon_share",
    "initial_velocity_share",
    "signal_to_noise_median",
)
"""What is told of every variable and of the whole model, in this order."""

_NORMS = dict(zip(looks.SQUARES, FIGURES, strict=False))
_MEDIAN, _HIGH = "effective_learning_rate_median", "effective_learning_rate_p99_9"
_NOISE = "signal_to_noise_median"
_numpy = ops.convert_to_numpy


@dataclass
class Reading:
    """An optimizer's figures at one moment."""

    step: int
    learning_rates: dict[str, float]  # by optimizer
    skipped_steps: int
    names: list[str]
    of_variables: dict[str, Array]  # by figure
    told: dict[str, Array]  # by figure: of which variables it can be told
    of_model: dict[str, float]
    untouched_rows: dict[int, tuple[int, int]]  # of embeddings, by place: rows, all rows
    seen: list[tuple[Group, Seen]]
    places: list[tuple[int, int]]  # of every variable: which of `seen`, and where in it
    _copied: dict[int, Look] = field(default_factory=dict)

    def weights_of(self, place: int) -> tuple[Look, float] | None:
        """What was seen of a variable's sample, and how many weights each of it stands for."""
        which, own = self.places[place]
        group, (_, of_weights, _) = self.seen[which]
        if of_weights is None:
            return None
        if which not in self._copied:
            self._copied[which] = Look(*map(_numpy, of_weights))
        part = group.sample.of(own)
        share = group.sample.sizes[own] / group.sample.counts[own]
        return Look(*(values[part] for values in self._copied[which])), float(share)


class Sight(NamedTuple):
    """What `Gauge.look` returns."""

    of_groups: list[groups.Sight]
    skipped_steps: int


class Gauge:
    """Reads the figures of one optimizer, again and again."""

    def __init__(self, optimizer: Any, precision: Precision = THOROUGH) -> None:
        self.parts = parts(optimizer)
        self.variables = [v for part in self.parts for v in part.variables if np.prod(v.shape)]
        self.names = names(self.variables)
        self.missing = [part.missing for part in self.parts if part.missing]
        self._complete = precision.complete
        sizes = [int(np.prod(v.shape)) for v in self.variables]
        most = limit(sizes, precision)
        self.groups = [
            group for part in self.parts for group in groups_of(part, most, precision.compiled)
        ]
        where = {
            id(variable): (which, own)
            for which, group in enumerate(self.groups)
            for own, variable in enumerate(group.variables)
        }
        self.places = [where[id(v)] for v in self.variables]
        own_places = {spot: place for place, spot in enumerate(self.places)}
        self._inverse = [
            [own_places[which, own] for own in range(len(group.variables))]
            for which, group in enumerate(self.groups)
        ]
        self.told = {
            figure: np.array([figure in _figures_of(self.part_of(p)) for p in range(len(where))])
            for figure in FIGURES
        }
        # What Keras's Embedding calls its table.
        self._tables = [
            place
            for place, v in enumerate(self.variables)
            if checks.path(v).split("/")[-1].split(":")[0] == "embeddings" and len(v.shape) == 2
        ]

    def part_of(self, place: int) -> Part:
        """The optimizer that trains a variable."""
        return self.groups[self.places[place][0]].part

    def look(self) -> Sight:
        """All that the figures follow from, now: less work than to `read` it, which can wait."""
        skipped = sum(part.skipped_steps for part in self.parts)
        return Sight([group.look() for group in self.groups], skipped)

    def read(self, sight: Sight | None = None) -> Reading:
        """The figures.

        Args:
            sight: what `look` has returned, where `complete` precision is not asked for. Defaults
                to a look now.
        """
        sight = self.look() if sight is None else sight
        pairs = zip(self.groups, sight.of_groups, strict=True)
        seen = [(group, group.seen(of_group)) for group, of_group in pairs]
        untouched = self._extend_to_all_weights(seen)
        of_variables = np.full((len(FIGURES), len(self.names)), np.nan)
        for (group, (sums, of_weights, _)), places in zip(seen, self._inverse, strict=True):
            figures = _of_sums(sums, group.sample.sizes)
            if of_weights is not None:
                kinds = (of_weights.effective_learning_rate, of_weights.signal_to_noise)
                of_each = group.quantiles_of_each(np.stack([*map(_numpy, kinds)]))
                (figures[_MEDIAN], figures[_HIGH]), (figures[_NOISE], _) = of_each
            of_variables[np.ix_([*map(FIGURES.index, figures)], places)] = [*figures.values()]
        return Reading(
            max((found.progress.step for _, found in seen), default=0),
            {group.part.optimizer.name: found.progress.learning_rate for group, found in seen},
            sight.skipped_steps,
            self.names,
            dict(zip(FIGURES, of_variables, strict=True)),
            self.told,
            _of_model(seen),
            untouched,
            seen,
            self.places,
        )

    def _extend_to_all_weights(self, seen: list[tuple[Group, Seen]]) -> dict[int, tuple[int, int]]:
        """Makes the sums of samples those of all weights, and counts rows of embeddings."""
        for group, (sums, *_) in seen:
            for name in sums.keys() - looks.EXTREMES.keys():
                sums[name] = sums[name] * (group.sample.sizes / group.sample.counts)
        untouched = {}
        for place in range(len(self.variables)) if self._complete else self._tables:
            which, own = self.places[place]
            group, (sums, of_weights, progress) = seen[which]
            all_rows, row = self.variables[place].shape if place in self._tables else (0, 1)
            whole = group.sample.counts[own] == group.sample.sizes[own]
            if self._complete and not whole:
                total, rows = group.sums_over_all(progress, own, int(row))
                for name, value in total.items():
                    sums[name][own] = value
            elif place in self._tables and of_weights is not None:
                looked_at = _numpy(of_weights.untouched)[group.sample.of(own)]
                rows = (
                    int(looked_at.reshape(-1, row).all(axis=1).sum())
                    if whole
                    else round(float(looked_at.mean()) * all_rows)
                )
            if place in self._tables and of_weights is not None:
                untouched[place] = rows, int(all_rows)
        return untouched


def _figures_of(part: Part) -> list[str]:
    if part.rule is not None:
        return list(FIGURES)
    return [_NORMS[name] for name in looks.SQUARES if name in ("weights", *part.slots)]


def _of_sums(sums: dict[str, Any], sizes: Any) -> dict[str, Any]:
    """The figures that follow from sums over `sizes` weights."""
    figures = {_NORMS[name]: np.sqrt(sums[name]) for name in looks.SQUARES if name in sums}
    if "update" in sums:
        update, weights = figures["update_norm"], figures["weight_norm"]
        with np.errstate(divide="ignore", invalid="ignore"):
            figures["update_to_weight_ratio"] = np.where(update == 0, 0.0, update / weights)
        figures["effective_learning_rate_min"] = sums["least"]
        figures["effective_learning_rate_max"] = sums["most"]
        touched = sums["most_touched"]
        figures["effective_learning_rate_max_touched"] = np.where(
            np.isneginf(touched), np.nan, touched
        )
        figures["epsilon_share"] = sums["epsilon_dominates"] / sizes
        figures["initial_velocity_share"] = sums["at_initial_velocity"] / sizes
    return figures


def _of_model(seen: list[tuple[Group, Seen]]) -> dict[str, float]:
    """The figures of all weights together. Where they have several optimizers, norms are of all
    of them, the rest of those whose rule is known.
    """

    def total(sums: list[dict[str, Array]]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, values in (item for one in sums for item in one.items()):
            all_of_it = merged(name, values)
            found[name] = merged(name, [found[name], all_of_it]) if name in found else all_of_it
        return found

    with_rule = [(group, found) for group, found in seen if found.of_weights is not None]
    figures: dict[str, Any] = {}
    if with_rule:
        size = sum(int(group.sample.sizes.sum()) for group, _ in with_rule)
        figures = _of_sums(total([found.sums for _, found in with_rule]), size)
        weights = np.concatenate([group.sample.weights for group, _ in with_rule])
        looks_at = [found.of_weights for _, found in with_rule if found.of_weights is not None]
        rate = np.concatenate([_numpy(each.effective_learning_rate) for each in looks_at])
        noise = np.concatenate([_numpy(each.signal_to_noise) for each in looks_at])
        figures[_MEDIAN], figures[_HIGH] = quantiles.weighted(rate, weights, FRACTIONS)
        (figures[_NOISE],) = quantiles.weighted(noise, weights, FRACTIONS[:1])
    if len(with_rule) < len(seen):
        figures |= {
            _NORMS[name]: np.sqrt(value)
            for name, value in total([found.sums for _, found in seen]).items()
            if name in ("weights", "momentum", "velocity")
        }
    return {name: float(figures[name]) for name in FIGURES if name in figures}
