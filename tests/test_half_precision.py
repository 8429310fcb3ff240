"""Weights in float16 and bfloat16 train like float32: what they cannot hold is kept beside them."""

import itertools
import warnings

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops
from support.backend import COMPILED, ENGINES, MODES, ON_TENSORFLOW, XLA, array, tensor
from support.cases import BOTH, CASES, KERAS_OPTIONS, KINDS, over, with_limits
from support.comparison import TOLERANCE, assert_same_trajectory
from support.models import regression
from support.reference import reference_trajectory
from support.training import (
    held,
    initial_weights,
    take_steps,
    trajectory,
    variables_of,
    whole_weights,
)

import keras_yogi
from keras_yogi import half_precision

HALF = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
in_half = pytest.mark.parametrize("dtype", HALF)
both = pytest.mark.parametrize("optimizer_class", BOTH)


def ulp(values, dtype):
    return np.spacing(np.abs(values).astype(HALF[dtype])).astype("float64")


# The two parts of a weight


def compiled(function):
    if ON_TENSORFLOW:
        import tensorflow as tf

        return tf.function(function, autograph=False, jit_compile=True)
    if keras.config.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


def weights_of_all_sizes():
    random = np.random.default_rng(0)
    sizes = 10.0 ** random.uniform(-8, 4, 20_000)
    edges = [0.0, 1.0, 2.0**-14, 2.0**-24, 1 + 2.0**-9, 1 + 2.0**-12, 0.5 - 2.0**-10]
    return np.concatenate([random.normal(size=20_000) * sizes, edges]).astype("float32")


@in_half
@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_variable_and_residual_are_the_weight(how, dtype):
    weights = weights_of_all_sizes()
    together = compiled if how == "compiled" else lambda function: function
    variable, stored = together(lambda w: half_precision.split(w, dtype))(tensor(weights))
    assert keras.backend.standardize_dtype(stored.dtype) == "int16"
    value = array(ops.cast(variable, "float32")).astype("float64")
    nearest = held(weights, dtype)
    finite = np.isfinite(nearest)
    # Halfway cases go away from zero; otherwise the nearest.
    assert np.all(np.abs(value - weights)[finite] <= np.abs(nearest - weights)[finite])
    whole = array(together(half_precision.join)(variable, stored))
    # In float16 the last place of a residual is 2⁻⁴⁰.
    tolerance = 2.0**-41 if dtype == "float16" else 0.0
    np.testing.assert_allclose(whole[finite], weights[finite], rtol=0, atol=tolerance)
    rest = array(half_precision.residual(variable, stored))
    np.testing.assert_array_equal((value + rest).astype("float32")[finite], whole[finite])
    np.testing.assert_array_equal(whole[~finite], nearest[~finite])  # infinity


@in_half
def test_what_is_not_finite_stays_so(dtype):
    weights = np.array([np.inf, -np.inf, np.nan], "float32")
    variable, stored = half_precision.split(tensor(weights), dtype)
    np.testing.assert_array_equal(array(ops.cast(variable, "float32")), weights)
    np.testing.assert_array_equal(array(half_precision.join(variable, stored)), weights)


@in_half
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.0, 2.0**-14, 32752.0, np.inf])
def test_a_residual_of_another_weight_moves_no_variable(dtype, value):
    stored = tensor(np.array([-32768, -32767, -5, 0, 5, 32767], "int16"))
    variable = ops.cast(tensor(np.full(6, value)), dtype)
    whole = half_precision.join(variable, stored)
    back, _ = half_precision.split(whole, dtype)
    held_value = array(ops.cast(variable, "float32"))
    np.testing.assert_array_equal(array(ops.cast(back, "float32")), held_value)
    if np.isfinite(value):
        assert np.all(np.abs(array(whole) - held_value) <= ulp(held_value, dtype) / 2)


# Training

MANY_STEPS = 1500


def drifting(shape, dtype, seed, steps=MANY_STEPS):
    random = np.random.default_rng(seed)
    drift = random.normal(size=shape) * 0.3
    return [held((random.normal(size=shape) + drift) * 0.1, dtype) for _ in range(steps)]


