"""Checks of constructor arguments, and of calls of an optimizer.

Every message names the argument, the rule and the value. Checks of a call come before any change.
They read static shapes and dtypes, so they cost nothing once a graph is traced.
"""

import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from typing import Any, Literal, SupportsFloat, TypedDict

import keras
import numpy as np
from keras import ops

from keras_yogi import row_gradients

LearningRate = SupportsFloat | Callable[..., Any]
"""A number, a schedule, or a callable without arguments."""
SparseUpdate = Literal["exact", "lazy"]
Fused = bool | Literal["auto"]


class KerasArguments(TypedDict, total=False):
    """The arguments that every Keras optimizer takes; see `keras.optimizers.Optimizer`."""

    weight_decay: float | None
    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
    name: str | None


OTHER_NAMES: dict[str, str] = {
    **dict.fromkeys(("lr", "eta", "step_size"), "learning_rate"),
    **dict.fromkeys(("b1", "beta1"), "beta_1"),
    **dict.fromkeys(("b2", "beta2"), "beta_2"),
    "eps": "epsilon",
    "l1": "l1_regularization_strength",
    "l2": "l2_regularization_strength",
    **dict.fromkeys(("decay", "wd"), "weight_decay"),
}
"""Names that other libraries, and older versions of Keras, give the arguments."""


def reject(name: str, rule: str, value: Any) -> ValueError:
    kind = type(value).__name__
    return ValueError(f"`{name}` must be {rule}. Received: {name}={shown(value)} (of type {kind})")


def shown(value: Any) -> str:
    """A value as text for a message: an array or a variable without its numbers."""
    if hasattr(value, "assign") and hasattr(value, "shape"):
        return f"<variable {path(value)}>"
    if getattr(value, "shape", ()) != ():
        return f"<array of shape {tuple(value.shape)}>"
    try:
        text = repr(value)
    except NotImplementedError:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 200 else f"{text[:200]}…"


def not_of_keras_2(name: str, value: Any) -> None:
    """Raises a ValueError for an object of Keras 2, which TF_USE_LEGACY_KERAS=1 gives."""
    if any(cls.__module__.startswith("tf_keras") for cls in type(value).__mro__):
        raise ValueError(
            f"keras_yogi is for Keras 3, and `{name}` is of Keras 2. Make it with `import keras`, "
            "or unset TF_USE_LEGACY_KERAS, which makes `tf.keras` Keras 2. "
            f"Received: {type(value).__module__}.{type(value).__qualname__}"
        )


def number(name: str, value: Any, rule: str, holds: Callable[[float], bool]) -> float:
    """`value` as a float. It must be a finite real number for which `holds` is true."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise reject(name, f"a number {rule}", value)
    converted = float(value)
    if not math.isfinite(converted) or not holds(converted):
        raise reject(name, f"a number {rule}", value)
    return converted


def non_negative(name: str, value: Any) -> float:
    return number(name, value, ">= 0 and finite", lambda x: x >= 0)


def positive(name: str, value: Any) -> float:
    return number(name, value, "> 0 and finite", lambda x: x > 0)


def fraction(name: str, value: Any) -> float:
    """A decay rate below 1: at 1 nothing would be learnt, and ln β would be 0."""
    return number(name, value, "in [0, 1)", lambda x: 0 <= x < 1)


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise reject(name, "True or False", value)
    return value


def auto_or_boolean(name: str, value: Any) -> Any:
    if not (isinstance(value, bool) or value == "auto"):
        raise reject(name, '"auto", True or False', value)
    return value


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise reject(name, "one of " + ", ".join(f'"{choice}"' for choice in choices), value)
    return value


def integer(name: str, value: Any, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise reject(name, f"an integer >= {at_least}", value)
    return int(value)


def learning_rate(value: Any) -> Any:
    """A float for any real number; a schedule or a callable unchanged."""
    if callable(value) and not isinstance(value, type):
        return value
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        rule = "a number >= 0, a keras.optimizers.schedules.LearningRateSchedule or a callable"
        raise reject("learning_rate", rule, value)
    return non_negative("learning_rate", value)


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise reject(name, "a string or None", value)
    return value


def _or_none(check: Callable[..., Any], **options: Any) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value, **options)


KERAS_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "weight_decay": _or_none(non_negative),
    "clipnorm": _or_none(positive),
    "clipvalue": _or_none(positive),
    "global_clipnorm": _or_none(positive),
    "use_ema": boolean,
    "ema_momentum": lambda name, value: number(name, value, "in [0, 1]", lambda x: 0 <= x <= 1),
    "ema_overwrite_frequency": _or_none(integer, at_least=1),
    "loss_scale_factor": _or_none(positive),
    "gradient_accumulation_steps": _or_none(integer, at_least=2),
    "name": _or_none(text),
}
"""The check of each argument of every Keras optimizer."""


def keras_arguments(owner: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Checks Keras's arguments. The error for an unknown name suggests the nearest known one."""
    checked: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in KerasArguments.__annotations__:
            own = [n for n, p in signature(owner).parameters.items() if p.kind != p.VAR_KEYWORD]
            known = [*own, *KerasArguments.__annotations__]
            nearest = difflib.get_close_matches(name, known, n=1)
            nearest = [OTHER_NAMES[name]] if OTHER_NAMES.get(name) in known else nearest
            hint = f"Did you mean `{nearest[0]}`? " if nearest else ""
            raise ValueError(
                f"`{name}` must be an argument of {owner.__name__}. {hint}"
                f"Its arguments are: {', '.join(known)}. Received: {name}={shown(value)}"
            )
        checked[name] = KERAS_CHECKS[name](name, value)
    return checked


