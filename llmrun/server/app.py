"""The application: routes, from requests to answers.

    guard ──► route ──► dialect: body to request ──► pool: a runner ──► streams ──► dialect: pieces to events

What is asked for is held, or refused with the reason, before the first byte of an answer: a stream begins when its
prompt is known and being computed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from importlib.resources import files
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llmrun import __version__, codec
from llmrun.codec import Struct
from llmrun.engine.interface import Answer
from llmrun.engine.protocol import Count, Counted, Decode, Decoded, Embed, Embedded, Encode, Encoded
from llmrun.errors import (
    BadModel,
    EngineCrashed,
    LlmrunError,
    NotFound,
    OutOfMemory,
    PromptTooLong,
    UsageError,
    WrongFormat,
)
from llmrun.options.sampling import SamplingConfig
from llmrun.server import description, dialects, metrics, moment
from llmrun.server.description import JSON, Operation
from llmrun.server.dialects import EVENTS, Dialect, Reply
from llmrun.server.guard import Guard, Rules, TooLong
from llmrun.server.pool import Pool, Served
from llmrun.server.runner import Busy, Runner, Stopping, Stream
from llmrun.wire import anthropic, embeddings, ollama, openai, responses
from llmrun.wire.request import Event, Refused, Request, refusals

_PING_S = 10.0
"""A line that says nothing goes out so often, so that nobody on the way takes a long prompt for a dead connection."""
_RETRY_S = 1
_MOMENT_S = 0.5
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_MEDIA = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
_ASKS, _ANSWERS = (404, 500, 503), (404, 422, 429, 500, 503)
"""What may go wrong where a model is asked about tokens, and where it answers."""
T = TypeVar("T")


class _Named(Struct):
    """Of a body its model alone: what it leaves out is as that model has it."""

    model: Any = None


class Api:
    """The routes of one pool. `needs_key`: of all but the open ones."""

    def __init__(self, pool: Pool, told: metrics.Metrics, *, needs_key: bool = False) -> None:
        self.pool, self.metrics, self._needs_key = pool, told, needs_key

    def routes(self) -> list[Route]:
        return [Route(each.path, each.handler, methods=[each.method]) for each in self.operations()]

    def operations(self) -> list[Operation]:
        """All that is served; what is not here is neither served nor described."""

        def answers(path: str, summary: str, dialect: Dialect, body: type) -> Operation:
            answer = partial(self._answer, dialect) if dialect.is_sse else partial(self._ollama, dialect, path)
            return Operation(path, summary, answer, body, (JSON, dialect.media), _ANSWERS)

        return [
            answers(openai.CHAT, "Goes on with messages.", dialects.CHAT, openai.ChatBody),
            answers(openai.COMPLETIONS, "Goes on with a text.", dialects.COMPLETIONS, openai.CompletionBody),
            answers(responses.RESPONSES, "Goes on with items.", dialects.RESPONSES, responses.ResponsesBody),
            answers(anthropic.MESSAGES, "Goes on with messages.", dialects.MESSAGES, anthropic.MessagesBody),
            Operation(anthropic.COUNT, "Counts tokens.", self.count_tokens, anthropic.CountBody, failures=_ASKS),
            *(
                Operation(path, "Makes vectors of texts.", partial(self._embed, path), body, failures=_ASKS)
                for path, body in embeddings.BODIES.items()
            ),
            Operation("/v1/models", "Lists the models.", self.models),
            Operation("/models", "Lists the models.", self.models),
            Operation("/v1/models/{name:path}", "Tells of a model.", self.model, failures=(404,)),
            Operation("/tokenize", "Makes tokens of a text.", self.tokenize, _Tokenize, failures=_ASKS),
            Operation("/detokenize", "Makes a text of tokens.", self.detokenize, _Detokenize, failures=_ASKS),
            Operation("/health", "Tells whether anything can be answered.", self.health, failures=(503,)),
            Operation("/props", "Tells how models are set, and what they do.", self.props),
            Operation("/metrics", "Tells Prometheus what was done.", self.prometheus, media=("text/plain",)),
            Operation("/events", "Tells what models do, twice a second, for ever.", self.events, media=(EVENTS,)),
            Operation("/openapi.json", "Describes all this.", self.described),
            Operation("/", "A page: chat, and the meter.", self.page, media=("text/html",)),
            Operation("/page.js", "Of the page.", self.page, media=("text/javascript",)),
            Operation("/page.css", "Of the page.", self.page, media=("text/css",)),
            answers(ollama.CHAT, "Goes on with messages.", dialects.OLLAMA_CHAT, ollama.ChatBody),
            answers(ollama.GENERATE, "Answers a prompt.", dialects.OLLAMA_GENERATE, ollama.GenerateBody),
            Operation("/api/tags", "Lists the models.", self.tags),
            Operation("/api/ps", "Lists the models that are loaded.", self.loaded),
            Operation("/api/show", "Tells of a model.", self.show, ollama.ShowBody, failures=(404,)),
            Operation("/api/version", "Tells the version of ollama whose interface this is.", self.version),
        ]

    # -- answers ---

    async def _answer(self, dialect: Dialect, http: HttpRequest) -> Response:
        body = await http.body()
        request = await self._read(dialect, body)
        return await self._answered(dialect, request, http)

    async def _read(self, dialect: Dialect, body: bytes) -> Request:
        model = self._model_of(body)
        _check_writes(model)
        # A schema may take a while to read; the loop goes on meanwhile.
        return await asyncio.to_thread(dialect.read, body, model.sampling, model.answers)

    def _model_of(self, body: bytes) -> Served:
        """Raises `NotFound`; of a body that can't be read any, as it will be refused."""
        try:
            name = codec.decode(body, _Named).model
        except codec.Malformed:
            return next(iter(self.pool.models.values()))
        return self.pool.named(name if isinstance(name, str) else None)

    async def _answered(self, dialect: Dialect, request: Request, http: HttpRequest) -> Response:
        runner = await self.pool.runner(request.model)
        model = self.pool.models[runner.name]
        _check_number(request, runner)
        if isinstance(request.asked, list):
            _check_messages(request.asked, runner)
        reply = dialect.reply(request, runner.name, secrets.token_hex(12))
        options = request.options()
        streams: list[Stream] = []
        gone = asyncio.create_task(_gone(http))
        try:
            for sampling in request.samplings():
                streams.append(runner.submit(request.before, _ending(sampling, request, model), options))
            begun = await _or_gone(asyncio.gather(*(stream.begun() for stream in streams)), gone)
            _check_thinks(request, begun[0], runner)
            if not request.streams:
                await _or_gone(asyncio.gather(*map(_ended, streams)), gone)
                _check_format(request, begun)
                return _json(reply.whole(begun))
        except BadModel as error:
            _leave(streams)
            raise _not_for_it(error) from None
        except BaseException:
            _leave(streams)
            raise
        finally:
            if not request.streams:
                gone.cancel()
        gone.cancel()
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return _Streamed(_sent(dialect, request, reply, streams), streams, dialect.media, headers)

    # -- vectors ---

    async def _embed(self, url: str, http: HttpRequest) -> Response:
        body = await http.body()
        model = self._model_of(body)
        asked = embeddings.asked_of(body, url)
        if model.pooling is None:
            nor = "nor does the server's option `pooling` (mean, cls, last): an embedding model does"
            raise Refused(f"{model.name} does not say how a text becomes one vector, {nor}", "model")
        begin_s = time.perf_counter()
        runner = await self.pool.runner(model.name)
        _check_context(asked.n_ctx, runner)
        if url != embeddings.EMBEDDINGS:
            self.pool.keep(model.name, asked.keep_alive_s)
        gone = asyncio.create_task(_gone(http))
        found: list[Embedded] = []
        try:
            with runner.held():
                for first, part in embeddings.parts_of(asked.inputs):
                    assert runner.width is not None
                    n_most = runner.width.n_ctx_most
                    question = Embed(part, model.pooling, model.is_causal, n_most, asked.truncates, first)
                    reply = await _or_gone(asyncio.ensure_future(runner.ask(question)), gone)
                    assert isinstance(reply, Embedded)
                    runner.totals.n_embedded += sum(reply.n_tokens)
                    found.append(reply)
        finally:
            gone.cancel()
        seconds = time.perf_counter() - begin_s
        return _json(embeddings.body_of(asked, url, found, model=model.name, seconds=seconds))

    # -- tokens ---

    async def tokenize(self, http: HttpRequest) -> Response:
        asked = _decoded(await http.body(), _Tokenize)
        runner = await self.pool.runner(asked.model)
        special = asked.parse_special is not False
        found = await runner.ask(Encode(asked.content, special, asked.add_special is True))
        assert isinstance(found, Encoded)
        if not asked.with_pieces:
            return _json({"tokens": found.ids})
        pieces = zip(found.ids, map(_piece, found.pieces), strict=True)
        return _json({"tokens": [{"id": token, "piece": piece} for token, piece in pieces]})

    async def detokenize(self, http: HttpRequest) -> Response:
        asked = _decoded(await http.body(), _Detokenize)
        runner = await self.pool.runner(asked.model)
        found = await runner.ask(Decode(asked.tokens))
        assert isinstance(found, Decoded)
        return _json({"content": found.text})

    async def count_tokens(self, http: HttpRequest) -> Response:
        body = await http.body()
        model = self._model_of(body)
        _check_writes(model)
        messages, thinks, tools = anthropic.count_of(body, model.answers)
        runner = await self.pool.runner(model.name)
        _check_messages(messages, runner)
        asked = Count(None, messages, model.answers.chat_template, thinks, tools=[*tools] or None)
        try:
            found = await runner.ask(asked)
        except BadModel as error:
            raise _not_for_it(error) from None
        assert isinstance(found, Counted)
        return _json({"input_tokens": found.n_tokens})

    # -- what there is ---

    async def models(self, http: HttpRequest) -> Response:
        return _json({"object": "list", "data": [self._model(model) for model in self.pool.models.values()]})

    async def model(self, http: HttpRequest) -> Response:
        return _json(self._model(self.pool.named(http.path_params["name"])))

    def _model(self, model: Served) -> dict[str, Any]:
        runner = self.pool.runners.get(model.name)
        n_ctx = runner.width.n_ctx_most if runner and runner.width else None
        return {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "llmrun",
            "meta": {**model.facts, "n_ctx": n_ctx, "loaded": self.pool.is_loaded(model.name)},
        }

    async def health(self, http: HttpRequest) -> Response:
        """503 while nothing can be answered at once."""
        runners = self.pool.runners.values()
        states = {runner.state for runner in runners}
        if not states or "ready" in states:
            return _json({"status": "ok"})
        if "loading" in states:
            return _error(dialects.CHAT, 503, "a model is being loaded", code="loading")
        why = next((runner.error.message for runner in runners if runner.error is not None), "it is unloaded")
        return _error(dialects.CHAT, 503, f"no model can be asked: {why}", code="not_loaded")

    async def props(self, http: HttpRequest) -> Response:
        settings = {model.name: codec.plain(model.sampling) for model in self.pool.models.values()}
        models = moment.of_all(self.pool.runners)
        return _json({"version": __version__, "models": models, "default_generation_settings": settings})

    async def prometheus(self, http: HttpRequest) -> Response:
        return Response(self.metrics.text(), media_type=metrics.CONTENT_TYPE)

    async def events(self, http: HttpRequest) -> Response:
        """What each model does, twice a second, as server-sent events."""

        async def moments() -> AsyncIterator[bytes]:
            while True:
                yield b"data: " + codec.encode({"models": moment.of_all(self.pool.runners)}) + b"\n\n"
                await asyncio.sleep(_MOMENT_S)

        return StreamingResponse(moments(), media_type=EVENTS, headers={"cache-control": "no-cache"})

    async def page(self, http: HttpRequest) -> Response:
        name = http.url.path.lstrip("/") or "index.html"
        data = files("llmrun.server").joinpath("page").joinpath(name).read_bytes()
        return Response(data, headers=_PAGE_HEADERS, media_type=_MEDIA[name.rpartition(".")[2]])

    async def described(self, http: HttpRequest) -> Response:
        return Response(self._description, media_type=JSON)

    @cached_property
    def _description(self) -> bytes:
        return codec.encode(description.document(self.operations(), needs_key=self._needs_key))

    # -- ollama ---

    async def _ollama(self, dialect: Dialect, url: str, http: HttpRequest) -> Response:
        body = await http.body()
        model = self._model_of(body)
        _check_writes(model)
        asked = await asyncio.to_thread(ollama.asked_of, body, url, model.sampling, model.answers)
        name = model.name
        if asked.request is None and asked.keep_alive_s == 0:
            self.pool.keep(name, 0)
            await self.pool.unload_expired()
            return _json(ollama.loaded_body(url, asked.model, unloaded=True))
        begin_s = time.perf_counter()
        runner = await self.pool.runner(name)
        load_s = time.perf_counter() - begin_s
        _check_context(asked.n_ctx, runner)
        self.pool.keep(name, asked.keep_alive_s)
        if asked.request is None:
            return _json(ollama.loaded_body(url, asked.model, unloaded=False))
        return await self._answered(dialect, replace(asked.request, echo=ollama.loading(load_s)), http)

    async def tags(self, http: HttpRequest) -> Response:
        return _json({"models": [self._tag(model) for model in self.pool.models.values()]})

    async def loaded(self, http: HttpRequest) -> Response:
        found = []
        for name, runner in self.pool.runners.items():
            if runner.state != "ready" or runner.engine is None or runner.width is None:
                continue
            plan = runner.engine.plan.footprint
            n_vram = sum(need.total for device, need in plan.by_device.items() if device != "CPU")
            expires = self.pool.expires_s(name)
            found.append(
                {
                    **self._tag(self.pool.models[name]),
                    "size": sum(need.total for need in plan.by_device.values()),
                    "size_vram": n_vram,
                    "context_length": runner.width.n_ctx_most,
                    "expires_at": ollama.after(expires),
                }
            )
        return _json({"models": found})

    def _tag(self, model: Served) -> dict[str, Any]:
        facts = model.facts
        return {
            "name": model.name,
            "model": model.name,
            "modified_at": ollama.at(model.created),
            "size": facts.get("size_bytes") or 0,
            "digest": facts.get("digest") or "",
            "details": ollama.details(facts),
        }

    async def show(self, http: HttpRequest) -> Response:
        asked = _decoded(await http.body(), ollama.ShowBody)
        model = self.pool.named(asked.model or asked.name)
        facts = model.facts
        return _json(
            {
                "license": facts.get("license") or "",
                "modelfile": "",
                "parameters": "",
                "template": facts.get("template") or "",
                "details": ollama.details(facts),
                "model_info": ollama.model_info(facts),
                "capabilities": [
                    *(["completion", "tools"] if model.writes else []),
                    *(["thinking"] if facts.get("thinks") else []),
                    *(["embedding"] if model.pooling else []),
                ],
                "modified_at": ollama.at(model.created),
            }
        )

    async def version(self, http: HttpRequest) -> Response:
        return _json({"version": ollama.SPEAKS, "llmrun": __version__})


