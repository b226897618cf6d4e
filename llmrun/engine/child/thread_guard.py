"""How many threads decode, when others want the cores as well. Pure, but for what asks the system at the end: step
times go in, a number of threads comes out.

The threads of a step wait for each other some hundreds of times. One that another process keeps from its core holds up
all of them, and decoding becomes several times slower than with a thread less. So where steps take longer than usual,
fewer threads are tried for a few steps, and kept where they are faster: than as many as before are once more, unless
it is plain that other processes take the cores, since what disturbed for a moment is over by then. More are tried again
where a core is idle, more seldom each time that it does not pay.
"""

from __future__ import annotations

import math
import resource
import time
from collections import deque
from collections.abc import Callable, Sequence

from llmrun.machine.hardware import usable_cpus
from llmrun.machine.proc import Proc

SLOW = 1.5
"""Times the usual: from here on a step is disturbed."""
PREEMPTED_PER_S, PREEMPTED_ONCE = 100, 1
"""Times a second that threads lose their core to others: from here on a step is disturbed. A process that computes
beside them takes it every few milliseconds; whoever reads the tokens, once for each."""
WAITED = 0.1
"""Of the time: for so much of it, at least, a thread waits for its core beside a process that computes; half of it,
mostly. Who wakes up often and does next to nothing, as daemons of the kernel do, takes the core as often and costs next
to nothing: 150 times a second and 3 % of the time have been seen on a machine that was idle otherwise."""
KEPT = 0.3
"""Of the time: a thread that waits for so much of it is kept from its core, however seldom it loses it: beside four
processes that compute, each has it for long."""
_ASK_S, _LEAST_WAIT_S = 0.25, 0.015
"""How long threads waited is asked so often; less in all is chance. It takes 35 µs, in which the other threads fall
asleep: asked every 50 ms, decoding is 3 % slower (0.6 B, two threads)."""
_WINDOW, _LEAST, _LEAST_KEPT = 8, 4, 2
_TRIAL, _SEEN_AGAIN = 7, 3
_GAIN = 0.95
"""Fewer threads must take at most so much of the time; more of them, no more time."""
_HOPELESS = 1.5
"""A trial ends with a step that takes so many times what steps took before it."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_UP_PAUSE_S = 2.0
_DRIFT = 1.002
"""What the usual may grow by from step to step: attention takes longer with every token."""


def is_disturbed(seconds: float, n_preempted: float) -> bool:
    """Whether threads lost their core to others more often in that time than whoever reads the tokens causes."""
    return n_preempted > max(PREEMPTED_ONCE, PREEMPTED_PER_S * seconds)


def is_surely_disturbed(seconds: float, n_preempted: float) -> bool:
    """The same, and beyond what chance makes of that rate: by two standard deviations of a Poisson distribution."""
    usual = PREEMPTED_PER_S * seconds
    return n_preempted > PREEMPTED_ONCE + usual + 2 * math.sqrt(usual)


def ladder(n_threads: int) -> list[int]:
    """Numbers of threads from most to fewest: one less, then a quarter, a half and three quarters less, then one."""
    n = n_threads
    return sorted({n, max(1, n - 1), max(1, 3 * n // 4), max(1, n // 2), max(1, n // 4), 1}, reverse=True)


class ThreadGuard:
    """Ask `after` once for every step.

    Attributes:
        n_threads: for the next step.
    """

    def __init__(self, n_threads: int) -> None:
        self._rungs = ladder(n_threads)
        self._rung = 0
        self._usual_s: float | None = None  # of a step with all threads
        self._recent: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._since_s = 0.0
        self._down_pause_s, self._up_pause_s = 0.0, _UP_PAUSE_S
        self._reach = 1  # rungs that the next trial goes down: one less is no gain where several cores are taken
        self._from: int | None = None  # while another rung is tried: the one before
        self._before_s = 0.0
        self._is_sure = False  # it is others who disturb, and not the host: that is not over by the end of a trial
        self._fewer: tuple[int, float] | None = None  # that rung seems to be the faster one: seconds of its steps
        self._seen: list[float] = []
        self.n_threads = n_threads

    def begin_with_fewer(self) -> None:
        """Others want the cores already: begin one rung lower, without a trial. Of no effect where there are fewer."""
        if self._rung == 0 and self._from is None and len(self._rungs) > 1:
            self._rung, self._since_s = 1, 0.0
            self._recent.clear()
            self.n_threads = self._rungs[1]

    def after(
        self,
        step_s: float,
        n_preempted: float = 0,
        has_idle_core: Callable[[], bool] = lambda: True,
        *,
        n_steps: int = 1,
    ) -> int:
        """Threads for the next step, after `n_steps` that took so long each, and in which threads lost their core so
        often; infinitely often: they are kept from it.

        `has_idle_core` is asked before more threads are tried.
        """
        if self._from is not None:
            self._judge(step_s)
        else:
            self._since_s += n_steps * step_s
            self._watch(step_s, n_preempted, has_idle_core)
        self.n_threads = self._rungs[self._rung]
        return self.n_threads

    def _watch(self, step_s: float, n_preempted: float, has_idle_core: Callable[[], bool]) -> None:
        recent = self._recent
        recent.append((step_s, n_preempted))
        times = [each for each, _ in recent]
        # Half of the steps may be disturbed before the usual is: it is what the faster ones take.
        if self._rung == 0 and len(recent) == _WINDOW:
            usual_s = sorted(times)[_WINDOW // 4]
            self._usual_s = usual_s if self._usual_s is None else min(self._usual_s * _DRIFT, usual_s)
        if len(recent) < (_LEAST if n_preempted < math.inf else _LEAST_KEPT):
            return
        slow_s = SLOW * self._undisturbed_s()
        disturbed = sum(each > slow_s or is_disturbed(each, n) for each, n in recent)
        mean_s = sum(times) / len(times)
        if self._rung + 1 < len(self._rungs) and 2 * disturbed > len(recent) and self._since_s >= self._down_pause_s:
            self._try(min(self._rung + self._reach, len(self._rungs) - 1), mean_s)
        elif self._rung > 0 and self._since_s >= self._up_pause_s:
            if has_idle_core():
                self._try(self._rung - 1, mean_s)
            else:
                self._since_s = 0.0

    def _undisturbed_s(self) -> float:
        """Of a step on this rung, at most: with half the threads it takes twice as long, or less."""
        return math.inf if self._usual_s is None else self._usual_s * self._rungs[0] / self._rungs[self._rung]

    def _try(self, rung: int, mean_s: float) -> None:
        self._is_sure = is_surely_disturbed(sum(each for each, _ in self._recent), sum(n for _, n in self._recent))
        self._from, self._rung, self._before_s, self._seen, self._fewer = self._rung, rung, mean_s, [], None

    def _judge(self, step_s: float) -> None:
        self._seen.append(step_s)
        timed = self._seen[1:]  # the first one after a change is a step of neither
        is_hopeless = len(timed) > 0 and step_s > _HOPELESS * self._before_s
        if len(self._seen) < _TRIAL and not is_hopeless and not self._is_slow_again(timed):
            return
        assert self._from is not None
        mean_s = sum(timed) / len(timed)
        if self._fewer is not None:
            fewer, fewer_s = self._fewer
            self._settle(fewer, paid=fewer_s <= _GAIN * mean_s)
        elif self._rung < self._from:
            self._settle(self._rung, paid=mean_s <= self._before_s and not is_hopeless)
        elif mean_s > _GAIN * self._before_s or is_hopeless:
            self._settle(self._rung, paid=False)
        elif self._is_sure:
            self._settle(self._rung, paid=True)
        else:
            self._fewer, self._before_s, self._seen = (self._rung, mean_s), mean_s, []
            self._rung = self._from

    def _is_slow_again(self, timed: Sequence[float]) -> bool:
        """Whether as many threads as before are all too plainly as slow as they were."""
        return self._fewer is not None and len(timed) >= _SEEN_AGAIN and self._fewer[1] <= _GAIN * min(timed)

    def _settle(self, tried: int, *, paid: bool) -> None:
        """The end of a trial of that rung."""
        assert self._from is not None
        fewer = tried > self._from
        if paid:
            self._rung = tried
            self._reach, self._down_pause_s = 1, 0.0
            # One rung up that pays is followed by the next at once; after one down, the way back has time.
            self._up_pause_s = _UP_PAUSE_S if fewer else 0.0
        else:
            self._rung = self._from
            if not fewer:
                self._up_pause_s = min(2 * self._up_pause_s, _LONGEST_PAUSE_S)
            elif tried == len(self._rungs) - 1:
                self._reach, self._down_pause_s = 1, min(max(_FIRST_PAUSE_S, 2 * self._down_pause_s), _LONGEST_PAUSE_S)
            else:
                self._reach += 1
        self._from, self._since_s = None, 0.0
        self._recent.clear()


_TOGETHER_S = 0.002
"""Steps are told to the guard when they have taken so long: asking for each is a twentieth of a small model's step."""
_IDLE = 0.6
"""Of a core: so much of it must have been idle for it to be free."""
SPLIT_TOKENS = 512
"""From so many tokens of context on, ggml's CPU code splits the attention of one token over its threads."""


