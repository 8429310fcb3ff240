"""What test_distribute and test_multi_worker run in processes of their own.

    python _distribute_cases.py mirrored FOLDER     MirroredStrategy and others on two logical CPUs
    python _distribute_cases.py worker FOLDER       one worker of the cluster that TF_CONFIG names
    python _distribute_cases.py parameters FOLDER   a parameter server and two workers

TensorFlow takes logical devices and clusters before it has started, and not again. What each case
gives, or the error that it ends with, is written to FOLDER as JSON.
"""

import json
import os
import re
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import tensorflow as tf
from distribute_training import (
    BATCH,
    CLIPPING,
    EAGER_ONLY,
    FORMS,
    OPTIMIZERS,
    OPTIONS,
    SCHEDULE,
    TWINS,
    Strategy,
    compiled,
    data,
    faulty_gradients,
    gradients,
    load,
    save,
    state_of,
    train,
    trajectories,
)

import keras_yogi
from keras_yogi.engine import fused

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "distributed.md"
EXAMPLE = ROOT / "examples" / "multi_worker.py"
free_ports = runpy.run_path(str(EXAMPLE))["free_ports"]

# What is run where

Case = Callable[[Strategy], Any]


def loop(
    optimizer: Callable[..., Any], options: dict[str, Any], variables: int = 4, mode: str = "graph"
) -> Case:
    steps = faulty_gradients() if "skip_nonfinite" in options else gradients()
    steps = [row[:variables] for row in steps]
    return lambda strategy: trajectories(strategy, lambda: optimizer(**options), steps, mode)


LOOPS: dict[str, Case] = {
    f"{name}, {option}": loop(optimizer, options)
    for name, optimizer in OPTIMIZERS.items()
    for option, options in {**OPTIONS, **CLIPPING}.items()
    if name != "amsgrad" or option in ("plain", "skip_nonfinite")
}
WORKER_LOOPS = ("adam, plain", "amsgrad, plain", *(f"yogi, {option}" for option in OPTIONS))
OTHER_MODES: dict[str, Case] = {
    **{
        f"{name}, {option}, {mode}": loop(OPTIMIZERS[name], OPTIONS[option], mode=mode)
        for name, option in (("adam", "plain"), ("yogi", "skip_nonfinite"))
        for mode in ("autograph", "eager")
    },
    **{
        f"{name}, {option}, eager": loop(OPTIMIZERS[name], options, mode="eager")
        for name in ("adam", "yogi")
        for option, options in EAGER_ONLY.items()
    },
}
REFUSED: dict[str, Case] = {
    f"{name}, {option}": loop(optimizer, options)
    for name, optimizer in {"yogi": OPTIMIZERS["yogi"], "keras": TWINS["keras"]}.items()
    for option, options in EAGER_ONLY.items()
}
BESIDE_KERAS: dict[str, Case] = {
    **{
        f"{name}, {option}": loop(twin, options, variables=3)
        for name, twin in TWINS.items()
        for option, options in {"plain": {}, "ema": OPTIONS["ema"], **CLIPPING}.items()
    },
    "keras, embedding": loop(TWINS["keras"], {}),
}

# name: the optimizer, arguments of `compiled`, arguments of `train`
FITS: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any]]] = {
    "adam": (OPTIMIZERS["adam"], {}, {}),
    "yogi": (OPTIMIZERS["yogi"], {}, {}),
    "a NaN on one replica": (
        lambda: OPTIMIZERS["yogi"](
            learning_rate=SCHEDULE, weight_decay=0.05, skip_nonfinite=True, use_ema=True
        ),
        {},
        {"faulty": True},
    ),
    "accumulation": (lambda: OPTIMIZERS["adam"](**EAGER_ONLY["accumulation"]), {}, {}),
    "accumulation, eager": (
        lambda: OPTIMIZERS["adam"](**EAGER_ONLY["accumulation"]),
        {"run_eagerly": True},
        {"epochs": 1},
    ),
    "keras": (keras.optimizers.Adam, {}, {}),
    "keras, accumulation": (lambda: TWINS["keras"](**EAGER_ONLY["accumulation"]), {}, {}),
}


def fit(strategy: Strategy, name: str) -> dict[str, Any]:
    optimizer, compile_arguments, train_arguments = FITS[name]
    return train(compiled(strategy, optimizer, **compile_arguments), **train_arguments)


def saved_optimizer() -> keras.optimizers.Optimizer:
    return OPTIMIZERS["yogi"](learning_rate=SCHEDULE, skip_nonfinite=True)


def saving(strategy: Strategy, folder: Path) -> dict[str, Any]:
    """Saves a model trained under the strategy, and loads under it one that was trained without."""
    distributed = compiled(strategy, saved_optimizer)
    single = compiled(tf.distribute.get_strategy(), saved_optimizer)
    result = {}
    for name, model in {"distributed": distributed, "single": single}.items():
        result[name] = train(model, faulty=True)
        save(model, folder / name)
    loaded = {form: load(strategy, saved_optimizer, form, folder / "single") for form in FORMS}
    return {
        **result,
        "loaded": {form: state_of(model) for form, model in loaded.items()},
        "distributed, trained on": train(distributed, epochs=1),
        "loaded, trained on": train(loaded["keras"], epochs=1),
    }


