"""What works with keras.optimizers.Adam works with ours, with every engine: what a model, a loop or
a server may ask of an optimizer without thinking of it.
"""

import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.backend import MODES, tf_mode
from support.processes import run_python

import keras_yogi

OPTIMIZERS = {
    f"{name}, fused={fused}": lambda *arguments, _class=optimizer_class, _fused=fused, **more: (
        _class(*arguments, fused=_fused, **more)
    )
    for name, optimizer_class in {"adam": keras_yogi.Adam, "yogi": keras_yogi.Yogi}.items()
    for fused in ("auto", False)
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
in_eager_and_graph = pytest.mark.parametrize("mode", ["eager", "graph"])
pytestmark = pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")

# One that shares an array with others in the fused engine, one that is compiled on its own.
SMALL, LARGE = (50, 3), (40_000, 2)


def ones(*shapes, dtype="float32"):
    return [keras.Variable(np.ones(shape), dtype=dtype) for shape in shapes]


def state_of(optimizer, variables):
    return [np.array(v.numpy()) for v in [*variables, *optimizer.variables]]


def assert_same(actual, expected, tolerance=0.0):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(
            np.asarray(a, "float64"), np.asarray(b, "float64"), rtol=tolerance, atol=tolerance
        )


# Gradients of rows


@pytest.mark.parametrize(
    ("shape", "mode"),
    [*((SMALL, mode) for mode in MODES), (LARGE, "eager"), (LARGE, "graph")],
    ids=[*(f"small, {mode}" for mode in MODES), "large, eager", "large, graph"],
)
@pytest.mark.parametrize("sparse_update", ["lazy", "exact"])
@every_optimizer
def test_a_batch_that_names_no_rows(make, sparse_update, shape, mode):
    """The table stays, or moves as if its gradient were zero; the other variables move."""

    def run(of_no_rows):
        variables = ones(shape, (3,))
        optimizer = make(0.0625, sparse_update=sparse_update)
        optimizer.build(variables)

        def step(*rows):
            slices = tf.IndexedSlices(*rows, tf.constant(shape)) if len(rows) == 2 else rows[0]
            optimizer.apply([slices, tf.ones(3)], variables)

        step = tf_mode(mode)(step)
        step(tf.ones((2, shape[1])), tf.constant([1, 3]))
        after_one = variables[0].numpy().copy()
        if of_no_rows:
            step(tf.zeros((0, shape[1])), tf.zeros(0, "int32"))
        else:
            step(tf.zeros(shape))
        assert int(optimizer.iterations) == 2
        return optimizer, variables, after_one

    optimizer, variables, after_one = run(of_no_rows=True)
    twin, twin_variables, _ = run(of_no_rows=False)
    assert float(variables[1].numpy()[0]) < 1.0
    if sparse_update == "lazy":
        np.testing.assert_array_equal(variables[0].numpy(), after_one)
    else:
        # Rounded in another order
        assert_same(state_of(optimizer, variables), state_of(twin, twin_variables), 1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@every_optimizer
def test_pieces_in_half_precision_are_summed_in_float32(make, dtype):
    """One by one, ones would not get beyond 256 or 2048."""
    (table,) = variables = ones((10, 2), dtype=dtype)
    optimizer = make(beta_1=0.0)
    optimizer.build(variables)
    pieces = tf.ones((4096, 2), dtype), tf.zeros(4096, "int32"), tf.constant([10, 2])
    optimizer.apply([tf.IndexedSlices(*pieces)], variables)
    momentum = tf.cast(optimizer.get_slot(table, "momentum"), "float32").numpy()
    np.testing.assert_array_equal(momentum[0], 4096.0)
    np.testing.assert_array_equal(momentum[1:], 0.0)


# Graphs that do not know everything


def hidden(value, how):
    if how == "numpy_function":
        return tf.numpy_function(lambda: value, [], tf.float32)
    if how == "py_function":
        return tf.py_function(lambda: tf.constant(value), [], tf.float32)
    return tf.raw_ops.PlaceholderWithDefault(input=value, shape=[None] * value.ndim)


@pytest.mark.parametrize("how", ["numpy_function", "py_function", "unknown dimensions"])
@every_optimizer
def test_a_gradient_of_which_a_graph_knows_the_dtype_alone(make, how):
    def run(hide):
        variables = ones((3, 2), (2,), (), (300, 200))
        optimizer = make(0.0625)
        optimizer.build(variables)
        values = [np.full(v.shape, 0.5, "float32") for v in variables]

        def step():
            gradients = [hidden(g, how) if hide else tf.constant(g) for g in values]
            optimizer.apply(gradients, variables)

        step = tf.function(step, autograph=False)
        step()
        step()
        return state_of(optimizer, variables)

    assert_same(run(True), run(False), 1e-6)


@pytest.mark.parametrize("how", ["numpy_function", "unknown dimensions"])
@every_optimizer
def test_a_gradient_that_turns_out_to_have_another_shape(make, how):
    """It is refused when the graph runs, and not broadcast."""
    variables = ones((3, 2), (2,))
    optimizer = make(0.0625)
    optimizer.build(variables)

    def step():
        gradients = [hidden(np.ones((1, 2), "float32"), how), tf.ones(2)]
        optimizer.apply(gradients, variables)

    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.function(step, autograph=False)()
    np.testing.assert_array_equal(variables[0].numpy(), 1.0)


@every_optimizer
def test_a_custom_gradient(make):
    """Its function may return what has no static shape."""

    @tf.custom_gradient
    def loss(weights):
        def gradient(upstream):
            return upstream * tf.numpy_function(np.square, [weights], tf.float32)

        return tf.reduce_sum(weights), gradient

    (weights,) = variables = ones((4,))
    optimizer = make(0.0625)
    optimizer.build(variables)

    def step():
        with tf.GradientTape() as tape:
            value = loss(weights.value)
        optimizer.apply([tape.gradient(value, weights.value)], variables)

    tf.function(step, autograph=False)()
    assert np.all(weights.numpy() < 1.0)


# Devices and threads


@pytest.mark.slow
def test_variables_on_another_device():
    """In a process of its own, because TensorFlow must not have started."""
    path = Path(__file__).parent / "support" / "two_devices.py"
    run = run_python("-m", "pytest", "-q", "-o", "addopts=", path, cwd=path.parents[1])
    assert run.returncode == 0, run.stdout[-6000:]


@in_eager_and_graph
@every_optimizer
def test_threads_train_variables_of_their_own(make, mode):
    """Each group of variables ends where one thread after another would have left it. The step's
    number is so large that it does not count who is first.
    """
    steps, late = 20, 10**6

    def run(in_threads):
        groups = [ones(*[(16, 16)] * 4, (5,)) for _ in range(4)]
        variables = [variable for group in groups for variable in group]
        optimizer = make(0.0625)
        optimizer.build(variables)
        optimizer.iterations.assign(late)
        errors = []
        begin = threading.Barrier(len(groups)) if in_threads else None

        def train(number, group):
            def train_step(scale):
                gradients = [tf.fill(v.shape, scale * (number + 1)) for v in group]
                optimizer.apply(gradients, group)

            try:
                step = tf_mode(mode)(train_step)
                if begin:
                    begin.wait(60)
                for i in range(steps):
                    step(tf.constant(1.0 / (i + 1)))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=train, args=pair) for pair in enumerate(groups)]
        for thread in threads:
            thread.start()
            if not in_threads:
                thread.join()
        for thread in threads:
            thread.join()
        assert not errors
        # Keras adds 1 by reading and writing: a count may be lost between two threads.
        assert late < int(optimizer.iterations) <= late + steps * len(groups)
        return state_of(optimizer, variables)[: len(variables)]

    assert_same(run(in_threads=True), run(in_threads=False), 1e-6)