class GuardedThreads:
    """The threads of a context: as many as a guard says, where it may.

    Attributes:
        set_threads: of the context.
        changes: (token, threads) of the answer that is made: from that token on, so many.
    """

    def __init__(
        self,
        n_threads: int,
        set_threads: Callable[[int], None],
        *,
        on: bool,
        preemptions: Callable[[], int] = lambda: 0,
        waited: Callable[[], float | None] = lambda: None,
        has_idle_core: Callable[[], bool] = lambda: True,
    ) -> None:
        """`preemptions`: how often threads of this process have lost their core to others so far. `waited`: of the time
        since it was asked last, the share for which the unluckiest of them had none; None: the system does not tell.
        `has_idle_core`: whether any core was idle for most of that time."""
        self._all = self._now = n_threads
        self.set_threads = set_threads
        self._guard = ThreadGuard(n_threads) if on and n_threads > 1 else None
        self._is_free = False
        self._preemptions, self._n_before, self._waited = preemptions, 0, waited
        self._has_idle_core = has_idle_core
        self._n_untold, self._untold_s = 0, 0.0  # steps that the guard does not know of yet
        self._unasked_s, self._are_kept = 0.0, False  # since it was asked how long threads waited; what that told
        self.changes: list[tuple[int, int]] = []

    def before_prefill(self) -> None:
        if self._guard:
            self._n_before = self._preemptions()
            self._waited()

    def begin(self, prefill_s: float = 0.0) -> None:
        """Another answer, behind a prompt that took so long since `before_prefill`."""
        self.changes = []
        self._n_untold, self._untold_s = 0, 0.0
        if not self._guard:
            return
        self._unasked_s = prefill_s
        if is_surely_disturbed(prefill_s, self._lost(self._preemptions() - self._n_before)):
            self._guard.begin_with_fewer()

    def in_new_context(self) -> None:
        """Which computes with all of them."""
        self._now = self._all

    def before(self, n_past: int, n_made: int, *, repeatable: bool) -> None:
        """Set the threads of the step behind `n_past` tokens, `n_made` of them of the answer.

        `repeatable`: the same request is to give the same text. Attention over many tokens is split among the threads,
        and their number then changes the last bits.
        """
        was_free = self._is_free
        self._is_free = self._guard is not None and (not repeatable or n_past < SPLIT_TOKENS)
        wanted = self._guard.n_threads if self._guard and self._is_free else self._all
        if wanted != self._now:
            self.set_threads(wanted)
            self._now = wanted
            self.changes.append((n_made, wanted))
        if self._is_free and not (was_free and n_made):  # asked once for each step: of a small model even that is much
            self._n_before = self._preemptions()

    def after(self, step_s: float) -> None:
        """The step took so long."""
        if not self._guard or not self._is_free:
            return
        self._n_untold, self._untold_s = self._n_untold + 1, self._untold_s + step_s
        if self._untold_s >= _TOGETHER_S:
            before, self._n_before = self._n_before, self._preemptions()
            n_steps, mean_s = self._n_untold, self._untold_s / self._n_untold
            self._n_untold, self._untold_s = 0, 0.0
            n_lost: float = self._n_before - before
            self._unasked_s += n_steps * mean_s
            if self._unasked_s >= _ASK_S or is_disturbed(mean_s, n_lost):
                n_lost = self._lost(n_lost)
            elif self._are_kept:
                n_lost = math.inf
            self._guard.after(mean_s, n_lost, self._has_idle_core, n_steps=n_steps)

    def _lost(self, n: float) -> float:
        """How often threads lost their core to who computes: as was counted, by how long they waited for it."""
        waited, seconds, self._unasked_s = self._waited(), self._unasked_s, 0.0
        self._are_kept = waited is not None and waited > KEPT and waited * seconds > _LEAST_WAIT_S
        if self._are_kept:
            return math.inf
        return n if waited is None or waited > WAITED else 0

    def end(self) -> None:
        """All of them again, as the next answer begins."""
        if self._now != self._all:
            self.set_threads(self._all)
            self._now = self._all


