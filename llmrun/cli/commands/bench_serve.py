"""`llmrun bench serve URL|MODEL`: how many a server serves, and how fast each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from llmrun.cli.framework import options
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.terminal import screen
from llmrun.errors import LlmrunError, UsageError
from llmrun.options.spec import Number, Whole
from llmrun.units import duration, fixed, rate

if TYPE_CHECKING:
    from llmrun.bench.load import Objectives
    from llmrun.bench.serving import Level, Server, Wanted

_KEY = "LLMRUN_API_KEY"
_START_S = 600


def bench_serve(
    server: Annotated[str, Argument("URL|MODEL", "An address that speaks OpenAI's chat completions, or a model.")],
    model: Annotated[
        str | None, Option("--model", metavar="NAME", help="The model that is asked for, of a server with several.")
    ] = None,
    concurrency: Annotated[
        str | None,
        Option("--concurrency", metavar="N,…", help="Requests in flight, one load for each.", without="1,2,4,8,16"),
    ] = None,
    per_s: Annotated[
        str | None,
        Option("--rate", metavar="R,…", help="Requests a second that come at random, one load for each, instead."),
    ] = None,
    find_capacity: Annotated[
        bool, Option("--find-capacity", help="Find the most in flight that meet the objectives, instead.")
    ] = False,
    requests: Annotated[
        int | None,
        Option(
            "--requests",
            metavar="N",
            kind=Whole(1, 1 << 20),
            help="Of each load.",
            without="four for each in flight, at least 16",
        ),
    ] = None,
    n_prompt: Annotated[
        int, Option("-p", "--n-prompt", metavar="N", kind=Whole(1, 1 << 20), help="Words of each prompt.")
    ] = 128,
    n_shared: Annotated[
        int, Option("--shared", metavar="N", kind=Whole(0, 1 << 20), help="Words that all prompts begin with.")
    ] = 0,
    n_gen: Annotated[
        int, Option("-n", "--n-gen", metavar="N", kind=Whole(1, 1 << 20), help="Tokens of each answer, at most.")
    ] = 64,
    ttft_s: Annotated[
        float | None,
        Option("--ttft", metavar="S", kind=Number(0, 1e6), help="Objective: the first token within so long."),
    ] = None,
    tps: Annotated[
        float | None,
        Option("--tps", metavar="R", kind=Number(0, 1e9), help="Objective: so many tokens per second each, then."),
    ] = None,
    e2e_s: Annotated[
        float | None,
        Option("--e2e", metavar="S", kind=Number(0, 1e6), help="Objective: the whole answer within so long."),
    ] = None,
    ignore_eos: Annotated[
        bool, Option("--ignore-eos", help="Ask for answers of full length; llmrun, llama.cpp and vLLM know it.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Load a server, and measure what those see who wait.

    A number in flight is a closed loop: the next request comes when one is answered, so that a slow server lowers its
    own load. A rate is an open one. A key is taken from LLMRUN_API_KEY. Of a model, a server is started for it.
    """
    from llmrun.bench import serving
    from llmrun.bench.http_load import check_address
    from llmrun.bench.load import Objectives

    if sum((concurrency is not None, per_s is not None, find_capacity)) > 1:
        raise UsageError("--concurrency, --rate and --find-capacity: one of them at a time")
    objectives = Objectives(ttft_s, 1 / tps if tps else None, e2e_s)
    has_objectives = any(each is not None for each in (ttft_s, tps, e2e_s))
    if find_capacity and not has_objectives:
        raise UsageError("--find-capacity looks for what meets objectives", hint="--ttft 0.5 --tps 20")
    numbers = [_whole(each) for each in (concurrency or "1,2,4,8,16").split(",")]
    rates = [_rate(each) for each in per_s.split(",")] if per_s else []
    extra: dict[str, object] = {"temperature": 0, **({"ignore_eos": True} if ignore_eos else {})}
    wanted = serving.Wanted(n_prompt, n_gen, n_shared, requests, extra=extra)
    is_address = server.startswith(("http://", "https://"))
    with _at(check_address(server)) if is_address else _started(server, max(numbers), quiet=quiet) as address:
        at = serving.Server(address, model, os.environ.get(_KEY))
        _warm(at, wanted)
        table = _Table(objectives if has_objectives else None, shown=not as_json)
        tried: list[tuple[Level, bool]] = []
        if find_capacity:
            turn = iter(range(1, 1000))
            for level, met in serving.capacity(lambda n: serving.closed(at, wanted, n, next(turn)), objectives):
                tried.append((level, met))
                table.add(level)
        else:
            for i, load in enumerate(rates or numbers, start=1):
                level = serving.opened(at, wanted, load, i) if rates else serving.closed(at, wanted, int(load), i)
                tried.append((level, has_objectives and serving.is_met(level, objectives)))
                table.add(level)
    levels = [level for level, _ in tried]
    most = serving.most_that_met(tried) if find_capacity else None
    if as_json:
        goals = objectives if has_objectives else None
        found = {
            "server": address,
            "model": model,
            "n_prompt_words": n_prompt,
            "n_gen": n_gen,
            "n_shared_words": n_shared,
            "loads": [level.document(goals) for level in levels],
        }
        screen.out_json({**found, "capacity": most.in_flight if most else None} if find_capacity else found)
    elif find_capacity:
        screen.out(_in_words(most, objectives) + "\n")
    if not quiet:
        cost = max(level.client_s for level in levels)
        screen.note(f"the client took {duration(cost)} of CPU time of a request, at most")
    if not any(level.result.answered for level in levels):
        error = next((each.error for level in levels for each in level.report.seen if each.error), "no answer")
        raise LlmrunError(f"no request was answered: {error}")


