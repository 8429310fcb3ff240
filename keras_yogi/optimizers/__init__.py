"""The optimizers, and the class to derive your own from."""

from keras_yogi import rules
from keras_yogi.optimizers.base import AdaptiveOptimizer

__all__ = ["AdaptiveOptimizer", "rules"]
