"""Anthropic's form of requests and answers: messages.

A prompt's tokens that were known already are `cache_read_input_tokens`, and are not among `input_tokens`, as Anthropic
counts. What a model thought comes before its text, without a signature: none is needed to hand it in again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from llmrun import codec
from llmrun.codec import Meta, Struct, words
from llmrun.engine.protocol import new_call_id
from llmrun.wire.openai import call_of, text_of_parts
from llmrun.wire.request import (
    Choice,
    Event,
    Function,
    Piece,
    Refused,
    Request,
    chosen,
    effort_of,
    format_of_schema,
    refusals,
    sampling_of,
    thinking_of,
    tools_of,
)

if TYPE_CHECKING:
    from llmrun.chat.answer_options import AnswerOptions
    from llmrun.engine.interface import Answer
    from llmrun.engine.protocol import Tool
    from llmrun.options.sampling import SamplingConfig

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
_KINDS = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")
_STOPPED = {"end": "end_turn", "stop": "stop_sequence", "length": "max_tokens", "context": "max_tokens"}


class _Block(Struct):
    """`text` and `thinking` of these two; the others of a tool's use, and of its result."""

    type: Annotated[str, words(_KINDS)]
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[_Part] | None = None


class _Part(Struct):
    type: str
    text: str | None = None


