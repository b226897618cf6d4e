"""A record in the formats that people and programs read: a table, Markdown, CSV, JSON, JSON lines, SQL.

A writer is pure: it returns the text that comes next, and its caller puts it somewhere.

    writer.begin(record, planned)  →  titles      the rows that will come, without samples, decide on the columns
    writer.row(row)                →  one row, as soon as it was measured
    writer.end(record)             →  what closes the document
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, get_args

from llmrun.bench.export.csv import CsvWriter
from llmrun.bench.export.json import JsonlWriter, JsonWriter
from llmrun.bench.export.markdown import MarkdownWriter
from llmrun.bench.export.sql import SqlWriter
from llmrun.bench.export.table import TableWriter
from llmrun.bench.record import Record, Row
from llmrun.errors import UsageError

Format = Literal["table", "md", "csv", "json", "jsonl", "sql"]
STREAMED: frozenset[Format] = frozenset({"table", "md", "csv", "jsonl"})
"""Those of which the beginning can be read without the end."""


_ALSO: dict[str, Format] = {"markdown": "md", "txt": "table"}


def parse_format(text: str, field: str = "output_format") -> Format:
    """A format by its name or as the suffix of a file has it. Raises `UsageError` about this field."""
    for format in get_args(Format):
        if _ALSO.get(text, text) == format:
            return format  # type: ignore[no-any-return]
    raise UsageError(f"'{text[:40]}' is none of {', '.join(get_args(Format))}", field=field, value=text)


class Writer(Protocol):
    """One format. `begin` once, `row` for each, `end` once; each returns the text to put out next."""

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        """`planned`: a row for each that will come, with its test and `asked_settings`.

        `energy`: joules will be measured.
        """
        ...

    def row(self, row: Row) -> str: ...

    def end(self, record: Record) -> str: ...


def writer(format: Format) -> Writer:
    kinds: dict[Format, Callable[[], Writer]] = {
        "table": TableWriter,
        "md": MarkdownWriter,
        "csv": CsvWriter,
        "json": JsonWriter,
        "jsonl": JsonlWriter,
        "sql": SqlWriter,
    }
    return kinds[format]()


def export(record: Record, format: Format) -> str:
    """A whole record at once."""
    made = writer(format)
    energy = any(row.energy for row in record.rows)
    rows = [made.begin(record, record.rows, energy=energy), *map(made.row, record.rows)]
    return "".join([*rows, made.end(record)])
