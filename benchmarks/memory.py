"""How much memory slots and a step take, over 64M weights (256 MiB in float32).

Every contestant runs in a process of its own, which reports its peak resident size before its
first step and after its third. The gradients exist before: what a step adds is its own. The first
step of a process that has not used XLA also loads XLA's code.

    python benchmarks/memory.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import multiprocessing
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _timing
import keras
import numpy as np
import tensorflow as tf

import keras_yogi

MIB = 2**20
LAYOUTS: dict[str, Sequence[tuple[int, ...]]] = {
    "1 x 64M": [(8192, 8192)],
    "16 x 4M": [(2048, 2048)] * 16,
    "256 x 256k": [(512, 512)] * 256,
}
QUICK = {"4 x 256k": [(512, 512)] * 4}
OPTIMIZERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "keras.optimizers.Adam": keras.optimizers.Adam,
    "keras_yogi.Adam": keras_yogi.Adam,
    "keras_yogi.Adam, amsgrad": lambda: keras_yogi.Adam(amsgrad=True),
    "keras_yogi.Yogi": keras_yogi.Yogi,
    "keras_yogi.Yogi, unfused": lambda: keras_yogi.Yogi(fused=False),
}


def peak() -> float:
    """MiB that this process has had in memory at most."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage's, which differs
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def code() -> float:
    """MiB of that which are pages of files, that is of libraries; 0 where no file tells it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssFile")) / 1024


def measure(shapes: Sequence[tuple[int, ...]], name: str) -> dict[str, float]:
    optimizer = OPTIMIZERS[name]()
    variables = [keras.Variable(np.ones(shape, "float32")) for shape in shapes]
    gradients = [tf.Variable(tf.ones(shape)) for shape in shapes]
    optimizer.build(variables)
    weights = sum(int(np.prod(shape)) for shape in shapes)
    slots = sum(int(np.prod(v.shape)) for v in optimizer.variables[2:])

    @tf.function(autograph=False)
    def step() -> None:
        optimizer.apply([g.read_value() for g in gradients], variables)

    before, code_before = peak(), code()
    for _ in range(3):
        step()
    largest = max(int(np.prod(shape)) for shape in shapes)
    return {
        "slots": slots / weights,
        "step_mib": peak() - before,
        "code_mib": code() - code_before,
        "limit_mib": largest * 4 / MIB + 64,
    }


def main() -> None:
    options = _timing.arguments(__doc__).parse_args()
    results: dict[str, Any] = {}
    for layout, shapes in (QUICK if options.quick else LAYOUTS).items():
        results[layout] = {}
        for name in OPTIMIZERS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                results[layout][name] = pool.apply(measure, (shapes, name))
        _timing.report(
            layout,
            results[layout],
            {
                "slots, of the weights": lambda r: f"{r['slots']:.2f}",
                "a step adds, MiB": lambda r: f"{r['step_mib']:.0f}",
                "of it code of libraries": lambda r: f"{r['code_mib']:.0f}",
                "largest variable + 64 MiB": lambda r: f"{r['limit_mib']:.0f}",
            },
        )
    _timing.write(options.output, "memory", results, "step_mib", "MiB that a step adds (log scale)")


if __name__ == "__main__":
    main()
