"""`llmrun compare`: two benches side by side, and whether one of them is faster for sure."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmrun.cli.framework import options
from llmrun.cli.framework.help import Command
from llmrun.cli.terminal import screen, tables
from llmrun.errors import TooSlow, UsageError
from llmrun.units import UNKNOWN, rate, significant

if TYPE_CHECKING:
    from llmrun.bench.compare import Comparison, Match, Result, Side
    from llmrun.bench.record import Test
    from llmrun.options.config import LoadConfig

BenchA = Annotated[
    str,
    typer.Argument(
        metavar="A",
        help="A record's file, an id of `llmrun bench history`, how one begins, 'last'; or llama-bench's JSON.",
        show_default=False,
    ),
]
BenchB = Annotated[str, typer.Argument(metavar="B", help="Another.", show_default=False)]
FailUnder = Annotated[
    float | None,
    typer.Option(
        "--fail-under",
        metavar="RATIO",
        help="Exit with 12 if a test is slower than this ratio for sure: the whole interval of B/A is below it.",
        show_default=False,
    ),
]


Live = Annotated[
    str | None,
    typer.Option(
        "--live",
        metavar="MODEL",
        help="Run both now, in turn, with this model; A and B are options of `bench`: '-t 1' '-t 2'.",
        show_default=False,
    ),
]
Numbers = list[str] | None


class CompareCommand(Command):
    """Of `--live`, A and B begin with a dash and are no options of this command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if any(arg.partition("=")[0] == "--live" for arg in args) and "--" not in args:
            sides = [arg for arg in args if not arg or (arg.startswith("-") and " " in arg)]
            args = [*(arg for arg in args if arg not in sides), "--", *sides]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


