"""How a test waits: for an event, never for a time.

A machine may be busy, slow, or faster than ours. What a test waits for can be seen from outside (a line that was said,
a file, a process that is gone, work that was done), and the limit is there only to end a test that would hang.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TypeVar

import psutil

HANGS_S = 300.0
"""Nothing that a test waits for takes so long, however busy the machine: whoever reaches this hangs."""

MOST_WORK = 1000
"""Loops of a million steps: what needs a hundred at most would need millions, if its time grew with the square."""

Found = TypeVar("Found")


@cache
def _loop_cpu_s() -> float:
    """CPU time of a loop of a million steps on this machine: the slowest of five."""

    def once() -> float:
        begin_s = time.process_time()
        for _ in range(1_000_000):
            pass
        return time.process_time() - begin_s

    return max(once() for _ in range(5))


@contextmanager
def little_work() -> Iterator[None]:
    """Fails where what is done inside is far more work than it should be: measured by other work, of this process on
    this machine, not by a clock."""
    begin_s = time.process_time()
    yield
    loops = (time.process_time() - begin_s) / _loop_cpu_s()
    assert loops < MOST_WORK, f"as much work as {loops:.0f} million steps of a loop"


def until(happened: Callable[[], Found], what: str = "it") -> Found:
    """Look until `happened()` is true; returns what it says."""
    deadline = time.monotonic() + HANGS_S
    while not (found := happened()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.005)
    return found


def until_gone(*pids: int) -> None:
    """Until no such process runs any more. Whoever adopts them may take its time to bury them."""

    def alive() -> Iterable[int]:
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    yield pid

    until(lambda: not [*alive()], f"the end of {pids}")


def until_worked(pid: int, cpu_s: float) -> None:
    """Until a process has used so much of the CPU: by then it is past what takes less."""

    def used() -> float:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)

    until(lambda: used() >= cpu_s, f"{cpu_s} s of work")


def until_it_sleeps(pid: int, *, children: bool = False) -> None:
    """Until a process, and its children, wait for somebody else: who only has no CPU is not asleep, but runnable."""
    process = psutil.Process(pid)
    n_asleep = 0

    def asleep() -> bool:
        nonlocal n_asleep
        family = [process, *(process.children(recursive=True) if children else ())]
        n_asleep = n_asleep + 1 if {each.status() for each in family} == {psutil.STATUS_SLEEPING} else 0
        return n_asleep >= 40

    until(asleep, "its waiting")


def children_of(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def until_it_has_a_child(pid: int) -> int:
    """Until a process has one that runs a program of its own; returns the first."""

    def found() -> int | None:
        for child in psutil.Process(pid).children():
            with suppress(psutil.Error):  # until its exec it is a copy of its parent
                if child.cmdline() != psutil.Process(pid).cmdline():
                    return int(child.pid)
        return None

    return int(until(found, "a child") or 0)
