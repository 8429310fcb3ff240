"""Models, data and subclasses that are seldom met, and train as under keras.optimizers.Adam."""

import pickle

import keras
import numpy as np
import pytest
from keras import ops
from support.backend import WITHOUT_XLA, in_eager_and_compiled
from support.comparison import assert_all_close
from support.models import model_state
from support.training import ones_of, take_steps

import keras_yogi

on_tensorflow = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="TensorFlow alone has it"
)
every_engine = pytest.mark.parametrize("fused", ["auto", False])
every_optimizer = pytest.mark.parametrize("optimizer_class", [keras_yogi.Adam, keras_yogi.Yogi])
ONES = np.ones((40, 4), "float32"), np.ones((40, 2), "float32")


def dense_model(optimizer, **layer):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, **layer)])
    model.compile(optimizer, loss="mse", **WITHOUT_XLA)
    return model


def text_model(optimizer, **embedding):
    layers = [keras.layers.Embedding(10, 4, **embedding), keras.layers.Flatten()]
    inputs = keras.Input((2,), dtype="int32")
    model = keras.Sequential([inputs, *layers, keras.layers.Dense(1, "sigmoid")])
    model.compile(optimizer, loss="mse", **WITHOUT_XLA)
    model.set_weights([np.full(v.shape, 0.125) for v in model.variables])
    return model


TEXTS = np.zeros((8, 2), "int32"), np.ones((8, 1), "float32")  # one row, again and again


FLOAT64 = pytest.param("float64", marks=pytest.mark.float64)


@pytest.fixture(params=["float16", "bfloat16", "float32", FLOAT64])
def floatx(request):
    """Keras's default dtype, which it also gives to Python's numbers."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(request.param)
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


def test_every_default_dtype(floatx):
    model = dense_model(keras_yogi.Yogi(0.0625))
    kernel = model.trainable_variables[0]
    before = np.asarray(ops.convert_to_numpy(kernel), "float64")
    model.fit(*ONES, verbose=0)
    assert not np.array_equal(before, np.asarray(ops.convert_to_numpy(kernel), "float64"))
    assert "effective_lr_median" in keras_yogi.diagnose(model).model


class CountingLayer(keras.layers.Layer):
    """With a weight of whole numbers among those that are trained."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros")
        self.kernel = self.add_weight(shape=(4, 2))

    def call(self, x):
        return ops.matmul(x, self.kernel)


@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
@on_tensorflow  # JAX and PyTorch have no gradients of such a model
@every_engine
def test_a_trainable_variable_of_whole_numbers(fused, tmp_path):
    model = keras.Sequential([keras.Input((4,)), CountingLayer()])
    model.compile(keras_yogi.Adam(fused=fused), loss="mse")
    keras_yogi.warm_start(model, *ONES, batch_size=2, verbose=0)
    callback = keras_yogi.TensorBoard(tmp_path, histogram_freq=1)
    model.fit(*ONES, batch_size=2, callbacks=[callback], verbose=0)  # enough steps for advice
    assert [v.shape for v in model.trainable_variables] == [(), (4, 2)]
    assert len(keras_yogi.diagnose(model).variables) == 1
    assert int(model.layers[0].count.numpy()) == 0


@every_engine
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_accumulated_gradients_of_a_table_in_half_precision(dtype, fused):
    """Equal to the mean gradient in float32, as far as half precision holds the gradients."""
    kernels = []
    for of_table in (dtype, "float32"):
        options = {"gradient_accumulation_steps": 2, "epsilon": 1e-3, "fused": fused}
        model = text_model(keras_yogi.Adam(0.0625, **options), dtype=of_table)
        model.fit(*TEXTS, batch_size=2, verbose=0)
        table = model.trainable_variables[0]
        kernels.append(np.asarray(ops.convert_to_numpy(ops.cast(table, "float32"))))
    # Two steps of η; the gradients of half precision have 8 binary digits.
    np.testing.assert_allclose(*kernels, rtol=0, atol=0.01)


class Descent(keras_yogi.Adam):
    """Updates rows itself, as keras.optimizers.SGD does."""

    def update_step(self, gradient, variable, learning_rate):
        step = ops.multiply(ops.cast(gradient, variable.dtype), -learning_rate)
        self.assign_add(variable, step)


@pytest.mark.parametrize("eagerly", [True, False])
def test_an_update_step_of_ones_own_gets_rows_that_exist(eagerly):
    tables = []
    for optimizer in (Descent(0.125), keras.optimizers.SGD(0.125)):
        model = text_model(optimizer)
        model.compile(optimizer, loss="mse", run_eagerly=eagerly)
        model.fit(*TEXTS, verbose=0)
        tables.append(ops.convert_to_numpy(model.trainable_variables[0]))
    # float32: the pieces of a row are added in another order
    np.testing.assert_allclose(*tables, rtol=0, atol=1e-6)


