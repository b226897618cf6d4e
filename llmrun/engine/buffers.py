"""llmrun's footprint beside what llama.cpp took: its buffers, by device. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmrun.engine.protocol import Buffer
from llmrun.machine.device import Device
from llmrun.planning.footprint import CPU, Footprint


def by_device(buffers: Iterable[Buffer], devices: Sequence[Device]) -> dict[str, Counter[str]]:
    """Bytes of each kind on each device: kinds "weights", "kv" (with recurrent states), "compute" (with the logits)."""
    kinds = {"model": "weights", "LoRA": "weights", "KV": "kv", "RS": "kv", "compute": "compute", "output": "compute"}
    names = _buffer_names(devices)
    found: dict[str, Counter[str]] = {}
    for buffer in buffers:
        # "CUDA0" and "MTL0_Mapped" are of these devices; "CUDA_Host" is RAM, for transfers.
        of = (on for name, on in names.items() if buffer.device == name or buffer.device.startswith(f"{name}_"))
        device = next(of, CPU)
        found.setdefault(device, Counter())[kinds[buffer.kind]] += buffer.n_bytes
    return found


def _buffer_names(devices: Sequence[Device]) -> dict[str, str]:
    """What the buffers of a device are called, and what the device is. A worker's count from 0 at each worker:
    "RPC0[10.0.0.2:50052]" is perhaps the device RPC3."""
    names = {}
    at_worker: Counter[str] = Counter()
    for device in devices:
        endpoint, is_remote = device.description, device.backend.startswith("RPC")
        names[f"RPC{at_worker[endpoint]}[{endpoint}]" if is_remote else device.name] = device.name
        at_worker[endpoint] += is_remote
    return names


@dataclass(frozen=True)
class FootprintCheck:
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


def checks(footprint: Footprint, buffers: Sequence[Buffer], devices: Sequence[Device]) -> list[FootprintCheck]:
    """The footprint against llama.cpp's buffers, for every device and kind that has any bytes."""
    taken = by_device(buffers, devices)
    mapped = any(buffer.device.startswith("CPU_Mapped") for buffer in buffers)
    made = []
    for device, need in footprint.by_device.items():
        weights = footprint.span_bytes + footprint.repacked_bytes if device == CPU and mapped else need.weights
        here = taken.get(device, Counter())
        kinds = {"weights": weights, "kv": need.kv, "compute": need.compute}
        made += [FootprintCheck(device, *each, here[each[0]]) for each in kinds.items() if each[1] or here[each[0]]]
    return made


def total_error(found: Sequence[FootprintCheck]) -> float | None:
    """The error of all that is known together; None where a part of it is unknown."""
    taken = sum(check.taken for check in found)
    if not taken or any(check.computed is None for check in found):
        return None
    return sum(check.computed or 0 for check in found) / taken - 1
