"""A language model with a large embedding, trained by Adam and by Yogi, exact and lazy.

The next byte of the Python standard library's own source is predicted from the bytes before it by a
small transformer. Its input is a sum of embeddings: of the last byte, the last two, …, the last
five, hashed into one table of 262,144 rows. A batch touches few of the rows, and most rows
are rare: the gradient is sparse and heavy-tailed, where Yogi is said to help. With
`sparse_update="lazy"` all other rows and their slots stay as they are.

Yogi runs once more from v₀ = 0: its default v₀, 1e-6, is far above the square of a gradient that is
averaged over 2,048 bytes. Each contender gets the learning rate of a grid that has the lowest
validation perplexity on a seed that is not reported. Within a seed all start from the same weights
and see the same batches.

    python examples/language_model.py            about 10 minutes on 2 cores
    python examples/language_model.py --quick    seconds: a few steps and a small table

Perplexity is exp(cross-entropy) a byte: 256 for a guess, 1 for certainty. Validation uses modules
that are not trained on. Seconds are steps times the median time of a step, which all contenders
make in turn after their training. The text is the source of the Python that runs the example: the
results name its SHA-256.

What to expect: at its default v₀ Yogi is behind Adam; from v₀ = 0 it is level. Lazy rows make a
step shorter; they leave Adam's perplexity as it is, and Yogi's a little higher.
"""

import argparse
import math
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up messages

import _jobs as jobs
import _shared as shared
import keras
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import keras_yogi

SELECTION_SEED = 1000  # decides the learning rates, and is not reported
TIMING_SEED = 1001


class Size(NamedTuple):
    rows: int  # of the table
    steps: int
    every: int  # steps from one validation to the next
    timed_steps: int
    learning_rates: tuple[float, ...]


RATES = (1e-3, 3e-3, 1e-2, 3e-2)
FULL = Size(rows=262_144, steps=320, every=40, timed_steps=60, learning_rates=RATES)
QUICK = Size(rows=2_048, steps=4, every=2, timed_steps=1, learning_rates=RATES[2:3])


class Contender(NamedTuple):
    """What is compared: an optimizer, and what it is made with; else its defaults."""

    optimizer: type
    arguments: dict[str, Any]
    color: str
    linewidth: float


EXACT, LAZY = {"sparse_update": "exact"}, {"sparse_update": "lazy"}
FROM_ZERO = {"initial_accumulator_value": 0.0}
CONTENDERS = {  # Okabe and Ito's colours
    "Adam, exact": Contender(keras_yogi.Adam, EXACT, "#56B4E9", 4.0),
    "Adam, lazy": Contender(keras_yogi.Adam, LAZY, "#0072B2", 1.8),
    "Yogi, exact": Contender(keras_yogi.Yogi, EXACT, "#E69F00", 4.0),
    "Yogi, lazy": Contender(keras_yogi.Yogi, LAZY, "#D55E00", 1.8),
    "Yogi from v₀ = 0, exact": Contender(keras_yogi.Yogi, EXACT | FROM_ZERO, "#CC79A7", 1.8),
}
COMPARISONS = (
    ("Yogi, exact", "Adam, exact"),
    ("Yogi from v₀ = 0, exact", "Adam, exact"),
    ("Yogi, lazy", "Adam, lazy"),
    ("Adam, lazy", "Adam, exact"),
    ("Yogi, lazy", "Yogi, exact"),
)


# Training


class Run(NamedTuple):
    """Perplexities by step, the training's over the steps since the one before."""

    training: list[float]
    validation: list[float]


