"""Several answers of a child side by side: each is sent when it is asked for, and told when it has ended."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from llmrun.engine import interface
from llmrun.engine.generation import ChildAnswer
from llmrun.engine.interface import Messages
from llmrun.engine.protocol import Done, Failed, Generate, Prefilled, PromptOptions, Started, Tokens
from llmrun.errors import LlmrunError
from llmrun.options.sampling import SamplingConfig

if TYPE_CHECKING:
    from llmrun.engine.engine import ChildEngine


class SubmittedAnswer(ChildAnswer, interface.Submitted):
    """One of them. `number`: of its request."""

    def __init__(self, engine: ChildEngine, request: Generate) -> None:
        super().__init__(engine, request)
        self.number = engine.connection.new_request()

    def cancel(self) -> None:
        if self.stop_reason is None:
            self._engine.connection.cancel(self.number)


class Parallel(interface.Parallel):
    """The answers of `ChildEngine.parallel`."""

    def __init__(self, engine: ChildEngine, n_seq: int) -> None:
        self._engine, self.n_seq = engine, n_seq
        self._made: dict[int, SubmittedAnswer] = {}

    def submit(
        self, prompt: str | Messages, sampling: SamplingConfig | None = None, *, options: PromptOptions | None = None
    ) -> SubmittedAnswer:
        request = self._engine.request(prompt, sampling, options)
        answer = SubmittedAnswer(self._engine, request)
        answer.meter.feed(self._engine.loaded)
        self._made[answer.number] = answer
        self._engine.connection.send(answer.number, request)
        return answer

    def wait(self, timeout_s: float | None = None) -> SubmittedAnswer | None:
        connection = self._engine.connection
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._made:
            found = connection.any_answer(self._made, deadline)
            if found is None:
                return None
            number, event = found
            answer = self._made[number]
            match event:
                case Failed():
                    answer.error = connection.error_of(event)
                    if not self._engine.alive:
                        raise answer.error
                case Started() | Prefilled() | Tokens() | Done():
                    pass
                case _:
                    raise connection.unexpected(event, "in the middle of an answer")
            answer.take(event)
            if answer.stop_reason is not None:
                del self._made[number]
                connection.forget(number)
                return answer
        return None

    def close(self) -> None:
        """End those that are still being made."""
        with suppress(LlmrunError):  # an engine that is dead answers nobody
            for answer in self._made.values():
                answer.cancel()
            while self._made and self.wait(self._engine.connection.limits.cancel_s):
                pass
        if self._made:
            self._engine.close()
            self._made.clear()
