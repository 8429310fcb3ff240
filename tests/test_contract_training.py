"""Whatever Keras offers around an optimizer works with ours, against a float64 account of it."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import (
    CASES,
    DEFAULT_CASES,
    LEARNING_RATE,
    PLAIN_CASES,
    KerasReference,
    assert_unchanged,
    snapshot,
)
from keras import ops
from reference import (
    MODES,
    TOLERANCE,
    assert_same_trajectory,
    hard_gradients,
    initial_weights,
    trajectory,
)

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
plain_case = pytest.mark.parametrize("case", PLAIN_CASES.values(), ids=PLAIN_CASES)
default_case = pytest.mark.parametrize("case", DEFAULT_CASES.values(), ids=DEFAULT_CASES)
in_eager_and_graph = pytest.mark.parametrize("mode", ["eager", "graph"])


def variables_of(weights, dtype="float32"):
    return [keras.Variable(w, dtype=dtype, name=f"w{i}") for i, w in enumerate(weights)]


def train(optimizer, variables, rows, mode="graph"):
    if not optimizer.built:
        optimizer.build(variables)
    step = MODES[mode](lambda *row: optimizer.apply(list(row), variables))
    for row in rows:
        step(
            *[
                g if g is None else tf.constant(g, v.dtype)
                for g, v in zip(row, variables, strict=True)
            ]
        )


def assert_close(actual, expected, tolerance, label=""):
    """To `tolerance` of the array's largest value."""
    scale = np.max(np.abs(expected), initial=0.0) or 1.0
    np.testing.assert_allclose(
        np.asarray(actual, "float64"), expected, rtol=0, atol=tolerance * scale, err_msg=label
    )


def assert_agrees(optimizer, variables, reference, tolerance):
    for variable, state in zip(variables, reference.state(), strict=True):
        assert_close(variable.numpy(), state.pop("weights"), tolerance, variable.name)
        for name, slot in state.items():
            assert_close(optimizer.get_slot(variable, name), slot, tolerance, name)


# Numbers that float32 holds: Keras rounds some of these arguments to it.
KERAS_ARGUMENTS = {
    "weight_decay": {"weight_decay": 0.25},
    "clipnorm": {"clipnorm": 0.5},
    "clipvalue": {"clipvalue": 0.25},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "ema": {"use_ema": True, "ema_momentum": 0.75},
    "ema, overwriting": {"use_ema": True, "ema_momentum": 0.75, "ema_overwrite_frequency": 4},
    "loss_scale_factor": {"loss_scale_factor": 8.0},
    "accumulation": {"gradient_accumulation_steps": 3},
    "accumulation, clipnorm, decay": {
        "gradient_accumulation_steps": 3,
        "clipnorm": 0.5,
        "weight_decay": 0.25,
    },
    "accumulation, overwriting ema": {
        "gradient_accumulation_steps": 2,
        "use_ema": True,
        "ema_momentum": 0.75,
        "ema_overwrite_frequency": 2,
    },
    "loss scale, global_clipnorm": {"loss_scale_factor": 8.0, "global_clipnorm": 0.5},
    "decay, overwriting ema": {
        "weight_decay": 0.25,
        "use_ema": True,
        "ema_momentum": 0.75,
        "ema_overwrite_frequency": 3,
    },
}


