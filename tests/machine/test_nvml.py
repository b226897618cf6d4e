"""NVML through a library that answers as `pynvml` does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmrun.machine.nvml import NoGpus, Nvml, Unavailable, open_nvml


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a driver")
def test_a_driver_that_does_not_start(tmp_path: Path) -> None:
    """The mark of a driver without the driver: words, no error."""
    (tmp_path / "nvidiactl").touch()
    there = open_nvml(marks=[tmp_path / "nvidiactl"])
    assert isinstance(there, NoGpus) and "NVML can't be started" in there.reason


class Library:
    """As `pynvml` answers: milliwatts, millijoules, percent; functions it hasn't are attributes it hasn't."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.running: list[Any] = []
        self.drawing: list[Any] = []

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index:
            raise self.NVMLError("Invalid Argument")
        return "handle"

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        return b"NVIDIA H200"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(used=5, free=7, total=12)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return SimpleNamespace(gpu=37, memory=12)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 123_456

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return {1: 1980, 2: 3201}[kind]

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return 0x1 | 0x2 | 0x4 | 0x40

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return self.running

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: str) -> list[Any]:
        return self.drawing


def test_the_library_is_translated() -> None:
    """Units become ours, idle is no throttling, and its errors become one of ours."""
    nvml = Nvml(Library(), pids_are_ours=True)
    assert (nvml.n_gpus(), nvml.name(0), nvml.memory(0)) == (1, "NVIDIA H200", (5, 12))
    assert (nvml.utilization(0), nvml.power_w(0), nvml.sm_mhz(0), nvml.memory_mhz(0)) == (0.37, 123.456, 1980, 3201)
    assert nvml.throttled(0) == ("power cap", "temperature (hardware)")
    with pytest.raises(Unavailable, match="Not Supported"):
        nvml.temperature_c(0)
    with pytest.raises(Unavailable, match="nvmlDeviceGetTotalEnergyConsumption"):
        nvml.energy_j(0)
    with pytest.raises(Unavailable, match="Invalid Argument"):
        nvml.name(1)


def test_memory_of_one_process() -> None:
    """By its id, once though it stands in two lists; unknown where the driver's ids are not ours."""
    library = Library()
    nvml = Nvml(library, pids_are_ours=True)
    assert nvml.process_bytes(0, 42) is None
    library.running = [SimpleNamespace(pid=41, usedGpuMemory=1), SimpleNamespace(pid=42, usedGpuMemory=900)]
    library.drawing = [SimpleNamespace(pid=42, usedGpuMemory=900)]
    assert nvml.process_bytes(0, 42) == 900
    library.running = library.drawing = [SimpleNamespace(pid=42, usedGpuMemory=None)]
    assert nvml.process_bytes(0, 42) is None
    with pytest.raises(Unavailable, match="container"):
        Nvml(library, pids_are_ours=False).process_bytes(0, 42)
