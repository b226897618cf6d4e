"""`llmrun bench history`: the benches that were run on this machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

from llmrun.cli.framework import options
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.terminal import screen, tables
from llmrun.units import UNKNOWN, rate

if TYPE_CHECKING:
    from llmrun.bench.journal import StoredBench
    from llmrun.bench.record import Record

SHOWN_TESTS = 3
"""Headline numbers in the list; a sweep has hundreds of rows."""


def list_(as_json: options.Json = False) -> None:
    """Show the benches of this machine, the oldest first."""
    from llmrun.bench import journal

    found = journal.stored()
    if as_json:
        screen.out_json([_summary(each) for each in found])
        return
    tables.show(("ID", "WHEN (UTC)", "MODEL", ">ROWS", "RESULTS…"), map(_line, found))
    if not found:
        screen.note("no bench was run yet")


def show(
    id: Annotated[str, Argument("ID", "An id, how one begins, or 'last'.")],
    format: Annotated[
        str, Option("-o", "--output-format", metavar="FORMAT", help="table, md, csv, json, jsonl or sql.")
    ] = "table",
    as_json: options.Json = False,
) -> None:
    """Show one bench again; with --json its whole record."""
    from llmrun.bench import journal
    from llmrun.bench.export.formats import export, parse_format
    from llmrun.bench.record import to_document

    chosen = parse_format(format)
    record = journal.read_file(journal.find(id))
    if as_json:
        screen.out_json(to_document(record))
        return
    screen.out(export(record, chosen))
    if chosen == "table" and screen.is_terminal(sys.stdout):
        _show_samples(record)
    if record.ended is None:
        n, what = (len(record.loads), "loads") if record.server else (len(record.rows), "rows")
        screen.note(f"{record.id} was cut short: {n} {what} were finished")


def rm(ids: Annotated[list[str], Argument("ID", "Ids, or how they begin.")]) -> None:
    """Remove benches."""
    from llmrun.bench import journal

    for path in [journal.find(each) for each in ids]:  # all of them exist, or none is removed
        journal.remove(path)
        screen.note(f"removed {path.stem}")


def path(id: Annotated[str | None, Argument("[ID]", "Of one bench.")] = None) -> None:
    """Print where the records are, or one of them."""
    from llmrun.bench import journal

    screen.out(f"{journal.folder() if id is None else journal.find(id)}\n")


def _show_samples(record: Record) -> None:
    """What the mean hides: a drift, one slow sample. For eyes only, so that a pipe does not get it."""
    from llmrun.bench.plot.text import sparkline

    several = [(row.test.name, row.samples_tps) for row in record.rows if len(row.samples_tps) > 2]
    if several:
        screen.out("\n")
    rows = [(name, sparkline(tps), f"{rate(min(tps))} to {rate(max(tps))}") for name, tps in several]
    tables.show(("TEST", "SAMPLES", "T/S"), rows)


def _line(stored: StoredBench) -> tuple[str, ...]:
    record = stored.record
    if record is None:
        return stored.id, UNKNOWN, UNKNOWN, UNKNOWN, f"can't be read: {stored.problem}"
    rows = [(row.test.name, row.median_tps) for row in record.rows]
    rows += [(row.test.name, row.tokens_per_s) for row in record.loads]
    said = [f"{name} {rate(tps)}" for name, tps in rows[:SHOWN_TESTS]]
    said += [f"and {len(rows) - SHOWN_TESTS} more"] if len(rows) > SHOWN_TESTS else []
    said += ["cut short"] if record.ended is None else []
    when = record.created.replace("T", " ").removesuffix("Z")
    return record.id, when, _what(record), str(len(rows)), ", ".join(said)


def _what(record: Record) -> str:
    """The model; of a server who serves it, where it is known."""
    software = record.server.software if record.server else None
    return f"{record.model.name}, by {software}" if software else record.model.name


def _summary(stored: StoredBench) -> dict[str, Any]:
    record = stored.record
    if record is None:
        return {"id": stored.id, "path": str(stored.path), "problem": stored.problem}
    return {
        "id": record.id,
        "path": str(stored.path),
        "created": record.created,
        "ended": record.ended,
        "model": record.model.name,
        "rows": [
            {"test": row.test.name, "settings": dict(row.settings), "median_tps": row.median_tps, "error": row.error}
            for row in record.rows
        ],
        "server": record.server.software if record.server else None,
        "loads": [
            {"test": row.test.name_in_full, "tokens_per_s": row.tokens_per_s, "error": row.error}
            for row in record.loads
        ],
    }
