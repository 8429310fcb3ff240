"""`sparse_update`: a step on some rows of a table, against the formula row by row."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.backend import FIT_MODES, MODES, array, tf_mode
from support.cases import CASES, CLIPPING, KINDS, OPTIONS, with_small_packs
from support.comparison import TOLERANCE, assert_all_close, assert_same_trajectory, snapshot
from support.training import ones_of, state_of, variables_of

import keras_yogi
from keras_yogi.rules import YogiRule

ROWS, WIDTH = 9, 3
# Three numbers of rows (a graph is made for each), some rows several times; row 8 never. Row 0 is
# named once, and then rests.
BATCHES = [[0, 1, 1], [2, 5, 2], [5], [6, 7, 6, 1, 3, 4, 2], [3], [1, 2, 5, 6, 7, 3, 3], [4, 4, 1]]


def table():
    return np.random.default_rng(1).normal(size=(ROWS, WIDTH)).astype("float32")


def pieces(batch, step, random_seed=2):
    """Heavy tails, scales from 1e-2 to 10."""
    random = np.random.default_rng([random_seed, step])
    scale = 10.0 ** random.uniform(-2, 1, size=(len(batch), WIDTH))
    return (scale * random.standard_t(2, size=scale.shape)).astype("float32")


def summed(batch, values):
    dense = np.zeros((ROWS, WIDTH))
    np.add.at(dense, batch, values.astype("float64"))
    return dense


def lazy_reference(kind):
    """Weights and slots before and after every step, from the formulas: rows that a batch does
    not name stay, and t counts the steps of the optimizer, not those of the row.
    """
    reference = CASES[kind].reference(table())
    states = [[reference.state()]]
    for step, batch in enumerate(BATCHES):
        ((before,), rest) = (states[-1], np.setdiff1d(np.arange(ROWS), batch))
        reference.update(summed(batch, pieces(batch, step)))
        after = reference.state()
        for part, old in before.items():
            after[part][rest] = old[rest]
        states.append([{part: value.copy() for part, value in after.items()}])
        reference.weights = after.pop("weights")
        reference.slots = after
    return states


def table_trajectory(optimizer, mode="graph", batches=BATCHES, dtype="float32"):
    """The same of an optimizer that is given tf.IndexedSlices, beside a dense gradient."""
    variables = variables_of([table(), np.zeros(2)], dtype)
    optimizer.build(variables)
    step = MODES[mode](optimizer, variables)
    states = [state_of(optimizer, variables[:1])]
    for number, batch in enumerate(batches):
        values, indices = tf.constant(pieces(batch, number), dtype), tf.constant(batch)
        rows = tf.IndexedSlices(values, indices, tf.constant([ROWS, WIDTH]))
        step([rows, tf.ones(2, dtype)])
        states.append(state_of(optimizer, variables[:1]))
    return states


# How a table is kept: in one array with the bias, or, large, on its own; and by which engine.
LAYOUTS = {
    "packed": lambda case, **k: case.on("fused").optimizer(**k),
    "large": lambda case, **k: with_small_packs(case.on("fused").optimizer(**k)),
    "unfused": lambda case, **k: case.on("unfused").optimizer(**k),
}
large_and_small = pytest.mark.parametrize("layout", ["packed", "large"])


@pytest.mark.parametrize(
    ("layout", "kind", "mode"),
    [
        *(("large", kind, "graph") for kind in KINDS),
        *(("large", "yogi", mode) for mode in MODES if mode != "graph"),
        *(("packed", "yogi", mode) for mode in MODES),
        *(("unfused", kind, "graph") for kind in ("yogi", "yogi, proximal")),
        ("unfused", "amsgrad", "eager"),
    ],
)
def test_lazy_rows_follow_the_formula(kind, mode, layout):
    optimizer = LAYOUTS[layout](CASES[kind], sparse_update="lazy")
    states = table_trajectory(optimizer, mode)
    assert_same_trajectory(states, lazy_reference(kind), TOLERANCE["float32"])
    for old, new, batch in zip(states, states[1:], BATCHES, strict=False):
        for part, value in old[0].items():  # bitwise
            rest = np.setdiff1d(np.arange(ROWS), batch)
            np.testing.assert_array_equal(new[0][part][rest], value[rest])


@pytest.mark.parametrize("in_a_graph", [False, True], ids=["eager", "graph"])
def test_a_table_is_read_without_a_copy_and_what_was_read_stays(in_a_graph):
    """TensorFlow would copy a variable at every read once rows of it were written one by one."""
    table = keras.Variable(np.zeros((ROWS, 2), "float32"))
    optimizer = keras_yogi.Yogi(0.0625, sparse_update="lazy")
    optimizer.build([table])

    def step():
        rows = tf.IndexedSlices(tf.ones((2, 2)), tf.constant([0, 3]), tf.constant([ROWS, 2]))
        optimizer.apply([rows], [table])

    step = tf.function(step, autograph=False) if in_a_graph else step
    step()
    held = table.value.read_value()
    again = table.value.read_value()
    address, other = (np.asarray(memoryview(t)).ctypes.data for t in (held, again))
    assert address == other
    before = held.numpy()
    step()
    np.testing.assert_array_equal(held.numpy(), before)
    assert np.all(table.numpy()[[0, 3]] != before[[0, 3]])


def test_the_comparison_tells_lazy_from_exact():
    with pytest.raises(AssertionError, match="is off by"):
        assert_same_trajectory(
            table_trajectory(CASES["yogi"].optimizer()), lazy_reference("yogi"), 0.01
        )


@pytest.mark.parametrize(("kind", "equal"), [("yogi", True), ("adam", False)])
def test_lazy_yogi_without_momentum_is_exact(kind, equal):
    """w and v stay on a zero gradient: there is nothing that other rows could do. Their momentum
    is zero, or what it was, and is not used.
    """
    lazy, exact = (
        table_trajectory(CASES[kind].optimizer(beta_1=0.0, sparse_update=how))
        for how in ("lazy", "exact")
    )
    lazy, exact = (
        [[{part: s[0][part] for part in ("weights", "velocity")}] for s in states]
        for states in (lazy, exact)
    )
    if equal:  # float32: the two round the same operations in another order
        assert_same_trajectory(lazy, exact, TOLERANCE["float32"])
    else:
        with pytest.raises(AssertionError, match="is off by"):
            assert_same_trajectory(lazy, exact, 0.01)


@pytest.mark.parametrize(
    ("kind", "mode"),  # a mode is the engine's concern, which does not know the rule
    [("amsgrad", "graph"), ("yogi, proximal", "graph"), ("yogi", "eager"), ("yogi", "xla")],
)
def test_exact_rows_of_a_large_table_are_its_dense_twin(kind, mode):
    """The engine reads the rows, moves the table as if it had no gradient, and writes the rows."""
    large, unfused = (
        table_trajectory(LAYOUTS[layout](CASES[kind]), mode) for layout in ("large", "unfused")
    )
    # float32: the two round the same operations in another order
    assert_same_trajectory(large, unfused, TOLERANCE["float32"])


# What Keras does around an update, with a lazy table

ALL_ROWS = [list(range(ROWS)), [*range(ROWS), 3, 3], list(reversed(range(ROWS)))]
AROUND = (*CLIPPING, "loss_scale_factor", "weight_decay", "ema, overwriting", "skip_nonfinite")


@pytest.mark.parametrize(
    ("option", "mode", "layout"),
    [
        *((option, "graph", "large") for option in AROUND),
        *((option, "graph", "packed") for option in ("global_clipnorm", "skip_nonfinite")),
        ("global_clipnorm", "xla", "packed"),
    ],
)
def test_where_a_batch_names_all_rows_lazy_is_exact(option, mode, layout):
    def run(how):
        optimizer = LAYOUTS[layout](CASES["yogi"], sparse_update=how, **OPTIONS[option])
        return table_trajectory(optimizer, mode, ALL_ROWS)

    # float32: the two round the same operations in another order
    assert_same_trajectory(run("lazy"), run("exact"), TOLERANCE["float32"])


def last_row(option):
    """Weights, momentum and velocity, before and after: no batch names it."""
    optimizer = CASES["yogi"].optimizer(sparse_update="lazy", **OPTIONS[option])
    states = table_trajectory(optimizer)
    return [{part: value[-1] for part, value in s[0].items()} for s in (states[0], states[-1])]


def test_weight_decay_acts_on_every_row():
    before, after = last_row("weight_decay")
    kept = (1 - 0.0625 * 0.25) ** len(BATCHES)
    # one rounding of float32, 6e-8, a step
    np.testing.assert_allclose(after["weights"], before["weights"] * kept, rtol=1e-6)


def test_a_loss_scale_leaves_other_rows_alone():
    before, after = last_row("loss_scale_factor")
    np.testing.assert_array_equal(after["weights"], before["weights"])


def test_averages_take_in_every_row():
    before, after = last_row("ema, overwriting")
    # two roundings of float32, 6e-8, a step
    np.testing.assert_allclose(after["weights"], before["weights"], rtol=1e-6)


def test_clipping_sees_each_row_once():
    """Row 1 in two pieces: clipped to the norm of their sum."""
    optimizer = keras_yogi.Adam(beta_1=0.0, sparse_update="lazy", clipnorm=1.0)
    variable = keras.Variable(np.zeros((3, 1), "float32"))
    gradient = tf.IndexedSlices(tf.constant([[3.0], [1.0], [3.0]]), tf.constant([1, 1, 2]))
    optimizer.apply([gradient], [variable])
    momentum = keras.ops.convert_to_numpy(optimizer.get_slot(variable, "momentum"))
    np.testing.assert_allclose(momentum, [[0.0], [0.8], [0.6]], rtol=1e-6)  # of a norm of 5


def test_accumulated_gradients_are_dense():
    """Keras accumulates over all rows, so that every row then has a gradient."""
    lazy, exact = (
        table_trajectory(CASES["yogi"].optimizer(sparse_update=how, **OPTIONS["accumulation"]))
        for how in ("lazy", "exact")
    )
    assert_same_trajectory(lazy, exact, 0.0)


@large_and_small
def test_a_faulty_row_stops_the_step(layout):
    optimizer = LAYOUTS[layout](CASES["yogi"], sparse_update="lazy", skip_nonfinite=True)
    variable, bias = keras.Variable(table()), keras.Variable(np.zeros(2, "float32"))
    optimizer.build([variable, bias])
    values = tf.constant([[1.0, 2.0, 3.0], [1.0, np.nan, 3.0]])
    gradient = tf.IndexedSlices(values, tf.constant([1, 2]), tf.constant([ROWS, WIDTH]))
    optimizer.apply([gradient, tf.ones(2)], [variable, bias])
    np.testing.assert_array_equal(array(variable), table())
    assert optimizer.skipped_steps == 1
    assert int(optimizer.iterations) == 0


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes(dtype):
    states = table_trajectory(keras_yogi.Yogi(sparse_update="lazy"), dtype=dtype)
    kept_in = "float64" if dtype == "float64" else "float32"
    for part, value in states[-1][0].items():
        assert keras.backend.standardize_dtype(value.dtype) == kept_in, part
    untouched = array(keras.ops.cast(keras.ops.cast(table(), dtype), kept_in))[-1]
    np.testing.assert_array_equal(states[-1][0]["weights"][-1], untouched)


@pytest.mark.parametrize("how", ["lazy", "exact"])
def test_no_retracing_from_batch_to_batch(how):
    """In an eager loop, whatever number of rows a batch names: a graph is generalised once."""
    calls = []

    class Counting(YogiRule):
        def update(self, gradient, weights, slots, scalars):
            calls.append(tuple(weights.shape))
            return super().update(gradient, weights, slots, scalars)

    optimizer = keras_yogi.optimizers.AdaptiveOptimizer(0.0625, Counting(), sparse_update=how)
    table_trajectory(with_small_packs(optimizer), "eager", BATCHES * 2)
    before = len(calls)
    variables = optimizer.trained_variables
    for number, batch in enumerate(BATCHES):
        rows = tf.IndexedSlices(
            tf.constant(pieces(batch, number)), tf.constant(batch), tf.constant([ROWS, WIDTH])
        )
        optimizer.apply([rows, tf.ones(2)], variables)
    assert len(calls) == before


@pytest.mark.parametrize(
    ("kind", "mode"), [("adam", "fit"), ("yogi", "fit, eagerly"), ("yogi", "fit, no jit_compile")]
)
def test_fit(kind, mode):
    """In `fit`, rows of words that the data does not hold stay as they were."""
    words = np.random.default_rng(3).integers(0, 20, size=(72, 6))
    labels = (words < 10).mean(axis=1, keepdims=True).astype("float32")
    embedding = keras.layers.Embedding(40, 4)
    model = keras.Sequential(
        [embedding, keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
    )
    model.build((None, 6))
    before = embedding.get_weights()[0]
    optimizer = CASES[kind].optimizer(0.05, sparse_update="lazy")
    model.compile(optimizer, loss="mse", **FIT_MODES[mode])
    loss = model.fit(words, labels, batch_size=24, epochs=8, verbose=0).history["loss"]
    assert loss[-1] < 0.5 * loss[0]
    after = embedding.get_weights()[0]
    assert np.all(np.any(before != after, axis=1)[:20])
    np.testing.assert_array_equal(before[20:], after[20:])


# Batches that name no rows, or one a thousand times

# One that shares an array with others in the fused engine, one that is compiled on its own.
SMALL, LARGE = (50, 3), (40_000, 2)


@pytest.mark.parametrize("sparse_update", ["lazy", "exact"])
@pytest.mark.parametrize(
    ("engine", "shape", "mode"),
    [
        *(("fused", SMALL, mode) for mode in MODES),
        *(("fused", LARGE, mode) for mode in ("eager", "graph")),
        *(("unfused", SMALL, mode) for mode in ("eager", "graph")),
    ],
)
def test_a_batch_that_names_no_rows(engine, shape, mode, sparse_update):
    """The table stays, or moves as if its gradient were zero; the other variables move."""

    def run(of_no_rows):
        variables = ones_of(shape, (3,))
        optimizer = CASES["yogi"].on(engine).optimizer(sparse_update=sparse_update)
        optimizer.build(variables)

        def step(*rows):
            slices = tf.IndexedSlices(*rows, tf.constant(shape)) if len(rows) == 2 else rows[0]
            optimizer.apply([slices, tf.ones(3)], variables)

        step = tf_mode(mode)(step)
        step(tf.ones((2, shape[1])), tf.constant([1, 3]))
        after_one = array(variables[0])
        if of_no_rows:
            step(tf.zeros((0, shape[1])), tf.zeros(0, "int32"))
        else:
            step(tf.zeros(shape))
        assert int(optimizer.iterations) == 2
        assert float(variables[1].numpy()[0]) < 1.0
        return after_one, snapshot(optimizer, variables)

    after_one, state = run(of_no_rows=True)
    if sparse_update == "lazy":
        np.testing.assert_array_equal(state[0], after_one)
    else:
        # Rounded in another order
        assert_all_close(state, run(of_no_rows=False)[1], 1e-6)


@pytest.mark.parametrize(("engine", "dtype"), [("fused", "bfloat16"), ("unfused", "float16")])
def test_pieces_in_half_precision_are_summed_in_float32(engine, dtype):
    """One by one, ones would not get beyond 256 or 2048."""
    (table,) = variables = ones_of((10, 2), dtype=dtype)
    optimizer = CASES["yogi"].on(engine).optimizer(beta_1=0.0)
    optimizer.build(variables)
    pieces = tf.ones((4096, 2), dtype), tf.zeros(4096, "int32"), tf.constant([10, 2])
    optimizer.apply([tf.IndexedSlices(*pieces)], variables)
    momentum = array(optimizer.get_slot(table, "momentum"))
    np.testing.assert_array_equal(momentum[0], 4096.0)
    np.testing.assert_array_equal(momentum[1:], 0.0)
