"""An engine without a model: it says what a script says, a word a token, and fails when it is told to.

    engine = ScriptedEngine("Yes, I do.", Script("Once upon a time", dies_after=2), OutOfMemory("too small"))
    "".join(engine.generate([{"role": "user", "content": "Do you?"}])) == "Yes, I do."

It is an `engine.interface.Engine` like the one with a child, for tests of what uses engines: the order in which things
are asked, what a cancel and a failure leave behind, what a screen shows. It has a context like a real one: a prompt
that is longer is refused, an answer that reaches its end is cut there. One generation at a time, as in the real one:
asking for the next one ends one that was left in the middle.

Time does not pass by itself: `Clock` moves by what the script says that things take, so that figures are exact.
What it was asked is in `calls`, in order: "generate", "count", "prepare", "trial", "cancel", "close".
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llmrun.engine.buffers import FootprintCheck
from llmrun.engine.generation import Pieces
from llmrun.engine.interface import Engine, Generation, Parallel, Submitted
from llmrun.engine.meter import Meter
from llmrun.engine.protocol import (
    Buffer,
    CallPiece,
    Done,
    Loaded,
    Prefilled,
    PromptOptions,
    Started,
    StopReason,
    Tokens,
    TrialResult,
)
from llmrun.errors import EngineCrashed, LlmrunError, OutOfMemory, PromptTooLong, UsageError
from llmrun.machine.device import Device
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig
from llmrun.planning.footprint import CPU, DecodeReads, Footprint, Placement
from llmrun.planning.layout import Layout
from llmrun.planning.load_plan import LoadPlan

TOKEN_S = 0.01
MESSAGE_TOKENS = 2
"""What a template takes for each message."""


@dataclass
class Clock:
    """Seconds that pass when somebody says so; give it to whatever wants a clock."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> float:
        self.now_s += seconds
        return self.now_s


@dataclass
class Script:
    """One answer.

    Attributes:
        thinking: before the text.
        calls: of tools, behind it: name and arguments.
        dies_after: so many tokens; then the engine is dead.
        prefill_s, token_s: what the prompt takes, and each token.
    """

    text: str = ""
    thinking: str = ""
    dies_after: int | None = None
    prefill_s: float = TOKEN_S
    token_s: float = TOKEN_S
    calls: Sequence[tuple[str, str]] = ()

    def tokens(self) -> list[tuple[str, str]]:
        """Text and thought of each."""
        return [("", word) for word in _words(self.thinking)] + [(word, "") for word in _words(self.text)]


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+", text)


@dataclass
class Trials:
    """What bare runs take: seconds of the prompt and of a step, in turn, the last one for ever; an error is raised."""

    seconds: list[float | LlmrunError] = field(default_factory=lambda: [TOKEN_S])

    def next(self) -> float:
        found = self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        if isinstance(found, LlmrunError):
            raise found
        return found


