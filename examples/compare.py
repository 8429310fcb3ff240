"""Compares keras_yogi.Adam, keras_yogi.Yogi and keras.optimizers.Adam on one training job.

The three start from the same weights and see the same batches in the same order, at the same
learning rate. Printed: a table with each one's final losses, the steps that it took to a loss near
the end, and the time of a step. Written to the log folder: the runs for TensorBoard
(`<logdir>/<optimizer>`, by keras_yogi.TensorBoard: losses, and what the optimizer does), the curves
as `curves.png` and all figures as `results.json`. A second run with the same log folder replaces
the first.

    python examples/compare.py                                442 diabetes patients, a regression
    python examples/compare.py --dataset digits               1,797 digits, a classification
    python examples/compare.py --dataset airfoil --seeds 20   a textbook's job, see below

What to expect: the two Adams differ in ε alone (1e-6 next to √v̂ here, 1e-7 next to √v in Keras),
so their curves lie on each other. Yogi's ε is 1e-3, and its velocity falls more slowly than Adam's
when gradients shrink: at the same learning rate it takes a seventh more steps on the digits, and on
the other two it ends level.

`--dataset airfoil` repeats the optimizer experiments of "Dive into Deep Learning" (Zhang et al.,
https://d2l.ai, chapter "Optimization Algorithms"): linear regression on 1,500 rows of NASA's
airfoil self-noise data, two epochs of batches of 10, learning rate 0.01, β₁ = 0.9, β₂ = 0.999 and
ε = 1e-6 for Adam, 1e-3 for Yogi: keras_yogi's defaults. Yogi's velocity starts at keras_yogi's
1e-6, not at the textbook's 0.0; the final loss differs by less than 1e-5. The textbook prints the
loss of one run each; expect a mean between 0.242 and 0.246.
"""

import _quiet  # noqa: F401, before what imports TensorFlow

# isort: split

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _jobs as jobs
import _shared as shared
import keras
import numpy as np
import tensorflow as tf
from _jobs import Job, Rows
from keras import ops
from tqdm import tqdm

import keras_yogi

OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "keras_yogi.Adam": keras_yogi.Adam,
    "keras_yogi.Yogi": keras_yogi.Yogi,
    "keras.optimizers.Adam": keras.optimizers.Adam,
}


class Defaults(NamedTuple):
    epochs: int
    batch_size: int
    learning_rate: float


DEFAULTS = {
    "diabetes": Defaults(epochs=20, batch_size=32, learning_rate=0.005),
    "digits": Defaults(epochs=20, batch_size=32, learning_rate=0.005),
    "airfoil": Defaults(epochs=2, batch_size=10, learning_rate=0.01),
}
QUICK_EPOCHS = 2

TEXTBOOK = {  # the losses that it prints: MXNet, PyTorch, TensorFlow
    "Adam, by hand": (0.243, 0.244, 0.243),
    "Adam, the library's": (0.249, 0.244, 0.245),
    "Yogi, by hand": (0.246, 0.245, 0.242),
}

# "Steps to a loss" are counted until this part of the way from the first loss to the best final
# one remains: late enough to tell optimizers apart, and not yet the noise of the last batches.
REMAINING = 0.1
POINTS = 100  # of a curve


# Training


class Recorder(keras.callbacks.Callback):
    """Measures the losses over all rows every few steps, and the time of every step.

    The training loss that Keras logs is a mean over an epoch in which the weights change.
    """

    def __init__(self, job: Job, every: int, bar: tqdm) -> None:
        super().__init__()
        self.job, self.every, self.bar = job, every, bar
        self.steps: list[int] = []
        self.train: list[float] = []
        self.validation: list[float] = []
        self.milliseconds: list[float] = []

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.measure()

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.milliseconds.append(1000 * (time.perf_counter() - self.started))
        if len(self.milliseconds) == 1:
            self.first_batch_loss = float(logs["loss"])
        if len(self.milliseconds) % self.every == 0:
            self.measure()
        self.bar.update()

    def on_train_end(self, logs: dict | None = None) -> None:
        if self.steps[-1] != len(self.milliseconds):
            self.measure()

    def measure(self) -> None:
        self.steps.append(len(self.milliseconds))
        self.train.append(self.loss_over(self.job.train))
        if self.job.validation:
            self.validation.append(self.loss_over(self.job.validation))

    def loss_over(self, rows: Rows) -> float:
        x, y = rows
        return float(ops.mean(self.job.loss(y, self.model(x, training=False))))


def batches(rows: Rows, batch_size: int, seed: int) -> tf.data.Dataset:
    """The rows in an order that is new in every epoch and the same for every optimizer.

    `fit` on arrays would give every epoch the order of the first once Keras's seed is set.
    """
    return tf.data.Dataset.from_tensor_slices(rows).shuffle(len(rows[0]), seed).batch(batch_size)


