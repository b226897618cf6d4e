"""A model of a server as an engine: who uses engines need not know where the answer is made.

Here and not in `engine/`, as it speaks the forms of `wire/`. What a request can't hold is refused, by its field.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llmrun import codec
from llmrun.bench.chat_stream import Chunk, Delta, Timings, Usage
from llmrun.chat.conversation import CHATML
from llmrun.codec import Struct, field
from llmrun.constrain.output_format import OutputFormat, of_json
from llmrun.engine.buffers import FootprintCheck
from llmrun.engine.generation import Pieces
from llmrun.engine.interface import Engine, Generation, Messages, OnPrefill, Parallel
from llmrun.engine.meter import Meter, Timing
from llmrun.engine.protocol import CallPiece, Loaded, PromptOptions, Started, StopReason, Tokens, Tool, TrialResult
from llmrun.errors import LlmrunError, NetworkError, NotFound, UsageError
from llmrun.gguf.reader import Header
from llmrun.gguf.types import FILE_TYPES
from llmrun.models.reference import Embedded, HubFile, LocalFile, parse
from llmrun.options.load import COMFORTABLE_CTX, LoadConfig
from llmrun.options.sampling import SamplingConfig
from llmrun.planning.footprint import DecodeReads, Footprint, Placement
from llmrun.planning.layout import Layout
from llmrun.planning.load_plan import LoadPlan
from llmrun.server.client import Client, Exchange
from llmrun.wire import anthropic, openai

_MOST_BIAS = 1e6
"""JSON has no infinity; this does the same to a logit."""


# -- which models there are --------------------------------------------------------------------------------------------


class Facts(Struct):
    """What a server says of a model. `n_ctx`: of one answer, once the model is loaded."""

    architecture: str | None = None
    n_params: int | None = None
    level: str | None = None
    size_bytes: int | None = None
    n_ctx_train: int | None = None
    n_ctx: int | None = None
    template: str | None = None


class Listed(Struct):
    id: str
    meta: Facts = field(default_factory=Facts)


class _Models(Struct):
    data: list[Listed]


class _Props(Struct):
    version: str
    default_generation_settings: dict[str, dict[str, Any]]


def opened(client: Client, name: str, formats: Sequence[OutputFormat] = ()) -> RemoteEngine:
    """The model that a user calls so. `formats`: those that answers may be asked for.

    Raises `NotFound` with those that there are, `NetworkError`, `UsageError` for what is no server of ours.
    """
    props = client.get("/props", _Props)
    model = _named(client, name)
    given = props.default_generation_settings.get(model.id, {})
    biases = given.get("logit_bias") or {}
    given["logit_bias"] = {int(token): -math.inf if bias is None else bias for token, bias in biases.items()}
    known = {each.name for each in fields(SamplingConfig)}
    usual = codec.convert({name: value for name, value in given.items() if name in known}, SamplingConfig)
    return RemoteEngine(client, model, usual, formats, version=props.version)


def _named(client: Client, name: str) -> Listed:
    there = client.get("/v1/models", _Models).data
    if found := _meant(there, name):
        return found
    with suppress(NotFound, UsageError):  # it may know it by the name that it was started with
        return client.get(f"/v1/models/{quote(name, safe='')}", Listed)
    named = ", ".join(each.id for each in there) or "none"
    raise NotFound(f"{client.address} does not serve {name}; it serves {named}")


def _meant(there: Sequence[Listed], name: str) -> Listed | None:
    """The one that is called so, in any case; else the only one that is the same, at the level that is named."""
    same = [each for each in there if each.id.lower() == name.lower()]
    what, level = _parts(name)
    others = [(each, *_parts(each.id)) for each in there]
    near = [each for each, its, at in others if its == what and level in (None, at or each.meta.level or level)]
    return next((found[0] for found in (same, near) if len(found) == 1), None)


def _parts(name: str) -> tuple[str, str | None]:
    """What is named, and at which level, if one is; of a file its name alone, as servers call it."""
    try:
        named = parse(name)
    except LlmrunError:
        return name.lower(), None
    match named:
        case HubFile():
            is_typed = named.quant is not None and named.quant.lower() in name.lower()  # not the catalog's usual one
            return f"{named.repo}/{named.file or ''}".lower(), named.quant if is_typed else None
        case LocalFile():
            return named.path.name.lower(), None
        case Embedded():
            return named.name, None


# -- the engine --------------------------------------------------------------------------------------------------------


class RemoteEngine(Engine):
    """One model of a server. Its plan, its devices and its process are not known: the plan here is an empty one.

    Raises, from a generation and a count: `NetworkError`, `UsageError`, `PromptTooLong`, and `EngineCrashed` and
    `OutOfMemory` of the server's engine, after which it has another one.
    """

    def __init__(
        self,
        client: Client,
        model: Listed,
        usual: SamplingConfig,
        formats: Sequence[OutputFormat] = (),
        *,
        version: str | None = None,
    ) -> None:
        self.server, self.usual_sampling, self.name = client.address, usual, model.id
        self._client, self._facts = client, model.meta
        self._formats = {each.grammar: each for each in (of_json(), *formats)}
        self.config, self.header = LoadConfig(), _header(model.meta)
        self.devices, self.system_info = [], ""
        self.versions = {"server": version} if version else {}
        self.notes = [f"what is said to {client.address} can be read on the way"] if client.is_readable else []
        self.reads = DecodeReads(0, None)
        facts, n_ctx = model.meta, model.meta.n_ctx_train or 0
        self.loaded = Loaded(n_ctx, 0, facts.n_params or 0, facts.architecture or "", bool(facts.template), 0.0, 0.0)
        self.plan = LoadPlan(
            Path(), self.config, 0, Layout(0), Placement(()), Footprint(), n_ctx, None, repack=False, auto=False
        )

    @property
    def n_ctx_most(self) -> int:
        return self._facts.n_ctx or self._facts.n_ctx_train or COMFORTABLE_CTX

    @property
    def pid(self) -> int:
        raise UsageError(f"{self.server} computes, in a process that is not known here")

    @property
    def alive(self) -> bool:
        return True

    def close(self) -> None: ...

    def flush(self) -> None: ...

    def prepare(
        self,
        messages: Messages,
        *,
        template: str | None = None,
        thinks: bool = True,
        special: bool | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> None:
        """Nothing: its places are for those who have asked."""

    def trial(self, n_prompt: int, n_gen: int, *, n_depth: int = 0, n_seq: int = 1, n_ctx: int = 0) -> TrialResult:
        raise UsageError(f"{self.server} makes answers, and no trials")

    def parallel(self, n_seq: int, n_ctx: int) -> AbstractContextManager[Parallel]:
        raise UsageError(f"{self.server} decides itself how many answers it makes side by side")

    def checks(self, generation: Generation) -> list[FootprintCheck]:
        return []

    def most_context(self, n_seq: int) -> int:
        return self.n_ctx_most

    def learn(self) -> None:
        """Ask for the context, which is known when the model is loaded."""
        if self._facts.n_ctx is None:
            with suppress(LlmrunError):
                self._facts = self._client.get(f"/v1/models/{quote(self.name, safe='')}", Listed).meta

    # -- what it is asked ---

    def count(
        self,
        prompt: str | Messages,
        *,
        template: str | None = None,
        thinks: bool = True,
        special: bool | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> int:
        self._check(PromptOptions(template, special=special))
        if isinstance(prompt, str):
            body = {"model": self.name, "content": prompt, "parse_special": special is not False}
            return len(self._client.post("/tokenize", body, _Tokens).tokens)
        body = anthropic.count_fields(prompt, tools or ())
        body |= {"model": self.name, **({} if thinks else {"thinking": {"type": "disabled"}})}
        return self._client.post(anthropic.COUNT, body, _Count).input_tokens

    def generate(
        self,
        prompt: str | Messages,
        sampling: SamplingConfig | None = None,
        *,
        options: PromptOptions | None = None,
        on_prefill: OnPrefill | None = None,
    ) -> RemoteGeneration:
        sampling, options = sampling or self.usual_sampling or SamplingConfig(), options or PromptOptions()
        self._check(options)
        is_text = isinstance(prompt, str)
        body = self._body(sampling, options) | self._format(options, is_text=is_text)
        if isinstance(prompt, str):
            body["prompt"] = prompt + options.assistant_prefix
        else:
            begun = [{"role": "assistant", "content": options.assistant_prefix}] if options.assistant_prefix else []
            body |= {"messages": [*prompt, *begun], **_of_chat(options)}
        exchange = Exchange(self._client, "POST", openai.COMPLETIONS if is_text else openai.CHAT, body)
        return RemoteGeneration(self, exchange, sampling)

    def _check(self, options: PromptOptions) -> None:
        """Raises `UsageError` for what a request can't hold."""
        own = options.template == CHATML and self.header.chat_template is None  # which the server uses as well
        held = {
            "chat_template": options.template is None or own,
            "special": not options.special,
            "n_logprobs": options.n_logprobs is None,
        }
        for name, is_held in held.items():
            if not is_held:
                raise UsageError(f"{self.server} can't be asked for it", field=name)

    def _body(self, sampling: SamplingConfig, options: PromptOptions) -> dict[str, Any]:
        """Everything is said, also what is as usual there: a server that is started anew may have other habits."""
        biases = {str(token): max(bias, -_MOST_BIAS) for token, bias in sampling.logit_bias.items()}
        said = {each.name: getattr(sampling, each.name) for each in fields(SamplingConfig)}
        del said["logit_bias"]
        return {
            "model": self.name,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            **{name: value for name, value in said.items() if value is not None},
            **({"logit_bias": biases} if biases else {}),
        }

    def _format(self, options: PromptOptions, *, is_text: bool) -> dict[str, Any]:
        if options.grammar is None:
            return {}
        wanted = self._formats.get(options.grammar)
        fields = openai.format_fields(wanted)
        if wanted is None or (is_text and "response_format" in fields):
            what = "with messages, not with a text that is continued" if is_text else "as it was given at the beginning"
            raise UsageError(f"{self.server} holds a schema {what}", field="json_schema")
        return fields


