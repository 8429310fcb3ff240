"""JAX alone: its devices, and the programs that it compiles."""

import keras
import numpy as np
import pytest
from support.backend import BACKEND
from support.cases import CASES, OPTIONS, default_case
from support.comparison import assert_nearly_unchanged, assert_unchanged
from support.models import model_state, sine
from support.training import stateless

pytestmark = pytest.mark.skipif(BACKEND != "jax", reason="JAX alone")


@default_case
def test_fused_is_refused(case):
    optimizer = case.optimizer(fused=True)
    with pytest.raises(ValueError, match=f"`fused` must be .*Keras runs on {BACKEND}"):
        optimizer.build([keras.Variable(np.ones(3, "float32"))])
    config = optimizer.get_config()
    assert type(optimizer).from_config(config).fused == "auto"  # a file from elsewhere loads


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


@on_eight_devices
def test_one_program_serves_all_steps(distributed, caplog):
    import jax

    set_distribution(distributed)
    model = sharded_model("skip_nonfinite")
    with jax.log_compiles(True), caplog.at_level("WARNING", logger="jax"):
        fit_sharded(model)  # eight steps
    compiled = [r.getMessage() for r in caplog.records if "compilation of jit(" in r.getMessage()]
    assert len([message for message in compiled if "train" in message]) == 1, compiled


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


def test_a_step_is_skipped_by_one_condition():
    """A selection for each value would take JAX ten times as long to compile."""
    import jax

    def primitives(**options):
        function, arguments = stateless(CASES["adam"].optimizer(**options))
        return [e.primitive.name for e in jax.make_jaxpr(function)(*arguments).jaxpr.eqns]

    plain, skipping = primitives(), primitives(skip_nonfinite=True)
    assert (plain.count("cond"), skipping.count("cond")) == (0, 1)
    assert skipping.count("select_n") <= plain.count("select_n")


@pytest.mark.filterwarnings("error")  # JAX warns of a donated buffer that it cannot use
@pytest.mark.parametrize("option", ["plain", "skip_nonfinite"])
def test_donated_buffers_are_used(option):
    import jax

    function, (own, gradients, weights) = stateless(CASES["adam"].optimizer(**OPTIONS[option]))
    own, weights = jax.tree.map(jax.numpy.copy, (own, weights))
    jax.jit(function, donate_argnums=(0, 2))(own, gradients, weights)
    assert all(value.is_deleted() for value in [*own[2:], *weights])  # all but t and η
