"""What a record keeps of a load at a server: every request as the client saw it, and what the server says of it.

    LoadRow ─┬─ test        how many at once, or a second; how long prompts and answers are
             └─ requests ── when it was to come, when each piece came ─── the client's clock
                         └─ its prompt, its answer                    ─── the server's own

Seconds and tokens are stored; rates and quantiles are derived from them here. Quantiles are nearest-rank, and there is
none where fewer than 1 / (1 - q) figures are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from llmrun.bench.load import Objectives, Outcome, Result, quantile
from llmrun.bench.warnings import RowWarning
from llmrun.units import fixed

QUANTILES = (0.5, 0.9, 0.99)
MET_SHARE = 0.9
"""Of answers that have to meet the objectives."""
_BUSY_CLIENT = 0.5
"""Of a core, from which on the client may be what is waited for: it is Python, and has no more than one."""


@dataclass(frozen=True)
class Request:
    """One request of a load. Seconds count from the load's beginning, on the client's clock, to the microsecond.

    Attributes:
        asked_s: when it was to come: waiting counts from here.
        piece_s: when each piece of the answer with text came; a piece may have several tokens.
        n_prompt, n_cached, n_made: tokens of the prompt, those of it that were known already, and of the answer, as
            the server counts them; null: it does not say.
        server_prompt_s, server_decode_s: what computing the prompt and the answer took by the server's own clock.
        server_tps: tokens per second of the answer, as the server says.
        error: why there is no answer, or no whole one.
        error_kind: "http 503", "connection", "timeout", "stream" (told in the middle of it), "cut short", "no text".
    """

    asked_s: float
    piece_s: tuple[float, ...] = ()
    n_prompt: int | None = None
    n_cached: int | None = None
    n_made: int | None = None
    server_prompt_s: float | None = None
    server_decode_s: float | None = None
    server_tps: float | None = None
    error: str | None = None
    error_kind: str | None = None

    @property
    def outcome(self) -> Outcome:
        """Without a count of the server's an answer has no tokens: pieces are not taken for them."""
        counts = (self.n_prompt or 0, self.n_cached or 0)
        return Outcome(self.asked_s, self.piece_s, *counts, self.error, n_made=self.n_made or 0)

    @property
    def is_answered(self) -> bool:
        return self.error is None and bool(self.piece_s)

    @property
    def waiting_s(self) -> float | None:
        """Of the TTFT what is not the prompt's computation: a queue, the wire."""
        if self.server_prompt_s is None or not self.piece_s:
            return None
        return self.piece_s[0] - self.asked_s - self.server_prompt_s


@dataclass(frozen=True)
class ServerInfo:
    """What was loaded, as far as it tells.

    Attributes:
        software: with its version: "llmrun 0.1.0", "llama.cpp b6123-1a2b3c4".
        n_parallel: answers that it makes side by side.
        n_ctx: tokens of context that one of them may have.
        is_here: whether its address is this machine's; if not, `machine` of the record is the client's.
    """

    software: str | None = None
    n_parallel: int | None = None
    n_ctx: int | None = None
    is_here: bool | None = None


@dataclass(frozen=True)
class LoadTest:
    """What was asked.

    Attributes:
        n_prompt: words of each prompt, about as many tokens.
        n_gen: tokens of each answer, at most.
        n_shared: words that all prompts begin with.
        spread: by which part of them `n_prompt` and `n_gen` are more or less, evenly spread: 0.5 is half to one and a
            half times as many.
        in_flight: requests that are always being answered (a closed loop); null: they come at random.
        per_s: so many a second (an open loop); null: a closed one.
    """

    n_prompt: int
    n_gen: int
    n_shared: int = 0
    in_flight: int | None = None
    per_s: float | None = None
    spread: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.in_flight} at once" if self.in_flight is not None else f"{self.per_s or 0:g} a second"

    @property
    def name_in_full(self) -> str:
        """With prompt and answer, and what prompts share: "4 at once, 128+64", "4 at once, 512+128+64 ±50 %"."""
        shared = f"{self.n_shared}+" if self.n_shared else ""
        spread = f" ±{100 * self.spread:g} %" if self.spread else ""
        return f"{self.name}, {shared}{self.n_prompt}+{self.n_gen}{spread}"


