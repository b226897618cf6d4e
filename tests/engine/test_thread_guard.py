"""The guard over a simulated machine: a step's time follows from its threads and from who else wants the cores."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from llmrun.engine.child.thread_guard import ContextThreads, GuardedThreads, IdleCore, ThreadGuard, Waited, ladder
from llmrun.machine.proc import Proc


class Machine:
    """`n_cores` cores, of which some are busy with other work. Memory gives `most` threads all they can take."""

    def __init__(self, n_cores: int, *, most: float = 1e9, collapse: float = 6.0, seed: int = 0) -> None:
        self.n_cores, self.most, self.collapse = n_cores, most, collapse
        self.busy = 0
        self.random = random.Random(seed)

    def step_s(self, n_threads: int) -> float:
        free = self.n_cores - self.busy
        time = 0.06 / min(n_threads, self.most)
        if n_threads > free:  # some thread waits for its core, and all others for it
            time *= self.collapse
        return time * self.random.uniform(0.95, 1.05)


def run(guard: ThreadGuard, machine: Machine, n_steps: int) -> list[tuple[int, float]]:
    taken = []
    for _ in range(n_steps):
        n = guard.n_threads
        step_s = machine.step_s(n)
        taken.append((n, step_s))
        guard.after(step_s)
    return taken


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 64])
def test_alone_nothing_changes(n: int) -> None:
    """Noise, and attention that takes longer with every token, are no reason."""
    guard, machine = ThreadGuard(n), Machine(n)
    for i in range(3000):
        guard.after(machine.step_s(guard.n_threads) * (1 + i / 1500))
        assert guard.n_threads == n


@pytest.mark.parametrize(("n", "busy", "fewer"), [(2, 1, 1), (4, 1, 3), (8, 1, 7), (16, 8, 8), (8, 6, 2)])
def test_fewer_beside_others_and_back(n: int, busy: int, fewer: int) -> None:
    """It ends with the threads that have cores, and takes all of them again once they are free."""
    guard, machine = ThreadGuard(n), Machine(n)
    run(guard, machine, 100)
    machine.busy = busy
    taken = run(guard, machine, 600)
    last = [threads for threads, _ in taken[-200:]]
    assert last.count(fewer) >= 0.85 * len(last)
    machine.busy = 0
    run(guard, machine, 2000)
    assert [threads for threads, _ in run(guard, machine, 50)] == [n] * 50


@pytest.mark.parametrize(("n", "busy"), [(2, 1), (8, 1), (8, 4)])
def test_trying_costs_little(n: int, busy: int) -> None:
    """All steps together take at most a tenth longer than with the best number of threads from the start."""
    guard, machine = ThreadGuard(n), Machine(n)
    run(guard, machine, 50)
    machine.busy = busy
    taken = sum(step_s for _, step_s in run(guard, machine, 3000))
    best = min(sum(machine.step_s(threads) for _ in range(3000)) for threads in ladder(n))
    assert taken < 1.1 * best


def test_no_thrashing() -> None:
    """Where fewer threads do not help, it hardly ever looks."""
    guard, machine = ThreadGuard(4), Machine(4)
    run(guard, machine, 50)
    slow = [guard.after(0.2 * machine.random.uniform(0.95, 1.05)) for _ in range(2000)]  # whatever the threads
    assert sum(n < 4 for n in slow) < 0.1 * len(slow)


def test_one_slow_step_is_nothing() -> None:
    guard, machine = ThreadGuard(4), Machine(4)
    for i in range(500):
        guard.after(machine.step_s(guard.n_threads) * (8 if i % 100 == 50 else 1))
        assert guard.n_threads == 4 or i % 100 >= 50


@pytest.mark.parametrize("n", [2, 8])
def test_what_is_over_soon_changes_nothing(n: int) -> None:
    """Ten slow steps, every now and then, whatever the threads: fewer of them are tried, and not kept."""
    guard, machine = ThreadGuard(n), Machine(n)
    used = []
    for i in range(3000):
        used.append(guard.n_threads)
        guard.after(machine.step_s(guard.n_threads) * (2.5 if i % 150 < 10 else 1))
    assert used.count(n) > 0.93 * len(used)


@pytest.mark.parametrize(("n_preempted", "most"), [(40, 5), (0, 9)])
def test_how_soon_it_is_sure(n_preempted: int, most: int) -> None:
    """Where threads lose their core plainly too often, the steps that tell it are the only slow ones; where steps are
    slow for no known reason, some more are, as all threads are timed again."""
    guard, machine = ThreadGuard(2), Machine(2)
    run(guard, machine, 20)
    machine.busy = 1
    n_slow = 0
    for _ in range(60):
        n_slow += guard.n_threads == 2
        guard.after(machine.step_s(guard.n_threads), n_preempted if guard.n_threads == 2 else 0, lambda: False)
    assert n_slow <= most and guard.n_threads == 1


def test_rungs() -> None:
    assert ladder(1) == [1] and ladder(2) == [2, 1] and ladder(16) == [16, 15, 12, 8, 4, 1]


@pytest.mark.parametrize(("share", "expected"), [(0.03, []), (0.5, [1])])
def test_who_wakes_up_often_and_does_nothing(share: float, expected: list[int]) -> None:
    """Two hundred times a second a thread loses its core, for a moment each time: that is nobody who computes. One that
    waits for half of the time makes room for others."""
    lost, switch, machine = iter(range(0, 1 << 20, 7)), Switch(), Machine(2)
    threads = GuardedThreads(2, switch, on=True, preemptions=lambda: next(lost), waited=lambda: share)
    machine.busy = int(share > 0.1)
    threads.before_prefill()
    threads.begin(0.02)
    for i in range(100):
        threads.before(8 + i, i, repeatable=False)
        threads.after(machine.step_s(switch.calls[-1] if switch.calls else 2))
    assert switch.calls[:1] == expected


@pytest.mark.parametrize(("prefill_s", "n_slow"), [(0.5, 0), (0.005, 2)])
def test_beside_many_a_core_is_lost_seldom_and_for_long(prefill_s: float, n_slow: int) -> None:
    """Twenty times a second alone, but threads wait for most of the time: a prompt of half a second tells it, and else
    two steps do."""
    lost, switch = iter(range(1 << 20)), Switch()
    asked = {"preemptions": lambda: next(lost), "waited": lambda: 0.6, "has_idle_core": lambda: False}
    threads = GuardedThreads(2, switch, on=True, **asked)  # type: ignore[arg-type]
    threads.before_prefill()
    threads.begin(prefill_s)
    slow = 0
    for i in range(60):
        threads.before(8 + i, i, repeatable=False)
        n_threads = switch.calls[-1] if switch.calls else 2
        slow += n_threads == 2
        threads.after(0.3 if n_threads == 2 else 0.06)
    assert slow == n_slow and switch.calls == [1]


def test_several_answers_get_fewer_threads_too() -> None:
    """As llama.cpp counts them, several tokens at once are a prompt: what decodes several answers with fewer threads
    sets that number, and a prompt between two steps has all of them again."""
    applied: list[tuple[int, int]] = []
    threads = ContextThreads(4, 6, lambda *n: applied.append(n))
    threads.are_several(True)
    threads.set(4)
    assert not applied
    threads.set(2)
    threads.are_several(False)
    threads.are_several(True)
    threads.set(4)
    assert applied == [(2, 2), (2, 6), (2, 2), (4, 6)]
    threads.set(1)
    threads.in_new_context()
    threads.are_several(False)
    threads.set(4)
    assert applied[4:] == [(1, 1)]


def test_waited(tmp_path: Path) -> None:
    """Of threads that waited 10 and 300 ms of a second, the second counts; one that is new does not."""

    def write(**waits: int) -> None:
        for thread, ns in waits.items():
            (tmp_path / "self" / "task" / thread).mkdir(parents=True, exist_ok=True)
            (tmp_path / "self" / "task" / thread / "schedstat").write_text(f"123 {ns} 7\n")

    ticks = iter([0.0, 1.0, 2.0, 3.0])
    write(a=5, b=7)
    waited = Waited(Proc(tmp_path), lambda: next(ticks))
    write(a=5 + 10_000_000, b=7 + 300_000_000, c=900_000_000)
    assert waited() == pytest.approx(0.3)
    assert waited() == 0
    assert Waited(Proc(tmp_path / "none"))() is None


class Switch:
    """Threads of a context, as they are set."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, n: int) -> None:
        self.calls.append(n)


