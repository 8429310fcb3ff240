"""examples/compare.py, run as a user runs it, and what it writes read back by TensorBoard."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from matplotlib import colors, image
from scipy import stats
from support.processes import ROOT, environment
from support.scripts import run_script
from support.tensorboard_server import tensorboard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

COMPARE = ROOT / "examples" / "compare.py"
OPTIMIZERS = ["keras_yogi.Adam", "keras_yogi.Yogi", "keras.optimizers.Adam"]
STEPS_OF_TWO_EPOCHS = {"diabetes": 24, "digits": 90}  # 353 and 1,437 rows in batches of 32
DATASETS = ["diabetes", pytest.param("digits", marks=pytest.mark.slow)]


def results_of(logdir: Path) -> dict:
    return json.loads((logdir / "results.json").read_text(encoding="utf-8"))


def accumulated(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    return accumulator.Reload()


def tags(folder: Path, plugin: str) -> set[str]:
    """The tags of one plugin in the event files of a folder."""
    return set(accumulated(folder).PluginTagToContent(plugin))


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every scalar of the event files in a folder."""
    accumulator = accumulated(folder)
    return {
        tag: [
            (e.step, tensor_util.make_ndarray(e.tensor_proto).item())
            for e in accumulator.Tensors(tag)
        ]
        for tag in accumulator.PluginTagToContent("scalars")
    }


@pytest.fixture(scope="module", params=DATASETS)
def job(request, tmp_path_factory):
    """A quick run from an arbitrary working directory, with the default log folder."""
    folder = tmp_path_factory.mktemp(request.param)
    finished = run_script(COMPARE, "--quick", "--dataset", request.param, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    logdir = folder / "logs" / f"compare-{request.param}"
    return SimpleNamespace(
        dataset=request.param,
        logdir=logdir,
        output=finished.stdout,
        warnings=finished.stderr,
        results=results_of(logdir),
    )


def test_tensorboard_gets_what_the_optimizer_does(job):
    for name in OPTIMIZERS:
        folder = job.logdir / name
        scalars = events(folder)
        assert [step for step, _ in scalars["optimizer/effective_lr_median"]] == [0, 1]
        rate = np.float32(job.results["learning_rate"]).item()
        assert scalars["optimizer/learning_rate"] == [(0, rate), (1, rate)]
        assert any(tag.startswith("optimizer_log10_update/") for tag in tags(folder, "histograms"))
        assert "optimizer/config" in tags(folder, "text")
        assert "_hparams_/session_start_info" in tags(folder, "hparams")


@pytest.mark.slow
@pytest.mark.parametrize("job", ["diabetes"], indirect=True)
def test_no_noise_of_tensorflow_and_what_is_printed_last(job, tmp_path):
    """Neither from C++, before any setting is read; in a shell that sets nothing."""
    variables = environment()
    variables.pop("TF_CPP_MIN_LOG_LEVEL")
    command = [sys.executable, COMPARE, "--epochs", "1", "--logdir", tmp_path]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    *_, picture, board = job.output.splitlines()
    logs = f"logs/compare-{job.dataset}"
    assert picture == f"Picture: {logs}/curves.png"
    assert board == f"To open TensorBoard: tensorboard --logdir {logs}"


def test_tensorboard_gets_losses_and_learning_rate_once_an_epoch(job):
    for name in OPTIMIZERS:
        train, validation = (events(job.logdir / name / part) for part in ("train", "validation"))
        assert set(train) == {"epoch_loss", "epoch_learning_rate"}
        assert set(validation) == {"epoch_loss", "evaluation_loss_vs_iterations"}
        rate = np.float32(job.results["learning_rate"]).item()
        assert train["epoch_learning_rate"] == [(0, rate), (1, rate)]
        for tag in (train["epoch_loss"], validation["epoch_loss"]):
            assert [step for step, _ in tag] == [0, 1]
        # The same float32 losses, averaged in another order: a few units in the last place.
        final = job.results["optimizers"][name]["validation"]["mean"][-1]
        assert validation["epoch_loss"][-1][1] == pytest.approx(final, rel=1e-5)


def test_table_shows_the_results(job):
    target = f"steps to {job.results['target_loss']:.4f}"
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in job.output.splitlines()
        if line.startswith("|")
    ]
    assert rows[0] == ["optimizer", "training loss", "validation loss", target, "ms a step"]
    assert rows[2:] == [
        [
            name,
            f"{result['train']['mean'][-1]:.4f}",
            f"{result['validation']['mean'][-1]:.4f}",
            str(result["steps_to_target"] or "not reached"),
            f"{result['milliseconds_per_step']:.2f}",
        ]
        for name, result in job.results["optimizers"].items()
    ]


