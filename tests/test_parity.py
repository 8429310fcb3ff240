"""Whoever used Adam or Yogi elsewhere gets their numbers back, and where not, it is known why.

`golden/` holds what other implementations computed; `support/recorded_runs.py` says with which
arguments keras_yogi computes the same, or in what it differs on purpose. `docs/variants.md` is for
readers.
"""

import re
from dataclasses import replace

import keras
import numpy as np
import pytest
import record_peers
from keras import ops
from support.backend import WITHOUT_XLA
from support.peer_formulas import PeerFormula, peer_trajectory
from support.processes import ROOT, TESTS
from support.recorded_runs import BETAS, RECORDED_RUNS, RUN_OF, RecordedRun, stored_as_float32
from support.recordings import MANIFEST, RECORDED_TOLERANCE, Recording, differences
from support.replay import RecordedRates, replay

import keras_yogi

PAGE = (ROOT / "docs" / "variants.md").read_text("utf-8")


def assert_apart(found: dict[str, float], expected: dict[str, float], dtype: str) -> None:
    """Each quantity differs by what is expected (to 5 %, the figures have two digits), or not."""
    tolerance = RECORDED_TOLERANCE[dtype]
    for kind, difference in found.items():
        pinned = pytest.approx(expected.get(kind, 0.0), rel=0.05, abs=tolerance)
        assert difference == pinned, f"{kind}: {found}"


@pytest.mark.parametrize("name", RUN_OF)
def test_recorded_numbers_come_back(name):
    case, recording = RUN_OF[name], Recording.load(name)
    theirs, ours = PeerFormula.of(name), case.formula(name)
    run = case.run(recording)

    # What they computed is their formula, and what we compute is ours ...
    explained = differences(peer_trajectory(theirs, recording), recording.trajectory)
    assert_apart(explained, {}, recording.dtype)
    assert_apart(differences(run, peer_trajectory(ours, recording)), {}, recording.dtype)
    # ... which are the same, but for what is told to be different.
    apart = {} if ours == theirs else case.apart
    assert_apart(differences(run, recording.trajectory), apart, recording.dtype)
    if recording.dtype == "float64":
        for kind in apart:
            assert differences(run, recording.trajectory)[kind] > 10 * RECORDED_TOLERANCE["float64"]


def test_every_recording_is_compared():
    files = {path.stem for path in TESTS.glob("golden/*.npz")}
    assert files == set(MANIFEST)
    assert files - set(RUN_OF) == {"tfa_migration"}  # below
    assert all(case.names for case in RECORDED_RUNS)
    assert len(RUN_OF) == sum(len(case.names) for case in RECORDED_RUNS)


@pytest.mark.parametrize(("mode", "fused"), [("eager", "auto"), ("xla", "auto"), ("graph", False)])
@pytest.mark.parametrize(
    "name", ["textbook_adam__f64", "tfa_yogi_l1l2__f32", "keras3_adam_sparse_unique__f32"]
)
def test_recorded_numbers_come_back_in_other_modes(name, mode, fused):
    case, recording = RUN_OF[name], Recording.load(name)
    run = case.run(recording, mode, fused=fused)
    assert_apart(
        differences(run, peer_trajectory(case.formula(name), recording)), {}, recording.dtype
    )


WRONG = {
    "epsilon before the bias correction": ("optax_yogi_lr1e-2", {"epsilon_hat": True}),
    "epsilon after the bias correction": ("tfa_yogi_default", {"epsilon_hat": False}),
    "another epsilon": ("torch_adam_lr1e-2_eps1e-6", {"epsilon": 1e-8}),
    "v from zero": ("tfa_yogi_default", {"initial_accumulator_value": 0.0}),
    "sign in the place of tanh": ("tfa_yogi_tanh", {"activation": "sign"}),
    "no l1": ("tfa_yogi_l1l2", {"l1_regularization_strength": 0.0}),
    "no l2": ("tfa_yogi_l1l2", {"l2_regularization_strength": 0.0}),
    "amsgrad": ("tf215_legacy_adam_default", {"amsgrad": True}),
    "no weight decay": ("torch_adamw_wd1e-2", {"weight_decay": None}),
    "bias correction": ("flwr_fedyogi", {"bias_correction": "both"}),
    "no clipping": ("keras3_adam_clipnorm", {"clipnorm": None}),
    "beta_2 not rounded to float32": ("tfa_yogi_default", {"beta_2": 0.999}),
}


# It is 1.3e-5 of 1 − β₂, which float32 may hide.
IN_FLOAT64_ALONE = ("beta_2 not rounded to float32",)


def assert_told_apart(run, recording):
    off = differences(run, recording.trajectory)
    assert max(off.values()) > 3 * RECORDED_TOLERANCE[recording.dtype], off


