"""What a run takes of the machine: real processes, /proc trees of our own, and a driver that says what it likes."""

from __future__ import annotations

import mmap
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import until

from llmrun.engine.engine import Engine
from llmrun.machine.sampler import (
    MAX_INTERVAL_S,
    GpuReading,
    MachineReading,
    NoGpus,
    ProcessReading,
    ProcReader,
    PsutilReader,
    Sampler,
    Unavailable,
    _Pynvml,
    open_nvml,
)

MIB = 1 << 20

# Says a line after each step, and waits for one before the next.
_CHILD = """
import mmap, sys
print("begin", flush=True); sys.stdin.readline()
own = bytearray(b"x" * ({n_bytes}))
print("own", flush=True); sys.stdin.readline()
with open({path!r}, "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
sum(mapped[i] for i in range(0, len(mapped), {page}))
print("mapped", flush=True); sys.stdin.readline()
"""


@contextmanager
def child(code: str) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """A Python process; each call lets it take one step and waits until it has."""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    stdin, stdout, steps = process.stdin, process.stdout, iter(range(99))

    def step() -> subprocess.Popen[str]:
        if next(steps):
            stdin.write("\n")
            stdin.flush()
        stdout.readline()
        return process

    try:
        yield step
    finally:
        process.kill()
        process.wait()
        stdin.close()
        stdout.close()


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
class FakeNvml:
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


def sampler(reader: Scripted, **options: Any) -> Sampler:
    """One without a thread of its own (nobody enters it), whose clocks stand still."""
    options = {"clock": Clock(), "own_cpu": Clock(), "cost_clock": Clock()} | options
    return Sampler(1, reader=reader, **options)


# -- real processes ---


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_own_memory_and_mapped_files_are_told_apart(tmp_path: Path) -> None:
    """64 MiB that a process allocates are its own; 32 MiB of a file that it maps are not."""
    file = tmp_path / "weights"
    file.write_bytes(b"w" * (32 * MIB))
    with child(_CHILD.format(n_bytes=64 * MIB, path=str(file), page=mmap.PAGESIZE)) as step:
        watched = Sampler(step().pid)
        readings = []
        for again in (True, True, False):
            taken = watched.sample()
            assert taken is not None
            readings.append(taken.process)
            if again:
                step()
        begin, own, mapped = readings

        def grown(before: ProcessReading, after: ProcessReading, what: str) -> float:
            return float(getattr(after, what) - getattr(before, what)) / MIB

        assert 63 <= grown(begin, own, "anonymous_bytes") <= 67
        assert grown(begin, own, "file_bytes") < 3
        assert 31 <= grown(own, mapped, "file_bytes") <= 35
        assert grown(own, mapped, "anonymous_bytes") < 3
        usage = watched.summary()
        assert usage.peak_anonymous_bytes == max(each.anonymous_bytes or 0 for each in readings)
        assert usage.peak_rss_bytes is not None and usage.peak_rss_bytes >= (mapped.rss_bytes or 0)
        assert usage.n_samples == 3


def test_psutil_sees_the_same_process() -> None:
    """The reader for systems without /proc: memory within 2 MiB, CPU time within 50 ms, and None when it is over."""
    with child("import sys; print(flush=True); sys.stdin.readline()") as step:
        pid = step().pid
        reader = PsutilReader(pid)
        one = reader.process()
        assert one is not None and one.rss_bytes and one.cpu_s is not None
        assert one.anonymous_bytes is None, "unknown is None"
        if sys.platform == "linux":
            other = ProcReader(pid).process()
            assert other is not None and other.rss_bytes and other.cpu_s is not None
            assert abs(one.rss_bytes - other.rss_bytes) < 2 * MIB
            assert abs(one.cpu_s - other.cpu_s) < 0.05
        assert reader.machine().busy_s
    assert reader.process() is None
    assert PsutilReader(pid).process() is None


def test_a_process_that_ends_keeps_its_last_sample() -> None:
    """Killed while it is watched: the sampler ends by itself, and what it saw stays."""
    with child("import sys; print(flush=True); sys.stdin.readline()") as step:
        process = step()
        with Sampler(process.pid, interval_s=0.01) as watched:
            before = watched.now()
            process.kill()
            process.wait()
            until(lambda: watched.ended, "its end")
        assert before is not None and watched.now() is not None
        usage = watched.summary()
        assert usage.n_samples >= 1 and usage.peak_rss_bytes and usage.broke_off is None


