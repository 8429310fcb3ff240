"""The optimizers in float64 NumPy, written from the formulas, and how to compare with them.

Nothing here is shared with the package: the powers are powers, the corrections are divisions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import keras
import numpy as np
import tensorflow as tf

Array = np.ndarray


@dataclass
class Reference:
    """One variable's weights and slots, moved by the published update."""

    weights: Array
    rule: str  # "adam" or "yogi"
    learning_rate: float
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6
    epsilon_hat: bool = False
    amsgrad: bool = False
    initial_accumulator_value: float = 0.0
    activation: str = "sign"
    l1_regularization_strength: float = 0.0
    l2_regularization_strength: float = 0.0
    step: int = 0
    slots: dict[str, Array] = field(init=False)

    def __post_init__(self) -> None:
        self.weights = np.array(self.weights, "float64")
        zeros = np.zeros_like(self.weights)
        self.slots = {"momentum": zeros, "velocity": zeros + self.initial_accumulator_value}
        if self.amsgrad:
            self.slots["velocity_hat"] = zeros

    def update(self, gradient: Array) -> None:
        g = np.array(gradient, "float64")
        m, v = self.slots["momentum"], self.slots["velocity"]
        self.step += 1
        m = self.beta_1 * m + (1 - self.beta_1) * g
        if self.rule == "adam":
            v = self.beta_2 * v + (1 - self.beta_2) * g**2
        elif self.activation == "sign":
            v = v + (1 - self.beta_2) * np.sign(g**2 - v) * g**2
        else:
            v = v + (1 - self.beta_2) * np.tanh(10 * (g**2 - v)) * g**2
        self.slots.update(momentum=m, velocity=v)
        if self.amsgrad:
            v = self.slots["velocity_hat"] = np.maximum(self.slots["velocity_hat"], v)

        correction_1, correction_2 = 1 - self.beta_1**self.step, 1 - self.beta_2**self.step
        if self.epsilon_hat:
            rate = self.learning_rate * np.sqrt(correction_2) / correction_1
            rate = rate / (np.sqrt(v) + self.epsilon)
        else:
            rate = self.learning_rate / correction_1
            rate = rate / (np.sqrt(v / correction_2) + self.epsilon)
        w = self.weights - rate * m
        threshold = self.l1_regularization_strength * rate
        w = np.where(np.abs(w) > threshold, w - np.sign(w) * threshold, 0.0)
        self.weights = w / (1 + self.l2_regularization_strength * rate)


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


def eager(step: Callable) -> Callable:
    return step


def graph(step: Callable) -> Callable:
    return tf.function(step, autograph=False)


def xla(step: Callable) -> Callable:
    return tf.function(step, autograph=False, jit_compile=True)


MODES = {"eager": eager, "graph": graph, "xla": xla}

# Of each coordinate's largest value over the run. float64: a dozen roundings of 1.1e-16 a step
# over 15 steps. float32 likewise, of 6e-8.
TOLERANCE = {"float64": 1e-13, "float32": 4e-6}


def trajectory(
    optimizer: keras.optimizers.Optimizer,
    weights: Sequence[Array],
    gradients: Sequence[Sequence[Array]],
    mode: str = "eager",
    dtype: str = "float32",
) -> list[list[dict[str, Array]]]:
    """For step 0, 1, …: for each variable: its weights and slots, as the optimizer leaves them."""
    variables = [keras.Variable(w, dtype=dtype) for w in weights]
    optimizer.build(variables)
    step = MODES[mode](lambda *row: optimizer.apply(list(row), variables))

    def state() -> list[dict[str, Array]]:
        return [
            {
                "weights": v.numpy(),
                **{
                    n: keras.ops.convert_to_numpy(optimizer.get_slot(v, n))
                    for n in optimizer.slots()
                },
            }
            for v in variables
        ]

    states = [state()]
    for row in gradients:
        step(*[tf.constant(g, dtype) for g in row])
        states.append(state())
    return states


def reference_trajectory(
    weights: Sequence[Array], gradients: Sequence[Sequence[Array]], **hyperparameters
) -> list[list[dict[str, Array]]]:
    """The same, from the formulas."""
    references = [Reference(w, **hyperparameters) for w in weights]

    def state() -> list[dict[str, Array]]:
        return [{"weights": r.weights, **r.slots} for r in references]

    states = [state()]
    for row in gradients:
        for reference, g in zip(references, row, strict=True):
            reference.update(g)
        states.append(state())
    return states


def assert_same_trajectory(actual: list, expected: list, tolerance: float) -> None:
    """Weights and slots, at every step, to `tolerance` of each coordinate's largest value."""
    assert len(actual) == len(expected)
    for variable in range(len(expected[0])):
        for name in expected[0][variable]:
            want = np.stack([state[variable][name] for state in expected])
            got = np.stack([state[variable][name] for state in actual]).astype("float64")
            largest = np.abs(want).max(axis=0)
            error = np.abs(got - want) / np.where(largest > 0, largest, 1)
            step = int(np.argmax(error.reshape(len(error), -1).max(axis=1)))
            assert np.all(error <= tolerance), (
                f"{name} of variable {variable} is off by {error.max():.2e} of its largest value, "
                f"worst at step {step}; allowed: {tolerance:.0e}"
            )
