"""A small training, on whatever backend Keras runs, and its files."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_yogi

Experiments = dict[str, Callable[[], Any]]


# A model and its training. ε = 1e-3 throughout: with a smaller one, rounding decides where
# gradients are nearly zero.

OPTIONS = {
    "adam": dict(rule="adam"),
    "adam, amsgrad, epsilon_hat": dict(
        rule="adam", beta_2=0.5, amsgrad=True, epsilon_hat=True, epsilon=1e-2
    ),
    "yogi": dict(rule="yogi"),
    "yogi, tanh, proximal": dict(
        rule="yogi",
        activation="tanh",
        l1_regularization_strength=0.1,
        l2_regularization_strength=0.1,
    ),
    "accumulation": dict(rule="yogi", gradient_accumulation_steps=2),
    "ema": dict(rule="adam", use_ema=True, ema_momentum=0.9),
    "ema, overwriting": dict(
        rule="yogi", use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
    ),
    "weight_decay, schedule": dict(
        rule="adam", weight_decay=0.5, learning_rate={"decay_steps": 2, "decay_rate": 0.5}
    ),
    "clipnorm": dict(rule="yogi", clipnorm=0.01),
    "global_clipnorm": dict(rule="yogi", global_clipnorm=0.01),
    "clipvalue, loss_scale_factor": dict(rule="adam", clipvalue=0.01, loss_scale_factor=64.0),
    "skip_nonfinite": dict(rule="adam", skip_nonfinite=True),
    "skip_nonfinite, everything": dict(
        rule="yogi",
        skip_nonfinite=True,
        gradient_accumulation_steps=2,
        weight_decay=0.1,
        use_ema=True,
        ema_momentum=0.9,
        clipnorm=0.1,
    ),
}


def optimizer_of(rule: str, learning_rate: Any = 0.0625, epsilon: float = 1e-3, **options):
    if isinstance(learning_rate, dict):
        learning_rate = keras.optimizers.schedules.ExponentialDecay(0.0625, **learning_rate)
    optimizer_class = {"adam": keras_yogi.Adam, "yogi": keras_yogi.Yogi}[rule]
    return optimizer_class(learning_rate, epsilon=epsilon, **options)


def data(faulty: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Five batches of 16; with `faulty`, an infinity in the second one."""
    x = np.random.default_rng(6).normal(size=(80, 5)).astype("float32")
    y = np.sin(x.sum(axis=1, keepdims=True))
    if faulty:
        x[20, 3] = np.inf
    return x, y