def _whole(text: str) -> int:
    if not text.strip().isdigit() or not 1 <= int(text) <= 4096:
        raise UsageError(f"--concurrency {text[:40]!r}: numbers from 1 to 4096, with commas between")
    return int(text)


def _rate(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1e5:
        raise UsageError(f"--rate {text[:40]!r}: requests a second, with commas between")
    return found


@contextmanager
def _at(address: str) -> Iterator[str]:
    yield address


@contextmanager
def _started(model: str, n_seq: int, *, quiet: bool) -> Iterator[str]:
    """A server of ours for a model, ready; its address."""
    command = [sys.executable, "-m", "llmrun", "serve", model, "--port", "0", "-np", str(n_seq), "-q"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    try:
        first = process.stderr.readline().strip()
        if not first.startswith("http"):
            rest = (first + "\n" + process.stderr.read()).strip()
            raise LlmrunError(f"the server did not start: {rest.removeprefix('error: ')}")
        if not quiet:
            screen.note(f"{model} is served at {first}, {n_seq} answers side by side")
        _wait_until_ready(first, process)
        yield first
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def _wait_until_ready(address: str, process: subprocess.Popen[str]) -> None:
    import time
    from urllib.error import URLError
    from urllib.request import ProxyHandler, build_opener

    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        try:
            with build_opener(ProxyHandler({})).open(f"{address}/health", timeout=5):
                return
        except (URLError, OSError):
            if process.poll() is not None:
                said = process.stderr.read().strip() if process.stderr else ""
                raise LlmrunError(f"the server ended with {process.returncode}: {said[-300:]}") from None
            time.sleep(0.05)
    raise LlmrunError(f"the model was not loaded within {_START_S} s")


def _warm(server: Server, wanted: Wanted) -> None:
    """One request, uncounted. Raises why it can't be answered at all."""
    from dataclasses import replace

    from llmrun.bench import serving
    from llmrun.errors import NetworkError

    report = serving.closed(server, replace(wanted, n_requests=1, n_gen=min(4, wanted.n_gen)), 1).report
    if error := report.seen[0].error:
        raise NetworkError(f"{server.address}: {error}")


class _Table:
    """Rows as they are measured."""

    def __init__(self, objectives: Objectives | None, *, shown: bool) -> None:
        self._objectives, self._shown = objectives, shown
        self._titles: Sequence[str] = (
            *("LOAD", "t/s", "t/s EACH", "BY SERVER", "TTFT p50", "p90", "p99", "GAP p50", "p99"),
            *("E2E p50", "p99", *(("GOOD/s",) if objectives else ()), "ERRORS"),
        )
        self._widths = [max(9, len(title)) for title in self._titles]
        self._widths[0] = 12
        if shown:
            self._line(self._titles)

    def add(self, level: Level) -> None:
        if not self._shown:
            return
        result = level.result
        good = (fixed(result.goodput(self._objectives), 2),) if self._objectives else ()
        self._line(
            (
                level.name,
                rate(result.tokens_per_s).removesuffix(" t/s"),
                rate(level.tps_each).removesuffix(" t/s"),
                rate(level.tps_each_by_server).removesuffix(" t/s"),
                *(duration(result.ttft_s(q)) for q in (0.5, 0.9, 0.99)),
                *(duration(result.itl_s(q)) for q in (0.5, 0.99)),
                *(duration(result.e2e_s(q)) for q in (0.5, 0.99)),
                *good,
                str(result.n_errors),
            )
        )

    def _line(self, cells: Sequence[str]) -> None:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, self._widths, strict=True))
        )
        screen.out("  ".join((first, *rest)).rstrip() + "\n")


def _in_words(most: Level | None, objectives: Objectives) -> str:
    """ "Up to 4 at once each gets at least 20 t/s and the first token within 0.5 s."."""
    wanted = [
        *([f"at least {rate(1 / objectives.tpot_s)}"] if objectives.tpot_s else []),
        *([f"the first token within {duration(objectives.ttft_s)}"] if objectives.ttft_s is not None else []),
        *([f"all of its answer within {duration(objectives.e2e_s)}"] if objectives.e2e_s is not None else []),
    ]
    if most is None:
        return f"Not even one alone gets {' and '.join(wanted)}, 9 of 10 times."
    return f"Up to {most.in_flight} at once each gets {' and '.join(wanted)}, 9 of 10 times."
