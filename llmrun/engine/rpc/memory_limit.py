"""A limit on the memory of a device that RPC clients may take. ggml has no such option.

Child process only. ggml asks a device for its memory, and allocates and frees buffers, through function pointers in
structs of its own (`ggml-backend-impl.h`; the pinned version of the binding is what makes their layout known).
`limit_device` puts functions of ours there, which count and pass the call on. If the layout has changed, that is found
out before anything is offered: the structs' other fields must agree with the public functions, and a buffer of 1 MiB
must move the counter.

Counted is what an RPC client can ask for: buffers of weights, KV cache and computation, to the byte that ggml grants.
What a driver, a computation or a message in transit takes for itself comes on top.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

from llmrun.engine.child import ggml
from llmrun.machine.hardware import anonymous_memory, available_memory

_PROBE_BYTES = 1 << 20


def _pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_void_p) for name in names]


class _Device(ctypes.Structure):
    """struct ggml_backend_device"""

    _fields_ = _pointers(
        *("get_name", "get_description", "get_memory", "get_type", "get_props", "init_backend", "get_buffer_type"),
        *("get_host_buffer_type", "buffer_from_host_ptr", "supports_op", "supports_buft", "offload_op"),
        *("event_new", "event_free", "event_synchronize", "reg", "context"),
    )


class _BufferType(ctypes.Structure):
    """struct ggml_backend_buffer_type"""

    _fields_ = _pointers(
        *("get_name", "alloc_buffer", "get_alignment", "get_max_size", "get_alloc_size", "is_host"),
        *("device", "context"),
    )


class _Buffer(ctypes.Structure):
    """struct ggml_backend_buffer"""

    _fields_ = (
        *_pointers("free_buffer", "get_base", "init_tensor", "memset_tensor", "set_tensor", "get_tensor"),
        *_pointers("set_tensor_2d", "get_tensor_2d", "cpy_tensor", "clear", "reset", "buft", "context"),
        ("size", ctypes.c_size_t),
        ("usage", ctypes.c_int),
    )


_Size = ctypes.POINTER(ctypes.c_size_t)
_GetMemory = ctypes.CFUNCTYPE(None, ctypes.c_void_p, _Size, _Size)
_AllocBuffer = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_FreeBuffer = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class LayoutChanged(Exception):
    """This build's structs are not laid out as they are here: memory can't be limited with it."""


@dataclass
class _Pool:
    """The memory behind one buffer type, which two devices (CPU and BLAS) may share.

    Attributes:
        limit_bytes: None: only what is there limits it.
        used_bytes: of all buffers that are not freed yet.
        in_ram: whether it is the machine's RAM, of which ggml itself grants any amount.
    """

    limit_bytes: int | None
    in_ram: bool
    used_bytes: int = 0
    free_of: dict[int, int] = field(default_factory=dict)  # a buffer's address → ggml's own function to free it


_pools: dict[int, _Pool] = {}  # by the buffer type's address
_kept: list[Any] = []  # ctypes callbacks must outlive the call that installs them


def limit_device(handle: ctypes.c_void_p, limit_bytes: int | None) -> None:
    """Have the device grant at most `limit_bytes` from now on, and report no more. Raises `LayoutChanged`.

    A device in the machine's RAM also reports what is free of it (ggml itself says: all), and refuses more than that.
    """
    device = _Device.from_address(handle.value or 0)
    buffer_type = ggml.buffer_type(handle).value or 0
    if device.reg != ggml.registry(handle).value:
        raise LayoutChanged("ggml_backend_device")
    pool = _pools.get(buffer_type)
    if pool is None:
        in_ram = ggml.describe(handle).kind in ("cpu", "accel")
        pool = _pools[buffer_type] = _Pool(limit_bytes, in_ram)
        _limit_buffers(buffer_type, pool)
        _check_layout(buffer_type, pool)
    _limit_report(device, pool)


def _limit_buffers(address: int, pool: _Pool) -> None:
    """Have the buffer type grant no more than the pool has."""
    buffer_type = _BufferType.from_address(address)
    ggml_alloc = _AllocBuffer(buffer_type.alloc_buffer)

    def free(buffer: int) -> None:
        whole = _Buffer.from_address(buffer)
        pool.used_bytes -= whole.size
        # CUDA and Metal know their buffers by this very pointer, so that copies between two of them within the server
        # are done through the client while memory is limited: slower, not wrong. Freeing finds the original again.
        whole.free_buffer = pool.free_of.pop(buffer)
        _FreeBuffer(whole.free_buffer)(buffer)

    keep_free = _FreeBuffer(free)
    own_free = ctypes.cast(keep_free, ctypes.c_void_p).value

    def alloc(_type: int, size: int) -> int | None:
        if pool.limit_bytes is not None and pool.used_bytes + size > pool.limit_bytes:
            return None
        # Linux grants more RAM than there is, and kills a process when it is used.
        free = _free_ram(pool)
        if free is not None and size > free:
            return None
        buffer: int | None = ggml_alloc(address, size)
        if not buffer:
            return None
        whole = _Buffer.from_address(buffer)
        if whole.free_buffer:
            pool.free_of[buffer] = whole.free_buffer
            whole.free_buffer = own_free
            pool.used_bytes += whole.size
        return buffer

    keep_alloc = _AllocBuffer(alloc)
    _kept.extend((keep_free, keep_alloc))
    buffer_type.alloc_buffer = ctypes.cast(keep_alloc, ctypes.c_void_p).value


def _limit_report(device: _Device, pool: _Pool) -> None:
    """Have the device report no more than the pool has."""
    ask = _GetMemory(device.get_memory)

    def memory(handle: int, free: Any, total: Any) -> None:
        ask(handle, free, total)
        free_ram = _free_ram(pool)
        if free_ram is not None and total[0]:
            free[0] = min(total[0], free_ram)
        if pool.limit_bytes is not None:
            # Clients take "0 of 0 bytes" for unknown.
            free[0] = min(free[0] if total[0] else pool.limit_bytes, pool.limit_bytes - pool.used_bytes)
            total[0] = min(total[0] or pool.limit_bytes, pool.limit_bytes)

    keep = _GetMemory(memory)
    _kept.append(keep)
    device.get_memory = ctypes.cast(keep, ctypes.c_void_p).value


def _free_ram(pool: _Pool) -> int | None:
    """RAM that is neither used nor granted: what was granted takes none until it is written to. None: unknown."""
    free = available_memory() if pool.in_ram else None
    if free is None:
        return None
    written = anonymous_memory()
    return free if written is None else max(0, free - max(0, pool.used_bytes - written))


def _check_layout(address: int, pool: _Pool) -> None:
    """Allocate and free a little through the public functions: it must be counted, its fields where they are read."""
    buffer = ggml.allocate(ctypes.c_void_p(address), _PROBE_BYTES)
    if buffer is None:
        raise LayoutChanged("it has not even 1 MiB")
    whole = _Buffer.from_address(buffer.value or 0)
    fits = whole.size == ggml.size_of(buffer) >= _PROBE_BYTES and whole.buft == address
    counted = pool.used_bytes == whole.size and len(pool.free_of) == 1
    if fits and counted:
        ggml.free(buffer)
    if not fits or not counted or pool.used_bytes or pool.free_of:
        raise LayoutChanged("ggml_backend_buffer")
