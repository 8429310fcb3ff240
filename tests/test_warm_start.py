"""`warm_start`: v₀ is the squared gradient of one large batch, and no step is longer for it."""

import warnings

import keras
import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from support.backend import FIT_MODES, ON_TENSORFLOW, WITHOUT_XLA, array, gradients_of, tensor
from support.cases import BOTH
from support.models import dtype_policy

import keras_yogi

if ON_TENSORFLOW:
    import tensorflow as tf


def diabetes():
    x, y = load_diabetes(return_X_y=True)
    x, y = x / x.std(), (y - y.mean()) / y.std()
    return x[:128].astype("float32"), y[:128, None].astype("float32")


def linear_model(optimizer, layers=(), **arguments):
    keras.utils.set_random_seed(9)
    model = keras.Sequential([keras.Input((10,)), *layers, keras.layers.Dense(1)])
    model.compile(optimizer, loss="mse", metrics=["mae"], **{**WITHOUT_XLA, **arguments})
    return model


def gradients_by_hand(model, x, y):
    gradients = gradients_of(
        lambda: keras.losses.MeanSquaredError()(tensor(y), model(x, training=True)),
        model.trainable_variables,
    )
    if ON_TENSORFLOW:  # an Embedding's
        gradients = map(tf.convert_to_tensor, gradients)
    return [array(g) for g in gradients]


def velocities(model, optimizer=None):
    optimizer = optimizer or model.optimizer
    return [array(optimizer.get_slot(v, "velocity")) for v in model.trainable_variables]


def assert_is_squared(velocities, gradients, rtol=1e-4):
    # float32, squared; sums over samples in another order
    for v, g in zip(velocities, gradients, strict=True):
        np.testing.assert_allclose(v, g**2, rtol=rtol, atol=rtol * np.max(g**2) * 1e-2)


@pytest.mark.parametrize("optimizer", BOTH)
@pytest.mark.parametrize("batch_size", [128, 32])
def test_velocity_is_the_squared_gradient_of_all_the_data(optimizer, batch_size):
    x, y = diabetes()
    model = linear_model(optimizer(), [keras.layers.Dense(8, activation="tanh")])
    keras_yogi.warm_start(model, x, y, batch_size=batch_size)
    assert_is_squared(velocities(model), gradients_by_hand(model, x, y))


@pytest.mark.parametrize("optimizer", BOTH)
def test_steps_limits_the_data(optimizer):
    x, y = diabetes()
    model = linear_model(optimizer())
    keras_yogi.warm_start(model, x, y, batch_size=16, steps=3)
    assert_is_squared(velocities(model), gradients_by_hand(model, x[:48], y[:48]))


def lengths_of_first_step(optimizer):
    """After a warm start on the batch that comes again and again, in learning rates."""
    x, y = diabetes()
    model = linear_model(optimizer)
    keras_yogi.warm_start(model, x, y, batch_size=128, verbose=0)
    before = model.get_weights()
    gradients = gradients_by_hand(model, x, y)
    model.train_on_batch(x, y)
    return [
        (w0 - w1) / 0.5 / np.sign(g)
        for w0, w1, g in zip(before, model.get_weights(), gradients, strict=True)
    ]


@pytest.mark.parametrize("optimizer", BOTH)
@pytest.mark.parametrize(
    ("bias_correction", "length"),
    [
        ("both", (1 - 0.999) ** 0.5),  # v̂ = g² / (1 − β₂)
        ("momentum", 1.0),  # v̂ = g²
        ("none", 1 - 0.9),  # v̂ = g², m̂ = (1 − β₁) g: the start of the paper
    ],
)
def test_the_bias_correction_stays_the_users(optimizer, bias_correction, length):
    optimizer = optimizer(0.5, epsilon=0.0, bias_correction=bias_correction)
    for weights in lengths_of_first_step(optimizer):
        np.testing.assert_allclose(weights, length, rtol=1e-3)
    assert optimizer.bias_correction == bias_correction


@pytest.mark.parametrize("optimizer", BOTH)
def test_velocity_stays_for_a_repeated_gradient(optimizer):
    """v is the mean of squares that do not change."""
    x, y = diabetes()
    model = linear_model(
        optimizer(0.0, epsilon=0.0)
    )  # the weights stay: the gradient repeats itself
    keras_yogi.warm_start(model, x, y, batch_size=128, verbose=0)
    gradients = gradients_by_hand(model, x, y)
    for _ in range(3):
        model.train_on_batch(x, y)
        assert_is_squared(velocities(model), gradients)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}])
