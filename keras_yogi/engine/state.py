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

    class HiddenScalar(keras.Variable):  # type: ignore[no-redef]
        """A number that `stateless_apply` and a compiled `fit` take and give with the rest of
        `optimizer.variables`: what JAX does not give a function, it keeps as it was traced.
        """

        def __init__(self, value: float) -> None:
            super().__init__(value, dtype="float32", trainable=False, name="velocity_bias")
