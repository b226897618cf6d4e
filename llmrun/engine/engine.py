"""The parent's side: starts the child, streams its answers, and turns its death into an error with a reason."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from llmrun import codec
from llmrun.engine import devices
from llmrun.engine.channel import Died
from llmrun.engine.layout import Check, by_device, checks, rooms_of, settings_of
from llmrun.engine.meter import Meter, Timing
from llmrun.engine.process import Child, Death
from llmrun.engine.protocol import (
    Buffer,
    Cancel,
    Count,
    Counted,
    Done,
    Failed,
    Generate,
    Load,
    Loaded,
    Measure,
    Measured,
    Message,
    Prefilled,
    Prepare,
    Progress,
    PromptOptions,
    Started,
    StopReason,
    Tokens,
    Trial,
    TrialResult,
)
from llmrun.errors import BadModel, EngineCrashed, LlmrunError, OutOfMemory, PromptTooLong, UsageError
from llmrun.gguf.reader import Header
from llmrun.gguf.rules import open_adapter, overridden
from llmrun.gguf.stub import stub_file
from llmrun.machine.hardware import available_memory, default_threads
from llmrun.options.load import COMFORTABLE_CTX, LoadConfig
from llmrun.options.sampling import MAX_SEED, SamplingConfig
from llmrun.planning.footprint import Footprint, decode_reads, kv_bytes_per_token, repackable_types
from llmrun.planning.placement import Layout, Plan, Room, footprint_of, make_plan, should_repack, smaller_n_ctx
from llmrun.planning.placement import Measure as MeasureLayout
from llmrun.text import printable
from llmrun.units import duration, size


@dataclass(frozen=True)
class Limits:
    """How long the child may be silent, in seconds, and what it may take, before it counts as hung.

    Attributes:
        start_s: from its start to `Ready`: Python and llama.cpp's libraries, from a cold disk.
        header_s: reading the header and the vocabulary. Damaged ones are known to loop.
        header_bytes: private memory meanwhile. Damaged ones are known to grow without end.
        idle_s: without using the CPU, in any later phase: a deadlock, or a device or worker that does not answer.
            A busy child is given as long as it takes: a prompt can take hours on a slow machine.
        cancel_s: from `Cancel` to the end of the generation, before the child is killed.
    """

    start_s: float = 120
    header_s: float = 60
    header_bytes: int = 4 << 30
    idle_s: float = 300
    cancel_s: float = 0.5


_RETRY_WITH = 0.85
"""After an out-of-memory, the share of what was tried on each device that is tried next."""

_FLOAT_MAX = 3.4028234e38

_ONE_AT_A_TIME = "another generation of this engine is running; wait for it, or open a second"


class Generation:
    """One answer, as it is made: iterate for its text, then ask for `stop_reason`, `timing` and the rest.

    Attributes:
        text: the answer so far.
        thinking: what a reasoning model thought before it, which is no part of the answer.
        thinks: whether it may think at all, by its template; None before prefill.
        token_ids: the tokens of both.
        n_thinking: how many of them were thinking.
        stop_reason: why it ended ("end", "length", "stop", "context", "cancelled"); None while it runs.
        n_ctx: the tokens of context it may use; None before prefill.
        buffers: what llama.cpp holds, by device.
        seed: the seed that was used.
    """

    def __init__(self, engine: Engine, request: Generate, on_prefill: Callable[[int, int], None] | None) -> None:
        self._engine = engine
        self._request = request
        self._on_prefill = on_prefill
        self.meter = Meter(engine.reads)
        self.text = self.thinking = ""
        self.thinks: bool | None = None
        self.token_ids: list[int] = []
        self.n_thinking = 0
        self.stop_reason: StopReason | None = None
        self.n_ctx: int | None = None
        self.buffers: list[Buffer] = []
        self.done: Done | None = None
        self.seed: int = request.sampling["seed"]
        self._number: int | None = None  # of the request that is being answered
        self._cancel_asked = False
        self._events = self._run()

    def __iter__(self) -> Iterator[str]:
        """Pieces of the answer. A generator: closing it closes this."""
        return Pieces(self, (event.text for event in self._events if event.text))

    def pieces(self) -> Iterator[tuple[str, str]]:
        """The same of the answer and of the thinking; one of the two is usually empty."""
        return Pieces(self, ((event.text, event.thought) for event in self._events))

    def cancel(self) -> None:
        """Have it end soon, by itself, with the stop reason "cancelled". May be called by a signal handler."""
        self._cancel_asked = True
        if self._number is not None:
            with suppress(LlmrunError):  # a dead engine is what the iteration will find
                self._engine.cancel(self._number)

    def close(self) -> None:
        """End the generation if it still runs. The engine is free for the next one afterwards."""
        self._events.close()

    @property
    def timing(self) -> Timing:
        return self.meter.timing()

    def _run(self) -> Generator[Tokens]:
        engine = self._engine
        n_prompt = 0
        with engine.turn_of(self):
            try:
                self._ask()
                while self.stop_reason is None:
                    assert self._number is not None
                    try:
                        event = engine.receive(self._number)
                        if isinstance(event, Failed):
                            self._forget()
                            may_lengthen = event.kind == "prompt" and not self._request.options.reuse
                            if may_lengthen and engine.try_longer(event.numbers["n_prompt"]):
                                self._ask()
                                continue
                            raise engine.translate(event)
                    except OutOfMemory:
                        self._forget()
                        if self.token_ids or not engine.try_smaller():
                            raise
                        self._ask()
                        continue
                    self._take(event)
                    match event:
                        case Started():
                            n_prompt = event.n_prompt
                        case Prefilled():
                            if self._on_prefill:
                                self._on_prefill(event.n_tokens, n_prompt)
                        case Tokens():
                            if event.text or event.thought:
                                yield event
                        case Done():
                            pass
                        case _:
                            raise engine.out_of_turn(event, "in the middle of an answer")
            except LlmrunError:
                self.stop_reason = self.stop_reason or "cancelled"  # there is nothing to drain
                raise
            finally:
                if self.stop_reason is None and self._number is not None:
                    self._drain(self._number)
                self._forget()

    def _ask(self) -> None:
        """Send the request: the first time, and again to an engine that has loaded its model again."""
        self.meter.feed(self._engine.loaded)
        self._number = number = self._engine.new_request()
        self._engine.send(number, self._request)
        if self._cancel_asked:  # before there was a number, or while the model was loaded again
            self._engine.cancel(number)

    def _forget(self) -> None:
        """The request is over. A cancel that comes now is meant for the next one, if there is one."""
        if self._number is not None:
            self._engine.forget(self._number)
        self._number = None

    def _take(self, event: Message) -> None:
        """Note what an event says of this generation."""
        self.meter.feed(event)
        match event:
            case Started():
                self.n_ctx, self.buffers, self.thinks = event.n_ctx, event.buffers, event.thinks
            case Tokens():
                self.text += event.text
                self.thinking += event.thought
                self.token_ids += event.ids
                self.n_thinking += event.n_thought
            case Done():
                self.done, self.stop_reason = event, event.stop_reason
            case Failed():
                self.stop_reason = "cancelled"
            case _:
                pass

    def _drain(self, number: int) -> None:
        """The caller wants no more: have the child stop, and take what it still has to say."""
        engine = self._engine
        if not engine.alive:
            return
        try:
            engine.cancel(number)
            deadline = time.monotonic() + engine.limits.cancel_s
            while self.stop_reason is None:
                event = engine.receive_until(number, deadline)
                if event is None:  # deep in a native call: it will not end by asking
                    break
                self._take(event)
        finally:
            if self.stop_reason is None:
                self.stop_reason = "cancelled"
                engine.close()


P = TypeVar("P")


class Pieces(Generator[P, None, None]):
    """What a generation makes, piece by piece; closing this closes the generation."""

    def __init__(self, generation: Generation, pieces: Iterator[P]) -> None:
        self._generation, self._pieces = generation, pieces

    def send(self, value: None) -> P:
        return next(self._pieces)

    def throw(self, *error: Any) -> P:
        self._generation.close()
        return super().throw(*error)


class Engine:
    """One model, loaded in a child process. A context manager: leaving it ends the child.

    Raises, from the constructor and from a generation alike: `BadModel`, `OutOfMemory`, `EngineCrashed`,
    `PromptTooLong`, `UsageError`. After `EngineCrashed` and `OutOfMemory` the engine is closed.

    Attributes:
        devices: everything that llama.cpp sees, RAM among it.
        plan: what lies where, and why.
        notes: what a user should be told of how it was loaded, one sentence each.
        loaded: what the model is.
    """

    _module = "child.main"
    """Of this package, which the child runs."""

    def __init__(
        self,
        path: Path,
        header: Header,
        config: LoadConfig | None = None,
        *,
        limits: Limits | None = None,
        on_progress: Callable[[float], None] | None = None,
        child: Child | None = None,
        expected_tokens: int | None = None,
        least_tokens: int | None = None,
    ) -> None:
        """`child` is one of `process.started_early`, for those who can't wait. `expected_tokens`, of prompt and answer
        together where they are known, is what the layout leaves memory for; `least_tokens`, if not so many fit, would
        do."""
        self.path = path
        self.config = config or LoadConfig()
        self.header = header = overridden(header, self.config.override_kv)
        self._limits = limits or Limits()
        self.notes: list[str] = []
        self.reads = decode_reads(header, self.config.type_k, self.config.type_v)
        self.n_threads = self.config.n_threads or default_threads()
        self._on_progress = on_progress
        self._expected_tokens, self._least_tokens = expected_tokens, least_tokens
        self._may_lengthen = True
        self._left: int | None = None  # a request that was left before it was answered, or is not meant to be
        self._may_retry = self._may_measure = True
        self._holds_model = False
        self._adapters = [open_adapter(adapter.path, header.architecture) for adapter in self.config.lora]
        self._running: Generation | None = None
        self._turn = threading.Lock()
        self._channel = devices.new_channel(self._module, child=child)
        self._channel.idle_s = self.limits.idle_s
        try:
            self._find_devices()
            self.plan = self._make_plan(rooms_of(self.config, self.devices))
            if line := self.plan.line():  # not of a second plan, whose rooms are what may be tried, not what is free
                self.notes.append(line)
            try:
                self._load()
            except OutOfMemory:
                if not self.try_smaller():
                    raise
        except BaseException:
            self.close()
            raise

    @property
    def limits(self) -> Limits:
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self._channel.idle_s = limits.idle_s

    # -- before loading ---

    def _find_devices(self) -> None:
        """Wait for the child, and ask it what there is."""
        found = devices.ask(self._channel, self.config.rpc, start_s=self.limits.start_s)
        self.devices, self.system_info, self.versions = found.devices, found.system_info, found.versions

    def _make_plan(self, rooms: Sequence[Room]) -> Plan:
        try:
            with stub_file(self.header) as path:
                plan = self._planned(rooms, partial(self._measure, path))
        except OSError:  # no room for it: then the compute buffers stay unknown
            plan = self._planned(rooms, lambda _layout, _n_ctx: None)
        return plan

    def _planned(self, rooms: Sequence[Room], measure: MeasureLayout) -> Plan:
        return make_plan(
            self.header,
            self.config,
            rooms,
            ram_free=available_memory(),
            measure=measure,
            expected_tokens=self._expected_tokens,
            least_tokens=self._least_tokens,
            repackable=repackable_types(self.system_info),
            adapters=self._adapters,
        )

    def _measure(self, path: str, layout: Layout, n_ctx: int) -> dict[str, int] | None:
        """Bytes that llama.cpp would compute in, by device."""
        if not self._may_measure:
            return None
        repack = should_repack(self.header) if self.config.repack == "auto" else self.config.repack == "on"
        settings = settings_of(
            self.config, layout, n_ctx=n_ctx, n_ctx_most=None, n_threads=self.n_threads, repack=repack
        )
        try:
            event = self.ask(Measure(path, codec.replace(settings, lora=[])))
        except EngineCrashed:
            # What can be loaded can't be laid out: of no harm but for this child, and what it had loaded.
            self._may_measure = False
            if not self._holds_model:
                self._start_again()
                self._find_devices()
            return None
        match event:
            case Measured(buffers):
                return {device: taken["compute"] for device, taken in by_device(buffers, self.devices).items()}
            case Failed(kind="usage"):
                raise self.translate(event)
            case Failed():
                return None
            case _:
                raise EngineCrashed(f"the engine sent {type(event).__name__} instead of a measurement")

    def checks(self, generation: Generation) -> list[Check]:
        """The footprint for the context that a generation had, beside what llama.cpp took."""
        return checks(self.footprint(generation.n_ctx or 0), generation.buffers, self.devices)

    def footprint(self, n_ctx: int) -> Footprint:
        """What the plan takes with a context of `n_ctx` tokens, which may not be the one that it was made for.

        Raises `UsageError` while a generation runs: the child is asked, and does one thing at a time.
        """
        if n_ctx == self.plan.footprint.n_ctx:
            return self.plan.footprint
        found = footprint_of(self.header, self.config, self.plan.placement, n_ctx, self._adapters)
        if not self._turn.acquire(blocking=False):
            raise UsageError(_ONE_AT_A_TIME)
        try:
            with stub_file(self.header) as path:
                return found.with_compute(self._measure(path, self.plan.layout, n_ctx))
        except OSError:
            return found
        finally:
            self._turn.release()

    def try_smaller(self) -> bool:
        """After an out-of-memory: load again with fewer layers on the devices. False where that is nobody's choice but
        the user's, or was tried before."""
        plan = self.plan
        tight = [room for room in plan.rooms if plan.footprint.by_device.get(room.name)]
        if not (self._may_retry and plan.auto and tight and plan.layout.n_gpu_layers):
            return False
        self._may_retry = False
        target = self.config.offload.fit_target
        less = [
            Room(room.name, round(_RETRY_WITH * plan.footprint.by_device[room.name].total) + target)
            if room in tight
            else room
            for room in plan.rooms
        ]
        before, taken = plan.layout.n_gpu_layers, ", ".join(room.name for room in tight)
        self._load_again(less)
        self.notes.append(f"out of memory with {before} layers on {taken}: again with {self.plan.layout.n_gpu_layers}")
        return True

    def try_longer(self, n_prompt: int) -> bool:
        """After a prompt with more tokens than were planned for: load again with a layout that leaves room for them.
        False where the model, or the user, grants no longer context."""
        trained, plan = self.header.n_ctx_train or 0, self.plan
        wanted = min(trained, n_prompt + COMFORTABLE_CTX // 8)
        if self.config.n_ctx or n_prompt > trained or (plan.n_ctx_most or 0) >= wanted or not self._may_lengthen:
            return False
        self._may_lengthen = False
        self._expected_tokens = self._least_tokens = wanted
        self._load_again(rooms_of(self.config, self.devices))
        self.notes.append(f"the prompt has {n_prompt} tokens, more than was planned for: loaded again")
        return True

    def _start_again(self) -> None:
        """A new child, for one that is gone."""
        self._channel = devices.new_channel(self._module, idle_s=self.limits.idle_s)
        self._holds_model, self._left = False, None

    def _load_again(self, rooms: Sequence[Room]) -> None:
        self._channel.close()
        self._start_again()
        try:
            self._find_devices()
            self.plan = self._make_plan(rooms)
            self._load()
        except BaseException:
            self.close()  # a child without a model could answer nobody
            raise

    @property
    def n_ctx_most(self) -> int:
        """The most tokens of context that a conversation with this model can have here."""
        if self.config.n_ctx is not None:
            return self.plan.n_ctx
        known = [n for n in (self.header.n_ctx_train, self.plan.n_ctx_most) if n]
        return min(known, default=COMFORTABLE_CTX)

    @property
    def repack(self) -> bool:
        """Whether the weights in RAM are rearranged."""
        return self.plan.repack

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return self._channel.alive

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._channel.pid

    def close(self) -> None:
        """End the child, whatever it is doing, and wait until it is gone. Safe to call twice."""
        self._channel.close()

    def generate(
        self,
        prompt: str | Sequence[dict[str, str]],
        sampling: SamplingConfig | None = None,
        *,
        options: PromptOptions | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> Generation:
        """Answer messages (dicts of role and content) through the chat template, or continue a text as it is.

        `on_prefill` is called with the tokens computed and the tokens in all, after each batch of the prompt.
        """
        sampling = sampling or SamplingConfig()
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbelow(MAX_SEED + 1))
        fields = asdict(replace(sampling, logit_bias={}))
        # JSON has no infinity; the largest number of single precision does the same to a logit.
        biases = {token: max(-_FLOAT_MAX, min(bias, _FLOAT_MAX)) for token, bias in sampling.logit_bias.items()}
        fields["logit_bias"] = [[token, bias] for token, bias in biases.items()]
        fields["stop"] = list(sampling.stop)
        request = Generate(
            fields,
            prompt=prompt if isinstance(prompt, str) else None,
            messages=None if isinstance(prompt, str) else [*prompt],
            options=options or PromptOptions(),
        )
        return Generation(self, request, on_prefill)

    def count(self, prompt: str | Sequence[dict[str, str]], *, template: str | None = None, thinks: bool = True) -> int:
        """The tokens that a text has, or messages once they are rendered for an answer. Not while one is made."""
        messages = None if isinstance(prompt, str) else [*prompt]
        with self._turn_taken():
            event = self.ask(Count(prompt if isinstance(prompt, str) else None, messages, template, thinks))
        match event:
            case Counted(n_tokens):
                return n_tokens
            case Failed() as failed:
                raise self.translate(failed)
            case event:
                raise self.out_of_turn(event, "for a count")

    def trial(self, n_prompt: int, n_gen: int, *, n_depth: int = 0, n_seq: int = 1, n_ctx: int = 0) -> TrialResult:
        """Bare speed: random tokens, nothing sampled (see `protocol.Trial`). Not while a generation runs."""
        with self._turn_taken():
            event = self.ask(Trial(n_prompt, n_gen, n_depth, n_seq, n_ctx))
        match event:
            case TrialResult() as tried:
                return tried
            case Failed() as failed:
                raise self.translate(failed)
            case event:
                raise self.out_of_turn(event, "for the outcome of a trial")

    def prepare(self, messages: Sequence[dict[str, str]], *, template: str | None = None, thinks: bool = True) -> None:
        """Compute what a conversation begins with while nobody asks for anything; the next request ends it."""
        with self._turn_taken():
            self._left = self.new_request()
            self.send(self._left, Prepare([*messages], template, thinks))

    @contextmanager
    def _turn_taken(self) -> Iterator[None]:
        if not self._turn.acquire(blocking=False):
            raise UsageError(_ONE_AT_A_TIME)
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def turn_of(self, generation: Generation) -> Iterator[None]:
        """One generation at a time. Asking for the next one ends one that was left in the middle.

        Raises `UsageError` when another thread is in the middle of one.
        """
        left = self._running
        if left is not None:
            try:
                left.close()
            except ValueError:  # Python's word for a generator that is being run just now
                raise UsageError(_ONE_AT_A_TIME) from None
        with self._turn_taken():
            self._running = generation
            try:
                yield
            finally:
                self._running = None

    # -- the conversation with the child ------------------------------------------------------------------------------

    def new_request(self) -> int:
        """A number for the next request, once the child has finished with one that was left."""
        self._check_open()
        if self._left is not None:
            left = self._left
            self.cancel(left)
            self._last_answer(left)
        return self._channel.new_request()

    def ask(self, message: Message) -> Message:
        """Send something and wait for what it is answered with.

        Left before that, at a Ctrl-C for one, it is ended before the next request is sent.
        """
        self._left = number = self.new_request()
        self.send(number, message)
        return self._last_answer(number)

    def _last_answer(self, number: int) -> Message:
        event = self.receive(number)
        self._left = None
        self._channel.forget(number)
        return event

    def forget(self, number: int) -> None:
        """The request is over."""
        self._channel.forget(number)

    def out_of_turn(self, event: Message, what: str) -> EngineCrashed:
        """For a message that nobody waits for: who is out of step once stays so."""
        return self._channel.ended(f"sent {type(event).__name__} {what}")

    def send(self, number: int, message: Message) -> None:
        self._check_open()
        with self._deaths():
            self._channel.send(number, message)

    def cancel(self, number: int) -> None:
        """Have the child end a request, which is answered as always. May be called by a signal handler."""
        self.send(number, Cancel())

    def receive(self, number: int) -> Message:
        """The next message about a request. Raises when the child dies, or hangs."""
        self._check_open()
        with self._deaths():
            return self._channel.answer(number)

    def receive_until(self, number: int, deadline: float) -> Message | None:
        """The next message about a request, or None at the deadline (on `time.monotonic`)."""
        self._check_open()
        with self._deaths():
            return self._channel.receive(number, deadline)

    @contextmanager
    def _deaths(self) -> Iterator[None]:
        try:
            yield
        except Died as error:
            raise self._why_dead(error.death) from None

    def _check_open(self) -> None:
        if self._channel.closed:
            raise UsageError("the engine is closed", hint="open the model again")

    def _load(self) -> None:
        plan = self.plan
        number = self.new_request()
        self.send(
            number,
            Load(
                # Not resolved: in the cache a name links to a blob, and the other parts lie beside the name.
                path=os.fspath(self.path.absolute()),
                settings=settings_of(
                    self.config,
                    plan.layout,
                    n_ctx=None if self.config.n_ctx is None else plan.n_ctx,
                    n_ctx_most=plan.n_ctx_most,
                    n_threads=self.n_threads,
                    repack=plan.repack,
                ),
                has_template=self.header.chat_template is not None,
            ),
        )
        self.loaded = self._wait_for_load(number)
        self._channel.forget(number)
        if self.loaded.warnings:
            self.notes.append("the model is not locked in RAM: the limit on locked memory (ulimit -l) is too small")
        self._holds_model = True

    def _wait_for_load(self, number: int) -> Loaded:
        deadline = time.monotonic() + self.limits.header_s
        in_header = True
        while True:
            if in_header:
                event = self.receive_until(number, min(deadline, time.monotonic() + 0.2))
                if event is None:
                    self._check_header_phase(deadline)
                    continue
            else:
                event = self.receive(number)
            match event:
                case Progress():
                    in_header = False
                    if self._on_progress:
                        self._on_progress(event.fraction)
                case Loaded():
                    return event
                case Failed():
                    raise self.translate(event)
                case _:
                    raise EngineCrashed(f"the engine sent {type(event).__name__} while loading")

    def _check_header_phase(self, deadline: float) -> None:
        taken = _private_bytes(self._channel.pid)
        if taken is not None and taken > self.limits.header_bytes:
            raise self._channel.ended(
                f"took {size(taken)} before a single weight was read; the file is probably damaged"
            )
        if time.monotonic() >= deadline:
            limit = duration(self.limits.header_s)
            raise self._channel.ended(f"was still reading the header after {limit}; the file is probably damaged")

    # -- errors ---

    def translate(self, failed: Failed) -> LlmrunError:
        """The error for what the child says went wrong."""
        message = printable(failed.message, limit=400)
        numbers = failed.numbers
        match failed.kind:
            case "model" if re.search("in regular expression|shorter regex", message):
                return UsageError(f"-ot: no pattern for llama.cpp: {message.rpartition(': ')[2]}")
            case "model" if "does not support split buffers" in message:
                return UsageError(f"-sm row: {message.rpartition(': ')[2]}", hint="-sm layer")
            case "model":
                return BadModel(f"{self.path.name}: {message}", hint=f"llmrun show {shlex.quote(str(self.path))}")
            case "memory":
                return self._out_of_memory(numbers.get("n_ctx"))
            case "prompt":
                if numbers["n_prompt"] <= numbers["n_ctx_train"]:
                    longer = f"-c {-(-numbers['n_prompt'] // 256) * 256}"
                    hint = f"{longer}, or leave -c out: then it is as long as the prompt needs"
                    hint = hint if self.config.n_ctx else longer  # it is memory that cut the context, for this layout
                else:
                    hint = f"shorten it: the model was trained on {numbers['n_ctx_train']} tokens"
                return PromptTooLong(message, hint=hint)
            case "usage":
                return UsageError(message, field=failed.field, hint="llmrun run --help")
            case _:
                self.close()
                return EngineCrashed(message)

    def _out_of_memory(self, n_ctx: int | None) -> OutOfMemory:
        self.close()
        config = self.config
        per_token = kv_bytes_per_token(self.header, config.type_k, config.type_v)
        available = available_memory()
        parts = [f"weights {size(self.header.weight_bytes)}"]
        ways = []
        layers = self.plan.layout.n_gpu_layers if hasattr(self, "plan") else 0
        if layers:
            parts.append(f"{layers} layers on {', '.join(self.plan.layout.devices)}")
            ways.append(f"-ngl {layers * 3 // 4}")
        if n_ctx is not None:
            if per_token:
                parts.append(f"KV cache of {n_ctx} tokens {size(per_token * n_ctx)}")
            ways.append(f"-c {smaller_n_ctx(n_ctx, per_token, available)}")
            if config.type_k == config.type_v == "f16" and config.flash_attn != "off":
                ways.append("-ctk q8_0 -ctv q8_0")
        ways.append("a smaller quantization of the model")
        return OutOfMemory(
            f"out of memory: {', '.join(parts)}; {size(available)} of RAM available", hint="  or  ".join(ways[:3])
        )

    def _why_dead(self, death: Death) -> LlmrunError:
        if death.out_of_memory:
            return self._out_of_memory(self.config.n_ctx or None)
        if self.config.rpc and "RPC server" in death.reason:
            return devices.lost(self.config.rpc, death)
        # Repacked weights run on code of their own, which compilers and virtual machines are known to break.
        suspect = hasattr(self, "plan") and self.repack and death.killer in (signal.SIGSEGV, signal.SIGILL)
        hint = "the same with --repack off" if suspect else "the same with LLMRUN_DEBUG=1, which shows its log"
        return EngineCrashed(f"the engine {death.reason}", hint=hint, log=death.log)

    def log_tail(self) -> str:
        """The last 20 kB of llama.cpp's log."""
        return self._channel.log_tail()


def _private_bytes(pid: int) -> int | None:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
