"""What a writer is, and those for programs: rows as CSV, JSON, JSON lines and SQL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from llmrun.bench.export.llama_bench import Value
from llmrun.bench.record import Record, to_document

R = TypeVar("R")
_R = TypeVar("_R", contravariant=True)


class Fields(Protocol[_R]):
    """How rows of a kind are flat: `llama_bench` those of models, `loads` those of servers."""

    TABLE: str

    def fields_of(self, record: Record, row: _R, /) -> dict[str, Value]: ...

    def field_names(self) -> list[str]: ...

    def samples_of(self, row: _R, /) -> dict[str, object]: ...

    def sql_type(self, name: str, /) -> str: ...

    def plain(self, name: str, value: Value, /) -> str: ...


class Writer(Generic[R]):
    """One format. `begin` once, `row` for each, `end` once; each returns the text to put out next."""

    def begin(self, record: Record, planned: Sequence[R], *, energy: bool = False) -> str:
        """`planned`: a row for each that will come, with its test and `asked_settings`.

        `energy`: joules will be measured.
        """
        self._record = record
        return ""

    def row(self, row: R) -> str:
        raise NotImplementedError

    def end(self, record: Record) -> str:
        return ""


class _Flat(Writer[R]):
    def __init__(self, fields: Fields[R]) -> None:
        self._fields = fields


class CsvWriter(_Flat[R]):
    """All values quoted, as llama-bench does; what is unknown is empty and not quoted."""

    def begin(self, record: Record, planned: Sequence[R], *, energy: bool = False) -> str:
        return super().begin(record, planned) + ",".join(self._fields.field_names()) + "\n"

    def row(self, row: R) -> str:
        return ",".join(self._cell(*each) for each in self._fields.fields_of(self._record, row).items()) + "\n"

    def _cell(self, name: str, value: Value) -> str:
        return "" if value is None else '"' + self._fields.plain(name, value).replace('"', '""') + '"'


class JsonlWriter(_Flat[R]):
    """One object a line: the fields, and the samples."""

    def row(self, row: R) -> str:
        return self._object(row) + "\n"

    def _object(self, row: R) -> str:
        fields = to_document(self._fields.fields_of(self._record, row))
        return json.dumps({**fields, **self._fields.samples_of(row)}, ensure_ascii=False)


class JsonWriter(JsonlWriter[R]):
    """The same objects in one array."""

    _between = ""

    def begin(self, record: Record, planned: Sequence[R], *, energy: bool = False) -> str:
        return super().begin(record, planned) + "[\n"

    def row(self, row: R) -> str:
        between, self._between = self._between, ",\n"
        return f"{between}  {self._object(row)}"

    def end(self, record: Record) -> str:
        return "\n]\n"


class SqlWriter(_Flat[R]):
    """For sqlite3 and its kind. The table is not llama-bench's, which has fewer columns; those of both are the same."""

    def begin(self, record: Record, planned: Sequence[R], *, energy: bool = False) -> str:
        columns = ",\n".join(f"  {name} {self._fields.sql_type(name)}" for name in self._fields.field_names())
        return super().begin(record, planned) + f"CREATE TABLE IF NOT EXISTS {self._fields.TABLE} (\n{columns}\n);\n\n"

    def row(self, row: R) -> str:
        fields = self._fields.fields_of(self._record, row)
        names, values = ", ".join(fields), ", ".join(map(_sql_value, fields.values()))
        return f"INSERT INTO {self._fields.TABLE} ({names}) VALUES ({values});\n"


def _sql_value(value: Value) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + value.replace("'", "''").replace("\0", "") + "'"
    return str(int(value)) if isinstance(value, bool) else repr(value)
