"""Quiet TensorFlow, fixed seeds, and what several test modules need."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("KERAS_YOGI_TEST_GPU", ""))

import keras
import pytest


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(20181203)


@pytest.fixture(scope="module")
def compare():
    """examples/compare.py as a module: for what needs no process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "examples"))
        import compare

        yield compare
