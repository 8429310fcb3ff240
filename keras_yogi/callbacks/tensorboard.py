"""keras_yogi.TensorBoard: what the optimizer does, beside the loss."""

import numbers
import warnings
import weakref
from typing import Any

import keras

from keras_yogi import checks
from keras_yogi.any_optimizer import batches_made
from keras_yogi.statistics import advice
from keras_yogi.statistics.collector import StatisticsCollector


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's TensorBoard callback, with statistics of the optimizer.

    Everything that keras.callbacks.TensorBoard writes is written as it writes it. Besides, from
    the optimizer's slots alone, so that a training step computes nothing more:

    - `optimizer/<figure>`: figures of the whole model, such as the norm of the last update;
    - `optimizer_<figure>/<variable>`: the same of every variable, at the end of every epoch;
    - histograms of the effective learning rates, of √v̂ and of the updates of every layer;
    - the page "HParams", and on the page "Text" the optimizer's config and the warnings of
      `keras_yogi.diagnose`.

    docs/tensorboard.md defines every tag. A warning says once which figures an optimizer lacks.

    Args:
        log_dir: folder of the run. Defaults to "logs".
        histogram_freq: every how many epochs histograms are written, of the weights and of the
            optimizer; 0: never. Defaults to 0.
        optimizer_freq: when the figures of the whole model are written: "epoch": at the end of
            every epoch, over the number of the epoch; "batch" or an integer n ≥ 1: after every
            batch, or every n-th, over the number of batches that the optimizer was trained with,
            from a sample of a model of more than 32,768 weights. Defaults to "epoch".
        per_variable: write the figures of every variable too. Defaults to True.
        **keras_arguments: those of keras.callbacks.TensorBoard.

    Raises:
        ValueError: an argument breaks its rule. A folder that cannot be written to is TensorFlow's
            error when training begins, as for keras.callbacks.TensorBoard.

    Example:
        >>> import keras, keras_yogi, numpy as np, tempfile
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer=keras_yogi.Yogi(0.01), loss="mse")
        >>> callback = keras_yogi.TensorBoard(tempfile.mkdtemp())
        >>> _ = model.fit(np.ones((64, 3)), np.ones((64, 1)), callbacks=[callback], verbose=0)

    References:
        keras.callbacks.TensorBoard; for the figures, see `keras_yogi.diagnose`.
    """

    def __init__(
        self,
        log_dir: Any = "logs",
        histogram_freq: int = 0,
        *args: Any,
        optimizer_freq: str | int = "epoch",
        per_variable: bool = True,
        **keras_arguments: Any,
    ) -> None:
        super().__init__(log_dir, histogram_freq, *args, **keras_arguments)
        self.optimizer_freq = _frequency(optimizer_freq)
        self.per_variable = checks.boolean("per_variable", per_variable)
        self._warned: set[str] = set()
        self._finalizer: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Begins the run's session on the HParams page."""
        from keras_yogi.callbacks import events  # which imports TensorFlow

        super().on_train_begin(logs)
        self._collector: StatisticsCollector | None = None
        self._batches = self._last_batch = -1
        if self._finalizer:  # of an earlier training that was interrupted
            self._finalizer()
        self._pages, self._events = events, events.EventFile(self.log_dir)
        # If training is interrupted, the file is closed on the next `fit` or at garbage collection.
        self._finalizer = weakref.finalize(self, self._events.close)
        self._events.add(events.session_start(self.model.optimizer), 0)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Finds out where on the axis the run goes on."""
        super().on_epoch_begin(epoch, logs)
        if self._batches < 0:  # not before: other callbacks may restore a backup
            self._batches = batches_made(self.model.optimizer)
        self._last_batch = -1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Writes the figures of the whole model, if it is time for them."""
        super().on_train_batch_end(batch, logs)
        before, self._batches = self._batches, self._batches + batch - self._last_batch
        self._last_batch = batch  # with `steps_per_execution`, not every batch ends here
        if self.optimizer_freq == "epoch":
            return
        if self._batches // self.optimizer_freq > before // self.optimizer_freq:
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()  # on JAX, `fit` holds the newest values
            if collector := self._built_collector():
                self._events.scalars(collector.estimate(), self._batches)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the figures of every variable, and histograms if it is time for them."""
        super().on_epoch_end(epoch, logs)
        if collector := self._built_collector():
            found = collector.statistics()
            if self.optimizer_freq == "epoch":
                self._events.scalars(found.model, epoch)
            for name, figures in found.variables.items() if self.per_variable else ():
                self._events.scalars(figures, epoch, name)
            if self.histogram_freq and epoch % self.histogram_freq == 0:
                self._events.add(self._pages.histograms(found.samples), epoch)
            if faults := advice.warnings(collector, found, {}):
                self._events.add(self._pages.faults(faults), epoch)
        self._events.add(self._pages.columns(self.model.optimizer, logs or {}), 0)
        self._events.flush()

    def on_train_end(self, logs: Any = None) -> None:
        """Ends the run's session on the HParams page, and closes the writers."""
        self._events.add(self._pages.session_end(), 0)
        self._finalizer()
        super().on_train_end(logs)

    def _built_collector(self) -> StatisticsCollector | None:
        """The collector; None before the optimizer is built."""
        if self._collector is None:
            collector = StatisticsCollector(self.model.optimizer)
            if not collector.views:
                return None
            self._collector = collector
            self._events.add(self._pages.config(self.model.optimizer, collector.notes), 0)
            if self.per_variable:
                self._events.add(self._pages.layout(collector.views), 0)
            for note in set(collector.notes) - self._warned:
                warnings.warn(note, stacklevel=3)
                self._warned.add(note)
        return self._collector


def _frequency(value: Any) -> Any:
    if isinstance(value, str) and value in ("epoch", "batch"):
        return 1 if value == "batch" else value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise checks.reject("optimizer_freq", '"epoch", "batch" or an integer >= 1', value)
    return int(value)
