"""StatisticsCollector: from an optimizer's slots to figures of its variables and its model."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_yogi.statistics import device_read, optimizer_view
from keras_yogi.statistics.optimizer_view import OptimizerView
from keras_yogi.statistics.per_weight import Terms, Totals, combine, figures_of, totals
from keras_yogi.statistics.sampling import FAST, FULL, Precision, positions, quantiles

FIGURES = {
    "learning_rate": "η of the last step",
    "weight_norm": "Euclidean norm of the weights",
    "momentum_norm": "Euclidean norm of the momentum m",
    "velocity_norm": "Euclidean norm of the velocity v",
    "update_norm": "Euclidean norm of the last update, η m̂ / (√v̂ + ε), without weight decay",
    "update_to_weight_ratio": "norm of the last update / norm of the weights",
    "reached_share": "share of the weights that gradients have reached: their slots have changed",
    "effective_lr_min": "smallest η / (√v̂ + ε) of the weights that gradients have reached",
    "effective_lr_median": "median η / (√v̂ + ε) of the weights that gradients have reached",
    "effective_lr_p99_9": "99.9th percentile of η / (√v̂ + ε), of weights with gradients",
    "effective_lr_max": "largest η / (√v̂ + ε) of the weights that gradients have reached",
    "epsilon_share": "share with √v̂ < ε, of the weights that gradients have reached",
    "initial_velocity_share": "share with v ≤ 2 v₀, of the weights that gradients have reached",
    "signal_to_noise_median": "median |m̂| / √v̂ of the weights that gradients have reached",
    "initial_rows": "rows of embeddings whose slots have their initial values",
    "skipped_steps": "steps that `skip_nonfinite` has left out",
}
"""All figures, in order, with their descriptions."""

_QUANTILES = {
    "effective_lr": {"effective_lr_median": 0.5, "effective_lr_p99_9": 0.999},
    "signal_to_noise": {"signal_to_noise_median": 0.5},
}

CHUNK = 2**20
"""Weights that are processed at once: all of them may not fit into memory."""


class Sample(NamedTuple):
    """Terms of some weights, as arrays."""

    terms: Terms
    multiplicity: np.ndarray  # how many weights each of them stands for

    def reached(self, term: str) -> tuple[np.ndarray, np.ndarray]:
        """A term, and the multiplicity, of the weights that gradients have reached."""
        mask = self.terms["is_reached"]
        return self.terms[term][mask], self.multiplicity[mask]


class Statistics(NamedTuple):
    """An optimizer's figures at one moment. A figure that is not defined is not there."""

    step: int
    learning_rates: dict[str, float]  # by optimizer
    model: dict[str, float]
    variables: dict[str, dict[str, float]]
    samples: dict[str, Sample]  # by variable; of an estimate, by view


