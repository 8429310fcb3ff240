"""What a backend may do otherwise: its own loop in `fit`, its devices, its sparse gradients, files.

The update itself, and what Keras does around it, is tested on every backend by the other modules
with the mark `backends`.
"""

import keras
import numpy as np
import pytest
from keras import ops
from support import file_exchange
from support.backend import BACKEND, ON_TENSORFLOW, array, gradients_of, tensor
from support.cases import BOTH, CASES, KINDS, OPTIONS, default_case, over
from support.comparison import assert_close, assert_unchanged, snapshot
from support.figures import ROUNDING, assert_figures, by_hand
from support.models import LENGTH, VOCABULARY, fit_sine, model_state, sine, sine_model, texts
from support.processes import run_python
from support.tensorboard_runs import events, fit_lookups, lookup_model, scalars

import keras_yogi

on_jax = pytest.mark.skipif(BACKEND != "jax", reason="JAX alone")
on_torch = pytest.mark.skipif(BACKEND != "torch", reason="PyTorch alone")
elsewhere = pytest.mark.skipif(ON_TENSORFLOW, reason="other backends than TensorFlow")

# Of each array's largest value. A compiled step sums in another order than single operations: 6e-8
# a sum in the gradients of a dozen steps, each of which feeds the next; 4e-6 has been seen. An
# option that is not heeded moves the weights by 100 times as much, which is tested too.
ANOTHER_ORDER = 5e-5


def assert_nearly_unchanged(before, after, tolerance=ANOTHER_ORDER):
    for old, new in zip(before, after, strict=True):
        assert_close(new, old.astype("float64"), tolerance)


# `fit`


def by_loop(model, infinite=False, epochs=2):
    """The steps of `fit_sine`, one call of `apply` after another."""
    x, y = sine(infinite=infinite)
    variables = model.trainable_variables
    for start in list(range(0, len(x), 16)) * epochs:
        batch = slice(start, start + 16)
        gradients = gradients_of(
            lambda batch=batch: ops.mean(ops.square(model(x[batch]) - tensor(y[batch]))), variables
        )
        model.optimizer.apply(gradients, variables)
    model.optimizer.finalize_variable_values(variables)


IN_FIT = (
    "plain",
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "ema",
    "ema, overwriting",
    "accumulation",
    "schedule",
    "skip_nonfinite",
    "everything",
)


@pytest.mark.parametrize("option", IN_FIT)
def test_fit_is_a_loop_of_apply(option):
    case, options = CASES["yogi"], OPTIONS[option]
    infinite = "skip_nonfinite" in options
    fitted, looped = (sine_model(case.optimizer(**options)) for _ in range(2))
    fit_sine(fitted, infinite=infinite)
    by_loop(looped, infinite)
    assert_nearly_unchanged(model_state(looped), model_state(fitted))
    assert fitted.optimizer.skipped_steps == (2 if infinite else 0)  # one a pass over the data
    if option != "plain":  # the comparison can fail: without the option it ends elsewhere
        plain = sine_model(case.optimizer())
        by_loop(plain)
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            assert_nearly_unchanged(plain.get_weights(), fitted.get_weights(), 100 * ANOTHER_ORDER)


def test_fit_goes_on_after_its_averages_were_handed_out():
    """A weight and its average must not be one buffer of JAX, which the next `fit` gives away."""
    once, twice = (sine_model(CASES["adam"].optimizer(**OPTIONS["ema"])) for _ in range(2))
    fit_sine(twice, epochs=1)
    fit_sine(twice, epochs=1)
    by_loop(once, epochs=1)
    by_loop(once, epochs=1)
    assert_nearly_unchanged(model_state(once), model_state(twice))


def test_weights_are_loaded_into_a_model_whose_fit_is_compiled(tmp_path):
    source, end = (sine_model(CASES["yogi"].optimizer(**OPTIONS["clipvalue"])) for _ in range(2))
    fit_sine(source)
    source.save_weights(tmp_path / "model.weights.h5")
    fit_sine(end, epochs=1)
    end.load_weights(tmp_path / "model.weights.h5")
    for model in (source, end):
        fit_sine(model)
    assert_unchanged(model_state(source), model_state(end))


def fit_table(optimizer, first_layers, table):
    words, labels = texts(256)
    table_layer = first_layers[-1]
    head = [keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1, kernel_initializer="ones")]
    model = keras.Sequential([keras.Input((LENGTH,), dtype="int32"), *first_layers, *head])
    table_layer.set_weights([table])
    model.compile(optimizer, loss="mse")
    model.fit(words, labels, batch_size=32, epochs=6, shuffle=False, verbose=0)
    return table_layer.get_weights()[0]


