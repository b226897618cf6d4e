"""Tensors, graphs and buffers of ggml's own making, for what is measured without a model. Child process only.

Whatever ggml hands out is owned by an `Owner`, which gives it back in the reverse order.
"""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Sequence
from functools import cache, partial
from typing import NamedTuple

from llmrun.engine.child import ggml

F32, F16, I32 = 0, 1, 26
"""enum ggml_type"""
NOISE_ROW = 4096
_PIECE_BYTES = 16 << 20
_FILLED_WITH = 0x3C
"""As F32 0.0115, as F16 1.06: a sum can't overflow."""

_pointer = ctypes.c_void_p
base = partial(ggml.function, "ggml-base")


class ProductFailed(Exception):
    """The device has no memory for it, or can't compute it."""


class _InitParams(ctypes.Structure):
    """struct ggml_init_params"""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Owner:
    """A context manager: leaving it gives everything back, as `close` does, which is safe to call twice."""

    def __init__(self) -> None:
        self._owned: list[tuple[str, int]] = []

    def __enter__(self) -> Owner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._owned:
            name, handle = self._owned.pop()
            base(name, None, _pointer)(handle)

    def take(self, free: str, handle: int | None) -> int:
        """Own what the function `free` gives back. Raises `ProductFailed` where there is nothing."""
        if not handle:
            raise ProductFailed("no room")
        self._owned.append((free, handle))
        return handle

    def take_over(self, other: Owner) -> None:
        """Own what the other one owns."""
        self._owned += other._owned
        other._owned.clear()

    def backend(self, device: ctypes.c_void_p) -> int:
        start = base("ggml_backend_dev_init", _pointer, _pointer, ctypes.c_char_p)
        return self.take("ggml_backend_free", start(device, None))

    def context(self, n_bytes: int = 1 << 20) -> int:
        """A context for tensors without memory of their own; `n_bytes` for what describes them."""
        start = base("ggml_init", _pointer, _InitParams)
        return self.take("ggml_free", start(_InitParams(n_bytes, None, True)))

    def buffer(self, context: int, buffer_type: ctypes.c_void_p) -> int:
        """Memory for all tensors of a context."""
        allocate = base("ggml_backend_alloc_ctx_tensors_from_buft", _pointer, _pointer, _pointer)
        return self.take("ggml_backend_buffer_free", allocate(context, buffer_type))

    def allocate(self, graph: int, buffer_type: ctypes.c_void_p) -> None:
        """Memory for all results of a graph, used again where it can be."""
        allocator = self.take("ggml_gallocr_free", base("ggml_gallocr_new", _pointer, _pointer)(buffer_type))
        if not base("ggml_gallocr_alloc_graph", ctypes.c_bool, _pointer, _pointer)(allocator, graph):
            raise ProductFailed("no room for the result")


def new(context: int, type_id: int, *shape: int) -> int:
    """A tensor; `shape` in ggml's order, the length of a row first."""
    dims = (ctypes.c_int64 * len(shape))(*shape)
    make = base("ggml_new_tensor", _pointer, _pointer, ctypes.c_int, ctypes.c_int, _pointer)
    return int(make(context, type_id, len(shape), dims))


def call(name: str, context: int, *tensors: int) -> int:
    """The result of an operation that takes nothing but tensors."""
    return int(base(name, _pointer, *[_pointer] * (1 + len(tensors)))(context, *tensors))


def is_supported(device: ctypes.c_void_p, result: int) -> bool:
    return bool(base("ggml_backend_dev_supports_op", ctypes.c_bool, _pointer, _pointer)(device, result))


def beginnings(context: int, tensor: int, n: int, *of: int) -> int:
    """The first `n` elements of each row of a tensor with two dimensions of rows, as a view."""
    row = size_of(tensor) // math.prod(of)
    view = base("ggml_view_3d", _pointer, *[_pointer] * 2, *[ctypes.c_int64] * 3, *[ctypes.c_size_t] * 3)
    return int(view(context, tensor, n, *of, row, row * of[0], 0))


def size_of(tensor: int) -> int:
    """In bytes."""
    return int(base("ggml_nbytes", ctypes.c_size_t, _pointer)(tensor))


def row_size(type_id: int, n: int = NOISE_ROW) -> int:
    """Bytes of a row of so many elements."""
    return int(base("ggml_row_size", ctypes.c_size_t, ctypes.c_int, ctypes.c_int64)(type_id, n))


