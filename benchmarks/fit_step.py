"""What a whole training step in `model.fit` costs, and how much of it is the optimizer's.

The optimizer's own cost is the time of a step minus that of a step with plain SGD. Every
contestant has a model of its own; in each round all of them are trained for some steps in turn.

    python benchmarks/fit_step.py
    python benchmarks/fit_step.py --models "MLP, 3 x 64" LSTM --settings plain jit_compile clipnorm
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import contextlib
import time
from collections.abc import Callable
from typing import Any

import _timing
import keras
import numpy as np
import tensorflow as tf
from _models import transformer
from keras import layers

import keras_yogi

SGD, KERAS = "SGD", "keras.optimizers.Adam"
OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    SGD: keras.optimizers.SGD,
    KERAS: keras.optimizers.Adam,
    "keras_yogi.Adam": keras_yogi.Adam,
    "keras_yogi.Yogi": keras_yogi.Yogi,
}
# arguments of `compile`, arguments of the optimizer
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "jit_compile": ({"jit_compile": True}, {}),
    "accumulation": ({}, {"gradient_accumulation_steps": 2}),
    "ema": ({}, {"use_ema": True}),
    "clipnorm": ({}, {"clipnorm": 1.0}),
    "global_clipnorm": ({}, {"global_clipnorm": 1.0}),
    "weight_decay": ({}, {"weight_decay": 0.01}),
}


def sequential(shape: tuple[int, ...], *of_model: layers.Layer) -> keras.Model:
    return keras.Sequential([keras.Input(shape), *of_model])


def mobilenet() -> keras.Model:
    return keras.applications.MobileNetV2(
        (64, 64, 3), weights=None, classes=1, classifier_activation=None
    )


def recommender() -> keras.Model:
    """Two towers over two tables of 100,000 rows."""
    pair = keras.Input((2,), dtype="int32")
    of_user, of_item = (
        layers.Dense(32)(layers.Embedding(100_000, 32)(pair[:, side])) for side in (0, 1)
    )
    return keras.Model(pair, layers.Dot(axes=1)([of_user, of_item]))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype("float32")


# the model, one batch of inputs, steps a round
MODELS: dict[str, tuple[Callable[[], keras.Model], Callable[[], np.ndarray], int]] = {
    "MobileNetV2": (mobilenet, lambda: normal(8, 64, 64, 3), 4),
    "one Dense": (lambda: sequential((10,), layers.Dense(1)), lambda: normal(32, 10), 40),
    "MLP, 3 x 64": (
        lambda: sequential(
            (20,), *(layers.Dense(64, activation="relu") for _ in range(3)), layers.Dense(1)
        ),
        lambda: normal(32, 20),
        40,
    ),
    "LSTM": (
        lambda: sequential((16, 8), layers.LSTM(64), layers.Dense(1)),
        lambda: normal(32, 16, 8),
        20,
    ),
    "transformer": (
        transformer,
        lambda: np.random.default_rng(0).integers(0, 1000, (16, 32)).astype("int32"),
        20,
    ),
    "recommender": (
        recommender,
        lambda: np.random.default_rng(0).integers(0, 100_000, (1024, 2)).astype("int32"),
        4,
    ),
}
COLUMNS: dict[str, Callable[[Any], str]] = {
    "ms a step": lambda r: f"{r['ms']:.2f}",
    "quartiles": lambda r: f"{r['ms_quartile_1']:.2f} to {r['ms_quartile_3']:.2f}",
    "of Keras's Adam": lambda r: f"{r[KERAS]:.2f}",
    "own cost, of its own": lambda r: f"{r['own_of_keras']:.2f}",
    "first fit, s": lambda r: f"{r['first_fit_s']:.1f}",
}


class Clock(keras.callbacks.Callback):
    """Seconds of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def measure(
    model_name: str, setting: str, rounds: int, strategy: tf.distribute.Strategy | None = None
) -> dict[str, dict[str, float]]:
    make, inputs, steps = MODELS[model_name]
    batch = inputs()
    of_compile, of_optimizer = SETTINGS[setting]
    data = tf.data.Dataset.from_tensors((batch, normal(len(batch), 1))).repeat()
    models, first = {}, {}
    for name, optimizer in OPTIMIZERS.items():
        with strategy.scope() if strategy else contextlib.nullcontext():
            models[name] = make()
            models[name].compile(optimizer(**of_optimizer), loss="mse", **of_compile)
        start = time.perf_counter()
        models[name].fit(data, steps_per_epoch=1, shuffle=False, verbose=0)
        first[name] = time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_ in _timing.rounds_of(rounds, f"{model_name}, {setting}"):
        for name in _timing.in_turn(models, round_):
            clock = Clock()
            # two steps more: the first ones of a `fit` wait for its data
            models[name].fit(
                data, steps_per_epoch=steps + 2, shuffle=False, verbose=0, callbacks=[clock]
            )
            seconds[name].append(float(np.median(clock.seconds[2:])))
    times = {name: np.array(s) for name, s in seconds.items()}
    results = _timing.summary(times, SGD, KERAS)
    own_of_keras = np.median(times[KERAS] - times[SGD])
    for name, figures in results.items():
        figures["own_of_keras"] = float(np.median(times[name] - times[SGD]) / own_of_keras)
        figures["first_fit_s"] = first[name]
        figures["first_fit_of_keras"] = first[name] / first[KERAS]
    return results


def main() -> None:
    parser = _timing.arguments(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["plain"])
    parser.add_argument("--rounds", type=int, default=15, help="of some steps of each contestant")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.models = 2, ["one Dense"]
    results: dict[str, Any] = {}
    for model in options.models:
        for setting in options.settings:
            label = f"{model}, {setting}"
            results[label] = measure(model, setting, options.rounds)
            _timing.report(label, results[label], COLUMNS)
    _timing.write(options.output, "fit_step", results, "ms", "ms a step (log scale)")


if __name__ == "__main__":
    main()
