"""What an engine is to those who use one: a loaded model, of which there may be more kinds than one.

    engine     the loaded model: weights, devices, what it was planned to take
    session    one timeline in it: the tokens that it remembers, and what is generated behind them
    generation one answer of a session, as it is made

`engine.engine.ChildEngine` is the one that computes, in a child process. It is its own session, with one timeline; or
it makes several answers side by side (`Engine.parallel`). `server.remote.RemoteEngine` is a server's model, asked over
HTTP. The tests have one that says what a script says (`tests/scripted_engine.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar

from llmrun.engine.buffers import FootprintCheck
from llmrun.engine.meter import Meter, Timing
from llmrun.engine.protocol import (
    Buffer,
    CallPiece,
    Done,
    Loaded,
    PromptOptions,
    StopReason,
    TokenLogprobs,
    Tool,
    TrialResult,
)
from llmrun.errors import LlmrunError
from llmrun.gguf.reader import Header
from llmrun.machine.device import Device
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig
from llmrun.planning.footprint import DecodeReads
from llmrun.planning.load_plan import LoadPlan

Messages = Sequence[dict[str, Any]]
"""Dicts of role and content, as chat templates take them; an assistant's may have `tool_calls`, in OpenAI's form."""


class ToolCall(NamedTuple):
    """`arguments`: JSON."""

    name: str
    arguments: str


OnPrefill = Callable[[int, int], None]
"""Called with the tokens of the prompt that are computed, and all of them, after each batch."""


class Answer(Protocol):
    """What is known of one answer.

    Attributes:
        text: the answer so far.
        thinking: what a reasoning model thought before it, which is no part of the answer.
        thinks: whether it may think at all, by its template; None before prefill.
        token_ids: the tokens of both.
        n_thinking: how many of them were thinking.
        logprobs: how likely those were that were not, where the request wanted it.
        call_pieces: its calls of tools, as they came.
        stop_reason: why it ended ("end", "length", "stop", "context", "cancelled"); None while it runs.
        n_ctx: the tokens of context it may use; None before prefill.
        buffers: what llama.cpp holds, by device.
        seed: the seed that was used; None: a server chose one.
        done: what the engine told at the end; None before, and without an end of its own.
        meter: the figures so far.
    """

    text: str = ""
    thinking: str = ""
    thinks: bool | None = None
    token_ids: list[int]
    n_thinking: int = 0
    logprobs: Sequence[TokenLogprobs] = ()
    call_pieces: Sequence[CallPiece] = ()
    stop_reason: StopReason | None = None
    n_ctx: int | None = None
    buffers: list[Buffer]
    seed: int | None
    done: Done | None = None
    meter: Meter

    @property
    def timing(self) -> Timing:
        return self.meter.timing()

    @property
    def calls(self) -> list[ToolCall]:
        """Its calls of tools, so far."""
        found: list[ToolCall] = []
        for piece in self.call_pieces:
            if piece.index == len(found):
                found.append(ToolCall("", ""))
            before = found[piece.index]
            found[piece.index] = ToolCall(before.name + piece.name, before.arguments + piece.arguments)
        return found


class Generation(Answer, Protocol):
    """One answer, as it is made: iterate for its text, then ask for `stop_reason`, `timing` and the rest."""

    def __iter__(self) -> Iterator[str]:
        """Pieces of the answer. Closing the iterator closes the generation."""

    def pieces(self) -> Iterator[tuple[str, str]]:
        """Pieces of the answer and of the thinking; one of the two is usually empty."""

    def cancel(self) -> None:
        """Have it end soon, by itself, with the stop reason "cancelled". May be called by a signal handler."""

    def close(self) -> None:
        """End the generation if it still runs. The session is free for the next one afterwards."""


class Submitted(Answer, Protocol):
    """One of several answers that are made side by side.

    Attributes:
        error: why there is none: `PromptTooLong`, `UsageError`.
    """

    error: LlmrunError | None = None

    def cancel(self) -> None:
        """Have it end soon, with the stop reason "cancelled"."""


class Parallel(Protocol):
    """Answers side by side, all in one timeline of the engine.

    Attributes:
        n_seq: as many at a time; others wait for their turn.
    """

    n_seq: int

    def submit(
        self, prompt: str | Messages, sampling: SamplingConfig | None = None, *, options: PromptOptions | None = None
    ) -> Submitted:
        """As `Session.generate`; it is sent at once."""

    def wait(self, timeout_s: float | None = None) -> Submitted | None:
        """The next one that has ended, whichever it is; None after so many seconds, or if none is being made.

        Raises `EngineCrashed`, `OutOfMemory`.
        """


class Session(Protocol):
    """One timeline. One thing at a time: `UsageError` for a second one meanwhile."""

    @property
    def n_ctx_most(self) -> int:
        """The most tokens of context that a conversation can have here."""

    def generate(
        self,
        prompt: str | Messages,
        sampling: SamplingConfig | None = None,
        *,
        options: PromptOptions | None = None,
        on_prefill: OnPrefill | None = None,
    ) -> Generation:
        """Answer messages through the chat template, or continue a text as it is. Nothing is sent before it is read.

        Asking for the next one ends one that was left in the middle.
        """

    def count(
        self,
        prompt: str | Messages,
        *,
        template: str | None = None,
        thinks: bool = True,
        special: bool | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> int:
        """The tokens that a text has, or messages once they are rendered for an answer.

        With `special`, control tokens count where their names stand in what is given.
        """

    def prepare(
        self,
        messages: Messages,
        *,
        template: str | None = None,
        thinks: bool = True,
        special: bool | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> None:
        """Compute what a conversation begins with while nobody asks for anything; the next request ends it."""


E = TypeVar("E", bound="Engine")


class Engine(Session, Protocol):
    """A loaded model. A context manager: leaving it unloads the model, whatever it is doing.

    Attributes:
        config: what was asked for.
        header: of the model, with the metadata that `config` overrides.
        plan: what lies where, and why. Another one after the model had to be loaded again.
        loaded: what the model is, and how long loading took: the last time.
        devices: everything that llama.cpp sees, RAM among it.
        system_info: the flags that llama.cpp was built with, in its own words.
        versions: what ggml says of itself: {"ggml": "0.25.3"}.
        notes: what a user should be told of how it was loaded, one sentence each.
        reads: bytes that decoding reads.
        server: address of the one that computes, of which plan, devices and process are not known here; None: no server
            does.
        usual_sampling: how it samples what a request leaves open; None: that is not its own to say.
    """

    config: LoadConfig
    header: Header
    plan: LoadPlan
    loaded: Loaded
    devices: list[Device]
    system_info: str
    versions: dict[str, str]
    notes: list[str]
    reads: DecodeReads
    server: str | None = None
    usual_sampling: SamplingConfig | None = None

    @property
    def n_threads(self) -> int:
        return self.plan.n_threads

    @property
    def repack(self) -> bool:
        """Whether the weights in RAM are rearranged."""
        return self.plan.repack

    @property
    def plain_prefill(self) -> bool:
        """Whether they are there as in the file as well, for long prompts."""
        return self.plan.plain_prefill

    @property
    def pid(self) -> int:
        """Of the process that computes. Another one after the model had to be loaded again."""

    @property
    def alive(self) -> bool: ...

    def trial(self, n_prompt: int, n_gen: int, *, n_depth: int = 0, n_seq: int = 1, n_ctx: int = 0) -> TrialResult:
        """Bare speed: random tokens, nothing sampled (see `protocol.Trial`)."""

    def parallel(self, n_seq: int, n_ctx: int) -> AbstractContextManager[Parallel]:
        """While it is open up to `n_seq` answers are made side by side, and no other one. Each has a context of its
        own, with room for `n_ctx` tokens from the beginning. What a conversation left in the memory is lost.

        Raises `OutOfMemory`.
        """

    def checks(self, generation: Generation) -> list[FootprintCheck]:
        """The footprint for the context that a generation had, beside what llama.cpp took."""

    def most_context(self, n_seq: int) -> int:
        """Tokens that each of so many answers side by side can have, by what is free now beside the model; 0: there is
        no room for so many."""

    def flush(self) -> None:
        """Wait, not for long, until what is kept for the next process is on the disk."""

    def close(self) -> None:
        """Unload. Safe to call twice."""

    def __enter__(self: E) -> E:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
