"""What the repository says of itself holds."""

import re
import tomllib
from pathlib import Path

import pytest

import keras_yogi

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_ci_runs_the_test_line_of_the_readme():
    lines = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    (test_line,) = [line for line in lines if line.endswith("pytest")]
    assert test_line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_lower_bounds_are_the_versions_that_ci_tests():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(bound.split(">=") for bound in project["dependencies"])
    oldest = (ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8")
    for name, tested in re.findall(r"^(\w+)==(.+)$", oldest, re.MULTILINE):
        assert tested.startswith(bounds[name])
        assert f"{name} {tested}" in README.lower()


def test_changelog_knows_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {keras_yogi.__version__}" in changelog


@pytest.mark.parametrize("name", keras_yogi.__all__)
def test_public_names_are_documented(name):
    doc = getattr(keras_yogi, name).__doc__
    for section in ("Args:", "Raises:", "Example:", "References:"):
        assert section in doc, section
