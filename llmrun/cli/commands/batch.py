"""`llmrun batch MODEL FILE -o OUT`: every row of a file is a prompt, every row of another its answer."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any

from llmrun import __version__
from llmrun.chat.answer_options import AnswerOptions
from llmrun.cli.answering.answer_options import AnswerShape, answer_options
from llmrun.cli.framework import options
from llmrun.cli.framework.command import Invocation, command
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.loading.tuned import TuningArguments
from llmrun.cli.terminal import screen
from llmrun.errors import RowsFailed, UsageError
from llmrun.options.defaults import COMFORTABLE_CTX
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig
from llmrun.options.spec import TEXT, options_of

if TYPE_CHECKING:
    from llmrun.batch.cluster import Cluster
    from llmrun.batch.job import Job, Tally
    from llmrun.batch.rows import Row
    from llmrun.batch.width import Width
    from llmrun.engine.interface import Engine
    from llmrun.wire.request import Request

_MOST_BYTES = 1 << 32
"""Of a file of rows."""


@command(model_of=lambda typed: str(typed["model"]))
def batch(
    model: options.ModelName,
    file: Annotated[Path, Argument("FILE", "JSON lines in OpenAI's batch form, plain lines, or a .csv; -: stdin.")],
    output: Annotated[
        Path | None,
        Option("-o", "--output", metavar="FILE", help="Write results there; one that is there is gone on with."),
    ] = None,
    template: Annotated[
        str | None,
        Option(
            "--template",
            metavar="NAME|FILE|TEXT",
            help="A prompt with {fields}: {input} is a plain line; of a .csv, each column is a field.",
            panel=TEXT,
        ),
    ] = None,
    parallel: Annotated[
        int | None, options.parallel("Answers made side by side; auto: as many as make it faster here, by measurement.")
    ] = None,
    cluster: Annotated[
        str | None,
        Option("--cluster", metavar="TCP://HOST:PORT", help="Spread the rows over the members of this Dask cluster."),
    ] = None,
    field: Annotated[
        list[str] | None,
        Option("--field", metavar="NAME=VALUE", help="A field that is the same in every row.", panel=TEXT),
    ] = None,
    system: options.System = None,
    raw: options.Raw = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    *,
    answering: AnswerOptions,
    shape: AnswerShape,
    sampling: SamplingConfig,
    load: LoadConfig,
    tuning: TuningArguments,
    invocation: Invocation,
) -> None:
    """Answer every row of a file.

    A result is a line of JSON in OpenAI's batch form, written as soon as it is there: the same command, after whatever
    death, goes on where it was. A row that can't be read or held is an error by the number of its line, and the others
    are answered; the exit code is then 14.
    """
    from llmrun.batch import rows
    from llmrun.batch.job import Job
    from llmrun.batch.results import Results
    from llmrun.batch.width import chosen
    from llmrun.cli.answering import prompt
    from llmrun.cli.answering.single_answer import about_tokens, asked_of, expected_tokens
    from llmrun.cli.loading import load_model, recommended
    from llmrun.cli.terminal import progress
    from llmrun.gguf.rules import overridden
    from llmrun.tuning.dials import MANY
    from llmrun.wire import openai
    from llmrun.wire.request import Request

    if output is not None and str(output) == "-":
        output = None
    if as_json and output is None:
        raise UsageError("--json tells what was done on standard output, where the results are", hint="-o FILE")
    answers = replace(answer_options(answering, shape), weighs=True)
    data, name = _read(file)
    form = rows.form_of(data, name)
    if form == "jsonl":
        for option, value in (("--template", template), ("--field", field), ("--raw", raw or None)):
            if value is not None:
                raise UsageError(f"{option} is for plain lines and tables: JSON lines say all of it")
    if form == "csv" and template is None:
        raise UsageError(
            "a table needs a template that says what is asked of each row", hint="--template 'Translate: {text}'"
        )
    source = prompt.open_template(template) if template is not None else "{input}"
    constants = prompt.parse_fields(field or [])
    lines = rows.lines_of(data, form, name)
    if not lines:
        raise UsageError(f"{name} has no rows")
    if form == "csv" and lines[0].cells is not None:
        _check_columns(source, _fields_of(lines[0].cells), constants)
    with ExitStack() as stack:
        found = load_model.found(model, quiet=quiet)
        header = overridden(found.header, load.override_kv)
        sampling, notes = recommended.sampling_of(invocation.given(model), header)
        options_said = repr((found.name, source, sorted(constants.items()), system, raw, sampling, answers))
        results = stack.enter_context(Results(output)) if output is not None else None
        if results is not None:
            results.check(line.id(options_said) for line in lines)
        asked = partial(asked_of, found, system=system, raw=raw, template=answers.chat_template)

        def ask(said: str | Mapping[str, str]) -> Request:
            text = said if isinstance(said, str) else ""
            cells = {} if isinstance(said, str) else _fields_of(said)
            parts = {**dict.fromkeys(prompt.BUILT_IN, ""), "input": text, "prompt": text}
            made = asked(prompt.filled(source, parts, {**_used(source, cells), **constants}))
            return Request(made, sampling, answers, isinstance(made, list))

        def hold(body: Any, url: str) -> Request:
            held = openai.request_of(body, url, sampling, answers)
            return replace(held, asked=_with_system(held.asked, system))

        read = [*rows.Reading(form, ask, hold, options_said).rows(lines)]
        done = results.done if results is not None else {}
        left = [row for row in read if row.id not in done]
        wanted = [row.request for row in left if row.request is not None]
        n_prompt = max((about_tokens(each.asked) for each in wanted), default=0)
        lengths = [each.sampling.max_tokens for each in wanted]
        most = -1 if -1 in lengths else max(lengths, default=0)
        n_seq = max(1, min(parallel or MANY, len(wanted)))
        asked_load = load
        if cluster is None:
            load, _ = tuning.settled(model, found, load, invocation.given, n_prompt, n_seq=n_seq, quiet=quiet)
        # An answer without a bound begins with some room, and gets more while it grows.
        room = load.n_ctx or n_prompt + (most if most >= 0 else COMFORTABLE_CTX // 8)

        told: set[str] = set()

        def tell(notes: Sequence[str]) -> None:
            for note in () if quiet else [note for note in notes if note not in told]:
                screen.note(note)
            told.update(notes)

        def opened() -> Engine:
            expected = (room, room) if parallel else expected_tokens(n_prompt, most)
            n_seq = min(parallel or 1, max(1, len(wanted)))
            engine = load_model.loaded(
                model, found, load, None, *expected, n_seq=n_seq, keeps_prefixes=tuning.prompt_cache, quiet=quiet
            )
            tell(engine.notes)
            return engine

        def width(engine: Engine) -> Width:
            return chosen(engine, room, parallel, len(wanted))

        def spread() -> Cluster:
            from llmrun.batch.cluster import Cluster
            from llmrun.batch.member import Work, digests

            given = frozenset(each.field for each in options_of(LoadConfig) if each.key in invocation.given(model))
            work = Work(
                __version__,
                model,
                digests(found),
                asked_load,
                given,
                room,
                n_prompt,
                len(wanted),
                parallel,
                tuning.tune,
            )
            return Cluster(str(cluster), work, on_note=screen.note)

        tell(notes)
        job: Job | Cluster = Job(opened, found.name, width=width) if cluster is None else spread()
        stack.callback(job.close)
        job.tally.n_errors, job.tally.n_answered = sum(done.values()), len(done) - sum(done.values())
        if done and not quiet:
            screen.note(f"{len(done)} of {len(read)} rows have a result already")
        shown = progress.CountBar(len(left), shown=not quiet and output is not None)
        stack.callback(shown.stop)
        shown.start()
        try:
            job.run(left, results or _Stdout(), lambda tally: shown.advance(_speed(tally)))
        except KeyboardInterrupt:
            shown.stop()
            if results is not None and not quiet:
                screen.note(f"{len(results.done)} of {len(read)} rows have a result; the same command goes on")
            raise
        shown.stop()
        tell(job.notes)
        job.flush()
        _tell(job, read, found.name, as_json=as_json, quiet=quiet)


def _read(file: Path) -> tuple[bytes, str]:
    from llmrun.cli.terminal import files

    if str(file) == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed", hint="llmrun batch MODEL FILE")
        return sys.stdin.buffer.read(), "standard input"
    return files.read_bytes("FILE", str(file), most=_MOST_BYTES), str(file)


def _fields_of(cells: Mapping[str, str]) -> dict[str, str]:
    """Columns as fields of a template are called: "First Name" is {first_name}."""
    return {name.strip().lower().replace(" ", "_"): value for name, value in cells.items()}


def _check_columns(template: str, columns: Mapping[str, str], constants: Mapping[str, str]) -> None:
    """Raises `UsageError` for a field of the template that no column and no constant is."""
    from llmrun.cli.answering.prompt import BUILT_IN

    missing = {*_names_of(template)} - columns.keys() - constants.keys() - set(BUILT_IN)
    if missing:
        there = ", ".join(f"{{{name}}}" for name in [*columns][:10])
        raise UsageError(f"--template: no column is {{{min(missing)}}}; there are {there}", hint="--field NAME=VALUE")


def _names_of(template: str) -> list[str]:
    try:
        return [name for _, name, _, _ in Formatter().parse(template) if name]
    except ValueError:
        return []


def _used(template: str, cells: Mapping[str, str]) -> dict[str, str]:
    """A table may have more columns than are asked about."""
    names = _names_of(template)
    return {name: value for name, value in cells.items() if name in names}


def _with_system(asked: str | list[dict[str, str]], system: str | None) -> str | list[dict[str, str]]:
    """With the system prompt of all rows, where a row has none of its own."""
    if system is None or isinstance(asked, str) or asked[0]["role"] == "system":
        return asked
    return [{"role": "system", "content": system}, *asked]


def _speed(tally: Tally) -> str:
    from llmrun.units import rate

    return rate(tally.tokens_per_s)


def _tell(job: Job | Cluster, read: Sequence[Row], model: str, *, as_json: bool, quiet: bool) -> None:
    """The summary; raises `RowsFailed` where there are errors."""
    from llmrun.units import duration, rate

    tally, width = job.tally, job.width
    members: dict[str, int] = getattr(job, "members", {})
    if as_json:
        screen.out_json(
            {
                "model": model,
                "rows": len(read),
                "answered": tally.n_answered,
                "errors": tally.n_errors,
                "prompt_tokens": tally.n_prompt,
                "cached_tokens": tally.n_cached,
                "completion_tokens": tally.n_generated,
                "parallel": width.n_seq if width else None,
                "parallel_tried": {str(n): rate for n, rate in width.tried.items()} if width else {},
                "members": members,
                "seconds": tally.seconds,
                "tokens_per_s": tally.tokens_per_s,
            }
        )
    if not quiet and (tally.n_prompt or not tally.n_errors):
        screen.note(
            f"{tally.n_answered} of {len(read)} rows answered · prompts {tally.n_prompt:,} tokens,"
            f" {tally.n_cached:,} of them shared · {tally.n_generated:,} tokens {rate(tally.tokens_per_s)}"
            f" · {duration(tally.seconds)}{f', {width.n_seq} side by side' if width and width.n_seq > 1 else ''}"
            f"{f', {len(members)} members' if members else ''}"
        )
    if tally.n_errors:
        raise RowsFailed(f"{tally.n_errors} of {len(read)} rows are errors")


class _Stdout:
    def add(self, result: dict[str, Any]) -> None:
        from llmrun import codec

        screen.out(codec.encode(result).decode() + "\n")