WAYS = {
    "compiled": (COMPILED, {}, {}),
    "XLA": (XLA, {}, {}),
    "one after another": (COMPILED, {"fused": False}, {}),
    **({"large": (COMPILED, {}, {"pack_up_to": 0})} if ON_TENSORFLOW else {}),
}


@pytest.mark.parametrize(
    ("way", "learning_rate", "optimizer_class", "dtype"),
    [
        *itertools.product(["compiled"], [1e-3, 1e-5], BOTH, HALF),
        *((way, 1e-3, keras_yogi.Adam, "float16") for way in WAYS if way != "compiled"),
        *((way, 1e-5, keras_yogi.Yogi, "bfloat16") for way in WAYS if way != "compiled"),
    ],
)
def test_many_small_steps_arrive_where_float64_does(way, learning_rate, optimizer_class, dtype):
    mode, arguments, limits = WAYS[way]
    random = np.random.default_rng(7)
    shapes = [(16, 24), (11,)]
    weights = [held(random.normal(size=shape) * 0.5, dtype) for shape in shapes]
    columns = [drifting(shape, dtype, seed) for seed, shape in enumerate(shapes)]
    rows = list(zip(*columns, strict=True))
    start = {} if optimizer_class is keras_yogi.Adam else {"initial_accumulator_value": 0.0}
    case = CASES["adam" if optimizer_class is keras_yogi.Adam else "yogi"]
    hyperparameters = {"beta_2": 0.999, "epsilon": 1e-6, **start}
    optimizer = case.optimizer(learning_rate, **hyperparameters, **arguments)
    optimizer = with_limits(optimizer, **limits) if ON_TENSORFLOW else optimizer
    variables = variables_of(weights, dtype)
    take_steps(optimizer, variables, rows, mode)
    rate = float(np.float32(learning_rate))  # as Keras holds it
    for i, variable in enumerate(variables):
        reference = case.reference(weights[i], rate, **hyperparameters)
        for row in rows:
            reference.update(row[i])
        value = array(ops.cast(variable, "float32")).astype("float64")
        off = np.abs(value - reference.weights) / ulp(reference.weights, dtype)
        assert np.mean(off <= 1) >= 0.995
        way_gone = np.abs(reference.weights - weights[i]).mean()
        assert way_gone > 0
        # float32's own rounding of w, 6e-8 of it a step, is 3e-4 of a way of 1e-5 a step.
        error = np.abs(whole_weights(optimizer, variable) - reference.weights).mean()
        assert error <= 1e-3 * way_gone


@in_half
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", KERAS_OPTIONS)
def test_everything_around_an_update_is_computed_in_float32(name, engine, dtype):
    arguments = dict(KERAS_OPTIONS[name])
    if "learning_rate" in arguments:
        pytest.skip("a schedule is no matter of precision")
    case = CASES["yogi"].on(engine)
    weights = [held(w, dtype) for w in initial_weights()]
    random = np.random.default_rng(5)
    rows = [[held(random.normal(size=w.shape), dtype) for w in weights] for _ in range(7)]
    optimizer = case.optimizer(**arguments)
    expected = reference_trajectory(case.keras_reference(weights, **arguments), rows)
    actual = trajectory(optimizer, weights, rows, COMPILED, dtype)
    # With more roundings than a float32 update has: of averages, sums and norms.
    assert_same_trajectory(actual, expected, 4 * TOLERANCE["float32"])
    kept_in = {keras.backend.standardize_dtype(v.dtype) for v in optimizer.variables}
    assert not kept_in & set(HALF)


@in_half
@over(KINDS)
def test_follows_float32_to_the_last_bit(case, dtype):
    """From what half precision holds; without it, float32 takes the same operations."""
    weights = [held(w, dtype) for w in initial_weights()]
    rows = [[held(g, dtype) for g in row] for row in drifting_rows(weights)]
    single = trajectory(case.optimizer(), weights, rows)
    half = trajectory(case.optimizer(), weights, rows, dtype=dtype)
    # float16 keeps weights below 2⁻¹⁷ to 2⁻⁴¹.
    assert_same_trajectory(half, single, 1e-7 if dtype == "float16" else 1e-12)


def drifting_rows(weights, steps=10):
    random = np.random.default_rng(8)
    return [[random.normal(size=w.shape) for w in weights] for _ in range(steps)]