class ContextThreads:
    """The two numbers of threads of a context. llama.cpp has one for a single token and another for several at once,
    for a prompt as a rule; but a token each of several answers is several at once too, and where fewer threads are to
    decode, they have to be fewer there as well."""

    def __init__(self, n: int, n_batch: int, apply: Callable[[int, int], None]) -> None:
        """As the context was made with; `apply` sets others."""
        self._all, self._all_batch, self._apply = n, n_batch, apply
        self._n, self._are_several, self._set = n, False, (n, n_batch)

    def set(self, n: int) -> None:
        """For decoding, from the next step on."""
        self._n = n
        self._update()

    def are_several(self, are_several: bool) -> None:
        """Whether the next step is a token each of several answers."""
        self._are_several = are_several
        self._update()

    def in_new_context(self) -> None:
        self._n, self._set = self._all, (self._all, self._all_batch)

    def _update(self) -> None:
        is_fewer = self._are_several and self._n < self._all
        wanted = (self._n, min(self._n, self._all_batch) if is_fewer else self._all_batch)
        if wanted != self._set:
            self._set = wanted
            self._apply(*wanted)


def guarded(n_threads: int, set_threads: Callable[[int], None], *, on: bool) -> GuardedThreads:
    """By what this system tells."""
    return GuardedThreads(
        n_threads, set_threads, on=on, preemptions=preemptions, waited=Waited(), has_idle_core=IdleCore()
    )


