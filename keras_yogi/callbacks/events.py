"""What TensorBoard is given of a run: summaries, and the file that its own writer puts them in."""

import dataclasses
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.histogram.metadata import create_summary_metadata
from tensorboard.plugins.hparams import api, api_pb2
from tensorboard.plugins.hparams import summary as hparams
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

import keras_yogi
from keras_yogi.any_optimizer import arguments, class_name, hyperparameters, plain, unwrapped
from keras_yogi.rules import AdamRule, YogiRule
from keras_yogi.statistics.figures import FIGURES, Sample

BUCKETS = 30  # of a histogram: tf.summary.histogram's default
HISTOGRAMS = {
    "effective_lr": "log₁₀ of the effective learning rate η / (√v̂ + ε)",
    "root_velocity": "log₁₀ of √v̂",
    "update": "log₁₀ of the size of the last update",
}
"""The terms of each weight that have histograms, with their descriptions."""
CARDS = ("effective_lr_median", "effective_lr_max", "update_to_weight_ratio", "epsilon_share")
"""The figures that have a card for each layer, on the page of custom scalars."""
FIRST_COLUMNS = ("optimizer", "learning_rate", "epsilon", "initial_accumulator_value")


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


def histograms(samples: Mapping[str, Sample]) -> Summary:
    """How often the terms in HISTOGRAMS have which size in each layer."""
    columns: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for name, (terms, multiplicity) in samples.items():
        for term in HISTOGRAMS.keys() & terms.keys():
            with np.errstate(divide="ignore"):
                logarithms = np.log10(np.abs(terms[term].astype("float64")))
            columns.setdefault((term, _layer_of(name)), []).append((logarithms, multiplicity))
    summary = Summary()
    for (term, layer), parts in columns.items():
        tensor = make_tensor_proto(buckets(*map(np.concatenate, zip(*parts, strict=True))))
        about = create_summary_metadata(None, HISTOGRAMS[term])
        summary.value.add(tag=f"optimizer_log10_{term}/{layer}", metadata=about, tensor=tensor)
    return summary


def buckets(values: np.ndarray, multiplicity: np.ndarray) -> np.ndarray:
    """Rows of left edge, right edge and count; values that are not finite are left out."""
    finite = np.isfinite(values)
    values, multiplicity = values[finite].astype("float64"), multiplicity[finite]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    # There must be numbers between them.
    high = max(high, low + max(1e-6 * abs(low), 1e-300))
    counts, edges = np.histogram(values, BUCKETS, (low, high), weights=multiplicity)
    return np.stack([edges[:-1], edges[1:], counts], axis=1)


def layout(names: Iterable[str]) -> Any:
    """The page of custom scalars: cards of layers, with a line for each of their variables."""
    layers, pages = dict.fromkeys(map(_layer_of, names)), layout_pb2.Layout()
    for figure in CARDS:
        category = pages.category.add(title=figure)
        for layer in layers:
            tag = f"optimizer_{figure}/{re.escape(layer)}(/[^/]+)?$"
            category.chart.add(title=layer).multiline.tag.append(tag)
    return custom_scalar.pb(pages)


def _layer_of(name: str) -> str:
    return name.rpartition("/")[0] or name


def session_start(optimizer: Any) -> Any:
    """The beginning of a session on the HParams page."""
    return api.hparams_pb(hyperparameters(optimizer))


def session_end() -> Any:
    """The end of such a session."""
    return hparams.session_end_pb(api_pb2.STATUS_SUCCESS)


def columns(optimizer: Any, logs: Iterable[str]) -> Any:
    """The columns of the HParams page, those that matter most first.

    TensorBoard takes them from any one run, so that they hold what the other runs may have. `logs`
    are the names of the losses and metrics, as Keras logs them at the end of an epoch.
    """
    fields = [field.name for rule in (AdamRule, YogiRule) for field in dataclasses.fields(rule)]
    names = dict.fromkeys([*FIRST_COLUMNS, *fields, "weight_decay", *hyperparameters(optimizer)])
    metrics = []
    for name in logs:
        group = "validation" if name.startswith("val_") else "train"
        tag = f"epoch_{name.removeprefix('val_')}"
        metrics.append(api.Metric(tag, group=group, display_name=name))
    return api.hparams_config_pb([api.HParam(name) for name in names], metrics)


def config(optimizer: Any, notes: Iterable[str]) -> Any:
    """Every optimizer's config and engine, what its figures leave out, and what it runs on."""
    several = unwrapped(optimizer)
    page = [f"Inside a {class_name(optimizer)}."] if optimizer not in several else []
    for each in several:
        rows = {name: f"`{plain(value)!r}`" for name, value in arguments(each).items()}
        engine = getattr(each, "engine", "Keras's own")
        page += [f"## {class_name(each)}", _table({**rows, "engine": engine})]
    environment = {
        "keras_yogi": keras_yogi.__version__,
        "Keras": f"{keras.__version__}, backend {keras.config.backend()}",
        "TensorFlow": tf.__version__,
        "Python": sys.version.split()[0],
        "devices": ", ".join(device.name for device in tf.config.list_logical_devices()),
    }
    page += [*(f"- {note}" for note in notes), "## Environment", _table(environment)]
    return text_pb("optimizer/config", "\n\n".join(page), "how the run was made")


def faults(sentences: Iterable[str]) -> Any:
    """What `diagnose` warns of."""
    page = "\n".join(f"- {sentence}" for sentence in sentences)
    return text_pb("optimizer/warnings", page, "what diagnose warns of")


def _table(rows: dict[str, str]) -> str:
    lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
