"""The fused engine against the specification, and what it must not change for anyone else."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from reference import MODES

import keras_yogi
from keras_yogi.engine import fused
from keras_yogi.engine.packing import Pack

OPTIMIZERS = {
    "adam": lambda **k: keras_yogi.Adam(0.0625, **k),
    "amsgrad": lambda **k: keras_yogi.Adam(0.0625, amsgrad=True, **k),
    "yogi": lambda **k: keras_yogi.Yogi(0.0625, **k),
    "proximal": lambda **k: keras_yogi.Yogi(0.0625, l1_regularization_strength=0.1, **k),
}
# Small ones are packed, (300, 300) and others of its rank are compiled in one call, half precision
# goes variable by variable.
LAYOUT = [
    ((3, 2), "float32"),
    ((300, 300), "float32"),
    ((300, 250), "float32"),
    ((250, 300), "float32"),
    ((), "float32"),
    ((4, 4), "float32"),
    ((4,), "float64"),
    ((0,), "float32"),
    ((2, 16), "float64"),
    ((5,), "float32"),
    ((2, 2), "float64"),
    ((3,), "bfloat16"),
]


def variables_of(layout, seed=0):
    random = np.random.default_rng(seed)
    return [keras.Variable(random.normal(size=shape), dtype=dtype) for shape, dtype in layout]


def gradients_of(layout, step):
    random = np.random.default_rng(1000 + step)
    return [
        tf.constant(random.standard_t(2, size=shape) * (random.random(shape) > 0.3), dtype)
        for shape, dtype in layout
    ]


def train(optimizer, layout, mode, steps, missing=lambda step, index: False):
    """Weights and slots after some steps; a compiled step for each set of missing gradients."""
    variables = variables_of(layout)
    optimizer.build(variables)

    @functools.cache
    def step_on(present):
        chosen = [variables[i] for i in present]
        return MODES[mode](lambda *gradients: optimizer.apply(list(gradients), chosen))

    for step in range(steps):
        gradients = gradients_of(layout, step)
        present = tuple(i for i in range(len(layout)) if not missing(step, i))
        step_on(present)(*[gradients[i] for i in present])
    return [keras.ops.convert_to_numpy(v) for v in [*variables, *optimizer.variables]]


def assert_close(ours, expected, steps):
    # The same operations in another order of rounding: half an ulp (6e-8, 1.1e-16) at each of a
    # dozen operations a step, of the largest value, which is where cancellation starts from
    ulp = {"float32": 6e-8, "float64": 1.1e-16, "bfloat16": 4e-3, "float16": 5e-4}
    for a, b in zip(ours, expected, strict=True):
        if a.dtype.kind == "i":
            np.testing.assert_array_equal(a, b)
        elif a.size:
            error = np.abs(a.astype("float64") - b.astype("float64")).max()
            largest = max(np.abs(b.astype("float64")).max(), 1e-3)
            assert error <= 8 * steps**0.5 * ulp[a.dtype.name] * largest, a.dtype


@pytest.mark.parametrize("mode", ["graph", "xla"])  # eager steps run the same graph
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_agrees_with_the_specification_after_100_steps(make, mode):
    ours = train(make(fused=True), LAYOUT, mode, 100)
    expected = train(make(fused=False), LAYOUT, mode, 100)
    assert_close(ours, expected, 100)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_variables_without_a_gradient_stay(make, mode):
    def missing(step, index):  # every third variable in turn, and once all but one
        return (index + step) % 3 == 0 if step != 2 else index != 0

    ours = train(make(fused=True), LAYOUT, mode, 6, missing)
    expected = train(make(fused=False), LAYOUT, mode, 6, missing)
    assert_close(ours, expected, 6)


# Not (0, 0, 2): Keras's own accumulation takes adding such arrays for adding a bias.
shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)
shapes |= st.sampled_from([(0,), (16,), (2, 8), (48,)])
layouts = st.lists(
    st.tuples(shapes, st.sampled_from(["float32", "float64", "bfloat16", "float16"])),
    min_size=1,
    max_size=7,
)
options = st.fixed_dictionaries(
    {},
    optional={
        "weight_decay": st.just(0.1),
        "clipnorm": st.just(1.0),
        "use_ema": st.just(True),
        "gradient_accumulation_steps": st.just(2),
        "skip_nonfinite": st.just(True),
        "epsilon_hat": st.booleans(),
        "beta_1": st.sampled_from([0.0, 0.5, 0.9]),
        "beta_2": st.sampled_from([0.5, 0.999]),
    },
)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # shrinking would compile for minutes
)
@given(layouts, options, st.sampled_from(list(OPTIMIZERS)), st.integers(0, 2**7 - 1))
def test_agrees_on_any_set_of_variables(layout, options, name, absent):
    def missing(step, index):
        return step == 1 and index > 0 and bool(absent >> index & 1)

    ours = train(OPTIMIZERS[name](fused=True, **options), layout, "eager", 4, missing)
    expected = train(OPTIMIZERS[name](fused=False, **options), layout, "eager", 4, missing)
    assert_close(ours, expected, 4)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_state_does_not_know_the_engine(make, tmp_path, monkeypatch):
    """Files and checkpoints move between fused, unfused, and other sizes of packs."""
    layout = [((3, 2), "float32"), ((40,), "float32"), ((), "float32"), ((5,), "float64")]
    layout += [((2,), "float32"), ((4, 4), "float32"), ((2,), "float64")]

    def trained(sizes, steps, **options):
        monkeypatch.setattr(fused, "PACK_UP_TO", sizes[0])
        monkeypatch.setattr(fused, "ARRAY_UP_TO", sizes[1])
        optimizer, variables = make(**options), variables_of(layout)
        optimizer.build(variables)
        for step in range(steps):
            optimizer.apply(gradients_of(layout, step), variables)
        return optimizer

    one_array, arrays, no_pack = (1000, 10_000), (10, 8), (0, 0)
    ways = [(arrays, {"fused": True}), (one_array, {"fused": True}), (no_pack, {"fused": False})]
    for sizes, options in ways:
        saved = trained(sizes, 2, **options)
        state, store = [v.numpy() for v in saved.variables], {}
        saved.save_own_variables(store)
        checkpoint = tf.train.Checkpoint(optimizer=saved).write(str(tmp_path / "c"))
        for other_sizes, other_options in ways:
            loaded = trained(other_sizes, 0, **other_options)
            for load in ("file", "weights", "checkpoint"):
                for variable in loaded.variables:
                    variable.assign(np.zeros(variable.shape))
                if load == "file":
                    loaded.load_own_variables(store)
                elif load == "weights":
                    loaded.set_weights(state)
                else:
                    tf.train.Checkpoint(optimizer=loaded).read(checkpoint).assert_consumed()
                for a, b in zip(state, loaded.variables, strict=True):
                    np.testing.assert_array_equal(a, b.numpy())


def test_what_changes_between_eager_calls_counts_at_once():
    def run(optimizer):
        rate = [0.5]
        variables = [keras.Variable([1.0, 2.0]), keras.Variable([3.0])]
        optimizer.build(variables)
        gradients = [tf.constant([0.1, -2.0]), tf.constant([1.0])]
        optimizer.apply(gradients, variables)
        optimizer.beta_1, optimizer.epsilon = 0.5, 0.25
        optimizer.apply(gradients, variables)
        optimizer.learning_rate = 0.125
        optimizer.apply(gradients, variables)
        optimizer.apply(gradients[:1], variables[:1])
        optimizer.learning_rate = lambda: rate[0]
        optimizer.apply(gradients, variables)
        rate[0] = 2.0
        optimizer.apply(gradients, variables)
        return [v.numpy() for v in variables]

    for optimizer in (keras_yogi.Adam, keras_yogi.Yogi):
        ours, expected = run(optimizer(fused=True)), run(optimizer(fused=False))
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_eager_steps_use_one_graph():
    variables = variables_of(LAYOUT)
    optimizer = keras_yogi.Yogi(fused=True)
    for step in range(5):
        optimizer.apply(gradients_of(LAYOUT, step), variables)
    graphs = [g for key, g in optimizer._engine._graphs.items() if key[0] == "update"]
    assert [g.experimental_get_tracing_count() for g in graphs] == [1]


def test_slots_take_no_more_than_they_must():
    """Two arrays of the parameters' size, three with amsgrad: packed slots exist once, in arrays of
    at most one element more.
    """
    for make, copies in [(OPTIMIZERS["yogi"], 2), (OPTIMIZERS["amsgrad"], 3)]:
        optimizer = make(fused=True)
        optimizer.build(variables_of(LAYOUT))
        packs = [a for p in optimizer._engine._packs for a in p.arrays.values()]
        alone = [
            s
            for of_all in optimizer.slots().values()
            for s in of_all
            if isinstance(s, keras.Variable)
        ]
        elements = sum(int(np.prod(v.shape)) for v in [*packs, *alone])
        needed = copies * sum(int(np.prod(shape)) for shape, _ in LAYOUT)
        assert needed <= elements <= needed + len(packs)


def test_engine_says_which_it_is():
    for argument, expected in [("auto", "fused"), (True, "fused"), (False, "unfused")]:
        optimizer = keras_yogi.Yogi(fused=argument)
        assert optimizer.engine == "unfused"  # nothing is built yet
        optimizer.build([keras.Variable(1.0)])
        assert optimizer.engine == expected
        assert optimizer.get_config()["fused"] == argument


def test_fused_is_refused_under_a_strategy():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        variables = [keras.Variable([1.0])]
        with pytest.raises(
            ValueError, match=r'`fused` must be False or "auto" here: .*tf\.distribute'
        ):
            keras_yogi.Yogi(fused=True).build(variables)
        auto = keras_yogi.Yogi()
        auto.build(variables)
    assert auto.engine == "unfused"


def test_without_xla_it_still_works(monkeypatch):
    monkeypatch.setattr(fused, "xla_is_available", lambda: False)
    ours = train(keras_yogi.Yogi(fused=True), LAYOUT, "graph", 5)
    expected = train(keras_yogi.Yogi(fused=False), LAYOUT, "graph", 5)
    assert_close(ours, expected, 5)


@pytest.mark.parametrize("array_up_to", [8, fused.ARRAY_UP_TO], ids=["two arrays", "one array"])
def test_large_packs_are_compiled(monkeypatch, array_up_to):
    monkeypatch.setattr(fused, "ARRAY_UP_TO", array_up_to)
    monkeypatch.setattr(fused, "COMPILE_FROM", 4)
    layout = [*LAYOUT, ((3,), "float32")]  # so that all of float32 are an odd number
    ours = train(keras_yogi.Yogi(fused=True), layout, "graph", 20)
    expected = train(keras_yogi.Yogi(fused=False), layout, "graph", 20)
    assert_close(ours, expected, 20)


def test_what_fills_whole_rows_is_split_without_a_copy():
    def address(tensor):
        return np.asarray(memoryview(tensor)).__array_interface__["data"][0]

    shapes = [(3,), (4, 4), (5,), (2, 16)]
    pack = Pack({index: tf.Variable(tf.zeros(shape)) for index, shape in enumerate(shapes)})
    assert pack.indices == [1, 3, 0, 2]
    joined = tf.range(56.0)
    parts = pack.split(joined, 0, 4)
    assert [tuple(part.shape) for part in parts] == [(4, 4), (2, 16), (3,), (5,)]
    np.testing.assert_array_equal(np.concatenate([part.numpy().ravel() for part in parts]), joined)
    assert [address(part) - address(joined) for part in parts[:2]] == [0, 16 * 4]


def test_what_a_pack_joins_it_splits_again():
    """All of it, at an even length, and neighbours alone."""
    random = np.random.default_rng(0)
    values = [random.normal(size=shape).astype("f") for shape in [(3,), (4, 4), (), (2, 16), (0,)]]
    pack = Pack({index: tf.Variable(value) for index, value in enumerate(values)})
    ordered = [values[index] for index in pack.indices]
    for first, last in [(0, 5), (0, 2), (1, 5), (3, 4)]:
        joined = pack.join(ordered[first:last], first, last)
        for value, part in zip(ordered[first:last], pack.split(joined, first, last), strict=True):
            np.testing.assert_array_equal(part, value)
    pack = Pack({index: tf.Variable(values[index]) for index in (0, 1)})
    assert pack.length == 20
    np.testing.assert_array_equal(pack.join([values[1], values[0]], 0, 2)[19:], [0.0])


def test_packed_slot_refuses_another_shape():
    variables = variables_of([((3, 2), "float32"), ((4,), "float32")])
    optimizer = keras_yogi.Adam(fused=True)
    optimizer.build(variables)
    with pytest.raises(ValueError, match="must be of its shape"):
        optimizer.set_slot(variables[0], "velocity", np.ones(6))
    with pytest.raises(ValueError, match="must be given a value of its shape"):
        optimizer.slots()["velocity"][0].assign(np.ones(6))
    optimizer.set_slot(variables[0], "velocity", np.full((3, 2), 2.0))
    np.testing.assert_array_equal(optimizer.get_slot(variables[0], "velocity"), 2.0)
    np.testing.assert_array_equal(optimizer.get_slot(variables[1], "velocity"), 0.0)
