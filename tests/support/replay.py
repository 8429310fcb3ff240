"""A recorded run, taken again by an optimizer of keras_yogi."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from support.backend import MODES
from support.recordings import RecordedTrajectory, Recording
from support.training import state_of

KINDS = {"param": "weights", "m": "momentum", "v": "velocity", "vhat": "velocity_hat"}


class RecordedRates(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rates of a recording in float64; Keras keeps a plain number in float32."""

    def __init__(self, recording: Recording, first_iteration: int = 0) -> None:
        self.rates, self.first_iteration = recording.learning_rates, first_iteration

    def __call__(self, step: Any) -> Any:
        return tf.gather(tf.constant(self.rates), tf.cast(step, "int32") - self.first_iteration)


def replay(
    optimizer: Any,
    recording: Recording,
    initial_slots: Mapping[str, float] | None = None,
    mode: str = "graph",
    first_iteration: int = 0,
) -> RecordedTrajectory:
    """The trajectory of a new keras_yogi optimizer that receives the recording's gradients.

    Args:
        optimizer: `Adam` or `Yogi`, not built.
        recording: where weights and gradients are taken from.
        initial_slots: values to fill slots with before the first step.
        mode: "eager", "graph" or "xla".
        first_iteration: the number of steps that the optimizer believes to have made at first.
    """
    names = list(recording.weights)
    variables = [keras.Variable(recording.weights[n], dtype=recording.dtype) for n in names]
    optimizer.build(variables)
    optimizer.iterations.assign(first_iteration)
    for slot, value in (initial_slots or {}).items():
        for variable in variables:
            optimizer.set_slot(variable, slot, np.full(variable.shape, value, recording.dtype))

    def gradient(name: str, step: int) -> tf.Tensor | tf.IndexedSlices:
        rows = recording.rows(name, step)
        if rows is None:
            return tf.constant(recording.gradient(name, step))
        indices, values = map(tf.constant, rows)
        return tf.IndexedSlices(values, indices, tf.constant(recording.weights[name].shape))

    def state() -> RecordedTrajectory:
        of_each = zip(names, state_of(optimizer, variables), strict=True)
        return {
            f"{kind}_{name}": values[slot]
            for name, values in of_each
            for kind, slot in KINDS.items()
            if slot in values
        }

    take_step = MODES[mode](optimizer, variables)
    states = [state()]
    for step in range(1, recording.steps[-1] + 1):
        take_step([gradient(name, step) for name in names])
        if step in recording.steps:
            states.append(state())
    return {name: np.stack([values[name] for values in states]) for name in states[0]}