def train(
    job: Job, name: str, seed: int, options: argparse.Namespace, every: int, bar: tqdm
) -> Recorder:
    """One run. The seed decides the initial weights and the order of the batches."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    model = job.model()
    epsilon = {} if options.epsilon is None else {"epsilon": options.epsilon}
    model.compile(OPTIMIZERS[name](learning_rate=options.learning_rate, **epsilon), loss=job.loss)

    recorder = Recorder(job, every, bar)
    callbacks: list[keras.callbacks.Callback] = [recorder]
    if seed == options.seed:
        folder = shared.fresh_run_folder(options.logdir, name)
        tensorboard = keras_yogi.TensorBoard(str(folder), histogram_freq=1, write_graph=False)
        callbacks.append(tensorboard)
    model.fit(
        batches(job.train, options.batch_size, seed),
        epochs=options.epochs,
        shuffle=False,  # the batches are
        validation_data=job.validation,
        callbacks=callbacks,
        verbose=0,
    )
    return recorder


def train_all(job: Job, options: argparse.Namespace) -> dict[str, list[Recorder]]:
    """The runs of every optimizer, one per seed."""
    seeds = range(options.seed, options.seed + options.seeds)
    steps = options.epochs * math.ceil(len(job.train[0]) / options.batch_size)
    runs: dict[str, list[Recorder]] = {name: [] for name in OPTIMIZERS}
    # disable=None: no bar where standard error is not a terminal.
    with tqdm(total=steps * len(seeds) * len(runs), unit="step", disable=None) as bar:
        for seed in seeds:
            for name, recorders in runs.items():
                bar.set_description(f"{name}, seed {seed}")
                recorders.append(train(job, name, seed, options, max(1, steps // POINTS), bar))
    return runs


# Results


def curve(values: list[list[float]]) -> dict[str, list[float] | None]:
    """The mean over the seeds, and half the width of its 95 % interval."""
    mean, half_width = shared.mean_and_interval(values)
    return {
        "mean": mean.tolist(),
        "half_width": None if half_width is None else half_width.tolist(),
    }


def summarize(
    job: Job, runs: dict[str, list[Recorder]], options: argparse.Namespace
) -> dict[str, Any]:
    """What the JSON file holds, and the table and the picture show."""
    optimizers: dict[str, dict[str, Any]] = {
        name: {
            "first_batch_loss": [r.first_batch_loss for r in recorders],
            "final_train_loss": [r.train[-1] for r in recorders],
            "milliseconds_per_step": float(np.median([r.milliseconds for r in recorders])),
            "steps": recorders[0].steps,
            "train": curve([r.train for r in recorders]),
            "validation": curve([r.validation for r in recorders]) if job.validation else None,
        }
        for name, recorders in runs.items()
    }
    means = {name: np.array(result["train"]["mean"]) for name, result in optimizers.items()}
    start = float(means["keras_yogi.Adam"][0])
    best = float(np.fmin.reduce([mean[-1] for mean in means.values()]))
    target = best + REMAINING * (start - best) if best < start else math.nan
    for name, result in optimizers.items():
        reached = np.flatnonzero(means[name] <= target)
        result["steps_to_target"] = result["steps"][reached[0]] if len(reached) else None
    return {
        "dataset": options.dataset,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "epsilon": options.epsilon,  # None: each optimizer's own default
        "seeds": list(range(options.seed, options.seed + options.seeds)),
        "loss": job.loss_name,
        "least_squares": jobs.least_squares(job) if options.dataset == "airfoil" else None,
        "target_loss": target,
        "versions": {"keras_yogi": keras_yogi.__version__, "keras": keras.__version__},
        "optimizers": optimizers,
    }


def heading(results: dict[str, Any]) -> str:
    seeds = results["seeds"]
    epsilon = "" if results["epsilon"] is None else f"epsilon {results['epsilon']:g}, "
    return (
        f"{results['dataset']}: {results['epochs']} epochs, batches of {results['batch_size']}, "
        f"learning rate {results['learning_rate']:g}, {epsilon}"
        + (f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of {len(seeds)} seeds (95 % interval)")
    )


def final(curve: dict[str, Any] | None) -> str:
    """The last point of a curve, as the table shows it."""
    if curve is None:
        return "-"
    mean = curve["mean"][-1]
    if curve["half_width"] is None:
        return f"{mean:.4f}"
    half_width = curve["half_width"][-1]
    return f"{mean:.4f} ({mean - half_width:.4f} to {mean + half_width:.4f})"


def print_results(results: dict[str, Any]) -> None:
    """The table, what its columns mean and, for airfoil, the textbook's figures."""
    optimizers = results["optimizers"]
    rows = [
        [
            name,
            final(result["train"]),
            final(result["validation"]),
            "not reached" if result["steps_to_target"] is None else str(result["steps_to_target"]),
            f"{result['milliseconds_per_step']:.2f}",
        ]
        for name, result in optimizers.items()
    ]
    if results["least_squares"] is not None:
        rows.append(["least squares, the optimum", f"{results['least_squares']:.4f}", *"---"])
    target = f"steps to {results['target_loss']:.4f}"
    interval = optimizers["keras_yogi.Adam"]["steps"][1]
    every = "every step" if interval == 1 else f"every {interval} steps"
    shared.print_table(
        heading(results),
        ["optimizer", "training loss", "validation loss", target, "ms a step"],
        rows,
    )
    shared.print_lines(
        f"Losses: {results['loss']}, over all rows, after the last step.",
        f"{target}: until the training loss, measured {every}, is {1 - REMAINING:.0%} of the way",
        "down from its start to the best optimizer's end.",
        "ms a step: median, with the forward and the backward pass.",
    )
    if results["dataset"] == "airfoil":
        shared.print_table(
            "Printed by the textbook, one run each:",
            ["training loss", "MXNet", "PyTorch", "TensorFlow"],
            [[name, *(f"{loss:.3f}" for loss in losses)] for name, losses in TEXTBOOK.items()],
        )


