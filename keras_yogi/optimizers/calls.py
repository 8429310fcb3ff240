"""Checks of what an optimizer is called with after it has been made.

They look at static shapes and dtypes, so that they cost nothing in a graph once it is traced, and
they come before anything is changed.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from keras_yogi.engine import rows
from keras_yogi.optimizers.arguments import reject


def path(variable: Any) -> str:
    return getattr(variable, "path", None) or getattr(variable, "name", None) or repr(variable)


def variable_list(name: str, variables: Any) -> list[Any]:
    """A list of different variables, Keras's or the backend's own (both can be assigned to)."""
    rule = "a list of variables without repetitions"
    if isinstance(variables, str) or hasattr(variables, "assign") or not _is_iterable(variables):
        raise reject(name, rule, variables)
    variables = list(variables)
    if not all(hasattr(v, "assign") for v in variables):
        raise reject(name, rule, variables)
    if len({id(v) for v in variables}) < len(variables):
        raise reject(name, rule, [path(v) for v in variables])
    return variables


def gradient_list(grads: Any) -> list[Any]:
    """A list of gradients; one array is not a list of its rows."""
    if hasattr(grads, "shape") or isinstance(grads, str) or not _is_iterable(grads):
        raise reject("grads", "a list of gradients, one per variable", grads)
    return list(grads)


def _is_iterable(value: Any) -> bool:
    return isinstance(value, Iterable) and not hasattr(value, "dtype")


def checked_gradients(grads: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """Each gradient as a tensor of its variable's shape, as rows of it, or None.

    Raises:
        ValueError: a gradient is not such a one. It must not be broadcast, and nothing but an
            Embedding's rows may stand for a larger gradient.
    """
    if len(grads) != len(variables):
        raise ValueError(
            "`grads` must hold one gradient, or None, per variable. "
            f"Received: {len(grads)} gradients for {len(variables)} variables"
        )
    return [
        None if gradient is None else _checked(gradient, variable)
        for gradient, variable in zip(grads, variables, strict=True)
    ]


def _checked(gradient: Any, variable: Any) -> Any:
    what = f"The gradient of `{path(variable)}` must"
    gradient = rows.checked(gradient, tuple(variable.shape), what)
    if not rows.is_rows(gradient) and not ops.is_tensor(gradient):
        gradient = ops.convert_to_tensor(gradient)
    dtype = keras.backend.standardize_dtype(gradient.dtype)
    if "float" not in dtype:
        raise ValueError(f"{what} be of a floating dtype. Received: dtype {dtype}")
    if rows.is_rows(gradient):
        return gradient
    gradient = rows.dense(gradient)
    shape, expected = tuple(gradient.shape), tuple(variable.shape)
    if len(shape) != len(expected) or any(
        a is not None and a != b for a, b in zip(shape, expected, strict=True)
    ):
        raise ValueError(f"{what} have its shape {expected}. Received: shape {shape}")
    return gradient


def same_shapes(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Every value has its variable's shape, so that all of them can be stored."""
    for variable, value in zip(variables, values, strict=True):
        if tuple(variable.shape) != tuple(ops.shape(value)):
            raise ValueError(
                f"The value of `{path(variable)}` must be of its shape {tuple(variable.shape)}. "
                f"Received: shape {tuple(ops.shape(value))}"
            )
