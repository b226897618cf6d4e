"""OpenAI's form of requests and answers: what a body asks for is held, or refused with the reason.

    body (JSON) ─► ChatBody, CompletionBody ─► Request, for an engine ─► Generation ─► answer body

Fields are those of OpenAI's API reference, and what llama.cpp's server takes beside them (`top_k`, `min_p`,
`repeat_penalty`, `grammar`, `ignore_eos`, `cache_prompt`, `timings_per_token`, `chat_template_kwargs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from llmrun import codec
from llmrun.codec import Meta, Struct
from llmrun.errors import UsageError

if TYPE_CHECKING:
    from llmrun.chat.answer_options import AnswerOptions
    from llmrun.constrain.output_format import OutputFormat
    from llmrun.engine.interface import Answer
    from llmrun.engine.meter import Timing
    from llmrun.options.sampling import SamplingConfig

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_FINISHED = {"end": "stop", "stop": "stop", "length": "length", "context": "length"}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Refused(Exception):
    """A request that can't be held.

    Attributes:
        param: the field that is the reason; None: none alone.
        code: a word for programs.
    """

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code

    def document(self) -> dict[str, Any]:
        return {"message": self.message, "type": "invalid_request_error", "param": self.param, "code": self.code}


class _Part(Struct):
    """Of the other types than text there are (images, audio) none is read here, so their fields need no names."""

    type: str
    text: str | None = None


class _Message(Struct):
    role: str
    content: str | list[_Part] | None = None


class _JsonSchema(Struct, forbid_unknown_fields=True):
    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class _ResponseFormat(Struct, forbid_unknown_fields=True):
    """OpenAI wraps the schema, llama.cpp takes it bare as well."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None
    schema: dict[str, Any] | None = None


class _TemplateArguments(Struct, forbid_unknown_fields=True):
    enable_thinking: bool | None = None


