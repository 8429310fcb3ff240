"""Processes that tests start: a strategy, another backend, a fresh start, a kill."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
HANG = 1800
"""Seconds after which a process is taken to hang. No measure of a machine's speed: tests pass on a
busy one too.
"""


def environment(measured: bool = True, **more: str) -> dict[str, str]:
    """That of this process, in which the tests' modules can be imported.

    With `measured=False` coverage does not count the process: one that is killed, or may not write,
    would leave half a data file, which cannot be combined with the others.
    """
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    of_process = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": path, **more}
    # They are for this pytest. One that a test starts is counted like any other process, and must
    # not combine the data files of those that still run.
    of_process.pop("PYTEST_ADDOPTS", None)
    if not measured:
        of_process.pop("COVERAGE_PROCESS_CONFIG", None)
    return of_process


def module_command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", name, *map(str, arguments)]


def run_python(
    *arguments: object,
    cwd: Path | None = None,
    timeout: float = HANG,
    measured: bool = True,
    **more: str,
) -> subprocess.CompletedProcess:
    """Python with these arguments, to its end, whatever that is."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment(measured, **more),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )


@contextlib.contextmanager
def running(
    log: Path, *arguments: object, measured: bool = False, **more: str
) -> Iterator[subprocess.Popen]:
    """Python with these arguments, of which nothing is left afterwards, nor of the processes it has
    started: they are one process group. `measured` is for one that comes to its end.
    """
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=file,
            stderr=file,
            env=environment(measured, **more),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
