"""The child that serves devices to other machines, by llama.cpp's own RPC server. `serve.py` is the parent's side.

stdin brings one `Serve`; stdout (moved away from descriptor 1 first) takes what comes of it, one JSON object a line.
The native server never returns. What it prints on descriptor 1 when clients come and go is read here. Importing this
imports no native code: the parent's side takes the messages from here.
"""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any, BinaryIO

from llmrun.engine.wire import Wire
from llmrun.machine.device import Device
from llmrun.machine.hardware import memory_limit, physical_memory

_CAME = b"Accepted client connection"
_LEFT = b"Client connection closed"
_LISTENS_WITHIN_S = 60


@dataclass(frozen=True)
class Serve:
    """Parent → child: serve these devices, none named: the GPUs, or else the CPU.

    Attributes:
        host: an IPv4 address; llama.cpp's server knows no other.
        limit_bytes: of memory, on each device; None: all that is free.
    """

    host: str
    port: int
    devices: list[str]
    n_threads: int
    limit_bytes: int | None


@dataclass(frozen=True)
class Listening:
    """Child → parent: clients are accepted from now on. The devices are as a client sees them."""

    devices: list[Device]


@dataclass(frozen=True)
class Client:
    """Child → parent: a client came (`connected`) or went."""

    connected: bool


@dataclass(frozen=True)
class Refused:
    """Child → parent: it can't be done. The child ends. `field`: of the options, the one that is wrong."""

    message: str
    field: str | None = None


@dataclass(frozen=True)
class PortTaken(Refused):
    """Child → parent: the port was taken since the parent looked."""


Message = Serve | Listening | Client | Refused | PortTaken
WIRE: Wire[Message] = Wire((Serve, Listening, Client, Refused, PortTaken))


class _Refusal(Exception):
    """Becomes a `Refused` message."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.refused = Refused(message, field)


class _Outbox:
    """Everything is about the one request that there is, to serve."""

    def __init__(self, descriptor: int, request: int) -> None:
        self._file = os.fdopen(descriptor, "wb")
        self._request = request
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        with self._lock:
            self._file.write(WIRE.encode(self._request, message))
            self._file.flush()


def _chosen(names: list[str]) -> list[Any]:
    """The handles of the devices to serve."""
    from llmrun.engine.child import ggml

    known = [(handle, ggml.describe(handle)) for handle in ggml.handles()]
    if names:
        by_name = {device.name.lower(): handle for handle, device in known}
        for name in names:
            if name.lower() not in by_name:
                raise _Refusal(f"there is no device '{name}'; there is {', '.join(device.name for _, device in known)}")
        return [by_name[name] for name in dict.fromkeys(name.lower() for name in names)]
    gpus = [handle for handle, device in known if device.kind not in ("cpu", "accel")]
    cpus = [handle for handle, device in known if device.kind == "cpu"]
    if not known:
        raise _Refusal("llama.cpp sees no device at all on this machine")
    return gpus or cpus[:1]


def _prepared(job: Serve) -> list[Any]:
    """The devices to serve, with their limits."""
    from llmrun.engine.child import native
    from llmrun.engine.rpc import memory_limit

    try:
        native.library("ggml-rpc")
    except OSError:
        raise _Refusal("llama.cpp was built without RPC here (-DGGML_RPC=on)") from None
    handles = _chosen(job.devices)
    for handle in handles:
        try:
            memory_limit.limit_device(handle, job.limit_bytes)
        except memory_limit.LayoutChanged as error:
            if job.limit_bytes is not None:
                raise _Refusal(f"this build of llama.cpp can't keep to it ({error})", field="memory") from None
    _bound_messages(handles)
    return handles


def _bound_messages(handles: list[Any]) -> None:
    """Let a message that claims to be larger than all RAM fail instead of filling it.

    llama.cpp makes room for what a client announces, and writes zeros to it, before a byte of it has come. Only where
    nothing but the CPU is served: drivers of GPUs reserve address space by the terabyte.
    """
    from llmrun.engine.child import ggml

    if all(ggml.describe(handle).kind == "cpu" for handle in handles):
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        known = (physical_memory(), memory_limit(), None if hard == resource.RLIM_INFINITY else hard)
        bounds = [bound for bound in known if bound is not None]
        if bounds:
            resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))


def _watch(printed: BinaryIO, job: Serve, handles: list[Any], outbox: _Outbox) -> None:
    """Tell of clients. The first one is ourselves: only who is accepted knows that the server accepts."""
    from llmrun.engine.child import ggml

    ourselves = _knock(job)
    if ourselves is None:
        return  # `main` tells why: the server has returned
    lines = (line for line in printed if line.startswith((_CAME, _LEFT)))
    next(lines, b"")
    outbox.send(Listening([ggml.describe(handle) for handle in handles]))
    ourselves.close()
    next(lines, b"")
    for line in lines:
        outbox.send(Client(connected=line.startswith(_CAME)))


def _knock(job: Serve) -> socket.socket | None:
    host = "127.0.0.1" if job.host == "0.0.0.0" else job.host
    deadline = time.monotonic() + _LISTENS_WITHIN_S
    while time.monotonic() < deadline:
        try:
            return socket.create_connection((host, job.port), timeout=_LISTENS_WITHIN_S)
        except OSError:
            time.sleep(0.01)
    return None


def main() -> None:
    from llmrun.engine.child import bootstrap, ggml, native

    inbox, descriptor = bootstrap.begin()
    # Else ggml has a debugger look at every crash, which stops it for a third of a second, and more with much memory.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    request, job = WIRE.decode(inbox.readline())
    outbox = _Outbox(descriptor, request)
    assert isinstance(job, Serve)
    ggml.on_abort(bootstrap.last_words)
    native.Log()
    native.llama.llama_backend_init()
    try:
        handles = _prepared(job)
    except _Refusal as refusal:
        outbox.send(refusal.refused)
        return
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(writing)
    watcher = threading.Thread(target=_watch, args=(os.fdopen(reading, "rb"), job, handles, outbox), daemon=True)
    watcher.start()
    ggml.serve_forever(f"{job.host}:{job.port}", job.n_threads, handles)
    outbox.send(PortTaken(f"port {job.port} could not be had"))