class _Tokenize(Struct, forbid_unknown_fields=True):
    content: str
    model: str | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class _Detokenize(Struct, forbid_unknown_fields=True):
    tokens: list[int]
    model: str | None = None


def _check_writes(model: Served) -> None:
    if not model.writes:
        raise Refused(f"{model.name} is an embedding model: it writes no text", "model")


def _check_messages(messages: Sequence[Any], runner: Runner) -> None:
    """Each takes a token at least; and a template that has too many to write takes longer than it may, which ends the
    engine for all."""
    if runner.width is not None and len(messages) > (there := runner.width.n_ctx_most):
        raise PromptTooLong(f"there are {len(messages)} messages, the context holds {there} tokens")


def _check_number(request: Request, runner: Runner) -> None:
    """Of answers to one request: more than there is ever room for would wait in vain."""
    room = runner.n_slots + runner.most_waiting
    if runner.n_slots and request.n > room:
        raise Refused(f"n is {request.n}: at most {room} answers are made or wait here", "n")


def _check_thinks(request: Request, answer: Answer, runner: Runner) -> None:
    if request.must_think and not answer.thinks:
        raise Refused(f"{runner.name} does not think, by its chat template", "think")


def _ending(sampling: SamplingConfig, request: Request, model: Served) -> SamplingConfig:
    """With the text that ends an answer to messages, beside those that the request has."""
    if not model.ends or isinstance(request.asked, str) or sampling.ignore_eos:
        return sampling
    return replace(sampling, stop=(*sampling.stop, model.ends))


