"""keras_yogi.TensorBoard with other optimizers, wrappers and strategies; bad arguments."""

import re
import textwrap

import keras
import numpy as np
import pytest
from support.figures import FIGURES, ROUNDING, by_hand
from support.scripts import run_script
from support.tensorboard_runs import (
    OF_VARIABLES,
    SCALARS,
    events,
    fit_lookups,
    lookup_model,
    lookups,
    scalars,
    tags,
)

import keras_yogi


def assert_last_values(folder, optimizer, variables, step=1, learning_rate=None):
    _, of_model = by_hand(optimizer, variables, learning_rate)
    for figure in FIGURES:
        last = scalars(folder, f"optimizer/{figure}")[step]
        assert last == pytest.approx(of_model[figure], rel=ROUNDING), figure


def test_keras_adam_has_all_scalars(tmp_path):
    fit_lookups(lookup_model(keras.optimizers.Adam()), keras_yogi.TensorBoard(tmp_path))
    assert tags(tmp_path, "scalars") == SCALARS | OF_VARIABLES


def test_of_other_optimizers_what_can_be_told_is_written_and_the_rest_said_once(tmp_path):
    callback = keras_yogi.TensorBoard(tmp_path, histogram_freq=1, optimizer_freq="batch")
    with pytest.warns(UserWarning, match="SGD: only norms are known") as caught:
        fit_lookups(lookup_model(keras.optimizers.SGD(0.5, momentum=0.9)), callback)
    assert len([w for w in caught if "only norms" in str(w.message)]) == 1
    names = {"learning_rate", "skipped_steps", "weight_norm", "momentum_norm"}
    found = {tag for tag in tags(tmp_path, "scalars") if tag.startswith("optimizer/")}
    assert found == {f"optimizer/{name}" for name in names}
    assert "optimizer_momentum_norm/out/kernel" in tags(tmp_path)
    assert not any("log10" in tag for tag in tags(tmp_path))


def test_a_loss_scale_optimizer(tmp_path):
    optimizer = keras.optimizers.LossScaleOptimizer(keras_yogi.Yogi(0.0625), initial_scale=4.0)
    model = lookup_model(optimizer)
    fit_lookups(model, keras_yogi.TensorBoard(tmp_path))
    assert tags(tmp_path, "scalars") == SCALARS | OF_VARIABLES
    assert_last_values(tmp_path, optimizer, model.trainable_variables)


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="newer Keras")
def test_a_multi_optimizer(tmp_path):
    ours, rest = keras_yogi.Yogi(0.0625, name="ours"), keras_yogi.Adam(0.25, name="rest")
    by_path = keras.optimizers.OptimizerMap(rest, {".*embed.*": ours})
    model = lookup_model(keras.optimizers.MultiOptimizer(by_path))
    fit_lookups(model, keras_yogi.TensorBoard(tmp_path))
    rates = {"optimizer/learning_rate_ours", "optimizer/learning_rate_rest"}
    assert (
        tags(tmp_path, "scalars") == (SCALARS - {"optimizer/learning_rate"} | rates) | OF_VARIABLES
    )
    embed, *others = model.trainable_variables
    squares = [by_hand(ours, [embed])[1], by_hand(rest, others)[1]]
    norm = np.sqrt(sum(figures["update_norm"] ** 2 for figures in squares))
    assert scalars(tmp_path, "optimizer/update_norm")[1] == pytest.approx(norm, rel=ROUNDING)


def test_a_schedule(tmp_path):
    schedule = keras.optimizers.schedules.InverseTimeDecay(0.5, 1, 1.0)
    fit_lookups(lookup_model(keras_yogi.Adam(schedule)), keras_yogi.TensorBoard(tmp_path))
    assert scalars(tmp_path, "optimizer/learning_rate") == {
        0: np.float32(0.5 / 3),
        1: np.float32(0.5 / 6),
    }