@in_eager_and_compiled
@every_engine
@every_optimizer
def test_an_update_step_that_a_subclass_overrides_is_called(optimizer_class, fused, mode):
    class KernelsStay(optimizer_class):
        def update_step(self, gradient, variable, learning_rate):
            share = 0.0 if len(variable.shape) == 2 else 1.0
            super().update_step(gradient, variable, learning_rate * share)

    kernel, bias, large = variables = ones_of((3, 4), (5,), (300, 200))
    optimizer = KernelsStay(0.1, fused=fused)
    take_steps(optimizer, variables, [[np.ones(v.shape) for v in variables]], mode)
    np.testing.assert_array_equal(kernel.numpy(), 1.0)
    np.testing.assert_array_equal(large.numpy(), 1.0)
    assert np.all(bias.numpy() < 1.0)


@every_engine
def test_an_update_step_that_is_replaced_on_the_object(fused):
    seen, variable = [], keras.Variable(np.ones(3))
    optimizer = keras_yogi.Adam(fused=fused)
    optimizer.build([variable])
    original = optimizer.update_step

    def observed(gradient, of_variable, learning_rate):
        seen.append(tuple(of_variable.shape))
        original(gradient, of_variable, learning_rate)

    optimizer.update_step = observed
    optimizer.apply([ops.ones(3)], [variable])
    assert seen == [(3,)]
    assert np.all(ops.convert_to_numpy(variable) < 1)


@on_tensorflow
@every_engine
@pytest.mark.parametrize("rows", ["exact", "lazy"])
def test_a_table_without_columns(rows, fused):
    import tensorflow as tf

    variables = [keras.Variable(np.ones((5, 0))), keras.Variable(np.ones(3))]
    optimizer = keras_yogi.Adam(sparse_update=rows, fused=fused)
    optimizer.build(variables)

    def step():
        rows = tf.IndexedSlices(tf.ones((1, 0)), tf.constant([1]), tf.constant([5, 0]))
        optimizer.apply([rows, tf.ones(3)])

    step()
    tf.function(step, autograph=False)()
    assert int(optimizer.iterations) == 2


@on_tensorflow
@every_engine
@pytest.mark.parametrize("size", [3, 300])
def test_a_variable_as_the_gradient(size, fused):
    """Sums of gradients that a loop keeps itself."""
    import tensorflow as tf

    variable, total = (keras.Variable(np.ones((size, size), "float32")) for _ in range(2))
    optimizer = keras_yogi.Adam(0.5, epsilon=0.0, fused=fused)
    optimizer.build([variable])
    tf.function(lambda: optimizer.apply([total], [variable]), autograph=False)()
    np.testing.assert_allclose(variable.numpy(), 0.5, rtol=1e-6)  # the first step of Adam is η


class TwoHeads(keras.Model):
    """The last head has no part in the loss but its regularizer."""

    def __init__(self):
        super().__init__()
        self.used = keras.layers.Dense(2)
        self.unused = keras.layers.Dense(2, use_bias=False, kernel_regularizer="l2")
        self.unused.build((None, 4))

    def call(self, x):
        return self.used(x)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@on_tensorflow
@every_engine
def test_steps_of_data_of_unknown_size_where_the_last_gradient_needs_no_batch(fused):
    import tensorflow as tf

    model = TwoHeads()
    model.compile(keras_yogi.Adam(weight_decay=0.125, fused=fused), loss="mse")
    data = tf.data.Dataset.from_tensor_slices(ONES).batch(10).filter(lambda *_: True)
    model.fit(data, epochs=3, shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == 12


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # said by Keras, once
@on_tensorflow
@every_engine
def test_fit_on_a_dataset_of_unknown_length_makes_a_step_a_batch(fused):
    """The end of the data must not count as a batch: neither in t nor in the weight decay. (With
    Keras's own optimizers it does.)
    """
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")

    def run(length_is_known):
        import tensorflow as tf

        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
        model.compile(keras_yogi.Yogi(0.0625, weight_decay=0.1, fused=fused), "mse", **WITHOUT_XLA)
        data = tf.data.Dataset.from_tensor_slices((x, x[:, :2])).batch(16)
        data = data if length_is_known else data.filter(lambda *_: True)
        model.fit(data, epochs=3, shuffle=False, verbose=0)
        return model_state(model)

    assert_all_close(run(False), run(True), 1e-6)


class PlainSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Without a `get_config`."""

    def __call__(self, step):
        return 0.0625


@pytest.mark.filterwarnings("ignore:Model failed to serialize as JSON")
@on_tensorflow
def test_tensorboard_with_a_schedule_that_has_no_config(tmp_path):
    model = dense_model(keras_yogi.Yogi(PlainSchedule()))
    callback = keras_yogi.TensorBoard(tmp_path)
    model.fit(*ONES, callbacks=[callback], verbose=0)
    files = list(tmp_path.glob("events*"))
    assert b"PlainSchedule" in b"".join(file.read_bytes() for file in files)


@on_tensorflow
def test_the_callback_can_be_pickled(tmp_path):
    callback = pickle.loads(pickle.dumps(keras_yogi.TensorBoard(tmp_path, optimizer_freq=3)))
    assert callback.optimizer_freq == 3


@every_optimizer
def test_an_error_in_fit_is_not_hidden(optimizer_class):
    class Faulty(keras.layers.Layer):
        def call(self, x):
            raise RuntimeError("of the layer")

    model = keras.Sequential([keras.layers.Dense(2), Faulty()])
    model.compile(optimizer_class(), loss="mse")
    with pytest.raises(RuntimeError, match="of the layer"):
        model.fit(*ONES, verbose=0)
