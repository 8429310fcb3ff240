"""Models in float16 and bfloat16: their files, `warm_start`, and LossScaleOptimizer around them."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from support.backend import ON_TENSORFLOW, WITHOUT_XLA, array
from support.cases import BOTH
from support.models import regression
from support.training import whole_weights

import keras_yogi

in_half = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
both = pytest.mark.parametrize("optimizer_class", BOTH)


def model_of(dtype, optimizer):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(5, "tanh", dtype=dtype), keras.layers.Dense(1, dtype=dtype)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(optimizer, "mse", **WITHOUT_XLA)
    return model


def fitted(model, epochs=1):
    x, y = regression()
    model.fit(x, y, epochs=epochs, batch_size=16, shuffle=False, verbose=0)
    return model


def all_weights(model):
    return [whole_weights(model.optimizer, v) for v in model.trainable_variables]


# Files


def by_keras_file(model, folder, make):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


def by_weights_file(model, folder, make):
    model.save_weights(folder / "model.weights.h5")
    loaded = make()
    loaded.optimizer.build(loaded.trainable_variables)
    loaded.load_weights(folder / "model.weights.h5")
    return loaded


def by_checkpoint(model, folder, make):
    tf = pytest.importorskip("tensorflow")
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(folder / "checkpoint")
    loaded = make()
    loaded.optimizer.build(loaded.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=loaded, optimizer=loaded.optimizer)
    checkpoint.restore(path).assert_existing_objects_matched()
    return loaded


@pytest.mark.parametrize(
    ("road", "dtype"),
    [
        (by_keras_file, "float16"),
        (by_weights_file, "bfloat16"),
        *([(by_checkpoint, "float16")] if ON_TENSORFLOW else []),
    ],
)
def test_a_loaded_model_goes_on_bitwise(tmp_path, road, dtype):
    def make():
        return model_of(dtype, keras_yogi.Yogi(0.002))

    model = fitted(make(), 2)
    loaded = road(model, tmp_path, make)
    for ours, other in zip(all_weights(fitted(model)), all_weights(fitted(loaded)), strict=True):
        np.testing.assert_array_equal(ours, other)


@in_half
def test_a_float32_model_goes_on_from_the_whole_weights(tmp_path, dtype):
    model = fitted(model_of(dtype, keras_yogi.Adam(0.002)), 2)
    model.save_weights(tmp_path / "m.weights.h5")
    single = model_of("float32", keras_yogi.Adam(0.002))
    single.optimizer.build(single.trainable_variables)
    single.load_weights(tmp_path / "m.weights.h5")
    for ours, other in zip(all_weights(model), all_weights(single), strict=True):
        np.testing.assert_array_equal(ours, other)
    for name in ("momentum", "velocity"):
        slots = (m.optimizer.slots()[name] for m in (model, single))
        for ours, other in zip(*slots, strict=True):
            np.testing.assert_array_equal(array(ours), array(other))


def test_without_residuals_a_file_says_what_is_lost(tmp_path):
    model = fitted(model_of("bfloat16", keras_yogi.Adam(0.002)))
    model.save_weights(tmp_path / "m.weights.h5")
    other = model_of("bfloat16", keras_yogi.Adam(0.002, keep_residual=False))
    other.optimizer.build(other.trainable_variables)
    with pytest.warns(UserWarning, match="beyond half precision is lost, for 4 variables"):
        other.load_weights(tmp_path / "m.weights.h5")
    slots = (m.optimizer.slots()["velocity"] for m in (model, other))
    for ours, theirs in zip(*slots, strict=True):
        np.testing.assert_array_equal(array(ours), array(theirs))


def test_files_from_and_to_keras(tmp_path):
    """Keras's slots are in half precision; a residual is zero then. Keras loads nothing of ours but
    says so.
    """
    theirs = fitted(model_of("bfloat16", keras.optimizers.Adam(0.002)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # h5py, of bfloat16
        theirs.save_weights(tmp_path / "theirs.weights.h5")
        ours = fitted(model_of("bfloat16", keras_yogi.Adam(0.002)))
        ours.load_weights(tmp_path / "theirs.weights.h5")
    for index, variable in enumerate(ours.trainable_variables):
        assert not array(ours.optimizer.get_slot(variable, "residual")).any()
        momentum = array(ours.optimizer.get_slot(variable, "momentum"))
        expected = array(ops.cast(theirs.optimizer._momentums[index], "float32"))
        np.testing.assert_array_equal(momentum, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ours.save_weights(tmp_path / "ours.weights.h5")
        with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
            theirs.load_weights(tmp_path / "ours.weights.h5")


# Together with


@pytest.mark.parametrize(
    ("optimizer_class", "dtype"), list(zip(BOTH, ("float16", "bfloat16"), strict=True))
)
def test_a_warm_start_knows_the_gradients_of_half_precision(optimizer_class, dtype):
    model = model_of(dtype, optimizer_class(0.002))
    before = [array(ops.cast(v, "float32")) for v in model.trainable_variables]
    x, y = regression()
    keras_yogi.warm_start(model, x, y, batch_size=16)
    single = model_of("float32", optimizer_class(0.002))
    for variable, values in zip(single.trainable_variables, before, strict=True):
        variable.assign(values)
    keras_yogi.warm_start(single, x, y, batch_size=16)
    for index, variable in enumerate(model.trainable_variables):
        # The same weights; gradients differ by the rounding of activations, of 8 or 11 bits.
        v = array(model.optimizer.get_slot(variable, "velocity"))
        expected = array(single.optimizer.get_slot(single.trainable_variables[index], "velocity"))
        tolerance = {"bfloat16": 0.2, "float16": 0.02}[dtype]
        np.testing.assert_allclose(v, expected, rtol=0, atol=tolerance * expected.max())
        np.testing.assert_array_equal(array(ops.cast(variable, "float32")), before[index])


@both
def test_a_loss_scale_optimizer_around_it(optimizer_class):
    """Scaled by powers of two: the same steps, to the bit."""
    plain, scaled = optimizer_class(0.002), optimizer_class(0.002)
    wrapped = keras.optimizers.LossScaleOptimizer(scaled, initial_scale=8.0)
    models = [fitted(model_of("bfloat16", o)) for o in (plain, wrapped)]
    for ours, other in zip(*(m.trainable_variables for m in models), strict=True):
        np.testing.assert_array_equal(whole_weights(plain, ours), whole_weights(scaled, other))
