"""The optimizers, and the class to derive a further one from."""

from keras_yogi.optimizers.base import AdaptiveOptimizer

__all__ = ["AdaptiveOptimizer"]