def test_a_learning_rate_that_a_callback_changes(tmp_path):
    model = lookup_model(keras_yogi.Adam(0.5))
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    ours = keras_yogi.TensorBoard(tmp_path, optimizer_freq=3)
    model.fit(
        np.zeros((48, 3), "int32"),
        np.ones(48),
        batch_size=16,
        epochs=2,
        callbacks=[scheduler, ours],
        verbose=0,
    )
    assert scalars(tmp_path, "optimizer/learning_rate") == {3: 0.25, 6: 0.125}
    assert_last_values(tmp_path, model.optimizer, model.trainable_variables, step=6)


def test_a_schedule_in_every_batch(tmp_path):
    schedule = keras.optimizers.schedules.InverseTimeDecay(0.5, 1, 1.0)
    model = lookup_model(keras_yogi.Adam(schedule))
    fit_lookups(model, keras_yogi.TensorBoard(tmp_path, optimizer_freq="batch"))
    expected = {step: np.float32(0.5 / step) for step in range(1, 7)}
    assert scalars(tmp_path, "optimizer/learning_rate") == expected
    assert_last_values(tmp_path, model.optimizer, model.trainable_variables, 6, 0.5 / 6)


def test_a_learning_rate_from_a_function_stays_live(tmp_path):
    rates = [0.5]

    def rate():
        return rates[-1]

    model = lookup_model(keras_yogi.Adam(rate))
    change = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: rates.append(2.0 ** -(batch + 1))
    )
    ours = keras_yogi.TensorBoard(tmp_path, optimizer_freq="batch")
    model.fit(*lookups(), batch_size=16, callbacks=[change, ours], verbose=0)
    assert scalars(tmp_path, "optimizer/learning_rate") == {1: 0.5, 2: 0.25, 3: 0.125}


def test_schedules_that_take_the_place_of_a_number_and_of_each_other(tmp_path):
    """Each new one may lie in memory where one lay before that is gone."""
    model = lookup_model(keras_yogi.Adam(0.5))

    def replace(epoch, logs):
        if epoch:
            rates = [2.0 ** -(epoch + 1), 0.0]
            schedule = keras.optimizers.schedules.PiecewiseConstantDecay([100], rates)
            model.optimizer.learning_rate = schedule

    ours = keras_yogi.TensorBoard(tmp_path, optimizer_freq=3)
    change = keras.callbacks.LambdaCallback(on_epoch_begin=replace)
    model.fit(*lookups(), batch_size=16, epochs=8, callbacks=[change, ours], verbose=0)
    expected = {3 * (epoch + 1): 2.0 ** -(epoch + 1) for epoch in range(8)}
    assert scalars(tmp_path, "optimizer/learning_rate") == expected


def test_skipped_steps(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras_yogi.Adam(skip_nonfinite=True), loss="mse")
    x = np.ones((4, 2), "float32")
    x[1] = np.nan
    callback = keras_yogi.TensorBoard(tmp_path, optimizer_freq="batch")
    model.fit(x, np.ones(4), batch_size=1, shuffle=False, callbacks=[callback], verbose=0)
    assert scalars(tmp_path, "optimizer/skipped_steps") == {1: 0, 2: 1, 3: 1, 4: 1}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        model = lookup_model(keras_yogi.Yogi(0.0625))
    finally:
        keras.config.set_dtype_policy(before)
    assert model.trainable_variables[0].dtype == dtype
    callback = keras_yogi.TensorBoard(tmp_path, histogram_freq=1, optimizer_freq="batch")
    fit_lookups(model, callback)
    assert tags(tmp_path, "scalars") >= OF_VARIABLES
    assert_last_values(tmp_path, model.optimizer, model.trainable_variables, step=6)


def test_gradient_accumulation(tmp_path):
    model = lookup_model(keras_yogi.Yogi(0.0625, gradient_accumulation_steps=2))
    fit_lookups(model, keras_yogi.TensorBoard(tmp_path))
    assert_last_values(tmp_path, model.optimizer, model.trainable_variables)


def test_a_model_that_is_built_by_its_first_batch(tmp_path):
    model = keras.Sequential([keras.layers.Dense(2, name="late")])
    model.compile(keras_yogi.Yogi(), loss="mse")
    callback = keras_yogi.TensorBoard(tmp_path, optimizer_freq="batch")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), batch_size=2, callbacks=[callback], verbose=0)
    assert list(scalars(tmp_path, "optimizer/update_norm")) == [1, 2]


