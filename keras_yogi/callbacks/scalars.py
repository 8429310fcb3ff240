"""The scalars of an optimizer in a TensorBoard file: one record a step."""

import time

import numpy as np

from keras_yogi.callbacks import summaries
from keras_yogi.callbacks.event_file import EventFile
from keras_yogi.diagnostics.gauge import FIGURES, Gauge, Reading, Sight
from keras_yogi.diagnostics.report import model_figures

_TOGETHER = 10
"""Looks that become records at once: less work than one by one between two training steps, and on
a GPU the host need not wait for each. tf.summary, too, hands on ten events at once."""

_ON_CARDS = (
    "effective_learning_rate_median",
    "effective_learning_rate_max_touched",
    "update_to_weight_ratio",
    "epsilon_share",
)
"""The figures that get a card a layer."""


class ScalarWriter:
    """Writes what a gauge reads, now or when there is enough of it."""

    def __init__(self, events: EventFile, per_variable: bool) -> None:
        self._events, self._per_variable = events, per_variable
        self._waiting: list[tuple[Gauge, Sight, int, float]] = []
        self._record: summaries.Scalars | None = None

    def add(self, gauge: Gauge, step: int) -> None:
        """Looks now; writes now or later.

        Args:
            gauge: of the optimizer.
            step: where the scalars stand on the axis.

        Raises:
            RuntimeError: the file was closed.
        """
        self._events.check_open()
        self._waiting.append((gauge, gauge.look(), step, time.time()))
        if len(self._waiting) == _TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Writes all that waits."""
        waiting, self._waiting = self._waiting, []
        for gauge, sight, step, moment in waiting:
            self.write(gauge.read(sight), step, moment)
        self._events.flush()

    def close(self) -> None:
        """Writes all that waits; nothing can be written any more."""
        try:
            self.flush()
        finally:
            self._events.close()

    def write(self, reading: Reading, step: int, moment: float | None = None) -> None:
        """Writes now.

        Args:
            reading: the figures.
            step: where they stand on the axis.
            moment: when they were read, as `time.time()` says it. Defaults to now.
        """
        of_model = model_figures(reading)
        values = [np.array([*of_model.values()])]
        if self._per_variable:
            values += [reading.of_variables[figure][reading.told[figure]] for figure in FIGURES]
            values.append(np.array([rows for rows, _ in reading.untouched_rows.values()]))
        first = self._record is None
        if self._record is None:
            self._record = summaries.Scalars(_tags(reading, list(of_model), self._per_variable))
        self._events.write(self._record.serialized(np.concatenate(values)), step, moment)
        if self._per_variable and first:
            layers = list(dict.fromkeys(map(layer_of, reading.names)))
            self._events.write(summaries.cards(layers, _ON_CARDS), 0)


def layer_of(name: str) -> str:
    """The layer that a variable of this name belongs to."""
    return name.rpartition("/")[0] or name


def _tags(reading: Reading, of_model: list[str], per_variable: bool) -> list[str]:
    tags = [f"optimizer/{figure}" for figure in of_model]
    if per_variable:
        tags += [
            f"optimizer_layers/{reading.names[place]}/{figure}"
            for figure in FIGURES
            for place in np.flatnonzero(reading.told[figure])
        ]
        tags += [
            f"optimizer_layers/{reading.names[place]}/untouched_rows"
            for place in reading.untouched_rows
        ]
    return tags
