"""`sparse_update`: a step on some rows of a table, against the formula row by row."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import DEFAULT_CASES, RULES
from reference import MODES, TOLERANCE, Reference, assert_same_trajectory

import keras_yogi
from keras_yogi.engine import fused

ROWS, WIDTH = 9, 3
# Another number of rows in each step, some several times; row 8 never, row 0 once and then rests.
BATCHES = [[0, 1, 1], [1, 2, 5, 2, 2], [5], [6, 7, 6, 1, 3, 4, 2], [3, 3], [1, 2, 5, 6, 7], [4, 4]]

# A mode is the engine's concern, which does not know the rule.
every_rule_and_mode = pytest.mark.parametrize(
    ("rule", "mode"),
    [*((rule, "graph") for rule in RULES), *(("yogi", m) for m in MODES if m != "graph")],
)


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


def lazy_reference(rule, learning_rate=0.0625, **more):
    """Weights and slots before and after every step, from the formulas: rows that a batch does
    not name stay, and t counts the steps of the optimizer, not those of the row.
    """
    optimizer_class, hyperparameters = RULES[rule]
    name = optimizer_class.__name__.lower()
    reference = Reference(table(), name, learning_rate, **{**hyperparameters, **more})

    def state():
        return [{"weights": reference.weights, **reference.slots}]

    states = [state()]
    for step, batch in enumerate(BATCHES):
        ((before,), rest) = (states[-1], np.setdiff1d(np.arange(ROWS), batch))
        reference.update(summed(batch, pieces(batch, step)))
        after = {"weights": reference.weights, **reference.slots}
        for part, old in before.items():
            after[part][rest] = old[rest]
        reference.weights = after.pop("weights")
        reference.slots = after
        states.append(state())
        states[-1] = [{part: value.copy() for part, value in states[-1][0].items()}]
    return states


def trained(optimizer, mode, batches=BATCHES, dtype="float32"):
    """The same of an optimizer that is given tf.IndexedSlices, beside a dense gradient."""
    variable, bias = keras.Variable(table(), dtype=dtype), keras.Variable(np.zeros(2, dtype))
    optimizer.build([variable, bias])

    def step(values, indices):
        gradient = tf.IndexedSlices(values, indices, tf.constant([ROWS, WIDTH]))
        optimizer.apply([gradient, tf.ones(2, dtype)], [variable, bias])

    step = MODES[mode](step)

    def state():
        slots = {n: keras.ops.convert_to_numpy(optimizer.get_slot(variable, n)) for n in names}
        return [{"weights": keras.ops.convert_to_numpy(variable), **slots}]

    names = optimizer.slot_names
    states = [state()]
    for number, batch in enumerate(batches):
        step(tf.constant(pieces(batch, number), dtype), tf.constant(batch))
        states.append(state())
    return states


@pytest.fixture(params=[True, False], ids=["small", "large"])
def packed(request, monkeypatch):
    """Whether the table is small enough to share an array with other variables."""
    if not request.param:
        monkeypatch.setattr(fused, "PACK_UP_TO", 4)
    return request.param


@every_rule_and_mode
@pytest.mark.parametrize(
    ("engine", "pack_up_to"),
    [(True, 100), (True, 4), (False, 0)],
    ids=["packed", "large", "unfused"],
)
def test_lazy_rows_follow_the_formula(rule, mode, engine, pack_up_to, monkeypatch):
    monkeypatch.setattr(fused, "PACK_UP_TO", pack_up_to)
    optimizer_class, hyperparameters = RULES[rule]
    optimizer = optimizer_class(0.0625, sparse_update="lazy", fused=engine, **hyperparameters)
    states = trained(optimizer, mode)
    assert_same_trajectory(states, lazy_reference(rule), TOLERANCE["float32"])
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
            trained(keras_yogi.Yogi(0.0625, **RULES["yogi"][1]), "graph"),
            lazy_reference("yogi"),
            0.01,
        )


def test_lazy_yogi_without_momentum_is_exact():
    """w and v stay on a zero gradient: there is nothing that other rows could do. Their momentum
    is zero, or what it was, and is not used.
    """
    for rule, equal in [("yogi", True), ("adam", False)]:
        optimizer_class, hyperparameters = RULES[rule]
        lazy, exact = (
            trained(
                optimizer_class(0.0625, beta_1=0.0, sparse_update=how, **hyperparameters), "graph"
            )
            for how in ("lazy", "exact")
        )
        same = all(
            np.array_equal(a[0][part], b[0][part])
            for a, b in zip(lazy, exact, strict=True)
            for part in ("weights", "velocity")
        )
        assert same == equal


@every_rule_and_mode
def test_exact_rows_of_a_large_table_are_its_dense_twin(rule, mode, monkeypatch):
    """The engine reads the rows, moves the table as if it had no gradient, and writes the rows."""
    monkeypatch.setattr(fused, "PACK_UP_TO", 4)
    optimizer_class, hyperparameters = RULES[rule]

    def run(engine):
        return trained(optimizer_class(0.0625, fused=engine, **hyperparameters), mode)

    # float32: the two round the same operations in another order
    assert_same_trajectory(run(True), run(False), TOLERANCE["float32"])


# What Keras does around an update, with a lazy table

ALL_ROWS = [list(range(ROWS)), [*range(ROWS), 3, 3], list(reversed(range(ROWS)))]
OPTIONS = {
    "clipnorm": {"clipnorm": 0.5},
    "clipvalue": {"clipvalue": 0.2},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "loss scale": {"loss_scale_factor": 8.0},
    "weight decay": {"weight_decay": 0.1},
    "ema": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    "skip_nonfinite": {"skip_nonfinite": True},
}


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "graph") for name in OPTIONS), ("global_clipnorm", "xla")]
)
def test_where_a_batch_names_all_rows_lazy_is_exact(name, mode, packed):
    def run(how):
        optimizer = keras_yogi.Yogi(0.0625, sparse_update=how, **OPTIONS[name])
        return trained(optimizer, mode, ALL_ROWS)

    assert_same_trajectory(run("lazy"), run("exact"), TOLERANCE["float32"])


def run_by_row(**options):
    """The last row's weights, momentum and velocity, before and after: no batch names it."""
    optimizer = keras_yogi.Yogi(0.0625, sparse_update="lazy", **options)
    states = trained(optimizer, "graph")
    return [{part: value[-1] for part, value in s[0].items()} for s in (states[0], states[-1])]