def test_a_process_that_never_was() -> None:
    """Nothing to see, and nothing that fails."""
    with child("print(flush=True)") as step:
        process = step()
        process.wait()
    with Sampler(process.pid) as watched:
        assert watched.now() is None
    usage = watched.summary()
    assert usage.n_samples == 0 and usage.peak_rss_bytes is None and usage.cores is None and usage.cost_share is None


def test_the_engine_is_watched_from_the_side(engine: Engine) -> None:
    """A real answer: its process has memory of its own and mapped weights, and used the CPU."""
    with Sampler(engine.pid, interval_s=0.05, nvml=open_nvml()) as watched:
        for _ in engine.generate("Once upon a time"):
            pass
    usage = watched.summary()
    assert usage.n_samples >= 2 and usage.broke_off is None
    assert usage.peak_rss_bytes and usage.peak_rss_bytes > 10 * MIB
    assert usage.cost_s > 0
    assert not [thread for thread in threading.enumerate() if thread.name == "llmrun-sampler"]


# -- /proc trees of our own ---

_STATUS = """Name:\tpython
VmHWM:\t    5000 kB
VmRSS:\t    4000 kB
RssAnon:\t    1000 kB
RssFile:\t    2900 kB
RssShmem:\t     100 kB
VmSwap:\t      12 kB
"""


def a_proc(folder: Path, *, name: str = "python", state: str = "S", began: int = 777) -> Path:
    """pid 42: 300 ticks in programs, 100 in the kernel, 9 major faults."""
    mine = folder / "42"
    mine.mkdir(parents=True, exist_ok=True)
    (mine / "status").write_text(_STATUS)
    (mine / "stat").write_text(f"42 ({name}) {state} 1 1 1 0 -1 0 5 0 9 0 300 100 0 0 20 0 1 0 {began} 0 0\n")
    (folder / "stat").write_text("cpu  1000 200 300 9000 50 6 4 70 500 0\ncpu0 1 1 1\n")
    return folder


def test_proc_is_read_field_by_field(tmp_path: Path) -> None:
    """Kilobytes are 1024 bytes, ticks 10 ms; idle, waiting, stolen and guests' time is nobody's work."""
    reader = ProcReader(42, a_proc(tmp_path), ticks_per_s=100)
    assert reader.process() == ProcessReading(
        rss_bytes=4000 * 1024,
        anonymous_bytes=1000 * 1024,
        file_bytes=2900 * 1024,
        shmem_bytes=100 * 1024,
        peak_rss_bytes=5000 * 1024,
        swap_bytes=12 * 1024,
        cpu_s=4.0,
        major_faults=9,
    )
    machine = reader.machine()
    assert machine.busy_s == pytest.approx(15.1) and machine.steal_s == pytest.approx(0.7)


def test_a_name_with_brackets_moves_no_field(tmp_path: Path) -> None:
    """A program may be called ") Z 1 (": what counts stands behind the last bracket."""
    process = ProcReader(42, a_proc(tmp_path, name=") Z 1 ("), ticks_per_s=100).process()
    assert process is not None and process.cpu_s == 4.0


def test_what_is_missing_or_no_number_is_none(tmp_path: Path) -> None:
    """Old kernels, sandboxes and garbage: unknown, not 0 and no error."""
    proc = a_proc(tmp_path)
    (proc / "42" / "status").write_bytes(b"VmRSS: many kB\nVmHWM:\nRssAnon: -5 kB\n\xff\xfe kB\nVmSwap: 7 pages\n")
    (proc / "42" / "stat").write_text("42 (python) S 1 1\n")
    (proc / "stat").write_text("intr 5 6 7\n")
    reader = ProcReader(42, proc)
    assert reader.process() == ProcessReading()
    assert reader.machine() == MachineReading()
    (proc / "42" / "status").unlink()
    (proc / "stat").unlink()
    assert reader.process() == ProcessReading()
    assert reader.machine() == MachineReading()
    (proc / "stat").write_text("cpu 1 2 3 4 5 6 7\n")
    assert reader.machine().steal_s is None, "a kernel that knows no steal"
    (proc / "42" / "stat").write_text("")
    assert reader.process() is None


def test_the_dead_and_their_numbers(tmp_path: Path) -> None:
    """A zombie is gone, and so is a process whose number belongs to another by now."""
    proc = a_proc(tmp_path)
    reader = ProcReader(42, proc)
    assert reader.process()
    a_proc(tmp_path, began=778)
    assert reader.process() is None
    a_proc(tmp_path, state="Z")
    assert ProcReader(42, proc).process() is None
    assert ProcReader(43, proc).process() is None


