"""`skip_nonfinite`: a step with a NaN or an infinity anywhere changes nothing and is counted."""

import keras
import numpy as np
import pytest
from support.backend import FIT_MODES, MODES, ON_TENSORFLOW, XLA, array, tensorflow_only
from support.cases import BOTH, CASES, OPTIONS
from support.models import regression, regression_model
from support.training import take_steps, variables_of

import keras_yogi

if ON_TENSORFLOW:
    import tensorflow as tf

# Every option in one mode, and every mode with one option: a mode does not know the option.
HOW = [
    *((option, "eager") for option in ("plain", "accumulation", "decay, overwriting ema")),
    *(("schedule", mode) for mode in MODES),
    ("accumulation", list(MODES)[-1]),
]


@pytest.mark.parametrize(
    ("case", "option", "mode", "fault"),
    [
        *(("yogi", option, mode, np.nan) for option, mode in HOW),
        *(("adam", option, "eager", np.inf) for option in ("plain", "decay, overwriting ema")),
        *(("adam", "schedule", mode, -np.inf) for mode in MODES),
    ],
)
def test_faulty_steps_leave_no_trace(case, option, mode, fault):
    def run(scales, **skipping):
        optimizer = CASES[case].optimizer(**OPTIONS[option], **skipping)
        variables = variables_of([np.ones(3), 2.0])
        take_steps(optimizer, variables, [[np.array([1.0, s, -2.0]), 1.0] for s in scales], mode)
        kept = [v for v in optimizer.variables if "/skipped_" not in v.path]
        return optimizer, [np.array(v.numpy()) for v in [*variables, *kept]]

    skipping, actual = run([fault, 1.0, 2.0, fault, fault, 3.0, 4.0, fault], skip_nonfinite=True)
    _, expected = run([1.0, 2.0, 3.0, 4.0])
    for a, b in zip(actual, expected, strict=True):
        # A compiled function may round otherwise where it also selects.
        np.testing.assert_allclose(a, b, rtol=2e-7 if mode == XLA != "eager" else 0)
    assert skipping.skipped_steps == 4


def test_without_it_a_nan_reaches_the_weights():
    (variable,) = variables_of([np.ones(2)])
    optimizer = keras_yogi.Adam()
    take_steps(optimizer, [variable], [[np.array([np.nan, 1.0])]])
    assert np.isnan(variable.numpy()).tolist() == [True, False]
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("compile_arguments", FIT_MODES.values(), ids=FIT_MODES)
def test_in_fit(compile_arguments):
    x = np.ones((40, 3), "float32")
    x[15] = np.inf  # one of the five batches of eight
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras_yogi.Yogi(skip_nonfinite=True), loss="mse", **compile_arguments)
    model.fit(x, np.ones(40), batch_size=8, epochs=3, shuffle=False, verbose=0)
    assert model.optimizer.skipped_steps == 3
    assert int(array(model.optimizer.iterations.value)) == 12
    assert np.isfinite(model.get_weights()[0]).all()


@tensorflow_only
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


@pytest.mark.parametrize("optimizer_class", BOTH)
def test_errors_are_those_of_an_optimizer_that_does_not_skip(optimizer_class):
    variable = keras.Variable(np.ones(1, "float32"))
    for optimizer in [optimizer_class(), optimizer_class(skip_nonfinite=True)]:
        with pytest.raises(ValueError, match="must already be built"):
            optimizer.apply([np.ones(1, "float32")])
        with pytest.raises(ValueError, match="No gradients provided"):
            optimizer.apply([None], [variable])


def test_fit_says_that_most_steps_were_skipped():
    """A model that has diverged would skip for ever without a word."""
    x, y = regression()
    model = regression_model(keras_yogi.Yogi(skip_nonfinite=True))
    with pytest.warns(UserWarning, match="skipped 8 of 8 steps.*diverged"):
        model.fit(x * np.nan, y, batch_size=8, verbose=0)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)  # warnings are errors
    assert model.optimizer.skipped_steps == 8


def test_fit_says_nothing_where_few_batches_of_an_accumulation_were_skipped():
    x, y = regression()
    x[:8] = np.nan
    model = regression_model(keras_yogi.Yogi(skip_nonfinite=True, gradient_accumulation_steps=7))
    model.fit(x, y, batch_size=8, shuffle=False, epochs=1, verbose=0)  # warnings are errors
    assert model.optimizer.skipped_steps == 1


@pytest.mark.parametrize("mode", ["eager", "graph"] if ON_TENSORFLOW else ["eager"])
def test_a_hundred_steps_skipped_in_a_row_are_told_once(mode, capfd, recwarn):
    """A custom loop has no end of `fit` that would say it."""
    (variable,) = variables_of([np.ones(2)])
    optimizer = keras_yogi.Adam(skip_nonfinite=True)

    def messages(scales):
        take_steps(optimizer, [variable], [[np.array([1.0, scale])] for scale in scales], mode)
        texts = [capfd.readouterr().err, *(str(recwarn.pop().message) for _ in list(recwarn))]
        return sum(text.count("skipped 100 steps in a row") for text in texts)

    assert messages([np.nan] * 99 + [1.0] + [np.nan] * 99) == 0
    assert messages([np.nan] * 3) == 1
    assert optimizer.skipped_steps == 201
