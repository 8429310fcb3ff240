"""What one optimizer update costs, beside plain SGD, keras.optimizers.Adam and the memory limit.

Gradients are read from variables inside the graph, as a train step has them. One SGD unit is one
`ResourceApplyGradientDescent` over the same variables, which moves three streams of memory (read
gradient and weights, write weights). Adam and Yogi have to move seven (read gradient, momentum,
velocity and weights, write the last three): 7 / 3 = 2.33 units is the limit of a single pass over
variables that do not fit into a cache.

    python benchmarks/update_cost.py
    python benchmarks/update_cost.py --layouts "400 x 1k" EfficientNetB0 --eager
    python benchmarks/update_cost.py --layouts "4 x 4M" "400 x 1k" EfficientNetB0 --dtype bfloat16
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Callable, Sequence
from typing import Any

import _timing
import keras
import numpy as np
import tensorflow as tf

import keras_yogi

Shapes = Sequence[tuple[int, ...]]


def efficientnet_b0() -> Shapes:
    model = keras.applications.EfficientNetB0(weights=None, input_shape=(64, 64, 3), classes=10)
    return [tuple(v.shape) for v in model.trainable_variables]


def transformer_encoder() -> Shapes:
    """BERT-base with a hidden size of 256: 199 variables, 17M weights."""
    width, inner, vocabulary = 256, 1024, 30522
    block = [(width, width), (width,)] * 4 + [(width,), (width,)]
    block += [(width, inner), (inner,), (inner, width), (width,), (width,), (width,)]
    embeddings = [(vocabulary, width), (512, width), (2, width), (width,), (width,)]
    return embeddings + block * 12 + [(width, width), (width,)]


LAYOUTS: dict[str, Callable[[], Shapes]] = {
    "4 x 4M": lambda: [(2048, 2048)] * 4,
    "160 x 100k": lambda: [(316, 316)] * 160,
    "100 x 45k": lambda: [(300, 150)] * 100,
    "400 x 1k": lambda: [(32, 32)] * 400,
    "EfficientNetB0": efficientnet_b0,
    "encoder, 17M": transformer_encoder,
    "1 x 1,000,001": lambda: [(1_000_001,)],
    "MLP, 3 x 64": lambda: [(20, 64), (64,), (64, 64), (64,), (64, 64), (64,), (64, 1), (1,)],
    "one Dense": lambda: [(10, 1), (1,)],
}

OPTIMIZERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "keras.optimizers.Adam": keras.optimizers.Adam,
    "keras_yogi.Adam": keras_yogi.Adam,
    "keras_yogi.Yogi": keras_yogi.Yogi,
    "keras_yogi.Yogi, unfused": lambda: keras_yogi.Yogi(fused=False),
}
SGD, KERAS = "SGD", "keras.optimizers.Adam"


def random_variables(shapes: Shapes, dtype: str) -> list[tf.Variable]:
    return [tf.Variable(tf.cast(tf.random.normal(shape), dtype)) for shape in shapes]


def step_of_sgd(shapes: Shapes, gradients: Sequence[tf.Variable], dtype: str) -> Callable[[], Any]:
    variables = random_variables(shapes, dtype)
    rate = tf.constant(0.1, dtype)

    def step() -> None:
        for variable, gradient in zip(variables, gradients, strict=True):
            tf.raw_ops.ResourceApplyGradientDescent(
                var=variable.handle, alpha=rate, delta=gradient.read_value()
            )

    return tf.function(step, autograph=False)


def step_of(
    optimizer: keras.optimizers.Optimizer,
    shapes: Shapes,
    gradients: Sequence[tf.Variable],
    dtype: str,
    eager: bool,
) -> Callable[[], Any]:
    variables = [keras.Variable(tf.random.normal(shape), dtype=dtype) for shape in shapes]
    optimizer.build(variables)

    def step() -> None:
        optimizer.apply([g.read_value() for g in gradients], variables)

    return step if eager else tf.function(step, autograph=False)


def measure(shapes: Shapes, rounds: int, dtype: str, eager: bool, label: str) -> dict[str, Any]:
    gradients = random_variables(shapes, dtype)
    steps = {SGD: step_of_sgd(shapes, gradients, dtype)}
    for name, make in OPTIMIZERS.items():
        steps[name] = step_of(make(), shapes, gradients, dtype, eager)
    first = _timing.first_calls(steps)
    times = _timing.interleaved(steps, rounds, label)
    results = _timing.summary(times, SGD, KERAS)
    for name in results:
        results[name]["first_call_s"] = first[name]
    return results


def main() -> None:
    parser = _timing.arguments(__doc__)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each contestant")
    dtypes = ["float32", "bfloat16", "float16"]
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="of the variables")
    parser.add_argument("--eager", action="store_true", help="optimizer.apply outside tf.function")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.layouts = 3, ["MLP, 3 x 64", "one Dense"]
    results = {}
    for layout in options.layouts:
        shapes = LAYOUTS[layout]()
        weights = sum(int(np.prod(shape)) for shape in shapes)
        results[layout] = measure(shapes, options.rounds, options.dtype, options.eager, layout)
        _timing.report(
            f"{layout}: {len(shapes)} variables, {weights:,} weights in {options.dtype}",
            results[layout],
            {
                "ms": lambda r: f"{r['ms']:.2f}",
                "quartiles": lambda r: f"{r['ms_quartile_1']:.2f} to {r['ms_quartile_3']:.2f}",
                "SGD units": lambda r: f"{r[SGD]:.2f}",
                "of Keras's Adam": lambda r: f"{r[KERAS]:.2f}",
                "first call, s": lambda r: f"{r['first_call_s']:.2f}",
            },
        )
    name = "update_cost" + "_eager" * options.eager
    name += f"_{options.dtype}" * (options.dtype != "float32")
    _timing.write(options.output, name, results, SGD, "time of an update, in SGD units (log scale)")


if __name__ == "__main__":
    main()
