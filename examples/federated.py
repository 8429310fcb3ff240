"""Federated learning with Flower: FedAvg, FedAdam and FedYogi, the server's step by Keras.

Reddi et al., "Adaptive Federated Optimization" (ICLR 2021): the clients' mean change of the weights
with its sign turned is a gradient, which the server may give to any optimizer. `KerasStrategy` does
that for every Keras optimizer: SGD with learning rate 1 is FedAvg, and
`keras_yogi.Yogi` without a bias correction is FedYogi. 40 devices hold 29 of scikit-learn's digits
each, of classes in proportions from a Dirichlet distribution: α = 1 (mild) or 0.1 (severe: nine
tenths of a device's rows are of two classes). In a round 5 of them train for 2 epochs. Each
optimizer gets the learning rates of clients and server that have the best validation accuracy of a
grid over the last rounds, on seeds that are not reported. Within a seed all have the
same devices, initial weights and batches. Intervals are bootstrapped.

    pip install -e '.[federated]'
    python examples/federated.py            about 10 minutes on 2 cores
    python examples/federated.py --quick    few rounds, without Flower's simulation engine

The reported runs are made in Flower's simulation engine, those that choose learning rates in one
process: the numbers are the same to the last bit. Flower's and Ray's telemetry are switched off.

What to expect: on devices that are much alike FedAvg is enough; FedAdam ends 0.01 above it. On
devices with nine tenths of their rows from two classes, FedAdam and FedYogi reach an accuracy of
0.85 in 16 rounds instead of 20 and end 0.02 above FedAvg. The two do not differ at equal learning
rates: their velocities start at 0 and only grow for most of the first 1 / (1 − β₂) = 100 rounds.
For α = 1 they differ because the grid gave them different learning rates.
"""

import argparse
import importlib.metadata
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up messages
# Flower and Ray would report to their makers, and read these when they are imported.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns

import _federated_clients as clients
import _shared as shared
import keras
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from keras import layers
from matplotlib.figure import Figure
from tqdm import tqdm

import keras_yogi


class KerasStrategy(FedAvg):
    """Flower's FedAvg, but that the clients' mean is a gradient for a Keras optimizer.

        g = w − Σ (nᵢ / n) wᵢ          wᵢ, nᵢ: weights and examples of client i

    With keras.optimizers.SGD(1.0) it is FedAvg. Weights that are not trained, such as a
    BatchNormalization's moving averages, become the clients' mean. The optimizer counts the rounds,
    and all of its state is in the model: `model.save(path)` after any round, and a strategy with
    `keras.models.load_model(path)` goes on as if nothing had happened.

    Args:
        model: compiled with the server's optimizer; the clients' weights are in the order of
            `model.get_weights()`.
        ordered_by_key: the metric by which the clients' replies are sorted before they are added.
            Flower hands them over as they come, and sums of floating-point numbers depend on the
            order. Defaults to None: as they come.
        **arguments: FedAvg's.
    """

    def __init__(
        self, model: keras.Model, ordered_by_key: str | None = None, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.model, self.ordered_by_key = model, ordered_by_key
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.model.set_weights(arrays.to_numpy_ndarrays())
        # Flower counts from 1 again after a restart.
        config["round"] = int(self.model.optimizer.iterations) + 1
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        if self.ordered_by_key is not None:
            replies = [reply for reply in replies if not reply.has_error()]
            replies.sort(key=lambda reply: reply.content["metrics"][self.ordered_by_key])
        mean, metrics = super().aggregate_train(server_round, replies)
        if mean is None:  # no client has answered
            return None, metrics
        gradients = []
        for variable, value in zip(self.model.weights, mean.to_numpy_ndarrays(), strict=True):
            if variable.trainable:
                gradients.append(keras.ops.subtract(variable, value))
            else:
                variable.assign(value)
        trained = [variable for variable in self.model.weights if variable.trainable]
        self.model.optimizer.apply(gradients, trained)
        return ArrayRecord(self.model.get_weights()), metrics


# Flower's FedYogi and the FedAdam of the paper: β₂ = 0.99, τ = ε = 1e-3, no bias correction.
PAPER = {"beta_2": 0.99, "epsilon": 1e-3, "bias_correction": "none"}
OPTIMIZERS: dict[str, Callable[[float], keras.optimizers.Optimizer]] = {
    "FedAvg": keras.optimizers.SGD,
    "FedAdam": lambda rate: keras_yogi.Adam(rate, **PAPER),
    "FedYogi": lambda rate: keras_yogi.Yogi(rate, initial_accumulator_value=0.0, **PAPER),
}
STYLES: dict[str, dict[str, Any]] = {
    "FedAvg": {"color": "black", "linewidth": 1.4, "linestyle": (0, (4, 2))},
    "FedAdam": shared.LINES["Adam"],
    "FedYogi": shared.LINES["Yogi"],
}
ALPHAS = {"mild": 1.0, "severe": 0.1}
CLIENT_RATES = (0.1, 0.3, 1.0)
# FedAvg's own is 1; it is given others, too, so that it is tuned as much as the others are.
SERVER_RATES = {
    "FedAvg": (0.3, 1.0, 3.0),
    "FedAdam": (0.01, 0.03, 0.1, 0.3),
    "FedYogi": (0.01, 0.03, 0.1, 0.3),
}
ROUNDS, QUICK_ROUNDS = 60, 5
LAST = 10  # rounds that an accuracy is averaged over
TUNING_SEEDS = (1000, 1001)
TARGET = 0.85

Rates = tuple[float, float]
"""Of the clients, and of the server."""
Curve = list[float]
"""Accuracies before the first round and after each."""


def new_model(optimizer: keras.optimizers.Optimizer, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((64,)), layers.Dense(32, activation="relu"), layers.Dense(10)]
    )
    model.compile(optimizer)
    return model