def _of_chat(options: PromptOptions) -> dict[str, Any]:
    budget = options.think_budget if options.thinks else None
    asked: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": options.thinks}}
    if budget is not None:
        asked["thinking_budget_tokens"] = budget
    if options.tools:
        asked |= {
            "tools": [openai.tool_fields(each) for each in options.tools],
            "tool_choice": "required" if options.must_call else "auto",
            "parallel_tool_calls": options.several_calls,
        }
    return asked


def _header(facts: Facts) -> Header:
    """Of what a file would say, as much as the server tells."""
    arch = facts.architecture or "unknown"
    file_type = next((number for number, name in FILE_TYPES.items() if name == facts.level), None)
    said = {
        "general.architecture": arch,
        "general.file_type": file_type,
        f"{arch}.context_length": facts.n_ctx_train,
        "tokenizer.chat_template": facts.template,
    }
    metadata = {name: value for name, value in said.items() if value is not None}
    return Header(3, 32, metadata, {}, (), 0, facts.size_bytes)


# -- an answer ---------------------------------------------------------------------------------------------------------


class _Tokens(Struct):
    tokens: list[int]


class _Count(Struct):
    input_tokens: int


@dataclass(frozen=True)
class ServerTiming(Timing):
    """By a server's clock, but for `ttft_s`, which is from the request to the first piece that came here. The gaps are
    not known one by one.

    Attributes:
        said: None before the end.
    """

    said: Timings | None = None

    @property
    def pp_tps(self) -> float | None:
        return self.said.prompt_per_second if self.said else None

    @property
    def n_steps(self) -> int:
        return max(0, self.n_generated - 1) if self.decode_s else 0

    @property
    def decode_s(self) -> float:
        return (self.said.decode_s if self.said else None) or 0.0

    @property
    def tg_tps(self) -> float | None:
        return self.said.predicted_per_second if self.said else None


