"""What test_other_backends.py has run in a process with KERAS_BACKEND=jax or torch.

An experiment trains something and returns numbers. Those of `EVERYWHERE` run on any backend; the
test runs them on TensorFlow too, and compares. As a program, prints one JSON line per experiment,
{"name": …, "result": …} or {"name": …, "error": …}: JSON keeps every bit of a float.
"""

import contextlib
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import keras
import numpy as np

KERAS_IMPORTS_TENSORFLOW = "tensorflow" in sys.modules

from backend_training import (  # noqa: E402
    EVERYWHERE,
    OPTIONS,
    SAVED,
    Experiments,
    compiled,
    data,
    load,
    load_weights_into_a_trained_model,
    optimizer_of,
    path_of,
    save,
    state,
    train,
)


def as_json(value: Any) -> str:
    return json.dumps(value, default=lambda array: np.asarray(array).tolist())


# The update itself


def trajectory(case: dict, weights: list, gradients: list, dtype: str, apply: Callable) -> list:
    """As `reference.trajectory`, which needs TensorFlow."""
    variables = [keras.Variable(np.array(w), dtype=dtype) for w in weights]
    optimizer = optimizer_of(**case)
    optimizer.build(variables)
    step = apply(optimizer, variables)

    def slots(variable: keras.Variable) -> dict:
        return {
            name: keras.ops.convert_to_numpy(optimizer.get_slot(variable, name))
            for name in optimizer.slots()
        }

    states = [[{"weights": v.numpy(), **slots(v)} for v in variables]]
    for row in gradients:
        step([keras.ops.convert_to_tensor(np.array(g), dtype) for g in row])
        states.append([{"weights": v.numpy(), **slots(v)} for v in variables])
    return states


def eager_apply(optimizer, variables) -> Callable:
    return lambda gradients: optimizer.apply(gradients, variables)


def jitted_stateless_apply(optimizer, variables) -> Callable:
    import jax

    stateless_apply = jax.jit(optimizer.stateless_apply)

    def step(gradients: list) -> None:
        trained, own = stateless_apply(
            [v.value for v in optimizer.variables], gradients, [v.value for v in variables]
        )
        for variable, value in zip(
            [*variables, *optimizer.variables], [*trained, *own], strict=True
        ):
            variable.assign(value)

    return step


ROADS = {
    "jax": {
        "apply": (eager_apply, ["float32"]),
        "stateless_apply": (jitted_stateless_apply, ["float64"]),
    },
    "torch": {"apply": (eager_apply, ["float32", "float64"])},
}


def fused_error() -> str | None:
    variable = keras.Variable(np.ones(3, "float32"))
    try:
        optimizer_of("yogi", fused=True).build([variable])
    except ValueError as error:
        return str(error)
    return None


def jax_in_float64(experiment: Callable[[], Any]) -> Any:
    import jax

    jax.config.update("jax_enable_x64", True)
    try:
        return experiment()
    finally:
        jax.config.update("jax_enable_x64", False)


SKIPPING = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "ema, decay": {
        "use_ema": True,
        "ema_momentum": 0.9,
        "ema_overwrite_frequency": 2,
        "weight_decay": 0.1,
    },
    "schedule": {"learning_rate": {"decay_steps": 1, "decay_rate": 0.5}},
}


def faulty_steps(apply: Callable, options: str) -> dict:
    """All variables after faulty steps among good ones, and after the good ones alone."""

    def run(scales: list[float], **skipping) -> tuple[list, int]:
        variables = [keras.Variable(np.ones(3, "float32")), keras.Variable(np.float32(2.0))]
        optimizer = optimizer_of("yogi", **SKIPPING[options], **skipping)
        optimizer.build(variables)
        step = apply(optimizer, variables)
        for scale in scales:
            gradients = [np.array([1.0, scale, -2.0]), np.array(0.5)]
            step([keras.ops.convert_to_tensor(g, "float32") for g in gradients])
        kept = [v for v in optimizer.variables if "skipped" not in v.path]
        return [v.numpy() for v in [*variables, *kept]], optimizer.skipped_steps

    nan, inf = np.nan, np.inf
    actual, skipped = run([nan, 1.0, 2.0, inf, -inf, 3.0, 4.0, nan], skip_nonfinite=True)
    expected, _ = run([1.0, 2.0, 3.0, 4.0])
    return {"actual": actual, "expected": expected, "skipped_steps": skipped}


def repeated_rows(**options) -> dict:
    """A sparse gradient that names a row twice, and the dense one that it stands for."""
    rows, values = np.array([1, 4, 1]), np.array([[1.0, 2.0], [3.0, -1.0], [0.5, -4.0]], "float32")
    dense = np.zeros((5, 2), "float32")
    np.add.at(dense, rows, values)
    if keras.config.backend() == "jax":
        from jax.experimental.sparse import BCOO

        sparse = BCOO((values, rows[:, None]), shape=dense.shape)
    else:
        import torch

        sparse = torch.sparse_coo_tensor(rows[None], values, dense.shape, check_invariants=True)

    def run(gradient) -> dict:
        variable = keras.Variable(np.ones((5, 2)), dtype="float32")
        optimizer = optimizer_of("yogi", **options)
        for _ in range(2):
            optimizer.apply([gradient], [variable])
        return {
            "weights": variable.numpy(),
            "velocity": keras.ops.convert_to_numpy(optimizer.get_slot(variable, "velocity")),
        }

    return {"sparse": run(sparse), "dense": run(keras.ops.convert_to_tensor(dense))}


