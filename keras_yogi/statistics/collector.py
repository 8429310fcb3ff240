"""StatisticsCollector: from an optimizer's slots to figures of its variables and its model.

Quantiles need their values in order, and a model may have billions. They come from samples: one
weight of each of equal stretches of a variable, because steps of one length would keep to a few
columns of a matrix. The draws are always the same.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_yogi.any_optimizer import (
    location,
    number,
    progress,
    rule_of,
    skipped_steps,
    to_numpy,
    unwrapped,
)
from keras_yogi.statistics.figures import Sample, Terms, Totals, combine, figures, totals
from keras_yogi.statistics.views import VariableView, views

Progress = dict[str, tuple[Any, Any]]
"""Of each optimizer by name, the steps made and the learning rate of the last."""
Pieces = list[tuple[VariableView, np.ndarray]]
"""Variables of one kind, each with positions in it."""
Precision = tuple[int, int, int]
"""How many weights are in a sample: a model of up to so many is its own; of a larger model; of
every variable at least, even if that is exceeded."""
FAST: Precision = (2**15, 2**12, 16)
"""After batches: a fraction of the cost of an update, however large the model."""
FULL: Precision = (2**20, 2**20, 2**14)
"""At the end of epochs."""
CHUNK = 2**20
"""Weights that are processed at once: all of them may not fit into memory."""


def positions(size: int, total: int, precision: Precision) -> np.ndarray:
    """The positions of a sample of a variable of `size` of the model's `total` weights, rising."""
    whole, budget, at_least = precision
    count = max(size * budget // max(total, 1), at_least)
    if total <= whole or size <= count:
        return np.arange(size)
    edges = np.arange(count + 1) * size // count
    draws = np.random.default_rng(size).random(count)
    return edges[:-1] + (draws * np.diff(edges)).astype("int64")


class Statistics(NamedTuple):
    """An optimizer's figures at one moment. A figure that is not defined is not there."""

    step: int
    learning_rates: dict[str, float]  # by optimizer
    model: dict[str, float]
    variables: dict[str, dict[str, float]]
    samples: dict[str, Sample]  # by variable


class StatisticsCollector:
    """Collects the statistics of one Keras optimizer that is built, again and again.

    An estimate has a sample of size `fast`, full statistics one of size `full`. `chunk` weights are
    processed at once.
    """

    def __init__(
        self, optimizer: Any, fast: Precision = FAST, full: Precision = FULL, chunk: int = CHUNK
    ) -> None:
        self._optimizer, self._fast, self._full, self._chunk = optimizer, fast, full, chunk
        self.views = views(optimizer)
        self.notes = [text for text in dict.fromkeys(v.note for v in self.views.values()) if text]
        self._total = sum(view.size for view in self.views.values())
        self._graphs: dict[Any, Callable[[Progress], list[Terms]]] = {}

    def estimate(self, compiled: bool = True) -> dict[str, float]:
        """The figures of the whole model, from a sample; in one graph, which pays if done often."""
        now = self._progress()
        read: Callable[[Progress], list[Terms]] = self._read_sample
        if compiled and keras.config.backend() == "tensorflow":  # on JAX it would keep old values
            # A graph keeps hyperparameters, too.
            key = tuple((rule_of(each), each.weight_decay) for each in self._optimizers())
            read = self._graphs[key] = self._graphs.get(key) or _graph(read, now)
        pairs = zip(read(now), self._sample, strict=True)
        samples = [Sample(_arrays(terms), multiplicity) for terms, (_, multiplicity) in pairs]
        return self._of_model(now, [*map(totals, samples)], samples)

    @cached_property
    def _sample(self) -> list[tuple[Pieces, np.ndarray]]:
        """Of each kind the pieces, and how many weights each of theirs stands for."""
        kinds: dict[Any, Pieces] = {}
        # Neighbours share an array, if they share any.
        array = {name: id(location(v.slots.get("velocity"))[0]) for name, v in self.views.items()}
        for view in map(self.views.__getitem__, sorted(array, key=array.__getitem__)):
            chosen = positions(view.size, self._total, self._fast)
            kinds.setdefault(view.kind, []).append((view, chosen))
        counts = [[np.full(len(p), v.size / len(p)) for v, p in k] for k in kinds.values()]
        return [*zip(kinds.values(), map(np.concatenate, counts), strict=True)]

    def _read_sample(self, now: Progress) -> list[Terms]:
        return [_terms(pieces, now) for pieces, _ in self._sample]

    def statistics(self) -> Statistics:
        """The figures of the model and of every variable: medians and percentiles of large
        variables from samples, everything else from all weights.
        """
        now = self._progress()
        many, samples = {}, {}
        for name, view in self.views.items():
            many[name], samples[name] = self._of_variable(view, now)
        return Statistics(
            max((int(number(step)) for step, _ in now.values()), default=0),
            {name: number(rate) for name, (_, rate) in now.items()},
            self._of_model(now, [*many.values()], [*samples.values()]),
            {name: figures(many[name], [samples[name]]) for name in many},
            samples,
        )

    def _of_variable(self, view: VariableView, now: Progress) -> tuple[Totals, Sample]:
        chosen = positions(view.size, self._total, self._full)
        row = max(view.row_length, 1)
        length = max(self._chunk // row, 1) * row
        parts, kept = [], []
        for start in range(0, view.size, length):
            piece = np.arange(start, min(start + length, view.size))
            terms = _arrays(_terms([(view, piece)], now))
            parts.append(totals(Sample(terms, np.ones(len(piece))), view.row_length))
            here = np.isin(piece, chosen, assume_unique=True)
            kept.append({name: values[here] for name, values in terms.items()})
        joined = {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}
        return combine(parts), Sample(joined, np.full(len(chosen), view.size / len(chosen)))

    def _optimizers(self) -> list[Any]:
        return [each for each in unwrapped(self._optimizer) if each.built]

    def _progress(self) -> Progress:
        return {each.name: progress(each) for each in self._optimizers()}

    def _of_model(
        self, now: Progress, many: Sequence[Totals], samples: Sequence[Sample]
    ) -> dict[str, float]:
        tags = {name: f"learning_rate_{name}" if len(now) > 1 else "learning_rate" for name in now}
        found = {tags[name]: number(rate) for name, (_, rate) in now.items()}
        found |= figures(combine(many), samples)
        return {**found, "skipped_steps": float(skipped_steps(self._optimizer))}


def _terms(pieces: Pieces, now: Progress) -> Terms:
    """The terms of weights of variables of one kind, at some positions."""
    first = pieces[0][0]
    streams = {name: ops.concatenate(_read(name, pieces)) for name in first.streams}
    return first.terms(streams, *now[first.optimizer.name])


def _read(name: str, pieces: Pieces) -> list[Any]:
    """Values of one stream. Of neighbours that share an array, it is read once."""
    places = [(*location(view.streams[name]), piece) for view, piece in pieces]
    groups = [[*group] for _, group in itertools.groupby(places, key=lambda place: id(place[0]))]
    return [ops.take(_flat(g[0][0]), _indices([i + p for _, i, p in g])) for g in groups]


def _indices(parts: Sequence[Any]) -> Any:
    indices = np.concatenate(parts)  # of which Keras may make floats; JAX has no int64 by default
    return ops.convert_to_tensor(indices, "int32" if indices.max() < 2**31 else "int64")


def _graph(function: Callable[..., Any], example: Any) -> Callable[..., Any]:
    import tensorflow as tf

    # Called as traced: a lookup of the trace would hash every variable at every call.
    return tf.function(function, autograph=False).get_concrete_function(example)


def _flat(variable: Any) -> Any:
    # To gather from a TensorFlow variable itself would make TensorFlow copy it at later reads.
    return ops.reshape(ops.convert_to_tensor(variable), [-1])


def _arrays(terms: Terms) -> Terms:
    return {name: to_numpy(values) for name, values in terms.items()}
