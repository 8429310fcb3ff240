"""A file of TensorBoard events, into which whole records are written as they are.

tf.summary takes every record apart and puts it together again, which for the thousands of scalars
of a large model costs more than it takes to compute them.
"""

import itertools
import os
import platform
import time

_FLUSH_EVERY = 10  # records, as tf.summary does
_numbers = itertools.count()


class EventFile:
    """Events of one run. Errors are TensorFlow's own, as those of tf.summary."""

    def __init__(self, folder: str) -> None:
        """Makes the folder and the file."""
        import tensorflow as tf
        from tensorboard.compat.proto import event_pb2  # type: ignore[import-untyped]

        self._event = event_pb2.Event
        tf.io.gfile.makedirs(folder)
        place = f"{platform.node()}.{os.getpid()}.{next(_numbers)}"
        # TensorBoard reads the files of a folder in the order of their names.
        path = f"{folder}/events.out.tfevents.{int(time.time()):010d}.{place}.keras_yogi"
        self._writer = tf.io.TFRecordWriter(path)
        self._written = 0
        first = self._event(wall_time=time.time(), file_version="brain.Event:2")
        self._writer.write(first.SerializeToString())
        self.flush()

    def write(self, summary: bytes, step: int) -> None:
        """Adds an event.

        Args:
            summary: a serialized tf.Summary.
            step: where it stands on the axis.
        """
        event = self._event(wall_time=time.time(), step=step).SerializeToString()
        self._writer.write(event + _FIELD_OF_SUMMARY + varint(len(summary)) + summary)
        self._written += 1
        if self._written % _FLUSH_EVERY == 0:
            self.flush()

    def flush(self) -> None:
        """Hands what is written to the file system."""
        self._writer.flush()

    def close(self) -> None:
        """No event can be added any more."""
        self._writer.close()


_FIELD_OF_SUMMARY = b"\x2a"
"""Of tf.Event: field 5, of a length that follows."""


def varint(number: int) -> bytes:
    """As protocol buffers write a length: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])
