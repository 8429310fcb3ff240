"""What the repository says of itself holds."""

import ast
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


MODULES = sorted((ROOT / "keras_yogi").rglob("*.py"))


def lines_of_code(function):
    """Without the docstring, which is as long as it has to be."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_and_functions_are_short(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert lines_of_code(node) <= 50, node.name
