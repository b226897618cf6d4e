"""OpenAI's form of requests and answers: chat completions, and completions.

Fields are those of OpenAI's API reference, and what llama.cpp's server takes beside them (`top_k`, `min_p`,
`repeat_penalty`, `grammar`, `ignore_eos`, `cache_prompt`, `timings_per_token`, `chat_template_kwargs`,
`thinking_budget_tokens`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from llmrun import codec
from llmrun.codec import Meta, Struct, words
from llmrun.engine.protocol import new_call_id
from llmrun.wire.request import (
    EFFORTS,
    MOST_LOGPROBS,
    Event,
    Function,
    Piece,
    Refused,
    Request,
    chosen,
    effort_of,
    format_of_grammar,
    format_of_json,
    format_of_schema,
    openai_usage,
    refusals,
    sampling_of,
    thinking_of,
    timings,
    tools_of,
)

if TYPE_CHECKING:
    from llmrun.chat.answer_options import AnswerOptions
    from llmrun.constrain.output_format import OutputFormat
    from llmrun.engine.interface import Answer
    from llmrun.engine.protocol import TokenLogprobs, Tool
    from llmrun.options.sampling import SamplingConfig

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MOST_ANSWERS = 16
"""Of one request."""
_BY_TOKEN = Meta(extra_json_schema={"propertyNames": {"pattern": "^[0-9]+$"}})
_FINISHED = {"end": "stop", "stop": "stop", "length": "length", "context": "length"}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


class _Part(Struct):
    """Of the other types than text there are (images, audio) none is read here, so their fields need no names."""

    type: Annotated[str, words(["text"])]
    text: str | None = None


class CalledFunction(Struct):
    name: str
    arguments: str = ""


class ToolCall(Struct):
    function: CalledFunction
    id: str | None = None
    type: str | None = None


class _Message(Struct):
    role: Annotated[str, words(_ROLES)]
    content: str | list[_Part] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class FunctionSpec(Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(Struct):
    type: Literal["function"]
    function: FunctionSpec


class _NamedFunction(Struct):
    name: str


class ToolChoice(Struct):
    type: Literal["function"]
    function: _NamedFunction


class JsonSchema(Struct, forbid_unknown_fields=True):
    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True):
    """OpenAI wraps the schema, llama.cpp takes it bare as well."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None


class TemplateArguments(Struct, forbid_unknown_fields=True):
    enable_thinking: bool | None = None


