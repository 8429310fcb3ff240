"""StatisticsCollector: from an optimizer's slots to figures of its variables and its model."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_yogi.statistics import device_read, optimizer_view
from keras_yogi.statistics.optimizer_view import OptimizerView, is_table
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
"""Weights of a variable that are processed at once: they may not all fit into memory."""


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
        chunk: weights of a variable that are processed at once. Defaults to CHUNK.
    """

    def __init__(
        self, optimizer: Any, fast: Precision = FAST, full: Precision = FULL, chunk: int = CHUNK
    ) -> None:
        self._optimizer, self._chunk = optimizer, chunk
        self._views = optimizer_view.optimizer_views(optimizer)
        pairs = [(view, variable) for view in self._views for variable in view.variables]
        names = optimizer_view.variable_names([variable for _, variable in pairs])
        self.variables = {name: v for name, (_, v) in zip(names, pairs, strict=True)}
        self.view_of = {name: view for name, (view, _) in zip(names, pairs, strict=True)}
        self.notes = [note for note in dict.fromkeys(v.note() for v in self._views) if note]
        self._fast, self._full = fast, full
        self._total = sum(_size(variable) for _, variable in pairs)
        self._functions: dict[Any, Any] = {}

    def estimate(self, compiled: bool = True) -> Statistics:
        """The figures of the whole model, estimated from a sample.

        Args:
            compiled: make a graph, which pays if it is done again and again. Defaults to True.
        """
        progress = [view.progress() for view in self._views]
        samples: dict[str, Sample] = {}
        for index, (view, now) in enumerate(zip(self._views, progress, strict=True)):
            key = index, view.rule, compiled  # a graph holds the hyperparameters as constants
            if key not in self._functions:
                _ = view.figures  # tries a new rule out, which must not be traced
                terms, multiplicity = self._sampled_terms(view)
                terms = device_read.compiled(terms, *now) if compiled else terms
                self._functions[key] = terms, multiplicity
            terms, multiplicity = self._functions[key]
            samples[str(index)] = Sample(_arrays(terms(*now)), multiplicity)
        return self._statistics(progress, [totals(*each) for each in samples.values()], samples)

    def statistics(self) -> Statistics:
        """The figures of the model and of every variable: medians and percentiles of large
        variables from samples, everything else from all weights.
        """
        progress = [view.progress() for view in self._views]
        samples, variables, many = {}, {}, []
        names = iter(self.variables)
        for view, now in zip(self._views, progress, strict=True):
            for index in range(len(view.variables)):
                total, sample = self._of_variable(view, index, *now)
                many.append(total)
                samples[name := next(names)] = sample
                variables[name] = _figures(total, [sample])
        return self._statistics(progress, many, samples, variables)

    def _sampled_terms(self, view: OptimizerView) -> tuple[Any, np.ndarray]:
        """A function of step and learning rate, and the multiplicity of the weights it reads."""
        first = next(iter([*view.slots.values(), view.variables]))
        order = sorted(range(len(first)), key=lambda i: id(device_read.array_of(first[i])[0]))
        sizes = [_size(view.variables[i]) for i in order]
        chosen = [positions(size, self._total, self._fast) for size in sizes]
        readers = {
            name: device_read.reader([of_all[i] for i in order], chosen, view.dtype)
            for name, of_all in view.streams.items()
        }

        def terms(step: Any, rate: Any) -> Terms:
            return view.terms({name: read() for name, read in readers.items()}, step, rate)

        counts = [len(each) for each in chosen]
        return terms, np.repeat(np.divide(sizes, counts), counts)

    def _of_variable(
        self, view: OptimizerView, index: int, step: Any, rate: Any
    ) -> tuple[Totals, Sample]:
        """Totals of all weights of a variable, and a sample."""
        variable = view.variables[index]
        rows = {name: device_read.flat(of_all[index]) for name, of_all in view.streams.items()}
        row = int(variable.shape[1]) if is_table(variable) else 0
        size, length = _size(variable), max(self._chunk // (row or 1), 1) * (row or 1)
        chosen = positions(size, self._total, self._full)
        many, parts = [], []
        for start in range(0, size, length):
            stop = min(start + length, size)
            streams = {n: ops.cast(each[start:stop], view.dtype) for n, each in rows.items()}
            terms = _arrays(view.terms(streams, step, rate))
            many.append(totals(terms, row=row))
            here = chosen[(chosen >= start) & (chosen < stop)] - start
            parts.append({name: values[here] for name, values in terms.items()})
        sample = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return combine(many), Sample(sample, np.full(len(chosen), size / len(chosen)))

    def _statistics(
        self,
        progress: Sequence[tuple[Any, Any]],
        many: Sequence[Totals],
        samples: dict[str, Sample],
        variables: dict[str, dict[str, float]] | None = None,
    ) -> Statistics:
        names = [view.optimizer.name for view in self._views]
        rates = dict(zip(names, (device_read.number(rate) for _, rate in progress), strict=True))
        model = {
            "learning_rate" if len(rates) == 1 else f"learning_rate_{name}": rate
            for name, rate in rates.items()
        }
        model |= _figures(combine(many), list(samples.values()))
        model["skipped_steps"] = float(optimizer_view.skipped_steps(self._optimizer))
        step = max((int(device_read.number(step)) for step, _ in progress), default=0)
        return Statistics(step, rates, model, variables or {}, samples)


def _size(variable: Any) -> int:
    return int(np.prod(variable.shape))


def _arrays(terms: Terms) -> Terms:
    return {name: np.asarray(ops.convert_to_numpy(values)) for name, values in terms.items()}


def _figures(total: Totals, samples: list[Sample]) -> dict[str, float]:
    figures = figures_of(total)
    for term, fractions in _QUANTILES.items():
        if reached := [each.reached(term) for each in samples if term in each.terms]:
            values, multiplicity = map(np.concatenate, zip(*reached, strict=True))
            found = quantiles(values, multiplicity, list(fractions.values()))
            figures |= dict(zip(fractions, found, strict=True))
    return {name: figures[name] for name in FIGURES if name in figures}
