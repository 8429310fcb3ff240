"""Adam and Yogi for Keras 3: the published update, to the digit."""

from keras_yogi.callbacks.tensorboard import TensorBoard
from keras_yogi.migration import load_tfa
from keras_yogi.optimizers.adam import Adam
from keras_yogi.optimizers.yogi import Yogi
from keras_yogi.statistics.report import diagnose
from keras_yogi.warm_start import warm_start

__version__ = "0.2.0"

__all__ = ["Adam", "TensorBoard", "Yogi", "diagnose", "load_tfa", "warm_start"]