def test_weight_decay_acts_on_every_row():
    before, after = run_by_row(weight_decay=0.1)
    kept = (1 - 0.0625 * 0.1) ** len(BATCHES)
    # one rounding of float32, 6e-8, a step
    np.testing.assert_allclose(after["weights"], before["weights"] * kept, rtol=1e-6)


def test_averages_take_in_every_row():
    before, after = run_by_row(use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2)
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
        trained(keras_yogi.Yogi(sparse_update=how, gradient_accumulation_steps=2), "graph")
        for how in ("lazy", "exact")
    )
    assert_same_trajectory(lazy, exact, 0.0)


def test_a_faulty_row_stops_the_step(packed):
    optimizer = keras_yogi.Yogi(sparse_update="lazy", skip_nonfinite=True)
    variable, bias = keras.Variable(table()), keras.Variable(np.zeros(2, "float32"))
    optimizer.build([variable, bias])
    values = tf.constant([[1.0, 2.0, 3.0], [1.0, np.nan, 3.0]])
    gradient = tf.IndexedSlices(values, tf.constant([1, 2]), tf.constant([ROWS, WIDTH]))
    optimizer.apply([gradient, tf.ones(2)], [variable, bias])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), table())
    assert optimizer.skipped_steps == 1
    assert int(optimizer.iterations) == 0


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes(dtype):
    states = trained(keras_yogi.Yogi(sparse_update="lazy"), "graph", dtype=dtype)
    for part, value in states[-1][0].items():
        assert keras.backend.standardize_dtype(value.dtype) == dtype, part
    untouched = keras.ops.convert_to_numpy(keras.ops.cast(table(), dtype))[-1]
    np.testing.assert_array_equal(states[-1][0]["weights"][-1], untouched)


def test_no_retracing_from_batch_to_batch(monkeypatch):
    """Of eager steps, whatever number of rows they name: the graph is generalised once."""
    monkeypatch.setattr(fused, "PACK_UP_TO", 4)
    for how in ("lazy", "exact"):
        optimizer = keras_yogi.Yogi(sparse_update=how)
        trained(optimizer, "eager")
        graphs = [g for key, g in optimizer._engine._graphs.items() if key[0] == "update"]
        assert [g.experimental_get_tracing_count() for g in graphs] == [2]


@pytest.mark.parametrize("case", DEFAULT_CASES.values(), ids=DEFAULT_CASES)
@pytest.mark.parametrize("arguments", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_fit(case, arguments):
    """In `fit`, rows of words that the data does not hold stay as they were."""
    words = np.random.default_rng(3).integers(0, 20, size=(64, 6))
    labels = (words < 10).mean(axis=1, keepdims=True).astype("float32")
    embedding = keras.layers.Embedding(40, 4)
    model = keras.Sequential(
        [embedding, keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
    )
    model.build((None, 6))
    before = embedding.get_weights()[0]
    optimizer = case.optimizer_class(
        0.05, sparse_update="lazy", **case.hyperparameters, **case.variant
    )
    model.compile(optimizer, loss="mse", **arguments)
    loss = model.fit(words, labels, batch_size=24, epochs=8, verbose=0).history["loss"]
    assert loss[-1] < 0.5 * loss[0]
    after = embedding.get_weights()[0]
    assert np.all(np.any(before != after, axis=1)[:20])
    np.testing.assert_array_equal(before[20:], after[20:])