class _Tool(Struct):
    name: str
    type: Annotated[str, words(["custom"])] | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class _ToolChoice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Message(Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[_Block]


class _Thinking(Struct):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: str | None = None


class _Format(Struct, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class _Output(Struct, forbid_unknown_fields=True):
    effort: str | None = None
    format: _Format | None = None


class _Edit(Struct):
    type: str
    keep: Any = None


class _Context(Struct, forbid_unknown_fields=True):
    edits: list[_Edit] | None = None


class CountBody(Struct, kw_only=True):
    """Of what there is to count; the rest is as in `MessagesBody`, and changes nothing."""

    messages: Annotated[list[_Message], Meta(min_length=1)]
    model: str | None = None
    system: str | list[_Block] | None = None
    thinking: _Thinking | None = None
    output_config: _Output | None = None
    tools: list[_Tool] | None = None
    tool_choice: _ToolChoice | None = None


class MessagesBody(CountBody, forbid_unknown_fields=True, kw_only=True):
    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    context_management: _Context | None = None
    # Of no meaning here, and of none for an answer.
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    cache_control: dict[str, Any] | None = None


def request_of(body: bytes, sampling: SamplingConfig, answers: AnswerOptions) -> Request:
    """As `openai.request_of`."""
    with refusals():
        asked = codec.decode(body, MessagesBody)
        _refuse_edits(asked.context_management)
        found = _tools(asked)
        given = {
            "max_tokens": asked.max_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": asked.top_k,
        }
        return Request(
            _messages(asked),
            sampling_of(given, sampling, asked.stop_sequences),
            _answers(asked, answers),
            True,
            model=asked.model,
            streams=bool(asked.stream),
            tools=found.tools,
            must_call=found.must_call,
            several_calls=not (asked.tool_choice and asked.tool_choice.disable_parallel_tool_use),
        )


def _refuse_edits(context: _Context | None) -> None:
    """Of messages nothing is taken away here; where an edit would take nothing, it is held."""
    for edit in (context.edits if context else None) or ():
        if (edit.type, edit.keep) != ("clear_thinking_20251015", "all"):
            raise Refused(
                f"context_management: {edit.type[:40]!r} is not held: send what is to be read", "context_management"
            )


def _tools(asked: CountBody) -> Choice:
    for i, tool in enumerate(asked.tools or ()):
        if tool.type not in (None, "custom"):
            raise Refused(f"tools[{i}] is {tool.type[:40]!r}: functions of yours alone are held", f"tools[{i}]")
    functions = [Function(tool.name, tool.description, tool.input_schema) for tool in asked.tools or ()]
    kinds = {"auto": "auto", "any": "required", "tool": "one", "none": "none"}
    choice = asked.tool_choice
    return chosen(
        tools_of(functions, "tools"),
        kinds[choice.type] if choice else None,
        choice.name if choice else None,
        "tool_choice",
    )


def count_of(body: bytes, answers: AnswerOptions) -> tuple[list[dict[str, Any]], bool, tuple[Tool, ...]]:
    """Messages to be counted, whether they are answered with thinking, and tools. Raises `Refused`."""
    with refusals():
        asked = codec.decode(body, CountBody)
    return _messages(asked), _answers(asked, answers).thinks, _tools(asked).tools


def _answers(asked: CountBody, answers: AnswerOptions) -> AnswerOptions:
    output = asked.output_config or _Output()
    # How long to think; whether to is said by `thinking`.
    answers = replace(effort_of(answers, output.effort, "output_config.effort"), think=answers.think)
    if output.format is not None:
        if asked.tools:
            raise Refused("tools and output_config.format: an answer has one form", "output_config.format")
        answers = replace(answers, output_format=format_of_schema(codec.encode(output.format.schema)))
    if asked.thinking is None:
        return answers
    return thinking_of(answers, asked.thinking.type != "disabled", asked.thinking.budget_tokens)


def _messages(asked: CountBody) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if asked.system:
        messages.append({"role": "system", "content": _text(asked.system, "system")})
    for i, message in enumerate(asked.messages):
        where = f"messages[{i}].content"
        if isinstance(message.content, str):
            messages.append({"role": message.role, "content": message.content})
            continue
        text = _text(message.content, where)
        said: dict[str, Any] = {"role": message.role, "content": text}
        thought = "".join(block.thinking or "" for block in message.content if block.type == "thinking")
        if thought:
            said["reasoning_content"] = thought
        calls = [block for block in message.content if block.type == "tool_use"]
        if calls:
            said["tool_calls"] = [
                call_of(each.id, each.name or "", codec.encode(each.input or {}).decode()) for each in calls
            ]
        results = [block for block in message.content if block.type == "tool_result"]
        for block in results:
            told = text_of_parts(block.content or "", where, ("text",))
            messages.append({"role": "tool", "content": told, "tool_call_id": block.tool_use_id or ""})
        if text or calls or not results:
            messages.append(said)
    return messages


def _text(content: str | Sequence[_Block], where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for j, block in enumerate(content):
        if block.type in _KINDS[1:]:
            continue
        if block.type != "text" or block.text is None:
            raise Refused(f"{where}[{j}] is {block.type[:40]!r}: text alone can be read", where)
        texts.append(block.text)
    return "".join(texts)


def count_fields(messages: Sequence[dict[str, Any]], tools: Sequence[Tool]) -> dict[str, Any]:
    """The fields of a body that counts messages as chat templates take them: the way back from `count_of`."""
    specs = [{"name": each.name, "description": each.description, "input_schema": each.parameters} for each in tools]
    return {"messages": [_said(each) for each in messages], **({"tools": specs} if specs else {})}


def _said(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        result = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": message["content"]}
        return {"role": "user", "content": [result]}
    calls = [
        {
            "type": "tool_use",
            "id": each["id"],
            "name": each["function"]["name"],
            "input": json.loads(each["function"]["arguments"]),
        }
        for each in message.get("tool_calls", ())
    ]
    content: Any = message["content"]
    return {
        "role": message["role"],
        "content": [{"type": "text", "text": content}, *calls] if calls else content,
    }


# -- answers -----------------------------------------------------------------------------------------------------------


def body_of(request: Request, answers: Sequence[Answer], *, id_: str, model: str) -> dict[str, Any]:
    (answer,) = answers
    content: list[dict[str, Any]] = []
    if answer.thinking:
        content.append({"type": "thinking", "thinking": answer.thinking, "signature": ""})
    calls = answer.calls
    if answer.text or not (content or calls):
        content.append({"type": "text", "text": answer.text})
    for call in calls:
        content.append({"type": "tool_use", "id": new_call_id(), "name": call.name, "input": _loaded(call.arguments)})
    return {**_message(id_, model, answer), "content": content, **_ended(answer)}


def _message(id_: str, model: str, answer: Answer) -> dict[str, Any]:
    return {
        "id": id_,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(answer),
    }


def _ended(answer: Answer) -> dict[str, Any]:
    which = answer.done.stop if answer.done is not None and answer.stop_reason == "stop" else None
    reason = _STOPPED.get(answer.stop_reason or "")
    if answer.call_pieces and reason in ("end_turn", "stop_sequence"):
        reason = "tool_use"
    return {"stop_reason": reason, "stop_sequence": which}


def _loaded(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:  # cut by the limit
        return {}


def _usage(answer: Answer) -> dict[str, int]:
    timing = answer.timing
    return {
        "input_tokens": timing.n_prompt - timing.n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": timing.n_cached,
        "output_tokens": timing.n_generated,
    }


class Events:
    """An answer as Anthropic's events."""

    def __init__(self, request: Request, *, id_: str, model: str) -> None:
        self._request, self._id, self._model = request, id_, model
        self._index = -1
        self._open = ""  # the kind of the block that is open

    def begin(self, i: int, answer: Answer) -> Iterator[Event]:
        message = _message(self._id, self._model, answer)
        message["usage"]["output_tokens"] = 0
        yield _event("message_start", message=message)
        yield _event("ping")

    def piece(self, i: int, piece: Piece, answer: Answer) -> Iterator[Event]:
        if piece.thought:
            yield from self._within("thinking")
            yield self._delta(type="thinking_delta", thinking=piece.thought)
        if piece.text:
            yield from self._within("text")
            yield self._delta(type="text_delta", text=piece.text)
        for call in piece.calls:
            if call.name:
                yield from self._closed()
                self._index, self._open = self._index + 1, "tool_use"
                block = {"type": "tool_use", "id": new_call_id(), "name": call.name, "input": {}}
                yield _event("content_block_start", index=self._index, content_block=block)
            if call.arguments:
                yield self._delta(type="input_json_delta", partial_json=call.arguments)

    def end(self, i: int, answer: Answer) -> Iterator[Event]:
        if not self._open:
            yield from self._within("text")
        yield from self._closed()
        yield _event("message_delta", delta=_ended(answer), usage=_usage(answer))

    def close(self, answers: Sequence[Answer]) -> Iterator[Event]:
        yield _event("message_stop")

    def _within(self, kind: str) -> Iterator[Event]:
        if self._open == kind:
            return
        yield from self._closed()
        self._index, self._open = self._index + 1, kind
        empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}[kind]
        yield _event("content_block_start", index=self._index, content_block={"type": kind, **empty})

    def _closed(self) -> Iterator[Event]:
        if self._open:
            yield _event("content_block_stop", index=self._index)
            self._open = ""

    def _delta(self, **delta: str) -> Event:
        return _event("content_block_delta", index=self._index, delta=delta)


def _event(name: str, **fields: Any) -> Event:
    return Event(name, {"type": name, **fields})


class _Error(TypedDict):
    type: str
    message: str


class ErrorBody(TypedDict):
    type: Literal["error"]
    error: _Error


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(status: int, message: str) -> ErrorBody:
    return {"type": "error", "error": {"type": _TYPES.get(status, "api_error"), "message": message}}
