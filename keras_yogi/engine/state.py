"""State of an optimizer that Keras's list of optimizer variables does not hold."""

import keras

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    class HiddenScalar(tf.Module):
        """A number that graphs read afresh and tf.train.Checkpoint carries, but that is not in
        `optimizer.variables`, whose length and order are those of Keras's own optimizers.
        """

        def __init__(self, value: float) -> None:
            super().__init__()
            self._variable = tf.Variable(
                value,
                trainable=False,
                dtype="float32",
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )

        @property
        def value(self) -> tf.Tensor:
            return self._variable.read_value()

        def assign(self, value: float) -> None:
            self._variable.assign(value)

else:

    class HiddenScalar:  # type: ignore[no-redef]
        """A number that is not in `optimizer.variables`; a compiled function keeps the value that
        it was traced with.
        """

        def __init__(self, value: float) -> None:
            self.value = value

        def assign(self, value: float) -> None:
            self.value = value
