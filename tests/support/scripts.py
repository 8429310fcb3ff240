"""Scripts in new processes, as a user runs them; but these are forks of one process that has
imported TensorFlow and not yet used it: the import takes longer than most of them.

python -m support.scripts    forks itself for each line of its input
"""

import atexit
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pytest

from support.processes import HANG, environment, module_command, run_python

LIBRARIES = (
    "tensorflow",
    "keras",
    "keras_yogi",
    "matplotlib.pyplot",
    "scipy.stats",
    "sklearn.datasets",
)
# Coverage counts processes to their end, which a fork does not come to.
CAN_FORK = sys.platform == "linux" and "COVERAGE_PROCESS_CONFIG" not in os.environ


@functools.cache
def _server() -> subprocess.Popen:
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    quiet = environment(CUDA_VISIBLE_DEVICES="", MPLBACKEND="agg")
    server = subprocess.Popen(module_command(__name__), env=quiet, **pipes)
    atexit.register(server.communicate)  # the end of its input is its end
    return server


def run_script(
    path: Path, *arguments: object, cwd: Path, **more: str
) -> subprocess.CompletedProcess:
    """A Python file with these arguments, to its end, whatever that is. `more`: what it finds in
    its environment, beside what this process has.
    """
    if not CAN_FORK:
        return run_python(path, *arguments, cwd=cwd, **{"CUDA_VISIBLE_DEVICES": "", **more})
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        request = {
            "arguments": [str(path), *map(str, arguments)],
            "cwd": str(cwd),
            "outputs": [str(output) for output in outputs],
            "more": more,
        }
        server = _server()
        print(json.dumps(request), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        texts = [output.read_text(encoding="utf-8") for output in outputs]
    return subprocess.CompletedProcess(request["arguments"], code, *texts)


def run_pytest(*arguments: object, cwd: Path, **more: str) -> subprocess.CompletedProcess:
    """Tests that cannot be run in a process where TensorFlow has started."""
    return run_script(Path(pytest.__file__).parent / "__main__.py", *arguments, cwd=cwd, **more)


def _run(arguments: list[str], cwd: str, outputs: list[str], more: dict[str, str]) -> None:
    signal.alarm(HANG)  # ends the process even if a lock was held when it was forked
    for number, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.update(more)
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    code: Any = 1
    try:
        runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Answers each line of JSON with an exit code, negative for a signal."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _run(**json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
