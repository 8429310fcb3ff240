"""States of optimizers: filled, stored and compared."""

import keras
import numpy as np
import tensorflow as tf
from contract import assert_unchanged, snapshot

import keras_yogi

OURS = [keras_yogi.Adam, keras_yogi.Yogi]
SHAPES = [(2, 3), (3,), ()]


def built(optimizer, shapes=SHAPES):
    optimizer.build([keras.Variable(np.full(shape, 0.5, "float32")) for shape in shapes])
    return optimizer


def filled(optimizer, seed, shapes=SHAPES):
    """As after many steps: with a number of its own in every place of the state."""
    generator = np.random.default_rng(seed)
    for variable in built(optimizer, shapes).variables:
        whole = "int" in variable.dtype
        number = generator.integers(2, 99) if whole else generator.uniform(0.1, 0.9, variable.shape)
        variable.assign(number)
    return optimizer


def warm(optimizer):
    """As `keras_yogi.warm_start` leaves it: a bit of state outside of Keras's list."""
    optimizer.bias_correction = "momentum"
    return optimizer


def state(optimizer):
    hidden = getattr(optimizer, "_velocity_bias", None)
    return [*snapshot(optimizer, []), *([np.array(hidden.value)] if hidden else [])]


def assert_same_state(optimizer, other):
    assert_unchanged(snapshot(optimizer, []), snapshot(other, []))


def assert_of_use(optimizer):
    """It makes a step."""
    weights = optimizer._trainable_variables
    before = snapshot(optimizer, weights)
    optimizer.apply([tf.ones(w.shape, w.dtype) for w in weights], weights)
    assert all((w.numpy() != b).all() for w, b in zip(weights, before, strict=False))


def stored(optimizer):
    """What a file would hold."""
    store = {}
    optimizer.save_own_variables(store)
    return store


def written(optimizer, folder):
    """The path of a checkpoint."""
    return tf.train.Checkpoint(optimizer=optimizer).write(str(folder / "checkpoint"))


def read(optimizer, path):
    return tf.train.Checkpoint(optimizer=optimizer).read(path)


def compiled(optimizer, units=4):
    """A model whose optimizer has a state."""
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(units, activation="tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    filled(optimizer, seed=units)
    return model
