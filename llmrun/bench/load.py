"""Load: many requests at an engine, and what those who wait for the answers see.

    closed loop   so many are always being answered: the next one is asked when one has ended
    open loop     they come at random, so many a second (Poisson), whether others are answered or not
    trace         they come when a file says

A closed loop waits for a slow engine and so lowers its own load; an open one does not, so both are of use. TTFT and E2E
are counted from the moment when a request was to come, not from the one when it could be sent.

    TTFT      from the request to its first token, waiting included
    ITL       the gap between two tokens, of all answers together
    TPOT      of one answer: (E2E - TTFT) / (tokens - 1)
    E2E       from the request to its last token
    goodput   answers a second that keep to all objectives

Quantiles are nearest-rank, and there is none where fewer than 1 / (1 - q) figures are.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

from llmrun import codec
from llmrun.codec import Struct
from llmrun.engine.interface import Messages, Parallel, Submitted
from llmrun.engine.meter import nearest_rank
from llmrun.engine.protocol import PromptOptions
from llmrun.errors import UsageError
from llmrun.options.sampling import SamplingConfig
from llmrun.text import printable


@dataclass(frozen=True)
class Call:
    """One request of a load.

    Attributes:
        prompt: text, or messages.
        sampling: with how many tokens of answer.
        at_s: when it comes, from the beginning; in a closed loop of no effect.
    """

    prompt: str | Messages
    sampling: SamplingConfig
    at_s: float = 0.0


@dataclass(frozen=True)
class Load:
    """What comes when.

    Attributes:
        calls: in the order in which they come.
        in_flight: of a closed loop; None: each comes at its time.
    """

    calls: Sequence[Call]
    in_flight: int | None = None


def closed_loop(calls: Iterable[Call], in_flight: int) -> Load:
    return Load([*calls], in_flight)


def open_loop(calls: Iterable[Call], per_s: float, seed: int) -> Load:
    """With gaps that are exponentially distributed, so that they come as independent people do (a Poisson process)."""
    chance, calls = random.Random(seed), [*calls]
    times = accumulate(chance.expovariate(per_s) for _ in calls)
    return Load([Call(call.prompt, call.sampling, at_s) for call, at_s in zip(calls, times, strict=True)])


class _Traced(Struct, forbid_unknown_fields=True):
    at_s: float
    prompt: str
    max_tokens: int


def trace(text: str, sampling: SamplingConfig) -> Load:
    """A load from lines of JSON: {"at_s": 0.5, "prompt": "…", "max_tokens": 64}. Raises `UsageError`."""
    calls = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            read = codec.decode(line, _Traced)
        except codec.Malformed as error:
            raise UsageError(f"line {number} of the trace: {printable(str(error), 200)}") from None
        if not (0 <= read.at_s < math.inf and read.max_tokens >= 1):
            raise UsageError(f"line {number} of the trace: at_s is to be from 0 on, and max_tokens from 1")
        calls.append(Call(read.prompt, replace(sampling, max_tokens=read.max_tokens), read.at_s))
    return Load(sorted(calls, key=lambda call: call.at_s))


@dataclass(frozen=True)
class Outcome:
    """What became of one request, in seconds on the engine's clock.

    Attributes:
        asked_s: when it was to come.
        token_s: when each token of its answer was made; of an answer over the network, when each piece came.
        n_made: tokens of the answer, where pieces may have several.
        n_prompt, n_cached: tokens of its prompt, and those that were known already.
        n_drafted, n_accepted: tokens of its answer that were guessed ahead, and those that were right.
        error: why there is no answer.
    """

    asked_s: float
    token_s: tuple[float, ...] = ()
    n_prompt: int = 0
    n_cached: int = 0
    error: str | None = None
    n_drafted: int = 0
    n_accepted: int = 0
    n_made: int | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.token_s) if self.n_made is None else self.n_made

    @property
    def ttft_s(self) -> float | None:
        return self.token_s[0] - self.asked_s if self.token_s else None

    @property
    def e2e_s(self) -> float | None:
        return self.token_s[-1] - self.asked_s if self.token_s else None

    @property
    def itl_s(self) -> tuple[float, ...]:
        return tuple(after - before for before, after in pairwise(self.token_s))

    @property
    def tpot_s(self) -> float | None:
        n = self.n_tokens
        return (self.token_s[-1] - self.token_s[0]) / (n - 1) if n > 1 and len(self.token_s) > 1 else None


@dataclass(frozen=True)
class Objectives:
    """What an answer has to keep to; null: whatever.

    Attributes:
        ttft_s, tpot_s, e2e_s: at most, in seconds.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def met_by(self, outcome: Outcome) -> bool:
        """An answer of a single token has no TPOT to miss; one that failed keeps to nothing."""
        if outcome.error is not None or not outcome.token_s:
            return False
        pairs = [(outcome.ttft_s, self.ttft_s), (outcome.tpot_s, self.tpot_s), (outcome.e2e_s, self.e2e_s)]
        return all(figure is None or limit is None or figure <= limit for figure, limit in pairs)


