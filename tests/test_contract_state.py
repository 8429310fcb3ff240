"""The optimizer's state: saved, loaded, copied and moved, it is all there or not touched."""

import copy
import pickle
import re
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from support.backend import ON_TENSORFLOW, array, tensorflow_only
from support.cases import BOTH, OPTIONS
from support.comparison import assert_unchanged, snapshot
from support.models import EPOCHS, fit_sine
from support.processes import ROOT
from support.scripts import run_script
from support.states import (
    STATE_SHAPES,
    assert_of_use,
    built,
    filled,
    model_with_state,
    restored,
    stored,
    written,
)
from support.training import take_steps, variables_of

import keras_yogi

if ON_TENSORFLOW:
    import tensorflow as tf
    from support import training_job as jobs

ways = pytest.mark.parametrize("way", jobs.WAYS if ON_TENSORFLOW else [])
trainings = pytest.mark.parametrize("training", jobs.TRAININGS if ON_TENSORFLOW else [])

# In a new process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Trainings saved here, continued here (`here.npz`) and in another process (`WAY.npz`)."""
    folder = tmp_path_factory.mktemp("trainings")
    for training in jobs.TRAININGS:
        (folder / training).mkdir()
        here = jobs.save_every_way(training, folder / training)
        np.savez(folder / training / "here.npz", *here)
    done = run_script(Path(jobs.__file__), "continue", folder, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@tensorflow_only
@ways
@trainings
@pytest.mark.slow
def test_training_goes_on_in_a_new_process_bit_for_bit(folder, training, way):
    here = jobs.load_state(folder / training / "here.npz")
    assert_unchanged(here, jobs.load_state(folder / training / f"{way}.npz"))


@tensorflow_only
@pytest.mark.slow
def test_a_warm_start_shows_in_the_end(folder):
    """Or else the comparison above would not see one that is lost on the way."""
    ends = [jobs.load_state(folder / c / "here.npz") for c in ("warm yogi", "yogi")]
    assert max(np.abs(warm - plain).max() for warm, plain in zip(*ends, strict=True)) > 1e-3


# A state that does not fit is refused as Keras refuses it, and never half loaded.

FOREIGN = {
    "sgd": lambda ours: keras.optimizers.SGD(0.1),
    "sgd with momentum": lambda ours: keras.optimizers.SGD(0.1, momentum=0.9),
    "with ema": lambda ours: ours(use_ema=True),
    "with accumulation": lambda ours: ours(gradient_accumulation_steps=2),
    "with a schedule": lambda ours: ours(**OPTIONS["schedule"]),
    "amsgrad": lambda ours: keras_yogi.Adam(amsgrad=True),
}


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("ours", BOTH)
def test_a_state_with_other_variables_is_refused_whole(ours, foreign):
    store = stored(filled(FOREIGN[foreign](ours), seed=1))
    optimizer = filled(ours(skip_nonfinite=True), seed=2)
    before = snapshot(optimizer)
    with pytest.warns(UserWarning, match=r"Nothing was loaded into optimizer .* because it has"):
        optimizer.load_own_variables(store)
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        built(keras.optimizers.Adam()).load_own_variables(store)
    assert_unchanged(before, snapshot(optimizer))
    assert_of_use(optimizer)


def test_a_smaller_state_is_refused_whole():
    store = stored(filled(keras_yogi.Adam(), seed=1))
    for optimizer in (keras_yogi.Adam(amsgrad=True), keras_yogi.Yogi(use_ema=True)):
        before = snapshot(filled(optimizer, seed=2))
        with pytest.warns(UserWarning, match="because it has 11 variables, and the saved one has"):
            optimizer.load_own_variables(store)
        assert_unchanged(before, snapshot(optimizer))
        assert_of_use(optimizer)


@pytest.mark.parametrize(
    ("saved", "options", "shapes"),
    [
        # The last variable differs: Keras's own optimizers load all others before they see it.
        ({}, {}, [(2, 3), (3,), (1,)]),
        ({"amsgrad": True}, {"use_ema": True}, STATE_SHAPES),  # as many variables, in another order
    ],
)
def test_a_state_of_other_shapes_is_refused_whole(saved, options, shapes):
    store = stored(filled(keras_yogi.Adam(**saved), 1, shapes))
    optimizer = filled(keras_yogi.Adam(**options, skip_nonfinite=True), seed=2)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"The value of `.*` must be of its shape"):
        optimizer.load_own_variables(store)
    with pytest.raises(ValueError, match="shape"):
        built(keras.optimizers.Adam(**options)).load_own_variables(store)
    assert_unchanged(before, snapshot(optimizer))
    assert_of_use(optimizer)


