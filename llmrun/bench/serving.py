"""How many can be served, and how fast each: loads of rising strength at one address.

    closed loop   for each number in flight: TTFT, gaps, TPOT, E2E, what meets the objectives
    open loop     for each rate the same; what can't be kept up with shows in the waiting
    capacity      the most in flight at which 9 of 10 answers still meet the objectives, by halving

Prompts are unlike each other from their first word on, unless a shared beginning is what is to be measured. What is
measured is kept in a record as a bench of a model is, each load as soon as it has ended.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from typing import TypeVar
from urllib.parse import urlsplit

from llmrun import codec
from llmrun.bench import http_load
from llmrun.bench.http_load import HttpCall, Job
from llmrun.bench.journal import Journal
from llmrun.bench.load import Objectives
from llmrun.bench.load_row import LoadRow, LoadTest, ServerInfo, warnings_of
from llmrun.bench.observer import Observer
from llmrun.bench.record import Record
from llmrun.clock import new_id, utc
from llmrun.codec import Struct
from llmrun.engine.devices import Found
from llmrun.errors import NetworkError
from llmrun.machine.environment import describe_build, describe_machine
from llmrun.machine.hardware import on_battery
from llmrun.models.model_info import ModelInfo

_T = TypeVar("_T")

MOST_IN_FLIGHT = 64
"""Beyond, a capacity is not looked for."""
_ASK_S = 10
"""For a server to say what it is."""
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
        spread: each prompt and answer has so much more or less than these, at random: 0.5 is half to one and a half
            times as much. Answers of one length that began together end together, and begin together again.
        n_requests: of each load; None: four for each in flight, or what comes in 20 s; sixteen at least.
        objectives: that answers are held against.
        extra: further fields of each body.
    """

    n_prompt: int = 128
    n_gen: int = 64
    n_shared: int = 0
    n_requests: int | None = None
    seed: int = 1
    objectives: Objectives | None = None
    extra: dict[str, object] = field(default_factory=dict)
    spread: float = 0.0

    def test(self, *, in_flight: int | None = None, per_s: float | None = None) -> LoadTest:
        return LoadTest(self.n_prompt, self.n_gen, self.n_shared, in_flight, per_s, self.spread)

    def n_of(self, test: LoadTest) -> int:
        """Requests of a load."""
        least = 4 * test.in_flight if test.in_flight is not None else round(20 * (test.per_s or 0))
        return self.n_requests or max(16, least)


@dataclass(frozen=True)
class Server:
    """`address`: without /v1."""

    address: str
    model: str | None = None
    key: str | None = None


OnRequest = Callable[[LoadTest, int, int], None]
"""Is told of a load how many of its requests have ended, of how many."""


def _nobody(_test: LoadTest, _done: int, _of: int) -> None: ...


def calls(wanted: Wanted, n: int, turn: int = 0) -> list[HttpCall]:
    """`turn`: another one has other prompts."""
    chance = random.Random(f"{wanted.seed} {turn}")
    shared = " ".join(random.Random(wanted.seed).choices(_WORDS, k=wanted.n_shared))
    made = []
    for _ in range(n):
        name = f"{chance.getrandbits(32):x}"
        n_prompt, n_gen = (_about(each, wanted.spread, chance) for each in (wanted.n_prompt, wanted.n_gen))
        own = f"{name} " + " ".join(chance.choices(_WORDS, k=max(0, n_prompt - 4)))
        made.append(HttpCall(f"{shared} {own}".strip(), n_gen))
    return made


def _about(n: int, spread: float, chance: random.Random) -> int:
    """At least 1. Where nothing is spread, `chance` is left as it was."""
    return max(1, round(n * chance.uniform(1 - spread, 1 + spread))) if spread else n


def closed(server: Server, wanted: Wanted, in_flight: int, turn: int = 0, on_request: OnRequest = _nobody) -> LoadRow:
    """Raises `NetworkError`."""
    test = wanted.test(in_flight=in_flight)
    return _measured(server, wanted, test, calls(wanted, wanted.n_of(test), turn), on_request)


def opened(server: Server, wanted: Wanted, per_s: float, turn: int = 0, on_request: OnRequest = _nobody) -> LoadRow:
    """Raises `NetworkError`."""
    test = wanted.test(per_s=per_s)
    chance, at_s = random.Random(f"{wanted.seed} {turn} {per_s}"), 0.0
    made = []
    for call in calls(wanted, wanted.n_of(test), turn):
        at_s += chance.expovariate(per_s)
        made.append(HttpCall(call.prompt, call.max_tokens, at_s))
    return _measured(server, wanted, test, made, on_request)