# Eager steps


@pytest.fixture
def graphs_made(monkeypatch):
    """Counts the graphs that are traced: a list that grows by one with each."""
    made = []
    initialize = tf.Graph.__init__

    def counted(self, *arguments, **keywords):
        made.append(None)
        initialize(self, *arguments, **keywords)

    monkeypatch.setattr(tf.Graph, "__init__", counted)
    tf.function(lambda: tf.constant(1.0))()
    assert made  # it does count
    return made


# Some tracing may come first, and then no more: 30 steps would make 30 graphs.
FEW = 3


@every_optimizer
def test_eager_steps_on_ever_other_sets_of_variables(make, graphs_made):
    """Stochastic depth, or freezing layer by layer: not a graph for each set."""
    random = np.random.default_rng(0)
    variables = ones(*[(8, 8)] * 20, (300, 200))
    optimizer = make(0.0625)
    optimizer.build(variables)
    before = 0
    for step in range(60):
        if step == 30:
            before = len(graphs_made)
        gradients = [tf.ones(v.shape) if random.random() < 0.7 else None for v in variables]
        optimizer.apply(gradients, variables)
    assert len(graphs_made) - before <= FEW


@every_optimizer
def test_eager_steps_on_sets_of_variables_that_come_a_few_times(make, graphs_made):
    """Progressive freezing, two steps a phase: a graph for the first set alone."""
    variables = ones(*[(8, 8)] * 20)
    optimizer = make(0.0625)
    optimizer.build(variables)
    gradients = [tf.ones(v.shape) for v in variables]
    before = len(graphs_made)
    for phase in range(20):
        for _ in range(2):
            optimizer.apply(gradients[phase:], variables[phase:])
    assert len(graphs_made) - before <= FEW


