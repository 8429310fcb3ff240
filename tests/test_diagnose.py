"""keras_yogi.diagnose: figures against float64 NumPy and true steps; other optimizers; reports."""

import dataclasses
import json
import sys

import keras
import numpy as np
import pytest
from support.cases import ADAM, BY_ENGINE
from support.figures import (
    FIGURES,
    ROUNDING,
    assert_figures,
    by_hand,
    gradients_of,
    train,
    variables_of,
)
from support.states import warm

import keras_yogi
from keras_yogi.optimizers import AdaptiveOptimizer
from keras_yogi.rules import AdamRule, AdaptiveRule
from keras_yogi.statistics.collector import StatisticsCollector

MORE = {
    "epsilon_hat": lambda: keras_yogi.Adam(0.0625, **ADAM, epsilon_hat=True),
    "epsilon dominates": lambda: keras_yogi.Yogi(0.0625, epsilon=0.9),
    "unbiased": lambda: warm(keras_yogi.Adam(0.0625, **ADAM)),
    "no correction": lambda: keras_yogi.Adam(0.0625, **ADAM, bias_correction="none"),
}
OPTIMIZERS = {**{name: case.optimizer for name, case in BY_ENGINE.items()}, **MORE}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_figures_are_those_of_the_slots(name):
    optimizer, variables = OPTIMIZERS[name](), variables_of()
    train(optimizer, variables)
    report = keras_yogi.diagnose(optimizer)
    assert report.step == 5
    assert list(report.variables) == ["embed/embeddings", "hidden/kernel", "out/bias", "scale"]
    # A proximal update is the difference of two weights: 6e-8 of a weight.
    rounding = 1e-4 if "proximal" in name else ROUNDING
    assert_figures(report, optimizer, variables, rounding)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "proximal" not in name])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_update_is_what_the_last_step_has_added(name, steps):
    optimizer, variables = OPTIMIZERS[name](), variables_of()
    train(optimizer, variables, steps - 1)
    before = [v.numpy().astype("float64") for v in variables]
    optimizer.apply(gradients_of(variables, np.random.default_rng(9)), variables)
    report = keras_yogi.diagnose(optimizer)
    added = [v.numpy() - b for v, b in zip(variables, before, strict=True)]
    for name_, change in zip(report.variables, added, strict=True):
        # A new weight is rounded to float32: 1.2e-7 of a weight of 2, 30 of whose updates are 0.05.
        expected = pytest.approx(np.linalg.norm(change), rel=1e-5, abs=1e-6)
        assert report.variables[name_]["update_norm"] == expected
    total = np.sqrt(sum(np.sum(change**2) for change in added))
    assert report.model["update_norm"] == pytest.approx(total, rel=1e-5)


def test_the_update_is_that_of_a_schedules_last_step():
    schedule = keras.optimizers.schedules.InverseTimeDecay(0.5, 1, 1.0)
    optimizer, variables = keras_yogi.Adam(schedule), variables_of()
    train(optimizer, variables, steps=2)
    before = variables[1].numpy().astype("float64")
    optimizer.apply(gradients_of(variables, np.random.default_rng(9)), variables)
    report = keras_yogi.diagnose(optimizer)
    assert report.model["learning_rate"] == pytest.approx(0.5 / 3)  # 0.5 / (1 + t), t = 2
    change = np.linalg.norm(variables[1].numpy() - before)
    assert report.variables["hidden/kernel"]["update_norm"] == pytest.approx(change, rel=1e-5)


