"""A real `llmrun serve`, for tests: its address, and its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from waiting import HANGS_S, until


class Server:
    """Attributes:
    address: "http://127.0.0.1:40123".
    said: lines of its standard error, as they come.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []
        assert process.stderr
        self._stderr = process.stderr
        threading.Thread(target=self._listen, daemon=True).start()
        until(lambda: self.said or process.poll() is not None, "a first line")
        self.address = self.said[0] if self.said else ""

    def _listen(self) -> None:
        for line in self._stderr:
            self.said.append(line.rstrip("\n"))

    def ready(self) -> Server:
        def is_ready() -> bool:
            assert self.process.poll() is None, "\n".join(self.said)
            return self.get("/health")[0] == 200

        until(is_ready, "the model loaded")
        return self

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        return self.ask(path, None, **headers)

    def ask(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Status and document of a request; `body` is JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(self.address + path, data, {"Content-Type": "application/json", **named})
        try:
            with build_opener(ProxyHandler({})).open(request, timeout=HANGS_S) as response:
                return response.status, _document(response.read())
        except HTTPError as error:
            with error:
                return error.code, _document(error.read())


def _document(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode()


@contextmanager
def serving(*arguments: str, env: dict[str, str] | None = None, home: Path | None = None) -> Iterator[Server]:
    """`llmrun serve` with these arguments, at any free port."""
    environment = {**os.environ, **(env or {})}
    if home is not None:
        environment["LLMRUN_HOME"] = str(home)
    process = subprocess.Popen(
        [sys.executable, "-m", "llmrun", "serve", *arguments, "--port", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield Server(process)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(HANGS_S)
        if process.stderr:
            process.stderr.close()
