"""Saved, loaded, copied: the optimizer comes back whole, without custom_objects."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_yogi

OPTIMIZERS = {
    "adam": lambda: keras_yogi.Adam(0.02, beta_1=0.8, epsilon=1e-4, epsilon_hat=True),
    "amsgrad": lambda: keras_yogi.Adam(0.02, amsgrad=True, weight_decay=0.01, clipnorm=1.0),
    "yogi": lambda: keras_yogi.Yogi(
        0.02,
        beta_2=0.99,
        initial_accumulator_value=0.1,
        activation="tanh",
        l1_regularization_strength=1e-3,
        l2_regularization_strength=1e-2,
    ),
    "skipping, ema": lambda: keras_yogi.Yogi(skip_nonfinite=True, use_ema=True),
    "schedule": lambda: keras_yogi.Yogi(keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9)),
}


def data():
    x = np.random.default_rng(6).normal(size=(64, 5)).astype("float32")
    return x, np.sin(x.sum(axis=1, keepdims=True))


def trained_model(optimizer, epochs=2):
    keras.utils.set_random_seed(8)
    layers = [keras.layers.Dense(7, activation="tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.compile(optimizer, loss="mse")
    train(model, epochs)
    return model


def train(model, epochs=2):
    model.fit(*data(), batch_size=16, epochs=epochs, shuffle=False, verbose=0)


def state(model):
    return [v.numpy() for v in [*model.weights, *model.optimizer.variables]]


def assert_same_state(model, other):
    for a, b in zip(state(model), state(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_config_round_trip(make):
    optimizer = make()
    copy = type(optimizer).from_config(optimizer.get_config())
    assert copy.get_config() == optimizer.get_config()
    for through in (
        keras.optimizers.deserialize(keras.optimizers.serialize(optimizer)),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer)),
        keras.optimizers.get(keras.optimizers.serialize(optimizer)),
    ):
        assert type(through) is type(optimizer)  # not Keras's own Adam
        assert through.get_config() == optimizer.get_config()


@pytest.mark.parametrize("optimizer", [keras_yogi.Adam, keras_yogi.Yogi])
def test_config_holds_every_argument(optimizer):
    import inspect

    own = set(inspect.signature(optimizer).parameters) - {"keras_arguments"}
    assert own <= set(optimizer().get_config())
    assert keras.saving.get_registered_name(optimizer) == f"keras_yogi>{optimizer.__name__}"


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_goes_on_from_a_keras_file(make, tmp_path):
    model = trained_model(make())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert_same_state(loaded, model)
    train(model)
    train(loaded)
    assert_same_state(loaded, model)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_goes_on_from_a_checkpoint(make, tmp_path):
    model = trained_model(make())
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(tmp_path / "c"))
    other = trained_model(make(), epochs=1)
    tf.train.Checkpoint(model=other, optimizer=other.optimizer).read(path).assert_consumed()
    train(model)
    train(other)
    assert_same_state(other, model)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_state_moves_to_and_from_keras_adam(amsgrad, tmp_path):
    """The slots are the same, in the same order: training goes on as if nothing had happened."""
    theirs = {"amsgrad": amsgrad, "learning_rate": 0.02}
    ours = {**theirs, "epsilon": 1e-7, "epsilon_hat": True}
    for first, second in [
        (keras.optimizers.Adam(**theirs), keras_yogi.Adam(**ours)),
        (keras_yogi.Adam(**ours), keras.optimizers.Adam(**theirs)),
    ]:
        model = trained_model(first)
        model.save_weights(tmp_path / "state.weights.h5")
        other = trained_model(second, epochs=1)
        other.load_weights(tmp_path / "state.weights.h5")
        assert_same_state(other, model)
        train(model)
        train(other)
        for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)  # float32 rounding of 8 steps


def test_slots_are_tf_variables_in_keras_order():
    variables = [keras.Variable(np.ones(2), name="kernel"), keras.Variable(1.0, name="bias")]
    for options in ({}, {"amsgrad": True, "use_ema": True, "gradient_accumulation_steps": 2}):
        theirs = keras.optimizers.Adam(**options)
        ours = keras_yogi.Adam(fused=False, name="same", **options)
        fused = keras_yogi.Adam(fused=True, name="same", **options)
        for optimizer in (theirs, ours, fused):
            optimizer.build(variables)
        assert fused.engine == "fused"
        assert ours.engine == "unfused"
        assert [v.name for v in ours.variables] == [v.name for v in theirs.variables]
        assert [v.path for v in fused.variables] == [v.path for v in ours.variables]
        assert all(isinstance(v.value, tf.Variable) for v in ours.variables)


def test_fused_of_a_config_is_a_wish_where_the_engine_cannot_serve():
    """Or else such a file would not load there. What the constructor is given is an order."""
    config = keras_yogi.Adam(fused=True).get_config()
    assert keras_yogi.Adam.from_config(config).fused is True
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        assert keras_yogi.Adam.from_config(config).fused == "auto"
        with pytest.raises(ValueError, match="`fused` must be"):
            keras_yogi.Adam(fused=True).build([keras.Variable(1.0)])


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_get_slot(make):
    model = trained_model(make())
    optimizer = model.optimizer
    for name, slots in optimizer.slots().items():
        for variable, slot in zip(model.trainable_variables, slots, strict=True):
            value = optimizer.get_slot(variable, name)
            np.testing.assert_array_equal(value, slot.numpy())
            assert not isinstance(value, keras.Variable)  # a value, not the live slot


def test_get_slot_says_what_is_wrong():
    optimizer = keras_yogi.Yogi()
    known, unknown = keras.Variable([1.0]), keras.Variable([1.0])
    with pytest.raises(ValueError, match="need an optimizer that is built"):
        optimizer.get_slot(known, "velocity")
    optimizer.build([known])
    with pytest.raises(ValueError, match=r"`name` must be one of .* name='m'"):
        optimizer.get_slot(known, "m")
    with pytest.raises(ValueError, match="`variable` must be one of the variables"):
        optimizer.get_slot(unknown, "velocity")
    with pytest.raises(ValueError, match="`variable` must be one of the variables"):
        optimizer.get_slot("kernel", "velocity")
