"""What the repository says of itself holds."""

import ast
import re
import sys
import tomllib

import pytest
from support.processes import ROOT

import keras_yogi

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


PACKAGE = ROOT / "keras_yogi"
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}


def imported(path):
    """Full names of the modules, and of the names in them, that a file of the package imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.parent.relative_to(ROOT).parts[
                : None if node.level < 2 else 1 - node.level
            ]
            module = ".".join([*(package if node.level else ()), *filter(None, [node.module])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def is_of(name, *modules):
    return any(name == module or name.startswith(f"{module}.") for module in modules)


# Which parts of the package a module may import; whatever else there is, it does not know.
MAY_IMPORT = {
    "checks.py": ["row_gradients"],
    "rules.py": ["checks"],
    "row_gradients.py": ["half_precision"],
    "step_conditions.py": ["row_gradients"],
    "half_precision.py": [],
    "engines/": ["rules", "row_gradients", "half_precision", "checks", "engines"],
}


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_lower_parts_know_no_higher_ones(part):
    """No engine knows an optimizer, no rule an engine."""
    paths = [path for name, path in MODULES.items() if name.startswith(part)]
    assert paths
    allowed = {f"keras_yogi.{module}" for module in MAY_IMPORT[part]}
    for path in paths:
        ours = {name for name in imported(path) if is_of(name, "keras_yogi")}
        assert {name for name in ours if not is_of(name, *allowed)} == set(), path


def test_a_rule_is_made_of_keras_ops():
    outside = {name for name in imported(PACKAGE / "rules.py") if not is_of(name, "keras_yogi")}
    standard = {name for name in outside if name.partition(".")[0] in sys.stdlib_module_names}
    assert outside - standard == {"keras.ops"}


def test_the_import_rule_sees_every_form(tmp_path, monkeypatch):
    """Or else it could not fail."""
    path = PACKAGE / "engines" / "seen.py"
    code = "import keras_yogi.a\nfrom keras_yogi import b\nfrom ..c import d\nfrom . import e\n"
    monkeypatch.setattr(type(path), "read_text", lambda self, **_: code)
    assert imported(path) == {f"keras_yogi.{name}" for name in ("a", "b", "c.d", "engines.e")}


# What only Keras's own code is promised. Where nothing public gives the same, one file may use it.
PRIVATE = {
    "_apply_weight_decay",
    "_backend_update_step",
    "_clip_gradients",
    "_get_variable_index",
    "_learning_rate",
    "_model_variables_moving_average",
    "_momentums",
    "_trainable_variables",
    "_track_variable",
    "_var_key",
    "_velocities",
    "_velocity_hats",
}
MAY_USE_PRIVATE = {"optimizers/base.py", "any_optimizer.py"}


def private_names(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return PRIVATE & (attributes | functions | {t for t in texts if isinstance(t, str)})


def test_underscore_names_of_keras_are_in_two_files():
    """The optimizer's, and the one that asks other optimizers."""
    users = {name for name, path in MODULES.items() if private_names(path)}
    assert users == MAY_USE_PRIVATE


WRONG_CALLS = """
keras_yogi.Yogi("fast")
keras_yogi.Yogi(sparse_update="Lazy")
keras_yogi.Adam(fused="yes")
keras_yogi.Adam(bias_correction="all")
keras_yogi.Yogi(activation="relu")
"""
RIGHT_CALLS = """
keras_yogi.Yogi(0.01, sparse_update="lazy", weight_decay=0.1, fused=False)
keras_yogi.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5))
keras_yogi.Adam(lambda: 0.1, bias_correction="none")
"""


@pytest.mark.slow
def test_a_type_checker_finds_wrong_calls(tmp_path):
    pytest.importorskip("mypy", reason="needs mypy")
    from mypy import api

    file = tmp_path / "calls.py"
    file.write_text(f"import keras\nimport keras_yogi\n{RIGHT_CALLS}{WRONG_CALLS}")
    config = str(ROOT / "pyproject.toml")
    output, _, _ = api.run(["--config-file", config, str(file)])
    found = {int(line.split(":")[1]) for line in output.splitlines() if ": error:" in line}
    first = file.read_text().splitlines().index(WRONG_CALLS.splitlines()[1]) + 1
    assert found == set(range(first, first + 5)), output
