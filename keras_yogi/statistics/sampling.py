"""Samples of weights, and quantiles of them.

Quantiles need their values in order, and a model may have billions. One weight is drawn from each
of equal stretches of a variable, because steps of one length would keep to a few columns of a
matrix. The draws are always the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Precision(NamedTuple):
    """How many weights are in a sample."""

    whole: int  # a model of up to so many weights is its own sample
    budget: int  # of a larger model
    at_least: int  # of every variable, even if the budget is exceeded


FAST = Precision(2**15, 2**12, 16)
"""After batches: a fraction of the cost of an update, however large the model."""
FULL = Precision(2**20, 2**20, 2**14)
"""At the end of epochs."""


def positions(size: int, total: int, precision: Precision) -> np.ndarray:
    """The positions of a sample of a variable of `size` of the model's `total` weights, rising."""
    count = max(size * precision.budget // max(total, 1), precision.at_least)
    if total <= precision.whole or size <= count:
        return np.arange(size)
    edges = np.arange(count + 1) * size // count
    draws = np.random.default_rng(size).random(count)
    return edges[:-1] + (draws * np.diff(edges)).astype("int64")


def quantiles(
    values: np.ndarray, multiplicity: np.ndarray, fractions: Sequence[float]
) -> list[float]:
    """For each fraction, the smallest value that so large a share of the weights does not exceed.

    Args:
        values: of some weights; of none, the quantiles are NaN.
        multiplicity: how many weights each of them stands for.
        fractions: between 0 and 1.
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
