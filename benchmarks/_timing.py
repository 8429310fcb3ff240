"""What the benchmarks share: contestants run in turn, medians and spread, tables and files."""

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

RESULTS = Path("logs") / "benchmarks"


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few rounds")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON and PNG")
    return parser


def machine() -> dict[str, Any]:
    return {
        "cores": tf.config.threading.get_inter_op_parallelism_threads() or _cores(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "devices": [d.device_type for d in tf.config.list_physical_devices()],
    }


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def interleaved(
    steps: Mapping[str, Callable[[], Any]], rounds: int, label: str = ""
) -> dict[str, np.ndarray]:
    """Seconds of every call. In each round all run once, in turn, so that a noisy machine slows
    them all; the order is turned round from one round to the next.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for round_ in tqdm(range(rounds), desc=label, leave=False, disable=None):
        for name in names if round_ % 2 else reversed(names):
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


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = Table(*columns[:1], title=title, title_justify="left")
    for column in columns[1:]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)


def write(folder: Path, name: str, results: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), **results}, indent=1)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
