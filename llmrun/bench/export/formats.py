"""A record in the formats that people and programs read: a table, Markdown, CSV, JSON, JSON lines, SQL.

A writer is pure: it returns the text that comes next, and its caller puts it somewhere.

    writer.begin(record, planned)  →  titles      the rows that will come, without samples, decide on the columns
    writer.row(row)                →  one row, as soon as it was measured
    writer.end(record)             →  what closes the document
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from llmrun.bench.export import llama_bench, loads
from llmrun.bench.export.loads import LoadMarkdown, LoadTable
from llmrun.bench.export.markdown import MarkdownWriter
from llmrun.bench.export.rows import CsvWriter, JsonlWriter, JsonWriter, SqlWriter, Writer
from llmrun.bench.export.table import TableWriter
from llmrun.bench.load_row import LoadRow
from llmrun.bench.record import Record, Row
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


_WRITERS: dict[Format, Callable[[], Writer[Row]]] = {
    "table": TableWriter,
    "md": MarkdownWriter,
    "csv": lambda: CsvWriter(llama_bench),
    "json": lambda: JsonWriter(llama_bench),
    "jsonl": lambda: JsonlWriter(llama_bench),
    "sql": lambda: SqlWriter(llama_bench),
}
_OF_LOADS: dict[Format, Callable[[], Writer[LoadRow]]] = {
    "table": LoadTable,
    "md": LoadMarkdown,
    "csv": lambda: CsvWriter(loads),
    "json": lambda: JsonWriter(loads),
    "jsonl": lambda: JsonlWriter(loads),
    "sql": lambda: SqlWriter(loads),
}


def writer(format: Format) -> Writer[Row]:
    return _WRITERS[format]()


def writer_of_loads(format: Format) -> Writer[LoadRow]:
    return _OF_LOADS[format]()


def export(record: Record, format: Format) -> str:
    """A whole record at once."""
    if record.server is not None:
        of_loads = writer_of_loads(format)
        rows = [of_loads.begin(record, record.loads), *map(of_loads.row, record.loads)]
        return "".join([*rows, of_loads.end(record)])
    made = writer(format)
    energy = any(row.energy for row in record.rows)
    rows = [made.begin(record, record.rows, energy=energy), *map(made.row, record.rows)]
    return "".join([*rows, made.end(record)])
