"""An optimizer of every kind, its variables, a good call: for tests of bad and unusual calls."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import DEFAULT_CASES, PLAIN_CASES, snapshot

ROWS, WIDTH = 4, 3
SETTINGS = {
    "decay, ema": dict(weight_decay=0.125, use_ema=True),
    "accumulation, clipnorm": dict(gradient_accumulation_steps=2, clipnorm=0.5),
    "skip_nonfinite": dict(skip_nonfinite=True),
}
PREPARED = {
    **{name: (case, SETTINGS["decay, ema"]) for name, case in PLAIN_CASES.items()},
    **{
        setting: (DEFAULT_CASES["yogi"], SETTINGS[setting])
        for setting in ["accumulation, clipnorm", "skip_nonfinite"]
    },
}
every_optimizer = pytest.mark.parametrize("prepared", PREPARED)


def model_variables():
    values = {"kernel": np.ones((ROWS, WIDTH)), "bias": np.ones(3), "scale": np.float32(1.0)}
    return [keras.Variable(v, dtype="float32", name=name) for name, v in values.items()]


def good(**replaced):
    """Gradients for the kernel, the bias and the scale; those named are replaced."""
    gradients = {"kernel": tf.ones((ROWS, WIDTH)), "bias": tf.ones(3), "scale": tf.constant(1.0)}
    return list({**gradients, **replaced}.values())


def rows(values, indices, shape=(ROWS, WIDTH)):
    return tf.IndexedSlices(tf.constant(values), tf.constant(indices), tf.constant(shape))


def make(prepared, **more):
    case, arguments = PREPARED[prepared]
    return case.optimizer(**arguments, **more)


def stepped(prepared, steps):
    optimizer, variables = make(prepared), model_variables()
    for _ in range(steps):
        optimizer.apply(good(), variables)
    return optimizer, variables


@functools.cache
def after_one_step(prepared):
    return snapshot(*stepped(prepared, 1))
