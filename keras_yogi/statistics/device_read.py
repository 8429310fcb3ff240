"""Reads variables between steps: only the elements asked for, and shared arrays once."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any


def flat(variable: Any) -> Tensor:
    """All elements of a variable in one row."""
    # Converted first. To gather from a TensorFlow variable itself makes TensorFlow copy the whole
    # variable at every later read.
    return ops.reshape(ops.convert_to_tensor(variable), [-1])


def reader(
    variables: Sequence[Any], positions: Sequence[np.ndarray], dtype: str
) -> Callable[[], Tensor]:
    """A function that reads elements of several variables into one row, variable after variable.

    Args:
        variables: model variables or slots.
        positions: for each of them, the positions of the elements in its row.
        dtype: of the result.
    """
    arrays: dict[int, Any] = {}
    wanted: dict[int, list[np.ndarray]] = {}
    targets: dict[int, list[np.ndarray]] = {}
    end = 0
    for variable, of_variable in zip(variables, positions, strict=True):
        array, start = getattr(variable, "location", (variable, 0))  # slots may share an array
        arrays[id(array)] = array
        wanted.setdefault(id(array), []).append(start + of_variable)
        targets.setdefault(id(array), []).append(end + np.arange(len(of_variable)))
        end += len(of_variable)
    pieces = [(arrays[key], np.concatenate(wanted[key])) for key in arrays]
    order = np.argsort(np.concatenate([np.concatenate(targets[key]) for key in arrays]))

    def read() -> Tensor:
        return _take(ops.concatenate([ops.cast(_take(*piece), dtype) for piece in pieces]), order)

    return read


def _take(array: Any, positions: np.ndarray) -> Tensor:
    row = flat(array)
    is_all = len(positions) == row.shape[0] and np.array_equal(positions, np.arange(len(positions)))
    return row if is_all else ops.take(row, ops.convert_to_tensor(positions, "int32"))


def compiled(function: Callable[..., Any], *arguments: Tensor) -> Callable[..., Any]:
    """A graph of a function of tensors like these arguments, on TensorFlow.

    On other backends, the function itself: compiled, it would hold the variables as they were.
    """
    if keras.config.backend() != "tensorflow":
        return function
    import tensorflow as tf

    # Called as traced: a lookup of the trace would hash every variable at every call.
    specs = [tf.TensorSpec.from_tensor(each) for each in arguments]
    return tf.function(function, autograph=False).get_concrete_function(*specs)


def number(scalar: Any) -> float:
    """The value of a scalar, a variable, a tensor or a number: 0.05 for 0.05 in float32."""
    return float(str(np.asarray(ops.convert_to_numpy(scalar))[()]))
