"""What the contract tests share: the optimizers they run over, and, in float64, everything that
Keras does around an update.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import MODES, Array, Reference

import keras_yogi

LEARNING_RATE = 0.0625  # exact in float32, which is what Keras keeps a learning rate in


@dataclass(frozen=True)
class Case:
    """An optimizer, and the reference that it has to agree with."""

    optimizer_class: type
    hyperparameters: dict[str, Any]  # the constructor's and the reference's
    variant: dict[str, Any]  # the constructor's alone: they change how, not what, is computed

    def optimizer(
        self, learning_rate: Any = LEARNING_RATE, **keras_arguments: Any
    ) -> keras.optimizers.Optimizer:
        return self.optimizer_class(
            learning_rate, **self.hyperparameters, **self.variant, **keras_arguments
        )

    def reference(self, weights: Array, learning_rate: float = LEARNING_RATE) -> Reference:
        rule = self.optimizer_class.__name__.lower()
        return Reference(weights, rule, learning_rate, **self.hyperparameters)


# β₂ = 0.9 remembers and forgets within the dozen steps of a test.
ADAM = dict(beta_2=0.9, epsilon=1e-3)
YOGI = dict(beta_2=0.9, epsilon=1e-3, initial_accumulator_value=1e-6)
RULES: dict[str, tuple[type, dict[str, Any]]] = {
    "adam": (keras_yogi.Adam, ADAM),
    "yogi": (keras_yogi.Yogi, YOGI),
    "amsgrad": (keras_yogi.Adam, {**ADAM, "amsgrad": True}),
    "proximal yogi": (
        keras_yogi.Yogi,
        {**YOGI, "l1_regularization_strength": 0.5, "l2_regularization_strength": 0.25},
    ),
}
VARIANTS: dict[str, dict[str, Any]] = {"": {"fused": False}, ", fused": {"fused": True}}

CASES = {
    f"{rule}{variant}": Case(optimizer_class, hyperparameters, arguments)
    for rule, (optimizer_class, hyperparameters) in RULES.items()
    for variant, arguments in VARIANTS.items()
}
# Where the test is about the plumbing, one rule of each class is enough, one of them fused,
PLAIN_CASES = {name: CASES[name] for name in ("adam", "yogi, fused")}
# and where a model has to be compiled for it, one variant: what a user gets without asking.
DEFAULT_CASES = {rule: Case(*RULES[rule], {}) for rule in ("adam", "yogi")}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
plain_case = pytest.mark.parametrize("case", PLAIN_CASES.values(), ids=PLAIN_CASES)
default_case = pytest.mark.parametrize("case", DEFAULT_CASES.values(), ids=DEFAULT_CASES)
in_eager_and_graph = pytest.mark.parametrize("mode", ["eager", "graph"])


@dataclass
class KerasReference:
    """What `apply` does with several variables: Keras's part, in Keras's order, around the update
    of `Reference`. The arguments are Keras's; `undecayed` and `constraints` go by position.
    """

    case: Case
    weights: Sequence[Array]
    learning_rate: float = LEARNING_RATE
    weight_decay: float = 0.0
    undecayed: Sequence[int] = ()
    constraints: dict[int, Callable[[Array], Array]] = field(default_factory=dict)
    clipnorm: float | None = None
    clipvalue: float | None = None
    global_clipnorm: float | None = None
    use_ema: bool = False
    ema_momentum: float = 0.99
    ema_overwrite_frequency: int | None = None
    loss_scale_factor: float = 1.0
    gradient_accumulation_steps: int = 1
    calls: int = 0

    def __post_init__(self) -> None:
        self.of_each = [self.case.reference(w) for w in self.weights]
        self.averages = [np.zeros_like(r.weights) for r in self.of_each]
        self.sums = [np.zeros_like(r.weights) for r in self.of_each]

    def apply(self, gradients: Sequence[Array | None]) -> None:
        present = {i: np.array(g, "float64") for i, g in enumerate(gradients) if g is not None}
        for i, g in present.items():
            self.sums[i] = self.sums[i] + g / self.loss_scale_factor
        step = self.calls // self.gradient_accumulation_steps
        self.calls += 1
        if self.calls % self.gradient_accumulation_steps == 0:
            means = {i: self.sums[i] / self.gradient_accumulation_steps for i in present}
            self._update(step, self._clipped(means))
            self.sums = [np.zeros_like(r.weights) for r in self.of_each]
        if self.use_ema:
            self._average(step)
        for i, constraint in self.constraints.items():
            if i in present:
                self.of_each[i].weights = constraint(self.of_each[i].weights)

    def _update(self, step: int, gradients: dict[int, Array]) -> None:
        for i, g in gradients.items():
            reference = self.of_each[i]
            if i not in self.undecayed:
                kept = 1 - self.learning_rate * self.weight_decay
                reference.weights = reference.weights * kept
            reference.learning_rate = self.learning_rate
            reference.step = step  # t is the optimizer's: it advances without a gradient too
            reference.update(g)

    def _clipped(self, gradients: dict[int, Array]) -> dict[int, Array]:
        def shortened(g: Array, norm: float, longest: float) -> Array:
            return g * longest / norm if norm > longest else g

        if self.clipvalue:
            limit = self.clipvalue
            return {i: np.minimum(np.maximum(g, -limit), limit) for i, g in gradients.items()}
        norms = {i: np.sqrt(np.sum(g**2)) for i, g in gradients.items()}
        if self.clipnorm:
            return {i: shortened(g, norms[i], self.clipnorm) for i, g in gradients.items()}
        if self.global_clipnorm:
            norm = np.sqrt(sum(n**2 for n in norms.values()))
            return {i: shortened(g, norm, self.global_clipnorm) for i, g in gradients.items()}
        return gradients

    def _average(self, step: int) -> None:
        memory = self.ema_momentum if step else 0.0
        overwrite = self.ema_overwrite_frequency and (step + 1) % self.ema_overwrite_frequency == 0
        for i, reference in enumerate(self.of_each):
            self.averages[i] = memory * self.averages[i] + (1 - memory) * reference.weights
            if overwrite:
                reference.weights = self.averages[i]

    def state(self) -> list[dict[str, Array]]:
        """As `reference.trajectory` reports a step."""
        return [{"weights": r.weights, **r.slots} for r in self.of_each]


def snapshot(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> list[Array]:
    """Copies of the weights and of everything that the optimizer keeps."""
    return [np.array(v.numpy()) for v in [*variables, *optimizer.variables]]


def assert_unchanged(before: Sequence[Array], after: Sequence[Array]) -> None:
    """Bitwise, NaN included."""
    for old, new in zip(before, after, strict=True):
        assert old.dtype == new.dtype
        assert old.shape == new.shape
        assert old.tobytes() == new.tobytes()


def variables_of(weights, dtype="float32"):
    return [keras.Variable(w, dtype=dtype, name=f"w{i}") for i, w in enumerate(weights)]


def train(optimizer, variables, rows, mode="graph"):
    if not optimizer.built:
        optimizer.build(variables)
    step = MODES[mode](lambda *row: optimizer.apply(list(row), variables))
    for row in rows:
        step(
            *[
                g if g is None else tf.constant(g, v.dtype)
                for g, v in zip(row, variables, strict=True)
            ]
        )


def assert_close(actual, expected, tolerance, label=""):
    """To `tolerance` of the array's largest value."""
    scale = np.max(np.abs(expected), initial=0.0) or 1.0
    np.testing.assert_allclose(
        np.asarray(actual, "float64"), expected, rtol=0, atol=tolerance * scale, err_msg=label
    )


def assert_agrees(optimizer, variables, reference, tolerance):
    for variable, state in zip(variables, reference.state(), strict=True):
        assert_close(variable.numpy(), state.pop("weights"), tolerance, variable.name)
        for name, slot in state.items():
            assert_close(optimizer.get_slot(variable, name), slot, tolerance, name)


def regression():
    """Eight batches of eight; a model whose gradients are not tiny anywhere."""
    random = np.random.default_rng(11)
    x = random.normal(size=(64, 3)).astype("float32")
    return x, (x @ [[1.0], [-2.0], [0.5]] + 3.0).astype("float32")


def regression_model(optimizer, **arguments):
    keras.utils.set_random_seed(12)
    layers = [keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(optimizer, loss="mse", **arguments)
    return model