@every_optimizer
def test_eager_steps_in_half_precision_with_weight_decay_get_graphs(make, graphs_made):
    """Decay is a rule of its own: the two rules do not take each other's graphs away."""
    variables = [keras.Variable(np.ones((300, 300)), dtype="bfloat16") for _ in range(2)]
    optimizer = make(0.0625, weight_decay=0.125)
    optimizer.build(variables)
    gradients = [tf.ones(v.shape, "bfloat16") for v in variables]
    for _ in range(3):
        optimizer.apply(gradients, variables)
    before = len(graphs_made)
    for _ in range(10):
        optimizer.apply(gradients, variables)
    assert len(graphs_made) == before


@pytest.mark.parametrize("name", ["beta_1", "beta_2", "epsilon", "learning_rate"])
@every_optimizer
def test_eager_steps_with_a_hyperparameter_that_changes_every_time(make, name, graphs_made):
    """One-cycle schedules move β₁ along with η: not a graph for each value."""
    variables = ones((8, 8), (5,), (300, 200))
    optimizer = make(0.0625)
    optimizer.build(variables)
    before = 0
    for step in range(40):
        if step == 20:
            before = len(graphs_made)
        setattr(optimizer, name, 0.5 + 0.01 * step)
        optimizer.apply([tf.ones(v.shape) for v in variables], variables)
    assert len(graphs_made) - before <= FEW


@in_eager_and_graph
@every_optimizer
def test_a_learning_rate_is_not_rounded_to_float32_for_float64_weights(make, mode):
    """The first step of Adam is η itself where ε is 0."""
    variables = ones((3,), (2, 2), (250, 250), dtype="float64")
    start = {} if "Adam" in type(make()).__name__ else {"initial_accumulator_value": 0.0}
    optimizer = make(lambda: 0.01, epsilon=0.0, **start)
    optimizer.build(variables)
    tf_mode(mode)(lambda: optimizer.apply([tf.ones(v.shape, v.dtype) for v in variables]))()
    for variable in variables:
        np.testing.assert_allclose(variable.numpy(), 0.99, rtol=0, atol=1e-14)


# Data


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # said by Keras, once
@every_optimizer
def test_fit_on_a_dataset_of_unknown_length_makes_a_step_a_batch(make):
    """The end of the data must not count as a batch: neither in t nor in the weight decay. (With
    Keras's own optimizers it does.)
    """
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")

    def run(length_is_known):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
        model.compile(make(0.0625, weight_decay=0.1), "mse")
        data = tf.data.Dataset.from_tensor_slices((x, x[:, :2])).batch(16)
        data = data if length_is_known else data.filter(lambda *_: True)
        model.fit(data, epochs=3, shuffle=False, verbose=0)
        return state_of(model.optimizer, model.variables)

    assert_same(run(False), run(True), 1e-6)


# What a subclass, or a user, may change