def assert_agrees_at_every_step(case, arguments, mode, dtype="float64"):
    weights, gradients = initial_weights(), hard_gradients()
    reference = KerasReference(case, [w.astype(dtype) for w in weights], **arguments)
    expected = [reference.state()]
    for row in gradients:
        reference.apply(row)
        expected.append(reference.state())
    actual = trajectory(case.optimizer(**arguments), weights, gradients, mode, dtype)
    # Clipping adds a norm and a quotient to the roundings that TOLERANCE counts.
    assert_same_trajectory(actual, expected, 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("arguments", KERAS_ARGUMENTS.values(), ids=KERAS_ARGUMENTS)
@plain_case
def test_keras_arguments(case, arguments):
    assert_agrees_at_every_step(case, arguments, "graph")


@pytest.mark.parametrize("name", ["accumulation, clipnorm, decay", "decay, overwriting ema"])
@every_case
def test_keras_arguments_together(case, name):
    assert_agrees_at_every_step(case, KERAS_ARGUMENTS[name], "eager")


@pytest.mark.parametrize("name", ["global_clipnorm", "accumulation, overwriting ema"])
@default_case
def test_keras_arguments_in_xla(case, name):
    assert_agrees_at_every_step(case, KERAS_ARGUMENTS[name], "xla", "float32")


@pytest.mark.parametrize(
    ("mode", "by"), [("eager", {"var_list": [1]}), ("graph", {"var_names": ["w1"]})], ids=str
)
@plain_case
def test_exclude_from_weight_decay(case, mode, by):
    weights, gradients = initial_weights(), hard_gradients()
    optimizer, variables = case.optimizer(weight_decay=0.25), variables_of(weights, "float64")
    optimizer.exclude_from_weight_decay(
        **{k: [variables[i] if k == "var_list" else i for i in v] for k, v in by.items()}
    )
    reference = KerasReference(case, weights, weight_decay=0.25, undecayed=[1])
    train(optimizer, variables, gradients, mode)
    for row in gradients:
        reference.apply(row)
    assert_agrees(optimizer, variables, reference, TOLERANCE["float64"])


def regression():
    """Eight batches of eight; a model whose gradients are not tiny anywhere."""
    random = np.random.default_rng(11)
    x = random.normal(size=(64, 3)).astype("float32")
    return x, (x @ [[1.0], [-2.0], [0.5]] + 3.0).astype("float32")


def regression_model(optimizer, **arguments):
    keras.utils.set_random_seed(12)
    layers = [keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(optimizer, loss="mse", **arguments)
    return model


@default_case
def test_accumulated_gradients_are_the_large_batch(case):
    x, y = regression()
    small = regression_model(case.optimizer(gradient_accumulation_steps=4))
    large = regression_model(case.optimizer())
    small.fit(x, y, batch_size=8, epochs=6, shuffle=False, verbose=0)
    large.fit(x, y, batch_size=32, epochs=6, shuffle=False, verbose=0)
    assert int(small.optimizer.iterations) == int(large.optimizer.iterations) == 12
    for a, b in zip(small.get_weights(), large.get_weights(), strict=True):
        # The mean of four float32 means, and 12 steps that depend on it as g / √v.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


class AfterEachBatch(keras.callbacks.Callback):
    """What `see` returns, at the end of each batch."""

    def __init__(self, see):
        super().__init__()
        self.see, self.seen = see, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.see(self.model))


@default_case
def test_fit_ends_with_the_averages(case):
    x, y = regression()
    model = regression_model(case.optimizer(use_ema=True, ema_momentum=0.75))
    weights = AfterEachBatch(lambda model: model.get_weights())
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[weights])
    averages = weights.seen[0]
    for of_step in weights.seen[1:]:
        averages = [0.75 * a + 0.25 * w for a, w in zip(averages, of_step, strict=True)]
    for average, final, last in zip(averages, model.get_weights(), weights.seen[-1], strict=True):
        np.testing.assert_allclose(final, average, rtol=1e-5, atol=1e-7)  # float32, 16 steps
        assert np.abs(final - last).max() > 1e-3


@plain_case
def test_finalize_variable_values(case):
    weights, gradients = initial_weights(), hard_gradients()
    variables = variables_of(weights, "float64")
    optimizer = case.optimizer(use_ema=True, ema_momentum=0.75)
    reference = KerasReference(case, weights, use_ema=True, ema_momentum=0.75)
    train(optimizer, variables, gradients)
    for row in gradients:
        reference.apply(row)
    optimizer.finalize_variable_values(variables)
    for variable, average in zip(variables, reference.averages, strict=True):
        assert_close(variable.numpy(), average, TOLERANCE["float64"])
    without = case.optimizer()
    train(without, variables, gradients[:1])
    before = snapshot(without, variables)
    without.finalize_variable_values(variables)
    assert_unchanged(before, snapshot(without, variables))


