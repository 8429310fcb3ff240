"""A custom training loop with two optimizers: a generative adversarial network, Adam against Yogi.

The data are points around eight places on a ring (Metz et al., 2017, "Unrolled Generative
Adversarial Networks"): a generator that has found only some of them shows at a glance. Generator
and discriminator are small networks with an optimizer each, and take a step in turn;
β₁ = 0.5 as usual for such networks. Every learning rate of a grid is tried over several seeds; both
optimizers get the same weights, the same data and the same noise.

    python examples/gan_two_optimizers.py            about 7 minutes on 2 cores
    python examples/gan_two_optimizers.py --quick    two learning rates, fewer steps

Printed: how many of the eight places the generator has found (at least 1 % of its points within
three standard deviations), which part of its points lie there at all, and the energy distance
between its points and the data's: zero if the distributions are the same.

Intervals are bootstrapped: shares stay below 1 in them and distances above 0.

What to expect: both do best at η = 0.0003, inside the grid, and find all eight places. The energy
distance is level there, but 0.10 more of Adam's points (0.07 to 0.13) lie at the places. Yogi
leaves more of them between two places, and is slower. At η = 0.01, Yogi's default, Adam's generator
loses nearly three places again and Yogi's little more than one. At 0.03 both fail, Adam worse. At
0.001 some runs of both fail, more of Adam's.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up messages

import _shared as shared
import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.spatial.distance import cdist
from tqdm import tqdm

import keras_yogi

OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "Adam": keras_yogi.Adam,
    "Yogi": keras_yogi.Yogi,
}
RATES, QUICK_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (3e-3, 1e-2)
SHOWN_RATE = "0.01"  # Yogi's default
STEPS, QUICK_STEPS = 6_000, 600
MEASURED_EVERY = 300  # steps
BATCH_SIZE = 128
SAMPLES = 2_000  # points that a distribution is judged by

ANGLES = 2 * np.pi * np.arange(8) / 8
PLACES = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype("float32")
SPREAD = 0.05  # standard deviation around a place
NOISE = 16  # numbers that the generator starts from
MEASURES = {"places found": 1, "points there": 2, "energy distance": 4}  # digits shown


# The data, and how far a generator is from them


def ring(count: int, seed: Sequence[Any]) -> tf.Tensor:
    """Points of the data: the same ones for the same two seeds."""
    place = tf.random.stateless_uniform([count], seed, 0, len(PLACES), "int32")
    around = tf.random.stateless_normal([count, 2], [seed[0] + 1_000_000, seed[1]])
    return tf.gather(PLACES, place) + SPREAD * around


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """2 E|A − B| − E|A − A'| − E|B − B'| (Székely & Rizzo, 2013), over all pairs of points."""
    return float(2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean())


def judged(points: np.ndarray, data: np.ndarray) -> dict[str, float]:
    distances = cdist(points, PLACES)
    near = distances.min(axis=1) < 3 * SPREAD
    share = np.bincount(distances.argmin(axis=1)[near], minlength=len(PLACES)) / len(points)
    return {
        "places found": float(np.sum(share >= 0.01)),
        "points there": float(near.mean()),
        "energy distance": energy_distance(points, data),
    }


# The network and its loop


def network(inputs: int, outputs: int) -> keras.Model:
    hidden = [layers.Dense(64, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.Input((inputs,)), *hidden, layers.Dense(outputs)])


class Gan:
    """Two networks and their optimizers; compiled once, and started again for every run."""

    def __init__(self, new_optimizer: Callable[..., keras.optimizers.Optimizer]) -> None:
        self.generator, self.discriminator = network(NOISE, 2), network(2, 1)
        self.optimizers = [new_optimizer(beta_1=0.5) for _ in range(2)]
        for optimizer, net in zip(self.optimizers, self.networks, strict=True):
            optimizer.build(net.trainable_variables)
        self._new = [[v.numpy() for v in optimizer.variables] for optimizer in self.optimizers]
        self.train = tf.function(self._train, jit_compile=True, autograph=False)

    @property
    def networks(self) -> tuple[keras.Model, keras.Model]:
        return self.generator, self.discriminator

    def start(self, learning_rate: float, seed: int) -> None:
        keras.utils.set_random_seed(seed)
        for net, (inputs, outputs) in zip(self.networks, ((NOISE, 2), (2, 1)), strict=True):
            net.set_weights(network(inputs, outputs).get_weights())
        for optimizer, values in zip(self.optimizers, self._new, strict=True):
            for variable, value in zip(optimizer.variables, values, strict=True):
                variable.assign(value)
            optimizer.learning_rate = learning_rate

    def generated(self, count: int, seed: Sequence[Any]) -> tf.Tensor:
        return self.generator(tf.random.stateless_normal([count, NOISE], seed))

    def _train(self, seed: tf.Tensor, first: tf.Tensor, last: tf.Tensor) -> None:
        """Steps `first` to `last` − 1. Each has data and noise of its own, decided by the seed."""

        def step(t: tf.Tensor) -> tuple[tf.Tensor]:
            self._discriminator_step(ring(BATCH_SIZE, [seed, t]), [seed, 2 * t])
            self._generator_step([seed, 2 * t + 1])
            return (t + 1,)

        tf.while_loop(lambda t: t < last, step, (first,))

    def _discriminator_step(self, real: tf.Tensor, noise_seed: Sequence[Any]) -> None:
        variables = self.discriminator.trainable_variables
        fake = self.generated(BATCH_SIZE, noise_seed)
        with tf.GradientTape() as tape:
            # −ln of the probability of the truth: real points are real, generated ones are not
            loss = ops.mean(ops.softplus(-self.discriminator(real)))
            loss += ops.mean(ops.softplus(self.discriminator(fake)))
        self.optimizers[1].apply(tape.gradient(loss, variables), variables)

    def _generator_step(self, noise_seed: Sequence[Any]) -> None:
        variables = self.generator.trainable_variables
        with tf.GradientTape() as tape:
            fake = self.generated(BATCH_SIZE, noise_seed)
            loss = ops.mean(ops.softplus(-self.discriminator(fake)))
        self.optimizers[0].apply(tape.gradient(loss, variables), variables)


def run(gan: Gan, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """One training: what is measured along the way, and the last generated points."""
    gan.start(rate, seed)
    data = ring(SAMPLES, [seed, -1]).numpy()
    measured: dict[str, list[float]] = {}
    first = 0
    for last in measured_steps(steps):
        gan.train(*(tf.constant(x) for x in (seed, first, last)))
        first = last
        points = gan.generated(SAMPLES, [seed, -2]).numpy()
        for name, value in judged(points, data).items():
            measured.setdefault(name, []).append(value)
    return {**measured, "points": points}


def train_all(options: argparse.Namespace, steps: int) -> dict[str, dict[str, Any]]:
    """For each optimizer, for each η: what was measured for every seed, and seed 0's points."""
    results: dict[str, dict[str, Any]] = {}
    total = len(OPTIMIZERS) * len(options.rates) * options.seeds
    with tqdm(total=total, unit="run", disable=None) as bar:
        for name, new in OPTIMIZERS.items():
            gan, results[name] = Gan(new), {}
            for rate in options.rates:
                of_seeds = []
                for seed in range(options.seeds):
                    of_seeds.append(run(gan, rate, seed, steps))
                    bar.update()
                points, *_ = [r.pop("points") for r in of_seeds]
                measured = {key: [r[key] for r in of_seeds] for key in of_seeds[0]}
                results[name][f"{rate:g}"] = {"points": points, **measured}
                means = {key: np.mean(values, axis=0) for key, values in measured.items()}
                run_name = f"{name}, learning rate {rate:g}"
                shared.write_curves(options.logdir, run_name, measured_steps(steps), means)
    return results


