"""The optimizers in float64 NumPy, written from the formulas, and what Keras does around them.

Nothing here is shared with the package: the powers are powers, the corrections are divisions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

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
    bias_correction: str = "both"  # "momentum": v̂ = v; "none": m̂ = m as well
    amsgrad: bool = False
    initial_accumulator_value: float = 0.0
    activation: str = "sign"
    l1_regularization_strength: float = 0.0
    l2_regularization_strength: float = 0.0
    step: int = 0
    slots: dict[str, Array] = field(init=False)

    def __post_init__(self) -> None:
        if self.bias_correction not in ("both", "momentum", "none"):
            raise ValueError(self.bias_correction)
        self.weights = np.array(self.weights, "float64")
        zeros = np.zeros_like(self.weights)
        self.slots = {"momentum": zeros, "velocity": zeros + self.initial_accumulator_value}
        if self.amsgrad:
            self.slots["velocity_hat"] = zeros

    def update(self, gradient: Array, square: Array | None = None) -> None:
        """One step.

        Args:
            gradient: g.
            square: what v receives as g². Defaults to just that.
        """
        g = np.array(gradient, "float64")
        square = g**2 if square is None else square
        m, v = self.slots["momentum"], self.slots["velocity"]
        self.step += 1
        m = self.beta_1 * m + (1 - self.beta_1) * g
        if self.rule == "adam":
            v = self.beta_2 * v + (1 - self.beta_2) * square
        elif self.activation == "sign":
            v = v + (1 - self.beta_2) * np.sign(square - v) * square
        else:
            v = v + (1 - self.beta_2) * np.tanh(10 * (square - v)) * square
        self.slots.update(momentum=m, velocity=v)
        if self.amsgrad:
            self.slots["velocity_hat"] = np.maximum(self.slots["velocity_hat"], v)
        self.weights = self.descended()

    def corrections(self) -> tuple[float, float]:
        """What m and v of the current step are divided by."""
        correction_1, correction_2 = 1 - self.beta_1**self.step, 1 - self.beta_2**self.step
        return (
            1.0 if self.bias_correction == "none" else correction_1,
            correction_2 if self.bias_correction == "both" else 1.0,
        )

    def learning_rate_per_weight(self) -> Array:
        """What each weight's momentum is multiplied with."""
        v = self.slots["velocity_hat"] if self.amsgrad else self.slots["velocity"]
        correction_1, correction_2 = self.corrections()
        if self.epsilon_hat:
            rate = self.learning_rate * np.sqrt(correction_2) / correction_1
            return rate / (np.sqrt(v) + self.epsilon)
        return self.learning_rate / correction_1 / (np.sqrt(v / correction_2) + self.epsilon)

    def descended(self) -> Array:
        """The weights after a step along the slots as they stand."""
        rate = self.learning_rate_per_weight()
        w = self.weights - rate * self.slots["momentum"]
        threshold = self.l1_regularization_strength * rate
        w = np.where(np.abs(w) > threshold, w - np.sign(w) * threshold, 0.0)
        return w / (1 + self.l2_regularization_strength * rate)

    def state(self) -> dict[str, Array]:
        return {"weights": self.weights, **self.slots}


@dataclass
class KerasReference:
    """What `apply` does with several variables: Keras's part, in Keras's order, around the update
    of each `Reference`. The arguments are Keras's; `undecayed` and `constraints` go by position.
    """

    of_each: Sequence[Reference]
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
        self.averages = [np.zeros_like(r.weights) for r in self.of_each]
        self.sums = [np.zeros_like(r.weights) for r in self.of_each]

    def apply(self, gradients: Sequence[Array | None], learning_rate: float | None = None) -> None:
        """One call; with a learning rate, from now on at that."""
        for reference in self.of_each if learning_rate is not None else ():
            reference.learning_rate = learning_rate
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
                kept = 1 - reference.learning_rate * self.weight_decay
                reference.weights = reference.weights * kept
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
        """As `training.trajectory` reports a step."""
        return [r.state() for r in self.of_each]


def reference_trajectory(
    reference: KerasReference, gradients: Sequence[Sequence[Array | None]]
) -> list[list[dict[str, Array]]]:
    """Weights and slots before the first step and after each, as `training.trajectory`."""
    states = [reference.state()]
    for row in gradients:
        reference.apply(row)
        states.append(reference.state())
    return states
