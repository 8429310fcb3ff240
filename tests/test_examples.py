"""The examples, run as a user runs them, with --quick; and what their docs and the README claim."""

import importlib.util
import json
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
from matplotlib import image
from support.processes import ROOT
from support.reference import Reference
from support.scripts import run_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import keras_yogi

EXAMPLES = ROOT / "examples"
OWN_TEST = {"compare", "multi_worker"}  # test_compare.py, test_multi_worker.py
if importlib.util.find_spec("flwr") is None:
    OWN_TEST.add("federated")  # needs the extra of this name
NAMES = sorted(path.stem for path in EXAMPLES.glob("[!_]*.py") if path.stem not in OWN_TEST)


def run_example(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess:
    return run_script(EXAMPLES / f"{name}.py", *arguments, cwd=folder)


@pytest.fixture(scope="session")
def quick(tmp_path_factory):
    """`quick(name)`: the folder of a quick run; each example is run once."""
    folders = {}

    def run(name: str) -> Path:
        if name not in folders:
            folder = tmp_path_factory.mktemp(name)
            finished = run_example(folder, name, "--quick", "--results", "results")
            assert finished.returncode == 0, finished.stderr
            (folder / "output.txt").write_text(finished.stdout, encoding="utf-8")
            (folder / "errors.txt").write_text(finished.stderr, encoding="utf-8")
            folders[name] = folder
        return folders[name]

    return run


@pytest.fixture(scope="session")
def results(quick):
    """`results(name)`: the JSON of a quick run."""

    def read(name: str) -> dict:
        return json.loads((quick(name) / "results" / f"{name}.json").read_text(encoding="utf-8"))

    return read


@pytest.fixture(scope="module")
def runs():
    """The examples' module of compiled loops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import _runs

        yield _runs


@pytest.fixture(scope="module")
def migrate():
    """The example as a module: for what needs no process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import migrate_from_tfa

        yield migrate_from_tfa


# Every example


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_table_json_picture_and_runs_are_written(quick, results, name):
    folder = quick(name)
    assert {path.name for path in (folder / "results").iterdir()} == {
        f"{name}.{suffix}" for suffix in ("md", "json", "png")
    }
    assert results(name)["quick"] is True
    assert results(name)["versions"]["keras_yogi"] == keras_yogi.__version__
    assert results(name)["versions"]["Keras"] == keras.__version__

    text = (folder / "results" / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"]({name}.png)" in text
    assert f"`python examples/{name}.py --quick`" in text
    assert "figures mean nothing" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 2
    output = (folder / "output.txt").read_text(encoding="utf-8")
    for row in rows:  # what is written has been printed
        first_cell = row.strip("| ").split(" | ")[0]
        assert first_cell.startswith("---") or first_cell in output

    height, width, _ = image.imread(folder / "results" / f"{name}.png").shape
    assert min(height, width) > 300
    scalars = 0
    for events in (folder / "logs" / name).rglob("events.out.tfevents.*"):
        accumulator = EventAccumulator(str(events))
        accumulator.Reload()
        scalars += sum(len(tags) for tags in accumulator.Tags().values() if isinstance(tags, list))
    assert scalars > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_nothing_is_said_beside_the_results(quick, name):
    """No warning of Keras, no bar where there is no terminal, and no path of this machine."""
    folder = quick(name)
    errors = (folder / "errors.txt").read_text(encoding="utf-8")
    assert "Warning" not in errors
    assert "it/s" not in errors
    for path in (folder / "results").glob(f"{name}.[mj]*"):
        text = path.read_text(encoding="utf-8")
        assert str(folder) not in text
        assert str(EXAMPLES.parent) not in text


def test_results_in_the_documentation_are_of_full_runs():
    for name in {*NAMES, "federated"}:
        folder = ROOT / "docs" / "results"
        assert json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["quick"] is False
        text = (folder / f"{name}.md").read_text(encoding="utf-8")
        assert "--quick run" not in text
        assert f"Printed by `python examples/{name}.py` in" in text


def test_bootstrap_interval_stays_in_the_possible_range(runs):
    """Shares of which one is 1: Student's t would go beyond."""
    shares = [0.2, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    mean, half_width = runs.shared.mean_and_interval(shares)
    assert mean + half_width > 1
    low, high = runs.shared.bootstrap_interval(shares)
    assert 0.2 < low < mean < high <= 1.0
    assert (
        runs.shared.with_interval(shares, 2, bounded=True)
        == f"{mean:.2f} ({low:.2f} to {high:.2f})"
    )
    assert runs.shared.bootstrap_interval([0.5]) is None
    assert runs.shared.with_interval([0.5], 2, bounded=True) == "0.50"


def test_bootstrap_interval_of_many_values_is_the_normal_one(runs):
    """Of 400: 1.96 standard errors to either side, to the quantiles' own error over 10,000 draws
    (2 %, three times allowed); for every column the same as by itself.
    """
    values = np.random.default_rng(0).normal(size=(400, 3))
    low, high = runs.shared.bootstrap_interval(values)
    error = values.std(axis=0) / np.sqrt(400)
    np.testing.assert_allclose((high - low) / 2, 1.96 * error, rtol=0.06)
    np.testing.assert_allclose(
        (high + low) / 2, values.mean(axis=0), rtol=0, atol=0.1 * error.max()
    )
    np.testing.assert_allclose(runs.shared.bootstrap_interval(values[:, 1]), [low[1], high[1]])


def test_folder_that_cannot_be_written_to_is_refused(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    parser = runs.shared.example_parser("", "example.py", seeds=5)
    with pytest.raises(SystemExit) as refused:
        runs.shared.parse_options(parser, ["--results", "file/results"])
    assert refused.value.code == 2
    message = "--results: cannot write to file/results: Not a directory"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "seeds"), [([], 5), (["--quick"], 2), (["--quick", "--seeds", "3"], 3)]
)
def test_seeds(runs, tmp_path, monkeypatch, arguments, seeds):
    monkeypatch.chdir(tmp_path)
    parser = runs.shared.example_parser("", "example.py", seeds=5)
    options = runs.shared.parse_options(parser, arguments)
    assert options.seeds == seeds
    assert options.results == options.logdir == Path("logs/example")


# What they claim


@pytest.mark.slow
def test_adam_ends_at_the_worst_point_and_yogi_at_the_best(results):
    """From −1, 0 and 1. A thousandth is two steps of η / √t = 0.1 / √30,000 = 6e-4."""
    ends = {
        beta_2: {name: of[name]["end"] for name in of}
        for beta_2, of in results("counterexample")["cyclic"].items()
    }
    assert ends["0.1"]["Adam"] == pytest.approx([1.0] * 3, abs=1e-3)
    assert ends["0.1"]["Yogi"] == pytest.approx([-1.0] * 3, abs=1e-3)
    assert ends["0.1"]["AMSGrad"] == pytest.approx([-1.0] * 3, abs=1e-3)
    for beta_2 in ("0.9", "0.999"):
        for name in ("Adam", "Yogi"):
            assert ends[beta_2][name] == pytest.approx([-1.0] * 3, abs=1e-3)


@pytest.mark.slow
def test_regret_of_the_counterexample(results):
    """At +1 three steps cost 2 more than at −1: 2/3 a step. The first steps, on the way there from
    −1, cost less: 2 % of all. Yogi's regret is that of its way to −1 alone, longest from +1.
    """
    of = results("counterexample")["cyclic"]["0.1"]
    assert of["Adam"]["final_average_regret"] == pytest.approx([2 / 3] * 3, rel=0.03)
    from_the_best, _, from_the_worst = of["Yogi"]["final_average_regret"]
    assert from_the_best < 0.002
    assert from_the_worst < 0.1


@pytest.mark.slow
def test_stochastic_counterexample(results):
    """At 1/√t Adam has gone towards +1 in every game; Yogi, in the same games, is far from there.
    The differences between the two have a standard error of 0.1 over the 20 games.
    """
    of = results("counterexample")["random"]["1"]
    adam, yogi = (np.array(of[name]["end"]) for name in ("Adam", "Yogi"))
    assert len(adam) == 20
    assert adam.min() > 0.5
    assert np.mean(adam - yogi) > 0.3


@pytest.mark.slow
def test_decay_rates_that_depend_on_time_are_the_bias_correction_of_adam_alone(results):
    """To rounding: 1e-14 and 4e-6 are 60 units in the last place, what a thousand random roundings
    of a weight leave; 7e-16 and 4e-7 are reached. Yogi differs in the first digit.
    """
    differences = results("without_bias_correction")["differences"]
    assert max(differences["Adam, float64"]) < 1e-14
    assert 0 < max(differences["Adam, float32"]) < 4e-6
    assert min(differences["Yogi, float64"]) > 0.1


@pytest.mark.slow
def test_velocity_of_yogi_goes_to_the_weighted_median(results):
    """Of Gaussian g² that is the median of χ² with 3 degrees of freedom, 2.366. The spread of the
    mean over 200 weights is 1 %.
    """
    after_1000_steps = {
        label: curve[-1]
        for label, curve in results("without_bias_correction")["velocities"].items()
    }
    assert after_1000_steps["Adam, corrected"] == pytest.approx(1.0, abs=0.03)
    assert after_1000_steps["Adam, rewritten"] == pytest.approx(1.0, abs=0.03)
    assert 1.2 < after_1000_steps["Yogi, corrected"] < 1.5  # on its way
    assert after_1000_steps["Yogi, rewritten"] == pytest.approx(2.366, abs=0.07)


@pytest.mark.slow
def test_bands_of_learning_rates(results):
    of = results("learning_rate")
    assert np.log10(of["rates"]) == pytest.approx([-3, -2.5, -2, -1.5, -1, -0.5, 0])
    diabetes = of["datasets"]["diabetes"]
    assert len(diabetes["records"]) == len(diabetes["bands"]) == 8
    for record, band in zip(diabetes["records"], diabetes["bands"], strict=True):
        for part in ("training", "validation"):
            means = np.mean(record[part], axis=1)
            best = means.argmin()
            assert band[part]["best_losses"] == record[part][best]
            assert band[part]["best_rate"] == of["rates"][best]
            low, high = (of["rates"].index(band[part][edge]) for edge in ("low", "high"))
            assert np.all(means[low : high + 1] <= 1.1 * means[best])
            assert low == 0 or means[low - 1] > 1.1 * means[best]
            assert high == len(means) - 1 or means[high + 1] > 1.1 * means[best]


@pytest.mark.slow
def test_gan_measures_are_those_of_the_data_at_best(results):
    of = results("gan_two_optimizers")
    # 2,000 points of eight places, and within three standard deviations 98.9 % of two dimensions.
    assert of["data"]["places found"] == [8, 8]
    assert of["data"]["points there"] == pytest.approx([0.989] * 2, abs=0.008)  # 3.4 σ
    for of_rates in of["runs"].values():
        for measured in of_rates.values():
            first, last = np.mean(measured["energy distance"], axis=0)[[0, -1]]
            assert min(of["data"]["energy distance"]) < last < first


@pytest.mark.slow
def test_bytes_a_weight_and_weights_that_stand_still(quick, results):
    """Packed slots are at most an element longer than the weights: 1e-3 is far more. In bfloat16
    β₂ = 0.999 is 1, and no step of keras.optimizers.Adam moves anything.
    """
    of = results("half_precision")["tasks"]["from new weights"]["0.001"]
    total = {name: sum(of[name]["bytes_per_weight"].values()) for name in of}
    assert total == pytest.approx(
        {"float32": 12, "residual": 12, "no residual": 10, "Keras": 6, "Keras, β₂ = 0.99": 6},
        rel=1e-3,
    )
    assert of["Keras"]["standing_still"] == [1.0]
    assert max(of["residual"]["standing_still"]) < 0.1
    assert "figures mean nothing" in (quick("half_precision") / "output.txt").read_text("utf-8")


@pytest.mark.slow
def test_bfloat16_with_the_residual_follows_float32(results):
    """The same weights see the same batches, but the model itself computes in bfloat16: its loss
    may be off by 0.02, 5 units in the last place of a logit, where the two steps gain 0.8.
    """
    of = results("half_precision")["tasks"]["from new weights"]["0.001"]
    ours, float32 = (np.array(of[name]["losses"]) for name in ("residual", "float32"))
    np.testing.assert_allclose(ours, float32, rtol=0, atol=0.02)
    assert np.all(float32[:, -1] < float32[:, 0] - 0.3)


@pytest.mark.slow
def test_migrated_model_goes_on_as_in_tensorflow_addons(results):
    """2e-7 of the largest weight is what tests/test_migration.py allows ten steps in float32."""
    of = results("migrate_from_tfa")
    assert of["steps"] == list(range(21, 31))
    assert max(of["differences"]["load_tfa"]) < 2e-7
    assert of["losses"]["load_tfa"] == pytest.approx(of["losses"]["TensorFlow Addons"], rel=1e-6)
    assert min(of["differences"]["weights alone"]) > 1e-3


def test_file_that_is_no_tfa_model_is_refused(migrate, tmp_path):
    (tmp_path / "model.h5").write_bytes(b"no model")
    options = ["--file", str(tmp_path / "model.h5"), "--logdir", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"model\.h5"):
        migrate.main(options)


def test_file_of_the_users_is_taken_over(migrate, tmp_path, capsys):
    sample = EXAMPLES.parent / "tests" / "golden_tfa" / "functional_model.h5"
    migrate.main(["--file", str(sample), "--logdir", str(tmp_path)])
    assert "ExponentialDecay" in capsys.readouterr().out
    model = keras.models.load_model(tmp_path / "functional_model.keras")
    assert int(model.optimizer.iterations) == 20
    assert any(np.any(model.optimizer.get_slot(v, "momentum")) for v in model.trainable_variables)


# What they are made of


@pytest.mark.parametrize(("rule", "new"), [("adam", keras_yogi.Adam), ("yogi", keras_yogi.Yogi)])
def test_trajectory_is_the_published_update(runs, rule, new):
    """float32 against float64: 4e-6 of the largest weight, as in tests/test_update.py."""
    gradients = np.random.default_rng(0).standard_t(2, (40, 3)).astype("float32")
    gradients[3] = 0.0
    start = [0.5, -1.0, 2.0]
    settings = dict(beta_1=0.5, beta_2=0.9, epsilon=1e-3)
    ours = runs.trajectory(new(0.0625, **settings), gradients, start)
    initial = {"initial_accumulator_value": 1e-6} if rule == "yogi" else {}
    reference = Reference(start, rule, 0.0625, **settings, **initial)
    expected = []
    for gradient in gradients:
        expected.append(reference.weights)
        reference.update(gradient)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=4e-6 * np.abs(expected).max())


def test_inverse_root(runs):
    rates = runs.InverseRoot(0.5)(np.array([0, 1, 3, 99]))
    np.testing.assert_allclose(rates, [0.5, 0.5 / np.sqrt(2), 0.25, 0.05], rtol=2e-7)  # float32


@pytest.mark.parametrize("new", [keras_yogi.Adam, keras_yogi.Yogi])
def test_short_runs_train_as_fit_does(runs, new):
    """Compiled as one function and step by step: 20 steps of float32 roundings in another order.
    The second run shows that nothing is left of the first.
    """
    job = runs.jobs.diabetes()
    ((weights, batches),) = runs.starts_of(job, batch_size=32, epochs=2, seeds=1)
    rates = np.linspace(0.02, 0.001, len(batches))
    short = runs.ShortRuns(job, new())
    for _ in range(2):
        short.start(weights)
        short.train(batches, rates)

    model = job.model()
    model.set_weights(weights)
    model.compile(new(), loss=job.loss)
    x, y = job.train
    for rows, rate in zip(batches, rates, strict=True):
        model.optimizer.learning_rate = rate
        model.train_on_batch(x[rows], y[rows])
    for ours, expected in zip(short.model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5)
    expected = np.mean((model(x).numpy() - y) ** 2)
    assert short.loss(job.train) == pytest.approx(expected, rel=1e-4)


def test_batches_of_a_seed_hold_every_row_once_an_epoch(runs):
    job = runs.jobs.diabetes()  # 353 rows
    first, second = runs.starts_of(job, batch_size=10, epochs=2, seeds=2)
    assert first[1].shape == (70, 10)
    for epoch in (first[1][:35], first[1][35:]):
        assert len(np.unique(epoch)) == 350
    assert not np.array_equal(first[1][:35], first[1][35:])
    assert not np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0][0], second[0][0])
