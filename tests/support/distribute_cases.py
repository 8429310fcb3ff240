"""What test_distribute and test_multi_worker run in processes of their own.

    python -m support.distribute_cases mirrored FOLDER     several strategies on two logical CPUs
    python -m support.distribute_cases worker FOLDER       a worker of the cluster in TF_CONFIG
    python -m support.distribute_cases parameters FOLDER   a parameter server and two workers

TensorFlow takes logical devices and clusters before it has started, and not again. What each case
gives, or the error that it ends with, is written to FOLDER as a line of JSON, as soon as it is
known.
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

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import tensorflow as tf

import keras_yogi
from support.cases import CLIPPING, OPTIONS, with_limits
from support.distribute_training import (
    BATCH,
    EAGER_ONLY,
    FORMS,
    IN_A_GRAPH,
    OPTIMIZERS,
    OURS,
    Strategy,
    end_of,
    faulty_gradients,
    faulty_texts,
    fit_texts,
    load_model,
    replica_gradients,
    save_model,
    text_model,
    trajectories,
)
from support.figures import assert_figures
from support.models import regression, regression_model
from support.processes import ROOT
from support.training import whole_weights

DOCS = ROOT / "docs" / "distributed.md"
EXAMPLE = ROOT / "examples" / "multi_worker.py"
free_ports = runpy.run_path(str(EXAMPLE))["free_ports"]

# What is run where

StrategyCase = Callable[[Strategy], Any]
WITHOUT_TABLE = 3  # variables


def loop(
    name: str,
    option: str,
    variables: int = 4,
    mode: str = "graph",
    prepare: Callable[[Any], Any] = lambda optimizer: optimizer,
) -> StrategyCase:
    options = OPTIONS[option]
    steps = faulty_gradients() if "skip_nonfinite" in options else replica_gradients()
    steps = [row[:variables] for row in steps]
    return lambda strategy: trajectories(
        strategy, lambda: prepare(OPTIMIZERS[name](**options)), steps, mode
    )


LOOPS: dict[str, StrategyCase] = {
    f"{name}, {option}": loop(name, option)
    for name, options in {
        "adam": ("plain", "ema", *CLIPPING),
        "amsgrad": ("plain", "skip_nonfinite"),
        "yogi": (*IN_A_GRAPH, *CLIPPING),
    }.items()
    for option in options
}
WORKER_LOOPS = ("adam, plain", "amsgrad, plain", *(f"yogi, {option}" for option in IN_A_GRAPH))
OTHER_MODES: dict[str, StrategyCase] = {
    **{
        f"yogi, {option}, {mode}": loop("yogi", option, mode=mode)
        for option in ("plain", "skip_nonfinite")
        for mode in ("autograph", "eager")
    },
    **{f"adam, {option}, eager": loop("adam", option, mode="eager") for option in EAGER_ONLY},
}
REFUSED: dict[str, StrategyCase] = {
    f"{name}, {option}": loop(name, option) for name in ("yogi", "keras") for option in EAGER_ONLY
}
BESIDE_KERAS: dict[str, StrategyCase] = {
    **{
        f"{name}, {option}": loop(name, option, WITHOUT_TABLE)
        for name in ("keras", "ours")
        for option in ("plain", "ema", *CLIPPING)
    },
    "keras, embedding": loop("keras", "plain"),
}
# With all variables large enough that the rule is compiled for them.
COMPILED_RULES: dict[str, StrategyCase] = {
    f"{name}, plain, compiled": loop(
        name, "plain", prepare=lambda optimizer: with_limits(optimizer, compile_from=0)
    )
    for name in OURS
}


class ClipsTheSum:
    """An optimizer that is given the replicas' gradients as docs/distributed.md clips their sum."""

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        self._optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def apply(self, gradients: list[Any], variables: list[Any]) -> None:
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce("SUM", [tf.convert_to_tensor(g) for g in gradients])
        gradients, _ = tf.clip_by_global_norm(
            gradients, CLIPPING["global_clipnorm"]["global_clipnorm"]
        )
        self._optimizer.apply([g / context.num_replicas_in_sync for g in gradients], variables)


CLIPS_THE_SUM: dict[str, StrategyCase] = {
    f"{name}, sum clipped": loop(name, "plain", prepare=ClipsTheSum) for name in ("adam", "yogi")
}


