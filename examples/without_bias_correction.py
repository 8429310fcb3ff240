"""Adam and Yogi rewritten so that no bias correction is needed: Adam stays the same, Yogi does not.

Exercise 2 of the section "Adam" in "Dive into Deep Learning" asks for updates whose averages are
right from the first step. Decay rates that depend on time do it: with

    β_t = β (1 − βᵗ⁻¹) / (1 − βᵗ),    so that    1 − β_t = (1 − β) / (1 − βᵗ),

the average m̂ ← β_t m̂ + (1 − β_t) g is the corrected one, m / (1 − βᵗ), at every step. So for Adam
nothing changes but the rounding. Yogi's velocity is no average: v̂ ← v̂ + (1 − β₂ₜ) sign(g² − v̂) g²
is another optimizer than Yogi with its correction. Both velocities settle where g² above and below
them weighs the same, at the weighted median of g²: for a Gaussian gradient 2.37 times Adam's mean.
The correction starts Yogi at Adam's mean and leaves it after about 1 / (1 − β₂) steps; without it,
Yogi is at the median within a few hundred. In training, the rewritten Yogi is slower at small
learning rates, as its steps are shorter from the start, and steadier at large ones. (There, at 0.1,
training is chaotic: rounding alone makes Adam's two losses differ.)

    python examples/without_bias_correction.py            a minute
    python examples/without_bias_correction.py --quick    fewer steps, seeds and learning rates
"""

import argparse
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up messages

import _jobs as jobs
import _shared as shared
import keras
import numpy as np
from _runs import ShortRuns, drawn_steps, starts_of, trajectory, write_final_losses
from keras import ops
from matplotlib.figure import Figure
from scipy.stats import chi2
from tqdm import tqdm

import keras_yogi


