"""`llmrun compare`: two benches side by side, and whether one of them is faster for sure."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from llmrun.cli.framework import options
from llmrun.cli.framework.bench_options import RECORD, one_config, tests_of
from llmrun.cli.framework.command import Invocation, command
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.loading import load_model
from llmrun.cli.terminal import screen, tables
from llmrun.cli.terminal.progress import CountBar
from llmrun.errors import Change, TooSlow, UsageError
from llmrun.units import UNKNOWN, duration, fixed, rate, significant

if TYPE_CHECKING:
    from llmrun.bench.compare import Comparison, Match, Result
    from llmrun.bench.sides import Side
    from llmrun.bench.spec import Test
    from llmrun.options.load import LoadConfig

Numbers = list[str] | None


def _sides_apart(words: list[str]) -> list[str]:
    """Of `--live`, A and B begin with a dash and are no options of this command."""
    if any(word.partition("=")[0] == "--live" for word in words) and "--" not in words:
        sides = [word for word in words if not word or (word.startswith("-") and " " in word)]
        return [*(word for word in words if word not in sides), "--", *sides]
    return words


@command(prepared=_sides_apart)
def compare(
    called: Invocation,
    a: Annotated[str, Argument("A", RECORD)],
    b: Annotated[str, Argument("B", "Another.")],
    fail_under: Annotated[
        float | None,
        Option(
            "--fail-under",
            metavar="RATIO",
            help="Exit with 12 if a test is slower than this ratio for sure: the whole interval of B/A is below it.",
        ),
    ] = None,
    live: Annotated[
        str | None,
        Option(
            "--live",
            metavar="MODEL",
            help="Run both now, in turn, with this model; A and B are options of `bench`: '-t 1' '-t 2'.",
        ),
    ] = None,
    n_prompt: Annotated[Numbers, Option("-p", "--n-prompt", metavar="N", help="With --live, as `bench`.")] = None,
    n_gen: Annotated[Numbers, Option("-n", "--n-gen", metavar="N", help="With --live, as `bench`.")] = None,
    depth: Annotated[Numbers, Option("-d", "--n-depth", metavar="N", help="With --live, as `bench`.")] = None,
    repetitions: Annotated[int, Option("-r", "--repetitions", help="With --live: pairs of samples.")] = 10,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare two benches: how much faster is B than A, and is that more than chance?

    B/A is the ratio of the speeds with its 95 % interval; above 1 B is faster. "same" is said where the interval holds
    1 and is narrow, "unclear" where it is wide: take more repetitions (-r 10). Rows belong together by test, and by
    each setting that was swept. Loads at servers (`llmrun bench serve`) are compared by how many are at once, or come
    in a second; "each" is tokens per second of one answer.

    --fail-under 0.95 is for CI: it fails when B reaches less than 95 % of A's speed beyond doubt, and does not when
    that might be chance. With fewer than four samples on a side nothing is beyond doubt: exit code 2.
    """
    if fail_under is not None and not 0 < fail_under < 100:
        raise UsageError(
            f"{fail_under} is not a ratio of two speeds",
            field="fail_under",
            value=fail_under,
            hint=Change({"fail_under": 0.95}),
        )
    from llmrun.bench import compare as comparing
    from llmrun.bench.sides import open_side

    if live is None:
        sides = open_side(a), open_side(b)
    else:
        bench = called.command("bench")
        configs = one_config(a, bench), one_config(b, bench)
        sides = _run_now(live, configs, (a, b), tests_of(n_prompt, n_gen, None, depth), repetitions, quiet=quiet)
    result = comparing.compare(*sides)
    if as_json:
        screen.out_json(as_document(result))
    else:
        _show(result)
    if fail_under is not None:
        judge(result, fail_under)


