"""A file of TensorBoard events, into which whole records are written as they are.

tf.summary takes every record apart and puts it together again, which for the thousands of scalars
of a large model costs more than it takes to compute them.
"""

import itertools
import os
import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

_numbers = itertools.count()


class EventFile:
    """Events of one run.

    A folder that cannot be written to is TensorFlow's error. A disk that is full later on ends
    the file with a warning, not the training: tf.summary does so too, without a word.
    """

    def __init__(self, folder: str) -> None:
        """Makes the folder and the file."""
        import tensorflow as tf
        from tensorboard.compat.proto import event_pb2  # type: ignore[import-untyped]

        self._event, self._error = event_pb2.Event, tf.errors.OpError
        tf.io.gfile.makedirs(folder)
        place = f"{platform.node()}.{os.getpid()}.{next(_numbers)}"
        # TensorBoard reads the files of a folder in the order of their names.
        self.path = f"{folder}/events.out.tfevents.{int(time.time()):010d}.{place}.keras_yogi"
        self._writer = tf.io.TFRecordWriter(self.path)
        self._closed = self._failed = False
        first = self._event(wall_time=time.time(), file_version="brain.Event:2")
        self._writer.write(first.SerializeToString())
        self._writer.flush()

    def write(self, summary: bytes, step: int, moment: float | None = None) -> None:
        """Adds an event.

        Args:
            summary: a serialized tf.Summary.
            step: where it stands on the axis.
            moment: when it was, as `time.time()` says it. Defaults to now.

        Raises:
            RuntimeError: the file was closed.
        """
        self.check_open()
        moment = time.time() if moment is None else moment
        event = self._event(wall_time=moment, step=step).SerializeToString()
        self._try(self._writer.write, event + _FIELD_OF_SUMMARY + varint(len(summary)) + summary)

    def check_open(self) -> None:
        """Raises a RuntimeError if the file was closed."""
        if self._closed:
            raise RuntimeError(f"Nothing can be written to {self.path}: it is already closed")

    def flush(self) -> None:
        """Hands what is written to the file system."""
        if not self._closed:
            self._try(self._writer.flush)

    def close(self) -> None:
        """No event can be added any more."""
        if not self._closed:
            self._try(self._writer.close)
        self._closed = True

    def _try(self, action: Callable[..., Any], *arguments: Any) -> None:
        if self._failed:
            return
        try:
            action(*arguments)
        except self._error as error:
            self._failed = True
            text = f"Nothing more is written to {self.path}; training goes on. {error}"
            warnings.warn(text, stacklevel=4)


_FIELD_OF_SUMMARY = b"\x2a"
"""Of tf.Event: field 5, of a length that follows."""


def varint(number: int) -> bytes:
    """As protocol buffers write a length: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])
