"""`llmrun bench MODEL...`: tokens per second, with everything that the number depends on."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from llmrun.cli.commands.bench_history import WithHistory
from llmrun.cli.framework import load_options, options, sweeps
from llmrun.cli.framework.help import Command
from llmrun.cli.terminal import screen
from llmrun.errors import UsageError

if TYPE_CHECKING:
    from llmrun.bench.exports import Format
    from llmrun.bench.record import Record, Row, Test
    from llmrun.bench.run import Case, Method
    from llmrun.engine.engine import Engine
    from llmrun.models.resolve import Model
    from llmrun.options.config import LoadConfig

_OUTPUT = "Output"
Texts = list[str] | None
_SWEPT = sweeps.Swept(load_options._config, fixed=("rpc",), without=("ctx_size",))


class BenchCommand(WithHistory, Command):
    """`llmrun bench MODEL...`, and `llmrun bench history`."""


def bench(
    model: options.ModelNames,
    n_prompt: Annotated[
        Texts, typer.Option("-p", "--n-prompt", metavar="N", help="Prompts to compute.  [default: 512]")
    ] = None,
    n_gen: Annotated[
        Texts, typer.Option("-n", "--n-gen", metavar="N", help="Tokens to generate.  [default: 128]")
    ] = None,
    pg: Annotated[
        Texts, typer.Option("-pg", metavar="PP,TG", help="A prompt and then an answer, timed together. Repeatable.")
    ] = None,
    depth: Annotated[
        Texts, typer.Option("-d", "--n-depth", metavar="N", help="Tokens that are in the context before.  [default: 0]")
    ] = None,
    batch: Annotated[
        Texts, typer.Option("-B", "--n-parallel", metavar="N", help="Sequences side by side, as llama-batched-bench.")
    ] = None,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="Also what a user waits for: template, tokens, sampling, text.")
    ] = False,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", help="Samples of each test.")] = 5,
    delay: Annotated[float, typer.Option("--delay", metavar="S", help="Seconds of rest before each test.")] = 0.0,
    no_warmup: Annotated[bool, typer.Option("--no-warmup", help="Time the first run as well.")] = False,
    no_ceilings: Annotated[
        bool, typer.Option("--no-ceilings", help="Don't measure what the memory can do beside the samples.")
    ] = False,
    price_kwh: Annotated[
        float | None, typer.Option("--price-kwh", metavar="P", help="Price of a kWh: cost of a million tokens.")
    ] = None,
    price_hour: Annotated[
        float | None, typer.Option("--price-hour", metavar="P", help="Price of an hour of this machine: the same.")
    ] = None,
    quality: Annotated[
        str | None,
        typer.Option(
            "--quality", metavar="FILE", help="Also perplexity on this text; 'default' is the one that llmrun has."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="MODEL", help="With --quality: how far from this model's predictions."),
    ] = None,
    output_format: Annotated[
        str,
        typer.Option(
            "-o", "--output-format", metavar="FORMAT", help="table, md, csv, json, jsonl, sql.", rich_help_panel=_OUTPUT
        ),
    ] = "table",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="Write the rows to this file too, by its suffix.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    quiet: options.Quiet = False,
    **given: Any,
) -> None:
    """Measure tokens per second.

    Options that take a list sweep all combinations: -t 1,2 -ub 128-512*2 -ngl 0,all. Names and syntax are
    llama-bench's, and so is the method: random tokens, no tokenization, no sampling. Rows appear as they are measured;
    what is finished when you press Ctrl-C is kept. `llmrun bench history` has every bench, `llmrun compare` sets two
    side by side.
    """
    from llmrun.bench.run import Case, Method

    format = checked_format(output_format, "-o")
    file_format = checked_format(output.suffix[1:], "--output") if output else None
    method = Method(repetitions, not no_warmup, delay, not no_ceilings, price_kwh, price_hour)
    tests = tests_of(n_prompt, n_gen, pg, depth, batch, end_to_end=end_to_end)
    cases = [Case(config, test) for config in _SWEPT.combinations(given) for test in tests]
    if reference is not None and quality is None:
        raise UsageError("--reference is for --quality", hint="--quality default")
    texts = read_quality(quality) if quality is not None else None
    for name in model:
        found = find(name, quiet=quiet)
        judged = scored(found, texts, reference, cases[0].config, quiet=quiet) if texts else None
        _bench_one(found, cases, method, format, output, file_format, judged, quiet=quiet)


def _with_load_options(command: Any) -> Any:
    """The signature that Typer reads: this command's own options, then those of loading, each taking several values."""
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    hints = get_type_hints(command, include_extras=True)
    every = [p.replace(annotation=hints[p.name]) for p in own] + _SWEPT.parameters()
    command.__signature__ = inspect.Signature(every)
    command.__annotations__ = {p.name: p.annotation for p in every}
    return command


