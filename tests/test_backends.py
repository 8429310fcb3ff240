"""What a backend may do otherwise: its own loop in `fit`, embeddings, sparse gradients, figures.

The update itself, and what Keras does around it, is tested on every backend by the other modules
with the mark `backends`.
"""

import keras
import numpy as np
import pytest
from keras import ops
from support.backend import BACKEND, ON_TENSORFLOW, array, tensor
from support.cases import BOTH, CASES, OPTIONS
from support.comparison import (
    ANOTHER_ORDER,
    assert_nearly_unchanged,
    assert_unchanged,
    snapshot,
)
from support.figures import ROUNDING, assert_figures, by_hand
from support.models import (
    LENGTH,
    VOCABULARY,
    by_loop,
    fit_sine,
    model_state,
    sine_model,
    texts,
)
from support.processes import run_python
from support.tensorboard_runs import events, fit_lookups, lookup_model, scalars

import keras_yogi

elsewhere = pytest.mark.skipif(ON_TENSORFLOW, reason="other backends than TensorFlow")

# `fit`

IN_FIT = (
    "plain",
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "ema",
    "ema, overwriting",
    "accumulation",
    "schedule",
    "skip_nonfinite",
    "everything",
)


@pytest.mark.parametrize("option", IN_FIT)
def test_fit_is_a_loop_of_apply(option):
    case, options = CASES["yogi"], OPTIONS[option]
    infinite = "skip_nonfinite" in options
    fitted, looped = (sine_model(case.optimizer(**options)) for _ in range(2))
    fit_sine(fitted, infinite=infinite)
    by_loop(looped, infinite)
    assert_nearly_unchanged(model_state(looped), model_state(fitted))
    assert fitted.optimizer.skipped_steps == (2 if infinite else 0)  # one a pass over the data
    if option != "plain":  # the comparison can fail: without the option it ends elsewhere
        plain = sine_model(case.optimizer())
        by_loop(plain)
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            assert_nearly_unchanged(plain.get_weights(), fitted.get_weights(), 100 * ANOTHER_ORDER)


def test_fit_goes_on_after_its_averages_were_handed_out():
    """A weight and its average must not be one buffer of JAX, which the next `fit` gives away."""
    once, twice = (sine_model(CASES["adam"].optimizer(**OPTIONS["ema"])) for _ in range(2))
    fit_sine(twice, epochs=1)
    fit_sine(twice, epochs=1)
    by_loop(once, epochs=1)
    by_loop(once, epochs=1)
    assert_nearly_unchanged(model_state(once), model_state(twice))


def test_weights_are_loaded_into_a_model_whose_fit_is_compiled(tmp_path):
    source, end = (sine_model(CASES["yogi"].optimizer(**OPTIONS["clipvalue"])) for _ in range(2))
    fit_sine(source)
    source.save_weights(tmp_path / "model.weights.h5")
    fit_sine(end, epochs=1)
    end.load_weights(tmp_path / "model.weights.h5")
    for model in (source, end):
        fit_sine(model)
    assert_unchanged(model_state(source), model_state(end))


def fit_table(optimizer, first_layers, table):
    words, labels = texts(256)
    table_layer = first_layers[-1]
    head = [keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1, kernel_initializer="ones")]
    model = keras.Sequential([keras.Input((LENGTH,), dtype="int32"), *first_layers, *head])
    table_layer.set_weights([table])
    model.compile(optimizer, loss="mse")
    model.fit(words, labels, batch_size=32, epochs=6, shuffle=False, verbose=0)
    return table_layer.get_weights()[0]


def tables_of_twins(optimizer):
    """The table after `fit`, as an Embedding and as one-hot and Dense."""
    table = np.random.default_rng(5).normal(scale=0.05, size=(VOCABULARY, 8)).astype("float32")
    one_hot = keras.layers.Lambda(
        lambda words: ops.one_hot(words, VOCABULARY), output_shape=(LENGTH, VOCABULARY)
    )
    embedding = fit_table(optimizer(), [keras.layers.Embedding(VOCABULARY, 8)], table)
    dense = fit_table(optimizer(), [one_hot, keras.layers.Dense(8, use_bias=False)], table)
    return embedding, dense, table


@pytest.mark.parametrize("optimizer", BOTH)
def test_embedding_trains_like_its_one_hot_twin(optimizer):
    # ε = 1e-3: with a smaller one, rounding decides where gradients are nearly zero
    embedding, dense, table = tables_of_twins(lambda: optimizer(0.01, epsilon=1e-3))
    moved = np.abs(dense - table).max()
    assert moved > 0.05
    assert np.abs(embedding - dense).max() < 1e-4 * moved


