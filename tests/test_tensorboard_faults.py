"""keras_yogi.TensorBoard where it cannot write: what becomes of the training and its weights."""

import gc
import os
import textwrap
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from support.processes import run_python
from support.tensorboard_runs import events, fit_lookups, lookup_model, lookups

import keras_yogi


def trained(*callbacks, epochs=1):
    """A model after so many epochs of three batches, and a fault or none."""
    model = lookup_model(keras_yogi.Adam(0.0625))
    model.fit(*lookups(), batch_size=16, epochs=epochs, callbacks=[*callbacks], verbose=0)
    return model


def state(model):
    return [v.numpy().tobytes() for v in [*model.variables, *model.optimizer.variables]]


def test_two_callbacks_write_into_one_folder(tmp_path):
    model = trained(*(keras_yogi.TensorBoard(tmp_path) for _ in range(2)))
    assert len(events(tmp_path)["optimizer/update_norm", "scalars"]) == 2
    assert state(model) == state(trained())


def test_two_runs_write_into_one_folder(tmp_path):
    """One after the other, as when a script is started again: each in a file of its own."""
    models = [trained(keras_yogi.TensorBoard(tmp_path, optimizer_freq="batch")) for _ in range(2)]
    assert len(list(tmp_path.glob("events*"))) == 2
    found = events(tmp_path)["optimizer/update_norm", "scalars"]
    assert [step for step, _ in found] == [1, 2, 3, 1, 2, 3]  # of two optimizers
    assert [value for _, value in found[:3]] == [value for _, value in found[3:]]
    assert state(models[0]) == state(models[1]) == state(trained())


def assert_refused_as_in_keras(folder):
    errors = []
    for callback_class in (keras.callbacks.TensorBoard, keras_yogi.TensorBoard):
        model = lookup_model(keras_yogi.Adam(0.0625))
        before = [w.tobytes() for w in model.get_weights()]
        with pytest.raises(tf.errors.OpError) as raised:
            fit_lookups(model, callback_class(str(folder)), epochs=1)
        errors.append(type(raised.value))
        assert str(folder.parent) in str(raised.value)
        assert before == [w.tobytes() for w in model.get_weights()]
        model.fit(*lookups(), batch_size=16, verbose=0)  # it can be trained without the callback
        assert state(model) == state(trained())
    assert errors[0] is errors[1]


def test_a_file_where_the_folder_should_be_is_an_error_as_in_keras(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert_refused_as_in_keras(tmp_path / "file" / "logs")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_file_system_that_takes_no_files_is_an_error_as_in_keras():
    """Root too may write nothing there."""
    assert_refused_as_in_keras(Path("/proc/keras_yogi_logs"))


def test_a_read_only_folder_is_an_error_as_in_keras(tmp_path):
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("root may write into every folder")
        assert_refused_as_in_keras(tmp_path / "logs")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("how", ["the callback is thrown away", "it is used again"])
@pytest.mark.slow
def test_what_was_written_before_an_error_is_there(how, tmp_path):
    def fail(batch, logs):
        if batch == 1:
            raise KeyboardInterrupt

    callback = keras_yogi.TensorBoard(tmp_path, optimizer_freq="batch")
    model = lookup_model(keras_yogi.Adam(0.0625))
    stop = keras.callbacks.LambdaCallback(on_train_batch_end=fail)
    try:
        model.fit(*lookups(), batch_size=16, callbacks=[callback, stop], verbose=0)
    except KeyboardInterrupt:
        pass
    else:
        pytest.fail("nothing was broken off")
    if how == "it is used again":
        model.fit(*lookups(), batch_size=16, callbacks=[callback], verbose=0)
    del callback, model, stop
    gc.collect()
    steps = [step for step, _ in events(tmp_path)["optimizer/update_norm", "scalars"]]
    assert steps == ([1, 2, 3, 4, 5] if how == "it is used again" else [1, 2])


FULL = """
    import resource, signal, warnings
    import keras, keras_yogi
    from support import tensorboard_runs as t
    twin, *models = [t.lookup_model(keras_yogi.Adam(0.0625)) for _ in range(3)]
    t.fit_lookups(twin, keras.callbacks.Callback(), epochs=4, shuffle=False)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # as a disk that is full
    for model, frequency in zip(models, ["batch", "epoch"], strict=True):
        callback = keras_yogi.TensorBoard({folder!r} + frequency, optimizer_freq=frequency)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            t.fit_lookups(model, callback, epochs=4, shuffle=False)
        texts = [str(w.message) for w in caught if "training goes on" in str(w.message)]
        states = [[v.numpy().tobytes() for v in [*m.variables, *m.optimizer.variables]]
                  for m in (model, twin)]
        same = states[0] == states[1]
        print("RESULT", frequency, int(model.optimizer.iterations), same, len(texts))
"""


@pytest.mark.slow
def test_training_goes_on_when_the_disk_is_full(tmp_path):
    """As with keras.callbacks.TensorBoard, but with a warning, and once."""
    code = textwrap.dedent(FULL).format(folder=str(tmp_path / "logs_"))
    done = run_python("-c", code, measured=False)
    for frequency in ("batch", "epoch"):
        assert f"RESULT {frequency} 12 True 1" in done.stdout, done.stderr
        files = list((tmp_path / f"logs_{frequency}").glob("events*"))
        assert [path.stat().st_size <= 20_000 for path in files] == [True]
