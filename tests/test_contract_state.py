"""The optimizer's state: saved, loaded, copied and moved, it is all there or not touched."""

import copy
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import _training_job as jobs
import keras
import numpy as np
import pytest
from contract import assert_unchanged, snapshot
from optimizer_state import (
    OURS,
    SHAPES,
    assert_of_use,
    built,
    compiled,
    filled,
    read,
    state,
    stored,
    warm,
    written,
)

import keras_yogi

# In a new process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Trainings saved here, continued here (`here.npz`) and in another process (`WAY.npz`)."""
    folder = tmp_path_factory.mktemp("trainings")
    for case in jobs.CASES:
        (folder / case).mkdir()
        np.savez(folder / case / "here.npz", *jobs.save_every_way(case, folder / case))
    subprocess.run([sys.executable, jobs.__file__, "continue", str(folder)], check=True)
    return folder


@pytest.mark.parametrize("way", jobs.WAYS)
@pytest.mark.parametrize("case", jobs.CASES)
def test_training_goes_on_in_a_new_process_bit_for_bit(folder, case, way):
    here = jobs.load_state(folder / case / "here.npz")
    assert_unchanged(here, jobs.load_state(folder / case / f"{way}.npz"))


def test_a_warm_start_shows_in_the_end(folder):
    """Or else the comparison above would not see one that is lost on the way."""
    warm, plain = (jobs.load_state(folder / c / "here.npz")[0] for c in ("warm yogi", "yogi"))
    assert np.abs(warm - plain).max() > 1e-3


# A state that does not fit is refused as Keras refuses it, and never half loaded.

SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9)
FOREIGN = {
    "sgd": lambda ours: keras.optimizers.SGD(0.1),
    "sgd with momentum": lambda ours: keras.optimizers.SGD(0.1, momentum=0.9),
    "with ema": lambda ours: ours(use_ema=True),
    "with accumulation": lambda ours: ours(gradient_accumulation_steps=2),
    "with a schedule": lambda ours: ours(SCHEDULE),
    "amsgrad": lambda ours: keras_yogi.Adam(amsgrad=True),
}


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("ours", OURS)
def test_a_state_with_other_variables_is_refused_whole(ours, foreign):
    store = stored(filled(FOREIGN[foreign](ours), seed=1))
    optimizer = warm(filled(ours(skip_nonfinite=True), seed=2))
    before = state(optimizer)
    with pytest.warns(UserWarning, match=r"Nothing was loaded into optimizer .* because it has"):
        optimizer.load_own_variables(store)
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        built(keras.optimizers.Adam()).load_own_variables(store)
    assert_unchanged(before, state(optimizer))
    assert_of_use(optimizer)


def test_a_smaller_state_is_refused_whole():
    store = stored(filled(keras_yogi.Adam(), seed=1))
    for optimizer in (keras_yogi.Adam(amsgrad=True), keras_yogi.Yogi(use_ema=True)):
        before = state(filled(optimizer, seed=2))
        with pytest.warns(UserWarning, match="because it has 11 variables, and the saved one has"):
            optimizer.load_own_variables(store)
        assert_unchanged(before, state(optimizer))
        assert_of_use(optimizer)


@pytest.mark.parametrize(
    ("saved", "options", "shapes"),
    [
        # The last variable differs: Keras's own optimizers load all others before they see it.
        ({}, {}, [(2, 3), (3,), (1,)]),
        ({"amsgrad": True}, {"use_ema": True}, SHAPES),  # as many variables, in another order
    ],
)
def test_a_state_of_other_shapes_is_refused_whole(saved, options, shapes):
    store = stored(filled(keras_yogi.Adam(**saved), 1, shapes))
    optimizer = warm(filled(keras_yogi.Adam(**options, skip_nonfinite=True), seed=2))
    before = state(optimizer)
    with pytest.raises(ValueError, match=r"The value of `.*` must be of its shape"):
        optimizer.load_own_variables(store)
    with pytest.raises(ValueError, match="shape"):
        built(keras.optimizers.Adam(**options)).load_own_variables(store)
    assert_unchanged(before, state(optimizer))
    assert_of_use(optimizer)


def test_a_file_of_another_model_leaves_the_optimizer_as_it_was(tmp_path):
    compiled(keras_yogi.Yogi(), units=4).save_weights(tmp_path / "other.weights.h5")
    model = compiled(warm(keras_yogi.Yogi()), units=5)
    before = state(model.optimizer)
    with pytest.raises(ValueError, match="could not be loaded"):
        model.load_weights(tmp_path / "other.weights.h5")
    assert_unchanged(before, state(model.optimizer))
    assert_of_use(model.optimizer)


