"""What an update and a step of `fit` cost on a GPU, with Keras on JAX or on PyTorch.

TensorFlow is not needed: keras_yogi, Keras and one of the two backends are enough, and optax on JAX
if it is to be compared. A timing ends when the GPU has computed what was asked of it.

    KERAS_BACKEND=jax python benchmarks/gpu.py
    KERAS_BACKEND=torch python benchmarks/gpu.py
    KERAS_BACKEND=jax python benchmarks/gpu.py --device cpu --quick      # a smoke run

"update": as benchmarks/backends.py has it. "fit": `model.fit` of some steps, divided by their
number, what comes before the first step included. The optimizer's own cost is the time of a step
minus that of a step with plain SGD. On JAX Keras compiles the step of `fit`; on PyTorch it does so
with `--jit_compile`, which takes minutes.
"""

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "torch")
if any(argument.endswith("cpu") for argument in sys.argv):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before a backend is imported, which would find it

import time
from collections.abc import Callable
from typing import Any

import _timing
import backends
import keras
import numpy as np
from _models import transformer
from keras import layers

import keras_yogi

SGD, KERAS = "SGD", "keras.optimizers.Adam"
OPTIMIZERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    SGD: keras.optimizers.SGD,
    KERAS: keras.optimizers.Adam,
    "keras_yogi.Adam": keras_yogi.Adam,
    "keras_yogi.Yogi": keras_yogi.Yogi,
}
LAYOUTS: dict[str, backends.Shapes] = {**backends.LAYOUTS, "16 x 16M": [(4000, 4000)] * 16}


def perceptron() -> keras.Model:
    hidden = [layers.Dense(2048, activation="relu") for _ in range(4)]
    return keras.Sequential([keras.Input((256,)), *hidden, layers.Dense(1)])


def normal(samples: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(samples, width)).astype("float32")


def texts(samples: int, length: int, words: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, words, (samples, length)).astype("int32")


# the model, its inputs for so many samples, samples a batch
Model = tuple[Callable[[], keras.Model], Callable[[int], np.ndarray], int]
SMALL = {"transformer, 2 x 64": (transformer, lambda n: texts(n, 32, 1000), 16)}
MODELS: dict[str, Model] = {
    "4 x Dense(2048)": (perceptron, lambda n: normal(n, 256), 256),
    "transformer, 12 x 512": (
        lambda: transformer(12, 512, 8, 16_000, 128),
        lambda n: texts(n, 128, 16_000),
        32,
    ),
    **SMALL,
}


def wait(model: keras.Model) -> None:
    """Until the device has computed all that was asked of it."""
    if keras.config.backend() == "jax":
        import jax

        jax.block_until_ready([v.value for v in [*model.variables, *model.optimizer.variables]])
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_fit(
    name: str, steps: int, rounds: int, jit_compile: bool | str
) -> dict[str, dict[str, float]]:
    """Measures a step of `fit` with each optimizer, and prints the table."""
    make, inputs, batch_size = MODELS[name]
    x = inputs(steps * batch_size)
    y = normal(len(x), 1)

    def fit_of(optimizer: keras.optimizers.Optimizer) -> Callable[[], None]:
        model = make()
        model.compile(optimizer, loss="mse", jit_compile=jit_compile)

        def fit() -> None:
            model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
            wait(model)

        return fit

    fits = {contestant: fit_of(make()) for contestant, make in OPTIMIZERS.items()}
    first = {}
    for contestant, fit in fits.items():
        start = time.perf_counter()
        fit()
        first[contestant] = time.perf_counter() - start
    times = _timing.interleaved(fits, rounds, name)
    times = {contestant: seconds / steps for contestant, seconds in times.items()}
    results = _timing.summary(times, SGD, KERAS)
    own = {contestant: float(np.median(t - times[SGD])) for contestant, t in times.items()}
    for contestant, figures in results.items():
        figures["own_ms"] = own[contestant] * 1e3
        figures["own_of_keras"] = own[contestant] / own[KERAS]
        figures["first_fit_s"] = first[contestant]
    _timing.report(
        f"{keras.config.backend()}, a step of fit, {name}",
        results,
        {
            "first fit, s": lambda r: f"{r['first_fit_s']:.1f}",
            "ms a step": lambda r: f"{r['ms']:.2f}",
            "quartiles": lambda r: f"{r['ms_quartile_1']:.2f} to {r['ms_quartile_3']:.2f}",
            "of Keras's Adam": lambda r: f"{r[KERAS]:.2f}",
            "own ms": lambda r: f"{r['own_ms']:.2f}",
            "of Keras's own": lambda r: f"{r['own_of_keras']:.2f}",
        },
    )
    return results


def has_gpu() -> bool:
    if keras.config.backend() == "jax":
        import jax

        return jax.default_backend() == "gpu"
    import torch

    return torch.cuda.is_available()


def main() -> None:
    parser = _timing.arguments(__doc__)
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--layouts", nargs="*", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each contestant")
    parser.add_argument("--steps", type=int, default=50, help="of one timed `fit`")
    parser.add_argument("--jit_compile", action="store_true", help="compile the step on PyTorch")
    options = parser.parse_args()
    backend = keras.config.backend()
    if backend not in backends.CONTESTANTS:
        sys.exit(f"KERAS_BACKEND must be jax or torch. Received: {backend}")
    if options.device == "gpu" and not has_gpu():
        sys.exit(f"{backend} finds no GPU. `--device cpu --quick` tries the benchmark on a CPU.")
    if options.quick:
        options.rounds, options.steps = 3, 4
        options.layouts, options.models = ["200 x 32x32"], list(SMALL)
    jit_compile = options.jit_compile or ("auto" if backend == "jax" else False)
    results: dict[str, Any] = {}
    print(f"{backend} on {', '.join(_timing.devices())}")
    for layout in options.layouts:
        results[layout] = backends.measure(layout, LAYOUTS[layout], options.rounds)
    for model in options.models:
        results[f"fit, {model}"] = measure_fit(model, options.steps, options.rounds, jit_compile)
    _timing.write(options.output, f"gpu_{backend}", results, "ms", "ms (log scale)")


if __name__ == "__main__":
    main()
