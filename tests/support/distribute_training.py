"""Trainings under a tf.distribute strategy: a loop of one's own, `fit`, and files."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import tensorflow as tf

import keras_yogi
from support.cases import CASES
from support.models import LENGTH as TEXT_LENGTH
from support.models import VOCABULARY, texts
from support.reference import Array
from support.training import hard_gradients, initial_weights, variables_of

Strategy = tf.distribute.Strategy

OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    **{name: CASES[name].optimizer for name in ("adam", "amsgrad", "yogi")},
    # keras.optimizers.Adam, and the optimizer here that computes the same.
    "keras": lambda **k: keras.optimizers.Adam(**{"learning_rate": 0.0625, "epsilon": 1e-3, **k}),
    "ours": lambda **k: keras_yogi.Adam(
        **{"learning_rate": 0.0625, "epsilon": 1e-3, "epsilon_hat": True, **k}
    ),
}
OURS = ("adam", "amsgrad", "yogi")
# With "lazy", as here every step names the same rows, the same as without.
IN_A_GRAPH = ("plain", "schedule", "weight_decay", "ema", "skip_nonfinite", "lazy")
# Keras puts the all-reduce of these into a condition, which tf.distribute refuses in a graph.
EAGER_ONLY = ("accumulation", "ema, overwriting")


# A loop of one's own, with given gradients

ROWS, WIDTH = 7, 3
# What each replica's batch looks up in the table: row 2 several times on both, rows 0 and 5 twice
# on one, rows 1, 3 and 4 not at all.
INDICES = np.array([[2, 5, 2, 0, 0, 5], [2, 2, 6, 5, 2, 6]])


def replica_weights() -> list[Array]:
    """Three variables with dense gradients, and the embedding table."""
    return [*initial_weights(), np.ones((ROWS, WIDTH))]


def replica_gradients() -> list[list[Array]]:
    """For each step: for each variable: what replica 0 and replica 1 have, stacked.

    The table's are the pieces that belong to INDICES: eighths, which float32 adds without rounding
    in any order. The two pieces of row 0 cancel.
    """
    random = np.random.default_rng(8)
    steps = []
    for first, second in zip(hard_gradients(), reversed(hard_gradients()), strict=True):
        pieces = np.round(8 * random.normal(size=(*INDICES.shape, WIDTH))) / 8
        pieces[0, 4] = -pieces[0, 3]
        dense = [np.stack(pair) for pair in zip(first, second, strict=True)]
        steps.append([g.astype("float32") for g in [*dense, pieces]])
    return steps


FAULTS = {4: (1, 0, np.nan), 9: (0, 3, np.inf)}  # step: replica, variable, what it has there


def faulty_gradients() -> list[list[Array]]:
    """The same, with a gradient that is not finite on one replica, the other's being in order."""
    steps = replica_gradients()
    for step, (replica, variable, fault) in FAULTS.items():
        steps[step][variable][replica].flat[0] = fault
    return steps


REPLICA_MODES = {
    "graph": lambda step: tf.function(step, autograph=False),
    "autograph": tf.function,  # its default; tracing takes twice as long
    "eager": lambda step: step,
}


