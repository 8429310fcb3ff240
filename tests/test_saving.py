"""Saved, loaded, copied: the optimizer comes back whole, without custom_objects."""

import inspect

import keras
import numpy as np
import pytest
from keras import ops
from support.backend import ON_TENSORFLOW, array, tensorflow_only
from support.cases import BOTH, CASES, OPTIONS, Case, plain_case
from support.comparison import assert_unchanged, snapshot
from support.models import fit_sine, model_state, sine_model
from support.training import ones_of

import keras_yogi

if ON_TENSORFLOW:
    import tensorflow as tf

SAVED: dict[str, tuple[Case, str]] = {
    "adam, epsilon_hat": (CASES["adam, epsilon_hat"], "plain"),
    "amsgrad": (CASES["amsgrad"], "accumulation, clipnorm, decay"),
    "yogi, tanh": (CASES["yogi, tanh"], "skip_nonfinite"),
    "yogi, proximal": (CASES["yogi, proximal"], "schedule"),
    "everything": (CASES["yogi"], "everything"),
}
every_saved = pytest.mark.parametrize("saved", SAVED)


def make(saved):
    case, option = SAVED[saved]
    return case.optimizer(**OPTIONS[option])


def trained_model(optimizer, epochs=2, **arguments):
    model = sine_model(optimizer, **arguments)
    fit_sine(model, epochs)
    return model


@every_saved
def test_config_round_trip(saved):
    optimizer = make(saved)
    copy = type(optimizer).from_config(optimizer.get_config())
    assert copy.get_config() == optimizer.get_config()
    for through in (
        keras.optimizers.deserialize(keras.optimizers.serialize(optimizer)),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer)),
        keras.optimizers.get(keras.optimizers.serialize(optimizer)),
    ):
        assert type(through) is type(optimizer)  # not Keras's own Adam
        assert through.get_config() == optimizer.get_config()


@pytest.mark.parametrize("optimizer", BOTH)
def test_config_holds_every_argument(optimizer):
    own = set(inspect.signature(optimizer).parameters) - {"keras_arguments"}
    assert own <= set(optimizer().get_config())
    assert keras.saving.get_registered_name(optimizer) == f"keras_yogi>{optimizer.__name__}"


@pytest.mark.parametrize(
    ("saved", "compiled"),
    [*((saved, {}) for saved in SAVED), ("everything", {"jit_compile": "auto"})],
    ids=[*SAVED, "everything, compiled as Keras does by default"],
)
def test_training_goes_on_from_a_keras_file(saved, compiled, tmp_path):
    model = trained_model(make(saved), **compiled)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert_unchanged(model_state(loaded), model_state(model))
    fit_sine(model)
    fit_sine(loaded)
    assert_unchanged(model_state(loaded), model_state(model))


@tensorflow_only
@every_saved
def test_training_goes_on_from_a_checkpoint(saved, tmp_path):
    model = trained_model(make(saved))
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(tmp_path / "c"))
    other = trained_model(make(saved), epochs=1)
    tf.train.Checkpoint(model=other, optimizer=other.optimizer).read(path).assert_consumed()
    fit_sine(model)
    fit_sine(other)
    assert_unchanged(model_state(other), model_state(model))


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
        assert_unchanged(model_state(other), model_state(model))
        fit_sine(model)
        fit_sine(other)
        for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)  # float32 rounding of 8 steps


@tensorflow_only
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


@every_saved
def test_get_slot(saved):
    model = trained_model(make(saved))
    optimizer = model.optimizer
    for name, slots in optimizer.slots().items():
        for variable, slot in zip(model.trainable_variables, slots, strict=True):
            value = optimizer.get_slot(variable, name)
            np.testing.assert_array_equal(array(value), slot.numpy())
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


@tensorflow_only
@plain_case
def test_an_asynchronous_checkpoint_is_of_one_moment(case, tmp_path):
    """Steps that are made while it is written are not in it."""
    variables = ones_of((4,), (4,), (300, 200))
    gradients = [tf.ones(v.shape) for v in variables]
    optimizer = case.optimizer()
    optimizer.build(variables)
    optimizer.apply(gradients)
    then = snapshot(optimizer, variables)
    checkpoint = tf.train.Checkpoint(optimizer=optimizer, weights=variables)
    options = tf.train.CheckpointOptions(experimental_enable_async_checkpoint=True)
    path = checkpoint.save(str(tmp_path / "checkpoint"), options=options)
    for _ in range(30):
        optimizer.apply(gradients)
    checkpoint.sync()
    checkpoint.restore(path).assert_existing_objects_matched()
    assert_unchanged(snapshot(optimizer, variables), then)


# Equal numbers of arrays of equal shapes, which mean something else.
CONFIGURATIONS = {
    "averages": {"use_ema": True},
    "accumulation": {"gradient_accumulation_steps": 2},
    "neither": {},
}


@pytest.mark.parametrize(
    ("saved", "other"),
    [(a, b) for a in CONFIGURATIONS for b in CONFIGURATIONS if a != b],
)
def test_a_state_of_another_configuration_is_not_taken(saved, other, tmp_path):
    """Averages must not become sums of gradients. It is refused, or not loaded, with a warning."""

    def model_of(name):
        optimizer = CASES["yogi"].optimizer(**CONFIGURATIONS[name])
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        model.compile(optimizer, loss="mse")
        optimizer.build(model.trainable_variables)
        return model

    source, target = model_of(saved), model_of(other)
    source.optimizer.apply([ops.ones(v.shape) for v in source.trainable_variables])
    source.save_weights(tmp_path / "saved.weights.h5")
    before = snapshot(target.optimizer)
    with pytest.raises((ValueError, UserWarning)):  # warnings are errors in these tests
        target.load_weights(tmp_path / "saved.weights.h5")
    assert_unchanged(before, snapshot(target.optimizer))
