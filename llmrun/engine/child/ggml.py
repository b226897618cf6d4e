"""ggml's devices, through ctypes on the binding's own libraries: the binding wraps none of these functions.

Child process only. A device is an address (`ggml_backend_dev_t`) that stays valid for the life of the process. Every
function is declared where it is called, by `function`: name, type of its result, types of its arguments.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from llmrun.engine.child.native import library
from llmrun.machine.device import Device, DeviceKind, free_of
from llmrun.machine.hardware import available_memory

# enum ggml_backend_dev_type
_KINDS: tuple[DeviceKind, ...] = ("cpu", "gpu", "igpu", "accel", "meta")


@cache
def function(stem: str, name: str, result: Any, *argument_types: Any) -> Any:
    """A C function of one of the binding's libraries, with its types declared.

    Pointers are `c_void_p`: undeclared, ctypes passes them as 32-bit ints. Raises `AttributeError` where the library
    has no such function, `OSError` where there is no such library.
    """
    found = library(stem)[name]  # an object of its own: as an attribute all would share one, and its types
    found.restype, found.argtypes = result, list(argument_types)
    return found


_POINTER = ctypes.c_void_p


def _text(name: str, *arguments: ctypes.c_void_p) -> str:
    """What a function of ggml-base says that returns a C string."""
    said = function("ggml-base", name, ctypes.c_char_p, *[_POINTER] * len(arguments))(*arguments)
    return (said or b"").decode(errors="replace")


def _extension(handle: ctypes.c_void_p, name: bytes) -> int | None:
    """The address of a function that only some backends have, by the device's backend; None where it has not."""
    get = function("ggml-base", "ggml_backend_reg_get_proc_address", _POINTER, _POINTER, ctypes.c_char_p)
    return get(registry(handle), name) or None


def handles() -> Iterator[ctypes.c_void_p]:
    """Every device that llama.cpp sees, those of RPC servers added so far included."""
    get = function("ggml", "ggml_backend_dev_get", _POINTER, ctypes.c_size_t)
    for index in range(function("ggml", "ggml_backend_dev_count", ctypes.c_size_t)()):
        yield _POINTER(get(index))


def registry(handle: ctypes.c_void_p) -> ctypes.c_void_p:
    """The backend that the device belongs to (`ggml_backend_reg_t`)."""
    return _POINTER(function("ggml-base", "ggml_backend_dev_backend_reg", _POINTER, _POINTER)(handle))


def describe(handle: ctypes.c_void_p) -> Device:
    """A device as it is now. Asks the device for its memory: the first time, that may start a driver."""
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    memory = function("ggml-base", "ggml_backend_dev_memory", None, _POINTER, _POINTER, _POINTER)
    memory(handle, ctypes.byref(free), ctypes.byref(total))
    known = total.value > 0  # "0 bytes to indicate no memory to report"
    kind = _KINDS[function("ggml-base", "ggml_backend_dev_type", ctypes.c_int, _POINTER)(handle)]
    if kind == "cpu" and known and (really_free := available_memory()) is not None:
        free.value = min(free.value, really_free)  # of the machine's RAM ggml says that all of it is free
    return Device(
        name=name_of(handle),
        description=_text("ggml_backend_dev_description", handle).strip(),
        kind=kind,
        backend=_text("ggml_backend_reg_name", registry(handle)),
        total_bytes=total.value if known else None,
        free_bytes=free_of(free.value, total.value) if known else None,
        features=features(handle),
    )


class _Feature(ctypes.Structure):
    """struct ggml_backend_feature"""

    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


def features(handle: ctypes.c_void_p) -> dict[str, str]:
    """What the device's backend was built with and can do: {"AVX512": "1"}, {"ARCHS": "890"}; empty: unknown."""
    address = _extension(handle, b"ggml_backend_get_features")
    if address is None:
        return {}
    listed = ctypes.CFUNCTYPE(ctypes.POINTER(_Feature), _POINTER)(address)(registry(handle))
    given = takewhile(lambda each: each.name, map(listed.__getitem__, count())) if listed else ()
    return {each.name.decode(errors="replace"): (each.value or b"").decode(errors="replace") for each in given}


def versions() -> dict[str, str]:
    """ggml's version, where it tells: {"ggml": "0.25.3", "ggml commit": "1a2b3c4"}."""
    found: dict[str, str] = {}
    for what, name in (("ggml", "ggml_version"), ("ggml commit", "ggml_commit")):
        with suppress(AttributeError):  # older ones have no such function
            found[what] = _text(name)
    return found


