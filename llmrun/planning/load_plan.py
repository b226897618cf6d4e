"""Plan, then load: layout and context are decided from the header and the machine, before anything is loaded.

    header, config, devices ──► fit: what takes how much ──► placement: which layers go where ──► LoadPlan

Pure. Where RAM can't take what the devices leave, the context is made shorter, if none was asked for; then:
`DoesNotFit`, with ways out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llmrun.errors import Change, Remedy, UsageError
from llmrun.gguf.reader import Header
from llmrun.options.load import COMFORTABLE_CTX, LoadConfig
from llmrun.planning.fit import CTX_STEP, DoesNotFit, Fit, Measure
from llmrun.planning.footprint import CPU, Footprint, Need, Placement
from llmrun.planning.kv_layout import kv_type_problem
from llmrun.planning.layout import DeviceBudget, Layout
from llmrun.planning.placement import Placer
from llmrun.units import size

# Types whose prefill more than doubles when llama.cpp rearranges the weights at load. Measured at 1.2 B parameters on
# an AVX-512 machine with two cores, pp128 in t/s, plain against repacked: Q4_0 119 : 276, IQ4_NL 116 : 274. K-quants
# lose (Q4_K_M 379 : 244), Q8_0 and Q6_K don't care, and the second copy costs up to two thirds more memory and doubles
# the time to load: so everything else stays as it is in the file.
REPACKED_TYPES = frozenset({"Q4_0", "IQ4_NL"})

_DEFAULTS = LoadConfig()
_UNQUANTIZED = ("f32", "f16", "bf16")
"""Types of values that need no flash attention."""

RETRY_WITH = 0.85
"""After an out-of-memory, the share of what was tried on each device that is tried next."""


def wants_repack(header: Header, config: LoadConfig = _DEFAULTS) -> bool:
    """Whether weights in RAM are rearranged at load: unless asked for, where the type that most of them have gains."""
    return main_type(header) in REPACKED_TYPES if config.repack == "auto" else config.repack != "off"


def main_type(header: Header) -> str:
    """The ggml type that most of the weights have; "F32" where there are none."""
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.type.name] += tensor.n_bytes
    return sizes.most_common(1)[0][0] if sizes else "F32"


@dataclass(frozen=True)
class LoadPlan:
    """Everything that is decided before a model is loaded: it can be shown, stored (`codec`) and compared.

    Attributes:
        path: the model's file, of a split one the first.
        config: what was asked for.
        n_threads: threads for decoding, at most.
        n_ctx: tokens of context that the footprint is for.
        n_ctx_most: tokens that would still fit with this layout; None where that is not known.
        repack: whether weights in RAM are rearranged.
        auto: whether the layout was chosen here, and may be chosen again with less.
        cut_from: the context that was asked for, where it was too long.
        budgets: the devices that it was made for.
        lacks_both: both layouts were asked for, and there is no memory for that.
        n_seq: sequences that there is room for, each with a context of its own.
    """

    path: Path
    config: LoadConfig
    n_threads: int
    layout: Layout
    placement: Placement
    footprint: Footprint
    n_ctx: int
    n_ctx_most: int | None
    repack: bool
    auto: bool
    cut_from: int | None = None
    budgets: tuple[DeviceBudget, ...] = ()
    lacks_both: bool = False
    n_seq: int = 1

    @property
    def plain_prefill(self) -> bool:
        return self.placement.twice

    def again(self, header: Header, free: Mapping[str, int | None]) -> Planner:
        """For other plans of the model, by what is free on each device and in RAM; compute buffers as in this one."""
        compute = {name: need.compute or 0 for name, need in self.footprint.by_device.items()}
        budgets = tuple(DeviceBudget(budget.name, free[budget.name]) for budget in self.budgets)
        expected, repacked = Expected(self.n_ctx, self.n_ctx, self.n_seq), self.placement.repacked
        return Planner(self.path, header, budgets, free[CPU], lambda *_: compute, expected, self.n_threads, repacked)

    def line(self) -> str | None:
        """What was chosen and why, for a person; None where there was nothing to choose."""
        parts = [self._layers()] if self.auto and self.budgets else []
        if self.cut_from is not None:
            parts.append(f"context {self.n_ctx} of {self.cut_from} tokens, which is what fits")
        if self.lacks_both:
            parts.append("weights repacked alone, there is no memory for both layouts")
        return "; ".join(parts) or None

    def _layers(self) -> str:
        free = {budget.name: budget.free_bytes for budget in self.budgets}
        on = Counter(self.placement.layers)
        said = [
            f"{on[name]} on {name} ({size(self.footprint.by_device[name].total)} of {size(free[name])} free)"
            for name in self.layout.devices
            if on[name]
        ]
        if not said:
            told = ", ".join(f"{name} ({size(n_bytes)} free)" for name, n_bytes in free.items())
            return f"auto: all {on.total()} layers in RAM, none fits on {told}"
        if on[CPU]:
            said.append(f"{on[CPU]} in RAM")
        if self.layout.n_cpu_moe:
            said.append(f"experts of {self.layout.n_cpu_moe} layers in RAM")
        return f"auto: of {on.total()} layers " + ", ".join(said)


@dataclass(frozen=True)
class Expected:
    """How much context is wanted, where nobody asked for a number.

    Attributes:
        tokens: of prompt and answer together, where they are known; None: `COMFORTABLE_CTX`.
        least: fewer than this are of no use; None: as many as are expected.
        n_seq: answers that are made side by side, each with so much context.
    """

    tokens: int | None = None
    least: int | None = None
    n_seq: int = 1


def check_kv_types(header: Header, config: LoadConfig) -> None:
    """Raises `UsageError`, with what would do, for types that the KV cache of this model can't have."""
    field, why = kv_type_problem(header, config.type_k, config.type_v) or ("", "")
    if not field:
        return
    one = config.type_v if config.type_k == "f16" else config.type_k
    for type_k, type_v in ((one, one), ("f16", config.type_v), (config.type_k, "f16"), ("f16", "f16")):
        asked = {"type_k": type_k, "type_v": type_v}
        if kv_type_problem(header, type_k, type_v) is None and (config.flash_attn != "off" or type_v in _UNQUANTIZED):
            if type_k != one:
                asked = {name: kind for name, kind in asked.items() if kind != getattr(config, name)}
            raise UsageError(why, field=field, value=getattr(config, field), hint=Change(asked))