def trajectories(
    strategy: Strategy,
    optimizer: Callable[[], keras.optimizers.Optimizer],
    steps: Sequence[Sequence[Array]],
    mode: str = "graph",
) -> dict[str, Any]:
    """Weights and slots at step 0, 1, …, as each replica of this process has them.

    Args:
        strategy: with as many replicas as the gradients have.
        optimizer: makes one.
        steps: like `replica_gradients()`, of all variables or the first few.
        mode: one of REPLICA_MODES.
    """
    with strategy.scope():
        variables = variables_of(replica_weights()[: len(steps[0])])
        optimizer_ = optimizer()
        optimizer_.build(variables)

    def on_replica(row: Sequence[tf.Tensor]) -> None:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        own = [both[replica] for both in row]
        if len(own) == 4:
            own[3] = tf.IndexedSlices(
                own[3], tf.constant(INDICES)[replica], tf.constant([ROWS, WIDTH])
            )
        optimizer_.apply(own, variables)

    def step(row: Sequence[tf.Tensor]) -> None:
        strategy.run(on_replica, args=(row,))

    def on_replicas(variable: keras.Variable) -> list[Any]:
        if not hasattr(variable, "location"):
            return [v.numpy().tolist() for v in strategy.experimental_local_results(variable.value)]
        array, start = variable.location  # which it shares with others
        end = start + math.prod(variable.shape)
        copies = [v.numpy()[start:end] for v in strategy.experimental_local_results(array)]
        return [copy.reshape(variable.shape).tolist() for copy in copies]

    def slot(variable: keras.Variable, name: str) -> keras.Variable:
        """That of Keras's own optimizers too, which they know by its path alone."""
        (of_name,) = [
            v for v in optimizer_.variables if v.path.endswith(f"/{variable.path}_{name}")
        ]
        return of_name

    names = ["momentum", "velocity", "velocity_hat"]
    names = [n for n in names if any(v.path.endswith(n) for v in optimizer_.variables)]

    def state() -> list[list[dict[str, Any]]]:
        values = [
            {"weights": on_replicas(v), **{n: on_replicas(slot(v, n)) for n in names}}
            for v in variables
        ]
        replicas = range(len(values[0]["weights"]))
        return [[{n: x[r] for n, x in of_v.items()} for of_v in values] for r in replicas]

    run = REPLICA_MODES[mode](step)
    states = [state()]
    for row in steps:
        run([tf.constant(g) for g in row])
        states.append(state())
    result = {
        "replicas": list(zip(*states, strict=True)),
        "iterations": int(optimizer_.iterations.numpy()),
        "skipped_steps": getattr(optimizer_, "skipped_steps", None),
    }
    if optimizer_.use_ema:
        with strategy.scope():
            optimizer_.finalize_variable_values(variables)
        result["averages"] = [on_replicas(v)[0] for v in variables]
    return result


# `fit`

BATCH = 32


def faulty_texts(faulty: bool = False) -> tuple[Array, Array]:
    """With `faulty`, one label is a NaN, in the half of the first batch that replica 1 gets."""
    words, labels = texts()
    if faulty:
        labels[BATCH - 1] = np.nan
    return words, labels


def text_model(
    strategy: Strategy, optimizer: Callable[[], keras.optimizers.Optimizer], **arguments: Any
) -> keras.Model:
    with strategy.scope():
        keras.utils.set_random_seed(5)
        layers = [
            keras.layers.Embedding(VOCABULARY, 8),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(4, activation="tanh"),
            keras.layers.Dense(1),
        ]
        model = keras.Sequential([keras.Input((TEXT_LENGTH,), dtype="int32"), *layers])
        model.compile(optimizer(), loss="mse", **arguments)
    return model


def fit_texts(model: keras.Model, epochs: int = 3, faulty: bool = False) -> dict[str, Any]:
    """Trains on, and tells how it ends."""
    x, y = faulty_texts(faulty)
    model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0)
    return end_of(model)


def end_of(model: keras.Model) -> dict[str, Any]:
    optimizer, variables = model.optimizer, model.trainable_variables
    return {
        "weights": [v.numpy().tolist() for v in variables],
        **{n: [optimizer.get_slot(v, n).numpy().tolist() for v in variables] for n in SLOTS},
        "iterations": int(optimizer.iterations.numpy()),
        "skipped_steps": optimizer.skipped_steps,
    }


SLOTS = ("momentum", "velocity")


def save_model(model: keras.Model, folder: Path) -> None:
    """In all three forms."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(folder / "checkpoint"))


def load_model(
    strategy: Strategy, optimizer: Callable[[], keras.optimizers.Optimizer], form: str, folder: Path
) -> keras.Model:
    """The model as it was saved in that form, under this strategy."""
    if form == "keras":
        with strategy.scope():
            return keras.models.load_model(folder / "model.keras")
    model = text_model(strategy, optimizer)
    with strategy.scope():
        model.optimizer.build(model.trainable_variables)
        if form == "weights.h5":
            model.load_weights(folder / "model.weights.h5")
        else:
            checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
            checkpoint.read(str(folder / "checkpoint")).assert_existing_objects_matched()
    return model


FORMS = ("keras", "weights.h5", "checkpoint")
