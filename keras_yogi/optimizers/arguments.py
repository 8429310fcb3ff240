"""Checks of constructor arguments. Every message names the argument, the rule and the value."""

import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from typing import Any, TypedDict

import numpy as np


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


def reject(name: str, rule: str, value: Any) -> ValueError:
    kind = type(value).__name__
    try:
        shown = repr(value)
    except NotImplementedError:  # of a variable, by Keras 3.10 while a graph is traced
        shown = getattr(value, "path", kind)
    return ValueError(f"`{name}` must be {rule}. Received: {name}={shown} (of type {kind})")


def number(name: str, value: Any, rule: str, holds: Callable[[float], bool]) -> float:
    """`value` as a float, if it is a finite real number for which the rule holds."""
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
    """A decay rate: 1 itself would mean that nothing is ever learnt (and ln β = 0)."""
    return number(name, value, "in [0, 1)", lambda x: 0 <= x < 1)


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise reject(name, "True or False", value)
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
    """A float (from any real number), or a schedule or callable as it is."""
    if callable(value) and not isinstance(value, type):
        return value
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        rule = "a number >= 0, a keras.optimizers.schedules.LearningRateSchedule or a callable"
        raise reject("learning_rate", rule, value)
    return non_negative("learning_rate", value)


_KERAS_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "weight_decay": non_negative,
    "clipnorm": positive,
    "clipvalue": positive,
    "global_clipnorm": positive,
    "use_ema": boolean,
    "ema_momentum": lambda name, value: number(name, value, "in [0, 1]", lambda x: 0 <= x <= 1),
    "ema_overwrite_frequency": lambda name, value: integer(name, value, at_least=1),
    "loss_scale_factor": positive,
    "gradient_accumulation_steps": lambda name, value: integer(name, value, at_least=2),
}
_MAY_BE_NONE = set(_KERAS_CHECKS) - {"use_ema", "ema_momentum"}


def keras_arguments(owner: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keras's own arguments, checked; any other name is refused, with the nearest known one."""
    checked: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in KerasArguments.__annotations__:
            own = [n for n, p in signature(owner).parameters.items() if p.kind != p.VAR_KEYWORD]
            known = [*own, *KerasArguments.__annotations__]
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
            raise ValueError(
                f"`{name}` must be an argument of {owner.__name__}, which takes: "
                f"{', '.join(known)}.{hint} Received: {name}={value!r}"
            )
        if name == "name":
            if value is not None and not isinstance(value, str):
                raise reject(name, "a string or None", value)
        elif value is not None or name not in _MAY_BE_NONE:
            value = _KERAS_CHECKS[name](name, value)
        checked[name] = value
    return checked
