"""What one update of an embedding table costs, by the number of its rows.

A batch names 4,096 ids, some of them several times, of a table 64 wide. keras.optimizers.Adam and
`sparse_update="exact"` move every row; "lazy" moves the rows that the batch names.

    python benchmarks/embeddings.py
    python benchmarks/embeddings.py --rows 10000 1000000
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Callable
from typing import Any

import _timing
import keras
import numpy as np
import tensorflow as tf

import keras_yogi

IDS, WIDTH = 4096, 64
KERAS, SMALLEST = "keras.optimizers.Adam", "of the smallest table"
OPTIMIZERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    KERAS: keras.optimizers.Adam,
    "keras_yogi.Adam, exact": keras_yogi.Adam,
    "keras_yogi.Yogi, exact": keras_yogi.Yogi,
    "keras_yogi.Adam, lazy": lambda: keras_yogi.Adam(sparse_update="lazy"),
    "keras_yogi.Yogi, lazy": lambda: keras_yogi.Yogi(sparse_update="lazy"),
}


def step_of(
    optimizer: keras.optimizers.Optimizer, rows: int, ids: tf.Variable, pieces: tf.Variable
) -> Callable[[], Any]:
    table = keras.Variable(np.zeros((rows, WIDTH), "float32"))
    optimizer.build([table])

    def step() -> None:
        gradient = tf.IndexedSlices(
            pieces.read_value(), ids.read_value(), tf.constant([rows, WIDTH])
        )
        optimizer.apply([gradient], [table])

    return tf.function(step, autograph=False)


def main() -> None:
    parser = _timing.arguments(__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each contestant")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.rows = 3, [1_000, 10_000]
    random = np.random.default_rng(0)
    pieces = tf.Variable(random.normal(size=(IDS, WIDTH)).astype("float32"))
    # All sizes of one optimizer in one run, so that their ratio is one of equal conditions.
    steps = {}
    for rows in options.rows:
        ids = tf.Variable(random.integers(0, rows, IDS).astype("int32"))
        for name, make in OPTIMIZERS.items():
            steps[f"{rows} {name}"] = step_of(make(), rows, ids, pieces)
    _timing.first_calls(steps)
    times = _timing.interleaved(steps, options.rounds)
    results: dict[str, Any] = {}
    for rows in options.rows:
        of_table = {name: times[f"{rows} {name}"] for name in OPTIMIZERS}
        summary = _timing.summary(of_table, KERAS, KERAS)
        for name, seconds in of_table.items():
            smallest = times[f"{options.rows[0]} {name}"]
            summary[name][SMALLEST] = float(np.median(seconds) / np.median(smallest))
        results[f"{rows:,} rows"] = summary
        _timing.report(
            f"{rows:,} x {WIDTH}, {IDS:,} ids",
            summary,
            {
                "ms": lambda r: f"{r['ms']:.2f}",
                "quartiles": lambda r: f"{r['ms_quartile_1']:.2f} to {r['ms_quartile_3']:.2f}",
                "of Keras's Adam": lambda r: f"{r[KERAS]:.3f}",
                SMALLEST: lambda r: f"{r[SMALLEST]:.2f}",
            },
        )
    _timing.write(options.output, "embeddings", results, "ms", "ms an update (log scale)")


if __name__ == "__main__":
    main()