@default_case
def test_swapping_averages_for_validation(case):
    """keras.callbacks.SwapEMAWeights: validation sees the averages, training goes on without."""
    x, y = regression()
    model = regression_model(case.optimizer(use_ema=True, ema_momentum=0.5))
    trained = AfterEachBatch(lambda model: model.get_weights())
    validated = keras.callbacks.LambdaCallback()
    validated.on_test_begin = lambda logs=None: seen_in_validation.append(model.get_weights())
    seen_in_validation = []
    model.fit(
        x,
        y,
        batch_size=32,
        epochs=3,
        validation_data=(x, y),
        verbose=0,
        callbacks=[keras.callbacks.SwapEMAWeights(), trained, validated],
    )
    averages = trained.seen[0]
    for batch, weights in enumerate(trained.seen):
        averages = [0.5 * a + 0.5 * w for a, w in zip(averages, weights, strict=True)]
        if batch % 2:  # the last of an epoch
            for a, seen in zip(averages, seen_in_validation.pop(0), strict=True):
                # Keras swaps by adding and subtracting, in float32
                np.testing.assert_allclose(seen, a, rtol=0, atol=2e-6)
    assert not seen_in_validation


# Learning rates. In float64, for Keras keeps the rate in float32: exact dyadic numbers.

RATES = [2.0 ** -(3 + i % 4) for i in range(15)]


@in_eager_and_graph
@plain_case
def test_learning_rate_set_by_hand_counts_at_once(case, mode):
    weights, gradients = initial_weights(), hard_gradients()
    reference = KerasReference(case, weights)
    optimizer, variables = case.optimizer(), variables_of(weights, "float64")
    optimizer.build(variables)
    traced = []

    def apply(*row):
        traced.append(row)
        optimizer.apply(list(row), variables)

    step = MODES[mode](apply)
    for i, (rate, row) in enumerate(zip(RATES, gradients, strict=True)):
        if i % 2:
            optimizer.learning_rate = rate
        else:
            optimizer.learning_rate.assign(rate)
        reference.learning_rate = rate
        step(*[tf.constant(g, "float64") for g in row])
        reference.apply(row)
    assert_agrees(optimizer, variables, reference, TOLERANCE["float64"])
    assert len(traced) == (1 if mode == "graph" else len(gradients))


