"""StatisticsCollector: from an optimizer's slots to figures of its variables and its model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_yogi.statistics import device_read
from keras_yogi.statistics.optimizer_view import (
    OptimizerView,
    is_table,
    optimizer_views,
    variable_names,
)
from keras_yogi.statistics.per_weight import Terms, Totals, combine, figures_of, totals
from keras_yogi.statistics.sampling import FAST, FULL, Precision, limit, positions, quantiles

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
"""Weights of a variable that are processed at once: they may not all fit into memory."""


class Sampled(NamedTuple):
    """Terms of a sample, as arrays."""

    terms: Terms
    multiplicity: np.ndarray  # how many weights each weight of the sample stands for

    def reached(self, term: str) -> tuple[np.ndarray, np.ndarray]:
        """A term, and the multiplicity, of the weights that gradients have reached."""
        mask = self.terms["is_reached"]
        return self.terms[term][mask], self.multiplicity[mask]


class Snapshot(NamedTuple):
    """What the statistics of one moment follow from: tensors, which stay as they are."""

    of_views: list[tuple[Any, Any, Terms]]  # step, learning rate, terms of the sample
    skipped_steps: int


class Statistics(NamedTuple):
    """An optimizer's figures at one moment. A figure that is not defined is not there."""

    step: int
    learning_rates: dict[str, float]  # by optimizer
    model: dict[str, float]
    variables: dict[str, dict[str, float]]
    samples: dict[str, Sampled]  # by variable


