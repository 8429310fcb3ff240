"""keras_yogi.diagnose: figures against float64 NumPy and true steps."""

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
