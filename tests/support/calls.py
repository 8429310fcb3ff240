"""Variables, and good calls on them: for tests of bad and unusual calls."""

import functools
from typing import Any

import keras
import numpy as np
import pytest

from support.backend import ON_TENSORFLOW, tensor
from support.cases import DEFAULT, OPTIONS, PLAIN
from support.comparison import snapshot
from support.reference import Array

if ON_TENSORFLOW:
    import tensorflow as tf

ROWS, WIDTH = 4, 3
# name: the case, and the option that it is made with.
PREPARED = {
    **{name: (case, "decay, overwriting ema") for name, case in PLAIN.items()},
    "accumulation, clipnorm": (DEFAULT["yogi"], "accumulation, clipnorm, decay"),
    "skip_nonfinite": (DEFAULT["yogi"], "skip_nonfinite"),
}
every_prepared = pytest.mark.parametrize("prepared", PREPARED)


def model_variables() -> list[keras.Variable]:
    values = {"kernel": np.ones((ROWS, WIDTH)), "bias": np.ones(3), "scale": np.float32(1.0)}
    return [keras.Variable(v, dtype="float32", name=name) for name, v in values.items()]


def ones(*shape: int) -> Any:
    return tensor(np.ones(shape, "float32"))


def good(**replaced: Any) -> list[Any]:
    """Gradients for the kernel, the bias and the scale; those named are replaced."""
    gradients = {"kernel": ones(ROWS, WIDTH), "bias": ones(3), "scale": ones()}
    return list({**gradients, **replaced}.values())


def indexed_slices(values: Any, indices: Any, shape: tuple[int, ...] = (ROWS, WIDTH)) -> Any:
    return tf.IndexedSlices(tf.constant(values), tf.constant(indices), tf.constant(shape))


def make(prepared: str, **more: Any) -> Any:
    case, option = PREPARED[prepared]
    return case.optimizer(**{**OPTIONS[option], **more})


def stepped(prepared: str, steps: int) -> tuple[Any, list[keras.Variable]]:
    optimizer, variables = make(prepared), model_variables()
    for _ in range(steps):
        optimizer.apply(good(), variables)
    return optimizer, variables


@functools.cache
def after_one_step(prepared: str) -> list[Array]:
    return snapshot(*stepped(prepared, 1))