class _ServerMeter(Meter):
    """Counts by what the server says; how fast it is at a moment, by when that comes."""

    said: Timings | None = None

    def timing(self) -> ServerTiming:
        here, said = super().timing(), self.said or Timings()
        return ServerTiming(
            load_s=None,
            n_prompt=here.n_prompt,
            n_cached=here.n_cached,
            prefill_s=said.prompt_s,
            ttft_s=here.ttft_s,
            step_s=(),
            n_generated=here.n_generated,
            read_bytes=None,
            peak_rss_bytes=None,
            n_drafted=said.draft_n or 0,
            n_accepted=said.draft_n_accepted or 0,
            said=self.said,
        )


class RemoteGeneration(Generation):
    """An answer of a server. Numbers of tokens are not told: `token_ids` is empty, and the meter has how many.

    What it was ended by, the model or a stop text, is not told either: "stop" where there were stop texts.
    """

    def __init__(self, engine: RemoteEngine, exchange: Exchange, sampling: SamplingConfig) -> None:
        self._engine, self._exchange, self._sampling = engine, exchange, sampling
        self.meter: _ServerMeter = _ServerMeter()
        self.token_ids, self.buffers, self.seed = [], [], sampling.seed
        self.call_pieces: list[CallPiece] = []
        self._asked_s = time.perf_counter()
        self._finish: str | None = None
        self._events = self._run()

    def __iter__(self) -> Iterator[str]:
        return Pieces(self, (text for text, _ in self._events if text))

    def pieces(self) -> Iterator[tuple[str, str]]:
        return Pieces(self, self._events)

    def cancel(self) -> None:
        self._exchange.stop()

    def close(self) -> None:
        self._events.close()

    def _run(self) -> Generator[tuple[str, str]]:
        self._asked_s = time.perf_counter()
        try:
            for data in self._exchange.events():
                yield from self._take(codec.decode(data, Chunk))
            if self._finish is None:
                raise NetworkError(f"{self._engine.server} ended without an end of the answer")
            self.stop_reason = self._why()
        except LlmrunError as error:
            if not self._exchange.is_stopped:
                if self.text:
                    error.message += f"; {self.meter.n_generated} tokens of the answer had come"
                raise
        except codec.Malformed as error:
            raise NetworkError(f"{self._engine.server} sent what is no part of an answer: {error}") from None
        finally:
            self._exchange.close()
            self.stop_reason = self.stop_reason or "cancelled"

    def _take(self, chunk: Chunk) -> Iterator[tuple[str, str]]:
        if chunk.timings is not None:
            self.meter.said = chunk.timings
        if chunk.usage is not None:
            self._count(chunk.usage)
        for choice in chunk.choices or ():
            self._finish = choice.finish_reason or self._finish
            delta = choice.delta or Delta()
            text, thought = choice.text or delta.content or "", delta.thought
            self.text += text
            self.thinking += thought
            self.call_pieces += [
                CallPiece(each.index, each.function.name or "", each.function.arguments or "")
                for each in delta.tool_calls or ()
                if each.function is not None
            ]
            if text or thought:
                yield text, thought

    def _count(self, usage: Usage) -> None:
        now_s, asked_s, engine = time.perf_counter(), self._asked_s, self._engine
        if self.n_ctx is None:
            engine.learn()
            self.n_ctx = engine.n_ctx_most
        n_prompt, n_cached = usage.prompt_tokens or 0, usage.n_cached or 0
        self.meter.feed(Started(n_prompt, n_cached, self.n_ctx, asked_s, asked_s, buffers=[]))
        n_more = (usage.completion_tokens or 0) - self.meter.n_generated
        self.meter.feed(Tokens([], [now_s] * n_more, ""))
        self.n_thinking = usage.n_thinking

    def _why(self) -> StopReason:
        most = self._sampling.max_tokens
        if self._finish == "length":
            return "length" if 0 <= most <= self.meter.n_generated else "context"
        return "stop" if self._finish == "stop" and self._sampling.stop else "end"
