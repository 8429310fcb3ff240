"""Nothing is looked up or connected to: not at import, and not in training."""

import pytest
from support.processes import run_python

CODE = """
import sys

def refuse(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        raise RuntimeError(f"{event}{arguments}")

sys.addaudithook(refuse)
if CONNECT:
    import socket
    socket.create_connection(("127.0.0.1", 9))
import keras_yogi
print("imported")
import keras
import numpy as np

model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile(keras_yogi.Yogi(), loss="mse")
keras_yogi.warm_start(model, np.ones((8, 3)), np.ones((8, 1)))
model.fit(np.ones((8, 3)), np.ones((8, 1)), verbose=0)
"""


def run(code):
    return run_python("-c", code)


@pytest.mark.slow
def test_import_and_training_open_no_connection_and_the_import_prints_nothing():
    completed = run(CODE.replace("CONNECT", "False"))
    assert completed.returncode == 0, completed.stderr[-2000:]
    assert completed.stdout.startswith("imported\n")


def test_the_guard_sees_a_connection():
    assert "RuntimeError: socket." in run(CODE.replace("CONNECT", "True")).stderr
