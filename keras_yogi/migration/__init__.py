"""Takes over what other optimizers have left behind."""

from keras_yogi.migration.tfa import load_tfa

__all__ = ["load_tfa"]
