"""A TensorBoard event file, which TensorBoard's own writer fills on a thread of its own."""

import time
import warnings
from collections.abc import Callable
from typing import Any


class EventFile:
    """Events of one run.

    A folder that cannot be written to is TensorFlow's error. A disk that is full later on ends the
    file with a warning, not the training: tf.summary does so too, without a word.
    """

    def __init__(self, folder: str) -> None:
        import tensorflow as tf
        from tensorboard.summary.writer import event_file_writer  # type: ignore[import-untyped]

        self._folder, self._errors = folder, (tf.errors.OpError, OSError)
        self._writer = event_file_writer.EventFileWriter(folder, filename_suffix=".keras_yogi")
        self._failed = False

    def write(self, summary: Any, step: int) -> None:
        """Adds a tf.Summary, at its place on the axis."""
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]

        event = Event(step=step, wall_time=time.time())
        # Some are of TensorFlow's class of that name, and the writer takes TensorBoard's alone.
        event.summary.ParseFromString(summary.SerializeToString())
        self._try(self._writer.add_event, event)

    def flush(self) -> None:
        self._try(self._writer.flush)

    def close(self) -> None:
        self._try(self._writer.close)

    def _try(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            if not self._failed:
                action(*arguments)
        except self._errors as error:
            self._failed = True
            text = f"Nothing more is written to {self._folder}; training goes on. {error}"
            warnings.warn(text, stacklevel=4)
