"""A small model that keras_yogi.TensorBoard watches, and what is in its event files."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from support.backend import WITHOUT_XLA
from support.figures import FIGURES

LAYERS = {
    "embed": ["embed/embeddings"],
    "hidden": ["hidden/kernel", "hidden/bias"],
    "out": ["out/kernel", "out/bias"],
}
VARIABLES = [variable for of_layer in LAYERS.values() for variable in of_layer]
SCALARS = {
    f"optimizer/{name}" for name in ["learning_rate", *FIGURES, "skipped_steps", "initial_rows"]
}
OF_VARIABLES = {
    *(f"optimizer_{figure}/{variable}" for variable in VARIABLES for figure in FIGURES),
    "optimizer_initial_rows/embed/embeddings",
}
HISTOGRAMS = {
    f"optimizer_log10_{what}/{layer}"
    for layer in LAYERS
    for what in ("effective_lr", "root_velocity", "update")
}
PAGES = {
    "optimizer/config",
    "_hparams_/experiment",
    "_hparams_/session_start_info",
    "_hparams_/session_end_info",
    "custom_scalars__config__",
}


def lookups():
    random = np.random.default_rng(0)
    x = random.integers(0, 20, (48, 3))
    return x, np.sin(x.sum(axis=1, keepdims=True)).astype("float32")


def lookup_model(optimizer, dropout=0.0):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(30, 4, name="embed"),
            keras.layers.Flatten(),
            keras.layers.Dense(5, activation="tanh", name="hidden"),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(1, name="out"),
        ]
    )
    model.compile(optimizer, loss="mse", metrics=["mae"], **WITHOUT_XLA)
    return model


def fit_lookups(model, *callbacks, epochs=2, **arguments):
    """Three batches an epoch."""
    arguments = {"batch_size": 16, "verbose": 0, **arguments}
    return model.fit(*lookups(), epochs=epochs, callbacks=list(callbacks), **arguments)


def events(folder):
    """What the event files of a folder hold: (tag, plugin) → {step: value}, in order."""
    found = {}
    for path in sorted(Path(folder).glob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                key = value.tag, value.metadata.plugin_data.plugin_name
                number = tf.make_ndarray(value.tensor) if value.HasField("tensor") else None
                found.setdefault(key, []).append((event.step, number))
    return found


def tags(folder, plugin=None):
    return {tag for tag, kind in events(folder) if plugin in (None, kind)}


def scalars(folder, tag):
    return {step: value.item() for step, value in events(folder)[tag, "scalars"]}