def warm_start(strategy: Strategy) -> dict[str, Any]:
    model = compiled(strategy, OPTIMIZERS["yogi"])
    keras_yogi.warm_start(model, *data(), batch_size=BATCH)
    return {"started": state_of(model), "trained on": train(model, epochs=1)}


def with_compiled_rule(case: Case, strategy: Strategy) -> Any:
    """With all variables large enough that the rule is compiled for them."""
    with mock.patch.object(fused, "COMPILE_FROM", 0):
        return case(strategy)


def slot_as_seen(strategy: Strategy) -> list[Any]:
    """What get_slot returns after a step, outside the scope, in it, and on each replica."""
    with strategy.scope():
        variable = keras.Variable([1.0, 2.0])
        optimizer = OPTIMIZERS["yogi"]()
        optimizer.build([variable])
    strategy.run(lambda: optimizer.apply([tf.constant([1.0, 3.0])], [variable]))

    def velocity() -> tf.Tensor:
        return optimizer.get_slot(variable, "velocity")

    with strategy.scope():
        in_scope = velocity().numpy()
    on_replicas = strategy.experimental_local_results(strategy.run(velocity))
    return [v.tolist() for v in (velocity().numpy(), in_scope, *(r.numpy() for r in on_replicas))]


def documented() -> dict[str, Any]:
    """Runs the code of the documentation, one block after another; returns what it has named."""
    keras.utils.set_random_seed(1)  # a kernel that starts far from fitting: the loss must fall
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", DOCS.read_text("utf-8"), re.DOTALL | re.M):
        exec(code, names)
    return names


# Processes


def record(cases: dict[str, Callable[[], Any]], file: Path) -> None:
    results = {}
    for name, case in cases.items():
        try:
            results[name] = {"result": case()}
        except Exception as error:  # what a case ends with is for the tests to judge
            results[name] = {"error": f"{type(error).__name__}: {error}"}
    file.write_text(json.dumps(results), encoding="utf-8")


def under(strategy: Strategy, cases: dict[str, Case]) -> dict[str, Callable[[], Any]]:
    return {name: partial(case, strategy) for name, case in cases.items()}


def mirrored(folder: Path) -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    # Two MirroredStrategies in one process get into each other's all-reduce: that of the
    # documentation's code serves all cases.
    documentation = documented()
    strategy = documentation["strategy"]
    central = tf.distribute.experimental.CentralStorageStrategy(["CPU:0", "CPU:1"], "CPU:0")
    one = tf.distribute.OneDeviceStrategy("CPU:1")
    stored_centrally = {n: LOOPS[n] for n in ("adam, plain", "yogi, plain", "yogi, skip_nonfinite")}
    cases = {
        **under(strategy, {**LOOPS, **OTHER_MODES, **REFUSED, **BESIDE_KERAS}),
        **{f"{n}, central": c for n, c in under(central, stored_centrally).items()},
        **{f"fit, {n}": partial(fit, strategy, n) for n in FITS if n != "keras"},
        "fit, yogi, one device": partial(fit, one, "yogi"),
        "fit, yogi, central": partial(fit, central, "yogi"),
        "saving": partial(saving, strategy, folder),
        **{
            f"{o}, plain, compiled": partial(with_compiled_rule, LOOPS[f"{o}, plain"], strategy)
            for o in OPTIMIZERS
        },
        "warm_start": partial(warm_start, strategy),
        "get_slot": partial(slot_as_seen, strategy),
        "documentation": lambda: [float(loss) for loss in documentation["losses"]],
    }
    record(cases, folder / "mirrored.json")


def worker(folder: Path) -> None:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    cases = {
        **under(strategy, {name: LOOPS[name] for name in WORKER_LOOPS}),
        **{f"fit, {name}": partial(fit, strategy, name) for name in ("yogi", "keras")},
    }
    record(cases, folder / f"worker-{strategy.cluster_resolver.task_id}.json")


def parameters(folder: Path) -> None:
    jobs = ("worker", "ps")
    ports = dict(zip(jobs, free_ports(2), strict=True))
    cluster = tf.train.ClusterSpec({job: [f"127.0.0.1:{ports[job]}"] for job in jobs})
    _servers = [tf.distribute.Server(cluster, job_name=job, task_index=0) for job in jobs]
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, rpc_layer="grpc")
    strategy = tf.distribute.ParameterServerStrategy(resolver)

    def construct(optimizer: Callable[..., keras.optimizers.Optimizer]) -> str:
        with strategy.scope():
            return type(optimizer()).__module__

    cases = {name: partial(construct, optimizer) for name, optimizer in OPTIMIZERS.items()}
    record(cases, folder / "parameters.json")


if __name__ == "__main__":
    {"mirrored": mirrored, "worker": worker, "parameters": parameters}[sys.argv[1]](
        Path(sys.argv[2])
    )
