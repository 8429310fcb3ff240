"""The update rules: frozen dataclasses whose methods are pure functions of tensors.

A rule knows no variable, no optimizer and no device. It says which slots a weight needs and how a
gradient changes the weight and its slots. In the formulas g is the gradient, m the momentum, v the
velocity, w the weight and t = 1, 2, … the step. Every method works element by element, on tensors
of one shape and dtype.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from keras import ops

from keras_yogi import checks

BiasCorrection = Literal["both", "momentum", "none"]
Activation = Literal["sign", "tanh"]
Tensor = Any
Slots = tuple[Tensor, ...]


class StepScalars(NamedTuple):
    """Scalars of one step, the same for every weight, in the dtype of the computation.

    Attributes:
        learning_rate: η.
        step: t = 1, 2, …
        correction_1: 1 − β₁ᵗ, or 1 where the momentum is not corrected.
        correction_2: 1 − β₂ᵗ, or 1 where the velocity is not corrected.
    """

    learning_rate: Tensor
    step: Tensor
    correction_1: Tensor
    correction_2: Tensor


@dataclass(frozen=True)
class AdaptiveRule:
    """Divides a momentum by the root of a velocity: the part that Adam and Yogi share.

        m ← β₁ m + (1 − β₁) g
        v ← second_moments(g, m, v)
        w ← w − η m̂ / (√v̂ + ε)          m̂ = m / (1 − β₁ᵗ)    v̂ = v / (1 − β₂ᵗ)

    A subclass defines `second_moments`, or overrides `update`. Rules compare and hash by their
    fields, so that compiled updates can be cached by rule.

    Attributes:
        beta_1: β₁ in [0, 1), the decay rate of the momentum.
        beta_2: β₂ in [0, 1), the decay rate of the velocity.
        epsilon: ε ≥ 0, in units of the gradient.
        epsilon_hat: add ε to √v before the bias correction (Kingma & Ba, end of section 2).
        bias_correction: which moments are corrected for their start: "both", "momentum" (v̂ = v)
            or "none" (m̂ = m as well).
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6
    epsilon_hat: bool = False
    bias_correction: BiasCorrection = "both"

    def __post_init__(self) -> None:
        corrections = ("both", "momentum", "none")
        self._check(
            beta_1=checks.fraction,
            beta_2=checks.fraction,
            epsilon=checks.non_negative,
            epsilon_hat=checks.boolean,
            bias_correction=lambda name, value: checks.one_of(name, value, corrections),
        )

    def _check(self, **rules: Callable[[str, Any], Any]) -> None:
        """Checks fields and stores the checked values: a float for any real number."""
        for name, check in rules.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))

    @property
    def initial_values(self) -> Mapping[str, float]:
        """The initial value of each slot, by name; "momentum" and "velocity" come first."""
        return {"momentum": 0.0, "velocity": 0.0}

    @property
    def reads_weights(self) -> bool:
        """Whether the change of a weight depends on the weight.

        If False, `update` may be given zeros as weights and returns their change. Small variables
        are then updated faster.
        """
        return True

    def scalars(self, learning_rate: Tensor, step: Tensor, dtype: str) -> StepScalars:
        """The scalars of one step.

        Args:
            learning_rate: η, a number or a scalar tensor.
            step: t = 1, 2, …, an integer or a scalar tensor.
            dtype: the dtype of the computation: "float32" or "float64".
        """
        if isinstance(learning_rate, float):  # ops.cast would go through float32 and lose digits
            learning_rate = ops.convert_to_tensor(learning_rate, dtype)
        step = ops.cast(step, dtype)
        one = ops.ones((), dtype)
        correct_momentum = self.bias_correction != "none"
        correct_velocity = self.bias_correction == "both"
        return StepScalars(
            ops.cast(learning_rate, dtype),
            step,
            moving_average_weight(self.beta_1, step) if correct_momentum else one,
            moving_average_weight(self.beta_2, step) if correct_velocity else one,
        )

    def update(
        self, gradient: Tensor, weights: Tensor, slots: Slots, scalars: StepScalars
    ) -> tuple[Tensor, Slots]:
        """Computes new weights and new slots.

        Args:
            gradient: g.
            weights: w; zeros if `reads_weights` is False.
            slots: the slots' values, in the order of `initial_values`.
            scalars: the scalars of this step.
        """
        momentum = moving_average(slots[0], gradient, self.beta_1)
        slots = (momentum, *self.second_moments(gradient, momentum, *slots[1:]))
        return self.descend(weights, slots, scalars), slots

    def second_moments(
        self, gradient: Tensor, momentum: Tensor, velocity: Tensor, *others: Tensor
    ) -> Slots:
        """New values of all slots but the momentum. `descend` takes the root of the last.

        Args:
            gradient: g.
            momentum: m after this step.
            velocity: v before this step.
            *others: further slots before this step.
        """
        raise NotImplementedError

    def descend(self, weights: Tensor, slots: Slots, scalars: StepScalars) -> Tensor:
        """The weights after a step, given the new slots.

        Args:
            weights: w; zeros if `reads_weights` is False.
            slots: the new slots.
            scalars: the scalars of this step.
        """
        return weights - self.learning_rate_per_weight(slots, scalars) * slots[0]

    def learning_rate_per_weight(self, slots: Slots, scalars: StepScalars) -> Tensor:
        """The factor of each weight's momentum: η / (1 − β₁ᵗ) / (√v̂ + ε)."""
        root, scale = ops.sqrt(slots[-1]), ops.sqrt(scalars.correction_2)
        if self.epsilon_hat:
            denominator = (root + self.epsilon) / scale
        else:
            denominator = root / scale + self.epsilon
        return scalars.learning_rate / scalars.correction_1 / denominator


