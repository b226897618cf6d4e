"""ggml's devices, through ctypes on the binding's own libraries: the binding wraps none of these functions.

Child process only. A device is an address (`ggml_backend_dev_t`) that stays valid for the life of the process.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from llmrun.engine.child.native import llama
from llmrun.machine.device import Device, DeviceKind
from llmrun.machine.hardware import available_memory

# enum ggml_backend_dev_type
_KINDS: tuple[DeviceKind, ...] = ("cpu", "gpu", "igpu", "accel", "meta")


@cache
def library(stem: str) -> Any:
    """One of the binding's own libraries: "ggml-base", "ggml", "ggml-rpc". Raises `OSError` where the build has none.

    By its versioned name, as the loader knows it: under another one a second copy would be loaded.
    """
    folder = Path(llama.__file__).parent / "lib"
    names = [f"lib{stem}.so.0", f"lib{stem}.so", f"lib{stem}.0.dylib", f"lib{stem}.dylib", f"{stem}.dll"]
    path = next((path for path in (folder / name for name in names) if path.exists()), None)
    if path is None:
        raise OSError(f"this build of llama.cpp has no {stem}")
    return ctypes.CDLL(str(path))


def _call(stem: str, name: str, result: Any, *arguments: Any) -> Any:
    """A function with its types. Pointers are `c_void_p`: ctypes' default is a 32-bit int."""
    function = getattr(library(stem), name)
    function.restype = result
    function.argtypes = [type(argument) for argument in arguments]
    return function(*arguments)


def _text(stem: str, name: str, *arguments: Any) -> str:
    return (_call(stem, name, ctypes.c_char_p, *arguments) or b"").decode(errors="replace")


def handles() -> Iterator[ctypes.c_void_p]:
    """Every device that llama.cpp sees, those of RPC servers added so far included."""
    for index in range(_call("ggml", "ggml_backend_dev_count", ctypes.c_size_t)):
        yield ctypes.c_void_p(_call("ggml", "ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t(index)))


def registry(handle: ctypes.c_void_p) -> ctypes.c_void_p:
    """The backend that the device belongs to (`ggml_backend_reg_t`)."""
    return ctypes.c_void_p(_call("ggml-base", "ggml_backend_dev_backend_reg", ctypes.c_void_p, handle))


def describe(handle: ctypes.c_void_p) -> Device:
    """A device as it is now. Asks the device for its memory: the first time, that may start a driver."""
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    memory = library("ggml-base").ggml_backend_dev_memory
    memory.restype = None
    memory.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    memory(handle, ctypes.byref(free), ctypes.byref(total))
    known = total.value > 0  # "0 bytes to indicate no memory to report"
    kind = _KINDS[_call("ggml-base", "ggml_backend_dev_type", ctypes.c_int, handle)]
    really_free = available_memory() if kind == "cpu" and known else None
    if really_free is not None:  # of the machine's RAM ggml says that all of it is free
        free.value = min(free.value, really_free)
    return Device(
        name=_text("ggml-base", "ggml_backend_dev_name", handle),
        description=_text("ggml-base", "ggml_backend_dev_description", handle).strip(),
        kind=kind,
        backend=_text("ggml-base", "ggml_backend_reg_name", registry(handle)),
        total_bytes=total.value if known else None,
        free_bytes=free.value if known else None,
        features=features(handle),
    )


class _Feature(ctypes.Structure):
    """struct ggml_backend_feature"""

    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


def features(handle: ctypes.c_void_p) -> dict[str, str]:
    """What the device's backend was built with and can do: {"AVX512": "1"}, {"ARCHS": "890"}; empty: it doesn't say."""
    backend = registry(handle)
    address = _call(
        *("ggml-base", "ggml_backend_reg_get_proc_address", ctypes.c_void_p),
        *(backend, ctypes.c_char_p(b"ggml_backend_get_features")),
    )
    if not address:
        return {}
    listed = ctypes.CFUNCTYPE(ctypes.POINTER(_Feature), ctypes.c_void_p)(address)(backend)
    found: dict[str, str] = {}
    index = 0
    while listed and listed[index].name:
        found[listed[index].name.decode(errors="replace")] = (listed[index].value or b"").decode(errors="replace")
        index += 1
    return found


def versions() -> dict[str, str]:
    """What ggml says of itself, where it does: {"ggml": "0.25.3", "ggml commit": "1a2b3c4"}."""
    said = {"ggml": ("ggml-base", "ggml_version"), "ggml commit": ("ggml-base", "ggml_commit")}
    found: dict[str, str] = {}
    for what, (stem, name) in said.items():
        try:
            found[what] = _text(stem, name)
        except AttributeError:  # older ones have no such function
            continue
    return found


def devices() -> list[Device]:
    """All of them, in ggml's order."""
    return [describe(handle) for handle in handles()]


def add_server(endpoint: str) -> bool:
    """Add the devices of the RPC server at "host:port"; False where it has none.

    Where nobody listens, or somebody who does not speak this version of the protocol, ggml aborts the process.
    Raises `OSError` where llama.cpp was built without RPC.
    """
    add = library("ggml-rpc").ggml_backend_rpc_add_server
    add.restype = ctypes.c_void_p
    add.argtypes = [ctypes.c_char_p]
    registry = add(endpoint.encode())
    if not registry:
        return False
    _call("ggml", "ggml_backend_register", None, ctypes.c_void_p(registry))
    keep_alive(int(endpoint.rpartition(":")[2]))
    return True


def keep_alive(port: int, descriptors: Path = Path("/proc/self/fd")) -> int:
    """Have the kernel look after this process's connections to workers at `port`; returns how many there are.

    A worker whose machine is gone (power, network) sends no word of it, and llmrun would wait for an answer for ever.
    With these, a connection on which we wait ends within 15 s. Linux only: elsewhere the limit on silence has to do.
    (TCP_USER_TIMEOUT would see to what is being sent as well, and end one to a worker that computes and does not read.)
    """
    found = 0
    for path in list(descriptors.iterdir()) if descriptors.is_dir() else []:
        try:
            connection = socket.socket(fileno=os.dup(int(path.name)))
        except OSError:
            continue  # no socket, or gone meanwhile
        with connection:
            try:
                if connection.family != socket.AF_INET or connection.getpeername()[1] != port:
                    continue
            except OSError:
                continue
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3)):
                if hasattr(socket, option):
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
            found += 1
    return found