class ScriptedEngine(Engine):
    """Answers with `scripts` in turn, the last one again and again. An error among them is raised in its place.

    Attributes:
        calls: what was asked, in order.
        prompts, asked, prepared: messages and options of each.
    """

    def __init__(
        self,
        *scripts: Script | str | LlmrunError,
        n_ctx: int = 1000,
        has_template: bool = True,
        clock: Clock | None = None,
        trials: Sequence[float | LlmrunError] = (TOKEN_S,),
    ) -> None:
        self.scripts = [Script(each) if isinstance(each, str) else each for each in scripts] or [Script("Yes.")]
        self.clock = clock or Clock()
        self.trials = Trials([*trials])
        self.calls: list[str] = []
        self._n_ctx = n_ctx
        self.header: Any = SimpleNamespace(
            chat_template="{{ messages }}" if has_template else None, n_ctx_train=n_ctx, weight_bytes=4
        )
        self.config = LoadConfig(n_ctx=n_ctx)
        self.notes: list[str] = []
        self.reads = DecodeReads(4, ())
        self.is_alive = True
        self.running: ScriptedGeneration | None = None
        self.prompts: list[Sequence[dict[str, Any]]] = []
        self.asked: list[PromptOptions] = []
        self.prepared: list[Sequence[dict[str, Any]]] = []
        self.most_at_once = 0  # answers that were asked for and had not ended
        self.widths: list[int] = []  # of `parallel`
        self.left: list[tuple[str, str]] = []
        """Of an answer that the end of the context cut."""

        placed, path = Placement((CPU, CPU)), Path("scripted.gguf")
        self.plan = LoadPlan(path, self.config, 1, Layout(0), placed, Footprint(n_ctx=n_ctx), n_ctx, None, False, True)
        self.loaded = Loaded(n_ctx, 100, 4, "a script", has_template, begin_s=0.0, end_s=TOKEN_S)
        self.devices = [Device(CPU, "A CPU", "cpu", CPU, 8 << 30, 4 << 30)]
        self.system_info, self.versions = "CPU : AVX2 = 1 | ", {"ggml": "1.2"}

    @property
    def pid(self) -> int:
        return 1

    def checks(self, generation: Generation) -> list[FootprintCheck]:
        return []

    def trial(self, n_prompt: int, n_gen: int, *, n_depth: int = 0, n_seq: int = 1, n_ctx: int = 0) -> TrialResult:
        self.calls.append("trial")
        try:
            seconds = self.trials.next()
        except LlmrunError:
            self.is_alive = False
            raise
        self.clock.advance(seconds * ((n_prompt > 0) + n_gen))
        return TrialResult(seconds if n_prompt else None, [seconds] * n_gen, [Buffer(CPU, "model", 4)])

    @property
    def n_ctx_most(self) -> int:
        return self._n_ctx

    @property
    def alive(self) -> bool:
        return self.is_alive

    def close(self) -> None:
        self.calls.append("close")
        self.is_alive = False

    def flush(self) -> None:
        self.calls.append("flush")

    def most_context(self, n_seq: int) -> int:
        return self._n_ctx

    def count(self, prompt: str | Sequence[dict[str, Any]], **_: Any) -> int:
        self.calls.append("count")
        return self.n_tokens(prompt)

    @staticmethod
    def n_tokens(prompt: str | Sequence[dict[str, Any]]) -> int:
        """Words, and for each message what the template takes."""
        texts = [prompt] if isinstance(prompt, str) else [each["content"] for each in prompt]
        return sum(len(text.split()) for text in texts) + (
            0 if isinstance(prompt, str) else MESSAGE_TOKENS * len(texts)
        )

    def prepare(self, messages: Sequence[dict[str, Any]], **_: Any) -> None:
        self.calls.append("prepare")
        self.prepared.append([*messages])

    def generate(
        self,
        prompt: str | Sequence[dict[str, Any]],
        sampling: SamplingConfig | None = None,
        *,
        options: PromptOptions | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> ScriptedGeneration:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
        options = options or PromptOptions()
        self.calls.append("generate")
        self.prompts.append(messages)
        self.asked.append(options)
        return ScriptedGeneration(self, messages, on_prefill, sampling or SamplingConfig(), options)

    @contextmanager
    def parallel(self, n_seq: int, n_ctx: int) -> Iterator[ScriptedParallel]:
        self.calls.append("parallel")
        self.widths.append(n_seq)
        yield ScriptedParallel(self, n_seq)

    def next_script(self) -> Script:
        found = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        if isinstance(found, LlmrunError):
            self.is_alive = self.is_alive and not isinstance(found, EngineCrashed | OutOfMemory)
            raise found
        return found


class ScriptedParallel(Parallel):
    """Answers one after the other, in the order in which they were asked for."""

    def __init__(self, engine: ScriptedEngine, n_seq: int) -> None:
        self._scripted, self.n_seq = engine, n_seq
        self._made: deque[ScriptedGeneration] = deque()

    def submit(
        self,
        prompt: str | Sequence[dict[str, Any]],
        sampling: SamplingConfig | None = None,
        *,
        options: PromptOptions | None = None,
    ) -> ScriptedGeneration:
        self._made.append(self._scripted.generate(prompt, sampling, options=options))
        self._scripted.most_at_once = max(self._scripted.most_at_once, len(self._made))
        return self._made[-1]

    def wait(self, timeout_s: float | None = None) -> ScriptedGeneration | None:
        if not self._made:
            return None
        answer = self._made.popleft()
        try:
            for _ in answer:
                pass
        except (PromptTooLong, UsageError) as error:
            answer.error = error
        return answer


class ScriptedGeneration(Generation, Submitted):
    def __init__(
        self,
        engine: ScriptedEngine,
        prompt: Sequence[dict[str, Any]],
        on_prefill: Callable[[int, int], None] | None,
        sampling: SamplingConfig,
        options: PromptOptions,
    ) -> None:
        self._scripted, self._prompt, self._on_prefill = engine, prompt, on_prefill
        self._sampling, self._options = sampling, options
        self.meter = Meter(engine.reads)
        self.token_ids = []
        self.buffers = []
        self.seed = 1 if sampling.seed is None else sampling.seed
        self._is_cancelled = False
        self._events = self._run()

    def __iter__(self) -> Iterator[str]:
        return Pieces(self, (text for text, _ in self._events if text))

    def pieces(self) -> Iterator[tuple[str, str]]:
        return Pieces(self, self._events)

    def cancel(self) -> None:
        self._scripted.calls.append("cancel")
        self._is_cancelled = True

    def close(self) -> None:
        self._events.close()

    def _run(self) -> Generator[tuple[str, str]]:
        engine = self._scripted
        if engine.running is not None:
            engine.running.close()
        engine.running = self
        try:
            yield from self._answer()
        except LlmrunError:
            self.stop_reason = "cancelled"
            raise
        finally:
            engine.running = None
            if self.stop_reason is None:
                self._end("cancelled")

    def _answer(self) -> Iterator[tuple[str, str]]:
        engine, begun = self._scripted, self._options.assistant_prefix
        if not engine.alive:
            raise EngineCrashed("the engine is dead")
        n_prompt = engine.n_tokens(self._prompt) + len(begun.split())
        if n_prompt >= engine.n_ctx_most:
            raise PromptTooLong(f"{n_prompt} tokens, the context holds {engine.n_ctx_most}")
        script = engine.next_script() if not begun else Script()
        tokens = engine.left if begun else script.tokens()
        if not self._options.thinks:
            tokens = [each for each in tokens if not each[1]]
        self.n_ctx, self.thinks = engine.n_ctx_most, True
        now_s, clock = engine.clock(), engine.clock
        self.meter.feed(engine.loaded)
        self.meter.feed(Started(n_prompt, 0, self.n_ctx, request_s=now_s, begin_s=now_s, buffers=[], thinks=True))
        self.meter.feed(Prefilled(n_prompt, clock.advance(script.prefill_s)))
        if self._on_prefill:
            self._on_prefill(n_prompt, n_prompt)
        self.call_pieces = [CallPiece(i, *call) for i, call in enumerate(script.calls if self._options.tools else ())]
        n_most = self._sampling.max_tokens
        for n, (text, thought) in enumerate(tokens):
            if n == script.dies_after:
                engine.close()
                raise EngineCrashed("the engine was ended by SIGKILL")
            if self._is_cancelled or n == n_most or n_prompt + n == engine.n_ctx_most:
                engine.left = tokens[n:]
                self._end("cancelled" if self._is_cancelled else "length" if n == n_most else "context")
                return
            self.text += text
            self.thinking += thought
            self.token_ids.append(n)
            self.n_thinking += bool(thought)
            self.meter.feed(Tokens([n], [clock.advance(script.token_s)], text, thought, int(bool(thought))))
            yield text, thought
        self._end("cancelled" if self._is_cancelled else "end")

    def _end(self, reason: StopReason) -> None:
        self.stop_reason = reason
        self.done = done = Done(reason, None, None, None)
        self.meter.feed(done)
