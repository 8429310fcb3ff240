"""Reads `.h5` files of Keras 2 that Keras 3 cannot read alone.

Keras 3 loads the weights correctly. It fails on nested models and on settings that it no longer
has, and does not resolve the names of losses and metrics. Before 3.11.3 it runs the bytecode of
Lambda layers regardless of `safe_mode`. So the configs are checked and rewritten before Keras 3
reads them.
"""

import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import keras

# Settings that layers no longer have in Keras 3, with the value that it implies. `time_major` is of
# the recurrent layers, `groups` of the depthwise and the transposed convolutions.
_GONE = {"time_major": False, "groups": 1}

SAVE_AGAIN = "Copy it again, or save it again as a whole with Keras 2: model.save('model.h5')"
CONVERT = "Load it with Keras 2 and TensorFlow Addons, and save it again: model.save('model.h5')"
PASS_CUSTOM_OBJECTS = "Pass what is not Keras 3's own in `custom_objects`, by its name in the file"


class LegacyFile(NamedTuple):
    """An open file of a Keras model. It is fully checked, but few of its contents are read."""

    keras_version: str
    model_config: dict[str, Any]
    training_config: dict[str, Any] | None  # the arguments of `compile`
    layer_weights: list[list[str]]  # names by layer that has weights; trainable weights first
    weights: Any  # the group of the layers' weights
    optimizer_weights: dict[str, Any]  # data sets by name


@contextmanager
def opened(path: Path) -> Iterator[LegacyFile]:
    """Opens the file of a Keras model. Raises a ValueError or a FileNotFoundError for others."""
    if not path.exists():
        raise FileNotFoundError(f"`path_or_config` must name a file. Received: {path}")
    if path.is_dir():
        raise refusal(path, "it is a directory", SAVE_AGAIN)
    if not path.is_file():
        raise refusal(path, "it is not a regular file", SAVE_AGAIN)
    if zipfile.is_zipfile(path):
        raise refusal(path, "it is a zip archive, such as a `.keras` file", CONVERT)
    import h5py  # here, because `import keras` alone does not need it

    from keras_yogi.migration import plain_hdf5

    damaged = "it is not an HDF5 file of Keras, or it is cut short or damaged"
    with refusing(path, damaged, SAVE_AGAIN):
        file = h5py.File(path, "r")
    with file:
        with refusing(path, "it is damaged, or holds what Keras does not write", SAVE_AGAIN):
            plain_hdf5.check(file, ("model_weights", "optimizer_weights"))
        with refusing(path, damaged, SAVE_AGAIN):
            model_config = plain_hdf5.config(file, "model_config")
            training_config = plain_hdf5.config(file, "training_config")
            version = plain_hdf5.text(file.attrs.get("keras_version", "2"))
            layers, state = file.get("model_weights", file), file.get("optimizer_weights", file)
            names = [
                plain_hdf5.names(layers[layer], "weight_names")
                for layer in plain_hdf5.names(layers, "layer_names")
            ]
            arrays = plain_hdf5.arrays(state, plain_hdf5.names(state, "weight_names"))
        if not isinstance(model_config, dict):
            found = "it has no `model_config`: it holds weights alone, or Keras did not write it"
            raise refusal(path, found, SAVE_AGAIN)
        names = [of_layer for of_layer in names if of_layer]
        yield LegacyFile(version, model_config, training_config, names, layers, arrays)


def uncompiled_model(path: Path, file: LegacyFile, safe_mode: bool) -> keras.Model:
    """The model with its weights, without optimizer, loss and metrics."""
    import h5py

    if safe_mode and (_has_lambda(file.model_config) or _has_lambda(file.training_config)):
        remedy = "If you trust the file, pass `safe_mode=False`: Python bytecode in it will be run"
        raise refusal(path, "it has a Lambda layer", remedy)
    with (
        refusing(path, "Keras cannot load its layers", PASS_CUSTOM_OBJECTS),
        tempfile.TemporaryDirectory() as folder,
    ):
        rewritten = Path(folder) / "model.h5"
        with h5py.File(rewritten, "w") as target:
            file.weights.file.copy(file.weights, target, "model_weights")
            is_old = file.keras_version.startswith("2")
            config = _for_keras_3(file.model_config) if is_old else file.model_config
            target.attrs["model_config"] = json.dumps(config)
        return keras.models.load_model(rewritten, compile=False, safe_mode=safe_mode)


def _has_lambda(config: Any) -> bool:
    """Whether a config has any Lambda layer: even a named function can be chosen to do harm."""
    if isinstance(config, dict):
        is_lambda = config.get("class_name") in ("Lambda", "__lambda__")
        return is_lambda or any(map(_has_lambda, config.values()))
    return isinstance(config, list) and any(map(_has_lambda, config))


