"""Imported before TensorFlow, keeps its start-up messages away: some come from C++ before any
setting is read, others when the devices are looked for, which would be in the middle of a progress
bar. Whoever sets TF_CPP_MIN_LOG_LEVEL sees what it lets through.
"""

import os
import sys
import tempfile


def _start() -> None:
    import tensorflow as tf

    tf.config.list_logical_devices()


def _start_silently() -> None:
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            _start()
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    _start_silently()
