"""The report of keras_yogi.diagnose: as a table, a page, a dict and a data frame."""

import json
import sys

import keras
import numpy as np
import pytest
from support.figures import FIGURES, train, variables_of

import keras_yogi


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