def draw(results: dict[str, Any], path: Path) -> None:
    """The training and the validation loss, or how far airfoil's is above the optimum."""
    optimizers, optimum = results["optimizers"], results["least_squares"]
    parts = {"train": "training rows"}
    if optimizers["keras_yogi.Adam"]["validation"] is not None:
        parts["validation"] = "validation rows"
    picture, panels = shared.figure(heading(results), len(parts))
    for (part, title), axes in zip(parts.items(), panels, strict=True):
        for name, result in optimizers.items():
            mean = np.array(result[part]["mean"], "float64") - (optimum or 0.0)
            shared.draw_curve(axes, name, result["steps"], mean, result[part]["half_width"])
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"training step (batches of {results['batch_size']})")
    loss = results["loss"]
    panels[0].set_ylabel(loss if optimum is None else f"{loss}\nabove the optimum, {optimum:.4f}")
    panels[0].legend(frameon=False)
    shared.save(picture, path)


# Command line


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Job]:
    def defaults(field: str) -> str:
        return ", ".join(f"{name} {getattr(d, field):g}" for name, d in DEFAULTS.items())

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--dataset", choices=DEFAULTS, default="diabetes", help="default: %(default)s")
    add("--data", type=Path, help=f"{jobs.AIRFOIL_FILE} or its folder; default: $KERAS_YOGI_DATA")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs", type=shared.positive_integer, help=f"defaults: {defaults('epochs')}"
    )
    length.add_argument("--quick", action="store_true", help=f"{QUICK_EPOCHS} epochs")
    add("--batch-size", type=shared.positive_integer, help=f"defaults: {defaults('batch_size')}")
    add(
        "--learning-rate",
        type=shared.positive_number,
        help=f"of all three; defaults: {defaults('learning_rate')}",
    )
    add(
        "--epsilon",
        type=shared.non_negative_number,
        help="of all three; default: each optimizer's own",
    )
    add("--seed", type=shared.random_seed, default=0, help="default: %(default)s")
    add(
        "--seeds",
        type=shared.positive_integer,
        default=1,
        help="average over so many; TensorBoard gets the first one's runs; default: %(default)s",
    )
    add("--logdir", type=Path, help="default: logs/compare-<dataset>")
    options = parser.parse_args(argv)

    if options.data is not None and options.dataset != "airfoil":
        parser.error(f"argument --data: needs --dataset airfoil. Received: {options.dataset}")
    if options.quick:
        options.epochs = QUICK_EPOCHS
    for field, default in DEFAULTS[options.dataset]._asdict().items():
        if getattr(options, field) is None:
            setattr(options, field, default)
    try:
        job = jobs.load(options.dataset, options.data)
    except jobs.DataError as error:
        parser.error(str(error))
    logdir = options.logdir or Path("logs") / f"compare-{options.dataset}"
    options.logdir = shared.writable_folder(parser, "--logdir", logdir)
    return options, job


def main(argv: Sequence[str] | None = None) -> None:
    options, job = parse_arguments(argv)
    results = summarize(job, train_all(job, options), options)
    print_results(results)
    shared.write_json(results, options.logdir / "results.json")
    draw(results, options.logdir / "curves.png")
    shared.print_lines(
        "",
        f"Figures: {options.logdir / 'results.json'}",
        f"Picture: {options.logdir / 'curves.png'}",
        f"To open TensorBoard: tensorboard --logdir {options.logdir}",
    )


if __name__ == "__main__":
    main()