def address_of(tensor: int) -> int:
    """Where its numbers begin, on its device."""
    return int(base("ggml_get_data", _pointer, _pointer)(tensor))


class Memory(NamedTuple):
    """A buffer, and where in it tensors can be placed that are not to have memory of their own."""

    buffer: int
    begin: int

    def place(self, tensor: int, offset: int) -> None:
        """Raises `ProductFailed`."""
        allocate = base("ggml_backend_tensor_alloc", ctypes.c_int, _pointer, _pointer, _pointer)
        if allocate(self.buffer, tensor, self.begin + offset) != 0:
            raise ProductFailed("no room for it")


def set_bytes(tensor: int, data: bytes, offset: int = 0) -> None:
    to = base("ggml_backend_tensor_set", None, _pointer, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t)
    to(tensor, data, offset, len(data))


def get_bytes(tensor: int, n_bytes: int) -> bytes:
    """The first ones, when all that was begun before is done."""
    data = ctypes.create_string_buffer(n_bytes)
    get = base("ggml_backend_tensor_get", None, _pointer, _pointer, ctypes.c_size_t, ctypes.c_size_t)
    get(tensor, data, 0, n_bytes)
    return data.raw


def fill(tensor: int, type_id: int) -> None:
    """With noise, the same few rows again and again; at once, as some layouts can't be written piece by piece."""
    n_bytes, tile = size_of(tensor), noise_of(type_id, 16)
    set_bytes(tensor, (tile * math.ceil(n_bytes / len(tile)))[:n_bytes])


def fill_scaled(tensor: int, scale: float) -> None:
    """One of F32 with noise of so much less, in pieces: it may be larger than what is free."""
    n_bytes, tile = size_of(tensor), _scaled_noise(scale)
    piece = tile * min(math.ceil(n_bytes / len(tile)), _PIECE_BYTES // len(tile))
    for begin in range(0, n_bytes, len(piece)):
        set_bytes(tensor, piece[: n_bytes - begin], begin)


def clear(buffer: int) -> None:
    """Write the same byte all over, so that every page is there; a worker does it by itself."""
    base("ggml_backend_buffer_clear", None, _pointer, ctypes.c_uint8)(buffer, _FILLED_WITH)


def compute(backend: int, graph: int, result: int) -> None:
    """All of a graph, waited for by reading a number of its result. Raises `ProductFailed`."""
    status = base("ggml_backend_graph_compute", ctypes.c_int, _pointer, _pointer)(backend, graph)
    get_bytes(result, 4)
    if status != 0:
        raise ProductFailed(f"the device failed with status {status}")


def graph_of(context: int, results: Sequence[int], n_nodes: int = 0) -> int:
    """`n_nodes`: room for so many; 0: for as many as ggml has by itself."""
    if n_nodes:
        make = base("ggml_new_graph_custom", _pointer, _pointer, ctypes.c_size_t, ctypes.c_bool)
        graph = make(context, 2 * n_nodes, False)  # leaves count as well
    else:
        graph = base("ggml_new_graph", _pointer, _pointer)(context)
    expand = base("ggml_build_forward_expand", None, _pointer, _pointer)
    for result in results:
        expand(graph, result)
    return int(graph)


@cache
def noise_rows(n_rows: int) -> bytes:
    """So many rows of `NOISE_ROW` random F32 of mean 0 and variance 1/NOISE_ROW, the same every time."""
    source = random.Random(0)
    n = n_rows * NOISE_ROW
    return bytes((ctypes.c_float * n)(*(source.gauss(0, 1 / math.sqrt(NOISE_ROW)) for _ in range(n))))


@cache
def _scaled_noise(scale: float) -> bytes:
    values = memoryview(noise_rows(16)).cast("f")
    return bytes((ctypes.c_float * len(values))(*(scale * value for value in values)))


def noise_of(type_id: int, n_rows: int) -> bytes:
    """So many rows of noise in a type of ggml."""
    n_bytes = row_size(type_id) * n_rows
    made = ctypes.create_string_buffer(n_bytes)
    needs_weights = base("ggml_quantize_requires_imatrix", ctypes.c_bool, ctypes.c_int)(type_id)
    weights = (ctypes.c_float * NOISE_ROW)(*[1.0] * NOISE_ROW) if needs_weights else None
    quantize = base(
        *("ggml_quantize_chunk", ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p, _pointer),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _pointer),
    )
    quantize(type_id, noise_rows(n_rows), made, 0, n_rows, NOISE_ROW, weights)
    return made.raw