schedules = keras.optimizers.schedules
SCHEDULES = {
    "exponential": (
        schedules.ExponentialDecay(0.25, decay_steps=2, decay_rate=0.5),
        lambda step: 0.25 * 0.5 ** (step / 2),
    ),
    "staircase": (
        schedules.ExponentialDecay(0.25, decay_steps=3, decay_rate=0.5, staircase=True),
        lambda step: 0.25 * 0.5 ** (step // 3),
    ),
    "piecewise": (
        schedules.PiecewiseConstantDecay([2, 5], [0.25, 0.5, 0.125]),
        lambda step: 0.25 if step <= 2 else 0.5 if step <= 5 else 0.125,
    ),
    "cosine": (
        schedules.CosineDecay(0.25, decay_steps=10),
        lambda step: 0.125 * (1 + np.cos(np.pi * min(step, 10) / 10)),
    ),
}


@pytest.mark.parametrize(("schedule", "by_hand"), SCHEDULES.values(), ids=SCHEDULES)
@plain_case
def test_schedules(case, schedule, by_hand):
    """Step 0 of a schedule is the first step; with accumulation it counts every call."""
    weights, gradients = initial_weights(), hard_gradients()
    for arguments in ({}, {"gradient_accumulation_steps": 2}):
        optimizer, variables = case.optimizer(schedule, **arguments), variables_of(weights)
        reference = KerasReference(case, [w.astype("float32") for w in weights], **arguments)
        train(optimizer, variables, gradients)
        for step, row in enumerate(gradients):
            reference.learning_rate = by_hand(step)
            reference.apply(row)
        # The schedule itself computes in float32; near the cosine's end that is 1e-6 of it.
        assert_agrees(optimizer, variables, reference, 4 * TOLERANCE["float32"])


@in_eager_and_graph
@plain_case
def test_callable_learning_rate(case, mode):
    weights, gradients = initial_weights(), hard_gradients()
    rate = tf.Variable(1.0, dtype="float32")
    optimizer, variables = case.optimizer(lambda: rate / 2), variables_of(weights, "float64")
    reference = KerasReference(case, weights)
    optimizer.build(variables)
    step = MODES[mode](lambda *row: optimizer.apply(list(row), variables))
    for value, row in zip(RATES, gradients, strict=True):
        rate.assign(value)
        reference.learning_rate = value / 2
        step(*[tf.constant(g, "float64") for g in row])
        reference.apply(row)
    assert_agrees(optimizer, variables, reference, TOLERANCE["float64"])


FACTOR = 0.5
LEARNING_RATE_CALLBACKS = {
    "LearningRateScheduler": (
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * FACTOR),
        [LEARNING_RATE * FACTOR ** (epoch + 1) for epoch in range(4)],
    ),
    # Nothing improves by 1e9: the second epoch and every later one end with a reduction.
    "ReduceLROnPlateau": (
        lambda: keras.callbacks.ReduceLROnPlateau("loss", FACTOR, patience=1, min_delta=1e9),
        [LEARNING_RATE * f for f in [1, 1, FACTOR, FACTOR**2]],
    ),
}


@pytest.mark.parametrize("compile_arguments", [{}, {"jit_compile": True}])
@pytest.mark.parametrize(
    ("callback", "rates"), LEARNING_RATE_CALLBACKS.values(), ids=LEARNING_RATE_CALLBACKS
)
@default_case
def test_callbacks_that_change_the_learning_rate(case, callback, rates, compile_arguments):
    """The loss is the mean output of a linear layer, its gradient the mean input of the batch."""
    x = np.random.default_rng(13).normal(size=(16, 3)).astype("float32")
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile(case.optimizer(), loss=lambda y, p: ops.mean(p), **compile_arguments)
    model.fit(x, x[:, :1], batch_size=4, epochs=4, shuffle=False, verbose=0, callbacks=[callback()])
    reference = KerasReference(case, [np.ones((3, 1))])
    for rate in rates:
        reference.learning_rate = rate
        for batch in np.split(x.astype("float64"), 4):
            reference.apply([batch.mean(axis=0)[:, None]])
    # The float32 mean of four numbers differs from the float64 one by a rounding or two.
    assert_agrees(model.optimizer, layer.weights, reference, 2 * TOLERANCE["float32"])


# Variables that Keras treats apart


class Between(keras.constraints.Constraint):
    def __init__(self, low, high):
        self.low, self.high = low, high

    def __call__(self, w):
        return ops.clip(w, self.low, self.high)


