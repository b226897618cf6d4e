"""A model on a machine that is not here: where its layers would lie, and how long a token and a prompt would take.

Layers are placed by the rules that a run here follows (`planning.placement`), from the exact bytes of the header; only
compute buffers, for which llama.cpp would have to be asked on that machine, are estimated. Devices work one after the
other on the layers that they have, so that their seconds add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from llmrun.gguf.reader import Header, layer_of
from llmrun.machine.environment import GpuInfo, MachineInfo
from llmrun.options.load import COMFORTABLE_CTX, LoadConfig
from llmrun.planning.fit import CTX_STEP, Fit
from llmrun.planning.footprint import (
    CPU,
    LOOKED_UP,
    Footprint,
    Placement,
    flops_per_token,
    homes_of,
    is_experts,
    loaded_tensors,
    step_reads,
)
from llmrun.planning.kv_layout import layer_memories
from llmrun.planning.layout import DeviceBudget
from llmrun.planning.load_plan import check_kv_types
from llmrun.planning.placement import Placer
from llmrun.planning.predict import speed
from llmrun.planning.predict.compute_buffers import ComputeEstimate
from llmrun.planning.predict.machines import Machine, Part
from llmrun.planning.predict.prediction import TOO_LARGE, Prediction, Question, Range, with_disk
from llmrun.planning.predict.speed import Constants, Load
from llmrun.units import count

_GIB = 1 << 30
_SYSTEM_BYTES = _GIB
"""Of main memory, what is taken by all else."""
_FOR_THE_GPU = 0.75
"""Of memory that CPU and GPU share, what the GPU may take: Metal's limit from 48 GiB on, and about GTT's."""
_CPU_SIDE = 0.5
"""Of the bandwidth of such a memory, what its CPU cores reach."""
_DISK_BYTES_PER_S = 3e9
"""An NVMe disk whose rate nobody told, read through a mapping."""
_BUS_BYTES_PER_S = 20e9
"""PCIe 4.0 x16: of prompts, layers in RAM are computed on the GPU, to which llama.cpp copies them for each batch."""
_BACKENDS = {"amd": "ROCm", "intel": "SYCL", "apple": "MTL"}
_LOOKED_UP_SHARE = 1e-3
"""Of the bytes of a step: what is less is a row of the embedding, which no device computes with."""
_UNQUANTIZED = frozenset({"F32", "F16", "BF16"})


@dataclass(frozen=True)
class Elsewhere:
    """The source for a machine that is not here (`prediction.Source`)."""

    what: Machine
    constants: Constants = field(default_factory=speed.constants)

    def machine(self) -> Mapping[str, Any]:
        """A bench's record of a machine, as far as the description goes, and the description."""
        vendors = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel", "apple": "Apple"}
        gpus = tuple(GpuInfo(vendors[speed.vendor(part)], part.name) for part in self.what.gpus)
        ram = self._ram
        info = MachineInfo(cpu=self.what.cpu.name if self.what.cpu else None, gpus=gpus)
        return {**asdict(info), "ram_bytes": ram.memory_bytes if ram else None, "what_if": self.what.name}

    @property
    def _shared(self) -> Part | None:
        """The device that computes in main memory, where there is one."""
        return next((part for part in self.what.parts if part.kind in ("igpu", "apple")), None)

    @property
    def _ram(self) -> Part | None:
        """Main memory, with the cores that compute in it."""
        if self.what.cpu is not None or self._shared is None:
            return self.what.cpu
        family = "arm" if self._shared.kind == "apple" else "x86"
        bandwidth = self._shared.bytes_per_s * _CPU_SIDE
        return Part("CPU", "cpu", family, self._shared.memory_bytes, bandwidth, watts=self._shared.watts)

    def _named(self) -> dict[str, Part]:
        """GPUs by the names that ggml would give them."""
        seen: Counter[str] = Counter()
        named: dict[str, Part] = {}
        for part in self.what.gpus:
            backend = _BACKENDS.get(speed.vendor(part), "CUDA")
            named[f"{backend}{seen[backend]}"] = part
            seen[backend] += 1
        return named

    def predict(self, header: Header, question: Question) -> Prediction:
        """Raises `UsageError` for settings that the model or the machine can't have."""
        config = question.config
        check_kv_types(header, config)
        n_ctx = _context(header, question)
        devices = self._named()
        budgets = tuple(DeviceBudget(name, _usable(part)) for name, part in devices.items())
        fit = Fit(header, config, budgets, None, ComputeEstimate(header))
        layout = Placer(fit).layout_for(n_ctx)
        placement, found = fit.placement(layout), fit.footprint(layout, n_ctx)
        missing = self._missing(found, budgets)
        plan = _Placed(header, placement, config, devices, self._ram)
        fits = None if missing is None else missing <= 0
        # Weights can be read from the disk at every token; the rest has to be in memory.
        without_weights = Footprint({name: replace(need, weights=0) for name, need in found.by_device.items()}, n_ctx)
        too_large = (self._missing(without_weights, budgets) or 0) > 0
        seconds = {depth: None if too_large else self._decode_s(plan, depth, missing or 0) for depth in question.depths}
        prefill = None if too_large else self._prefill_s(plan, question.n_prompt, missing or 0)
        return Prediction(
            fits=fits if plan.computable else False,
            n_gpu_layers=min(layout.n_gpu_layers, (header.n_layer or 0) + 1) if devices else 0,
            n_ctx=n_ctx,
            memory_bytes={"RAM" if name == CPU else name: need.total for name, need in found.by_device.items()},
            prefill_tps=None if prefill is None else prefill.per(question.n_prompt),
            decode_tps={depth: None if each is None else each.per(1) for depth, each in seconds.items()},
            note=TOO_LARGE if too_large else self._note(plan, missing or 0),
            watts=self._watts(plan),
        )

    def _missing(self, found: Footprint, budgets: tuple[DeviceBudget, ...]) -> int | None:
        """Bytes that main memory or a device lacks; None where the size of main memory is not known and counts."""
        short = [
            need.total - budget.free_bytes
            for budget in budgets
            if budget.free_bytes is not None and (need := found.by_device.get(budget.name)) is not None
        ]
        ram, need_ram = self._ram, found.by_device[CPU].total
        if ram is None:
            return max(short, default=0)
        if ram.memory_bytes is None:
            return None if max(short, default=0) <= 0 else max(short)
        if self._shared is not None:  # all in one memory
            need_ram = sum(need.total for need in found.by_device.values())
        return max([*short, need_ram - (ram.memory_bytes - _SYSTEM_BYTES)])

    def _note(self, plan: _Placed, missing: int) -> str:
        if not plan.computable:
            return "the rest needs a CPU's memory: say it behind a +"
        if missing > 0:
            return "mapped from the disk" + ("" if self.what.disk_bytes_per_s else ", taken to read 3 GB/s")
        if plan.header.n_params < speed.LEAST_WEIGHTS:  # mostly starting of kernels, which large models tell little of
            return f"a guess: the smallest model that was measured has {count(speed.LEAST_WEIGHTS)} weights"
        return ""

    def _watts(self, plan: _Placed) -> float | None:
        """Of all devices that compute, together; of a chip that has CPU and GPU once. None: of one it is not known."""
        parts = [part for name in plan.step(0) or () if (part := plan.part(name)) is not None]
        if self.what.cpu is None:
            parts = [part for part in parts if part.kind != "cpu"] or parts
        known = [part.watts for part in parts if part.watts is not None]
        return sum(known) if known and len(known) == len(parts) else None

    # -- seconds ---

    def _decode_s(self, plan: _Placed, depth: int, missing: int) -> Range | None:
        loads = plan.step(depth)
        if loads is None or not plan.computable:
            return None
        parts = [(part, load) for name, load in loads.items() if (part := plan.part(name)) is not None]
        fitted = self.constants
        mid = sum(speed.decode_s(part, load, fitted.decode[speed.group(part)], fitted.mixture) for part, load in parts)
        factor = max((self._spread(part, load) for part, load in parts), default=1.0)
        if missing <= 0:
            return Range.around(mid, factor)
        return self._with_disk(Range.around(mid, factor), loads[CPU].weight_bytes, plan.share_missing(missing))

    def _spread(self, part: Part, load: Load) -> float:
        plain = self.constants.decode[speed.group(part)].spread
        return max(plain, self.constants.mixture.spread) if load.n_expert_layers else plain

    def _with_disk(self, computing: Range, n_bytes: float, share: float, passes: int = 1) -> Range:
        rate = self.what.disk_bytes_per_s or _DISK_BYTES_PER_S
        doubt = 1.2 if self.what.disk_bytes_per_s else 2.0
        return with_disk(computing, passes * n_bytes * share / rate, passes * n_bytes / rate, doubt)

    def _prefill_s(self, plan: _Placed, n_prompt: int, missing: int) -> Range | None:
        loads = plan.step(n_prompt // 2)
        if loads is None or not plan.computable:
            return None
        n_batch = -(-n_prompt // min(plan.config.n_ubatch, plan.config.n_batch))
        total, factor, first = 0.0, 1.0, next(iter(plan.devices.values()), None)
        for name, load in loads.items():
            part = plan.part(name)
            if part is None or not load.n_weights:
                continue
            at = first if name == CPU and first is not None else part
            group, fitted = speed.group(at), self.constants
            rates = (fitted.decode[group], fitted.prefill[group], fitted.mixture)
            seconds = speed.prefill_s(at, load, n_prompt, n_batch, *rates)
            if seconds is None:
                return None
            copied = name == CPU and first is not None and first.kind == "gpu"
            total += seconds + (n_batch * load.file_bytes / _BUS_BYTES_PER_S if copied else 0.0)
            factor = max(factor, fitted.prefill[group].spread * (1.5 if copied else 1.0))
        seconds_range = Range.around(total, factor)
        if missing <= 0:
            return seconds_range
        return self._with_disk(seconds_range, loads[CPU].file_bytes, plan.share_missing(missing), n_batch)


@dataclass(frozen=True)
class _Placed:
    """A model whose layers have their devices."""

    header: Header
    placement: Placement
    config: LoadConfig
    devices: Mapping[str, Part]
    ram: Part | None

    def part(self, name: str) -> Part | None:
        return self.ram if name == CPU else self.devices[name]

    @property
    def computable(self) -> bool:
        """Whether all that has layers is described."""
        return self.ram is not None or CPU not in (self.step(0) or ())

    def share_missing(self, missing: int) -> float:
        """Of what lies in RAM, the part that is not there."""
        loads = self.step(0) or {}
        return min(1.0, missing / max(1.0, loads[CPU].file_bytes)) if CPU in loads else 0.0

    def step(self, depth: int) -> dict[str, Load] | None:
        """What one token behind `depth` others costs each device; None where the header does not tell."""
        kinds = (self.config.type_k, self.config.type_v)
        first = step_reads(self.header, self.placement, 0, *kinds)
        reads = step_reads(self.header, self.placement, depth, *kinds)
        flops, attention = flops_per_token(self.header, 0), flops_per_token(self.header, depth)
        if first is None or reads is None or flops is None or attention is None:
            return None
        n_layers, n_expert_layers = Counter(self.placement.layers[:-1]), self._expert_layers()
        memories = layer_memories(self.header) or ()
        n_recurrent = Counter(at for at, memory in zip(self.placement.layers, memories, strict=False) if memory.n_state)
        total = sum(first.values()) or 1
        file_bytes, quantized = self._file_bytes()
        return {
            name: Load(
                weight_bytes=n_bytes,
                kv_bytes=reads[name] - n_bytes,
                n_weights=flops / 2 * n_bytes / total,
                attention_flops=(attention - flops) * n_layers[name] / max(1, sum(n_layers.values())),
                n_layers=n_layers[name],
                n_expert_layers=n_expert_layers[name],
                n_recurrent_layers=n_recurrent[name],
                quantized=quantized,
                file_bytes=file_bytes[name],
            )
            for name, n_bytes in first.items()
            if n_bytes > _LOOKED_UP_SHARE * total
        }

    def _expert_layers(self) -> Counter[str]:
        with_experts = {layer_of(tensor) for tensor in self.header.tensors if is_experts(tensor)}
        return Counter(device for layer, device in enumerate(self.placement.layers[:-1]) if layer in with_experts)

    def _file_bytes(self) -> tuple[Counter[str], float]:
        """Bytes of the weights that are multiplied, by device, and the share of all weights that is quantized."""
        by_device: Counter[str] = Counter()
        quantized = total = 0
        tied = self.header.tensor("output.weight") is None
        for tensor in loaded_tensors(self.header):
            if tensor.name not in LOOKED_UP or (tied and tensor.name == "token_embd.weight"):
                by_device[homes_of(tensor, self.header, self.placement)[-1][0]] += tensor.n_bytes
            if len(tensor.shape) > 1:
                total += tensor.n_elements
                quantized += 0 if tensor.type.name in _UNQUANTIZED else tensor.n_elements
        return by_device, quantized / max(1, total)


def _context(header: Header, question: Question) -> int:
    """Tokens that memory is asked for: the option, else what is needed, at least as many as a run here has."""
    trained = header.n_ctx_train or COMFORTABLE_CTX
    if question.config.n_ctx is not None:
        return question.config.n_ctx or trained
    needed = max(question.n_prompt, *question.depths) + question.n_gen
    return max(min(trained, COMFORTABLE_CTX), -(-needed // CTX_STEP) * CTX_STEP)


def _usable(part: Part) -> int | None:
    if part.memory_bytes is None:
        return None
    return round(part.memory_bytes * _FOR_THE_GPU) if part.kind in ("igpu", "apple") else part.memory_bytes
