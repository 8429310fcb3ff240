"""A two-tower recommender with two large embedding tables: what a step costs, and what it learns.

500,000 users and 500,000 items have a vector of 32 numbers each. The interactions are generated:
users and items come up by a power law (a few all the time, most of them hardly ever), and a hidden
taste of 4 numbers each decides, with noise, whether a user likes an item. A batch of 1,024 names at
most 1,024 rows of each table, which has 500,000.

    python examples/embeddings.py            several minutes, most of them keras.optimizers.Adam's
    python examples/embeddings.py --quick    tables of 20,000 rows, a few steps

What to expect: keras.optimizers.Adam and `sparse_update="exact"` move every row in every step, as
the formula says: a row without a gradient still moves by its momentum. "lazy" moves the rows of the
batch, and a step of `fit` costs what the batch costs. In so short a run the loss of lazy rows stays
0.008 behind. Adam and Yogi hardly differ.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up messages

import _shared as shared
import keras
import numpy as np
from keras import layers
from matplotlib.figure import Figure
from tqdm import tqdm

import keras_yogi

# The gradient of a row is about 1 / batch = 1e-3 and smaller: Yogi's default ε of 1e-3 and v₀ of
# 1e-6 are for gradients that are much larger.
YOGI = {"epsilon": 1e-6, "initial_accumulator_value": 1e-12}
OPTIMIZERS: dict[str, Callable[[float], keras.optimizers.Optimizer]] = {
    "keras.optimizers.Adam": lambda rate: keras.optimizers.Adam(rate),
    "Adam, exact": lambda rate: keras_yogi.Adam(rate),
    "Adam, lazy": lambda rate: keras_yogi.Adam(rate, sparse_update="lazy"),
    "Yogi, exact": lambda rate: keras_yogi.Yogi(rate, **YOGI),
    "Yogi, lazy": lambda rate: keras_yogi.Yogi(rate, **YOGI, sparse_update="lazy"),
}
# Where lines nearly coincide, a thin one on a broad one leaves both visible.
STYLES: dict[str, dict[str, Any]] = {
    "keras.optimizers.Adam": {**shared.LINES["keras.optimizers.Adam"], "zorder": 3},
    "Adam, exact": {"color": "#56B4E9", "linewidth": 5.0},
    "Adam, lazy": {"color": "#0072B2", "linewidth": 1.8},
    "Yogi, exact": {"color": "#E69F00", "linewidth": 5.0},
    "Yogi, lazy": {"color": "#D55E00", "linewidth": 1.8},
}
LEARNING_RATE = 0.03
TASTES = 4  # numbers that a user's or an item's hidden taste has
EXPONENT = 1.1  # of the power law: the k-th most frequent comes up in proportion to 1 / k**1.1


@dataclass(frozen=True)
class Size:
    rows: int = 500_000
    width: int = 32
    batch: int = 1024
    steps: int = 400
    validations: int = 10


QUICK = Size(rows=20_000, steps=40, validations=4)

Rows = tuple[tuple[np.ndarray, np.ndarray], np.ndarray]


def interactions(size: Size, count: int, seed: int, taste_seed: int = 0) -> Rows:
    """Pairs of a user and an item, and whether the user liked it."""
    tastes = np.random.default_rng(taste_seed)
    likes, nature = tastes.normal(size=(2, size.rows, TASTES)).astype("float32")
    frequency = np.arange(1, size.rows + 1) ** -EXPONENT
    cumulative = np.cumsum(frequency / frequency.sum())
    random = np.random.default_rng(seed)
    users, items = np.minimum(
        np.searchsorted(cumulative, random.random((2, count))), size.rows - 1
    ).astype("int32")
    logits = 2 * np.sum(likes[users] * nature[items], axis=1)
    liked = random.random(count) < 1 / (1 + np.exp(-logits))
    return (users, items), liked.astype("float32")[:, None]


def two_towers(size: Size) -> keras.Model:
    user, item = keras.Input((), dtype="int32"), keras.Input((), dtype="int32")

    def tower(ids: Any) -> Any:
        start = keras.initializers.RandomNormal(stddev=0.3)
        return layers.Embedding(size.rows, size.width, embeddings_initializer=start)(ids)

    match = layers.Dot(axes=1)([tower(user), tower(item)])
    return keras.Model([user, item], layers.Dense(1, activation="sigmoid")(match))


class Clock(keras.callbacks.Callback):
    """Seconds of every training step, and the validation loss every so many steps."""

    def __init__(self, validation: Rows, every: int) -> None:
        super().__init__()
        self.validation, self.every = validation, every
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self.started)
        if (batch + 1) % self.every == 0:
            x, y = self.validation
            # By hand: `evaluate` inside `fit` would reset the metrics of the training.
            prediction = self.model.predict_on_batch(list(x))
            self.losses.append(float(keras.losses.BinaryCrossentropy()(y, prediction)))


def train(name: str, size: Size, rate: float, seed: int) -> dict[str, Any]:
    keras.utils.set_random_seed(seed)
    (users, items), liked = interactions(size, size.batch * size.steps, seed=1000 + seed)
    clock = Clock(interactions(size, 16 * size.batch, seed=999), size.steps // size.validations)
    model = two_towers(size)
    # The same on any machine: XLA is off where TensorFlow finds no GPU, unless it is asked for.
    model.compile(OPTIMIZERS[name](rate), loss="binary_crossentropy", jit_compile=False)
    model.fit(
        [users, items],
        liked,
        batch_size=size.batch,
        shuffle=False,
        verbose=0,
        callbacks=[clock],
    )
    return {"validation_loss": clock.losses, "step_s": float(np.median(clock.seconds[2:]))}


def picture(size: Size, runs: dict[str, list[dict[str, Any]]]) -> Figure:
    """Adam's curves and Yogi's in panels of their own, and the time that all of them take."""
    seeds = len(next(iter(runs.values())))
    figure, panels = shared.blank_figure(
        f"Two tables of {size.rows:,} x {size.width}: validation loss, mean of {seeds} seeds "
        "(95 % interval)",
        3,
    )
    *by_step, by_time = panels
    steps = np.arange(1, size.validations + 1) * (size.steps // size.validations)
    for name, of_seeds in runs.items():
        losses = [run["validation_loss"] for run in of_seeds]
        seconds = steps * float(np.median([run["step_s"] for run in of_seeds]))
        axes = by_step["Yogi" in name]
        axes.plot(steps, np.mean(losses, axis=0), label=name, **STYLES[name])
        interval = shared.bootstrap_interval(losses)
        if interval is not None:
            shared.draw_band(axes, STYLES[name], steps, interval)
        by_time.plot(seconds, np.mean(losses, axis=0), label=name, **STYLES[name])
    for axes in by_step:
        axes.set(xlabel="step", ylabel="binary cross-entropy (nats)", ylim=by_time.get_ylim())
        axes.legend(frameon=False, fontsize=8)
    by_time.set(xlabel="seconds in training steps", xscale="log")
    return figure


def differences(runs: dict[str, list[dict[str, Any]]], one: str, other: str) -> list[float]:
    """Final losses of one less those of the other, seed by seed."""
    pairs = zip(runs[one], runs[other], strict=True)
    return [a["validation_loss"][-1] - b["validation_loss"][-1] for a, b in pairs]


def main() -> None:
    parser = shared.example_parser(__doc__, __file__, seeds=5, quick_seeds=1)
    parser.add_argument("--learning-rate", type=shared.positive_number, default=LEARNING_RATE)
    options = shared.parse_options(parser)
    size = QUICK if options.quick else Size()
    report = shared.Report("Embeddings: lazy and exact rows", options)
    report.paragraph(
        f"Two-tower recommender, two tables of {size.rows:,} x {size.width}, {size.steps} steps on "
        f"batches of {size.batch:,}, learning rate {options.learning_rate:g}, "
        f"{options.seeds} seeds. Adam: ε = 1e-6. Yogi: ε = {YOGI['epsilon']:g}, "
        f"v₀ = {YOGI['initial_accumulator_value']:g}. keras.optimizers.Adam: its own ε = 1e-7, "
        "added before the bias correction."
    )
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in OPTIMIZERS}
    jobs = [(seed, name) for seed in range(options.seeds) for name in OPTIMIZERS]
    for seed, name in tqdm(jobs, desc="fits", disable=None):
        run = train(name, size, options.learning_rate, seed)
        runs[name].append(run)
        steps = np.arange(1, len(run["validation_loss"]) + 1) * (size.steps // size.validations)
        shared.write_curves(
            options.logdir,
            f"{name.replace(', ', '_')}_seed{seed}",
            steps.tolist(),
            {"validation loss": run["validation_loss"]},
        )
    seconds = {name: np.array([r["step_s"] for r in of]) for name, of in runs.items()}

    def times_faster(name: str, than: str) -> float:
        """Seed by seed: what else the machine does meets both of a pair."""
        return float(np.median(seconds[than] / seconds[name]))

    rows, summary = [], {}
    for name, of_seeds in runs.items():
        losses = [r["validation_loss"][-1] for r in of_seeds]
        exact = name.replace("lazy", "exact")
        faster = {than: times_faster(name, than) for than in ("keras.optimizers.Adam", exact)}
        summary[name] = {"runs": of_seeds, "times_faster": faster}
        rows.append(
            [
                name,
                shared.with_interval(losses),
                f"{np.median(seconds[name]) * 1e3:.1f}",
                f"{faster['keras.optimizers.Adam']:.1f}",
                f"{faster[exact]:.1f}" if exact != name else "-",
            ]
        )
    report.table(
        "Whole steps of `fit`: median time, and how many times faster than others",
        [
            "optimizer",
            "final validation loss (95 % interval)",
            "ms a step",
            "than keras.optimizers.Adam",
            "lazy than exact",
        ],
        rows,
    )
    report.table(
        "Final validation loss, one less the other, seed by seed: mean (95 % interval)",
        ["", "difference"],
        [
            [f"{one} − {other}", shared.with_interval(differences(runs, one, other))]
            for one, other in (
                ("Adam, lazy", "Adam, exact"),
                ("Yogi, lazy", "Yogi, exact"),
                ("Yogi, exact", "Adam, exact"),
            )
        ],
    )
    report.write(
        {"size": vars(size), "learning_rate": options.learning_rate, "optimizers": summary},
        picture(size, runs),
    )


if __name__ == "__main__":
    main()
