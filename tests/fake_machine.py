"""A machine that says what a test wants: its clocks, its processes, its GPUs."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmrun.machine.nvml import Nvml, Unavailable
from llmrun.machine.proc import MachineReading, ProcessReading

MIB = 1 << 20


@dataclass
class Clock:
    """A clock that stands until somebody moves it; `per_look` it moves by itself, as one that counts our own work."""

    now: float = 0.0
    per_look: float = 0.0

    def __call__(self) -> float:
        self.now += self.per_look
        return self.now


@dataclass
class Scripted:
    """A reader whose process and machine are what the test says."""

    said: ProcessReading | None = field(default_factory=ProcessReading)
    machine_said: MachineReading = field(default_factory=MachineReading)

    def process(self) -> ProcessReading | None:
        return self.said

    def machine(self) -> MachineReading:
        return self.machine_said


@dataclass
class FakeNvml(Nvml):
    """Two GPUs. What is in `broken` is not told, and `error` is raised by everything."""

    used: list[int] = field(default_factory=lambda: [3 * MIB, 5 * MIB])
    power: list[float] = field(default_factory=lambda: [100.0, 50.0])
    energy: list[float] = field(default_factory=lambda: [1000.0, 2000.0])
    reasons: list[tuple[str, ...]] = field(default_factory=lambda: [(), ()])
    broken: frozenset[str] = frozenset()
    error: Exception | None = None

    def _said(self, what: str) -> None:
        if self.error:
            raise self.error
        if what in self.broken:
            raise Unavailable(f"{what}: Not Supported")

    def n_gpus(self) -> int:
        self._said("n_gpus")
        return 2

    def name(self, gpu: int) -> str:
        self._said("name")
        return f"Card {gpu}"

    def memory(self, gpu: int) -> tuple[int, int]:
        self._said("memory")
        return self.used[gpu], 8 * MIB

    def process_bytes(self, gpu: int, pid: int) -> int | None:
        self._said("process_bytes")
        return 2 * MIB if gpu == 0 else None

    def utilization(self, gpu: int) -> float:
        self._said("utilization")
        return 0.75

    def power_w(self, gpu: int) -> float:
        self._said("power_w")
        return self.power[gpu]

    def energy_j(self, gpu: int) -> float:
        self._said("energy_j")
        return self.energy[gpu]

    def sm_mhz(self, gpu: int) -> int:
        self._said("sm_mhz")
        return 1980

    def memory_mhz(self, gpu: int) -> int:
        self._said("memory_mhz")
        return 3201

    def max_memory_mhz(self, gpu: int) -> int:
        self._said("max_memory_mhz")
        return 3201

    def bus_width_bits(self, gpu: int) -> int:
        self._said("bus_width_bits")
        return 6144

    def temperature_c(self, gpu: int) -> int:
        self._said("temperature_c")
        return 40 + gpu

    def throttled(self, gpu: int) -> tuple[str, ...]:
        self._said("throttled")
        return self.reasons[gpu]
