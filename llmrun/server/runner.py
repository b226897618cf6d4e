"""A loaded model, asked from the loop that serves: answers side by side, the others in a queue.

    submit ──► queue ──► the engine, as many side by side as it answers ──► pieces
                ▲                                   │
                └── those that wait, after a crash ◄┘ a new engine, while those that it was answering get an error

The queue is here, so that who leaves it costs the engine nothing, and that questions about tokens wait for nobody.

The loop reads what the engine says: whoever wakes a second thread at every token takes as much from the threads that
compute. A thread of each runner loads, looks whether the engine still does anything, and loads again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from llmrun import codec
from llmrun.engine.engine import ChildEngine
from llmrun.engine.interface import Answer
from llmrun.engine.parallel import Asked, Parallel, Question, SubmittedAnswer
from llmrun.engine.protocol import Message, PromptOptions
from llmrun.errors import EngineCrashed, LlmrunError
from llmrun.options.sampling import SamplingConfig
from llmrun.wire.request import Piece

T = TypeVar("T")
_POLL_S = 0.01
_LOOK_S = 1.0
"""So often the engine's thread looks whether it still does anything."""
_MOST_NEWS = 64
"""So much at a time is told before the loop has its turn again."""


class Busy(LlmrunError):
    """As many requests wait already as may."""


class Stopping(LlmrunError):
    """The server is on its way out."""


@dataclass
class Width:
    """Attributes:
    n_seq: answers side by side; 0 of a model that writes none.
    n_ctx: tokens of prompt and answer that each has room for from the beginning.
    n_ctx_most: tokens that it may grow to.
    """

    n_seq: int
    n_ctx: int
    n_ctx_most: int


@dataclass
class Totals:
    """What a runner did. Seconds are of all answers together; `n_steps` of the engine with as many as it had each."""

    n_answers: int = 0
    n_errors: int = 0
    n_prompt: int = 0
    n_cached: int = 0
    n_generated: int = 0
    n_embedded: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    n_crashes: int = 0


class Stream:
    """One answer, for the loop: `begun`, then iterate for its pieces.

    Attributes:
        model: by name.
        answer: what the engine knows of it, as soon as it has it.
        asked_s: when it was asked for, on `time.perf_counter`.
    """

    def __init__(
        self,
        runner: Runner,
        asked: str | list[dict[str, Any]],
        sampling: SamplingConfig,
        options: PromptOptions,
    ) -> None:
        self._runner, self.model = runner, runner.name
        self.asked, self.sampling, self.options = asked, sampling, options
        self.answer: SubmittedAnswer | None = None
        self.asked_s = time.perf_counter()
        self._pieces: list[Piece] = []
        self._has_news, self._has_begun, self._has_ended = asyncio.Event(), asyncio.Event(), False
        self._n_text = self._n_thought = self._n_tokens = self._n_logprobs = self._n_calls = 0
        self._error: LlmrunError | None = None
        self.is_again = False  # an engine died before it had begun with it

    @property
    def has_begun(self) -> bool:
        """Whether the engine has."""
        return self.answer is not None and self.answer.n_ctx is not None

    async def begun(self) -> Answer:
        """Wait until its prompt is known and being computed. Raises what it could not be asked for."""
        await self._has_begun.wait()
        if self._error is not None:
            raise self._error
        assert self.answer is not None
        return self.answer

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        """All that has come since the last one: who reads slowly gets more at once."""
        while (piece := self.now()) is None:
            if self.is_over:
                raise StopAsyncIteration
            self._has_news.clear()
            await self._has_news.wait()
        return piece

    def now(self) -> Piece | None:
        """All that has come since the last one, if anything has. Raises what ended it, behind its last piece."""
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            return joined(pieces)
        if self._error is not None:
            raise self._error
        return None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self._has_ended and not self._pieces

    def ring(self, bell: asyncio.Event) -> None:
        """Set this whenever something comes, in place of its own: who reads several streams waits for one bell."""
        self._has_news = bell

    def cancel(self) -> None:
        """Nobody wants it any more. Safe to call twice, and when it has ended."""
        self._runner.leave(self)

    # -- for the runner ---

    def take(self) -> Piece:
        """What it has got since the last time."""
        answer = self.answer
        assert answer is not None
        piece = Piece(
            answer.text[self._n_text :],
            answer.thinking[self._n_thought :],
            len(answer.token_ids) - self._n_tokens,
            answer.logprobs[self._n_logprobs :],
            answer.call_pieces[self._n_calls :],
        )
        self._n_text, self._n_thought = len(answer.text), len(answer.thinking)
        self._n_tokens, self._n_logprobs = len(answer.token_ids), len(answer.logprobs)
        self._n_calls = len(answer.call_pieces)
        return piece

    def tell(self, piece: Piece | None, error: LlmrunError | None, *, ended: bool) -> None:
        if piece is not None and (piece.text or piece.thought or piece.logprobs or piece.calls or piece.n_tokens):
            self._pieces.append(piece)
        self._error, self._has_ended = error, ended
        self._has_news.set()
        self._has_begun.set()


