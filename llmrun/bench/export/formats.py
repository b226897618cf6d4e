"""A record in the formats that people and programs read: a table, Markdown, CSV, JSON, JSON lines, SQL.

A writer is pure: it returns the text that comes next, and its caller puts it somewhere.

    writer.begin(record, planned)  →  titles      the rows that will come, without samples, decide on the columns
    writer.row(row)                →  one row, as soon as it was measured
    writer.end(record)             →  what closes the document
"""

from __future__ import annotations

from typing import Literal, get_args

from llmrun.bench.export.markdown import MarkdownWriter
from llmrun.bench.export.rows import CsvWriter, JsonlWriter, JsonWriter, SqlWriter, Writer
from llmrun.bench.export.table import TableWriter
from llmrun.bench.record import Record
from llmrun.errors import UsageError

Format = Literal["table", "md", "csv", "json", "jsonl", "sql"]
STREAMED: frozenset[Format] = frozenset({"table", "md", "csv", "jsonl"})
"""Those of which the beginning can be read without the end."""


_ALSO = {"markdown": "md", "txt": "table"}


def parse_format(text: str, field: str = "output_format") -> Format:
    """A format by its name or as the suffix of a file has it. Raises `UsageError` about this field."""
    for format in get_args(Format):
        if _ALSO.get(text, text) == format:
            return format  # type: ignore[no-any-return]
    raise UsageError(f"'{text[:40]}' is none of {', '.join(get_args(Format))}", field=field, value=text)


_WRITERS: dict[Format, type[Writer]] = {
    "table": TableWriter,
    "md": MarkdownWriter,
    "csv": CsvWriter,
    "json": JsonWriter,
    "jsonl": JsonlWriter,
    "sql": SqlWriter,
}


def writer(format: Format) -> Writer:
    return _WRITERS[format]()


def export(record: Record, format: Format) -> str:
    """A whole record at once."""
    made = writer(format)
    energy = any(row.energy for row in record.rows)
    rows = [made.begin(record, record.rows, energy=energy), *map(made.row, record.rows)]
    return "".join([*rows, made.end(record)])