@dataclass(frozen=True)
class Result:
    """All outcomes of a load."""

    outcomes: Sequence[Outcome] = field(default_factory=list)

    @property
    def answered(self) -> list[Outcome]:
        return [each for each in self.outcomes if each.error is None and each.token_s]

    @property
    def n_errors(self) -> int:
        return len(self.outcomes) - len(self.answered)

    @property
    def seconds(self) -> float:
        """From the first request to the last token."""
        ends = [each.token_s[-1] for each in self.answered]
        return max(ends) - min(each.asked_s for each in self.outcomes) if ends else 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """Generated, of all answers together."""
        return sum(each.n_tokens for each in self.answered) / self.seconds if self.seconds else None

    def goodput(self, objectives: Objectives) -> float | None:
        """Answers a second that keep to them."""
        return sum(map(objectives.met_by, self.outcomes)) / self.seconds if self.seconds else None

    def ttft_s(self, q: float) -> float | None:
        return quantile([each.ttft_s for each in self.answered], q)

    def itl_s(self, q: float) -> float | None:
        return quantile([gap for each in self.answered for gap in each.itl_s], q)

    def tpot_s(self, q: float) -> float | None:
        return quantile([each.tpot_s for each in self.answered], q)

    def e2e_s(self, q: float) -> float | None:
        return quantile([each.e2e_s for each in self.answered], q)


def quantile(figures: Iterable[float | None], q: float) -> float | None:
    """Nearest-rank; None where there are too few for it: 100 for q = 0.99."""
    known = [figure for figure in figures if figure is not None]
    return nearest_rank(known, q) if len(known) * (1 - q) >= 1 - 1e-9 else None


def drive(
    engine: Parallel,
    load: Load,
    options: PromptOptions | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """Ask as the load says, until all are answered. `clock` is the one that the engine stamps tokens with."""
    begin_s = clock()
    left = [*reversed(load.calls)]
    asked: dict[Submitted, float] = {}
    outcomes = []
    while left or asked:
        while left and _is_due(load, left[-1], len(asked), clock() - begin_s):
            call = left.pop()
            at_s = clock() if load.in_flight is not None else begin_s + call.at_s
            asked[engine.submit(call.prompt, call.sampling, options=options)] = at_s
        wait_s = None if load.in_flight is not None or not left else max(0.0, begin_s + left[-1].at_s - clock())
        if not asked:  # nobody asks anything until then
            sleep(wait_s or 0.0)
            continue
        answer = engine.wait(wait_s)
        if answer is not None:
            outcomes.append(_outcome(answer, asked.pop(answer)))
    return Result(outcomes)


def _is_due(load: Load, call: Call, n_asked: int, now_s: float) -> bool:
    return call.at_s <= now_s if load.in_flight is None else n_asked < load.in_flight


def _outcome(answer: Submitted, asked_s: float) -> Outcome:
    timing = answer.timing
    error = None if answer.error is None else answer.error.message
    guessed = timing.n_drafted, timing.n_accepted
    return Outcome(asked_s, answer.meter.token_s, timing.n_prompt, timing.n_cached, error, *guessed)