def joined(pieces: list[Piece]) -> Piece:
    """The same as one."""
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        "".join(piece.text for piece in pieces),
        "".join(piece.thought for piece in pieces),
        sum(piece.n_tokens for piece in pieces),
        [each for piece in pieces for each in piece.logprobs],
        [each for piece in pieces for each in piece.calls],
    )


@dataclass
class _Question:
    """`is_again`: an engine died of it, or before it."""

    message: Question
    reply: asyncio.Future[Message]
    is_again: bool = False


@dataclass
class Runner:
    """One model. `start` it on the loop; `close` it.

    Attributes:
        name: of the model.
        open_engine: loads it; also after a crash. Raises `LlmrunError`.
        width_of: how many answers side by side.
        most_waiting: requests that may wait.
        whole_prompts: a prompt is computed as a whole, and answers that are being made wait for it.
        on_end: told of each answer that has ended, or has failed, on the loop.
        engine: as it is loaded now.
        state: "loading", "ready", "failed" or "closed".
    """

    name: str
    open_engine: Callable[[], ChildEngine]
    width_of: Callable[[ChildEngine], Width]
    most_waiting: int = 64
    whole_prompts: bool = False
    on_end: Callable[[Stream, LlmrunError | None], None] = lambda _stream, _error: None
    on_note: Callable[[str], None] = lambda _: None
    engine: ChildEngine | None = None
    width: Width | None = None
    state: str = "loading"
    error: LlmrunError | None = None
    totals: Totals = field(default_factory=Totals)
    used_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._lock = threading.Condition()
        self._waiting: deque[Stream] = deque()
        self._active: dict[SubmittedAnswer, Stream] = {}
        self._questions: dict[Asked, _Question] = {}
        self._early: list[_Question] = []
        self._answers: Parallel | None = None
        self._fault: Exception | None = None  # what the engine broke with, for its thread
        self._heard: int | None = None  # the file that the loop listens to
        self._full: int | None = None  # the file that takes no more at the moment
        self._n_news = self._n_held = 0
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"engine {self.name}", daemon=True)
        self._thread.start()

    # -- on the loop ---

    @property
    def n_active(self) -> int:
        return len(self._active)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def answers(self) -> list[SubmittedAnswer]:
        """Those that are being made."""
        with self._lock:
            return [*self._active]

    @property
    def n_slots(self) -> int:
        """0 before it is known."""
        return self.width.n_seq if self.width else 0

    @property
    def is_idle(self) -> bool:
        return not (self._active or self._waiting or self._questions or self._early or self._n_held)

    @contextmanager
    def held(self) -> Iterator[None]:
        """It is not idle, also between two questions of this block."""
        self._n_held += 1
        try:
            yield
        finally:
            self._n_held -= 1

    async def ready(self) -> None:
        """Wait until it is loaded. Raises why it can't be."""
        while self.state == "loading":
            await asyncio.sleep(_POLL_S)
        if self.error is not None:
            raise self.error

    def submit(self, asked: str | list[dict[str, Any]], sampling: SamplingConfig, options: PromptOptions) -> Stream:
        """Raises `Busy`, `Stopping`."""
        if self.whole_prompts:
            options = codec.replace(options, patient=True)
        stream = Stream(self, asked, sampling, options)
        self.used_s = time.monotonic()
        with self._lock:
            if self._closing:
                raise self.error or Stopping("the server is stopping")
            self._waiting.append(stream)
            self._fill()
            # While it is loaded, as many more as will be answered at once.
            room = self.most_waiting + (0 if self._answers else max(1, self.n_slots))
            if len(self._waiting) > room:
                self._waiting.remove(stream)
                n, at_most = len(self._waiting), "as many as may"
                raise Busy(f"{n} requests wait already, {at_most}" if n else "all places are taken, and none may wait")
            self._lock.notify()
        self._listen()
        return stream

    async def ask(self, message: Question) -> Message:
        """Raises `LlmrunError`."""
        question = _Question(message, self._loop.create_future())
        self.used_s = time.monotonic()
        with self._lock:
            if self._closing:
                raise self.error or Stopping("the server is stopping")
            if self._answers is None:
                self._early.append(question)
            else:
                self._put(question)
            self._lock.notify()
        self._listen()
        return await question.reply

    def leave(self, stream: Stream) -> None:
        with self._lock:
            if stream in self._waiting:
                self._waiting.remove(stream)
            elif stream.answer in self._active:
                with suppress(LlmrunError):  # a dead engine is what its thread will find
                    stream.answer.cancel()

    async def close(self, limit_s: float = 0.0) -> None:
        """Take nothing more, let what runs end within so many seconds, end the rest, and unload."""
        deadline = time.monotonic() + limit_s
        self._refuse_all(Stopping("the server is stopping"))
        while self._active and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for stream in list(self._active.values()):
            self.leave(stream)
        ended = time.monotonic() + 10
        while self._thread.is_alive() and time.monotonic() < ended:
            await asyncio.sleep(0.01)
        if self._thread.is_alive() and self.engine is not None:  # deep in a native call
            engine = self.engine
            with self._lock:
                self._fail(Stopping("the server is stopping"))
            self._listen()  # no more: before its file is closed
            engine.close()
            await asyncio.to_thread(self._thread.join)

    def _listen(self) -> None:
        """To the engine, as long as anything is to come of it."""
        with self._lock:
            answers = self._answers
            wanted = answers.fileno() if answers is not None and (self._active or self._questions) else None
            if wanted is None:
                self._lock.notify()  # whoever waits for the last of it
        if self._full is not None and (answers is None or answers.stdin_fileno() != self._full):
            self._loop.remove_writer(self._full)
            self._full = None
        if wanted == self._heard:
            return
        if self._heard is not None:
            self._loop.remove_reader(self._heard)
        self._heard = wanted
        if wanted is not None:
            self._loop.add_reader(wanted, self._hear)

    def _write_later(self) -> None:
        """The engine's pipe is full: go on when it isn't."""
        if (answers := self._answers) is not None and self._full is None:
            self._full = answers.stdin_fileno()
            self._loop.add_writer(self._full, self._write)

    def _write(self) -> None:
        if self._full is not None:
            self._loop.remove_writer(self._full)
            self._full = None
        try:
            if (answers := self._answers) is not None:
                answers.flush()
        except LlmrunError as error:
            with self._lock:
                self._fail(error)
        self._listen()

    def _hear(self) -> None:
        """Take in what the engine says, and tell those that it is for."""
        answers = self._answers if self._heard is not None else None  # a call of before may come late
        try:
            for _ in range(_MOST_NEWS):
                if answers is None or (news := answers.any_news(0)) is None:
                    break
                self._n_news += 1
                self._take(news)
                if not answers.has_read:
                    break
            else:  # no file has news of what was read already
                self._loop.call_soon(self._hear)
        except Exception as error:  # noqa: BLE001  # whatever it is, the thread has it
            with self._lock:
                self._fail(error)
        self._listen()

    def _take(self, news: SubmittedAnswer | Asked) -> None:
        if isinstance(news, Asked):
            _resolve(self._questions.pop(news), news)
            return
        stream = self._active[news]
        piece = stream.take()
        if news.stop_reason is None:
            stream.tell(piece, None, ended=False)
            return
        error = news.error
        if error is None and news.stop_reason == "cancelled":
            error = Stopping("the answer was ended")
        self._count(news, error)
        with self._lock:
            del self._active[news]
            self._fill()
        self._tell(stream, piece, error)

    def _refuse_all(self, error: LlmrunError) -> None:
        """Those that wait; and nothing more is taken."""
        with self._lock:
            self._closing = True
            waiting, self._waiting = list(self._waiting), deque()
            early, self._early = self._early, []
            self._lock.notify()
        for stream in waiting:
            stream.tell(None, error, ended=True)
            self.on_end(stream, error)
        for question in early:
            _reject(question, error)

    # -- with the lock ---

    def _fill(self) -> None:
        """Give the engine what it can answer now."""
        answers = self._answers
        while answers is not None and self._waiting and len(self._active) < answers.n_seq:
            stream = self._waiting.popleft()
            try:
                stream.answer = answers.submit(stream.asked, stream.sampling, options=stream.options)
            except LlmrunError as error:  # the engine is dead: with a new one it is answered
                self._waiting.appendleft(stream)
                self._fail(error)
                return
            self._active[stream.answer] = stream

    def _put(self, question: _Question) -> None:
        assert self._answers is not None
        try:
            self._questions[self._answers.ask(question.message)] = question
        except LlmrunError as error:
            self._early.append(question)
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """The engine is of no more use; its thread takes over."""
        self._fault, self._answers = self._fault or error, None
        self._lock.notify()

    # -- the engine's thread ---

    def _run(self) -> None:
        while not self._closing:
            try:
                with self.open_engine() as engine:
                    self.engine = engine
                    for note in engine.notes:
                        self.on_note(f"{self.name}: {note}")
                    self.width = width = self.width_of(engine)
                    with engine.parallel(width.n_seq, width.n_ctx) as answers:
                        self._begin(answers)
                        self._wait(answers)
                    engine.flush()
            except LlmrunError as error:
                self._broken(error)
            except Exception as error:  # noqa: BLE001  # whatever it is, nobody may wait for ever
                self._broken(EngineCrashed(f"{type(error).__name__}: {error}"))
            self._answers = self.engine = None
        if self.state != "failed":
            self.state = "closed"

    def _begin(self, answers: Parallel) -> None:
        answers.send_later(partial(self._post, self._write_later))
        with self._lock:
            self._answers, self._fault, self.state = answers, None, "ready"
            early, self._early = self._early, []
            for question in early:
                self._put(question)
            self._fill()
        self._post(self._listen)

    def _wait(self, answers: Parallel) -> None:
        """Until it is to end, and nothing is being made. Raises what the engine broke with."""
        watch, n_news, is_hung = answers.watch(), self._n_news, False
        while self._fault is None and not is_hung:
            with self._lock:
                is_busy = bool(self._active or self._questions)
                if self._closing and not is_busy:
                    break
                if self._fault is None:
                    self._lock.wait(_LOOK_S if is_busy else None)
            if is_busy and n_news == self._n_news:
                is_hung = watch.is_idle()
            else:
                watch, n_news = answers.watch(), self._n_news
        with self._lock:
            self._answers = None
        self._stop_listening()
        answers.send_later(None)
        if self._fault is not None:
            raise self._fault
        if is_hung:
            raise answers.hung()

    def _stop_listening(self) -> None:
        """Before the file is closed; who reads from it next is this thread."""
        ended = threading.Event()

        def end() -> None:
            self._listen()
            ended.set()

        self._post(end)
        while not (ended.wait(_LOOK_S) or self._loop.is_closed()):
            pass

    def _count(self, answer: SubmittedAnswer, error: LlmrunError | None) -> None:
        timing, totals = answer.timing, self.totals
        totals.n_answers += error is None
        totals.n_errors += error is not None
        totals.n_prompt += timing.n_prompt
        totals.n_cached += timing.n_cached
        totals.n_generated += timing.n_generated
        totals.prefill_s += timing.prefill_s or 0.0
        totals.decode_s += timing.decode_s

    def _broken(self, error: LlmrunError) -> None:
        """The engine is gone: an error for those that it was answering. What it had not begun is asked once more, of
        the next one: it may have been dead already. One that can't be loaded at all is given up."""
        was_ready = self.state == "ready"
        with self._lock:
            streams, self._active = list(self._active.values()), {}
            questions, self._questions = list(self._questions.values()), {}
            self._answers, self.engine = None, None
            self.state = "loading"
            if was_ready and not self._closing:
                streams, not_begun = _parted(streams, lambda each: each.is_again or each.has_begun)
                questions, unanswered = _parted(questions, lambda each: each.is_again)
                for stream in not_begun:
                    stream.is_again = True
                for question in unanswered:
                    question.is_again = True
                self._waiting.extendleft(reversed(not_begun))
                self._early += unanswered
        if was_ready:
            self.totals.n_crashes += 1
            self.totals.n_errors += len(streams)
            if not self._closing:
                self.on_note(f"{self.name}: {error.message}; it is loaded again")
        else:
            self.error, self.state = error, "failed"
            if self.totals.n_crashes:
                self.on_note(f"{self.name}: {error.message}")
            self._post(lambda: self._refuse_all(error))
            self._closing = True
        for stream in streams:
            self._post(partial(self._tell, stream, None, error))
        for question in questions:
            self._post(partial(_reject, question, error))

    def _post(self, do: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(do)

    def _tell(self, stream: Stream, piece: Piece | None, error: LlmrunError | None) -> None:
        """How it has ended."""
        stream.tell(piece, error, ended=True)
        self.on_end(stream, error)


def _parted(all_of: Sequence[T], is_first: Callable[[T], bool]) -> tuple[list[T], list[T]]:
    """In two, each in its order."""
    return [each for each in all_of if is_first(each)], [each for each in all_of if not is_first(each)]


def _reject(question: _Question, error: LlmrunError) -> None:
    if not question.reply.done():
        question.reply.set_exception(error)


def _resolve(question: _Question, asked: Asked) -> None:
    if question.reply.done():
        return
    if asked.error is not None:
        question.reply.set_exception(asked.error)
    else:
        assert asked.reply is not None
        question.reply.set_result(asked.reply)
