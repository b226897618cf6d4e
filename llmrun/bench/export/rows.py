"""What a writer is, and those for programs: rows as CSV, JSON, JSON lines and SQL."""

from __future__ import annotations

import json
from collections.abc import Sequence

from llmrun.bench.export import llama_bench
from llmrun.bench.record import Record, Row, to_document


class Writer:
    """One format. `begin` once, `row` for each, `end` once; each returns the text to put out next."""

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        """`planned`: a row for each that will come, with its test and `asked_settings`.

        `energy`: joules will be measured.
        """
        self._record = record
        return ""

    def row(self, row: Row) -> str:
        raise NotImplementedError

    def end(self, record: Record) -> str:
        return ""


class CsvWriter(Writer):
    """All values quoted, as llama-bench does; what is unknown is empty and not quoted."""

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        return super().begin(record, planned) + ",".join(llama_bench.field_names()) + "\n"

    def row(self, row: Row) -> str:
        return ",".join(_cell(*each) for each in llama_bench.fields_of(self._record, row).items()) + "\n"


def _cell(name: str, value: llama_bench.Value) -> str:
    return "" if value is None else '"' + llama_bench.plain(name, value).replace('"', '""') + '"'


class JsonlWriter(Writer):
    """One object a line: llama-bench's fields and ours, the row's own `settings`, `samples_ns` and `samples_ts`."""

    def row(self, row: Row) -> str:
        return self._object(row) + "\n"

    def _object(self, row: Row) -> str:
        document = {
            **to_document(llama_bench.fields_of(self._record, row)),
            "settings": to_document(row.settings),
            "samples_ns": llama_bench.samples_ns(row),
            "samples_ts": list(row.samples_tps),
        }
        return json.dumps(document, ensure_ascii=False)


class JsonWriter(JsonlWriter):
    """The same objects in one array."""

    _between = ""

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        return super().begin(record, planned) + "[\n"

    def row(self, row: Row) -> str:
        between, self._between = self._between, ",\n"
        return f"{between}  {self._object(row)}"

    def end(self, record: Record) -> str:
        return "\n]\n"


class SqlWriter(Writer):
    """For sqlite3 and its kind. The table is not llama-bench's, which has fewer columns; those of both are the same."""

    TABLE = "llmrun_bench"

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        columns = ",\n".join(f"  {name} {_sql_type(name)}" for name in llama_bench.field_names())
        return super().begin(record, planned) + f"CREATE TABLE IF NOT EXISTS {self.TABLE} (\n{columns}\n);\n\n"

    def row(self, row: Row) -> str:
        fields = llama_bench.fields_of(self._record, row)
        names, values = ", ".join(fields), ", ".join(map(_sql_value, fields.values()))
        return f"INSERT INTO {self.TABLE} ({names}) VALUES ({values});\n"


def _sql_type(name: str) -> str:
    return "TEXT" if name in llama_bench.TEXT_FIELDS else "REAL" if name in llama_bench.REAL_FIELDS else "INTEGER"


def _sql_value(value: llama_bench.Value) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + value.replace("'", "''").replace("\0", "") + "'"
    return str(int(value)) if isinstance(value, bool) else repr(value)