def _check_context(n_ctx: int | None, runner: Runner) -> None:
    """Of ollama's option."""
    if n_ctx is not None and runner.width is not None and n_ctx > runner.width.n_ctx_most:
        there = runner.width.n_ctx_most
        raise Refused(f"options.num_ctx is {n_ctx}: the context has {there} tokens here", "options.num_ctx")


def _decoded(body: bytes, kind: type[T]) -> T:
    with refusals():
        return codec.decode(body, kind)


def _piece(piece: bytes) -> str | list[int]:
    """A text, or the bytes of half a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return [*piece]


# -- streams -----------------------------------------------------------------------------------------------------------


class _Gone(Exception):
    """The client is."""


async def _gone(http: HttpRequest) -> None:
    """Ends when the client is gone."""
    while not await http.is_disconnected():
        await asyncio.sleep(0.1)


async def _or_gone(wanted: asyncio.Future[T], gone: asyncio.Task[None]) -> T:
    """What is waited for. Raises `_Gone`."""
    both: list[asyncio.Future[Any]] = [wanted, gone]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if wanted.done():
        return wanted.result()
    wanted.cancel()
    with suppress(asyncio.CancelledError):
        await wanted
    raise _Gone


async def _ended(stream: Stream) -> None:
    async for _ in stream:
        pass


def _leave(streams: Sequence[Stream]) -> None:
    for stream in streams:
        stream.cancel()


def _check_format(request: Request, answers: Sequence[Answer]) -> None:
    """What was cut, by its limit or by a text where it is to stop, may be no whole document; else it keeps to what was
    asked for, or is an error."""
    wanted = request.answers.output_format
    if wanted is None:
        return
    for answer in answers:
        if answer.stop_reason in ("length", "context", "stop"):
            continue
        if problem := wanted.problem(answer.text):
            raise WrongFormat(problem)


class _Streamed(StreamingResponse):
    """Ends its answers with it, also where nobody came to read even the first byte: what was never begun cleans up
    nothing."""

    def __init__(
        self, events: AsyncIterator[bytes], streams: Sequence[Stream], media: str, headers: dict[str, str]
    ) -> None:
        super().__init__(events, media_type=media, headers=headers)
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            _leave(self._streams)


async def _sent(dialect: Dialect, request: Request, reply: Reply, streams: Sequence[Stream]) -> AsyncIterator[bytes]:
    """Events as bytes."""
    try:
        async for events in _events(request, reply, streams):
            yield b"".join(_line(dialect, event) for event in events) if events else _ping(dialect)
        yield dialect.ends
    except LlmrunError as error:
        status, code = _status_of(error), _code_of(error)
        if reply.failed is not None:
            yield _line(dialect, reply.failed(error.message, code))
        else:
            yield _line(dialect, Event("error", {**dialect.error(status, error.message, error.field, code)}))


def _line(dialect: Dialect, event: Event) -> bytes:
    document = codec.encode(event.document)
    if not dialect.is_sse:
        return document + b"\n"
    name = b"event: " + event.name.encode() + b"\n" if event.name and dialect is not dialects.CHAT else b""
    return name + b"data: " + document + b"\n\n"


def _ping(dialect: Dialect) -> bytes:
    return b": ping\n\n" if dialect.is_sse else b""


async def _events(request: Request, reply: Reply, streams: Sequence[Stream]) -> AsyncIterator[list[Event]]:
    """Of all streams, in the order in which they come; an empty list where nothing came for a while.

    One bell for all, and no task for each piece: what a token costs here is taken from the threads that compute."""
    writer, loop, bell = reply.writer, asyncio.get_running_loop(), asyncio.Event()
    answers = [await stream.begun() for stream in streams]
    for stream in streams:
        stream.ring(bell)
    if begun := [event for i, answer in enumerate(answers) for event in writer.begin(i, answer)]:
        yield begun
    left, said_s = dict(enumerate(streams)), loop.time()
    while left:
        bell.clear()
        for i, stream in [*left.items()]:
            if (piece := stream.now()) is not None and (events := [*writer.piece(i, piece, answers[i])]):
                yield events
                said_s = loop.time()
            if stream.is_over:
                stream.now()  # raises what it ended with
                if events := [*writer.end(i, answers[i])]:
                    yield events
                del left[i]
        if left and not bell.is_set():
            timer = loop.call_at(said_s + _PING_S, bell.set)
            await bell.wait()
            timer.cancel()
            if loop.time() >= said_s + _PING_S:
                yield []
                said_s = loop.time()
    _check_format(request, answers)
    if events := [*writer.close(answers)]:
        yield events


# -- errors ------------------------------------------------------------------------------------------------------------


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(codec.encode(document), status, headers, JSON)


def _error(dialect: Dialect, status: int, message: str, param: str | None = None, code: str | None = None) -> Response:
    headers = {"retry-after": str(_RETRY_S)} if status in (429, 503) else None
    return _json(dialect.error(status, message, param, code), status, headers)


def _status_of(error: LlmrunError) -> int:
    kinds: tuple[tuple[type[LlmrunError], int], ...] = (
        (Busy, 429),
        (Stopping, 503),
        (PromptTooLong, 400),
        (UsageError, 400),
        (NotFound, 404),
        (WrongFormat, 422),
        (EngineCrashed, 503),
        (OutOfMemory, 503),
    )
    return next((status for kind, status in kinds if isinstance(error, kind)), 500)


def _code_of(error: LlmrunError) -> str | None:
    kinds: tuple[tuple[type[LlmrunError], str], ...] = (
        (Busy, "too_many_requests"),
        (Stopping, "stopping"),
        (PromptTooLong, "context_length_exceeded"),
        (NotFound, "model_not_found"),
        (WrongFormat, "format_not_held"),
        (EngineCrashed, "engine_crashed"),
        (OutOfMemory, "out_of_memory"),
    )
    return next((code for kind, code in kinds if isinstance(error, kind)), None)


def _not_for_it(error: BadModel) -> Refused:
    """Of a model that is loaded: its template fails at these messages."""
    return Refused(error.message, "messages")


async def _on_refused(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _error(dialects.dialect_of(http.url.path), error.status, error.message, error.param, error.code)


async def _on_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, LlmrunError)
    dialect, message = dialects.dialect_of(http.url.path), error.message
    return _error(dialect, _status_of(error), message, error.field, _code_of(error))


async def _on_http(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: f"there is no {http.url.path[:200]} here", 405: f"{http.method} is not for {http.url.path[:200]}"}
    response = _error(dialects.dialect_of(http.url.path), error.status_code, what.get(error.status_code, error.detail))
    response.headers.update(error.headers or {})
    return response


async def _on_too_long(http: HttpRequest, error: Exception) -> Response:
    return _error(dialects.dialect_of(http.url.path), 413, "the body is longer than may be")


async def _on_bug(http: HttpRequest, error: Exception) -> Response:
    """Its traceback is written by who serves."""
    return _error(dialects.dialect_of(http.url.path), 500, f"a mistake of the server: {type(error).__name__}")


async def _on_gone(http: HttpRequest, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


def made(
    models: Sequence[Served],
    *,
    rules: Rules = Rules(),  # noqa: B008  # frozen
    most_waiting: int = 64,
    stop_s: float = 10.0,
    on_note: Any = lambda _: None,
    preload: bool = True,
) -> tuple[Guard, Callable[[], Awaitable[None]]]:
    """The application, an ASGI app whose lifespan loads the first model and unloads all, and what is to be awaited when
    it is to end: answers may go on for `stop_s` then."""
    pools: list[Pool] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        def ended(stream: Stream, error: LlmrunError | None) -> None:
            told.ended(stream.model, stream, error)

        pool = Pool(models, most_waiting=most_waiting, on_end=ended, on_note=on_note)
        pools.append(pool)
        told = metrics.Metrics(pool.totals, pool.runners)
        api = Api(pool, told, needs_key=bool(rules.keys))
        app.router.routes.extend(api.routes())
        sweeping = asyncio.create_task(pool.sweep())
        loading = asyncio.create_task(_preloaded(pool, on_note)) if preload else None
        try:
            yield
        finally:
            sweeping.cancel()
            if loading is not None:
                loading.cancel()
            await pool.close()

    async def stop() -> None:
        for pool in pools:
            await pool.close(stop_s)

    app = Starlette(
        lifespan=lifespan,
        exception_handlers={
            Refused: _on_refused,
            LlmrunError: _on_error,
            HTTPException: _on_http,
            TooLong: _on_too_long,
            _Gone: _on_gone,
            ClientDisconnect: _on_gone,
            Exception: _on_bug,
        },
    )
    return Guard(app, rules), stop


async def _preloaded(pool: Pool, on_note: Any) -> None:
    try:
        await pool.runner(next(iter(pool.models)))
    except LlmrunError as error:
        on_note(error.message)
