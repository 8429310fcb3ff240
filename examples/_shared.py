"""What the examples share: options, run folders, statistics, reports and pictures."""

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit

import keras_yogi

# The examples compile a new training loop for every setting on purpose: no warnings of retracing.
tf.get_logger().setLevel("ERROR")

# Okabe and Ito's colours, which colour-blind readers can tell apart. Where two Adams nearly
# coincide, a thin dashed line on a broad one leaves both visible.
_ADAM: dict[str, Any] = {"color": "#56B4E9", "linewidth": 4.0}
_YOGI: dict[str, Any] = {"color": "#D55E00", "linewidth": 1.8}
LINES: dict[str, dict[str, Any]] = {
    "keras_yogi.Adam": _ADAM,
    "Adam": _ADAM,
    "keras_yogi.Yogi": _YOGI,
    "Yogi": _YOGI,
    "keras.optimizers.Adam": {"color": "black", "linewidth": 1.2, "linestyle": (0, (4, 3))},
    "AMSGrad": {"color": "#009E73", "linewidth": 1.8, "linestyle": (0, (6, 2))},
}


# Arguments


def number(
    rule: str, holds: Callable[[Any], bool], convert: Callable[[str], Any] = float
) -> Callable[[str], Any]:
    """An argparse type: a number for which the rule holds (NaN satisfies no comparison)."""

    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not holds(value):
            raise argparse.ArgumentTypeError(f"must be {rule}. Received: {text}")
        return value

    return parse


positive_integer = number("an integer >= 1", lambda x: x >= 1, int)
positive_number = number("a finite number > 0", lambda x: 0 < x < math.inf)
non_negative_number = number("a finite number >= 0", lambda x: 0 <= x < math.inf)
# NumPy takes 32 bits; the half that is left is room for the seeds counted up from this one.
random_seed = number("an integer in [0, 2**31)", lambda x: 0 <= x < 2**31, int)


def example_parser(
    doc: str, file: str, seeds: int | None = None, quick_seeds: int = 2
) -> argparse.ArgumentParser:
    """A parser with the options that every example has; `parse_options` reads them.

    Args:
        doc: the example's docstring.
        file: the example's `__file__`: its name is that of the log folder and of the results.
        seeds: how many runs are averaged in full mode. None: nothing in the example is random.
        quick_seeds: how many with --quick.
    """
    name = Path(file).stem
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = "seconds instead of minutes: a smaller job, whose figures mean nothing"
    add("--quick", action="store_true", help=text)
    if seeds is not None:
        text = f"average over so many; default: {seeds}, with --quick {quick_seeds}"
        add("--seeds", type=positive_integer, help=text)
    add("--logdir", type=Path, default=Path("logs") / name, help="default: %(default)s")
    text = f"the folder of {name}.md, {name}.json and {name}.png; default: the log folder"
    add("--results", type=Path, help=text)
    parser.set_defaults(name=name, doc=doc, default_seeds=(seeds, quick_seeds))
    return parser


