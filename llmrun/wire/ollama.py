"""Ollama's form of requests and answers: chat and generate. Times are in nanoseconds.

What ollama's options ask of how a model is loaded can't be changed by a request: `num_ctx` is held where the context is
as long, and refused where it is not; those that only say how fast it may be (`num_thread`, `num_gpu`, …) are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from llmrun import codec
from llmrun.codec import Struct, words
from llmrun.units import count
from llmrun.wire import openai
from llmrun.wire.request import (
    EFFORTS,
    Event,
    Function,
    Piece,
    Refused,
    Request,
    effort_of,
    format_of_json,
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

CHAT, GENERATE = "/api/chat", "/api/generate"
SPEAKS = "0.12.0"
"""The version of ollama whose interface this is: clients look at it before they ask for anything."""
_ROLES = ("system", "user", "assistant", "tool")
_FINISHED = {"end": "stop", "stop": "stop", "length": "length", "context": "length"}
_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_DURATION = re.compile(f"({_NUMBER})(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_LONGEST_S = 10 * 365 * 24 * 3600.0


class _Options(Struct, forbid_unknown_fields=True):
    num_ctx: int | None = None
    num_predict: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_last_n: int | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    num_keep: int | None = None
    mirostat: int | None = None
    mirostat_eta: float | None = None
    mirostat_tau: float | None = None
    tfs_z: float | None = None
    penalize_newline: bool | None = None
    # Of how fast it is.
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    low_vram: bool | None = None
    numa: bool | None = None
    vocab_only: bool | None = None


class _Called(Struct):
    name: str
    arguments: dict[str, Any] | None = None


class _Call(Struct):
    function: _Called


class _Message(Struct):
    role: Annotated[str, words(_ROLES)]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[_Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _Body(Struct, forbid_unknown_fields=True, kw_only=True):
    model: str
    stream: bool | None = None
    format: Annotated[str, words(["json", ""])] | dict[str, Any] | None = None
    options: _Options | None = None
    keep_alive: float | str | None = None
    think: bool | Annotated[str, words(EFFORTS)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = None
    shift: bool | None = None


class ChatBody(_Body, forbid_unknown_fields=True, kw_only=True):
    messages: list[_Message] = codec.field(default_factory=list)
    tools: list[openai.ToolSpec] | None = None


class GenerateBody(_Body, forbid_unknown_fields=True, kw_only=True):
    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    raw: bool | None = None
    images: list[Any] | None = None
    context: list[int] | None = None


class ErrorBody(TypedDict):
    error: str


class ShowBody(Struct, forbid_unknown_fields=True):
    model: str | None = None
    name: str | None = None
    verbose: bool | None = None


class Asked:
    """Attributes:
    request: None where a model is only to be loaded, or unloaded.
    model: by name.
    n_ctx: tokens of context that are wanted; None: whatever there is.
    keep_alive_s: how long the model stays after it; None: as long as there is memory; 0: it goes.
    """

    def __init__(self, request: Request | None, body: _Body) -> None:
        self.request, self.model = request, body.model
        self.n_ctx = body.options.num_ctx if body.options else None
        self.keep_alive_s = keep_alive_s(body.keep_alive)


def asked_of(body: bytes, url: str, sampling: SamplingConfig, answers: AnswerOptions) -> Asked:
    """As `openai.request_of`."""
    with refusals():
        read: Any = codec.decode(body, ChatBody if url == CHAT else GenerateBody)
        asked = _messages(read.messages) if isinstance(read, ChatBody) else _prompt(read)
        _refuse(read)
        options = read.options or _Options()
        if isinstance(read.think, str):
            answers = effort_of(answers, read.think, "think")
        else:
            answers = thinking_of(answers, read.think)
        if read.format:
            answers = replace(answers, output_format=_format(read.format))
        names = (
            *("temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n"),
            *("presence_penalty", "frequency_penalty", "seed"),
        )
        given = {name: getattr(options, name) for name in names}
        given["max_tokens"] = -1 if options.num_predict is not None and options.num_predict < 0 else options.num_predict
        request = Request(
            asked,
            sampling_of(given, sampling, options.stop or None),
            answers,
            isinstance(read, ChatBody),
            model=read.model,
            streams=read.stream is not False,
            tools=_tools(read),
            must_think=read.think not in (None, False) and answers.thinks,
        )
        if request.tools and answers.output_format is not None:
            raise Refused("tools and format: an answer has one form", "format")
        return Asked(request if asked else None, read)


def _tools(body: _Body) -> tuple[Tool, ...]:
    specs = [each.function for each in body.tools or ()] if isinstance(body, ChatBody) else []
    return tools_of([Function(each.name, each.description, each.parameters) for each in specs], "tools")


def _messages(messages: Sequence[_Message]) -> list[dict[str, Any]]:
    made = []
    for i, message in enumerate(messages):
        if message.role not in _ROLES:
            raise Refused(f"messages[{i}].role is {message.role[:40]!r}: there are {', '.join(_ROLES)}")
        if message.images:
            raise Refused(f"messages[{i}].images: text alone can be read")
        said: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.role == "tool":
            said |= {"tool_call_id": message.tool_call_id or "", "name": message.tool_name or ""}
        if message.tool_calls:
            called = [each.function for each in message.tool_calls]
            said["tool_calls"] = [
                openai.call_of(None, each.name, codec.encode(each.arguments or {}).decode()) for each in called
            ]
        if message.thinking:
            said["reasoning_content"] = message.thinking
        made.append(said)
    return made


def _prompt(body: GenerateBody) -> str | list[dict[str, str]]:
    if body.images:
        raise Refused("images: text alone can be read", "images")
    # A template of ollama's is a program of another language.
    for name in ("context", "suffix", "template"):
        if getattr(body, name):
            raise Refused(f"{name} is not held here: leave it out", name)
    if body.raw and body.system:
        raise Refused("system: with raw the prompt is all that there is", "system")
    if body.raw or not body.prompt:
        return body.prompt
    said = [{"role": "system", "content": body.system}] if body.system else []
    return [*said, {"role": "user", "content": body.prompt}]


def _refuse(body: _Body) -> None:
    if body.logprobs or body.top_logprobs:
        raise Refused("logprobs are held by /v1/chat/completions alone", "logprobs")
    options = body.options or _Options()
    for name, harmless in (("mirostat", 0), ("tfs_z", 1.0), ("penalize_newline", True), ("vocab_only", False)):
        if getattr(options, name) not in (None, harmless):
            raise Refused(f"options.{name} is not held here: leave it out", f"options.{name}")


def _format(wanted: str | dict[str, Any]) -> Any:
    if isinstance(wanted, dict):
        return format_of_schema(codec.encode(wanted))
    if wanted != "json":
        raise Refused(f"format is {wanted[:40]!r}: there are json, and a schema", "format")
    return format_of_json()


def keep_alive_s(given: float | str | None) -> float | None:
    """None: for ever, as is whatever is below 0 or above what a calendar has."""
    if isinstance(given, str):
        given = _duration(given)
    return float(given) if given is not None and 0 <= given <= _LONGEST_S else None


def _duration(text: str) -> float:
    if text.startswith("-"):
        return -1
    text = text.removeprefix("+")
    if re.fullmatch(_NUMBER, text):
        return float(text)
    if not re.fullmatch(f"({_DURATION.pattern})+", text):
        raise Refused(f"keep_alive is {text[:40]!r}: 5m, 30s, 0 or -1 are possible", "keep_alive")
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))


# -- answers -----------------------------------------------------------------------------------------------------------


def now() -> str:
    return _utc(datetime.now(timezone.utc))


def at(epoch_s: float) -> str:
    return _utc(datetime.fromtimestamp(epoch_s, timezone.utc))


def after(seconds: float | None) -> str:
    """When so many are over; None: not for a long time."""
    return _utc(datetime.now(timezone.utc) + (timedelta(days=365) if seconds is None else timedelta(seconds=seconds)))


def _utc(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def details(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What listings say of a model."""
    family = facts.get("architecture") or ""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": count(facts.get("n_params")).replace(" ", ""),
        "quantization_level": facts.get("level") or "",
    }