def steps_in_a_graph(strategy: Strategy, together: bool) -> list[Any]:
    """The weights after some steps, in one graph or one by one."""
    with strategy.scope():
        variables = [keras.Variable(np.ones((4, 3))), keras.Variable(np.ones(3))]
        optimizer = OPTIMIZERS["yogi"]()
        optimizer.build(variables)

    def on_replica() -> None:
        optimizer.apply([tf.ones((4, 3)), tf.ones(3)], variables)

    @tf.function
    def steps(number: tf.Tensor) -> None:
        for _ in tf.range(number):
            strategy.run(on_replica)

    for number in [6] if together else [1] * 6:
        steps(tf.constant(number))
    return [v.numpy().tolist() for v in variables]


# name: the optimizer, arguments of `text_model`, arguments of `fit_texts`
FITS: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any]]] = {
    "adam": (OPTIMIZERS["adam"], {}, {}),
    "yogi": (OPTIMIZERS["yogi"], {}, {}),
    "a NaN on one replica": (
        lambda: OPTIMIZERS["yogi"](
            **{**OPTIONS["schedule"], **OPTIONS["ema"]}, weight_decay=0.05, skip_nonfinite=True
        ),
        {},
        {"faulty": True},
    ),
    "accumulation": (lambda: OPTIMIZERS["adam"](**OPTIONS["accumulation"]), {}, {}),
    "accumulation, eager": (
        lambda: OPTIMIZERS["adam"](**OPTIONS["accumulation"]),
        {"run_eagerly": True},
        {"epochs": 1},
    ),
    "jit_compile": (OPTIMIZERS["yogi"], {"jit_compile": True}, {}),
    "steps_per_execution": (OPTIMIZERS["yogi"], {"steps_per_execution": 2}, {}),
    "keras": (keras.optimizers.Adam, {}, {}),
    "keras, accumulation": (lambda: OPTIMIZERS["keras"](**OPTIONS["accumulation"]), {}, {}),
}


def fit_case(strategy: Strategy, name: str) -> dict[str, Any]:
    optimizer, compile_arguments, train_arguments = FITS[name]
    return fit_texts(text_model(strategy, optimizer, **compile_arguments), **train_arguments)


def saved_optimizer() -> keras.optimizers.Optimizer:
    return OPTIMIZERS["yogi"](**OPTIONS["schedule"], skip_nonfinite=True)


def saving(strategy: Strategy, folder: Path) -> dict[str, Any]:
    """Saves a model trained under the strategy, and loads under it one that was trained without."""
    distributed = text_model(strategy, saved_optimizer)
    single = text_model(tf.distribute.get_strategy(), saved_optimizer)
    result = {}
    for name, model in {"distributed": distributed, "single": single}.items():
        result[name] = fit_texts(model, faulty=True)
        save_model(model, folder / name)
    loaded = {
        form: load_model(strategy, saved_optimizer, form, folder / "single") for form in FORMS
    }
    return {
        **result,
        "loaded": {form: end_of(model) for form, model in loaded.items()},
        "distributed, trained on": fit_texts(distributed, epochs=1),
        "loaded, trained on": fit_texts(loaded["keras"], epochs=1),
    }


def warm_start(strategy: Strategy) -> dict[str, Any]:
    model = text_model(strategy, OPTIMIZERS["yogi"])
    keras_yogi.warm_start(model, *faulty_texts(), batch_size=BATCH)
    return {"started": end_of(model), "trained on": fit_texts(model, epochs=1)}