def test_a_file_of_another_model_leaves_the_optimizer_as_it_was(tmp_path):
    model_with_state(keras_yogi.Yogi()).save_weights(tmp_path / "other.weights.h5")
    model = model_with_state(keras_yogi.Yogi(), units=5)
    before = snapshot(model.optimizer)
    with pytest.raises(ValueError, match="could not be loaded"):
        model.load_weights(tmp_path / "other.weights.h5")
    assert_unchanged(before, snapshot(model.optimizer))
    assert_of_use(model.optimizer)


@pytest.mark.parametrize("ours", BOTH)
def test_nothing_is_loaded_before_the_optimizer_is_built(ours):
    optimizer = ours()
    before = snapshot(optimizer)
    with pytest.warns(UserWarning, match="has not been built yet"):
        optimizer.load_own_variables(stored(filled(ours(), seed=1)))
    assert_unchanged(before, snapshot(optimizer))
    assert_of_use(built(optimizer))


# tf.train.Checkpoint restores object by object, before it sees what does not fit: that leaves
# Keras's own optimizers half restored, and ours can only do the same.

MISFITS = {
    "amsgrad into plain": ({"amsgrad": True}, {}),
    "plain into amsgrad": ({}, {"amsgrad": True}),
    "ema into plain": ({"use_ema": True}, {}),
    "plain into ema": ({}, {"use_ema": True}),
    "accumulation into plain": ({"gradient_accumulation_steps": 2}, {}),
}


@tensorflow_only
@pytest.mark.parametrize("misfit", MISFITS)
def test_a_checkpoint_that_does_not_fit_does_what_it_does_to_keras_adam(misfit, tmp_path):
    saved, loaded = MISFITS[misfit]

    def outcome(adam, folder):
        folder.mkdir()
        path = written(filled(adam(**saved), seed=1), folder)
        optimizer = filled(adam(**loaded), seed=2)
        before = snapshot(optimizer)
        refused = False
        try:
            restored(optimizer, path).expect_partial()
        except ValueError:
            refused = True
        after = snapshot(optimizer)
        assert_of_use(optimizer)
        return refused, [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]

    ours = outcome(keras_yogi.Adam, tmp_path / "ours")
    assert ours == outcome(keras.optimizers.Adam, tmp_path / "keras")


@tensorflow_only
def test_a_checkpoint_of_other_shapes_is_refused(tmp_path):
    path = written(filled(keras_yogi.Yogi(), 1, [(2, 4), (4,), ()]), tmp_path)
    optimizer = filled(keras_yogi.Yogi(), seed=2)
    with pytest.raises(ValueError, match="shape"):
        restored(optimizer, path)
    assert_of_use(optimizer)


@tensorflow_only
def test_a_step_leaves_nothing_in_checkpoints(tmp_path):
    """TensorFlow saves lists and dictionaries that are attributes, and what is in them."""
    optimizer, variables = keras_yogi.Adam(0.5, fused=False), variables_of([np.ones(3)])
    optimizer.build(variables)

    def names():
        return tf.train.list_variables(written(optimizer, tmp_path))

    before = names()
    for mode in ("eager", "graph"):
        take_steps(optimizer, variables, [[np.ones(3)]], mode)
    assert names() == before


# Copies