def _run_now(
    model: str,
    configs: tuple[LoadConfig, LoadConfig],
    names: tuple[str, str],
    tests: list[Test],
    repetitions: int,
    *,
    quiet: bool,
) -> tuple[Side, Side]:
    """Both settings in turn; kept as two benches that know of each other."""
    from llmrun.bench.observer import Observer
    from llmrun.bench.session import bench_interleaved
    from llmrun.bench.sides import side_of
    from llmrun.bench.spec import Case, MeasurementOptions

    bar = CountBar(len(tests) * repetitions, shown=not quiet)

    class OnScreen(Observer):
        def sampled(self, case: Case, done: int, of: int) -> None:
            bar.advance(f"{case.test.name} {done}/{of}")

    found = load_model.found(model, quiet=quiet)
    bar.start()
    try:
        a, b = bench_interleaved(
            found,
            *configs,
            tests,
            MeasurementOptions(repetitions),
            observers=[OnScreen()],
            command=("llmrun", *sys.argv[1:]),
        )
    finally:
        bar.stop()
    if not quiet:
        screen.note(f"kept as {a.id} and {b.id}")
    return side_of(a, names[0]), side_of(b, names[1])


def judge(result: Result, bound: float) -> None:
    """Raises `TooSlow` if any test is below the bound for sure, `UsageError` if too few samples were taken to tell."""
    below = [match for match in result.matches if match.comparison.is_below(bound)]
    if below:
        shown = ", ".join(f"{_name(match)} at {significant(match.comparison.ratio)}" for match in below)
        raise TooSlow(f"{len(below)} of {len(result.matches)} tests below {bound:g} of the speed: {shown}")
    known = {match.judged_with for match in result.matches if match.comparison.is_below(bound) is not None}
    unknown = [m for m in result.matches if m.comparison.is_below(bound) is None and m.judged_with not in known]
    if unknown:
        few = min(min(match.comparison.n_a, match.comparison.n_b) for match in unknown)
        names = ", ".join(map(_name, unknown))
        raise UsageError(f"{few} samples are too few to judge {names}", hint=Change({"repetitions": 5}))


def as_document(result: Result) -> dict[str, Any]:
    """The `--json` document: rates in tokens per second, times of loads in seconds; null is unknown."""
    return {
        "a": result.a.name,
        "b": result.b.name,
        "differences": {key: {"a": mine, "b": theirs} for key, (mine, theirs) in result.differences.items()},
        "tests": [
            {
                "test": match.test.name,
                "settings": dict(match.settings),
                **asdict(match.comparison),
                **(dict(zip(("median_a", "median_b"), match.times_s, strict=True)) if match.times_s else {}),
                "verdict": match.comparison.word,
            }
            for match in result.matches
        ],
        "warnings": {"a": list(result.a.warnings), "b": list(result.b.warnings)},
        "only_a": list(result.only_a),
        "only_b": list(result.only_b),
    }


def _show(result: Result) -> None:
    from llmrun.bench import compare as comparing

    differing = result.differences.items()
    if differing:
        tables.show(("DIFFERS", "A", "B…"), [(key, _value(mine), _value(theirs)) for key, (mine, theirs) in differing])
        screen.out("\n")
    swept = list(result.matches[0].settings)
    titles = ("TEST", *(f">{name.upper()}" for name in swept), ">A", ">B", ">B/A", "95 %", "B IS")
    tables.show(titles, [_row(match, swept) for match in result.matches])
    for side_name, names in (("A", result.only_a), ("B", result.only_b)):
        if names:
            screen.note(f"only in {side_name}: {', '.join(names)}")
    for side_name, side in (("A", result.a), ("B", result.b)):
        if side.warnings:
            screen.note(f"{side_name} has warnings: {', '.join(side.warnings)}")
    if any(match.comparison.low is None for match in result.matches):
        pairs = f"{comparing.MIN_PAIRS} pairs" if result.matches[0].comparison.paired else None
        screen.note(f"too few samples for an interval: it takes {pairs or f'{comparing.MIN_SAMPLES} on each side'}")


def _row(match: Match, swept: list[str]) -> tuple[str, ...]:
    found = match.comparison
    values = (_value(match.settings[name]) for name in swept)
    medians = map(duration, match.times_s) if match.times_s else map(rate, (found.median_a, found.median_b))
    return (match.test.name, *values, *medians, _ratio(found.ratio), _interval(found), found.word)


def _interval(found: Comparison) -> str:
    return UNKNOWN if found.low is None or found.high is None else f"{_ratio(found.low)} to {_ratio(found.high)}"


def _ratio(value: float) -> str:
    """Three decimals: differences of a few percent are what is looked for."""
    return fixed(value, 3)


def _value(value: object) -> str:
    return UNKNOWN if value is None else str(value)


def _name(match: Match) -> str:
    return " ".join([match.test.name, *(f"{key}={value}" for key, value in match.settings.items())])
