"""A stream of chat completions, as its reader has it: OpenAI's chunks, with what llama.cpp's server and llmrun add.

For the load of a bench and for `server.remote`. Whatever any server leaves out or has as null may be missing; what is
not read is not named.
"""

from __future__ import annotations

from typing import Annotated, Any

from llmrun.codec import Meta, Struct

# What is beyond is no count of tokens, and no time or rate: it would be in sums and quantiles.
_Count = Annotated[int, Meta(ge=0, le=1 << 31)]
_Figure = Annotated[float, Meta(ge=0, le=1e12)]


class Function(Struct):
    name: str | None = None
    arguments: str | None = None


class Call(Struct):
    """A piece of a call of a tool."""

    index: int = 0
    function: Function | None = None


class Delta(Struct):
    """`reasoning`: what others call `reasoning_content`."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Call] | None = None

    @property
    def thought(self) -> str:
        return self.reasoning_content or self.reasoning or ""


class Choice(Struct):
    """`text`: of completions, which have no delta."""

    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class Details(Struct):
    cached_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None


class Usage(Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: Details | None = None
    completion_tokens_details: Details | None = None

    @property
    def n_cached(self) -> int | None:
        """Of the prompt's tokens."""
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None

    @property
    def n_thinking(self) -> int:
        """Of the answer's tokens."""
        details = self.completion_tokens_details
        return (details.reasoning_tokens if details else None) or 0


class Timings(Struct):
    """As llama.cpp's server has them."""

    prompt_ms: _Figure | None = None
    prompt_per_second: _Figure | None = None
    predicted_ms: _Figure | None = None
    predicted_per_second: _Figure | None = None
    draft_n: _Count | None = None
    draft_n_accepted: _Count | None = None

    @property
    def prompt_s(self) -> float | None:
        return _s(self.prompt_ms)

    @property
    def decode_s(self) -> float | None:
        return _s(self.predicted_ms)


class Chunk(Struct):
    """`error`: an object with a message, or a text."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: Any = None


def _s(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000