COPIES = {
    "pickle": lambda original: pickle.loads(pickle.dumps(original)),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "from_config": lambda original: type(original).from_config(original.get_config()),
}


@pytest.mark.parametrize("kind", ["unbuilt", "built", "warm"])
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("ours", BOTH)
def test_a_copy_of_a_bare_optimizer_is_what_keras_makes_of_its_own(ours, way, kind):
    """The configuration without slots, and a warning where slots are left behind."""

    def outcome(optimizer):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            copy = COPIES[way](optimizer)
        assert type(copy) is type(optimizer)
        assert copy.get_config() == optimizer.get_config()
        warned = ["load" in str(w.message) for w in caught]  # what is not
        return copy, (copy.built, any(warned), int(array(copy.iterations.value)))

    originals = [ours(0.25), keras.optimizers.Adam(0.25)]
    if kind != "unbuilt":
        originals = [filled(original, seed=1) for original in originals]
        for original in originals:
            original.learning_rate = 0.25
    if kind == "warm":
        originals[0].bias_correction = "momentum"
    (copy, ours_did), (_, keras_did) = map(outcome, originals)
    assert ours_did == keras_did
    assert_unchanged(snapshot(built(ours(0.25))), snapshot(built(copy)))


@pytest.mark.parametrize("start", ["plain", "warm"])
@pytest.mark.parametrize("way", ["pickle", "copy.deepcopy"])
@pytest.mark.parametrize("ours", BOTH)
def test_a_copy_of_a_compiled_model_is_whole_and_on_its_own(ours, way, start):
    model = model_with_state(ours())
    if start == "warm":
        model.optimizer.bias_correction = "momentum"
    copy = COPIES[way](model)
    assert type(copy.optimizer) is ours
    assert copy.optimizer.get_config() == model.optimizer.get_config()
    before = snapshot(model.optimizer)
    assert_unchanged(before, snapshot(copy.optimizer))
    assert_unchanged(model.get_weights(), copy.get_weights())
    assert_of_use(copy.optimizer)
    assert_unchanged(before, snapshot(model.optimizer))


@pytest.mark.parametrize("ours", BOTH)
def test_a_cloned_model_has_a_fresh_optimizer(ours):
    model = model_with_state(ours())
    model.optimizer.learning_rate = 0.25
    model.optimizer.bias_correction = "momentum"
    before = snapshot(model.optimizer)
    clone = keras.models.clone_model(model)
    assert type(clone.optimizer) is ours
    assert clone.optimizer.get_config() == model.optimizer.get_config()
    fresh = ours(0.25)
    for optimizer in (fresh, clone.optimizer):
        optimizer.build(clone.trainable_variables)
    assert_unchanged(snapshot(fresh), snapshot(clone.optimizer))
    assert_of_use(clone.optimizer)
    assert_unchanged(before, snapshot(model.optimizer))


@tensorflow_only
def test_the_code_of_the_documentation(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "state.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert int(names["model"].optimizer.iterations) == 2


@tensorflow_only
def test_half_a_backup_is_survived_with_two_alone(tmp_path):
    """As a kill in the middle of writing leaves it: the reason for `double_checkpoint=True`."""
    for double in (False, True):
        folder = tmp_path / str(double)
        options = dict(backup_dir=str(folder), save_freq=1, double_checkpoint=double)
        backup = keras.callbacks.BackupAndRestore(**options, delete_checkpoint=False)
        fit_sine(jobs.model_of("yogi"), callbacks=[backup])
        newest = folder / "latest.weights.h5"
        newest.write_bytes(newest.read_bytes()[:1000])
        again = [keras.callbacks.BackupAndRestore(**options)]
        if double:
            fit_sine(jobs.model_of("yogi"), first_epoch=2 * EPOCHS, callbacks=again)
        else:
            with pytest.raises(OSError, match="truncated file"):
                fit_sine(jobs.model_of("yogi"), first_epoch=2 * EPOCHS, callbacks=again)
