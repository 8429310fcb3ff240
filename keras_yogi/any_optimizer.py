"""What any Keras optimizer tells of itself: ours, Keras's own, wrapped or not.

Every use of an underscore name of other optimizers is in this file, because nothing public gives
the same: `_trainable_variables` is the list that an optimizer was built with, `_momentums` (SGD:
`momentums`), `_velocities` and `_velocity_hats` are its slots, `_use_weight_decay` knows what is
excluded, `_iterations` counts batches where `iterations` counts steps, and `_learning_rate` tells a
number from a schedule, which is to be asked for the step before the present one.
"""

import dataclasses
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_yogi.rules import AdamRule, AdaptiveRule


def unwrapped(optimizer: Any) -> list[Any]:
    """The optimizers in a keras.optimizers.LossScaleOptimizer or MultiOptimizer; of any other
    optimizer, itself; of None, none.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return [each for each in getattr(optimizer, "optimizers", [optimizer]) if each is not None]


def is_ours(optimizer: Any) -> bool:
    """Whether it follows a rule. (Not by its class, whose module asks for statistics itself.)"""
    return isinstance(getattr(optimizer, "rule", None), AdaptiveRule)


def trained_variables(optimizer: Any) -> list[Any]:
    """The list that an optimizer was built with."""
    return list(optimizer._trainable_variables)


def decays(optimizer: Any, variable: Any) -> bool:
    """Whether weight decay, if there is any, is for this variable."""
    return bool(optimizer._use_weight_decay(variable))


def slots_of(optimizer: Any) -> dict[str, list[Any]]:
    """The slots by name, one or None for each variable: of ours in the rule's order, of others what
    of momentum and velocity they keep.
    """
    if is_ours(optimizer):
        return {name: optimizer.slots()[name] for name in optimizer.rule.initial_values}
    names = ("momentum", "momentum", "velocity", "velocity_hat")
    attributes = ("_momentums", "momentums", "_velocities", "_velocity_hats")
    pairs = [(n, getattr(optimizer, a, None)) for n, a in zip(names, attributes, strict=True)]
    count = len(optimizer._trainable_variables)
    return {n: found for n, found in pairs if isinstance(found, list) and len(found) == count}


def location(variable: Any) -> tuple[Any, int]:
    """The array that holds a variable or a slot, and where in it its first element lies."""
    return getattr(variable, "location", (variable, 0))


def rule_of(optimizer: Any) -> AdaptiveRule | None:
    """The rule that an optimizer follows now; None if only norms can be computed."""
    if type(optimizer).update_step.__module__.split(".")[0] not in ("keras", "keras_yogi"):
        return None  # it updates in a way of its own
    if is_ours(optimizer):
        return optimizer.rule
    if isinstance(optimizer, keras.optimizers.Adam):  # it adds ε before the bias correction
        names = ("beta_1", "beta_2", "epsilon", "amsgrad")
        return AdamRule(**{name: getattr(optimizer, name) for name in names}, epsilon_hat=True)
    return None


def progress(optimizer: Any) -> tuple[Any, Any]:
    """The steps that an optimizer has made, and the learning rate of the last: scalar tensors."""
    iterations, rate = optimizer.iterations, optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        batches = iterations * (optimizer.gradient_accumulation_steps or 1)
        rate = rate(ops.maximum(batches - 1, 0))
    else:
        rate = optimizer.learning_rate
    return ops.convert_to_tensor(iterations), ops.convert_to_tensor(rate)


def skipped_steps(optimizer: Any) -> int:
    """The steps that `skip_nonfinite` has skipped."""
    return sum(int(getattr(each, "skipped_steps", 0)) for each in unwrapped(optimizer))


def batches_made(optimizer: Any) -> int:
    """The batches that an optimizer was trained with, skipped and accumulated ones included."""
    made = [int(number(each._iterations)) for each in unwrapped(optimizer)]
    return max(made, default=0) + skipped_steps(optimizer)


def number(scalar: Any) -> float:
    """The value of a scalar, a variable, a tensor or a number: 0.05 for 0.05 in float32."""
    return float(str(to_numpy(scalar)[()]))


def to_numpy(value: Any) -> np.ndarray:
    """The array of a variable, a tensor or a number. Keras's own way makes NumPy 2 warn, and a user
    may have made warnings errors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(ops.convert_to_numpy(value))


def hyperparameters(optimizer: Any) -> dict[str, Any]:
    """The arguments of the optimizers in `optimizer`, in plain types, but None.

    With several optimizers, each name begins with that of its optimizer.
    """
    several = unwrapped(optimizer)
    found: dict[str, Any] = {}
    for each in several:
        named = {"optimizer": class_name(each), **arguments(each), "name": None}
        prefix = f"{each.name}." if len(several) > 1 else ""
        found |= {prefix + n: plain(value) for n, value in named.items() if value is not None}
    return found


def arguments(optimizer: Any) -> dict[str, Any]:
    """An optimizer's config; what is known of it where a class has no `get_config`."""
    try:
        return optimizer.get_config()
    except NotImplementedError:  # a user's schedule, for example
        fields = dataclasses.asdict(optimizer.rule) if is_ours(optimizer) else {}
        return {"learning_rate": type(optimizer._learning_rate).__name__, **fields}


def class_name(optimizer: Any) -> str:
    """As a user writes it: "keras_yogi.Adam", "keras.optimizers.SGD"."""
    cls = type(optimizer)
    packages = {"keras_yogi": "keras_yogi", "keras": "keras.optimizers"}
    return f"{packages.get(cls.__module__.split('.')[0], cls.__module__)}.{cls.__qualname__}"


def plain(value: Any) -> bool | int | float | str:
    """An argument as it was given: 0.05, not the 0.05000000074505806 of float32."""
    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict) and isinstance(settings := value.get("config"), dict):  # a schedule
        arguments = (f"{k}={v!r}" for k, v in settings.items() if v is not None and k != "name")
        return f"{value['class_name']}({', '.join(arguments)})"
    return str(value)
