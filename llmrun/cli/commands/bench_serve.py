"""`llmrun bench serve URL|MODEL`: how many a server serves, and how fast each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from llmrun.cli.framework import options, sweeps
from llmrun.cli.framework.bench_options import OutputFile, OutputFormat, outputs
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.terminal import screen
from llmrun.cli.terminal.progress import CountBar
from llmrun.errors import LlmrunError, NetworkError, UsageError
from llmrun.options.spec import OUTPUT, Number, Whole
from llmrun.units import duration, rate

if TYPE_CHECKING:
    from llmrun.bench.export.formats import Format
    from llmrun.bench.load import Objectives
    from llmrun.bench.load_row import LoadRow, LoadTest
    from llmrun.bench.record import Record
    from llmrun.bench.serving import Server, Wanted

_KEY = "LLMRUN_API_KEY"
_START_S = 600
_PLACE = re.compile(r"[\w.-]+:\d+(/.*)?")
"""An address without its http://, which is asked for; no name of a model."""


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
    spread_percent: Annotated[
        float,
        Option(
            "--spread",
            metavar="PERCENT",
            kind=Number(0, 100),
            help="Make each prompt and answer up to so much longer or shorter, at random.",
        ),
    ] = 0,
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
    output_format: OutputFormat = "table",
    output_file: OutputFile = None,
    as_json: Annotated[bool, Option("--json", help="The same as -o json.", panel=OUTPUT)] = False,
    quiet: options.Quiet = False,
) -> None:
    """Load a server, and measure what those see who wait.

    A number in flight is a closed loop: the next request comes when one is answered, so that a slow server lowers its
    own load. A rate is an open one. A key is taken from LLMRUN_API_KEY. Of a model, a server is started for it.

    Loads appear as they are measured; those that have ended when you press Ctrl-C are kept. `llmrun bench history` has
    them, `llmrun compare` sets two runs side by side, `llmrun plot` draws them.
    """
    from llmrun.bench import serving
    from llmrun.bench.export.stream import ExportFile
    from llmrun.bench.load import Objectives
    from llmrun.bench.load_row import LoadRow

    format, file, file_format = outputs("json" if as_json else output_format, output_file)
    if sum((concurrency is not None, per_s is not None, find_capacity)) > 1:
        raise UsageError("--concurrency, --rate and --find-capacity: one of them at a time")
    objectives = Objectives(ttft_s, 1 / tps if tps else None, e2e_s)
    has_objectives = objectives != Objectives()
    if find_capacity and not has_objectives:
        raise UsageError("--find-capacity looks for what meets objectives", hint="--ttft 0.5 --tps 20")
    numbers = [_whole(each) for each in sweeps.values("--concurrency", [concurrency or "1,2,4,8,16"])]
    rates = [_rate(each) for each in sweeps.values("--rate", [per_s])] if per_s else []
    wanted = serving.Wanted(
        n_prompt,
        n_gen,
        n_shared,
        requests,
        objectives=objectives if has_objectives else None,
        extra={"temperature": 0, **({"ignore_eos": True} if ignore_eos else {})},
        spread=spread_percent / 100,
    )
    tests = [wanted.test(per_s=each) for each in rates] or [wanted.test(in_flight=each) for each in numbers]
    planned = [LoadRow(test, objectives=wanted.objectives) for test in (tests[:1] if find_capacity else tests)]
    with ExitStack() as stack:
        n_of_all = None if find_capacity else sum(map(wanted.n_of, tests))
        shown = stack.enter_context(_observer(format, n_of_all, quiet=quiet))
        files = [stack.enter_context(ExportFile(file, file_format))] if file and file_format else []
        at, record = stack.enter_context(_target(server, model, wanted, max(numbers), quiet=quiet))
        _warm(at, wanted)
        loads: Iterator[LoadRow]
        if find_capacity:
            turn = iter(range(1, 1000))
            loads = serving.capacity(lambda n: serving.closed(at, wanted, n, next(turn), shown.requested))
        elif rates:
            loads = (serving.opened(at, wanted, each, i, shown.requested) for i, each in enumerate(rates, start=1))
        else:
            loads = (serving.closed(at, wanted, each, i, shown.requested) for i, each in enumerate(numbers, start=1))
        record = serving.bench_server(record, planned, loads, (*files, shown))
    if find_capacity:
        said = _in_words(serving.most_that_met(record.loads), objectives)
        if format == "table":
            screen.out(f"\n{said}\n")
        elif not quiet:
            screen.note(said)


