"""The scripted engine keeps the promises that the engine with a child keeps: order, cancel, failures, figures."""

from __future__ import annotations

import pytest
from scripted_engine import Clock, Script, ScriptedEngine

from llmrun.engine.interface import Engine
from llmrun.errors import EngineCrashed, OutOfMemory, PromptTooLong
from llmrun.options.sampling import SamplingConfig

HELLO = [{"role": "user", "content": "Hello"}]


def test_answers_in_turn() -> None:
    """The last one again and again; each with the reason of its end."""
    engine: Engine = ScriptedEngine("One.", "Two, and three.")
    assert ["".join(engine.generate(HELLO)) for _ in range(3)] == ["One.", "Two, and three.", "Two, and three."]
    cut = engine.generate(HELLO, SamplingConfig(max_tokens=2))
    assert "".join(cut) == "Two, and" and cut.stop_reason == "length"


def test_figures_are_those_of_the_script() -> None:
    """A prompt in 2 s, three tokens in half a second each: TTFT 2.5 s, two gaps, 2 t/s, on the clock that was given."""
    clock = Clock(100.0)
    engine = ScriptedEngine(Script("One two three.", prefill_s=2.0, token_s=0.5), clock=clock)
    generation = engine.generate(HELLO)
    list(generation)
    timing = generation.timing
    assert (timing.prefill_s, timing.ttft_s, timing.step_s, timing.tg_tps) == (2.0, 2.5, (0.5, 0.5), 2.0)
    assert clock() == 103.5


def test_cancel_and_close() -> None:
    """After a cancel it ends by itself; closing the iterator closes it; the next one is not disturbed."""
    engine = ScriptedEngine("One two three.")
    cancelled = engine.generate(HELLO)
    text = ""
    for piece in cancelled:
        text += piece
        cancelled.cancel()
    assert text == "One" and cancelled.stop_reason == "cancelled"
    closed = engine.generate(HELLO)
    pieces = closed.pieces()
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]  # it is a generator
    assert closed.stop_reason == "cancelled"
    left = engine.generate(HELLO)
    next(iter(left))
    assert "".join(engine.generate(HELLO)) == "One two three." and left.stop_reason == "cancelled"


def test_failures() -> None:
    """An error in a script's place is raised; a crash leaves no engine, in the middle of an answer too."""
    engine = ScriptedEngine(PromptTooLong("too long"), "Fine.", OutOfMemory("no room"))
    with pytest.raises(PromptTooLong):
        list(engine.generate(HELLO))
    assert "".join(engine.generate(HELLO)) == "Fine."
    with pytest.raises(OutOfMemory):
        list(engine.generate(HELLO))
    assert not engine.is_alive
    dying = ScriptedEngine(Script("One two three.", dies_after=2)).generate(HELLO)
    with pytest.raises(EngineCrashed):
        list(dying)
    assert dying.text == "One two"


def test_order_of_calls() -> None:
    """What a test of somebody who uses an engine looks at."""
    with ScriptedEngine(trials=(0.5, EngineCrashed("it died"))) as engine:
        engine.prepare(HELLO)
        engine.count("Hello")
        assert engine.trial(10, 2).step_s == [0.5, 0.5]
        with pytest.raises(EngineCrashed):
            engine.trial(10, 2)
    assert engine.calls == ["prepare", "count", "trial", "trial", "close"]
