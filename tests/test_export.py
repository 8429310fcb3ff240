"""SavedModels, export archives and TFLite: whole; and a train step that they hold trains on."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.backend import WITHOUT_XLA
from support.cases import BOTH, plain_case


@plain_case
def test_saved_model_of_a_model_that_was_trained(case, tmp_path):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    model.compile(case.optimizer(), "mse", **WITHOUT_XLA)
    model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    tf.saved_model.save(model, str(tmp_path / "model"))
    tf.saved_model.load(str(tmp_path / "model"))
    model.export(str(tmp_path / "exported"), verbose=False)


@pytest.mark.filterwarnings("ignore")  # TensorFlow's own, of its interpreter
@pytest.mark.parametrize("optimizer_class", BOTH)
def test_a_tflite_model_trains(optimizer_class, tmp_path):
    """With a signature that trains and one that sets the initial state, which TFLite asks for."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    optimizer = optimizer_class(0.05, fused=False)
    optimizer.build(model.trainable_variables)
    start = [(v, v.numpy()) for v in [*model.variables, *optimizer.variables]]

    class Trainer(tf.Module):
        def __init__(self):
            self.model, self.optimizer = model, optimizer

        @tf.function(input_signature=[tf.TensorSpec((8, 4), name="x")])
        def train(self, x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self.model(x) - x[:, :1]))
            variables = self.model.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return {"loss": loss}

        @tf.function(input_signature=[])
        def initialize(self):
            for variable, value in start:
                variable.assign(value)
            return {"variables": tf.constant(len(start))}

    trainer, folder = Trainer(), str(tmp_path / "model")
    names = ["train", "initialize"]
    signatures = {name: getattr(trainer, name).get_concrete_function() for name in names}
    tf.saved_model.save(trainer, folder, signatures=signatures)
    converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=names)
    converter.experimental_enable_resource_variables = True
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    interpreter.get_signature_runner("initialize")()
    step = interpreter.get_signature_runner("train")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    losses = [float(step(x=x)["loss"]) for _ in range(5)]
    # TFLite's kernels round otherwise than TensorFlow's.
    np.testing.assert_allclose(losses, [float(trainer.train(x)["loss"]) for _ in range(5)], 1e-4)
    assert losses[-1] < losses[0]


@plain_case
def test_a_saved_model_trains_on(case, tmp_path):
    """The train step that it carries goes on from the state that was saved."""
    module = tf.Module()
    module.kernel, module.bias = tf.Variable(tf.ones((4, 2))), tf.Variable(tf.zeros(2))
    variables = [module.kernel, module.bias]
    module.optimizer = case.optimizer()
    module.optimizer.build(variables)

    def train(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((x @ module.kernel + module.bias) ** 2)
        module.optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    signature = [tf.TensorSpec([None, 4])]
    module.train = tf.function(train, input_signature=signature, autograph=False)
    x = tf.ones((2, 4))
    first = float(module.train(x))  # so that there is a state
    tf.saved_model.save(module, str(tmp_path / "module"))
    loaded = tf.saved_model.load(str(tmp_path / "module"))
    ours, theirs = ([float(m.train(x)) for _ in range(4)] for m in (module, loaded))
    assert ours == theirs
    assert ours[-1] < ours[0] < first


@plain_case
def test_gradients_that_are_constants(case, tmp_path):
    """A step waits for its batch: for nothing, if no gradient needs one."""
    module = tf.Module()
    module.weights, module.gradient = tf.Variable([1.0, 2.0]), tf.constant([0.5, -1.0])
    module.optimizer = case.optimizer()
    module.optimizer.build([module.weights])

    def train():
        module.optimizer.apply([module.gradient], [module.weights])
        return module.weights + 0.0

    module.train = tf.function(train, input_signature=[], autograph=False)
    tf.saved_model.save(module, str(tmp_path / "module"))
    loaded = tf.saved_model.load(str(tmp_path / "module"))
    np.testing.assert_array_equal(loaded.train(), module.train())


@plain_case
def test_an_export_archive_trains_on(case, tmp_path):
    """With a train step as one of its endpoints."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    optimizer = case.optimizer()
    optimizer.build(model.trainable_variables)

    def train(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x)))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    step = tf.function(train, autograph=False)
    x = tf.ones((2, 4))
    first = float(step(x))
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.track(optimizer)
    archive.add_endpoint("train", step, input_signature=[tf.TensorSpec((None, 4))])
    archive.write_out(str(tmp_path / "archive"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "archive"))
    ours, theirs = ([float(f(x)) for _ in range(4)] for f in (step, loaded.train))
    assert ours == theirs
    assert len({first, *ours}) == 5  # it trains
