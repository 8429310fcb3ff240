"""keras_yogi.diagnose: the figures, recomputed by hand from the slots; tables and errors."""

import json
import sys

import keras
import numpy as np
import pytest
from support.backend import tensorflow_only
from support.cases import BOTH, BY_ENGINE, CASES
from support.figures import (
    ROUNDING,
    assert_figures,
    by_hand,
    named_variables,
    take_random_steps,
)

import keras_yogi
from keras_yogi.diagnostics import gauge as gauge_module
from keras_yogi.diagnostics.gauge import FIGURES, Gauge
from keras_yogi.diagnostics.sampling import Precision

SMALL = Precision(0, 600, 128, complete=True, compiled=False)
ESTIMATED = Precision(0, 600, 128, complete=False, compiled=True)

MORE = {
    "epsilon_hat": lambda: CASES["adam"].optimizer(epsilon_hat=True),
    "epsilon dominates": lambda: CASES["yogi"].optimizer(epsilon=0.9),
    "after a warm start": lambda: CASES["adam"].optimizer(bias_correction="momentum"),
    "no bias correction": lambda: CASES["adam"].optimizer(bias_correction="none"),
}


@pytest.mark.parametrize("name", [*BY_ENGINE, *MORE])
def test_figures_are_those_of_the_slots(name):
    optimizer = MORE[name]() if name in MORE else BY_ENGINE[name].optimizer()
    variables = named_variables()
    take_random_steps(optimizer, variables)
    report = keras_yogi.diagnose(optimizer)
    assert report.step == 5
    assert list(report.variables) == ["embed/embeddings", "hidden/kernel", "out/bias", "scale"]
    # A proximal update is the difference of two weights: 6e-8 of a weight.
    rounding = 1e-4 if "proximal" in name else ROUNDING
    assert_figures(report, optimizer, variables, rounding)


@pytest.mark.parametrize(("dtype", "rounding"), [("float64", 1e-12), ("bfloat16", ROUNDING)])
@pytest.mark.parametrize("optimizer_class", BOTH)
def test_other_dtypes(optimizer_class, dtype, rounding):
    variables = named_variables(dtype)
    # Exact in float32, in which Keras keeps a learning rate.
    optimizer = take_random_steps(optimizer_class(0.0625), variables)
    assert_figures(keras_yogi.diagnose(optimizer), optimizer, variables, rounding)


def test_variables_of_several_dtypes():
    variables = [*named_variables("float64"), keras.Variable(np.ones(5, "float32"), name="single")]
    optimizer = take_random_steps(keras_yogi.Adam(0.0625), variables)
    assert_figures(keras_yogi.diagnose(optimizer), optimizer, variables)


def test_before_the_first_step_the_corrections_are_those_of_the_first():
    variables = named_variables()
    optimizer = keras_yogi.Yogi(0.0625)
    optimizer.build(variables)
    report = keras_yogi.diagnose(optimizer)
    rate = 0.0625 / (np.sqrt(1e-6 / (1 - 0.999)) + 1e-3)
    assert report.model["effective_learning_rate_median"] == pytest.approx(rate, rel=ROUNDING)
    assert report.model["update_norm"] == 0
    assert report.model["initial_velocity_share"] == 1
    assert report.warnings == []


def test_the_learning_rate_is_that_of_the_schedule_now():
    schedule = keras.optimizers.schedules.InverseTimeDecay(0.5, 1, 1.0)
    optimizer = take_random_steps(keras_yogi.Adam(schedule), named_variables(), steps=3)
    assert keras_yogi.diagnose(optimizer).model["learning_rate"] == 0.125  # 0.5 / (1 + 3)


@tensorflow_only
def test_packed_slots_give_the_same_figures():
    reports = []
    for fused in (True, False):
        variables = named_variables()
        optimizer = keras_yogi.Yogi(0.0625, fused=fused)
        optimizer.build(variables)
        random = np.random.default_rng(3)
        for variable in variables:
            for slot in ("momentum", "velocity"):
                optimizer.set_slot(variable, slot, random.random(variable.shape).astype("float32"))
        reports.append(keras_yogi.diagnose(optimizer).to_dict())
    assert reports[0] == reports[1]


