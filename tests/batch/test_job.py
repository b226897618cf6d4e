"""The order of a batch, and what an engine's failures leave, with an engine that says what a script says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scripted_engine import Script, ScriptedEngine

from llmrun.batch.job import Job
from llmrun.batch.rows import Row
from llmrun.batch.width import Width, fastest
from llmrun.chat.answer_options import AnswerOptions
from llmrun.constrain.output_format import of_choices
from llmrun.errors import EngineCrashed, LlmrunError, OutOfMemory, PromptTooLong, UsageError
from llmrun.options.sampling import SamplingConfig
from llmrun.wire.request import Refused, Request


def row(number: int, text: str = "Hi", answers: AnswerOptions | None = None) -> Row:
    asked = [{"role": "user", "content": text}]
    return Row(
        number, f"row-{number}", f"n{number}", Request(asked, SamplingConfig(), answers or AnswerOptions(), True)
    )


class Kept(list[dict[str, Any]]):
    add = list.append


class Engines:
    """Opens one after the other."""

    def __init__(self, *engines: ScriptedEngine) -> None:
        self.left, self.opened = [*engines], 0

    def __call__(self) -> ScriptedEngine:
        self.opened += 1
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


def run(rows: list[Row], *engines: ScriptedEngine, n_seq: int = 1) -> tuple[Kept, Job, Engines]:
    opened, kept = Engines(*engines), Kept()
    job = Job(opened, "scripted", width=lambda _: Width(n_seq, 100), clock=engines[0].clock, now=lambda: 7.0)
    job.run(rows, kept)
    return kept, job, opened


def test_answers_and_figures() -> None:
    engine = ScriptedEngine("Yes, I do.", Script("No.", thinking="Hm."))
    kept, job, opened = run([row(1, "Do you?"), row(2)], engine)
    assert [each["custom_id"] for each in kept] == ["n1", "n2"] and opened.opened == 1
    first, second = (each["response"]["body"] for each in kept)
    assert first["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Yes, I do."},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert first["usage"]["completion_tokens"] == 3 and first["usage"]["prompt_tokens"] == 4
    assert first["usage"]["total_tokens"] == 7 and first["created"] == 7 and first["object"] == "chat.completion"
    assert first["timings"]["predicted_per_second"] == pytest.approx(100)
    assert second["choices"][0]["message"]["reasoning_content"] == "Hm."
    tally = job.tally
    assert (tally.n_answered, tally.n_errors, tally.n_generated) == (2, 0, 5)
    assert tally.tokens_per_s == pytest.approx(tally.n_generated / engine.clock())
    assert all(options.reuse for options in engine.asked)  # what rows begin with is computed once


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PromptTooLong("the prompt has 2000 tokens"), "context_length_exceeded"),
        (UsageError("there is no token 7"), "invalid_request"),
    ],
)
def test_a_row_that_cant_be_answered(error: LlmrunError, code: str) -> None:
    """It is an error by its line, and the next one is answered by the same engine."""
    kept, job, opened = run([row(1), row(5), row(6)], ScriptedEngine("a", error, "b"))
    assert [each["error"] and each["error"]["code"] for each in kept] == [None, code, None]
    assert kept[1]["error"]["message"] == f"line 5: {error.message}" and kept[1]["response"] is None
    assert opened.opened == 1 and (job.tally.n_answered, job.tally.n_errors) == (2, 1)


def test_a_row_that_cant_be_read() -> None:
    """No engine is loaded for it."""
    kept, _, opened = run([Row(3, "row-3", None, None, Refused("n is not held", "n"))], ScriptedEngine())
    assert kept[0]["error"] == {"code": "invalid_request", "message": "line 3: n is not held"}
    assert opened.opened == 0


def test_a_wrong_form() -> None:
    """The answer is kept, and is an error."""
    answers = AnswerOptions(output_format=of_choices(["yes", "no"]))
    kept, job, _ = run([row(1, answers=answers), row(2, answers=answers)], ScriptedEngine("yes", "perhaps"))
    assert kept[0]["error"] is None and kept[1]["error"]["code"] == "wrong_format"
    assert kept[1]["response"]["body"]["choices"][0]["message"]["content"] == "perhaps"
    assert job.tally.n_errors == 1


def test_a_crash() -> None:
    """The engine is loaded again and the row asked again; crashing once more it is an error, and the batch goes on."""
    crash = EngineCrashed("it died")
    kept, _, opened = run([row(1), row(2)], ScriptedEngine(crash), ScriptedEngine("a"))
    assert [each["error"] for each in kept] == [None, None] and opened.opened == 2
    kept, _, opened = run([row(1), row(2)], ScriptedEngine(crash), ScriptedEngine(crash), ScriptedEngine("a"))
    assert [each["error"] and each["error"]["code"] for each in kept] == ["engine_crashed", None]
    assert opened.opened == 3


def test_every_row_crashes() -> None:
    """Then it is not the rows: the batch ends, with what it has."""
    opened, kept = Engines(ScriptedEngine(EngineCrashed("it died"))), Kept()
    with pytest.raises(EngineCrashed):
        Job(opened, "scripted").run([row(n) for n in range(1, 10)], kept)
    assert len(kept) == 2


def test_out_of_memory_ends_it() -> None:
    opened, kept = Engines(ScriptedEngine("a", OutOfMemory("too much"))), Kept()
    with pytest.raises(OutOfMemory):
        Job(opened, "scripted").run([row(1), row(2), row(3)], kept)
    assert len(kept) == 1


# -- side by side ---


def test_so_many_at_a_time() -> None:
    """And a few more that wait in the engine, so that none has to be waited for."""
    engine = ScriptedEngine("a")
    kept, _, _ = run([row(n) for n in range(1, 41)], engine, n_seq=8)
    assert len(kept) == 40 and engine.widths == [8] and engine.most_at_once == 12
    assert all(options.bulk for options in engine.asked)


def test_an_answer_that_is_begun() -> None:
    """It is said once: as the answer's beginning, and not among the messages."""
    engine, one = ScriptedEngine("a"), row(1)
    assert one.request is not None
    asked = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "So"}]
    run([replace(one, request=replace(one.request, asked=asked))], engine)
    assert engine.prompts == [asked[:1]] and [each.assistant_prefix for each in engine.asked] == ["So"]


