"""A state moves between Adam and Yogi, fused or not, and to and from keras.optimizers.Adam."""

import keras
import pytest
from support.backend import ENGINES, ON_TENSORFLOW, tensorflow_only
from support.cases import BOTH
from support.comparison import assert_unchanged, snapshot
from support.states import (
    STATE_SHAPES,
    assert_same_state,
    built,
    filled,
    model_with_state,
    restored,
    stored,
    written,
)

import keras_yogi

NAMES = list(ENGINES)


@pytest.mark.parametrize("engines", [(NAMES[0], NAMES[-1]), (NAMES[-1], NAMES[0])])
@pytest.mark.parametrize("second", BOTH)
@pytest.mark.parametrize("first", BOTH)
def test_adam_and_yogi_fused_or_not_have_one_layout(first, second, engines, tmp_path):
    """The state of one loads into the other, the learning rate with it: whoever goes on with
    Yogi where Adam has stopped sets the learning rate after loading.
    """
    source = filled(first(**ENGINES[engines[0]]), seed=1)
    ends = [filled(second(**ENGINES[engines[1]]), seed=2) for _ in range(1 + ON_TENSORFLOW)]
    ends[0].load_own_variables(stored(source))
    for end in ends[1:]:
        restored(end, written(source, tmp_path)).assert_consumed()
    for end in ends:
        assert_same_state(source, end)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("skipping", [(False, True), (True, False), (True, True)])
def test_counting_skipped_steps_does_not_change_the_layout(skipping, amsgrad, tmp_path):
    def optimizer(index):
        adam = keras_yogi.Adam(amsgrad=amsgrad, skip_nonfinite=skipping[index])
        return filled(adam, seed=index)

    source, by_file = optimizer(0), optimizer(1)
    by_file.load_own_variables(stored(source))
    shared = 2 + len(STATE_SHAPES) * (3 if amsgrad else 2)
    assert_unchanged(snapshot(source)[:shared], snapshot(by_file)[:shared])
    assert by_file.skipped_steps == (source.skipped_steps if all(skipping) else 0)
    assert (source.skipped_steps > 0) == skipping[0]
    if ON_TENSORFLOW:
        by_checkpoint = optimizer(1)
        count = by_checkpoint.skipped_steps
        restored(by_checkpoint, written(source, tmp_path)).expect_partial()
        assert_unchanged(snapshot(source)[:shared], snapshot(by_checkpoint)[:shared])
        # What a checkpoint does not know, it leaves.
        expected = source.skipped_steps if all(skipping) else count
        assert by_checkpoint.skipped_steps == expected


# To and from keras.optimizers.Adam

OPTIONS = [{}, {"amsgrad": True}, {"use_ema": True, "gradient_accumulation_steps": 2}]
ADAMS = [(keras.optimizers.Adam, keras_yogi.Adam), (keras_yogi.Adam, keras.optimizers.Adam)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("first", "second"), ADAMS)
def test_set_weights_moves_the_state(first, second, options):
    source, end = filled(first(**options), seed=1), filled(second(**options), seed=2)
    end.set_weights([v.numpy() for v in source.variables])
    assert_same_state(source, end)


@pytest.mark.parametrize("ours", BOTH)
def test_bias_correction_is_in_the_configuration_and_not_in_the_state(ours):
    corrections = ("momentum", "both")
    for source in [filled(ours(bias_correction=c), seed=1) for c in corrections]:
        for correction in corrections:
            end = filled(ours(bias_correction=correction), seed=2)
            for load in (
                lambda end=end, source=source: end.load_own_variables(stored(source)),
                lambda end=end, source=source: end.set_weights(
                    [v.numpy() for v in source.variables]
                ),
            ):
                load()
                assert_same_state(source, end)
                assert end.bias_correction == correction
            assert ours.from_config(end.get_config()).bias_correction == correction


def test_keras_adam_takes_a_state_of_another_bias_correction():
    """It has as many variables as Keras's own."""
    source = filled(keras_yogi.Adam(bias_correction="momentum"), seed=1)
    end = filled(keras.optimizers.Adam(), seed=2)
    end.load_own_variables(stored(source))
    assert_same_state(source, end)


@tensorflow_only
@pytest.mark.parametrize("first_built", ["optimizer", "checkpoint"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("first", "second"), ADAMS)
def test_a_checkpoint_moves_the_state(first, second, options, first_built, tmp_path):
    source, end = filled(first(0.02, **options), seed=1), second(0.01, **options)
    if first_built == "optimizer":
        filled(end, seed=2)
    status = restored(end, written(source, tmp_path))
    assert_same_state(source, built(end))
    status.expect_partial()


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("first", "second"), ADAMS)
def test_a_keras_file_moves_the_state(first, second, amsgrad, tmp_path):
    """Load it, compile it with the other optimizer, build that, load the state."""
    path = tmp_path / "model.keras"
    model = model_with_state(first(0.02, amsgrad=amsgrad))
    model.save(path)
    loaded = keras.models.load_model(path)
    assert isinstance(loaded.optimizer, first)  # PyTorch has a class of its own
    loaded.compile(second(0.01, amsgrad=amsgrad), loss="mse")
    with pytest.warns(UserWarning, match=r"because it (has 2 variables|has not been built)"):
        loaded.load_weights(path)
    loaded.optimizer.build(loaded.trainable_variables)
    loaded.load_weights(path)
    assert_unchanged(*(snapshot(m.optimizer, m.weights) for m in (model, loaded)))
