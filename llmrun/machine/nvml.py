"""NVML, NVIDIA's library that watches GPUs: the one door to it.

`open_nvml` gives an `Nvml`, or `NoGpus` with the reason why there is none. What a driver or a binding can't tell
raises `Unavailable`, which says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from llmrun.machine.proc import ROOT

_T = TypeVar("_T")


class Unavailable(Exception):
    """The driver does not tell this. Its text says why."""


# Bits of nvmlDeviceGetCurrentClocksThrottleReasons. Idle (1) is none, and neither is what a user has set (2, 0x100).
_THROTTLES: Mapping[int, str] = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "temperature (driver)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}

# The initial process namespace (Linux: PROC_PID_INIT_INO). In any other, NVML's process ids are not ours.
_FIRST_NAMESPACE = "pid:[4026531836]"


class Nvml:
    """What is asked of NVML, GPU by GPU, in the units of `GpuReading`; a method is one call of `pynvml`.

    Any of them may raise `Unavailable`.
    """

    _pids_are_ours = True

    def __init__(self, pynvml: Any, *, pids_are_ours: bool) -> None:
        self._nvml, self._pids_are_ours = pynvml, pids_are_ours
        self._handle = cache(pynvml.nvmlDeviceGetHandleByIndex)

    def n_gpus(self) -> int:
        return int(self._ask(None, "nvmlDeviceGetCount"))

    def name(self, gpu: int) -> str:
        name = self._ask(gpu, "nvmlDeviceGetName")
        return name.decode(errors="replace") if isinstance(name, bytes) else str(name)

    def memory(self, gpu: int) -> tuple[int, int]:
        """Bytes in use, and in all."""
        memory = self._ask(gpu, "nvmlDeviceGetMemoryInfo")
        return int(memory.used), int(memory.total)

    def process_bytes(self, gpu: int, pid: int) -> int | None:
        if not self._pids_are_ours:
            raise Unavailable("process ids in a container are not the driver's")
        # A process that computes and draws (Vulkan) stands in both lists, with the same figure.
        taken = [
            int(each.usedGpuMemory)
            for function in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
            for each in self._ask(gpu, function)
            if each.pid == pid and each.usedGpuMemory is not None
        ]
        return max(taken, default=None)

    def utilization(self, gpu: int) -> float:
        return float(self._ask(gpu, "nvmlDeviceGetUtilizationRates").gpu) / 100

    def power_w(self, gpu: int) -> float:
        return float(self._ask(gpu, "nvmlDeviceGetPowerUsage")) / 1000

    def energy_j(self, gpu: int) -> float:
        return float(self._ask(gpu, "nvmlDeviceGetTotalEnergyConsumption")) / 1000

    def sm_mhz(self, gpu: int) -> int:
        return int(self._ask(gpu, "nvmlDeviceGetClockInfo", 1))  # NVML_CLOCK_SM

    def memory_mhz(self, gpu: int) -> int:
        return int(self._ask(gpu, "nvmlDeviceGetClockInfo", 2))  # NVML_CLOCK_MEM

    def max_memory_mhz(self, gpu: int) -> int:
        return int(self._ask(gpu, "nvmlDeviceGetMaxClockInfo", 2))  # NVML_CLOCK_MEM

    def bus_width_bits(self, gpu: int) -> int:
        """Of its memory."""
        return int(self._ask(gpu, "nvmlDeviceGetMemoryBusWidth"))

    def temperature_c(self, gpu: int) -> int:
        return int(self._ask(gpu, "nvmlDeviceGetTemperature", 0))  # NVML_TEMPERATURE_GPU

    def throttled(self, gpu: int) -> tuple[str, ...]:
        bits = int(self._ask(gpu, "nvmlDeviceGetCurrentClocksThrottleReasons"))
        return tuple(reason for bit, reason in _THROTTLES.items() if bits & bit)

    def _ask(self, gpu: int | None, function: str, *arguments: int) -> Any:
        nvml = self._nvml
        try:
            handle = () if gpu is None else (self._handle(gpu),)
            return getattr(nvml, function)(*handle, *arguments)
        except (nvml.NVMLError, AttributeError, OSError, UnicodeError) as error:
            # Without NVMLError: a binding or a driver that is older than the function.
            raise Unavailable(f"NVML: {error}") from None


@dataclass(frozen=True)
class NoGpus(Nvml):
    """There is no NVML: whatever it is asked, it raises `Unavailable`, with the reason."""

    reason: str

    def _ask(self, gpu: int | None, function: str, *arguments: int) -> Any:
        raise Unavailable(self.reason)


def open_nvml(marks: Sequence[Path] = (Path("/dev/nvidiactl"), Path("/dev/dxg"))) -> Nvml:
    """NVML, or why there is none. Without the driver's `marks` in /dev the library is not even looked for."""
    if not any(mark.exists() for mark in marks):
        return NoGpus("there is no NVIDIA driver")
    try:
        import pynvml
    except ImportError as error:
        return NoGpus(f"nvidia-ml-py can't be imported: {error}")
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError) as error:
        return NoGpus(f"NVML can't be started: {error}")
    try:
        namespace = os.fspath((ROOT / "self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return Nvml(pynvml, pids_are_ours=namespace == _FIRST_NAMESPACE)


@dataclass(frozen=True)
class GpuReading:
    """One GPU at one moment. None: the driver doesn't tell.

    Attributes:
        index: NVML's, which is by PCI bus and need not be CUDA's.
        used_bytes: by everybody, the driver's own part included.
        process_bytes: by the engine alone; None in a container, whose process ids the driver doesn't know.
        utilization: share of the last moments (a sixth of a second to one) in which any kernel ran, 0 to 1.
        energy_j: since the driver was loaded.
        throttled: why the clocks are lower than they could be, in words; empty if they aren't.
    """

    index: int
    name: str | None = None
    total_bytes: int | None = None
    used_bytes: int | None = None
    process_bytes: int | None = None
    utilization: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    temperature_c: int | None = None
    throttled: tuple[str, ...] | None = None


_READ_EACH_TIME = ("utilization", "power_w", "energy_j", "sm_mhz", "memory_mhz", "temperature_c", "throttled")
"""Methods of `Nvml` and fields of `GpuReading`."""


def _or_none(function: Callable[..., _T], *arguments: int) -> _T | None:
    try:
        return function(*arguments)
    except Unavailable:
        return None


class Gpus:
    """All GPUs of the machine; what never changes is asked once. Raises `Unavailable` where they can't be counted."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self.names = [_or_none(nvml.name, gpu) for gpu in range(nvml.n_gpus())]

    def read(self, pid: int) -> tuple[GpuReading, ...]:
        """Every GPU as it is now; `pid` is the process whose memory is told apart."""
        return tuple(self._read(gpu, name, pid) for gpu, name in enumerate(self.names))

    def _read(self, gpu: int, name: str | None, pid: int) -> GpuReading:
        nvml = self._nvml
        used, total = _or_none(nvml.memory, gpu) or (None, None)
        more: Any = {each: _or_none(getattr(nvml, each), gpu) for each in _READ_EACH_TIME}
        return GpuReading(gpu, name, total, used, _or_none(nvml.process_bytes, gpu, pid), **more)
