"""How long one operation of a model takes on a device: its products, its attention, and what is sent to and fro.

    sets of tensors, more than a cache holds ─► graph: one operation for each set, in turn ─► computed again and again

Decoding reads every weight once a token, from memory: a single matrix would be read from the cache. So there are as
many as asked for, and the graph goes through all of them. Where one operation takes long (many columns), a few of them
do: it computes more than it reads. Starting threads or a kernel is a part of each operation, as it is in a model;
starting a graph is shared by all of them. Child process only.
"""

from __future__ import annotations

import ctypes
import math
import statistics
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import product as every

from llmrun.engine.child import ggml, tensors
from llmrun.engine.child.tensors import F16, F32, I32, Owner, ProductFailed
from llmrun.engine.protocol import TimeAttention, TimeLayers, TimeProducts, TimeTransfers
from llmrun.gguf.types import GGML_TYPES

clock = time.perf_counter

_LONG_S = 5.0
"""Of passes that should take a fraction of it: threads that wait for each other beside a busy process may take a
thousand times as long."""
_LONGEST_S = 0.02
"""Of one graph: where all sets would take longer, fewer take turns."""
_LOOKS = 2
_MOST_SETS = 256
_PRECISION_F32 = 10
_CONTEXT_BYTES = 2 << 20
_TYPE_IDS = {kind.name: kind.id for kind in GGML_TYPES.values()}
_pointer = ctypes.c_void_p

MakeResults = Callable[[int, int], Sequence[int]]
"""The results, in this context, of the operation with so many of the sets."""


def seconds_of(
    device: ctypes.c_void_p, message: TimeProducts | TimeAttention | TimeTransfers | TimeLayers
) -> list[float]:
    """As `OpTimes` has them."""
    try:
        match message:
            case TimeProducts():
                return _products(device, message)
            case TimeAttention():
                return _attention(device, message)
            case TimeTransfers():
                return _transfers(device, message)
            case TimeLayers():
                return _layers(device, message)
    except ProductFailed:
        return []


class _Device:
    """A device's backend, and what is computed with it."""

    def __init__(self, handle: ctypes.c_void_p, owner: Owner) -> None:
        self.handle, self._backend = handle, owner.backend(handle)
        self.usual = ggml.buffer_type(handle)

    def set_threads(self, n: int) -> None:
        ggml.set_threads(self.handle, _pointer(self._backend), n)

    def passes(self, compute: Callable[[], float], n_threads: int, seconds: float) -> float:
        """The median of what it takes, computed for about so long."""
        self.set_threads(n_threads)
        compute()  # pages and kernels
        found, end = list[float](), clock() + seconds
        while not found or (len(found) < _LEAST_PASSES and sum(found) < _LONG_S) or clock() < end:
            found.append(compute())
        return statistics.median(found)

    def graph(self, results: Sequence[int], owner: Owner, n_nodes: int = 0) -> Callable[[], float]:
        """What computes them once, in their order, and returns the seconds. Raises `ProductFailed` where the device
        can't. `n_nodes`: of the graph, where they may be more than ggml makes room for by itself."""
        if not tensors.is_supported(self.handle, results[0]):
            raise ProductFailed("the device can't compute it")
        graph = tensors.graph_of(owner.context(_CONTEXT_BYTES + n_nodes * _NODE_BYTES), results, n_nodes)
        owner.allocate(graph, self.usual)

        def compute() -> float:
            begin = clock()
            tensors.compute(self._backend, graph, results[-1])
            return clock() - begin

        return compute


class Operation:
    """One operation with so many threads, by passes over its sets."""

    def __init__(self, device: _Device, make: MakeResults, n_sets: int, n_threads: int, owner: Owner) -> None:
        """Raises `ProductFailed`."""
        self._device, self._n_threads = device, n_threads
        device.set_threads(n_threads)
        self._compute = device.graph(make(owner.context(_CONTEXT_BYTES), 1), owner)
        self._compute()  # pages and kernels
        self.seconds = self._compute()
        self._n = max(1, min(n_sets, int(_LONGEST_S / max(self.seconds, 1e-9))))
        if self._n > 1:  # one alone is read from a cache
            self._compute = device.graph(make(owner.context(_CONTEXT_BYTES), self._n), owner)
            self.seconds = self._compute() / self._n

    def is_short(self, seconds: float) -> bool:
        """Beside a look of so long."""
        return self._n * self.seconds < seconds

    def look(self, seconds: float) -> None:
        """Once more, for about so long; what took least counts."""
        self._device.set_threads(self._n_threads)
        end = clock() + seconds
        found = [self._compute()]
        while clock() + found[-1] < end:
            found.append(self._compute())
        self.seconds = min(self.seconds, _quarter(found) / self._n)