@pytest.mark.parametrize(
    ("wrong", "dtype"),
    [(w, d) for w in WRONG for d in ("f64", "f32") if d == "f64" or w not in IN_FLOAT64_ALONE],
)
def test_wrong_variant_is_told_apart(wrong, dtype):
    setting, changed = WRONG[wrong]
    recording = Recording.load(f"{setting}__{dtype}")
    assert_told_apart(RUN_OF[recording.name].run(recording, **changed), recording)


@pytest.mark.parametrize("peer", ["optax_yogi_lr1e-2", "torch_optimizer_yogi_default"])
def test_momentum_from_zero_is_told_apart(peer):
    recording = Recording.load(f"{peer}__f64")
    case = replace(RUN_OF[recording.name], initial_slots={})
    assert_told_apart(case.run(recording), recording)


def test_adam_in_the_place_of_yogi_is_told_apart():
    recording = Recording.load("textbook_yogi__f64")
    case = RecordedRun("textbook_yogi", keras_yogi.Adam, 0.01, {"epsilon": 1e-3})
    assert_told_apart(case.run(recording), recording)


# A model that was trained with TensorFlow Addons


def test_training_with_tfa_is_repeated_and_resumed():
    """`fit` in TensorFlow Addons, 20 steps, then 10 more from what was saved."""
    with np.load(TESTS / "golden" / "tfa_migration.npz") as arrays:
        run = dict(arrays)

    def compiled(stage: str) -> keras.Model:
        model = keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(4, activation="relu"),
                keras.layers.Dense(1),
            ]
        )
        model.set_weights([run[f"{stage}_w{i}"] for i in range(4)])
        yogi = keras_yogi.Yogi(
            0.02,
            **stored_as_float32(beta_1=0.8, epsilon=1e-4),
            beta_2=BETAS["beta_2"],
            epsilon_hat=True,
        )
        yogi.build(model.trainable_variables)
        model.compile(yogi, loss="mse", **WITHOUT_XLA)
        return model

    def fit(model: keras.Model, steps: int) -> None:
        model.fit(run["x"], run["y"], 32, epochs=steps, shuffle=False, verbose=0)

    def assert_close(actual, expected):
        # The gradients, too, are computed in float32, and depend on the weights.
        np.testing.assert_allclose(
            actual, expected, rtol=0, atol=RECORDED_TOLERANCE["float32"] * np.abs(expected).max()
        )

    model = compiled("init")
    fit(model, 20)
    for i, variable in enumerate(model.trainable_variables):
        assert_close(variable.numpy(), run[f"save_w{i}"])
        for place, slot in enumerate(["velocity", "momentum"]):
            expected = run[f"save_opt{1 + 2 * i + place}"]
            assert_close(model.optimizer.get_slot(variable, slot), expected)

    model = compiled("save")
    model.optimizer.iterations.assign(run["save_opt0"])
    for i, variable in enumerate(model.trainable_variables):
        for place, slot in enumerate(["velocity", "momentum"]):
            model.optimizer.set_slot(variable, slot, run[f"save_opt{1 + 2 * i + place}"])
    for step in range(10):
        fit(model, 1)
        for i, weights in enumerate(model.get_weights()):
            assert_close(weights, run[f"next_w{i}"][step])


# Implementations that are not recorded


class StepsInPython(keras.optimizers.Optimizer):
    """A stand-in for Yogi classes that count their steps in a Python int."""

    steps = 0

    def build(self, variables):
        super().build(variables)
        self.m, self.v = self.add_optimizer_variables(variables, ["momentum", "velocity"])

    def slots(self):
        return {"momentum": self.m, "velocity": self.v}

    def get_slot(self, variable, name):
        return ops.copy(self.slots()[name][self._get_variable_index(variable)])

    def apply(self, grads, trainable_variables=None):
        self.steps += 1
        super().apply(grads, trainable_variables)

    def update_step(self, g, w, learning_rate):
        m, v = (slots[self._get_variable_index(w)] for slots in self.slots().values())
        m.assign(m + (g - m) * (1 - 0.9))
        v.assign(v + ops.sign(g * g - v) * g * g * (1 - 0.999))
        rate = learning_rate / (1 - 0.9**self.steps)
        w.assign(w - rate * m / (ops.sqrt(v / (1 - 0.999**self.steps)) + 1e-3))


