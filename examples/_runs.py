"""Loops of thousands of steps, compiled as a whole: a step of a small model costs microseconds."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import _jobs as jobs
import _shared as shared
import keras
import numpy as np
import tensorflow as tf
from keras import ops

Start = tuple[list[np.ndarray], np.ndarray]
"""Initial weights, and the indices of the rows of every batch."""


class InverseRoot(keras.optimizers.schedules.LearningRateSchedule):
    """η / √t for t = 1, 2, …, the schedule of the convergence proofs."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def __call__(self, step: Any) -> Any:
        return self.rate / ops.sqrt(ops.cast(step, "float32") + 1.0)


def trajectory(
    optimizer: keras.optimizers.Optimizer,
    gradients: np.ndarray,
    start: Sequence[float],
    dtype: str = "float32",
    watch: Callable[[keras.Variable], Any] = lambda variable: variable.value,
    constraint: Callable[[Any], Any] | None = None,
) -> np.ndarray:
    """What becomes of one variable under gradients that are given beforehand.

    Args:
        optimizer: a new one.
        gradients: one row for each step.
        start: the variable's first value, of the shape of a row.
        dtype: the variable's.
        watch: what is recorded before every step. Defaults to the variable's value.
        constraint: the variable's. Defaults to None.

    Returns:
        An array with one row for each step.
    """
    variable = keras.Variable(start, dtype=dtype)
    variable.constraint = constraint
    optimizer.build([variable])
    steps, gradients = len(gradients), tf.constant(gradients, dtype)

    @tf.function(jit_compile=True, autograph=False)
    def all_steps() -> tf.Tensor:
        def step(t: tf.Tensor, record: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            record = record.write(t, tf.convert_to_tensor(watch(variable)))
            optimizer.apply([gradients[t]], [variable])
            return t + 1, record

        record = tf.TensorArray(dtype, steps, element_shape=variable.shape)
        return tf.while_loop(lambda t, _: t < steps, step, (0, record))[1].stack()

    return all_steps().numpy()


class ShortRuns:
    """Trains a job's small model by one optimizer, many times over.

    A step of `fit` costs more in Python than such a model computes. Here a whole run is one
    compiled function, and thousands of runs take a minute.

    Args:
        job: the model, the loss and the rows.
        optimizer: a new one. Its learning rate is given with every run.
    """

    def __init__(self, job: jobs.Job, optimizer: keras.optimizers.Optimizer) -> None:
        self.job, self.optimizer, self.model = job, optimizer, job.model()
        optimizer.build(self.model.trainable_variables)
        self._initial_state = [variable.numpy() for variable in optimizer.variables]
        self._rows = [tf.constant(values) for values in job.train]
        self._steps = tf.function(self._all_steps, jit_compile=True, autograph=False)
        self._loss = tf.function(self._loss_over, jit_compile=True, autograph=False)

    def start(self, weights: list[np.ndarray]) -> None:
        """From these weights, with the optimizer as if new."""
        self.model.set_weights(weights)
        for variable, value in zip(self.optimizer.variables, self._initial_state, strict=True):
            variable.assign(value)

    def train(self, batches: np.ndarray, rates: np.ndarray) -> None:
        """Makes one step for each row of `batches`, which holds indices, and of `rates`."""
        self._steps(tf.constant(batches, "int32"), tf.constant(rates, "float32"))

    def loss(self, rows: jobs.Rows) -> float:
        """The mean loss over all rows."""
        return float(self._loss(*map(tf.constant, rows)))

    def final_losses(
        self, starts: Sequence[Start], rates: Sequence[float], factors: Any = 1.0
    ) -> dict[str, list[list[float]]]:
        """For each part of the job's rows: the losses after the last step, by rate, by start.

        Args:
            starts: what `starts_of` returns.
            rates: the learning rates.
            factors: what they are multiplied with at every step. Defaults to 1.
        """
        parts = self.job.parts()
        losses: dict[str, list[list[float]]] = {part: [] for part in parts}
        for rate in rates:
            for of_part in losses.values():
                of_part.append([])
            for weights, batches in starts:
                self.start(weights)
                self.train(batches, np.broadcast_to(rate * factors, len(batches)))
                for part, rows in parts.items():
                    losses[part][-1].append(self.loss(rows))
        return losses

    def _all_steps(self, batches: tf.Tensor, rates: tf.Tensor) -> None:
        x, y = self._rows
        variables = self.model.trainable_variables

        def step(t: tf.Tensor) -> tuple[tf.Tensor]:
            self.optimizer.learning_rate = rates[t]
            with tf.GradientTape() as tape:
                loss = self._loss_over(tf.gather(x, batches[t]), tf.gather(y, batches[t]))
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return (t + 1,)

        tf.while_loop(lambda t: t < batches.shape[0], step, (0,))

    def _loss_over(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return ops.mean(self.job.loss(y, self.model(x, training=True)))


def starts_of(job: jobs.Job, batch_size: int, epochs: int, seeds: int) -> list[Start]:
    """For each seed 0, 1, … the initial weights, and the rows of every batch: a new order in each
    epoch, full batches alone.
    """
    rows, starts = len(job.train[0]), []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        orders = [random.permutation(rows)[: rows - rows % batch_size] for _ in range(epochs)]
        batches = np.concatenate(orders).reshape(-1, batch_size)
        starts.append((job.initial_weights(seed), batches))
    return starts


def write_final_losses(
    logdir: Path, run: str, rates: Sequence[float], losses: Mapping[str, Any]
) -> None:
    """For TensorBoard: the mean losses, over η in millionths where it shows steps."""
    curves = {
        f"final {part} loss over millionths of learning rate": np.mean(of_part, axis=1)
        for part, of_part in losses.items()
    }
    shared.write_curves(logdir, run, [round(1e6 * rate) for rate in rates], curves)


def drawn_steps(steps: int, points: int = 200) -> np.ndarray:
    """The steps 1 to `steps` that a curve shows, evenly spread over a logarithmic axis."""
    return np.unique(np.geomspace(1, steps, points).astype(int))