def in_turn(operations: Sequence[Operation], seconds: float) -> list[float]:
    """The seconds of each. What disturbs a measurement makes it slower, for tens of milliseconds at a time: each has
    two looks, and those of the others lie between. One that takes long has had its first."""
    for i in range(_LOOKS):
        for each in operations:
            if i or each.is_short(seconds / _LOOKS):
                each.look(seconds / _LOOKS)
    return [each.seconds for each in operations]


# -- products ----------------------------------------------------------------------------------------------------------


def _products(handle: ctypes.c_void_p, asked: TimeProducts) -> list[float]:
    with Owner() as owner:
        device = _Device(handle, owner)
        matrices = _matrices(device, asked, owner)
        operations = []
        for n_columns in asked.n_columns:
            make, n_sets = (
                _through_experts(device, asked, matrices, n_columns, owner)
                if asked.n_experts
                else (_through(device, asked, matrices, n_columns, owner), len(matrices))
            )
            operations += [Operation(device, make, n_sets, n, owner) for n in asked.n_threads]
        return in_turn(operations, asked.seconds)


def _matrices(device: _Device, asked: TimeProducts, owner: Owner) -> list[int]:
    """In the layout that is asked for, filled. Raises `ProductFailed` where ggml has none for this type."""
    if asked.kind not in _TYPE_IDS:
        raise ProductFailed(f"ggml has no type {asked.kind}")
    type_id = _TYPE_IDS[asked.kind]
    shape = (asked.n_row, asked.n_rows, asked.n_experts) if asked.n_experts else (asked.n_row, asked.n_rows)
    for buffer_type in ggml.extra_buffer_types(device.handle) if asked.repack else [device.usual]:
        with Owner() as trying, suppress(ProductFailed):
            context = trying.context(_CONTEXT_BYTES)
            one = tensors.new(context, type_id, *shape)
            n = max(1, min(_MOST_SETS, math.ceil(asked.n_bytes / tensors.size_of(one))))
            made = [one, *(tensors.new(context, type_id, *shape) for _ in range(n - 1))]
            buffer = trying.buffer(context, buffer_type)
            if not _can_multiply(device, asked, one):
                continue
            if asked.noise:
                for matrix in made:
                    tensors.fill(matrix, type_id)
            else:
                tensors.clear(buffer)
            owner.take_over(trying)
            return made
    raise ProductFailed("no room for it, or no such layout")


def _can_multiply(device: _Device, asked: TimeProducts, matrix: int) -> bool:
    """Asked before the matrix is filled: a layout that has no way for its type can't be written to either."""
    with Owner() as passing:
        context = passing.context()
        if asked.n_experts:
            columns = tensors.new(context, F32, asked.n_row, 1, 1)
            result = tensors.call(
                "ggml_mul_mat_id", context, matrix, columns, tensors.new(context, I32, asked.n_used, 1)
            )
        else:
            result = tensors.call("ggml_mul_mat", context, matrix, tensors.new(context, F32, asked.n_row, 1))
        return tensors.is_supported(device.handle, result)


def _through(
    device: _Device, asked: TimeProducts, matrices: Sequence[int], n_columns: int, inputs: Owner
) -> MakeResults:
    context = inputs.context()
    columns = tensors.new(context, F32, asked.n_row, n_columns)
    inputs.buffer(context, device.usual)
    tensors.fill(columns, F32)
    return lambda context, n: [tensors.call("ggml_mul_mat", context, matrix, columns) for matrix in matrices[:n]]


