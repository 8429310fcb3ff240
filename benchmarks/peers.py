"""One update by Adam or Yogi as other libraries carry it out, each as its users run it.

keras_yogi and keras.optimizers.Adam in a graph, optax compiled by jax.jit with donated buffers,
PyTorch in eager mode. A library that is not installed is left out, and named.

    pip install -e '.[peers]' tf_keras
    python benchmarks/peers.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "0")

from collections.abc import Callable
from typing import Any

import _timing
import keras
import numpy as np
import tensorflow as tf
from update_cost import KERAS, LAYOUTS, SGD, Shapes, random_variables, step_of, step_of_sgd

import keras_yogi

Step = Callable[[], Any]


def of_keras(make: Callable[[], keras.optimizers.Optimizer]) -> Callable[[Shapes], Step]:
    def step(shapes: Shapes) -> Step:
        return step_of(make(), shapes, random_variables(shapes, "float32"), "float32", False)

    return step


def sgd(shapes: Shapes) -> Step:
    return step_of_sgd(shapes, random_variables(shapes, "float32"), "float32")


def tf_keras_adam(shapes: Shapes) -> Step:
    import tf_keras

    optimizer = tf_keras.optimizers.legacy.Adam()
    variables = random_variables(shapes, "float32")
    gradients = random_variables(shapes, "float32")
    optimizer._create_all_weights(variables)

    @tf.function(autograph=False)
    def step() -> None:
        pairs = zip([g.read_value() for g in gradients], variables, strict=True)
        optimizer.apply_gradients(pairs)

    return step


def of_optax(name: str) -> Callable[[Shapes], Step]:
    def make(shapes: Shapes) -> Step:
        import jax
        import optax

        optimizer = getattr(optax, name)(0.01)
        random = np.random.default_rng(0)
        gradients = [jax.numpy.asarray(random.normal(size=s), "float32") for s in shapes]
        weights = [jax.numpy.zeros(s, "float32") for s in shapes]
        held = {"now": (weights, optimizer.init(weights))}

        def update(weights: Any, state: Any, gradients: Any) -> Any:
            steps, state = optimizer.update(gradients, state, weights)
            return optax.apply_updates(weights, steps), state

        update = jax.jit(update, donate_argnums=(0, 1))

        def step() -> None:
            held["now"] = jax.block_until_ready(update(*held["now"], gradients))

        return step

    return make


def of_torch(make_optimizer: Callable[[Any], Any]) -> Callable[[Shapes], Step]:
    def make(shapes: Shapes) -> Step:
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
        weights = [torch.nn.Parameter(torch.zeros(s)) for s in shapes]
        for w in weights:
            w.grad = torch.randn_like(w)
        return make_optimizer(weights).step

    return make


def torch_adam(weights: Any) -> Any:
    import torch

    return torch.optim.Adam(weights, fused=True)


def pytorch_optimizer_yogi(weights: Any) -> Any:
    import pytorch_optimizer

    return pytorch_optimizer.Yogi(weights)


CONTESTANTS: dict[str, Callable[[Shapes], Step]] = {
    SGD: sgd,
    KERAS: of_keras(keras.optimizers.Adam),
    "keras_yogi.Adam": of_keras(keras_yogi.Adam),
    "keras_yogi.Yogi": of_keras(keras_yogi.Yogi),
    "tf_keras legacy Adam": tf_keras_adam,
    "optax.adam, jit": of_optax("adam"),
    "optax.yogi, jit": of_optax("yogi"),
    "torch.optim.Adam(fused=True)": of_torch(torch_adam),
    "pytorch_optimizer.Yogi": of_torch(pytorch_optimizer_yogi),
}


def main() -> None:
    parser = _timing.arguments(__doc__)
    parser.add_argument(
        "--layouts", nargs="+", choices=LAYOUTS, default=["4 x 4M", "160 x 100k", "400 x 1k"]
    )
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each contestant")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.layouts = 3, ["MLP, 3 x 64"]
    results: dict[str, Any] = {}
    for layout in options.layouts:
        steps, shapes = {}, LAYOUTS[layout]()
        for name, make in CONTESTANTS.items():
            try:
                steps[name] = make(shapes)
            except ImportError as error:
                print(f"left out: {name}: {error}")
        first = _timing.first_calls(steps)
        times = _timing.interleaved(steps, options.rounds, layout)
        results[layout] = _timing.summary(times, SGD, KERAS)
        for name, figures in results[layout].items():
            figures["first_call_s"] = first[name]
        _timing.report(
            f"{layout}: {len(shapes)} variables",
            results[layout],
            {
                "ms": lambda r: f"{r['ms']:.2f}",
                "quartiles": lambda r: f"{r['ms_quartile_1']:.2f} to {r['ms_quartile_3']:.2f}",
                "SGD units": lambda r: f"{r[SGD]:.2f}",
                "of Keras's Adam": lambda r: f"{r[KERAS]:.2f}",
                "first call, s": lambda r: f"{r['first_call_s']:.2f}",
            },
        )
    _timing.write(options.output, "peers", results, "ms", "ms an update (log scale)")


if __name__ == "__main__":
    main()