def train(
    grid: Grid, model: keras.Model, alpha: float, client_rate: float, seed: int, rounds: int
) -> dict[str, Curve]:
    """Goes on for so many rounds with the model as it is: the accuracies along the way."""
    strategy = KerasStrategy(
        model,
        ordered_by_key="node",
        fraction_evaluate=0.0,
        min_train_nodes=clients.NODES,
        min_available_nodes=clients.NODES,
    )
    curves: dict[str, Curve] = {"validation": [], "test": []}

    def evaluate(_: int, arrays: ArrayRecord) -> None:
        weights = arrays.to_numpy_ndarrays()
        for part, curve in curves.items():
            curve.append(clients.accuracy(weights, clients.digits()[part]))

    strategy.start(
        grid,
        ArrayRecord(model.get_weights()),
        num_rounds=rounds,
        train_config=ConfigRecord({"alpha": alpha, "client-rate": client_rate, "seed": seed}),
        evaluate_fn=evaluate,
    )
    return curves


def run(
    grid: Grid, name: str, alpha: float, rates: Rates, seed: int, rounds: int
) -> dict[str, Curve]:
    client_rate, server_rate = rates
    model = new_model(OPTIMIZERS[name](server_rate), seed)
    return train(grid, model, alpha, client_rate, seed, rounds)


def in_simulation_engine(task: Callable[[Grid], None]) -> None:
    """Calls `task` as Flower's server, with Flower's nodes in processes of their own."""
    from flwr.simulation import run_simulation

    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        grid.pull_interval = 0.003  # seconds; Flower's 0.1 would be most of a round
        task(grid)

    resources = {"num_cpus": 1, "num_gpus": 0.0}
    ray = {"include_dashboard": False, "log_to_driver": False, "_node_ip_address": "127.0.0.1"}
    backend = {"client_resources": resources, "init_args": ray}
    run_simulation(server, clients.app, clients.NODES, backend_config=backend)


def last_rounds(curve: Curve) -> float:
    return float(np.mean(curve[-LAST:]))


def rounds_to(curve: Curve, target: float) -> int:
    """The first round after which the accuracy is there; the last, if it is after none."""
    return next((i for i, reached in enumerate(curve) if reached >= target), len(curve) - 1)


