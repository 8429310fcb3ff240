"""How many variables are read at once, without a step being made."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

Function = Callable[..., Any]


def _take_from_value(variable: Any, places: np.ndarray) -> Any:
    return ops.take(ops.reshape(ops.convert_to_tensor(variable), [-1]), places)


if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    from keras_yogi.engine.packing import PackedSlot

    def in_a_graph(function: Function) -> Function:
        """The same function, its operations started together instead of one by one."""
        return tf.function(function, autograph=False)

    def location(variable: Any) -> tuple[Any, int]:
        """The array that holds a variable, and where in it its first element lies."""
        if isinstance(variable, PackedSlot):
            return variable.location
        return (variable.value if isinstance(variable, keras.Variable) else variable), 0

    def take(array: Any, places: np.ndarray) -> Any:
        """Some elements of an array, by their places in it as one row."""
        if isinstance(array, tf.distribute.DistributedValues):
            return _take_from_value(array, places)
        # One operation, which reads no other element.
        return tf.gather_nd(array, np.stack(np.unravel_index(places, array.shape), axis=-1))

else:

    def in_a_graph(function: Function) -> Function:
        """A compiled function of these backends would hold the variables as they were traced."""
        return function

    def location(variable: Any) -> tuple[Any, int]:
        """The array that holds a variable, and where in it its first element lies."""
        return variable, 0

    def take(array: Any, places: np.ndarray) -> Any:
        """Some elements of an array, by their places in it as one row."""
        return _take_from_value(array, places)