@dataclass(frozen=True)
class Planner:
    """Plans of one model for the memory that there is: layout and context are decided.

    Attributes:
        budgets: the devices that may be used, in llama.cpp's order (`usable_devices`).
        ram_free: bytes of RAM that can be taken; None where the system doesn't tell.
        n_threads: for decoding, where a configuration leaves it open.
        repackable: types that this CPU's build can rearrange.
        adapters: headers of LoRA adapters.
    """

    path: Path
    header: Header
    budgets: tuple[DeviceBudget, ...]
    ram_free: int | None
    measure: Measure
    expected: Expected = Expected()
    n_threads: int = 1
    repackable: frozenset[str] = frozenset()
    adapters: tuple[Header, ...] = ()

    def plan(self, config: LoadConfig) -> LoadPlan:
        """Raises `DoesNotFit`, with ways out, and `UsageError` for options that contradict each other, the model or the
        devices."""
        check_kv_types(self.header, config)
        try:
            return self.tried(config)
        except DoesNotFit as error:
            raise error.with_ways(self.ways_out(config, error.footprint, error.device)) from None

    def tried(self, config: LoadConfig, *, strict: bool = False) -> LoadPlan:
        """Raises `DoesNotFit`, without ways out. `strict`: whatever does not fit, else only what was chosen here."""
        if config.repack == "both":
            return self._both_where_they_fit(config, strict=strict)
        return self._tried(config, strict=strict)

    def _both_where_they_fit(self, config: LoadConfig, *, strict: bool) -> LoadPlan:
        """In both layouts, if that takes nothing from the context; what lies on devices has but one."""
        once = self._tried(replace(config, repack="on"), strict=strict)
        if once.layout.n_gpu_layers or not once.footprint.repacked_bytes:
            return once
        try:
            both = self._tried(config, strict=True)
        except DoesNotFit:
            return replace(once, lacks_both=True)
        return both if both.n_ctx >= once.n_ctx else replace(once, lacks_both=True)

    def _tried(self, config: LoadConfig, *, strict: bool) -> LoadPlan:
        header = self.header
        repack = wants_repack(header, config)
        repacked = self.repackable if repack else frozenset()
        n_seq = self.expected.n_seq
        fit = Fit(header, config, self.budgets, self.ram_free, self.measure, repacked, self.adapters, n_seq)
        layout, n_ctx, cut_from = _decided(fit, Placer(fit), self.expected)
        found = fit.footprint(layout, n_ctx)
        short = fit.shortage(found)
        # A device that is too small for what was asked for by number gets its chance: llama.cpp will tell.
        # So does one that only holds what `override_tensor` names: nothing of it was chosen here.
        if CPU in short or (short and (strict or (fit.is_auto and layout.n_gpu_layers))):
            raise fit.does_not_fit(found, short)
        trained = max(n_ctx, header.n_ctx_train or n_ctx)
        return LoadPlan(
            path=self.path,
            config=config,
            n_threads=config.n_threads or self.n_threads,
            layout=layout,
            placement=fit.placement(layout),
            footprint=found,
            n_ctx=n_ctx,
            n_ctx_most=None if config.n_ctx else fit.most_context(layout, n_ctx, trained),
            repack=repack,
            auto=fit.is_auto,
            cut_from=cut_from,
            budgets=fit.budgets,
            n_seq=n_seq,
        )

    def ways_out(
        self, config: LoadConfig, found: Footprint, device: str, n_gpu_layers: int = 0
    ) -> list[tuple[Remedy, int]]:
        """Of fewer than `n_gpu_layers` layers on devices, a smaller KV cache and a shorter context the first that fits,
        and the bytes then needed on the device; each was planned.

        Of smaller quantizations those know that know where the model is from.
        """
        smaller = ("q8_0", "q4_0") if config.type_k == config.type_v == "f16" and config.flash_attn != "off" else ()
        kinds = [kind for kind in smaller if kv_type_problem(self.header, kind, kind) is None]
        lengths = [found.n_ctx >> i for i in range(1, 24) if found.n_ctx >> i >= CTX_STEP]
        ways: list[tuple[Remedy, int]] = []
        for changes in (
            [{"n_gpu_layers": n} for n in reversed(range(n_gpu_layers))],
            [{"type_k": kind, "type_v": kind} for kind in kinds],
            [{"n_ctx": n_ctx} for n_ctx in lengths],
        ):
            for change in changes:
                offload = {"offload": replace(config.offload, **change)} if "n_gpu_layers" in change else None
                try:
                    need = self.tried(replace(config, **(offload or change)), strict=True).footprint.by_device
                except DoesNotFit:
                    continue
                if need[CPU].compute is None and found.by_device[CPU].compute is not None:
                    continue  # llama.cpp refuses it
                ways.append((Change(change), need.get(device, Need()).total))
                break
        return ways