def add_server(endpoint: str) -> bool:
    """Add the devices of the RPC server at "host:port"; False where it has none.

    ggml aborts the process if there is no server, or one of another version of the protocol.
    Raises `OSError` where llama.cpp was built without RPC.
    """
    registry = function("ggml-rpc", "ggml_backend_rpc_add_server", _POINTER, ctypes.c_char_p)(endpoint.encode())
    if registry:
        function("ggml", "ggml_backend_register", None, _POINTER)(registry)
        keep_alive(int(endpoint.rpartition(":")[2]))
    return bool(registry)


def keep_alive(port: int, descriptors: Path = Path("/proc/self/fd")) -> int:
    """Turn on TCP keepalive for this process's connections to workers at `port`; returns how many there are.

    When a worker's machine is gone (power, network), no packet says so, and a wait for its answer would never end.
    With keepalive it ends within 15 s. Linux only: elsewhere the engine's limit on idle time has to do.
    (TCP_USER_TIMEOUT would bound sending as well, and end a connection to a worker that computes and does not read.)
    """
    import socket  # 2 ms, for the few who have workers

    found = 0
    for path in list(descriptors.iterdir()) if descriptors.is_dir() else []:
        # An error: not a socket, not connected, or closed meanwhile.
        with suppress(OSError), socket.socket(fileno=os.dup(int(path.name))) as connection:
            if connection.family == socket.AF_INET and connection.getpeername()[1] == port:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3)):
                    if hasattr(socket, option):
                        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
                found += 1
    return found


def by_name(name: str) -> ctypes.c_void_p | None:
    """The handle of "CPU", "CUDA0", "RPC1", ..."""
    return next((handle for handle in handles() if name_of(handle) == name), None)


def name_of(handle: ctypes.c_void_p) -> str:
    """ "CPU", "CUDA0", "RPC1", ..."""
    return _text("ggml_backend_dev_name", handle)


def buffer_type(handle: ctypes.c_void_p) -> ctypes.c_void_p:
    """Where the device keeps tensors by default (`ggml_backend_buffer_type_t`)."""
    return _POINTER(function("ggml-base", "ggml_backend_dev_buffer_type", _POINTER, _POINTER)(handle))


def extra_buffer_types(handle: ctypes.c_void_p) -> list[ctypes.c_void_p]:
    """Where else the device keeps weights, rearranged for faster products, the ones to prefer first."""
    address = _extension(handle, b"ggml_backend_dev_get_extra_bufts")
    if address is None:
        return []
    listed = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)(address)(handle)
    return [_POINTER(each) for each in takewhile(bool, map(listed.__getitem__, count()))] if listed else []


def set_threads(handle: ctypes.c_void_p, backend: ctypes.c_void_p, n_threads: int) -> None:
    """Set how many threads a backend of this device computes with. No effect on one without threads, as a GPU's."""
    address = _extension(handle, b"ggml_backend_set_n_threads")
    if address is not None:
        ctypes.CFUNCTYPE(None, _POINTER, ctypes.c_int)(address)(backend, n_threads)


def allocate(buffer_type: ctypes.c_void_p, n_bytes: int) -> ctypes.c_void_p | None:
    """A buffer of `n_bytes` (`ggml_backend_buffer_t`), or None where there is no room for it."""
    take = function("ggml-base", "ggml_backend_buft_alloc_buffer", _POINTER, _POINTER, ctypes.c_size_t)
    buffer = take(buffer_type, n_bytes)
    return _POINTER(buffer) if buffer else None


def size_of(buffer: ctypes.c_void_p) -> int:
    """Of a buffer, in bytes."""
    return int(function("ggml-base", "ggml_backend_buffer_get_size", ctypes.c_size_t, _POINTER)(buffer))


def free(buffer: ctypes.c_void_p) -> None:
    function("ggml-base", "ggml_backend_buffer_free", None, _POINTER)(buffer)


def serve_forever(endpoint: str, n_threads: int, offered: list[ctypes.c_void_p]) -> None:
    """Serve devices at "1.2.3.4:port", one client at a time. Returns only if it can't listen there.

    Raises `OSError` where llama.cpp was built without RPC.
    """
    array = (_POINTER * len(offered))(*offered)
    size, text = ctypes.c_size_t, ctypes.c_char_p
    serve = function("ggml-rpc", "ggml_backend_rpc_start_server", None, text, text, size, size, _POINTER)
    serve(endpoint.encode(), None, n_threads, len(offered), array)


_AbortHook = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


def on_abort(callback: Callable[[str], None]) -> None:
    """Have ggml call `callback` with the text of a failed assertion before it aborts the process."""

    def hook(text: bytes | None) -> None:
        callback((text or b"").decode(errors="replace").strip())

    keep = _AbortHook(hook)
    _kept.append(keep)
    library("ggml-base").ggml_set_abort_callback(keep)


_kept: list[Any] = []  # ctypes callbacks must outlive the call that installs them
