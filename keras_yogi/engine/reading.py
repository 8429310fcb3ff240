"""How many variables are read at once, without a step being made."""

from collections.abc import Callable
from typing import Any

import keras

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    from keras_yogi.engine.packing import PackedSlot

    def in_a_graph(function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its operations started together instead of one by one."""
        return tf.function(function, autograph=False)

    def location(variable: Any) -> tuple[Any, int]:
        """The array that holds a variable, and where in it its first element lies."""
        return variable.location if isinstance(variable, PackedSlot) else (variable, 0)

else:

    def in_a_graph(function: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled function of these backends would hold the variables as they were traced."""
        return function

    def location(variable: Any) -> tuple[Any, int]:
        """The array that holds a variable, and where in it its first element lies."""
        return variable, 0
