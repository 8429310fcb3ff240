"""How many variables are read at once, without a step being made."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

Function = Callable[..., Any]

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    from keras_yogi.engines.packed import PackedSlot

    def in_a_graph(function: Function, *arguments: np.ndarray) -> Function:
        """The same function, its operations started together instead of one by one.

        Args:
            function: takes and gives tensors.
            arguments: an example of what it takes, in dtype and shape.
        """
        # Called as it is traced: to find the trace that fits, TensorFlow would hash every
        # variable of the model at every call.
        specs = [tf.TensorSpec.from_tensor(tf.constant(each)) for each in arguments]
        return tf.function(function, autograph=False).get_concrete_function(*specs)

    def location(variable: Any) -> tuple[Any, int]:
        """The array that holds a variable, and where in it its first element lies."""
        if isinstance(variable, PackedSlot):
            return variable.location
        return (variable.value if isinstance(variable, keras.Variable) else variable), 0

    def number(scalar: Any) -> Any:
        """The value of a scalar, be it a variable, a tensor or a number."""
        native = scalar.value if isinstance(scalar, keras.Variable) else scalar
        return native.numpy() if hasattr(native, "numpy") else native

    def take(array: Any, places: np.ndarray) -> Any:
        """Some elements of an array, by their places in it as one row."""
        # Not from the variable itself: that would make TensorFlow copy it whenever it is read from
        # then on, as it does with a variable of which single rows are written.
        read = tf.convert_to_tensor(array)
        row = read if len(read.shape) == 1 else tf.reshape(read, [-1])
        whole = np.array_equal(places, np.arange(row.shape[0]))
        return row if whole else tf.gather(row, places)

    def sum_of_each(values: Any, owners: Any, count: int) -> Any:
        """Sums of the values of each of `count` owners, who are numbered and come in order."""
        return tf.math.segment_sum(values, owners)

    def max_of_each(values: Any, owners: Any, count: int) -> Any:
        """The largest value of each owner, as `sum_of_each`."""
        return tf.math.segment_max(values, owners)

else:

    def in_a_graph(function: Function, *arguments: np.ndarray) -> Function:
        """A compiled function of these backends would hold the variables as they were traced."""
        return function

    def location(variable: Any) -> tuple[Any, int]:
        """The array that holds a variable, and where in it its first element lies."""
        return variable, 0

    def number(scalar: Any) -> Any:
        """The value of a scalar, be it a variable, a tensor or a number."""
        return ops.convert_to_numpy(scalar)

    def take(array: Any, places: np.ndarray) -> Any:
        """Some elements of an array, by their places in it as one row."""
        return ops.take(ops.reshape(ops.convert_to_tensor(array), [-1]), places)

    def sum_of_each(values: Any, owners: Any, count: int) -> Any:
        """Sums of the values of each of `count` owners, who are numbered and come in order."""
        return ops.segment_sum(values, ops.convert_to_tensor(owners), count)

    def max_of_each(values: Any, owners: Any, count: int) -> Any:
        """The largest value of each owner, as `sum_of_each`."""
        return ops.segment_max(values, ops.convert_to_tensor(owners), count)