def _decided(fit: Fit, placer: Placer, expected: Expected) -> tuple[Layout, int, int | None]:
    """The layout, tokens of context, and how many they were cut from; None: not cut."""
    trained = fit.header.n_ctx_train or COMFORTABLE_CTX
    asked = fit.config.n_ctx
    if asked:
        return placer.layout_for(asked), asked, None
    wanted = trained if asked == 0 else min(trained, max(CTX_STEP, expected.tokens or COMFORTABLE_CTX))
    enough = COMFORTABLE_CTX if asked == 0 else max(CTX_STEP, expected.least or expected.tokens or CTX_STEP)
    least = min(wanted, enough)
    if asked == 0 and fit.is_auto and fit.budgets:
        everything = placer.with_all_layers(wanted) or placer.with_all_layers(least)
        if everything is not None:
            n_ctx = fit.most_context(everything, least, wanted)
            return everything, n_ctx, wanted if n_ctx < wanted else None
        layout = placer.layout_for(least)  # and then the context that it leaves room for
    else:
        layout = placer.layout_for(wanted)
        if fit.shortage(fit.footprint(layout, wanted)):
            layout = placer.layout_for(least)
    n_ctx = fit.most_context(layout, least, wanted)
    return layout, n_ctx, trained if asked == 0 and n_ctx < trained else None


def less(plan: LoadPlan) -> tuple[DeviceBudget, ...] | None:
    """Budgets for another plan after this one ran out of memory, smaller on the devices that it has layers on.

    None where the layout was the user's choice, or puts nothing on a device.
    """
    taken = {budget.name: plan.footprint.by_device.get(budget.name) for budget in plan.budgets}
    if not (plan.auto and any(taken.values()) and plan.layout.n_gpu_layers):
        return None
    target = plan.config.offload.fit_target
    return tuple(
        DeviceBudget(budget.name, round(RETRY_WITH * need.total) + target) if (need := taken[budget.name]) else budget
        for budget in plan.budgets
    )
