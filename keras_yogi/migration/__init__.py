"""Loads what other optimizers have saved."""

from keras_yogi.migration.tfa import load_tfa

__all__ = ["load_tfa"]
