"""keras_yogi.TensorBoard: what the optimizer does inside, beside the loss."""

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_yogi import checks
from keras_yogi.callbacks import run_pages, summaries
from keras_yogi.callbacks.event_file import EventFile
from keras_yogi.callbacks.scalars import ScalarWriter, layer_of
from keras_yogi.diagnostics.gauge import Gauge, Reading
from keras_yogi.diagnostics.sampling import EVERY_BATCH, THOROUGH, Precision


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's TensorBoard callback, and what the optimizer does inside.

    Everything that keras.callbacks.TensorBoard writes is written as it writes it. Besides, from
    the optimizer's slots alone, so that a training step costs nothing more:

    - `optimizer/…`: learning rate, norms of the weights, of the slots and of the next update,
      effective learning rate η / (√v̂ + ε), share of the weights where ε dominates √v̂ or where v
      is still at its initial value, signal-to-noise |m̂| / √v̂, skipped steps, and rows of
      embeddings that were never touched;
    - `optimizer_layers/<layer>/<variable>/…`: the same of every variable; the page "Custom
      Scalars" shows them as one card a layer;
    - histograms of log₁₀ of the effective learning rate, of √v̂ and of the update of every layer;
    - the hyperparameters and final metrics (page "HParams"), and the optimizer's config, its
      engine, versions and devices (page "Text").

    docs/tensorboard.md defines every tag. Of optimizers other than ours and Keras's Adam and AdamW
    only norms are written; a warning says so once.

    Args:
        log_dir: folder of the run. Defaults to "logs".
        histogram_freq: every how many epochs histograms are written, of the weights and of what
            the optimizer does; 0: never. Defaults to 0.
        optimizer_freq: when the optimizer's scalars are written: "epoch": at the end of every
            epoch; "batch" or an integer n ≥ 1: after every batch, or every n-th. At the end of an
            epoch everything but medians and percentiles is of all weights. After batches, what is
            written of a model of more than 65,536 weights is of a sample. Defaults to "epoch".
        per_variable: write the scalars of every variable too. Defaults to True.
        **keras_arguments: Keras's own: `write_graph`, `write_images`, `write_steps_per_second`,
            `update_freq`, `profile_batch`, `embeddings_freq`, `embeddings_metadata`; see
            keras.callbacks.TensorBoard.

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
        self._said: set[str] = set()
        self._finish: Callable[[], Any] = lambda: None
        self._forget()

    def _forget(self) -> None:
        """Before a training: another model or optimizer may come."""
        self._gauges: dict[Any, Gauge] = {}
        self._columns_written = False
        self._batches = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Begins the run's session on the HParams page."""
        super().on_train_begin(logs)
        self._forget()
        self._finish()  # an earlier training that was broken off
        self._events = EventFile(self.log_dir)
        self._scalars = ScalarWriter(self._events, self.per_variable)
        # What waits is written even if training ends by an error: then it is of most interest.
        self._finish = weakref.finalize(self, self._scalars.close)
        self._events.write(run_pages.hparams(self.model.optimizer), 0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Writes the optimizer's scalars, if it is time for them."""
        super().on_train_batch_end(batch, logs)
        self._batches += 1
        if self._batches == 1:  # Keras builds the optimizer in the first step, and so its engine
            page = run_pages.page(self.model.optimizer)
            self._events.write(summaries.text("optimizer/config", page), 0)
        if self.optimizer_freq != "epoch" and self._batches % self.optimizer_freq == 0:
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()  # on JAX, `fit` holds the newest values
            if gauge := self._gauge(EVERY_BATCH):
                self._scalars.add(gauge, self._batches)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the optimizer's scalars and histograms, if it is time for them."""
        super().on_epoch_end(epoch, logs)
        if not self._columns_written:
            columns = run_pages.hparams_columns(self.model.optimizer, logs or {})
            self._events.write(columns, 0)
            self._columns_written = True
        with_histograms = self.histogram_freq and epoch % self.histogram_freq == 0
        gauge = self._gauge(THOROUGH) if with_histograms or self.optimizer_freq == "epoch" else None
        if gauge is not None:
            reading = gauge.read()
            if self.optimizer_freq == "epoch":
                self._scalars.write(reading, epoch)
            if with_histograms:
                self._write_histograms(reading, epoch)
        self._scalars.flush()

    def on_train_end(self, logs: Any = None) -> None:
        """Ends the run's session on the HParams page, and closes the writers."""
        self._events.write(run_pages.session_end(), 0)
        self._finish()
        super().on_train_end(logs)

    # Writing

    def _gauge(self, precision: Precision) -> Gauge | None:
        """What reads the optimizer's figures; None before the optimizer is built."""
        if precision not in self._gauges:
            gauge = Gauge(self.model.optimizer, precision)
            if not gauge.variables:
                return None
            self._gauges[precision] = gauge
            for sentence in set(gauge.missing) - self._said:
                warnings.warn(sentence, stacklevel=3)
                self._said.add(sentence)
        return self._gauges[precision]

    def _write_histograms(self, reading: Reading, step: int) -> None:
        of_layers: dict[str, list[Any]] = {}
        for place, name in enumerate(reading.names):
            told = reading.weights_of(place)
            if told is not None:
                of_layers.setdefault(layer_of(name), []).append(told)
        of_tags = {}
        for layer, looks in of_layers.items():
            weights = np.concatenate([np.full(len(seen.root), share) for seen, share in looks])
            for what, field in _HISTOGRAMS.items():
                values = np.concatenate([np.abs(getattr(seen, field)) for seen, _ in looks])
                with np.errstate(divide="ignore"):
                    of_tags[f"optimizer_layers/{layer}/{what}"] = np.log10(values), weights
        self._events.write(summaries.histograms(of_tags), step)


_HISTOGRAMS = {
    "log10_effective_learning_rate": "effective_learning_rate",
    "log10_root_velocity": "root",
    "log10_update": "update",
}


def _frequency(value: Any) -> Any:
    if value in ("epoch", "batch"):
        return 1 if value == "batch" else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise checks.reject("optimizer_freq", '"epoch", "batch" or an integer >= 1', value)
    return value
