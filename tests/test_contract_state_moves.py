"""A state moves between Adam and Yogi, fused or not, and to and from keras.optimizers.Adam."""

import keras
import pytest
from contract import assert_unchanged, snapshot
from optimizer_state import (
    OURS,
    SHAPES,
    assert_same_state,
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


@pytest.mark.parametrize("start", ["plain", "warm"])
@pytest.mark.parametrize("fused", [(True, False), (False, True)])
@pytest.mark.parametrize("second", OURS)
@pytest.mark.parametrize("first", OURS)
def test_adam_and_yogi_fused_or_not_have_one_layout(first, second, fused, start, tmp_path):
    """The state of one loads into the other, the learning rate with it: whoever goes on with
    Yogi where Adam has stopped sets the learning rate after loading.
    """
    source = filled(first(fused=fused[0]), seed=1)
    ends = [filled(second(fused=fused[1]), seed=2) for _ in range(2)]
    for optimizer in [source] if start == "warm" else ends:
        warm(optimizer)
    ends[0].load_own_variables(stored(source))
    read(ends[1], written(source, tmp_path)).assert_consumed()
    for end in ends:
        assert_unchanged(state(source), state(end))


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("skipping", [(False, True), (True, False), (True, True)])
def test_counting_skipped_steps_does_not_change_the_layout(skipping, amsgrad, tmp_path):
    def optimizer(index):
        adam = keras_yogi.Adam(amsgrad=amsgrad, skip_nonfinite=skipping[index])
        return filled(adam, seed=index)

    source, by_file, by_checkpoint = optimizer(0), optimizer(1), optimizer(1)
    by_file.load_own_variables(stored(source))
    count = by_checkpoint.skipped_steps
    read(by_checkpoint, written(source, tmp_path)).expect_partial()
    for end in (by_file, by_checkpoint):
        shared = 2 + len(SHAPES) * (3 if amsgrad else 2)
        assert_unchanged(snapshot(source, [])[:shared], snapshot(end, [])[:shared])
    if all(skipping):
        assert source.skipped_steps == by_file.skipped_steps == by_checkpoint.skipped_steps > 0
    else:
        assert by_file.skipped_steps == 0
        assert by_checkpoint.skipped_steps == count  # what a checkpoint does not know, it leaves


# To and from keras.optimizers.Adam

OPTIONS = [{}, {"amsgrad": True}, {"use_ema": True, "gradient_accumulation_steps": 2}]
ADAMS = [(keras.optimizers.Adam, keras_yogi.Adam), (keras_yogi.Adam, keras.optimizers.Adam)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("first", "second"), ADAMS)
def test_set_weights_moves_the_state(first, second, options):
    source, end = filled(first(**options), seed=1), filled(second(**options), seed=2)
    end.set_weights([v.numpy() for v in source.variables])
    assert_same_state(source, end)


def test_set_weights_knows_nothing_of_a_warm_start():
    """There is no place for it in Keras's list of variables; files and checkpoints have one."""
    source, end = warm(filled(keras_yogi.Yogi(), seed=1)), filled(keras_yogi.Yogi(), seed=2)
    end.set_weights([v.numpy() for v in source.variables])
    assert_same_state(source, end)
    assert state(end)[-1] == 1.0
    assert state(source)[-1] == 0.0


@pytest.mark.parametrize("first_built", ["optimizer", "checkpoint"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("first", "second"), ADAMS)
def test_a_checkpoint_moves_the_state(first, second, options, first_built, tmp_path):
    source, end = filled(first(0.02, **options), seed=1), second(0.01, **options)
    if first_built == "optimizer":
        filled(end, seed=2)
    status = read(end, written(source, tmp_path))
    assert_same_state(source, built(end))
    status.expect_partial()


def test_a_checkpoint_of_keras_adam_does_not_end_a_warm_start(tmp_path):
    """It knows nothing of one. TensorFlow's assertion says what a checkpoint has left alone."""
    optimizer = warm(filled(keras_yogi.Adam(), seed=1))
    status = read(optimizer, written(filled(keras.optimizers.Adam(), seed=2), tmp_path))
    with pytest.raises(AssertionError, match="1 of 1 unmatched objects"):
        status.assert_existing_objects_matched()
    assert state(optimizer)[-1] == 0.0


def test_keras_adam_refuses_a_warm_started_state(tmp_path):
    """Its velocity would be corrected for a start from zero."""
    optimizer = filled(keras.optimizers.Adam(), seed=1)
    before = state(optimizer)
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        optimizer.load_own_variables(stored(warm(filled(keras_yogi.Adam(), seed=2))))
    assert_unchanged(before, state(optimizer))


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("first", "second"), ADAMS)
def test_a_keras_file_moves_the_state(first, second, amsgrad, tmp_path):
    """Load it, compile it with the other optimizer, build that, load the state."""
    path = tmp_path / "model.keras"
    model = compiled(first(0.02, amsgrad=amsgrad))
    model.save(path)
    loaded = keras.models.load_model(path)
    assert type(loaded.optimizer) is first
    loaded.compile(second(0.01, amsgrad=amsgrad), loss="mse")
    with pytest.warns(UserWarning, match="because it has 2 variables"):
        loaded.load_weights(path)
    loaded.optimizer.build(loaded.trainable_variables)
    loaded.load_weights(path)
    assert_unchanged(*(snapshot(m.optimizer, m.weights) for m in (model, loaded)))
