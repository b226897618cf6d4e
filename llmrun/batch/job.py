"""Answers the rows of a batch, one after the other, and keeps each result as soon as it is there.

Rows that begin alike have their beginning computed once: each goes on with what the engine remembers of the one before.
An engine that crashes is replaced; the row that it crashed at is asked once more, then it is an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from llmrun.batch.rows import Row
from llmrun.engine.interface import Engine
from llmrun.errors import EngineCrashed, PromptTooLong, UsageError
from llmrun.wire import openai
from llmrun.wire.openai import Request

_MOST_CRASHES = 3
"""Rows in a row that may crash the engine: then it is not the rows."""


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
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._open, self._model, self._clock, self._now = open_engine, model, clock, now
        self._engine: Engine | None = None
        self._crashes = 0
        self.tally = Tally()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def run(self, rows: Iterable[Row], results: Keeps, on_row: Callable[[Tally], None] = lambda _: None) -> None:
        """Raises what loading a model does, `OutOfMemory`, `DiskError`, and `EngineCrashed` for the third row in
        turn."""
        begin_s = self._clock()
        for row in rows:
            result = self._result(row)
            results.add(result)
            if result["error"] is None:
                self.tally.n_answered += 1
            else:
                self.tally.n_errors += 1
            self.tally.seconds = self._clock() - begin_s
            on_row(self.tally)

    def _result(self, row: Row) -> dict[str, Any]:
        head = {"id": row.id, "custom_id": row.custom_id}
        if row.request is None:
            problem = row.problem
            code, message = (problem.code, problem.message) if problem else ("invalid_row", "it can't be read")
            return {**head, "response": None, "error": {"code": code, "message": f"line {row.number}: {message}"}}
        try:
            body = self._answered(row.request, row.id)
        except (UsageError, PromptTooLong, EngineCrashed) as error:
            if self._crashes >= _MOST_CRASHES:
                raise
            kinds = {PromptTooLong: "context_length_exceeded", EngineCrashed: "engine_crashed"}
            code = kinds.get(type(error), "invalid_request")
            return {**head, "response": None, "error": {"code": code, "message": f"line {row.number}: {error.message}"}}
        response = {"status_code": 200, "request_id": row.id, "body": body}
        wanted, said = row.request.answers.output_format, body["choices"][0]
        text = said["message"]["content"] if "message" in said else said["text"]
        problem_of_it = wanted.problem(text) if wanted else None
        wrong = {"code": "wrong_format", "message": f"line {row.number}: {problem_of_it}"} if problem_of_it else None
        return {**head, "response": response, "error": wrong or None}

    def _answered(self, request: Request, id_: str) -> dict[str, Any]:
        """Raises `EngineCrashed` only where it has crashed at this twice."""
        try:
            return self._asked(request, id_)
        except EngineCrashed:
            self.close()
        try:
            return self._asked(request, id_)
        except EngineCrashed:
            self.close()
            self._crashes += 1
            raise

    def _asked(self, request: Request, id_: str) -> dict[str, Any]:
        if self._engine is None:
            self._engine = self._open()
        options = request.answers.for_prompt(reuse=True)
        generation = self._engine.generate(request.asked, request.sampling, options=options)
        for _ in generation:
            pass
        self._crashes = 0
        timing = generation.timing
        self.tally.n_prompt += timing.n_prompt
        self.tally.n_cached += timing.n_cached
        self.tally.n_generated += timing.n_generated
        return openai.answer_body(request, generation, id_=id_, model=self._model, created=int(self._now()))