@pytest.mark.parametrize("ours", OURS)
def test_nothing_is_loaded_before_the_optimizer_is_built(ours):
    optimizer = ours()
    before = state(optimizer)
    with pytest.warns(UserWarning, match="has not been built yet"):
        optimizer.load_own_variables(stored(warm(filled(ours(), seed=1))))
    assert_unchanged(before, state(optimizer))
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


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_checkpoint_that_does_not_fit_does_what_it_does_to_keras_adam(misfit, tmp_path):
    saved, loaded = MISFITS[misfit]

    def outcome(adam, folder):
        folder.mkdir()
        path = written(filled(adam(**saved), seed=1), folder)
        optimizer = filled(adam(**loaded), seed=2)
        before = snapshot(optimizer, [])
        refused = False
        try:
            read(optimizer, path).expect_partial()
        except ValueError:
            refused = True
        after = snapshot(optimizer, [])
        assert_of_use(optimizer)
        return refused, [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]

    ours = outcome(keras_yogi.Adam, tmp_path / "ours")
    assert ours == outcome(keras.optimizers.Adam, tmp_path / "keras")


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path):
    path = written(filled(keras_yogi.Yogi(), 1, [(2, 4), (4,), ()]), tmp_path)
    optimizer = filled(keras_yogi.Yogi(), seed=2)
    with pytest.raises(ValueError, match="shape"):
        read(optimizer, path)
    assert_of_use(optimizer)


# Copies

COPIES = {
    "pickle": lambda original: pickle.loads(pickle.dumps(original)),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "from_config": lambda original: type(original).from_config(original.get_config()),
}


@pytest.mark.parametrize("kind", ["unbuilt", "built", "warm"])
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("ours", OURS)
def test_a_copy_of_a_bare_optimizer_is_what_keras_makes_of_its_own(ours, way, kind):
    """The configuration without slots, and a warning where slots are left behind."""

    def outcome(optimizer):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            copy = COPIES[way](optimizer)
        assert type(copy) is type(optimizer)
        assert copy.get_config() == optimizer.get_config()
        warned = ["variables" in str(w.message) for w in caught]
        return copy, (copy.built, any(warned), int(copy.iterations))

    originals = [ours(0.25), keras.optimizers.Adam(0.25)]
    if kind != "unbuilt":
        originals = [filled(original, seed=1) for original in originals]
        for original in originals:
            original.learning_rate = 0.25
    if kind == "warm":
        warm(originals[0])
    (copy, ours_did), (_, keras_did) = map(outcome, originals)
    assert ours_did == keras_did
    assert_unchanged(state(built(ours(0.25))), state(built(copy)))


@pytest.mark.parametrize("start", ["plain", "warm"])
@pytest.mark.parametrize("way", ["pickle", "copy.deepcopy"])
@pytest.mark.parametrize("ours", OURS)
def test_a_copy_of_a_compiled_model_is_whole_and_on_its_own(ours, way, start):
    model = compiled(ours())
    if start == "warm":
        warm(model.optimizer)
    copy = COPIES[way](model)
    assert type(copy.optimizer) is ours
    before = state(model.optimizer)
    assert_unchanged(before, state(copy.optimizer))
    assert_unchanged(model.get_weights(), copy.get_weights())
    assert_of_use(copy.optimizer)
    assert_unchanged(before, state(model.optimizer))


@pytest.mark.parametrize("ours", OURS)
def test_a_cloned_model_has_a_fresh_optimizer(ours):
    model = compiled(ours())
    model.optimizer.learning_rate = 0.25
    warm(model.optimizer)
    before = state(model.optimizer)
    clone = keras.models.clone_model(model)
    assert type(clone.optimizer) is ours
    assert clone.optimizer.get_config() == model.optimizer.get_config()
    fresh = ours(0.25)
    for optimizer in (fresh, clone.optimizer):
        optimizer.build(clone.trainable_variables)
    assert_unchanged(state(fresh), state(clone.optimizer))
    assert_of_use(clone.optimizer)
    assert_unchanged(before, state(model.optimizer))


def test_the_code_of_the_documentation(tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "state.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert int(names["model"].optimizer.iterations) == 2


def test_half_a_backup_is_survived_with_two_alone(tmp_path):
    """As a kill in the middle of writing leaves it: the reason for `double_checkpoint=True`."""
    for double in (False, True):
        folder = tmp_path / str(double)
        options = dict(backup_dir=str(folder), save_freq=1, double_checkpoint=double)
        backup = keras.callbacks.BackupAndRestore(**options, delete_checkpoint=False)
        jobs.train(jobs.compiled("yogi"), callbacks=[backup])
        newest = folder / "latest.weights.h5"
        newest.write_bytes(newest.read_bytes()[:1000])
        again = [keras.callbacks.BackupAndRestore(**options)]
        if double:
            jobs.train(jobs.compiled("yogi"), 2 * jobs.EPOCHS, callbacks=again)
        else:
            with pytest.raises(OSError, match="truncated file"):
                jobs.train(jobs.compiled("yogi"), 2 * jobs.EPOCHS, callbacks=again)