def disturbed(threads: GuardedThreads, n_past: int, *, repeatable: bool) -> None:
    """An answer of a hundred steps behind so many tokens, in whose middle another process takes a core."""
    machine, switch = Machine(2), threads.set_threads
    assert isinstance(switch, Switch)
    threads.begin()
    for i in range(400):
        machine.busy = int(i > 20)
        threads.before(n_past + i, i, repeatable=repeatable)
        threads.after(machine.step_s(switch.calls[-1] if switch.calls else 2))
    threads.end()


def test_changes_are_recorded() -> None:
    threads = GuardedThreads(2, Switch(), on=True)
    disturbed(threads, 0, repeatable=False)
    assert threads.changes and threads.changes[0][0] > 20 and threads.changes[0][1] == 1
    assert isinstance(threads.set_threads, Switch) and threads.set_threads.calls[-1] == 2  # as the next one begins
    threads.begin()
    assert threads.changes == []


def test_a_text_that_is_to_come_again() -> None:
    """Behind 512 tokens the number of threads changes the last bits: there it stays, if the same is to be answered."""
    threads = GuardedThreads(2, Switch(), on=True)
    disturbed(threads, 600, repeatable=True)
    assert threads.changes == []
    disturbed(threads, 600, repeatable=False)
    assert threads.changes
    threads = GuardedThreads(2, Switch(), on=True)
    disturbed(threads, 300, repeatable=True)
    assert threads.changes and all(token < 212 or n == 2 for token, n in threads.changes)