# Calls of an optimizer


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
    for variable in variables:
        if any(size is None for size in variable.shape):
            rule = "variables of known shapes: give each dimension a size"
            raise reject(name, rule, f"{path(variable)} of shape {tuple(variable.shape)}")
    return variables


def gradient_list(grads: Any) -> list[Any]:
    """A list of gradients. One array is refused: it is not a list of its rows."""
    if hasattr(grads, "shape") or isinstance(grads, str) or not _is_iterable(grads):
        raise reject("grads", "a list of gradients, one per variable", grads)
    return list(grads)


def _is_iterable(value: Any) -> bool:
    return isinstance(value, Iterable) and not hasattr(value, "dtype")


def gradients(grads: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """Each gradient as a tensor of its variable's shape, as rows of it, or None.

    Raises:
        ValueError: the number, a shape or a dtype is wrong. Gradients are never broadcast, and only
            row gradients may have fewer rows than their variable.
    """
    if len(grads) != len(variables):
        raise ValueError(
            "`grads` must hold one gradient, or None, per variable. "
            f"Received: {len(grads)} gradients for {len(variables)} variables"
        )
    return [
        None if gradient is None else _gradient(gradient, variable)
        for gradient, variable in zip(grads, variables, strict=True)
    ]


def _gradient(gradient: Any, variable: Any) -> Any:
    what, expected = f"The gradient of `{path(variable)}` must", tuple(variable.shape)
    gradient = row_gradients.checked(gradient, expected, what)
    if isinstance(gradient, keras.Variable):  # which TensorFlow takes for a tensor
        gradient = gradient.value
    if not row_gradients.is_rows(gradient) and not ops.is_tensor(gradient):
        gradient = ops.convert_to_tensor(gradient)
    dtype = keras.backend.standardize_dtype(gradient.dtype)
    if "float" not in dtype:
        raise ValueError(f"{what} be of a floating dtype. Received: dtype {dtype}")
    if row_gradients.is_rows(gradient):
        return gradient
    gradient = row_gradients.with_shape(row_gradients.dense(gradient), expected)
    shape = tuple(gradient.shape)
    if shape != expected:
        raise ValueError(f"{what} have its shape {expected}. Received: shape {shape}")
    return gradient


def same_shapes(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Raises a ValueError unless every value has its variable's shape."""
    for variable, value in zip(variables, values, strict=True):
        shape = tuple(value.shape) if hasattr(value, "shape") else np.shape(value)
        if tuple(variable.shape) != shape:
            raise ValueError(
                f"The value of `{path(variable)}` must be of its shape {tuple(variable.shape)}. "
                f"Received: shape {shape}"
            )
