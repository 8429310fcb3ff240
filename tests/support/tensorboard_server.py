"""A real TensorBoard, asked over HTTP."""

import contextlib
import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from support.processes import HANG, running


class Server:
    """TensorBoard on a free port of this machine."""

    def __init__(self, process: subprocess.Popen, output: Path) -> None:
        self.process = process
        self._output = output
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.wait_for(self._address)
        self.url = self._address()

    def _address(self) -> str | None:
        text = self._output.read_text(encoding="utf-8")
        found = re.search(r"http://127\.0\.0\.1:\d+/", text)
        return found and found[0]

    def wait_for(self, holds: Callable[[], object]) -> None:
        """TensorBoard reads files in the background: until what it has read makes this true."""
        last = time.monotonic() + HANG
        while not holds():
            text = self._output.read_text(encoding="utf-8")
            assert self.process.poll() is None, text
            assert time.monotonic() < last, text
            time.sleep(0.2)

    def get(self, path: str, **arguments: object):
        return self._open(f"{self.url}data/{path}?{urllib.parse.urlencode(arguments)}")

    def post(self, path: str, **arguments: object):
        body = json.dumps(arguments).encode()
        headers = {"Content-Type": "application/json"}
        return self._open(urllib.request.Request(f"{self.url}data/{path}", body, headers))

    def _open(self, request):
        with self._opener.open(request, timeout=HANG) as answer:
            return json.load(answer)


@contextlib.contextmanager
def tensorboard(logdir: Path, output: Path) -> Iterator[Server]:
    """A server over this folder of logs; what it prints goes into the file `output`."""
    command = ("-m", "tensorboard.main", "--logdir", logdir, "--host", "127.0.0.1", "--port", "0")
    with running(output, *command, "--reload_interval", "1") as process:
        yield Server(process, output)
