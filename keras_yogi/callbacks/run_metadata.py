"""What a run was made with: for TensorBoard's text and hyperparameter pages."""

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_yogi.rules import AdamRule, YogiRule
from keras_yogi.statistics.optimizer_view import unwrapped

_FIRST_COLUMNS = ("optimizer", "learning_rate", "epsilon", "initial_accumulator_value")


def hyperparameters(optimizer: Any) -> dict[str, Any]:
    """The arguments of the optimizers in `optimizer`, as TensorBoard takes them, but None.

    With several optimizers, each name begins with that of its optimizer.
    """
    several = unwrapped(optimizer)
    found: dict[str, Any] = {}
    for each in several:
        prefix = f"{each.name}." if len(several) > 1 else ""
        found[f"{prefix}optimizer"] = class_name(each)
        for name, value in each.get_config().items():
            if value is not None and name != "name":
                found[prefix + name] = _plain(value)
    return found


def class_name(optimizer: Any) -> str:
    """As a user writes it: "keras_yogi.Adam", "keras.optimizers.SGD"."""
    cls = type(optimizer)
    packages = {"keras_yogi": "keras_yogi", "keras": "keras.optimizers"}
    return f"{packages.get(cls.__module__.split('.')[0], cls.__module__)}.{cls.__qualname__}"


def _plain(value: Any) -> bool | int | float | str:
    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))  # 0.05, not 0.05000000074505806
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict) and isinstance(settings := value.get("config"), dict):  # a schedule
        arguments = (f"{k}={v!r}" for k, v in settings.items() if v is not None and k != "name")
        return f"{value['class_name']}({', '.join(arguments)})"
    return str(value)


def session_start(optimizer: Any) -> Any:
    """A summary: the beginning of a session on the HParams page."""
    from tensorboard.plugins.hparams import api  # type: ignore[import-untyped]

    return api.hparams_pb(hyperparameters(optimizer))


def session_end() -> Any:
    """A summary: the end of such a session."""
    from tensorboard.plugins.hparams import api_pb2, summary

    return summary.session_end_pb(api_pb2.STATUS_SUCCESS)


def columns(optimizer: Any, logs: Iterable[str]) -> Any:
    """A summary: the columns of the HParams page, those that matter most first.

    TensorBoard takes them from any one run, so that they hold what the other runs may have. `logs`
    are the names of the losses and metrics, as Keras logs them at the end of an epoch.
    """
    from tensorboard.plugins.hparams import api

    fields = [field.name for rule in (AdamRule, YogiRule) for field in dataclasses.fields(rule)]
    names = dict.fromkeys([*_FIRST_COLUMNS, *fields, "weight_decay", *hyperparameters(optimizer)])
    parts = {name: "validation" if name.startswith("val_") else "train" for name in logs}
    metrics = [
        api.Metric(f"epoch_{name.removeprefix('val_')}", group=part, display_name=name)
        for name, part in parts.items()
    ]
    return api.hparams_config_pb([api.HParam(name) for name in names], metrics)


def config_markdown(optimizer: Any, notes: Iterable[str]) -> str:
    """Every optimizer's config and engine, what its figures leave out, and what it runs on."""
    import tensorflow as tf

    import keras_yogi

    parts = []
    if optimizer not in unwrapped(optimizer):
        parts.append(f"Inside a {class_name(optimizer)}.")
    for each in unwrapped(optimizer):
        config = {name: f"`{_plain(v)!r}`" for name, v in each.get_config().items()}
        engine = str(getattr(each, "engine", "Keras's own"))
        parts += [f"## {class_name(each)}", _table({**config, "engine": engine})]
    parts += [f"- {note}" for note in notes]
    environment = {
        "keras_yogi": keras_yogi.__version__,
        "Keras": f"{keras.__version__}, backend {keras.config.backend()}",
        "TensorFlow": tf.__version__,
        "Python": sys.version.split()[0],
        "devices": ", ".join(device.name for device in tf.config.list_logical_devices()),
    }
    return "\n\n".join([*parts, "## Environment", _table(environment)])


def _table(rows: dict[str, str]) -> str:
    lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
