"""Between the plan and llama.cpp: devices to rooms, a plan to settings, llama.cpp's buffers to devices. Pure."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from llmrun.engine.protocol import Buffer, Settings
from llmrun.errors import UsageError
from llmrun.machine.device import Device
from llmrun.options.load import MAX_DEVICES, LoadConfig
from llmrun.planning.footprint import CPU, Footprint
from llmrun.planning.placement import Layout, Room


def rooms_of(config: LoadConfig, devices: Sequence[Device]) -> tuple[Room, ...]:
    """The devices that layers may lie on, in the order in which llama.cpp fills them: workers, GPUs, then an integrated
    GPU where there is no other. Raises `UsageError` for a name that is none of them."""
    usable = [device for device in devices if device.kind in ("gpu", "igpu")]
    named = config.offload.devices
    if named is not None:
        by_name = {device.name: device for device in usable}
        for name in named:
            if name not in by_name:
                raise UsageError(f"--device: there is no '{name}' among {_names(usable)}", hint=_list(config))
        chosen = [by_name[name] for name in named]
    else:
        remote = [device for device in usable if device.backend.startswith("RPC")]
        own = [device for device in usable if device.kind == "gpu" and device not in remote]
        chosen = remote + (own or [device for device in usable if device.kind == "igpu"])
    if len(chosen) > MAX_DEVICES:
        raise UsageError(
            f"{len(chosen)} devices, llama.cpp takes at most {MAX_DEVICES}: choose by --device", hint=_list(config)
        )
    known = {device.name for device in devices}
    for _, name in config.offload.override_tensor:
        if name not in known:
            raise UsageError(f"-ot: there is no device '{name}' among {', '.join(sorted(known))}", hint=_list(config))
    n_layers = config.offload.n_gpu_layers
    if not chosen and (n_layers == "all" or (n_layers != "auto" and n_layers > 0)):
        # llama.cpp would take any number here and put everything into RAM without a word.
        raise UsageError(
            f"-ngl {n_layers}: there is no device to put layers on, RAM alone", hint="llmrun devices, or -ngl 0"
        )
    return tuple(Room(device.name, device.free_bytes) for device in chosen)


def _names(devices: Iterable[Device]) -> str:
    return ", ".join(device.name for device in devices) or "none at all"


def _list(config: LoadConfig) -> str:
    return " ".join(["llmrun devices", *(["--rpc", ",".join(config.rpc)] if config.rpc else [])])


def settings_of(
    config: LoadConfig, layout: Layout, *, n_ctx: int | None, n_ctx_most: int | None, n_threads: int, repack: bool
) -> Settings:
    offload = config.offload
    return Settings(
        n_ctx=n_ctx,
        n_ctx_most=n_ctx_most,
        n_batch=config.n_batch,
        n_ubatch=config.n_ubatch,
        n_threads=n_threads,
        n_threads_batch=config.n_threads_batch or n_threads,
        flash_attn=config.flash_attn,
        repack=repack,
        type_k=config.type_k,
        type_v=config.type_v,
        load_mode=config.load_mode,
        numa=config.numa,
        n_gpu_layers=layout.n_gpu_layers,
        devices=list(layout.devices),
        tensor_split=list(layout.shares),
        split_mode=offload.split_mode,
        main_gpu=0 if offload.split_mode == "none" else offload.main_gpu,  # `devices` is then that one alone
        override_tensor=[[pattern, device] for pattern, device in layout.overrides],
        offload_kv=offload.kv,
        override_kv=[[key, value] for key, value in config.override_kv.items()],
        rope={name: value for name, value in asdict(config.rope).items() if value is not None},
        lora=[[os.fspath(adapter.path.absolute()), adapter.scale] for adapter in config.lora],
    )


def by_device(buffers: Iterable[Buffer], devices: Sequence[Device]) -> dict[str, Counter[str]]:
    """Bytes of each kind on each device: kinds "weights", "kv" (with recurrent states), "compute" (with the logits)."""
    kinds = {"model": "weights", "LoRA": "weights", "KV": "kv", "RS": "kv", "compute": "compute", "output": "compute"}
    names = _buffer_names(devices)
    found: dict[str, Counter[str]] = {}
    for buffer in buffers:
        device = next((on for name, on in names.items() if _is_of(buffer.device, name)), CPU)
        found.setdefault(device, Counter())[kinds[buffer.kind]] += buffer.n_bytes
    return found


def _buffer_names(devices: Sequence[Device]) -> dict[str, str]:
    """What the buffers of a device are called, and what the device is. A worker's count from 0 at each worker:
    "RPC0[10.0.0.2:50052]" is perhaps the device RPC3."""
    names = {}
    at_worker: Counter[str] = Counter()
    for device in devices:
        if device.backend.startswith("RPC"):
            endpoint = device.description
            names[f"RPC{at_worker[endpoint]}[{endpoint}]"] = device.name
            at_worker[endpoint] += 1
        else:
            names[device.name] = device.name
    return names


def _is_of(buffer: str, name: str) -> bool:
    """ "CUDA0" and "MTL0_Mapped" are of these devices; "CUDA_Host" is RAM, for transfers."""
    return buffer == name or buffer.startswith(f"{name}_")


@dataclass(frozen=True)
class Check:
    """What was computed from the header beside what llama.cpp then took.

    Attributes:
        kind: "weights", "kv" or "compute".
        computed: bytes; None where the header does not tell.
        taken: bytes, by llama.cpp's log, which rounds each buffer to 0.01 MiB.
    """

    device: str
    kind: str
    computed: int | None
    taken: int

    @property
    def error(self) -> float | None:
        """(computed − taken) / taken; None where one of them is unknown or nothing was taken."""
        return None if self.computed is None or not self.taken else (self.computed - self.taken) / self.taken


def checks(footprint: Footprint, buffers: Sequence[Buffer], devices: Sequence[Device]) -> list[Check]:
    """The footprint against llama.cpp's buffers, for every device and kind that has any bytes."""
    taken = by_device(buffers, devices)
    mapped = any(buffer.device.startswith("CPU_Mapped") for buffer in buffers)
    made = []
    for device, need in footprint.by_device.items():
        weights = footprint.span_bytes + footprint.repacked_bytes if device == CPU and mapped else need.weights
        here = taken.get(device, Counter())
        for kind, computed in (("weights", weights), ("kv", need.kv), ("compute", need.compute)):
            if computed or here[kind]:
                made.append(Check(device, kind, computed, here[kind]))
    return made


def total_error(found: Sequence[Check]) -> float | None:
    """The error of all that is known together; None where a part of it is unknown."""
    taken = sum(check.taken for check in found)
    if not taken or any(check.computed is None for check in found):
        return None
    return sum(check.computed or 0 for check in found) / taken - 1