@in_eager_and_graph
@plain_case
def test_constraints(case, mode):
    weights, gradients = initial_weights(), hard_gradients()
    optimizer, variables = case.optimizer(), variables_of(weights, "float64")
    variables[0].constraint = keras.constraints.NonNeg()
    variables[1].constraint = Between(-0.125, 0.125)
    bound = np.zeros(2, int)

    def constrained(i, low, high):
        def constraint(w):
            bound[i] += np.sum((w < low) | (w > high))
            return np.clip(w, low, high)

        return constraint

    constraints = {0: constrained(0, 0.0, np.inf), 1: constrained(1, -0.125, 0.125)}
    reference = KerasReference(case, weights, constraints=constraints)
    train(optimizer, variables, gradients, mode)
    for row in gradients:
        reference.apply(row)
    assert_agrees(optimizer, variables, reference, TOLERANCE["float64"])
    assert np.all(bound > 3)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize(
    ("mode", "arguments"),
    [
        ("eager", {"gradient_accumulation_steps": 2}),
        ("graph", {"gradient_accumulation_steps": 2}),
        ("eager", {"weight_decay": 0.25}),
        ("graph", {}),
    ],
    ids=str,
)
@plain_case
def test_no_gradient_in_some_steps(case, mode, arguments):
    """Weights and slots stay, undecayed; t is the optimizer's and advances all the same."""
    weights = initial_weights()
    gradients = [
        [None if (step + i) % 3 == 0 and step < 13 else g for i, g in enumerate(row)]
        for step, row in enumerate(hard_gradients())
    ]
    optimizer, variables = case.optimizer(**arguments), variables_of(weights, "float64")
    reference = KerasReference(case, weights, **arguments)
    train(optimizer, variables, gradients[:-1], mode)
    before = variables[1].numpy()
    train(optimizer, variables, [[gradients[-1][0], None, gradients[-1][2]]], mode)
    np.testing.assert_array_equal(variables[1].numpy(), before)
    for row in [*gradients[:-1], [gradients[-1][0], None, gradients[-1][2]]]:
        reference.apply(row)
    assert_agrees(optimizer, variables, reference, TOLERANCE["float64"])


@in_eager_and_graph
@plain_case
def test_overwrite_with_gradient(case, mode):
    """Keras's float8 scales: such a variable takes its gradient's value and has no slots."""
    weights, gradients = initial_weights(), hard_gradients()
    optimizer, variables = case.optimizer(weight_decay=0.25), variables_of(weights, "float64")
    variables[1].overwrite_with_gradient = True
    train(optimizer, variables, gradients, mode)
    np.testing.assert_array_equal(variables[1].numpy(), gradients[-1][1].astype("float64"))
    others = [0, 2]
    reference = KerasReference(case, [weights[i] for i in others], weight_decay=0.25)
    for row in gradients:
        reference.apply([row[i] for i in others])
    assert_agrees(optimizer, [variables[i] for i in others], reference, TOLERANCE["float64"])
    with pytest.raises(ValueError, match=r"`variable` must .*slot"):
        optimizer.get_slot(variables[1], "velocity")


@pytest.mark.parametrize(
    ("mode", "arguments"),
    [*((mode, {}) for mode in MODES), *(("eager", a) for a in KERAS_ARGUMENTS.values())],
    ids=[*MODES, *KERAS_ARGUMENTS],
)
@default_case
def test_scalar_and_empty_variables(case, mode, arguments):
    variables = variables_of([np.float32(2.0), np.ones(0), np.ones((3, 0)), np.ones(2)])
    optimizer = case.optimizer(**arguments)
    train(optimizer, variables, [[np.ones(v.shape) for v in variables]] * 6, mode)
    assert [v.shape for v in variables] == [(), (0,), (3, 0), (2,)]
    assert int(optimizer.iterations) == 6 // arguments.get("gradient_accumulation_steps", 1)
    assert all(np.isfinite(v.numpy()).all() for v in [*variables, *optimizer.variables])
    assert variables[0].numpy() < 2.0


@plain_case
def test_large_variable(case):
    """4M elements: every one is updated, by the same rule."""
    random = np.random.default_rng(14)
    weights = random.normal(size=(2000, 2000)).astype("float32")
    gradients = [[random.normal(size=weights.shape).astype("float32")] for _ in range(2)]
    optimizer, variables = case.optimizer(), variables_of([weights])
    reference = KerasReference(case, [weights])
    train(optimizer, variables, gradients)
    for row in gradients:
        reference.apply(row)
    assert_agrees(optimizer, variables, reference, TOLERANCE["float32"])


# Slots and weights are rounded when stored: half a unit in the last place, six times. The momentum
# can shrink between them, hence the factor of four.
STORED = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


