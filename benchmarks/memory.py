"""How much memory slots and a step take, over 64M weights (256 MiB in float32, 128 in bfloat16).

Every contestant runs in a process of its own, which reports its peak resident size before its
first step and after its third. The gradients exist before: what a step adds is its own. The first
step of a process that has not used XLA also loads XLA's code.

Bytes a weight are those of the variables that stay: weights, the optimizer's slots (momentum and
velocity), and the residual of bfloat16. The limit of what a step adds is the largest variable in
float32 and 64 MiB.

    python benchmarks/memory.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import itertools
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
DTYPES = {
    "float32": OPTIMIZERS,
    "bfloat16": {
        **OPTIMIZERS,
        "keras_yogi.Adam, no residual": lambda: keras_yogi.Adam(keep_residual=False),
    },
}
RESIDUAL = "int16"  # the dtype of this slot, and of no other


def peak() -> float:
    """MiB that this process has had in memory at most."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage's, which differs
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def code() -> float:
    """MiB of that which are pages of files, that is of libraries; 0 where no file tells it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssFile")) / 1024


def total_bytes(variables: Sequence[keras.Variable]) -> int:
    return sum(int(np.prod(v.shape)) * tf.as_dtype(v.dtype).size for v in variables)


def measure(shapes: Sequence[tuple[int, ...]], name: str, dtype: str) -> dict[str, float]:
    optimizer = DTYPES[dtype][name]()
    variables = [keras.Variable(np.ones(shape, "float32"), dtype=dtype) for shape in shapes]
    gradients = [tf.Variable(tf.ones(shape, dtype)) for shape in shapes]
    optimizer.build(variables)
    weights = sum(int(np.prod(shape)) for shape in shapes)
    slots = optimizer.variables[2:]  # after the step and the learning rate
    residuals = [v for v in slots if v.dtype == RESIDUAL]

    @tf.function(autograph=False)
    def step() -> None:
        optimizer.apply([g.read_value() for g in gradients], variables)

    before, code_before = peak(), code()
    for _ in range(3):
        step()
    largest = max(int(np.prod(shape)) for shape in shapes)
    return {
        "slot_bytes": (total_bytes(slots) - total_bytes(residuals)) / weights,
        "residual_bytes": total_bytes(residuals) / weights,
        "bytes": total_bytes([*variables, *slots]) / weights,
        "step_mib": peak() - before,
        "code_mib": code() - code_before,
        "limit_mib": largest * 4 / MIB + 64,
    }


def main() -> None:
    options = _timing.arguments(__doc__).parse_args()
    results: dict[str, Any] = {}
    layouts = QUICK if options.quick else LAYOUTS
    for (layout, shapes), dtype in itertools.product(layouts.items(), DTYPES):
        group = f"{layout}, {dtype}"
        results[group] = {}
        for name in DTYPES[dtype]:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                results[group][name] = pool.apply(measure, (shapes, name, dtype))
        _timing.report(
            group,
            results[group],
            {
                "bytes a weight": lambda r: f"{r['bytes']:.2f}",
                "slots": lambda r: f"{r['slot_bytes']:.2f}",
                "residual": lambda r: f"{r['residual_bytes']:.2f}",
                "step, MiB": lambda r: f"{r['step_mib']:.0f}",
                "of it code": lambda r: f"{r['code_mib']:.0f}",
                "limit": lambda r: f"{r['limit_mib']:.0f}",
            },
        )
    _timing.write(options.output, "memory", results, "step_mib", "MiB that a step adds (log scale)")


if __name__ == "__main__":
    main()
