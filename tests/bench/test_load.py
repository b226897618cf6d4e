"""What comes when, and what is made of the times: counted by hand, with an engine that says what a script says."""

from __future__ import annotations

import statistics

import pytest
from scripted_engine import Clock, Script, ScriptedEngine

from llmrun.bench import load
from llmrun.bench.load import Call, Objectives, Outcome, Result
from llmrun.errors import UsageError
from llmrun.options.sampling import SamplingConfig

GREEDY = SamplingConfig(temperature=0)


def calls(n: int) -> list[Call]:
    return [Call(f"word {i}", GREEDY) for i in range(n)]


def driven(made: load.Load, *scripts: Script | str | Exception) -> tuple[Result, ScriptedEngine]:
    engine = ScriptedEngine(*scripts, clock=Clock())  # type: ignore[arg-type]
    with engine.parallel(4, 100) as answers:
        return load.drive(answers, made, clock=engine.clock, sleep=engine.clock.advance), engine  # type: ignore[arg-type]


def test_a_closed_loop_asks_for_so_many() -> None:
    """And for the next one when one has ended."""
    result, engine = driven(load.closed_loop(calls(9), 3), "a b c")
    assert len(result.answered) == 9 and engine.most_at_once == 3


def test_an_open_loop() -> None:
    """Gaps are exponential: mean and deviation are both 1 / rate; a seed is a load."""
    made = load.open_loop(calls(4000), 5.0, seed=1)
    assert made == load.open_loop(calls(4000), 5.0, seed=1) != load.open_loop(calls(4000), 5.0, seed=2)
    times = [call.at_s for call in made.calls]
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.1) == statistics.stdev(gaps)


def test_who_waits_is_counted_from_when_it_came() -> None:
    """Three come at once at an engine that takes one after the other: each waits for those before it."""
    made = load.Load([Call("a", GREEDY, 1.0), Call("b", GREEDY, 1.0), Call("c", GREEDY, 1.0)])
    result, _ = driven(made, Script("x y", prefill_s=0.5, token_s=0.25))
    assert [each.ttft_s for each in result.outcomes] == [0.75, 1.75, 2.75]
    assert [each.e2e_s for each in result.outcomes] == [1.0, 2.0, 3.0]
    assert result.seconds == 3.0 and result.tokens_per_s == 2.0


def test_a_trace() -> None:
    lines = '{"at_s": 2, "prompt": "b", "max_tokens": 3}\n\n{"at_s": 0.5, "prompt": "a", "max_tokens": 1}\n'
    made = load.trace(lines, GREEDY)
    assert [(call.at_s, call.prompt, call.sampling.max_tokens) for call in made.calls] == [(0.5, "a", 1), (2.0, "b", 3)]
    result, _ = driven(made, "x y z")
    assert [(each.asked_s, len(each.token_s)) for each in result.outcomes] == [(0.5, 1), (2.0, 3)]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"at_s": 1}',
        '{"at_s": -1, "prompt": "a", "max_tokens": 1}',
        '{"at_s": 1, "prompt": "a", "max_tokens": 0}',
        '{"at_s": 1, "prompt": "a", "max_tokens": 1, "x": 1}',
    ],
)
def test_a_trace_that_is_none(line: str) -> None:
    with pytest.raises(UsageError, match="line 2 of the trace"):
        load.trace(f"\n{line}", GREEDY)


def test_figures_of_one() -> None:
    one = Outcome(1.0, (1.5, 1.75, 2.5))
    assert (one.ttft_s, one.e2e_s, one.itl_s, one.tpot_s) == (0.5, 1.5, (0.25, 0.75), 0.5)
    single = Outcome(1.0, (1.5,))
    assert single.tpot_s is None and single.itl_s == ()
    assert Outcome(1.0, error="no").ttft_s is None


def test_goodput() -> None:
    """Answers a second that keep to all objectives; what failed keeps to none, one token has no TPOT to miss."""
    good, slow = Outcome(0.0, (0.5, 1.0, 1.5)), Outcome(0.0, (2.0, 2.5, 4.0))
    single, failed = Outcome(0.0, (0.25,)), Outcome(0.0, error="no")
    result = Result([good, slow, single, failed])
    assert result.n_errors == 1 and result.seconds == 4.0
    assert result.goodput(Objectives()) == 3 / 4
    assert result.goodput(Objectives(ttft_s=1.0)) == 2 / 4
    assert result.goodput(Objectives(tpot_s=0.4)) == 1 / 4
    assert result.goodput(Objectives(ttft_s=1.0, e2e_s=1.0)) == 1 / 4


def test_quantiles_need_enough_figures() -> None:
    assert load.quantile([float(i) for i in range(1, 101)], 0.99) == 99
    assert load.quantile([1.0] * 99, 0.99) is None and load.quantile([3.0, 1.0], 0.5) == 1.0
    assert load.quantile([None, 2.0], 0.5) is None and load.quantile([], 0.5) is None


def test_errors_have_a_column_of_their_own() -> None:
    """They are in no latency."""
    result, _ = driven(load.closed_loop(calls(3), 1), "a", UsageError("no"), "b")
    assert result.n_errors == 1 and [each.error for each in result.outcomes] == [None, "no", None]
    assert result.ttft_s(0.5) is not None and len(result.answered) == 2
