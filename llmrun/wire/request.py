"""What a request asks for, whatever form it came in, and what its answer is written from, whatever form it goes out in.

    body (JSON) ─► Request, for an engine ─► Piece, Piece, … ─► Event, Event, …   as it is made
                                          └► Answer ─────────► document           as a whole

What is asked for is held, or refused with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from llmrun.errors import UsageError

if TYPE_CHECKING:
    from llmrun.chat.answer_options import AnswerOptions
    from llmrun.constrain.output_format import OutputFormat
    from llmrun.engine.interface import Answer
    from llmrun.engine.meter import Timing
    from llmrun.engine.protocol import TokenLogprobs
    from llmrun.options.sampling import SamplingConfig

MOST_LOGPROBS = 20
"""As OpenAI has it."""


class Refused(Exception):
    """A request that can't be held.

    Attributes:
        param: the field that is the reason; None: none alone.
        code: a word for programs.
        status: of HTTP.
    """

    def __init__(
        self, message: str, param: str | None = None, code: str = "invalid_request", *, status: int = 400
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status

    def document(self) -> dict[str, Any]:
        return {"message": self.message, "type": "invalid_request_error", "param": self.param, "code": self.code}


@dataclass(frozen=True)
class Request:
    """What an engine is asked.

    Attributes:
        asked: messages, or a text to go on with.
        is_chat: the form of its answer.
        model: by name; None: whichever there is.
        n: answers.
        n_logprobs: as `PromptOptions` has it.
        streams: the answer is wanted as it is made.
        with_usage: with the tokens that it took, at its end, if it streams; `every_usage`: with each piece.
        with_timings: the same of how long it took, with each piece.
        reuse: what is known of its prompt need not be computed again.
    """

    asked: str | list[dict[str, str]]
    sampling: SamplingConfig
    answers: AnswerOptions
    is_chat: bool
    model: str | None = None
    n: int = 1
    n_logprobs: int | None = None
    streams: bool = False
    with_usage: bool = False
    every_usage: bool = False
    with_timings: bool = False
    reuse: bool = True

    def samplings(self) -> Iterable[SamplingConfig]:
        """Of each of its answers: with one seed they would all be the same."""
        for i in range(self.n):
            seed = self.sampling.seed
            yield self.sampling if seed is None or not i else replace(self.sampling, seed=(seed + i) & 0xFFFFFFFF)


@dataclass
class Piece:
    """What an answer has got more.

    Attributes:
        n_tokens: of both texts.
    """

    text: str = ""
    thought: str = ""
    n_tokens: int = 0
    logprobs: Sequence[TokenLogprobs] = field(default_factory=list)


class Event(NamedTuple):
    """A document of a stream. `name`: of the event; "" where a form has none."""

    name: str
    document: dict[str, Any]


class Writer(Protocol):
    """Writes the answers of one request as they are made. `i`: which of its answers."""

    def begin(self, i: int, answer: Answer) -> Iterable[Event]:
        """The prompt is known, and being computed."""

    def piece(self, i: int, piece: Piece, answer: Answer) -> Iterable[Event]: ...

    def end(self, i: int, answer: Answer) -> Iterable[Event]:
        """It has ended."""

    def close(self, answers: Sequence[Answer]) -> Iterable[Event]:
        """All have."""


# -- of which forms have their own words ---


def sampling_of(given: dict[str, Any], sampling: SamplingConfig, stop: str | Sequence[str] | None) -> SamplingConfig:
    """With the fields that are given; None is as if it were not there. Raises `UsageError`."""
    known = {name: value for name, value in given.items() if value is not None}
    if stop is not None:
        known["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return replace(sampling, **known)


def thinking_of(answers: AnswerOptions, thinks: bool | None, budget: int | None = None) -> AnswerOptions:
    """`thinks`, `budget`: None is as it was."""
    if thinks is not None and thinks != answers.thinks:
        answers = replace(answers, think="show" if thinks else "off")
    return answers if budget is None else replace(answers, think_budget=budget)


EFFORTS = {"none": 0, "minimal": 512, "low": 2048, "medium": 8192, "high": None, "xhigh": None, "max": None}
"""Words for how much to think, as tokens of a budget; None: no limit. No model here has degrees of its own."""


def effort_of(answers: AnswerOptions, effort: str | None, where: str) -> AnswerOptions:
    """Raises `Refused`."""
    if effort is None:
        return answers
    if effort not in EFFORTS:
        raise Refused(f"{where} is {effort[:40]!r}: there are {', '.join(EFFORTS)}", where)
    return thinking_of(answers, effort != "none", EFFORTS[effort])


def refusal(error: UsageError) -> Refused:
    return Refused(f"{error.field}: {error.message}" if error.field else error.message, error.field)


# To read one takes milliseconds, and many requests have the same.


@lru_cache(256)
def format_of_schema(schema: bytes) -> OutputFormat:
    from llmrun.constrain import output_format

    return output_format.of_schema(schema.decode())


@lru_cache(1)
def format_of_json() -> OutputFormat:
    from llmrun.constrain import output_format

    return output_format.of_json()


@lru_cache(256)
def format_of_grammar(text: str | None) -> OutputFormat | None:
    from llmrun.constrain import output_format

    return None if text is None else output_format.of_grammar(text)


# -- what answers tell of themselves ---


def openai_usage(timing: Timing, n_thinking: int) -> dict[str, Any]:
    return {
        "prompt_tokens": timing.n_prompt,
        "completion_tokens": timing.n_generated,
        "total_tokens": timing.n_prompt + timing.n_generated,
        "prompt_tokens_details": {"cached_tokens": timing.n_cached},
        "completion_tokens_details": {"reasoning_tokens": n_thinking},
    }


def timings(timing: Timing) -> dict[str, Any]:
    """As llama.cpp's server has them: milliseconds, tokens per second; null is not known."""
    n_computed, n_made = timing.n_prompt - timing.n_cached, len(timing.step_s)
    return {
        "cache_n": timing.n_cached,
        "prompt_n": n_computed,
        "prompt_ms": _ms(timing.prefill_s),
        "prompt_per_second": timing.pp_tps,
        "predicted_n": timing.n_generated,
        "predicted_ms": _ms(timing.decode_s) if n_made else None,
        "predicted_per_second": timing.tg_tps,
        **({"draft_n": timing.n_drafted, "draft_n_accepted": timing.n_accepted} if timing.n_drafted else {}),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds
