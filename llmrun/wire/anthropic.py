"""Anthropic's form of requests and answers: messages.

A prompt's tokens that were known already are `cache_read_input_tokens`, and are not among `input_tokens`, as Anthropic
counts. What a model thought comes before its text, without a signature: none is needed to hand it in again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from llmrun import codec
from llmrun.codec import Meta, Struct
from llmrun.errors import UsageError
from llmrun.wire.request import Event, Piece, Refused, Request, refusal, sampling_of, thinking_of

if TYPE_CHECKING:
    from llmrun.chat.answer_options import AnswerOptions
    from llmrun.engine.interface import Answer
    from llmrun.options.sampling import SamplingConfig

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
_STOPPED = {"end": "end_turn", "stop": "stop_sequence", "length": "max_tokens", "context": "max_tokens"}


class _Block(Struct):
    type: str
    text: str | None = None
    thinking: str | None = None


class _Message(Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[_Block]


class _Thinking(Struct):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: str | None = None


class CountBody(Struct, kw_only=True):
    """Of what there is to count; the rest is as in `MessagesBody`, and changes nothing."""

    messages: Annotated[list[_Message], Meta(min_length=1)]
    model: str | None = None
    system: str | list[_Block] | None = None
    thinking: _Thinking | None = None
    tools: list[Any] | None = None


class MessagesBody(CountBody, forbid_unknown_fields=True, kw_only=True):
    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tool_choice: Any = None
    # Of no meaning here, and of none for an answer.
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    cache_control: dict[str, Any] | None = None


def request_of(body: bytes, sampling: SamplingConfig, answers: AnswerOptions) -> Request:
    """As `openai.request_of`."""
    try:
        asked = codec.decode(body, MessagesBody)
        if asked.tools:
            raise Refused("tools are not held here: leave them out", "tools")
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
        )
    except codec.Malformed as error:
        raise Refused(f"{error.place or 'body'} {error.problem}".strip(), error.place or None) from None
    except UsageError as error:
        raise refusal(error) from None


def count_of(body: bytes, answers: AnswerOptions) -> tuple[list[dict[str, str]], bool, str | None]:
    """Messages to be counted, whether they are answered with thinking, and the model. Raises `Refused`."""
    try:
        asked = codec.decode(body, CountBody)
    except codec.Malformed as error:
        raise Refused(f"{error.place or 'body'} {error.problem}".strip(), error.place or None) from None
    return _messages(asked), _answers(asked, answers).thinks, asked.model


def _answers(asked: CountBody, answers: AnswerOptions) -> AnswerOptions:
    if asked.thinking is None:
        return answers
    return thinking_of(answers, asked.thinking.type != "disabled", asked.thinking.budget_tokens)


def _messages(asked: CountBody) -> list[dict[str, str]]:
    messages = []
    if asked.system:
        messages.append({"role": "system", "content": _text(asked.system, "system")})
    for i, message in enumerate(asked.messages):
        where = f"messages[{i}].content"
        said = {"role": message.role, "content": _text(message.content, where)}
        if not isinstance(message.content, str):
            thought = "".join(block.thinking or "" for block in message.content if block.type == "thinking")
            if thought:
                said["reasoning_content"] = thought
        messages.append(said)
    return messages


def _text(content: str | Sequence[_Block], where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for j, block in enumerate(content):
        if block.type in ("thinking", "redacted_thinking"):
            continue
        if block.type != "text" or block.text is None:
            raise Refused(f"{where}[{j}] is {block.type[:40]!r}: text alone can be read", where)
        texts.append(block.text)
    return "".join(texts)


# -- answers -----------------------------------------------------------------------------------------------------------


def body_of(request: Request, answers: Sequence[Answer], *, id_: str, model: str) -> dict[str, Any]:
    (answer,) = answers
    content: list[dict[str, Any]] = []
    if answer.thinking:
        content.append({"type": "thinking", "thinking": answer.thinking, "signature": ""})
    if answer.text or not content:
        content.append({"type": "text", "text": answer.text})
    return {**_message(id_, model, answer), "content": content, **_ended(request, answer)}


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


def _ended(request: Request, answer: Answer) -> dict[str, Any]:
    stops = request.sampling.stop
    which = stops[0] if answer.stop_reason == "stop" and len(stops) == 1 else None
    return {"stop_reason": _STOPPED.get(answer.stop_reason or ""), "stop_sequence": which}


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
        yield _event("message_start", message=_message(self._id, self._model, answer))
        yield _event("ping")

    def piece(self, i: int, piece: Piece, answer: Answer) -> Iterator[Event]:
        if piece.thought:
            yield from self._within("thinking")
            yield self._delta(type="thinking_delta", thinking=piece.thought)
        if piece.text:
            yield from self._within("text")
            yield self._delta(type="text_delta", text=piece.text)

    def end(self, i: int, answer: Answer) -> Iterator[Event]:
        if not self._open:
            yield from self._within("text")
        yield from self._closed()
        yield _event("message_delta", delta=_ended(self._request, answer), usage=_usage(answer))

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


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(status: int, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": _TYPES.get(status, "api_error"), "message": message}}
