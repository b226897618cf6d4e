"""What a run takes of the machine: real processes, scripted readings, and a driver that says what it likes."""

from __future__ import annotations

import mmap
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_machine import MIB, Clock, FakeNvml, Scripted
from stepping import child
from waiting import until

from llmrun.engine.interface import Engine
from llmrun.machine.nvml import GpuReading, NoGpus, open_nvml
from llmrun.machine.proc import MachineReading, ProcessReading
from llmrun.machine.sampler import MAX_INTERVAL_S, Sampler

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
_HOLDS_64_MIB = "import sys; own = b'x' * (64 << 20); print(flush=True); sys.stdin.readline()"


def sampler(reader: Scripted, **options: Any) -> Sampler:
    """One without a thread of its own (nobody enters it), whose clocks stand still."""
    options = {"clock": Clock(), "own_cpu": Clock(), "cost_clock": Clock()} | options
    return Sampler(1, open_reader=lambda _: reader, **options)


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
    """0.3 ms of CPU per sample are 0.06 % of 0.5 s: the next waits a second. Cheap again, it is 0.5 s again."""
    cost = Clock(per_look=0.0003)
    watched = sampler(Scripted(), cost_clock=cost)
    for _ in range(3):
        watched.sample()
        assert watched.interval_s == pytest.approx(1.0)
    assert watched.summary().cost_s == pytest.approx(0.0009)
    cost.per_look = 0.00004
    watched.sample()
    assert watched.interval_s == 0.5
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


# -- a process that is replaced ---


def test_the_successor_is_watched() -> None:
    """An engine that is loaded again has another pid: 3 s of the first and 1 s of the second are 4 s."""
    first = Scripted(ProcessReading(cpu_s=10.0, major_faults=100, rss_bytes=7), MachineReading(100.0))
    second = Scripted(ProcessReading(cpu_s=1.0, major_faults=5, rss_bytes=4), MachineReading(105.0))
    pids: list[int | None] = [1]
    clock = Clock()
    watched = Sampler(
        lambda: pids[0],
        open_reader=lambda pid: {1: first, 2: second}[pid],
        clock=clock,
        own_cpu=Clock(),
        cost_clock=Clock(),
    )
    watched.sample()
    first.said, first.machine_said, clock.now = ProcessReading(cpu_s=13.0, major_faults=104), MachineReading(103.0), 1.0
    watched.sample()
    first.said = None
    assert watched.sample() is None and not watched.ended, "it died, and may be replaced"
    pids[0] = None
    assert watched.sample() is None and not watched.ended
    pids[0], clock.now = 2, 3.0
    taken = watched.sample()
    assert taken is not None and taken.process is second.said
    assert (taken.cores, taken.other_cores) == (0.5, 0.5)
    usage = watched.summary()
    assert (usage.cpu_s, usage.major_faults, usage.other_cpu_s) == (4.0, 9, 1.0)
    assert usage.peak_rss_bytes == 7 and usage.watched_s == 3.0 and usage.n_samples == 3


def test_the_successor_of_a_real_process() -> None:
    """The pid is asked before every sample: the second process is seen although the first still runs."""
    with child("import sys; print(flush=True); sys.stdin.readline()") as one, child(_HOLDS_64_MIB) as other:
        processes = [one()]
        watched = Sampler(lambda: processes[-1].pid)
        small = watched.sample()
        processes.append(other())
        large = watched.sample()
    assert small and large and small.process.rss_bytes and large.process.rss_bytes
    assert large.process.rss_bytes - small.process.rss_bytes > 48 * MIB


def test_the_gpu_memory_is_that_of_the_successor() -> None:
    """NVML is asked for the process that is watched now."""
    asked = []

    class Asked(FakeNvml):
        def process_bytes(self, gpu: int, pid: int) -> int | None:
            asked.append(pid)
            return None

    pids = [1]
    watched = Sampler(lambda: pids[0], open_reader=lambda _: Scripted(), nvml=Asked())
    watched.sample()
    pids[0] = 2
    watched.sample()
    assert asked == [1, 1, 2, 2]


# -- what goes wrong ---


def test_a_sampler_that_breaks_takes_nothing_with_it() -> None:
    """An error that nobody foresaw ends the samples, and is told; the block goes on."""

    class Broken(Scripted):
        def machine(self) -> MachineReading:
            raise RuntimeError("no such thing")

    with Sampler(1, open_reader=lambda _: Broken(), interval_s=0.001) as watched:
        went_on = True
    usage = watched.summary()
    assert went_on and usage.broke_off == "RuntimeError: no such thing" and usage.n_samples == 0


def test_an_error_of_the_block_passes() -> None:
    """The sampler hides none."""
    with pytest.raises(KeyError, match="mine"), Sampler(1, open_reader=lambda _: Scripted()):
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
    assert sampler(Scripted()).summary().gpus_unknown == "GPUs were not asked for"