def by_name(name: str) -> ctypes.c_void_p | None:
    """The handle of "CPU", "CUDA0", "RPC1", ..."""
    for handle in handles():
        if _text("ggml-base", "ggml_backend_dev_name", handle) == name:
            return handle
    return None


def buffer_type(handle: ctypes.c_void_p) -> ctypes.c_void_p:
    """Where the device keeps tensors by default (`ggml_backend_buffer_type_t`)."""
    return ctypes.c_void_p(_call("ggml-base", "ggml_backend_dev_buffer_type", ctypes.c_void_p, handle))


def extra_buffer_types(handle: ctypes.c_void_p) -> list[ctypes.c_void_p]:
    """Where else the device keeps weights, rearranged for faster products, the ones to prefer first."""
    address = _call(
        *("ggml-base", "ggml_backend_reg_get_proc_address", ctypes.c_void_p),
        *(registry(handle), ctypes.c_char_p(b"ggml_backend_dev_get_extra_bufts")),
    )
    if not address:
        return []
    listed = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(handle)
    found: list[ctypes.c_void_p] = []
    while listed and listed[len(found)]:
        found.append(ctypes.c_void_p(listed[len(found)]))
    return found


def set_threads(handle: ctypes.c_void_p, backend: ctypes.c_void_p, n_threads: int) -> None:
    """How many threads a backend of this device computes with; of no effect where it has none of its own."""
    address = _call(
        *("ggml-base", "ggml_backend_reg_get_proc_address", ctypes.c_void_p),
        *(registry(handle), ctypes.c_char_p(b"ggml_backend_set_n_threads")),
    )
    if address:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(address)(backend, n_threads)


def take(buffer_type: ctypes.c_void_p, n_bytes: int) -> ctypes.c_void_p | None:
    """A buffer of so many bytes (`ggml_backend_buffer_t`), or None where it can't be had."""
    buffer = _call(
        "ggml-base", "ggml_backend_buft_alloc_buffer", ctypes.c_void_p, buffer_type, ctypes.c_size_t(n_bytes)
    )
    return ctypes.c_void_p(buffer) if buffer else None


def size_of(buffer: ctypes.c_void_p) -> int:
    return int(_call("ggml-base", "ggml_backend_buffer_get_size", ctypes.c_size_t, buffer))


def give_back(buffer: ctypes.c_void_p) -> None:
    _call("ggml-base", "ggml_backend_buffer_free", None, buffer)


def serve_forever(endpoint: str, n_threads: int, offered: list[ctypes.c_void_p]) -> None:
    """Serve devices at "1.2.3.4:port", one client at a time. Returns only where the port could not be had.

    Raises `OSError` where llama.cpp was built without RPC.
    """
    array = (ctypes.c_void_p * len(offered))(*offered)
    serve = library("ggml-rpc").ggml_backend_rpc_start_server
    serve.restype = None
    serve.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    serve(endpoint.encode(), None, n_threads, len(offered), array)


# ggml's own abort hook: called with the failed assert's text, after which the process dies.
_abort_hook_type = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


def on_abort(callback: Callable[[str], None]) -> None:
    """Call `callback` with the text when ggml aborts the process."""

    def hook(text: bytes | None) -> None:
        callback((text or b"").decode(errors="replace").strip())

    keep = _abort_hook_type(hook)
    _kept.append(keep)
    library("ggml-base").ggml_set_abort_callback(keep)


_kept: list[Any] = []  # ctypes callbacks must outlive the call that installs them
