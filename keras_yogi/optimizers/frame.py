"""The frame that Adam's and Yogi's rules share: momentum, bias correction, ε."""

from keras_yogi.optimizers import rules
from keras_yogi.optimizers.rules import StepScalars, Tensor

Slots = tuple[Tensor, ...]


class AdaptiveRule:
    """Divides a momentum by the root of a velocity. A subclass gives `second_moments`."""

    beta_1: float
    epsilon: float
    epsilon_hat: bool

    def new_values(
        self, gradient: Tensor, weights: Tensor, slots: Slots, scalars: StepScalars
    ) -> tuple[Tensor, Slots]:
        """The rule: new weights and new slots. A pure function of tensors of one dtype.

        Args:
            gradient: g.
            weights: w, of the gradient's shape.
            slots: the values of `slots()`, in that order, of the same shape.
            scalars: the step's learning rate and bias corrections.
        """
        momentum = rules.moving_average(slots[0], gradient, self.beta_1)
        second = self.second_moments(gradient, momentum, *slots[1:])
        rate = rules.learning_rate_per_weight(second[-1], scalars, self.epsilon, self.epsilon_hat)
        return self.descend(weights, momentum, rate), (momentum, *second)

    def second_moments(
        self, gradient: Tensor, momentum: Tensor, velocity: Tensor, *others: Tensor
    ) -> Slots:
        """New values of the slots after the momentum; the root is taken of the last.

        Args:
            gradient: g.
            momentum: m, which already takes g in.
            velocity: v, of the step before.
            *others: the slots after the velocity, likewise.
        """
        raise NotImplementedError

    @property
    def step_depends_on_weights(self) -> bool:
        """Whether what is added to the weights depends on them: where it does not, `new_values`
        may be given zeros for them, and returns the step.
        """
        return False

    def descend(self, weights: Tensor, momentum: Tensor, rate: Tensor) -> Tensor:
        """New weights.

        Args:
            weights: w, or zeros where `step_depends_on_weights` is False.
            momentum: m, which already takes the gradient in.
            rate: what each weight's momentum is to be multiplied with.
        """
        return weights - rate * momentum
