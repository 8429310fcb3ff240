"""How much the learning rate η and ε matter: the final loss of Adam and Yogi over a grid of both.

Small networks on data that scikit-learn ships are trained from the same weights on the same batches
by each optimizer, for every η from 0.001 to 1 and every ε from 1e-6 to 0.1; then, with each
optimizer's own ε, once more with η decayed: as η / √t (t counts steps), or by a cosine to zero.

    python examples/learning_rate.py             about 3 minutes on 2 cores
    python examples/learning_rate.py --quick     one data set, a coarse grid
    python examples/learning_rate.py --datasets airfoil --data airfoil_self_noise.dat

Printed: the best η, and the band of η around it within 10 % of the loss at the best one, with the
number of decades that it spans: the wider, the less there is to tune.

What to expect: Adam and Yogi hardly differ. Values of ε up to 0.001 make no difference, because the
root of v̂ is much larger here. With ε = 0.1 the best η is two to five times larger. A decayed η may
start higher, and a cosine ends lower than any constant η.
"""

import argparse
import itertools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up messages

import _jobs as jobs
import _shared as shared
import keras
import numpy as np
from _runs import InverseRoot, ShortRuns, starts_of, write_final_losses
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from tqdm import tqdm

import keras_yogi

OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "Adam": keras_yogi.Adam,
    "Yogi": keras_yogi.Yogi,
}
OWN_EPSILON = {"Adam": 1e-6, "Yogi": 1e-3}
EPSILONS, QUICK_EPSILONS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1), (1e-6, 1e-3)
PER_DECADE, QUICK_PER_DECADE = 6, 2
SCHEDULES: dict[str, Callable[[int], Any]] = {  # of so many steps, as a factor of η
    "constant": lambda steps: np.ones(steps),
    "1/√t": lambda steps: InverseRoot(1.0)(np.arange(steps)),
    "cosine": lambda steps: keras.optimizers.schedules.CosineDecay(1.0, steps)(np.arange(steps)),
}
DASHES = {"constant": "solid", "1/√t": (0, (4, 2)), "cosine": (0, (1, 1))}
# Batch size and epochs: for the digits so few that the loss does not yet end next to zero, where
# 10 % of it would be nothing.
LENGTHS = {"diabetes": (32, 20), "digits": (32, 5), "airfoil": (10, 2)}
WITHIN = 1.1  # times the best loss: what counts as good
WORST_SHOWN = 10  # times the best loss: where the colours end
PARTS = ("training", "validation")


class Setting(NamedTuple):
    optimizer: str
    epsilon: float
    schedule: str


# Training


def settings(epsilons: Sequence[float]) -> list[Setting]:
    """The grid of ε with a constant η, then the schedules with each optimizer's own ε."""
    grid = [Setting(*pair, "constant") for pair in itertools.product(OPTIMIZERS, epsilons)]
    decayed = [
        Setting(name, OWN_EPSILON[name], schedule)
        for name, schedule in itertools.product(OPTIMIZERS, SCHEDULES)
        if schedule != "constant"
    ]
    return grid + decayed


def train_all(name: str, job: jobs.Job, options: argparse.Namespace, bar: tqdm) -> dict[str, Any]:
    """The final losses of one job in every setting, and their bands of good learning rates."""
    batch_size, epochs = LENGTHS[name]
    starts = starts_of(job, batch_size, epochs, options.seeds)
    steps = len(starts[0][1])
    records, bands = [], []
    for setting in options.settings:
        runs = ShortRuns(job, OPTIMIZERS[setting.optimizer](epsilon=setting.epsilon))
        factors = np.asarray(SCHEDULES[setting.schedule](steps))
        losses = runs.final_losses(starts, options.rates, factors)
        run = f"{setting.optimizer}, epsilon {setting.epsilon:g}, {setting.schedule}"
        run = run.replace("1/√t", "inverse root")
        write_final_losses(options.logdir, f"{name}/{run}", options.rates, losses)
        records.append({**setting._asdict(), **losses})
        of_parts = {part: band(options.rates, of) for part, of in losses.items()}
        bands.append({**setting._asdict(), **of_parts})
        bar.update()
    return {"loss": job.loss_name, "steps": steps, "records": records, "bands": bands}


# Results