@dataclass(frozen=True)
class LoadRow:
    """One load at a server.

    Attributes:
        test: what was asked.
        requests: in the order in which they ended.
        started: when the first one was sent; UTC, ISO 8601.
        objectives: that answers are held against; null: none.
        client_cpu_s: CPU time that the client took for all of them; it is a process of its own.
        warnings: what makes this row doubtful.
    """

    test: LoadTest
    requests: tuple[Request, ...] = ()
    started: str | None = None
    objectives: Objectives | None = None
    client_cpu_s: float | None = None
    warnings: tuple[RowWarning, ...] = ()

    @property
    def result(self) -> Result:
        return Result([each.outcome for each in self.requests])

    @property
    def answered(self) -> list[Request]:
        return [each for each in self.requests if each.is_answered]

    @property
    def error(self) -> str | None:
        """Of the first request that has one."""
        return next((each.error for each in self.requests if each.error), None)

    @property
    def errors(self) -> dict[str, int]:
        """By kind, the most frequent first."""
        return dict(Counter(each.error_kind or "other" for each in self.requests if each.error).most_common())

    @property
    def seconds(self) -> float | None:
        """From the first request to the last piece; None where nothing was answered."""
        return self.result.seconds or None

    @property
    def n_made(self) -> int | None:
        """Tokens of all answers; None where the server does not count them."""
        counts = [each.n_made for each in self.answered]
        return sum(counts) if all(counts) and counts else None  # type: ignore[arg-type]

    @property
    def tokens_per_s(self) -> float | None:
        """Of all answers together."""
        n_made = self.n_made
        return n_made / self.seconds if n_made and self.seconds else None

    @property
    def samples_tps_each(self) -> tuple[float, ...]:
        """Of each answer, behind its first token."""
        return tuple(1 / each.tpot_s for each in self.result.answered if each.tpot_s)

    @property
    def tps_each(self) -> float | None:
        """Tokens per second of one answer behind its first token, as the client sees it; the median."""
        return _median(self.samples_tps_each)

    @property
    def tps_each_by_server(self) -> float | None:
        """The same by the server's own clock."""
        return _median([each.server_tps for each in self.answered if each.server_tps])

    @property
    def client_s(self) -> float | None:
        """CPU time of the client, of a request."""
        return self.client_cpu_s / len(self.requests) if self.client_cpu_s is not None and self.requests else None

    @property
    def client_cores(self) -> float | None:
        """Of one core, what the client took while it ran."""
        return self.client_cpu_s / self.seconds if self.client_cpu_s is not None and self.seconds else None

    @property
    def goodput_per_s(self) -> float | None:
        """Answers a second that meet the objectives."""
        return self.result.goodput(self.objectives) if self.objectives else None

    @property
    def is_met(self) -> bool | None:
        """Whether so many answers meet the objectives as have to; None: there are none."""
        if self.objectives is None:
            return None
        outcomes = self.result.outcomes
        return sum(map(self.objectives.met_by, outcomes)) >= MET_SHARE * len(outcomes)

    def quantiles(self) -> dict[str, float | None]:
        """By name: "ttft_p50_s", "itl_p99_s", "waiting_p90_s"."""
        result, answered = self.result, self.answered
        of: dict[str, Callable[[float], float | None]] = {
            "ttft": result.ttft_s,
            "itl": result.itl_s,
            "tpot": result.tpot_s,
            "e2e": result.e2e_s,
            "server_prompt": lambda q: quantile([each.server_prompt_s for each in answered], q),
            "server_decode": lambda q: quantile([each.server_decode_s for each in answered], q),
            "waiting": lambda q: quantile([each.waiting_s for each in answered], q),
        }
        return {f"{name}_p{round(100 * q)}_s": found(q) for name, found in of.items() for q in QUANTILES}


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def warnings_of(row: LoadRow, *, on_battery: bool = False) -> Iterator[RowWarning]:
    """What makes it doubtful."""
    if errors := row.errors:
        kinds = ", ".join(f"{n} of {kind}" for kind, n in errors.items())
        n = sum(errors.values())
        yield RowWarning("errors", f"{n} of {len(row.requests)} requests failed ({kinds}): {row.error}", {"errors": n})
    if (cores := row.client_cores or 0) > _BUSY_CLIENT:
        said = f"the client took {fixed(cores, 2)} cores, and may be what was waited for"
        yield RowWarning("client-busy", said, {"cores": cores})
    if row.answered and row.n_made is None:
        yield RowWarning("uncounted", "the server does not say how many tokens it made: no rates")
    if on_battery:
        yield RowWarning("battery", "the machine runs on battery", {}, "plug it in")
