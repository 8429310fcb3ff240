"""The fused engine against the specification, and what it must not change for anyone else."""

import functools
import gc

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.backend import MODES, array, tensor
from support.cases import BOTH, CASES, KINDS, over, with_limits
from support.comparison import TOLERANCE, assert_close, assert_unchanged, snapshot
from support.training import state_of, take_steps, whole_weights

import keras_yogi
from keras_yogi.engines import Limits
from keras_yogi.optimizers import AdaptiveOptimizer
from keras_yogi.rules import YogiRule

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


def layout_variables(layout, seed=0):
    random = np.random.default_rng(seed)
    return [keras.Variable(random.normal(size=shape), dtype=dtype) for shape, dtype in layout]


def layout_gradients(layout, step):
    """Student's t with 2 degrees of freedom, which is normal / √exponential; 30 % zeros."""
    random = np.random.default_rng(1000 + step)
    gradients = []
    for shape, dtype in layout:
        # Drawn in float32, which is quicker, and where an exponential may be 0
        normal = random.standard_normal(shape, "float32")
        root = np.sqrt(random.standard_exponential(shape, "float32") + np.float32(1e-7))
        gradients.append(tf.constant(normal / root * (random.random(shape) > 0.3), dtype))
    return gradients


def after_steps_on(layout, optimizer, mode, steps, missing=lambda step, index: False):
    """Weights and slots after some steps; a compiled step for each set of missing gradients."""
    variables = layout_variables(layout)
    optimizer.build(variables)

    @functools.cache
    def step_on(present):
        return MODES[mode](optimizer, [variables[i] for i in present])

    for step in range(steps):
        gradients = layout_gradients(layout, step)
        present = tuple(i for i in range(len(layout)) if not missing(step, i))
        step_on(present)([gradients[i] for i in present])
    own = [array(v) for v in optimizer.variables if v.dtype != "int16"]  # but residuals
    return [whole_weights(optimizer, v) for v in variables] + own


def assert_nearly_equal(ours, expected, steps):
    # The same operations in another order of rounding: half an ulp (6e-8, 1.1e-16) at each of a
    # dozen operations a step, of the largest value, which is where cancellation starts from
    ulp = {"float32": 6e-8, "float64": 1.1e-16}
    for a, b in zip(ours, expected, strict=True):
        if a.dtype.kind == "i":
            np.testing.assert_array_equal(a, b)
        elif a.size:
            error = np.abs(a.astype("float64") - b.astype("float64")).max()
            largest = max(np.abs(b.astype("float64")).max(), 1e-3)
            assert error <= 8 * steps**0.5 * ulp[a.dtype.name] * largest, a.dtype


def assert_engines_agree(case, layout, mode, steps, missing=lambda step, index: False, **options):
    limits = options.pop("limits", {})
    fused = with_limits(case.on("fused").optimizer(**options), **limits)
    unfused = case.on("unfused").optimizer(**options)
    assert_nearly_equal(
        after_steps_on(layout, fused, mode, steps, missing),
        after_steps_on(layout, unfused, mode, steps, missing),
        steps,
    )
    assert fused.engine == "fused"
    assert unfused.engine == "unfused"


@pytest.mark.parametrize(
    ("case", "mode"),  # eager steps run the same graph; what XLA makes of it is no rule's concern
    [*((case, "graph") for case in KINDS.values()), (KINDS["yogi, proximal"], "xla")],
    ids=lambda value: getattr(value, "name", value),
)
def test_agrees_with_the_specification_after_100_steps(case, mode):
    # β₂ = 0.999: with 0.9, v and g² come so near each other in 100 steps that a rounding decides on
    # the sign of their difference.
    assert_engines_agree(case, LAYOUT, mode, 100, beta_2=0.999)


@pytest.mark.parametrize(
    ("kind", "mode"), [*((kind, "eager") for kind in KINDS), ("yogi, proximal", "graph")]
)
def test_variables_without_a_gradient_stay(kind, mode):
    def missing(step, index):  # every third variable in turn, and once all but one
        return (index + step) % 3 == 0 if step != 2 else index != 0

    assert_engines_agree(KINDS[kind], LAYOUT, mode, 6, missing)


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
@given(layouts, options, st.sampled_from(list(KINDS)), st.integers(0, 2**7 - 1))
def test_agrees_on_any_set_of_variables(layout, options, name, absent):
    def missing(step, index):
        return step == 1 and index > 0 and bool(absent >> index & 1)

    assert_engines_agree(KINDS[name], layout, "eager", 4, missing, **options)


# In one array each dtype, in several, on their own; by the engine or without it.
WAYS = [
    ({"pack_up_to": 10, "array_up_to": 8}, {"fused": True}),
    ({"pack_up_to": 1000, "array_up_to": 10_000}, {"fused": True}),
    ({}, {"fused": False}),
]