class StatisticsCollector:
    """Collects the statistics of one optimizer, again and again.

    Args:
        optimizer: any Keras optimizer that is built.
        fast: the size of a `snapshot`. Defaults to FAST.
        full: the size of the sample of `statistics`. Defaults to FULL.
        chunk: weights of a variable that are processed at once. Defaults to CHUNK.
    """

    def __init__(
        self,
        optimizer: Any,
        fast: Precision = FAST,
        full: Precision = FULL,
        chunk: int = CHUNK,
    ) -> None:
        self._views = optimizer_views(optimizer)
        pairs = [(view, variable) for view in self._views for variable in view.variables]
        names = variable_names([variable for _, variable in pairs])
        self.variables = {name: v for name, (_, v) in zip(names, pairs, strict=True)}
        self.view_of = {name: view for name, (view, _) in zip(names, pairs, strict=True)}
        self.notes = list(dict.fromkeys(note for view in self._views for note in view.notes()))
        sizes = [int(np.prod(v.shape)) for v in self.variables.values()]
        self._fast_limit, self._full_limit = limit(sizes, fast), limit(sizes, full)
        self._chunk = chunk
        self._multiplicity: list[np.ndarray] = []
        for view in self._views:
            of_view = np.array([int(np.prod(v.shape)) for v in view.variables])
            counts = np.minimum(of_view, self._fast_limit)
            self._multiplicity.append(np.repeat(of_view / counts, counts))
        self._functions: dict[Any, Callable[..., Terms]] = {}

    def snapshot(self, compiled: bool = True) -> Snapshot:
        """Reads a sample now, for statistics that may be computed later.

        Args:
            compiled: make a graph, which pays if it is done again and again. Defaults to True.
        """
        of_views = []
        for index, view in enumerate(self._views):
            progress = view.progress()
            key = index, view.rule, compiled  # a graph holds the hyperparameters as constants
            if key not in self._functions:
                _ = view.figures  # tries a new rule out, which must not be traced
                terms = self._terms_function(view)
                self._functions[key] = device_read.compiled(terms, *progress) if compiled else terms
            of_views.append((*progress, self._functions[key](*progress)))
        return Snapshot(of_views, self._skipped_steps())

    def _terms_function(self, view: OptimizerView) -> Callable[..., Terms]:
        chosen = [positions(int(np.prod(v.shape)), self._fast_limit) for v in view.variables]
        readers = {
            name: device_read.reader(of_all, chosen, view.dtype)
            for name, of_all in view.streams.items()
        }
        return lambda step, rate: view.terms({n: read() for n, read in readers.items()}, step, rate)

    def sampled(self, snapshot: Snapshot) -> list[Sampled]:
        """The terms of a snapshot as arrays, by view."""
        pairs = zip(snapshot.of_views, self._multiplicity, strict=True)
        return [Sampled(_arrays(terms), multiplicity) for (_, _, terms), multiplicity in pairs]

    def model_statistics(self, snapshot: Snapshot) -> Statistics:
        """The figures of the whole model, estimated from a snapshot."""
        sampled = self.sampled(snapshot)
        return self._statistics(snapshot, sampled, [totals(*each) for each in sampled], {}, {})

    def statistics(self) -> Statistics:
        """The figures of the model and of every variable now: medians and percentiles of large
        variables from samples, everything else from all weights.
        """
        progress = {id(view): view.progress() for view in self._views}
        samples, variables, many = {}, {}, []
        for name, view in self.view_of.items():
            total, samples[name] = self._of_variable(name, *progress[id(view)])
            many.append(total)
            variables[name] = _figures(total, [samples[name]])
        snapshot = Snapshot([(*each, {}) for each in progress.values()], self._skipped_steps())
        return self._statistics(snapshot, [*samples.values()], many, variables, samples)

    def _of_variable(self, name: str, step: Any, rate: Any) -> tuple[Totals, Sampled]:
        """Totals of all weights of a variable, and terms of its sample."""
        view, variable = self.view_of[name], self.variables[name]
        index_in_view = [id(v) for v in view.variables].index(id(variable))
        rows = {stream: device_read.flat(of_all[index_in_view]) for stream, of_all in view.streams.items()}
        row = int(variable.shape[1]) if is_table(variable) else 1
        size, length = int(np.prod(variable.shape)), max(self._chunk // row, 1) * row
        chosen = positions(size, self._full_limit)
        many, samples = [], []
        for start in range(0, size, length):
            streams = {
                stream: ops.cast(values[start : start + length], view.dtype)
                for stream, values in rows.items()
            }
            terms = _arrays(view.terms(streams, step, rate))
            many.append(totals(terms, row=row if is_table(variable) else 0))
            here = chosen[(chosen >= start) & (chosen < start + length)] - start
            samples.append({term: values[here] for term, values in terms.items()})
        terms = {term: np.concatenate([each[term] for each in samples]) for term in samples[0]}
        return combine(many), Sampled(terms, np.full(len(chosen), size / len(chosen)))

    def _skipped_steps(self) -> int:
        return sum({id(view.optimizer): view.skipped_steps for view in self._views}.values())

    def _statistics(
        self,
        snapshot: Snapshot,
        sampled: list[Sampled],
        many: list[Totals],
        variables: dict[str, dict[str, float]],
        samples: dict[str, Sampled],
    ) -> Statistics:
        steps = [int(device_read.number(step)) for step, _, _ in snapshot.of_views]
        rates = {
            view.optimizer.name: device_read.number(rate)
            for view, (_, rate, _) in zip(self._views, snapshot.of_views, strict=True)
        }
        names = ["learning_rate"] if len(rates) == 1 else [f"learning_rate_{n}" for n in rates]
        model = {
            **dict(zip(names, rates.values(), strict=True)),
            **_figures(combine(many), sampled),
            "skipped_steps": float(snapshot.skipped_steps),
        }
        return Statistics(max(steps, default=0), rates, model, variables, samples)


def _arrays(terms: Terms) -> Terms:
    return {name: np.asarray(ops.convert_to_numpy(values)) for name, values in terms.items()}


def _figures(total: Totals, sampled: list[Sampled]) -> dict[str, float]:
    figures = figures_of(total)
    for term, fractions in _QUANTILES.items():
        if reached := [each.reached(term) for each in sampled if term in each.terms]:
            values = quantiles(*map(np.concatenate, zip(*reached, strict=True)), fractions.values())
            figures |= dict(zip(fractions, values, strict=True))
    return {name: figures[name] for name in FIGURES if name in figures}
