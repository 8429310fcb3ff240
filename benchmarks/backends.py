"""What an update costs on Keras's other backends, beside Keras's, optax's and PyTorch's own Adam.

JAX compiles `stateless_apply` with donated buffers, as `fit` does; the first column is the time to
trace and compile it. PyTorch runs step by step; on a CPU, on one thread. A step has ended when the
device has computed it. "finite" is `skip_nonfinite=True`.

    KERAS_BACKEND=jax python benchmarks/backends.py
    KERAS_BACKEND=torch python benchmarks/backends.py --layouts "200 x 32x32"
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "torch")

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import _timing
import keras
import numpy as np

import keras_yogi

Shapes = Sequence[tuple[int, ...]]
Step = Callable[[], Any]

LAYOUTS: dict[str, Shapes] = {
    "200 x 32x32": [(32, 32)] * 200,
    "1,000 x 16x16": [(16, 16)] * 1000,
    "200 x 256x256": [(256, 256)] * 200,
    "8 x 1M": [(1000, 1000)] * 8,
}
KERAS, OURS = "keras.optimizers.Adam", "keras_yogi.Adam"
OPTIMIZERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    KERAS: keras.optimizers.Adam,
    OURS: keras_yogi.Adam,
    "keras_yogi.Adam, finite": lambda: keras_yogi.Adam(skip_nonfinite=True),
    "keras_yogi.Yogi": keras_yogi.Yogi,
    "keras_yogi.Yogi, finite": lambda: keras_yogi.Yogi(skip_nonfinite=True),
}


def numbers(shapes: Shapes) -> list[Any]:
    random = np.random.default_rng(0)
    return [keras.ops.convert_to_tensor(random.normal(size=s).astype("float32")) for s in shapes]


def on_jax(shapes: Shapes) -> tuple[dict[str, Step], dict[str, float]]:
    """A step of each contestant, and the seconds it took to compile."""
    import jax

    gradients = numbers(shapes)
    steps, compiled = {}, {}

    def add(name: str, update: Callable[..., Any], state: Any, weights: Any) -> None:
        start = time.perf_counter()
        jitted = jax.jit(update, donate_argnums=(0, 2))
        program = jitted.lower(state, gradients, weights).compile()
        compiled[name] = time.perf_counter() - start
        held = {"now": (state, weights)}

        def step() -> None:
            state, weights = held["now"]
            weights, state = jax.block_until_ready(program(state, gradients, weights))
            held["now"] = (state, weights)

        steps[name] = step

    for name, make in OPTIMIZERS.items():
        optimizer, variables = make(), [keras.Variable(value) for value in numbers(shapes)]
        optimizer.build(variables)
        state = [v.value for v in optimizer.variables]
        add(name, optimizer.stateless_apply, state, [v.value for v in variables])

    try:
        import optax
    except ImportError as error:
        print(f"left out: optax.adam: {error}")
        return steps, compiled
    adam = optax.adam(0.001)

    def update(state: Any, gradients: Any, weights: Any) -> Any:
        step, state = adam.update(gradients, state, weights)
        return optax.apply_updates(weights, step), state

    weights = numbers(shapes)
    add("optax.adam", update, adam.init(weights), weights)
    return steps, compiled


def on_torch(shapes: Shapes) -> tuple[dict[str, Step], dict[str, float]]:
    """A step of each contestant; nothing is compiled."""
    import torch

    torch.set_num_threads(1)  # more wait for each other where other programs run, too
    gradients, steps = numbers(shapes), {}
    on_a_card = gradients[0].is_cuda

    def add(name: str, update: Step) -> None:
        def step() -> None:
            update()
            if on_a_card:
                torch.cuda.synchronize()

        steps[name] = step

    def update_of(optimizer: Any) -> Step:
        variables = [keras.Variable(value) for value in numbers(shapes)]
        optimizer.build(variables)
        return torch.no_grad()(lambda: optimizer.apply(gradients, variables))

    for name, make in OPTIMIZERS.items():
        add(name, update_of(make()))
    add("keras_yogi.Adam, fused=False", update_of(keras_yogi.Adam(fused=False)))
    for how, torch_adam in {
        "foreach": functools.partial(torch.optim.Adam, foreach=True),
        "fused": functools.partial(torch.optim.Adam, fused=True),
    }.items():
        weights = [torch.nn.Parameter(value.clone()) for value in numbers(shapes)]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        add(f"torch.optim.Adam({how}=True)", torch_adam(weights).step)
    return steps, dict.fromkeys(steps, 0.0)


CONTESTANTS = {"jax": on_jax, "torch": on_torch}


def measure(layout: str, shapes: Shapes, rounds: int) -> dict[str, dict[str, float]]:
    """Measures an update by each contestant, and prints the table."""
    backend = keras.config.backend()
    steps, compiled = CONTESTANTS[backend](shapes)
    for step in steps.values():
        step()
    results = _timing.summary(_timing.interleaved(steps, rounds, layout), OURS, KERAS)
    for name, seconds in compiled.items():
        results[name]["compile_s"] = seconds
    _timing.report(
        f"{backend}, {layout}",
        results,
        {
            "compile, s": lambda r: f"{r['compile_s']:.2f}",
            "ms": lambda r: f"{r['ms']:.2f}",
            "quartiles": lambda r: f"{r['ms_quartile_1']:.2f} to {r['ms_quartile_3']:.2f}",
            "of Keras's Adam": lambda r: f"{r[KERAS]:.2f}",
            "of keras_yogi.Adam": lambda r: f"{r[OURS]:.2f}",
        },
    )
    return results


def main() -> None:
    parser = _timing.arguments(__doc__)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each contestant")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.layouts = 3, ["200 x 32x32"]
    results = {name: measure(name, LAYOUTS[name], options.rounds) for name in options.layouts}
    name = f"backends_{keras.config.backend()}"
    _timing.write(options.output, name, results, "ms", "ms an update (log scale)")


if __name__ == "__main__":
    main()
