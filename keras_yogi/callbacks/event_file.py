"""A run's event file, which TensorBoard's own writer fills on a thread of its own."""

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram import metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from keras_yogi.statistics.figures import FIGURES, Sample

BUCKETS = 30  # of a histogram: tf.summary.histogram's default
HISTOGRAMS = {
    "effective_lr": "log₁₀ of the effective learning rate η / (√v̂ + ε)",
    "root_velocity": "log₁₀ of √v̂",
    "update": "log₁₀ of the size of the last update",
}
"""The terms of each weight that have histograms, with their descriptions."""


class EventFile:
    """Events of one run.

    A folder that cannot be written to is TensorFlow's error. A disk that is full later on ends the
    file with a warning, not the training: tf.summary does so too, without a word.
    """

    def __init__(self, folder: str) -> None:
        self._folder, self._failed = folder, False
        self._writer = EventFileWriter(folder, filename_suffix=".keras_yogi")
        self._templates: dict[Any, Summary] = {}

    def scalars(self, figures: Mapping[str, float], step: int, variable: str = "") -> None:
        """Adds figures of the whole model, or of a variable.

        Into a template: to make a Summary takes longer than an update of a small model.
        """
        if (key := (variable, *figures)) not in self._templates:
            template = self._templates[key] = Summary()
            rate = FIGURES["learning_rate"]  # with several optimizers, learning_rate_<name>
            for name in figures:
                tag = f"optimizer_{name}/{variable}" if variable else f"optimizer/{name}"
                template.MergeFrom(scalar_pb(tag, 0.0, FIGURES.get(name, rate)))
        for value, figure in zip(self._templates[key].value, figures.values(), strict=True):
            value.tensor.float_val[0] = figure
        self.add(self._templates[key], step)

    def histograms(self, samples: Mapping[str, Sample], step: int) -> None:
        """Adds how often the terms in HISTOGRAMS have which size in each layer."""
        columns: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
        for name, (terms, multiplicity) in samples.items():
            for term in HISTOGRAMS.keys() & terms.keys():
                with np.errstate(divide="ignore"):
                    logarithms = np.log10(np.abs(terms[term].astype("float64")))
                columns.setdefault((term, layer_of(name)), []).append((logarithms, multiplicity))
        summary = Summary()
        for (term, layer), parts in columns.items():
            counts = buckets(*map(np.concatenate, zip(*parts, strict=True)))
            about = metadata.create_summary_metadata(None, HISTOGRAMS[term])
            tag, tensor = f"optimizer_log10_{term}/{layer}", make_tensor_proto(counts)
            summary.value.add(tag=tag, metadata=about, tensor=tensor)
        self.add(summary, step)

    def add(self, summary: Any, step: int) -> None:
        """Adds a summary, at its place on the axis."""
        event = Event(step=step, wall_time=time.time())
        # Some are of TensorFlow's class of that name, and the writer takes TensorBoard's alone.
        event.summary.ParseFromString(summary.SerializeToString())
        self._try(self._writer.add_event, event)

    def flush(self) -> None:
        self._try(self._writer.flush)

    def close(self) -> None:
        self._try(self._writer.close)

    def _try(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            if not self._failed:
                action(*arguments)
        except (tf.errors.OpError, OSError) as error:
            self._failed = True
            text = f"Nothing more is written to {self._folder}; training goes on. {error}"
            warnings.warn(text, stacklevel=4)


def buckets(values: np.ndarray, multiplicity: np.ndarray) -> np.ndarray:
    """Rows of left edge, right edge and count; values that are not finite are left out."""
    finite = np.isfinite(values)
    values, multiplicity = values[finite].astype("float64"), multiplicity[finite]
    if not len(values):
        return np.zeros((BUCKETS, 3))
    low, high = values.min(), values.max()
    least = 1e-9 * max(abs(low), abs(high), 1e-300)
    if high - low < least:  # too near to each other for edges between them
        low, high = low - 1e3 * least, high + 1e3 * least
    counts, edges = np.histogram(values, BUCKETS, (low, high), weights=multiplicity)
    return np.stack([edges[:-1], edges[1:], counts], axis=1)


def layer_of(name: str) -> str:
    """The layer that a variable of this name belongs to."""
    return name.rpartition("/")[0] or name
