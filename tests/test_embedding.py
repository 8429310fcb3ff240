"""A gradient that names an embedding row several times counts as the sum of its pieces."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.backend import MODES
from support.cases import CASES, CLIPPING, OPTIONS
from support.comparison import snapshot
from support.training import variables_of

import keras_yogi

ROWS, WIDTH = 7, 3
# Row 2 three times, row 5 twice, pieces that cancel in row 0; rows 1, 3, 4, 6 not at all.
INDICES = np.array([2, 5, 2, 0, 0, 5, 2])
PIECES = np.random.default_rng(3).normal(size=(len(INDICES), WIDTH)).astype("float32")
PIECES[4] = -PIECES[3]


def dense_gradient():
    dense = np.zeros((ROWS, WIDTH), "float32")
    np.add.at(dense, INDICES, PIECES)
    return dense


def sparse_gradient():
    return tf.IndexedSlices(tf.constant(PIECES), tf.constant(INDICES), tf.constant([ROWS, WIDTH]))


# Every option with one optimizer, every mode with one option, every kind of optimizer in one mode.
RUNS = [
    *(
        ("yogi", option, "graph")
        for option in (
            *CLIPPING,
            "weight_decay",
            "loss_scale_factor",
            "accumulation",
            "ema",
            "skip_nonfinite",
        )
    ),
    *(("yogi", "plain", mode) for mode in MODES),
    ("yogi", "global_clipnorm", "xla"),
    *((kind, "plain", "eager") for kind in ("adam", "amsgrad", "yogi, proximal")),
]


def after_steps(case, options, gradient, mode, steps=4):
    variables = variables_of([np.ones((ROWS, WIDTH)), np.zeros(2)])
    optimizer = case.optimizer(**options)
    optimizer.build(variables)
    step = MODES[mode](optimizer, variables)
    for _ in range(steps):
        step([gradient, tf.ones(2)])
    return snapshot(optimizer, variables)


@pytest.mark.parametrize(("name", "option", "mode"), RUNS)
def test_sparse_gradient_is_its_dense_twin(name, option, mode):
    sparse, dense = (
        after_steps(CASES[name], OPTIONS[option], gradient, mode)
        for gradient in (sparse_gradient(), tf.constant(dense_gradient()))
    )
    for ours, expected in zip(sparse, dense, strict=True):
        # float32: the pieces may be added in another order
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)


def test_by_hand_and_what_keras_makes_of_it():
    """One row, named twice with 1 and 2: v = (1 − β₂) (1 + 2)², where keras.optimizers.Adam up to
    3.15 has (1 − β₂) (1² + 2²).
    """
    gradient = tf.IndexedSlices([[1.0], [2.0]], [1, 1], [3, 1])
    velocity = {}
    for optimizer in [keras_yogi.Adam(beta_2=0.75), keras.optimizers.Adam(beta_2=0.75)]:
        table = keras.Variable(np.zeros((3, 1), "float32"))
        optimizer.apply([gradient], [table])
        velocity[type(optimizer)] = optimizer._velocities[0].numpy().ravel().tolist()
    assert velocity[keras_yogi.Adam] == [0.0, 0.25 * 9.0, 0.0]
    recorded_wrong_value = [0.0, 0.25 * 5.0, 0.0]
    assert velocity[keras_yogi.Adam] != recorded_wrong_value
    if keras.version() < "3.16":
        assert velocity[keras.optimizers.Adam] == recorded_wrong_value


def test_rows_may_leave_their_table_to_the_variable():
    table = keras.Variable(np.zeros((3, 1), "float32"))
    optimizer = keras_yogi.Adam(beta_2=0.75)
    optimizer.apply([tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([1, 1]))], [table])
    np.testing.assert_array_equal(optimizer.get_slot(table, "velocity"), [[0.0], [2.25], [0.0]])
