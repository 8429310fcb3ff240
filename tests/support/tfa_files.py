"""Configs and files that TensorFlow Addons left behind, and parts of such files."""

import shutil

import h5py
import keras

from support.processes import TESTS

GOLDEN = TESTS / "golden_tfa"

# tfa.optimizers.Yogi(0.02, beta1=0.8, epsilon=1e-4).get_config() after training: float32 decimals
CONFIG = {
    "name": "Yogi",
    "learning_rate": 0.019999999552965164,
    "decay": 0.0,
    "beta1": 0.800000011920929,
    "beta2": 0.9990000128746033,
    "epsilon": 9.999999747378752e-05,
    "l1_regularization_strength": 0.0,
    "l2_regularization_strength": 0.0,
    "activation": "sign",
    "initial_accumulator_value": 1e-06,
}
SCHEDULE = {
    "class_name": "ExponentialDecay",
    "config": {
        "initial_learning_rate": 0.02,
        "decay_steps": 5,
        "decay_rate": 0.9,
        "staircase": False,
        "name": None,
    },
}
YOGI = {"class_name": "Addons>Yogi", "config": CONFIG}


def golden_copy(path, change=None):
    shutil.copyfile(GOLDEN / "tfa_model.h5", path)
    if change:
        with h5py.File(path, "a") as file:
            change(file)


def dense():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])


def wrapped(function, name="metric"):
    return {"class_name": "MeanMetricWrapper", "config": {"name": name, "fn": function}}


def my_error(y_true, y_pred):
    return keras.ops.mean(keras.ops.abs(y_true - y_pred) ** 3, axis=-1)