def tables_of_twins(optimizer):
    """The table after `fit`, as an Embedding and as one-hot and Dense."""
    table = np.random.default_rng(5).normal(scale=0.05, size=(VOCABULARY, 8)).astype("float32")
    one_hot = keras.layers.Lambda(
        lambda words: ops.one_hot(words, VOCABULARY), output_shape=(LENGTH, VOCABULARY)
    )
    embedding = fit_table(optimizer(), [keras.layers.Embedding(VOCABULARY, 8)], table)
    dense = fit_table(optimizer(), [one_hot, keras.layers.Dense(8, use_bias=False)], table)
    return embedding, dense, table


@pytest.mark.parametrize("optimizer", BOTH)
def test_embedding_trains_like_its_one_hot_twin(optimizer):
    # ε = 1e-3: with a smaller one, rounding decides where gradients are nearly zero
    embedding, dense, table = tables_of_twins(lambda: optimizer(0.01, epsilon=1e-3))
    moved = np.abs(dense - table).max()
    assert moved > 0.05
    assert np.abs(embedding - dense).max() < 1e-4 * moved


@pytest.mark.skipif(
    not ON_TENSORFLOW or keras.version() >= "3.16", reason="recorded with Keras 3.10 to 3.15"
)
def test_embedding_and_its_twin_part_under_keras_adam():
    """The contrast, recorded: 0.0153 apart where the weights moved 0.128."""
    embedding, dense, table = tables_of_twins(lambda: keras.optimizers.Adam(0.01, epsilon=1e-3))
    assert np.abs(embedding - dense).max() == pytest.approx(0.0153, rel=0.02)
    assert np.abs(dense - table).max() == pytest.approx(0.128, rel=0.02)


# Variables and engines


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "use_ema": True}], ids=str)
def test_variables_are_those_of_keras_adam(options):
    shapes = [(2, 3), (3,)]
    optimizers = [adam(name="adam", **options) for adam in (keras_yogi.Adam, keras.optimizers.Adam)]
    for optimizer in optimizers:
        optimizer.build([keras.Variable(np.ones(shape), name="w") for shape in shapes])
    ours, theirs = ([(v.path, tuple(v.shape)) for v in o.variables] for o in optimizers)
    assert ours == theirs


@on_jax
@default_case
def test_fused_is_refused(case):
    optimizer = case.optimizer(fused=True)
    with pytest.raises(ValueError, match=f"`fused` must be .*Keras runs on {BACKEND}"):
        optimizer.build([keras.Variable(np.ones(3, "float32"))])
    config = optimizer.get_config()
    assert type(optimizer).from_config(config).fused == "auto"  # a file from elsewhere loads


WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None  # importing it raises, as where it is not installed
import keras
import numpy as np
import keras_yogi
x, y = np.ones((8, 3), "float32"), np.ones((8, 1), "float32")
for optimizer in (keras_yogi.Adam(), keras_yogi.Yogi(skip_nonfinite=True)):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer, loss="mse")
    keras_yogi.warm_start(model, x, y, verbose=0)
    model.fit(x, y, batch_size=2, verbose=0)
    model.save("model.keras")
    model = keras.saving.load_model("model.keras")
    model.fit(x, y, batch_size=2, verbose=0)
    print(type(model.optimizer).__name__, keras_yogi.diagnose(model).step)