class StatisticsCollector:
    """Collects the statistics of one optimizer, again and again.

    Args:
        optimizer: any Keras optimizer that is built.
        fast: the size of the sample of an estimate. Defaults to FAST.
        full: the size of the sample of full statistics. Defaults to FULL.
        chunk: how many weights are processed at once. Defaults to CHUNK.
    """

    def __init__(
        self, optimizer: Any, fast: Precision = FAST, full: Precision = FULL, chunk: int = CHUNK
    ) -> None:
        self._optimizer, self._fast, self._full, self._chunk = optimizer, fast, full, chunk
        self._views = optimizer_view.optimizer_views(optimizer)
        variables = [variable for view in self._views for variable in view.variables]
        self.variables = dict(zip(optimizer_view.variable_names(variables), variables, strict=True))
        views = [view for view in self._views for _ in view.variables]
        self.view_of = dict(zip(self.variables, views, strict=True))
        self.notes = [note for note in dict.fromkeys(v.note() for v in self._views) if note]
        self._total = sum(map(_size, variables))
        self._functions: dict[Any, Any] = {}

    def estimate(self, compiled: bool = True) -> Statistics:
        """The figures of the whole model, from a sample; in a graph, which pays if done often."""
        progress = [view.progress() for view in self._views]
        samples: dict[str, Sample] = {}
        for index, (view, now) in enumerate(zip(self._views, progress, strict=True)):
            key = index, view.rule, compiled  # a graph holds the hyperparameters as constants
            if key not in self._functions:
                sizes = [(i, _size(view.variables[i])) for i in view.reading_order()]
                pieces = [(i, positions(size, self._total, self._fast)) for i, size in sizes]
                pairs = [
                    (size, len(piece)) for (_, size), (_, piece) in zip(sizes, pieces, strict=True)
                ]
                function = _terms_function(view, pieces)
                self._functions[key] = (
                    device_read.compiled(function, *now) if compiled else function,
                    np.concatenate([np.full(count, size / count) for size, count in pairs]),
                )
            function, multiplicity = self._functions[key]
            samples[str(index)] = Sample(_arrays(function(*now)), multiplicity)
        return self._statistics(progress, [totals(*each) for each in samples.values()], samples, {})

    def statistics(self) -> Statistics:
        """The figures of the model and of every variable: medians and percentiles of large
        variables from samples, everything else from all weights.
        """
        progress = [view.progress() for view in self._views]
        many: dict[str, Totals] = {name: {} for name in self.variables}
        parts: dict[str, list[Sample]] = {name: [] for name in self.variables}
        names = iter(self.variables)
        for view, now in zip(self._views, progress, strict=True):
            of_view = [next(names) for _ in view.variables]
            for pieces in self._chunks(view):
                terms, end = _arrays(_terms_function(view, pieces)(*now)), 0
                for index, piece in pieces:
                    start, end = end, end + len(piece)
                    name, variable = of_view[index], view.variables[index]
                    part = {term: values[start:end] for term, values in terms.items()}
                    total = totals(part, row=optimizer_view.row_length(variable))
                    many[name] = combine([many[name], total])
                    parts[name].append(self._sample_of(_size(variable), piece, part))
        samples = {name: _joined(of_variable) for name, of_variable in parts.items()}
        variables = {name: _figures(many[name], [samples[name]]) for name in many}
        return self._statistics(progress, [*many.values()], samples, variables)

    def _chunks(self, view: OptimizerView) -> Iterator[list[tuple[int, np.ndarray]]]:
        """All weights of a view, in chunks of pieces: indices of variables, and positions."""
        pieces: list[tuple[int, np.ndarray]] = []
        for index in view.reading_order():
            row = optimizer_view.row_length(view.variables[index]) or 1
            length, size = max(self._chunk // row, 1) * row, _size(view.variables[index])
            for start in range(0, size, length):
                piece = np.arange(start, min(start + length, size))
                if pieces and sum(len(p) for _, p in pieces) + len(piece) > self._chunk:
                    yield pieces
                    pieces = []
                pieces.append((index, piece))
        yield pieces

    def _sample_of(self, size: int, piece: np.ndarray, terms: Terms) -> Sample:
        chosen = positions(size, self._total, self._full)
        here = chosen[(chosen >= piece[0]) & (chosen <= piece[-1])] - piece[0]
        sample = {name: values[here] for name, values in terms.items()}
        return Sample(sample, np.full(len(here), size / len(chosen)))

    def _statistics(
        self,
        progress: Sequence[tuple[Any, Any]],
        many: Sequence[Totals],
        samples: dict[str, Sample],
        variables: dict[str, dict[str, float]],
    ) -> Statistics:
        names = [view.optimizer.name for view in self._views]
        rates = dict(zip(names, (device_read.number(rate) for _, rate in progress), strict=True))
        tags = [f"learning_rate_{name}" if len(rates) > 1 else "learning_rate" for name in rates]
        model = dict(zip(tags, rates.values(), strict=True))
        model |= _figures(combine(many), list(samples.values()))
        model["skipped_steps"] = float(optimizer_view.skipped_steps(self._optimizer))
        step = max((int(device_read.number(step)) for step, _ in progress), default=0)
        return Statistics(step, rates, model, variables, samples)


def _terms_function(view: OptimizerView, pieces: Sequence[tuple[int, np.ndarray]]) -> Any:
    """A function of step and learning rate that gives the terms of some weights of a view."""
    _ = view.figures  # tries a new rule out, which must not be traced
    chosen = [piece for _, piece in pieces]
    readers = {
        name: device_read.reader([of_all[i] for i, _ in pieces], chosen, view.compute_dtype)
        for name, of_all in view.streams.items()
    }
    return lambda step, rate: view.terms({n: read() for n, read in readers.items()}, step, rate)


def _figures(total: Totals, samples: list[Sample]) -> dict[str, float]:
    figures = figures_of(total)
    for term, fractions in _QUANTILES.items():
        if reached := [each.reached(term) for each in samples if term in each.terms]:
            values, multiplicity = map(np.concatenate, zip(*reached, strict=True))
            found = quantiles(values, multiplicity, list(fractions.values()))
            figures |= dict(zip(fractions, found, strict=True))
    return {name: figures[name] for name in FIGURES if name in figures}


def _joined(samples: list[Sample]) -> Sample:
    terms = {n: np.concatenate([each.terms[n] for each in samples]) for n in samples[0].terms}
    return Sample(terms, np.concatenate([each.multiplicity for each in samples]))


def _arrays(terms: Terms) -> Terms:
    return {name: np.asarray(ops.convert_to_numpy(values)) for name, values in terms.items()}


def _size(variable: Any) -> int:
    return int(np.prod(variable.shape))
