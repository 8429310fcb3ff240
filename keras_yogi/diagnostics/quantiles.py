"""Medians and percentiles, as numpy.quantile defines them: between two values, on a line."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray


class OfRows:
    """Quantiles of each of many rows of different lengths, which lie one after another."""

    def __init__(self, counts: Array) -> None:
        """Takes the lengths of the rows, each at least 1."""
        self._count = len(counts)
        starts = np.cumsum(counts) - counts
        # Rows are sorted together with others that are at most four times as long.
        classes = np.ceil(np.log2(counts) / 2).astype("int64")
        self._classes = []
        for each in np.unique(classes):
            rows = np.flatnonzero(classes == each)
            lengths = counts[rows, None]
            columns = np.arange(lengths.max())
            places = starts[rows, None] + np.minimum(columns, lengths - 1)
            self._classes.append((rows, lengths[:, 0], places, columns >= lengths))

    def __call__(self, values: Array, fractions: Sequence[float]) -> Array:
        """Quantiles of every row.

        Args:
            values: of all rows; or several kinds of values, one kind a row of the array.
            fractions: each between 0 and 1.

        Returns:
            Shape (fractions, rows), or (kinds, fractions, rows).
        """
        found = np.empty((*values.shape[:-1], len(fractions), self._count))
        for rows, lengths, places, beyond in self._classes:
            matrix = values[..., places]
            matrix[..., beyond] = np.inf
            matrix.sort(axis=-1)
            row = np.arange(len(rows))
            for place, q in enumerate(fractions):
                low, high, part = _ranks(lengths, q)
                found[..., place, rows] = _between(
                    matrix[..., row, low], matrix[..., row, high], part
                )
        return found


def weighted(values: Array, weights: Array, fractions: Sequence[float]) -> list[float]:
    """Quantiles of values ≥ 0, each of which stands for as many as its weight says."""
    values = np.abs(values.astype("float64"))  # −0 too has a sign
    # The order of floats ≥ 0 is that of their bits: the upper 16 cut the line into bins, so that
    # only the bins around the quantile have to be sorted.
    bins = values.view("int64") >> 48
    bins -= bins.min()
    filled = np.cumsum(np.bincount(bins, weights))
    found = []
    for fraction in fractions:
        low, high, part = _ranks(round(float(filled[-1])), fraction)
        first, last = np.searchsorted(filled, (low + 0.5, high + 0.5)).clip(max=len(filled) - 1)
        inside = np.flatnonzero((bins >= first) & (bins <= last))
        inside = inside[np.argsort(values[inside])]
        reached = np.cumsum(weights[inside]) + (filled[first - 1] if first else 0.0)
        places = np.searchsorted(reached, (low + 0.5, high + 0.5)).clip(max=len(inside) - 1)
        smaller, larger = values[inside[places]]
        found.append(float(_between(smaller, larger, part)))
    return found


def _ranks(count: Any, fraction: float) -> tuple[Any, Any, Any]:
    place = fraction * (count - 1)
    low = np.floor(place).astype("int64")
    return low, np.minimum(low + 1, count - 1), place - low


def _between(low: Array, high: Array, part: Any) -> Array:
    # Where one is infinite, their difference is not a number.
    with np.errstate(invalid="ignore"):
        return np.where((low == high) | (part == 0), low, low + (high - low) * part)