def _for_keras_3(config: Any) -> Any:
    """Rewrites the config of a layer or a model, or a part of one."""
    if isinstance(config, list):
        return [_for_keras_3(item) for item in config]
    if not isinstance(config, dict):
        return config
    config = {name: _for_keras_3(value) for name, value in config.items()}
    if hasattr(keras.layers, config.get("class_name", "")):
        settings = config["config"].items()
        config["config"] = {k: v for k, v in settings if k not in _GONE or v != _GONE[k]}
    if "output_layers" in config:
        # In a graph, Keras 2 counts the calls of a nested model from 1 if it has an input layer,
        # which is call 0. Keras 3 counts from 0; it corrects the outputs of Functional itself.
        nested = {
            layer["name"]: layer["class_name"]
            for layer in config["layers"]
            if layer["config"].get("layers", [{}])[0].get("class_name") == "InputLayer"
        }
        for layer in config["layers"]:
            for call in _calls(layer["inbound_nodes"]):
                call[1] -= call[0] in nested
        for call in _calls(config["output_layers"]):
            call[1] -= nested.get(call[0]) == "Sequential"
    return config


def _calls(graph: Any) -> Iterator[list[Any]]:
    """Yields all [layer, number of the call, …] in nested lists and dicts."""
    if isinstance(graph, list) and graph and isinstance(graph[0], str):
        yield graph
    else:
        for part in graph.values() if isinstance(graph, dict) else graph:
            yield from _calls(part)


def trainable_variables(
    file: LegacyFile, model: keras.Model
) -> Iterator[tuple[str, keras.Variable]]:
    """Yields names in the file with their variables: Keras fills variables in this order."""
    layers = [layer for layer in model.layers if layer.weights]
    for layer, names in zip(layers, file.layer_weights, strict=True):
        for name, variable in zip(names, layer.trainable_weights, strict=False):
            yield name.removesuffix(":0"), variable


# Loss and metrics


def compile_arguments(file: LegacyFile, model: keras.Model) -> dict[str, Any]:
    """The arguments of `compile`, but for the optimizer."""
    saved = file.training_config or {}
    outputs = [""] if len(model.outputs) == 1 else model.output_names
    return {
        "loss": _restored(_loss, saved.get("loss")),
        "loss_weights": saved.get("loss_weights"),
        "metrics": _metrics(saved.get("metrics"), outputs),
        "weighted_metrics": _metrics(saved.get("weighted_metrics"), outputs),
    }


def _metrics(saved: Any, outputs: list[str]) -> Any:
    """Restores metrics. Keras 2 saved a list for each output and, with several outputs, put an
    output's name before its metrics' names. Keras 3 takes one list for one output, and adds the
    names itself.
    """
    if not saved or not all(isinstance(of_output, list) for of_output in saved):
        return _restored(_metric, saved)
    restored = [
        [_metric(metric, output and f"{output}_") for metric in of_output if metric is not None]
        for output, of_output in zip(outputs, saved, strict=True)
    ]
    return restored if len(outputs) > 1 else restored[0]


def _restored(restore: Callable[[Any], Any], saved: Any) -> Any:
    """Losses or metrics for `compile`: one, or a list or a dict for several outputs."""
    if isinstance(saved, list):
        return [_restored(restore, item) for item in saved]
    if isinstance(saved, dict) and "class_name" not in saved:
        return {output: _restored(restore, item) for output, item in saved.items()}
    return None if saved is None else restore(saved)


def _loss(saved: Any) -> Any:
    if isinstance(saved, str):
        return keras.saving.get_registered_object(saved) or keras.losses.get(saved)
    # Keras 3 accepts neither the function's name nor "auto", which meant today's default.
    settings = {k: v for k, v in saved["config"].items() if k != "fn" and v != "auto"}
    return from_config(keras.losses.deserialize, {**saved, "config": settings})


def _metric(saved: Any, prefix: str = "") -> Any:
    if isinstance(saved, str):
        if saved in ("accuracy", "acc", "crossentropy", "ce"):  # `compile` chooses by the output
            return saved
        return keras.saving.get_registered_object(saved) or keras.metrics.get(saved)
    settings = {**saved["config"], "name": saved["config"]["name"].removeprefix(prefix)}
    if saved["class_name"] != "MeanMetricWrapper":
        return from_config(keras.metrics.deserialize, {**saved, "config": settings})
    function = settings.pop("fn")  # its name, which Keras 3 would take for the function
    if registered := keras.saving.get_registered_object(function):
        return keras.metrics.MeanMetricWrapper(registered, **settings)
    return type(keras.metrics.get(function))(**settings)


def from_config(deserialize: Callable[[Any], Any], saved: Mapping[str, Any]) -> Any:
    """Restores a saved config by `deserialize` of keras.losses, metrics or schedules."""
    # Keras 3 no longer has some settings whose default was None.
    settings = {name: value for name, value in saved["config"].items() if value is not None}
    restored = deserialize({**saved, "config": settings})
    if isinstance(restored, str):  # Keras returns unknown names unchanged
        raise ValueError(f"unknown: {restored}")
    return restored


# Errors


def refusal(what: object, found: str, remedy: str) -> ValueError:
    """An error that says what was found and what to do."""
    return ValueError(f"{what} cannot be loaded: {found}. {remedy}.")


@contextmanager
def refusing(what: object, found: str, remedy: str) -> Iterator[None]:
    """Turns any exception into a refusal."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise refusal(what, f"{found} ({reason.rstrip('.')})", remedy) from error
