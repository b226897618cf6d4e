"""The search over a simulated machine: a function of the settings, with noise and drift."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from llmrun.tuning.dials import Dials, Layout, Workload
from llmrun.tuning.search import Candidates, Measure, Search, candidates

BEGIN = Dials("off", 8, 8, 512)
WORK = Workload(512, 128)


def machine(gains: Mapping[tuple[str, object], float], *, noise: float = 0.01, drift: float = 0.0) -> Measure:
    """A token of the answer takes 0.1 s, divided by one and the gain of each dial; each measurement is slower."""
    source, n = random.Random(1), 0

    def measure(dials: Dials, *, prompt: bool = True, answer: bool = True) -> tuple[float, float]:
        nonlocal n
        n += 1
        speed = (1 - drift) ** n
        for (dial, value), gain in gains.items():
            speed *= 1 + gain if getattr(dials, dial) == value else 1
        return 0.005 / speed, 0.1 / speed * source.uniform(1 - noise, 1 + noise)

    return measure


ALL = candidates(BEGIN, layouts=("off", "on"), threads=(8, 6, 4), threads_batch=(16,))


def test_what_is_worth_a_try() -> None:
    assert Candidates(["on"], [6, 4], [16], [64, 128, 256], ["off"], [], []) == ALL


@pytest.mark.parametrize("drift", [0.0, 0.01])
def test_finds_what_gains(drift: float) -> None:
    """Each dial by itself, also while the whole machine becomes slower all the time."""
    gains: dict[tuple[str, object], float] = {
        ("repack", "on"): 0.2,
        ("n_threads", 6): 0.1,
        ("n_threads", 4): 0.3,
        ("n_ubatch", 128): 0.15,
    }
    search = Search(machine(gains, drift=drift), WORK, BEGIN, budget_s=1e9)
    assert search.run(ALL) == Dials("on", 4, 8, 128)
    taken = [(each.dial, getattr(each.dials, each.dial)) for each in search.outcomes if each.taken]
    assert taken == [("repack", "on"), ("n_ubatch", 128), ("n_threads", 6), ("n_threads", 4)]
    assert all(each.low <= each.gain <= each.high for each in search.outcomes)


def test_flash_attention_off_with_small_micro_batches() -> None:
    """Neither alone gains; the pair does. A micro-batch that gains by itself does not take flash attention along."""

    def measure(dials: Dials, *, prompt: bool = True, answer: bool = True) -> tuple[float, float]:
        small, without = dials.n_ubatch == 128, dials.flash_attn == "off"
        return 0.005 / (1.3 if small and without else 0.8 if without else 1.0), 0.1 / (1.1 if without else 1.0)

    assert Search(measure, WORK, BEGIN, budget_s=1e9).run(ALL) == Dials("off", 8, 8, 128, "off")
    alone = Search(machine({("n_ubatch", 128): 0.2}), WORK, BEGIN, budget_s=1e9)
    assert alone.run(ALL) == Dials("off", 8, 8, 128)


def test_noise_is_no_gain() -> None:
    assert Search(machine({}, noise=0.2), WORK, BEGIN, budget_s=1e9).run(ALL) == BEGIN


def test_what_is_slower_is_given_up_soon() -> None:
    measured: list[Dials] = []
    slow = machine({("repack", "on"): -0.4})

    def measure(dials: Dials, *, prompt: bool = True, answer: bool = True) -> tuple[float, float]:
        measured.append(dials)
        return slow(dials, prompt=prompt, answer=answer)

    search = Search(measure, WORK, BEGIN, budget_s=1e9)
    search.run(Candidates(repack=["on"]))
    assert len(measured) == 5 and not search.outcomes[0].taken


def test_ends_in_time() -> None:
    """A measurement takes a second; what was begun is finished, and nothing more is begun, also within a comparison."""
    now = 0.0

    def measure(dials: Dials, *, prompt: bool = True, answer: bool = True) -> tuple[float, float]:
        nonlocal now
        now += 1
        return 0.005, 0.1

    search = Search(measure, WORK, BEGIN, budget_s=10, clock=lambda: now)
    search.run(ALL)
    assert now == 10 and search.outcomes


@pytest.mark.parametrize("in_new_pages", [0.0, 0.2])
def test_what_has_buffers_of_its_own_has_to_win_twice(in_new_pages: float) -> None:
    """What wins by the pages it got loses with others; what wins by itself is taken."""
    n_renewed = 0

    def measure(dials: Dials, *, prompt: bool = True, answer: bool = True) -> tuple[float, float]:
        gain = (in_new_pages if n_renewed else 0.2) if dials.flash_attn == "off" else 0.0
        return 0.005, 0.1 / (1 + gain)

    def renew() -> None:
        nonlocal n_renewed
        n_renewed += 1

    search = Search(measure, WORK, BEGIN, budget_s=1e9, renew=renew)
    assert search.run(Candidates(flash_attn=["off"])).flash_attn == ("off" if in_new_pages else None)
    assert n_renewed == 1 and [each.taken for each in search.outcomes] == [bool(in_new_pages)]


@pytest.mark.parametrize("pages_alike", [True, False])
def test_what_had_no_time_to_win_twice_is_not_taken(pages_alike: bool) -> None:
    now = 0.0

    def measure(dials: Dials, *, prompt: bool = True, answer: bool = True) -> tuple[float, float]:
        nonlocal now
        now += 1
        return 0.005, 0.1 / (1.5 if dials.flash_attn == "off" else 1.0)

    search = Search(measure, WORK, BEGIN, budget_s=100 if pages_alike else 7, clock=lambda: now)
    assert search.run(Candidates(flash_attn=["off"])).flash_attn == ("off" if pages_alike else None)


def test_what_rules_another_out_is_tried_without_it() -> None:
    """Flash attention off has won, and quantized keys and values need it: they are tried with it, the rest as found."""

    def is_possible(dials: Dials) -> bool:
        return not (dials.flash_attn == "off" and dials.kv_type == "q8_0")

    gains: dict[tuple[str, object], float] = {
        ("repack", "on"): 0.5,
        ("flash_attn", "off"): 0.3,
        ("kv_type", "q8_0"): 0.8,
    }
    both = Candidates(repack=["on"], flash_attn=["off"], kv_type=["q8_0"])
    search = Search(machine(gains), WORK, BEGIN, budget_s=1e9, is_possible=is_possible)
    assert search.run(both) == replace(BEGIN, repack="on", kv_type="q8_0")
    assert [each.taken for each in search.outcomes] == [True, True, True]
    # Where they were given, flash attention stays.
    given = Search(machine(gains), WORK, replace(BEGIN, kv_type="q8_0"), budget_s=1e9, is_possible=is_possible)
    assert given.run(Candidates(flash_attn=["off"])).flash_attn is None and not given.outcomes


def test_interleaved_both_ways() -> None:
    order: list[Layout | None] = []

    def measure(dials: Dials, *, prompt: bool = True, answer: bool = True) -> tuple[float, float]:
        order.append(dials.repack)
        return 0.005, 0.1

    Search(measure, WORK, BEGIN, budget_s=1e9).run(Candidates(repack=["on"]))
    assert order[:5] == ["on", "off", "on", "on", "off"]


def test_what_can_only_lose_is_not_tried() -> None:
    """Predicted to be half as fast: told, and never measured; predicted a fifth slower, or not at all: tried."""
    seconds = {"on": 2.0, "both": 1.25}
    measured: list[Dials] = []

    def measure(dials: Dials, *, prompt: bool = True, answer: bool = True) -> tuple[float, float]:
        measured.append(dials)
        return 0.005, 0.1

    search = Search(measure, WORK, BEGIN, budget_s=1e9, predict=lambda dials: seconds.get(dials.repack or "", 1.0))
    search.run(candidates(BEGIN, layouts=("off", "on", "both"), threads=(), threads_batch=(), n_ubatch=()))
    assert [(each.dial, each.dials.repack, each.gain) for each in search.not_tried] == [("repack", "on", -0.5)]
    assert {each.repack for each in measured} == {"off", "both"}
    unknown = Search(measure, WORK, BEGIN, budget_s=1e9)
    unknown.run(candidates(BEGIN, layouts=("on",), threads=(), threads_batch=(), n_ubatch=()))
    assert not unknown.not_tried and unknown.outcomes
    assert not search.ran_out and not unknown.ran_out


def test_time_runs_out() -> None:
    search = Search(lambda *_, **__: (0.005, 0.1), WORK, BEGIN, budget_s=0)
    assert search.run(Candidates(repack=["on"])) == BEGIN
    assert search.ran_out and not search.outcomes