def model_info(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same by the keys of its file."""
    family = facts.get("architecture") or ""
    known = {
        "general.architecture": family,
        "general.parameter_count": facts.get("n_params"),
        f"{family}.context_length": facts.get("n_ctx_train"),
    }
    return {key: value for key, value in known.items() if value}


def body_of(request: Request, answers: Sequence[Answer], *, url: str, model: str) -> dict[str, Any]:
    (answer,) = answers
    return {**_said(url, model, answer.text, answer.thinking, _called(answer)), **_ended(answer, request)}


def _called(answer: Answer) -> list[dict[str, Any]]:
    """Calls; one that was cut by the limit has no arguments that could be read, and is none."""
    found = []
    for call in answer.calls:
        with suppress(ValueError):
            found.append({"function": {"name": call.name, "arguments": json.loads(call.arguments)}})
    return found


def _said(url: str, model: str, text: str, thinking: str, calls: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    head: dict[str, Any] = {"model": model, "created_at": now()}
    thought = {"thinking": thinking} if thinking else {}
    if url == CHAT:
        called = {"tool_calls": [*calls]} if calls else {}
        return {**head, "message": {"role": "assistant", "content": text, **thought, **called}, "done": False}
    return {**head, "response": text, **thought, "done": False}


def loading(seconds: float) -> dict[str, Any]:
    """What a request waited for its model."""
    return {"load_duration": _ns(seconds)}


def _ended(answer: Answer, request: Request) -> dict[str, Any]:
    timing, load = answer.timing, {"load_duration": 0, **request.echo}
    prefill_s, decode_s = timing.prefill_s or 0.0, timing.decode_s
    return {
        "done": True,
        "done_reason": _FINISHED.get(answer.stop_reason or "", "stop"),
        "total_duration": load["load_duration"] + _ns((timing.ttft_s or prefill_s) + decode_s),
        **load,
        "prompt_eval_count": timing.n_prompt,
        "prompt_eval_duration": _ns(prefill_s),
        "eval_count": timing.n_generated,
        "eval_duration": _ns(decode_s),
    }


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


class Lines:
    """An answer as lines of JSON."""

    def __init__(self, request: Request, *, url: str, model: str) -> None:
        self._request, self._url, self._model = request, url, model

    def begin(self, i: int, answer: Answer) -> Iterator[Event]:
        return iter(())

    def piece(self, i: int, piece: Piece, answer: Answer) -> Iterator[Event]:
        if piece.text or piece.thought:
            yield Event("", _said(self._url, self._model, piece.text, piece.thought))

    def end(self, i: int, answer: Answer) -> Iterator[Event]:
        if calls := _called(answer):
            yield Event("", _said(self._url, self._model, "", "", calls))
        yield Event("", {**_said(self._url, self._model, "", ""), **_ended(answer, self._request)})

    def close(self, answers: Sequence[Answer]) -> Iterator[Event]:
        return iter(())


def loaded_body(url: str, model: str, *, unloaded: bool) -> dict[str, Any]:
    """For one who asked for nothing but to load a model, or to unload it."""
    return {**_said(url, model, "", ""), "done": True, "done_reason": "unload" if unloaded else "load"}