def _through_experts(
    device: _Device, asked: TimeProducts, matrices: Sequence[int], n_columns: int, inputs: Owner
) -> tuple[MakeResults, int]:
    """And the number of sets: one column goes through other experts each time, until all have had their turn."""
    n_experts, n_used = asked.n_experts, asked.n_used
    turns = max(1, n_experts // n_used) if n_columns == 1 else 1
    context = inputs.context()
    columns = tensors.new(context, F32, asked.n_row, 1, n_columns)
    chosen = [tensors.new(context, I32, n_used, n_columns) for _ in range(turns)]
    inputs.buffer(context, device.usual)
    tensors.fill(columns, F32)
    for turn, ids in enumerate(chosen):
        numbers = [(turn * n_used + i) % n_experts for i in range(n_used * n_columns)]
        tensors.set_bytes(ids, struct.pack(f"={len(numbers)}i", *numbers))
    sets = [(matrix, ids) for ids in chosen for matrix in matrices][:_MOST_SETS]
    return (
        lambda context, n: [tensors.call("ggml_mul_mat_id", context, matrix, columns, ids) for matrix, ids in sets[:n]],
        len(sets),
    )


# -- attention ---------------------------------------------------------------------------------------------------------


def _attention(handle: ctypes.c_void_p, asked: TimeAttention) -> list[float]:
    """llama.cpp's `build_attn_mha`: keys and values lie token by token, heads side by side; without flash attention the
    values lie turned, each element of a head with all tokens."""
    if asked.kind not in _TYPE_IDS or (asked.kind != "F16" and not asked.flash):
        raise ProductFailed(f"there is no attention over {asked.kind}")
    with Owner() as owner:
        device = _Device(handle, owner)
        places = [*every(asked.n_depths, asked.n_tokens)]
        # Once for all of them: another place of it would leave the tensors of the first without memory.
        most = max(n_sets * each_bytes for n_sets, each_bytes in (_sets_of(asked, *place) for place in places))
        memory = _filled.at_least(device, _TYPE_IDS[asked.kind], max(most, asked.n_bytes))
        operations = []
        for n_depth, n_tokens in places:
            make, n_sets = _attending(device, asked, n_depth, n_tokens, memory, owner)
            operations += [Operation(device, make, n_sets, n, owner) for n in asked.n_threads]
        return in_turn(operations, asked.seconds)


def _sets_of(asked: TimeAttention, n_depth: int, n_tokens: int) -> tuple[int, int]:
    """How many sets of keys and values take turns, and the bytes of each."""
    row = tensors.row_size(_TYPE_IDS[asked.kind], asked.head_size)
    each_bytes = row * asked.n_head_kv * n_depth * (1 if asked.value_size else 2)
    return max(1, min(_MOST_SETS, math.ceil(asked.n_bytes / each_bytes))) if n_tokens == 1 else 1, each_bytes


class _Filled:
    """Memory full of noise of one type, kept for the next question: to take and to fill it takes longer than to attend
    to it."""

    def __init__(self) -> None:
        self._owner = Owner()
        self._what: tuple[int, int] | None = None
        self._n_bytes = 0
        self._memory = tensors.Memory(0, 0)

    def at_least(self, device: _Device, type_id: int, n_bytes: int) -> tensors.Memory:
        """Raises `ProductFailed`."""
        what = device.handle.value or 0, type_id
        if self._what != what or self._n_bytes < n_bytes:
            self._owner.close()
            self._what = None
            # As one tensor, whose rows are those of the noise: whole blocks from its beginning on.
            context = self._owner.context()
            n_rows = math.ceil(n_bytes / tensors.row_size(type_id))
            whole = tensors.new(context, type_id, tensors.NOISE_ROW, n_rows)
            buffer = self._owner.buffer(context, device.usual)
            tensors.fill(whole, type_id)
            self._memory, self._what, self._n_bytes = tensors.Memory(buffer, tensors.address_of(whole)), what, n_bytes
        return self._memory


_filled = _Filled()


def _attending(
    device: _Device, asked: TimeAttention, n_depth: int, n_tokens: int, memory: tensors.Memory, inputs: Owner
) -> tuple[MakeResults, int]:
    type_id, size = _TYPE_IDS[asked.kind], asked.head_size
    context = inputs.context(_CONTEXT_BYTES)
    of_keys, of_values = (size, asked.n_head_kv, n_depth), (n_depth, size, asked.n_head_kv)
    at = 0

    def placed(*shape: int) -> int:
        nonlocal at
        tensor = tensors.new(context, type_id, *shape)
        memory.place(tensor, at)
        at += tensors.size_of(tensor)
        return tensor

    def pair() -> tuple[int, int]:
        keys = placed(*of_keys)
        if asked.value_size:
            return keys, tensors.beginnings(context, keys, asked.value_size, asked.n_head_kv, n_depth)
        return keys, placed(*(of_keys if asked.flash else of_values))

    pairs = [pair() for _ in range(_sets_of(asked, n_depth, n_tokens)[0])]
    query = tensors.new(context, F32, size, asked.n_head, n_tokens)
    mask = tensors.new(context, F16, n_depth, n_tokens)
    inputs.buffer(context, device.usual)
    tensors.fill(query, F32)
    tensors.set_bytes(mask, bytes(2 * n_depth * n_tokens))  # every token sees all of them

    permute = tensors.base("ggml_permute", _pointer, _pointer, _pointer, *[ctypes.c_int] * 4)
    flash = tensors.base("ggml_flash_attn_ext", _pointer, *[_pointer] * 5, *[ctypes.c_float] * 3)
    softmax = tensors.base("ggml_soft_max_ext", _pointer, *[_pointer] * 3, *[ctypes.c_float] * 2)
    scale = 1 / math.sqrt(size)

    def fused(context: int, turned: int, keys: int, values: int) -> int:
        result = int(flash(context, turned, keys, permute(context, values, 0, 2, 1, 3), mask, scale, 0.0, 0.0))
        with suppress(AttributeError):  # older ones have another name for it
            tensors.base("ggml_prec_set_acc", None, _pointer, ctypes.c_int)(result, _PRECISION_F32)
        return result

    def apart(context: int, turned: int, keys: int, values: int) -> int:
        scores = softmax(context, tensors.call("ggml_mul_mat", context, keys, turned), mask, scale, 0.0)
        heads = permute(context, tensors.call("ggml_mul_mat", context, values, scores), 0, 2, 1, 3)
        return tensors.call("ggml_cont", context, heads)

    def make(context: int, n: int) -> list[int]:
        turned = permute(context, query, 0, 2, 1, 3)
        attend = fused if asked.flash else apart
        return [attend(context, turned, permute(context, keys, 0, 2, 1, 3), values) for keys, values in pairs[:n]]

    return make, len(pairs)


# -- layers ------------------------------------------------------------------------------------------------------------

_TENSOR_BYTES, _NODE_BYTES = 512, 128
"""What ggml takes to describe a tensor, and a node of a graph, is less."""
_LEAST_PASSES = 3


def _layers(handle: ctypes.c_void_p, asked: TimeLayers) -> list[float]:
    """Each layer's weights lie behind those of the one before. They are so small that what goes through all layers
    stays of the size it has: numbers without end would be slow on some processors, and take less power on others."""
    with Owner() as owner:
        device = _Device(handle, owner)
        context = owner.context(_CONTEXT_BYTES + asked.n_layers * _TENSOR_BYTES)
        weights = [tensors.new(context, F32, asked.width, asked.width) for _ in range(asked.n_layers)]
        owner.buffer(context, device.usual)
        for each in weights:
            tensors.fill_scaled(each, 1 / asked.n_layers)
        found = []
        for n_columns in asked.n_columns:
            with Owner() as passing:
                compute = _through_layers(device, weights, asked.width, n_columns, passing)
                found += [device.passes(compute, n_threads, asked.seconds) for n_threads in asked.n_threads]
        return found


def _through_layers(
    device: _Device, weights: Sequence[int], width: int, n_columns: int, owner: Owner
) -> Callable[[], float]:
    inputs = owner.context()
    first = x = tensors.new(inputs, F32, width, n_columns)
    owner.buffer(inputs, device.usual)
    tensors.fill(first, F32)
    n_nodes = 2 * len(weights)
    context = owner.context(_CONTEXT_BYTES + n_nodes * (_TENSOR_BYTES + _NODE_BYTES))
    results = []
    for each in weights:
        x = tensors.call("ggml_add", context, tensors.call("ggml_mul_mat", context, each, x), x)
        results.append(x)
    return device.graph(results, owner, n_nodes)


# -- transfers ---------------------------------------------------------------------------------------------------------


def _transfers(handle: ctypes.c_void_p, asked: TimeTransfers) -> list[float]:
    """A write is waited for by reading one number: a worker does not answer to a write."""
    with Owner() as owner:
        _Device(handle, owner)  # a GPU's driver starts with it
        found = []
        for n_bytes in asked.n_bytes:
            with Owner() as inputs:
                context = inputs.context()
                tensor = tensors.new(context, F32, max(1, n_bytes // 4))
                inputs.buffer(context, ggml.buffer_type(handle))
                data = bytes(tensors.size_of(tensor))

                def write(tensor: int = tensor, data: bytes = data) -> None:
                    tensors.set_bytes(tensor, data)
                    tensors.get_bytes(tensor, 4)

                def read(tensor: int = tensor, n: int = len(data)) -> None:
                    tensors.get_bytes(tensor, n)

                found += [_timed(each, asked.seconds) for each in (write, read)]
        return found


def _timed(do: Callable[[], None], seconds: float) -> float:
    do()
    end, found = clock() + seconds, list[float]()
    while not found or clock() < end:
        begin = clock()
        do()
        found.append(clock() - begin)
    return _quarter(found)


def _quarter(found: Sequence[float]) -> float:
    """The lower quartile: whatever disturbs a measurement makes it slower."""
    return sorted(found)[len(found) // 4]