def test_rows_of_embeddings_that_were_never_touched():
    optimizer = take_random_steps(keras_yogi.Yogi(0.0625), named_variables())
    report = keras_yogi.diagnose(optimizer)
    assert report.variables["embed/embeddings"]["untouched_rows"] == 10
    assert report.model["untouched_rows"] == 10
    assert "untouched_rows" not in report.variables["hidden/kernel"]


# A sample


def large_variables():
    random = np.random.default_rng(5)
    shapes = {"embed/embeddings": (700, 4), "hidden/kernel": (40, 50), "out/bias": (50,)}
    variables = [keras.Variable(random.normal(size=s), name="x") for s in shapes.values()]
    for variable, path in zip(variables, shapes, strict=True):
        variable._path = path
    return variables


@pytest.fixture
def large():
    """Row r of the embedding has a gradient of the size of r; rows 500 and up have none."""
    variables = large_variables()
    optimizer = keras_yogi.Adam(0.0625)
    optimizer.build(variables)
    random = np.random.default_rng(6)
    for _ in range(4):
        gradients = [random.normal(size=v.shape).astype("float32") for v in variables]
        gradients[0] *= np.where(np.arange(700) < 500, np.arange(1, 701), 0)[:, None] / 700
        optimizer.apply(gradients)
    return optimizer, variables


def test_of_a_sample_are_medians_and_percentiles_alone(large, monkeypatch):
    monkeypatch.setattr("keras_yogi.diagnostics.groups.CHUNK", 256)  # several pieces a variable
    optimizer, variables = large
    reading = Gauge(optimizer, SMALL).read()
    expected, model = by_hand(optimizer, variables)
    sampled = {figure for figure in FIGURES if "median" in figure or "p99" in figure}
    for place, of_variable in enumerate(expected):
        for figure in FIGURES:
            found = reading.of_variables[figure][place]
            # The bias has 50 weights: no sample is needed.
            if figure not in sampled or place == 2:
                assert found == pytest.approx(of_variable[figure], rel=ROUNDING), figure
    for figure in set(FIGURES) - sampled:
        assert reading.of_model[figure] == pytest.approx(model[figure], rel=ROUNDING)
    assert reading.untouched_rows == {0: (200, 700)}


def test_medians_of_a_sample_have_nearly_the_rank_of_the_median(large):
    optimizer, variables = large
    reading = Gauge(optimizer, SMALL).read()
    rates = []
    for variable in variables:
        v = np.ravel(optimizer.get_slot(variable, "velocity")).astype("float64")
        rates.append(0.0625 / (np.sqrt(v / (1 - 0.999**4)) + 1e-6))
    # Of 275 weights: a standard deviation of 0.5 / √275 = 0.03, of which four.
    for place in (0, 1):
        found = reading.of_variables["effective_learning_rate_median"][place]
        below = [np.mean(rates[place] < found * 0.9999), np.mean(rates[place] <= found * 1.0001)]
        assert below[0] - 0.12 <= 0.5 <= below[1] + 0.12
    everything = np.concatenate(rates)
    found = reading.of_model["effective_learning_rate_median"]
    assert np.mean(everything <= found * 1.0001) >= 0.4
    assert np.mean(everything < found * 0.9999) <= 0.6


def test_what_is_written_after_every_batch_is_an_estimate_of_it(large):
    optimizer, variables = large
    reading = Gauge(optimizer, ESTIMATED).read()
    _, model = by_hand(optimizer, variables)
    # Norms of 600 of 4,850 weights: √(kurtosis / 600) / 2 is 4 % for normal weights; four of it.
    for figure in ("weight_norm", "momentum_norm"):
        assert reading.of_model[figure] == pytest.approx(model[figure], rel=0.16), figure
    share = model["initial_velocity_share"]
    assert reading.of_model["initial_velocity_share"] == pytest.approx(share, abs=0.08)
    rows, all_rows = reading.untouched_rows[0]
    assert all_rows == 700
    assert rows == pytest.approx(200, abs=4 * 700 * np.sqrt(2 / 7 * 5 / 7 / 275))


def test_a_sample_that_is_compiled_is_the_same(large):
    optimizer, _ = large
    compiled = Gauge(optimizer, ESTIMATED).read().of_variables
    eager = Gauge(optimizer, ESTIMATED._replace(compiled=False)).read().of_variables
    for figure in FIGURES:
        np.testing.assert_allclose(compiled[figure], eager[figure], rtol=ROUNDING)


