"""Samples of weights, and quantiles of them.

Quantiles need their values in order, and a model may have billions. So they are computed from a
sample: all weights of a small model; of a larger one, as many weights of each large variable as the
small ones leave room for. One weight is drawn from each of equal stretches of a variable, because
steps of one length would keep to a few columns of a matrix. The draws are always the same.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Precision(NamedTuple):
    """How many weights are in a sample."""

    whole: int  # a model of up to so many weights is its own sample
    budget: int  # of a larger model
    at_least: int  # of every variable, even if the budget is exceeded


FAST = Precision(2**16, 2**13, 32)
"""After batches: a fraction of the cost of an update, however large the model."""
FULL = Precision(2**20, 2**20, 2**14)
"""At the end of epochs."""


def limit(sizes: Sequence[int], precision: Precision) -> int:
    """The largest number of weights of one variable in a sample, given the sizes of all."""
    if sum(sizes) <= precision.whole:
        return max(sizes, default=0)
    room = precision.budget
    for smaller, size in enumerate(sorted(sizes)):
        share = room // (len(sizes) - smaller)
        if size > share:
            return max(share, precision.at_least)
        room -= size
    return max(sizes)


def positions(size: int, most: int) -> np.ndarray:
    """The positions of at most `most` of `size` weights, in rising order."""
    if size <= most:
        return np.arange(size)
    edges = np.arange(most + 1) * size // most
    draws = np.random.default_rng(size).random(most)
    return edges[:-1] + (draws * np.diff(edges)).astype("int64")


def quantiles(
    values: np.ndarray, multiplicity: np.ndarray, fractions: Iterable[float]
) -> list[float]:
    """numpy.quantile of values, each repeated as often as its multiplicity says; NaN of none."""
    fractions = np.array([*fractions])
    if not len(values):
        return [np.nan] * len(fractions)
    if np.all(multiplicity == multiplicity[0]):
        values = np.sort(values)  # much faster than argsort
    else:
        order = np.argsort(values)
        values, multiplicity = values[order], multiplicity[order]
    ends = np.cumsum(multiplicity)
    last = np.rint(ends[-1]) - 1
    ranks = fractions * last
    low, high = (
        values[np.searchsorted(ends, np.floor(each) + 0.5).clip(max=len(values) - 1)]
        for each in (ranks, np.minimum(ranks + 1, last))
    )
    with np.errstate(invalid="ignore"):  # where one of them is infinite
        found = np.where((low == high) | (ranks % 1 == 0), low, low + (high - low) * (ranks % 1))
    return list(map(float, found))
