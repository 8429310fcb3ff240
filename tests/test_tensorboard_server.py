"""A real TensorBoard, asked over HTTP for what keras_yogi.TensorBoard has written."""

import pytest
from support.figures import FIGURES, ROUNDING, by_hand
from support.tensorboard_runs import (
    HISTOGRAMS,
    LAYERS,
    OF_VARIABLES,
    SCALARS,
    fit_lookups,
    lookup_model,
)
from support.tensorboard_server import tensorboard

import keras_yogi

RUNS = {"adam": keras_yogi.Adam, "yogi": keras_yogi.Yogi}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("logs")
    trained = {}
    for run, optimizer_class in RUNS.items():
        trained[run] = lookup_model(optimizer_class(0.0625))
        callback = keras_yogi.TensorBoard(logdir / run, histogram_freq=1)
        fit_lookups(trained[run], callback, epochs=3, validation_split=1 / 3)
    return logdir, trained


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    logdir, _ = models
    runs = {f"{run}{part}" for run in RUNS for part in ("", "/train")}
    with tensorboard(logdir, tmp_path_factory.mktemp("server") / "output") as server:
        server.wait_for(lambda: runs <= set(server.get("runs")))
        yield server


@pytest.mark.parametrize("run", RUNS)
def test_scalars(server, models, run):
    by_run = server.get("plugin/scalars/tags")
    assert set(by_run[run]) == SCALARS | OF_VARIABLES
    assert "epoch_loss" in by_run[f"{run}/train"]
    assert "epoch_loss" in by_run[f"{run}/validation"]
    model = models[1][run]
    expected, of_model = by_hand(model.optimizer, model.trainable_variables)
    tags = {f"optimizer/{figure}": of_model[figure] for figure in FIGURES}
    tags |= {f"optimizer_{figure}/out/kernel": expected[3][figure] for figure in FIGURES}
    for tag, value in tags.items():
        points = server.get("plugin/scalars/scalars", run=run, tag=tag)
        assert [step for _, step, _ in points] == [0, 1, 2]
        assert points[-1][2] == pytest.approx(value, rel=ROUNDING), tag


@pytest.mark.parametrize("run", RUNS)
def test_histograms(server, run):
    assert set(server.get("plugin/histograms/tags")[run]) == HISTOGRAMS
    tag = "optimizer_log10_effective_lr/hidden"
    points = server.get("plugin/histograms/histograms", run=run, tag=tag)
    assert [step for _, step, _ in points] == [0, 1, 2]
    assert sum(count for _, _, count in points[-1][2]) == 65


@pytest.mark.parametrize("run", RUNS)
def test_text(server, run):
    assert "optimizer/config" in server.get("plugin/text/tags")[run]
    (page,) = server.get("plugin/text/text", run=run, tag="optimizer/config")
    assert f"keras_yogi.{run.title()}</h2>" in page["text"]
    assert "<td>engine</td>" in page["text"]
    assert "<td>fused</td>" in page["text"]


def test_hyperparameters_of_both_runs_are_in_one_table(server):
    experiment = server.post("plugin/hparams/experiment", experimentName="")
    columns = {info["name"] for info in experiment["hparamInfos"]}
    assert {"optimizer", "learning_rate", "epsilon", "initial_accumulator_value"} <= columns
    metrics = [(info["name"]["group"], info["name"]["tag"]) for info in experiment["metricInfos"]]
    wanted = [
        (part, f"epoch_{name}") for part in ("train", "validation") for name in ("loss", "mae")
    ]
    assert sorted(metrics) == sorted(wanted)
    answer = server.post(
        "plugin/hparams/session_groups",
        experimentName="",
        startIndex=0,
        sliceSize=10,
        allowedStatuses=["STATUS_SUCCESS"],
        colParams=[{"hparam": "optimizer"}, {"metric": {"group": "train", "tag": "epoch_loss"}}],
    )
    rows = {row["hparams"]["optimizer"]: row for row in answer["sessionGroups"]}
    assert set(rows) == {"keras_yogi.Adam", "keras_yogi.Yogi"}
    for run in RUNS:
        row = rows[f"keras_yogi.{run.title()}"]
        assert row["hparams"]["learning_rate"] == 0.0625
        assert [session["name"] for session in row["sessions"]] == [run]
        values = {
            v["name"]["group"]: v["value"]
            for v in row["metricValues"]
            if "loss" in v["name"]["tag"]
        }
        for part, value in values.items():
            points = server.get("plugin/scalars/scalars", run=f"{run}/{part}", tag="epoch_loss")
            assert value == pytest.approx(points[-1][2])
        assert set(values) == {"train", "validation"}


def test_one_card_a_layer(server):
    layout = server.get("plugin/custom_scalars/layout")
    categories = {category["title"]: category["chart"] for category in layout["category"]}
    charts = categories["effective_lr_median"]
    assert [chart["title"] for chart in charts] == list(LAYERS)
    for chart, variables in zip(charts, LAYERS.values(), strict=True):
        (pattern,) = chart["multiline"]["tag"]
        lines = server.get("plugin/custom_scalars/scalars", run="adam", tag=pattern)
        expected = {f"optimizer_effective_lr_median/{v}" for v in variables}
        assert set(lines["tag_to_events"]) == expected
