"""Migrating a model from tfa.optimizers.Yogi in the middle of its training.

    python examples/migrate_from_tfa.py                    a file that TensorFlow Addons 0.23 left
    python examples/migrate_from_tfa.py --file model.h5    yours, loaded and saved as model.keras

The sample was saved after 20 steps, and the weights after 10 more steps in TensorFlow Addons are
recorded. Here it is loaded without TensorFlow Addons, saved as `.keras`, loaded again and trained
for those 10 steps, in two ways. `keras_yogi.load_tfa` loads the optimizer's state, and ends at the
recorded weights to float32 rounding. The weights alone, with a new optimizer of the same settings,
have lost the step count, m and v, and end elsewhere; on this easy job the loss is hardly worse.

It takes seconds, with and without --quick. See docs/moving_from_tfa.md for what else may be in a
file.
"""

import argparse
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up messages

import _shared as shared
import keras
import numpy as np
from matplotlib.figure import Figure

import keras_yogi

TESTS = Path(__file__).resolve().parents[1] / "tests"
SAMPLE = TESTS / "golden_tfa" / "tfa_model.h5"
RECORD = TESTS / "golden" / "tfa_migration.npz"
SETTINGS = ("learning_rate", "beta_1", "beta_2", "epsilon")

LINES: dict[str, dict[str, Any]] = {
    "TensorFlow Addons": {**shared.LINES["keras.optimizers.Adam"], "zorder": 3},
    "load_tfa": shared.LINES["Adam"],
    "weights alone": shared.LINES["Yogi"],
}


def moved(file: Path, target: Path) -> keras.Model:
    """The model as it goes on without TensorFlow Addons: taken over, saved and loaded again."""
    with warnings.catch_warnings():  # of Keras, about the way Keras 2 stored input shapes
        warnings.simplefilter("ignore", UserWarning)
        keras_yogi.load_tfa(file).save(target)
        return keras.models.load_model(target)


def with_new_optimizer(model: keras.Model) -> keras.Model:
    """The same model with an optimizer of the same settings that has seen no step."""
    model.compile(keras_yogi.Yogi.from_config(model.optimizer.get_config()), loss=model.loss)
    return model


def as_text(setting: Any) -> str:
    """A number, or the name of the schedule that a learning rate follows."""
    return setting["class_name"] if isinstance(setting, dict) else f"{setting:.6g}"


def report_on(model: keras.Model, report: shared.Report) -> None:
    """What was taken over."""
    optimizer = model.optimizer
    config = optimizer.get_config()
    slots = [
        [np.abs(optimizer.get_slot(variable, name)).max() for variable in model.trainable_variables]
        for name in ("momentum", "velocity")
    ]
    report.table(
        "Taken over",
        ["what", "value"],
        [
            ["steps", str(int(optimizer.iterations))],
            *([name, as_text(config[name])] for name in SETTINGS),
            ["epsilon_hat", str(config["epsilon_hat"])],
            ["weights", f"{model.count_params():,}"],
            ["largest absolute m, largest v", ", ".join(f"{max(values):.3g}" for values in slots)],
        ],
    )


def train(model: keras.Model, x: np.ndarray, y: np.ndarray, steps: int) -> dict[str, Any]:
    """For each step on the whole batch: the loss before it, and all weights after it."""
    losses, weights = [], []
    for _ in range(steps):
        history = model.fit(x, y, batch_size=len(x), shuffle=False, verbose=0)
        losses += history.history["loss"]
        weights.append(np.concatenate([np.ravel(w) for w in model.get_weights()]))
    return {"losses": losses, "weights": np.array(weights)}


def compare(model: keras.Model, file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Goes on with and without the state of the optimizer, next to what was recorded."""
    record = np.load(RECORD)
    recorded = record["loss_next_10"].tolist()
    names = [f"next_w{index}" for index in range(len(model.weights))]
    target = np.concatenate([record[name].reshape(len(recorded), -1) for name in names], axis=1)
    first = int(model.optimizer.iterations) + 1
    results: dict[str, Any] = {
        "steps": list(range(first, first + len(recorded))),
        "first_losses": record["loss_first_20"].tolist(),
        "losses": {"TensorFlow Addons": recorded},
        "differences": {},
    }
    weights_alone = with_new_optimizer(keras.models.load_model(file))
    for name, of in {"load_tfa": model, "weights alone": weights_alone}.items():
        run = train(of, record["x"], record["y"], len(recorded))
        results["losses"][name] = run["losses"]
        error = np.abs(run["weights"] - target).max(axis=1) / np.abs(target).max()
        results["differences"][name] = error.tolist()
    for name, losses in results["losses"].items():
        shared.write_curves(options.logdir, name, results["steps"], {"loss": losses})
    return results


def draw(results: dict[str, Any]) -> Figure:
    title = "A model saved by TensorFlow Addons after 20 steps, trained for 10 more"
    picture, (loss, difference) = shared.blank_figure(title, 2)
    before, after = results["first_losses"], results["steps"]
    last = after[0] - 1
    shown = range(last - len(after) + 1, last + 1)
    loss.plot(shown, before[-len(after) :], color="gray", linewidth=1.2, label="before the save")
    for name, losses in results["losses"].items():
        # From the last step before the save on, which they share.
        loss.plot([last, *after], [before[-1], *losses], label=name, **LINES[name])
    loss.set(
        xlabel="step",
        ylabel="mean squared error before the step",
        xticks=[*shown, *after][1::2],
    )
    loss.legend(frameon=False)
    for name, differences in results["differences"].items():
        points = np.where(np.array(differences) > 0, differences, np.nan)  # 0 has no logarithm
        difference.semilogy(after, points, label=name, marker="o", **LINES[name])
    difference.set(xlabel="step", ylabel="difference of the weights / largest weight")
    difference.set_title("against TensorFlow Addons", fontsize=10)
    return picture


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = shared.example_parser(__doc__, __file__)
    text = "a model that was trained with tfa.optimizers.Yogi; default: the one of the tests"
    parser.add_argument("--file", type=Path, help=text)
    options = shared.parse_options(parser, argv)
    if options.file is None and not SAMPLE.exists():
        parser.error("argument --file: needed where the tests of keras_yogi are not installed")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_arguments(argv)
    file = options.file or SAMPLE
    target = options.logdir / f"{file.stem}.keras"
    report = shared.Report("From tfa.optimizers.Yogi to keras_yogi", options)
    try:
        model = moved(file, target)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{error}") from error
    report_on(model, report)
    if options.file:
        shared.print_lines("", f"Written: {target}. keras.models.load_model reads it.")
        return
    results = compare(model, target, options)
    ways = results["differences"]
    report.table(
        "After the save: the loss before each step, and the weights after it against TensorFlow "
        "Addons' (largest difference / largest weight)",
        [
            "step",
            *(f"{name}: loss" for name in results["losses"]),
            *(f"{n}: weights" for n in ways),
        ],
        [
            [
                f"{step}",
                *(f"{losses[row]:.5f}" for losses in results["losses"].values()),
                *(f"{differences[row]:.1e}" for differences in ways.values()),
            ]
            for row, step in enumerate(results["steps"])
        ],
    )
    report.write(results, draw(results))


if __name__ == "__main__":
    main()