@in_eager_and_graph
@pytest.mark.parametrize("parent", [keras_yogi.Adam, keras_yogi.Yogi])
@pytest.mark.parametrize("fused", ["auto", False])
def test_an_update_step_that_a_subclass_overrides_is_called(parent, fused, mode):
    class KernelsStay(parent):
        def update_step(self, gradient, variable, learning_rate):
            share = 0.0 if len(variable.shape) == 2 else 1.0
            super().update_step(gradient, variable, learning_rate * share)

    kernel, bias, large = variables = ones((3, 4), (5,), (300, 200))
    optimizer = KernelsStay(0.1, fused=fused)
    optimizer.build(variables)
    tf_mode(mode)(lambda: optimizer.apply([tf.ones(v.shape) for v in variables]))()
    np.testing.assert_array_equal(kernel.numpy(), 1.0)
    np.testing.assert_array_equal(large.numpy(), 1.0)
    assert np.all(bias.numpy() < 1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta_1", 1.5),
        ("beta_1", -0.1),
        ("beta_2", 1.0),
        ("beta_2", "0.9"),
        ("epsilon", -1.0),
        ("epsilon", float("nan")),
        ("epsilon", None),
        ("learning_rate", -1.0),
        ("skip_nonfinite", True),
        ("sparse_update", "lazy"),
    ],
)
@every_optimizer
def test_a_bad_value_is_refused_when_it_is_set(make, name, value):
    """By name, and the old one stays. What decides on the state is not changed once it is there."""
    variables = ones((3,), (2, 2))
    optimizer = make(0.0625)
    optimizer.build(variables)
    before, config = state_of(optimizer, variables), optimizer.get_config()
    with pytest.raises((ValueError, AttributeError, TypeError), match=name):
        setattr(optimizer, name, value)
    assert optimizer.get_config() == config
    assert_same(before, state_of(optimizer, variables))


def test_slots_of_a_rule_are_not_changed_once_they_are_there():
    adam, yogi = keras_yogi.Adam(), keras_yogi.Yogi()
    for optimizer in (adam, yogi):
        optimizer.build(ones((3,), (2,)))
    for optimizer, name, value in [
        (adam, "amsgrad", True),
        (yogi, "initial_accumulator_value", 1.0),
    ]:
        with pytest.raises((ValueError, AttributeError, TypeError), match=name):
            setattr(optimizer, name, value)


@pytest.mark.parametrize("fused", ["auto", False])
def test_a_regularization_that_is_set_later_counts(fused):
    """A rule that did not read the weights reads them from then on."""
    variables = ones((3,), (2, 2), (300, 200))
    optimizer = keras_yogi.Yogi(0.0625, fused=fused)
    optimizer.build(variables)
    zeros = [tf.zeros(v.shape) for v in variables]
    optimizer.apply(zeros)
    for variable in variables:
        np.testing.assert_array_equal(variable.numpy(), 1.0)
    optimizer.l2_regularization_strength = 0.25
    optimizer.apply(zeros)
    for variable in variables:
        assert np.all((variable.numpy() > 0.0) & (variable.numpy() < 1.0))


@in_eager_and_graph
@pytest.mark.parametrize("found", ["variables", "slots"])
@every_optimizer
def test_slots_behave_like_variables(make, found, mode):
    """They compute, are indexed, added to and taken from, in graphs too."""
    optimizer = make()
    optimizer.build(ones((3, 2), (2,)))
    slot = optimizer.variables[2] if found == "variables" else optimizer.slots()["velocity"][0]
    slot.assign(np.arange(1.0, 7.0).reshape(3, 2))
    old = slot.numpy().astype("float64")

    def compute():
        return [
            slot * 0.5,
            0.5 * slot,
            slot + 1.0,
            1.0 + slot,
            slot - 1.0,
            1.0 - slot,
            slot / 2.0,
            1.0 / slot,
            slot**2,
            -slot,
            abs(slot),
            slot[0],
            slot[:, 1],
            slot @ tf.ones((2, 1)),
            slot > 2.0,
            keras.ops.sqrt(slot),
            tf.sqrt(slot),
            tf.reduce_sum(slot),
        ]

    expected = [
        *[old * 0.5, 0.5 * old, old + 1, old + 1, old - 1, 1 - old, old / 2, 1 / old],
        *[old**2, -old, old, old[0], old[:, 1], old @ np.ones((2, 1)), old > 2],
        *[np.sqrt(old), np.sqrt(old), old.sum()],
    ]
    assert_same(tf_mode(mode)(compute)(), expected, 1e-6)
    assert slot.ndim == 2
    assert tuple(slot.shape) == (3, 2)
    assert slot.dtype == "float32"
    np.testing.assert_array_equal(np.asarray(slot), old)

    def change():
        slot.assign_add(np.ones((3, 2)))
        slot.assign_sub(np.full((3, 2), 0.5))
        slot.assign(slot * 2.0)

    tf_mode(mode)(change)()
    np.testing.assert_array_equal(slot.numpy(), (old + 0.5) * 2)