def parse_options(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """The options of an `example_parser`. The folders are there, and can be written to."""
    options = parser.parse_args(argv)
    if "seeds" in options and options.seeds is None:
        options.seeds = options.default_seeds[options.quick]
    options.logdir = writable_folder(parser, "--logdir", options.logdir)
    if options.results is None:
        options.results = options.logdir
    options.results = writable_folder(parser, "--results", options.results)
    return options


def writable_folder(parser: argparse.ArgumentParser, option: str, folder: Path) -> Path:
    """The folder, made if it is not there; ends the program if nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        parser.error(f"argument {option}: cannot write to {folder}: {error.strerror}")
    return folder


# Files


def fresh_run_folder(logdir: Path, run: str) -> Path:
    """The folder of one run for a TensorBoard callback, without an earlier run's curves.

    TensorBoard would draw both runs as one line. Only event files are removed, and only where the
    callback writes them.
    """
    folder = logdir / run
    for part in (".", "train", "validation"):
        for events in (folder / part).glob("events.out.tfevents.*"):
            events.unlink()
    return folder


def write_curves(
    logdir: Path, run: str, steps: Sequence[int], curves: Mapping[str, Sequence[float]]
) -> None:
    """Writes a run for TensorBoard: one scalar for each name in `curves`, over the same steps."""
    folder = fresh_run_folder(logdir, run) / "train"
    with tf.summary.create_file_writer(str(folder)).as_default():
        for tag, values in curves.items():
            for step, value in zip(steps, values, strict=True):
                tf.summary.scalar(tag, value, step=step)


def write_json(results: Any, path: Path) -> None:
    """Writes JSON in which the NaN or infinity of a run that diverged is null: JSON has neither."""
    finite = json.loads(json.dumps(results), parse_constant=lambda _: None)
    path.write_text(json.dumps(finite, indent=1, allow_nan=False) + "\n", encoding="utf-8")


# Statistics


def mean_and_interval(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean over the first axis, and half the width of its 95 % interval (Student's t).

    The half-width is None for a single value, which has no spread.
    """
    array = np.asarray(values, "float64")
    mean, count = array.mean(axis=0), len(array)
    if count == 1:
        return mean, None
    return mean, stdtrit(count - 1, 0.975) * array.std(axis=0, ddof=1) / math.sqrt(count)


def bootstrap_interval(values: Sequence[Any], draws: int = 10_000) -> np.ndarray | None:
    """Lower and upper end of the mean's 95 % interval over the first axis, by resampling.

    For what has bounds, such as shares and distances, and may be skewed: a mean of drawn values
    stays between their smallest and largest, where Student's t may leave the possible range. It
    wants 8 values or more: of few, it is too narrow. None for a single value.
    """
    array = np.asarray(values, "float64")
    if len(array) == 1:
        return None
    drawn = np.random.default_rng(0).integers(0, len(array), (draws, len(array)))
    # As counts: the mean of a draw is a product of matrices, whatever the shape of a value is.
    counts = np.stack([np.bincount(row, minlength=len(array)) for row in drawn])
    means = np.tensordot(counts / len(array), array, axes=1)
    # Rounding must not carry a share beyond 1.
    return np.quantile(means, [0.025, 0.975], axis=0).clip(array.min(axis=0), array.max(axis=0))


def with_interval(values: Sequence[float], digits: int = 4, bounded: bool = False) -> str:
    """Mean and 95 % interval, as a table shows them: by Student's t, or `bounded`, by bootstrap."""
    mean, half_width = mean_and_interval(values)
    if half_width is None:
        return f"{mean:.{digits}f}"
    low, high = bootstrap_interval(values) if bounded else (mean - half_width, mean + half_width)
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def best_rate(rates: Sequence[float], grid: Mapping[float, float]) -> float:
    """The learning rate whose final loss in the grid is lowest; one that diverged is worse than any
    other. A single rate needs no grid.
    """
    return min(rates, key=lambda rate: np.nan_to_num(grid.get(rate, math.inf), nan=math.inf))


# Text


def console() -> Console:
    """As wide as the terminal; in a pipe or a file, wide enough that no table wraps."""
    return Console(width=None if sys.stdout.isatty() else 120, markup=False, highlight=False)


def print_lines(*lines: str) -> None:
    for line in lines:
        console().print(line, soft_wrap=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table in Markdown's form: readable in a terminal, and pasted as it is."""
    table = Table(box=box.MARKDOWN)
    for index, column in enumerate(columns):
        # In a narrow terminal the figures wrap; the names stay whole.
        table.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    print_lines("", title)
    console().print(table)


QUICK_NOTE = (
    "This is a --quick run: it shows that the example works. Its figures mean nothing, and what is "
    "to be expected of a full run need not hold in them."
)


class Report:
    """What an example found: printed as it comes, then written as Markdown, JSON and a picture.

    Args:
        title: the heading of the Markdown file; the example's docstring follows it.
        options: what `parse_options` returned.
    """

    def __init__(self, title: str, options: argparse.Namespace) -> None:
        self.options, self.started = options, time.perf_counter()
        self.markdown = [f"# {title}", "", options.doc]
        if options.quick:
            self.paragraph(QUICK_NOTE)

    def paragraph(self, *lines: str) -> None:
        print_lines("", *lines)
        self.markdown += [*lines, ""]

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        print_table(title, columns, rows)
        rule = ["---", *["---:"] * (len(columns) - 1)]
        cells = [columns, rule, *rows]
        self.markdown += [f"**{title}**", "", *(f"| {' | '.join(row)} |" for row in cells), ""]

    def write(self, results: Mapping[str, Any], picture: Figure) -> None:
        """Writes the three files; the JSON has the machine and the versions beside `results`."""
        name, folder = self.options.name, self.options.results
        seconds = time.perf_counter() - self.started
        origin = {"quick": self.options.quick, "seconds": round(seconds, 1), **machine()}
        # Seven digits are what float32 has.
        rounded = json.loads(json.dumps(results), parse_float=lambda x: float(f"{float(x):.7g}"))
        write_json({**origin, **rounded}, folder / f"{name}.json")
        save(picture, folder / f"{name}.png")
        quick = " --quick" if self.options.quick else ""
        versions = ", ".join(f"{package} {v}" for package, v in origin["versions"].items())
        cores, devices = origin["cpu_cores"], f", {origin['gpus']} GPUs" if origin["gpus"] else ""
        self.markdown += [
            f"![The figures above as a picture]({name}.png)",
            "",
            f"Printed by `python examples/{name}.py{quick}` in {seconds:.0f} s on {cores} CPU "
            f"cores{devices}. {versions}.",
        ]
        (folder / f"{name}.md").write_text("\n".join(self.markdown) + "\n", encoding="utf-8")
        print_lines(
            "",
            f"Written: {name}.md, {name}.json and {name}.png in {folder}. "
            f"Runs: tensorboard --logdir {self.options.logdir}",
        )


def machine() -> dict[str, Any]:
    """What a measurement depends on beside the code."""
    return {
        "cpu_cores": os.cpu_count(),
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "versions": {
            "keras_yogi": keras_yogi.__version__,
            "Keras": keras.__version__,
            "TensorFlow": tf.__version__,
            "NumPy": np.__version__,
            "Python": platform.python_version(),
        },
    }


# Pictures


def blank_figure(
    title: str, columns: int, rows: int = 1, height: float = 4.0, **axes: Any
) -> tuple[Figure, list[Axes]]:
    """Panels in rows of `height` inches; a bare Figure needs no screen (Agg).

    `axes` goes to Figure.subplots, such as `sharey=True`. The panels come row after row.
    """
    size = (max(4.5 * columns, 7.5), height * rows)
    picture = Figure(figsize=size, layout="constrained")
    picture.suptitle(title, fontsize=10.5)
    panels = list(picture.subplots(rows, columns, squeeze=False, **axes).flat)
    for panel in panels:
        panel.grid(alpha=0.3, linewidth=0.5)
        panel.spines[["top", "right"]].set_visible(False)
    return picture, panels


def logarithmic(axis: Axis) -> None:
    """Labels also where the curves span less than a decade, and plain ones: 0.3, not 3 × 10⁻¹."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def figure(title: str, panels: int) -> tuple[Figure, list[Axes]]:
    """Panels side by side with one logarithmic axis."""
    picture, row = blank_figure(title, panels, sharey=True)
    for axes in row:
        logarithmic(axes.yaxis)
    return picture, row


def draw_curve(
    axes: Axes, name: str, steps: Sequence[int], mean: Sequence[float], half_width: Any
) -> None:
    """An optimizer's curve and, if it is a mean over seeds, its interval as a band."""
    axes.plot(steps, mean, label=name, **LINES[name])
    if half_width is not None:
        half_width = np.array(half_width, "float64")
        draw_band(axes, LINES[name], steps, (mean - half_width, mean + half_width))


def draw_band(
    axes: Axes, style: Mapping[str, Any], steps: Sequence[Any], interval: Any, alpha: float = 0.2
) -> None:
    """The interval of a curve, from its lower to its upper end, in the colour of its `style`."""
    axes.fill_between(steps, *interval, color=style["color"], alpha=alpha, linewidth=0)


def save(picture: Figure, path: Path) -> None:
    picture.savefig(path, format="png", dpi=110)