@both
@in_half
def test_without_a_residual_small_steps_are_lost(dtype, optimizer_class):
    """Which is what the residual is for."""
    start = {} if optimizer_class is keras_yogi.Adam else {"initial_accumulator_value": 0.0}
    moved = {}
    for keep in (True, False):
        optimizer = optimizer_class(1e-4, epsilon=1e-6, keep_residual=keep, **start)
        (variable,) = variables = variables_of([np.full(4, 0.75)], dtype)
        take_steps(optimizer, variables, [[np.ones(4)]] * 100)
        moved[keep] = 0.75 - array(ops.cast(variable, "float32"))
        assert ("residual" in optimizer.slots()) == keep
        assert set(optimizer.slots()) >= {"momentum", "velocity"}
    # A hundred steps of 1e-4, to half a unit in the last place of 0.75.
    np.testing.assert_allclose(moved[True], 0.01, atol=float(ulp(0.75, dtype)) / 2)
    assert np.all(moved[False] == 0)


@both
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.float64
def test_other_dtypes_have_no_slot_more(dtype, optimizer_class):
    optimizer = optimizer_class()
    optimizer.build(variables_of(initial_weights(), dtype))
    assert set(optimizer.slots()) == {"momentum", "velocity"}
    assert len(optimizer.variables) == 2 + 2 * 3


def test_only_half_precision_has_a_residual():
    optimizer = keras_yogi.Yogi()
    variables = [keras.Variable(np.ones(3), dtype=d) for d in ("float32", "bfloat16")]
    optimizer.build(variables)
    assert [slot is not None for slot in optimizer.slots()["residual"]] == [False, True]
    with pytest.raises(ValueError, match="'residual'"):
        optimizer.get_slot(variables[0], "residual")
    optimizer.get_slot(variables[1], "residual")


@in_half
def test_twelve_bytes_a_weight(dtype):
    optimizer = keras_yogi.Adam()
    (variable,) = variables_of([np.ones((8, 8))], dtype)
    optimizer.build([variable])
    optimizer.apply([ops.ones((8, 8), dtype)])
    kept = [v for v in [variable, *optimizer.variables] if tuple(v.shape) == (8, 8)]
    sizes = {"float16": 2, "bfloat16": 2, "int16": 2, "float32": 4}
    assert sum(sizes[keras.backend.standardize_dtype(v.dtype)] for v in kept) == 12


# Weights that are set from outside


def trained_a_little(dtype, **arguments):
    random = np.random.default_rng(9)
    optimizer = keras_yogi.Yogi(0.003, **arguments)
    (variable,) = variables = variables_of([random.normal(size=50) * 100], dtype)
    take_steps(optimizer, variables, [[random.normal(size=50)] for _ in range(20)])
    return optimizer, variable


@in_half
@pytest.mark.parametrize("value", [0.0, 1.0, -(2.0**-10)])
def test_a_variable_that_is_set_stays_what_it_was_set_to(value, dtype):
    optimizer, variable = trained_a_little(dtype)
    variable.assign(np.full(50, value))
    optimizer.learning_rate = 0.0
    take_steps(optimizer, [variable], [[np.ones(50)]] * 3)
    np.testing.assert_array_equal(array(ops.cast(variable, "float32")), np.float32(value))
    off = np.abs(whole_weights(optimizer, variable) - value)
    assert np.all(off <= ulp(value, dtype) / 2)


@in_half
def test_a_constraint_holds_after_every_step(dtype):
    optimizer = keras_yogi.Adam(0.01)
    variable = keras.Variable(np.full(20, 0.05), dtype=dtype)
    variable.constraint = keras.constraints.NonNeg()
    for _ in range(20):
        take_steps(optimizer, [variable], [[np.linspace(-1, 1, 20)]])
        assert np.all(array(ops.cast(variable, "float32")) >= 0)
    assert np.all(array(ops.cast(variable, "float32"))[11:] == 0)
    # What the constraint does not touch goes on: 20 steps of 0.01.
    np.testing.assert_allclose(whole_weights(optimizer, variable)[:9], 0.25, atol=1e-4)


