"""How much of the machine other processes took while something was measured."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress

from llmrun.machine.proc import open_reader

MOST_OTHERS = 0.5
"""Cores that others took: from here on what was measured is of little use."""


def own_cpu_s() -> float:
    """Seconds of CPU that this process has used, with all that it has started, whether they run or have ended."""
    import psutil  # 20 ms: what is measured takes seconds

    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            spent += sum(child.cpu_times()[:2])
    return spent


def _machine_busy_s() -> float | None:
    return open_reader(os.getpid()).machine().busy_s


class Others:
    """From now on."""

    def __init__(
        self,
        *,
        busy_s: Callable[[], float | None] = _machine_busy_s,
        own_s: Callable[[], float] = own_cpu_s,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`busy_s`: of the whole machine since it was started, `own_s`: of what is ours, both in seconds of CPU."""
        self._busy_s, self._own_s, self._clock = busy_s, own_s, clock
        self._begin_s, self._before_s = clock(), self._theirs_s()

    def cores(self) -> float | None:
        """That other processes kept busy since then; None where the system does not tell."""
        took_s, now_s = self._clock() - self._begin_s, self._theirs_s()
        if self._before_s is None or now_s is None or took_s <= 0:
            return None
        return max(0.0, now_s - self._before_s) / took_s

    def _theirs_s(self) -> float | None:
        busy_s = self._busy_s()
        return None if busy_s is None else busy_s - self._own_s()
