"""How many can be served, and how fast each: loads of rising strength at one address.

    closed loop   for each number in flight: TTFT, gaps, TPOT, E2E, what meets the objectives
    open loop     for each rate the same; what can't be kept up with shows in the waiting
    capacity      the most in flight at which 9 of 10 answers still meet the objectives, by halving

Prompts are unlike each other from their first word on, unless a shared beginning is what is to be measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from llmrun.bench import http_load
from llmrun.bench.http_load import HttpCall, Job, Report
from llmrun.bench.load import Objectives, Result

MOST_IN_FLIGHT = 64
"""Beyond, a capacity is not looked for."""
_SHARE = 0.9
"""Of answers that have to meet the objectives."""
_WORDS = (
    "time people way water words long little round year good sentence great think help low line before turn cause much"
    " mean move right boy old same tell follow came want show form three small set put end another well large must even"
    " land here big high such act why ask men change light kind off need house picture try again animal point mother"
).split()


@dataclass(frozen=True)
class Wanted:
    """What is asked.

    Attributes:
        n_prompt: words of each prompt, about as many tokens.
        n_gen: tokens of each answer, at most.
        n_shared: words that all prompts begin with.
        n_requests: of each load; None: four for each in flight, sixteen at least.
        extra: further fields of each body.
    """

    n_prompt: int = 128
    n_gen: int = 64
    n_shared: int = 0
    n_requests: int | None = None
    seed: int = 1
    extra: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """`address`: without /v1."""

    address: str
    model: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Level:
    """What one load gave.

    Attributes:
        in_flight: of a closed loop.
        per_s: of an open one: requests a second.
    """

    in_flight: int | None
    per_s: float | None
    report: Report

    @property
    def result(self) -> Result:
        return self.report.result

    @property
    def name(self) -> str:
        return f"{self.in_flight} at once" if self.in_flight is not None else f"{self.per_s:g} a second"

    @property
    def client_s(self) -> float:
        """CPU time of the client, of a request."""
        return self.report.cpu_s / max(1, len(self.report.seen))

    @property
    def tps_each(self) -> float | None:
        """Tokens per second of one answer behind its first token, as the client sees it; the median."""
        found = [1 / each.tpot_s for each in self.result.answered if each.tpot_s]
        return median(found) if found else None

    @property
    def tps_each_by_server(self) -> float | None:
        """The same by the server's own clock."""
        found = [each.server_tps for each in self.report.seen if each.server_tps and each.error is None]
        return median(found) if found else None

    def document(self, objectives: Objectives | None) -> dict[str, object]:
        result = self.result
        quantiles = {
            f"{name}_p{round(100 * q)}_s": of(q)
            for name, of in (
                ("ttft", result.ttft_s),
                ("itl", result.itl_s),
                ("tpot", result.tpot_s),
                ("e2e", result.e2e_s),
            )
            for q in (0.5, 0.9, 0.99)
        }
        first_error = next((each.error for each in self.report.seen if each.error), None)
        return {
            "in_flight": self.in_flight,
            "per_s": self.per_s,
            "n_requests": len(result.outcomes),
            "n_errors": result.n_errors,
            "first_error": first_error,
            "seconds": result.seconds,
            "tokens_per_s": result.tokens_per_s,
            "tokens_per_s_each": self.tps_each,
            "tokens_per_s_each_by_server": self.tps_each_by_server,
            "n_prompt": median(each.n_prompt for each in result.answered) if result.answered else None,
            "n_cached": sum(each.n_cached for each in result.answered),
            **quantiles,
            "goodput_per_s": result.goodput(objectives) if objectives else None,
            "client_cpu_s": self.client_s,
        }


def calls(wanted: Wanted, n: int, turn: int = 0) -> list[HttpCall]:
    """`turn`: another one has other prompts."""
    chance = random.Random(f"{wanted.seed} {turn}")
    shared = " ".join(random.Random(wanted.seed).choices(_WORDS, k=wanted.n_shared))
    made = []
    for _ in range(n):
        own = f"{chance.getrandbits(32):x} " + " ".join(chance.choices(_WORDS, k=max(0, wanted.n_prompt - 4)))
        made.append(HttpCall(f"{shared} {own}".strip(), wanted.n_gen))
    return made


def closed(server: Server, wanted: Wanted, in_flight: int, turn: int = 0) -> Level:
    """Raises `NetworkError`."""
    n = wanted.n_requests or max(16, 4 * in_flight)
    made = calls(wanted, n, turn)
    return Level(in_flight, None, http_load.run(_job(server, wanted, made, in_flight)))


def opened(server: Server, wanted: Wanted, per_s: float, turn: int = 0) -> Level:
    """Raises `NetworkError`."""
    n = wanted.n_requests or max(16, round(20 * per_s))
    chance, at_s = random.Random(f"{wanted.seed} {turn} {per_s}"), 0.0
    made = []
    for call in calls(wanted, n, turn):
        at_s += chance.expovariate(per_s)
        made.append(HttpCall(call.prompt, call.max_tokens, at_s))
    return Level(None, per_s, http_load.run(_job(server, wanted, made, None)))


def _job(server: Server, wanted: Wanted, made: list[HttpCall], in_flight: int | None) -> Job:
    return Job(server.address, server.model, server.key, made, in_flight, dict(wanted.extra))


def is_met(level: Level, objectives: Objectives) -> bool:
    """Whether so many answers meet them as have to."""
    outcomes = level.result.outcomes
    return sum(map(objectives.met_by, outcomes)) >= _SHARE * len(outcomes)


def capacity(
    measure: Callable[[int], Level], objectives: Objectives, most: int = MOST_IN_FLIGHT
) -> Iterator[tuple[Level, bool]]:
    """Each load that was tried, and whether it meets the objectives: doubled until one does not, then by halves."""
    good, bad, n = 0, most + 1, 1
    while bad - good > 1:
        level = measure(n)
        met = is_met(level, objectives)
        yield level, met
        good, bad = (n, bad) if met else (good, n)
        n = min(2 * n, most) if bad > most else (good + bad) // 2


def most_that_met(tried: Sequence[tuple[Level, bool]]) -> Level | None:
    met = [level for level, is_so in tried if is_so]
    return max(met, key=lambda level: level.in_flight or 0, default=None)