def _whole(text: str) -> int:
    if not text.strip().isdigit() or not 1 <= int(text) <= 4096:
        raise UsageError(f"--concurrency {text[:40]!r}: numbers from 1 to 4096", hint="--concurrency 1,2,4 or 1-16*2")
    return int(text)


def _rate(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1e5:
        raise UsageError(f"--rate {text[:40]!r}: requests a second, above 0", hint="--rate 0.5,1,2")
    return found


@contextmanager
def _target(
    server: str, model: str | None, wanted: Wanted, n_seq: int, *, quiet: bool
) -> Iterator[tuple[Server, Record]]:
    """Whom to ask, and the record to begin with; of a model, a server is there for as long as the block runs."""
    from llmrun.bench import serving
    from llmrun.bench.http_load import check_address
    from llmrun.models.model_info import ModelInfo, describe_model

    command = ("llmrun", *sys.argv[1:])
    if "://" in server or _PLACE.fullmatch(server):
        at = serving.Server(check_address(server), model, os.environ.get(_KEY))
        info, name = serving.ask_who(at)
        yield at, serving.begun(wanted, info, ModelInfo(name or "unknown"), None, command)
        return
    from llmrun.cli.loading import load_model
    from llmrun.engine.devices import find_devices

    found = load_model.found(server, quiet=quiet)
    described = describe_model(found.name, found.path, found.header)
    devices = find_devices()
    with _started(server, n_seq, quiet=quiet) as address:
        at = serving.Server(address, model, os.environ.get(_KEY))
        info, _ = serving.ask_who(at)
        yield at, serving.begun(wanted, info, described, devices, command)


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
    except NetworkError as error:
        if process.poll() is None:
            raise
        said = process.stderr.read().strip()[-300:]
        raise LlmrunError(f"the server ended with {process.returncode}: {said or error.message}") from error
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
    from llmrun.bench import serving

    row = serving.closed(server, replace(wanted, n_requests=1, n_gen=min(4, wanted.n_gen)), 1)
    if row.error is None:
        return
    hints = {
        "connection": "llmrun ps  or  llmrun serve MODEL",
        "http 401": f"the key of the server in {_KEY}",
        "http 404": "the name that the server has for its model: --model NAME",
    }
    raise NetworkError(f"{server.address}: {row.error}", hint=hints.get(row.requests[0].error_kind or ""))


def _observer(format: Format, n_requests: int | None, *, quiet: bool) -> Any:
    """Loads on stdout as they are measured; notes and the bar on stderr. `requested` is told of each request."""
    from llmrun.bench.export.stream import ExportStream

    class OnScreen(ExportStream):
        def __init__(self) -> None:
            super().__init__(format, self._out)
            self._bar = CountBar(n_requests or 0, shown=not quiet and n_requests is not None)

        def _out(self, text: str) -> None:
            with self._bar.aside():
                screen.out(text)

        def loads_began(self, record: Record, planned: Sequence[LoadRow]) -> None:
            super().loads_began(record, planned)
            self._bar.start()

        def requested(self, test: LoadTest, done: int, of: int) -> None:
            self._bar.advance(f"{test.name} {done}/{of}")

        def ended(self, record: Record) -> None:
            self._bar.stop()
            super().ended(record)
            if not quiet:
                screen.note(f"kept as {record.id}: llmrun bench history show {record.id}")

    return OnScreen()


def _in_words(most: int | None, objectives: Objectives) -> str:
    """ "Up to 4 at once each gets at least 20 t/s and the first token within 0.5 s."."""
    wanted = [
        *([f"at least {rate(1 / objectives.tpot_s)}"] if objectives.tpot_s else []),
        *([f"the first token within {duration(objectives.ttft_s)}"] if objectives.ttft_s is not None else []),
        *([f"all of its answer within {duration(objectives.e2e_s)}"] if objectives.e2e_s is not None else []),
    ]
    if most is None:
        return f"Not even one alone gets {' and '.join(wanted)}, 9 of 10 times."
    return f"Up to {most} at once each gets {' and '.join(wanted)}, 9 of 10 times."
