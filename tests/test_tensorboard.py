"""keras_yogi.TensorBoard: event files read back, and training that it does not change."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.backend import WITHOUT_XLA
from support.figures import FIGURES, ROUNDING, by_hand
from support.tensorboard_runs import (
    HISTOGRAMS,
    OF_VARIABLES,
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
from keras_yogi import any_optimizer
from keras_yogi.callbacks import events as events_module


@pytest.mark.parametrize(
    ("optimizer_class", "fused"), [(keras_yogi.Adam, False), (keras_yogi.Yogi, True)]
)
def test_tags_values_and_steps_of_epochs(optimizer_class, fused, tmp_path):
    model = lookup_model(optimizer_class(0.0625, fused=fused))
    fit_lookups(model, keras_yogi.TensorBoard(tmp_path, histogram_freq=1))
    assert tags(tmp_path, "scalars") == SCALARS | OF_VARIABLES
    assert tags(tmp_path, "histograms") == HISTOGRAMS
    others = tags(tmp_path) - SCALARS - OF_VARIABLES - HISTOGRAMS
    assert others - {"optimizer/warnings"} == PAGES
    found = events(tmp_path)
    for tag in SCALARS | OF_VARIABLES:
        assert [step for step, _ in found[tag, "scalars"]] == [0, 1], tag

    def last_of(tag):
        return found[tag, "scalars"][1][1].item()

    assert all(value.dtype == "float32" for _, value in found["optimizer/update_norm", "scalars"])

    expected, of_model = by_hand(model.optimizer, model.trainable_variables)
    for figure in FIGURES:
        last = last_of(f"optimizer/{figure}")
        assert last == pytest.approx(of_model[figure], rel=ROUNDING), figure
        for variable, of_variable in zip(VARIABLES, expected, strict=True):
            last = last_of(f"optimizer_{figure}/{variable}")
            assert last == pytest.approx(of_variable[figure], rel=ROUNDING), (variable, figure)
    assert scalars(tmp_path, "optimizer/learning_rate") == {0: 0.0625, 1: 0.0625}
    untouched = 30 - len(np.unique(lookups()[0]))
    assert scalars(tmp_path, "optimizer/initial_rows") == {0: untouched, 1: untouched}


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


def watched_at(folder, frequencies, epochs=2, batch_size=16, **arguments):
    """One training that a callback watches at each of the frequencies; the folder of each."""
    model = lookup_model(keras_yogi.Yogi(0.0625))
    model.compile(model.optimizer, loss="mse", **WITHOUT_XLA, **arguments)
    folders = [folder / str(frequency) for frequency in frequencies]
    callbacks = [
        # Keras's `update_freq` has no say in it. (Of Keras's callbacks, one alone may have it.)
        keras_yogi.TensorBoard(
            of_one, optimizer_freq=frequency, update_freq=100 if frequency == 2 else "epoch"
        )
        for of_one, frequency in zip(folders, frequencies, strict=True)
    ]
    fit_lookups(model, *callbacks, epochs=epochs, batch_size=batch_size)
    return folders


def test_steps_of_batches(tmp_path):
    steps = {"batch": [1, 2, 3, 4, 5, 6], 2: [2, 4, 6], np.int64(3): [3, 6], 4: [4]}
    for folder, expected in zip(watched_at(tmp_path, steps), steps.values(), strict=True):
        found = events(folder)
        for tag in SCALARS - {"optimizer/initial_rows"}:
            assert [step for step, _ in found[tag, "scalars"]] == expected
        for tag in OF_VARIABLES:  # at the end of epochs
            assert [step for step, _ in found[tag, "scalars"]] == [0, 1]


def test_batches_are_counted_with_steps_per_execution(tmp_path):
    steps = {"batch": [4, 8, 12], 2: [4, 8, 12], 6: [8, 12]}
    of_twelve_batches = {"epochs": 1, "batch_size": 4, "steps_per_execution": 4}
    folders = watched_at(tmp_path, steps, **of_twelve_batches)
    for folder, expected in zip(folders, steps.values(), strict=True):
        assert list(scalars(folder, "optimizer/update_norm")) == expected


@pytest.mark.parametrize("arguments", [{}, {"gradient_accumulation_steps": 3}])
def test_a_resumed_run_goes_on_where_it_stopped(arguments, tmp_path):
    model = lookup_model(keras_yogi.Yogi(0.0625, **arguments))
    for epoch in range(2):
        callback = keras_yogi.TensorBoard(tmp_path / "logs", optimizer_freq=2)
        fit_lookups(model, callback, epochs=epoch + 1, initial_epoch=epoch)
        model.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
    assert list(scalars(tmp_path / "logs", "optimizer/weight_norm")) == [2, 4, 6]
    assert list(scalars(tmp_path / "logs", "optimizer_weight_norm/out/bias")) == [0, 1]


@pytest.mark.parametrize("fused", [True, False])
def test_every_batch_is_seen_as_it_was(fused, tmp_path):
    model = lookup_model(keras_yogi.Adam(0.0625, fused=fused))
    expected = []
    by_batch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: expected.append(
            by_hand(model.optimizer, model.trainable_variables)[1]
        )
    )
    callback = keras_yogi.TensorBoard(tmp_path, optimizer_freq="batch")
    model.fit(*lookups(), batch_size=4, callbacks=[callback, by_batch], verbose=0)
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
    buckets = dict(found["optimizer_log10_root_velocity/hidden", "histograms"])
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
    ((_, buckets),) = events(tmp_path)["optimizer_log10_update/embed", "histograms"]
    assert buckets[:, 2].sum() == 4 * len(np.unique(lookups()[0]))


@pytest.mark.parametrize(
    "values",
    [
        np.full(9, 1e4),
        np.float32(1e4) + np.arange(9, dtype="float32") * np.float32(2**-10),  # the last bit
        1e4 + np.arange(9) * 2e-12,
        np.full(9, -3e300),
        np.zeros(9),
    ],
)
def test_histograms_of_values_that_are_nearly_equal(values):
    buckets = events_module.buckets(values, np.full(9, 2.0))
    assert buckets.shape == (30, 3)
    assert buckets[:, 2].sum() == 18
    assert np.all(buckets[:, 0] < buckets[:, 1])
    assert buckets[0, 0] <= values.min()
    assert buckets[-1, 1] >= values.max()


@pytest.mark.parametrize("optimizer_class", [keras_yogi.Adam, keras.optimizers.Adam])
def test_training_goes_on_when_all_weights_are_nearly_equal(optimizer_class, tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(50, name="out")])
    model.compile(optimizer_class(1e-9, epsilon=1e4), loss="mse")
    model.set_weights([np.full((2, 50), 1e4), np.full(50, 1e4)])
    callback = keras_yogi.TensorBoard(tmp_path, histogram_freq=1)
    model.fit(np.ones((4, 2)), np.ones((4, 50)), epochs=2, callbacks=[callback], verbose=0)
    found = events(tmp_path)["optimizer_log10_effective_lr/out", "histograms"]
    assert [buckets[:, 2].sum() for _, buckets in found] == [150, 150]


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


def page_of(optimizer):
    return events_module.config(optimizer, []).value[0].tensor.string_val[0].decode()


def test_hyperparameters():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    found = any_optimizer.hyperparameters(keras_yogi.Yogi(schedule, clipnorm=1.0))
    assert found["optimizer"] == "keras_yogi.Yogi"
    assert found["learning_rate"].startswith("ExponentialDecay(initial_learning_rate=0.5, ")
    assert found["clipnorm"] == 1.0
    assert "weight_decay" not in found
    sgd = keras.optimizers.SGD()
    assert any_optimizer.hyperparameters(sgd)["optimizer"] == "keras.optimizers.SGD"
    outer = keras.optimizers.LossScaleOptimizer(keras_yogi.Adam())
    assert any_optimizer.hyperparameters(outer)["optimizer"] == "keras_yogi.Adam"
    assert "Inside a keras.optimizers.LossScaleOptimizer" in page_of(outer)


def test_hyperparameters_as_they_were_given():
    found = any_optimizer.hyperparameters(keras_yogi.Yogi(0.05))
    assert found["learning_rate"] == 0.05  # not 0.05000000074505806
    assert found["epsilon"] == 1e-3
    assert "`0.05`" in page_of(keras_yogi.Yogi(0.05))


def test_the_columns_that_matter_come_first():
    summary = events_module.columns(keras_yogi.Adam(), ["loss", "val_loss"])
    from tensorboard.plugins.hparams import metadata

    content = summary.value[0].metadata.plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(content)
    names = [info.name for info in experiment.hparam_infos]
    assert names[:4] == ["optimizer", "learning_rate", "epsilon", "initial_accumulator_value"]
    assert {"beta_1", "amsgrad", "activation", "weight_decay"} <= set(names)
    shown = [(info.name.group, info.name.tag) for info in experiment.metric_infos]
    assert shown == [("train", "epoch_loss"), ("validation", "epoch_loss")]


def test_every_tag_has_a_description(tmp_path):
    fit_lookups(lookup_model(keras_yogi.Yogi()), keras_yogi.TensorBoard(tmp_path, histogram_freq=1))
    described = set()
    for path in tmp_path.glob("events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
                if value.metadata.summary_description:
                    described.add(value.tag)
    assert described >= SCALARS | OF_VARIABLES | HISTOGRAMS | {"optimizer/config"}


def test_faults_are_on_the_text_page(tmp_path):
    model = lookup_model(keras_yogi.Adam(3.0))
    fit_lookups(model, keras_yogi.TensorBoard(tmp_path), epochs=1)
    ((step, page),) = events(tmp_path)["optimizer/warnings", "text"]
    assert step == 0
    for sentence in keras_yogi.diagnose(model).warnings:
        assert f"- {sentence}" in page.item().decode()


# Training


@pytest.mark.parametrize(
    ("optimizer_class", "fused"), [(keras_yogi.Adam, False), (keras_yogi.Yogi, True)]
)
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