"""


@elsewhere
def test_tensorflow_is_not_needed(tmp_path):
    """Training, `warm_start`, `diagnose` and files, where it is not installed."""
    done = run_python("-c", WITHOUT_TENSORFLOW, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["Adam", "8", "Yogi", "8"]


# Sparse gradients of JAX and PyTorch


@elsewhere
@pytest.mark.parametrize("option", ["plain", "skip_nonfinite", "clipnorm"])
def test_repeated_rows_are_summed(option):
    """A sparse gradient that names a row twice is the dense one that it stands for."""
    rows, values = np.array([1, 4, 1]), np.array([[1.0, 2.0], [3.0, -1.0], [0.5, -4.0]], "float32")
    dense = np.zeros((5, 2), "float32")
    np.add.at(dense, rows, values)
    if BACKEND == "jax":
        from jax.experimental.sparse import BCOO

        sparse = BCOO((values, rows[:, None]), shape=dense.shape)
    else:
        import torch

        sparse = torch.sparse_coo_tensor(rows[None], values, dense.shape, check_invariants=True)

    def run(gradient):
        variable = keras.Variable(np.ones((5, 2)), dtype="float32")
        optimizer = CASES["yogi"].optimizer(**OPTIONS[option])
        for _ in range(2):
            optimizer.apply([gradient], [variable])
        return snapshot(optimizer, [variable])

    # a few roundings of 6e-8: the pieces may be added in another order
    assert_nearly_unchanged(run(tensor(dense)), run(sparse), 1e-6)


# Devices of JAX


# On a mesh of two groups of four devices, a layout map that names the weights alone.
SHARDED = {"data parallel": 0, "model parallel": 4, "sharded over the data axis": 4}
"""How many slots are cut in parts: two of each kernel."""


def set_distribution(name):
    """Over eight devices."""
    devices = keras.distribution.list_devices()
    assert len(devices) == 8, devices
    if not SHARDED[name]:
        distribution = keras.distribution.DataParallel(devices=devices)
    else:
        mesh = keras.distribution.DeviceMesh((2, 4), ["batch", "model"], devices)
        layout = keras.distribution.LayoutMap(mesh)
        layout[".*kernel"] = ("model" if name == "model parallel" else "batch", None)
        distribution = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
    keras.distribution.set_distribution(distribution)


def sharded_model(option="everything"):
    layers = [keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    random = np.random.default_rng(8)
    model.set_weights([random.normal(size=w.shape) / 2 for w in model.get_weights()])
    model.compile(CASES["yogi"].optimizer(**OPTIONS[option]), loss="mse")
    return model


def fit_sharded(model, epochs=2):
    x, y = sine(infinite=True)
    model.fit(x[:, :4], y, batch_size=16, epochs=epochs, shuffle=False, verbose=0)


@pytest.fixture
def distributed(request):
    """After the test, no distribution."""
    yield request.param
    keras.distribution.set_distribution(None)


on_eight_devices = pytest.mark.parametrize("distributed", SHARDED, indirect=True)


def weights_and_slots(model):
    return [
        (variable.value, slot.value)
        for slots in model.optimizer.slots().values()
        for variable, slot in zip(model.trainable_variables, slots, strict=True)
    ]


@on_jax
@on_eight_devices
def test_eight_devices_are_one(distributed):
    """Batches over eight devices, or the weights, and with them the slots."""
    one = sharded_model()
    fit_sharded(one)
    set_distribution(distributed)
    eight = sharded_model()
    fit_sharded(eight)
    assert one.optimizer.skipped_steps == eight.optimizer.skipped_steps == 2
    assert_nearly_unchanged(model_state(one), model_state(eight))
    pairs = weights_and_slots(eight)
    for variable, slot in pairs:
        assert len(slot.sharding.device_set) == 8
        assert slot.sharding.is_equivalent_to(variable.sharding, variable.ndim)
    assert sum(not slot.sharding.is_fully_replicated for _, slot in pairs) == SHARDED[distributed]


@on_jax
@pytest.mark.parametrize(
    ("distributed", "kernels"),
    # float32, of kernels (4, 8) and (8, 1), cut in as many parts as the axis is long
    [("data parallel", 32 + 8), ("model parallel", 8 + 2), ("sharded over the data axis", 16 + 4)],
    indirect=["distributed"],
)
def test_bytes_a_device(distributed, kernels):
    set_distribution(distributed)
    model = sharded_model("plain")
    fit_sharded(model)
    for device in range(8):
        held = sum(
            slot.addressable_shards[device].data.nbytes for _, slot in weights_and_slots(model)
        )
        assert held == 2 * 4 * (kernels + 8 + 1)  # two slots; biases are whole everywhere


@on_jax
@on_eight_devices
def test_one_program_serves_all_steps(distributed, caplog):
    import jax

    set_distribution(distributed)
    model = sharded_model("skip_nonfinite")
    with jax.log_compiles(True), caplog.at_level("WARNING", logger="jax"):
        fit_sharded(model)  # eight steps
    compiled = [r.getMessage() for r in caplog.records if "compilation of jit(" in r.getMessage()]
    assert len([message for message in compiled if "train" in message]) == 1, compiled


@on_jax
@on_eight_devices
def test_a_sharded_training_goes_on_from_a_file(distributed, tmp_path):
    set_distribution(distributed)
    whole, half = sharded_model(), sharded_model()
    fit_sharded(whole, epochs=2)
    fit_sharded(half, epochs=1)
    half.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    fit_sharded(resumed, epochs=1)
    assert_unchanged(model_state(whole), model_state(resumed))
    for variable, slot in weights_and_slots(resumed):
        assert slot.sharding.is_equivalent_to(variable.sharding, variable.ndim)


# Programs of JAX


def stateless(optimizer, count=5):
    """A built optimizer's `stateless_apply`, and what it takes."""
    variables = [keras.Variable(np.full(3, i + 1.0), dtype="float32") for i in range(count)]
    optimizer.build(variables)
    values = [v.value for v in variables]
    return optimizer.stateless_apply, ([v.value for v in optimizer.variables], values, values)


