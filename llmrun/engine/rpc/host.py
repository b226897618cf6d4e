"""Serves this machine's devices to others over llama.cpp's RPC: checks first, starts the child, starts it again.

llama.cpp's server dies of many a malformed message. Whoever sends one should not take the devices from everybody else:
the child is started again, unless it keeps dying.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmrun.engine.channel import Channel, Died
from llmrun.engine.devices import does_not_start
from llmrun.engine.process import Child, Death
from llmrun.engine.protocol import NO_REQUEST, Client, Failed, Listening, Message, Serve
from llmrun.errors import Act, Change, EngineCrashed, LlmrunError, OutOfMemory, UsageError
from llmrun.machine.gpus import clone_folder, rebuild_command
from llmrun.machine.hardware import default_threads
from llmrun.options.endpoints import DEFAULT_PORT
from llmrun.options.load import MAX_THREADS
from llmrun.text import printable

_START_S = 120
_CRASHES, _WITHIN_S = 5, 60
"""So many crashes in such a time, and the server gives up."""
_LEAST_BYTES = 16 << 20
_LOOPBACK = Change({"host": "127.0.0.1"})


@dataclass(frozen=True)
class Offer:
    """What to serve, and where.

    Attributes:
        host: an IPv4 address or a name.
        port: 0: any that is free.
        devices: by name; none named: the GPUs, or else the CPU.
        limit_bytes: of memory, on each device; None: all that is free.
        n_threads: None is one per physical core.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    devices: Sequence[str] = ()
    limit_bytes: int | None = None
    n_threads: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            problem = f"{self.port} is outside 1 to 65535; 0 takes any that is free"
            raise UsageError(problem, field="port", value=self.port)
        if self.n_threads is not None and not 1 <= self.n_threads <= MAX_THREADS:
            problem = f"{self.n_threads} is outside 1 to {MAX_THREADS}"
            raise UsageError(problem, field="n_threads", value=self.n_threads)
        if self.limit_bytes is not None and self.limit_bytes < _LEAST_BYTES:
            raise UsageError("no model fits into less than 0.016 GiB", field="memory", value=self.limit_bytes)


@dataclass(frozen=True)
class Restarted:
    """The server crashed and serves again. `reason`: of the crash."""

    reason: str


class Server:
    """Devices being served. A context manager: leaving it ends the child, whatever it is doing.

    Raises `UsageError` (the address, the port, the devices, a build without RPC), `EngineCrashed`, `OutOfMemory`.

    Attributes:
        host, port: where it listens, as an IPv4 address.
        devices: as a client sees them at the start.
    """

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self.host = address_of(offer.host)
        self._claim: socket.socket | None = None
        self._channel: Channel | None = None
        self._serving = NO_REQUEST
        self._crashes: list[float] = []
        self.port = offer.port
        try:
            self.devices = self._first_start().devices
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the process that does the work."""
        assert self._channel
        return self._channel.child.pid

    def close(self) -> None:
        if self._channel:
            self._channel.close()
        if self._claim:
            self._claim.close()

    def events(self) -> Iterator[Client | Restarted]:
        """Clients that come and go, crashes that were survived; until the child is gone for good, which raises."""
        while True:
            try:
                message = self._next(float("inf"))
            except Died as error:
                yield Restarted(self._revived(error.death))
                continue
            if isinstance(message, Client):
                yield message
            else:
                raise EngineCrashed(_sentence(message))

    def _first_start(self) -> Listening:
        while True:
            self._claim = _claim(self.host, self._offer.port)
            self.port = self._claim.getsockname()[1]
            if started := self._start():
                return started
            if self._offer.port:
                raise _taken(self.port)
            self.close()  # a free port that somebody else was faster to take: there are others

    def _start(self) -> Listening | None:
        """None: the port was taken meanwhile."""
        if sys.platform != "linux" and self._claim:
            self._claim.close()  # elsewhere a claim keeps out ourselves as well
        self._channel = Channel(Child("rpc.child"), who="worker")
        offer = self._offer
        n_threads = offer.n_threads or default_threads()
        job = Serve(self.host, self.port, list(offer.devices), n_threads, offer.limit_bytes)
        try:
            self._serving = self._channel.request(job)
            message = self._next(time.monotonic() + _START_S)
        except Died as error:
            raise _crashed(error.death) from None
        match message:
            case Listening():
                return message
            case Failed(kind="port"):
                return None
            case Failed(message=problem, field=field):
                rebuild = rebuild_command("-DGGML_RPC=on", clone=clone_folder())
                raise UsageError(problem, field=field, hint=rebuild if "without RPC" in problem else Act("devices"))
        raise EngineCrashed("the worker did not begin to listen" if message is None else _sentence(message))

    def _next(self, deadline: float) -> Message | None:
        """The next message; None at the deadline. Raises `Died`."""
        assert self._channel
        while True:
            message = self._channel.receive(self._serving, min(deadline, time.monotonic() + 3600))
            if message is not None or time.monotonic() >= deadline:
                return message

    def _revived(self, death: Death) -> str:
        """Serve again after a crash; returns its reason. Raises where a new start would be of no use."""
        # A client's message makes it abort or segfault, sometimes before we hear that there is a client. SIGKILL and
        # SIGTERM come from elsewhere, and are meant.
        if death.killer in (0, signal.SIGKILL, signal.SIGTERM):
            raise _crashed(death)
        now = time.monotonic()
        self._crashes = [*[at for at in self._crashes if now - at < _WITHIN_S], now]
        if len(self._crashes) >= _CRASHES:
            problem = f"the worker crashed {_CRASHES} times within {_WITHIN_S} s and gives up; last, it {death.reason}"
            raise EngineCrashed(problem, hint="is every client of this version of llama.cpp?", log=death.log)
        if not self._start():
            raise _taken(self.port)
        return death.reason


def address_of(host: str) -> str:
    """The IPv4 address that a host's name stands for. Raises `UsageError`."""
    problem = "llama.cpp's RPC server knows IPv4 only" if ":" in host else "there is no such host"
    try:
        if ":" not in host:
            return socket.gethostbyname(host)
    except (OSError, UnicodeError):
        pass
    raise UsageError(f"{printable(host, 100)}: {problem}", field="host", value=host, hint=_LOOPBACK)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. Raises `UsageError`."""
    return ipaddress.ip_address(address_of(host)).is_loopback


def _claim(host: str, port: int) -> socket.socket:
    """The port, bound but not listened at, so that it stays ours while the server is started, and started again."""
    claim = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as llama.cpp does: else it would be kept out
        claim.bind((host, port))
    except OSError as error:
        claim.close()
        if error.errno == errno.EADDRINUSE:
            raise _taken(port) from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"{host}: this machine does not have that address", field="host", value=host) from None
        problem = f"can't listen at {host}:{port}: {os.strerror(error.errno or 0)}"
        raise UsageError(problem, hint=Change({"port": 0})) from None
    return claim


def _taken(port: int) -> UsageError:
    return UsageError(f"port {port} is in use", hint=Change({"port": 0}, note="any that is free"))


def _crashed(death: Death) -> LlmrunError:
    if death.out_of_memory:
        return OutOfMemory(f"the worker {death.reason}", hint=Change({"memory": 4}, note="offer less"))
    return does_not_start(death) or EngineCrashed(f"the worker {death.reason}", log=death.log)


def _sentence(message: object) -> str:
    return message.message if isinstance(message, Failed) else f"the worker sent {type(message).__name__} out of turn"