def _measured(server: Server, wanted: Wanted, test: LoadTest, made: list[HttpCall], on_request: OnRequest) -> LoadRow:
    job = Job(server.address, server.model, server.key, made, test.in_flight, dict(wanted.extra))
    began = utc()
    requests, cpu_s = http_load.run(job, lambda n: on_request(test, n, len(made)))
    row = LoadRow(test, tuple(requests), began, wanted.objectives, cpu_s)
    return replace(row, warnings=tuple(warnings_of(row, on_battery=bool(on_battery()))))


def capacity(measure: Callable[[int], LoadRow], most: int = MOST_IN_FLIGHT) -> Iterator[LoadRow]:
    """Each load that was tried: doubled until one does not meet its objectives, then by halves."""
    good, bad, n = 0, most + 1, 1
    while bad - good > 1:
        row = measure(n)
        yield row
        good, bad = (n, bad) if row.is_met else (good, n)
        n = min(2 * n, most) if bad > most else (good + bad) // 2


def most_that_met(rows: Sequence[LoadRow]) -> int | None:
    """In flight; None: not even one."""
    return max((row.test.in_flight or 0 for row in rows if row.is_met), default=None)


# -- the record ---


def begun(wanted: Wanted, info: ServerInfo, model: ModelInfo, found: Found | None, command: Sequence[str]) -> Record:
    """The record without its loads. `found`: what llama.cpp computes on here, where the server was started for this."""
    return Record(
        id=new_id(),
        created=utc(),
        machine=describe_machine(found.devices if found else ()),
        # Of another server only the client's version is known.
        build=describe_build(found.system_info, found.versions)
        if found
        else replace(describe_build(), llama_cpp_python=None),
        model=model,
        command=tuple(command),
        settings={"seed": wanted.seed, "n_requests": wanted.n_requests, **wanted.extra},
        server=info,
    )


def bench_server(
    record: Record, planned: Sequence[LoadRow], loads: Iterable[LoadRow], observers: Sequence[Observer] = ()
) -> Record:
    """Keeps each load in a journal as soon as it has ended, and tells of it. Returns the record.

    `planned`: a row without requests for each that is known to come, one at least.

    Raises `NetworkError` behind a load of which nothing was answered, as the next would not be either. Raises
    `DiskError`, and what `loads` raises; what had ended before is kept.
    """
    with Journal.of(record) as journal:
        for each in observers:
            each.loads_began(record, planned)
        try:
            for row in loads:
                journal.add(row)
                record = replace(record, loads=(*record.loads, row))
                for each in observers:
                    each.load_finished(row)
                if not row.answered:
                    raise NetworkError(
                        f"{row.test.name}: none of {len(row.requests)} requests was answered: {row.error}"
                    )
            record = replace(record, ended=utc())
            journal.end(record.ended)
        finally:
            for each in observers:
                each.ended(record)
    return record


# -- who it is ---


class _Running(Struct):
    model: str | None = None
    n_slots: int | None = None
    n_ctx: int | None = None


class _Settings(Struct):
    n_ctx: int | None = None


class _Props(Struct):
    """Ours has `version` and `models`, llama.cpp's the others."""

    version: str | None = None
    models: list[_Running] = codec.field(default_factory=list)
    build_info: str | None = None
    total_slots: int | None = None
    default_generation_settings: _Settings | None = None


class _Model(Struct):
    id: str


class _Models(Struct):
    data: list[_Model]


def ask_who(server: Server) -> tuple[ServerInfo, str | None]:
    """What the server says of itself, and the name of its model where it has one. What it does not say is None."""
    props, models = _told(server, "/props", _Props), _told(server, "/v1/models", _Models)
    name = server.model or (models.data[0].id if models and len(models.data) == 1 else None)
    host = urlsplit(server.address).hostname or ""
    is_here = host in ("localhost", "::1") or host.startswith("127.")
    info = ServerInfo(is_here=is_here)
    if props and props.version:
        running = next((each for each in props.models if each.model == name), _Running())
        info = ServerInfo(f"llmrun {props.version}", running.n_slots, running.n_ctx, is_here)
    elif props and props.build_info:
        settings = props.default_generation_settings or _Settings()
        info = ServerInfo(f"llama.cpp {props.build_info}", props.total_slots, settings.n_ctx, is_here)
    return info, name


def _told(server: Server, path: str, kind: type[_T]) -> _T | None:
    connection = http_load.connect(server.address, _ASK_S)
    try:
        headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
        connection.request("GET", urlsplit(server.address).path + path, headers=headers)
        response = connection.getresponse()
        return codec.decode(response.read(), kind) if response.status == 200 else None
    except (OSError, HTTPException, codec.Malformed):
        return None
    finally:
        connection.close()
