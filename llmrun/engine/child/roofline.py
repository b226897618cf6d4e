"""How fast a device reads, and how fast it multiplies: the two peaks that a run is compared with. Child process only.

Both are ggml's own matrix product, run where llama.cpp runs it, by as many threads:

- **read**: a matrix of F32 much larger than any cache, times two columns. Each of its elements is read once and takes
  four operations: far from any processor's limit, so that memory is what it waits for. A copy would count writes too,
  and a quantized type would have to be unpacked. `peaks.read_size` chooses how large: what fits into a cache would
  be the cache's speed.
- **compute**: a square matrix of the type that the model's weights have, times 512 columns, as in a prompt. It stays in
  the cache, and every element is used 512 times. It is filled with noise: zeros take less power, and a GPU that its
  power limit holds back would multiply them faster than any model's weights. `repack` lays it out as llama.cpp lays
  out weights in RAM: faster for some types and processors, slower for others.

What a product takes besides (starting threads or a kernel, waiting for the end, a worker's answer over the network) is
made small by computing as many in a row as take `SPAN_S`. Waiting for the end means reading a number of the result: a
worker (RPC) answers nothing else.

What the read figure is worth (`scripts/check_ceiling.py`, docs/ceilings.md): beside a program in C that sums as many
bytes in the same minute with as many threads, the median of the ratios of pairs was 1.03 with one thread and with two.
Left out: the gain of huge pages (neither has them, and neither have mapped weights), and NUMA: all pages lie where the
one thread that touched them ran, as those of a mapped file do. With OMP_WAIT_POLICY=PASSIVE threads sleep between
products: 4 MiB were read at 11 to 17 GB/s instead of 94, and 512 MiB as fast as without.
"""

from __future__ import annotations

import ctypes
import math
import time
from contextlib import suppress

from llmrun.engine.child import ggml, tensors
from llmrun.engine.child.tensors import Owner, ProductFailed
from llmrun.engine.protocol import Probe, Probed
from llmrun.gguf.types import GGML_TYPES

clock = time.perf_counter

COLUMNS = 512
ROW = tensors.NOISE_ROW
# Of the shapes and types that were tried, the one that reads fastest on a CPU (docs/ceilings.md): with two columns ggml
# walks several rows at a time.
READ_COLUMNS = 2
READ_ROW = 8192
SPAN_S = 0.02
"""Shorter than this, the end of a computation is waited for too often: 10 µs on a GPU, a millisecond on a network."""
_MOST_AT_ONCE = 64
_NOISE_ROWS = 64
"""Rows of the noise, repeated all over the matrix: to quantize all of them would take longer than to measure."""
_TYPE_IDS = {kind.name: kind.id for kind in GGML_TYPES.values()}
_pointer = ctypes.c_void_p


