"""Variables, gradients that are hard to follow, and optimizers that follow them."""

from collections.abc import Sequence
from typing import Any

import keras
import ml_dtypes
import numpy as np

from support.backend import COMPILED, MODES, array, tensor
from support.reference import Array

SHAPES = [(4, 3), (5,), ()]


def initial_weights() -> list[Array]:
    random = np.random.default_rng(1)
    return [random.normal(size=shape) for shape in SHAPES]


def hard_gradients(steps: int = 15) -> list[list[Array]]:
    """Heavy tails (Student's t with 2 degrees of freedom), scales from 1e-3 to 1e2, 30 % exact
    zeros, one whole step of zeros: what puts v on both sides of g² and tells rules apart.
    """
    random = np.random.default_rng(2)
    scales = [10.0 ** random.uniform(-3, 2, size=shape) for shape in SHAPES]
    rows = []
    for step in range(steps):
        row = [
            scale * random.standard_t(2, size=scale.shape) * (random.random(scale.shape) > 0.3)
            for scale in scales
        ]
        rows.append([np.zeros_like(g) if step == 6 else g.astype("float32") for g in row])
    return rows


def held(values: Any, dtype: str) -> Array:
    """As float64, what a variable of this dtype holds of the values."""
    of_numpy = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return np.array(values).astype(of_numpy).astype("float64")


def variables_of(weights: Sequence[Array], dtype: str = "float32") -> list[keras.Variable]:
    return [keras.Variable(np.array(w), dtype=dtype, name=f"w{i}") for i, w in enumerate(weights)]


def ones_of(*shapes: tuple[int, ...], dtype: str = "float32") -> list[keras.Variable]:
    return variables_of([np.ones(shape) for shape in shapes], dtype)


def take_steps(
    optimizer: Any,
    variables: Sequence[keras.Variable],
    rows: Sequence[Sequence[Array | None]],
    mode: str = COMPILED,
) -> None:
    """Applies one row of gradients after another."""
    if not optimizer.built:
        optimizer.build(variables)
    step = MODES[mode](optimizer, variables)
    for row in rows:
        pairs = zip(row, variables, strict=True)
        step([g if g is None else tensor(g, v.dtype) for g, v in pairs])


def whole_weights(optimizer: Any, variable: keras.Variable) -> Array:
    """A variable's value; of one in half precision, with the residual that is kept of it."""
    if keras.backend.standardize_dtype(variable.dtype) not in ("float16", "bfloat16"):
        return array(variable.value)
    value = array(keras.ops.cast(variable, "float32"))
    if "residual" not in getattr(optimizer, "slots", dict)():
        return value
    return value + array(optimizer.get_slot(variable, "residual"))


def state_of(optimizer: Any, variables: Sequence[keras.Variable]) -> list[dict[str, Array]]:
    """Weights and slots of each variable."""
    names = [name for name in optimizer.slots() if name != "residual"]
    return [
        {
            "weights": whole_weights(optimizer, v),
            **{name: array(optimizer.get_slot(v, name)) for name in names},
        }
        for v in variables
    ]


def stateless(optimizer: Any, count: int = 5) -> tuple[Any, tuple[list, list, list]]:
    """A built optimizer's `stateless_apply`, and what it takes."""
    variables = [keras.Variable(np.full(3, i + 1.0), dtype="float32") for i in range(count)]
    optimizer.build(variables)
    values = [v.value for v in variables]
    return optimizer.stateless_apply, ([v.value for v in optimizer.variables], values, values)


def trajectory(
    optimizer: keras.optimizers.Optimizer,
    weights: Sequence[Array],
    gradients: Sequence[Sequence[Array]],
    mode: str = "eager",
    dtype: str = "float32",
) -> list[list[dict[str, Array]]]:
    """Weights and slots of each variable, before the first step and after each."""
    variables = variables_of(weights, dtype)
    optimizer.build(variables)
    step = MODES[mode](optimizer, variables)
    states = [state_of(optimizer, variables)]
    for row in gradients:
        step([tensor(g, dtype) for g in row])
        states.append(state_of(optimizer, variables))
    return states
