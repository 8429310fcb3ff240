"""Storage: an optimizer's slots, and how they get into files and out again."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_yogi.engine import choice
from keras_yogi.engine.state import HiddenScalar
from keras_yogi.optimizers import arguments, calls
from keras_yogi.optimizers.checked import CheckedOptimizer
from keras_yogi.optimizers.rules import Tensor


class SlotOptimizer(CheckedOptimizer):
    """Keeps slots: for every model variable, one variable of its shape for each slot name.

    It knows no rule. Files hold them in the order of keras.optimizers.Adam, whatever packs them.
    """

    fused: bool | str
    skip_nonfinite: bool

    def __init__(self, **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        self._engine = None
        self._compiler = None
        # How much of β₂ᵗ is to be taken off 1 to correct v: all of it; none after `warm_start`.
        self._velocity_bias = HiddenScalar(1.0)

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Names of the slots, in the rule's order."""
        return ("momentum", "velocity")

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the slots, one of each name per variable.

        Args:
            variables: the model variables that the optimizer is to train.

        Raises:
            ValueError: `fused=True`, and the fused engine cannot serve these variables.
        """
        if self.built:
            return
        variables = calls.variable_list("variables", variables)
        obstacle = choice.obstacle(variables)
        if self.fused is True and obstacle:
            raise arguments.reject("fused", f'False or "auto" here: {obstacle}', True)
        if self.fused and not obstacle:
            self._engine = choice.fused_engine(self, variables)
        elif self.fused:
            self._compiler = choice.compiler(self)
        super().build(variables)
        # Keras's own order, so that files and checkpoints move to and from keras.optimizers.Adam.
        self._momentums, self._velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"], ["zeros", self.initial_velocity]
        )
        self._more_slots = [
            self.add_optimizer_variables(variables, name) for name in self.slot_names[2:]
        ]
        if self.skip_nonfinite:
            self._skipped_steps = self.add_variable(
                (), "zeros", "int32", "only_first_replica", name="skipped_steps"
            )

    def initial_velocity(self, shape: Sequence[int], dtype: str) -> Tensor:
        """What a velocity holds before the first step: a Keras initializer.

        Args:
            shape: the model variable's.
            dtype: the model variable's.
        """
        return ops.zeros(shape, dtype)

    def add_variable_from_reference(
        self,
        reference_variable: keras.Variable,
        name: str | None = None,
        initializer: Any = "zeros",
    ) -> Any:
        """Adds one variable like a model variable: Keras's own, or a part of the engine's."""
        slot = None
        if self._engine is not None and name in self.slot_names:
            index = self.index_of(reference_variable)
            initial = keras.initializers.get(initializer)
            slot = self._engine.packed_slot(index, name, initial)
        if slot is None:
            return super().add_variable_from_reference(reference_variable, name, initializer)
        self.track(slot)
        return slot

    @property
    def engine(self) -> str:
        """What carries out the steps: "fused", or "unfused": one variable after another.

        With `fused="auto"` unfused large variables are updated by the compiled rule.
        """
        return "fused" if self._engine is not None else "unfused"

    def slots(self) -> dict[str, list[keras.Variable]]:
        """The slots' names, and one variable each per model variable, in the rule's order."""
        of_all = [self._momentums, self._velocities, *self._more_slots]
        return dict(zip(self.slot_names, of_all, strict=True))

    def get_slot(self, variable: keras.Variable, name: str) -> Tensor:
        """The value of a slot for one model variable.

        Args:
            variable: a model variable that the optimizer was built with.
            name: "momentum", "velocity", or what else the optimizer keeps.

        Returns:
            A tensor of the variable's shape and dtype.

        Raises:
            ValueError: the optimizer is not built, does not know the variable, or has no such slot.
        """
        return ops.copy(self._slot(variable, name).value)

    def _slot(self, variable: keras.Variable, name: str) -> keras.Variable:
        if not self.built:
            raise ValueError(
                f"Slots need an optimizer that is built: call `{self.name}.build(variables)` "
                f"or train a step first. Received: name={name!r}"
            )
        arguments.one_of("name", name, self.slots())
        slot = self.slots()[name][self.index_of(variable)]
        if slot is None:
            raise arguments.reject(
                "variable", "one that has slots, without `overwrite_with_gradient`", variable
            )
        return slot

    @property
    def skipped_steps(self) -> int:
        """How many steps `skip_nonfinite` has left out; 0 without it."""
        return int(self._skipped_steps.numpy()) if self.built and self.skip_nonfinite else 0

    def set_slot(self, variable: keras.Variable, name: str, value: Tensor) -> None:
        """Overwrites a slot of one model variable; arguments and errors as in `get_slot`.

        Args:
            variable: a model variable that the optimizer was built with.
            name: "momentum", "velocity", or what else the optimizer keeps.
            value: of the variable's shape.
        """
        slot = self._slot(variable, name)
        calls.same_shapes([slot], [value])
        slot.assign(value)

    def start_from_unbiased_velocity(self) -> None:
        """From now on v̂ = v: the velocity holds what it should, and needs no correction."""
        self._velocity_bias.assign(0.0)

    def _indexed_variables(self) -> list[keras.Variable]:
        """What files keep by number: exactly what Keras's own Adam keeps, in its order."""
        own = [self._velocity_bias]
        if self.built and self.skip_nonfinite:
            own.append(self._skipped_steps)
        return [v for v in self.variables if not any(v is o for o in own)]

    def save_own_variables(self, store: Any) -> None:
        """Writes the state into `store`, as Keras asks when a model is saved.

        Args:
            store: maps names to arrays.
        """
        for index, variable in enumerate(self._indexed_variables()):
            store[str(index)] = variable.numpy()
        if self.skipped_steps:
            store["skipped_steps"] = np.array(self.skipped_steps)
        if float(self._velocity_bias.value) != 1.0:
            store["velocity_bias"] = np.array(float(self._velocity_bias.value))

    def load_own_variables(self, store: Any) -> None:
        """Takes the state from `store`, all of it or, with a warning or an error, nothing.

        Args:
            store: what `save_own_variables` of this class or of keras.optimizers.Adam has filled.

        Raises:
            ValueError: an array has another shape than the variable that it is for.
        """
        saved = {key: np.asarray(store[key]) for key in store.keys()}  # noqa: SIM118
        skipped_steps = int(saved.pop("skipped_steps", 0))
        velocity_bias = float(saved.pop("velocity_bias", 1.0))
        variables = self._indexed_variables()
        if len(saved) != len(variables):
            hint = "" if self.built else " It has not been built yet: build or train it first."
            warnings.warn(
                f"Nothing was loaded into optimizer '{self.name}', because it has "
                f"{len(variables)} variables, and the saved one has {len(saved)}.{hint}",
                stacklevel=2,
            )
            return
        names = [str(index) for index in range(len(variables))]
        if strange := [name for name in saved if name not in names]:
            raise ValueError(
                f"The state of '{self.name}' must be stored under the names {', '.join(names)}. "
                f"Received: {', '.join(strange)}"
            )
        calls.same_shapes(variables, [saved[name] for name in names])
        for name, variable in zip(names, variables, strict=True):
            variable.assign(saved[name])
        if self.built and self.skip_nonfinite:
            self._skipped_steps.assign(skipped_steps)
        self._velocity_bias.assign(velocity_bias)
