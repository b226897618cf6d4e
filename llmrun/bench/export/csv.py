"""Rows as CSV."""

from __future__ import annotations

from collections.abc import Sequence

from llmrun.bench.export import llama_bench
from llmrun.bench.record import Record, Row


class CsvWriter:
    """All values quoted, as llama-bench does; what is unknown is empty and not quoted."""

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        self._record = record
        return ",".join(llama_bench.field_names()) + "\n"

    def row(self, row: Row) -> str:
        return ",".join(_cell(*each) for each in llama_bench.fields_of(self._record, row).items()) + "\n"

    def end(self, record: Record) -> str:
        return ""


def _cell(name: str, value: llama_bench.Value) -> str:
    return "" if value is None else '"' + llama_bench.plain(name, value).replace('"', '""') + '"'
