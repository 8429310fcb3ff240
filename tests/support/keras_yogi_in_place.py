"""A pytest plugin: keras_yogi.Adam in the place of Keras's, for Keras's own tests of it.

`IN_PLACE_FUSED` is the argument `fused`, in JSON.
"""

import json
import os
from typing import Any

import keras
from keras.src import optimizers
from keras.src.optimizers import adam

import keras_yogi

FUSED = json.loads(os.environ["IN_PLACE_FUSED"])
made = []


@keras.saving.register_keras_serializable(package="in_place")
class Adam(keras_yogi.Adam):
    """keras.optimizers.Adam, defaults included."""

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        epsilon_hat: bool = True,
        fused: bool = FUSED,
        **arguments: Any,
    ) -> None:
        arguments |= dict(epsilon=epsilon, epsilon_hat=epsilon_hat, fused=fused)
        super().__init__(learning_rate, beta_1, beta_2, **arguments)
        made.append(self.name)


for place in (adam, optimizers, keras.optimizers):
    place.Adam = Adam
optimizers.ALL_OBJECTS_DICT["adam"] = Adam


def pytest_configure(config):
    config.addinivalue_line("markers", "requires_trainable_backend: Keras's own")


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{len(made)} optimizers made")