def own_statistics(strategy: Strategy) -> dict[str, bool]:
    """Whether `warm_start` leaves the moving statistics, of which each replica has its own."""
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    with strategy.scope():
        layers = [keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
        model = keras.Sequential([keras.Input((4,)), *layers])
        model.compile(keras_yogi.Yogi(0.01), "mse")
    model.fit(x, x[:, :2], epochs=0)
    parts = [part for v in model.variables for part in v.value.values]
    statistics = layers[1].moving_mean.value.values
    for number, part in enumerate(statistics):
        part.assign(tf.fill([3], float(number)))
    before = [part.numpy() for part in parts]
    keras_yogi.warm_start(model, x, x[:, :2], verbose=0)
    return {
        "of each replica": len(statistics) == strategy.num_replicas_in_sync,
        "as before": all(map(np.array_equal, parts, before)),
        "started": bool(model.optimizer.get_slot(layers[0].kernel, "velocity").numpy().max() > 0),
    }


def figures(strategy: Strategy) -> str:
    """keras_yogi.diagnose, against what the slots give by hand."""
    with strategy.scope():
        optimizer = keras_yogi.Adam(0.0625)
        model = regression_model(optimizer)
    model.fit(*regression(), batch_size=8, verbose=0)
    assert_figures(keras_yogi.diagnose(optimizer), optimizer, model.trainable_variables)
    return "agree"


HALF_PRECISION: dict[str, dict[str, Any]] = {
    "plain": {},
    "one after another": {"fused": False},
    "decay": {"weight_decay": 0.1},
    "lazy": {"sparse_update": "lazy"},
    "skip_nonfinite": {"skip_nonfinite": True},
}


def half_precision(strategy: Strategy) -> dict[str, list[Any]]:
    """Of each option, variables and whole weights after some steps, as each replica has them.

    Gradients are eighths, so that those of several replicas add up without rounding.
    """
    shapes, replicas = [(4, 3), (3,), (5, 2)], strategy.num_replicas_in_sync
    result = {}
    for name, options in HALF_PRECISION.items():
        random = np.random.default_rng(5)
        with strategy.scope():
            variables = [keras.Variable(random.normal(size=s), dtype="bfloat16") for s in shapes]
            optimizer = OPTIMIZERS["yogi"](learning_rate=0.003, **options)
            optimizer.build(variables)

        def on_replica(
            gradients: list[Any],
            optimizer: keras.optimizers.Optimizer = optimizer,
            variables: list[keras.Variable] = variables,
        ) -> None:
            dense = [tf.cast(g / replicas, "bfloat16") for g in gradients]
            rows = tf.IndexedSlices(dense[2][:3], tf.constant([1, 1, 4]), tf.constant([5, 2]))
            optimizer.apply([*dense[:2], rows], variables)

        step = tf.function(partial(strategy.run, on_replica), autograph=False)
        for _ in range(6):
            gradients = [random.integers(-8, 9, size=s) / 8 for s in shapes]
            step(args=([tf.constant(g, "float32") for g in gradients],))
        copies = [
            [tf.cast(copy, "float32").numpy() for copy in copies_of]
            for copies_of in (strategy.experimental_local_results(v.value) for v in variables)
        ]
        assert all(np.array_equal(each, of_v[0]) for of_v in copies for each in of_v)
        result[name] = [whole_weights(optimizer, v).tolist() for v in variables]
    return result


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
    with file.open("w", encoding="utf-8") as lines:
        for name, case in cases.items():
            try:
                line = {"case": name, "result": case()}
            except Exception as error:  # what a case ends with is for the tests to judge
                line = {"case": name, "error": f"{type(error).__name__}: {error}"}
            print(json.dumps(line), file=lines, flush=True)


def under(strategy: Strategy, cases: dict[str, StrategyCase]) -> dict[str, Callable[[], Any]]:
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
    not_mirrored = ("keras", "steps_per_execution")
    stored_centrally = {n: LOOPS[n] for n in ("adam, plain", "yogi, plain", "yogi, skip_nonfinite")}
    cases = {
        **under(strategy, {**LOOPS, **OTHER_MODES, **REFUSED, **BESIDE_KERAS}),
        **{f"{n}, central": c for n, c in under(central, stored_centrally).items()},
        **under(strategy, CLIPS_THE_SUM),
        **{f"fit, {n}": partial(fit_case, strategy, n) for n in FITS if n not in not_mirrored},
        "fit, yogi, one device": partial(fit_case, one, "yogi"),
        **{
            f"fit, {n}, central": partial(fit_case, central, n)
            for n in ("yogi", "jit_compile", "steps_per_execution")
        },
        "steps in one graph": partial(steps_in_a_graph, strategy, together=True),
        "steps one by one": partial(steps_in_a_graph, strategy, together=False),
        "saving": partial(saving, strategy, folder),
        **under(strategy, COMPILED_RULES),
        "warm_start": partial(warm_start, strategy),
        "own statistics": partial(own_statistics, strategy),
        "figures": partial(figures, strategy),
        "get_slot": partial(slot_as_seen, strategy),
        "half precision": partial(half_precision, strategy),
        "documentation": lambda: [float(loss) for loss in documentation["losses"]],
    }
    record(cases, folder / "mirrored.jsonl")


def worker(folder: Path) -> None:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    cases = {
        **under(strategy, {name: LOOPS[name] for name in WORKER_LOOPS}),
        **{f"fit, {name}": partial(fit_case, strategy, name) for name in ("yogi", "keras")},
    }
    record(cases, folder / f"worker-{strategy.cluster_resolver.task_id}.jsonl")


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

    cases = {
        name: partial(construct, optimizer)
        for name, optimizer in OPTIMIZERS.items()
        if name in OURS
    }
    record(cases, folder / "parameters.jsonl")


if __name__ == "__main__":
    {"mirrored": mirrored, "worker": worker, "parameters": parameters}[sys.argv[1]](
        Path(sys.argv[2])
    )
