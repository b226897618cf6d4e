"""What a run takes of the machine, sampled from the side: memory, CPU time, page faults, GPUs.

A thread of the parent looks at the engine's process a few times a second and never talks to it:

    /proc/PID/status ─► memory: its own, of mapped files, swapped      ┐
    /proc/PID/stat   ─► CPU time, page faults that went to the disk    ├─► Sample ─► Usage (peaks, means)
    /proc/stat       ─► CPU time of everybody else, and steal          │
    NVML             ─► per GPU: memory, power, clocks, throttling     ┘

Two figures tell why a run is slow that the run itself can't see. **Major faults**: a mapped model that does not fit
RAM is read from the disk again for every token. **Others' cores**: a machine that is shared measures its neighbours.

A sample costs CPU time on the machine that it measures. That time is measured as well (`Usage.cost_s`), and the
interval grows until it is at most 0.03 % of one core. What can't be known is None, never 0.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from llmrun.machine.nvml import GpuReading, Gpus, NoGpus, Nvml, Unavailable
from llmrun.machine.proc import ProcessReading, Reader, open_reader

MAX_SHARE = 0.0003
"""Of one core, that sampling may take."""
MAX_INTERVAL_S = 10.0


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


# -- over time --------------------------------------------------------------------------------------------------------


@dataclass
class _Figure:
    """One figure over time. What is not known changes nothing."""

    first: float | None = None
    last: float | None = None
    peak: Any = None  # of ints an int
    _sum: float = 0.0
    _seconds: float = 0.0

    def add(self, value: float | None, seconds: float = 0.0) -> None:
        """A value counts in the mean for as long as it was the newest, that is since the sample before."""
        if value is not None:
            self.first = value if self.first is None else self.first
            self.last, self.peak = value, value if self.peak is None else max(self.peak, value)
            self._sum, self._seconds = self._sum + value * seconds, self._seconds + seconds

    @property
    def mean(self) -> float | None:
        return self._sum / self._seconds if self._seconds else None

    @property
    def growth(self) -> float | None:
        """Of a counter that only ever grows."""
        return None if self.first is None or self.last is None else max(0.0, self.last - self.first)


class _Figures(defaultdict[str, _Figure]):
    """Those of a process or a GPU, by the name that its reading has for them."""

    def __init__(self) -> None:
        super().__init__(_Figure)

    def add(self, reading: object, names: Iterable[str], seconds: float) -> None:
        for name in names:
            self[name].add(getattr(reading, name), seconds)


_OF_A_PROCESS = ("anonymous_bytes", "file_bytes", "shmem_bytes", "swap_bytes", "rss_bytes", "peak_rss_bytes")
_OF_A_GPU = "used_bytes process_bytes utilization power_w energy_j sm_mhz memory_mhz temperature_c".split()


class _GpuTally:
    def __init__(self, first: GpuReading) -> None:
        self.first, self.figures = first, _Figures()
        self.throttled: dict[str, None] | None = None

    def add(self, reading: GpuReading, seconds: float) -> None:
        self.figures.add(reading, _OF_A_GPU, seconds)
        if reading.throttled is not None:
            self.throttled = (self.throttled or {}) | dict.fromkeys(reading.throttled)

    def usage(self) -> GpuUsage:
        first, figures = self.first, self.figures
        return GpuUsage(
            index=first.index,
            name=first.name,
            total_bytes=first.total_bytes,
            first_used_bytes=first.used_bytes,
            peak_used_bytes=figures["used_bytes"].peak,
            peak_process_bytes=figures["process_bytes"].peak,
            mean_utilization=figures["utilization"].mean,
            mean_power_w=figures["power_w"].mean,
            peak_power_w=figures["power_w"].peak,
            energy_j=figures["energy_j"].growth,
            mean_sm_mhz=figures["sm_mhz"].mean,
            mean_memory_mhz=figures["memory_mhz"].mean,
            peak_temperature_c=figures["temperature_c"].peak,
            throttled=None if self.throttled is None else tuple(self.throttled),
        )


def _sum(value: float | None, more: float) -> float | None:
    return None if value is None else value + more


class Sampler:
    """Watches one process until the block is left, from a thread of its own.

        with Sampler(lambda: engine.pid, nvml=open_nvml()) as sampler:
            ...
        sampler.summary().peak_rss_bytes

    A sample is taken on entering and on leaving, and every `interval_s` between. When the process ends, the last
    sample of its life stays. Nothing that goes wrong in here reaches the block: `Usage.broke_off` says it.

    A process that can be replaced by another, as the engine's is when its model is loaded again, is given by a
    function. Its successor is watched from the next sample on, from its beginning: CPU time and page faults are
    those of both, peaks are the larger ones. What the first one did after its last sample is not counted as its own.
    """

    def __init__(
        self,
        pid: int | Callable[[], int | None],
        *,
        interval_s: float = 0.5,
        nvml: Nvml | None = None,
        open_reader: Callable[[int], Reader] = open_reader,
        clock: Callable[[], float] = time.perf_counter,
        own_cpu: Callable[[], float] = time.process_time,
        cost_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`own_cpu` tells the CPU time of this process, `cost_clock` that of the thread that asks; both in seconds.

        `pid` may be a function, which is asked before every sample; None: there is no such process just now.
        """
        self._find_pid = pid if callable(pid) else lambda: pid
        self._may_be_replaced = callable(pid)
        self._asked_interval_s = interval_s
        self._open_reader = open_reader
        self._pid: int | None = None
        self._reader: Reader | None = None
        self._nvml = nvml or NoGpus("GPUs were not asked for")
        self._gpus: Gpus | None = None
        self._gpus_unknown = self._nvml.reason if isinstance(self._nvml, NoGpus) else None
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
        self._cpu, self._others, self._steal, self._faults = (_Figure() for _ in range(4))
        self._cpu_before, self._faults_before = 0.0, 0  # of the processes that the one watched now has replaced
        self._figures = _Figures()
        self._tallies: list[_GpuTally] = []

    def __enter__(self) -> Sampler:
        self.sample()
        self._thread = threading.Thread(target=self._watch, name="llmrun-sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
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
        process = self._read_process()
        if process is None or self._reader is None or self._pid is None:
            self.ended = not self._may_be_replaced
            return None
        at_s, own, machine = self._clock(), self._own_cpu(), self._reader.machine()
        gpus = self._read_gpus(self._pid)
        last = self._last
        seconds = at_s - last.at_s if last else 0.0
        if last is None:
            self._first_at_s = at_s
        cpu_s = _sum(process.cpu_s, self._cpu_before)
        known = machine.busy_s is not None and cpu_s is not None
        others = machine.busy_s - cpu_s - own if known else None  # type: ignore[operator]

        def rate(counter: _Figure, value: float | None) -> float | None:
            before = counter.last
            counter.add(value)
            if value is None or before is None or seconds <= 0:
                return None
            # The kernel counts in ticks of 10 ms: a difference can be below 0.
            return max(0.0, value - before) / seconds

        taken = Sample(
            at_s=at_s,
            process=process,
            cores=rate(self._cpu, cpu_s),
            other_cores=rate(self._others, others),
            steal_cores=rate(self._steal, machine.steal_s),
            gpus=gpus,
        )
        self._faults.add(_sum(process.major_faults, self._faults_before))
        self._figures.add(process, _OF_A_PROCESS, seconds)
        if gpus is not None:
            self._tallies = self._tallies or [_GpuTally(each) for each in gpus]
            for tally, each in zip(self._tallies, gpus, strict=True):
                tally.add(each, seconds)
        self._n += 1
        self._last = taken
        return taken

    def _read_process(self) -> ProcessReading | None:
        pid = self._find_pid()
        if pid is None:
            return None
        if pid != self._pid or self._reader is None:
            self._pid, self._reader = pid, self._open_reader(pid)
            self._cpu_before = self._cpu.last or 0.0
            self._faults_before = int(self._faults.last or 0)
        return self._reader.process()

    def _read_gpus(self, pid: int) -> tuple[GpuReading, ...] | None:
        if self._gpus is None and self._gpus_unknown is None:
            try:
                self._gpus = Gpus(self._nvml)
            except Unavailable as error:
                self._gpus_unknown = str(error)
        return self._gpus.read(pid) if self._gpus else None

    def _usage(self) -> Usage:
        faults = self._faults.growth
        peaks = {name: self._figures[name].peak for name in _OF_A_PROCESS}
        return Usage(
            n_samples=self._n,
            watched_s=self._last.at_s - self._first_at_s if self._last else 0.0,
            peak_rss_bytes=peaks["rss_bytes"] if peaks["peak_rss_bytes"] is None else peaks["peak_rss_bytes"],
            peak_anonymous_bytes=peaks["anonymous_bytes"],
            peak_file_bytes=peaks["file_bytes"],
            peak_shmem_bytes=peaks["shmem_bytes"],
            peak_swap_bytes=peaks["swap_bytes"],
            major_faults=None if faults is None else int(faults),
            cpu_s=self._cpu.growth,
            other_cpu_s=self._others.growth,
            steal_s=self._steal.growth,
            gpus=tuple(tally.usage() for tally in self._tallies) if self._gpus else None,
            gpus_unknown=self._gpus_unknown,
            cost_s=self._cost_s,
            interval_s=self.interval_s,
            broke_off=self._broke_off,
        )
