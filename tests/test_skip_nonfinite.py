"""`skip_nonfinite`: a step with a NaN or an infinity anywhere changes nothing and is counted."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import MODES

import keras_yogi

OPTIONS = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "ema, decay": {"use_ema": True, "ema_overwrite_frequency": 2, "weight_decay": 0.1},
    "schedule": {"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)},
}


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("optimizer_class", [keras_yogi.Adam, keras_yogi.Yogi])
def test_faulty_steps_leave_no_trace(optimizer_class, options, mode, fault):
    def run(optimizer, scales):
        variables = [keras.Variable(np.ones(3, "float32")), keras.Variable(np.float32(2.0))]
        optimizer.build(variables)
        step = MODES[mode](
            lambda scale: optimizer.apply([scale * tf.ones(3), tf.constant(1.0)], variables)
        )
        for scale in scales:
            step(tf.constant(scale, "float32"))
        state = [v for v in optimizer.variables if "skipped" not in v.path]
        return [v.numpy() for v in [*variables, *state]]

    skipping = optimizer_class(**options, skip_nonfinite=True)
    with_faults = run(skipping, [fault, 1.0, 2.0, fault, fault, 3.0, 4.0, fault])
    without = run(optimizer_class(**options), [1.0, 2.0, 3.0, 4.0])
    for a, b in zip(with_faults, without, strict=True):
        # XLA may round otherwise in the branch than in the straight line
        np.testing.assert_allclose(a, b, rtol=2e-7 if mode == "xla" else 0)
    assert skipping.skipped_steps == 4


def test_without_it_a_nan_reaches_the_weights():
    variable = keras.Variable([1.0, 1.0])
    optimizer = keras_yogi.Adam()
    optimizer.apply([tf.constant([np.nan, 1.0])], [variable])
    assert np.isnan(variable.numpy()).tolist() == [True, False]
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_fit(jit_compile):
    x = np.ones((40, 3), "float32")
    x[15] = np.inf  # one of the five batches of eight
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras_yogi.Yogi(skip_nonfinite=True), loss="mse", jit_compile=jit_compile)
    model.fit(x, np.ones(40), batch_size=8, epochs=3, shuffle=False, verbose=0)
    assert model.optimizer.skipped_steps == 3
    assert int(model.optimizer.iterations) == 12
    assert np.isfinite(model.get_weights()[0]).all()


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_sparse_gradient_and_missing_gradient():
    table, bias, unused = (keras.Variable(np.ones(s, "float32")) for s in [(3, 2), (2,), (1,)])
    optimizer = keras_yogi.Adam(skip_nonfinite=True)
    variables = [table, bias, unused]
    rows = tf.IndexedSlices([[1.0, np.nan], [1.0, 1.0]], [0, 0], [3, 2])
    optimizer.apply([rows, tf.ones(2), None], variables)
    assert optimizer.skipped_steps == 1
    np.testing.assert_array_equal(bias.numpy(), 1.0)
    optimizer.apply([tf.ones((3, 2)), tf.ones(2), None], variables)
    assert optimizer.skipped_steps == 1
    assert (bias.numpy() < 1.0).all()
    np.testing.assert_array_equal(unused.numpy(), 1.0)


@pytest.mark.parametrize("optimizer_class", [keras_yogi.Adam, keras_yogi.Yogi])
def test_errors_are_those_of_an_optimizer_that_does_not_skip(optimizer_class):
    variable = keras.Variable([1.0])
    for optimizer in [optimizer_class(), optimizer_class(skip_nonfinite=True)]:
        with pytest.raises(ValueError, match="must already be built"):
            optimizer.apply([tf.ones(1)])
        with pytest.raises(ValueError, match="No gradients provided"):
            optimizer.apply([None], [variable])
