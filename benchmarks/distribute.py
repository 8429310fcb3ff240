"""What an update, and a step of `fit`, cost under tf.distribute, beside keras.optimizers.Adam.

Two replicas, on two logical CPUs. An update adds the replicas' gradients up and updates each
replica's copies of the variables. `--fit` trains models, as `fit_step.py` does on one device.

    python benchmarks/distribute.py
    python benchmarks/distribute.py --fit MobileNetV2 recommender
    python benchmarks/distribute.py --layouts "400 x 1k" --strategy central
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Callable
from typing import Any

import _timing
import fit_step
import keras
import numpy as np
import tensorflow as tf
from update_cost import KERAS, LAYOUTS, OPTIMIZERS, Shapes

DEVICES = ["CPU:0", "CPU:1"]
STRATEGIES: dict[str, Callable[[], tf.distribute.Strategy]] = {
    "mirrored": lambda: tf.distribute.MirroredStrategy(DEVICES),
    "central": lambda: tf.distribute.experimental.CentralStorageStrategy(DEVICES, DEVICES[0]),
}


def step_of(
    strategy: tf.distribute.Strategy,
    make: Callable[[], keras.optimizers.Optimizer],
    shapes: Shapes,
) -> Callable[[], Any]:
    random = np.random.default_rng(0)
    with strategy.scope():
        variables = [keras.Variable(random.normal(size=shape)) for shape in shapes]
        gradients = [tf.Variable(random.normal(size=s), dtype=tf.float32) for s in shapes]
        optimizer = make()
        optimizer.build(variables)

    def on_replica() -> None:
        optimizer.apply([gradient.read_value() for gradient in gradients], variables)

    return tf.function(lambda: strategy.run(on_replica), autograph=False)


def main() -> None:
    parser = _timing.arguments(__doc__)
    layouts = ["400 x 1k", "EfficientNetB0"]
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=layouts)
    parser.add_argument(
        "--fit", nargs="+", choices=fit_step.MODELS, default=[], help="models, instead of layouts"
    )
    parser.add_argument("--strategy", choices=STRATEGIES, default="mirrored")
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each contestant")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.layouts = 3, ["one Dense"]
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    # One for all: two MirroredStrategies in a process get into each other's all-reduce.
    strategy = STRATEGIES[options.strategy]()
    on_two = f"on two replicas, {options.strategy}"
    if options.fit:
        steps_of_fit = {}
        for model in options.fit:
            steps_of_fit[model] = fit_step.measure(model, "plain", options.rounds, strategy)
            _timing.report(f"{model} {on_two}", steps_of_fit[model], fit_step.COLUMNS)
        name = f"distribute_{options.strategy}_fit"
        _timing.write(options.output, name, steps_of_fit, "ms", "ms a step (log scale)")
        return
    results = {}
    for layout in options.layouts:
        shapes = LAYOUTS[layout]()
        steps = {name: step_of(strategy, make, shapes) for name, make in OPTIMIZERS.items()}
        first = _timing.first_calls(steps)
        times = _timing.interleaved(steps, options.rounds, layout)
        results[layout] = _timing.summary(times, KERAS, KERAS)
        for name, figures in results[layout].items():
            figures["first_call_s"] = first[name]
            figures["first call"] = first[name] / first[KERAS]
        _timing.report(
            f"{layout}: {len(shapes)} variables {on_two}",
            results[layout],
            {
                "ms": lambda r: f"{r['ms']:.2f}",
                "quartiles": lambda r: f"{r['ms_quartile_1']:.2f} to {r['ms_quartile_3']:.2f}",
                "of Keras's Adam": lambda r: f"{r[KERAS]:.2f}",
                "first call, s": lambda r: f"{r['first_call_s']:.2f}",
                "of Keras's": lambda r: f"{r['first call']:.2f}",
            },
        )
    name = f"distribute_{options.strategy}"
    label = "time of an update on two replicas, of keras.optimizers.Adam's (log scale)"
    _timing.write(options.output, name, results, KERAS, label)


if __name__ == "__main__":
    main()
