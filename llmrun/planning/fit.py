"""What fits: what a layout takes of every device, what is missing, how long the context can be, and the ways out.

Weights and memory are computed. What llama.cpp's compute buffers take is asked through a function (`Measure`): who has
an engine lays the model out in it, tests make numbers up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from llmrun.errors import OutOfMemory, Remedy
from llmrun.gguf.reader import Header
from llmrun.options.load import LoadConfig
from llmrun.planning.footprint import CPU, Footprint, Need, Placement, footprint, place_layers
from llmrun.planning.layout import DeviceBudget, Layout
from llmrun.units import size

_ESTIMATED_CTX = 4096
CTX_STEP = 256
"""llama.cpp rounds a context up to this."""

Measure = Callable[[LoadConfig, Layout, int], Mapping[str, int] | None]
"""Bytes of compute buffers and logits by device, for a configuration, but for the layout and so many tokens of context
that are tried for it; None: can't be known."""


class DoesNotFit(OutOfMemory):
    """Plainly too large for the memory that there is.

    Attributes:
        device: where the room ends.
        footprint: of all that was to be loaded.
        needed, free: bytes on that device, and there.
        ways: (what to do, bytes then needed there), those first that change least.
    """

    def __init__(
        self, message: str, *, device: str, footprint: Footprint, free: int, ways: Sequence[tuple[Remedy, int]] = ()
    ) -> None:
        super().__init__(message, remedies=[_with_size(*way) for way in ways])
        self.device, self.footprint, self.free, self.ways = device, footprint, free, tuple(ways)
        self.needed = footprint.by_device[device].total

    def with_ways(self, ways: Sequence[tuple[Remedy, int]]) -> DoesNotFit:
        """The same error with these ways out."""
        return DoesNotFit(self.message, device=self.device, footprint=self.footprint, free=self.free, ways=ways)


def _with_size(remedy: Remedy, n_bytes: int) -> Remedy:
    """With what it takes: -c 2048 (3.70 GiB)."""
    return f"{remedy} ({size(n_bytes)})" if isinstance(remedy, str) else remedy._replace(note=size(n_bytes))


