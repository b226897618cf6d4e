"""Engines that only keep time, and requests that go where they are answered first: all on a clock of their own."""

from __future__ import annotations

from typing import Any

import pytest

from llmrun.bench.load import Call, closed_loop, drive, open_loop
from llmrun.engine.router import Lane, Router, Speed
from llmrun.experiments.latency import mixed_load, simulate
from llmrun.experiments.simulated import SimulatedEngine, VirtualClock
from llmrun.options.sampling import SamplingConfig

FAST_PROMPT = Speed(prefill_tps=1000, step_s=0.01, more_s=0.001)
SLOW = Speed(prefill_tps=100, step_s=0.1, more_s=0.01)


def sampling(n: int) -> SamplingConfig:
    return SamplingConfig(max_tokens=n)


def words(n: int) -> str:
    return "b " * n


def test_one_answer_by_hand() -> None:
    """100 tokens of prompt are 0.1 s, and give the first token; nine more steps are 0.09 s."""
    clock = VirtualClock()
    engine = SimulatedEngine(FAST_PROMPT, 4, clock)
    asked = engine.submit(words(100), sampling(10))
    assert engine.wait() is asked
    assert asked.meter.token_s[0] == pytest.approx(0.1) and asked.meter.token_s[-1] == pytest.approx(0.19)
    assert clock() == pytest.approx(0.19) and engine.wait() is None


def test_two_share_their_steps() -> None:
    """Both prompts first, then steps of two, 11 ms each."""
    clock = VirtualClock()
    engine = SimulatedEngine(FAST_PROMPT, 2, clock)
    first, second = engine.submit(words(100), sampling(10)), engine.submit(words(100), sampling(10))
    assert {engine.wait(), engine.wait()} == {first, second}
    assert first.meter.token_s[-1] == pytest.approx(0.2 + 9 * 0.011)


def test_a_timeout_passes_and_nothing_more() -> None:
    clock = VirtualClock()
    engine = SimulatedEngine(FAST_PROMPT, 1, clock)
    engine.submit(words(100), sampling(10))
    assert engine.wait(0.05) is None and clock() == pytest.approx(0.05)
    assert engine.wait(1.0) is not None and clock() == pytest.approx(0.19)


def router_of(clock: VirtualClock, *engines: tuple[str, Speed, int]) -> Router:
    lanes = [Lane(name, SimulatedEngine(speed, n, clock), speed) for name, speed, n in engines]  # type: ignore[arg-type]
    return Router(lanes, n_prompt_of=lambda prompt: len(str(prompt).split()), clock=clock)


def test_a_single_request_goes_to_the_one_that_is_faster_for_it() -> None:
    """Short prompts where steps are fast, long ones where prompts are."""
    steps, prompts = Speed(100, 0.01, 0.01), Speed(10_000, 0.05, 0.001)
    clock = VirtualClock()
    router = router_of(clock, ("steps", steps, 1), ("prompts", prompts, 8))
    assert router.submit(words(10), sampling(20)).lane == "steps"
    assert (
        router_of(clock, ("steps", steps, 1), ("prompts", prompts, 8)).submit(words(2000), sampling(20)).lane
        == "prompts"
    )


def test_a_crowd_spreads() -> None:
    """The first one is faster for each, and answers one at a time: the others go to the one that is idle."""
    clock = VirtualClock()
    router = router_of(clock, ("one", Speed(1000, 0.01, 0.01), 1), ("many", Speed(1000, 0.015, 0.001), 8))
    lanes = [router.submit(words(10), sampling(50)).lane for _ in range(8)]
    assert lanes[0] == "one" and lanes.count("many") >= 5
    done = [router.wait() for _ in range(8)]
    assert None not in done and router.wait() is None


def test_the_highest_priority_goes_first() -> None:
    clock = VirtualClock()
    router = router_of(clock, ("one", FAST_PROMPT, 1))
    asked: dict[Any, str] = {}
    for name, priority in (("running", 0), ("low", 0), ("high", 5), ("low again", 0), ("middle", 1)):
        asked[router.submit(words(10), sampling(5), priority=priority)] = name
    order = [asked[done] for _ in range(5) if (done := router.wait())]
    assert order == ["running", "high", "middle", "low", "low again"]


def test_who_drives_an_engine_drives_a_router() -> None:
    """A closed loop and an open one: every request is answered, with as many tokens as it asked for."""
    for load in (
        closed_loop([Call(words(20), sampling(8)) for _ in range(20)], 4),
        open_loop([Call(words(20), sampling(8)) for _ in range(20)], 5.0, 3),
    ):
        clock = VirtualClock()
        router = router_of(clock, ("one", FAST_PROMPT, 2), ("two", SLOW, 4))
        found = drive(router, load, clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]
        assert len(found.answered) == 20 and {len(each.token_s) for each in found.answered} == {8}
        assert min(each.ttft_s or 0 for each in found.answered) > 0


def test_the_same_load_for_every_policy() -> None:
    one, other = (mixed_load(50, 2.0, (32, 16), (384, 64)) for _ in range(2))
    assert [call.at_s for call in one.calls] == [call.at_s for call in other.calls]
    assert {call.sampling.max_tokens for call in one.calls} == {16, 64}


def test_a_router_is_never_far_behind_the_better_machine() -> None:
    """Simulated with plan's times; requests that come seldom all go to the one that is faster for them."""
    alone, routed = (simulate(0.05, policy, 100)["e2e_s"] for policy in ("second", "router"))
    assert alone and routed and routed <= 1.05 * alone
