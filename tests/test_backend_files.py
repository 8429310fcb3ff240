"""Files that another backend has written, or reads: training goes on there."""

import numpy as np
import pytest
from support import file_exchange
from support.backend import ON_TENSORFLOW
from support.comparison import assert_nearly_unchanged
from support.processes import run_python

pytestmark = pytest.mark.skipif(ON_TENSORFLOW, reason="other backends than TensorFlow")


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
    """The folders of files that one backend has written and another has read."""
    written, read = (tmp_path_factory.mktemp(name) for name in ("written", "read"))
    file_exchange.save(written)
    jobs = ("load", written, "save", read)
    done = run_python("-m", "support.file_exchange", *jobs, KERAS_BACKEND="tensorflow")
    assert done.returncode == 0, done.stderr[-3000:]
    file_exchange.load(read)
    return {"from TensorFlow": read, "to TensorFlow": written}


@pytest.mark.parametrize("name", file_exchange.EXCHANGED)
@pytest.mark.parametrize("direction", ["from TensorFlow", "to TensorFlow"])
def test_training_goes_on_on_another_backend(exchanged, direction, name):
    saved, loaded, ours, theirs = (
        file_exchange.read(exchanged[direction], name, when)
        for when in ("saved", "loaded", "trained on", "loaded and trained on")
    )
    for old, new in zip(saved, loaded, strict=True):  # counters are wider on TensorFlow
        np.testing.assert_array_equal(new, old)
    assert_nearly_unchanged(ours, theirs)
    assert max(np.abs(a - b).max() for a, b in zip(saved, ours, strict=True)) > 1e-3
