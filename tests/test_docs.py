"""The documentation: its code runs, and its links lead somewhere."""

import functools
import re
import shutil

import keras
import numpy as np
import pytest
from support.processes import ROOT
from support.training import hard_gradients, initial_weights, trajectory

import keras_yogi

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("logs/*.md")])
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
# Their code needs two devices, and runs in test_distribute; or Flower, and runs in test_federated.
ELSEWHERE = {ROOT / "docs" / "distributed.md", ROOT / "docs" / "federated.md"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def code_of(page):
    return PYTHON.findall(page.read_text("utf-8"))


def run_code(page):
    """Runs the code of a page, one block after another; returns what it has named."""
    names = {"__name__": "documentation"}
    for number, code in enumerate(code_of(page)):
        exec(compile(code, f"{page.name}, block {number}", "exec"), names)
    return names


# index.md shows a model that does not learn, which `fit` warns of: the next test.
@pytest.mark.filterwarnings("ignore:Nearly all weights hardly move")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if code_of(p) and p not in ELSEWHERE], ids=lambda p: p.name
)
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "model.h5" in page.read_text("utf-8"):  # a model saved by TensorFlow Addons
        shutil.copy(ROOT / "tests" / "golden_tfa" / "tfa_model.h5", tmp_path / "model.h5")
    run_code(page)


def test_a_model_that_does_not_learn(tmp_path, monkeypatch):
    """The start page says how it is told, and what helps."""
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(code_of(ROOT / "docs" / "index.md")[:1]), names)
    example = code_of(ROOT / "docs" / "index.md")[1].partition("model = train(")[0]
    exec(example, names)
    with pytest.warns(UserWarning, match="try initial_accumulator_value=0.0, epsilon=1e-06"):
        model = names["train"](keras_yogi.Yogi(0.01))
    accuracy = model.evaluate(names["words"], names["labels"], verbose=0)[1]
    assert round(accuracy, 2) == 0.55  # 283 of 512 samples; a rounding does not move many of them
    (warning,) = keras_yogi.diagnose(model).warnings
    assert "v₀ dominates" in warning
    assert "`words/embeddings`" in warning
    model = names["train"](keras_yogi.Yogi(0.01, initial_accumulator_value=0.0, epsilon=1e-6))
    assert model.evaluate(names["words"], names["labels"], verbose=0)[1] > 0.99
    assert not keras_yogi.diagnose(model).warnings


@functools.cache
def anchors(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@every_page
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), link
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


@every_page
def test_files_that_are_named_exist(page):
    """Commands and remarks name them from the repository's root."""
    named = r"\b(?:benchmarks|docs|examples|tests)/[\w/]+\.(?:json|md|png|py)"
    for path in re.findall(named, page.read_text("utf-8")):
        assert (ROOT / path).exists(), path


def test_every_example_is_on_its_page():
    page = (ROOT / "docs" / "examples.md").read_text("utf-8")
    for example in ROOT.glob("examples/[!_]*.py"):
        assert example.name in page


def test_every_page_of_the_site_is_in_its_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in navigation


def ada_belief(m, v, g, t):
    """The step of AdaBelief as docs/extending.md has it, on m and v in place."""
    m += 0.1 * (g - m)
    v += 0.001 * ((g - m) ** 2 - v) + 1e-8
    return m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def nadam(m, v, g, t):
    m += 0.1 * (g - m)
    v += 0.001 * (g**2 - v)
    ahead = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
    return ahead / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


@pytest.mark.parametrize(("name", "step_of"), [("AdaBelief", ada_belief), ("Nadam", nadam)])
def test_further_optimizers_follow_their_formulas(name, step_of, tmp_path, monkeypatch):
    """Those of docs/extending.md, against NumPy, in every engine."""
    monkeypatch.chdir(tmp_path)
    optimizer = run_code(ROOT / "docs" / "extending.md")[name]
    weights, gradients = initial_weights(), hard_gradients()
    expected = [np.array(w) for w in weights]
    m, v = ([np.zeros_like(w) for w in weights] for _ in range(2))
    for t, row in enumerate(gradients, start=1):
        for i, g in enumerate(row):
            expected[i] = expected[i] - 0.0625 * step_of(m[i], v[i], np.float64(g), t)
    for mode, fused in (("eager", False), ("graph", True), ("xla", True)):
        states = trajectory(
            optimizer(0.0625, fused=fused), weights, gradients, mode, dtype="float64"
        )
        for got, want in zip(states[-1], expected, strict=True):
            np.testing.assert_allclose(got["weights"], want, rtol=1e-11)  # 15 steps' rounding
    assert isinstance(keras.optimizers.get(optimizer()), optimizer)
