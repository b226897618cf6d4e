"""The models that are served: loaded when somebody asks for one, and unloaded where another needs the memory.

Never in the middle of an answer: who needs memory that a busy model has waits until it is idle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmrun.chat.answer_options import AnswerOptions
from llmrun.engine.engine import ChildEngine
from llmrun.errors import LlmrunError, NotFound, OutOfMemory
from llmrun.options.sampling import SamplingConfig
from llmrun.server.runner import Runner, Stopping, Stream, Totals, Width

_LOOK_S = 0.05
_SWEEP_S = 1.0


@dataclass(frozen=True)
class Served:
    """A model as it can be asked for.

    Attributes:
        name: what clients call it.
        path: of its file.
        open_engine: loads it. Raises `LlmrunError`.
        width_of: how many answers side by side.
        sampling, answers: what a request gets that says nothing else.
        facts: what listings say of it: "architecture", "n_params", "level", "size_bytes", "n_ctx_train", "template",
            "thinks".
        created: when its file was made, seconds of the epoch.
        also: another name for it, as it was typed.
        pooling: "mean", "cls" or "last": how a text becomes a vector; None: it does not.
        is_causal: each token sees those before it alone.
        writes: text; an embedding model does not.
        whole_prompts: as of a `Runner`.
        ends: a text that ends an answer to messages, where its template is not its own.
    """

    name: str
    path: Path
    open_engine: Callable[[], ChildEngine]
    width_of: Callable[[ChildEngine], Width]
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    facts: dict[str, Any] = field(default_factory=dict)
    created: int = 0
    also: str = ""
    pooling: str | None = None
    is_causal: bool = True
    writes: bool = True
    whole_prompts: bool = False
    ends: str = ""


class Pool:
    """`close` it.

    Attributes:
        models: by name.
        runners: of those that are loaded, or are being loaded.
        totals: what they did, of all models, loaded or not.
    """

    def __init__(
        self,
        models: Sequence[Served],
        *,
        most_waiting: int = 64,
        on_end: Callable[[Stream, LlmrunError | None], None] = lambda _stream, _error: None,
        on_note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.models = {model.name: model for model in models}
        self.runners: dict[str, Runner] = {}
        self.totals = {model.name: Totals() for model in models}
        self._most_waiting, self._on_end, self._on_note = most_waiting, on_end, on_note
        self._loading = asyncio.Lock()
        self._until: dict[str, float] = {}  # when an idle one is unloaded, on time.monotonic
        self._closing = False

    def named(self, name: str | None) -> Served:
        """The model that a request means; the only one, where it names none. Raises `NotFound`."""
        if not name and len(self.models) == 1:
            return next(iter(self.models.values()))
        wanted = (name or "").removesuffix(":latest")
        known = self.models.get(name or "") or self.models.get(wanted)
        known = known or next((model for model in self.models.values() if wanted and model.also == wanted), None)
        if known is None:
            there = ", ".join(self.models)
            raise NotFound(f"there is no model {name[:80]!r} here but {there}" if name else f"model is one of {there}")
        return known

    def is_loaded(self, name: str) -> bool:
        runner = self.runners.get(name)
        return runner is not None and runner.state == "ready"

    async def runner(self, name: str | None) -> Runner:
        """The one that answers for a model, which is loaded then. Raises `NotFound`, and why it can't be loaded."""
        model = self.named(name)
        # Again, where it was unloaded between its being ready and our turn.
        while not self.is_loaded(model.name):
            # One at a time: two would each count on the same memory. And who asks for one that is being loaded waits
            # for the end of that, as a first try may fail before another model has made room.
            async with self._loading:
                known = self.runners.get(model.name)
                if known is not None and known.state in ("ready", "loading"):
                    await known.ready()
                else:
                    await self._load(model)
        return self.runners[model.name]

    async def _load(self, model: Served) -> None:
        while True:
            if self._closing:
                raise Stopping("the server is stopping")
            runner = self.runners[model.name] = Runner(
                model.name,
                model.open_engine,
                model.width_of,
                most_waiting=self._most_waiting,
                whole_prompts=model.whole_prompts,
                on_end=self._on_end,
                on_note=self._on_note,
                totals=self.totals[model.name],
            )
            try:
                await runner.ready()
            except OutOfMemory:
                self.runners.pop(model.name, None)  # it is not there where the pool is being closed
                if not await self._unload_one():
                    raise
            except LlmrunError:
                self.runners.pop(model.name, None)
                raise
            else:
                return

    async def _unload_one(self) -> bool:
        """The one that was not used for the longest time; waits for one to be idle. Returns False without any."""
        while self.runners:
            idle = [name for name, runner in self.runners.items() if runner.is_idle]
            if idle:
                oldest = min(idle, key=lambda name: self.runners[name].used_s)
                self._on_note(f"{oldest} is unloaded: another model needs its memory")
                await self.runners.pop(oldest).close()
                return True
            await asyncio.sleep(_LOOK_S)
        return False

    def keep(self, name: str, seconds: float | None) -> None:
        """Unload the model when it was idle for so long; None: when its memory is needed."""
        if seconds is None:
            self._until.pop(name, None)
        else:
            self._until[name] = time.monotonic() + seconds

    def expires_s(self, name: str) -> float | None:
        """Seconds until it is unloaded; None: nobody says when."""
        until = self._until.get(name)
        return None if until is None else max(0.0, until - time.monotonic())

    async def sweep(self) -> None:
        """Unload what nobody wants any more, for ever."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            await self.unload_expired()

    async def unload_expired(self) -> None:
        for name, until in list(self._until.items()):
            if self.is_loaded(name) and self.runners[name].is_idle and time.monotonic() >= until:
                self._until.pop(name, None)
                await self.runners.pop(name).close()

    async def close(self, limit_s: float = 0.0) -> None:
        """Unload all; what runs may end within so many seconds."""
        self._closing = True
        runners, self.runners = list(self.runners.values()), {}
        await asyncio.gather(*(runner.close(limit_s) for runner in runners))
