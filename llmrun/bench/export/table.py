"""A table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmrun.bench.export import llama_bench
from llmrun.bench.export.columns import Column, notes, our_cells, our_columns, to_width
from llmrun.bench.export.rows import Writer
from llmrun.bench.record import Record, Row
from llmrun.units import UNKNOWN

_GAP = "  "


class TableWriter(Writer[Row]):
    """For people: what is the same in all rows above the table, what varies in columns, one line per row."""

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        self._record = record
        values = {name: [_shown(row.settings, name) for row in planned] for name in _setting_names(planned)}
        self._columns = [
            Column("test", "TEST", -max([4, *(len(row.test.name) for row in planned)])),
            *(
                Column(f"settings.{name}", name.upper(), max(map(len, [name, *shown])))
                for name, shown in values.items()
                if len({*shown}) > 1
            ),
            Column("t/s", "T/S", 20),
        ]
        ours = [column for column in our_columns(record, planned, energy=energy) if column.field != "n_threads_batch"]
        self._columns += [Column(column.field, column.title.upper(), max(column.width, 8)) for column in ours]
        model = record.model
        head = [
            model.name,
            model.quantization,
            llama_bench.size(model.weight_bytes),
            f"{llama_bench.params(model.n_params)} parameters",
            record.machine.backends,
            record.machine.cpu or "unknown CPU",
        ]
        return " · ".join(filter(None, head)) + "\n\n" + self._line([column.title for column in self._columns])

    def row(self, row: Row) -> str:
        known = {
            "test": row.test.name,
            "t/s": llama_bench.mean_and_stddev(row),
            **our_cells(self._record, row),
            **{f"settings.{name}": _shown(row.settings, name) for name in row.settings},
        }
        return self._line([known.get(column.field, UNKNOWN) for column in self._columns])

    def end(self, record: Record) -> str:
        said = "".join(f"{line}\n" for line in notes(record))
        return f"\n{said}" if said else ""

    def _line(self, cells: Sequence[str]) -> str:
        pairs = zip(cells, self._columns, strict=True)
        return _GAP.join(to_width(" ".join(text.split()), column.width) for text, column in pairs).rstrip() + "\n"


def _setting_names(rows: Sequence[Row]) -> list[str]:
    """Those that somebody may have swept: not what follows from others."""
    follow = ("n_ctx", "n_ctx_most", "layers", "fit_target")
    return [name for name in dict.fromkeys(name for row in rows for name in row.settings) if name not in follow]


def _shown(settings: Mapping[str, Any], name: str) -> str:
    """A setting in a cell: lists joined, on and off for booleans."""
    value = settings.get(name)
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ";".join("=".join(map(str, each)) if isinstance(each, list | tuple) else str(each) for each in value)
    return str(value)