class Trainer:
    """A contender's model, compiled once; every run starts it afresh."""

    def __init__(self, contender: Contender, texts: dict[str, jobs.Text], size: Size) -> None:
        self.texts, self.size = texts, size
        self.validation = jobs.validation_windows(texts["validation"])
        self.model = jobs.language_model(size.rows)
        self.model.compile(
            contender.optimizer(**contender.arguments),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        self.model.optimizer.build(self.model.trainable_variables)
        self.first_state = [v.numpy() for v in self.model.optimizer.variables]

    def run(self, learning_rate: float, seed: int, bar: tqdm) -> Run:
        """The seed decides the first weights and the batches."""
        model, size = self.model, self.size
        keras.utils.set_random_seed(seed)
        model.set_weights(jobs.language_model(size.rows).get_weights())
        model.optimizer.set_weights(self.first_state)
        model.optimizer.learning_rate = learning_rate
        run, losses = Run([], []), []
        batches_of_run = jobs.batches(self.texts["training"], size.steps, seed)
        for step, (x, y) in enumerate(batches_of_run, start=1):
            losses.append(self.step(x, y))
            if step % size.every == 0:
                loss = model.evaluate(*self.validation, jobs.VALIDATION_BATCH, verbose=0)
                run.validation.append(perplexity(loss))
                run.training.append(perplexity(np.mean(losses[-size.every :])))
            bar.update()
        return run

    def step(self, x: np.ndarray, y: np.ndarray) -> float:
        """Makes one step, and returns the loss before it."""
        self.model.reset_metrics()
        return float(self.model.train_on_batch(x, y))


def milliseconds_per_step(
    trainers: dict[str, Trainer], text: jobs.Text, size: Size
) -> dict[str, float]:
    """Medians of steps that are made in turns: what else the machine does hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for x, y in jobs.batches(text, 1 + size.timed_steps, TIMING_SEED):
        for name, trainer in trainers.items():
            started = time.perf_counter()
            trainer.step(x, y)
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: float(np.median(of[1:])) for name, of in times.items()}  # the first may compile


def perplexity(cross_entropy: float) -> float:
    """Infinite, not an error, for a run that has diverged."""
    return float(np.exp(np.minimum(cross_entropy, 700.0)))


def train_all(
    texts: dict[str, jobs.Text], size: Size, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Per contender: the grid on the seed of its own, and one run a seed at the rate that won."""
    trainers = {name: Trainer(contender, texts, size) for name, contender in CONTENDERS.items()}
    # A single rate needs no grid.
    rates_of_grid = size.learning_rates if len(size.learning_rates) > 1 else ()
    all_runs = len(CONTENDERS) * (len(rates_of_grid) + options.seeds)
    steps = list(range(size.every, size.steps + 1, size.every))
    results: dict[str, dict[str, Any]] = {}
    # disable=None: no bar where standard error is not a terminal.
    with tqdm(total=all_runs * size.steps, unit="step", disable=None) as bar:
        for name, trainer in trainers.items():
            bar.set_description(name)
            grid = {
                rate: trainer.run(rate, SELECTION_SEED, bar).validation[-1]
                for rate in rates_of_grid
            }
            rate = shared.best_rate(size.learning_rates, grid)
            runs = [trainer.run(rate, seed, bar) for seed in range(options.seeds)]
            curves = {part: [getattr(run, part) for run in runs] for part in texts}
            results[name] = {"learning_rate": rate, "grid": grid, "steps": steps, **curves}
            means = {f"{part} perplexity": np.mean(of, axis=0) for part, of in curves.items()}
            shared.write_curves(options.logdir, name, steps, means)
    for name, median in milliseconds_per_step(trainers, texts["training"], size).items():
        results[name]["milliseconds_per_step"] = median
    return results


# Results


def rows_touched(text: jobs.Text, size: Size) -> dict[str, float]:
    """How sparse the gradient of the table is, for the batches of seed 0."""
    of_batches = [np.unique(x) for x, _ in jobs.batches(text, size.steps, seed=0)]
    counts = np.bincount(np.concatenate(of_batches), minlength=size.rows)
    return {
        "by_a_batch": float(np.mean([len(rows) for rows in of_batches])),
        "by_the_run": int(np.sum(counts > 0)),
        "by_one_batch_only": int(np.sum(counts == 1)),
    }


def final(of: dict[str, Any], part: str) -> list[float]:
    return [curve[-1] for curve in of[part]]


def steps_to(perplexity: float, of: dict[str, Any]) -> float:
    """Until the mean validation perplexity is reached."""
    curve = zip(of["steps"], np.mean(of["validation"], axis=0), strict=True)
    return next((step for step, mean in curve if mean <= perplexity), math.nan)


def report_on(
    results: dict[str, Any], touched: dict[str, float], size: Size, report: shared.Report
) -> None:
    report.paragraph(
        f"A batch touches {touched['by_a_batch']:,.0f} of the table's {size.rows:,} rows, a run of "
        f"{size.steps} steps {touched['by_the_run']:,}, "
        f"{touched['by_one_batch_only']:,} of them only once.",
    )
    adam, yogi = keras_yogi.Adam().get_config(), keras_yogi.Yogi().get_config()
    report.paragraph(
        f"Adam: ε = {adam['epsilon']:g}, v₀ = 0. Yogi: ε = {yogi['epsilon']:g}, "
        f"v₀ = {yogi['initial_accumulator_value']:g}, unless it says another."
    )
    if len(size.learning_rates) > 1:
        report.table(
            f"Final validation perplexity by learning rate (seed {SELECTION_SEED})",
            ["optimizer", *(f"{rate:g}" for rate in size.learning_rates)],
            [
                [name, *(f"{perplexity:.3f}" for perplexity in of["grid"].values())]
                for name, of in results.items()
            ],
        )
    at_the_best_rate(results, size, report)
    report.table(
        "Validation perplexity, one less the other, seed by seed: mean (95 % interval)",
        ["", "difference"],
        [
            [
                f"{one} − {other}",
                shared.with_interval(
                    np.subtract(*(final(results[name], "validation") for name in (one, other))), 3
                ),
            ]
            for one, other in COMPARISONS
        ],
    )


def at_the_best_rate(results: dict[str, Any], size: Size, report: shared.Report) -> None:
    # What all of them reach: the end of the one that ends highest.
    target = max(np.mean(of["validation"], axis=0)[-1] for of in results.values())
    report.table(
        f"At the best rate: perplexity after {size.steps} steps, mean of {report.options.seeds} "
        "seeds (95 % interval)",
        [
            "optimizer",
            "η",
            "training",
            "validation",
            "ms a step",
            f"steps to {target:.3f}",
            "seconds",
        ],
        [
            [
                name,
                f"{of['learning_rate']:g}",
                *(shared.with_interval(final(of, part), 3) for part in ("training", "validation")),
                f"{of['milliseconds_per_step']:.1f}",
                f"{steps_to(target, of):g}",
                f"{steps_to(target, of) * of['milliseconds_per_step'] / 1000:.1f}",
            ]
            for name, of in results.items()
        ],
    )


def draw(results: dict[str, Any]) -> Figure:
    title = "Bytes of Python source: mean over the seeds and its 95 % interval"
    picture, panels = shared.figure(title, 2)
    for name, of in results.items():
        mean, half_width = shared.mean_and_interval(of["validation"])
        steps = np.array(of["steps"])
        seconds = steps * of["milliseconds_per_step"] / 1000
        _, _, color, linewidth = CONTENDERS[name]
        for axes, x in zip(panels, (steps, seconds), strict=True):
            axes.plot(x, mean, label=name, color=color, linewidth=linewidth)
            if half_width is not None:
                band = mean - half_width, mean + half_width
                axes.fill_between(x, *band, color=color, alpha=0.2, linewidth=0)
    panels[0].set(
        xlabel=f"steps of {jobs.BATCH_SIZE * jobs.WINDOW:,} bytes", ylabel="validation perplexity"
    )
    panels[1].set(xlabel="seconds: steps × median time of a step")
    panels[0].legend(frameon=False)
    return picture


def main(argv: Sequence[str] | None = None) -> None:
    parser = shared.example_parser(__doc__, __file__, seeds=3, quick_seeds=1)
    options = shared.parse_options(parser, argv)
    size = QUICK if options.quick else FULL
    try:
        texts = {part: jobs.source(part, size.rows) for part in jobs.MODULES}
    except jobs.DataError as error:
        parser.error(str(error))
    report = shared.Report("A language model with a large embedding", options)
    results = train_all(texts, size, options)
    touched = rows_touched(texts["training"], size)
    report_on(results, touched, size, report)
    text = {
        part: {
            "bytes": len(text.content),
            "sha256": text.sha256,
            "modules": jobs.MODULES[part].split(),
        }
        for part, text in texts.items()
    }
    sizes = {"table_rows": size.rows, "batch_size": jobs.BATCH_SIZE, "window": jobs.WINDOW}
    report.write(
        {"text": text, **sizes, "rows_touched": touched, "optimizers": results}, draw(results)
    )


if __name__ == "__main__":
    main()
