"""What a run takes of the machine, sampled from the side: memory, CPU time, page faults, GPUs.

A thread of the parent looks at the engine's process a few times a second and never talks to it:

    /proc/PID/status ─► memory: its own, of mapped files, swapped      ┐
    /proc/PID/stat   ─► CPU time, page faults that went to the disk    ├─► Sample ─► Usage (peaks, means)
    /proc/stat       ─► CPU time of everybody else, and steal          │
    NVML             ─► per GPU: memory, power, clocks, throttling     ┘

Two figures tell why a run is slow that the run itself can't see. **Major faults**: a mapped model that does not fit
RAM is read from the disk again for every token. **Others' cores**: a machine that is shared measures its neighbours.

A sample costs CPU time on the machine that it measures. That time is measured as well (`Usage.cost_s`), and the
interval grows until it is at most 0.5 % of one core. What can't be known is None, never 0.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

MAX_SHARE = 0.005
"""Of one core, that sampling may take."""
MAX_INTERVAL_S = 10.0

_T = TypeVar("_T")


# -- what is read -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProcessReading:
    """One process at one moment. None: the system doesn't tell.

    Attributes:
        rss_bytes: resident memory; where its parts are known, their sum.
        anonymous_bytes: of it, what is the process's own: buffers, KV cache, repacked weights.
        file_bytes: of it, pages of mapped files: weights as they lie in the file. Other processes can share them.
        shmem_bytes: of it, shared memory without a file, as drivers use it.
        peak_rss_bytes: the most that was ever resident, since the process began.
        swap_bytes: of its own memory, what lies in swap.
        cpu_s: CPU time of all its threads since it began.
        major_faults: since it began, pages that had to be read from the disk.
    """

    rss_bytes: int | None = None
    anonymous_bytes: int | None = None
    file_bytes: int | None = None
    shmem_bytes: int | None = None
    peak_rss_bytes: int | None = None
    swap_bytes: int | None = None
    cpu_s: float | None = None
    major_faults: int | None = None


@dataclass(frozen=True)
class MachineReading:
    """CPU time of the whole machine since it started, all cores together.

    Attributes:
        busy_s: spent in programs and the kernel, whoever they ran for.
        steal_s: this virtual machine wanted to run, and the host ran another.
    """

    busy_s: float | None = None
    steal_s: float | None = None


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


@dataclass(frozen=True)
class Sample:
    """Everything at one moment.

    Attributes:
        at_s: when, on `time.perf_counter()`: the clock of the engine's events.
        cores: the engine's CPU time per second of wall time since the sample before; None in the first.
        other_cores: the same of all processes but the engine's and this one.
        steal_cores: the same of what the host took away.
        gpus: None where there is no NVML (`Usage.gpus_unknown` says why).
    """

    at_s: float
    process: ProcessReading
    cores: float | None
    other_cores: float | None
    steal_cores: float | None
    gpus: tuple[GpuReading, ...] | None


@dataclass(frozen=True)
class GpuUsage:
    """One GPU over the time that was watched; readings as in `GpuReading`. Means are over time.

    Attributes:
        first_used_bytes: in use when the watch began: what `peak_used_bytes` has to be compared with.
        energy_j: used while watched, by everybody; by the GPU's own counter.
        throttled: every reason that was seen, in the order in which it was.
    """

    index: int
    name: str | None = None
    total_bytes: int | None = None
    first_used_bytes: int | None = None
    peak_used_bytes: int | None = None
    peak_process_bytes: int | None = None
    mean_utilization: float | None = None
    mean_power_w: float | None = None
    peak_power_w: float | None = None
    energy_j: float | None = None
    mean_sm_mhz: float | None = None
    mean_memory_mhz: float | None = None
    peak_temperature_c: int | None = None
    throttled: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Usage:
    """What was taken while it was watched. Peaks are the largest of the samples: a shorter spike is not seen.

    Attributes:
        n_samples: how many there were, with the process alive.
        watched_s: from the first sample to the last.
        peak_rss_bytes: the kernel's own record since the process began, which misses nothing; else of the samples.
        peak_anonymous_bytes, peak_file_bytes, peak_shmem_bytes, peak_swap_bytes: of the samples. The peaks need not
            have been at one moment, and add up to more than `peak_rss_bytes`.
        major_faults: pages read from the disk while watched.
        cpu_s: CPU time that the engine used while watched.
        other_cpu_s, steal_s: of all other processes (this one is none of them), and taken by the host. Kernels that
            count the machine by ticks of a timer, and processes exactly, let short work slip through: 0 is "little".
        gpus_unknown: why `gpus` is None.
        cost_s: CPU time that the samples took.
        interval_s: between two samples, as it is by now.
        broke_off: the error that ended the sampling early; None if it did not.
    """

    n_samples: int
    watched_s: float
    peak_rss_bytes: int | None = None
    peak_anonymous_bytes: int | None = None
    peak_file_bytes: int | None = None
    peak_shmem_bytes: int | None = None
    peak_swap_bytes: int | None = None
    major_faults: int | None = None
    cpu_s: float | None = None
    other_cpu_s: float | None = None
    steal_s: float | None = None
    gpus: tuple[GpuUsage, ...] | None = None
    gpus_unknown: str | None = None
    cost_s: float = field(kw_only=True)
    interval_s: float = field(kw_only=True)
    broke_off: str | None = None

    @property
    def cores(self) -> float | None:
        """Cores that the engine kept busy, on average."""
        return self._per_second(self.cpu_s)

    @property
    def other_cores(self) -> float | None:
        """Cores that others kept busy: what a measurement on a quiet machine would not have had."""
        return self._per_second(self.other_cpu_s)

    @property
    def steal_cores(self) -> float | None:
        return self._per_second(self.steal_s)

    @property
    def cost_share(self) -> float | None:
        """Of one core, what the sampling took."""
        return self._per_second(self.cost_s)

    def _per_second(self, seconds: float | None) -> float | None:
        return seconds / self.watched_s if seconds is not None and self.watched_s else None


# -- where it is read -------------------------------------------------------------------------------------------------


class Reader(Protocol):
    """Where the sampler asks for the process and the machine. A process that is no more is None."""

    def process(self) -> ProcessReading | None: ...

    def machine(self) -> MachineReading: ...


class ProcReader:
    """Linux: three small files of /proc, 15 µs together. `smaps_rollup` would walk every page of a mapped model."""

    def __init__(self, pid: int, proc: Path = Path("/proc"), *, ticks_per_s: int | None = None) -> None:
        self._status = os.fspath(proc / str(pid) / "status")
        self._stat = os.fspath(proc / str(pid) / "stat")
        self._machine = os.fspath(proc / "stat")
        self._tick_s = 1 / (ticks_per_s or os.sysconf("SC_CLK_TCK"))
        self._began: str | None = None

    def process(self) -> ProcessReading | None:
        stat = _text_of(self._stat)
        # The name stands in brackets, and may hold blanks and brackets itself.
        fields = stat.rpartition(")")[2].split() if stat else []
        if not fields or fields[0] in ("Z", "X"):  # gone, or dead and waiting for its parent to notice
            return None
        began = _at(fields, 19)
        if self._began is None:
            self._began = began
        elif began != self._began:  # another process has got its number
            return None
        lines = _kib_lines(_text_of(self._status) or "")
        anonymous, file, shmem = lines.get("RssAnon"), lines.get("RssFile"), lines.get("RssShmem")
        user, system = _number(_at(fields, 11)), _number(_at(fields, 12))
        return ProcessReading(
            rss_bytes=lines.get("VmRSS"),
            anonymous_bytes=anonymous,
            file_bytes=file,
            shmem_bytes=shmem,
            peak_rss_bytes=lines.get("VmHWM"),
            swap_bytes=lines.get("VmSwap"),
            cpu_s=None if user is None or system is None else (user + system) * self._tick_s,
            major_faults=_number(_at(fields, 9)),
        )

    def machine(self) -> MachineReading:
        name, *fields = (_text_of(self._machine) or "").partition("\n")[0].split() or [""]
        ticks = [_number(each) for each in fields]
        if name != "cpu" or len(ticks) < 7 or None in ticks:
            return MachineReading()
        user, nice, system, _idle, _iowait, irq, softirq, *rest = (n for n in ticks if n is not None)
        # Time of guests, which stands behind steal, is in user and nice already.
        busy = user + nice + system + irq + softirq
        return MachineReading(busy * self._tick_s, rest[0] * self._tick_s if rest else None)


class PsutilReader:
    """Where there is no /proc (macOS): what psutil finds out."""

    def __init__(self, pid: int) -> None:
        import psutil  # 20 ms: only where it is needed

        self._psutil = psutil
        try:
            self._process: psutil.Process | None = psutil.Process(pid)
        except psutil.Error:
            self._process = None

    def process(self) -> ProcessReading | None:
        psutil = self._psutil
        if self._process is None:
            return None
        try:
            with self._process.oneshot():
                if not self._process.is_running() or self._process.status() == psutil.STATUS_ZOMBIE:
                    return None
                memory, times = self._process.memory_info(), self._process.cpu_times()
        except (psutil.Error, OSError):
            return None
        return ProcessReading(
            rss_bytes=memory.rss, cpu_s=times.user + times.system, major_faults=getattr(memory, "pageins", None)
        )

    def machine(self) -> MachineReading:
        try:
            times = self._psutil.cpu_times()
        except (self._psutil.Error, OSError):
            return MachineReading()
        return MachineReading(times.user + times.system + getattr(times, "nice", 0.0), getattr(times, "steal", None))


def open_reader(pid: int) -> Reader:
    return ProcReader(pid) if sys.platform == "linux" else PsutilReader(pid)


def _text_of(path: str) -> str | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(file, 1 << 14).decode(errors="replace")  # the first lines of /proc/stat are all that counts
    except OSError:  # it ended between the two calls
        return None
    finally:
        os.close(file)


def _kib_lines(text: str) -> dict[str, int]:
    """Lines such as "VmRSS:     1676 kB", as bytes; the others are left out."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        if line.endswith(" kB"):
            name, _, value = line[:-3].partition(":")
            n = _number(value.strip())
            if n is not None:
                found[name] = n * 1024
    return found


