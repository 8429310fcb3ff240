"""The functions of `tensorflow`, for backends that have no fused engine."""

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_yogi.engines.base import Engine, Group, Limits


def check_strategy() -> None:
    """There are no strategies."""


def check_conditional_updates(names: Iterable[str]) -> None:
    """Conditions work."""


def unsupported_reason() -> str | None:
    """Why there is no fused engine here."""
    return f"it is made of TensorFlow, and Keras runs on {keras.config.backend()}"


def colocated_with(variable: Any) -> contextlib.AbstractContextManager[None]:
    """A layout says where variables lie."""
    return contextlib.nullcontext()


def packed_groups(
    variables: Mapping[int, Any],
    initial_values: Mapping[int, Mapping[str, float]],
    limits: Limits,
) -> dict[int, Any]:
    """No slots share arrays."""
    return {}


def unfused_engine(group: Group) -> Engine:
    """Updates one variable after another."""
    return Engine([group])


def fused_engine(group: Group, packs: Mapping[int, Any], limits: Limits) -> Engine:
    raise NotImplementedError(unsupported_reason())
