"""What a run was made with: for TensorBoard's text and hyperparameter pages."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_yogi.diagnostics.parts import unwrapped
from keras_yogi.optimizers.adam import Adam
from keras_yogi.optimizers.yogi import Yogi

Scalar = bool | int | float | str


def hyperparameters(optimizer: Any) -> dict[str, Scalar]:
    """The optimizer's arguments as TensorBoard takes them; those that are None are left out. Of
    several optimizers, each name begins with its optimizer's.
    """
    several = unwrapped(optimizer)
    found: dict[str, Scalar] = {}
    for each in several:
        prefix = f"{each.name}." if len(several) > 1 else ""
        found[f"{prefix}optimizer"] = kind(each)
        for name, value in each.get_config().items():
            if value is not None and name != "name":
                found[prefix + name] = _scalar(value)
    return found


def kind(optimizer: Any) -> str:
    """As a user writes it: "keras_yogi.Adam", "keras.optimizers.SGD"."""
    own = type(optimizer)
    module = {"keras_yogi": "keras_yogi", "keras": "keras.optimizers"}.get(
        own.__module__.split(".")[0], own.__module__
    )
    return f"{module}.{own.__qualname__}"


def _scalar(value: Any) -> Scalar:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict) and "class_name" in value:  # a schedule
        settings = value.get("config", {})
        if not isinstance(settings, dict):
            return str(value["class_name"])
        arguments = (f"{k}={v!r}" for k, v in settings.items() if v is not None and k != "name")
        return f"{value['class_name']}({', '.join(arguments)})"
    return str(value)


def hparams(optimizer: Any) -> bytes:
    """The beginning of a session on TensorBoard's HParams page."""
    from tensorboard.plugins.hparams import api  # type: ignore[import-untyped]

    return api.hparams_pb(hyperparameters(optimizer)).SerializeToString()


def session_end() -> bytes:
    """The end of such a session."""
    from tensorboard.plugins.hparams import api_pb2, summary

    return summary.session_end_pb(api_pb2.STATUS_SUCCESS).SerializeToString()


def hparams_columns(optimizer: Any, logs: Iterable[str]) -> bytes:
    """The columns of the HParams page.

    TensorBoard takes them from one of the runs, whichever it finds first, so that they must hold
    what the other runs may have.

    Args:
        optimizer: of this run.
        logs: names of the losses and metrics, as Keras logs them at the end of an epoch.
    """
    from tensorboard.plugins.hparams import api

    names = ["optimizer", "learning_rate", *Adam.hyperparameters, *Yogi.hyperparameters]
    columns = dict.fromkeys([*names, "weight_decay", *hyperparameters(optimizer)])
    metrics = [
        api.Metric(f"epoch_{name.removeprefix('val_')}", group=_run(name), display_name=name)
        for name in logs
    ]
    pb = api.hparams_config_pb([api.HParam(name) for name in columns], metrics)
    return pb.SerializeToString()


def _run(log: str) -> str:
    return "validation" if log.startswith("val_") else "train"


def page(optimizer: Any) -> str:
    """Markdown: every optimizer's config and engine, and what it runs on."""
    tables = [
        f"## {kind(each)}\n\n"
        + _table(
            [
                *((name, f"`{value!r}`") for name, value in each.get_config().items()),
                ("engine", str(getattr(each, "engine", "Keras's own"))),
            ]
        )
        for each in unwrapped(optimizer)
    ]
    if optimizer not in unwrapped(optimizer):
        tables.insert(0, f"Inside a {kind(optimizer)}.")
    return "\n\n".join([*tables, "## Environment\n\n" + _table(_environment())])


def _environment() -> Sequence[tuple[str, str]]:
    import tensorflow as tf

    import keras_yogi

    devices = [device.name for device in tf.config.list_logical_devices()]
    return [
        ("keras_yogi", keras_yogi.__version__),
        ("Keras", f"{keras.__version__}, backend {keras.config.backend()}"),
        ("TensorFlow", tf.__version__),
        ("Python", sys.version.split()[0]),
        ("devices", ", ".join(devices)),
    ]


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = (f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows)
    return "\n".join(["| | |", "|---|---|", *lines])