def compare(
    ctx: typer.Context,
    a: BenchA,
    b: BenchB,
    fail_under: FailUnder = None,
    live: Live = None,
    n_prompt: Annotated[Numbers, typer.Option("-p", "--n-prompt", metavar="N", help="With --live, as `bench`.")] = None,
    n_gen: Annotated[Numbers, typer.Option("-n", "--n-gen", metavar="N", help="With --live, as `bench`.")] = None,
    depth: Annotated[Numbers, typer.Option("-d", "--n-depth", metavar="N", help="With --live, as `bench`.")] = None,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", help="With --live: pairs of samples.")] = 10,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare two benches: how much faster is B than A, and is that more than chance?

    B/A is the ratio of the speeds with its 95 % interval; above 1 B is faster. "same" is said where the interval holds
    1 and is narrow, "unclear" where it is wide: take more repetitions (-r 10). Rows belong together by test, and by
    each setting that was swept.

    --fail-under 0.95 is for CI: it fails when B reaches less than 95 % of A's speed beyond doubt, and does not when
    that might be chance. With fewer than four samples on a side nothing is beyond doubt: exit code 2.
    """
    if fail_under is not None and not 0 < fail_under < 100:
        raise UsageError(f"--fail-under: {fail_under} is no ratio of two speeds", hint="--fail-under 0.95")
    from llmrun.bench import compare as comparing
    from llmrun.cli.commands.bench import one_case, tests_of

    if live is None:
        result = comparing.compare(comparing.open_side(a), comparing.open_side(b))
    else:
        tests = tests_of(n_prompt, n_gen, None, depth, None)
        command = ctx.find_root().command.commands["bench"]  # type: ignore[attr-defined]
        sides = (one_case(a, command), one_case(b, command))
        result = comparing.compare(*_run_now(live, sides, (a, b), tests, repetitions, quiet=quiet))
    if as_json:
        screen.out_json(as_document(result))
    else:
        _show(result)
    if fail_under is not None:
        judge(result, fail_under)


def _run_now(
    model: str, sides: tuple[LoadConfig, LoadConfig], names: tuple[str, str], tests: list[Test], n: int, *, quiet: bool
) -> tuple[Side, Side]:
    """Both settings in turn; kept as two benches that know of each other."""
    from llmrun.bench import compare as comparing
    from llmrun.bench import journal, run
    from llmrun.bench.record import Record
    from llmrun.cli.commands.bench import described, find, progress
    from llmrun.clock import utc

    found = find(model, quiet=quiet)
    method = run.Method(repetitions=n)
    cases = [run.Case(sides[0], test) for test in tests]
    records: list[Record] = []
    with progress(cases, method, shown=not quiet) as tick:
        rows = list(
            run.run_interleaved(
                found,
                *sides,
                tests,
                method,
                on_engine=lambda engine: records.append(described(found, engine, method)),
                on_tick=tick,
            )
        )
    records = [
        replace(record, rows=tuple(row[i] for row in rows), interleaved_with=records[1 - i].id, ended=utc())
        for i, record in enumerate(records)
    ]
    for record in records:
        with journal.Journal.of(record):
            pass
    if not quiet:
        screen.note(f"kept as {records[0].id} and {records[1].id}")
    made = [comparing.side_of(record, name) for record, name in zip(records, names, strict=True)]
    return made[0], made[1]


def judge(result: Result, bound: float) -> None:
    """Raises `TooSlow` if any test is below the bound for sure, `UsageError` if too few samples were taken to tell."""
    below = [match for match in result.matches if match.comparison.is_below(bound)]
    if below:
        shown = ", ".join(f"{_name(match)} at {significant(match.comparison.ratio)}" for match in below)
        raise TooSlow(f"{len(below)} of {len(result.matches)} tests below {bound:g} of the speed: {shown}")
    unknown = [match for match in result.matches if match.comparison.is_below(bound) is None]
    if unknown:
        few = min(min(match.comparison.n_a, match.comparison.n_b) for match in unknown)
        names = ", ".join(map(_name, unknown))
        raise UsageError(f"{few} samples are too few to judge {names}", hint="llmrun bench … -r 5")


def as_document(result: Result) -> dict[str, Any]:
    """The `--json` document: rates in tokens per second; null is unknown."""
    return {
        "a": result.a.name,
        "b": result.b.name,
        "differences": {key: {"a": mine, "b": theirs} for key, (mine, theirs) in result.differences.items()},
        "tests": [
            {
                "test": match.test.name,
                "settings": dict(match.settings),
                **asdict(match.comparison),
                "verdict": match.comparison.word,
            }
            for match in result.matches
        ],
        "warnings": {"a": list(result.a.caveats), "b": list(result.b.caveats)},
        "only_a": list(result.only_a),
        "only_b": list(result.only_b),
    }


def _show(result: Result) -> None:
    from llmrun.bench import compare as comparing

    differing = result.differences.items()
    if differing:
        titles = (tables.Column("DIFFERS"), tables.Column("A"), tables.Column("B", flexible=True))
        tables.show(titles, [(key, _value(mine), _value(theirs)) for key, (mine, theirs) in differing])
        screen.out("\n")
    swept = list(result.matches[0].settings)
    columns = (
        tables.Column("TEST"),
        *(tables.Column(name.upper(), right=True) for name in swept),
        tables.Column("A", right=True),
        tables.Column("B", right=True),
        tables.Column("B/A", right=True),
        tables.Column("95 %"),
        tables.Column("B IS"),
    )
    tables.show(columns, [_row(match, swept) for match in result.matches])
    for side_name, names in (("A", result.only_a), ("B", result.only_b)):
        if names:
            screen.note(f"only in {side_name}: {', '.join(names)}")
    for side_name, side in (("A", result.a), ("B", result.b)):
        if side.caveats:
            screen.note(f"{side_name} has warnings: {', '.join(side.caveats)}")
    if any(match.comparison.low is None for match in result.matches):
        pairs = f"{comparing.MIN_PAIRS} pairs" if result.matches[0].comparison.paired else None
        screen.note(f"too few samples for an interval: it takes {pairs or f'{comparing.MIN_SAMPLES} on each side'}")


def _row(match: Match, swept: list[str]) -> tuple[str, ...]:
    found = match.comparison
    values = (_value(match.settings[name]) for name in swept)
    medians = (rate(found.median_a), rate(found.median_b))
    return (match.test.name, *values, *medians, _ratio(found.ratio), _interval(found), found.word)


def _interval(found: Comparison) -> str:
    return UNKNOWN if found.low is None or found.high is None else f"{_ratio(found.low)} to {_ratio(found.high)}"


def _ratio(value: float) -> str:
    """Three decimals: differences of a few percent are what is looked for."""
    return f"{value:.3f}"


def _value(value: object) -> str:
    return UNKNOWN if value is None else str(value)


def _name(match: Match) -> str:
    return " ".join([match.test.name, *(f"{key}={value}" for key, value in match.settings.items())])
