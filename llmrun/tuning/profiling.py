"""Measures the profile of this machine (`machine/profile.py`): what a model's operations take, type by type.

    reads ─► disk ─► transfers ─► attention ─► products … reads … products ─► overheads, states ─► reads

Products and attention are ggml's own (`engine/child/op_times.py`), computed as a model of real size has them computed:
by threads that do not spin, from memory. What a graph takes beside them is found by small models of two numbers of
layers, run by the slice runner, less what predictions say of their operations: what is left is what these lack.
Types stand in the order of how many files have them: where the time is up, the last ones are not measured.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import product as every
from typing import TypeVar

from llmrun import paths
from llmrun.clock import utc
from llmrun.engine.jobs.roofline import Prober
from llmrun.engine.protocol import TimeAttention, TimeProducts, TimeTransfers, Trial
from llmrun.gguf.reader import Header
from llmrun.gguf.shapes import SHAPES, Mamba2, Shape, ShortConv
from llmrun.gguf.slices import slice_of
from llmrun.gguf.synth import header_of
from llmrun.machine import disk, hardware
from llmrun.machine.device import Device
from llmrun.machine.others import Others
from llmrun.machine.profile import AttentionTime, Overhead, ProductTime, Profile, Reads, StateTime, Transfer
from llmrun.options.load import LoadConfig
from llmrun.planning.footprint import CPU, Placement
from llmrun.planning.kv_layout import layer_memories, recurrent_kind
from llmrun.planning.predict.from_profile import GraphTimes
from llmrun.tuning.slice_runner import SliceRunner

MIB = 1 << 20
_MOST_BYTES = 256 * MIB
_HEADS, _MORE_HEADS, _HEADS_APART = (16, 8), (32, 8), (32, 32)
"""Of queries, and of keys and values, which lie side by side in memory: eight, as most models have them; and one for
each of queries, as older ones do, whose keys lie further apart than pages are long."""
_OVERHEAD_TYPE, _OVERHEAD_LEVEL = "Q8_0", "Q4_K_S"
"""Of models for one token, and for many, which are computed fastest where products are fast."""
_SHORT_CONV = replace(SHAPES["lfm2-1.2b"], n_vocab=512, attn_layers=(0,))
_FOR_THE_END_S = 11.0
"""What overheads, states and the last read take, about."""


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes:
        seconds: of each product and attention, about.
        budget_s: of all. What is not usual is not begun when so much is gone.
        n_bytes: of the matrices of a type together; None: twice the last-level caches, 64 to 256 MiB.
        read_bytes: of the matrix of the read ceiling; None: `peaks.read_size`.
        n_row: of a square matrix, elements.
        kinds, expert_kinds: types of matrices, of experts.
        n_usual: how many of them are measured whatever time it takes, and with all threads a second time, some seconds
            later, if there is time; the faster counts.
        n_columns: tokens at once.
        n_experts, n_used: as models have them; one column, and the most of `n_columns`.
        kv_kinds, head_sizes, n_depths: of flash attention, with one token and with `n_tokens`; without flash F16.
        latent: of latent attention, elements of the row that is kept of a token, how many of them are values, and
            heads: as all DeepSeek models since V2 have them.
        overheads: tokens at once, the width of the models for it and how many layers the two of them have. For one
            token they are wide and thin: next to no products, whose noise would drown the rest. What many tokens take
            beside products grows with all that a layer has.
        waits: width and numbers of layers of two models that are not thin: what several threads wait for each other.
        recurrent: small models of layers with a state, one of each kind, as thin as llama.cpp allows; it wants
            attention in a hybrid, so the first layer of those has it.
        state_tokens: at once, for these.
        transfer_bytes: of the large tensor. Below 10 MiB: a worker is told the digest of larger ones first.
    """

    seconds: float = 0.02
    budget_s: float = 30.0
    n_bytes: int | None = None
    read_bytes: int | None = None
    n_row: int = 2048
    kinds: Sequence[str] = (
        *("Q4_K", "Q6_K", "Q8_0", "Q4_0", "F16", "Q5_K", "Q3_K", "IQ4_XS", "IQ4_NL", "BF16", "Q5_0", "Q2_K", "MXFP4"),
    )
    n_usual: int = 5
    expert_kinds: Sequence[str] = ("Q4_K", "Q6_K", "Q8_0", "MXFP4")
    n_columns: Sequence[int] = (1, 8, 32, 512)
    n_experts: int = 32
    n_used: int = 4
    kv_kinds: Sequence[str] = ("F16", "Q8_0")
    head_sizes: Sequence[int] = (64, 128)
    n_depths: Sequence[int] = (256, 1024, 4096)
    n_tokens: int = 512
    latent: tuple[int, int, tuple[int, int]] = (576, 512, (16, 1))
    overheads: Sequence[tuple[int, int, tuple[int, int]]] = (
        *((1, 1024, (8, 40)), (1, 2048, (8, 40))),
        (256, 1024, (2, 6)),
    )
    waits: tuple[int, tuple[int, int]] = (1024, (4, 10))
    recurrent: Sequence[Shape] = (
        replace(SHAPES["mamba2-2.7b"], n_layer=8, n_embd=512, n_vocab=512, recurrent=Mamba2(1024, 16)),
        replace(SHAPES["qwen3.5-0.8b"], n_layer=8, n_embd=256, n_ff=256, n_vocab=512, attn_layers=(0,)),
        replace(_SHORT_CONV, n_layer=8, n_embd=512, n_ff=256, n_head=8, n_head_kv=2, recurrent=ShortConv(512)),
    )
    state_tokens: Sequence[int] = (1, 64)
    transfer_bytes: int = 8 * MIB

    @property
    def of_matrices(self) -> int:
        if self.n_bytes is not None:
            return self.n_bytes
        # Of a large cache that a virtual machine shares with others it is told the whole.
        cache = min(hardware.last_level_cache_bytes(), max(64, 12 * hardware.default_threads()) * MIB)
        return max(64 * MIB, min(2 * cache, _MOST_BYTES))