def test_accumulated_gradients_have_the_learning_rate_of_the_last_update():
    schedule = keras.optimizers.schedules.InverseTimeDecay(0.5, 1, 1.0)
    optimizer, variables = keras_yogi.Adam(schedule, gradient_accumulation_steps=2), variables_of()
    train(optimizer, variables, steps=5)  # the second update is made in the fourth
    report = keras_yogi.diagnose(optimizer)
    assert report.step == 2
    assert report.model["learning_rate"] == pytest.approx(0.5 / 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "optimizer_class", [keras_yogi.Adam, keras_yogi.Yogi, keras.optimizers.AdamW]
)
def test_weight_decay_is_in_the_update(optimizer_class, dtype):
    if dtype != "float32" and optimizer_class is keras.optimizers.AdamW:
        pytest.skip("Keras rounds to bfloat16")
    optimizer, variables = optimizer_class(0.0625, weight_decay=0.25), variables_of(dtype)
    optimizer.exclude_from_weight_decay(var_list=[variables[1]])
    train(optimizer, variables)
    before = [whole(optimizer, v) for v in variables]
    optimizer.apply(gradients_of(variables, np.random.default_rng(9)), variables)
    report = keras_yogi.diagnose(optimizer)
    added = [whole(optimizer, v) - b for v, b in zip(variables, before, strict=True)]
    # In bfloat16, what decays is read without its residual: 2e-3 of a weight times ηλ = 0.016.
    tolerance = dict(rel=1e-5, abs=1e-6) if dtype == "float32" else dict(rel=1e-3, abs=1e-5)
    for name, change in zip(report.variables, added, strict=True):
        found = report.variables[name]["update_norm"]
        assert found == pytest.approx(np.linalg.norm(change), **tolerance)
    # Before the first step nothing has decayed.
    optimizer, variables = optimizer_class(0.0625, weight_decay=0.25), variables_of(dtype)
    optimizer.build(variables)
    assert keras_yogi.diagnose(optimizer).model["update_norm"] == 0


def whole(optimizer, variable):
    """The weights, with what half precision does not hold of them."""
    weights = keras.ops.cast(variable, "float32").numpy()
    if "residual" in getattr(optimizer, "slots", dict)():
        weights = weights + optimizer.get_slot(variable, "residual").numpy()
    return weights.astype("float64")


@pytest.mark.parametrize(("dtype", "rounding"), [("float64", 1e-12), ("bfloat16", ROUNDING)])
@pytest.mark.parametrize("optimizer_class", [keras_yogi.Adam, keras_yogi.Yogi])
def test_other_dtypes(optimizer_class, dtype, rounding):
    variables = variables_of(dtype)
    # Exact in float32, in which Keras keeps a learning rate.
    optimizer = train(optimizer_class(0.0625), variables)
    assert_figures(keras_yogi.diagnose(optimizer), optimizer, variables, rounding)


def test_variables_of_several_dtypes():
    variables = [*variables_of("float64"), keras.Variable(np.ones(5, "float32"), name="single")]
    optimizer = keras_yogi.Adam(0.0625)
    optimizer.build(variables)
    optimizer.apply([*gradients_of(variables[:4], np.random.default_rng(1)), np.ones(5, "float32")])
    assert_figures(keras_yogi.diagnose(optimizer), optimizer, variables)


def test_before_the_first_step():
    optimizer, variables = keras_yogi.Yogi(0.0625), variables_of()
    optimizer.build(variables)
    report = keras_yogi.diagnose(optimizer)
    assert report.model["update_norm"] == report.model["reached_share"] == 0
    assert np.isnan(report.model["effective_lr_median"])
    assert report.warnings == []
    str(report)


def test_percentiles_are_never_above_the_maximum_beside_them():
    """Rows without gradients have the largest effective learning rates, η / ε."""
    optimizer = train(keras_yogi.Adam(0.0625), variables_of())
    report = keras_yogi.diagnose(optimizer)
    for figures in [report.model, *report.variables.values()]:
        names = ("min", "median", "p99_9", "max")
        values = [figures[f"effective_lr_{name}"] for name in names]
        assert values == sorted(values)
        assert values[-1] < 0.0625 / 1e-6 / 100


def test_packed_slots_give_the_same_figures():
    reports = []
    for fused in (True, False):
        variables = variables_of()
        optimizer = keras_yogi.Yogi(0.0625, fused=fused)
        optimizer.build(variables)
        random = np.random.default_rng(3)
        for variable in variables:
            for slot in ("momentum", "velocity"):
                optimizer.set_slot(variable, slot, random.random(variable.shape).astype("float32"))
        reports.append(keras_yogi.diagnose(optimizer).to_dict())
    assert reports[0] == reports[1]


# Rows of embeddings