@over({name: KINDS[name] for name in ("amsgrad", "yogi")})
def test_state_does_not_know_the_engine(case, tmp_path):
    """Files and checkpoints move between fused, unfused, and other sizes of packs."""
    layout = [((3, 2), "float32"), ((40,), "float32"), ((), "float32"), ((5,), "float64")]
    layout += [((2,), "float32"), ((4, 4), "float32"), ((2,), "float64")]

    def trained(way, steps):
        limits, options = way
        optimizer, variables = with_limits(case.optimizer(**options), **limits), None
        variables = layout_variables(layout)
        optimizer.build(variables)
        for step in range(steps):
            optimizer.apply(layout_gradients(layout, step), variables)
        return optimizer

    for way in WAYS:
        saved = trained(way, 2)
        state, store = snapshot(saved), {}
        saved.save_own_variables(store)
        checkpoint = tf.train.Checkpoint(optimizer=saved).write(str(tmp_path / "c"))
        for other in WAYS:
            loaded = trained(other, 0)
            for load in (
                lambda o: o.load_own_variables(store),  # noqa: B023
                lambda o: o.set_weights(state),  # noqa: B023
                lambda o: tf.train.Checkpoint(optimizer=o).read(checkpoint).assert_consumed(),  # noqa: B023
            ):
                for variable in loaded.variables:
                    variable.assign(np.zeros(variable.shape))
                load(loaded)
                assert_unchanged(state, snapshot(loaded))


@pytest.mark.parametrize("optimizer_class", BOTH)
def test_what_changes_between_eager_calls_counts_at_once(optimizer_class):
    def run(optimizer):
        rate = [0.5]
        variables = layout_variables([((2,), "float32"), ((1,), "float32")])
        optimizer.build(variables)
        gradients = [tf.constant([0.1, -2.0]), tf.constant([1.0])]
        optimizer.apply(gradients, variables)
        optimizer.beta_1, optimizer.epsilon = 0.5, 0.25
        optimizer.apply(gradients, variables)
        optimizer.learning_rate = 0.125
        optimizer.apply(gradients, variables)
        optimizer.apply(gradients[:1], variables[:1])
        optimizer.bias_correction = "momentum"
        optimizer.apply(gradients, variables)
        optimizer.learning_rate = lambda: rate[0]
        optimizer.apply(gradients, variables)
        rate[0] = 2.0
        optimizer.apply(gradients, variables)
        return [v.numpy() for v in variables]

    ours, expected = run(optimizer_class(fused=True)), run(optimizer_class(fused=False))
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)  # a dozen roundings of 6e-8


def counting(updates, fused="auto"):
    """A Yogi whose rule notes each call of `update` and the sizes it is given."""

    class Counting(YogiRule):
        def update(self, gradient, weights, slots, scalars):
            updates.append(int(np.prod(weights.shape)))
            return super().update(gradient, weights, slots, scalars)

    return AdaptiveOptimizer(0.0625, Counting(), fused=fused)


def test_eager_steps_use_one_graph():
    """The rule is called as the graph is traced, and not in the steps after that."""
    updates = []
    optimizer, variables = counting(updates, fused=True), layout_variables(LAYOUT)
    called = []
    for step in range(12):
        optimizer.apply(layout_gradients(LAYOUT, step), variables)
        called.append(len(updates))
    assert called[0] > 0
    assert called[-1] == called[5]


def test_small_variables_are_updated_together():
    """One call of the rule for all of a dtype; without the engine one for each variable."""
    layout = [entry for entry in LAYOUT if entry[1] == "float32" and np.prod(entry[0]) < 100]
    calls = {}
    for fused in (True, False):
        updates = []
        optimizer, variables = counting(updates, fused), layout_variables(layout)
        take_steps(optimizer, variables, [layout_gradients(layout, 0)], "graph")
        calls[fused] = len(updates)
        sizes = sum(int(np.prod(shape)) for shape, _ in layout)
        assert sizes <= sum(updates) <= sizes + 1  # at an even length
    assert calls == {True: 1, False: len(layout)}


def elements_of_live_variables():
    gc.collect()
    variables = [o for o in gc.get_objects() if issubclass(type(o), tf.Variable)]
    return sum(variable.shape.num_elements() for variable in variables)


@pytest.mark.parametrize(("name", "copies"), [("yogi", 2), ("amsgrad", 3)])
def test_slots_take_no_more_than_they_must(name, copies):
    """Copies of the parameters: packed slots exist once, in arrays of an element more at most."""
    variables, optimizer = layout_variables(LAYOUT), CASES[name].optimizer(fused=True)
    before = elements_of_live_variables()
    optimizer.build(variables)
    grown = elements_of_live_variables() - before
    needed = copies * sum(int(np.prod(shape)) for shape, _ in LAYOUT)
    assert needed <= grown <= needed + 10  # arrays of an even length, a counter


