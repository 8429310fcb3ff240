"""Processes that tests start: a strategy, another backend, a fresh start, a kill."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
HANG = 1800
"""Seconds after which a process is taken to hang. No measure of a machine's speed: tests pass on a
busy one too.
"""


def environment(**more: str) -> dict[str, str]:
    """That of this process, in which the tests' modules can be imported."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": path, **more}


def module_command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", name, *map(str, arguments)]


def run_python(
    *arguments: object, cwd: Path | None = None, timeout: float = HANG, **more: str
) -> subprocess.CompletedProcess:
    """Python with these arguments, to its end, whatever that is."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )
