"""The kernel's files: trees made for the test, and real processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from stepping import child

from llmrun.machine.proc import MachineReading, Proc, ProcessReading, ProcReader, PsutilReader

MIB = 1 << 20


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


def test_memory_without_the_rest(tmp_path: Path) -> None:
    """Of another process by its id, of this one without; nothing is known of one that is not there."""
    proc = Proc(a_proc(tmp_path), ticks_per_s=100)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text("VmSize: 9000 kB\nRssAnon: 3 kB\n")
    assert proc.memory(42).anonymous_bytes == 1000 * 1024
    assert proc.memory() == ProcessReading(anonymous_bytes=3 * 1024, address_space_bytes=9000 * 1024)
    assert proc.memory(43) == ProcessReading()
    assert proc.cpu_s(42) == 4.0 and proc.cpu_s(43) is None


def test_ticks_of_each_cpu(tmp_path: Path) -> None:
    """Waiting for the disk is having nothing to do, time of guests is in user already; the sum of all is no CPU."""
    (tmp_path / "stat").write_text(
        "cpu  1 2 3 4 5\ncpu0 40 0 0 50 10 0 0 0 40 0\ncpu12 50 0 0 0 0 0 0 50 0 0\ncpux 1\n"
    )
    assert Proc(tmp_path).cpu_ticks() == {0: (100, 60), 12: (100, 0)}
    assert Proc(tmp_path / "nowhere").cpu_ticks() == {}


def test_memory_and_kills_of_the_machine(tmp_path: Path) -> None:
    """Bytes by name, and a count; None and nothing where the kernel has neither."""
    (tmp_path / "meminfo").write_text("MemTotal:  16 kB\nHugePages_Total:  3\nMemAvailable:  8 kB\n")
    (tmp_path / "vmstat").write_text("nr_free_pages 1\noom_kill 12\n")
    proc = Proc(tmp_path)
    assert proc.meminfo() == {"MemTotal": 16 << 10, "MemAvailable": 8 << 10}
    assert proc.oom_kills() == 12
    assert Proc(tmp_path / "nowhere").meminfo() == {} and Proc(tmp_path / "nowhere").oom_kills() is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_this_process() -> None:
    """The real files: every figure that is used is there."""
    proc = Proc()
    mine = proc.memory()
    assert mine.anonymous_bytes and mine.rss_bytes and mine.address_space_bytes
    assert mine.anonymous_bytes <= mine.rss_bytes <= mine.address_space_bytes
    assert (proc.meminfo().get("MemTotal") or 0) > 0 and proc.cpu_ticks()