def chosen_rates(grid: Grid, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """For each α and optimizer: the validation accuracy for each pair of rates, and the best."""
    found: dict[str, dict[str, Any]] = {}
    cases = [
        (alpha, name, rates)
        for alpha in ALPHAS
        for name in OPTIMIZERS
        for rates in itertools.product(options.client_rates, options.server_rates[name])
    ]
    for alpha, name, rates in tqdm(cases, desc="learning rates", disable=None):
        accuracies = [
            last_rounds(run(grid, name, ALPHAS[alpha], rates, s, options.rounds)["validation"])
            for s in options.tuning_seeds
        ]
        of = found.setdefault(alpha, {}).setdefault(name, {"grid": []})
        of["grid"].append([*rates, float(np.mean(accuracies))])
    for of_alpha in found.values():
        for of in of_alpha.values():
            of["best"] = max(of["grid"], key=lambda row: row[2])[:2]
    return found


def reported_runs(grid: Grid, chosen: dict[str, Any], options: argparse.Namespace) -> Any:
    """For each α and optimizer: the test accuracies of every seed at the chosen rates."""
    curves: dict[str, dict[str, list[Curve]]] = {}
    cases = [(a, name, s) for s in range(options.seeds) for a in ALPHAS for name in OPTIMIZERS]
    for alpha, name, seed in tqdm(cases, desc="reported runs", disable=None):
        rates = chosen[alpha][name]["best"]
        curve = run(grid, name, ALPHAS[alpha], rates, seed, options.rounds)["test"]
        curves.setdefault(alpha, {}).setdefault(name, []).append(curve)
        run_name = f"{name}, {alpha}, seed {seed}"
        shared.write_curves(options.logdir, run_name, range(len(curve)), {"test accuracy": curve})
    return curves


# Results


def report_on(results: dict[str, Any], report: shared.Report) -> None:
    target, rounds = results["target"], results["rounds"]
    for alpha, of_alpha in results["chosen"].items():
        rows = []
        for name, of in of_alpha.items():
            server_rates = sorted({row[1] for row in of["grid"]})
            for rate in sorted({row[0] for row in of["grid"]}):
                cells = [f"{row[1]:g}: {row[2]:.3f}" for row in of["grid"] if row[0] == rate]
                bold = of["best"][0] == rate
                best = server_rates.index(of["best"][1])
                cells = [f"**{c}**" if bold and i == best else c for i, c in enumerate(cells)]
                rows.append([name, f"{rate:g}", ", ".join(cells)])
        report.table(
            f"α = {ALPHAS[alpha]:g} ({alpha}): validation accuracy by learning rate (bold: chosen)",
            ["optimizer", "client η", "server η: accuracy"],
            rows,
        )
    rows = []
    for alpha, of_alpha in results["curves"].items():
        for name, of_seeds in of_alpha.items():
            client_rate, server_rate = results["chosen"][alpha][name]["best"]
            reached = sum(max(curve) >= target for curve in of_seeds)
            rows.append(
                [
                    f"{alpha}, {name}",
                    f"{client_rate:g}, {server_rate:g}",
                    shared.with_interval(
                        [rounds_to(curve, target) for curve in of_seeds], 1, bounded=True
                    ),
                    f"{reached} of {len(of_seeds)}",
                    shared.with_interval([last_rounds(c) for c in of_seeds], 3, bounded=True),
                ]
            )
    report.table(
        f"Test accuracy, mean of {results['seeds']} seeds (95 % interval). A run that does not "
        f"reach {target:g} counts as {rounds} rounds",
        ["", "η of clients, server", f"rounds to {target:g}", "reached it", f"last {LAST} rounds"],
        rows,
    )
    rows = [
        [f"{alpha}, {one} − {other}", *differences(of_alpha[one], of_alpha[other], target)]
        for alpha, of_alpha in results["curves"].items()
        for one, other in (("FedYogi", "FedAdam"), ("FedYogi", "FedAvg"), ("FedAdam", "FedAvg"))
    ]
    report.table(
        "One less the other, seed by seed: mean (95 % interval)",
        ["", f"rounds to {target:g}", f"accuracy, last {LAST} rounds"],
        rows,
    )


def differences(one: list[Curve], other: list[Curve], target: float) -> list[str]:
    pairs = list(zip(one, other, strict=True))
    rounds = [rounds_to(a, target) - rounds_to(b, target) for a, b in pairs]
    accuracies = [last_rounds(a) - last_rounds(b) for a, b in pairs]
    return [
        shared.with_interval(rounds, 1, bounded=True),
        shared.with_interval(accuracies, 3, bounded=True),
    ]


def draw(results: dict[str, Any]) -> Figure:
    title = f"Digits on 40 devices, 5 in a round: test accuracy, mean of {results['seeds']} seeds"
    picture, panels = shared.blank_figure(f"{title} (95 % interval)", 2, height=4.2, sharey=True)
    for axes, (alpha, of_alpha) in zip(panels, results["curves"].items(), strict=True):
        for name, of_seeds in of_alpha.items():
            x = range(results["rounds"] + 1)
            interval = shared.bootstrap_interval(of_seeds)
            if interval is not None:
                shared.draw_band(axes, STYLES[name], x, interval, alpha=0.15)
            axes.plot(x, np.mean(of_seeds, axis=0), label=name, **STYLES[name])
        axes.axhline(results["target"], color="gray", linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set_title(f"{alpha}: α = {ALPHAS[alpha]:g}", fontsize=10)
        axes.set(xlabel="round", ylim=(0, 1))
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    panels[0].set_ylabel("accuracy")
    return picture


def main(argv: Sequence[str] | None = None) -> None:
    options = shared.parse_options(shared.example_parser(__doc__, __file__, seeds=10), argv)
    logging.getLogger("flwr").setLevel("ERROR")  # it writes a dozen lines a round
    report = shared.Report("Federated learning: any Keras optimizer on the server", options)
    options.rounds = QUICK_ROUNDS if options.quick else ROUNDS
    options.client_rates = CLIENT_RATES[:1] if options.quick else CLIENT_RATES
    options.tuning_seeds = TUNING_SEEDS[:1] if options.quick else TUNING_SEEDS
    options.server_rates = (
        {n: r[1:2] for n, r in SERVER_RATES.items()} if options.quick else SERVER_RATES
    )
    here = clients.HereGrid()
    results: dict[str, Any] = {
        "rounds": options.rounds,
        "seeds": options.seeds,
        "target": TARGET,
        "chosen": chosen_rates(here, options),
    }

    def make_runs(grid: Grid) -> None:
        results["curves"] = reported_runs(grid, results["chosen"], options)

    if options.quick:
        make_runs(here)
    else:
        in_simulation_engine(make_runs)
    report_on(results, report)
    report.paragraph(f"With Flower {importlib.metadata.version('flwr')}.")
    report.write(results, draw(results))


if __name__ == "__main__":
    main()
