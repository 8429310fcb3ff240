"""What the examples share: argument checks, run folders, statistics, tables and pictures."""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit

# Okabe and Ito's colours, which colour-blind readers can tell apart. The two Adams nearly
# coincide: a thin dashed line on a broad one leaves both visible.
LINES: dict[str, dict[str, Any]] = {
    "keras_yogi.Adam": {"color": "#56B4E9", "linewidth": 4.0},
    "keras_yogi.Yogi": {"color": "#D55E00", "linewidth": 1.8},
    "keras.optimizers.Adam": {"color": "black", "linewidth": 1.2, "linestyle": (0, (4, 3))},
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
    """The folder of one run for keras.callbacks.TensorBoard, without an earlier run's curves.

    TensorBoard would draw both runs as one line. Only event files are removed, and only where the
    callback writes them.
    """
    folder = logdir / run
    for part in ("train", "validation"):
        for events in (folder / part).glob("events.out.tfevents.*"):
            events.unlink()
    return folder


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


# Pictures


def figure(title: str, panels: int) -> tuple[Figure, list[Axes]]:
    """Panels side by side with one logarithmic axis; a bare Figure needs no screen (Agg)."""
    picture = Figure(figsize=(max(4.5 * panels, 7.5), 4.0), layout="constrained")
    picture.suptitle(title, fontsize=10.5)
    row = list(picture.subplots(1, panels, sharey=True, squeeze=False)[0])
    for axes in row:
        axes.set_yscale("log")
        # Labels also where the curves span less than a decade, and plain ones: 0.3, not 3 × 10⁻¹.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    return picture, row


def draw_curve(
    axes: Axes, name: str, steps: Sequence[int], mean: Sequence[float], half_width: Any
) -> None:
    """An optimizer's curve and, if it is a mean over seeds, its interval as a band."""
    axes.plot(steps, mean, label=name, **LINES[name])
    if half_width is not None:
        half_width = np.array(half_width, "float64")
        color = LINES[name]["color"]
        axes.fill_between(
            steps, mean - half_width, mean + half_width, color=color, alpha=0.2, linewidth=0
        )


def save(picture: Figure, path: Path) -> None:
    picture.savefig(path, format="png", dpi=110)
