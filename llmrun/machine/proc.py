"""What the kernel tells in files: /proc of one process and of the machine. The only reader of them.

    /proc/PID/status ─► memory: its own, of mapped files, swapped
    /proc/PID/stat   ─► CPU time, page faults that went to the disk
    /proc/PID/task   ─► how long its threads waited for a core
    /proc/stat       ─► CPU time of the whole machine, and of each CPU
    /proc/meminfo    ─► RAM and swap
    /proc/vmstat     ─► how often the kernel has killed a process for memory

What the system does not tell is None. Systems without /proc (macOS) tell nothing here; what is watched over time
is asked of psutil there (`open_reader`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

ROOT = Path("/proc")

CpuTicks = Mapping[int, tuple[int, int]]
"""CPU → all its ticks since the machine started, and of them those in which it had nothing to do."""


def text_of(path: Path) -> str:
    """What a file says, the kernel's for the most part; empty where there is none, or it can't be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def line_of(path: Path) -> str:
    return text_of(path).strip()


# -- readings ---------------------------------------------------------------------------------------------------------


class ProcessReading(NamedTuple):
    """One process at one moment. None: the system doesn't tell.

    Attributes:
        rss_bytes: resident memory; where its parts are known, their sum.
        anonymous_bytes: of it, what is the process's own: buffers, KV cache, repacked weights.
        file_bytes: of it, pages of mapped files: weights as they lie in the file. Other processes can share them.
        shmem_bytes: of it, shared memory without a file, as drivers use it.
        peak_rss_bytes: the most that was ever resident, since the process began.
        swap_bytes: of its own memory, what lies in swap.
        address_space_bytes: everything that is mapped, resident or not: what `ulimit -v` limits.
        cpu_s: CPU time of all its threads since it began.
        major_faults: since it began, pages that had to be read from the disk.
    """

    rss_bytes: int | None = None
    anonymous_bytes: int | None = None
    file_bytes: int | None = None
    shmem_bytes: int | None = None
    peak_rss_bytes: int | None = None
    swap_bytes: int | None = None
    address_space_bytes: int | None = None
    cpu_s: float | None = None
    major_faults: int | None = None


class MachineReading(NamedTuple):
    """CPU time of the whole machine since it started, all cores together.

    Attributes:
        busy_s: spent in programs and the kernel, whoever they ran for.
        steal_s: this virtual machine wanted to run, and the host ran another.
    """

    busy_s: float | None = None
    steal_s: float | None = None


# -- /proc ------------------------------------------------------------------------------------------------------------


class Proc:
    """The files below `root`. Every method looks anew; none raises."""

    def __init__(self, root: Path = ROOT, *, ticks_per_s: int | None = None) -> None:
        self._root = os.fspath(root)
        self._tick_s = 1 / (ticks_per_s or os.sysconf("SC_CLK_TCK"))

    def memory(self, pid: int | str = "self") -> ProcessReading:
        """Of this process, or of another one, its memory alone; all None where there is no such process."""
        # `smaps_rollup` would walk every page of a mapped model.
        lines = _kib_lines(_first_read(f"{self._root}/{pid}/status") or "")
        return ProcessReading(*map(lines.get, _MEMORY_LINES))

    def cpu_s(self, pid: int) -> float | None:
        """CPU time of all threads of a process since it began; None where there is no such process."""
        return self._cpu_s(self.stat(pid))

    def stat(self, pid: int) -> list[str]:
        """Fields of /proc/PID/stat from the third on, the state; empty where there is no such process."""
        # The name stands in brackets, and may hold blanks and brackets itself.
        return (_first_read(f"{self._root}/{pid}/stat") or "").rpartition(")")[2].split()

    def process(self, pid: int, stat: Sequence[str] | None = None) -> ProcessReading | None:
        """None where there is no such process, or it is dead. `stat`: its fields, where they were read already."""
        fields = self.stat(pid) if stat is None else stat
        if not fields or fields[0] in ("Z", "X"):  # gone, or dead and waiting for its parent to notice
            return None
        return self.memory(pid)._replace(cpu_s=self._cpu_s(fields), major_faults=_number(_at(fields, 9)))

    def machine(self) -> MachineReading:
        name, *fields = (_first_read(f"{self._root}/stat") or "").partition("\n")[0].split() or [""]
        ticks = [_number(each) for each in fields]
        if name != "cpu" or len(ticks) < 7 or None in ticks:
            return MachineReading()
        user, nice, system, _idle, _iowait, irq, softirq, *rest = (n for n in ticks if n is not None)
        # Time of guests, which stands behind steal, is in user and nice already.
        busy = user + nice + system + irq + softirq
        return MachineReading(busy * self._tick_s, rest[0] * self._tick_s if rest else None)

    def cpu_ticks(self) -> CpuTicks:
        """Empty where the system doesn't tell."""
        found = {}
        for line in text_of(Path(self._root, "stat")).splitlines():
            name, *fields = line.split() or [""]
            cpu = _number(name.removeprefix("cpu"))
            # user nice system idle iowait irq softirq steal; time of guests is in user already
            ticks = [n for n in map(_number, fields[:8]) if n is not None]
            if name.startswith("cpu") and cpu is not None and len(ticks) > 4:
                found[cpu] = (sum(ticks), ticks[3] + ticks[4])
        return found

    def thread_waits(self, pid: int | str = "self") -> dict[str, int]:
        """Thread → nanoseconds for which it could have run and had no core; empty where the system doesn't tell."""
        found, tasks = {}, f"{self._root}/{pid}/task"
        with suppress(OSError), os.scandir(tasks) as threads:
            for thread in threads:
                waited = _number(_at((_first_read(f"{thread.path}/schedstat") or "").split(), 1))
                if waited is not None:
                    found[thread.name] = waited
        return found

    def meminfo(self) -> dict[str, int]:
        """Bytes by name: "MemTotal", "MemAvailable", "SwapFree"…; empty where the system doesn't tell."""
        return _kib_lines(text_of(Path(self._root, "meminfo")))

    def oom_kills(self) -> int | None:
        """How often the kernel has killed a process for memory since it was started."""
        lines = text_of(Path(self._root, "vmstat")).splitlines()
        return next((_number(line[9:].strip()) for line in lines if line.startswith("oom_kill ")), None)

    def _cpu_s(self, stat: Sequence[str]) -> float | None:
        user, system = _number(_at(stat, 11)), _number(_at(stat, 12))
        return None if user is None or system is None else (user + system) * self._tick_s


_MEMORY_LINES = ("VmRSS", "RssAnon", "RssFile", "RssShmem", "VmHWM", "VmSwap", "VmSize")
"""Of /proc/PID/status, for the first fields of `ProcessReading`."""


def _first_read(path: str) -> str | None:
    """What one read of a file yields, the first page at least; None where there is no such file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(file, 1 << 14).decode(errors="replace")
    except OSError:  # the process ended between the two calls
        return None
    finally:
        os.close(file)


def _kib_lines(text: str) -> dict[str, int]:
    """Lines such as "VmRSS:     1676 kB", as bytes; the others are left out."""
    return {name: int(n) * 1024 for name, n in re.findall(r"^([^:\n]*):\s*([0-9]+) kB$", text, re.MULTILINE)}


def _at(fields: Sequence[str], index: int) -> str | None:
    return fields[index] if index < len(fields) else None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


# -- one process over time --------------------------------------------------------------------------------------------


class Reader(Protocol):
    """Where a process and the machine are looked at again and again. A process that is no more is None."""

    def process(self) -> ProcessReading | None: ...

    def machine(self) -> MachineReading: ...


class ProcReader:
    """Linux: three small files of /proc, 15 µs together."""

    def __init__(self, pid: int, root: Path = ROOT, *, ticks_per_s: int | None = None) -> None:
        self._proc, self._pid = Proc(root, ticks_per_s=ticks_per_s), pid
        self._began: str | None = None

    def process(self) -> ProcessReading | None:
        stat = self._proc.stat(self._pid)
        began = _at(stat, 19)
        if self._began is None:
            self._began = began
        elif began != self._began:  # another process has got its number
            return None
        return self._proc.process(self._pid, stat)

    def machine(self) -> MachineReading:
        return self._proc.machine()


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
