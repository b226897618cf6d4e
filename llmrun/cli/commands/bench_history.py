"""`llmrun bench history`: the benches that were run on this machine.

class BenchCommand(WithHistory, ModelCommand): ...
app.command("bench", cls=BenchCommand)(bench)
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from llmrun.cli.framework import options
from llmrun.cli.framework.help import Command, Group
from llmrun.cli.terminal import screen, tables
from llmrun.units import UNKNOWN, rate

if TYPE_CHECKING:
    from llmrun.bench.journal import Kept
    from llmrun.bench.record import Record

app = typer.Typer(cls=Group, invoke_without_command=True, rich_markup_mode=None)

Id = Annotated[str, typer.Argument(metavar="ID", help="An id, how one begins, or 'last'.", show_default=False)]
Ids = Annotated[list[str], typer.Argument(metavar="ID", help="Ids, or how they begin.", show_default=False)]
As = Annotated[str, typer.Option("-o", "--output-format", metavar="FORMAT", help="table, md, csv, json, jsonl or sql.")]
SHOWN_TESTS = 3
"""Headline numbers in the list; a sweep has hundreds of rows."""


class WithHistory(TyperCommand):
    """Of `llmrun bench`: the word "history" in the place of a model leads here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args[:1] == ["history"] and not ctx.resilient_parsing:
            group = typer.main.get_command(app)
            # Not below `ctx`, whose own arguments the help would show as a part of the name.
            with group.make_context(f"{ctx.info_name} history", args[1:], parent=ctx.parent) as inner:
                group.invoke(inner)
            ctx.exit()
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


@app.callback()
def history(ctx: typer.Context, as_json: options.Json = False) -> None:
    """Show the benches of this machine, the oldest first."""
    if ctx.invoked_subcommand is None:
        list_(as_json)


@app.command("list", cls=Command)
def list_(as_json: options.Json = False) -> None:
    """Show the benches of this machine, the oldest first."""
    from llmrun.bench import journal

    found = journal.kept()
    if as_json:
        screen.out_json([_summary(each) for each in found])
        return
    columns = [tables.Column(title) for title in ("ID", "WHEN (UTC)", "MODEL")]
    columns += [tables.Column("ROWS", right=True), tables.Column("RESULTS", flexible=True)]
    tables.show(columns, [_line(each) for each in found])
    if not found:
        screen.note("no bench was run yet")


@app.command("show", cls=Command)
def show(id: Id, format: As = "table", as_json: options.Json = False) -> None:
    """Show one bench again; with --json its whole record."""
    from llmrun.bench import exports, journal
    from llmrun.bench.record import to_document

    chosen = parse_format(format)
    record = journal.read_file(journal.find(id))
    if as_json:
        screen.out_json(to_document(record))
        return
    screen.out(exports.export(record, chosen))
    if chosen == "table" and screen.is_terminal(sys.stdout):
        _show_samples(record)
    if record.ended is None:
        screen.note(f"{record.id} was cut short: {len(record.rows)} rows were finished")


@app.command("rm", cls=Command)
def rm(ids: Ids) -> None:
    """Remove benches."""
    from llmrun.bench import journal

    for path in [journal.find(each) for each in ids]:  # all of them exist, or none is removed
        journal.remove(path)
        screen.note(f"removed {path.stem}")


@app.command("path", cls=Command)
def path(id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Of one bench.")] = None) -> None:
    """Print where the records are, or one of them."""
    from llmrun.bench import journal

    screen.out(f"{journal.folder() if id is None else journal.find(id)}\n")


def _show_samples(record: Record) -> None:
    """What the mean hides: a drift, one slow sample. For eyes only, so that a pipe does not get it."""
    from llmrun.bench.plot.text import sparkline

    columns = [tables.Column(title) for title in ("TEST", "SAMPLES", "T/S")]
    several = [(row.test.name, row.samples_tps) for row in record.rows if len(row.samples_tps) > 2]
    if several:
        screen.out("\n")
    tables.show(columns, [(name, sparkline(tps), f"{rate(min(tps))} to {rate(max(tps))}") for name, tps in several])


def parse_format(text: str) -> Any:
    """One of `exports.Format`. Raises `UsageError`."""
    from typing import get_args

    from llmrun.bench.exports import Format
    from llmrun.errors import UsageError

    if text not in get_args(Format):
        raise UsageError(f"-o: '{text}' is none of {', '.join(get_args(Format))}", hint="-o md")
    return text


def _line(kept: Kept) -> tuple[str, ...]:
    record = kept.record
    if record is None:
        return kept.id, UNKNOWN, UNKNOWN, UNKNOWN, f"can't be read: {kept.problem}"
    said = [f"{row.test.name} {rate(row.median_tps)}" for row in record.rows[:SHOWN_TESTS]]
    said += [f"and {len(record.rows) - SHOWN_TESTS} more"] if len(record.rows) > SHOWN_TESTS else []
    said += ["cut short"] if record.ended is None else []
    when = record.created.replace("T", " ").removesuffix("Z")
    return record.id, when, record.model.name, str(len(record.rows)), ", ".join(said)


def _summary(kept: Kept) -> dict[str, Any]:
    record = kept.record
    if record is None:
        return {"id": kept.id, "path": str(kept.path), "problem": kept.problem}
    return {
        "id": record.id,
        "path": str(kept.path),
        "created": record.created,
        "ended": record.ended,
        "model": record.model.name,
        "rows": [
            {"test": row.test.name, "settings": dict(row.settings), "median_tps": row.median_tps, "error": row.error}
            for row in record.rows
        ],
    }