def table_after(optimizer, gradients):
    """A report on a table of as many rows as the gradients have, after these steps."""
    table = keras.Variable(np.ones((10, 2), "float32"), name="embeddings")
    optimizer.build([table])
    for gradient in gradients:
        optimizer.apply([np.repeat(gradient, 2).reshape(10, 2).astype("float32")])
    return keras_yogi.diagnose(optimizer)


@pytest.mark.parametrize("optimizer_class", [keras_yogi.Adam, keras_yogi.Yogi])
def test_rows_that_hold_their_initial_slots(optimizer_class):
    rows = np.arange(10) < 6
    report = table_after(optimizer_class(), [0.1 * rows, 0.0 * rows])
    assert report.variables["embeddings"]["initial_rows"] == report.model["initial_rows"] == 4
    assert report.model["reached_share"] == 0.6


def test_rows_whose_small_gradients_left_no_trace_hold_their_initial_slots_again():
    """(1 − β₂) g² is lost beside v₀, and the momentum underflows: nothing can tell them apart."""
    rows = np.arange(10) < 6
    optimizer = keras_yogi.Yogi(beta_1=0.1)
    report = table_after(optimizer, [1e-6 * rows, *[0.0 * rows] * 50])
    assert report.model["initial_rows"] == 10
    larger = table_after(keras_yogi.Yogi(beta_1=0.1), [1e-3 * rows, *[0.0 * rows] * 50])
    assert larger.model["initial_rows"] == 4


def lazy_model(optimizer):
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Embedding(50, 4, name="embed"),
        keras.layers.Flatten(),
        keras.layers.Dense(1, name="dense"),
    ]
    model = keras.Sequential([keras.Input((3,), dtype="int32"), *layers])
    model.compile(optimizer, loss="mse")
    random = np.random.default_rng(0)
    model.fit(random.integers(0, 40, (64, 3)), random.normal(size=64), batch_size=8, verbose=0)
    return model


def test_updates_of_lazy_tables_are_left_out_with_a_note():
    model = lazy_model(keras_yogi.Adam(0.0625, sparse_update="lazy"))
    report = keras_yogi.diagnose(model)
    embed = report.variables["embed/embeddings"]
    assert not {"update_norm", "update_to_weight_ratio"} & embed.keys()
    # The others' are known; but a sum without the table's is not that of the whole model.
    assert "update_norm" in report.variables["dense/kernel"]
    assert not {"update_norm", "update_to_weight_ratio"} & report.model.keys()
    (note,) = report.notes
    assert "embeddings` move only if a batch contains them" in note
    expected, _ = by_hand(model.optimizer, model.trainable_variables[:1])
    known = {name: embed[name] for name in FIGURES if name in embed}
    assert known == pytest.approx({name: expected[0][name] for name in known}, rel=ROUNDING)


def test_updates_of_tables_are_exact_without_lazy_rows():
    report = keras_yogi.diagnose(lazy_model(keras_yogi.Adam(0.0625)))
    assert "update_norm" in report.variables["embed/embeddings"]
    assert report.notes == []


@pytest.mark.parametrize("sparse_update", ["lazy", "exact"])
def test_a_table_of_another_name_is_known_by_its_gradients(sparse_update):
    tf = pytest.importorskip("tensorflow")
    table = keras.Variable(np.ones((10, 2), "float32"), name="mine")
    optimizer = keras_yogi.Adam(0.0625, sparse_update=sparse_update)
    optimizer.build([table])
    for rows in ([1, 3], [3, 3, 4]):
        before = table.numpy()
        optimizer.apply([tf.IndexedSlices(tf.ones((len(rows), 2)), rows, (10, 2))])
    report = keras_yogi.diagnose(optimizer)
    assert report.model["initial_rows"] == 7
    assert ("update_norm" in report.model) == (sparse_update == "exact")
    assert bool(report.notes) == (sparse_update == "lazy")
    if sparse_update == "exact":
        change = np.linalg.norm(table.numpy() - before)
        assert report.model["update_norm"] == pytest.approx(change, rel=1e-5)


# Samples


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


SMALL = (0, 600, 60)
SAMPLED = ("effective_lr_median", "effective_lr_p99_9", "signal_to_noise_median")


def small_collector(optimizer):
    return StatisticsCollector(optimizer, fast=SMALL, full=SMALL, chunk=256)