def _at(fields: Sequence[str], index: int) -> str | None:
    return fields[index] if index < len(fields) else None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


# -- NVML -------------------------------------------------------------------------------------------------------------


class Unavailable(Exception):
    """The driver does not tell this. Its text says why."""


@dataclass(frozen=True)
class NoGpus:
    """There is nobody to ask about GPUs, and why."""

    reason: str


class Nvml(Protocol):
    """What is asked of NVML, GPU by GPU, in the units of `GpuReading`. Any of it may raise `Unavailable`."""

    def n_gpus(self) -> int: ...

    def name(self, gpu: int) -> str: ...

    def memory(self, gpu: int) -> tuple[int, int]:
        """Bytes in use, and in all."""

    def process_bytes(self, gpu: int, pid: int) -> int | None: ...

    def utilization(self, gpu: int) -> float: ...

    def power_w(self, gpu: int) -> float: ...

    def energy_j(self, gpu: int) -> float: ...

    def sm_mhz(self, gpu: int) -> int: ...

    def memory_mhz(self, gpu: int) -> int: ...

    def max_memory_mhz(self, gpu: int) -> int: ...

    def bus_width_bits(self, gpu: int) -> int:
        """Of its memory."""

    def temperature_c(self, gpu: int) -> int: ...

    def throttled(self, gpu: int) -> tuple[str, ...]: ...


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


class _Pynvml:
    """NVML through `pynvml`. One function here is one call there."""

    def __init__(self, pynvml: Any, *, pids_are_ours: bool) -> None:
        self._nvml = pynvml
        self._pids_are_ours = pids_are_ours
        self._handles: dict[int, Any] = {}

    def n_gpus(self) -> int:
        return int(self._translated(lambda: self._nvml.nvmlDeviceGetCount()))

    def name(self, gpu: int) -> str:
        name = self._ask(gpu, "nvmlDeviceGetName")
        return name.decode(errors="replace") if isinstance(name, bytes) else str(name)

    def memory(self, gpu: int) -> tuple[int, int]:
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
        return int(self._ask(gpu, "nvmlDeviceGetMemoryBusWidth"))

    def temperature_c(self, gpu: int) -> int:
        return int(self._ask(gpu, "nvmlDeviceGetTemperature", 0))  # NVML_TEMPERATURE_GPU

    def throttled(self, gpu: int) -> tuple[str, ...]:
        bits = int(self._ask(gpu, "nvmlDeviceGetCurrentClocksThrottleReasons"))
        return tuple(reason for bit, reason in _THROTTLES.items() if bits & bit)

    def _ask(self, gpu: int, function: str, *arguments: int) -> Any:
        def call() -> Any:
            if gpu not in self._handles:
                self._handles[gpu] = self._nvml.nvmlDeviceGetHandleByIndex(gpu)
            return getattr(self._nvml, function)(self._handles[gpu], *arguments)

        return self._translated(call)

    def _translated(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except self._nvml.NVMLError as error:
            raise Unavailable(f"NVML: {error}") from None
        except (
            AttributeError,
            OSError,
            UnicodeError,
        ) as error:  # a binding or a driver that is older than the function
            raise Unavailable(f"NVML: {error}") from None


def open_nvml(marks: Sequence[Path] = (Path("/dev/nvidiactl"), Path("/dev/dxg"))) -> Nvml | NoGpus:
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
        namespace = os.fspath(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return _Pynvml(pynvml, pids_are_ours=namespace == _FIRST_NAMESPACE)


def _or_none(function: Callable[..., _T], *arguments: int) -> _T | None:
    try:
        return function(*arguments)
    except Unavailable:
        return None


class _Gpus:
    """All GPUs of the machine; what never changes is asked once."""

    def __init__(self, nvml: Nvml, pid: int) -> None:
        self._nvml, self._pid = nvml, pid
        self.names = [_or_none(nvml.name, gpu) for gpu in range(nvml.n_gpus())]

    def read(self) -> tuple[GpuReading, ...]:
        return tuple(self._read(gpu, name) for gpu, name in enumerate(self.names))

    def _read(self, gpu: int, name: str | None) -> GpuReading:
        nvml = self._nvml
        used, total = _or_none(nvml.memory, gpu) or (None, None)
        return GpuReading(
            index=gpu,
            name=name,
            total_bytes=total,
            used_bytes=used,
            process_bytes=_or_none(nvml.process_bytes, gpu, self._pid),
            utilization=_or_none(nvml.utilization, gpu),
            power_w=_or_none(nvml.power_w, gpu),
            energy_j=_or_none(nvml.energy_j, gpu),
            sm_mhz=_or_none(nvml.sm_mhz, gpu),
            memory_mhz=_or_none(nvml.memory_mhz, gpu),
            temperature_c=_or_none(nvml.temperature_c, gpu),
            throttled=_or_none(nvml.throttled, gpu),
        )


# -- over time --------------------------------------------------------------------------------------------------------


@dataclass
class _Peak:
    value: float | None = None

    def add(self, value: float | None) -> None:
        if value is not None:
            self.value = value if self.value is None else max(self.value, value)

    @property
    def whole(self) -> int | None:
        return None if self.value is None else int(self.value)


@dataclass
class _Mean:
    """Over time: each value counts for as long as it was the newest, that is since the sample before."""

    sum: float = 0.0
    seconds: float = 0.0

    def add(self, value: float | None, seconds: float) -> None:
        if value is not None:
            self.sum += value * seconds
            self.seconds += seconds

    @property
    def value(self) -> float | None:
        return self.sum / self.seconds if self.seconds else None


@dataclass
class _Growth:
    """Of a counter that only ever grows."""

    first: float | None = None
    last: float | None = None

    def add(self, value: float | None) -> None:
        if value is not None:
            self.first = value if self.first is None else self.first
            self.last = value

    @property
    def value(self) -> float | None:
        return None if self.first is None or self.last is None else max(0.0, self.last - self.first)


@dataclass
class _GpuTally:
    first: GpuReading
    used: _Peak = field(default_factory=_Peak)
    process: _Peak = field(default_factory=_Peak)
    power: _Peak = field(default_factory=_Peak)
    temperature: _Peak = field(default_factory=_Peak)
    utilization: _Mean = field(default_factory=_Mean)
    mean_power: _Mean = field(default_factory=_Mean)
    sm: _Mean = field(default_factory=_Mean)
    memory: _Mean = field(default_factory=_Mean)
    energy: _Growth = field(default_factory=_Growth)
    throttled: dict[str, None] | None = None

    def add(self, reading: GpuReading, seconds: float) -> None:
        self.used.add(reading.used_bytes)
        self.process.add(reading.process_bytes)
        self.power.add(reading.power_w)
        self.temperature.add(reading.temperature_c)
        self.utilization.add(reading.utilization, seconds)
        self.mean_power.add(reading.power_w, seconds)
        self.sm.add(reading.sm_mhz, seconds)
        self.memory.add(reading.memory_mhz, seconds)
        self.energy.add(reading.energy_j)
        if reading.throttled is not None:
            self.throttled = (self.throttled or {}) | dict.fromkeys(reading.throttled)

    def usage(self) -> GpuUsage:
        return GpuUsage(
            index=self.first.index,
            name=self.first.name,
            total_bytes=self.first.total_bytes,
            first_used_bytes=self.first.used_bytes,
            peak_used_bytes=self.used.whole,
            peak_process_bytes=self.process.whole,
            mean_utilization=self.utilization.value,
            mean_power_w=self.mean_power.value,
            peak_power_w=self.power.value,
            energy_j=self.energy.value,
            mean_sm_mhz=self.sm.value,
            mean_memory_mhz=self.memory.value,
            peak_temperature_c=self.temperature.whole,
            throttled=None if self.throttled is None else tuple(self.throttled),
        )


class Sampler:
    """Watches one process until the block is left, from a thread of its own.

        with Sampler(engine.pid, nvml=open_nvml()) as sampler:
            ...
        sampler.summary().peak_rss_bytes

    A sample is taken on entering and on leaving, and every `interval_s` between. When the process ends, the last
    sample of its life stays. Nothing that goes wrong in here reaches the block: `Usage.broke_off` says it.
    """

    def __init__(
        self,
        pid: int,
        *,
        interval_s: float = 0.25,
        nvml: Nvml | NoGpus | None = None,
        reader: Reader | None = None,
        clock: Callable[[], float] = time.perf_counter,
        own_cpu: Callable[[], float] = time.process_time,
        cost_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`own_cpu` tells the CPU time of this process, `cost_clock` that of the thread that asks; both in seconds."""
        self._pid = pid
        self._asked_interval_s = interval_s
        self._reader = reader
        self._nvml = nvml or NoGpus("nobody asked for them")
        self._gpus: _Gpus | None = None
        self._clock, self._own_cpu, self._cost_clock = clock, own_cpu, cost_clock
        self._lock = threading.Lock()  # one sample at a time, and no summary of half a one
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

        self.interval_s = interval_s
        self.ended = False
        self._broke_off: str | None = None
        self._last: Sample | None = None
        self._first_at_s = 0.0
        self._n = 0
        self._cost_s = 0.0
        self._cpu, self._others, self._steal, self._faults = (_Growth() for _ in range(4))
        self._rss, self._record, self._anonymous, self._file, self._shmem, self._swap = (_Peak() for _ in range(6))
        self._tallies: list[_GpuTally] = []

    def __enter__(self) -> Sampler:
        self.sample()
        self._thread = threading.Thread(target=self._watch, name="llmrun-sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2)  # a driver that hangs must not keep us; the thread is a daemon
            if self._thread.is_alive():
                self._broke_off = self._broke_off or "the sampler did not end in time"
                return
        self.sample()

    def now(self) -> Sample | None:
        """The newest sample; None before the first, and for a process that was never there."""
        return self._last

    def summary(self) -> Usage:
        """What was seen so far; also while the sampler runs."""
        if not self._lock.acquire(timeout=2):
            # The thread hangs in the driver. What is there by now is whole: only a sample's end changes it.
            return self._usage()
        try:
            return self._usage()
        finally:
            self._lock.release()

    def sample(self) -> Sample | None:
        """Look once, now, and set the interval by what that cost. None when the process is gone. Raises nothing."""
        return self._sample(self._cost_clock())

    def _sample(self, before: float) -> Sample | None:
        """The same; the cost counts from `before`, on this thread's clock."""
        with self._lock:
            if self.ended or self._broke_off:
                return None
            try:
                taken = self._take()
            except Exception as error:  # noqa: BLE001  # whatever it is, the run that is watched goes on
                self._broke_off = f"{type(error).__name__}: {error}"
                return None
            finally:
                cost = max(0.0, self._cost_clock() - before)
                self._cost_s += cost
                # Of this sample alone, so that one slow look at the driver is forgotten with the next.
                self.interval_s = max(self._asked_interval_s, min(MAX_INTERVAL_S, cost / MAX_SHARE))
            return taken

    def _watch(self) -> None:
        before = self._cost_clock()
        while not self._stop.wait(self.interval_s):
            self._sample(before)  # from before the wait: to wake up is part of the cost
            before = self._cost_clock()
            if self.ended or self._broke_off:
                return

    def _take(self) -> Sample | None:
        if self._reader is None:
            self._reader = open_reader(self._pid)
        if self._gpus is None and not isinstance(self._nvml, NoGpus):
            try:
                self._gpus = _Gpus(self._nvml, self._pid)
            except Unavailable as error:
                self._nvml = NoGpus(str(error))
        process = self._reader.process()
        if process is None:
            self.ended = True
            return None
        at_s, own, machine = self._clock(), self._own_cpu(), self._reader.machine()
        gpus = self._gpus.read() if self._gpus else None
        last = self._last
        seconds = at_s - last.at_s if last else 0.0
        if last is None:
            self._first_at_s = at_s
        known = machine.busy_s is not None and process.cpu_s is not None
        others = machine.busy_s - process.cpu_s - own if known else None  # type: ignore[operator]

        def rate(counter: _Growth, value: float | None) -> float | None:
            before = counter.last
            counter.add(value)
            if value is None or before is None or seconds <= 0:
                return None
            return (
                max(0.0, value - before) / seconds
            )  # the kernel counts in ticks of 10 ms: a difference can be below 0

        taken = Sample(
            at_s=at_s,
            process=process,
            cores=rate(self._cpu, process.cpu_s),
            other_cores=rate(self._others, others),
            steal_cores=rate(self._steal, machine.steal_s),
            gpus=gpus,
        )
        self._faults.add(process.major_faults)
        self._rss.add(process.rss_bytes)
        self._record.add(process.peak_rss_bytes)
        self._anonymous.add(process.anonymous_bytes)
        self._file.add(process.file_bytes)
        self._shmem.add(process.shmem_bytes)
        self._swap.add(process.swap_bytes)
        if gpus is not None:
            if not self._tallies:
                self._tallies = [_GpuTally(each) for each in gpus]
            for tally, each in zip(self._tallies, gpus, strict=True):
                tally.add(each, seconds)
        self._n += 1
        self._last = taken
        return taken

    def _usage(self) -> Usage:
        faults = self._faults.value
        return Usage(
            n_samples=self._n,
            watched_s=self._last.at_s - self._first_at_s if self._last else 0.0,
            peak_rss_bytes=self._record.whole if self._record.value is not None else self._rss.whole,
            peak_anonymous_bytes=self._anonymous.whole,
            peak_file_bytes=self._file.whole,
            peak_shmem_bytes=self._shmem.whole,
            peak_swap_bytes=self._swap.whole,
            major_faults=None if faults is None else int(faults),
            cpu_s=self._cpu.value,
            other_cpu_s=self._others.value,
            steal_s=self._steal.value,
            gpus=tuple(tally.usage() for tally in self._tallies) if self._gpus else None,
            gpus_unknown=self._nvml.reason if isinstance(self._nvml, NoGpus) else None,
            cost_s=self._cost_s,
            interval_s=self.interval_s,
            broke_off=self._broke_off,
        )
