"""Warnings of keras_yogi.diagnose, with and without their fault, and figures of trainings."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.backend import ENGINES
from support.figures import assert_figures
from support.models import regression, regression_model
from support.processes import run_python
from support.training import take_steps

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


def test_under_mirrored_strategy():
    done = run_python("-c", TWO_CPUS)
    assert "the figures agree" in done.stdout, done.stderr[-3000:]


# The warnings


def embedding_of(optimizer, rows, touched, width=4, steps=3):
    """Trains a table, on gradients of its first rows alone."""
    table = keras.Variable(np.ones((rows, width), "float32"), name="embeddings")
    optimizer.build([table])
    for _ in range(steps):
        values = tf.random.normal((touched, width))
        optimizer.apply([tf.IndexedSlices(values, tf.range(touched), (rows, width))], [table])
    return keras_yogi.diagnose(optimizer)


def warnings_after(optimizer, weights, gradients, name="kernel"):
    variable = keras.Variable(np.asarray(weights, "float32"), name=name)
    take_steps(optimizer, [variable], [[np.asarray(g, "float32")] for g in gradients])
    return keras_yogi.diagnose(optimizer).warnings


def assert_only(warnings, *parts):
    assert len(warnings) == 1, warnings
    for part in parts:
        assert part in warnings[0]


WEIGHTS = np.full(100, 3.0)
ALL_ONES = np.ones(100)


def test_warns_of_skipped_steps():
    """One in a hundred is too many, one in a hundred and one is not."""
    gradients = [ALL_ONES] * 99 + [np.full(100, np.nan)]
    for more, expected in ([], 1), ([ALL_ONES], 0):
        optimizer = keras_yogi.Adam(skip_nonfinite=True)
        found = warnings_after(optimizer, WEIGHTS, gradients + more)
        assert len(found) == expected, found
        assert all("1 of 100 steps were skipped" in warning for warning in found)


@pytest.mark.parametrize("make", [keras_yogi.Adam, keras_yogi.Yogi, keras.optimizers.SGD])
def test_warns_of_nan(make):
    bad = np.where(np.arange(100) == 7, np.nan, 1.0)
    assert_only(warnings_after(make(), WEIGHTS, [ALL_ONES, bad]), "`kernel` or its slots hold NaN")
    assert warnings_after(make(), WEIGHTS, [ALL_ONES, ALL_ONES]) == []


def test_warns_where_no_gradient_has_come():
    nothing = np.zeros(100)
    found = warnings_after(keras_yogi.Yogi(), WEIGHTS, [nothing])
    assert_only(found, "no gradient has reached `kernel`")
    assert warnings_after(keras_yogi.Yogi(), WEIGHTS, [nothing, ALL_ONES]) == []


def test_says_nothing_before_the_first_step():
    optimizer = keras_yogi.Adam()
    optimizer.build([keras.Variable([1.0])])
    assert keras_yogi.diagnose(optimizer).warnings == []


def test_warns_of_forgetting():
    """One weight in a hundred has a gradient of 1 once; n steps later Adam's √v is 0.1^½ 0.9^(n/2),
    a thousandth of the others' for n = 110. Yogi's v stays.
    """
    once = np.where(np.arange(100) < 99, 1.0, 0.0)
    for make, steps, expected in [
        (keras_yogi.Adam, 150, 1),
        (keras_yogi.Adam, 100, 0),
        (keras_yogi.Yogi, 150, 0),
    ]:
        optimizer = make(1e-4, beta_2=0.9, epsilon=1e-12)
        found = warnings_after(optimizer, WEIGHTS, [ALL_ONES] + [once] * steps)
        assert len(found) == expected, (make, found)
        for warning in found:
            assert "effective learning rate of `kernel` has grown 8,547-fold" in warning
            assert "in 1 % of its weights" in warning
            assert "Adam's second moment is forgetting; try Yogi or a larger ε" in warning


def test_warns_of_growth_since_an_earlier_report():
    """Gradients that become 10,000 times smaller, or 100 times."""
    for make, smaller, expected in [
        (keras_yogi.Adam, 1e-4, 1),
        (keras_yogi.Adam, 1e-2, 0),
        (keras_yogi.Yogi, 1e-4, 0),
    ]:
        optimizer = make(1e-4, beta_2=0.9, epsilon=1e-12)
        variable = keras.Variable(WEIGHTS.astype("float32"), name="kernel")
        take_steps(optimizer, [variable], [[ALL_ONES]] * 3)
        earlier = keras_yogi.diagnose(optimizer)
        take_steps(optimizer, [variable], [[ALL_ONES * smaller]] * 220)
        assert keras_yogi.diagnose(optimizer).warnings == []
        found = keras_yogi.diagnose(optimizer, since=earlier).warnings
        assert len(found) == expected, (make, smaller, found)
        assert all("since the earlier report its 99.9th percentile" in w for w in found)


@pytest.mark.parametrize(("tiny", "expected"), [(99, 1), (98, 0)])
def test_warns_where_epsilon_dominates(tiny, expected):
    gradient = np.where(np.arange(100) < tiny, 1e-5, 1.0)
    optimizer = keras_yogi.Adam(epsilon=1e-3)
    found = warnings_after(optimizer, WEIGHTS, [gradient] * 2)
    assert len(found) == expected
    assert all("ε dominates 99 % of `kernel`" in warning for warning in found)


@pytest.mark.parametrize(("touched", "expected"), [(5, 1), (6, 0)])
def test_warns_of_untouched_rows(touched, expected):
    found = embedding_of(keras_yogi.Yogi(), rows=10, touched=touched).warnings
    assert len(found) == expected, found
    assert all("5 of the 10 rows of `embeddings` were never touched" in w for w in found)


@pytest.mark.parametrize(
    ("learning_rate", "shape", "expected"),
    [(0.4, (10, 10), 1), (0.2, (10, 10), 0), (0.4, (100,), 0)],
)
def test_warns_of_large_updates(learning_rate, shape, expected):
    """Weights are 3 ± η, an update is η: η / 3 crosses a tenth between the two. A bias is free."""
    optimizer = keras_yogi.Adam(learning_rate)
    found = warnings_after(optimizer, np.full(shape, 3.0), [np.ones(shape)])
    assert len(found) == expected, found
    assert all("one update changes `kernel` by 15.4 % of its norm" in w for w in found)


def test_a_healthy_training_gives_no_warning():
    model, (x, y) = regression_model(keras_yogi.Adam(0.01)), regression()
    model.fit(x, y, batch_size=8, epochs=5, verbose=0)
    assert keras_yogi.diagnose(model.optimizer).warnings == []


# The callback


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer_freq": "step"}, '`optimizer_freq` must be "epoch", "batch" or.*\'step\''),
        ({"optimizer_freq": 0}, "`optimizer_freq` must be.*optimizer_freq=0"),
        ({"optimizer_freq": True}, "`optimizer_freq` must be.*optimizer_freq=True"),
        ({"optimizer_freq": 1.5}, "`optimizer_freq` must be.*optimizer_freq=1.5"),
        ({"per_variable": "yes"}, "`per_variable` must be.*per_variable='yes'"),
    ],
)
def test_bad_arguments_of_the_callback(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        keras_yogi.TensorBoard(tmp_path, **arguments)


def test_says_once_what_cannot_be_told(tmp_path):
    callback = keras_yogi.TensorBoard(tmp_path, histogram_freq=1, optimizer_freq="batch")
    model = regression_model(keras.optimizers.SGD(0.01))
    with pytest.warns(UserWarning, match="SGD has no effective learning rate") as caught:
        model.fit(*regression(), epochs=2, callbacks=[callback], verbose=0)
    assert sum("SGD has no" in str(warning.message) for warning in caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(*regression(), callbacks=[callback], verbose=0)