def test_a_crash_beside_others() -> None:
    """All that were being answered are asked once more, one after the other: here it was the machine."""
    rows = [row(n, f"prompt {n}") for n in range(1, 9)]
    first, second = ScriptedEngine("a", EngineCrashed("it died")), ScriptedEngine("b")
    kept, job, opened = run(rows, first, second, n_seq=3)
    assert sorted(each["custom_id"] for each in kept) == [f"n{n}" for n in range(1, 9)]
    assert all(each["error"] is None for each in kept) and opened.opened == 2 and job.tally.n_answered == 8
    assert second.widths[0] == 1 and second.widths[-1] == 3


def test_the_row_that_crashes_is_found() -> None:
    """It crashes by itself as well, is an error, and the others are answered."""
    crash = EngineCrashed("it died")
    # Row 2 crashes beside 3 to 7, then alone; 3 to 7 are asked alone, 8 and 9 together again.
    engines = ScriptedEngine("a", crash), ScriptedEngine(crash), ScriptedEngine("b")
    kept, _, opened = run([row(n) for n in range(1, 10)], *engines, n_seq=3)
    errors = {each["custom_id"]: each["error"] and each["error"]["code"] for each in kept}
    assert errors == {f"n{n}": "engine_crashed" if n == 2 else None for n in range(1, 10)}
    assert opened.opened == 3


def test_less_memory_than_was_thought() -> None:
    """Half as many; what was being answered is asked again."""
    little, less, enough = (
        ScriptedEngine("a", OutOfMemory("too much")),
        ScriptedEngine(OutOfMemory("")),
        ScriptedEngine("b"),
    )
    kept, job, _ = run([row(n) for n in range(1, 7)], little, less, enough, n_seq=8)
    assert sorted(each["custom_id"] for each in kept) == [f"n{n}" for n in range(1, 7)]
    assert (little.widths, less.widths, enough.widths) == ([8], [4], [2])
    assert job.width is not None and job.width.n_seq == 2


@pytest.mark.parametrize(
    ("seconds", "most", "n_seq", "n_tried"),
    [
        ([0.10, 0.11, 0.14, 0.20, 0.30, 0.50], 64, 32, 6),  # ever faster
        ([0.10, 0.11, 0.14, 0.28, 0.01], 64, 4, 4),  # 8 gain nothing: 16 are not tried
        ([0.10, 0.10, 0.10, 0.10], 6, 6, 4),  # no more than there are rows
        ([0.10, 0.21], 64, 1, 2),  # not even two
    ],
)
def test_how_many_is_measured(seconds: list[float], most: int, n_seq: int, n_tried: int) -> None:
    engine = ScriptedEngine(trials=seconds)
    found = fastest(engine, most, 100)
    assert (found.n_seq, len(found.tried)) == (n_seq, n_tried)
    assert found.tried[1] == pytest.approx(10)


def test_a_few_rows_are_not_measured() -> None:
    engine = ScriptedEngine()
    assert fastest(engine, 3, 100).n_seq == 3 and not engine.calls