def test_no_warnings_of_keras_and_no_bar_in_a_pipe(job):
    assert "UserWarning" not in job.warnings
    assert "step/s" not in job.warnings


def test_results_are_consistent(job):
    results = job.results
    assert list(results["optimizers"]) == OPTIMIZERS
    assert results["epochs"] == 2
    optimizers = results["optimizers"].values()
    for result in optimizers:
        assert result["steps"] == list(range(STEPS_OF_TWO_EPOCHS[job.dataset] + 1))
        assert len(result["train"]["mean"]) == len(result["validation"]["mean"])
        assert len(result["train"]["mean"]) == len(result["steps"])
        assert result["final_train_loss"] == [result["train"]["mean"][-1]]
        assert result["train"]["half_width"] is None  # one seed
        assert result["milliseconds_per_step"] > 0
        assert result["train"]["mean"][-1] < 0.8 * result["train"]["mean"][0]  # it learns
        below = [
            step
            for step, loss in zip(result["steps"], result["train"]["mean"], strict=True)
            if loss <= results["target_loss"]
        ]
        assert result["steps_to_target"] == (below[0] if below else None)
    start = result["train"]["mean"][0]
    best = min(result["train"]["mean"][-1] for result in optimizers)
    assert results["target_loss"] == pytest.approx(best + (start - best) / 10, rel=1e-12)


def test_all_start_from_the_same_weights_and_batch(job):
    optimizers = job.results["optimizers"].values()
    for first in ("first_batch_loss", "train", "validation"):
        values = {
            json.dumps(r[first] if first == "first_batch_loss" else r[first]["mean"][0])
            for r in optimizers
        }
        assert len(values) == 1


def test_picture_shows_every_optimizer(job):
    pixels = image.imread(job.logdir / "curves.png")
    height, width, _ = pixels.shape
    assert width > 500
    assert height > 300
    for color in ("#56B4E9", "#D55E00"):  # the third is black, as the text
        shown = np.all(np.abs(pixels[..., :3] - colors.to_rgb(color)) < 0.01, axis=-1)
        assert shown.sum() > 50, color


def test_batches_are_shuffled_anew_in_every_epoch_and_alike_in_every_run(compare):
    rows = (np.arange(40.0)[:, None], np.arange(40.0)[:, None])

    def two_epochs(seed):
        keras.utils.set_random_seed(seed)
        batches = compare.batches(rows, 7, seed)
        return [[row for x, _ in batches for row in x.numpy().ravel()] for _ in range(2)]

    first, second = two_epochs(0)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert two_epochs(0) == [first, second]
    assert two_epochs(1)[0] != first