class Rewritten(keras.optimizers.Optimizer):
    """Adam or Yogi with decay rates that depend on time in the place of a bias correction."""

    def __init__(
        self, rule: str, epsilon: float, initial_velocity: float = 0.0, learning_rate: float = 0.01
    ) -> None:
        super().__init__(learning_rate)
        self.rule, self.epsilon, self.initial_velocity = rule, epsilon, initial_velocity
        self.beta_1, self.beta_2 = 0.9, 0.999

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        start = keras.initializers.Constant(self.initial_velocity)
        self.momentums, self.velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"], ["zeros", start]
        )

    def get_slot(self, variable: keras.Variable, name: str) -> Any:
        slots = {"momentum": self.momentums, "velocity": self.velocities}[name]
        return slots[self._get_variable_index(variable)].value

    def update_step(self, gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        g = ops.cast(gradient, variable.dtype)
        t = ops.cast(self.iterations + 1, variable.dtype)
        # 1 − β_t; expm1, because 1 − 0.999 in float32 has lost three digits
        share_1, share_2 = (
            (1.0 - beta) / -ops.expm1(t * math.log(beta)) for beta in (self.beta_1, self.beta_2)
        )
        index = self._get_variable_index(variable)
        m, v = self.momentums[index], self.velocities[index]
        gap = ops.square(g) - v
        towards = gap if self.rule == "adam" else ops.sign(gap) * ops.square(g)
        self.assign_add(m, share_1 * (g - m))
        self.assign_add(v, share_2 * towards)
        rate = ops.cast(learning_rate, variable.dtype) / (ops.sqrt(v) + self.epsilon)
        self.assign_sub(variable, rate * m)


OPTIMIZERS: dict[str, dict[str, Callable[..., Any]]] = {
    "Adam": {
        "corrected": keras_yogi.Adam,
        "rewritten": functools.partial(Rewritten, "adam", epsilon=1e-6),
    },
    "Yogi": {
        "corrected": keras_yogi.Yogi,
        "rewritten": functools.partial(Rewritten, "yogi", epsilon=1e-3, initial_velocity=1e-6),
    },
}
STEPS, QUICK_STEPS = 10_000, 1_000
WEIGHTS = 200
# Half of the mean of g² comes from g² below it; g² times its own density is that of χ² with 3
# degrees of freedom.
WEIGHTED_MEDIAN = float(chi2.ppf(0.5, 3))

RATES, QUICK_RATES = (0.003, 0.01, 0.03, 0.1), (0.01, 0.03)
BATCH_SIZE, EPOCHS = 32, 10


def difference(name: str, gradients: np.ndarray, dtype: str) -> np.ndarray:
    """How far the rewritten weights are from the corrected ones after every step: the largest
    difference, as a part of the largest weight so far.
    """
    start = np.zeros(gradients.shape[1])
    corrected, rewritten = (
        trajectory(new(learning_rate=0.01), gradients, start, dtype)
        for new in OPTIMIZERS[name].values()
    )
    largest = np.maximum.accumulate(np.abs(corrected).max(axis=1))[1:]
    return np.abs(rewritten - corrected).max(axis=1)[1:] / largest


# Given gradients: the weights and the velocity


def differences(steps: int) -> dict[str, np.ndarray]:
    """The difference of the weights in float32 and float64, under heavy-tailed gradients of scales
    from 1e-3 to 1e2.
    """
    random = np.random.default_rng(0)
    scales = 10.0 ** random.uniform(-3, 2, WEIGHTS)
    gradients = scales * random.standard_t(2, (steps + 1, WEIGHTS))
    return {
        f"{name}, {dtype}": difference(name, gradients, dtype)
        for name in OPTIMIZERS
        for dtype in ("float32", "float64")
    }


def velocities(steps: int) -> dict[str, np.ndarray]:
    """v̂ after every step under Gaussian gradients of variance 1: the mean over the weights."""
    gradients = np.random.default_rng(0).standard_normal((steps + 1, WEIGHTS))
    correction = -np.expm1(np.arange(1, steps + 1) * math.log(0.999))
    means = {}
    for name, variants in OPTIMIZERS.items():
        for variant, new in variants.items():
            optimizer = new(learning_rate=0.0)
            velocity = functools.partial(optimizer.get_slot, name="velocity")
            v = trajectory(optimizer, gradients, np.zeros(WEIGHTS), watch=velocity)[1:]
            mean = v.mean(axis=1, dtype="float64")
            means[f"{name}, {variant}"] = mean / correction if variant == "corrected" else mean
    return means


# Training


def final_losses(name: str, options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """The training losses of a job after the last step: for each optimizer, by η, by seed."""
    job = jobs.load(name)
    starts = starts_of(job, BATCH_SIZE, EPOCHS, options.seeds)
    losses = {}
    for optimizer, variants in OPTIMIZERS.items():
        for variant, new in variants.items():
            label = f"{optimizer}, {variant}"
            of_parts = ShortRuns(job, new()).final_losses(starts, options.rates)
            write_final_losses(options.logdir, f"{name}/{label}", options.rates, of_parts)
            losses[label] = of_parts["training"]
    return losses


# Results


def draw(results: dict[str, Any]) -> Figure:
    title = "Bias correction, and decay rates that depend on time in its place (rewritten)"
    picture, (weights, velocity, loss) = shared.blank_figure(title, 3, height=3.8)
    steps = results["steps"]
    for label, curve in results["differences"].items():
        name, dtype = label.split(", ")
        style = {**shared.LINES[name], "linestyle": "solid" if dtype == "float64" else (0, (4, 2))}
        weights.loglog(steps, np.maximum(curve, 1e-17), label=label, **style)
    weights.set(xlabel="step", ylabel="difference of the weights / largest weight")
    weights.set_title("weights: corrected against rewritten", fontsize=10)

    for label, curve in results["velocities"].items():
        velocity.semilogx(steps, curve, label=label, **style_of(label))
    for height, text in ((1.0, "mean of g²"), (WEIGHTED_MEDIAN, "weighted median of g²")):
        velocity.axhline(height, color="gray", linewidth=0.8, linestyle=(0, (2, 2)))
        velocity.text(1, height + 0.03, text, fontsize=8, color="gray")
    velocity.set(xlabel="step", ylabel="v̂, mean over the weights")
    velocity.set_title("velocity, gradients of variance 1", fontsize=10)

    job, of_job = list(results["training"].items())[-1]
    for label, losses in of_job.items():
        mean, half_width = shared.mean_and_interval(np.array(losses).T)
        loss.errorbar(results["rates"], mean, half_width, label=label, **style_of(label))
    shared.logarithmic(loss.yaxis)
    loss.set_xscale("log")
    loss.set_xticks(results["rates"], [f"{rate:g}" for rate in results["rates"]])
    loss.set_xticks([], minor=True)
    loss.set(xlabel="learning rate η", ylabel="final training loss")
    loss.set_title(f"{job}, {EPOCHS} epochs", fontsize=10)
    weights.legend(frameon=False, fontsize=8, loc=(0.05, 0.3))  # where no curve is
    for axes in (velocity, loss):
        axes.legend(frameon=False, fontsize=8)
    return picture


def style_of(label: str) -> dict[str, Any]:
    name, variant = label.split(", ")
    dashes = "solid" if variant == "corrected" else (0, (4, 2))
    # Adam's two variants lie on each other.
    color = "black" if label == "Adam, rewritten" else shared.LINES[name]["color"]
    width = 4.0 if label == "Adam, corrected" else 1.8
    return {"color": color, "linestyle": dashes, "linewidth": width}


def report_on(results: dict[str, Any], ends: dict[str, Any], report: shared.Report) -> None:
    report.table(
        "Weights, rewritten against corrected: largest difference / largest weight",
        ["optimizer, dtype", *(f"step {step:,}" for step in ends["steps"])],
        [[label, *(f"{x:.1e}" for x in values)] for label, values in ends["differences"].items()],
    )
    report.table(
        "v̂ of Gaussian gradients of variance 1: mean of g² 1, weighted median of g² "
        f"{WEIGHTED_MEDIAN:.3f}",
        ["optimizer", *(f"step {step:,}" for step in ends["steps"])],
        [[label, *(f"{x:.3f}" for x in values)] for label, values in ends["velocities"].items()],
    )
    for name, losses in results["training"].items():
        report.table(
            f"{name}: training loss after {EPOCHS} epochs, mean of {results['seeds']} seeds "
            "(95 % interval)",
            ["η", *losses],
            [
                [f"{rate:g}", *(shared.with_interval(of[row], 3) for of in losses.values())]
                for row, rate in enumerate(results["rates"])
            ],
        )


def main(argv: Sequence[str] | None = None) -> None:
    options = shared.parse_options(shared.example_parser(__doc__, __file__, seeds=10), argv)
    report = shared.Report("Adam and Yogi without a bias correction", options)
    options.rates = QUICK_RATES if options.quick else RATES
    steps = QUICK_STEPS if options.quick else STEPS
    curves = {"differences": differences(steps), "velocities": velocities(steps)}

    def at(shown: np.ndarray) -> dict[str, Any]:
        picked = {
            kind: {label: curve[shown - 1].tolist() for label, curve in of_kind.items()}
            for kind, of_kind in curves.items()
        }
        return {"steps": shown.tolist(), **picked}

    datasets = ["diabetes"] if options.quick else ["diabetes", "digits"]
    results = {
        **at(drawn_steps(steps)),
        "seeds": options.seeds,
        "rates": list(options.rates),
        "training": {name: final_losses(name, options) for name in tqdm(datasets, disable=None)},
    }
    for kind, of_kind in curves.items():
        for label in of_kind:
            of_label = {kind: results[kind][label]}
            shared.write_curves(options.logdir, f"{kind}/{label}", results["steps"], of_label)
    report_on(results, at(10 ** np.arange(int(math.log10(steps)) + 1)), report)
    report.write(results, draw(results))


if __name__ == "__main__":
    main()
