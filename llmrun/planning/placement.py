"""Which layers go where. The rules of `n_gpu_layers` "auto", in this order:

1. All layers on the devices, each filled in proportion to what it has free, `fit_target` left over.
2. Where that is too much, of a mixture of experts the experts of the first layers stay in RAM, as few as possible: they
   are most of the bytes, and few of them are read.
3. Else as many of the last layers as fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmrun.errors import Act, UsageError
from llmrun.planning.fit import Fit
from llmrun.planning.footprint import CPU, Placement, is_experts
from llmrun.planning.layout import DeviceBudget, Layout


class Placer:
    """Layouts for one model and the memory that there is. Raises `UsageError` for options that don't go together."""

    def __init__(self, fit: Fit) -> None:
        self.fit, self.header, self.budgets = fit, fit.header, fit.budgets
        self.offload = fit.config.offload
        self.n_layer = fit.header.n_layer or 0
        self._layer_costs: dict[tuple[int, int], list[int]] = {}
        shares = self.offload.tensor_split
        if len(shares) > max(1, len(self.budgets)):
            problem = f"{len(shares)} shares for {len(self.budgets)} devices"
            raise UsageError(problem, field="tensor_split", value=shares, hint=Act("devices"))

    def layout_for(self, n_ctx: int) -> Layout:
        if not self.fit.is_auto:
            asked = self.offload.n_gpu_layers
            n = self.n_layer + 1 if asked == "all" else min(int(asked), self.n_layer + 1)
            return self._given(n)
        if not self._usable():
            return self._given(0)
        return self.with_all_layers(n_ctx) or self._with_as_many_layers(n_ctx)

    def _usable(self) -> list[DeviceBudget]:
        """The devices that auto may fill."""
        return [budget for budget in self._used() if budget.free_bytes is not None]

    def _used(self) -> Sequence[DeviceBudget]:
        """Of the devices those that `split_mode` uses. Raises `UsageError` where there is no `main_gpu`."""
        if self.offload.split_mode != "none" or not self.budgets:
            return self.budgets
        main = self.offload.main_gpu
        if main >= len(self.budgets):
            problem = f"{main}: there are {len(self.budgets)} devices, counted from 0"
            raise UsageError(problem, field="main_gpu", value=main, hint=Act("devices"))
        return [self.budgets[main]]

    def _given(self, n_gpu_layers: int, shares: Sequence[float] = (), n_cpu_moe: int = 0) -> Layout:
        """The layout for so many layers, spread by `shares`, by the option's, or by free memory."""
        names = tuple(budget.name for budget in self._used())
        if self.offload.split_mode == "none":
            shares = (1.0,)
        if not shares and self.offload.tensor_split:
            shares = (*self.offload.tensor_split, *[0.0] * (len(names) - len(self.offload.tensor_split)))
        if not shares:
            told = [self.fit.ram_free or 1 if each.free_bytes is None else each.free_bytes for each in self.budgets]
            shares = tuple(float(n_bytes) for n_bytes in (told if any(told) else [1] * len(told)))
        asked = self.offload.n_cpu_moe
        n_cpu_moe = max(n_cpu_moe, self.n_layer if asked == "all" else asked)
        overrides = self.offload.override_tensor
        if n_cpu_moe and self.header.n_expert:
            overrides += tuple((experts_of(layer), CPU) for layer in range(n_cpu_moe))
        return Layout(n_gpu_layers, names, tuple(shares) if names else (), n_cpu_moe, overrides)

    def with_all_layers(self, n_ctx: int) -> Layout | None:
        """All layers on the devices, of a mixture with the experts of as few layers in RAM as will do; or None."""
        too_few = self._given(0).n_cpu_moe
        found = self._all_with(n_ctx, too_few)
        if found is not None or not self._has_experts:
            return found
        enough = self.n_layer + 1
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            layout = self._all_with(n_ctx, middle)
            found, too_few, enough = (layout, too_few, middle) if layout else (found, middle, enough)
        return found

    def _all_with(self, n_ctx: int, n_cpu_moe: int) -> Layout | None:
        layout = self._spread(self.n_layer + 1, n_ctx, n_cpu_moe, {})
        if layout is None:
            return None
        layout = self._spread(self.n_layer + 1, n_ctx, n_cpu_moe, self.fit.compute(layout, n_ctx) or {})
        return None if layout is None or self.fit.shortage(self.fit.footprint(layout, n_ctx)) else layout

    @property
    def _has_experts(self) -> bool:
        return any(is_experts(tensor) for tensor in self.header.tensors)

    def _with_as_many_layers(self, n_ctx: int) -> Layout:
        """The most of the last layers that fit beside the compute buffers, which are measured for each candidate."""
        n_cpu_moe = self.n_layer if self._has_experts else 0
        for n in range(self.n_layer, 0, -1):
            compute: dict[str, int] = {}
            for _ in range(2):  # the second time with the compute buffers of the first
                layout = self._spread(n, n_ctx, n_cpu_moe, compute)
                if layout is None:
                    break
                found = self.fit.footprint(layout, n_ctx)
                if not set(self.fit.shortage(found)) - {CPU}:
                    return layout
                compute = {name: need.compute or 0 for name, need in found.by_device.items()}
        return self._given(0)

    def _spread(self, n: int, n_ctx: int, n_cpu_moe: int, compute: Mapping[str, int]) -> Layout | None:
        """`n` layers over the devices, each filled to the same part of what it has; None where they don't fit."""
        if self.offload.tensor_split or self.offload.split_mode != "layer":
            return self._given(n, n_cpu_moe=n_cpu_moe)
        usable = self._usable()
        free = [(each.free_bytes or 0) - self.offload.fit_target - compute.get(each.name, 0) for each in usable]
        counts = fill(self._costs(n, n_ctx, n_cpu_moe), [max(0, n_bytes) for n_bytes in free])
        if counts is None:
            return None
        by_name = dict(zip((each.name for each in usable), counts, strict=True))
        return self._given(n, tuple(float(by_name.get(each.name, 0)) for each in self.budgets), n_cpu_moe)

    def _costs(self, n: int, n_ctx: int, n_cpu_moe: int) -> list[int]:
        """Bytes of each of the last `n` layers, the output's last: as if each had a device of its own."""
        key = (n_ctx, n_cpu_moe)
        if key not in self._layer_costs:
            layout = self._given(self.n_layer + 1, [1.0] * len(self.budgets), n_cpu_moe)
            own = tuple(f"layer {i}" for i in range(self.n_layer + 1))
            placement = Placement(own, layout.overrides, self.offload.kv, self.fit.repacked)
            found = self.fit.of_placement(placement, n_ctx).by_device
            self._layer_costs[key] = [found[name].total for name in own]
        return self._layer_costs[key][self.n_layer + 1 - n :]


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
