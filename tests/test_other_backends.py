"""The same optimizers with KERAS_BACKEND=jax and torch, each in a process of its own.

Runs where JAX or PyTorch is installed. `_other_backend.py` has the experiments.
"""

import functools
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import _other_backend
import backend_training
import keras
import numpy as np
import pytest
from _other_backend import ROADS, SKIPPING
from backend_training import EVERYWHERE, OPTIONS, SAVED, path_of
from reference import (
    TOLERANCE,
    assert_same_trajectory,
    hard_gradients,
    initial_weights,
    reference_trajectory,
)
from test_update import CASES, LEARNING_RATE

pytestmark = pytest.mark.slow

BACKENDS = ("jax", "torch")
INSTALLED = [backend for backend in BACKENDS if importlib.util.find_spec(backend)]
SCRIPT = Path(_other_backend.__file__)

# Of each array's largest value. Backends sum in another order: 6e-8 a sum in the gradients of 15
# steps, each of which feeds the next; 4e-6 has been seen, and 2e-5 where batch normalization
# divides by small deviations. An option that is not heeded moves the weights by 100 times as much:
# see test_options_matter.
ROUNDING = 5e-5
# 10 bits in the activations' gradients, squared; 1.4e-3 has been seen
HALF_PRECISION = 5e-3


def cases(*pairs):
    """Pairs of a backend and an experiment's name."""
    ids = ["-".join(pair) for pair in pairs]
    return pytest.mark.parametrize(("backend", "name"), pairs, ids=ids)


def on_both(*names):
    return cases(*itertools.product(BACKENDS, names))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What goes between the processes."""
    folder = tmp_path_factory.mktemp("backends")
    given = {
        "cases": {
            name: {"learning_rate": LEARNING_RATE, "epsilon": 1e-6, **case}
            for name, case in CASES.items()
        },
        "weights": initial_weights(),
        "gradients": hard_gradients(),
    }
    (folder / "given.json").write_text(_other_backend.as_json(given))
    return folder


@pytest.fixture(scope="module")
def on_tensorflow(folder):
    """The result of an experiment in this process."""
    assert keras.config.backend() == "tensorflow"
    here = {
        **EVERYWHERE,
        "load_weights": lambda: backend_training.load_weights_into_a_trained_model(folder),
        **{
            f"save: {name}": functools.partial(
                backend_training.save, path_of(folder, "tensorflow", name), name
            )
            for name in SAVED
        },
    }
    return functools.cache(lambda name: here[name]())


@pytest.fixture(scope="module")
def result(folder, on_tensorflow):
    """The result of an experiment on another backend, which runs all of its own once."""

    @functools.cache
    def lines(backend):
        for name in SAVED:
            on_tensorflow(f"save: {name}")
        environment = {
            **os.environ,
            "KERAS_BACKEND": backend,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        }
        run = subprocess.run(
            [sys.executable, SCRIPT, folder],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert run.returncode == 0, run.stderr
        return {line["name"]: line for line in map(json.loads, run.stdout.splitlines())}

    def result(backend, name):
        if backend not in INSTALLED:
            pytest.skip(f"{backend} is not installed")
        line = lines(backend)[name]
        if "error" in line:
            pytest.fail(line["error"], pytrace=False)
        return line["result"]

    return result


def differences(actual, expected, path=""):
    """By path: the largest difference, in units of the expected array's largest value."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        pairs = [(actual[key], expected[key], f"{path}/{key}") for key in expected]
        return {k: v for pair in pairs for k, v in differences(*pair).items()}
    actual, expected = np.asarray(actual, "float64"), np.asarray(expected, "float64")
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all(), path
    largest = np.abs(expected).max()
    return {path: np.abs(actual - expected).max() / (largest if largest > 0 else 1.0)}


def assert_same(actual, expected, tolerance=ROUNDING):
    off = differences(actual, expected)
    assert max(off.values()) <= tolerance, {k: v for k, v in off.items() if v > tolerance}


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensorflow_is_not_imported(result, backend):
    """Neither by `import keras_yogi` nor in `fit`."""
    imported = result(backend, "tensorflow imported")
    if imported["by keras"]:
        pytest.skip("Keras imports it")
    assert not imported["in the end"]