_with_load_options(bench)


def one_case(text: str, command: Any) -> LoadConfig:
    """What `-t 2 -ngl 0` means, as options of `bench`; raises `UsageError` for what is several things."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"'{text}': {error}") from None
    context = command.make_context("bench", ["MODEL", *words])
    asked = {name: value for name, value in context.params.items() if name in _SWEPT.names}
    configs = list(_SWEPT.combinations(asked))
    if len(configs) != 1:
        raise UsageError(f"'{text}' is {len(configs)} settings; a side of a comparison is one")
    config: LoadConfig = configs[0]
    return config


def checked_format(text: str, option: str) -> Format:
    from llmrun.bench.exports import Format

    known = {"markdown": "md", "txt": "table"}
    text = known.get(text, text)
    if text not in get_args(Format):
        raise UsageError(f"{option}: '{text}' is none of {', '.join(get_args(Format))}")
    return text  # type: ignore[return-value]


def tests_of(
    n_prompt: Texts, n_gen: Texts, pg: Texts, depth: Texts, batch: Texts, *, end_to_end: bool = False
) -> list[Test]:
    """llama-bench's tests in its order: for every depth the prompts, the generations, the pairs; 0 leaves one out."""
    from llmrun.bench.record import Test

    prompts = sweeps.whole("-p/--n-prompt", n_prompt or ["512"])
    gens = sweeps.whole("-n/--n-gen", n_gen or ["128"])
    pairs = [_pair(text) for text in pg or []]
    sequences = sweeps.whole("-B/--n-parallel", batch or ["1"], low=1)
    if max(sequences) > 256:
        raise UsageError(f"-B/--n-parallel: {max(sequences)} is outside 1 to 256")  # LLAMA_MAX_SEQ
    found = []
    for n_depth in sweeps.whole("-d/--n-depth", depth or ["0"]):
        if batch:
            found += [Test("pg", p, n, n_depth, n_seq) for p, n, n_seq in product(prompts, gens, sequences) if p and n]
        else:
            found += [Test("pp", n, 0, n_depth) for n in prompts if n]
            found += [Test("tg", 0, n, n_depth) for n in gens if n]
        found += [Test("pg", p, n, n_depth) for p, n in pairs]
    if end_to_end:
        found += [Test("e2e", p, n) for p, n in product(prompts, gens) if p and n]
    if not found:
        raise UsageError("there is nothing to measure: -p and -n are 0", hint="-p 512 -n 128")
    return found


def _pair(text: str) -> tuple[int, int]:
    numbers = sweeps.whole("-pg", [text], low=1)
    if len(numbers) != 2:
        raise UsageError(f"-pg: '{text}' is not PP,TG", hint="-pg 512,128")
    return numbers[0], numbers[1]


def find(name: str, *, quiet: bool) -> Model:
    from llmrun.cli.commands.pull import fetch_with_progress
    from llmrun.models.resolve import find_model

    found = find_model(name, fetch=fetch_with_progress(quiet))
    if found.note and not quiet:
        screen.note(found.note)
    return found


def read_quality(text: str) -> tuple[str, str]:
    """The name of a text, and the text."""
    from llmrun.bench.quality import default_text, read_text

    if text == "default":
        return "llmrun's text", default_text()
    path = Path(text)
    return path.name, read_text(path)


