"""keras_yogi.TensorBoard: event files read back, and training that it does not change."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.figures import ROUNDING, by_hand
from support.tensorboard_runs import (
    HISTOGRAMS,
    OF_LAYERS,
    PAGES,
    SCALARS,
    VARIABLES,
    events,
    fit_lookups,
    lookup_model,
    lookups,
    scalars,
    tags,
)

import keras_yogi
from keras_yogi.callbacks import run_pages
from keras_yogi.diagnostics.gauge import FIGURES


@pytest.mark.parametrize("optimizer_class", [keras_yogi.Adam, keras_yogi.Yogi])
@pytest.mark.parametrize("fused", [True, False])
def test_tags_values_and_steps_of_epochs(optimizer_class, fused, tmp_path):
    model = lookup_model(optimizer_class(0.0625, fused=fused))
    fit_lookups(model, keras_yogi.TensorBoard(tmp_path, histogram_freq=1))
    assert tags(tmp_path, "scalars") == SCALARS | OF_LAYERS
    assert tags(tmp_path, "histograms") == HISTOGRAMS
    assert tags(tmp_path) == SCALARS | OF_LAYERS | HISTOGRAMS | PAGES
    found = events(tmp_path)
    for tag in SCALARS | OF_LAYERS:
        assert [step for step, _ in found[tag, "scalars"]] == [0, 1], tag
    assert all(value.dtype == "float32" for _, value in found["optimizer/update_norm", "scalars"])

    expected, of_model = by_hand(model.optimizer, model.trainable_variables)
    for figure in FIGURES:
        last = scalars(tmp_path, f"optimizer/{figure}")[1]
        assert last == pytest.approx(of_model[figure], rel=ROUNDING), figure
        for variable, of_variable in zip(VARIABLES, expected, strict=True):
            last = scalars(tmp_path, f"optimizer_layers/{variable}/{figure}")[1]
            assert last == pytest.approx(of_variable[figure], rel=ROUNDING), (variable, figure)
    assert scalars(tmp_path, "optimizer/learning_rate") == {0: 0.0625, 1: 0.0625}
    untouched = 30 - len(np.unique(lookups()[0]))
    assert scalars(tmp_path, "optimizer/untouched_rows") == {0: untouched, 1: untouched}


def test_what_keras_writes_is_as_keras_writes_it(tmp_path):
    contents = []
    for name, callback_class in {
        "ours": keras_yogi.TensorBoard,
        "keras": keras.callbacks.TensorBoard,
    }.items():
        folder = tmp_path / name
        model = lookup_model(keras_yogi.Yogi(0.0625))
        callback = callback_class(str(folder), 1, update_freq=2)
        fit_lookups(model, callback, validation_split=1 / 3, shuffle=False)
        contents.append([events(folder / part) for part in ("train", "validation")])
    for ours, theirs in zip(*contents, strict=True):
        # Keras's histograms are named after a model's number.
        of_tags = [{re.sub(r"^sequential_\d+", "", tag) for tag, _ in e} for e in (ours, theirs)]
        assert of_tags[0] == of_tags[1]
        for (tag, plugin), values in ours.items():
            if plugin == "scalars":
                assert values == theirs[tag, plugin], tag


@pytest.mark.parametrize(("frequency", "steps"), [("batch", [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6])])
def test_steps_of_batches(frequency, steps, tmp_path):
    model = lookup_model(keras_yogi.Yogi(0.0625))
    # Keras's `update_freq` has no say in it.
    callback = keras_yogi.TensorBoard(tmp_path, optimizer_freq=frequency, update_freq=100)
    fit_lookups(model, callback)
    found = events(tmp_path)
    for tag in SCALARS | OF_LAYERS:
        assert [step for step, _ in found[tag, "scalars"]] == steps
    # A model of fewer than 65,536 weights is looked at whole.
    _, of_model = by_hand(model.optimizer, model.trainable_variables)
    for figure in FIGURES:
        last = scalars(tmp_path, f"optimizer/{figure}")[steps[-1]]
        assert last == pytest.approx(of_model[figure], rel=ROUNDING)


@pytest.mark.parametrize("fused", [True, False])
def test_every_batch_is_seen_as_it_was(fused, tmp_path):
    """Ten looks at a time are written, after later steps have changed what they were taken of."""
    model = lookup_model(keras_yogi.Adam(0.0625, fused=fused))
    expected, written = [], []

    def compute(batch, logs):
        expected.append(by_hand(model.optimizer, model.trainable_variables)[1])
        if batch in (8, 9, 10):
            written.append(len(events(tmp_path).get(("optimizer/update_norm", "scalars"), [])))

    callback = keras_yogi.TensorBoard(tmp_path, optimizer_freq="batch")
    by_batch = keras.callbacks.LambdaCallback(on_train_batch_end=compute)
    model.fit(*lookups(), batch_size=4, callbacks=[callback, by_batch], verbose=0)
    assert written == [0, 10, 10]
    for figure in FIGURES:
        found = scalars(tmp_path, f"optimizer/{figure}")
        assert list(found) == [*range(1, 13)]
        for step, value in found.items():
            assert value == pytest.approx(expected[step - 1][figure], rel=ROUNDING), (figure, step)


def test_without_variables(tmp_path):
    callback = keras_yogi.TensorBoard(tmp_path, per_variable=False)
    fit_lookups(lookup_model(keras_yogi.Adam()), callback)
    assert tags(tmp_path, "scalars") == SCALARS
    assert "custom_scalars__config__" not in tags(tmp_path)


def test_histograms_count_the_weights_of_a_layer(tmp_path):
    model = lookup_model(keras_yogi.Yogi(0.0625))
    fit_lookups(model, keras_yogi.TensorBoard(tmp_path, histogram_freq=2), epochs=3)
    found = events(tmp_path)
    hidden = model.get_layer("hidden").trainable_variables
    values = []
    for variable in hidden:
        velocity = np.array(model.optimizer.get_slot(variable, "velocity"), "float64")
        values.append(0.5 * np.log10(velocity / (1 - 0.999**9)).ravel())
    values = np.concatenate(values)
    buckets = dict(found["optimizer_layers/hidden/log10_root_velocity", "histograms"])
    assert list(buckets) == [0, 2]
    left, right, counts = buckets[2].T
    assert buckets[2].shape == (30, 3)
    assert counts.sum() == len(values) == 65
    assert left[0] == pytest.approx(values.min(), abs=1e-6)
    assert right[-1] == pytest.approx(values.max(), abs=1e-6)
    # A value within rounding of an edge may fall on either side.
    edges = np.append(left, right[-1]) + 1e-6
    expected = np.histogram(values, np.append(edges[:-1] - 2e-6, edges[-1]))[0]
    assert np.abs(counts - expected).sum() <= 2


def test_histograms_leave_out_what_has_no_logarithm(tmp_path):
    model = lookup_model(keras_yogi.Adam(0.0625))
    fit_lookups(model, keras_yogi.TensorBoard(tmp_path, histogram_freq=1), epochs=1)
    ((_, buckets),) = events(tmp_path)["optimizer_layers/embed/log10_update", "histograms"]
    assert buckets[:, 2].sum() == 4 * len(np.unique(lookups()[0]))


def test_the_configuration_page(tmp_path):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    fit_lookups(
        lookup_model(keras_yogi.Yogi(schedule, fused=True)), keras_yogi.TensorBoard(tmp_path)
    )
    ((step, page),) = events(tmp_path)["optimizer/config", "text"]
    page = page.item().decode()
    assert step == 0
    for expected in (
        "## keras_yogi.Yogi",
        "| engine | fused |",
        "ExponentialDecay",
        "| epsilon | `0.001` |",
        f"| Keras | {keras.__version__}, backend tensorflow |",
        f"| TensorFlow | {tf.__version__} |",
        "CPU:0",
    ):
        assert expected in page, expected


def test_hyperparameters():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    found = run_pages.hyperparameters(keras_yogi.Yogi(schedule, clipnorm=1.0))
    assert found["optimizer"] == "keras_yogi.Yogi"
    assert found["learning_rate"].startswith("ExponentialDecay(initial_learning_rate=0.5, ")
    assert found["clipnorm"] == 1.0
    assert "weight_decay" not in found
    sgd = keras.optimizers.SGD()
    assert run_pages.hyperparameters(sgd)["optimizer"] == "keras.optimizers.SGD"
    outer = keras.optimizers.LossScaleOptimizer(keras_yogi.Adam())
    assert run_pages.hyperparameters(outer)["optimizer"] == "keras_yogi.Adam"
    assert "Inside a keras.optimizers.LossScaleOptimizer" in run_pages.page(outer)


# Training


@pytest.mark.parametrize("optimizer_class", [keras_yogi.Adam, keras_yogi.Yogi])
@pytest.mark.parametrize("fused", [True, False])
def test_training_is_bitwise_the_same(optimizer_class, fused, tmp_path):
    states = []
    for callback in (
        keras.callbacks.Callback(),
        keras_yogi.TensorBoard(tmp_path, 1, optimizer_freq="batch"),
        keras_yogi.TensorBoard(tmp_path, 1),
    ):
        model = lookup_model(optimizer_class(0.0625, fused=fused), dropout=0.5)
        fit_lookups(model, callback, epochs=3)
        model.fit(*lookups(), batch_size=16, verbose=0)  # nothing has been left behind
        states.append([v.numpy().tobytes() for v in [*model.variables, *model.optimizer.variables]])
    assert states[0] == states[1] == states[2]


def test_a_callback_can_be_used_again(tmp_path):
    callback = keras_yogi.TensorBoard(tmp_path, optimizer_freq="batch")
    fit_lookups(lookup_model(keras_yogi.Adam(0.25)), callback, epochs=1)
    model = lookup_model(keras_yogi.Yogi(0.5))
    fit_lookups(model, callback, epochs=1)
    rates = [value for _, value in events(tmp_path)["optimizer/learning_rate", "scalars"]]
    assert rates == [0.25] * 3 + [0.5] * 3
    assert len(events(tmp_path)["_hparams_/session_start_info", "hparams"]) == 2