def compiled(optimizer, layers=(), inputs=None):
    """The same model with the same weights on every backend."""
    layers = layers or [keras.layers.Dense(7, activation="tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((5,)) if inputs is None else inputs, *layers])
    random = np.random.default_rng(8)
    model.set_weights([random.normal(size=w.shape) / 2 for w in model.get_weights()])
    model.compile(optimizer, loss="mse")
    return model


def train(model, faulty: bool = False, epochs: int = 3) -> None:
    model.fit(*data(faulty), batch_size=16, epochs=epochs, shuffle=False, verbose=0)


def state(model) -> dict:
    """What training leaves behind."""
    optimizer, trained = model.optimizer, model.trainable_variables
    slots = {
        f"{name} of variable {i}": keras.ops.convert_to_numpy(optimizer.get_slot(v, name))
        for name in optimizer.slots()
        for i, v in enumerate(trained)
    }
    return {
        "iterations": int(optimizer.iterations),
        "skipped_steps": optimizer.skipped_steps,
        **{f"weight {i}": w for i, w in enumerate(model.get_weights())},
        **slots,
    }


# On every backend


def fit(options: dict) -> dict:
    model = compiled(optimizer_of(**options))
    train(model, faulty=options.get("skip_nonfinite", False))
    return state(model)


def embedding(options: dict) -> dict:
    """Every batch names most of the twelve words several times."""
    words = np.random.default_rng(1).integers(0, 12, size=(80, 6))
    labels = words.mean(axis=1, keepdims=True).astype("float32")
    layers = [keras.layers.Embedding(20, 3), keras.layers.Flatten(), keras.layers.Dense(1)]
    model = compiled(optimizer_of(**options), layers, keras.Input((6,), dtype="int32"))
    model.fit(words, labels, batch_size=16, epochs=3, shuffle=False, verbose=0)
    return state(model)


def normalized():
    hidden = [keras.layers.Dense(7, activation="tanh"), keras.layers.BatchNormalization()]
    return compiled(optimizer_of("yogi", clipvalue=0.1), [*hidden, keras.layers.Dense(1)])


def warm_started():
    model = normalized()
    keras_yogi.warm_start(model, *data(), batch_size=16)
    return model


def warm_start() -> dict:
    """Right after, and after training."""
    model = warm_started()
    start = state(model)
    train(model)
    return {"started": start, "trained": state(model)}


def warm_start_in_half_precision() -> dict:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled(optimizer_of("yogi"))
    finally:
        keras.config.set_dtype_policy("float32")
    optimizer = model.optimizer.inner_optimizer
    keras_yogi.warm_start(model, *data(), batch_size=16)
    velocities = [optimizer.get_slot(v, "velocity") for v in model.trainable_variables]
    return {str(i): keras.ops.convert_to_numpy(v) for i, v in enumerate(velocities)}


def load_weights_into_a_trained_model(folder: Path) -> dict:
    """Of a warm-started model into one that was not, and whose `fit` is compiled already."""
    path = folder / "warm_started.weights.h5"
    source = warm_started()
    train(source)
    source.save_weights(path)
    model = normalized()
    train(model, epochs=1)
    model.load_weights(path)
    train(model)
    return state(model)


def fit_twice(options: dict) -> dict:
    model = compiled(optimizer_of(**options))
    train(model, epochs=1)
    train(model, epochs=1)
    return state(model)


def tensorboard(options: dict, frequency: Any) -> dict:
    """What the callback writes, and the weights, which must be those without it."""
    models = []
    for _ in range(2):
        hidden = keras.layers.Dense(7, activation="tanh", name="hidden")
        out = keras.layers.Dense(1, name="out")
        models.append(compiled(optimizer_of(**options), [hidden, out]))
    with tempfile.TemporaryDirectory() as folder:
        callback = keras_yogi.TensorBoard(folder, optimizer_freq=frequency, histogram_freq=1)
        for model, callbacks in zip(models, ([callback], []), strict=True):
            model.fit(
                *data(), batch_size=16, epochs=3, shuffle=False, verbose=0, callbacks=callbacks
            )
        logged = _events(Path(folder))
    with_it, without = ([w.tobytes() for w in model.get_weights()] for model in models)
    return {"the same weights": with_it == without, **logged}


def _events(folder: Path) -> dict:
    """By tag, the steps and values of scalars and the counts of histograms."""
    from tensorboard.backend.event_processing import event_file_loader
    from tensorboard.util import tensor_util

    found: dict[str, list] = {}
    for path in folder.glob("events*"):
        for event in event_file_loader.EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name in ("scalars", "histograms"):
                    numbers = tensor_util.make_ndarray(value.tensor)
                    numbers = numbers[:, 2].sum() if numbers.ndim else numbers
                    found.setdefault(value.tag, []).append([event.step, float(numbers)])
    return found


def diagnosed(options: dict) -> dict:
    """The figures of keras_yogi.diagnose, for the whole model and for the variables in order."""
    model = compiled(optimizer_of(**options))
    train(model)
    report = keras_yogi.diagnose(model.optimizer).to_dict()
    of_variables = dict(enumerate(report["variables"].values()))
    of_variables = {str(place): figures for place, figures in of_variables.items()}
    return {"step": report["step"], "model": report["model"], "variables": of_variables}


EVERYWHERE: Experiments = {
    "TensorBoard: batch": partial(tensorboard, OPTIONS["weight_decay, schedule"], "batch"),
    "TensorBoard: epoch": partial(tensorboard, OPTIONS["yogi, tanh, proximal"], "epoch"),
    "diagnose": partial(diagnosed, OPTIONS["adam, amsgrad, epsilon_hat"]),
    **{f"fit: {name}": partial(fit, options) for name, options in OPTIONS.items()},
    "fit: twice, with ema": partial(fit_twice, OPTIONS["ema"]),
    "embedding: adam": partial(embedding, OPTIONS["adam"]),
    "embedding: clipnorm": partial(embedding, OPTIONS["clipnorm"]),
    "warm_start": warm_start,
    "warm_start: mixed_float16": warm_start_in_half_precision,
}


# Files: each backend writes them, and goes on from its own and from TensorFlow's

SAVED = {
    "adam": {**OPTIONS["weight_decay, schedule"], "amsgrad": True, "epsilon_hat": True},
    "skip_nonfinite": {**OPTIONS["yogi, tanh, proximal"], "skip_nonfinite": True},
    "warm_start": None,
}


def path_of(folder: Path, backend: str, name: str) -> Path:
    return folder / f"{name} of {backend}.keras"


def save(path: Path, name: str) -> dict:
    options = SAVED[name]
    if options and keras.config.backend() == "tensorflow":
        options = {**options, "fused": True}  # no other backend can; it has to load there
    model = compiled(optimizer_of(**options)) if options else warm_started()
    train(model, faulty=name == "skip_nonfinite")
    model.save(path)
    return {"saved": state(model), "trained on": _trained_on(model)}


def load(path: Path) -> dict:
    model = keras.models.load_model(path)
    return {"saved": state(model), "trained on": _trained_on(model)}


def _trained_on(model) -> dict:
    train(model)
    return state(model)
