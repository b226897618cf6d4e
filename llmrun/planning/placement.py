"""Choices made from the header and the machine, before anything is loaded: what lies where, how long the context is.

Pure: what llama.cpp's compute buffers would take is asked through a function (`Measure`), so that tests can answer.
The rules of `-ngl auto`, in this order:

1. All layers on the devices, each filled in proportion to what it has free, `fit_target` left over.
2. Where that is too much, of a mixture of experts the experts of the first layers stay in RAM, as few as possible: they
   are most of the bytes, and few of them are read.
3. Else as many of the last layers as fit.
4. Where RAM can't take the rest, a shorter context, if none was asked for. Then: `DoesNotFit`, with ways out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from llmrun.errors import OutOfMemory, UsageError
from llmrun.gguf.reader import Header
from llmrun.options.load import COMFORTABLE_CTX, LoadConfig
from llmrun.planning.footprint import CPU, Footprint, Placement, footprint, is_experts, place_layers
from llmrun.units import size

# Types whose prefill more than doubles when llama.cpp rearranges the weights at load. Measured at 1.2 B parameters on
# an AVX-512 machine with two cores, pp128 in t/s, plain against repacked: Q4_0 119 : 276, IQ4_NL 116 : 274. K-quants
# lose (Q4_K_M 379 : 244), Q8_0 and Q6_K don't care, and the second copy costs up to two thirds more memory and doubles
# the time to load: so everything else stays as it is in the file.
REPACKED_TYPES = frozenset({"Q4_0", "IQ4_NL"})

_STEP = 256
"""llama.cpp rounds a context up to this."""


def should_repack(header: Header) -> bool:
    """Whether the type that most of the weights have gains from repacking."""
    return main_type(header) in REPACKED_TYPES


def main_type(header: Header) -> str:
    """The ggml type that most of the weights have; "F32" where there are none."""
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.type.name] += tensor.n_bytes
    return sizes.most_common(1)[0][0] if sizes else "F32"


@dataclass(frozen=True)
class Room:
    """A device that layers can lie on.

    Attributes:
        free_bytes: of its memory; None where it doesn't tell: nothing is placed there unasked.
    """

    name: str
    free_bytes: int | None


@dataclass(frozen=True)
class Layout:
    """What llama.cpp is told about where things go; `Placement` is what follows from it.

    Attributes:
        n_gpu_layers: of the last layers and the output, so many go to `devices`.
        shares: of these layers, by device; as many as there are devices.
        n_cpu_moe: the experts of so many of the first layers stay in RAM.
        overrides: (pattern, device), those of `n_cpu_moe` included.
    """

    n_gpu_layers: int
    devices: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    n_cpu_moe: int = 0
    overrides: tuple[tuple[str, str], ...] = ()


Measure = Callable[[Layout, int], Mapping[str, int] | None]
"""Bytes of compute buffers and logits by device, for a layout and so many tokens of context; None: can't be known."""


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before loading.

    Attributes:
        n_ctx: tokens of context that the footprint is for.
        n_ctx_most: tokens that would still fit with this layout; None where that is not known.
        auto: whether the layout was chosen here, and may be chosen again with less.
        cut_from: the context that was asked for, where it was too long.
    """

    layout: Layout
    placement: Placement
    footprint: Footprint
    n_ctx: int
    n_ctx_most: int | None
    repack: bool
    auto: bool
    cut_from: int | None = None
    rooms: tuple[Room, ...] = ()

    def line(self) -> str | None:
        """What was chosen and why, for a person; None where there was nothing to choose."""
        parts = []
        if self.auto and self.rooms:
            parts.append(self._layers())
        if self.cut_from is not None:
            parts.append(f"context {self.n_ctx} of {self.cut_from} tokens, which is what fits")
        return "; ".join(parts) or None

    def _layers(self) -> str:
        layers = self.placement.layers
        free = {room.name: room.free_bytes for room in self.rooms}
        on = Counter(layers)
        said = [
            f"{on[name]} on {name} ({size(self.footprint.by_device[name].total)} of {size(free[name])} free)"
            for name in self.layout.devices
            if on[name]
        ]
        total = len(layers)
        if not said:
            told = ", ".join(f"{name} ({size(n_bytes)} free)" for name, n_bytes in free.items())
            return f"auto: all {total} layers in RAM, none fits on {told}"
        if on[CPU]:
            said.append(f"{on[CPU]} in RAM")
        if self.layout.n_cpu_moe:
            said.append(f"experts of {self.layout.n_cpu_moe} layers in RAM")
        return f"auto: of {total} layers " + ", ".join(said)


class DoesNotFit(OutOfMemory):
    """Plainly too large for the memory that there is.

    Attributes:
        needed, free: bytes where the room ends, and there.
        ways: (what to type, bytes then needed), those first that change least.
    """

    def __init__(self, message: str, *, needed: int, free: int, ways: Sequence[tuple[str, int]]) -> None:
        super().__init__(message, hint=ways_out(ways))
        self.needed, self.free, self.ways = needed, free, tuple(ways)


def ways_out(ways: Iterable[tuple[str, int]]) -> str | None:
    """-c 2048 (3.70 GiB) · -ctk q8_0 -ctv q8_0 (3.95 GiB)"""
    return "  or  ".join(f"{typed} ({size(n_bytes)})" for typed, n_bytes in ways) or None


def make_plan(
    header: Header,
    config: LoadConfig,
    rooms: Sequence[Room],
    *,
    ram_free: int | None,
    measure: Measure,
    expected_tokens: int | None = None,
    least_tokens: int | None = None,
    repackable: frozenset[str] = frozenset(),
    adapters: Iterable[Header] = (),
) -> Plan:
    """Decide layout and context.

    Attributes:
        rooms: the devices that may be used, in llama.cpp's order.
        ram_free: bytes of RAM that can be taken; None where the system doesn't tell.
        expected_tokens: of prompt and answer together, where they are known; else `COMFORTABLE_CTX`.
        least_tokens: fewer than this are of no use; by default as many as are expected.
        repackable: types that this CPU's build can rearrange.

    Raises `DoesNotFit`, and `UsageError` for options that contradict each other or the devices.
    """
    return _Planner(header, config, rooms, ram_free, measure, repackable, tuple(adapters)).plan(
        expected_tokens, least_tokens
    )


class _Planner:
    def __init__(
        self,
        header: Header,
        config: LoadConfig,
        rooms: Sequence[Room],
        ram_free: int | None,
        measure: Measure,
        repackable: frozenset[str],
        adapters: tuple[Header, ...],
    ) -> None:
        self.header, self.config, self.measure, self.adapters = header, config, measure, adapters
        self.offload = config.offload
        self.rooms = tuple(rooms)
        self.ram_free = ram_free
        self.repack = should_repack(header) if config.repack == "auto" else config.repack == "on"
        self.repacked = repackable if self.repack else frozenset()
        self.n_layer = header.n_layer or 0
        self._layer_costs: dict[tuple[int, int], list[int]] = {}
        self._measured: dict[tuple[Layout, int], Mapping[str, int] | None] = {}
        if len(self.offload.tensor_split) > max(1, len(self.rooms)):
            raise UsageError(
                f"-ts/--tensor-split: {len(self.offload.tensor_split)} shares for {len(self.rooms)} devices",
                hint="llmrun devices",
            )

    # -- the context ---

    def plan(self, expected_tokens: int | None, least_tokens: int | None) -> Plan:
        trained = self.header.n_ctx_train or COMFORTABLE_CTX
        asked = self.config.n_ctx
        if asked:
            return self._finish(asked, self._layout_for(asked), None)
        wanted = trained if asked == 0 else min(trained, max(_STEP, expected_tokens or COMFORTABLE_CTX))
        least = min(wanted, COMFORTABLE_CTX if asked == 0 else max(_STEP, least_tokens or expected_tokens or _STEP))
        if asked == 0 and self._is_auto and self.rooms:
            everything = self._with_all_layers(wanted) or self._with_all_layers(least)
            if everything is not None:
                n_ctx = self._most_context(everything, least, wanted)
                return self._finish(n_ctx, everything, wanted if n_ctx < wanted else None)
            layout = self._layout_for(least)  # and then the context that it leaves room for
        else:
            layout = self._layout_for(wanted)
            if self._short(self._at(layout, wanted)):
                layout = self._layout_for(least)
        n_ctx = self._most_context(layout, least, wanted)
        return self._finish(n_ctx, layout, trained if asked == 0 and n_ctx < trained else None)

    def _finish(self, n_ctx: int, layout: Layout, cut_from: int | None) -> Plan:
        found = self._at(layout, n_ctx)
        short = self._short(found)
        # A device that is too small for what was asked for by number gets its chance: llama.cpp will tell.
        # So does one that only holds what -ot names: nothing of it was chosen here.
        if CPU in short or (short and self._is_auto and layout.n_gpu_layers):
            raise self._does_not_fit(layout, found, short)
        trained = max(n_ctx, self.header.n_ctx_train or n_ctx)
        most = None if self.config.n_ctx else self._most_context(layout, n_ctx, trained)
        placement = self._placement(layout)
        return Plan(layout, placement, found, n_ctx, most, self.repack, self._is_auto, cut_from, self.rooms)

    def _most_context(self, layout: Layout, least: int, wanted: int) -> int:
        """The longest context of `least` to `wanted` tokens that fits with this layout; `least` where none does.

        Compute buffers grow in a straight line with the context, so two of them are measured and the rest lie between.
        """
        if least >= wanted or not self._short(self._at(layout, wanted)):
            return max(least, wanted)
        low, high = self._at(layout, least), self._at(layout, wanted)
        if self._short(low):
            return least

        def fits(n_ctx: int) -> bool:
            share = (n_ctx - least) / (wanted - least)
            between = {
                name: round((need.compute or 0) * (1 - share) + (high.by_device[name].compute or 0) * share)
                for name, need in low.by_device.items()
            }
            return not self._short(self._unmeasured(layout, n_ctx).with_compute(between))

        first, last = least // _STEP, -(-wanted // _STEP)  # fits, does not fit
        while last - first > 1:
            middle = (first + last) // 2
            if fits(middle * _STEP):
                first = middle
            else:
                last = middle
        return max(least, first * _STEP)

    # -- the layers ---

    @property
    def _is_auto(self) -> bool:
        return self.offload.n_gpu_layers == "auto"

    def _layout_for(self, n_ctx: int) -> Layout:
        if not self._is_auto:
            asked = self.offload.n_gpu_layers
            n = self.n_layer + 1 if asked == "all" else min(int(asked), self.n_layer + 1)
            return self._given(n)
        usable = self._usable()
        if not usable:
            return self._given(0)
        return self._with_all_layers(n_ctx) or self._with_as_many_layers(n_ctx)

    def _usable(self) -> list[Room]:
        """The devices that auto may fill."""
        told = [room for room in self.rooms if room.free_bytes is not None]
        if self.offload.split_mode == "none" and self.rooms:
            main = self.rooms[self._main_gpu()]
            return [room for room in told if room == main]
        return told

    def _main_gpu(self) -> int:
        if self.offload.main_gpu >= len(self.rooms):
            raise UsageError(
                f"-mg/--main-gpu {self.offload.main_gpu}: there are {len(self.rooms)} devices, counted from 0",
                hint="llmrun devices",
            )
        return self.offload.main_gpu

    def _given(self, n_gpu_layers: int, shares: Sequence[float] = (), n_cpu_moe: int = 0) -> Layout:
        """The layout for so many layers, spread by `shares`, by the option's, or by free memory."""
        names = tuple(room.name for room in self.rooms)
        if self.offload.split_mode == "none" and names:
            names = (names[self._main_gpu()],)
            shares = (1.0,)
        if not shares and self.offload.tensor_split:
            shares = (*self.offload.tensor_split, *[0.0] * (len(names) - len(self.offload.tensor_split)))
        if not shares:
            told = [self.ram_free or 1 if room.free_bytes is None else room.free_bytes for room in self.rooms]
            shares = tuple(float(n_bytes) for n_bytes in (told if any(told) else [1] * len(told)))
        asked = self.offload.n_cpu_moe
        n_cpu_moe = max(n_cpu_moe, self.n_layer if asked == "all" else asked)
        overrides = self.offload.override_tensor
        if n_cpu_moe and self.header.n_expert:
            overrides += tuple((experts_of(layer), CPU) for layer in range(n_cpu_moe))
        return Layout(n_gpu_layers, names, tuple(shares) if names else (), n_cpu_moe, overrides)

    def _with_all_layers(self, n_ctx: int) -> Layout | None:
        """All layers on the devices, of a mixture with the experts of as few layers in RAM as will do; or None."""
        too_few = self._given(0).n_cpu_moe
        found = self._all_with(n_ctx, too_few)
        if found is not None:
            return found
        enough = self.n_layer + 1 if self._has_experts else too_few + 1
        while found is None or enough - too_few > 1:
            middle = (too_few + enough) // 2
            if middle == too_few:
                return None
            layout = self._all_with(n_ctx, middle)
            if layout is None:
                too_few = middle
            else:
                found, enough = layout, middle
        return found

    def _all_with(self, n_ctx: int, n_cpu_moe: int) -> Layout | None:
        layout = self._spread(self.n_layer + 1, n_ctx, n_cpu_moe, {})
        if layout is None:
            return None
        layout = self._spread(self.n_layer + 1, n_ctx, n_cpu_moe, self._compute(layout, n_ctx) or {})
        return None if layout is None or self._short(self._at(layout, n_ctx)) else layout

    @property
    def _has_experts(self) -> bool:
        return any(is_experts(tensor) for tensor in self.header.tensors)

    def _with_as_many_layers(self, n_ctx: int) -> Layout:
        """The most of the last layers that fit beside the compute buffers, which are measured for each candidate."""
        n_cpu_moe = self.n_layer if self._has_experts else 0
        compute: dict[str, int] = {}
        for n in range(self.n_layer, 0, -1):
            layout = self._spread(n, n_ctx, n_cpu_moe, compute)
            if layout is None:
                continue
            found = self._at(layout, n_ctx)
            if not set(self._short(found)) - {CPU}:
                return layout
            compute = {name: need.compute or 0 for name, need in found.by_device.items()}
            layout = self._spread(n, n_ctx, n_cpu_moe, compute)
            if layout is not None and not set(self._short(self._at(layout, n_ctx))) - {CPU}:
                return layout
            compute = {}
        return self._given(0)

    def _spread(self, n: int, n_ctx: int, n_cpu_moe: int, compute: Mapping[str, int]) -> Layout | None:
        """`n` layers over the devices, each filled to the same part of what it has; None where they don't fit."""
        if self.offload.tensor_split or self.offload.split_mode != "layer":
            return self._given(n, n_cpu_moe=n_cpu_moe)
        rooms = self._usable()
        budgets = [
            max(0, (room.free_bytes or 0) - self.offload.fit_target - compute.get(room.name, 0)) for room in rooms
        ]
        counts = fill(self._costs(n, n_ctx, n_cpu_moe), budgets)
        if counts is None:
            return None
        by_name = dict(zip((room.name for room in rooms), counts, strict=True))
        return self._given(n, tuple(float(by_name.get(room.name, 0)) for room in self.rooms), n_cpu_moe)

    def _costs(self, n: int, n_ctx: int, n_cpu_moe: int) -> list[int]:
        """Bytes of each of the last `n` layers, the output's last: as if each had a device of its own."""
        key = (n_ctx, n_cpu_moe)
        if key not in self._layer_costs:
            layout = self._given(self.n_layer + 1, [1.0] * len(self.rooms), n_cpu_moe)
            own = tuple(f"layer {i}" for i in range(self.n_layer + 1))
            placement = Placement(own, layout.overrides, self.offload.kv, self.repacked)
            found = self._footprint(placement, n_ctx).by_device
            self._layer_costs[key] = [found[name].total for name in own]
        return self._layer_costs[key][self.n_layer + 1 - n :]

    # -- what it takes ---

    def _placement(self, layout: Layout) -> Placement:
        layers = place_layers(self.n_layer, layout.n_gpu_layers, layout.devices, layout.shares)
        return Placement(layers, layout.overrides, self.offload.kv, self.repacked)

    def _footprint(self, placement: Placement, n_ctx: int) -> Footprint:
        return footprint_of(self.header, self.config, placement, n_ctx, self.adapters)

    def _unmeasured(self, layout: Layout, n_ctx: int) -> Footprint:
        return self._footprint(self._placement(layout), n_ctx)

    def _at(self, layout: Layout, n_ctx: int) -> Footprint:
        return self._unmeasured(layout, n_ctx).with_compute(self._compute(layout, n_ctx))

    def _compute(self, layout: Layout, n_ctx: int) -> Mapping[str, int] | None:
        key = (layout, n_ctx)
        if key not in self._measured:
            self._measured[key] = self.measure(layout, n_ctx)
        return self._measured[key]

    def _short(self, found: Footprint) -> dict[str, int]:
        """Bytes that are missing, by device; empty where all of it fits."""
        short = {}
        ram = found.by_device.get(CPU)
        if ram is not None and self.ram_free is not None:
            needed = ram.total
            if self.config.load_mode == "mmap":  # asked for by name: then pages may come and go
                needed -= ram.weights - found.repacked_bytes
            if needed > self.ram_free:
                short[CPU] = needed - self.ram_free
        for room in self.rooms:
            need = found.by_device.get(room.name)
            if need is None or not need.total or room.free_bytes is None:
                continue
            margin = self.offload.fit_target if self._is_auto and need.weights else 0
            if need.total > room.free_bytes - margin:
                short[room.name] = need.total - room.free_bytes + margin
        return short

    # -- ways out ---

    def _does_not_fit(self, layout: Layout, found: Footprint, short: Mapping[str, int]) -> DoesNotFit:
        device = CPU if CPU in short else next(iter(short))
        need = found.by_device[device]
        free = self.ram_free if device == CPU else next(r.free_bytes for r in self.rooms if r.name == device)
        assert free is not None
        parts = [f"weights {size(need.weights)}"]
        if need.kv:
            parts.append(f"KV cache of {found.n_ctx} tokens {size(need.kv)}")
        if need.compute:
            parts.append(f"compute {size(need.compute)}")
        where = "RAM" if device == CPU else device
        return DoesNotFit(
            f"needs {size(need.total)} of {where}, {size(free)} free: {', '.join(parts)}",
            needed=need.total,
            free=free,
            ways=self._ways(layout, found, device, free),
        )

    def _ways(self, layout: Layout, found: Footprint, device: str, free: int) -> list[tuple[str, int]]:
        """A smaller KV cache and a shorter context, where they help. Of smaller quantizations those know that know
        where the model is from."""
        need = found.by_device[device]
        compute = {name: other.compute or 0 for name, other in found.by_device.items()}
        ways = []
        for kind in ("q8_0", "q4_0"):
            if need.kv and self.config.flash_attn != "off" and self.config.type_k == self.config.type_v == "f16":
                config = replace(self.config, type_k=kind, type_v=kind)
                other = _Planner(
                    self.header, config, self.rooms, self.ram_free, self.measure, self.repacked, self.adapters
                )
                total = other._unmeasured(layout, found.n_ctx).with_compute(compute).by_device[device].total
                if total <= free:
                    ways.append((f"-ctk {kind} -ctv {kind}", total))
                    break
        n_ctx = found.n_ctx // 2
        while n_ctx >= _STEP:
            total = self._unmeasured(layout, n_ctx).with_compute(compute).by_device[device].total
            if total <= free:
                ways.append((f"-c {n_ctx}", total))
                break
            n_ctx //= 2
        return ways


