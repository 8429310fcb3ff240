"""How many variables are read at once, without a step being made."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

Function = Callable[..., Any]

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    from keras_yogi.engine import choice
    from keras_yogi.engine.fused import xla_is_available
    from keras_yogi.engine.packing import PackedSlot

    def in_a_graph(function: Function) -> Function:
        """The same function, its operations started together instead of one by one."""
        return tf.function(function, autograph=False)

    def in_one_pass(function: Function, variables: Sequence[Any]) -> Function:
        """The same function of these variables, compiled with XLA where it can be."""
        native = [v.value if isinstance(v, keras.Variable) else v for v in variables]
        several_devices = len({v.device for v in native}) > 1
        if several_devices or choice.obstacle(native) or not xla_is_available():
            return function
        return tf.function(function, autograph=False, jit_compile=True)

    def location(variable: Any) -> tuple[Any, int]:
        """The array that holds a variable, and where in it its first element lies."""
        return variable.location if isinstance(variable, PackedSlot) else (variable, 0)

else:

    def in_a_graph(function: Function) -> Function:
        """A compiled function of these backends would hold the variables as they were traced."""
        return function

    def in_one_pass(function: Function, variables: Sequence[Any]) -> Function:
        """As `in_a_graph`."""
        return function

    def location(variable: Any) -> tuple[Any, int]:
        """The array that holds a variable, and where in it its first element lies."""
        return variable, 0
