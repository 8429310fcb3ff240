"""What the benchmarks share: contestants run in turn, medians and spread, tables and files."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

# Okabe and Ito's, which colour-blind readers can tell apart.
COLORS = ["#999999", "#000000", "#56B4E9", "#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7"]
Figures = Mapping[str, float]
RESULTS = Path("logs") / "benchmarks"


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few rounds")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON and PNG")
    return parser


def devices() -> list[str]:
    """What the backend computes on: of a GPU, the card's name."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        return [device.device_kind for device in jax.devices()]
    if backend == "torch":
        import torch

        cards = range(torch.cuda.device_count())
        return [torch.cuda.get_device_name(card) for card in cards] or ["cpu"]
    import tensorflow as tf

    return [
        tf.config.experimental.get_device_details(device).get("device_name", device.device_type)
        for device in tf.config.list_physical_devices()
    ]


def machine() -> dict[str, Any]:
    backend = keras.config.backend()
    return {
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        backend: sys.modules[backend].__version__,
        "keras": keras.__version__,
        "devices": devices(),
    }


def first_calls(steps: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of each one's first call, which traces and compiles; a second call warms up."""
    seconds = {}
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        seconds[name] = time.perf_counter() - start
        step()
        step()
    return seconds


def in_turn(contestants: Iterable[str], round_: int) -> list[str]:
    """The contestants in a random order, the same one whenever it is the same round: each finds
    caches and memory as the one before it has left them, which must not always be the same one.
    """
    return list(np.random.default_rng(round_).permutation(list(contestants)))


def rounds_of(rounds: int, label: str) -> Iterable[int]:
    """Their numbers, with a progress bar where tqdm is installed."""
    try:
        from tqdm import trange
    except ImportError:
        return range(rounds)
    return trange(rounds, desc=label, leave=False, disable=None)


def interleaved(
    steps: Mapping[str, Callable[[], Any]], rounds: int, label: str = ""
) -> dict[str, np.ndarray]:
    """Seconds of every call. In each round all run once, in turn, so that a noisy machine slows
    them all.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in rounds_of(rounds, label):
        for name in in_turn(steps, round_):
            start = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(times) for name, times in seconds.items()}


def summary(
    times: Mapping[str, np.ndarray], unit: str, against: str
) -> dict[str, dict[str, float]]:
    """Of each contestant: the median, its quartiles, and the ratios to two of them.

    A ratio is the median over rounds of the ratio within a round: what slows one round slows both.
    """
    return {
        name: {
            "ms": float(np.median(t) * 1e3),
            "ms_quartile_1": float(np.quantile(t, 0.25) * 1e3),
            "ms_quartile_3": float(np.quantile(t, 0.75) * 1e3),
            unit: float(np.median(t / times[unit])),
            against: float(np.median(t / times[against])),
        }
        for name, t in times.items()
    }


def report(
    title: str, results: Mapping[str, Figures], columns: Mapping[str, Callable[[Figures], str]]
) -> None:
    """Prints one row a contestant; `columns` maps headings to what stands under them."""
    table = Table("", title=title, title_justify="left")
    for heading in columns:
        table.add_column(heading, justify="right")
    for name, figures in results.items():
        table.add_row(name, *(text(figures) for text in columns.values()))
    Console(width=110).print(table)


def write(
    folder: Path,
    name: str,
    results: Mapping[str, Mapping[str, Figures]],
    figure: str,
    label: str,
) -> None:
    """Writes the JSON and, where matplotlib is installed, a PNG of one figure of every contestant
    in every group of results.

    Args:
        folder: made if it is not there.
        name: of both files.
        results: of each group, of each contestant: its figures.
        figure: the one that is drawn.
        label: what it is, with its unit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), **results}, indent=1)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        return
    picture = Figure(figsize=(8.0, 1.0 + 0.22 * sum(map(len, results.values()))))
    axes = picture.subplots()
    contestants = list(dict.fromkeys(c for group in results.values() for c in group))
    place, ticks = 0.0, []
    for group, of_group in results.items():
        ticks.append((place + (len(of_group) - 1) / 2, group))
        for contestant, figures in of_group.items():
            color = COLORS[contestants.index(contestant) % len(COLORS)]
            axes.barh(place, figures[figure], color=color)
            axes.text(figures[figure], place, f" {figures[figure]:.2f}", va="center", fontsize=7)
            place += 1
        place += 1
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    bars = [Patch(color=c) for c, _ in zip(COLORS * 2, contestants, strict=False)]
    picture.legend(
        bars, contestants, loc="outside upper center", ncols=3, fontsize=8, frameon=False
    )
    picture.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