def footprint_of(
    header: Header, config: LoadConfig, placement: Placement, n_ctx: int, adapters: Iterable[Header] = ()
) -> Footprint:
    """`footprint` with what a configuration says."""
    return footprint(
        header,
        placement,
        n_ctx,
        type_k=config.type_k,
        type_v=config.type_v,
        n_batch=config.n_batch,
        n_ubatch=config.n_ubatch,
        flash_attn=config.flash_attn != "off",
        adapters=adapters,
    )


def experts_of(layer: int) -> str:
    """The pattern of a layer's experts, llama.cpp's `LLM_FFN_EXPS_REGEX` behind the layer."""
    return rf"blk\.{layer}\.ffn_(up|down|gate|gate_up)_(ch|)exps"


def fill(costs: Sequence[int], budgets: Sequence[int]) -> list[int] | None:
    """How many of the layers, in order, each device gets: all filled to about the same part. None: they don't fit."""

    def up_to(part: float) -> list[int] | None:
        counts, i = [], 0
        for budget in budgets:
            left, first = budget * part, i
            while i < len(costs) and costs[i] <= left:
                left -= costs[i]
                i += 1
            counts.append(i - first)
        return counts if i == len(costs) else None

    if up_to(1) is None:
        return None
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if up_to(middle) else (middle, high)
    return up_to(high)


def smaller_n_ctx(n_ctx: int, kv_bytes_per_token: int | None, available_bytes: int | None) -> int:
    """The next context length to try after `n_ctx` did not fit: a power of two whose KV cache takes at most half of
    the memory that is available."""
    fits = n_ctx // 2
    if kv_bytes_per_token and available_bytes:
        fits = min(fits, available_bytes // 2 // kv_bytes_per_token)
    return 1 << max(8, fits.bit_length() - 1)