class Product:
    """A matrix times some columns on one device, allocated and touched, ready to be computed again and again.

    Raises `ProductFailed`. `to_multiply` and `to_read` make one.
    """

    @classmethod
    def to_multiply(cls, device: ctypes.c_void_p, kind: str, n_threads: int, *, repack: bool = False) -> Product:
        """A square one of noise: `n_flops` is what counts."""
        return cls(device, kind, (ROW, ROW, COLUMNS), n_threads, chained=True, repack=repack)

    @classmethod
    def to_read(cls, device: ctypes.c_void_p, n_bytes: int, n_threads: int) -> Product:
        """One of F32, of about so many bytes: `n_bytes` is what counts."""
        return cls(device, "F32", (READ_ROW, max(1, n_bytes // (4 * READ_ROW)), READ_COLUMNS), n_threads)

    def __init__(
        self,
        device: ctypes.c_void_p,
        kind: str,
        shape: tuple[int, int, int],
        n_threads: int,
        *,
        chained: bool = False,
        repack: bool = False,
    ) -> None:
        """`shape`: elements of a row, rows, columns. `chained`, for a matrix of `ROW` x `ROW`: it is filled with noise,
        and its result is what it multiplies next; else it is one byte everywhere, and the columns stay."""
        self._device = device
        self._row, self._n_rows, self._n_columns = shape
        # Not by the shape: a matrix that is read can be square by chance, and 256 MiB are.
        self._chained = chained
        self._owned, self._of_graph = Owner(), Owner()
        if kind not in _TYPE_IDS:
            raise ProductFailed(f"ggml has no type {kind}")
        try:
            self._backend = self._owned.backend(device)
            self.set_threads(n_threads)
            self._matrix = self._placed(_TYPE_IDS[kind], ggml.extra_buffer_types(device) if repack else [])
            self.repeat(1)
        except BaseException:
            self.close()
            raise
        self.n_bytes = tensors.size_of(self._matrix)
        self.n_flops = 2 * math.prod(shape)

    def set_threads(self, n_threads: int) -> None:
        ggml.set_threads(self._device, _pointer(self._backend), n_threads)

    def repeat(self, n_times: int) -> None:
        """Compute so many products, one after the other, each time that `seconds` is called. Raises `ProductFailed`."""
        self._of_graph.close()
        self.n_times = n_times
        columns, self._result, self._graph = self._product(self._of_graph, self._matrix, n_times)
        self._of_graph.allocate(self._graph, ggml.buffer_type(self._device))
        n_bytes = 4 * self._row * self._n_columns
        noise = tensors.noise_rows(_NOISE_ROWS)
        tensors.set_bytes(columns, (noise * math.ceil(n_bytes / len(noise)))[:n_bytes])

    def seconds(self) -> float:
        """Of all `n_times` products, waited for to their end."""
        begin = clock()
        tensors.compute(self._backend, self._graph, self._result)
        return clock() - begin

    def close(self) -> None:
        """Give back everything. Safe to call twice."""
        self._of_graph.close()
        self._owned.close()

    # -- how it is made ---

    def _placed(self, type_id: int, preferred: list[ctypes.c_void_p]) -> int:
        """The matrix, where llama.cpp would put it: in the first of these buffer types that can be multiplied with."""
        for buffer_type in [*preferred, ggml.buffer_type(self._device)]:
            with Owner() as trying, suppress(ProductFailed):
                context = trying.context()
                matrix = tensors.new(context, type_id, self._row, self._n_rows)
                buffer = trying.buffer(context, buffer_type)
                with Owner() as passing:
                    if not tensors.is_supported(self._device, self._product(passing, matrix, 1)[1]):
                        continue
                if self._chained:
                    tensors.set_bytes(matrix, tensors.noise_of(type_id, _NOISE_ROWS) * (ROW // _NOISE_ROWS))
                else:
                    tensors.clear(buffer)
                self._owned.take_over(trying)
                return matrix
        raise ProductFailed("the device has no room for it, or can't compute it")

    def _product(self, owner: Owner, matrix: int, n_times: int) -> tuple[int, int, int]:
        """Columns, last result and graph, nothing allocated. Chained, a matrix multiplies its own result, whose memory
        is then used again; the noise is such that the numbers stay about as large as they are."""
        context = owner.context()
        columns = tensors.new(context, tensors.F32, self._row, self._n_columns)
        tensors.base("ggml_set_input", None, _pointer)(columns)
        set_output = tensors.base("ggml_set_output", None, _pointer)
        set_output(columns)  # else its memory would be used again
        results = [columns]
        for _ in range(n_times):
            given = results[-1] if self._chained else columns
            results.append(tensors.call("ggml_mul_mat", context, matrix, given))
        set_output(results[-1])
        return columns, results[-1], tensors.graph_of(context, results[1:])


def rates(product: Product, per_product: int, seconds: float) -> list[float]:
    """`per_product` per second of product after product, for about so long; the first ones are not counted."""
    taken = product.seconds()
    if product.n_times == 1 and (taken := product.seconds()) < SPAN_S:  # the first has faulted pages and kernels in
        product.repeat(min(_MOST_AT_ONCE, math.ceil(SPAN_S / taken)))
        product.seconds()
    end = clock() + seconds
    found: list[float] = []
    while not found or clock() < end:
        found.append(per_product * product.n_times / product.seconds())
    return found


class Products:
    """Those of one child, kept for the next time: to take and to touch memory takes longer than to read it."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, int, bool], Product] = {}

    def probe(self, device: ctypes.c_void_p, message: Probe) -> Probed:
        """The answer to the message, whose device this is."""
        return Probed(
            self._rates(device, message, "") if message.n_bytes else [],
            self._rates(device, message, message.kind) if message.kind else [],
        )

    def _rates(self, device: ctypes.c_void_p, message: Probe, kind: str) -> list[float]:
        """Of the product with a matrix of this type; "": of the one that reads."""
        wanted = (message.device, kind, 0 if kind else message.n_bytes, message.repack if kind else False)
        n_threads = message.n_threads
        try:
            product = self._kept.get(wanted)
            if product is None:
                product = self._kept[wanted] = (
                    Product.to_multiply(device, kind, n_threads, repack=message.repack)
                    if kind
                    else Product.to_read(device, message.n_bytes, n_threads)
                )
            product.set_threads(n_threads)
            return rates(product, product.n_flops if kind else product.n_bytes, message.seconds)
        except ProductFailed:
            if failed := self._kept.pop(wanted, None):
                failed.close()
            return []