@in_eager_and_graph
@plain_case
def test_dtypes_mixed_in_one_optimizer(case, mode):
    random = np.random.default_rng(15)
    weights = random.uniform(0.5, 2.0, size=(4, 5))
    gradients = random.choice([-1, 1], size=(6, 4, 5)) * random.uniform(0.5, 2.0, size=(6, 4, 5))
    variables = [keras.Variable(w, dtype=d) for w, d in zip(weights, STORED, strict=True)]
    optimizer = case.optimizer()
    train(optimizer, variables, list(gradients), mode)
    for i, (variable, (dtype, unit)) in enumerate(zip(variables, STORED.items(), strict=True)):
        rounded = [np.array(tf.cast(tf.constant(x, dtype), "float64")) for x in gradients[:, i]]
        start = np.array(tf.cast(tf.constant(weights[i], dtype), "float64"))
        reference = KerasReference(case, [start])
        for g in rounded:
            reference.apply([g])
        assert keras.backend.standardize_dtype(variable.dtype) == dtype
        for name in optimizer.slots():
            assert (
                keras.backend.standardize_dtype(optimizer.get_slot(variable, name).dtype) == dtype
            )
        assert_agrees(optimizer, [variable], reference, 4 * 6 * unit)


# Mixed precision


@contextlib.contextmanager
def dtype_policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@default_case
def test_mixed_precision_policies(case, policy):
    x, y = regression()
    with dtype_policy(policy):
        mixed = regression_model(case.optimizer(), jit_compile=False)
    plain = regression_model(case.optimizer(), jit_compile=False)
    wraps = isinstance(mixed.optimizer, keras.optimizers.LossScaleOptimizer)
    assert wraps == (policy == "mixed_float16")
    if wraps:
        mixed.optimizer.initial_scale = 256.0  # Keras's 2¹⁵ overflows in the first steps
    start = plain.get_weights()
    for model in (mixed, plain):
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    inner = mixed.optimizer.inner_optimizer if wraps else mixed.optimizer
    assert int(inner.iterations) == 16
    for variable in mixed.trainable_variables:
        for name in inner.slots():
            assert inner.get_slot(variable, name).dtype == "float32"
    of_each = zip(start, plain.get_weights(), mixed.get_weights(), strict=True)
    for before, exact, rounded in of_each:
        # Activations and gradients of 8 bits, in steps that depend on g / √v.
        assert 0 < np.abs(rounded - exact).max() < 0.1 * np.abs(exact - before).max()


@in_eager_and_graph
@plain_case
def test_loss_scale_optimizer_skips_and_unscales(case, mode):
    """Its scale is a power of two: what it passes on is exact. A faulty step leaves no trace."""
    weights, gradients = initial_weights(), hard_gradients(4)
    faulty = [np.full_like(g, np.inf) for g in gradients[0]]
    plain, variables = case.optimizer(), variables_of(weights)
    scaled, scaled_variables = case.optimizer(), variables_of(weights)
    wrapper = keras.optimizers.LossScaleOptimizer(scaled, initial_scale=1024.0)
    train(plain, variables, gradients, mode)
    train(wrapper, scaled_variables, [[g * 1024 for g in row] for row in gradients[:2]], mode)
    before = snapshot(scaled, scaled_variables)
    train(wrapper, scaled_variables, [faulty], mode)
    assert_unchanged(before, snapshot(scaled, scaled_variables))
    assert float(wrapper.dynamic_scale) == 512.0
    train(wrapper, scaled_variables, [[g * 512 for g in row] for row in gradients[2:]], mode)
    assert_unchanged(snapshot(plain, variables), snapshot(scaled, scaled_variables))