MIRRORED = """
    import keras_yogi
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    from support import tensorboard_runs as t
    for name, strategy in dict(
        mirrored=tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]),
        one=tf.distribute.OneDeviceStrategy("CPU:0"),
    ).items():
        with strategy.scope():
            model = t.lookup_model(keras_yogi.Yogi(0.0625, fused=False))
        folder = {folder!r} + "/" + name
        callbacks = [
            keras_yogi.TensorBoard(folder, 1),
            keras_yogi.TensorBoard(folder + "_batches", optimizer_freq="batch"),
        ]
        for callback in callbacks:
            t.fit_lookups(model, callback, epochs=1, shuffle=False)
        print("OK", name, keras_yogi.diagnose(model.optimizer).step)
"""


@pytest.mark.slow
def test_mirrored_variables(tmp_path):
    """Two replicas and one end with the same slots, up to the order of a sum of gradients."""
    script = tmp_path / "mirrored.py"
    script.write_text(textwrap.dedent(MIRRORED).format(folder=str(tmp_path)), encoding="utf-8")
    done = run_script(script, cwd=tmp_path)
    assert "OK mirrored 6" in done.stdout, done.stderr
    for runs in ("", "_batches"):
        mirrored, one = (tmp_path / f"{name}{runs}" for name in ("mirrored", "one"))
        assert tags(mirrored) == tags(one)
        assert tags(mirrored, "scalars") >= OF_VARIABLES
        for figure in FIGURES:
            ours, theirs = (scalars(folder, f"optimizer/{figure}") for folder in (mirrored, one))
            # 6e-8 a gradient, in six steps each of which feeds the next
            assert ours == pytest.approx(theirs, rel=1e-4), figure


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer_freq": 0}, '`optimizer_freq` must be "epoch", "batch" or an integer >= 1'),
        ({"optimizer_freq": True}, "Received: optimizer_freq=True"),
        ({"optimizer_freq": "step"}, "Received: optimizer_freq='step'"),
        ({"optimizer_freq": 1.5}, "Received: optimizer_freq=1.5"),
        ({"per_variable": 1}, "`per_variable` must be True or False. Received: per_variable=1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        keras_yogi.TensorBoard(**arguments)


def test_arguments_go_where_they_go_in_keras():
    callback = keras_yogi.TensorBoard("folder", 2, False, update_freq=7)
    assert (callback.log_dir, callback.histogram_freq) == ("folder", 2)
    assert (callback.write_graph, callback.update_freq) == (False, 7)
    with pytest.raises(TypeError):
        keras_yogi.TensorBoard(optimizer_frequency=1)


def test_a_model_without_an_optimizer(tmp_path):
    class Still(keras.Model):
        def train_step(self, *arguments):
            return {"loss": keras.ops.zeros(())}

    inputs = keras.Input((2,))
    model = Still(inputs, keras.layers.Dense(1)(inputs))
    model.compile(optimizer=None)
    callback = keras_yogi.TensorBoard(tmp_path, 1, optimizer_freq="batch")
    model.fit(np.ones((4, 2)), np.ones(4), callbacks=[callback], verbose=0)
    assert not tags(tmp_path, "scalars")
    with pytest.raises(ValueError, match="a Keras optimizer or a compiled model"):
        keras_yogi.diagnose(model)


def test_lazy_tables_are_left_out_with_a_warning(tmp_path):
    model = lookup_model(keras_yogi.Adam(0.0625, sparse_update="lazy"))
    with pytest.warns(UserWarning, match="move only if a batch contains them"):
        fit_lookups(model, keras_yogi.TensorBoard(tmp_path, optimizer_freq="batch"))
    assert "optimizer_update_norm/embed/embeddings" not in tags(tmp_path)
    assert "optimizer_update_norm/out/kernel" in tags(tmp_path)
    assert "optimizer/update_norm" not in tags(tmp_path)  # the table's part of it is unknown
    ((_, page),) = events(tmp_path)["optimizer/config", "text"]
    assert "move only if a batch contains them" in page.item().decode()