@pytest.mark.parametrize("others", ["string", "int32", "bool"])
@every_optimizer
def test_a_variable_that_is_never_trained_may_have_any_dtype(make, others, tmp_path):
    """It is in the list of a model's variables, and has no gradient."""
    value = {"string": "label", "int32": [1, 2], "bool": [True]}[others]
    weights, other = variables = [tf.Variable([1.0, 2.0]), tf.Variable(value)]
    optimizer = make(0.0625)
    optimizer.build(variables)
    optimizer.apply([tf.ones(2), None], variables)
    assert np.all(weights.numpy() < [1.0, 2.0])
    assert np.array_equal(other.numpy(), tf.constant(value).numpy())
    checkpoint = tf.train.Checkpoint(optimizer=optimizer)
    path = checkpoint.write(str(tmp_path / "checkpoint"))
    momentum = optimizer.get_slot(weights, "momentum").numpy()
    optimizer.apply([tf.ones(2), None], variables)
    checkpoint.read(path).assert_existing_objects_matched()
    np.testing.assert_array_equal(optimizer.get_slot(weights, "momentum"), momentum)


# Saving


@every_optimizer
def test_saved_model_of_a_model_that_was_trained(make, tmp_path):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    model.compile(make(), "mse")
    model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    tf.saved_model.save(model, str(tmp_path / "model"))
    tf.saved_model.load(str(tmp_path / "model"))
    model.export(str(tmp_path / "exported"), verbose=False)


@pytest.mark.filterwarnings("ignore")  # TensorFlow's own, of its interpreter
@pytest.mark.parametrize("optimizer_class", [keras_yogi.Adam, keras_yogi.Yogi])
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


@every_optimizer
def test_a_saved_model_trains_on(make, tmp_path):
    """The train step that it carries goes on from the state that was saved."""
    module = tf.Module()
    module.kernel, module.bias = tf.Variable(tf.ones((4, 2))), tf.Variable(tf.zeros(2))
    variables = [module.kernel, module.bias]
    module.optimizer = make(0.0625)
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


@every_optimizer
def test_an_export_archive_trains_on(make, tmp_path):
    """With a train step as one of its endpoints."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    optimizer = make(0.0625)
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


@every_optimizer
def test_an_asynchronous_checkpoint_is_of_one_moment(make, tmp_path):
    """Steps that are made while it is written are not in it."""
    variables = ones((4,), (4,), (300, 200))
    gradients = [tf.ones(v.shape) for v in variables]
    optimizer = make(0.0625)
    optimizer.build(variables)
    optimizer.apply(gradients)
    then = state_of(optimizer, variables)
    checkpoint = tf.train.Checkpoint(optimizer=optimizer, weights=variables)
    options = tf.train.CheckpointOptions(experimental_enable_async_checkpoint=True)
    path = checkpoint.save(str(tmp_path / "checkpoint"), options=options)
    for _ in range(50):
        optimizer.apply(gradients)
    checkpoint.sync()
    checkpoint.restore(path).assert_existing_objects_matched()
    assert_same(state_of(optimizer, variables), then)


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
@every_optimizer
def test_a_state_of_another_configuration_is_not_taken(make, saved, other, tmp_path):
    """Averages must not become sums of gradients. It is refused, or not loaded, with a warning."""

    def model_of(optimizer):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        model.compile(optimizer, loss="mse")
        optimizer.build(model.trainable_variables)
        return model

    source, target = (make(**CONFIGURATIONS[name]) for name in (saved, other))
    model = model_of(source)
    model.fit(np.ones((4, 2)), np.ones((4, 3)), verbose=0)
    model.save_weights(tmp_path / "saved.weights.h5")
    loader, before = model_of(target), state_of(target, [])
    with pytest.raises((ValueError, UserWarning)):  # warnings are errors in these tests
        loader.load_weights(tmp_path / "saved.weights.h5")
    assert_same(state_of(target, []), before)