# -- arithmetic ---


def test_cores_are_cpu_time_by_wall_time() -> None:
    """In 2 s: the engine 3 s, this process 0.5 s, all together 5.5 s. So others used 2 s: one core."""
    reader, clock, own = Scripted(ProcessReading(cpu_s=10.0), MachineReading(100.0, 1.0)), Clock(), Clock()
    watched = sampler(reader, clock=clock, own_cpu=own)
    first = watched.sample()
    assert first is not None and first.cores is None and first.other_cores is None
    reader.said, reader.machine_said = ProcessReading(cpu_s=13.0), MachineReading(105.5, 1.4)
    clock.now, own.now = 2.0, 0.5
    second = watched.sample()
    assert second is not None
    assert (second.cores, second.other_cores) == (1.5, 1.0)
    assert second.steal_cores == pytest.approx(0.2)
    usage = watched.summary()
    assert (usage.cpu_s, usage.other_cpu_s, usage.cores, usage.other_cores) == (3.0, 2.0, 1.5, 1.0)
    assert usage.steal_s == pytest.approx(0.4) and usage.watched_s == 2.0


def test_ticks_make_nobody_negative() -> None:
    """The machine's ticks can lag behind the engine's: then others used nothing, not less."""
    reader, clock = Scripted(ProcessReading(cpu_s=1.0), MachineReading(10.0)), Clock()
    watched = sampler(reader, clock=clock)
    watched.sample()
    reader.said, clock.now = ProcessReading(cpu_s=1.01), 0.25
    taken = watched.sample()
    assert taken is not None and taken.other_cores == 0.0
    assert watched.summary().other_cpu_s == 0.0
    assert taken.steal_cores is None and watched.summary().steal_cores is None


def test_peaks_are_each_for_itself() -> None:
    """The largest of every figure, whenever it was; faults are counted from the first sample."""
    reader = Scripted(ProcessReading(anonymous_bytes=5, file_bytes=1, swap_bytes=None, rss_bytes=6, major_faults=100))
    watched = sampler(reader)
    watched.sample()
    reader.said = ProcessReading(anonymous_bytes=2, file_bytes=9, swap_bytes=3, rss_bytes=11, major_faults=107)
    watched.sample()
    reader.said = ProcessReading()
    watched.sample()
    usage = watched.summary()
    assert (usage.peak_anonymous_bytes, usage.peak_file_bytes, usage.peak_swap_bytes) == (5, 9, 3)
    assert usage.peak_shmem_bytes is None
    assert usage.peak_rss_bytes == 11 and usage.major_faults == 7 and usage.n_samples == 3
    reader.said = ProcessReading(rss_bytes=11, peak_rss_bytes=40)
    watched.sample()
    assert watched.summary().peak_rss_bytes == 40, "the kernel's own record, where there is one"


def test_the_interval_follows_the_cost() -> None:
    """2 ms of CPU per sample are 0.8 % of 0.25 s: the next waits 0.4 s. Cheap again, it is 0.25 s again."""
    cost = Clock(per_look=0.002)
    watched = sampler(Scripted(), cost_clock=cost)
    for _ in range(3):
        watched.sample()
        assert watched.interval_s == pytest.approx(0.4)
    assert watched.summary().cost_s == pytest.approx(0.006)
    cost.per_look = 0.00004
    watched.sample()
    assert watched.interval_s == 0.25
    cost.per_look = 1.0
    watched.sample()
    assert watched.interval_s == MAX_INTERVAL_S


def test_the_cost_is_part_of_the_figures() -> None:
    """40 µs every 0.25 s: 160 µs in a second, 0.016 % of a core."""
    clock = Clock()
    watched = sampler(Scripted(), clock=clock, cost_clock=Clock(per_look=40e-6))
    for i in range(401):
        clock.now = i * 0.25
        watched.sample()
    assert watched.summary().cost_share == pytest.approx(401 * 40e-6 / 100)


# -- what goes wrong ---


def test_a_sampler_that_breaks_takes_nothing_with_it() -> None:
    """An error that nobody foresaw ends the samples, and is told; the block goes on."""

    class Broken(Scripted):
        def machine(self) -> MachineReading:
            raise RuntimeError("no such thing")

    with Sampler(1, reader=Broken(), interval_s=0.001) as watched:
        went_on = True
    usage = watched.summary()
    assert went_on and usage.broke_off == "RuntimeError: no such thing" and usage.n_samples == 0


def test_an_error_of_the_block_passes() -> None:
    """The sampler hides none."""
    with pytest.raises(KeyError, match="mine"), Sampler(1, reader=Scripted()):
        raise KeyError("mine")