@on_jax
def test_a_step_is_skipped_by_one_condition():
    """A selection for each value would take JAX ten times as long to compile."""
    import jax

    def primitives(**options):
        function, arguments = stateless(CASES["adam"].optimizer(**options))
        return [e.primitive.name for e in jax.make_jaxpr(function)(*arguments).jaxpr.eqns]

    plain, skipping = primitives(), primitives(skip_nonfinite=True)
    assert (plain.count("cond"), skipping.count("cond")) == (0, 1)
    assert skipping.count("select_n") <= plain.count("select_n")


@on_jax
@pytest.mark.filterwarnings("error")  # JAX warns of a donated buffer that it cannot use
@pytest.mark.parametrize("option", ["plain", "skip_nonfinite"])
def test_donated_buffers_are_used(option):
    import jax

    function, (own, gradients, weights) = stateless(CASES["adam"].optimizer(**OPTIONS[option]))
    own, weights = jax.tree.map(jax.numpy.copy, (own, weights))
    jax.jit(function, donate_argnums=(0, 2))(own, gradients, weights)
    assert all(value.is_deleted() for value in [*own[2:], *weights])  # all but t and η


# Groups and graphs of PyTorch


MIXED = [*[(4, 3), (5,), (), (0, 2)] * 4, (400, 500), (40_000,)]
"""Shapes: small ones, an empty one, one of more than one piece, one between."""


def mixed_variables():
    random = np.random.default_rng(3)
    dtypes = ["float32"] * 13 + ["float64", "float16", "float32", "float32", "float32"]
    values = [random.normal(size=shape) for shape in MIXED]
    variables = [keras.Variable(v, dtype=d) for v, d in zip(values, dtypes, strict=True)]
    variables[-2].value.data = variables[-2].value.data.T.contiguous().T  # other strides
    return variables


def mixed_steps(optimizer, variables, steps=6, between=lambda step: None):
    """Steps with other sets of gradients each time: all, all but one, a few."""
    random = np.random.default_rng(4)
    for step in range(steps):
        gradients = [
            tensor(random.normal(size=s), v.dtype) for s, v in zip(MIXED, variables, strict=True)
        ]
        for missing in ([], [2], range(3, len(MIXED) - 2))[step % 3]:
            gradients[missing] = None
        optimizer.apply(gradients, variables)
        between(step)
    return snapshot(optimizer, variables)


@on_torch
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@over(KINDS)
def test_groups_compute_what_single_variables_do(case):
    """To the bit: the operations are the same, element by element."""

    def run(**options):
        optimizer, variables = case.optimizer(**options), mixed_variables()

        def set_a_slot(step):
            optimizer.set_slot(variables[1], "velocity", np.full(5, step + 1.0))
            optimizer.set_slot(variables[-2], "momentum", np.full(MIXED[-2], 0.5))

        return mixed_steps(optimizer, variables, between=set_a_slot)

    assert_unchanged(run(fused=False), run(fused=True))


@on_torch
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_slots_may_be_given_other_memory():
    """As whoever moves them to another device does."""

    def run(**options):
        optimizer, variables = CASES["yogi"].optimizer(**options), mixed_variables()

        def move(step):
            for slot in optimizer.variables[2 + step :: 3]:
                slot.value.data = slot.value.data.clone()

        return mixed_steps(optimizer, variables, between=move)

    assert_unchanged(run(fused=False), run(fused=True))


@on_torch
@pytest.mark.parametrize("option", ["plain", "skip_nonfinite", "ema"])
def test_torch_compile_takes_a_step_whole(option):
    """All variables, or some of them: Keras's warning of a None gradient cannot be traced."""
    import torch

    torch.compiler.reset()  # it compiles a function for a few optimizers at most

    def run(compiled):
        optimizer = CASES["yogi"].optimizer(**OPTIONS[option])
        variables = [keras.Variable(np.full(3, i + 1.0), dtype="float32") for i in range(4)]
        optimizer.build(variables)

        def step(gradients, start):
            with torch.no_grad():
                optimizer.apply(gradients, variables[start:])

        take = torch.compile(step, backend="aot_eager", fullgraph=True) if compiled else step
        infinite = np.inf if option == "skip_nonfinite" else 2.0
        for start, last in ((0, -1.0), (2, 0.25), (0, infinite), (0, 1.0)):
            take([tensor([i, 0.5, last], "float32") for i in range(start, 4)], start)
        return snapshot(optimizer, variables)

    assert_nearly_unchanged(run(compiled=False), run(compiled=True), 1e-6)


