"""How steps are carried out: groups of variables and their slots, and what updates them.

An engine is given a rule, the step's scalars and gradients. It knows no optimizer. TensorFlow is
imported on that backend alone.
"""

from collections.abc import Mapping
from typing import Any

import keras

from keras_yogi.engines.base import Engine, Group, Limits, compute_dtype

__all__ = [
    "Engine",
    "Group",
    "Limits",
    "check_strategy",
    "compute_dtype",
    "fused_engine",
    "packed_groups",
    "unfused_engine",
    "unsupported_reason",
]

if keras.config.backend() == "tensorflow":
    from keras_yogi.engines.tensorflow import (
        check_strategy,
        fused_engine,
        packed_groups,
        unfused_engine,
        unsupported_reason,
    )
else:

    def check_strategy() -> None:
        """These backends have no strategies."""

    def unsupported_reason() -> str | None:
        """Why there is no fused engine here."""
        return f"it is made of TensorFlow, and Keras runs on {keras.config.backend()}"

    def packed_groups(  # type: ignore[misc]
        variables: Mapping[int, Any], initial_values: Mapping[str, float], limits: Limits
    ) -> dict[int, Any]:
        """Arrays are shared by slots on TensorFlow alone."""
        return {}

    def unfused_engine(group: Group) -> Engine:
        return Engine([group])

    def fused_engine(*arguments: Any) -> Engine:  # type: ignore[misc]
        raise NotImplementedError
