"""Answers the rows of a batch, several side by side, and keeps each result as soon as it is there.

Rows that begin alike have their beginning computed once. Where there is no memory for so many, it is tried with half as
many. An engine that crashes is replaced; the rows that it was
answering are asked once more, one after the other: the one that it crashes at again is an error.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from llmrun import codec
from llmrun.batch.rows import Row
from llmrun.batch.width import Width
from llmrun.engine.interface import Engine, Parallel, Submitted
from llmrun.engine.protocol import PromptOptions
from llmrun.errors import EngineCrashed, LlmrunError, OutOfMemory, PromptTooLong
from llmrun.wire import openai
from llmrun.wire.request import Request

_MOST_CRASHES = 3
"""Rows in a row that may crash the engine: then it is not the rows."""
_MOST_OF_ONE = 2
"""Crashes that a row may have been there at."""
_AHEAD = 4
"""Rows that wait in the engine."""


@dataclass
class Tally:
    """What was done so far.

    Attributes:
        n_answered, n_errors: rows, those of an earlier run included.
        n_prompt, n_cached, n_generated: tokens of this run; the first two of prompts, `n_cached` not computed again.
        seconds: of this run.
    """

    n_answered: int = 0
    n_errors: int = 0
    n_prompt: int = 0
    n_cached: int = 0
    n_generated: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """Generated, over all of the time."""
        return self.n_generated / self.seconds if self.n_generated and self.seconds else None


class Keeps(Protocol):
    """Where results go: `results.Results`, or standard output."""

    def add(self, result: dict[str, Any]) -> None: ...


class Job:
    """`open_engine` loads the model, the first time and after a crash. Close it: the engine is in it."""

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        model: str,
        *,
        width: Callable[[Engine], Width] = lambda _: Width(1, 0),
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`width`: how many rows are answered side by side, asked once."""
        self._open, self._model, self._find_width, self._clock, self._now = open_engine, model, width, clock, now
        self._engine: Engine | None = None
        self._width: Width | None = None
        self._crashes: Counter[str] = Counter()
        self._crashed_in_turn = 0
        self.tally = Tally()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def flush(self) -> None:
        """What is kept for the next process is on the disk then."""
        if self._engine is not None:
            self._engine.flush()

    @property
    def notes(self) -> list[str]:
        """What the engine has to say by now."""
        return self._engine.notes if self._engine is not None else []

    @property
    def width(self) -> Width | None:
        """What was chosen; None before there was a row to be answered."""
        return self._width

    def run(self, rows: Iterable[Row], results: Keeps, on_row: Callable[[Tally], None] = lambda _: None) -> None:
        """Raises what loading a model does, `OutOfMemory`, `DiskError`, and `EngineCrashed` for the third row in
        turn."""
        begin_s = self._clock()

        def keep(row: Row, result: dict[str, Any]) -> None:
            results.add({"id": row.id, "custom_id": row.custom_id, **result})
            if result["error"] is None:
                self.tally.n_answered += 1
            else:
                self.tally.n_errors += 1
            self.tally.seconds = self._clock() - begin_s
            on_row(self.tally)

        waiting, suspects = deque(rows), deque[Row]()
        while waiting or suspects:
            # What crashed beside others is asked once more by itself: it is one of them.
            alone = bool(suspects)
            asked = suspects if alone else waiting
            while asked and asked[0].request is None:
                row = asked.popleft()
                keep(row, unreadable(row))
            if not asked:
                continue
            made: dict[Submitted, Row] = {}
            try:
                with self._answers(alone=alone) as answers:
                    self._fill(answers, asked, made, keep)
                    while made:
                        answer = answers.wait()
                        assert answer is not None
                        row = made.pop(answer)
                        self._crashed_in_turn = 0
                        if not alone:
                            self._fill(answers, asked, made, keep)
                        keep(row, self._result(row, answer))
            except EngineCrashed as error:
                self.close()
                self._after_crash(error, [*made.values()], suspects, keep)
            except OutOfMemory:
                self.close()
                if alone or self._width is None or self._width.n_seq == 1:
                    raise
                self._width = replace(self._width, n_seq=self._width.n_seq // 2)
                waiting.extendleft(reversed(made.values()))

    def _fill(
        self, answers: Parallel, rows: deque[Row], made: dict[Submitted, Row], keep: Callable[[Row, Any], None]
    ) -> None:
        """Ask for as many as there is room for, and some more, so that none has to be waited for."""
        ahead = min(answers.n_seq, _AHEAD) if answers.n_seq > 1 else 0
        while rows and len(made) < answers.n_seq + ahead:
            row = rows.popleft()
            if row.request is None:
                keep(row, unreadable(row))
                continue
            made[answers.submit(row.request.before, row.request.sampling, options=_options(row.request))] = row

    @contextmanager
    def _answers(self, *, alone: bool) -> Iterator[Parallel]:
        if self._engine is None:
            self._engine = self._open()
        if self._width is None:
            self._width = self._find_width(self._engine)
        with self._engine.parallel(1 if alone else self._width.n_seq, self._width.n_ctx) as answers:
            yield answers

    def _after_crash(
        self, error: EngineCrashed, rows: list[Row], suspects: deque[Row], keep: Callable[[Row, Any], None]
    ) -> None:
        """Raises it again where it is not the rows."""
        if not rows:
            raise error
        self._crashes.update(row.id for row in rows)
        if len(rows) > 1 or self._crashes[rows[0].id] < _MOST_OF_ONE:
            suspects.extendleft(reversed(rows))
            return
        self._crashed_in_turn += 1
        if self._crashed_in_turn >= _MOST_CRASHES:
            raise error
        keep(rows[0], failed(rows[0], error))

    def _result(self, row: Row, answer: Submitted) -> dict[str, Any]:
        assert row.request is not None
        if answer.error is not None:
            return failed(row, answer.error)
        timing = answer.timing
        self.tally.n_prompt += timing.n_prompt
        self.tally.n_cached += timing.n_cached
        self.tally.n_generated += timing.n_generated
        body = openai.answer_body(row.request, answer, id_=row.id, model=self._model, created=int(self._now()))
        response = {"status_code": 200, "request_id": row.id, "body": body}
        wanted, said = row.request.answers.output_format, body["choices"][0]
        text = said["message"]["content"] if "message" in said else said["text"]
        problem = wanted.problem(text) if wanted else None
        return {"response": response, "error": _error(row, "wrong_format", problem) if problem else None}


def _options(request: Request) -> PromptOptions:
    return codec.replace(request.answers.for_prompt(reuse=True), bulk=True, assistant_prefix=request.begun)


def unreadable(row: Row) -> dict[str, Any]:
    problem = row.problem
    code, message = (problem.code, problem.message) if problem else ("invalid_row", "it can't be read")
    return {"response": None, "error": _error(row, code, message)}


def failed(row: Row, error: LlmrunError) -> dict[str, Any]:
    kinds = {PromptTooLong: "context_length_exceeded", EngineCrashed: "engine_crashed"}
    return {"response": None, "error": _error(row, kinds.get(type(error), "invalid_request"), error.message)}


def _error(row: Row, code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": f"line {row.number}: {message}"}