def of_the_data(seeds: int) -> dict[str, list[float]]:
    """What is measured of as many points of the data themselves: the best that can be reached."""
    of_seeds = [
        judged(*(ring(SAMPLES, [seed, number]).numpy() for number in (-3, -1)))
        for seed in range(seeds)
    ]
    return {key: [measured[key] for measured in of_seeds] for key in MEASURES}


def measured_steps(steps: int) -> list[int]:
    # A quick run, too, is measured once near its start.
    return sorted({steps // 20, *range(MEASURED_EVERY, steps + 1, MEASURED_EVERY)})


def final(measured: Sequence[Sequence[float]]) -> list[float]:
    """The last value of every seed."""
    return [of_seed[-1] for of_seed in measured]


# Results


def draw_points(axes: Axes, name: str, rate: str, points: np.ndarray) -> None:
    color = shared.LINES[name]["color"]
    axes.scatter(*points.T, s=4, color=color, label="generated")
    axes.scatter(*PLACES.T, marker="+", color="black", label="places", zorder=3)
    axes.set(aspect="equal", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5))
    axes.set_title(f"{name}, η = {rate}, seed 0", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="center")


def draw_mean(axes: Axes, name: str, x: Sequence[float], of_seeds: Sequence[Any]) -> None:
    """The mean over the seeds, with its interval: a distance is positive, and so is the band."""
    shared.draw_curve(axes, name, x, np.mean(of_seeds, axis=0), None)
    interval = shared.bootstrap_interval(of_seeds)
    if interval is not None:
        shared.draw_band(axes, shared.LINES[name], x, interval)


def draw(results: dict[str, Any], points: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Above, each optimizer at its best learning rate; below, at others."""
    title = f"Eight places on a ring, learned by a GAN in {results['steps'][-1]:,} steps"
    picture, panels = shared.blank_figure(title, 3, 2, height=3.9)
    distance, over_rates = panels[2], panels[5]
    for column, (name, best) in enumerate(results["best_rates"].items()):
        draw_points(panels[column], name, f"{best} (its best)", points[name][best])
        draw_points(panels[3 + column], name, SHOWN_RATE, points[name][SHOWN_RATE])
        of_rates = results["runs"][name]
        draw_mean(distance, name, results["steps"], of_rates[best]["energy distance"])
        finals = [final(of["energy distance"]) for of in of_rates.values()]
        draw_mean(over_rates, name, results["rates"], np.transpose(finals))
    of_data = np.mean(results["data"]["energy distance"])
    for axes in (distance, over_rates):
        axes.axhline(of_data, color="gray", linestyle=(0, (2, 2)), label="the data themselves")
        axes.set(yscale="log", ylim=(of_data / 2, 3), ylabel="energy distance to the data")
        axes.legend(frameon=False, fontsize=8)
    over_rates.set(xscale="log", xlabel="learning rate η")
    distance.set(xlabel="step")
    seeds = f"mean of {results['seeds']} seeds (95 % interval)"
    distance.set_title(f"at the best η, {seeds}", fontsize=10)
    over_rates.set_title(f"at the end, {seeds}", fontsize=10)
    return picture


def cells(finals: dict[str, list[float]]) -> list[str]:
    return [shared.with_interval(finals[k], digits, bounded=True) for k, digits in MEASURES.items()]


def report_on(results: dict[str, Any], report: shared.Report) -> None:
    rows = [["the data", "-", *cells(results["data"])]]
    for name, of_rates in results["runs"].items():
        for rate, of in of_rates.items():
            shown = f"**{rate}**" if rate == results["best_rates"][name] else rate
            finals = {key: final(of_seeds) for key, of_seeds in of.items()}
            rows.append([name, shown, *cells(finals)])
    report.table(
        f"After {results['steps'][-1]:,} steps, mean of {results['seeds']} seeds (95 % interval); "
        "bold: the lowest energy distance of an optimizer",
        ["optimizer", "η", *MEASURES],
        rows,
    )
    report.table(
        "Yogi − Adam, seed by seed: mean (95 % interval)",
        ["η of Adam, of Yogi", *MEASURES],
        [[", ".join(pair), *cells(difference(results, *pair))] for pair in pairs(results)],
    )


def pairs(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Learning rates to compare at: each optimizer's best one, then every one for both."""
    best = tuple(results["best_rates"].values())
    return [best, *((rate, rate) for rate in results["runs"]["Adam"] if (rate, rate) != best)]


def difference(results: dict[str, Any], of_adam: str, of_yogi: str) -> dict[str, list[float]]:
    """Yogi less Adam at the end, seed by seed."""
    adam, yogi = results["runs"]["Adam"][of_adam], results["runs"]["Yogi"][of_yogi]
    return {key: np.subtract(final(yogi[key]), final(adam[key])).tolist() for key in MEASURES}


def main(argv: Sequence[str] | None = None) -> None:
    options = shared.parse_options(shared.example_parser(__doc__, __file__, seeds=10), argv)
    report = shared.Report("A GAN with two optimizers", options)
    options.rates = QUICK_RATES if options.quick else RATES
    steps = QUICK_STEPS if options.quick else STEPS
    runs = train_all(options, steps)
    points = {
        name: {rate: of.pop("points") for rate, of in of_rates.items()}
        for name, of_rates in runs.items()
    }
    best = {
        name: min(of_rates, key=lambda r, of=of_rates: np.mean(final(of[r]["energy distance"])))
        for name, of_rates in runs.items()
    }
    data = of_the_data(options.seeds)
    results = {
        "rates": list(options.rates),
        "seeds": options.seeds,
        "steps": measured_steps(steps),
        "best_rates": best,
        "data": data,
        "runs": runs,
    }
    report_on(results, report)
    report.write(results, draw(results, points))


if __name__ == "__main__":
    main()