def test_medians_and_percentiles_alone_are_of_a_sample(large):
    optimizer, variables = large
    found = small_collector(optimizer).statistics()
    expected, model = by_hand(optimizer, variables)
    pairs = [*zip(found.variables.values(), expected, strict=True), (found.model, model)]
    for figures, wanted in pairs:
        for name in set(FIGURES) - set(SAMPLED):
            assert figures[name] == pytest.approx(wanted[name], rel=ROUNDING), name
    assert found.variables["embed/embeddings"]["initial_rows"] == 200
    # The bias has 50 weights: all are in the sample.
    for name in SAMPLED:
        exact = pytest.approx(expected[2][name], rel=ROUNDING)
        assert found.variables["out/bias"][name] == exact
    for name in ("embed/embeddings", "hidden/kernel"):
        assert 200 < len(found.samples[name].multiplicity) < 400


def test_medians_of_a_sample_have_nearly_the_rank_of_the_median(large):
    optimizer, variables = large
    found = small_collector(optimizer).statistics()
    rates = []
    for variable in variables:
        v = np.ravel(optimizer.get_slot(variable, "velocity")).astype("float64")
        rates.append((0.0625 / (np.sqrt(v / (1 - 0.999**4)) + 1e-6))[v > 0])
    # Of 240 weights or more: a standard deviation of 0.5 / √240 = 0.03, of which four.
    for values, figures in zip(rates, found.variables.values(), strict=True):
        median = figures["effective_lr_median"]
        below = [np.mean(values < median * 0.9999), np.mean(values <= median * 1.0001)]
        assert below[0] - 0.12 <= 0.5 <= below[1] + 0.12
    median, everything = found.model["effective_lr_median"], np.concatenate(rates)
    assert np.mean(everything <= median * 1.0001) >= 0.4
    assert np.mean(everything < median * 0.9999) <= 0.6


def test_the_figures_after_a_batch_are_estimates(large):
    optimizer, variables = large
    found = small_collector(optimizer).estimate()
    _, model = by_hand(optimizer, variables)
    # Norms of 600 of 4,850 weights: √(kurtosis / 600) / 2 is 4 % for normal weights; four of it.
    for name in ("weight_norm", "momentum_norm"):
        assert found[name] == pytest.approx(model[name], rel=0.16), name
    assert found["reached_share"] == pytest.approx(model["reached_share"], abs=0.08)


def test_an_estimate_of_a_small_model_is_exact():
    optimizer, variables = train(keras_yogi.Yogi(0.0625), variables := variables_of()), variables
    found = StatisticsCollector(optimizer).estimate()
    _, model = by_hand(optimizer, variables)
    assert {name: found[name] for name in FIGURES} == pytest.approx(model, rel=ROUNDING)


def test_a_compiled_estimate_is_the_same(large):
    collector = small_collector(large[0])
    compiled, eager = collector.estimate(), collector.estimate(compiled=False)
    assert compiled == pytest.approx(eager, rel=ROUNDING)


def test_a_compiled_estimate_heeds_new_hyperparameters(large):
    optimizer, _ = large
    collector = small_collector(optimizer)
    collector.estimate()
    optimizer.epsilon = 0.5
    optimizer.learning_rate = 0.125
    assert collector.estimate() == small_collector(optimizer).estimate()


def test_statistics_change_nothing(large):
    optimizer, variables = large
    before = [v.numpy().tobytes() for v in [*variables, *optimizer.variables]]
    small_collector(optimizer).estimate()
    small_collector(optimizer).statistics()
    keras_yogi.diagnose(optimizer)
    assert before == [v.numpy().tobytes() for v in [*variables, *optimizer.variables]]


# Rules of a user's own


@dataclasses.dataclass(frozen=True)
class Largest(AdaptiveRule):
    def second_moments(self, gradient, momentum, velocity, *others):
        return (keras.ops.maximum(velocity, keras.ops.square(gradient)),)


@dataclasses.dataclass(frozen=True)
class Sign(AdamRule):
    """Has the update of Lion, without saying so in `descend`."""

    def update(self, gradient, weights, slots, scalars):
        _, slots = super().update(gradient, weights, slots, scalars)
        return weights - scalars.learning_rate * keras.ops.sign(slots[0]), slots


