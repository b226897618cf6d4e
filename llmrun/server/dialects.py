"""The forms that clients speak: how each asks, how it is answered, and how it is told of an error."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmrun.wire import anthropic, ollama, openai, responses
from llmrun.wire.request import Event, Refused, Request, Writer

if TYPE_CHECKING:
    from llmrun.chat.answer_options import AnswerOptions
    from llmrun.engine.interface import Answer
    from llmrun.options.sampling import SamplingConfig


EVENTS, LINES = "text/event-stream", "application/x-ndjson"


@dataclass(frozen=True)
class Reply:
    """How one request is answered.

    Attributes:
        whole: all of its answers, as a document.
        writer: the same as they are made.
        failed: the event that ends a stream with an error, of its message and a word for programs; None: the document
            that answers an error without a stream.
    """

    whole: Callable[[Sequence[Answer]], dict[str, Any]]
    writer: Writer
    failed: Callable[[str, str | None], Event] | None = None


@dataclass(frozen=True)
class Dialect:
    """Attributes:
    read: a body. Raises `Refused`.
    reply: to a request of a model, with an id of so many hexadecimal digits.
    error: a document, of a status of HTTP, a message, the field that is the reason and a word for programs.
    error_type: of that document.
    is_sse: streams are server-sent events; else lines of JSON.
    ends: the last line of a stream.
    """

    read: Callable[[bytes, SamplingConfig, AnswerOptions], Request]
    reply: Callable[[Request, str, str], Reply]
    error: Callable[[int, str, str | None, str | None], Mapping[str, Any]]
    error_type: type
    is_sse: bool = True
    ends: bytes = b""

    @property
    def media(self) -> str:
        """Of a stream."""
        return EVENTS if self.is_sse else LINES


_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}


def openai_error(status: int, message: str, param: str | None, code: str | None) -> openai.ErrorBody:
    kind = _OPENAI_TYPES.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _openai(url: str) -> Dialect:
    def reply(request: Request, model: str, number: str) -> Reply:
        id_ = f"{'chatcmpl' if request.is_chat else 'cmpl'}-{number}"
        created = int(time.time())
        return Reply(
            lambda answers: openai.body_of(request, answers, id_=id_, model=model, created=created),
            openai.Chunks(request, id_=id_, model=model, created=created),
        )

    return Dialect(
        lambda body, sampling, answers: openai.request_of(body, url, sampling, answers, live=True),
        reply,
        openai_error,
        openai.ErrorBody,
        ends=b"data: [DONE]\n\n",
    )


def _responses_reply(request: Request, model: str, number: str) -> Reply:
    created = int(time.time())
    made = (responses.Response(request, id_=number, model=model, created=created) for _ in range(2))
    whole, writer = made
    return Reply(whole.whole, writer, writer.failed)


def _anthropic_reply(request: Request, model: str, number: str) -> Reply:
    return Reply(
        lambda answers: anthropic.body_of(request, answers, id_=f"msg_{number}", model=model),
        anthropic.Events(request, id_=f"msg_{number}", model=model),
    )


def _ollama(url: str) -> Dialect:
    def read(body: bytes, sampling: SamplingConfig, answers: AnswerOptions) -> Request:
        request = ollama.asked_of(body, url, sampling, answers).request
        if request is None:
            raise Refused("there is nothing to answer")
        return request

    def reply(request: Request, model: str, number: str) -> Reply:
        return Reply(
            lambda answers: ollama.body_of(request, answers, url=url, model=model),
            ollama.Lines(request, url=url, model=model),
        )

    def error(status: int, message: str, param: str | None, code: str | None) -> ollama.ErrorBody:
        return {"error": message}

    return Dialect(read, reply, error, ollama.ErrorBody, is_sse=False)


CHAT, COMPLETIONS = _openai(openai.CHAT), _openai(openai.COMPLETIONS)
RESPONSES = Dialect(responses.request_of, _responses_reply, openai_error, openai.ErrorBody)
MESSAGES = Dialect(
    anthropic.request_of,
    _anthropic_reply,
    lambda status, message, param, code: anthropic.error_body(status, message),
    anthropic.ErrorBody,
)
OLLAMA_CHAT, OLLAMA_GENERATE = _ollama(ollama.CHAT), _ollama(ollama.GENERATE)


def dialect_of(path: str) -> Dialect:
    """For errors that no route has seen: by the path that was asked for."""
    if path.startswith(anthropic.MESSAGES):
        return MESSAGES
    return OLLAMA_CHAT if path.startswith("/api/") else CHAT
