"""Rows as SQL."""

from __future__ import annotations

from collections.abc import Sequence

from llmrun.bench.export import llama_bench
from llmrun.bench.record import Record, Row


class SqlWriter:
    """For sqlite3 and its kind. The table is not llama-bench's, which has fewer columns; those of both are the same."""

    TABLE = "llmrun_bench"

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        self._record = record
        columns = ",\n".join(f"  {name} {_sql_type(name)}" for name in llama_bench.field_names())
        return f"CREATE TABLE IF NOT EXISTS {self.TABLE} (\n{columns}\n);\n\n"

    def row(self, row: Row) -> str:
        fields = llama_bench.fields_of(self._record, row)
        names, values = ", ".join(fields), ", ".join(map(_sql_value, fields.values()))
        return f"INSERT INTO {self.TABLE} ({names}) VALUES ({values});\n"

    def end(self, record: Record) -> str:
        return ""


def _sql_type(name: str) -> str:
    return "TEXT" if name in llama_bench.TEXT_FIELDS else "REAL" if name in llama_bench.REAL_FIELDS else "INTEGER"


def _sql_value(value: llama_bench.Value) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + value.replace("'", "''").replace("\0", "") + "'"
    return str(int(value)) if isinstance(value, bool) else repr(value)