@dataclasses.dataclass(frozen=True)
class DescribedSign(Sign):
    def descend(self, weights, slots, scalars):
        return weights - scalars.learning_rate * keras.ops.sign(slots[0])


@dataclasses.dataclass(frozen=True)
class Scaled(AdamRule):
    """Says of each of its methods what it does."""

    def learning_rate_per_weight(self, slots, scalars):
        return 2.0 * super().learning_rate_per_weight(slots, scalars)


NORMS = {"weight_norm", "momentum_norm", "velocity_norm", "reached_share"}
UPDATES = {"update_norm", "update_to_weight_ratio"}


@pytest.mark.parametrize(
    ("rule", "figures", "note"),
    [
        (Largest(), set(FIGURES), ""),
        (Scaled(), set(FIGURES), ""),
        (Sign(), NORMS, "its rule has an `update` without a `descend`"),
        (DescribedSign(), NORMS | UPDATES, "no effective learning rates"),
    ],
)
def test_a_rule_of_ones_own_has_the_figures_that_are_true_of_it(rule, figures, note):
    optimizer, variables = AdaptiveOptimizer(0.0625, rule), variables_of()
    train(optimizer, variables)
    before = variables[1].numpy().astype("float64")
    optimizer.apply(gradients_of(variables, np.random.default_rng(9)), variables)
    report = keras_yogi.diagnose(optimizer)
    assert report.variables["hidden/kernel"].keys() == figures
    assert [note in each for each in report.notes] == [True] * bool(note)
    if figures >= UPDATES:
        change = np.linalg.norm(variables[1].numpy() - before)
        found = report.variables["hidden/kernel"]["update_norm"]
        assert found == pytest.approx(change, rel=1e-5)


def test_an_update_step_of_ones_own_has_norms_alone():
    class Halved(keras_yogi.Adam):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate / 2)

    class HalvedKerasAdam(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate / 2)

    for optimizer in (Halved(), HalvedKerasAdam()):
        report = keras_yogi.diagnose(train(optimizer, variables_of()))
        assert report.variables["scale"].keys() == NORMS - {"reached_share"}
        assert "only norms are known" in report.notes[0]


# Other optimizers, and what is wrapped around them


@pytest.mark.parametrize("amsgrad", [False, True])
def test_keras_adam_has_all_figures(amsgrad):
    """Of the same slots, the same as ours: its ε is added before the correction."""
    variables, twins = variables_of(), variables_of()
    arguments = dict(epsilon=1e-3, amsgrad=amsgrad)
    theirs = train(keras.optimizers.Adam(0.0625, **arguments), variables)
    ours = train(keras_yogi.Adam(0.0625, **arguments, epsilon_hat=True), twins)
    report = keras_yogi.diagnose(theirs)
    assert report.notes == []
    # Rounded otherwise, in five steps.
    for name, figures in keras_yogi.diagnose(ours).variables.items():
        assert report.variables[name] == pytest.approx(figures, rel=1e-4, nan_ok=True)


def test_other_optimizers_have_norms():
    variables = variables_of()
    report = keras_yogi.diagnose(train(keras.optimizers.SGD(0.5, momentum=0.9), variables))
    assert set(report.variables["scale"]) == {"weight_norm", "momentum_norm"}
    assert set(report.model) == {"learning_rate", "weight_norm", "momentum_norm", "skipped_steps"}
    norm = np.sqrt(sum(np.sum(v.numpy().astype("float64") ** 2) for v in variables))
    assert report.model["weight_norm"] == pytest.approx(norm, rel=ROUNDING)
    assert report.notes == ["SGD: only norms are known, of weight, momentum"]


