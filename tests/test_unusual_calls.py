"""Calls that are not bad, though they may look so."""

import keras
import numpy as np
import pytest
from keras import ops
from support.backend import BACKEND, MODES, ON_TENSORFLOW, array, tensor
from support.calls import (
    after_one_step,
    every_prepared,
    good,
    indexed_slices,
    make,
    model_variables,
    ones,
    stepped,
)
from support.cases import default_case, plain_case
from support.comparison import assert_unchanged, snapshot
from support.training import state_of

if ON_TENSORFLOW:
    import tensorflow as tf

pytestmark = pytest.mark.filterwarnings("ignore:Gradients do not exist")


@every_prepared
def test_unusual_calls_that_are_good(prepared):
    """As with Keras's own optimizers."""
    # JAX has no float64 unless it is told to, and Keras accumulates in the gradients' dtype.
    in_float64 = BACKEND != "jax" and "accumulation" not in prepared
    for call in [
        lambda o, v: o.apply(tuple(good()), tuple(v)),
        lambda o, v: o.apply(iter(good()), iter(v)),
        lambda o, v: o.apply([array(g) for g in good()], v),
        lambda o, v: o.apply([array(g).tolist() for g in good()], v),
        *([lambda o, v: o.apply([tf.Variable(g) for g in good()], v)] if ON_TENSORFLOW else []),
        lambda o, v: o.apply_gradients(zip(good(), v, strict=True)),
        lambda o, v: o.apply(good()[::-1], v[::-1]),
        *(
            [lambda o, v: o.apply([ops.cast(g, "float64") for g in good()], v)]
            if in_float64
            else []
        ),
    ]:
        optimizer, variables = make(prepared), model_variables()
        optimizer.build(variables)
        call(optimizer, variables)
        assert_unchanged(after_one_step(prepared), snapshot(optimizer, variables))


@default_case
def test_whatever_is_a_number_can_be_the_learning_rate(case):
    optimizer = case.optimizer()
    for i, kind in enumerate(
        [
            float,
            np.float32,
            np.array,
            tensor,
            *([tf.Variable] if ON_TENSORFLOW else []),
            keras.Variable,
            lambda rate: keras.optimizers.SGD(rate).learning_rate,
        ]
    ):
        optimizer.learning_rate = kind(2.0**-i)
        assert float(array(optimizer.learning_rate.value)) == 2.0**-i
    optimizer.learning_rate = 0
    assert float(array(optimizer.learning_rate.value)) == 0.0


@every_prepared
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
@plain_case
def test_a_faulty_gradient_reaches_its_own_coordinate_alone(case, fault, mode):
    """NaN or infinity, dense or in a row; the rest is as with a finite gradient in its place."""

    def state(value):
        optimizer, variables = case.optimizer(), model_variables()
        optimizer.build(variables)
        step = MODES[mode](optimizer, variables)
        rows = np.array([[1.0] * 3, [2.0] * 3, [1.0, value, 1.0]], "float32")
        if ON_TENSORFLOW:
            kernel = indexed_slices(rows, [2, 0, 2])
        else:
            kernel = tensor(np.stack([rows[1], 0 * rows[1], rows[0] + rows[2], 0 * rows[1]]))
        step(good(bias=tensor(np.array([1.0, value, 1.0], "float32")), kernel=kernel))
        rows = (
            indexed_slices(np.ones((3, 3), "float32"), [2, 0, 2]) if ON_TENSORFLOW else ones(4, 3)
        )
        step(good(kernel=rows))
        return state_of(optimizer, variables)

    for actual, expected, touched in zip(
        state(fault), state(1.0), [(2, 1), (1,), None], strict=True
    ):
        for name, values in actual.items():
            assert np.isfinite(expected[name]).all()
            if touched:
                assert not np.isfinite(values[touched])
                values[touched] = expected[name][touched]
            np.testing.assert_array_equal(values, expected[name], err_msg=name)
