"""What can be seen of an optimizer: ours, Keras's Adam, or any other, wrapped or not.

Of Keras's own optimizers nothing public gives the slots or the variables that they were built
with, or says whether a learning rate is a function: `_trainable_variables`, `_momentums`,
`momentums`, `_velocities`, `_velocity_hats` and `_learning_rate` are read here and nowhere else.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_yogi import checks
from keras_yogi.diagnostics import reading
from keras_yogi.optimizers.base import AdaptiveOptimizer
from keras_yogi.rules import AdamRule, AdaptiveRule


class Progress(NamedTuple):
    """How far an optimizer is: numbers, or scalar tensors of the backend."""

    step: Any
    learning_rate: Any


class Part(NamedTuple):
    """One optimizer, without what is wrapped around it, and the variables that it trains."""

    optimizer: keras.optimizers.Optimizer
    rule: AdaptiveRule | None
    """Whose formulas hold; None where only norms can be told."""
    variables: list[Any]
    slots: dict[str, list[Any]]
    """One slot per variable: "momentum" and "velocity" as far as they exist, then others."""

    def progress(self, learning_rate: Any = None) -> Progress:
        """Tensors, which a graph that is made of them reads afresh.

        Args:
            learning_rate: if `rate_is_a_function`: it would be called once and never again.
        """
        rate = self.optimizer.learning_rate if learning_rate is None else learning_rate
        # Copies, because the next step overwrites a variable, or gives its memory away.
        return Progress(*map(ops.copy, (self.optimizer.iterations, rate)))

    @property
    def rate_now(self) -> float:
        return float(reading.number(self.optimizer.learning_rate))

    @property
    def source_of_rate(self) -> Any:
        """The variable, schedule or function that the learning rate comes from."""
        return self.optimizer._learning_rate

    @property
    def rate_is_a_function(self) -> bool:
        """Whether the learning rate must be asked for in Python."""
        source = self.source_of_rate
        schedule = keras.optimizers.schedules.LearningRateSchedule
        return callable(source) and not isinstance(source, schedule)

    @property
    def skipped_steps(self) -> int:
        return int(getattr(self.optimizer, "skipped_steps", 0))

    @property
    def missing(self) -> str | None:
        """In words, what cannot be told of this optimizer."""
        if self.rule is not None:
            return None
        known = " and ".join(["its learning rate", "its weights", *self.slots])
        return (
            f"{type(self.optimizer).__name__} has no effective learning rate that could be told "
            f"from its slots: the figures are of {known} alone"
        )


def unwrapped(optimizer: Any) -> list[keras.optimizers.Optimizer]:
    """The optimizers inside of a keras.optimizers.LossScaleOptimizer or MultiOptimizer; of any
    other optimizer, itself.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return list(getattr(optimizer, "optimizers", [optimizer]))


def parts(optimizer: Any) -> list[Part]:
    """What can be seen of the optimizers inside of `optimizer` that are built."""
    return [_part(each) for each in unwrapped(optimizer) if each.built]


def _part(optimizer: Any) -> Part:
    rule: AdaptiveRule | None
    if isinstance(optimizer, AdaptiveOptimizer):
        rule, variables, slots = optimizer.rule, optimizer.trained_variables, optimizer.slots()
    else:
        rule, (variables, slots) = _rule_of(optimizer), _keras_state(optimizer)
    # Keras keeps no slot for variables that it overwrites with their gradient.
    kept = [
        i for i in range(len(variables)) if all(of_all[i] is not None for of_all in slots.values())
    ]
    return Part(
        optimizer,
        rule,
        [variables[i] for i in kept],
        {name: [of_all[i] for i in kept] for name, of_all in slots.items()},
    )


def _rule_of(optimizer: Any) -> AdaptiveRule | None:
    """Keras's Adam and AdamW divide by √v + ε and correct afterwards."""
    if not isinstance(optimizer, keras.optimizers.Adam):
        return None
    names = ("beta_1", "beta_2", "epsilon", "amsgrad")
    hyperparameters = {name: getattr(optimizer, name) for name in names}
    return AdamRule(**hyperparameters, epsilon_hat=True)


_KERAS_SLOTS = {
    "momentum": ("_momentums", "momentums"),
    "velocity": ("_velocities",),
    "velocity_hat": ("_velocity_hats",),
}


def _keras_state(optimizer: Any) -> tuple[list[Any], dict[str, list[Any]]]:
    variables = list(optimizer._trainable_variables)
    shapes = [tuple(v.shape) for v in variables]
    slots = {}
    for slot, attributes in _KERAS_SLOTS.items():
        for attribute in attributes:
            of_all = getattr(optimizer, attribute, None)
            if (
                isinstance(of_all, list)
                and [tuple(getattr(s, "shape", ())) for s in of_all] == shapes
            ):
                slots[slot] = of_all
    return variables, slots


def names(variables: list[Any]) -> list[str]:
    """The variables' paths, fit for tags: different, and the same for a model made once more.

    A model that was not given a name may be "sequential" now and "sequential_1" later. It goes
    first in all paths, and is left out.
    """
    paths = [checks.path(v).replace(":", "_").split("/") for v in variables]
    if len({path[0] for path in paths}) == 1 and all(len(path) > 2 for path in paths):
        paths = [path[1:] for path in paths]
    seen: dict[str, int] = {}
    different = []
    for path in map("/".join, paths):
        seen[path] = seen.get(path, 0) + 1
        different.append(path if seen[path] == 1 else f"{path}_{seen[path] - 1}")
    return different
