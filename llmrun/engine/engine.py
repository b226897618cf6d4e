"""The engine that computes: one model, loaded in a child process, which answers one request, or several side by side.

    header, config ──► Loader.plan ──► LoadPlan ──► Loader.load ──► requests
                            ▲                                           │
                            └── again, with less or longer ◄────────────┘  out of memory, a prompt too long

A `LoadPlan` can be had without loading (`plan_load`), and loaded as it is (`ChildEngine.open`).
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from llmrun.engine import buffers
from llmrun.engine.buffers import FootprintCheck
from llmrun.engine.connection import Connection
from llmrun.engine.devices import built
from llmrun.engine.failures import Situation
from llmrun.engine.generation import ChildGeneration
from llmrun.engine.interface import Engine, Generation, Messages, OnPrefill
from llmrun.engine.limits import Limits
from llmrun.engine.loader import Loader
from llmrun.engine.parallel import Parallel
from llmrun.engine.process import Child, spins_for
from llmrun.engine.protocol import (
    Count,
    Counted,
    Flush,
    Generate,
    Prepare,
    PromptOptions,
    Reserve,
    Reserved,
    Tool,
    Trial,
    TrialResult,
)
from llmrun.errors import LlmrunError, OutOfMemory, UsageError
from llmrun.gguf.reader import Header
from llmrun.gguf.rules import overridden
from llmrun.machine.backends import without_devices
from llmrun.machine.hardware import slow_instructions
from llmrun.options.defaults import SMALL_MODEL_BYTES
from llmrun.options.load import COMFORTABLE_CTX, LoadConfig, Rope
from llmrun.options.sampling import MAX_SEED, SamplingConfig
from llmrun.planning.footprint import Footprint, decode_reads
from llmrun.planning.layout import DeviceBudget
from llmrun.planning.load_plan import Expected, LoadPlan, Planner, less

_FLOAT_MAX = 3.4028234e38
FLUSH_S = 10.0
"""Long enough for 4 GB on a disk of today."""

E = TypeVar("E", bound="ChildEngine")


class ChildEngine(Engine):
    """One model, loaded in a child process. A context manager: leaving it ends the child.

    Raises, from the constructor and from a generation alike: `BadModel`, `OutOfMemory`, `EngineCrashed`,
    `PromptTooLong`, `UsageError`; from the constructor also `NetworkError`, where a worker does not answer. After
    `EngineCrashed` and `OutOfMemory` the engine is closed.

    Attributes:
        connection: to the child, for requests that this class has no words for.
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
        n_seq: int = 1,
        plan: LoadPlan | None = None,
        keeps_prefixes: str | None = None,
    ) -> None:
        """Plan, and load.

        Attributes:
            child: one of `process.started_early`, for those who can't wait.
            expected_tokens: of prompt and answer together, where they are known: what the layout leaves memory for.
            least_tokens: would do, if not so many fit.
            n_seq: answers side by side that it leaves memory for.
            plan: to load as it is, instead of one that is made now.
            keeps_prefixes: a name of the model to show: what the beginnings of long prompts are computed to is kept on
                disk, and taken from there.
        """
        self.path = path
        self.config = config = config or LoadConfig()
        self.header = header = overridden(header, config.override_kv)
        self.notes: list[str] = []
        self.reads = decode_reads(header, config.type_k, config.type_v)
        self._on_progress, self._keeps_prefixes = on_progress, keeps_prefixes
        self._expected = Expected(expected_tokens, least_tokens, n_seq)
        self._may_lengthen = self._may_retry = True
        self._running: ChildGeneration | None = None
        self._turn = threading.Lock()
        spins = spins_for(header.weight_bytes)
        if child is not None and child.spins != spins:  # it was started before the model's size was known
            child.close()
            child = None
        situation = Situation(path, header, config)
        self.connection = Connection(
            situation, limits, module=self._module, child=child, spins=spins, explain=self._explained
        )
        try:
            self._loader = Loader(self.connection, extra_ram_bytes=self._extra_ram_bytes)
            self.plan = plan or self._planned()
            if unused := slow_instructions(self._loader.found.devices):
                slow = f"llama.cpp was built without {', '.join(unused)}, which this CPU has: 2 to 5 times slower than"
                self.notes.append(f"{slow} it could be; doctor says how to build it anew")
            if config.offload.n_gpu_layers == "auto" and config.offload.devices is None and not self.plan.budgets:
                self.notes += filter(None, [without_devices(built(), self._loader.found.devices)])
            n_ctx, trained = config.n_ctx or 0, header.n_ctx_train or 0
            if n_ctx > trained > 0 and config.rope == Rope():
                long = f"the context of {n_ctx} tokens is longer than the {trained} that the model was trained on"
                self.notes.append(f"{long}: behind them it may write nonsense")
            if line := self.plan.line():  # not of a second plan, whose budgets are what may be tried, not what is free
                self.notes.append(line)
            try:
                self._load()
            except OutOfMemory:
                if not self.try_smaller():
                    raise
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls: type[E],
        plan: LoadPlan,
        header: Header,
        *,
        limits: Limits | None = None,
        on_progress: Callable[[float], None] | None = None,
        child: Child | None = None,
    ) -> E:
        """Load as planned. `header`: of the model at `plan.path`, of all its parts together."""
        return cls(plan.path, header, plan.config, limits=limits, on_progress=on_progress, child=child, plan=plan)

    # -- what differs for engines that do more (bench/perplexity.py) ---

    @property
    def _extra_ram_bytes(self) -> int:
        """Taken in RAM beside what llama.cpp lays out."""
        return 0

    def _explained(self, error: LlmrunError) -> LlmrunError:
        """The same error, or one that says more."""
        return error

    # -- what it is ---

    @property
    def n_ctx_most(self) -> int:
        if self.config.n_ctx is not None:
            return self.plan.n_ctx
        known = [n for n in (self.header.n_ctx_train, self.plan.n_ctx_most) if n]
        return min(known, default=COMFORTABLE_CTX)

    def most_context(self, n_seq: int) -> int:
        return self._loader.most_context(self.plan, n_seq)

    @property
    def alive(self) -> bool:
        return self.connection.child.alive

    @property
    def pid(self) -> int:
        return self.connection.child.pid

    def close(self) -> None:
        """End the child, whatever it is doing, and wait until it is gone. Safe to call twice."""
        self.connection.close()

    def flush(self, timeout_s: float = FLUSH_S) -> None:
        if self._keeps_prefixes is not None and self.alive:
            with self._turn_taken(), suppress(LlmrunError):
                self.connection.ask(Flush(timeout_s))

    # -- the session ---

    def generate(
        self,
        prompt: str | Messages,
        sampling: SamplingConfig | None = None,
        *,
        options: PromptOptions | None = None,
        on_prefill: OnPrefill | None = None,
    ) -> ChildGeneration:
        return ChildGeneration(self, self.request(prompt, sampling, options), on_prefill)

    def request(
        self, prompt: str | Messages, sampling: SamplingConfig | None = None, options: PromptOptions | None = None
    ) -> Generate:
        """What the child is asked for an answer, with a seed."""
        sampling = sampling or SamplingConfig()
        repeatable = sampling.seed is not None or sampling.temperature == 0
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbelow(MAX_SEED + 1))
        fields = asdict(replace(sampling, logit_bias={}))
        # JSON has no infinity; the largest number of single precision does the same to a logit.
        biases = ((token, max(-_FLOAT_MAX, min(bias, _FLOAT_MAX))) for token, bias in sampling.logit_bias.items())
        fields |= {"logit_bias": [*map(list, biases)], "stop": list(sampling.stop)}
        # Batches round differently than single tokens do: the same text again is more than a faster one.
        by_itself = not repeatable and self.header.weight_bytes >= SMALL_MODEL_BYTES
        drafts = by_itself if self.config.draft == "auto" else self.config.draft != "off"
        return Generate(fields, *_text_or_messages(prompt), options or PromptOptions(), repeatable, drafts)

    @contextmanager
    def parallel(self, n_seq: int, n_ctx: int) -> Iterator[Parallel]:
        """`n_seq` 0: for questions alone."""
        with self._turn_taken():
            if not n_seq:
                yield Parallel(self, 0)
                return
            room = self.most_context(n_seq)
            try:
                self._reserve(Reserve(n_seq, n_ctx, max(n_ctx, room)))
            except OutOfMemory as error:
                error.message = f"{n_seq} answers side by side with {n_ctx} tokens of context each: {error.message}"
                raise
            answers = Parallel(self, n_seq)
            try:
                yield answers
            finally:
                answers.close()
                if self.alive:
                    self._reserve(Reserve(1, 0, self.plan.n_ctx_most))

    def _reserve(self, request: Reserve) -> None:
        answer = self.connection.ask(request)
        if not isinstance(answer, Reserved):
            raise self.connection.unexpected(answer, "for a context of several sequences")

    def count(
        self,
        prompt: str | Messages,
        *,
        template: str | None = None,
        thinks: bool = True,
        special: bool | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> int:
        question = Count(*_text_or_messages(prompt), template, thinks, special, [*tools] if tools else None)
        with self._turn_taken():
            counted = self.connection.ask(question)
        if isinstance(counted, Counted):
            return counted.n_tokens
        raise self.connection.unexpected(counted, "for a count")

    def prepare(
        self,
        messages: Messages,
        *,
        template: str | None = None,
        thinks: bool = True,
        special: bool | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> None:
        with self._turn_taken():
            self.connection.begin(Prepare([*messages], template, thinks, special, [*tools] if tools else None))

    def trial(self, n_prompt: int, n_gen: int, *, n_depth: int = 0, n_seq: int = 1, n_ctx: int = 0) -> TrialResult:
        return self.run_trial(Trial(n_prompt, n_gen, n_depth, n_seq, n_ctx))

    def run_trial(self, trial: Trial) -> TrialResult:
        """A trial with settings of its own."""
        with self._turn_taken():
            tried = self.connection.ask(trial)
        if isinstance(tried, TrialResult):
            return tried
        raise self.connection.unexpected(tried, "for the outcome of a trial")

    def checks(self, generation: Generation) -> list[FootprintCheck]:
        return buffers.checks(self.footprint(generation.n_ctx or 0), generation.buffers, self.devices)

    def footprint(self, n_ctx: int) -> Footprint:
        """What the plan takes with a context of `n_ctx` tokens, which may not be the one that it was made for.

        Raises `UsageError` while a generation runs: the child is asked, and does one thing at a time.
        """
        if n_ctx == self.plan.footprint.n_ctx:
            return self.plan.footprint
        with self._turn_taken():
            return self._loader.footprint(self.plan, n_ctx)

    # -- one at a time ---

    @contextmanager
    def turn_of(self, generation: ChildGeneration) -> Iterator[None]:
        """One generation at a time. Asking for the next one ends one that was left in the middle.

        Raises `UsageError` when another thread is in the middle of one.
        """
        try:
            if self._running is not None:
                self._running.close()
        except ValueError:  # Python's word for a generator that is being run just now
            raise _busy() from None
        with self._turn_taken():
            self._running = generation
            try:
                yield
            finally:
                self._running = None

    @contextmanager
    def _turn_taken(self) -> Iterator[None]:
        if not self._turn.acquire(blocking=False):
            raise _busy()
        try:
            yield
        finally:
            self._turn.release()

    # -- loading, and loading again ---

    def try_smaller(self) -> bool:
        """After an out-of-memory: load again with fewer layers on the devices.

        Returns False if the user fixed the layout, or if this was tried.
        """
        before = self.plan
        budgets = less(before)
        if budgets is None or not self._may_retry:
            return False
        self._may_retry = False
        taken = ", ".join(each.name for each in before.budgets if each.name in before.footprint.by_device)
        self._load_again(budgets)
        n, now = before.layout.n_gpu_layers, self.plan.layout.n_gpu_layers
        self.notes.append(f"out of memory with {n} layers on {taken}: again with {now}")
        return True

    def try_longer(self, n_prompt: int) -> bool:
        """After a prompt with more tokens than were planned for: load again with a layout that leaves room for them.

        Returns False if the model or the user grants no longer context, or if this was tried.
        """
        trained, plan = self.header.n_ctx_train or 0, self.plan
        wanted = min(trained, n_prompt + COMFORTABLE_CTX // 8)
        if self.config.n_ctx or n_prompt > trained or (plan.n_ctx_most or 0) >= wanted or not self._may_lengthen:
            return False
        self._may_lengthen = False
        self._expected = Expected(wanted, wanted, self._expected.n_seq)
        self._load_again(None)
        self.notes.append(f"the prompt has {n_prompt} tokens, more than was planned for: loaded again")
        return True

    def _load_again(self, budgets: tuple[DeviceBudget, ...] | None) -> None:
        try:
            self._loader.start_again()
            self.plan = self._planned(budgets)
            self._load()
        except BaseException:
            self.close()  # a child without a model could answer nobody
            raise

    def _planned(self, budgets: tuple[DeviceBudget, ...] | None = None) -> LoadPlan:
        try:
            return self._loader.plan(self._expected, budgets)
        except LlmrunError as error:
            raise self._explained(error) from None

    def _load(self) -> None:
        found = self._loader.found
        self.devices, self.system_info, self.versions = found.devices, found.system_info, found.versions
        self.loaded = self._loader.load(self.plan, self._on_progress, keeps_prefixes=self._keeps_prefixes)
        if self.loaded.warnings:
            self.notes.append("the model is not locked in RAM: the limit on locked memory (ulimit -l) is too small")


def plan_load(
    path: Path,
    header: Header,
    config: LoadConfig | None = None,
    *,
    expected: Expected | None = None,
    limits: Limits | None = None,
) -> LoadPlan:
    """What would lie where, without loading: llama.cpp's devices and compute buffers are asked of a child of its own.

    Raises `DoesNotFit`, `UsageError`, `EngineCrashed`.
    """
    config = config or LoadConfig()
    with closing(Connection(Situation(path, overridden(header, config.override_kv), config), limits)) as connection:
        return Loader(connection).plan(expected or Expected())


@contextmanager
def planning(
    path: Path, header: Header, config: LoadConfig, *, expected: Expected, limits: Limits | None = None
) -> Iterator[Planner]:
    """Plans of one model with many layouts: as `plan_load`, with one child for all of them while the block runs."""
    situation = Situation(path, overridden(header, config.override_kv), config)
    with closing(Connection(situation, limits)) as connection, Loader(connection).planner(expected) as planner:
        yield planner


def _text_or_messages(prompt: str | Messages) -> tuple[str | None, list[dict[str, str]] | None]:
    return (prompt, None) if isinstance(prompt, str) else (None, [*prompt])


def _busy() -> UsageError:
    return UsageError("another generation of this engine is running; wait for it, or open a second")
