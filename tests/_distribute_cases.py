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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import tensorflow as tf
from reference import Array, hard_gradients, initial_weights

import keras_yogi
from keras_yogi.engine import fused

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "distributed.md"
EXAMPLE = ROOT / "examples" / "multi_worker.py"
free_ports = runpy.run_path(str(EXAMPLE))["free_ports"]

Strategy = tf.distribute.Strategy

OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "adam": lambda **k: keras_yogi.Adam(**{"learning_rate": 0.05, **k}),
    "amsgrad": lambda **k: keras_yogi.Adam(**{"learning_rate": 0.05, "amsgrad": True, **k}),
    "yogi": lambda **k: keras_yogi.Yogi(**{"learning_rate": 0.05, **k}),
}
# keras.optimizers.Adam, and the optimizer here that computes the same.
TWINS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "keras": lambda **k: keras.optimizers.Adam(**{"learning_rate": 0.05, "epsilon": 1e-3, **k}),
    "ours": lambda **k: keras_yogi.Adam(
        **{"learning_rate": 0.05, "epsilon": 1e-3, "epsilon_hat": True, **k}
    ),
}
SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=4, decay_rate=0.5)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "schedule": {"learning_rate": SCHEDULE},
    "weight_decay": {"weight_decay": 0.1},
    "ema": {"use_ema": True, "ema_momentum": 0.9},
    "skip_nonfinite": {"skip_nonfinite": True},
    "lazy": {"sparse_update": "lazy"},  # the same here, where every step names the same rows
}
# Keras clips what each replica has, before the replicas' gradients are summed.
CLIPPING: dict[str, dict[str, Any]] = {
    "clipvalue": {"clipvalue": 0.5},
    "clipnorm": {"clipnorm": 0.7},
    "global_clipnorm": {"global_clipnorm": 1.5},
}
# Keras puts the all-reduce of these into a condition, which tf.distribute refuses in a graph.
EAGER_ONLY: dict[str, dict[str, Any]] = {
    "accumulation": {"gradient_accumulation_steps": 2},
    "ema_overwrite": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 2},
}


# A loop of one's own, with given gradients

ROWS, WIDTH = 7, 3
# What each replica's batch looks up in the table: row 2 several times on both, rows 0 and 5 twice
# on one, rows 1, 3 and 4 not at all.
INDICES = np.array([[2, 5, 2, 0, 0, 5], [2, 2, 6, 5, 2, 6]])


def weights() -> list[Array]:
    """Three variables with dense gradients, and the embedding table."""
    return [*initial_weights(), np.ones((ROWS, WIDTH))]


def gradients() -> list[list[Array]]:
    """For each step: for each variable: what replica 0 and replica 1 have, stacked.

    The table's are the pieces that belong to INDICES: eighths, which float32 adds without rounding
    in any order. The two pieces of row 0 cancel.
    """
    random = np.random.default_rng(8)
    steps = []
    for first, second in zip(hard_gradients(), reversed(hard_gradients()), strict=True):
        pieces = np.round(8 * random.normal(size=(*INDICES.shape, WIDTH))) / 8
        pieces[0, 4] = -pieces[0, 3]
        dense = [np.stack(pair) for pair in zip(first, second, strict=True)]
        steps.append([g.astype("float32") for g in [*dense, pieces]])
    return steps


FAULTS = {4: (1, 0, np.nan), 9: (0, 3, np.inf)}  # step: replica, variable, what it has there


def faulty_gradients() -> list[list[Array]]:
    """The same, with a gradient that is not finite on one replica, the other's being in order."""
    steps = gradients()
    for step, (replica, variable, fault) in FAULTS.items():
        steps[step][variable][replica].flat[0] = fault
    return steps


MODES = {
    "graph": lambda step: tf.function(step, autograph=False),
    "autograph": tf.function,  # its default; tracing takes twice as long
    "eager": lambda step: step,
}


