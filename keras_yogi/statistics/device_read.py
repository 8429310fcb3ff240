"""Reads variables between steps: only the elements asked for, and shared arrays once."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

Function = Callable[..., Any]

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def tensor(scalar: Any) -> Any:
        """The present value of a variable or a number, on the device."""
        return tf.convert_to_tensor(scalar)

    def _gather(row: Any, positions: np.ndarray) -> Any:
        return tf.gather(row, positions.astype("int32"))  # ops.take would look for negative ones

    def compiled(function: Function, *arguments: Any) -> Function:
        """A graph of a function of tensors like these arguments."""
        # Called as traced: a lookup of the trace would hash every variable at every call.
        specs = [tf.TensorSpec.from_tensor(each) for each in arguments]
        return tf.function(function, autograph=False).get_concrete_function(*specs)

else:

    def tensor(scalar: Any) -> Any:
        """The present value of a variable or a number, on the device."""
        return ops.convert_to_tensor(scalar)

    def _gather(row: Any, positions: np.ndarray) -> Any:
        return ops.take(row, positions)

    def compiled(function: Function, *arguments: Any) -> Function:
        """The function itself: compiled, it would hold the variables as they were."""
        return function


def array_of(variable: Any) -> tuple[Any, int]:
    """The array that holds a variable, which slots may share, and its first position there."""
    return getattr(variable, "location", (variable, 0))


def reader(variables: Sequence[Any], positions: Sequence[np.ndarray], dtype: str) -> Function:
    """A function that reads some positions of variables into one row, variable after variable.

    Neighbours that share an array are read together.
    """
    pairs = zip(map(array_of, variables), positions, strict=True)
    pieces = []
    for _, group in itertools.groupby(pairs, key=lambda pair: id(pair[0][0])):
        parts = [(array, start + chosen) for (array, start), chosen in group]
        pieces.append((parts[0][0], np.concatenate([wanted for _, wanted in parts])))
    return lambda: ops.concatenate([ops.cast(_take(*piece), dtype) for piece in pieces])


def _take(array: Any, positions: np.ndarray) -> Any:
    # Reshaped first. To gather from a TensorFlow variable itself makes TensorFlow copy the whole
    # variable at every later read.
    row = ops.reshape(array, [-1])
    is_all = np.array_equal(positions, np.arange(row.shape[0]))
    return row if is_all else _gather(row, positions)


def number(scalar: Any) -> float:
    """The value of a scalar, a variable, a tensor or a number: 0.05 for 0.05 in float32."""
    return float(str(np.asarray(ops.convert_to_numpy(scalar))[()]))
