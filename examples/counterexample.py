"""A case in which Adam goes to the worst point and Yogi to the best (Reddi, Kale & Kumar, 2018).

At step t = 1, 2, … the loss is f_t(x) = 3x if t mod 3 = 1, else −x, for x in [−1, 1]. Three steps
together cost x: the best point is −1, the worst +1. With β₁ = 0, β₂ = 0.1, ε = 1e-8 and
η = 0.1 / √t, Adam divides the rare slope 3 by a root that the slope itself has just enlarged, and
the two slopes −1 by roots that have forgotten it: it goes to +1. Yogi's velocity moves by at most
(1 − β₂) g² a step and ends at −1, as does Adam with the `amsgrad` that was invented for this case.

The stochastic variant: f_t(x) = 1010x with probability 0.01, else −10x, again with the best point
at −1 (the mean slope is +0.2), here with β₁ = 0.9 and β₂ = 0.99.

    python examples/counterexample.py            a minute or two
    python examples/counterexample.py --quick    fewer values of β₂, fewer random steps

What to expect: for β₂ = 0.1 Adam ends at +1 and Yogi at −1, from any start. From β₂ = 0.7 up both
reach −1. The textbook value of 0.999 is far from this failure, but for every β₂ some slope instead
of 3 causes it. In the stochastic variant Adam drifts to +1 and the others slowly to −1. They are so
slow that the first few steps, all of them −10x, show for a long time.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up messages


import _shared as shared
import keras
import numpy as np
from _runs import InverseRoot, drawn_steps, trajectory
from keras import ops
from matplotlib.figure import Figure
from tqdm import tqdm

import keras_yogi

OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "Adam": keras_yogi.Adam,
    "AMSGrad": lambda *args, **kwargs: keras_yogi.Adam(*args, amsgrad=True, **kwargs),
    "Yogi": keras_yogi.Yogi,
}
STARTS = (-1.0, 0.0, 1.0)
STEPS = 30_000
BETA_2 = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.999)
QUICK_BETA_2 = (0.1, 0.9, 0.999)
FAILING_BETA_2 = 0.1

RANDOM_STEPS, QUICK_RANDOM_STEPS = 1_000_000, 30_000
RANDOM_RATES = (0.1, 1.0, 10.0)
DRAWN_RATE = 1.0


class Between(keras.constraints.Constraint):
    """Projects onto [−1, 1]."""

    def __call__(self, w: Any) -> Any:
        return ops.clip(w, -1.0, 1.0)


# The games


def play(
    optimizer: keras.optimizers.Optimizer, slopes: np.ndarray, starts: Sequence[float]
) -> np.ndarray:
    """The points x_t that the optimizer plays before it sees the slope of step t.

    The games are the elements of one variable, and the columns of `slopes`: their updates are
    independent of each other.
    """
    return trajectory(optimizer, slopes, starts, constraint=Between())


def average_regret(slopes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """How much more than the best point −1 the points have cost, on average over the steps so far.

    It goes to 0 for an optimizer that learns, and is 2 · mean slope at +1, the worst point.
    """
    regret = np.cumsum(slopes * (points.astype("float64") + 1.0), axis=0)
    return regret / np.arange(1, len(slopes) + 1)[:, None]


def cyclic_slopes(steps: int, games: int) -> np.ndarray:
    """3, −1, −1, 3, −1, −1, …, the same in every game."""
    cycle = np.where(np.arange(1, steps + 1) % 3 == 1, 3.0, -1.0)
    return np.repeat(cycle[:, None], games, axis=1)


def random_slopes(steps: int, games: int) -> np.ndarray:
    """1010 with probability 0.01, else −10: one column for each seed 0, 1, …"""
    columns = [np.random.default_rng(seed).random(steps) < 0.01 for seed in range(games)]
    return np.where(np.stack(columns, axis=1), 1010.0, -10.0)


# What is shown of them


def cyclic_results(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """For every β₂ and optimizer: where it ends from every start, and its average regret."""
    slopes, at = cyclic_slopes(STEPS, len(STARTS)), drawn_steps(STEPS) - 1
    results: dict[str, dict[str, Any]] = {}
    for beta_2 in tqdm(QUICK_BETA_2 if options.quick else BETA_2, unit="β₂", disable=None):
        results[f"{beta_2:g}"] = {}
        for name, new in OPTIMIZERS.items():
            optimizer = new(InverseRoot(0.1), beta_1=0.0, beta_2=beta_2, epsilon=1e-8)
            points = play(optimizer, slopes, STARTS)
            regret = average_regret(slopes, points)
            results[f"{beta_2:g}"][name] = {
                "end": points[-1].tolist(),
                "final_average_regret": regret[-1].tolist(),
            }
            if beta_2 == FAILING_BETA_2:
                middle = STARTS.index(0.0)
                curves = {"x": points[at, middle], "average_regret": regret[at, middle]}
                shared.write_curves(options.logdir, f"every third step/{name}", at + 1, curves)
                results[f"{beta_2:g}"][name] |= {tag: c.tolist() for tag, c in curves.items()}
    return results


def random_results(steps: int, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """For every learning rate and optimizer: where each seed's game ends, and the mean way."""
    slopes, at = random_slopes(steps, options.seeds), drawn_steps(steps) - 1
    results: dict[str, dict[str, Any]] = {}
    for rate in tqdm(RANDOM_RATES, unit="η", disable=None):
        results[f"{rate:g}"] = {}
        for name, new in OPTIMIZERS.items():
            optimizer = new(InverseRoot(rate), beta_1=0.9, beta_2=0.99, epsilon=1e-8)
            points = play(optimizer, slopes, (0.0,) * options.seeds)
            mean, half_width = shared.mean_and_interval(points[at].T)
            results[f"{rate:g}"][name] = {
                "end": points[-1].tolist(),
                "x": mean.tolist(),
                "half_width": None if half_width is None else half_width.tolist(),
            }
            run = f"at random, rate {rate:g}/{name}"
            shared.write_curves(options.logdir, run, at + 1, {"x": mean})
    return results


