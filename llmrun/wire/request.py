"""What a request asks for, whatever form it came in, and what its answer is written from, whatever form it goes out in.

    body (JSON) ─► Request, for an engine ─► Piece, Piece, … ─► Event, Event, …   as it is made
                                          └► Answer ─────────► document           as a whole

What is asked for is held, or refused with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from llmrun import codec
from llmrun.errors import UsageError
from llmrun.options.sampling import MAX_SEED
from llmrun.options.spec import Whole

if TYPE_CHECKING:
    from llmrun.chat.answer_options import AnswerOptions
    from llmrun.constrain.output_format import OutputFormat
    from llmrun.engine.interface import Answer
    from llmrun.engine.meter import Timing
    from llmrun.engine.protocol import CallPiece, PromptOptions, TokenLogprobs, Tool
    from llmrun.options.sampling import SamplingConfig

MOST_LOGPROBS = 20
"""As OpenAI has it."""
SEEDS = Whole(-(1 << 63), (1 << 63) - 1)
"""As everybody has them."""


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
        tools, must_call, several_calls: as `PromptOptions` has them.
        must_think: refused by a model that does not think.
        echo: fields of the answer's document that say what was asked for, in the form it came in.
    """

    asked: str | list[dict[str, Any]]
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
    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    several_calls: bool = True
    must_think: bool = False
    echo: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises `Refused` for an answer that is begun and has a form from its first character on."""
        if self.begun and (self.must_call or self.answers.output_format is not None):
            raise Refused(
                "the last message is the answer's beginning, and the answer has a form: leave one of them out"
            )

    @property
    def begun(self) -> str:
        """The beginning of the answer: what an assistant has said last, of messages that somebody else began."""
        last = self.asked[-1] if isinstance(self.asked, list) and len(self.asked) > 1 else {}
        return "" if last.get("role") != "assistant" or last.get("tool_calls") else str(last["content"])

    @property
    def before(self) -> str | list[dict[str, Any]]:
        """What is asked, without that."""
        return self.asked[:-1] if self.begun else self.asked

    def options(self) -> PromptOptions:
        """For the engine. Who writes the whole prompt writes its control tokens."""
        return self.answers.for_prompt(
            special=self.answers.special or (None if isinstance(self.asked, str) else False),
            reuse=self.reuse,
            anew=not self.reuse,
            n_logprobs=self.n_logprobs,
            tools=[*self.tools] or None,
            must_call=self.must_call,
            several_calls=self.several_calls,
            assistant_prefix=self.begun,
        )

    def samplings(self) -> Iterable[SamplingConfig]:
        """Of each of its answers: with one seed they would all be the same."""
        for i in range(self.n):
            seed = self.sampling.seed
            yield self.sampling if seed is None or not i else replace(self.sampling, seed=(seed + i) % (MAX_SEED + 1))


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
    calls: Sequence[CallPiece] = field(default_factory=list)


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
    """With the fields that are given; None is as if it were not there. Raises `UsageError`.

    A seed of -1 is none, as llama.cpp and ollama have it; one of more than 32 bits counts by these.
    """
    known = {name: value for name, value in given.items() if value is not None}
    if "seed" in known:
        try:
            SEEDS.check(known["seed"])
        except ValueError as error:
            raise UsageError(str(error), field="seed", value=known["seed"]) from None
        known["seed"] = None if known["seed"] == -1 else known["seed"] % (MAX_SEED + 1)
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


class Function(NamedTuple):
    """A tool in anybody's form."""

    name: str
    description: str | None
    parameters: dict[str, Any] | None


def tools_of(functions: Sequence[Function], where: str) -> tuple[Tool, ...]:
    """Raises `Refused` for what can't be called or enforced."""
    from llmrun.engine.protocol import Tool

    made, names = [], set[str]()
    for i, each in enumerate(functions):
        if not re.fullmatch(r"[\w.\-]{1,128}", each.name) or each.name in names:
            why = "twice" if each.name in names else "no name: letters, digits, _, - and . are possible"
            raise Refused(f"{where}[{i}]: {each.name[:60]!r} is {why}", f"{where}[{i}]")
        names.add(each.name)
        parameters = each.parameters or {"type": "object", "properties": {}}
        try:
            enforced = format_of_schema(codec.encode(parameters)).grammar
        except UsageError as error:
            raise Refused(f"{where}[{i}], {each.name}: {error.message}", f"{where}[{i}]") from None
        schema = json.loads(enforced)["grammars"][0]["json_schema"]
        made.append(Tool(each.name, each.description or "", parameters, schema))
    return tuple(made)


class Choice(NamedTuple):
    """Which tools an answer may call, and whether it has to."""

    tools: tuple[Tool, ...]
    must_call: bool


def chosen(tools: tuple[Tool, ...], choice: str | None, name: str | None, where: str) -> Choice:
    """`choice`: "auto", "none", "required", or "one", which is `name`. Raises `Refused`."""
    if choice == "none":
        return Choice((), must_call=False)
    if choice in ("required", "one") and not tools:
        raise Refused(f"{where}: there are no tools", where)
    if choice == "one":
        found = tuple(tool for tool in tools if tool.name == name)
        if not found:
            raise Refused(f"{where}: {f'there is no tool {name[:60]!r}' if name else 'it names no tool'}", where)
        return Choice(found, must_call=True)
    return Choice(tools, must_call=choice == "required")


@contextmanager
def refusals() -> Iterator[None]:
    """What is no body, and what no option can be, as `Refused`."""
    try:
        yield
    except codec.Malformed as error:
        raise Refused(f"{error.place or 'body'} {error.problem}".strip(), error.place or None) from None
    except UsageError as error:
        raise Refused(f"{error.field}: {error.message}" if error.field else error.message, error.field) from None


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