def test_a_compiled_gauge_heeds_new_hyperparameters(large):
    optimizer, _ = large
    gauge = Gauge(optimizer, ESTIMATED)
    gauge.read()
    optimizer.epsilon = 0.5
    optimizer.learning_rate = 0.125
    assert gauge.read().of_model == Gauge(optimizer, ESTIMATED).read().of_model


def test_large_slots_stay_on_the_device(large, monkeypatch):
    sizes = []

    def recorded(tensor):
        sizes.append(keras.ops.size(tensor))
        return np.array(tensor)

    monkeypatch.setattr(gauge_module, "_numpy", recorded)
    optimizer, _ = large
    Gauge(optimizer, SMALL).read()
    assert 0 < max(sizes) <= SMALL.budget  # of 4,850 weights


def test_looking_changes_nothing(large):
    optimizer, variables = large
    before = [v.numpy().tobytes() for v in [*variables, *optimizer.variables]]
    for precision in (SMALL, ESTIMATED):
        Gauge(optimizer, precision).read()
    keras_yogi.diagnose(optimizer)
    assert before == [v.numpy().tobytes() for v in [*variables, *optimizer.variables]]


def test_looking_does_not_make_tensorflow_copy_variables_from_then_on(large):
    """As an operation that gathers rows from the variable itself would."""
    optimizer, _ = large
    gauge = Gauge(optimizer, ESTIMATED)
    gauge.read()
    ((concrete, _),) = gauge.groups[0]._observations.values()
    operations = {operation.type for operation in concrete.graph.get_operations()}
    assert "ReadVariableOp" in operations
    assert not {"ResourceGather", "ResourceGatherNd"} & operations


# Other optimizers, and what is wrapped around them


def test_keras_adam_has_all_figures():
    """Of the same slots, the same as ours: its ε is added before the correction."""
    variables, twins = named_variables(), named_variables()
    theirs = take_random_steps(keras.optimizers.Adam(0.0625, epsilon=1e-3, amsgrad=True), variables)
    ours = keras_yogi.Adam(0.0625, epsilon=1e-3, amsgrad=True, epsilon_hat=True)
    ours.build(twins)
    slots = (theirs._momentums, theirs._velocities, theirs._velocity_hats)
    for place, (variable, twin) in enumerate(zip(variables, twins, strict=True)):
        twin.assign(variable)
        for name, of_all in zip(ours.slots(), slots, strict=True):
            ours.set_slot(twin, name, of_all[place].value)
    ours.iterations.assign(5)
    report = keras_yogi.diagnose(theirs)
    assert report.notes == []
    assert report.to_dict() == keras_yogi.diagnose(ours).to_dict()
    assert_figures(report, ours, twins)


def test_of_other_optimizers_norms_are_told():
    variables = named_variables()
    report = keras_yogi.diagnose(
        take_random_steps(keras.optimizers.SGD(0.5, momentum=0.9), variables)
    )
    assert set(report.variables["scale"]) == {"weight_norm", "momentum_norm"}
    assert set(report.model) == {"learning_rate", "weight_norm", "momentum_norm", "skipped_steps"}
    norm = np.sqrt(sum(np.sum(v.numpy().astype("float64") ** 2) for v in variables))
    assert report.model["weight_norm"] == pytest.approx(norm, rel=ROUNDING)
    (note,) = report.notes
    assert note.startswith("SGD has no effective learning rate")