class _Body(Struct, forbid_unknown_fields=True, kw_only=True):
    """What both forms have. None is as if it were not there."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    grammar: str | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    # Of no meaning here, and of none for an answer.
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    cache_prompt: bool | None = None
    timings_per_token: bool | None = None


class ChatBody(_Body, forbid_unknown_fields=True, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_completion_tokens: int | None = None
    response_format: _ResponseFormat | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: _TemplateArguments | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None


class CompletionBody(_Body, forbid_unknown_fields=True, kw_only=True):
    prompt: str | list[str]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


@dataclass(frozen=True)
class Request:
    """What an engine is asked.

    Attributes:
        asked: messages, or a text to go on with.
        is_chat: the form of its answer.
    """

    asked: str | list[dict[str, str]]
    sampling: SamplingConfig
    answers: AnswerOptions
    is_chat: bool


def request_of(body: codec.Raw | bytes, url: str, sampling: SamplingConfig, answers: AnswerOptions) -> Request:
    """What a body asks for; what it leaves out is as `sampling` and `answers` have it. Raises `Refused`."""
    if url not in (CHAT, COMPLETIONS):
        raise Refused(f"url is {url!r}: there are {CHAT} and {COMPLETIONS}", "url")
    try:
        if url == CHAT:
            return _of_chat(codec.decode(body, ChatBody), sampling, answers)
        return _of_completion(codec.decode(body, CompletionBody), sampling, answers)
    except codec.Malformed as error:
        raise Refused(f"{error.place or 'body'} {error.problem}".strip(), error.place or None) from None
    except UsageError as error:
        raise Refused(f"{error.field}: {error.message}" if error.field else error.message, error.field) from None


def _of_chat(body: ChatBody, sampling: SamplingConfig, answers: AnswerOptions) -> Request:
    _refuse(body, {"logprobs": False, "top_logprobs": 0, "tools": [], "tool_choice": "none"})
    messages = [_message(i, each) for i, each in enumerate(body.messages)]
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    thinks = answers.thinks
    if body.reasoning_effort is not None:
        if body.reasoning_effort != "none":
            raise Refused("reasoning_effort can be none alone: no model here has degrees of it", "reasoning_effort")
        thinks = False
    if body.chat_template_kwargs and body.chat_template_kwargs.enable_thinking is not None:
        thinks = body.chat_template_kwargs.enable_thinking
    if thinks != answers.thinks:
        answers = replace(answers, think="show" if thinks else "off")
    chosen = _format_of(body.response_format) or _grammar_of(body.grammar)
    if body.response_format and body.grammar is not None and body.response_format.type != "text":
        raise Refused("response_format and grammar: an answer has one format", "grammar")
    if chosen is not None:
        answers = replace(answers, output_format=chosen)
    return Request(messages, _sampling_of(body, sampling, most), answers, True)


def _of_completion(body: CompletionBody, sampling: SamplingConfig, answers: AnswerOptions) -> Request:
    _refuse(body, {"logprobs": 0, "echo": False, "suffix": "", "best_of": 1})
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if len(texts) != 1:
        raise Refused(f"prompt has {len(texts)} texts: one request is about one", "prompt")
    if chosen := _grammar_of(body.grammar):
        answers = replace(answers, output_format=chosen)
    return Request(texts[0], _sampling_of(body, sampling, body.max_tokens), answers, False)


def _refuse(body: _Body, held: Mapping[str, Any]) -> None:
    """Fields that have to be absent, or what they would be then."""
    for name, value in {"n": 1, "stream": False, **held}.items():
        given = getattr(body, name)
        if given is not None and given != value:
            raise Refused(f"{name} is not held here: leave it out", name)


def _message(i: int, message: _Message) -> dict[str, str]:
    role = _ROLES.get(message.role)
    if role is None:
        raise Refused(f"messages[{i}].role is {message.role!r}: there are {', '.join(_ROLES)}", f"messages[{i}].role")
    content = message.content
    if content is None:
        raise Refused(f"messages[{i}].content is missing", f"messages[{i}].content")
    if isinstance(content, str):
        return {"role": role, "content": content}
    texts = []
    for j, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise Refused(f"messages[{i}].content[{j}] is {part.type!r}: text alone can be read", f"messages[{i}]")
        texts.append(part.text)
    return {"role": role, "content": "".join(texts)}


def _sampling_of(body: _Body, sampling: SamplingConfig, max_tokens: int | None) -> SamplingConfig:
    names = (
        *("temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n"),
        *("presence_penalty", "frequency_penalty", "logit_bias", "seed", "ignore_eos"),
    )
    given = {name: value for name in names if (value := getattr(body, name)) is not None}
    if max_tokens is not None:
        given["max_tokens"] = max_tokens
    if body.stop is not None:
        given["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    return replace(sampling, **given)


def _format_of(asked: _ResponseFormat | None) -> OutputFormat | None:
    if asked is None or asked.type == "text":
        return None
    schema = asked.json_schema.schema if asked.json_schema else asked.schema
    if schema is not None:
        return _of_schema(codec.encode(schema))
    if asked.type == "json_schema":
        raise Refused("response_format.json_schema is missing", "response_format")
    return _of_json()


# To read one takes milliseconds, and many requests have the same.


@lru_cache(256)
def _of_schema(schema: bytes) -> OutputFormat:
    from llmrun.constrain import output_format

    return output_format.of_schema(schema.decode())


@lru_cache(1)
def _of_json() -> OutputFormat:
    from llmrun.constrain import output_format

    return output_format.of_json()


@lru_cache(256)
def _grammar_of(text: str | None) -> OutputFormat | None:
    from llmrun.constrain import output_format

    return None if text is None else output_format.of_grammar(text)


# -- answers -----------------------------------------------------------------------------------------------------------


def answer_body(request: Request, generation: Answer, *, id_: str, model: str, created: int) -> dict[str, Any]:
    """The answer in OpenAI's form, with llama.cpp's `timings`."""
    finish = _FINISHED.get(generation.stop_reason or "")
    if request.is_chat:
        message: dict[str, Any] = {"role": "assistant", "content": generation.text}
        if generation.thinking:
            message |= {"reasoning_content": generation.thinking, "reasoning": generation.thinking}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    else:
        choice = {"index": 0, "text": generation.text, "finish_reason": finish, "logprobs": None}
    if (weighed := request.answers.choice_probabilities(generation.done)) is not None:
        choice["choice_probabilities"] = weighed
    timing = generation.timing
    return {
        "id": id_,
        "object": "chat.completion" if request.is_chat else "text_completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": _usage(timing, generation.n_thinking),
        "timings": _timings(timing),
    }


def _usage(timing: Timing, n_thinking: int) -> dict[str, Any]:
    return {
        "prompt_tokens": timing.n_prompt,
        "completion_tokens": timing.n_generated,
        "total_tokens": timing.n_prompt + timing.n_generated,
        "prompt_tokens_details": {"cached_tokens": timing.n_cached},
        "completion_tokens_details": {"reasoning_tokens": n_thinking},
    }


def _timings(timing: Timing) -> dict[str, Any]:
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