def trajectories(
    strategy: Strategy,
    optimizer: Callable[[], keras.optimizers.Optimizer],
    steps: Sequence[Sequence[Array]],
    mode: str = "graph",
) -> dict[str, Any]:
    """Weights and slots at step 0, 1, …, as each replica of this process has them.

    Args:
        strategy: with as many replicas as the gradients have.
        optimizer: makes one.
        steps: like `gradients()`, of all variables or the first few.
        mode: one of MODES.
    """
    with strategy.scope():
        variables = [keras.Variable(w, dtype="float32") for w in weights()[: len(steps[0])]]
        optimizer_ = optimizer()
        optimizer_.build(variables)

    def on_replica(row: Sequence[tf.Tensor]) -> None:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        own = [both[replica] for both in row]
        if len(own) == 4:
            own[3] = tf.IndexedSlices(
                own[3], tf.constant(INDICES)[replica], tf.constant([ROWS, WIDTH])
            )
        optimizer_.apply(own, variables)

    def step(row: Sequence[tf.Tensor]) -> None:
        strategy.run(on_replica, args=(row,))

    def on_replicas(variable: keras.Variable) -> list[Any]:
        return [v.numpy().tolist() for v in strategy.experimental_local_results(variable.value)]

    def slots() -> dict[str, list[keras.Variable]]:
        if hasattr(optimizer_, "slots"):
            return optimizer_.slots()
        return {"momentum": optimizer_._momentums, "velocity": optimizer_._velocities}

    def state() -> list[list[dict[str, Any]]]:
        values = [
            {"weights": on_replicas(v), **{n: on_replicas(s[i]) for n, s in slots().items()}}
            for i, v in enumerate(variables)
        ]
        replicas = range(len(values[0]["weights"]))
        return [[{n: x[r] for n, x in of_v.items()} for of_v in values] for r in replicas]

    run = MODES[mode](step)
    states = [state()]
    for row in steps:
        run([tf.constant(g) for g in row])
        states.append(state())
    result = {
        "replicas": list(zip(*states, strict=True)),
        "iterations": int(optimizer_.iterations.numpy()),
        "skipped_steps": getattr(optimizer_, "skipped_steps", None),
    }
    if optimizer_.use_ema:
        with strategy.scope():
            optimizer_.finalize_variable_values(variables)
        result["averages"] = [on_replicas(v)[0] for v in variables]
    return result


# `fit`

VOCABULARY, LENGTH, BATCH = 50, 12, 32


def data(faulty: bool = False) -> tuple[Array, Array]:
    """Texts, and how much of each is the most frequent word. Words come several times in a batch.

    Args:
        faulty: one label is a NaN, in the half of the first batch that replica 1 gets.
    """
    random = np.random.default_rng(4)
    words = np.minimum(random.zipf(1.3, size=(128, LENGTH)) - 1, VOCABULARY - 1)
    labels = (words == 0).mean(axis=1, keepdims=True).astype("float32")
    if faulty:
        labels[BATCH - 1] = np.nan
    return words.astype("int32"), labels


def compiled(
    strategy: Strategy, optimizer: Callable[[], keras.optimizers.Optimizer], **arguments: Any
) -> keras.Model:
    with strategy.scope():
        keras.utils.set_random_seed(5)
        layers = [
            keras.layers.Embedding(VOCABULARY, 8),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(4, activation="tanh"),
            keras.layers.Dense(1),
        ]
        model = keras.Sequential([keras.Input((LENGTH,), dtype="int32"), *layers])
        model.compile(optimizer(), loss="mse", **arguments)
    return model


def train(model: keras.Model, epochs: int = 3, faulty: bool = False) -> dict[str, Any]:
    """Trains on, and tells how it ends."""
    x, y = data(faulty)
    model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0)
    return state_of(model)


def state_of(model: keras.Model) -> dict[str, Any]:
    optimizer, variables = model.optimizer, model.trainable_variables
    return {
        "weights": [v.numpy().tolist() for v in variables],
        **{n: [optimizer.get_slot(v, n).numpy().tolist() for v in variables] for n in SLOTS},
        "iterations": int(optimizer.iterations.numpy()),
        "skipped_steps": optimizer.skipped_steps,
    }


SLOTS = ("momentum", "velocity")


def save(model: keras.Model, folder: Path) -> None:
    """In all three forms."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(folder / "checkpoint"))


def load(
    strategy: Strategy, optimizer: Callable[[], keras.optimizers.Optimizer], form: str, folder: Path
) -> keras.Model:
    """The model as it was saved in that form, under this strategy."""
    if form == "keras":
        with strategy.scope():
            return keras.models.load_model(folder / "model.keras")
    model = compiled(strategy, optimizer)
    with strategy.scope():
        model.optimizer.build(model.trainable_variables)
        if form == "weights.h5":
            model.load_weights(folder / "model.weights.h5")
        else:
            checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
            checkpoint.read(str(folder / "checkpoint")).assert_existing_objects_matched()
    return model


FORMS = ("keras", "weights.h5", "checkpoint")


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
    with mock.patch.object(fused, "PACK_UP_TO", 0):
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
