"""States of optimizers: filled, stored and compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from support.backend import ON_TENSORFLOW, tensor
from support.comparison import assert_unchanged, snapshot
from support.models import regression_model

if ON_TENSORFLOW:
    import tensorflow as tf

STATE_SHAPES = [(2, 3), (3,), ()]


def built(optimizer: Any, shapes: Sequence[tuple[int, ...]] = STATE_SHAPES) -> Any:
    optimizer.build([keras.Variable(np.full(shape, 0.5, "float32")) for shape in shapes])
    return optimizer


def filled(optimizer: Any, seed: int, shapes: Sequence[tuple[int, ...]] = STATE_SHAPES) -> Any:
    """As after many steps: with a number of its own in every place of the state."""
    generator = np.random.default_rng(seed)
    for variable in built(optimizer, shapes).variables:
        whole = "int" in variable.dtype
        number = generator.integers(2, 99) if whole else generator.uniform(0.1, 0.9, variable.shape)
        variable.assign(number)
    return optimizer


def assert_same_state(optimizer: Any, other: Any) -> None:
    assert_unchanged(snapshot(optimizer), snapshot(other))


def assert_of_use(optimizer: Any) -> None:
    """It makes a step, on the variables that it was built with."""
    weights = getattr(optimizer, "trained_variables", None)
    weights = weights or optimizer._trainable_variables  # of Keras's own optimizers
    before = [np.array(w.numpy()) for w in weights]
    optimizer.apply([tensor(np.ones(w.shape), w.dtype) for w in weights], weights)
    assert all((w.numpy() != b).all() for w, b in zip(weights, before, strict=True))


def warm(optimizer: Any) -> Any:
    """A velocity that needs no correction: v̂ = v."""
    optimizer.bias_correction = "momentum"
    return optimizer


def stored(optimizer: Any) -> dict[str, Any]:
    """What a file would hold."""
    store: dict[str, Any] = {}
    optimizer.save_own_variables(store)
    return store


def written(optimizer: Any, folder: Path) -> str:
    """The path of a checkpoint."""
    return tf.train.Checkpoint(optimizer=optimizer).write(str(folder / "checkpoint"))


def restored(optimizer: Any, path: str) -> Any:
    """The checkpoint's status, as far as it is read into the optimizer."""
    return tf.train.Checkpoint(optimizer=optimizer).read(path)


def model_with_state(optimizer: Any, seed: int = 4, units: int = 4) -> keras.Model:
    """A model whose optimizer has a state."""
    if units == 4:
        model = regression_model(optimizer)
    else:
        layers = [keras.layers.Dense(units, activation="tanh"), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((3,)), *layers])
        model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    filled(optimizer, seed=seed)
    return model
