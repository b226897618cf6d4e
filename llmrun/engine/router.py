"""Several engines behind one: each request goes to where it is expected to be answered first.

    submit ──► queue of a lane, by priority ──► its engine, as many side by side as it answers ──► wait

Expected is the time that the lane has work for, and the request's own: its prompt at the lane's prefill rate, and a
step for each token of its answer, as long as a step is with those that it will share it with. A small single request so
goes to the engine that answers one the fastest, and a crowd to the one that answers many. Speeds are those that a plan
predicts, or that were measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llmrun.engine.interface import Messages, Parallel, Submitted
from llmrun.engine.protocol import PromptOptions
from llmrun.options.sampling import SamplingConfig

_POLL_S = 0.002
_CHARACTERS_PER_TOKEN = 3.5
"""Of text whose tokens nobody has counted."""
_USUAL_TOKENS = 256
"""Of an answer whose length nobody limits."""


@dataclass(frozen=True)
class Speed:
    """How fast an engine is.

    Attributes:
        prefill_tps: tokens of a prompt per second.
        step_s: of one sequence.
        more_s: what a step takes longer for each further sequence.
    """

    prefill_tps: float
    step_s: float
    more_s: float

    def step_of(self, n_seq: int) -> float:
        return self.step_s + self.more_s * max(0, n_seq - 1)

    def alone_s(self, n_prompt: int, n_gen: int, beside: int = 0) -> float:
        """Of one request while so many others are answered."""
        return n_prompt / self.prefill_tps + n_gen * self.step_of(1 + beside)

    def work_s(self, n_prompt: int, n_gen: int, beside: int) -> float:
        """By how much it keeps others waiting: its share of the steps."""
        return n_prompt / self.prefill_tps + n_gen * self.step_of(1 + beside) / (1 + beside)


@dataclass
class _Request:
    prompt: str | Messages
    sampling: SamplingConfig
    options: PromptOptions | None
    priority: int
    n_prompt: int
    n_gen: int


@dataclass
class Lane:
    """One engine.

    Attributes:
        name: to tell where requests went.
        n_answered: requests that it was given.
    """

    name: str
    engine: Parallel
    speed: Speed
    n_answered: int = 0
    _waiting: list[tuple[Routed, _Request]] = field(default_factory=list)
    _made: dict[Submitted, tuple[Routed, _Request]] = field(default_factory=dict)

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._made)

    def expected_s(self, request: _Request) -> float:
        """Until it would be answered: those before it, of its priority or a higher one, and itself."""
        n_seq = self.engine.n_seq
        before = [each for _, each in self._waiting if each.priority >= request.priority]
        free = n_seq - len(self._made) - len(before)
        beside = min(n_seq - 1, len(self._made) + len(before))
        own = self.speed.alone_s(request.n_prompt, request.n_gen, beside)
        if free > 0:
            return own
        # Of those that are being made half is left, on average.
        left = sum(self.speed.work_s(each.n_prompt, each.n_gen, n_seq - 1) / 2 for _, each in self._made.values())
        return own + left + sum(self.speed.work_s(each.n_prompt, each.n_gen, n_seq - 1) for each in before)

    def take(self, routed: Routed, request: _Request) -> None:
        """Behind those of its priority."""
        at = sum(1 for _, each in self._waiting if each.priority >= request.priority)
        self._waiting.insert(at, (routed, request))
        self.n_answered += 1
        self.fill()

    def fill(self) -> None:
        """Give the engine what it can answer now."""
        while self._waiting and len(self._made) < self.engine.n_seq:
            routed, request = self._waiting.pop(0)
            submitted = self.engine.submit(request.prompt, request.sampling, options=request.options)
            routed.answer = submitted
            self._made[submitted] = routed, request

    def wait(self, timeout_s: float) -> Routed | None:
        done = self.engine.wait(timeout_s) if self._made else None
        if done is None:
            return None
        routed, _ = self._made.pop(done)
        self.fill()
        return routed


class Routed:
    """A request at a router, and its answer when an engine has it: what that has, this one has."""

    def __init__(self, lane: str) -> None:
        self.lane = lane
        self.answer: Submitted | None = None

    def __getattr__(self, name: str) -> object:
        if self.answer is None:
            raise AttributeError(f"{name}: no engine has it yet")
        return getattr(self.answer, name)

    def cancel(self) -> None:
        if self.answer is not None:
            self.answer.cancel()


class Router:
    """As `interface.Parallel`, over several engines; with one it is a queue by priority."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        n_prompt_of: Callable[[str | Messages], int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`n_prompt_of`: tokens of a prompt; None: by its characters."""
        self.lanes = tuple(lanes)
        self._n_prompt_of, self._clock = n_prompt_of or _about, clock

    @property
    def n_seq(self) -> int:
        return sum(lane.engine.n_seq for lane in self.lanes)

    def submit(
        self,
        prompt: str | Messages,
        sampling: SamplingConfig | None = None,
        *,
        options: PromptOptions | None = None,
        priority: int = 0,
    ) -> Routed:
        """`priority`: of those that wait in a lane, the highest goes first."""
        sampling = sampling or SamplingConfig()
        n_gen = sampling.max_tokens or _USUAL_TOKENS
        request = _Request(prompt, sampling, options, priority, self._n_prompt_of(prompt), n_gen)
        lane = min(self.lanes, key=lambda each: each.expected_s(request))
        routed = Routed(lane.name)
        lane.take(routed, request)
        return routed

    def wait(self, timeout_s: float | None = None) -> Routed | None:
        """As `interface.Parallel.wait`."""
        end_s = None if timeout_s is None else self._clock() + timeout_s
        while any(not lane.is_idle for lane in self.lanes):
            busy = [lane for lane in self.lanes if not lane.is_idle]
            for lane in busy:
                if done := lane.wait(_POLL_S / len(busy)):
                    return done
            if end_s is not None and self._clock() >= end_s:
                return None
        return None


def _about(prompt: str | Messages) -> int:
    text = prompt if isinstance(prompt, str) else "".join(message.get("content", "") for message in prompt)
    return max(1, round(len(text) / _CHARACTERS_PER_TOKEN))
