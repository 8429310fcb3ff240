"""keras_yogi.diagnose after trainings: a warm start, two replicas, a healthy one."""

import pytest
import tensorflow as tf
from support.backend import ENGINES
from support.figures import assert_figures
from support.models import regression, regression_model
from support.processes import run_python

import keras_yogi

# Figures of trainings


@pytest.mark.parametrize("engine", ENGINES)
def test_figures_after_a_warm_start(engine):
    optimizer = keras_yogi.Yogi(0.0625, **ENGINES[engine])
    model, (x, y) = regression_model(optimizer), regression()
    keras_yogi.warm_start(model, x, y)
    model.fit(x, y, batch_size=8, verbose=0)
    assert keras_yogi.diagnose(optimizer).step == 8
    assert_figures(keras_yogi.diagnose(optimizer), optimizer, model.trainable_variables)


# Run in a process of its own: a process decides on its devices once, and before it uses them.
TWO_CPUS = """
import tensorflow as tf

cpus = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], cpus)
import test_inspection

test_inspection.on_two_replicas()
"""


def on_two_replicas():
    with tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"]).scope():
        optimizer = keras_yogi.Adam(0.0625)
        model = regression_model(optimizer)
    model.fit(*regression(), batch_size=8, verbose=0)
    assert_figures(keras_yogi.diagnose(optimizer), optimizer, model.trainable_variables)
    print("the figures agree")


@pytest.mark.slow
def test_under_mirrored_strategy():
    done = run_python("-c", TWO_CPUS)
    assert "the figures agree" in done.stdout, done.stderr[-3000:]


def test_a_healthy_training_gives_no_warning():
    model, (x, y) = regression_model(keras_yogi.Adam(0.01)), regression()
    model.fit(x, y, batch_size=8, epochs=5, verbose=0)
    assert keras_yogi.diagnose(model.optimizer).warnings == []