def test_no_step_of_adam_is_longer_than_without(options):
    """Whatever the start and the gradients: here they grow a thousandfold, or are zero."""
    rng = np.random.default_rng(3)
    steps = rng.normal(size=(30, 50)) * np.geomspace(1e-3, 1.0, 30)[:, None]
    steps[rng.random((30, 50)) < 0.2] = 0.0
    moved = []
    for start in (np.zeros(50), rng.normal(size=50) ** 2 * np.geomspace(1e-12, 1.0, 50)):
        variable = keras.Variable(np.zeros(50, "float32"))
        optimizer = keras_yogi.Adam(1.0, epsilon=0.0, **options)
        optimizer.build([variable])
        optimizer.set_slot(variable, "velocity", start.astype("float32"))
        weights = [variable.numpy()]
        for gradient in steps:
            optimizer.apply([tensor(gradient, "float32")], [variable])
            weights.append(variable.numpy())
        moved.append(np.abs(np.diff(weights, axis=0)))
    without, warm = moved
    assert np.nanmax(warm - without) < 1e-5  # float32, of weights up to 10


@pytest.mark.parametrize("options", FIT_MODES.values(), ids=FIT_MODES)
def test_nothing_else_moves(options):
    """Not the weights, batch-norm statistics, metrics, random seeds or the history."""
    x, y = diabetes()
    layers = [keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    model = linear_model(keras_yogi.Yogi(), layers, **{"jit_compile": "auto", **options})
    model.evaluate(x, y, verbose=0)
    before = [v.numpy() for v in [*model.variables, *model.metrics_variables]]
    optimizer = model.optimizer
    keras_yogi.warm_start(model, x, y)
    after = [v.numpy() for v in [*model.variables, *model.metrics_variables]]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.optimizer is optimizer
    assert int(array(optimizer.iterations.value)) == 0
    assert all(
        (array(optimizer.get_slot(v, "momentum")) == 0).all() for v in model.trainable_variables
    )
    assert getattr(model, "history", None) is None
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"][0])


@pytest.mark.parametrize("optimizer", BOTH)
def test_tf_data_and_embedding(optimizer):
    words = np.random.default_rng(1).integers(0, 12, size=(64, 6))
    labels = words.mean(axis=1, keepdims=True).astype("float32")
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Embedding(20, 3), keras.layers.Flatten(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((6,), dtype="int32"), *layers])
    model.compile(optimizer(), loss="mse", **WITHOUT_XLA)
    gradients = gradients_by_hand(model, words, labels)
    keras_yogi.warm_start(model, words, labels, batch_size=16)
    assert_is_squared(velocities(model), gradients)
    if ON_TENSORFLOW:
        dataset = tf.data.Dataset.from_tensor_slices((words, labels)).batch(16)
        for again, arguments in [(dataset, {}), (dataset.repeat(), {"steps": 4})]:
            keras_yogi.warm_start(model, again, **arguments)
            assert_is_squared(velocities(model), gradients)


def test_a_model_that_fit_has_to_build():
    x, y = diabetes()
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(keras_yogi.Yogi(), loss="mse")
    keras_yogi.warm_start(model, x, y, batch_size=128)
    assert_is_squared(velocities(model), gradients_by_hand(model, x, y))


@pytest.mark.skipif(
    keras.config.backend() == "jax",
    reason="Keras leaves out all of these batches: keras.optimizers.Adam makes no step either",
)
def test_mixed_precision():
    x, y = diabetes()
    with dtype_policy("mixed_float16"):
        model = linear_model(keras_yogi.Yogi(), jit_compile=False)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    keras_yogi.warm_start(model, x, y, batch_size=128)
    gradients = gradients_by_hand(model, x, y)
    # gradients of float16 activations: 10 bits
    assert_is_squared(velocities(model, model.optimizer.inner_optimizer), gradients, rtol=2e-2)
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"][0])


