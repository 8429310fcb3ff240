"""How steps are carried out: groups of variables and their slots, and engines that update them.

An engine takes a rule, the scalars of a step and gradients. It knows no optimizer. TensorFlow and
PyTorch are imported on those backends only.
"""

import keras

from keras_yogi.engines.base import Backend, Engine, Group, Limits

__all__ = ["Backend", "Engine", "Group", "Limits", "backend"]


def _backend() -> Backend:
    if keras.config.backend() == "tensorflow":
        from keras_yogi.engines.tensorflow import TensorFlowBackend

        return TensorFlowBackend()
    if keras.config.backend() == "torch":
        from keras_yogi.engines.torch import TorchBackend

        return TorchBackend()
    return Backend()


backend = _backend()
