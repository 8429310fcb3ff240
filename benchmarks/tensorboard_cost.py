"""What keras_yogi.TensorBoard adds to a training step, as a share of keras.optimizers.Adam's update.

The variables are EfficientNetB0's. Event files are written, to a temporary folder. The limit of
`optimizer_freq="batch"` is 25 %.

    python benchmarks/tensorboard_cost.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile
from collections.abc import Callable
from typing import Any

import _timing
import keras
import tensorflow as tf

import keras_yogi

LIMIT = 0.25
UPDATE = "keras.optimizers.Adam's update"
BATCH = 'optimizer_freq="batch"'
CALLBACKS: dict[str, Callable[[str], keras.callbacks.TensorBoard]] = {
    "keras.callbacks.TensorBoard": keras.callbacks.TensorBoard,
    'optimizer_freq="epoch"': keras_yogi.TensorBoard,
    BATCH: lambda folder: keras_yogi.TensorBoard(folder, optimizer_freq="batch"),
    "the same, per_variable=False": lambda folder: keras_yogi.TensorBoard(
        folder, optimizer_freq="batch", per_variable=False
    ),
}


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


def end_of_batch(model: keras.Model, callback: keras.callbacks.TensorBoard) -> Callable[[], Any]:
    """What `fit` calls after a step, where a step has been made."""
    callback.write_graph = False
    callback.set_model(model)
    callback.on_train_begin()

    def step() -> None:
        callback.on_train_batch_begin(0)
        callback.on_train_batch_end(0)

    return step


def trained(model: keras.Model) -> keras.Model:
    """With slots like those of a model in training, and an optimizer that has made a step."""
    optimizer = keras_yogi.Adam()
    model.compile(optimizer)
    optimizer.build(model.trainable_variables)
    optimizer.apply([tf.random.normal(v.shape) for v in model.trainable_variables])
    return model


def main() -> None:
    parser = _timing.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="timed calls of each contestant")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 3
    model = trained(small_model() if options.quick else efficientnet_b0())
    with tempfile.TemporaryDirectory() as folder:
        steps = {UPDATE: update_of(model, keras.optimizers.Adam())}
        for place, (name, make) in enumerate(CALLBACKS.items()):
            steps[name] = end_of_batch(model, make(f"{folder}/{place}"))
        first = _timing.first_calls(steps)
        results = _timing.summary(_timing.interleaved(steps, options.rounds), UPDATE, UPDATE)
    for name in results:
        results[name]["first_call_s"] = first[name]
    _timing.report(
        f"{model.name}: {len(model.trainable_variables)} variables; limit {LIMIT:.0%}",
        results,
        {
            "ms": lambda r: f"{r['ms']:.2f}",
            "quartiles": lambda r: f"{r['ms_quartile_1']:.2f} to {r['ms_quartile_3']:.2f}",
            "of the update": lambda r: f"{r[UPDATE]:.1%}",
            "first call, s": lambda r: f"{r['first_call_s']:.2f}",
        },
    )
    label = "time, as a share of keras.optimizers.Adam's update"
    _timing.write(options.output, "tensorboard_cost", {model.name: results}, UPDATE, label)


if __name__ == "__main__":
    main()