def test_a_loss_scale_optimizer_is_looked_into():
    variables = named_variables()
    inner = keras_yogi.Adam(0.0625)
    outer = take_random_steps(
        keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0), variables
    )
    assert_figures(keras_yogi.diagnose(outer), inner, variables)


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="newer Keras")
def test_a_multi_optimizer_is_looked_into():
    variables = named_variables()
    ours = keras_yogi.Yogi(0.0625, name="ours")
    rest = keras.optimizers.SGD(0.5, name="rest")
    by_path = keras.optimizers.OptimizerMap(rest, {"embed/.*": ours, "hidden/.*": ours})
    multi = take_random_steps(keras.optimizers.MultiOptimizer(by_path), variables)
    report = keras_yogi.diagnose(multi)
    assert report.model["learning_rate_ours"] == 0.0625
    assert report.model["learning_rate_rest"] == 0.5
    expected, model = by_hand(ours, variables[:2])
    for name, of_variable in zip(("embed/embeddings", "hidden/kernel"), expected, strict=True):
        found = {key: report.variables[name][key] for key in FIGURES}
        assert found == pytest.approx(of_variable, rel=ROUNDING)
    assert set(report.variables["scale"]) == {"weight_norm"}
    # The weights are of all, the rest of those whose rule is known.
    assert report.model["update_norm"] == pytest.approx(model["update_norm"], rel=ROUNDING)
    assert report.model["weight_norm"] > model["weight_norm"]


def test_an_optimizer_of_ones_own_is_diagnosed_for_free():
    from keras_yogi.optimizers import AdaptiveOptimizer
    from keras_yogi.rules import AdaptiveRule

    class Slow(AdaptiveRule):
        def second_moments(self, gradient, momentum, velocity, *others):
            return (keras.ops.maximum(velocity, keras.ops.square(gradient)),)

    variables = named_variables()
    optimizer = take_random_steps(AdaptiveOptimizer(0.0625, Slow(0.5, 0.9, 1e-3)), variables)
    assert_figures(keras_yogi.diagnose(optimizer), optimizer, variables)


# The report


@pytest.fixture
def report():
    return keras_yogi.diagnose(take_random_steps(keras_yogi.Yogi(0.0625), named_variables()))


def test_prints_a_table(report):
    heading, _, columns, *rows = str(report).splitlines()
    assert heading == "After 5 steps; learning_rate 0.0625"
    assert "√v̂ < ε" in columns
    names = [row.split("  ")[0].strip() for row in rows[:5]]
    assert names == [*report.variables, "(whole model)"]
    assert f"{report.variables['out/bias']['weight_norm']:.3g}" in rows[2]
    assert repr(report) == str(report)


def test_html_is_escaped(report):
    report.variables["<script>"] = {"weight_norm": 1.0}
    report.warnings.append("a < b")
    page = report._repr_html_()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "<li>a &lt; b</li>" in page
    assert page.count("<tr>") == 1 + 5 + 1


def test_converts_to_a_dict_that_json_takes(report):
    table = json.loads(json.dumps(report.to_dict()))
    assert table == report.to_dict()
    assert set(table) == {"step", "model", "variables", "warnings", "notes"}


def test_converts_to_a_data_frame(report):
    pytest.importorskip("pandas")
    frame = report.to_dataframe()
    assert list(frame.index) == list(report.variables)
    assert list(frame.columns[: len(FIGURES)]) == list(FIGURES)
    norms = report.variables["hidden/kernel"]
    assert frame.loc["hidden/kernel", "update_norm"] == norms["update_norm"]


def test_without_pandas_says_what_to_install(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        report.to_dataframe()


def test_names_do_not_depend_on_how_often_a_model_was_made():
    names = []
    for _ in range(2):
        model = keras.Sequential([keras.layers.Dense(2, name="first")])
        model.compile(keras_yogi.Yogi(), loss="mse")
        model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
        names.append(list(keras_yogi.diagnose(model.optimizer).variables))
    assert names[0] == names[1] == ["first/kernel", "first/bias"]


def test_variables_of_one_path_are_told_apart():
    variables = [keras.Variable(np.ones(3, "float32"), name="same") for _ in range(3)]
    report = keras_yogi.diagnose(take_random_steps(keras_yogi.Adam(), variables))
    assert list(report.variables) == ["same", "same_1", "same_2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("adam",), r"`optimizer` must be a Keras optimizer\. Received: optimizer='adam'"),
        ((keras_yogi.Adam(),), "`optimizer` must be built: train a step, or call"),
        ((None,), "`optimizer` must be a Keras optimizer"),
    ],
)
def test_refuses_what_it_cannot_diagnose(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_yogi.diagnose(*arguments)


def test_refuses_what_is_no_earlier_report(report):
    optimizer = take_random_steps(keras_yogi.Yogi(), named_variables())
    with pytest.raises(ValueError, match="`since` must be a report of"):
        keras_yogi.diagnose(optimizer, since={"step": 1})