# -- GPUs ---


def test_two_gpus() -> None:
    """Each has its own figures; means are over time, energy is the counter's growth."""
    nvml, clock = FakeNvml(), Clock()
    watched = sampler(Scripted(), nvml=nvml, clock=clock)
    first = watched.sample()
    assert first is not None and first.gpus is not None
    assert first.gpus[1] == GpuReading(1, "Card 1", 8 * MIB, 5 * MIB, None, 0.75, 50.0, 2000.0, 1980, 3201, 41, ())
    clock.now, nvml.power, nvml.energy, nvml.used = 1.0, [200.0, 50.0], [1150.0, 2050.0], [7 * MIB, 5 * MIB]
    nvml.reasons = [("power cap",), ()]
    watched.sample()
    clock.now, nvml.power, nvml.energy = 4.0, [100.0, 50.0], [1500.0, 2200.0]
    nvml.reasons = [("temperature (driver)", "power cap"), ()]
    watched.sample()
    gpus = watched.summary().gpus
    assert gpus is not None and len(gpus) == 2
    one, other = gpus
    assert (one.first_used_bytes, one.peak_used_bytes, one.peak_process_bytes) == (3 * MIB, 7 * MIB, 2 * MIB)
    assert one.mean_power_w == pytest.approx((1 * 200 + 3 * 100) / 4) and one.peak_power_w == 200
    assert one.energy_j == 500 and other.energy_j == 200
    assert one.throttled == ("power cap", "temperature (driver)") and other.throttled == ()
    assert other.peak_process_bytes is None and other.peak_temperature_c == 41


@pytest.mark.parametrize("what", ["memory", "process_bytes", "utilization", "power_w", "energy_j", "name", "throttled"])
def test_what_a_driver_does_not_tell_is_none(what: str) -> None:
    """One function that isn't supported leaves the others as they are."""
    watched = sampler(Scripted(), nvml=FakeNvml(broken=frozenset({what})))
    taken = watched.sample()
    assert taken is not None and taken.gpus is not None
    gpu = taken.gpus[0]
    unknown = {name for name, value in vars(gpu).items() if value is None}
    assert unknown == ({"used_bytes", "total_bytes"} if what == "memory" else {what})
    usage = watched.summary()
    assert usage.broke_off is None and usage.gpus and usage.gpus[0].mean_power_w is None  # one sample is no time


def test_a_driver_that_tells_nothing() -> None:
    """Not even how many GPUs there are: None, and why."""
    watched = sampler(Scripted(), nvml=FakeNvml(broken=frozenset({"n_gpus"})))
    taken = watched.sample()
    assert taken is not None and taken.gpus is None
    usage = watched.summary()
    assert usage.gpus is None and usage.gpus_unknown == "n_gpus: Not Supported" and usage.broke_off is None


def test_a_driver_that_fails_otherwise() -> None:
    """An error that is none of NVML's is a bug: it ends the samples and is told."""
    watched = sampler(Scripted(), nvml=FakeNvml(error=ZeroDivisionError("in the binding")))
    assert watched.sample() is None
    assert watched.summary().broke_off == "ZeroDivisionError: in the binding"


def test_no_driver(tmp_path: Path) -> None:
    """Without its devices the library is not even imported; the summary says why there are no GPUs."""
    there = open_nvml(marks=[tmp_path / "nvidiactl"])
    assert there == NoGpus("there is no NVIDIA driver")
    watched = sampler(Scripted(), nvml=there)
    watched.sample()
    assert watched.summary().gpus is None and watched.summary().gpus_unknown == "there is no NVIDIA driver"
    assert sampler(Scripted()).summary().gpus_unknown == "nobody asked for them"


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
    nvml = _Pynvml(Library(), pids_are_ours=True)
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
    nvml = _Pynvml(library, pids_are_ours=True)
    assert nvml.process_bytes(0, 42) is None
    library.running = [SimpleNamespace(pid=41, usedGpuMemory=1), SimpleNamespace(pid=42, usedGpuMemory=900)]
    library.drawing = [SimpleNamespace(pid=42, usedGpuMemory=900)]
    assert nvml.process_bytes(0, 42) == 900
    library.running = library.drawing = [SimpleNamespace(pid=42, usedGpuMemory=None)]
    assert nvml.process_bytes(0, 42) is None
    with pytest.raises(Unavailable, match="container"):
        _Pynvml(library, pids_are_ours=False).process_bytes(0, 42)
