"""The child that serves devices to other machines, by llama.cpp's own RPC server. `host.py` is the parent's side.

stdin brings one `Serve`; stdout (moved away from descriptor 1 first) takes what comes of it. The native server never
returns. What it prints on descriptor 1 when clients come and go is read here.
"""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from llmrun.engine import protocol
from llmrun.engine.child import bootstrap, ggml, native
from llmrun.engine.child.inbox import Outbox
from llmrun.engine.protocol import Client, Failed, Listening, Message, RequestFailed, Serve
from llmrun.engine.rpc.memory_limit import LayoutChanged, limit_device
from llmrun.machine.hardware import memory_limit, physical_memory

_CAME = b"Accepted client connection"
_LEFT = b"Client connection closed"
_LISTENS_WITHIN_S = 60


def _chosen(names: list[str]) -> list[Any]:
    """The handles of the devices to serve."""
    known = [(handle, ggml.describe(handle)) for handle in ggml.handles()]
    by_name = {device.name.lower(): handle for handle, device in known}
    for name in names:
        if name.lower() not in by_name:
            there = ", ".join(device.name for _, device in known)
            raise RequestFailed("usage", f"there is no device '{name}'; there is {there}")
    if names:
        return [by_name[name] for name in dict.fromkeys(name.lower() for name in names)]
    if not known:
        raise RequestFailed("usage", "llama.cpp sees no device at all on this machine")
    gpus = [handle for handle, device in known if device.kind not in ("cpu", "accel")]
    return gpus or [handle for handle, device in known if device.kind == "cpu"][:1]


def _prepared(job: Serve) -> list[Any]:
    """The devices to serve, with their limits."""
    try:
        native.library("ggml-rpc")
    except OSError:
        raise RequestFailed("usage", "llama.cpp was built without RPC here (-DGGML_RPC=on)") from None
    handles = _chosen(job.devices)
    for handle in handles:
        try:
            limit_device(handle, job.limit_bytes)
        except LayoutChanged as error:
            if job.limit_bytes is not None:
                problem = f"this build of llama.cpp can't keep to it ({error})"
                raise RequestFailed("usage", problem, field="memory") from None
    _bound_messages(handles)
    return handles


def _bound_messages(handles: list[Any]) -> None:
    """Let a message that claims to be larger than all RAM fail instead of filling it.

    llama.cpp makes room for what a client announces, and writes zeros to it, before a byte of it has come. Only where
    nothing but the CPU is served: drivers of GPUs reserve address space by the terabyte.
    """
    if all(ggml.describe(handle).kind == "cpu" for handle in handles):
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        known = (physical_memory(), memory_limit(), None if hard == resource.RLIM_INFINITY else hard)
        bounds = [bound for bound in known if bound is not None]
        if bounds:
            resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))


def _watch(printed: BinaryIO, job: Serve, handles: list[Any], send: Callable[[Message], None]) -> None:
    """Tell of clients. The first one is ourselves: only who is accepted knows that the server accepts."""
    ourselves = _knock(job)
    if ourselves is None:
        return  # `main` tells why: the server has returned
    lines = (line for line in printed if line.startswith((_CAME, _LEFT)))
    next(lines, b"")
    send(Listening([ggml.describe(handle) for handle in handles]))
    ourselves.close()
    next(lines, b"")
    for line in lines:
        send(Client(connected=line.startswith(_CAME)))


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
    inbox, descriptor = bootstrap.begin()
    # Else ggml has a debugger look at every crash, which stops it for a third of a second, and more with much memory.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    request, job = protocol.decode(inbox.readline())
    outbox = Outbox(descriptor)
    assert isinstance(job, Serve)

    def send(message: Message) -> None:
        """Everything is about the one request that there is, to serve."""
        outbox.send(request, message)

    ggml.on_abort(bootstrap.last_words)
    native.Log()
    native.llama.llama_backend_init()
    try:
        handles = _prepared(job)
    except RequestFailed as refused:
        send(refused.failed)
        return
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(writing)
    threading.Thread(target=_watch, args=(os.fdopen(reading, "rb"), job, handles, send), daemon=True).start()
    ggml.serve_forever(f"{job.host}:{job.port}", job.n_threads, handles)
    send(Failed("port", f"port {job.port} could not be had"))  # taken since the parent looked