# JAX alone


def distributed(shard_weights: bool) -> dict:
    """Over two devices: the batches alone, or the weights and with them the slots as well."""
    devices = keras.distribution.list_devices()
    assert len(devices) == 2, devices
    distribution = keras.distribution.DataParallel(devices=devices)
    if shard_weights:
        mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices)
        layout = keras.distribution.LayoutMap(mesh)
        layout[".*kernel"] = ("model", None)
        distribution = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")

    one = _fit_with_even_shapes()
    keras.distribution.set_distribution(distribution)
    try:
        two = _fit_with_even_shapes()
        optimizer, trained = two.optimizer, two.trainable_variables
        pairs = [
            pair
            for slots in optimizer.slots().values()
            for pair in zip(trained, slots, strict=True)
        ]
        return {
            "devices": [len(slot.value.sharding.device_set) for _, slot in pairs],
            "slots in halves": sum(not s.value.sharding.is_fully_replicated for _, s in pairs),
            "slots apart from their weights": [v.path for v, s in pairs if not _together(v, s)],
            "one device": state(one),
            "two devices": state(two),
        }
    finally:
        keras.distribution.set_distribution(None)


def _fit_with_even_shapes():
    layers = [keras.layers.Dense(6, activation="tanh"), keras.layers.Dense(1)]
    options = OPTIONS["skip_nonfinite, everything"]
    model = compiled(optimizer_of(**options), layers, keras.Input((4,)))
    x, y = data(faulty=True)
    model.fit(x[:, :4], y, batch_size=16, epochs=3, shuffle=False, verbose=0)
    return model


def _together(variable: keras.Variable, slot: keras.Variable) -> bool:
    sharding = variable.value.sharding
    return slot.value.sharding.is_equivalent_to(sharding, variable.value.ndim)


# PyTorch alone


def custom_loop() -> dict:
    """Written by hand, without torch.no_grad; "graphs": the variables that keep one alive."""
    model = compiled(optimizer_of(**OPTIONS["yogi"]))
    x, y = data()
    for start in 3 * list(range(0, len(x), 16)):
        model.zero_grad()
        batch = slice(start, start + 16)
        loss = keras.ops.mean(keras.losses.mean_squared_error(y[batch], model(x[batch])))
        loss.backward()
        variables = model.trainable_variables
        model.optimizer.apply([v.value.grad for v in variables], variables)
    graphs = [v.path for v in model.optimizer.variables if v.value.grad_fn is not None]
    return {"state": state(model), "graphs": graphs}


def experiments(backend: str, folder: Path) -> Experiments:
    """All that this backend can do; `folder` holds what the test gives and takes."""
    given = json.loads((folder / "given.json").read_text())
    everything = dict(EVERYWHERE)
    everything["load_weights"] = partial(load_weights_into_a_trained_model, folder)
    for name in SAVED:
        own = path_of(folder, backend, name)
        everything[f"save: {name}"] = partial(save, own, name)
        for origin in (backend, "tensorflow"):
            path = path_of(folder, origin, name)
            everything[f"load: {name} of {origin}"] = partial(load, path)
    for road, (apply, dtypes) in ROADS[backend].items():
        for options in SKIPPING:
            everything[f"faulty steps: {road}, {options}"] = partial(faulty_steps, apply, options)
        for dtype, (name, case) in itertools.product(dtypes, given["cases"].items()):
            run = partial(trajectory, case, given["weights"], given["gradients"], dtype, apply)
            if backend == "jax" and dtype == "float64":
                run = partial(jax_in_float64, run)
            everything[f"update: {road}, {dtype}, {name}"] = run
    everything["fused=True"] = fused_error
    everything["repeated rows"] = repeated_rows
    everything["repeated rows, skip_nonfinite"] = partial(repeated_rows, skip_nonfinite=True)
    everything["repeated rows, clipnorm"] = partial(repeated_rows, clipnorm=1.0)
    if backend == "jax":
        everything["data parallel"] = partial(distributed, shard_weights=False)
        everything["model parallel"] = partial(distributed, shard_weights=True)
    if backend == "torch":
        everything["custom loop"] = custom_loop
    return everything


def main(folder: Path, out: TextIO) -> None:
    train(compiled(optimizer_of("yogi")))
    imports = {"by keras": KERAS_IMPORTS_TENSORFLOW, "in the end": "tensorflow" in sys.modules}
    print(as_json({"name": "tensorflow imported", "result": imports}), file=out)
    for name, experiment in experiments(os.environ["KERAS_BACKEND"], folder).items():
        try:
            line = {"name": name, "result": experiment()}
        except Exception:
            line = {"name": name, "error": traceback.format_exc()}
        print(as_json(line), file=out, flush=True)


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # where the progress bars go
        main(Path(sys.argv[1]), sys.__stdout__)
