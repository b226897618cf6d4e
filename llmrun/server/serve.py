"""Serves until it is told to end: a socket, uvicorn around the application, and a file that says that it is there."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrun import __version__, codec, fs, paths
from llmrun.codec import Struct
from llmrun.errors import UsageError

_BACKLOG = 512
_GRACE_S = 15
"""For the last words of those whose time is over: an engine that has to be killed is, within ten seconds."""


class Running(Struct):
    """A server that runs, as its file says.

    Attributes:
        address: "http://127.0.0.1:8080".
        needs_key: of all requests.
        begun: seconds of the epoch.
    """

    pid: int
    address: str
    models: list[str]
    needs_key: bool
    begun: float
    llmrun: str = __version__


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `UsageError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise UsageError(f"{host}:{port}: {why[:1].lower()}{why[1:]}", field="port", value=port) from None
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: Any, listener: socket.socket, *, stop_s: float, on_stop: Callable[[], Awaitable[None]]) -> None:
    """Until SIGINT or SIGTERM: `on_stop` ends what runs within so many seconds. A second signal ends all at once."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=round(stop_s) + _GRACE_S,
        lifespan="on",
    )
    server = uvicorn.Server(config)

    async def run() -> None:
        loop, stopping = asyncio.get_running_loop(), list[asyncio.Future[None]]()

        def stop() -> None:
            if server.should_exit:
                os._exit(130)
            server.should_exit = True
            stopping.append(asyncio.ensure_future(on_stop()))

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        # uvicorn's own handlers would send the signal to us once more when all is done.
        server.capture_signals = _nothing  # type: ignore[method-assign]
        await server.serve(sockets=[listener])

    asyncio.run(run())


@contextmanager
def _nothing() -> Iterator[None]:
    yield


# -- who serves --------------------------------------------------------------------------------------------------------


def folder() -> Path:
    return paths.runtime() / "servers"


@dataclass
class Noted:
    """The file that says that this process serves; a context manager."""

    running: Running

    def __enter__(self) -> Noted:
        fs.write_atomically(self._path(), codec.encode(self.running))
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._path().unlink()

    def _path(self) -> Path:
        made = folder()
        made.mkdir(parents=True, exist_ok=True, mode=0o700)
        return made / f"{self.running.pid}.json"


def noted(address: str, models: Sequence[str], *, needs_key: bool) -> Noted:
    return Noted(Running(os.getpid(), address, [*models], needs_key, time.time()))


def all_running() -> list[Running]:
    """The servers of this user, the oldest first. Files of those that are dead are removed."""
    import psutil

    found = []
    for path in sorted(folder().glob("*.json")):
        try:
            running = codec.decode(path.read_bytes(), Running)
            process = psutil.Process(running.pid)
            is_same = process.create_time() <= running.begun + 1
        except (OSError, codec.Malformed, psutil.Error):
            is_same = False
        if is_same:
            found.append(running)
        else:
            with suppress(OSError):
                path.unlink()
    return sorted(found, key=lambda each: each.begun)
