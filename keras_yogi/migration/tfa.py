"""Loads optimizers and models that were trained with tfa.optimizers.Yogi."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_yogi import checks
from keras_yogi.migration import legacy_h5
from keras_yogi.migration.legacy_h5 import PASS_CUSTOM_OBJECTS, LegacyFile, refusing
from keras_yogi.optimizers.yogi import Yogi

# The keys of tfa.optimizers.Yogi.get_config, the same in all versions that had it (0.10 to 0.23).
_CONFIG_KEYS = (
    *("name", "learning_rate", "decay", "beta1", "beta2", "epsilon", "activation"),
    *("initial_accumulator_value", "l1_regularization_strength", "l2_regularization_strength"),
    *("clipnorm", "clipvalue", "global_clipnorm"),
)
_OUR_NAMES = {"beta1": "beta_1", "beta2": "beta_2"}
_SLOTS = {"v": "velocity", "m": "momentum"}

_WITHOUT_STATE = (
    "keras.models.load_model(path, compile=False) gives the model alone. Compile it with an "
    "optimizer of your choice; keras_yogi.load_tfa(config) makes one of a tfa.optimizers.Yogi's "
    "get_config()"
)


def load_tfa(
    path_or_config: str | os.PathLike[str] | Mapping[str, Any],
    custom_objects: Mapping[str, Any] | None = None,
    safe_mode: bool = True,
) -> Any:
    """Loads a model that used tfa.optimizers.Yogi, or converts that optimizer's config.

    Args:
        path_or_config: the path to a legacy Keras `.h5` file of a model that was compiled with
            tfa.optimizers.Yogi and trained; or that optimizer's config, as `get_config()` gave it
            or as {"class_name": "Addons>Yogi", "config": {...}}. Missing keys get TensorFlow
            Addons' defaults; a `decay` other than 0 becomes an InverseTimeDecay.
        custom_objects: layers, functions, losses, metrics and schedules that are not Keras 3's
            own, by their names in the file. Defaults to None.
        safe_mode: refuse a file with a Lambda layer, whose Python bytecode would be run.
            Defaults to True.

    Returns:
        For a config, a `keras_yogi.Yogi` with `epsilon_hat=True`: TensorFlow Addons adds ε there.
        For a path, the model, compiled with such a Yogi and with the loss, the metrics and the loss
        weights of the file. Weights, slots and step count are restored: training continues where
        it stopped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a whole legacy Keras file, its optimizer is not
            tfa.optimizers.Yogi alone, or a part of it cannot be restored. The message says what
            was found and what to do.

    Example:
        >>> import keras_yogi
        >>> optimizer = keras_yogi.load_tfa({"learning_rate": 0.02, "beta1": 0.8, "epsilon": 1e-4})
        >>> optimizer.beta_1, optimizer.epsilon_hat
        (0.8, True)
        >>> model = keras_yogi.load_tfa("model.h5")  # doctest: +SKIP

    References:
        TensorFlow Addons 0.23, tensorflow_addons/optimizers/yogi.py: keys, slots and arithmetic.
        Keras 2.15, keras/src/saving/legacy/hdf5_format.py: the layout of the file.
    """
    if not isinstance(custom_objects, Mapping | None):
        raise checks.reject("custom_objects", "a dict of objects by name, or None", custom_objects)
    checks.boolean("safe_mode", safe_mode)
    with keras.saving.custom_object_scope(dict(custom_objects or {})):
        if isinstance(path_or_config, str | os.PathLike):
            return _model(Path(path_or_config), safe_mode)
        if not isinstance(path_or_config, Mapping):
            rule = "a path or an optimizer config"
            raise checks.reject("path_or_config", rule, path_or_config)
        wrapped = "class_name" in path_or_config
        return _optimizer(_unwrapped(path_or_config) if wrapped else path_or_config)


def _unwrapped(serialized: Mapping[str, Any]) -> Mapping[str, Any]:
    class_name, config = serialized.get("class_name"), serialized.get("config")
    if not isinstance(config, Mapping):
        raise checks.reject("config", "a dict, as the optimizer's get_config() gave it", config)
    if class_name in ("Addons>Yogi", "Yogi"):
        return config
    inner = config.get("optimizer") or config.get("inner_optimizer")
    inside = inner.get("class_name") if isinstance(inner, Mapping) else None
    around = f" around {checks.shown(inside)}" if inside else ""
    raise ValueError(
        "The optimizer must be tfa.optimizers.Yogi ('Addons>Yogi' or 'Yogi') without a wrapper. "
        f"Received: {checks.shown(class_name)}{around}"
    )


def _optimizer(config: Mapping[str, Any]) -> Yogi:
    unknown = {key: value for key, value in config.items() if key not in _CONFIG_KEYS}
    if unknown:
        raise ValueError(
            "The config of tfa.optimizers.Yogi must have no keys but "
            f"{', '.join(_CONFIG_KEYS)}. Received: {checks.shown(unknown)}"
        )
    ours = {_OUR_NAMES.get(key, key): value for key, value in config.items() if key != "decay"}
    if isinstance(ours.get("learning_rate"), Mapping):
        shown = checks.shown(ours["learning_rate"])
        with refusing(f"learning_rate={shown}", "a schedule", PASS_CUSTOM_OBJECTS):
            ours["learning_rate"] = legacy_h5.from_config(
                keras.optimizers.schedules.deserialize, ours["learning_rate"]
            )
    if decay := checks.non_negative("decay", config.get("decay", 0.0)):
        rate = checks.non_negative("learning_rate beside decay", ours.get("learning_rate", 0.01))
        ours["learning_rate"] = keras.optimizers.schedules.InverseTimeDecay(rate, 1, decay)
    return Yogi(**ours, epsilon_hat=True)


def _model(path: Path, safe_mode: bool) -> keras.Model:
    """Restores the parts one by one, and compiles the model when all of them are good."""
    with legacy_h5.opened(path) as file:
        if file.training_config is None:
            found = "it has no `training_config`: the model was saved without its optimizer"
            raise legacy_h5.refusal(path, found, _WITHOUT_STATE)
        with refusing(path, "its optimizer cannot be taken over", _WITHOUT_STATE):
            optimizer = _optimizer(_unwrapped(file.training_config["optimizer_config"]))
        if not file.optimizer_weights:
            found = "it has no optimizer weights: the model was compiled, but never trained"
            raise legacy_h5.refusal(path, found, _WITHOUT_STATE)
        model = legacy_h5.uncompiled_model(path, file, safe_mode)
        with refusing(path, "its optimizer weights do not fit the model", _WITHOUT_STATE):
            step, slots = _state(file, model, ["v", "m"] if optimizer.beta_1 else ["v"])
        with refusing(path, "its optimizer weights are not those of a training", _WITHOUT_STATE):
            optimizer.build(model.trainable_variables)
            optimizer.iterations.assign(_step_count(step))
            for variable, slot, dataset in slots:
                optimizer.set_slot(variable, _SLOTS[slot], _slot_value(variable, slot, dataset))
        with refusing(path, "its loss or metrics cannot be restored", PASS_CUSTOM_OBJECTS):
            model.compile(optimizer, **legacy_h5.compile_arguments(file, model))
        return model


def _state(
    file: LegacyFile, model: keras.Model, slot_names: list[str]
) -> tuple[Any, list[tuple[keras.Variable, str, Any]]]:
    """The data sets of the step count and of each slot of each trainable variable, by shape.

    A slot's name is its weight's name and its own, usually after the optimizer's. The order is no
    help: slots lie in the order in which their weights were first trained.
    """
    wanted: dict[str, Any] = {"iter": None}
    for name, variable in legacy_h5.trainable_variables(file, model):
        if f"{name}/v" in wanted:  # Keras loads a layer of two models twice
            raise ValueError(f"the model has several weights of the name {name}")
        for slot in slot_names:
            wanted[f"{name}/{slot}"] = (variable, slot)

    found: dict[str, Any] = {}
    strange = []
    for full_name, dataset in file.optimizer_weights.items():
        name = full_name.removesuffix(":0")
        while name not in wanted and "/" in name:
            name = name.partition("/")[2]
        shape = tuple(wanted[name][0].shape) if wanted.get(name) else ()
        if name not in wanted or name in found or dataset.shape != shape:
            strange.append(f"{full_name} {dataset.shape}")
        found[name] = dataset

    missing = [name for name in wanted if name not in found]
    if strange or missing:
        raise ValueError(
            f"not in the file: {checks.shown(missing)}; "
            f"in the file, but not expected: {checks.shown(strange)}"
        )
    return found.pop("iter"), [(*wanted[name], dataset) for name, dataset in found.items()]


def _step_count(dataset: Any) -> float:
    rule = "without a fraction, from 0 to 2³¹ − 1"
    return checks.number(
        "iter", dataset[()], rule, lambda step: step.is_integer() and 0 <= step < 2**31 - 1
    )


def _slot_value(variable: keras.Variable, slot: str, dataset: Any) -> Any:
    """The values of one slot, in the variable's dtype."""
    if dataset.dtype.kind != "f":
        raise ValueError(f"{dataset.name} must be of a floating dtype, not {dataset.dtype}")
    value = ops.cast(dataset[()], variable.dtype)
    if not ops.all(ops.isfinite(value)):
        raise ValueError(f"{dataset.name} holds NaN or infinity")
    if slot == "v" and ops.any(value < 0.0):
        raise ValueError(f"{dataset.name} holds negative numbers, but v is a mean of squares")
    return value
