"""`warm_start` takes any data and any `train_step`, and leaves all but the velocities as it was."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.backend import WITHOUT_XLA

import keras_yogi

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = X[:, :2]


def compiled(optimizer=None, layers=(), **arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2)])
    model.compile(optimizer or keras_yogi.Yogi(0.01), loss="mse", **{**WITHOUT_XLA, **arguments})
    return model


def velocities(model):
    return [
        model.optimizer.get_slot(v, "velocity").numpy() for v in model.optimizer.trained_variables
    ]


def mean_gradients(model, batches):
    sums = [0.0] * len(model.trainable_variables)
    for x, y in batches:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        sums = [total + g.numpy() for total, g in zip(sums, gradients, strict=True)]
    return [total / len(batches) for total in sums]


def four_batches():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)


def generator():
    for start in range(0, 64, 16):
        yield X[start : start + 16], Y[start : start + 16]


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return X[16 * index : 16 * index + 16], Y[16 * index : 16 * index + 16]


DATA = {
    "known size": four_batches,
    "unknown size": lambda: four_batches().filter(lambda *_: True),
    "generator": generator,
    "PyDataset": Batches,
    "arrays": lambda: (X, Y),
}
# Every kind of data, and every option with what has a length and with what has none.
OPTIONS = {
    "eager": (dict(run_eagerly=True), ["arrays", "unknown size"]),
    "three steps an execution": (dict(steps_per_execution=3), DATA),
    "with XLA": (dict(jit_compile=True), ["arrays", "unknown size"]),
    "without XLA": ({}, DATA),
}


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    ("option", "data"), [(option, data) for option, (_, of) in OPTIONS.items() for data in of]
)
def test_batches_are_counted_whatever_tells_their_number(option, data):
    model = compiled(**OPTIONS[option][0])
    given = DATA[data]()
    x, y = given if isinstance(given, tuple) else (given, None)
    keras_yogi.warm_start(model, x, y, batch_size=16, verbose=0)
    for v, g in zip(velocities(model), mean_gradients(model, list(generator())), strict=True):
        np.testing.assert_allclose(v, g**2, rtol=1e-4, atol=1e-10)  # float32, squared


NO_DATA = {
    "too few for a batch": lambda: four_batches().unbatch().batch(128, drop_remainder=True),
    "no samples": lambda: tf.data.Dataset.from_tensor_slices((X[:0], Y[:0])).batch(4),
    "all filtered out": lambda: four_batches().filter(lambda *_: False),
}


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("data", NO_DATA.values(), ids=NO_DATA.keys())
def test_no_data_is_refused(data):
    model = compiled()
    with pytest.raises(ValueError, match="`x` must hold at least one batch"):
        keras_yogi.warm_start(model, data(), verbose=0)
    assert not model.optimizer.built


def test_a_train_step_that_never_applies_gradients_is_refused():
    class Idle(keras.Sequential):
        def train_step(self, data):
            return {"loss": tf.reduce_mean(self(data[0]))}

    model = Idle([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(keras_yogi.Adam(), "mse")
    with pytest.raises(ValueError, match="for which `train_step` gives the model's optimizer"):
        keras_yogi.warm_start(model, X, Y, verbose=0)


# A train_step that leaves variables out


class Averaged(keras.Model):
    """A network and its average, as in diffusion models: only one of them gets gradients."""

    def __init__(self):
        super().__init__()
        self.network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
        self.average = keras.models.clone_model(self.network)

    def call(self, x):
        return self.network(x)

    def train_step(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self.network(x) - x) ** 2)
            scaled = self.optimizer.scale_loss(loss)
        weights = self.network.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))
        return {"loss": loss}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("is_built", [False, True])
def test_variables_without_gradients_keep_their_velocity(is_built, scaled):
    keras.utils.set_random_seed(1)
    model = Averaged()
    optimizer = keras_yogi.Yogi(0.01, initial_accumulator_value=0.5)
    model.compile(
        keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer, **WITHOUT_XLA
    )
    if is_built:
        model.optimizer.build(model.trainable_variables)
    keras_yogi.warm_start(model, X, verbose=0)
    for variable in model.average.trainable_variables:
        assert (optimizer.get_slot(variable, "velocity").numpy() == 0.5).all()
    kernel = optimizer.get_slot(model.network.trainable_variables[0], "velocity").numpy()
    assert kernel.max() > 0
    assert (kernel != 0.5).all()
    model.fit(X, verbose=0)


# Nothing else changes


def everything(model):
    names = ("history", "stop_training", "optimizer", "steps_per_execution", "train_function")
    attributes = {name: getattr(model, name, "not there") for name in names}
    variables = {v.path: v.numpy() for v in [*model.variables, *model.metrics_variables]}
    return attributes, variables


def assert_same(before, after, but=()):
    assert {k: v for k, v in before[0].items() if k not in but} == {
        k: v for k, v in after[0].items() if k not in but
    }
    assert before[1].keys() == after[1].keys()
    for path, value in before[1].items():
        np.testing.assert_array_equal(after[1][path], value, err_msg=path)


def with_state(**arguments):
    keras.utils.set_random_seed(2)
    layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    metrics = ["mae", keras.metrics.AUC(multi_label=True, name="auc")]
    return compiled(None, layers, metrics=metrics, **arguments)


def fails(at):
    for number, batch in enumerate(generator()):
        if number == at:
            raise OSError("the disk is gone")
        yield batch


@pytest.mark.parametrize("stopped", [None, False, True])
def test_everything_is_as_it_was(stopped):
    model = with_state()
    model.evaluate(X, Y > 0, verbose=0)
    if stopped is not None:
        model.stop_training, model.history = stopped, "of a fit before"
    before = everything(model)
    keras_yogi.warm_start(model, X, Y > 0, verbose=0)
    assert_same(before, everything(model))
    assert hasattr(model, "history") == (stopped is not None)


def test_metrics_that_the_first_batch_makes_are_as_new():
    """They would count the data of the warm start until the next epoch resets them."""
    model, twin = with_state(), with_state()
    keras_yogi.warm_start(model, X, Y > 0, verbose=0)
    assert model.metrics_variables
    for variable in model.metrics_variables:
        assert not variable.numpy().any(), variable.path
    ours, theirs = (m.evaluate(X, Y > 0, verbose=0, return_dict=True) for m in (model, twin))
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("at", [0, 2])
def test_everything_is_as_it_was_after_an_error(at):
    model = with_state()
    model.evaluate(X, Y, verbose=0)
    model.optimizer.build(model.trainable_variables)
    before, slots = everything(model), [v.numpy() for v in model.optimizer.variables]
    with pytest.raises(Exception, match="the disk is gone"):
        keras_yogi.warm_start(model, fails(at), verbose=0)
    assert_same(before, everything(model))
    for v, value in zip(model.optimizer.variables, slots, strict=True):
        np.testing.assert_array_equal(v, value)
    keras_yogi.warm_start(model, X, Y, verbose=0)


def test_errors_hold_no_arrays():
    model = compiled()
    with pytest.raises(ValueError, match="gradients are finite") as caught:
        keras_yogi.warm_start(model, X, np.full_like(Y, np.nan), verbose=0)
    assert "sequential" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_it_can_be_silenced(capsys):
    keras_yogi.warm_start(compiled(), X, Y, verbose=0)
    assert not capsys.readouterr().out
    keras_yogi.warm_start(compiled(), X, Y, verbose=2)
    assert "loss" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r'`verbose` must be "auto", 0, 1 or 2'):
        keras_yogi.warm_start(compiled(), X, Y, verbose="no")


# Keras 2


def of_keras_2(name):
    return type(name, (), {"__module__": f"tf_keras.src.{name.lower()}"})()


def test_keras_2_is_named():
    with pytest.raises(ValueError, match=r"`model` is of Keras 2.*Received: tf_keras\.src\.seq"):
        keras_yogi.warm_start(of_keras_2("Sequential"), X, Y)
    with pytest.raises(ValueError, match=r"`model\.optimizer` is of Keras 2"):
        keras_yogi.warm_start(types.SimpleNamespace(optimizer=of_keras_2("Adam")), X, Y)
    with pytest.raises(ValueError, match=r"`optimizer` is of Keras 2.*TF_USE_LEGACY_KERAS"):
        keras_yogi.diagnose(of_keras_2("Adam"))
