"""What keras_yogi.TensorBoard adds to a step, as a share of keras.optimizers.Adam's update.

The variables are EfficientNetB0's. Event files are written, to a temporary folder. The limit of
`optimizer_freq="batch"` is 25 %.

    python benchmarks/tensorboard_cost.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile
from collections.abc import Callable
from typing import Any, TypeAlias

import _timing
import keras
import tensorflow as tf

import keras_yogi

LIMIT = 0.25
STEPS = 10  # in one measurement
UPDATE = "keras.optimizers.Adam's update"
ADDED = "added, as a share of it"
Callback: TypeAlias = keras.callbacks.TensorBoard
CALLBACKS: dict[str, Callable[[str], Callback]] = {
    "keras.callbacks.TensorBoard": lambda folder: Callback(folder, write_graph=False),
    'optimizer_freq="epoch"': lambda folder: yogi_callback(folder, optimizer_freq="epoch"),
    'optimizer_freq="batch"': lambda folder: yogi_callback(folder, optimizer_freq="batch"),
    "optimizer_freq=10": lambda folder: yogi_callback(folder, optimizer_freq=10),
}


def yogi_callback(folder: str, **arguments: Any) -> Callback:
    return keras_yogi.TensorBoard(folder, write_graph=False, **arguments)


def efficientnet_b0() -> keras.Model:
    return keras.applications.EfficientNetB0(weights=None, input_shape=(64, 64, 3), classes=10)


def small_model() -> keras.Model:
    layers = [keras.layers.Dense(64, activation="relu") for _ in range(3)]
    return keras.Sequential([keras.Input((20,)), *layers, keras.layers.Dense(1)])


def update_of(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Callable[[], Any]:
    variables = [keras.Variable(v.numpy()) for v in model.trainable_variables]
    gradients = [tf.Variable(tf.random.normal(v.shape)) for v in variables]
    optimizer.build(variables)
    return tf.function(
        lambda: optimizer.apply([g.read_value() for g in gradients], variables), autograph=False
    )


def steps_of(update: Callable[[], Any], model: keras.Model, callback: Any) -> Callable[[], Any]:
    """Some updates, and what `fit` calls after each of them."""
    if callback is not None:
        callback.set_model(model)
        callback.on_train_begin()

    def steps() -> None:
        if callback is not None:
            callback.on_epoch_begin(0)
        for batch in range(STEPS):
            update()
            if callback is not None:
                callback.on_train_batch_begin(batch)
                callback.on_train_batch_end(batch)

    return steps


def trained(model: keras.Model) -> keras.Model:
    """With slots like those of a model in training, and an optimizer that has made a step."""
    optimizer = keras_yogi.Adam()
    model.compile(optimizer)
    optimizer.build(model.trainable_variables)
    optimizer.apply([tf.random.normal(v.shape) for v in model.trainable_variables])
    return model


def main() -> None:
    parser = _timing.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each contestant")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 3
    model = trained(small_model() if options.quick else efficientnet_b0())
    update = update_of(model, keras.optimizers.Adam())
    with tempfile.TemporaryDirectory() as folder:
        steps = {UPDATE: steps_of(update, model, None)}
        for place, (name, make) in enumerate(CALLBACKS.items()):
            steps[name] = steps_of(update, model, make(f"{folder}/{place}"))
        first = _timing.first_calls(steps)
        times = _timing.interleaved(steps, options.rounds)
    results = _timing.summary(times, UPDATE, UPDATE)
    for name in results:
        results[name]["first_call_s"] = first[name]
        results[name][ADDED] = results[name][UPDATE] - 1
    _timing.report(
        f"{model.name}: {len(model.trainable_variables)} variables; limit {LIMIT:.0%}",
        results,
        {
            "ms a step": lambda r: f"{r['ms'] / STEPS:.2f}",
            "quartiles": lambda r: (
                f"{r['ms_quartile_1'] / STEPS:.2f} to {r['ms_quartile_3'] / STEPS:.2f}"
            ),
            ADDED: lambda r: f"{r[ADDED]:.1%}",
            "first calls, s": lambda r: f"{r['first_call_s']:.2f}",
        },
    )
    label = "time, as a share of keras.optimizers.Adam's update"
    _timing.write(options.output, "tensorboard_cost", {model.name: results}, UPDATE, label)


if __name__ == "__main__":
    main()
