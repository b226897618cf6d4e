"""An answer of a child: its request, its events, and how it ends; loading again where the model has to be."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from llmrun.engine.interface import Answer, Generation, OnPrefill
from llmrun.engine.meter import Meter
from llmrun.engine.protocol import (
    Buffer,
    CallPiece,
    Done,
    Failed,
    Generate,
    Message,
    Prefilled,
    Started,
    TokenLogprobs,
    Tokens,
)
from llmrun.errors import LlmrunError, OutOfMemory

if TYPE_CHECKING:
    from llmrun.engine.engine import ChildEngine


class ChildAnswer(Answer):
    """What the messages about a request tell of its answer."""

    def __init__(self, engine: ChildEngine, request: Generate) -> None:
        self._engine, self._request = engine, request
        self.meter = Meter(engine.reads)
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.call_pieces: list[CallPiece] = []
        self.buffers: list[Buffer] = []
        self.seed: int = request.sampling["seed"]

    def take(self, event: Message) -> None:
        """Note what an event says of this answer."""
        self.meter.feed(event)
        match event:
            case Started():
                self.n_ctx, self.buffers, self.thinks = event.n_ctx, event.buffers, event.thinks
                self._engine.notes += event.notes
            case Tokens():
                self.text += event.text
                self.thinking += event.thought
                self.token_ids += event.ids
                self.n_thinking += event.n_thought
                self.logprobs += event.logprobs
                self.call_pieces += event.calls
            case Done():
                self.done, self.stop_reason = event, event.stop_reason
            case Failed():
                self.stop_reason = "cancelled"


class ChildGeneration(ChildAnswer, Generation):
    """An answer of a `ChildEngine`, which is read as it is made."""

    def __init__(self, engine: ChildEngine, request: Generate, on_prefill: OnPrefill | None) -> None:
        super().__init__(engine, request)
        self._on_prefill = on_prefill
        self._number: int | None = None  # of the request that is being answered
        self._cancel_asked = False
        self._events = self._run()

    def __iter__(self) -> Iterator[str]:
        """Pieces of the answer. A generator: closing it closes this."""
        return Pieces(self, (event.text for event in self._events if event.text))

    def pieces(self) -> Iterator[tuple[str, str]]:
        """The same of the answer and of the thinking; one of the two is usually empty."""
        return Pieces(self, ((event.text, event.thought) for event in self._events))

    def cancel(self) -> None:
        """Have it end soon, by itself, with the stop reason "cancelled". May be called by a signal handler."""
        self._cancel_asked = True
        if self._number is not None:
            with suppress(LlmrunError):  # a dead engine is what the iteration will find
                self._engine.connection.cancel(self._number)

    def close(self) -> None:
        """End the generation if it still runs. The engine is free for the next one afterwards."""
        self._events.close()

    def _run(self) -> Generator[Tokens]:
        engine = self._engine
        n_prompt = 0
        with engine.turn_of(self):
            try:
                self._ask()
                while self.stop_reason is None:
                    assert self._number is not None
                    try:
                        event = engine.connection.answer(self._number)
                        if isinstance(event, Failed):
                            self._forget()
                            may_lengthen = event.kind == "prompt" and not self._request.options.reuse
                            if may_lengthen and engine.try_longer(event.numbers["n_prompt"]):
                                self._ask()
                                continue
                            raise engine.connection.error_of(event)
                    except OutOfMemory:
                        self._forget()
                        if self.token_ids or not engine.try_smaller():
                            raise
                        self._ask()
                        continue
                    self.take(event)
                    match event:
                        case Started():
                            n_prompt = event.n_prompt
                        case Prefilled() if self._on_prefill:
                            self._on_prefill(event.n_tokens, n_prompt)
                        case Tokens() if event.text or event.thought:
                            yield event
                        case Prefilled() | Tokens() | Done():
                            pass
                        case _:
                            raise engine.connection.unexpected(event, "in the middle of an answer")
            except LlmrunError:
                self.stop_reason = self.stop_reason or "cancelled"  # there is nothing to drain
                raise
            finally:
                if self.stop_reason is None and self._number is not None:
                    self._drain(self._number)
                self._forget()

    def _ask(self) -> None:
        """Send the request: the first time, and again to an engine that has loaded its model again."""
        self.meter.feed(self._engine.loaded)
        self._number = number = self._engine.connection.new_request()
        self._engine.connection.send(number, self._request)
        if self._cancel_asked:  # before there was a number, or while the model was loaded again
            self._engine.connection.cancel(number)

    def _forget(self) -> None:
        """The request is over. A cancel that comes now is meant for the next one, if there is one."""
        if self._number is not None:
            self._engine.connection.forget(self._number)
        self._number = None

    def _drain(self, number: int) -> None:
        """The caller wants no more: have the child stop, and take what it still has to say."""
        engine = self._engine
        if not engine.alive:
            return
        try:
            engine.connection.cancel(number)
            deadline = time.monotonic() + engine.connection.limits.cancel_s
            # None: deep in a native call, it will not end by asking.
            while self.stop_reason is None and (event := engine.connection.receive(number, deadline)):
                self.take(event)
        finally:
            if self.stop_reason is None:
                self.stop_reason = "cancelled"
                engine.close()


P = TypeVar("P")


class Pieces(Generator[P, None, None]):
    """What a generation makes, piece by piece. Closing this closes the generation; forgetting it does not."""

    def __init__(self, generation: Generation, pieces: Iterator[P]) -> None:
        self._generation, self._pieces = generation, pieces

    def send(self, value: None) -> P:
        return next(self._pieces)

    def throw(self, *error: Any) -> P:
        self._generation.close()
        return super().throw(*error)