def preemptions() -> int:
    """How often a thread of this process had to leave its core to another process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class Waited:
    """Of the time since it was asked last, the share for which the unluckiest thread of this process had no core."""

    def __init__(self, proc: Proc | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._proc, self._clock = proc or Proc(), clock
        self._before, self._before_s = self._proc.thread_waits(), clock()

    def __call__(self) -> float | None:
        """None where the system does not tell."""
        before, before_s = self._before, self._before_s
        self._before, self._before_s = self._proc.thread_waits(), self._clock()
        waited = [now - before[thread] for thread, now in self._before.items() if thread in before]
        return max(waited) / 1e9 / (self._before_s - before_s) if waited and self._before_s > before_s else None


class IdleCore:
    """Whether one of the CPUs that this process may use was idle, for most of the time since it was asked last."""

    def __init__(self, proc: Proc | None = None) -> None:
        self._proc = proc or Proc()
        self._before = self._proc.cpu_ticks()

    def __call__(self) -> bool:
        """True where the system does not tell."""
        before, self._before = self._before, self._proc.cpu_ticks()
        idle = 0.0
        for cpu in usable_cpus():
            total, unused = self._before.get(cpu, (0, 0))
            total_before, unused_before = before.get(cpu, (0, 0))
            if total <= total_before:
                return True
            idle += (unused - unused_before) / (total - total_before)
        return idle > _IDLE
