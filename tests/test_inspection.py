"""keras_yogi.diagnose: every figure against NumPy, every warning with and without its fault."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import (
    ADAM,
    CASES,
    LEARNING_RATE,
    YOGI,
    regression,
    regression_model,
    train,
    variables_of,
)

import keras_yogi
from keras_yogi.diagnostics.gauge import FIGURES

# About a dozen float32 operations, each rounded by at most 6e-8, lead from a slot to a figure.
ROUNDING = 1e-6


# The figures, recomputed


def reference_look(optimizer, weights, slots, step, velocity_bias=1.0):
    """Of each weight, in float64: what docs/tensorboard.md defines. The slots come by name."""
    w, m, v = (np.asarray(x, "float64") for x in (weights, slots["momentum"], slots["velocity"]))
    last = np.asarray(slots.get("velocity_hat", v), "float64")
    correction_1 = 1 - optimizer.beta_1**step
    correction_2 = 1 - velocity_bias * optimizer.beta_2**step
    if velocity_bias == 0.0:
        correction_2 = 1.0
    is_kerass = isinstance(optimizer, keras.optimizers.Adam)
    hat = is_kerass or optimizer.epsilon_hat
    root = np.sqrt(last / correction_2)
    epsilon = optimizer.epsilon / np.sqrt(correction_2) if hat else optimizer.epsilon
    rate = LEARNING_RATE / (root + epsilon)
    m_hat = m / correction_1
    new = w - rate * m_hat
    l1 = getattr(optimizer, "l1_regularization_strength", 0.0)
    l2 = getattr(optimizer, "l2_regularization_strength", 0.0)
    new = np.sign(new) * np.maximum(np.abs(new) - rate / correction_1 * l1, 0)
    new = new / (1 + rate / correction_1 * l2)
    start = np.float64(np.float32(getattr(optimizer, "initial_accumulator_value", 0.0)))
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = np.where(m == 0, 0.0, np.abs(m_hat) / root)
    return {
        "weight": w,
        "momentum": m,
        "velocity": v,
        "update": new - w,
        "rate": rate,
        "root": root,
        "noise": noise,
        "epsilon": root < epsilon,
        "initial": v == start,
    }


def reference_figures(look):
    norm = {name: np.sqrt(np.sum(look[name] ** 2)) for name in list(look)[:4]}
    rate = look["rate"]
    values = [
        *norm.values(),
        norm["update"] / norm["weight"] if norm["weight"] else np.nan,
        rate.min(),
        np.median(rate),
        np.quantile(rate, 0.999),
        rate.max(),
        np.mean(look["epsilon"]),
        np.mean(look["initial"]),
        np.median(look["noise"]),
    ]
    return dict(zip(FIGURES, values, strict=True))


def joined(looks):
    return {key: np.concatenate([look[key].ravel() for look in looks]) for key in looks[0]}


def slots_of(optimizer, place, variable):
    if hasattr(optimizer, "get_slot"):
        return {name: optimizer.get_slot(variable, name).numpy() for name in optimizer.slots()}
    found = {
        "momentum": optimizer._momentums[place].numpy(),
        "velocity": optimizer._velocities[place].numpy(),
    }
    if optimizer.amsgrad:
        found["velocity_hat"] = optimizer._velocity_hats[place].numpy()
    return found


def assert_figures(report, optimizer, variables, step, velocity_bias=1.0):
    assert report.step == step
    looks = [
        reference_look(optimizer, v.numpy(), slots_of(optimizer, i, v), step, velocity_bias)
        for i, v in enumerate(variables)
    ]
    # The proximal update is a difference of weights, each of which is rounded three times.
    proximal = getattr(optimizer, "step_depends_on_weights", False)
    for found, look in [
        *zip(report.variables.values(), looks, strict=True),
        (report.model, joined(looks)),
    ]:
        expected = reference_figures(look)
        for name, value in expected.items():
            weights = {"update_norm": expected["weight_norm"], "update_to_weight_ratio": 1.0}
            rounding = 2e-7 * weights.get(name, 0.0) if proximal else 0.0
            np.testing.assert_allclose(
                found[name], value, rtol=ROUNDING, atol=rounding, err_msg=name
            )
    assert report.model["learning_rate"] == LEARNING_RATE


def some_variables():
    random = np.random.default_rng(3)
    shapes = [(5, 4), (4,), (3, 2, 2), ()]
    return variables_of([random.normal(size=s).astype("float32") for s in shapes])


def some_gradients(variables, steps):
    """Over six decades, so that ε dominates some weights, and zero in some places."""
    random = np.random.default_rng(4)
    scales = [10.0 ** random.uniform(-5, 1, v.shape) for v in variables]
    hit = [random.random(v.shape) > 0.2 for v in variables]
    return [
        [
            (random.normal(size=v.shape) * s * h).astype("float32")
            for v, s, h in zip(variables, scales, hit, strict=True)
        ]
        for _ in range(steps)
    ]


OPTIMIZERS = {
    **{name: case.optimizer for name, case in CASES.items()},
    "adam, epsilon hat": lambda: keras_yogi.Adam(LEARNING_RATE, **ADAM, epsilon_hat=True),
    "yogi from zero": lambda: keras_yogi.Yogi(LEARNING_RATE, initial_accumulator_value=0.0),
    "keras adam": lambda: keras.optimizers.Adam(LEARNING_RATE, epsilon=1e-3),
    "keras adamw": lambda: keras.optimizers.AdamW(LEARNING_RATE, beta_2=0.9),
    "keras amsgrad": lambda: keras.optimizers.Adam(LEARNING_RATE, amsgrad=True),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 7])
def test_figures_follow_from_the_slots(make, steps):
    optimizer, variables = make(), some_variables()
    train(optimizer, variables, some_gradients(variables, steps), "eager")
    assert_figures(keras_yogi.diagnose(optimizer), optimizer, variables, steps)


def test_shares_are_neither_none_nor_all():
    """Else the comparison above would say nothing of them."""
    optimizer, variables = CASES["adam, fused"].optimizer(), some_variables()
    train(optimizer, variables, some_gradients(variables, 7))
    figures = keras_yogi.diagnose(optimizer).model
    assert 0.1 < figures["epsilon_share"] < 0.9
    assert 0.1 < figures["initial_velocity_share"] < 0.9


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes(dtype):
    variables = variables_of([np.arange(1.0, 7.0), np.array([2.0, -1.0])], dtype)
    optimizer = keras_yogi.Adam(LEARNING_RATE, **ADAM)
    train(optimizer, variables, some_gradients(variables, 3))
    report = keras_yogi.diagnose(optimizer)
    for v, found in zip(variables, report.variables.values(), strict=True):
        slots = {name: np.array(optimizer.get_slot(v, name)) for name in optimizer.slots()}
        expected = reference_figures(reference_look(optimizer, np.array(v.value), slots, 3))
        # Half precision is stored, and computed with in float32.
        tolerance = 1e-13 if dtype == "float64" else ROUNDING
        np.testing.assert_allclose(
            [found[n] for n in FIGURES], [expected[n] for n in FIGURES], rtol=tolerance
        )


@pytest.mark.parametrize("fused", [True, False])
def test_after_a_warm_start(fused):
    optimizer = keras_yogi.Yogi(LEARNING_RATE, **YOGI, fused=fused)
    model, (x, y) = regression_model(optimizer), regression()
    keras_yogi.warm_start(model, x, y)
    model.fit(x, y, batch_size=8, verbose=0)
    report = keras_yogi.diagnose(optimizer)
    assert_figures(report, optimizer, model.trainable_variables, 8, velocity_bias=0.0)


def test_inside_a_loss_scale_optimizer():
    inner = keras_yogi.Yogi(LEARNING_RATE, **YOGI)
    model, (x, y) = regression_model(keras.optimizers.LossScaleOptimizer(inner, 8.0)), regression()
    model.fit(x, y, batch_size=8, verbose=0)
    report = keras_yogi.diagnose(model.optimizer)
    assert_figures(report, inner, model.trainable_variables, 8)
    assert report.to_dict() == keras_yogi.diagnose(inner).to_dict()


def on_two_replicas():
    """Run in a process of its own: a process decides on its devices once."""
    cpus = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], cpus)
    with tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"]).scope():
        optimizer = keras_yogi.Adam(LEARNING_RATE, **ADAM)
        model = regression_model(optimizer)
    x, y = regression()
    model.fit(x, y, batch_size=8, verbose=0)
    assert_figures(keras_yogi.diagnose(optimizer), optimizer, model.trainable_variables, 8)
    print("the figures agree")


def test_under_mirrored_strategy():
    code = "import test_inspection; test_inspection.on_two_replicas()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "the figures agree" in done.stdout, done.stderr[-3000:]


def embedding_of(optimizer, rows, touched, width=4, steps=3):
    """Trains a table, on gradients of its first rows alone."""
    table = keras.Variable(np.ones((rows, width), "float32"), name="embeddings")
    optimizer.build([table])
    for _ in range(steps):
        values = tf.random.normal((touched, width))
        optimizer.apply([tf.IndexedSlices(values, tf.range(touched), (rows, width))], [table])
    return keras_yogi.diagnose(optimizer)


@pytest.mark.parametrize("sparse_update", ["exact", "lazy"])
def test_untouched_rows_are_counted(sparse_update):
    report = embedding_of(keras_yogi.Yogi(sparse_update=sparse_update), rows=50, touched=7)
    assert report.model["untouched_rows"] == 43
    assert report.variables["embeddings"]["untouched_rows"] == 43


def test_large_variables_are_summed_whole():
    """Beyond 2²⁰ weights medians are of a sample; norms, extremes and shares are not."""
    size, width = 2**20 + 2**14, 4
    report = embedding_of(keras_yogi.Adam(), size // width, touched=3, width=width)
    figures = report.variables["embeddings"]
    assert figures["untouched_rows"] == size // width - 3
    assert figures["initial_velocity_share"] == 1 - 3 * width / size
    # Rows of ones, but for twelve weights that have moved by a few thousandths.
    np.testing.assert_allclose(figures["weight_norm"], np.sqrt(size), rtol=ROUNDING)


def test_other_optimizers_say_what_cannot_be_told():
    variables = some_variables()
    optimizer = keras.optimizers.SGD(LEARNING_RATE, momentum=0.9)
    optimizer.build(variables)
    optimizer.apply([tf.ones(v.shape) for v in variables])
    report = keras_yogi.diagnose(optimizer)
    for v, slot, found in zip(
        variables, optimizer.momentums, report.variables.values(), strict=True
    ):
        assert set(found) == {"weight_norm", "momentum_norm"}
        np.testing.assert_allclose(found["weight_norm"], np.linalg.norm(v.numpy()), rtol=ROUNDING)
        expected = np.linalg.norm(slot.numpy())
        np.testing.assert_allclose(found["momentum_norm"], expected, rtol=ROUNDING)
    assert len(report.notes) == 1
    assert "SGD has no effective learning rate" in report.notes[0]


# The report


@pytest.fixture(scope="module")
def report():
    optimizer, variables = CASES["adam"].optimizer(), some_variables()
    train(optimizer, variables, some_gradients(variables, 2), "eager")
    return keras_yogi.diagnose(optimizer)


def test_dict(report):
    plain = json.loads(json.dumps(report.to_dict()))
    assert set(plain) == {"step", "model", "variables", "warnings", "notes"}
    assert plain["step"] == 2
    assert plain["variables"] == report.variables
    assert set(plain["model"]) == {*FIGURES, "learning_rate", "skipped_steps"}
    assert set(plain["variables"]) == {"w0", "w1", "w2", "w3"}


def test_dataframe(report):
    pytest.importorskip("pandas")
    frame = report.to_dataframe()
    assert frame.index.name == "variable"
    assert list(frame.columns) == list(FIGURES)
    for name, figures in report.variables.items():
        assert frame.loc[name].to_dict() == figures


def test_without_pandas(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        report.to_dataframe()


def test_text(report):
    lines = str(report).splitlines()
    assert lines[0] == "After 2 steps; learning_rate 0.0625"
    row = next(line for line in lines if line.startswith("w0 "))
    assert f"{report.variables['w0']['weight_norm']:.3g}" in row.split()
    assert any(line.startswith("(whole model)") for line in lines)
    assert all(f"! {warning}" in lines for warning in report.warnings)


def test_html_is_well_formed_and_escaped():
    from xml.etree import ElementTree

    optimizer, variable = keras_yogi.Adam(0.5), keras.Variable([1.0], name="<b>&")
    train(optimizer, [variable], [[np.ones(1, "float32")]], "eager")
    tree = ElementTree.fromstring(f"<div>{keras_yogi.diagnose(optimizer)._repr_html_()}</div>")
    assert "<b>&" in [cell.text for cell in tree.iter("th")]


def test_bad_arguments_of_diagnose():
    not_built = keras_yogi.Adam()
    for arguments, message in [
        (("adam",), "`optimizer` must be a Keras optimizer.*'adam'"),
        ((not_built,), "`optimizer` must be built"),
        ((not_built, {}), "`since` must be a report"),
    ]:
        with pytest.raises(ValueError, match=message):
            keras_yogi.diagnose(*arguments)


# The warnings


def warnings_after(optimizer, weights, gradients, name="kernel"):
    variable = keras.Variable(np.asarray(weights, "float32"), name=name)
    train(optimizer, [variable], [[np.asarray(g, "float32")] for g in gradients])
    return keras_yogi.diagnose(optimizer).warnings


def assert_only(warnings, *parts):
    assert len(warnings) == 1, warnings
    for part in parts:
        assert part in warnings[0]


WEIGHTS = np.full(100, 3.0)
ALL_ONES = np.ones(100)


def test_warns_of_skipped_steps():
    """One in a hundred is too many, one in a hundred and one is not."""
    gradients = [ALL_ONES] * 99 + [np.full(100, np.nan)]
    for more, expected in ([], 1), ([ALL_ONES], 0):
        optimizer = keras_yogi.Adam(skip_nonfinite=True)
        found = warnings_after(optimizer, WEIGHTS, gradients + more)
        assert len(found) == expected, found
        assert all("1 of 100 steps were skipped" in warning for warning in found)


@pytest.mark.parametrize("make", [keras_yogi.Adam, keras_yogi.Yogi, keras.optimizers.SGD])
def test_warns_of_nan(make):
    bad = np.where(np.arange(100) == 7, np.nan, 1.0)
    assert_only(warnings_after(make(), WEIGHTS, [ALL_ONES, bad]), "`kernel` or its slots hold NaN")
    assert warnings_after(make(), WEIGHTS, [ALL_ONES, ALL_ONES]) == []


def test_warns_where_no_gradient_has_come():
    nothing = np.zeros(100)
    found = warnings_after(keras_yogi.Yogi(), WEIGHTS, [nothing])
    assert_only(found, "no gradient has reached `kernel`")
    assert warnings_after(keras_yogi.Yogi(), WEIGHTS, [nothing, ALL_ONES]) == []


def test_says_nothing_before_the_first_step():
    optimizer = keras_yogi.Adam()
    optimizer.build(some_variables())
    assert keras_yogi.diagnose(optimizer).warnings == []


def test_warns_of_forgetting():
    """One weight in a hundred has a gradient of 1 once, and n steps later Adam's √v is 0.1^½ 0.9^(n/2):
    a thousandth of the others' for n = 110. Yogi's v stays.
    """
    once = np.where(np.arange(100) < 99, 1.0, 0.0)
    for make, steps, expected in [
        (keras_yogi.Adam, 150, 1),
        (keras_yogi.Adam, 100, 0),
        (keras_yogi.Yogi, 150, 0),
    ]:
        optimizer = make(1e-4, beta_2=0.9, epsilon=1e-12)
        found = warnings_after(optimizer, WEIGHTS, [ALL_ONES] + [once] * steps)
        assert len(found) == expected, (make, found)
        for warning in found:
            assert "effective learning rate of `kernel` has grown 8,547-fold" in warning
            assert "in 1 % of its weights" in warning
            assert "Adam's second moment is forgetting; try Yogi or a larger ε" in warning


def test_warns_of_growth_since_an_earlier_report():
    """Gradients that become 10,000 times smaller, or 100 times."""
    for make, smaller, expected in [
        (keras_yogi.Adam, 1e-4, 1),
        (keras_yogi.Adam, 1e-2, 0),
        (keras_yogi.Yogi, 1e-4, 0),
    ]:
        optimizer = make(1e-4, beta_2=0.9, epsilon=1e-12)
        variable = keras.Variable(WEIGHTS.astype("float32"), name="kernel")
        train(optimizer, [variable], [[ALL_ONES]] * 3)
        earlier = keras_yogi.diagnose(optimizer)
        train(optimizer, [variable], [[ALL_ONES * smaller]] * 220)
        assert keras_yogi.diagnose(optimizer).warnings == []
        found = keras_yogi.diagnose(optimizer, since=earlier).warnings
        assert len(found) == expected, (make, smaller, found)
        assert all("since the earlier report its 99.9th percentile" in w for w in found)


@pytest.mark.parametrize(("tiny", "expected"), [(99, 1), (98, 0)])
def test_warns_where_epsilon_dominates(tiny, expected):
    gradient = np.where(np.arange(100) < tiny, 1e-5, 1.0)
    optimizer = keras_yogi.Adam(epsilon=1e-3)
    found = warnings_after(optimizer, WEIGHTS, [gradient] * 2)
    assert len(found) == expected
    assert all("ε dominates 99 % of `kernel`" in warning for warning in found)


@pytest.mark.parametrize(("touched", "expected"), [(5, 1), (6, 0)])
def test_warns_of_untouched_rows(touched, expected):
    found = embedding_of(keras_yogi.Yogi(), rows=10, touched=touched).warnings
    assert len(found) == expected, found
    assert all("5 of the 10 rows of `embeddings` were never touched" in w for w in found)


@pytest.mark.parametrize(
    ("learning_rate", "shape", "expected"),
    [(0.4, (10, 10), 1), (0.2, (10, 10), 0), (0.4, (100,), 0)],
)
def test_warns_of_large_updates(learning_rate, shape, expected):
    """Weights are 3 ± η, an update is η: η / 3 crosses a tenth between the two. A bias is free."""
    optimizer = keras_yogi.Adam(learning_rate)
    found = warnings_after(optimizer, np.full(shape, 3.0), [np.ones(shape)])
    assert len(found) == expected, found
    assert all("one update changes `kernel` by 15.4 % of its norm" in w for w in found)


@functools.cache
def healthy():
    """A regression that goes well."""
    model, (x, y) = regression_model(keras_yogi.Adam(0.01)), regression()
    model.fit(x, y, batch_size=8, epochs=5, verbose=0)
    return keras_yogi.diagnose(model.optimizer)


def test_a_healthy_training_gives_no_warning():
    assert healthy().warnings == []
