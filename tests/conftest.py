"""Quiet backends, fixed seeds, which modules run on which backend, what several modules need."""

import os
from pathlib import Path

import pytest

# Keras is not imported here: the process that only hands out tests to others need not wait for it.
BACKEND = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Two processes of tests share the cores: PyTorch's threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The card's number: what is not named there, no test sees.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("KERAS_YOGI_TEST_GPU", ""))
if BACKEND == "jax" and not os.environ.get("KERAS_YOGI_TEST_GPU"):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Eight devices, for the tests of keras.distribution. LLVM optimizes nothing: most programs run
    # a few times only, and optimizing them takes longer.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    os.environ.setdefault("XLA_FLAGS", flags)

HERE = Path(__file__).resolve().parent
ON_EVERY_BACKEND = sorted(
    path.name
    for pattern in (
        "test_arguments.py",
        "test_backend*.py",
        "test_bad_calls.py",
        "test_contract_*.py",
        "test_gpu.py",
        "test_half_precision*.py",
        "test_jax.py",
        "test_keras_adam.py",
        "test_properties.py",
        "test_saving.py",
        "test_settings.py",
        "test_skip_nonfinite.py",
        "test_slots.py",
        "test_torch.py",
        "test_unusual_calls.py",
        "test_unusual_models.py",
        "test_update.py",
        "test_warm_start.py",
        "test_wrong_rules.py",
    )
    for path in HERE.glob(pattern)
)
"""The modules that run as they are with KERAS_BACKEND=jax and KERAS_BACKEND=torch, and have the
mark `backends`. With another backend than TensorFlow no other module is looked at.
"""

collect_ignore = (
    []
    if BACKEND == "tensorflow"
    else [p.name for p in HERE.glob("test_*.py") if p.name not in ON_EVERY_BACKEND]
)


LONGEST = (
    "test_distribute.py",
    "test_examples.py",
    "test_multi_worker.py",
    "test_compare.py",
    "test_keras_own_tests.py",
    "test_faults.py",
)
"""The files that take longest come first: two processes are then busy to the end."""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name in ON_EVERY_BACKEND:
            item.add_marker(pytest.mark.backends)
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(autouse=True)
def fixed_seed():
    import keras

    keras.utils.set_random_seed(20181203)


@pytest.fixture(autouse=True)
def float64_on_jax(request):
    """JAX makes float32 of float64 unless it is told not to, for tests that need it."""
    parameters = getattr(request.node, "callspec", None)
    needed = request.node.get_closest_marker("float64") or (
        parameters and parameters.params.get("dtype") == "float64"
    )
    if BACKEND != "jax" or not needed:
        yield
        return
    import jax

    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def compare():
    """examples/compare.py as a module: for what needs no process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE.parent / "examples"))
        import compare

        yield compare
