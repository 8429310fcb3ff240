"""Files that another backend has written, or reads: training goes on there."""

import numpy as np
import pytest
from support import file_exchange
from support.backend import ON_TENSORFLOW
from support.comparison import assert_nearly_unchanged
from support.processes import run_python

pytestmark = pytest.mark.skipif(ON_TENSORFLOW, reason="other backends than TensorFlow")


@pytest.fixture(scope="module", params=["from TensorFlow", "to TensorFlow"])
def exchanged(request, tmp_path_factory):
    """The folder of files that one backend has written and another has read."""
    folder = tmp_path_factory.mktemp("exchanged")

    def on_tensorflow(what):
        done = run_python("-m", "support.file_exchange", what, folder, KERAS_BACKEND="tensorflow")
        assert done.returncode == 0, done.stderr[-3000:]

    if request.param == "from TensorFlow":
        on_tensorflow("save")
        file_exchange.load(folder)
    else:
        file_exchange.save(folder)
        on_tensorflow("load")
    return folder


@pytest.mark.parametrize("name", file_exchange.EXCHANGED)
def test_training_goes_on_on_another_backend(exchanged, name):
    saved, loaded, ours, theirs = (
        file_exchange.read(exchanged, name, when)
        for when in ("saved", "loaded", "trained on", "loaded and trained on")
    )
    for old, new in zip(saved, loaded, strict=True):  # counters are wider on TensorFlow
        np.testing.assert_array_equal(new, old)
    assert_nearly_unchanged(ours, theirs)
    assert max(np.abs(a - b).max() for a, b in zip(saved, ours, strict=True)) > 1e-3