@dataclass(frozen=True)
class AdamRule(AdaptiveRule):
    """Adam: v ← β₂ v + (1 − β₂) g² (Kingma & Ba, ICLR 2015, Algorithm 1).

    Attributes:
        amsgrad: divide by the largest velocity so far, kept in the slot "velocity_hat".
    """

    amsgrad: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(amsgrad=checks.boolean)

    @property
    def initial_values(self) -> Mapping[str, float]:
        further = {"velocity_hat": 0.0} if self.amsgrad else {}
        return {"momentum": 0.0, "velocity": 0.0, **further}

    @property
    def reads_weights(self) -> bool:
        return False

    def second_moments(
        self, gradient: Tensor, momentum: Tensor, velocity: Tensor, *others: Tensor
    ) -> Slots:
        velocity = moving_average(velocity, ops.square(gradient), self.beta_2)
        # On PyTorch, ops.maximum would turn float64 into float32.
        return (velocity, *(ops.where(old >= velocity, old, velocity) for old in others))


@dataclass(frozen=True)
class YogiRule(AdaptiveRule):
    """Yogi: v ← v + (1 − β₂) sign(g² − v) g² (Zaheer et al., NeurIPS 2018, Algorithm 2).

    Attributes:
        initial_accumulator_value: v₀ ≥ 0, in units of the squared gradient.
        activation: "sign", or "tanh": tanh(10 (g² − v)) instead of sign(g² − v).
        l1_regularization_strength: ≥ 0, of the proximal step.
        l2_regularization_strength: ≥ 0, of the proximal step.
    """

    initial_accumulator_value: float = 1e-6
    activation: Activation = "sign"
    l1_regularization_strength: float = 0.0
    l2_regularization_strength: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(
            initial_accumulator_value=checks.non_negative,
            activation=lambda name, value: checks.one_of(name, value, ("sign", "tanh")),
            l1_regularization_strength=checks.non_negative,
            l2_regularization_strength=checks.non_negative,
        )

    @property
    def initial_values(self) -> Mapping[str, float]:
        return {"momentum": 0.0, "velocity": self.initial_accumulator_value}

    @property
    def reads_weights(self) -> bool:
        """The proximal step reads them."""
        return bool(self.l1_regularization_strength or self.l2_regularization_strength)

    def second_moments(
        self, gradient: Tensor, momentum: Tensor, velocity: Tensor, *others: Tensor
    ) -> Slots:
        square = ops.square(gradient)
        gap = square - velocity
        direction = ops.sign(gap) if self.activation == "sign" else tanh(gap * 10.0)
        return (velocity + direction * square * (1.0 - self.beta_2),)

    def descend(self, weights: Tensor, slots: Slots, scalars: StepScalars) -> Tensor:
        rate = self.learning_rate_per_weight(slots, scalars)
        weights = weights - rate * slots[0]
        if not self.reads_weights:
            return weights
        l1, l2 = self.l1_regularization_strength, self.l2_regularization_strength
        return proximal(weights, rate, l1, l2)