@on_torch
def test_stateless_apply_writes_nothing():
    function, arguments = stateless(CASES["adam"].optimizer())
    before = [[array(value) for value in values] for values in arguments]
    weights, own = function(*arguments)
    assert [array(w).tobytes() for w in weights] != [w.tobytes() for w in before[2]]
    for values, old in zip(arguments, before, strict=True):
        assert_unchanged(old, [array(value) for value in values])
    assert int(array(own[0])) == 1


@on_torch
@pytest.mark.parametrize("option", ["plain", "skip_nonfinite"])
def test_shapes_alone(option):
    """On PyTorch's "meta" device tensors have no numbers."""
    with keras.device("meta"):
        variables = [keras.Variable(keras.ops.zeros(shape)) for shape in [(3,), (2, 2)]]
        optimizer = CASES["yogi"].optimizer(**OPTIONS[option])
        optimizer.apply([keras.ops.ones(v.shape) for v in variables], variables)
    assert {v.value.device.type for v in optimizer.variables} == {"meta"}


@on_torch
def test_a_loop_without_no_grad_keeps_no_graph():
    model = sine_model(CASES["yogi"].optimizer())
    by_loop(model)
    assert [v.path for v in model.optimizer.variables if v.value.grad_fn is not None] == []


# Figures


@pytest.mark.parametrize("frequency", ["batch", "epoch"])
def test_tensorboard(frequency, tmp_path):
    """The figures are those of the slots, and training is what it is without the callback."""
    watched, alone = (lookup_model(CASES["yogi"].optimizer(0.0625)) for _ in range(2))
    callback = keras_yogi.TensorBoard(tmp_path, histogram_freq=1, optimizer_freq=frequency)
    fit_lookups(watched, callback, shuffle=False)
    fit_lookups(alone, keras.callbacks.Callback(), shuffle=False)
    assert_unchanged(model_state(alone), model_state(watched))
    _, model = by_hand(watched.optimizer, watched.trainable_variables)
    for figure, expected in model.items():
        steps = scalars(tmp_path, f"optimizer/{figure}")
        assert list(steps) == ([1, 2, 3, 4, 5, 6] if frequency == "batch" else [0, 1])
        assert list(steps.values())[-1] == pytest.approx(expected, rel=ROUNDING), figure
    assert any(kind == "histograms" for _, kind in events(tmp_path))


def test_diagnose():
    model = sine_model(CASES["adam, epsilon_hat"].optimizer(**OPTIONS["clipvalue"]))
    fit_sine(model)
    report = keras_yogi.diagnose(model.optimizer)
    assert report.step == int(array(model.optimizer.iterations.value)) == 8
    assert_figures(report, model.optimizer, model.trainable_variables)


# Files


@pytest.fixture(scope="module", params=["from TensorFlow", "to TensorFlow"])
def exchanged(request, tmp_path_factory):
    """The folder of files that one backend has written and another has read."""
    folder = tmp_path_factory.mktemp("exchanged")

    def on_tensorflow(what):
        done = run_python("-m", "support.file_exchange", what, folder, KERAS_BACKEND="tensorflow")
        assert done.returncode == 0, done.stderr[-3000:]

    if request.param == "from TensorFlow":
        on_tensorflow("save")
        file_exchange.load(folder)
    else:
        file_exchange.save(folder)
        on_tensorflow("load")
    return folder


@elsewhere
@pytest.mark.parametrize("name", file_exchange.EXCHANGED)
def test_training_goes_on_on_another_backend(exchanged, name):
    saved, loaded, ours, theirs = (
        file_exchange.read(exchanged, name, when)
        for when in ("saved", "loaded", "trained on", "loaded and trained on")
    )
    for old, new in zip(saved, loaded, strict=True):  # counters are wider on TensorFlow
        np.testing.assert_array_equal(new, old)
    assert_nearly_unchanged(ours, theirs)
    assert max(np.abs(a - b).max() for a, b in zip(saved, ours, strict=True)) > 1e-3
