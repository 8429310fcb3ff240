"""Changes a module in one place after another, and shows which changes the tests let through.

    pip install cosmic-ray
    python tests/mutate.py keras_yogi/checks.py tests/test_arguments.py

The changes are cosmic-ray's. Each is tried in a process of its own, forked when TensorFlow has been
imported and not yet been used; no file is changed. Needs Linux or macOS.
"""

import contextlib
import difflib
import multiprocessing
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras  # noqa: F401 (what takes long is imported once)
import pytest
import tensorflow as tf  # noqa: F401
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

SECONDS = 300  # after which a change counts as noticed: an endless loop


def mutants(source: str) -> Iterator[str]:
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments():  # those that need to be told what to do
            continue
        occurrence = 0
        while (mutant := mutate_code(source, operator(), occurrence)) is not None:
            yield mutant
            occurrence += 1


def test(name: str, source: str, path: str, arguments: list[str]) -> None:
    """Ends the process with pytest's exit code, the module being what `source` says."""
    sys.modules[name] = module = types.ModuleType(name)
    module.__file__ = path
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        os.dup2(nowhere.fileno(), 2)
        exec(compile(source, path, "exec"), vars(module))
        code = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *arguments])
    os._exit(code)


def let_through(name: str, source: str, path: str, arguments: list[str]) -> bool:
    process = multiprocessing.get_context("fork").Process(
        target=test, args=(name, source, path, arguments)
    )
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode == 0


def main(path: str, *arguments: str) -> None:
    source = Path(path).read_text("utf-8")
    name = path.removesuffix(".py").replace("/", ".")
    if not let_through(name, source, path, list(arguments)):
        sys.exit("The tests must pass before anything is changed")
    tried = survived = 0
    for mutant in mutants(source):
        tried += 1
        if let_through(name, mutant, path, list(arguments)):
            survived += 1
            lines = difflib.unified_diff(source.splitlines(), mutant.splitlines(), lineterm="", n=0)
            print(*list(lines)[2:], sep="\n", flush=True)
    print(f"{tried} changes, {survived} let through")


if __name__ == "__main__":
    main(*sys.argv[1:])