@dataclass(frozen=True)
class DecayRule:
    """Weight decay as a separate rule, applied before another: w ← w − η λ w.

    Attributes:
        rule: the other rule, whose slots stay unchanged.
        weight_decay: λ ≥ 0.
    """

    rule: AdaptiveRule
    weight_decay: float

    @property
    def initial_values(self) -> Mapping[str, float]:
        return self.rule.initial_values

    @property
    def reads_weights(self) -> bool:
        return True

    def update(
        self, gradient: Tensor, weights: Tensor, slots: Slots, scalars: StepScalars
    ) -> tuple[Tensor, Slots]:
        """New weights and unchanged slots."""
        return weights - weights * self.weight_decay * scalars.learning_rate, slots


Rule = AdaptiveRule | DecayRule
"""What engines take: a hashable value, by which compiled updates are cached."""


def defined_figures(rule: type[AdaptiveRule]) -> frozenset[str]:
    """The statistics that a class of rules supports: "update", computed by `descend`, and
    "effective_lr", computed by `learning_rate_per_weight`. A subclass that overrides `update` or
    `descend` need not call these methods; then they count only if it overrides them, too.
    """

    def place(method: str) -> int:
        return next(i for i, cls in enumerate(rule.__mro__) if method in vars(cls))

    update, descend, rate = map(place, ("update", "descend", "learning_rate_per_weight"))
    if descend > update:
        return frozenset()
    # Yogi's `descend` takes the step of this rate, and then the proximal step.
    has_rate = rate <= update and (rate <= descend or rule.descend is YogiRule.descend)
    return frozenset({"update", "effective_lr"} if has_rate else {"update"})


@lru_cache
def forgets(rule: AdaptiveRule) -> bool:
    """Whether a step without a gradient shrinks the second moment; found by a trial step."""
    one, zero = ops.ones((), "float32"), ops.zeros((), "float32")
    slots = (one,) * len(rule.initial_values)
    _, (*_, rested) = rule.update(zero, zero, slots, rule.scalars(0.0, 1000, "float32"))
    return bool(rested < one)


def moving_average(average: Tensor, value: Tensor, beta: float) -> Tensor:
    """`β average + (1 − β) value`, written as a correction so that β is rounded once."""
    if beta == 0.0:  # average + (value − average) would be rounded
        return value
    return average + (value - average) * (1.0 - beta)


def moving_average_weight(beta: float, step: Tensor) -> Tensor:
    """1 − βᵗ: the total weight in a moving average from zero after t = `step` steps.

    Computed as −expm1(t ln β): in float32, 1 − 0.999 has a relative error of 1.3e-5.
    """
    if beta == 0.0:  # ln 0 is undefined; 1 − 0ᵗ is 1
        return ops.ones_like(step)
    return -ops.expm1(step * math.log(beta))


def proximal(w: Tensor, rate: Tensor, l1: float, l2: float) -> Tensor:
    """argmin over x of ‖x − w‖² / (2 rate) + l1 |x| + l2 x² / 2, for each weight separately."""
    shrunk = ops.sign(w) * ops.relu(ops.abs(w) - rate * l1)
    return shrunk / (rate * l2 + 1.0)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent in the dtype of x. On JAX, keras.ops.tanh makes float32 of float64."""
    minus_twice = ops.expm1(ops.abs(x) * -2.0)
    return ops.sign(x) * -minus_twice / (minus_twice + 2.0)