class StreamOptions(Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


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
    logit_bias: Annotated[dict[int, float], _BY_TOKEN] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    grammar: str | None = None
    n: Annotated[int, Meta(ge=1, extra_json_schema={"maximum": MOST_ANSWERS})] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_prompt: bool | None = None
    timings_per_token: bool | None = None
    # Of no meaning here, and of none for an answer.
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ChatBody(_Body, forbid_unknown_fields=True, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_completion_tokens: int | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Annotated[str, words(EFFORTS)] | None = None
    chat_template_kwargs: TemplateArguments | None = None
    thinking_budget_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None


class _Error(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    error: _Error


class CompletionBody(_Body, forbid_unknown_fields=True, kw_only=True):
    prompt: str | list[str]
    logprobs: Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


def request_of(
    body: codec.Raw | bytes, url: str, sampling: SamplingConfig, answers: AnswerOptions, *, live: bool = False
) -> Request:
    """What a body asks for; what it leaves out is as `sampling` and `answers` have it. `live`: somebody waits for the
    answer, which may be a stream, several, and with probabilities. Raises `Refused`."""
    if url not in (CHAT, COMPLETIONS):
        raise Refused(f"url is {url!r}: there are {CHAT} and {COMPLETIONS}", "url")
    with refusals():
        if url == CHAT:
            return _of_chat(codec.decode(body, ChatBody), sampling, answers, live=live)
        return _of_completion(codec.decode(body, CompletionBody), sampling, answers, live=live)


def _of_chat(body: ChatBody, sampling: SamplingConfig, answers: AnswerOptions, *, live: bool) -> Request:
    _refuse(body, {"modalities": ["text"]})
    if not live:
        _refuse(body, {"n": 1, "stream": False, "logprobs": False, "top_logprobs": 0})
        _refuse(body, {"tools": [], "tool_choice": "none"})
    if body.top_logprobs and not body.logprobs:
        raise Refused("top_logprobs is of no effect without logprobs: true", "top_logprobs")
    messages = [_message(i, each) for i, each in enumerate(body.messages)]
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    answers = effort_of(answers, body.reasoning_effort, "reasoning_effort")
    thinks = body.chat_template_kwargs.enable_thinking if body.chat_template_kwargs else None
    answers = thinking_of(answers, thinks, body.thinking_budget_tokens)
    if body.response_format and body.grammar is not None and body.response_format.type != "text":
        raise Refused("response_format and grammar: an answer has one format", "grammar")
    form = _format_of(body.response_format) or format_of_grammar(body.grammar)
    if form is not None:
        answers = replace(answers, output_format=form)
    n_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    request = _request(body, messages, _sampling_of(body, sampling, most), answers, n_logprobs)
    return _with_tools(request, body)


def _with_tools(request: Request, body: ChatBody) -> Request:
    specs = [each.function for each in body.tools or ()]
    tools = tools_of([Function(each.name, each.description, each.parameters) for each in specs], "tools")
    named = body.tool_choice.function.name if isinstance(body.tool_choice, ToolChoice) else None
    choice = "one" if isinstance(body.tool_choice, ToolChoice) else body.tool_choice
    found = chosen(tools, choice, named, "tool_choice")
    if found.tools and request.answers.output_format is not None:
        raise Refused("tools and response_format: an answer has one form", "response_format")
    several = body.parallel_tool_calls is not False
    return replace(request, tools=found.tools, must_call=found.must_call, several_calls=several)


def _of_completion(body: CompletionBody, sampling: SamplingConfig, answers: AnswerOptions, *, live: bool) -> Request:
    _refuse(body, {"echo": False, "suffix": "", "best_of": 1})
    if not live:
        _refuse(body, {"n": 1, "stream": False, "logprobs": 0})
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if len(texts) != 1:
        raise Refused(f"prompt has {len(texts)} texts: one request is about one", "prompt")
    if form := format_of_grammar(body.grammar):
        answers = replace(answers, output_format=form)
    return _request(body, texts[0], _sampling_of(body, sampling, body.max_tokens), answers, body.logprobs)


def _request(
    body: _Body,
    asked: str | list[dict[str, Any]],
    sampling: SamplingConfig,
    answers: AnswerOptions,
    n_logprobs: int | None,
) -> Request:
    if (body.n or 1) > MOST_ANSWERS:
        raise Refused(f"n is {body.n}: at most {MOST_ANSWERS} answers are made of one request", "n")
    options = body.stream_options or StreamOptions()
    return Request(
        asked,
        sampling,
        answers,
        isinstance(body, ChatBody),
        model=body.model,
        n=body.n or 1,
        n_logprobs=n_logprobs,
        streams=bool(body.stream),
        with_usage=bool(options.include_usage),
        every_usage=bool(options.continuous_usage_stats),
        with_timings=bool(body.timings_per_token),
        reuse=body.cache_prompt is not False,
    )


def _refuse(body: _Body, held: Mapping[str, Any]) -> None:
    """Fields that have to be absent, or what they would be then."""
    for name, value in held.items():
        given = getattr(body, name)
        if given is not None and given != value:
            raise Refused(f"{name} is not held here: leave it out", name)


def _message(i: int, message: _Message) -> dict[str, Any]:
    role = _ROLES.get(message.role)
    if role is None:
        raise Refused(f"messages[{i}].role is {message.role!r}: there are {', '.join(_ROLES)}", f"messages[{i}].role")
    if message.content is None and not message.tool_calls:
        raise Refused(f"messages[{i}].content is missing", f"messages[{i}].content")
    said: dict[str, Any] = {"role": role}
    said["content"] = text_of_parts(message.content or "", f"messages[{i}].content", ("text",))
    if message.tool_calls:
        if role != "assistant":
            raise Refused(f"messages[{i}].tool_calls: an assistant alone calls", f"messages[{i}].tool_calls")
        said["tool_calls"] = [
            call_of(each.id, each.function.name, each.function.arguments) for each in message.tool_calls
        ]
    if role == "tool":
        said |= {"tool_call_id": message.tool_call_id or "", **({"name": message.name} if message.name else {})}
    if thought := message.reasoning_content or message.reasoning:
        said["reasoning_content"] = thought
    return said


def call_of(id_: str | None, name: str, arguments: str) -> dict[str, Any]:
    """A call among messages, as templates are given it."""
    return {"id": id_ or new_call_id(), "type": "function", "function": {"name": name, "arguments": arguments}}


def text_of_parts(content: str | Sequence[Any], where: str, kinds: Sequence[str]) -> str:
    """Of a text, or of parts of these kinds, which all have a text. Raises `Refused`."""
    if isinstance(content, str):
        return content
    texts = []
    for j, part in enumerate(content):
        if part.type not in kinds or part.text is None:
            raise Refused(f"{where}[{j}] is {part.type[:40]!r}: text alone can be read", where)
        texts.append(part.text)
    return "".join(texts)


def _sampling_of(body: _Body, sampling: SamplingConfig, max_tokens: int | None) -> SamplingConfig:
    names = (
        *("temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n"),
        *("presence_penalty", "frequency_penalty", "logit_bias", "seed", "ignore_eos"),
    )
    given = {name: getattr(body, name) for name in names} | {"max_tokens": max_tokens}
    return sampling_of(given, sampling, body.stop)


def _format_of(asked: ResponseFormat | None) -> OutputFormat | None:
    if asked is None or asked.type == "text":
        return None
    schema = asked.json_schema.schema if asked.json_schema else asked.schema
    if schema is not None:
        return format_of_schema(codec.encode(schema))
    if asked.type == "json_schema":
        raise Refused("response_format.json_schema is missing", "response_format")
    return format_of_json()


def format_fields(wanted: OutputFormat | None) -> dict[str, Any]:
    """The fields of a body that ask for a format: the way back from what `request_of` makes of them."""
    if wanted is None:
        return {}
    if wanted.kind == "json":
        return {"response_format": {"type": "json_object"}}
    if wanted.kind == "json_schema":
        schema = json.loads(wanted.text)
        held = {"schema": schema if isinstance(schema, dict) else {}}  # of a schema that is `true`; `false` is refused
        return {"response_format": {"type": "json_schema", "json_schema": held}}
    if wanted.kind == "grammar":
        return {"grammar": wanted.text}
    return {"grammar": "root ::= " + " | ".join(json.dumps(each, ensure_ascii=False) for each in wanted.choices)}


def tool_fields(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


# -- answers -----------------------------------------------------------------------------------------------------------


def answer_body(request: Request, answer: Answer, *, id_: str, model: str, created: int) -> dict[str, Any]:
    """The answer in OpenAI's form, with llama.cpp's `timings`."""
    return body_of(request, [answer], id_=id_, model=model, created=created)


def body_of(request: Request, answers: Sequence[Answer], *, id_: str, model: str, created: int) -> dict[str, Any]:
    """All answers of a request."""
    return {
        "id": id_,
        "object": "chat.completion" if request.is_chat else "text_completion",
        "created": created,
        "model": model,
        "choices": [_choice(request, i, answer) for i, answer in enumerate(answers)],
        "usage": _usage_of(answers),
        "timings": timings(answers[0].timing),
    }


def _choice(request: Request, i: int, answer: Answer) -> dict[str, Any]:
    finish = _finish(answer)
    logprobs = _logprobs(request, answer.logprobs, 0)
    if request.is_chat:
        calls = [call_of(None, call.name, call.arguments) for call in answer.calls]
        message: dict[str, Any] = {"role": "assistant", "content": answer.text if answer.text or not calls else None}
        if calls:
            message["tool_calls"] = calls
        if answer.thinking:
            message |= {"reasoning_content": answer.thinking, "reasoning": answer.thinking}
        choice: dict[str, Any] = {"index": i, "message": message, "finish_reason": finish, "logprobs": logprobs}
    else:
        choice = {"index": i, "text": answer.text, "finish_reason": finish, "logprobs": logprobs}
    if (weighed := request.answers.choice_probabilities(answer.done)) is not None:
        choice["choice_probabilities"] = weighed
    return choice


def _finish(answer: Answer) -> str | None:
    finish = _FINISHED.get(answer.stop_reason or "")
    return "tool_calls" if answer.call_pieces and finish == "stop" else finish


def _usage_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """Of all together; a prompt that several answers share counts once."""
    usage = openai_usage(answers[0].timing, sum(answer.n_thinking for answer in answers))
    usage["completion_tokens"] = sum(answer.meter.n_generated for answer in answers)
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    return usage


def _logprobs(request: Request, made: Sequence[TokenLogprobs], n_before: int) -> dict[str, Any] | None:
    """`n_before`: characters of the answer before these tokens."""
    if request.n_logprobs is None:
        return None
    if request.is_chat:
        return {"content": [{**_token(each), "top_logprobs": [_token(top) for top in each.top]} for each in made]}
    texts = [each.piece.decode(errors="replace") for each in made]
    return {
        "tokens": texts,
        "token_logprobs": [each.logprob for each in made],
        "top_logprobs": [{top.piece.decode(errors="replace"): top.logprob for top in each.top} for each in made],
        "text_offset": [*accumulate(map(len, texts), initial=n_before)][:-1],
    }


def _token(each: Any) -> dict[str, Any]:
    return {"token": each.piece.decode(errors="replace"), "logprob": each.logprob, "bytes": [*each.piece]}


class Chunks:
    """The answers of a request as chunks."""

    def __init__(self, request: Request, *, id_: str, model: str, created: int) -> None:
        self._request = request
        kind = "chat.completion.chunk" if request.is_chat else "text_completion"
        self._head = {"id": id_, "object": kind, "created": created, "model": model}
        self._n_chars: dict[int, int] = {}

    def begin(self, i: int, answer: Answer) -> Iterator[Event]:
        if self._request.is_chat:
            yield self._chunk(i, {"delta": {"role": "assistant", "content": ""}}, answer)

    def piece(self, i: int, piece: Piece, answer: Answer) -> Iterator[Event]:
        logprobs = _logprobs(self._request, piece.logprobs, self._n_chars.get(i, 0)) if piece.logprobs else None
        told = {"logprobs": logprobs} if logprobs else {}
        self._n_chars[i] = self._n_chars.get(i, 0) + len(piece.text)
        if not self._request.is_chat:
            if piece.text or told:
                yield self._chunk(i, {"text": piece.text, **told}, answer)
            return
        if piece.thought:
            yield self._chunk(i, {"delta": {"reasoning_content": piece.thought, "reasoning": piece.thought}}, answer)
        if piece.text or told:
            yield self._chunk(i, {"delta": {"content": piece.text}, **told}, answer)
        for call in piece.calls:
            more: dict[str, Any] = {"index": call.index, "function": {"arguments": call.arguments}}
            if call.name:
                function = {"name": call.name, "arguments": call.arguments}
                more = {"index": call.index, "id": new_call_id(), "type": "function", "function": function}
            yield self._chunk(i, {"delta": {"tool_calls": [more]}}, answer)

    def end(self, i: int, answer: Answer) -> Iterator[Event]:
        last: dict[str, Any] = {"delta": {}} if self._request.is_chat else {"text": ""}
        if (weighed := self._request.answers.choice_probabilities(answer.done)) is not None:
            last["choice_probabilities"] = weighed
        chunk = self._chunk(i, last, answer, finish=_finish(answer))
        chunk.document["timings"] = timings(answer.timing)
        yield chunk

    def close(self, answers: Sequence[Answer]) -> Iterator[Event]:
        if self._request.with_usage:
            yield Event("", {**self._head, "choices": [], "usage": _usage_of(answers)})

    def _chunk(self, i: int, choice: dict[str, Any], answer: Answer, finish: str | None = None) -> Event:
        document: dict[str, Any] = {**self._head, "choices": [{"index": i, **choice, "finish_reason": finish}]}
        if self._request.every_usage:
            document["usage"] = _usage_of([answer])
        if self._request.with_timings and finish is None:
            document["timings"] = timings(answer.timing)
        return Event("", document)
