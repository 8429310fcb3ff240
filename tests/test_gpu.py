"""On a GPU: the update against the float64 reference, slots beside their weights, `fit`.

Needs pytest, Keras and JAX or PyTorch; TensorFlow is not needed. Without pytest-xdist, clear the
options that pyproject.toml gives:

    KERAS_YOGI_TEST_GPU=0 KERAS_BACKEND=jax pytest -o addopts= tests/test_gpu.py
    KERAS_YOGI_TEST_GPU=0 KERAS_BACKEND=torch pytest -o addopts= tests/test_gpu.py
"""

import contextlib

import keras
import numpy as np
import pytest
from support.backend import BACKEND, COMPILED, ENGINES, MODES, has_gpu
from support.cases import CASES, KINDS, default_case, over
from support.comparison import assert_close, assert_follows_the_reference
from support.models import fit_sine, model_state, sine_model
from support.training import initial_weights, take_steps, variables_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_gpu(), reason="no GPU, or KERAS_YOGI_TEST_GPU does not name it"),
]


def device_of(value):
    """The kind of device that a tensor lies on: "gpu", "cpu", …"""
    tensor = keras.ops.convert_to_tensor(value)
    if BACKEND == "jax":
        (device,) = tensor.devices()
        return device.platform
    if BACKEND == "torch":
        return tensor.device.type.replace("cuda", "gpu")
    return tensor.device.rpartition("device:")[2].partition(":")[0].lower()


def exact_products():
    """JAX rounds the factors of float32 products to 10 bits on a GPU unless it is told not to."""
    if BACKEND != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.default_matmul_precision("highest")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("engine", ENGINES)
@over(CASES)
def test_update_is_the_published_one(case, engine, mode, dtype):
    assert_follows_the_reference(case.on(engine), mode, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", ENGINES)
@over(KINDS)
def test_slots_lie_where_their_weights_lie(case, engine, dtype):
    optimizer = case.on(engine).optimizer()
    weights = initial_weights()
    variables = variables_of(weights, dtype)
    take_steps(optimizer, variables, [[np.ones_like(w) for w in weights]] * 2, COMPILED)
    kept = [slot for slots in optimizer.slots().values() for slot in slots]
    assert {device_of(value) for value in [*variables, *kept]} == {"gpu"}


def on(device):
    """On the GPU Keras computes unasked. PyTorch takes "cpu" and "cpu:0" for two devices."""
    cpu = "cpu" if BACKEND == "torch" else "cpu:0"
    return keras.device(cpu) if device == "cpu" else contextlib.nullcontext()


@default_case
def test_fit_ends_where_it_ends_on_a_cpu(case):
    states = {}
    for device in ("gpu", "cpu"):
        with on(device), exact_products():
            model = sine_model(case.optimizer())
            fit_sine(model)
            assert {device_of(v) for v in model.weights} == {device}
            states[device] = model_state(model)
    for on_gpu, on_cpu in zip(states["gpu"], states["cpu"], strict=True):
        # The devices sum in other orders: 6e-8 a sum, in the gradients of eight steps.
        assert_close(on_gpu, on_cpu.astype("float64"), 5e-5)
