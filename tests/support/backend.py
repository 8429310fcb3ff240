"""The backend that Keras runs on, and the ways to take a step there."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest

BACKEND = keras.config.backend()
ON_TENSORFLOW = BACKEND == "tensorflow"
if ON_TENSORFLOW:
    import tensorflow as tf

tensorflow_only = pytest.mark.skipif(not ON_TENSORFLOW, reason="exists on TensorFlow alone")


def has_gpu() -> bool:
    """Whether the backend computes on one: tests/conftest.py hides it unless it is asked for."""
    if BACKEND == "jax":
        import jax

        return jax.default_backend() == "gpu"
    if BACKEND == "torch":
        import torch

        return torch.cuda.is_available()
    return bool(tf.config.list_physical_devices("GPU"))


Step = Callable[[Sequence[Any]], None]  # of gradients, one per variable
Variables = Sequence[keras.Variable]


def tensor(values: Any, dtype: str | None = None) -> Any:
    return keras.ops.convert_to_tensor(values, dtype)


def array(value: Any) -> np.ndarray:
    """A copy: where the backend's tensor and the array share memory, the next step changes both."""
    if ON_TENSORFLOW and hasattr(value, "numpy"):
        return np.array(value.numpy())  # NumPy would not take a scalar of bfloat16
    return np.array(keras.ops.convert_to_numpy(value))


def _eager(optimizer: Any, variables: Variables) -> Step:
    return lambda gradients: optimizer.apply(list(gradients), variables)


def _graph(optimizer: Any, variables: Variables) -> Step:
    apply = tf_mode("graph")(lambda *gradients: optimizer.apply(list(gradients), variables))
    return lambda gradients: apply(*gradients)


def _xla(optimizer: Any, variables: Variables) -> Step:
    apply = tf_mode("xla")(lambda *gradients: optimizer.apply(list(gradients), variables))
    return lambda gradients: apply(*gradients)


def _jit(optimizer: Any, variables: Variables) -> Step:
    import jax

    stateless_apply = jax.jit(optimizer.stateless_apply)

    def step(gradients: Sequence[Any]) -> None:
        trained, own = stateless_apply(
            [v.value for v in optimizer.variables],
            list(gradients),
            [v.value for v in variables],
        )
        for variable, value in zip(
            [*variables, *optimizer.variables], [*trained, *own], strict=True
        ):
            variable.assign(value)

    return step


# How a built optimizer's `apply` on its variables is run: MODES[mode](optimizer, variables) is a
# function of the gradients.
MODES: dict[str, Callable[[Any, Variables], Step]] = {
    "tensorflow": {"eager": _eager, "graph": _graph, "xla": _xla},
    "jax": {"eager": _eager, "jit": _jit},
    "torch": {"eager": _eager},
}[BACKEND]
COMPILED = {"tensorflow": "graph", "jax": "jit", "torch": "eager"}[BACKEND]
XLA = {"tensorflow": "xla", "jax": "jit", "torch": "eager"}[BACKEND]
in_eager_and_compiled = pytest.mark.parametrize("mode", sorted({"eager", COMPILED}))

# Arguments of `compile` that change how `fit` runs a step: on TensorFlow by XLA, unless it is told
# otherwise. (torch.compile takes minutes.)
FIT_MODES: dict[str, dict[str, Any]] = {
    "tensorflow": {
        "fit": {},
        "fit, eagerly": {"run_eagerly": True},
        "fit, no jit_compile": {"jit_compile": False},
    },
    "jax": {"fit": {}, "fit, eagerly": {"run_eagerly": True}},
    "torch": {"fit": {}},
}[BACKEND]
# For `compile` where XLA is not what a test is about: a graph is there in a third of the time. (JAX
# has nothing else to compile with.)
WITHOUT_XLA: dict[str, Any] = {"jit_compile": False} if ON_TENSORFLOW else {}
# The engines there are: the arguments that ask for them.
ENGINES: dict[str, dict[str, Any]] = {
    "unfused": {"fused": False},
    **({"fused": {"fused": True}} if BACKEND != "jax" else {}),
}


def tf_mode(mode: str) -> Callable[[Callable], Callable]:
    """Makes any function run in a mode of TensorFlow."""
    if mode == "eager":
        return lambda f: f
    return lambda f: tf.function(f, autograph=False, jit_compile=(mode == "xla"))


def gradients_of(loss: Callable[[], Any], variables: Variables) -> list[Any]:
    """The gradients of what `loss` returns, as the backend computes them."""
    if BACKEND == "tensorflow":
        with tf.GradientTape() as tape:
            value = loss()
        return tape.gradient(value, [v.value for v in variables])
    if BACKEND == "jax":
        import jax

        def of_values(values: list[Any]) -> Any:
            with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)):
                return loss()

        return jax.grad(of_values)([v.value for v in variables])
    for variable in variables:
        variable.value.grad = None
    loss().backward()
    return [v.value.grad for v in variables]