@pytest.mark.parametrize(("mode", "frozen"), [("eager", False), ("graph", True)])
def test_steps_counted_in_python_stand_still_in_a_graph(mode, frozen):
    """tf.function, and with it `fit`, runs the Python code once, with t = 1."""
    recording = Recording.load("textbook_yogi__f64")
    formula = PeerFormula.of(recording.name)
    if frozen:
        formula = replace(formula, bias_correction="first step")
    run = replay(StepsInPython(RecordedRates(recording)), recording, mode=mode)
    assert_apart(differences(run, peer_trajectory(formula, recording)), {}, "float64")
    apart = {"param": 0.94} if frozen else {}
    assert_apart(differences(run, recording.trajectory), apart, "float64")
    ours = RUN_OF[recording.name].run(recording, mode)
    assert_apart(differences(ours, recording.trajectory), {}, "float64")


def test_textbook_snippet_loses_weights_without_a_first_gradient():
    """`p - lr * m̂ / sqrt(v̂) + ε`: ε does not protect the division, 0 / 0 makes the weight NaN."""
    recording = Recording.load("textbook_yogi__f64")
    g = recording.gradient("kernel", 1)
    m, v = 0.1 * g, 0.001 * g**2
    with np.errstate(invalid="ignore"):
        snippet = recording.weights["kernel"] - 0.01 * (m / 0.1) / np.sqrt(v / 0.001) + 1e-6
    np.testing.assert_array_equal(np.isnan(snippet), g == 0)
    assert 5 < np.isnan(snippet).sum() < g.size
    ours = RUN_OF[recording.name].run(recording)["param_kernel"][1]
    np.testing.assert_array_equal(ours[g == 0], recording.weights["kernel"][g == 0])


# The page


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def table_lines() -> dict[str, str]:
    """The code line of each row of the page's table, by the recording that the row names."""
    lines = {}
    for row in PAGE.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        code = re.match(r"`(keras_yogi\.\w+\(.*?\))`", cells[-1])
        recorded = re.findall(r"`([\w.-]+)`", cells[0])
        if code and recorded:
            lines[recorded[0]] = code[1]
    return lines


@pytest.mark.parametrize("setting", table_lines())
def test_code_line_of_the_page_has_the_arguments_of_the_case(setting):
    line = eval(table_lines()[setting], {"keras_yogi": keras_yogi})
    (case,) = [case for case in RECORDED_RUNS if case.recording == setting]
    meant = case.optimizer(case.learning_rate, **case.arguments)
    # 1e-7: the line has 0.9 where TensorFlow Addons has 0.9 rounded to float32.
    approximately = {
        key: pytest.approx(value, rel=1e-7) if isinstance(value, float) else value
        for key, value in meant.get_config().items()
        if key != "name"
    }
    assert type(line) is case.optimizer
    assert {k: v for k, v in line.get_config().items() if k != "name"} == approximately


def test_page_has_a_code_line_for_every_implementation():
    assert len(table_lines()) == 14


def test_page_shows_the_differences_that_are_measured():
    for line in record_peers.difference_table():
        assert line in PAGE


def test_snippets_of_the_page_run():
    namespace = {}
    for block in python_blocks():
        exec(block, namespace)
    # The one for Algorithm 2 of the paper, which has no bias correction.
    recording = Recording.load("tfa_yogi_default__f32")
    run = replay(namespace["paper"], recording)
    formula = PeerFormula("yogi", 0.9, 0.999, 1e-3, epsilon_hat=True, bias_correction="none")
    assert_apart(differences(run, peer_trajectory(formula, recording)), {}, "float32")
    assert int(namespace["fed_adam"].iterations) == 1


def test_rule_of_openfl_is_its_formula():
    """v ← β₂ v + (1 − β₂) sign(g² − v) g², which is neither Adam's v nor Yogi's."""
    namespace = {}
    for block in python_blocks():
        exec(block, namespace)
    recording = Recording.load("flwr_fedyogi__f64")
    run = replay(namespace["OpenFLYogi"](RecordedRates(recording)), recording)
    weights = recording.weights["kernel"]
    m, v = np.zeros_like(weights), np.zeros_like(weights)
    expected = {"param": [weights], "m": [m], "v": [v]}
    for t in range(1, recording.steps[-1] + 1):
        g = recording.gradient("kernel", t)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * np.sign(g**2 - v) * g**2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        weights = weights - recording.learning_rates[t - 1] * m_hat / (np.sqrt(v_hat) + 1e-8)
        if t in recording.steps:
            for name, value in zip(expected, (weights, m, v), strict=True):
                expected[name].append(value)
    theirs = {f"{name}_kernel": np.stack(values) for name, values in expected.items()}
    assert_apart(differences(run, theirs), {}, "float64")


def test_a_step_ahead_is_told_apart():
    recording = Recording.load("flwr_fedadam__f64")
    assert_told_apart(replace(RUN_OF[recording.name], first_iteration=0).run(recording), recording)
