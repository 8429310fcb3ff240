"""TensorBoard's pages of a run: text, hyperparameters, custom scalars. Each is a Summary."""

import dataclasses
import re
import sys
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.hparams import api, api_pb2
from tensorboard.plugins.hparams import summary as hparams
from tensorboard.plugins.text.summary_v2 import text_pb

import keras_yogi
from keras_yogi.callbacks.event_file import layer_of
from keras_yogi.rules import AdamRule, YogiRule
from keras_yogi.statistics.views import unwrapped

FIRST_COLUMNS = ("optimizer", "learning_rate", "epsilon", "initial_accumulator_value")
LAYOUT_FIGURES = (
    *("effective_lr_median", "effective_lr_max"),
    *("update_to_weight_ratio", "epsilon_share"),
)
"""The figures that have a card for each layer."""


def hyperparameters(optimizer: Any) -> dict[str, Any]:
    """The arguments of the optimizers in `optimizer`, as TensorBoard takes them, but None.

    With several optimizers, each name begins with that of its optimizer.
    """
    several = unwrapped(optimizer)
    found: dict[str, Any] = {}
    for each in several:
        arguments = {"optimizer": class_name(each), **each.get_config(), "name": None}
        prefix = f"{each.name}." if len(several) > 1 else ""
        found |= {prefix + n: plain(value) for n, value in arguments.items() if value is not None}
    return found


def class_name(optimizer: Any) -> str:
    """As a user writes it: "keras_yogi.Adam", "keras.optimizers.SGD"."""
    cls = type(optimizer)
    packages = {"keras_yogi": "keras_yogi", "keras": "keras.optimizers"}
    return f"{packages.get(cls.__module__.split('.')[0], cls.__module__)}.{cls.__qualname__}"


def plain(value: Any) -> bool | int | float | str:
    """An argument as it was given: 0.05, not the 0.05000000074505806 of float32."""
    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict) and isinstance(settings := value.get("config"), dict):  # a schedule
        arguments = (f"{k}={v!r}" for k, v in settings.items() if v is not None and k != "name")
        return f"{value['class_name']}({', '.join(arguments)})"
    return str(value)


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
    parts = {name: "validation" if name.startswith("val_") else "train" for name in logs}
    metrics = [
        api.Metric(f"epoch_{name.removeprefix('val_')}", group=part, display_name=name)
        for name, part in parts.items()
    ]
    return api.hparams_config_pb([api.HParam(name) for name in names], metrics)


def config(optimizer: Any, notes: Iterable[str]) -> Any:
    """Every optimizer's config and engine, what its figures leave out, and what it runs on."""
    parts = []
    if optimizer not in unwrapped(optimizer):
        parts.append(f"Inside a {class_name(optimizer)}.")
    for each in unwrapped(optimizer):
        engine = getattr(each, "engine", "Keras's own")
        rows = {name: f"`{plain(value)!r}`" for name, value in each.get_config().items()}
        parts += [f"## {class_name(each)}", _table({**rows, "engine": engine})]
    parts += [f"- {note}" for note in notes]
    environment = {
        "keras_yogi": keras_yogi.__version__,
        "Keras": f"{keras.__version__}, backend {keras.config.backend()}",
        "TensorFlow": tf.__version__,
        "Python": sys.version.split()[0],
        "devices": ", ".join(device.name for device in tf.config.list_logical_devices()),
    }
    page = "\n\n".join([*parts, "## Environment", _table(environment)])
    return text_pb("optimizer/config", page, "how the run was made")


def faults(sentences: Iterable[str]) -> Any:
    """What `diagnose` warns of."""
    page = "\n".join(f"- {sentence}" for sentence in sentences)
    return text_pb("optimizer/warnings", page, "what diagnose warns of")


def layout(names: Iterable[str]) -> Any:
    """The page of custom scalars: for every figure, one card a layer, with a line for each of its
    variables.
    """
    layers = dict.fromkeys(map(layer_of, names))
    pages = layout_pb2.Layout()
    for figure in LAYOUT_FIGURES:
        category = pages.category.add(title=figure)
        for layer in layers:
            tag = f"optimizer_{figure}/{re.escape(layer)}(/[^/]+)?$"
            category.chart.add(title=layer).multiline.tag.append(tag)
    return custom_scalar.pb(pages)


def _table(rows: dict[str, str]) -> str:
    lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