def test_an_optimizer_follows_one_of_the_same_rule_that_is_gone():
    """What was compiled for the first must not hold on to its variables."""
    layout = [((3, 2), "float32"), ((4,), "float32"), ((3, 3), "float64")]

    def run():
        optimizer, variables = keras_yogi.Adam(0.0625), layout_variables(layout)
        take_steps(optimizer, variables, [layout_gradients(layout, s) for s in range(3)], "graph")
        return snapshot(optimizer, variables)

    first = run()
    gc.collect()
    assert_unchanged(first, run())


@pytest.mark.parametrize(
    ("argument", "expected"), [("auto", "fused"), (True, "fused"), (False, "unfused")]
)
def test_engine_says_which_it_is(argument, expected):
    optimizer = keras_yogi.Yogi(fused=argument)
    assert optimizer.engine == "unfused"  # nothing is built yet
    optimizer.build([keras.Variable(1.0)])
    assert optimizer.engine == expected
    assert optimizer.get_config()["fused"] == argument


def test_an_update_step_of_ones_own_is_obeyed():
    class Descent(keras_yogi.Adam):
        def update_step(self, gradient, variable, learning_rate):
            variable.assign_sub(learning_rate * gradient)

    optimizer, variables = Descent(0.5), layout_variables(LAYOUT[:1])
    before = variables[0].numpy()
    take_steps(optimizer, variables, [[np.ones((3, 2), "float32")]])
    np.testing.assert_array_equal(variables[0].numpy(), before - np.float32(0.5))
    assert optimizer.engine == "unfused"


@pytest.mark.parametrize("argument", [True, "auto"])
def test_is_fused_under_a_strategy_too(argument):
    """What it computes there is in test_distribute."""
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        optimizer = keras_yogi.Yogi(fused=argument)
        optimizer.build([keras.Variable([1.0])])
    assert optimizer.engine == "fused"


@pytest.mark.parametrize(
    "limits",
    [
        {"compile": False},
        {"compile_from": 4},
        {"compile_from": 4, "array_up_to": 8},
        {"call_up_to": 8},
        {"pack_up_to": 0},
    ],
    ids=["no XLA", "compiled, one array", "compiled, two arrays", "small calls", "nothing packed"],
)
def test_agrees_whatever_the_limits_are(limits):
    layout = [*LAYOUT, ((3,), "float32")]  # so that all of float32 are an odd number
    assert_engines_agree(CASES["yogi"], layout, "graph", 8, limits=limits)


def test_the_limits_of_the_documentation():
    assert Limits() == Limits(49_152, 524_288, 65_536, 1_048_576)


@pytest.mark.parametrize(
    "shapes", [[(3,), (4, 4), (5,), (2, 16)], [(3,), (4, 4), (), (2, 16), (0,)]]
)
def test_what_is_joined_is_split_again(shapes):
    """Variables of every size in one array, all of them or neighbours alone: each is moved by its
    own gradient and to its own place.
    """
    layout = [(shape, "float32") for shape in shapes]
    variables = layout_variables(layout)
    optimizer = CASES["yogi"].optimizer(fused=True)
    optimizer.build(variables)
    for index, variable in enumerate(variables):
        optimizer.set_slot(variable, "momentum", np.full(variable.shape, index, "float32"))
    for present in (range(len(shapes)), [0], [0, 1], [1, 2, 3], [len(shapes) - 1]):
        chosen = [variables[i] for i in present]
        reference = CASES["yogi"].keras_reference([array(v) for v in chosen])
        for one, old in zip(reference.of_each, state_of(optimizer, chosen), strict=True):
            one.slots = {name: old[name].astype("float64") for name in one.slots}
        reference.calls = int(array(optimizer.iterations))
        gradients = [np.full(variables[i].shape, i + 1.0, "float32") for i in present]
        others = {i: array(v) for i, v in enumerate(variables) if i not in present}
        optimizer.apply([tensor(g) for g in gradients], chosen)
        reference.apply(gradients)
        for new, want in zip(state_of(optimizer, chosen), reference.state(), strict=True):
            for name, value in want.items():
                assert_close(new[name], value, TOLERANCE["float32"], name)
        for index, value in others.items():
            np.testing.assert_array_equal(array(variables[index]), value)


def test_packed_slot_refuses_another_shape():
    variables = layout_variables([((3, 2), "float32"), ((4,), "float32")])
    optimizer = keras_yogi.Adam(fused=True)
    optimizer.build(variables)
    with pytest.raises(ValueError, match="must be of its shape"):
        optimizer.set_slot(variables[0], "velocity", np.ones(6))
    with pytest.raises(ValueError, match="shape"):
        optimizer.slots()["velocity"][0].assign(np.ones(6))
    optimizer.set_slot(variables[0], "velocity", np.full((3, 2), 2.0))
    np.testing.assert_array_equal(optimizer.get_slot(variables[0], "velocity"), 2.0)
    np.testing.assert_array_equal(optimizer.get_slot(variables[1], "velocity"), 0.0)
