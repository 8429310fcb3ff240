"""Which weights are looked at, and how they are read.

Medians and percentiles need their values in order, and a model may have billions. So they are
taken of a sample: of every variable all weights, if the model is small, or else of the larger
variables as many as the others leave room for. The weights of a sample are spread evenly, one
drawn from each of as many equal stretches of the variable: steps of one length would keep to a few
columns of a matrix. The draws are fixed, so that two readings look at the same weights.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_yogi.diagnostics import reading

Tensor = Any
Integers = np.ndarray


class Precision(NamedTuple):
    """How many weights are looked at."""

    whole: int  # a model of up to so many is looked at whole
    budget: int  # of a larger model, for medians and percentiles
    at_least: int  # of every variable, even if the model's become more
    complete: bool  # whether everything but medians and percentiles is of all weights
    compiled: bool  # whether it is done so often that a graph pays


EVERY_BATCH = Precision(2**16, 2**13, 32, complete=False, compiled=True)
"""Costs a fraction of an update, however large the model."""
THOROUGH = Precision(2**20, 2**20, 2**14, complete=True, compiled=False)


def limit(sizes: Sequence[int], precision: Precision) -> int:
    """The most weights of one variable that are looked at, given the sizes of all."""
    if sum(sizes) <= precision.whole:
        return max(sizes, default=0)
    room = precision.budget
    for place, size in enumerate(sorted(sizes)):
        share = room // (len(sizes) - place)
        if size > share:
            return max(share, precision.at_least)
        room -= size
    return max(sizes)


def positions(size: int, count: int) -> Integers:
    """Which `count` of `size` weights are looked at, in rising order."""
    edges = np.arange(count + 1) * size // count
    draws = np.random.default_rng(size).random(count)
    return edges[:-1] + (draws * np.diff(edges)).astype("int64")


class Sample:
    """Which weights of some variables are looked at. They lie one variable after another."""

    def __init__(self, sizes: Sequence[int], most: int) -> None:
        """Takes the variables' sizes, and the most weights of one that are looked at."""
        self.sizes = np.array(sizes, "int64")
        self.counts = np.minimum(self.sizes, most)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.owners = np.repeat(np.arange(len(sizes)), self.counts)
        # How many weights of its variable each one that is looked at stands for.
        self.weights = np.repeat(self.sizes / self.counts, self.counts)
        self.chosen = [
            np.arange(size) if count == size else positions(size, count)
            for size, count in zip(self.sizes, self.counts, strict=True)
        ]

    def of(self, place: int) -> slice:
        """Where the weights of a variable lie."""
        return slice(self.starts[place], self.starts[place + 1])

    def reader(self, variables: Sequence[Any], dtype: str) -> Callable[[], Tensor]:
        """A function that reads the sample of these variables into one vector.

        Variables that lie in one array, as the fused engine's slots do, are read together.
        """
        arrays: dict[int, Any] = {}
        wanted: dict[int, list[Integers]] = {}
        targets: dict[int, list[Integers]] = {}
        for place, variable in enumerate(variables):
            array, start = reading.location(variable)
            arrays[id(array)] = array
            wanted.setdefault(id(array), []).append(start + self.chosen[place])
            targets.setdefault(id(array), []).append(np.arange(*self.starts[place : place + 2]))
        pieces = [(arrays[key], np.concatenate(wanted[key]).astype("int32")) for key in arrays]
        order = np.argsort(np.concatenate([t for key in arrays for t in targets[key]]))
        in_order = bool(np.all(order == np.arange(len(order))))

        def read() -> Tensor:
            parts = [ops.cast(reading.take(*piece), dtype) for piece in pieces]
            joined = ops.concatenate(parts)
            return joined if in_order else ops.take(joined, order)

        return read