# Several optimizers, shared variables


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="newer than this Keras")
def test_multi_optimizer():
    """Each part of the model is trained as if by its optimizer alone."""
    x, y = regression()
    adam, yogi = (case.optimizer() for case in DEFAULT_CASES.values())
    mapping = keras.optimizers.OptimizerMap(adam, {".*/bias": yogi})
    model = regression_model(keras.optimizers.MultiOptimizer(mapping))
    twin = regression_model("sgd")
    twin.set_weights(model.get_weights())
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)

    kernels = [v for v in twin.trainable_variables if v.name == "kernel"]
    biases = [v for v in twin.trainable_variables if v.name == "bias"]
    adam, yogi = (case.optimizer() for case in DEFAULT_CASES.values())
    for _ in range(2):
        for batch in np.split(np.arange(64), 4):
            with tf.GradientTape() as tape:
                loss = ops.mean(ops.square(twin(x[batch]) - y[batch]))
            gradients = tape.gradient(loss, [v.value for v in kernels + biases])
            adam.apply(gradients[:2], kernels)
            yogi.apply(gradients[2:], biases)
    for a, b in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)  # the loss in another order


@default_case
def test_shared_layer(case):
    """A layer that is used twice is one variable, whose gradient is the sum over its uses."""
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    a, b = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([a, b], layer(a) + 2 * layer(b))
    model.compile(case.optimizer(), loss=lambda y, p: ops.mean(p))
    random = np.random.default_rng(16)
    xs = [random.normal(size=(8, 3)).astype("float32") for _ in range(2)]
    model.fit(xs, np.ones((8, 1)), epochs=5, batch_size=8, verbose=0)
    reference = KerasReference(case, [np.ones((3, 1))])
    for _ in range(5):
        reference.apply([(xs[0] + 2.0 * xs[1]).mean(axis=0)[:, None]])
    assert len(model.optimizer.slots()["momentum"]) == 1
    assert_agrees(model.optimizer, layer.weights, reference, 2 * TOLERANCE["float32"])


class TinyGAN(keras.Model):
    """A generator and a discriminator, each with an optimizer of its own."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(17)
        self.generator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        self.discriminator = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])

    def compile(self, for_generator, for_discriminator, **arguments):
        super().compile(**arguments)
        self.for_generator, self.for_discriminator = for_generator, for_discriminator
        for_generator.build(self.generator.trainable_variables)
        for_discriminator.build(self.discriminator.trainable_variables)

    def train_step(self, data):
        noise, real = data
        loss_of = keras.losses.BinaryCrossentropy(from_logits=True)
        with tf.GradientTape(persistent=True) as tape:
            on_fake = self.discriminator(self.generator(noise))
            on_real = self.discriminator(real)
            ones, zeros = ops.ones_like(on_real), ops.zeros_like(on_fake)
            discriminators = loss_of(ones, on_real) + loss_of(zeros, on_fake)
            generators = loss_of(ones, on_fake)
        for part, optimizer, loss in [
            (self.discriminator, self.for_discriminator, discriminators),
            (self.generator, self.for_generator, generators),
        ]:
            variables = part.trainable_variables
            gradients = tape.gradient(loss, [v.value for v in variables])
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return {"generator": generators, "discriminator": discriminators}


def test_two_optimizers_on_two_parts_of_a_model():
    random = np.random.default_rng(18)
    noise, real = random.normal(size=(32, 2)), random.normal(size=(32, 3)) + 2.0
    weights = {}
    for run_eagerly in [False, True]:
        gan = TinyGAN()
        before = gan.get_weights()
        optimizers = [case.optimizer() for case in DEFAULT_CASES.values()]
        gan.compile(*optimizers, run_eagerly=run_eagerly)
        gan.fit(noise, real, batch_size=8, epochs=2, shuffle=False, verbose=0)
        assert [int(o.iterations) for o in optimizers] == [8, 8]
        assert [len(o.slots()["velocity"]) for o in optimizers] == [2, 2]
        weights[run_eagerly] = gan.get_weights()
        for a, b in zip(before, weights[run_eagerly], strict=True):
            assert np.all(a != b)
    for a, b in zip(*weights.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)  # float32, 8 steps
