"""Records functional_model.h5 and unfrozen_model.h5, next to this file.

Needs Python 3.11, tensorflow==2.15.1 and tensorflow-addons==0.23.0.
"""

from pathlib import Path

import h5py
import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa

keras = tf.keras
layers = keras.layers
HERE = Path(__file__).parent


def fit(model, x, y, epochs):
    y = y if len(y) > 1 else y[0]
    model.fit(x, y, batch_size=len(x[0]), shuffle=False, epochs=epochs, verbose=0)


def record(name, model, x, y):
    """Saves the model, makes 10 more steps and adds the data and what became of the weights."""
    path = HERE / name
    model.save(path)
    steps = []
    for _ in range(10):
        fit(model, x, y, 1)
        steps.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    with h5py.File(path, "a") as file:
        file["recorded/next"] = np.stack(steps)
        for name, arrays in (("x", x), ("y", y)):
            for index, array in enumerate(arrays):
                file[f"recorded/{name}{index}"] = array


def functional_model():
    """Nested models, a frozen layer, two outputs, every kind of loss and metric, a schedule."""
    rng = np.random.default_rng(1)
    ids, x = keras.Input((4,), dtype="int32", name="ids"), keras.Input((5,), name="x")
    inner_in = keras.Input((4,))
    inner = keras.Model(inner_in, layers.Dense(4, "tanh", name="dense")(inner_in), name="inner")
    block = keras.Sequential(
        [
            layers.Dense(4, "tanh", use_bias=False, name="first"),
            layers.Dense(4, use_bias=False, trainable=False, name="second"),
        ],
        name="block",
    )
    frozen = layers.Dense(4, use_bias=False, trainable=False, name="frozen")
    rows = layers.Embedding(6, 3, name="rows")(ids)
    features = [block(inner(inner(frozen(x)))), layers.Flatten()(rows), layers.GRU(3)(rows)]
    hidden = layers.BatchNormalization(name="norm")(layers.Concatenate()(features))
    score = layers.Dense(1, use_bias=False, name="score")(hidden)
    kind = layers.Dense(3, "softmax", name="kind")(hidden)
    model = keras.Model([ids, x], [score, kind])
    model.compile(
        tfa.optimizers.Yogi(
            keras.optimizers.schedules.ExponentialDecay(0.02, 5, 0.9),
            epsilon=1e-2,
            l1_regularization_strength=1e-3,
            l2_regularization_strength=1e-2,
            initial_accumulator_value=1e-3,
        ),
        loss={"score": "mse", "kind": keras.losses.SparseCategoricalCrossentropy()},
        loss_weights={"score": 1.0, "kind": 0.5},
        metrics={"score": "mae", "kind": ["accuracy", keras.metrics.SparseCategoricalAccuracy()]},
        weighted_metrics=[[], ["accuracy"]],
    )
    x = [rng.integers(0, 6, (24, 4)).astype("int32"), rng.normal(size=(24, 5)).astype("float32")]
    y = [rng.normal(size=(24, 1)).astype("float32"), rng.integers(0, 3, 24).astype("int32")]
    fit(model, x, y, 20)
    record("functional_model.h5", model, x, y)


def unfrozen_model():
    """Trained top first, then as a whole by the same optimizer; β₁ = 0 and rows never touched."""
    rng = np.random.default_rng(2)
    model = keras.Sequential(
        [
            layers.Embedding(9, 3, input_length=4, trainable=False, name="rows"),
            layers.Flatten(),
            layers.Dense(4, "tanh", trainable=False, name="hidden"),
            layers.Dense(4, "tanh", name="top"),
            layers.Dense(1, "sigmoid", name="out"),
        ]
    )
    optimizer = tfa.optimizers.Yogi(0.05, beta1=0.0, activation="tanh", decay=0.1)
    loss = keras.losses.BinaryCrossentropy(label_smoothing=0.1)
    x = [rng.integers(0, 6, (24, 4)).astype("int32")]
    y = [rng.integers(0, 2, (24, 1)).astype("float32")]
    model.compile(optimizer, loss, ["accuracy"])
    fit(model, x, y, 10)
    for layer in model.layers:
        layer.trainable = True
    model.compile(optimizer, loss, ["accuracy"])
    fit(model, x, y, 10)
    record("unfrozen_model.h5", model, x, y)


keras.utils.set_random_seed(0)
functional_model()
unfrozen_model()
