"""Quiet TensorFlow, fixed seeds, and what several test modules need."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("KERAS_YOGI_TEST_GPU", ""))

import keras
import pytest


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(20181203)
