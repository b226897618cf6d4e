"""Rows as JSON and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence

from llmrun.bench.export import llama_bench
from llmrun.bench.record import Record, Row, to_document


class JsonlWriter:
    """One object a line: llama-bench's fields and ours, the row's own `settings`, `samples_ns` and `samples_ts`."""

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        self._record = record
        return ""

    def row(self, row: Row) -> str:
        return self._object(row) + "\n"

    def end(self, record: Record) -> str:
        return ""

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

    def __init__(self) -> None:
        self._between = ""

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        return super().begin(record, planned, energy=energy) + "[\n"

    def row(self, row: Row) -> str:
        between, self._between = self._between, ",\n"
        return f"{between}  {self._object(row)}"

    def end(self, record: Record) -> str:
        return "\n]\n"
