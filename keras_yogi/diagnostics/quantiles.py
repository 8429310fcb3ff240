"""Medians and percentiles, as numpy.quantile defines them: between two values, on a line."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray


class OfRows:
    """Quantiles of each of many rows of different lengths, which lie one after another.

    Which places they stand at follows from the lengths alone, and is worked out once.
    """

    def __init__(self, counts: Array, fractions: Sequence[float]) -> None:
        """Takes the lengths of the rows, each at least 1, and fractions between 0 and 1."""
        self._shape = (len(fractions), len(counts))
        starts = np.cumsum(counts) - counts
        # Rows are sorted together with others, the shorter ones filled up: with all, if that does
        # not double the work, or with those that are at most four times as long.
        alike = counts.max(initial=0) * len(counts) <= 2 * counts.sum()
        classes = np.zeros(len(counts)) if alike else np.ceil(np.log2(counts) / 2)
        self._classes = []
        for each in np.unique(classes):
            rows = np.flatnonzero(classes == each)
            lengths = counts[rows, None]
            columns = np.arange(lengths.max())
            places = starts[rows, None] + np.minimum(columns, lengths - 1)
            low, high, part = _ranks(lengths[:, 0], np.array(fractions)[:, None])
            of_row = np.arange(len(rows)) * len(columns)
            self._classes.append(
                (rows, places, columns >= lengths, of_row + low, of_row + high, part)
            )

    def __call__(self, values: Array) -> Array:
        """Quantiles of every row.

        Args:
            values: of all rows; or several kinds of values, one kind a row of the array.

        Returns:
            Shape (fractions, rows), or (kinds, fractions, rows).
        """
        kinds = values.shape[:-1]
        found = np.empty((*kinds, *self._shape))
        for rows, places, beyond, low, high, part in self._classes:
            matrix = values.take(places, axis=-1)
            np.copyto(matrix, np.inf, where=beyond)
            matrix.sort(axis=-1)
            flat = matrix.reshape(*kinds, -1)
            found[..., rows] = _between(flat.take(low, axis=-1), flat.take(high, axis=-1), part)
        return found


def weighted(values: Array, weights: Array, fractions: Sequence[float]) -> list[float]:
    """Quantiles of values ≥ 0, each of which stands for as many as its weight says."""
    values = np.abs(values.astype("float64"))  # −0 too has a sign
    # The order of floats ≥ 0 is that of their bits: the upper 16 cut the line into bins, so that
    # only the bins around the quantile have to be sorted.
    bins = values.view("int64") >> 48
    bins -= bins.min()
    filled = np.cumsum(np.bincount(bins, weights))
    ranks = _ranks(np.rint(filled[-1]), np.array(fractions))
    ends = np.stack(ranks[:2]) + 0.5
    found = np.empty((2, len(fractions)))
    for place, (first, last) in enumerate(filled.searchsorted(ends).clip(max=len(filled) - 1).T):
        inside = ((bins >= first) & (bins <= last)).nonzero()[0]
        inside = inside[values[inside].argsort()]
        reached = weights[inside].cumsum() + (filled[first - 1] if first else 0.0)
        places = reached.searchsorted(ends[:, place]).clip(max=len(inside) - 1)
        found[:, place] = values[inside[places]]
    return list(map(float, _between(found[0], found[1], ranks[2])))


def _ranks(count: Any, fraction: Any) -> tuple[Array, Array, Array]:
    place = fraction * (count - 1)
    low = np.floor(place).astype("int64")
    return low, np.minimum(low + 1, count - 1), place - low


def _between(low: Array, high: Array, part: Any) -> Array:
    # Where one is infinite, their difference is not a number.
    with np.errstate(invalid="ignore"):
        return np.where((low == high) | (part == 0), low, low + (high - low) * part)