def scored(
    found: Model, named: tuple[str, str], reference: str | None, config: LoadConfig, *, quiet: bool
) -> dict[str, Any]:
    """How well the model predicts a text, as a record has it."""
    from llmrun.bench.quality import Quality
    from llmrun.engine.jobs.perplexity import score

    name, text = named
    beside = find(reference, quiet=quiet) if reference else None
    with screen.bar(f"perplexity of {found.name}", shown=not quiet) as bar:

        def tick(so_far: Quality, n_chunks: int) -> None:
            if bar:
                bar.update(so_far.n_chunks / n_chunks)

        judged = score(found, text, config=config, reference=beside, on_progress=tick)
    return {**judged.as_dict(), "text": name, "reference": beside.name if beside else None}


def _bench_one(
    found: Model,
    cases: Sequence[Case],
    method: Method,
    format: Format,
    output: Path | None,
    file_format: Format | None,
    quality: dict[str, Any] | None,
    *,
    quiet: bool,
) -> None:
    from llmrun.bench import journal
    from llmrun.bench import run as benching
    from llmrun.bench.exports import asked_settings, writer
    from llmrun.bench.record import Row
    from llmrun.machine.energy import Joules
    from llmrun.machine.sampler import open_nvml

    planned = [Row(case.test, asked_settings(case.config)) for case in cases]
    out = writer(format)
    kept: list[Row] = []
    record: Record | None = None
    book: journal.Journal | None = None
    file = journal.Output(output, file_format) if output and file_format else None

    def begin(engine: Engine) -> None:
        nonlocal record, book
        for note in engine.notes if not quiet else ():
            screen.note(note)
        if record is not None:
            return
        record = described(found, engine, method, quality)
        book = journal.Journal.of(record)
        energy = bool(Joules.open(open_nvml()).counters)
        screen.out(out.begin(record, planned, energy=energy))
        if file:
            file.begin(record, planned, energy=energy)

    with progress(cases, method, shown=not quiet) as tick:
        try:
            for row in benching.run(found, cases, method, on_engine=begin, on_tick=tick):
                if record is None:  # not even the first could be loaded
                    raise_error(row)
                kept.append(row)
                assert book
                book.add(row)
                with tick.aside():
                    screen.out(out.row(row))
                    if row.error:
                        screen.note(f"{row.test.name}: {row.error}")
                if file:
                    file.row(row)
            if book:
                book.end()
        finally:
            if record is not None and book is not None:
                book.close()
                record = replace(record, rows=tuple(kept))
                with tick.aside():
                    screen.out(out.end(record))
                    if not quiet:
                        screen.note(f"kept as {record.id}: llmrun bench history show {record.id}")
                if file:
                    file.end(record)


def raise_error(row: Row) -> None:
    from llmrun.errors import OutOfMemory

    raise OutOfMemory(row.error or "the model could not be loaded")


def described(found: Model, engine: Engine, method: Method, quality: dict[str, Any] | None = None) -> Record:
    """The record without its rows."""
    from dataclasses import asdict

    from llmrun.bench.record import Record
    from llmrun.clock import new_id, utc
    from llmrun.machine.environment import describe_build, describe_machine
    from llmrun.models.model_info import describe_model

    return Record(
        id=new_id(),
        created=utc(),
        machine=describe_machine(engine.devices),
        build=describe_build(engine.system_info, engine.versions),
        model=describe_model(found.name, found.path, found.header, description=engine.loaded.description),
        command=("llmrun", *sys.argv[1:]),
        settings=asdict(method),
        quality=quality,
    )


class Ticker:
    """The progress bar, where there is one: a call for every sample."""

    def __init__(self, drawn: Any, total: int) -> None:
        self._drawn = drawn
        self._task = drawn.add_task("", total=total) if drawn else None

    def __call__(self, case: Case, done: int, of: int) -> None:
        if self._drawn:
            self._drawn.update(self._task, advance=1, description=f"{case.test.name} {done}/{of}")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take it away while something else is written on the terminal."""
        if self._drawn:
            self._drawn.stop()
        try:
            yield
        finally:
            if self._drawn and not self._drawn.finished:
                self._drawn.start()


@contextmanager
def progress(cases: Sequence[Case], method: Method, *, shown: bool) -> Iterator[Ticker]:
    if not shown or not screen.is_terminal(sys.stderr):
        yield Ticker(None, 0)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        yield Ticker(drawn, len(cases) * method.repetitions)