@pytest.mark.skipif(
    not ON_TENSORFLOW or keras.version() >= "3.16", reason="recorded with Keras 3.10 to 3.15"
)
def test_embedding_and_its_twin_part_under_keras_adam():
    """The contrast, recorded: 0.0153 apart where the weights moved 0.128."""
    embedding, dense, table = tables_of_twins(lambda: keras.optimizers.Adam(0.01, epsilon=1e-3))
    assert np.abs(embedding - dense).max() == pytest.approx(0.0153, rel=0.02)
    assert np.abs(dense - table).max() == pytest.approx(0.128, rel=0.02)


# Variables and engines


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "use_ema": True}], ids=str)
def test_variables_are_those_of_keras_adam(options):
    shapes = [(2, 3), (3,)]
    optimizers = [adam(name="adam", **options) for adam in (keras_yogi.Adam, keras.optimizers.Adam)]
    for optimizer in optimizers:
        optimizer.build([keras.Variable(np.ones(shape), name="w") for shape in shapes])
    ours, theirs = ([(v.path, tuple(v.shape)) for v in o.variables] for o in optimizers)
    assert ours == theirs


WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None  # importing it raises, as where it is not installed
import keras
import numpy as np
import keras_yogi
x, y = np.ones((8, 3), "float32"), np.ones((8, 1), "float32")
for optimizer in (keras_yogi.Adam(), keras_yogi.Yogi(skip_nonfinite=True)):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer, loss="mse")
    keras_yogi.warm_start(model, x, y, verbose=0)
    model.fit(x, y, batch_size=2, verbose=0)
    model.save("model.keras")
    model = keras.saving.load_model("model.keras")
    model.fit(x, y, batch_size=2, verbose=0)
    print(type(model.optimizer).__name__, keras_yogi.diagnose(model).step)
"""


@elsewhere
def test_tensorflow_is_not_needed(tmp_path):
    """Training, `warm_start`, `diagnose` and files, where it is not installed."""
    done = run_python("-c", WITHOUT_TENSORFLOW, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["Adam", "8", "Yogi", "8"]


# Sparse gradients of JAX and PyTorch


@elsewhere
@pytest.mark.parametrize("option", ["plain", "skip_nonfinite", "clipnorm"])
def test_repeated_rows_are_summed(option):
    """A sparse gradient that names a row twice is the dense one that it stands for."""
    rows, values = np.array([1, 4, 1]), np.array([[1.0, 2.0], [3.0, -1.0], [0.5, -4.0]], "float32")
    dense = np.zeros((5, 2), "float32")
    np.add.at(dense, rows, values)
    if BACKEND == "jax":
        from jax.experimental.sparse import BCOO

        sparse = BCOO((values, rows[:, None]), shape=dense.shape)
    else:
        import torch

        sparse = torch.sparse_coo_tensor(rows[None], values, dense.shape, check_invariants=True)

    def run(gradient):
        variable = keras.Variable(np.ones((5, 2)), dtype="float32")
        optimizer = CASES["yogi"].optimizer(**OPTIONS[option])
        for _ in range(2):
            optimizer.apply([gradient], [variable])
        return snapshot(optimizer, [variable])

    # a few roundings of 6e-8: the pieces may be added in another order
    assert_nearly_unchanged(run(tensor(dense)), run(sparse), 1e-6)


# Figures


def test_tensorboard(tmp_path):
    """The figures are those of the slots, and training is what it is without the callbacks."""
    watched, alone = (lookup_model(CASES["yogi"].optimizer(0.0625)) for _ in range(2))
    steps_of = {"batch": [1, 2, 3, 4, 5, 6], "epoch": [0, 1]}
    callbacks = [
        keras_yogi.TensorBoard(tmp_path / frequency, 1, optimizer_freq=frequency)
        for frequency in steps_of
    ]
    fit_lookups(watched, *callbacks, shuffle=False)
    fit_lookups(alone, keras.callbacks.Callback(), shuffle=False)
    assert_unchanged(model_state(alone), model_state(watched))
    _, model = by_hand(watched.optimizer, watched.trainable_variables)
    for frequency, steps in steps_of.items():
        for figure, expected in model.items():
            found = scalars(tmp_path / frequency, f"optimizer/{figure}")
            assert list(found) == steps
            assert list(found.values())[-1] == pytest.approx(expected, rel=ROUNDING), figure
        assert any(kind == "histograms" for _, kind in events(tmp_path / frequency))


def test_diagnose():
    model = sine_model(CASES["adam, epsilon_hat"].optimizer(**OPTIONS["clipvalue"]))
    fit_sine(model)
    report = keras_yogi.diagnose(model.optimizer)
    assert report.step == int(array(model.optimizer.iterations.value)) == 8
    assert_figures(report, model.optimizer, model.trainable_variables)