def test_a_loss_scale_optimizer_is_looked_into():
    variables = variables_of()
    inner = keras_yogi.Adam(0.0625)
    outer = train(keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0), variables)
    assert_figures(keras_yogi.diagnose(outer), inner, variables)


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="newer Keras")
def test_a_multi_optimizer_is_looked_into():
    variables = variables_of()
    ours = keras_yogi.Yogi(0.0625, name="ours")
    rest = keras.optimizers.SGD(0.5, name="rest")
    by_path = keras.optimizers.OptimizerMap(rest, {"embed/.*": ours, "hidden/.*": ours})
    multi = train(keras.optimizers.MultiOptimizer(by_path), variables)
    report = keras_yogi.diagnose(multi)
    assert report.model["learning_rate_ours"] == 0.0625
    assert report.model["learning_rate_rest"] == 0.5
    expected, model = by_hand(ours, variables[:2])
    for name, of_variable in zip(("embed/embeddings", "hidden/kernel"), expected, strict=True):
        found = {key: report.variables[name][key] for key in FIGURES}
        assert found == pytest.approx(of_variable, rel=ROUNDING)
    assert set(report.variables["scale"]) == {"weight_norm"}
    # The weights are of all, the rest of those whose rule is known; but the update, only of all.
    assert report.model["reached_share"] == pytest.approx(model["reached_share"], rel=ROUNDING)
    assert "update_norm" not in report.model
    assert report.model["weight_norm"] > model["weight_norm"]


@pytest.mark.parametrize("optimizer_class", [keras_yogi.Yogi, keras.optimizers.Adam])
def test_variables_without_slots_are_left_out(optimizer_class):
    """As the scales of a model in float8, which Keras overwrites with their gradients."""
    kernel = keras.Variable(np.ones((2, 3), "float32"), name="kernel")
    scale = keras.Variable(np.ones(3, "float32"), name="scale")
    scale.overwrite_with_gradient = True
    optimizer = optimizer_class(0.0625)
    optimizer.build([scale, kernel])
    optimizer.apply([np.full(3, 7, "float32"), np.ones((2, 3), "float32")], [scale, kernel])
    report = keras_yogi.diagnose(optimizer)
    assert list(report.variables) == ["kernel"]
    assert report.variables["kernel"]["update_norm"] == pytest.approx(0.0625 * 6**0.5, rel=0.1)


# The report


@pytest.fixture
def report():
    return keras_yogi.diagnose(train(keras_yogi.Yogi(0.0625), variables_of()))


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
    assert "! a &lt; b" in page


def test_converts_to_a_dict_that_json_takes(report):
    table = json.loads(json.dumps(report.to_dict()))
    assert table == report.to_dict()
    assert set(table) == {"step", "model", "variables", "warnings", "notes"}
    report.to_dict()["variables"].clear()
    assert report.variables


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


def test_a_learning_rate_is_shown_as_it_was_given():
    report = keras_yogi.diagnose(train(keras_yogi.Adam(0.05), variables_of()))
    assert report.model["learning_rate"] == 0.05  # not 0.05000000074505806


def test_names_do_not_depend_on_how_often_a_model_was_made():
    names = []
    for _ in range(2):
        model = keras.Sequential([keras.layers.Dense(2, name="first")])
        model.compile(keras_yogi.Yogi(), loss="mse")
        model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
        names.append(list(keras_yogi.diagnose(model).variables))
    assert names[0] == names[1] == ["first/kernel", "first/bias"]


def test_variables_of_one_path_are_told_apart():
    variables = [keras.Variable(np.ones(3, "float32"), name="same") for _ in range(3)]
    optimizer = keras_yogi.Adam()
    optimizer.build(variables)
    assert list(keras_yogi.diagnose(optimizer).variables) == ["same", "same#1", "same#2"]


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("adam", "`optimizer` must be a Keras optimizer or a compiled model. Received"),
        (None, "`optimizer` must be a Keras optimizer or a compiled model. Received"),
        (keras.Sequential(), "`optimizer` must be a Keras optimizer or a compiled model. Received"),
        (keras_yogi.Adam(), "`optimizer` must be built: train a step, or call"),
    ],
)
def test_refuses_what_it_cannot_diagnose(optimizer, message):
    with pytest.raises(ValueError, match=message):
        keras_yogi.diagnose(optimizer)


def test_refuses_what_is_no_earlier_report(report):
    optimizer = train(keras_yogi.Yogi(), variables_of())
    with pytest.raises(ValueError, match="`since` must be a report of"):
        keras_yogi.diagnose(optimizer, since={"step": 1})
