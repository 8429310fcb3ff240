"""Which engine carries out the steps of an optimizer."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_yogi.optimizers import arguments

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    from keras_yogi.engine.fused import FusedEngine

    def check_strategy() -> None:
        """Refuses a strategy under which one worker's step overwrites another's."""
        strategy = tf.distribute.get_strategy()
        if isinstance(strategy, tf.distribute.ParameterServerStrategy):
            raise arguments.reject("strategy", "one whose workers wait for each other", strategy)

    def obstacle(variables: Sequence[Any]) -> str | None:
        """Why the fused engine cannot serve these variables here, if it cannot."""
        native = [v.value if isinstance(v, keras.Variable) else v for v in variables]
        if tf.distribute.has_strategy() or any(
            isinstance(v, tf.distribute.DistributedValues) for v in native
        ):
            return "under tf.distribute, every variable is updated on its own replicas"
        return None

    def fused_engine(optimizer: Any, variables: Sequence[Any]) -> Any:
        return FusedEngine(optimizer, variables)

    def compiler(optimizer: Any) -> Any:
        """What compiles the rule for large variables where the engine cannot serve."""
        return FusedEngine(optimizer, [])

else:

    def check_strategy() -> None:
        """These backends have no such strategy."""

    def obstacle(variables: Sequence[Any]) -> str | None:
        return f"it is made of TensorFlow, and Keras runs on {keras.config.backend()}"

    def fused_engine(optimizer: Any, variables: Sequence[Any]) -> Any:
        raise NotImplementedError

    def compiler(optimizer: Any) -> Any:
        """These backends compile whole training steps."""
        return None
