"""Several answers of a child side by side: each is sent when it is asked for, and told as it is made.

One thread may ask while another waits for what comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from llmrun.engine import interface
from llmrun.engine.generation import ChildAnswer
from llmrun.engine.interface import Messages
from llmrun.engine.protocol import (
    Count,
    Counted,
    Decode,
    Decoded,
    Done,
    Embed,
    Embedded,
    Encode,
    Encoded,
    Failed,
    Generate,
    Message,
    Prefilled,
    PromptOptions,
    Started,
    Tokens,
)
from llmrun.errors import EngineCrashed, LlmrunError
from llmrun.options.sampling import SamplingConfig

if TYPE_CHECKING:
    from llmrun.engine.engine import ChildEngine
    from llmrun.engine.process import IdleWatch


Question: TypeAlias = "Count | Encode | Decode | Embed"


class SubmittedAnswer(ChildAnswer, interface.Submitted):
    """One of them. `number`: of its request."""

    def __init__(self, engine: ChildEngine, request: Generate) -> None:
        super().__init__(engine, request)
        self.number = engine.connection.new_request()

    def cancel(self) -> None:
        if self.stop_reason is None:
            self._engine.connection.cancel(self.number)


class Asked:
    """A question that is answered beside them.

    Attributes:
        reply: None before it is there, and where there is none.
        error: why there is none.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.reply: Message | None = None
        self.error: LlmrunError | None = None


class Parallel(interface.Parallel):
    """The answers of `ChildEngine.parallel`."""

    def __init__(self, engine: ChildEngine, n_seq: int) -> None:
        self._engine, self.n_seq = engine, n_seq
        self._made: dict[int, SubmittedAnswer | Asked] = {}

    def submit(
        self, prompt: str | Messages, sampling: SamplingConfig | None = None, *, options: PromptOptions | None = None
    ) -> SubmittedAnswer:
        request = self._engine.request(prompt, sampling, options)
        answer = SubmittedAnswer(self._engine, request)
        answer.meter.feed(self._engine.loaded)
        self._made[answer.number] = answer
        self._engine.connection.send(answer.number, request)
        return answer

    def ask(self, question: Question) -> Asked:
        """Answered between two tokens, as soon as fewer requests wait than are answered at a time."""
        asked = Asked(self._engine.connection.new_request())
        self._made[asked.number] = asked
        self._engine.connection.send(asked.number, question)
        return asked

    def any_news(self, timeout_s: float | None = None) -> SubmittedAnswer | Asked | None:
        """The next answer, or question, of which something has come; None after so many seconds, or if none is being
        made. An answer has ended if it has a stop reason. Raises as `wait`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if not self._made or (found := self._engine.connection.any_answer(self._made, deadline)) is None:
            return None
        number, event = found
        made = self._made[number]
        if isinstance(made, Asked):
            self._take_reply(made, event)
            return made
        match event:
            case Failed():
                made.error = self._error_of(event)
            case Started() | Prefilled() | Tokens() | Done():
                pass
            case _:
                raise self._engine.connection.unexpected(event, "in the middle of an answer")
        made.take(event)
        if made.stop_reason is not None:
            self._forget(number)
        return made

    @property
    def has_read(self) -> bool:
        """Whether there is news that is read already: `fileno` says nothing of it."""
        return self._engine.connection.has_read

    def fileno(self) -> int:
        """What may be waited for until there is news."""
        return self._engine.connection.child.fileno()

    def send_later(self, on_full: Callable[[], None] | None) -> None:
        """Never wait until the engine takes a request: `on_full` is told that it has to be waited for elsewhere, until
        `stdin_fileno` is ready for more, and then `flush` called. None: wait, as at first."""
        self._engine.connection.on_full = on_full

    def stdin_fileno(self) -> int:
        return self._engine.connection.child.stdin_fileno()

    def flush(self) -> None:
        """Raises `EngineCrashed`."""
        self._engine.connection.flush()

    def watch(self) -> IdleWatch:
        """Of the engine, for who waits for news elsewhere: whether it has used no CPU for too long."""
        return self._engine.connection.watch()

    def hung(self) -> EngineCrashed:
        """End an engine that is idle, and say so."""
        return self._engine.connection.hung()

    def _take_reply(self, asked: Asked, event: Message) -> None:
        match event:
            case Failed():
                asked.error = self._error_of(event)
            case Counted() | Encoded() | Decoded() | Embedded():
                asked.reply = event
            case _:
                raise self._engine.connection.unexpected(event, "for a question")
        self._forget(asked.number)

    def _error_of(self, failed: Failed) -> LlmrunError:
        """Raises it where the engine did not survive it."""
        error = self._engine.connection.error_of(failed)
        if not self._engine.alive:
            raise error
        return error

    def _forget(self, number: int) -> None:
        del self._made[number]
        self._engine.connection.forget(number)

    def wait(self, timeout_s: float | None = None) -> SubmittedAnswer | None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._made:
            news = self.any_news(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if news is None:
                return None
            if isinstance(news, SubmittedAnswer) and news.stop_reason is not None:
                return news
        return None

    def close(self) -> None:
        """End those that are still being made."""
        with suppress(LlmrunError):  # an engine that is dead answers nobody
            for made in self._made.values():
                if isinstance(made, SubmittedAnswer):
                    made.cancel()
            while self._made and self.any_news(self._engine.connection.limits.cancel_s):
                pass
        if self._made:
            self._engine.close()
            self._made.clear()