def draw(results: dict[str, Any]) -> Figure:
    title = "f(x) = 3x every third step, else −x: the best point is −1, the worst +1"
    picture, (ways, regrets, ends, random) = shared.blank_figure(title, 2, 2, height=3.3)
    failing = results["cyclic"][f"{FAILING_BETA_2:g}"]
    steps = results["cyclic_steps"]
    for name, result in failing.items():
        ways.semilogx(steps, result["x"], label=name, **shared.LINES[name])
        regrets.loglog(steps, result["average_regret"], label=name, **shared.LINES[name])
    ways.set(title=f"β₂ = {FAILING_BETA_2:g}", xlabel="step t", ylabel="x", ylim=(-1.05, 1.05))
    regrets.set(title=f"β₂ = {FAILING_BETA_2:g}", xlabel="step t", ylabel="average regret")

    for name in OPTIMIZERS:
        from_middle = [r[name]["end"][STARTS.index(0.0)] for r in results["cyclic"].values()]
        style = {**shared.LINES[name], "marker": "o", "markersize": 4}
        ends.plot([float(b) for b in results["cyclic"]], from_middle, label=name, **style)
    ends.set(title=f"x after {STEPS:,} steps from 0", xlabel="β₂", ylabel="x", ylim=(-1.05, 1.05))

    for name, result in results["random"][f"{DRAWN_RATE:g}"].items():
        mean, half_width = result["x"], result["half_width"]
        shared.draw_curve(random, name, results["random_steps"], mean, half_width)
    title = f"1010x with probability 0.01, else −10x\nη = {DRAWN_RATE:g}/√t, β₂ = 0.99"
    random.set(title=title, xlabel="step t", ylabel="x, mean and 95 % interval", ylim=(-1.05, 1.05))
    random.set_xscale("log")
    for panel in (ways, regrets, ends, random):
        panel.title.set_fontsize(10)
    ways.legend(frameon=False)
    return picture


def main(argv: Sequence[str] | None = None) -> None:
    options = shared.parse_options(
        shared.example_parser(__doc__, __file__, seeds=20, quick_seeds=20), argv
    )
    report = shared.Report("A case in which Adam diverges and Yogi converges", options)
    random_steps = QUICK_RANDOM_STEPS if options.quick else RANDOM_STEPS
    results = {
        "cyclic": cyclic_results(options),
        "cyclic_steps": drawn_steps(STEPS).tolist(),
        "random": random_results(random_steps, options),
        "random_steps": drawn_steps(random_steps).tolist(),
    }
    report.table(
        f"3x every third step, else −x: x after {STEPS:,} steps from −1, 0 and 1 (best: −1)",
        ["β₂", *OPTIMIZERS],
        [
            [beta_2, *(", ".join(f"{x:.3f}" for x in of[name]["end"]) for name in OPTIMIZERS)]
            for beta_2, of in results["cyclic"].items()
        ],
    )
    report.table(
        f"1010x with probability 0.01, else −10x: x after {random_steps:,} steps from 0, "
        f"mean of {options.seeds} seeds (95 % interval)",
        ["η", *OPTIMIZERS],
        [
            [f"{rate}/√t", *(shared.with_interval(of[name]["end"], 3) for name in OPTIMIZERS)]
            for rate, of in results["random"].items()
        ],
    )
    report.write(results, draw(results))


if __name__ == "__main__":
    main()