@dataclass(frozen=True)
class Fit:
    """One model, one configuration, and the memory that there is for it.

    Attributes:
        budgets: the devices that may be used, in llama.cpp's order.
        ram_free: bytes of RAM that can be taken; None where the system doesn't tell.
        repacked: types of matrices that are rearranged for the CPU.
        adapters: headers of LoRA adapters.
        n_seq: sequences, each with a context of its own.
    """

    header: Header
    config: LoadConfig
    budgets: tuple[DeviceBudget, ...]
    ram_free: int | None
    measure: Measure
    repacked: frozenset[str] = frozenset()
    adapters: tuple[Header, ...] = ()
    n_seq: int = 1
    _measured: dict[tuple[Layout, int], Mapping[str, int] | None] = field(default_factory=dict)

    def placement(self, layout: Layout) -> Placement:
        layers = place_layers(self.header.n_layer or 0, layout.n_gpu_layers, layout.devices, layout.shares)
        twice = bool(self.repacked) and self.config.repack == "both"
        return Placement(layers, layout.overrides, self.config.offload.kv, self.repacked, twice)

    @property
    def is_auto(self) -> bool:
        """Whether the layout is chosen here."""
        return self.config.offload.n_gpu_layers == "auto"

    def of_placement(self, placement: Placement, n_ctx: int) -> Footprint:
        """What is computed of it; compute buffers are left unknown."""
        return footprint(self.header, placement, n_ctx, self.config, self.adapters, self.n_seq)

    def footprint(self, layout: Layout, n_ctx: int) -> Footprint:
        """All of it, compute buffers measured, once for each layout and context."""
        return self.of_placement(self.placement(layout), n_ctx).with_compute(self.compute(layout, n_ctx))

    def compute(self, layout: Layout, n_ctx: int) -> Mapping[str, int] | None:
        key = (layout, n_ctx)
        if key not in self._measured:
            self._measured[key] = self.measure(self.config, layout, n_ctx)
        return self._measured[key]

    def shortage(self, found: Footprint) -> dict[str, int]:
        """Bytes that are missing, by device; empty where all of it fits."""
        missing = {}
        ram = found.by_device.get(CPU)
        if ram is not None and self.ram_free is not None:
            # Mapped, if asked for by name, pages may come and go.
            mapped = ram.weights - found.repacked_bytes if self.config.load_mode == "mmap" else 0
            missing[CPU] = ram.total - mapped - self.ram_free
        for budget in self.budgets:
            need = found.by_device.get(budget.name)
            if need is not None and need.total and budget.free_bytes is not None:
                margin = self.config.offload.fit_target if self.is_auto and need.weights else 0
                missing[budget.name] = need.total - budget.free_bytes + margin
        return {name: n_bytes for name, n_bytes in missing.items() if n_bytes > 0}

    def most_context(self, layout: Layout, least: int, wanted: int) -> int:
        """The longest context of `least` to `wanted` tokens that fits with this layout; `least` where none does.

        Compute buffers grow in a straight line with the context, so two of them are measured and the rest lie between.
        """
        if least >= wanted or not self.shortage(self.footprint(layout, wanted)):
            return max(least, wanted)
        low, high = self.footprint(layout, least), self.footprint(layout, wanted)
        if self.shortage(low):
            return least
        placement = self.placement(layout)

        def fits(n_ctx: int) -> bool:
            share = (n_ctx - least) / (wanted - least)
            between = {
                name: round((need.compute or 0) * (1 - share) + (high.by_device[name].compute or 0) * share)
                for name, need in low.by_device.items()
            }
            return not self.shortage(self.of_placement(placement, n_ctx).with_compute(between))

        first, last = least // CTX_STEP, -(-wanted // CTX_STEP)  # fits, does not fit
        while last - first > 1:
            middle = (first + last) // 2
            first, last = (middle, last) if fits(middle * CTX_STEP) else (first, middle)
        return max(least, first * CTX_STEP)

    def does_not_fit(self, found: Footprint, short: Mapping[str, int]) -> DoesNotFit:
        device = CPU if CPU in short else next(iter(short))
        need = found.by_device[device]
        free = self.ram_free if device == CPU else next(each.free_bytes for each in self.budgets if each.name == device)
        assert free is not None
        of_each = f"{self.n_seq} x {found.n_ctx}" if self.n_seq > 1 else f"{found.n_ctx}"
        named = {"weights": need.weights, f"KV cache of {of_each} tokens": need.kv, "compute": need.compute}
        parts = [f"{name} {size(n_bytes)}" for name, n_bytes in named.items() if n_bytes or name == "weights"]
        where = "RAM" if device == CPU else device
        message = f"needs {size(need.total)} of {where}, {size(free)} free: {', '.join(parts)}"
        return DoesNotFit(message, device=device, footprint=found, free=free)


# -- before anything is chosen ---


def estimate(header: Header) -> tuple[int, Need]:
    """Tokens of context, 4096 or as many as the model was trained for if that is less, and what it then takes in RAM:
    weights, and the KV cache in f16; without compute buffers, which only llama.cpp knows."""
    n_ctx = min(_ESTIMATED_CTX, header.n_ctx_train or _ESTIMATED_CTX)
    return n_ctx, footprint(header, Placement((CPU,) * ((header.n_layer or 0) + 1)), n_ctx).by_device[CPU]


def largest_that_fits(sizes: Mapping[str, int], weight_bytes: int, error: DoesNotFit) -> tuple[str, int] | None:
    """Of models of these bytes by name, the largest that fits in place of one with `weight_bytes`, and the bytes that
    are then needed where the room ended; None where none fits."""
    here = error.footprint.by_device[error.device].weights
    totals = {error.needed - here + n_bytes * here // weight_bytes: name for name, n_bytes in sizes.items()}
    best = max((total for total in totals if total <= error.free), default=None)
    return None if best is None else (totals[best], best)