def threads() -> list[int]:
    """Numbers of threads to measure with: one, all that compute by default, and on many cores half of them."""
    n = hardware.default_threads()
    return sorted({1, n, *([n // 2] if n >= 8 else [])})


def measure(
    prober: Prober,
    extent: Extent | None = None,
    *,
    on_part: Callable[[str], None] = lambda _part: None,
) -> Profile:
    """The profile of all devices that the prober knows. `on_part` is told what is measured next.

    `prober`: one whose threads do not spin. Raises `EngineCrashed`.
    """
    return _Measuring(prober, extent or Extent(), on_part).profile()


@dataclass
class _Measuring:
    prober: Prober
    extent: Extent
    on_part: Callable[[str], None]
    made: Profile = field(default_factory=lambda: Profile(""))
    took_s: dict[str, float] = field(default_factory=dict)
    told: str = ""

    def profile(self) -> Profile:
        begin_s, others = time.monotonic(), Others()
        self.end_s = begin_s + self.extent.budget_s
        # The others compute in the memory of one of these.
        self.devices = [each for each in self.prober.found.devices if each.kind not in ("accel", "meta")]
        self.made = replace(self.made, devices={each.name: each.description for each in self.devices})
        self.reads()
        with self.timed("disk"):
            folders = (paths.imported_models(), paths.hub_cache(), paths.cache())
            with suppress(OSError):  # where nothing can be written, no disk is measured
                paths.cache().mkdir(parents=True, exist_ok=True)
            self.made = replace(self.made, disk_bytes_per_s=disk.read_bytes_per_s(folders))
        for device in self.devices:
            self.transfers(device)
        for device in self.devices:
            self.attention(device)
        usual, more = self.extent.kinds[: self.extent.n_usual], self.extent.kinds[self.extent.n_usual :]
        for kind in usual:
            for device in self.devices:
                self.products(device, kind, _threads_of(device))
        self.reads()
        # What is left of the time is for what fewer models need, and for a second look at what most do.
        for device in self.devices:
            self.more_attention(device)
        for kind, device in every(more, self.devices):
            if self.has_time:
                self.products(device, kind, _threads_of(device))
        for device in self.devices:
            self.attention_again(device)
        for kind, device in every(usual, self.devices):
            if self.has_time:
                self.products(device, kind, _threads_of(device)[-1:])
        self.overheads()
        self.reads()
        return replace(self.made, measured=utc(), took_s=self.took_s, other_cores=others.cores())

    @contextmanager
    def timed(self, part: str, what: str = "") -> Iterator[None]:
        if (text := f"{part} {what}".strip()) != self.told:
            self.told = text
            self.on_part(text)
        begin = time.monotonic()
        yield
        self.took_s[part] = self.took_s.get(part, 0.0) + time.monotonic() - begin

    def reads(self) -> None:
        with self.timed("reads"):
            for device in self.devices:
                for n in _threads_of(device):
                    probed = self.prober.probe(
                        device.name, "", n or 1, 3 * self.extent.seconds, n_bytes=self.extent.read_bytes
                    )
                    if probed.read_bytes_per_s:
                        self.note_read(device.name, n, statistics.median(probed.read_bytes_per_s))

    def note_read(self, device: str, n: int | None, found: float) -> None:
        known = {(each.device, each.n_threads): each for each in self.made.reads}
        before = known[device, n].bytes_per_s if (device, n) in known else ()
        known[device, n] = Reads(device, n, (*before, found), utc())
        self.made = replace(self.made, reads=tuple(known.values()))

    def transfers(self, device: Device) -> None:
        if device.kind == "cpu":
            return
        with self.timed("transfers", device.name):
            sizes = [4, self.extent.transfer_bytes]
            found = self.prober.seconds_of(TimeTransfers(device.name, sizes, self.extent.seconds))
            if found:
                latency_s, _, write_s, read_s = found
                made = Transfer(device.name, latency_s, self.extent.transfer_bytes, write_s, read_s)
                self.made = replace(self.made, transfers=(*self.made.transfers, made))

    @property
    def has_time(self) -> bool:
        return time.monotonic() < self.end_s - _FOR_THE_END_S

    def attention(self, device: Device) -> None:
        """Over F16, with flash attention and without. Many tokens compute as fast at the greatest depth as before it,
        and take longest there."""
        extent = self.extent
        for n_depths, n_tokens in ((extent.n_depths, 1), (extent.n_depths[:-1], extent.n_tokens)):
            for size, flash in every(extent.head_sizes, (True, False)):
                with self.timed("attention"):
                    self.attended(device, "F16", size, _HEADS, n_depths, n_tokens, flash=flash)

    def more_attention(self, device: Device) -> None:
        """Latent; with more heads, as what one token takes grows with both kinds of them; and over other types."""
        extent = self.extent
        size, of_values, heads = extent.latent
        for n_depths, n_tokens in ((extent.n_depths, 1), (extent.n_depths[:1], extent.n_tokens)):
            if self.has_time:
                with self.timed("attention", "latent"):
                    self.attended(device, "F16", size, heads, n_depths, n_tokens, flash=True, value_size=of_values)
        sizes, others = extent.head_sizes, [kind for kind in extent.kv_kinds if kind != "F16"]
        of_cpu = [*((size, _MORE_HEADS) for size in sizes), (max(sizes), _HEADS_APART)] if device.kind == "cpu" else []
        ways = [("F16", size, heads, 1, flash) for flash in (True, False) for size, heads in of_cpu]
        ways += [(kind, size, _HEADS, n, True) for n in (1, extent.n_tokens) for kind in others for size in sizes]
        for kind, size, heads, n_tokens, flash in ways:
            if self.has_time:
                with self.timed("attention"):
                    n_depths = extent.n_depths if n_tokens == 1 else extent.n_depths[:1]
                    self.attended(device, kind, size, heads, n_depths, n_tokens, flash=flash)

    def attention_again(self, device: Device) -> None:
        """Once more of what several threads gained much less in than in the rest: for seconds at a time a host may run
        two of a virtual machine's cores on one of its own."""
        for kind, size, heads, n_depths, n_tokens, flash, value_size in slowed(self.made.attention, device.name):
            if self.has_time:
                with self.timed("attention", "again"):
                    self.attended(device, kind, size, heads, n_depths, n_tokens, flash=flash, value_size=value_size)

    def attended(
        self, device: Device, kind: str, size: int, heads: tuple[int, int], n_depths: Sequence[int], n_tokens: int, *,
        flash: bool, value_size: int = 0,
    ) -> None:  # fmt: skip
        n_threads, extent = _threads_of(device), self.extent
        asked = TimeAttention(
            device.name,
            kind,
            size,
            *heads,
            # To a worker all of it would have to be sent; many tokens compute longer than they read. One waits at each
            # key for memory where keys lie far apart, so that nothing of them may be in a cache.
            n_bytes=0 if _is_remote(device) or n_tokens > 1 else 2 * extent.of_matrices,
            n_depths=[*n_depths],
            n_tokens=[n_tokens],
            n_threads=[n or 1 for n in n_threads],
            seconds=extent.seconds,
            flash=flash,
            value_size=value_size,
        )
        places = [(n_depth, n) for n_depth in n_depths for n in n_threads]
        made = {_place(each): each for each in self.made.attention}
        for (n_depth, n), seconds in zip(places, self.prober.seconds_of(asked), strict=False):
            found = AttentionTime(device.name, kind, size, *heads, n_depth, n_tokens, n, seconds, flash, value_size)
            _keep_faster(made, found)
        self.made = replace(self.made, attention=tuple(made.values()))

    def products(self, device: Device, kind: str, n_threads: Sequence[int | None]) -> None:
        layouts = (False, True) if device.kind == "cpu" else (False,)
        with self.timed("products", kind):
            for repack in layouts:
                self.product(device, kind, repack, n_threads)
        if kind in self.extent.expert_kinds:
            with self.timed("experts", kind):
                for repack in layouts:
                    self.product(device, kind, repack, n_threads, experts=True)

    def product(
        self, device: Device, kind: str, repack: bool, n_threads: Sequence[int | None], *, experts: bool = False
    ) -> None:
        extent = self.extent
        columns = [min(extent.n_columns), max(extent.n_columns)] if experts else [*extent.n_columns]
        n_experts, n_used = (extent.n_experts, extent.n_used) if experts else (0, 0)
        # The experts of a mixture are narrow: a column goes through as many weights as of the plain matrix.
        n_rows = extent.n_row // n_used if experts else extent.n_row
        asked = TimeProducts(
            device.name,
            kind,
            extent.n_row,
            n_rows,
            extent.of_matrices,
            columns,
            [n or 1 for n in n_threads],
            extent.seconds,
            repack,
            n_experts,
            n_used,
            noise=not _is_remote(device),
        )
        places = [(n_columns, n) for n_columns in columns for n in n_threads]
        n_weights = extent.n_row * n_rows * (n_used or 1)
        made = {_place(each): each for each in self.made.products}
        for place, seconds in zip(places, self.prober.seconds_of(asked), strict=False):
            _keep_faster(made, ProductTime(device.name, kind, repack, *place, n_weights, seconds, n_experts, n_used))
        self.made = replace(self.made, products=tuple(made.values()))

    def overheads(self) -> None:
        """Of the CPU: what one layer more takes, less its products and attention; of layers with a recurrent state what
        they take beyond that."""
        if not any(device.kind == "cpu" for device in self.devices):
            return
        models = [_thin(*each) if each[0] == 1 else _usual(*each) for each in self.extent.overheads]
        with _Beside(self, models[0]) as beside:
            for (n_tokens, width, n_layers), header in zip(self.extent.overheads, models, strict=True):
                with self.timed("overheads"):
                    found = beside.of(header, n_layers, n_tokens, threads() if n_tokens == 1 else [1])
                if n_tokens > 1:  # threads share it, token by token; with one the noise of products is the smallest
                    ((layer_s, rest_s),) = found.values()
                    found = {n: (layer_s / n, rest_s / n) for n in threads()}
                made = (
                    Overhead(n_tokens, n, width, max(0.0, layer_s), max(0.0, rest_s))
                    for n, (layer_s, rest_s) in found.items()
                )
                self.made = replace(self.made, overheads=(*self.made.overheads, *made))
            for shape in self.extent.recurrent:
                for n_tokens in self.extent.state_tokens:
                    self.state(beside, shape, n_tokens)
            width, n_layers = self.extent.waits
            with self.timed("overheads"):
                waits = beside.waits(_usual(1, width, n_layers), n_layers)
        self.made = replace(
            self.made,
            overheads=tuple(
                replace(each, layer_s=each.layer_s + waits.get(each.n_threads, 0.0)) if each.n_tokens == 1 else each
                for each in self.made.overheads
            ),
        )

    def state(self, beside: _Beside, shape: Shape, n_tokens: int) -> None:
        header = header_of(shape, _OVERHEAD_TYPE)
        kind, n_state = recurrent_kind(header), (layer_memories(header) or ())[-1].n_state
        with self.timed("states", kind):
            found = beside.of(header, (shape.n_layer // 2, shape.n_layer), n_tokens, threads())
        for n, (layer_s, _) in found.items():
            usual = self.made.overhead(n_tokens, n, shape.n_embd)
            seconds = max(0.0, layer_s - (usual.layer_s if usual else 0.0))
            made = StateTime(kind, n_tokens, n, n_state, seconds)
            self.made = replace(self.made, states=(*self.made.states, made))


def _thin(_: int, width: int, n_layers: tuple[int, int]) -> Header:
    """Of the llama family: a wide stream through small matrices."""
    return header_of(Shape(max(n_layers), width, 64, 1, 1, 512, head_dim=64), _OVERHEAD_TYPE)


def _usual(n_tokens: int, width: int, n_layers: tuple[int, int]) -> Header:
    n_head = max(4, width // 128)
    level = _OVERHEAD_LEVEL if n_tokens > 1 else _OVERHEAD_TYPE
    return header_of(Shape(max(n_layers), width, 2 * width, n_head, n_head // 4, 512), level)


class _Beside:
    """What layers take beside products and attention: two sizes of a small model, measured in turn. A context
    manager."""

    def __init__(self, measuring: _Measuring, header: Header) -> None:
        self._measuring = measuring
        self._runners = [SliceRunner(header, LoadConfig()) for _ in range(2)]

    def __enter__(self) -> _Beside:
        return self

    def __exit__(self, *_: object) -> None:
        for runner in self._runners:
            runner.close()

    def of(
        self, header: Header, n_layers: tuple[int, int], n_tokens: int, n_threads: Sequence[int]
    ) -> dict[int, tuple[float, float]]:
        """By threads, the seconds that one layer and what is outside of them take; below 0 where the machine was slower
        when the profile was made, as far as a product of now does not tell."""
        drift = self._drift(n_tokens)
        self._load(header, n_layers, n_tokens)
        found = {}
        for n in n_threads:
            layer_s, small_s = self._measured(n_layers, n_tokens, n)
            known_s, known_small_s = self._operations_s(header, n_layers, n_tokens, n, drift.get(n, 1.0))
            layer_s -= known_s
            found[n] = layer_s, small_s - known_small_s - n_layers[0] * layer_s
        return found

    def waits(self, header: Header, n_layers: tuple[int, int]) -> dict[int, float]:
        """By threads, the seconds that they wait for each other in a layer, beyond what thin ones show: by how much
        less several threads gain over one, in the same process, than the products alone do. One token."""
        self._load(header, n_layers, 1)
        made, width = self._measuring.made, header.n_embd or 1
        layer_s, products_s = {}, {}
        for n in threads():
            beside = made.overhead(1, n, width)
            layer_s[n] = self._measured(n_layers, 1, n)[0] - (beside.layer_s if beside else 0.0)
            products_s[n] = self._operations_s(header, n_layers, 1, n, 1.0)[0]
        return {
            n: max(0.0, layer_s[n] - layer_s[1] * products_s[n] / products_s[1])
            for n in threads()
            if n > 1 and products_s[1]
        }

    def _load(self, header: Header, n_layers: tuple[int, int], n_tokens: int) -> None:
        for runner, n_layer in zip(self._runners, n_layers, strict=True):
            runner.load(range(n_layer), repack="off", n_threads=max(threads()), n_ctx=max(128, n_tokens), header=header)
            runner.trial(Trial(n_tokens, 1))

    def _measured(self, n_layers: tuple[int, int], n_tokens: int, n: int) -> tuple[float, float]:
        """With so many threads: seconds of one layer more, and of the smaller model."""
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(_ROUNDS):
            for runner, taken in zip(self._runners, seconds, strict=True):
                taken.append(_of_tokens(runner, n_tokens, n))
        layer_s = statistics.median(b - a for a, b in zip(*seconds, strict=True)) / (n_layers[1] - n_layers[0])
        return layer_s, statistics.median(seconds[0])

    def _operations_s(
        self, header: Header, n_layers: tuple[int, int], n_tokens: int, n: int, drift: float
    ) -> tuple[float, float]:
        """The same of products and attention alone, as predictions have them."""
        depth = _STEPS / 2 if n_tokens == 1 else n_tokens / 2
        known = []
        for n_layer in n_layers:
            placement = Placement((CPU,) * (n_layer + 1))
            slice_header = slice_of(header, range(n_layer))
            times = GraphTimes(slice_header, placement, LoadConfig(), self._measuring.made, n, drift={CPU: drift})
            known.append(times.operations_s(n_tokens, depth))
        return (known[1] - known[0]) / (n_layers[1] - n_layers[0]), known[0]

    def _drift(self, n_tokens: int) -> dict[int, float]:
        """By threads, how much longer such products take now than in the profile; it remembers that."""
        extent, made = self._measuring.extent, self._measuring.made
        kind, n_bytes = (_OVERHEAD_TYPE, extent.of_matrices) if n_tokens == 1 else ("Q4_K", 0)
        # As many as were measured: what lies between two of them is less well known than what is looked for.
        n_columns = min(extent.n_columns, key=lambda n: abs(math.log(n / n_tokens)))
        asked = TimeProducts(CPU, kind, extent.n_row, extent.n_row, n_bytes, [n_columns], threads(), 2 * extent.seconds)
        found = zip(threads(), self._measuring.prober.seconds_of(asked), strict=False)
        then = {n: made.product_s(kind, extent.n_row**2, n_columns, n) for n in threads()}
        drift = {n: seconds / known for n, seconds in found if (known := then[n])}
        self._measuring.made = replace(made, later=(*made.later, *drift.values()))
        return drift


_ROUNDS, _STEPS = 5, 12


def _of_tokens(runner: SliceRunner, n_tokens: int, n_threads: int) -> float:
    """Seconds of a batch of so many: of one the lower quartile of some, as of products."""
    if n_tokens == 1:
        steps = runner.trial(Trial(0, _STEPS, n_threads=n_threads, n_ctx=128)).step_s
        return sorted(steps)[len(steps) // 4]
    return runner.trial(Trial(n_tokens, 0, n_threads=n_threads, n_threads_batch=n_threads)).prefill_s or 0.0


_Asked = tuple[str, int, tuple[int, int], tuple[int, ...], int, bool, int]
"""Kind, head size, heads, depths, tokens, flash, value size: what is measured of attention at once."""
_GAINED_LESS = 0.8


def slowed(attention: Iterable[AttentionTime], device: str) -> list[_Asked]:
    """What took several threads so long that they gained less than four fifths of what they gain elsewhere, at best."""
    seconds: dict[tuple[_Asked, int], dict[int, float]] = {}
    for each in attention:
        if each.device == device and each.n_threads:
            heads = each.n_head, each.n_head_kv
            what: _Asked = (each.kind, each.head_size, heads, (), each.n_tokens, each.flash, each.value_size)
            seconds.setdefault((what, each.n_depth), {})[each.n_threads] = each.seconds
    gains = {place: found[min(found)] / found[max(found)] for place, found in seconds.items() if len(found) > 1}
    depths: dict[_Asked, list[int]] = {}
    for (what, n_depth), gain in gains.items():
        if gain < _GAINED_LESS * max(gains.values()):
            depths.setdefault(what, []).append(n_depth)
    return [(*what[:3], tuple(sorted(found)), *what[4:]) for what, found in depths.items()]


T = TypeVar("T", ProductTime, AttentionTime)


def _keep_faster(known: dict[tuple[object, ...], T], found: T) -> None:
    """Whatever disturbs a measurement makes it slower, for seconds at a time."""
    place = _place(found)
    known[place] = min(known.get(place, found), found, key=lambda each: each.seconds)


def _place(measured: ProductTime | AttentionTime) -> tuple[object, ...]:
    """All but the seconds."""
    return tuple(value for name, value in vars(measured).items() if name != "seconds")


def _threads_of(device: Device) -> list[int | None]:
    """None: it has none of its own."""
    return [*threads()] if device.kind == "cpu" else [None]


def _is_remote(device: Device) -> bool:
    return device.backend.startswith("RPC")