def test_with_the_same_epsilon_both_adams_take_the_same_way(compare, tmp_path):
    """So they see the same batches in every epoch, and no optimizer gets another's slots.

    ε = 1e-8, at one place 1e-8 and at the other up to 1e-8 / √0.001 next to roots of 1e-2 to 1:
    3e-5 in the first steps, less later. Other batches change the losses by over 1e-2.
    """
    compare.main(["--epochs", "2", "--epsilon", "1e-8", "--logdir", str(tmp_path)])
    ours, theirs = (
        results_of(tmp_path)["optimizers"][name]["train"]["mean"]
        for name in ("keras_yogi.Adam", "keras.optimizers.Adam")
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    yogi = results_of(tmp_path)["optimizers"]["keras_yogi.Yogi"]["train"]["mean"]
    assert not np.allclose(ours, yogi, rtol=1e-4)


@pytest.mark.parametrize("job", ["diabetes"], indirect=True)
def test_second_run_replaces_the_first_even_if_it_diverges(compare, job, tmp_path, capsys):
    logdir = tmp_path / "again"
    shutil.copytree(job.logdir, logdir)
    notes, foreign = logdir / "keras_yogi.Yogi" / "notes.txt", logdir / "other" / "train"
    notes.write_text("mine")
    shutil.copytree(logdir / "keras_yogi.Yogi" / "train", foreign)
    compare.main(["--epochs", "1", "--learning-rate", "1e30", "--logdir", str(logdir)])

    for name in OPTIMIZERS:
        for part in (".", "train", "validation"):
            assert len(list((logdir / name / part).glob("events*"))) == 1
        (only,) = events(logdir / name / "train")["epoch_learning_rate"]
        assert only == (0, np.float32(1e30).item())
    assert notes.read_text() == "mine"
    assert len(list(foreign.iterdir())) == 1

    text = (logdir / "results.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    for result in json.loads(text)["optimizers"].values():
        assert result["train"]["mean"][-1] is None
        assert result["steps_to_target"] is None
    assert "not reached" in capsys.readouterr().out


# The textbook's job


@pytest.fixture(scope="module")
def airfoil_file():
    given = os.environ.get("KERAS_YOGI_DATA")
    if not given:
        pytest.skip("needs $KERAS_YOGI_DATA, the folder of airfoil_self_noise.dat")
    return Path(given) / "airfoil_self_noise.dat" if Path(given).is_dir() else Path(given)


def test_airfoil_rows_are_standardized_over_all_rows(compare, airfoil_file):
    job = compare.jobs.airfoil(airfoil_file)
    raw = np.loadtxt(airfoil_file)
    expected = ((raw - raw.mean(0)) / raw.std(0))[:1500]
    # float32 of values up to 7
    np.testing.assert_allclose(np.hstack(job.train), expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(compare.jobs.airfoil(airfoil_file.parent).train[0], job.train[0])


@pytest.mark.slow
def test_airfoil_gives_the_textbooks_losses(compare, airfoil_file, monkeypatch, tmp_path, capsys):
    """The textbook prints 0.242 to 0.249, one run each; the bounds are for the mean of five."""
    monkeypatch.setenv("KERAS_YOGI_DATA", str(airfoil_file))
    compare.main(["--dataset", "airfoil", "--seeds", "5", "--logdir", str(tmp_path)])
    results = results_of(tmp_path)
    assert results["seeds"] == [0, 1, 2, 3, 4]

    x, y = (values.astype("float64") for values in compare.jobs.airfoil(airfoil_file).train)
    x = np.hstack([x, np.ones_like(y)])
    residual = y - x @ np.linalg.solve(x.T @ x, x.T @ y)
    optimum = np.mean(residual**2) / 2
    assert results["least_squares"] == pytest.approx(optimum, rel=1e-9)  # both float64
    output = capsys.readouterr().out
    assert f"| {optimum:.4f} |" in re.sub(" +", " ", output)
    assert "Yogi, by hand" in output

    for name, result in results["optimizers"].items():
        losses = result["final_train_loss"]
        assert len(set(losses)) == 5
        assert min(losses) > optimum
        mean, half_width = result["train"]["mean"][-1], result["train"]["half_width"][-1]
        assert 0.242 <= mean <= 0.246, name
        interval = stats.t.interval(0.95, 4, loc=np.mean(losses), scale=stats.sem(losses))
        assert (mean - half_width, mean + half_width) == pytest.approx(interval, rel=1e-9)
        assert events(tmp_path / name / "train")["epoch_learning_rate"] == [
            (epoch, pytest.approx(0.01)) for epoch in range(2)
        ]


# A TensorBoard server


@pytest.mark.slow
@pytest.mark.parametrize("job", ["diabetes"], indirect=True)
def test_tensorboard_server_shows_every_run(job, tmp_path):
    expected = {}
    for name in OPTIMIZERS:
        for part in ("", "/train", "/validation"):
            expected[f"{name}{part}"] = events(job.logdir / f"{name}{part}")
    tags = {run: set(of_run) for run, of_run in expected.items()}
    with tensorboard(job.logdir, tmp_path / "output") as server:
        server.wait_for(
            lambda: {r: set(t) for r, t in server.get("plugin/scalars/tags").items()} == tags
        )
        assert set(server.get("runs")) == set(expected)
        for run, of_run in expected.items():
            for tag, points in of_run.items():
                shown = server.get("plugin/scalars/scalars", run=run, tag=tag)
                assert [(step, value) for _, step, value in shown] == points