def test_a_batch_that_overflows_float16_is_told_of():
    """Keras leaves it out. With a smaller loss scale, as the warning says, it counts."""
    x, y = diabetes()
    y[:16] *= 64  # only there do gradients times 2¹¹ pass 65504

    def warm_started(initial_scale):
        with dtype_policy("mixed_float16"):
            optimizer = keras_yogi.Yogi()
            scaled = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=initial_scale)
            model = linear_model(scaled, jit_compile=False)
        keras_yogi.warm_start(model, x, y, batch_size=16)
        return velocities(model, optimizer)

    model = linear_model(keras_yogi.Yogi())
    without_it = gradients_by_hand(model, x[16:], y[16:])
    message = r"used 7 batches and skipped others.* scale of 2048\.0 .*of 1024\.0 or less"
    with pytest.warns(UserWarning, match=message):
        assert_is_squared(warm_started(2.0**11), without_it, rtol=2e-2)  # 10 bits
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="`warm_start`")
        assert_is_squared(warm_started(2.0**6), gradients_by_hand(model, x, y), rtol=2e-2)


def save_keras(model, path):
    model.save(path / "m.keras")
    return lambda: keras.models.load_model(path / "m.keras")


def save_weights(model, path):
    model.save_weights(path / "m.weights.h5")

    def load():
        x, y = diabetes()
        other = linear_model(type(model.optimizer)(0.05))
        other.train_on_batch(x[:8], y[:8])
        other.load_weights(path / "m.weights.h5")
        return other

    return load


def save_checkpoint(model, path):
    saved = tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(path / "c"))

    def load():
        other = linear_model(type(model.optimizer)(0.05))
        other.optimizer.build(other.trainable_variables)
        tf.train.Checkpoint(model=other, optimizer=other.optimizer).read(saved).assert_consumed()
        return other

    return load


@pytest.mark.parametrize(
    ("optimizer", "save"),
    [
        (keras_yogi.Adam, save_keras),
        (keras_yogi.Yogi, save_weights),
        *([(keras_yogi.Yogi, save_checkpoint)] if ON_TENSORFLOW else []),
    ],
)
def test_state_survives_saving(optimizer, save, tmp_path):
    x, y = diabetes()
    model = linear_model(optimizer(0.05))
    keras_yogi.warm_start(model, x, y)
    load = save(model, tmp_path)
    loaded = load()
    for m in (model, loaded):
        m.fit(x, y, shuffle=False, epochs=2, verbose=0)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_plain_state_makes_a_warm_optimizer_plain(tmp_path):
    x, y = diabetes()
    plain, warm = linear_model(keras_yogi.Yogi()), linear_model(keras_yogi.Yogi())
    plain.fit(x, y, shuffle=False, verbose=0)
    keras_yogi.warm_start(warm, x, y)
    plain.save_weights(tmp_path / "p.weights.h5")
    warm.load_weights(tmp_path / "p.weights.h5")
    for m in (plain, warm):
        m.fit(x, y, shuffle=False, verbose=0)
    for a, b in zip(plain.get_weights(), warm.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_cannot_be_started():
    x, y = diabetes()
    with pytest.raises(ValueError, match="`model` must be compiled with"):
        keras_yogi.warm_start(keras.Sequential([keras.layers.Dense(1)]), x, y)
    with pytest.raises(ValueError, match=r"`model` must be compiled with .* Adam"):
        keras_yogi.warm_start(linear_model(keras.optimizers.Adam()), x, y)
    model = linear_model(keras_yogi.Yogi())
    for name, bad in [("batch_size", 0), ("batch_size", 1.5), ("steps", 0), ("steps", "all")]:
        with pytest.raises(ValueError, match=f"`{name}` must be an integer >= 1"):
            keras_yogi.warm_start(model, x, y, **{name: bad})
    before = [v.numpy() for v in model.variables]
    with pytest.raises(ValueError, match=r"gradients are finite.*NaN"):
        keras_yogi.warm_start(model, np.full_like(x, np.nan), y)
    with pytest.raises(ValueError, match="128"):  # Keras's own message on lengths that differ
        keras_yogi.warm_start(model, x, y[:5])
    for a, v in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, v.numpy())
    keras_yogi.warm_start(model, x, y)  # still usable
    model.train_on_batch(x, y)
    with pytest.raises(ValueError, match="`model` must be untrained"):
        keras_yogi.warm_start(model, x, y)