@in_half
def test_averages_are_taken_over_whole(dtype):
    """The end of `fit` with `use_ema`: variable + residual is the average in float32."""
    optimizer, variable = trained_a_little(dtype, use_ema=True, ema_momentum=0.5)
    (average,) = (v for v in optimizer.variables if "average" in v.path)
    expected = array(average)
    optimizer.finalize_variable_values([variable])
    np.testing.assert_array_equal(whole_weights(optimizer, variable), expected)


@in_half
def test_setting_the_residual_sets_the_weight(dtype):
    optimizer, variable = trained_a_little(dtype)
    whole = np.linspace(-1, 1, 50).astype("float32")
    variable.assign(whole)
    rest = whole - array(ops.cast(variable, "float32"))
    optimizer.set_slot(variable, "residual", rest)
    np.testing.assert_allclose(whole_weights(optimizer, variable), whole, rtol=0, atol=2.0**-40)


# Files


def model_of(dtype, optimizer):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(5, "tanh", dtype=dtype), keras.layers.Dense(1, dtype=dtype)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(optimizer, "mse")
    return model


def fitted(model, epochs=1):
    x, y = regression()
    model.fit(x, y, epochs=epochs, batch_size=16, shuffle=False, verbose=0)
    return model


def all_weights(model):
    return [whole_weights(model.optimizer, v) for v in model.trainable_variables]


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


@in_half
@pytest.mark.parametrize(
    "road", [by_keras_file, by_weights_file, *([by_checkpoint] if ON_TENSORFLOW else [])]
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


def test_a_residual_of_another_shape_leaves_everything_as_it_was():
    optimizer, _ = trained_a_little("bfloat16")
    store = {}
    optimizer.save_own_variables(store)
    before = [array(v) for v in optimizer.variables]
    changed = {name: np.zeros_like(value) for name, value in store.items()}
    changed[str(len(store) - 1)] = np.zeros(49, "int16")
    with pytest.raises(ValueError, match="must be of its shape"):
        optimizer.load_own_variables(changed)
    for value, old in zip(optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(array(value), old)


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


@in_half
@both
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


@both
@in_half
def test_a_skipped_step_changes_nothing(optimizer_class, dtype):
    optimizer = optimizer_class(0.003, skip_nonfinite=True)
    variables = variables_of([np.linspace(0.1, 2, 6)], dtype)
    take_steps(optimizer, variables, [[np.ones(6)]] * 3)
    before = whole_weights(optimizer, variables[0])
    take_steps(optimizer, variables, [[np.array([1, 1, np.nan, 1, 1, 1.0])]])
    np.testing.assert_array_equal(whole_weights(optimizer, variables[0]), before)
    assert optimizer.skipped_steps == 1


@pytest.mark.skipif(not ON_TENSORFLOW, reason="only there gradients are rows")
@pytest.mark.parametrize("how", ["exact", "lazy"])
@pytest.mark.parametrize("pack_up_to", [0, 100])
@pytest.mark.parametrize(("mode", "dtype"), [("eager", "bfloat16"), ("xla", "float16")])
def test_rows_of_a_table(mode, pack_up_to, how, dtype):
    """A repeated row is summed in float32; a table of half precision moves like one of float32."""
    import tensorflow as tf

    def trained(table_dtype):
        optimizer = keras_yogi.Adam(0.003, sparse_update=how)
        optimizer = with_limits(optimizer, pack_up_to=pack_up_to)
        table = keras.Variable(held(np.linspace(-1, 1, 12), dtype).reshape(6, 2), dtype=table_dtype)
        bias = keras.Variable(np.zeros(2), dtype=table_dtype)
        optimizer.build([table, bias])
        step = MODES[mode](optimizer, [table, bias])
        random = np.random.default_rng(4)
        for _ in range(5):
            values = held(random.normal(size=(3, 2)), dtype)
            indices = tf.constant([1, 4, 1])
            rows = tf.IndexedSlices(tensor(values, table_dtype), indices, tf.constant([6, 2]))
            step([rows, tensor(np.ones(2), table_dtype)])
        return whole_weights(optimizer, table)

    np.testing.assert_allclose(trained(dtype), trained("float32"), rtol=0, atol=1e-6)
