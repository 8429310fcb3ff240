"""Quiet TensorFlow, fixed seeds, and what several test modules need."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("KERAS_YOGI_TEST_GPU", ""))

import keras
import pytest


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(20181203)


# Keras's whole contract, on every road that a model takes: several minutes of processes, strategies
# and other backends. Being completed; `pytest --contract` runs them with the rest.
CONTRACT = {
    "test_bad_calls.py",
    "test_contract_loops.py",
    "test_contract_training.py",
    "test_distribute.py",
    "test_multi_worker.py",
    "test_other_backends.py",
    "test_properties.py",
}


def pytest_addoption(parser):
    parser.addoption("--contract", action="store_true", help="run the contract tests too")


def pytest_ignore_collect(collection_path, config):
    if collection_path.name in CONTRACT and not config.getoption("--contract"):
        return True
    return None