@on_both(*(name for name in EVERYWHERE if "float16" not in name), "load_weights")
def test_same_as_on_tensorflow(result, on_tensorflow, backend, name):
    assert_same(result(backend, name), on_tensorflow(name))


@on_both("warm_start: mixed_float16")
def test_same_as_on_tensorflow_in_half_precision(result, on_tensorflow, backend, name):
    assert_same(result(backend, name), on_tensorflow(name), HALF_PRECISION)


@pytest.mark.skipif(not INSTALLED, reason="there is nothing to compare with")
@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("adam", "yogi")])
def test_options_matter(on_tensorflow, name):
    """The comparison can fail: without its options, `fit` would have ended elsewhere."""
    runs = [on_tensorflow(f"fit: {case}") for case in (OPTIONS[name]["rule"], name)]
    without, with_option = [{k: v for k, v in run.items() if "weight" in k} for run in runs]
    assert max(differences(with_option, without).values()) > 100 * ROUNDING


@cases(
    *(
        (backend, f"update: {road}, {dtype}, {case}")
        for backend in BACKENDS
        for road, (_, dtypes) in ROADS[backend].items()
        for dtype in dtypes
        for case in CASES
    )
)
def test_update_is_the_published_one(result, backend, name):
    _, dtype, case = name.split(", ", 2)
    actual = result(backend, name)
    weights = [w.astype(dtype) for w in initial_weights()]
    expected = reference_trajectory(
        weights, hard_gradients(), learning_rate=LEARNING_RATE, **CASES[case]
    )
    assert_same_trajectory(actual, expected, TOLERANCE[dtype])


@cases(
    *(
        (backend, f"faulty steps: {road}, {options}")
        for backend in BACKENDS
        for road in ROADS[backend]
        for options in SKIPPING
    )
)
def test_faulty_steps_leave_no_trace(result, backend, name):
    run = result(backend, name)
    for actual, expected in zip(run["actual"], run["expected"], strict=True):
        # a compiled function may round otherwise where it also selects
        np.testing.assert_allclose(actual, expected, rtol=2e-7 if "stateless" in name else 0)
    assert run["skipped_steps"] == 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_fused_is_refused(result, backend):
    message = result(backend, "fused=True")
    assert "`fused` must be" in message
    assert f"Keras runs on {backend}" in message


@on_both("repeated rows", "repeated rows, skip_nonfinite", "repeated rows, clipnorm")
def test_repeated_rows_are_summed(result, backend, name):
    run = result(backend, name)
    assert_same(run["sparse"], run["dense"], 1e-6)  # a few roundings of 6e-8


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_goes_on_from_a_file(result, backend, name):
    model, loaded = result(backend, f"save: {name}"), result(backend, f"load: {name} of {backend}")
    assert max(differences(loaded, model).values()) == 0


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_goes_on_on_another_backend(result, on_tensorflow, folder, backend, name):
    ours, theirs = on_tensorflow(f"save: {name}"), result(backend, f"save: {name}")
    for loaded, model in [
        (result(backend, f"load: {name} of tensorflow"), ours),
        (backend_training.load(path_of(folder, backend, name)), theirs),
    ]:
        assert max(differences(loaded["saved"], model["saved"]).values()) == 0
        assert_same(loaded["trained on"], model["trained on"])


# The kernels of two layers are cut in halves, and so are their two slots.
@pytest.mark.parametrize(("name", "halves"), [("data parallel", 0), ("model parallel", 4)])
def test_two_devices_are_one(result, name, halves):
    run = result("jax", name)
    assert set(run["devices"]) == {2}
    assert run["slots in halves"] == halves
    assert run["slots apart from their weights"] == []
    assert run["two devices"]["skipped_steps"] == 3
    assert_same(run["two devices"], run["one device"])


def test_custom_loop_of_torch(result):
    run = result("torch", "custom loop")
    assert_same(run["state"], result("torch", "fit: yogi"))
    assert run["graphs"] == []
