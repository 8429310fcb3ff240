"""Variables on a device that is not the first: `test_devices_and_threads` runs it in a new process,
because TensorFlow must not have started when the CPU is divided into two logical devices.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_yogi
from support.backend import tf_mode

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

every_way = pytest.mark.parametrize(
    ("optimizer_class", "fused", "mode"),
    [
        (keras_yogi.Yogi, "auto", "eager"),
        (keras_yogi.Yogi, "auto", "graph"),
        (keras_yogi.Adam, False, "graph"),
    ],
)


def placed(shapes, devices):
    """Variables of these shapes, on these devices in turn."""
    variables = []
    for i, shape in enumerate(shapes):
        with tf.device(devices[i % len(devices)]):
            variables.append(keras.Variable(np.ones(shape, "float32")))
    return variables


def after_two_steps(devices, shapes, optimizer_class, fused, mode):
    variables = placed(shapes, devices)
    optimizer = optimizer_class(0.0625, fused=fused)
    optimizer.build(variables)
    step = tf_mode(mode)(lambda: optimizer.apply([tf.ones(s) for s in shapes], variables))
    step()
    step()
    return [np.array(v.numpy()) for v in [*variables, *optimizer.variables]]


on_the_first_device = functools.cache(functools.partial(after_two_steps, ["CPU:0"]))


@every_way
@pytest.mark.parametrize("devices", [["CPU:1"], ["CPU:0", "CPU:1"]], ids=["one", "both"])
@pytest.mark.parametrize(
    "shapes",
    [[(3, 2), (5,), ()], [(70_000,)], [(40_000,)] * 4, [(3,), (70_000,)]],
    ids=["small", "large", "several", "small and large"],
)
def test_steps_are_those_of_the_first_device(shapes, devices, optimizer_class, fused, mode):
    of_job = (tuple(shapes), optimizer_class, fused, mode)
    for a, b in zip(after_two_steps(devices, *of_job), on_the_first_device(*of_job), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@every_way
@pytest.mark.parametrize("sparse_update", ["exact", "lazy"])
@pytest.mark.parametrize("rows", [9, 40_000], ids=["small", "large"])
def test_a_table_beside_variables_of_the_first_device(
    rows, sparse_update, optimizer_class, fused, mode
):
    """As a large Embedding on the host of a GPU has it."""
    (table,) = placed([(rows, 4)], ["CPU:1"])
    (bias,) = placed([(3,)], ["CPU:0"])
    optimizer = optimizer_class(0.0625, fused=fused, sparse_update=sparse_update)
    optimizer.build([table, bias])

    def step():
        named = tf.ones((2, 4)), tf.constant([1, 3]), tf.constant([rows, 4])
        optimizer.apply([tf.IndexedSlices(*named), tf.ones(3)], [table, bias])

    tf_mode(mode)(step)()
    moved = np.flatnonzero((table.numpy() != 1.0).any(axis=1))
    np.testing.assert_array_equal(moved, [1, 3])
    assert np.all(bias.numpy() < 1.0)