def band(rates: Sequence[float], losses: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The best η of the grid by the mean loss over the seeds, and the η around it within 10 %."""
    means = np.nan_to_num(np.mean(losses, axis=1), nan=math.inf)
    best = low = high = int(np.argmin(means))
    while low > 0 and means[low - 1] <= WITHIN * means[best]:
        low -= 1
    while high < len(rates) - 1 and means[high + 1] <= WITHIN * means[best]:
        high += 1
    return {
        "best_rate": rates[best],
        "best_losses": losses[best],
        "low": rates[low],
        "high": rates[high],
        "decades": math.log10(rates[high] / rates[low]),
    }


def report_on(name: str, result: dict[str, Any], report: shared.Report) -> None:
    for part in PARTS:
        rows = [
            [
                *(of["optimizer"], f"{of['epsilon']:g}", of["schedule"]),
                f"{of[part]['best_rate']:.2g}",
                shared.with_interval(of[part]["best_losses"]),
                f"{of[part]['low']:.2g} to {of[part]['high']:.2g}",
                f"{of[part]['decades']:.2f}",
            ]
            for of in result["bands"]
            if part in of
        ]
        if rows:
            report.table(
                f"{name}, {part}: {result['loss']} after {result['steps']} steps",
                ["optimizer", "ε", "η", "best η", "loss there (95 %)", "η within 10 %", "decades"],
                rows,
            )


def select(records: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [r for r in records if all(r[key] == value for key, value in wanted.items())]


def draw_grid(axes: Axes, records: list[dict[str, Any]], rates: Sequence[float], norm: Any) -> Any:
    """A heat map of the mean training loss over η and ε; dots mark what is within 10 %."""
    means = np.array([np.mean(record["training"], axis=1) for record in records])
    epsilons = [record["epsilon"] for record in records]
    image = axes.imshow(means, cmap="cividis_r", norm=norm, origin="lower", aspect="auto")
    good = np.argwhere(means <= WITHIN * np.nanmin(means))
    axes.scatter(good[:, 1], good[:, 0], s=10, color="black")
    axes.set_yticks(range(len(epsilons)), [f"{epsilon:g}" for epsilon in epsilons])
    own = epsilons.index(OWN_EPSILON[records[0]["optimizer"]])
    axes.get_yticklabels()[own].set_fontweight("bold")
    whole = [i for i, rate in enumerate(rates) if math.isclose(math.log10(rate) % 1, 0)]
    axes.set_xticks(whole, [f"{rates[i]:g}" for i in whole])
    axes.set(xlabel="learning rate η", ylabel="ε (bold: the default)")
    axes.grid(False)
    return image


def draw_schedules(axes: Axes, records: list[dict[str, Any]], rates: Sequence[float]) -> None:
    """The training loss over η, for every schedule at each optimizer's own ε."""
    for record in records:
        style = {**shared.LINES[record["optimizer"]], "linestyle": DASHES[record["schedule"]]}
        style["linewidth"] = 2.5 if record["optimizer"] == "Adam" else 1.5
        mean = np.mean(record["training"], axis=1)
        axes.plot(rates, mean, label=f"{record['optimizer']}, {record['schedule']}", **style)
    axes.set(xscale="log", xlabel="learning rate η at the start")
    shared.logarithmic(axes.yaxis)
    axes.legend(frameon=False, fontsize=8)


def draw(results: dict[str, Any]) -> Figure:
    rates, of_jobs = results["rates"], results["datasets"]
    title = f"Training loss after the last step, mean of {results['seeds']} seeds"
    picture, panels = shared.blank_figure(title, 3, len(of_jobs), height=3.4)
    for row, (name, result) in enumerate(of_jobs.items()):
        adam, yogi, schedules = panels[3 * row : 3 * row + 3]
        records = result["records"]
        best = min(np.mean(of["training"]["best_losses"]) for of in result["bands"])
        constant = select(records, schedule="constant")
        means = np.mean([record["training"] for record in constant], axis=2)
        worst = min(np.nanmax(means), WORST_SHOWN * best)
        norm = LogNorm(np.nanmin(means), worst)  # the same colours for both optimizers
        for axes, optimizer in ((adam, "Adam"), (yogi, "Yogi")):
            grid = select(constant, optimizer=optimizer)
            image = draw_grid(axes, grid, rates, norm)
            axes.set_title(f"{name}, {optimizer}; dots: within 10 % of its best", fontsize=10)
        bar = picture.colorbar(image, ax=yogi, label="training loss", extend="max")
        shared.logarithmic(bar.ax.yaxis)
        own = [r for r in records if r["epsilon"] == OWN_EPSILON[r["optimizer"]]]
        draw_schedules(schedules, own, rates)
        schedules.set_title(f"{name}: η constant or decayed", fontsize=10)
        schedules.set(ylabel=result["loss"], ylim=(0.8 * best, 1.2 * worst))
    return picture


# Command line


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = shared.example_parser(__doc__, __file__, seeds=10)
    text = "default: diabetes and digits, with --quick diabetes"
    parser.add_argument("--datasets", nargs="+", choices=LENGTHS, help=text)
    text = f"{jobs.AIRFOIL_FILE} or its folder, for airfoil; default: $KERAS_YOGI_DATA"
    parser.add_argument("--data", type=Path, help=text)
    options = shared.parse_options(parser, argv)
    if options.datasets is None:
        options.datasets = ["diabetes"] if options.quick else ["diabetes", "digits"]
    per_decade = QUICK_PER_DECADE if options.quick else PER_DECADE
    options.rates = np.logspace(-3, 0, 3 * per_decade + 1).tolist()
    options.settings = settings(QUICK_EPSILONS if options.quick else EPSILONS)
    try:
        options.jobs = {name: jobs.load(name, options.data) for name in options.datasets}
    except jobs.DataError as error:
        parser.error(str(error))
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_arguments(argv)
    report = shared.Report("The learning rate and ε of Adam and Yogi", options)
    results = {"rates": options.rates, "seeds": options.seeds, "datasets": {}}
    total = len(options.jobs) * len(options.settings)
    with tqdm(total=total, unit="setting", disable=None) as bar:
        for name, job in options.jobs.items():
            result = train_all(name, job, options, bar)
            results["datasets"][name] = result
            report_on(name, result, report)
    report.write(results, draw(results))


if __name__ == "__main__":
    main()
