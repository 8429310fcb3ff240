"""Weights in float16 and bfloat16 train like float32: what they cannot hold is kept beside them."""

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops
from support.backend import COMPILED, ENGINES, MODES, ON_TENSORFLOW, XLA, array, tensor
from support.cases import BOTH, CASES, KERAS_OPTIONS, KINDS, over, with_limits
from support.comparison import TOLERANCE, assert_same_trajectory
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

MANY_STEPS = 600


def drifting(shape, dtype, seed, steps=MANY_STEPS):
    random = np.random.default_rng(seed)
    drift = random.normal(size=shape) * 0.3
    return [held((random.normal(size=shape) + drift) * 0.1, dtype) for _ in range(steps)]


WAYS = {
    "compiled": (COMPILED, {}, {}),
    **({"XLA": (XLA, {}, {})} if XLA != COMPILED else {}),
    **({"one after another": (COMPILED, {"fused": False}, {})} if len(ENGINES) > 1 else {}),
    **({"large": (COMPILED, {}, {"pack_up_to": 0})} if ON_TENSORFLOW else {}),
}


@pytest.mark.parametrize(
    ("way", "learning_rate", "optimizer_class", "dtype"),
    [
        ("compiled", 1e-3, keras_yogi.Adam, "float16"),
        ("compiled", 1e-3, keras_yogi.Yogi, "bfloat16"),
        ("compiled", 1e-5, keras_yogi.Adam, "bfloat16"),
        ("compiled", 1e-5, keras_yogi.Yogi, "float16"),
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


# But schedules, which are no matter of precision. One engine sees an option in one dtype, the other
# in the other one.
AROUND = [name for name, options in KERAS_OPTIONS.items() if "learning_rate" not in options]
AROUND_ENGINES = [
    (name, engine, list(HALF)[(index + number) % 2])
    for index, name in enumerate(AROUND)
    for number, engine in enumerate(ENGINES)
]


@pytest.mark.parametrize(("name", "engine", "dtype"), AROUND_ENGINES)
def test_everything_around_an_update_is_computed_in_float32(name, engine, dtype):
    arguments = KERAS_OPTIONS[name]
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
    optimizer.build([variable])
    step = MODES[COMPILED](optimizer, [variable])
    for _ in range(20):
        step([tensor(np.linspace(-1, 1, 20), dtype)])
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


# Together with


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
@pytest.mark.parametrize(
    ("mode", "dtype", "pack_up_to", "how"),
    [
        ("eager", "bfloat16", 0, "exact"),
        ("eager", "bfloat16", 100, "lazy"),
        ("xla", "float16", 0, "lazy"),
        ("xla", "float16", 100, "exact"),
    ],
)
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