def test_others_from_the_beginning() -> None:
    """A prompt in which threads lost their core many times: the answer begins with fewer."""
    for prefill_s, n_lost, expected in ((0.2, 40, 1), (0.2, 25, 2), (2.0, 220, 2), (2.0, 240, 1), (0.005, 2, 2)):
        lost = iter([0, n_lost, *[n_lost] * 100])
        threads = GuardedThreads(2, Switch(), on=True, preemptions=lambda lost=lost: next(lost))  # type: ignore[misc]
        threads.before_prefill()
        threads.begin(prefill_s)
        threads.before(8, 0, repeatable=False)
        assert threads.changes == ([(0, 1)] if expected == 1 else [])


def test_others_who_came_between_two_answers() -> None:
    """The second prompt tells it as the first one does."""
    lost = 0
    threads = GuardedThreads(2, Switch(), on=True, preemptions=lambda: lost)
    for prompt_loses, expected in ((0, []), (40, [(0, 1)])):
        threads.before_prefill()
        lost += prompt_loses
        threads.begin(0.2)
        for i in range(20):
            threads.before(8 + i, i, repeatable=False)
            threads.after(0.03)
        assert threads.changes == expected
        threads.end()


def test_no_trial_without_an_idle_core() -> None:
    """Beside a process that stays, more threads are not tried; they are once it has gone."""
    guard, machine = ThreadGuard(2), Machine(2)
    run(guard, machine, 50)
    machine.busy = 1
    taken = [guard.after(machine.step_s(guard.n_threads), 0, lambda: machine.busy < 1) for _ in range(1000)]
    assert taken[-900:] == [1] * 900
    machine.busy = 0
    taken = [guard.after(machine.step_s(guard.n_threads), 0, lambda: machine.busy < 1) for _ in range(300)]
    assert taken[-1] == 2


def test_an_idle_core(tmp_path: Path) -> None:
    """By /proc/stat: a hundred ticks later, one CPU that was idle for 70 of them, or all for too few."""
    cpus = sorted(os.sched_getaffinity(0))

    def write(*idle: int, total: int) -> None:
        lines = [
            f"cpu{cpu} {total - n} 0 0 {n} 0 0 0 0" for cpu, n in zip(cpus, [*idle, *[0] * len(cpus)], strict=False)
        ]
        (tmp_path / "stat").write_text("\n".join(lines))

    write(0, total=1000)
    has_idle_core = IdleCore(Proc(tmp_path))
    write(70, total=1100)
    assert has_idle_core()
    write(100, total=1200)
    assert not has_idle_core()
    assert has_idle_core()  # no time has passed: nothing is known
    (tmp_path / "stat").unlink()
    assert has_idle_core()


def test_off() -> None:
    threads = GuardedThreads(2, Switch(), on=False)
    disturbed(threads, 0, repeatable=False)
    assert threads.changes == []
