"""Calls that are not bad, though they may look so."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from calls import ROWS, WIDTH, after_one_step, every_optimizer, good, make, model_variables, stepped
from contract import DEFAULT_CASES, PLAIN_CASES, assert_unchanged, snapshot
from reference import MODES

pytestmark = pytest.mark.filterwarnings("ignore:Gradients do not exist")


@every_optimizer
def test_unusual_calls_that_are_good(prepared):
    """As with Keras's own optimizers."""
    as_float64 = [tf.cast(g, "float64") for g in good()]
    for call in [
        lambda o, v: o.apply(tuple(good()), tuple(v)),
        lambda o, v: o.apply(iter(good()), iter(v)),
        lambda o, v: o.apply([g.numpy() for g in good()], v),
        lambda o, v: o.apply([g.numpy().tolist() for g in good()], v),
        lambda o, v: o.apply([tf.Variable(g) for g in good()], v),
        lambda o, v: o.apply_gradients(zip(good(), v, strict=True)),
        lambda o, v: o.apply(good()[::-1], v[::-1]),
        *([lambda o, v: o.apply(as_float64, v)] if "accumulation" not in prepared else []),
    ]:
        optimizer, variables = make(prepared), model_variables()
        optimizer.build(variables)
        call(optimizer, variables)
        assert_unchanged(after_one_step(prepared), snapshot(optimizer, variables))


@pytest.mark.parametrize("case", DEFAULT_CASES.values(), ids=DEFAULT_CASES)
def test_whatever_is_a_number_can_be_the_learning_rate(case):
    optimizer = case.optimizer()
    for i, kind in enumerate(
        [
            float,
            np.float32,
            np.array,
            tf.constant,
            tf.Variable,
            keras.Variable,
            lambda rate: keras.optimizers.SGD(rate).learning_rate,
        ]
    ):
        optimizer.learning_rate = kind(2.0**-i)
        assert float(optimizer.learning_rate) == 2.0**-i
    optimizer.learning_rate = 0
    assert float(optimizer.learning_rate) == 0.0


@every_optimizer
def test_no_gradients_at_all_are_no_step(prepared):
    """An empty list, which Keras lets pass; not a list of None."""
    unbuilt = make(prepared)
    unbuilt.apply([])
    assert not unbuilt.built
    optimizer, variables = stepped(prepared, 1)
    optimizer.apply([])
    optimizer.apply([], variables)
    assert_unchanged(after_one_step(prepared), snapshot(optimizer, variables))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", [np.nan, -np.inf])
@pytest.mark.parametrize("case", PLAIN_CASES.values(), ids=PLAIN_CASES)
def test_a_faulty_gradient_reaches_its_own_coordinate_alone(case, fault, mode):
    """NaN or infinity, dense or in a row; the rest is as with a finite gradient in its place."""

    def state(value):
        optimizer, variables = case.optimizer(), model_variables()
        optimizer.build(variables)
        step = MODES[mode](
            lambda bias, row: optimizer.apply(
                good(bias=bias, kernel=tf.IndexedSlices(row, [2, 0, 2], [ROWS, WIDTH])), variables
            )
        )
        row = tf.constant([[1.0] * 3, [2.0] * 3, [1.0, value, 1.0]])
        step(tf.constant([1.0, value, 1.0]), row)
        step(tf.ones(3), tf.ones((3, 3)))
        slots = {n: [optimizer.get_slot(v, n) for v in variables] for n in ("momentum", "velocity")}
        return {"weights": [v.value for v in variables], **slots}

    faulty, finite = state(fault), state(1.0)
    for name in faulty:
        for actual, expected, touched in zip(
            faulty[name], finite[name], [(2, 1), (1,), None], strict=True
        ):
            actual, expected = (np.array(x.numpy()) for x in (actual, expected))
            assert np.isfinite(expected).all()
            if touched:
                assert not np.isfinite(actual[touched])
                actual[touched] = expected[touched]
            np.testing.assert_array_equal(actual, expected, err_msg=name)
