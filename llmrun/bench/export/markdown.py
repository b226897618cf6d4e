"""llama-bench's table in Markdown, with our columns to its right."""

from __future__ import annotations

from collections.abc import Sequence

from llmrun.bench.export import llama_bench
from llmrun.bench.export.columns import Column, build_line, notes, our_cells, our_columns, to_width
from llmrun.bench.export.rows import Writer
from llmrun.bench.record import Record, Row
from llmrun.machine.environment import MachineInfo
from llmrun.units import UNKNOWN

# llama-bench's `get_field_display_name` and `get_field_width`, in the order of its `print_header`.
_OPTIONAL = (
    Column("n_gpu_layers", "ngl", 3), Column("n_cpu_moe", "n_cpu_moe", 10), Column("n_threads", "threads", 7),
    Column("n_batch", "n_batch", 7), Column("n_ubatch", "n_ubatch", 8), Column("type_k", "type_k", 6),
    Column("type_v", "type_v", 6), Column("main_gpu", "main_gpu", 10), Column("split_mode", "sm", 6),
    Column("no_kv_offload", "nkvo", 13), Column("flash_attn", "fa", 3), Column("devices", "dev", -12),
    Column("tensor_split", "ts", -12), Column("tensor_buft_overrides", "ot", -21), Column("load_mode", "lm", 10),
    Column("repack", "rpk", 3),
)  # fmt: skip


def _is_shown(field: str, values: set[llama_bench.Value], machine: MachineInfo) -> bool:
    """llama-bench's rule: what varies or is not the default; the threads where the CPU computes, else the layers."""
    on_cpu = any(name in machine.backends for name in ("CPU", "BLAS", "ZenDNN"))
    if field == "n_gpu_layers":
        return not on_cpu
    if field == "n_threads":
        return on_cpu or len(values) > 1 or not values <= {machine.default_threads, None}
    # What llmrun decides is no default of llama-bench's where the two may differ: it repacks always.
    decided = set() if field == "repack" else {"auto", None}
    return len(values) > 1 or not values <= {llama_bench.DEFAULTS[field], *decided}


class MarkdownWriter(Writer[Row]):
    """llama-bench's table with our columns to its right, and below it what it was measured with."""

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        self._record = record
        asked = [llama_bench.settings_of(row.settings, record.machine) for row in planned]
        chosen = [c for c in _OPTIONAL if _is_shown(c.field, {each[c.field] for each in asked}, record.machine)]
        self._columns = [
            Column("model", "model", -30),
            Column("size", "size", 10),
            Column("params", "params", 10),
            Column("backend", "backend", -10),
            *chosen,
            Column("test", "test", 15),
            Column("t/s", "t/s", 20),
            *our_columns(record, planned, energy=energy),
        ]
        titles = "".join(f" {to_width(column.title, column.width)} |" for column in self._columns)
        rules = "".join(f" {'-' * (abs(c.width) - 1)}{':' if c.width > 0 else '-'} |" for c in self._columns)
        return f"|{titles}\n|{rules}\n"

    def row(self, row: Row) -> str:
        model, fields = self._record.model, llama_bench.fields_of(self._record, row)
        known = {
            **{name: llama_bench.plain(name, value) for name, value in fields.items()},
            "model": model.description or model.name,
            "size": llama_bench.size(model.weight_bytes),
            "params": llama_bench.params(model.n_params),
            "backend": self._record.machine.backends,
            "test": row.test.name,
            "t/s": llama_bench.mean_and_stddev(row),
            **our_cells(self._record, row),
        }
        cells = (_cell(known[column.field]) or UNKNOWN for column in self._columns)
        return "|" + "".join(f" {to_width(t, c.width)} |" for t, c in zip(cells, self._columns, strict=True)) + "\n"

    def end(self, record: Record) -> str:
        said = "".join(f"- {line}\n" for line in notes(record))
        return f"\n{said}{chr(10) if said else ''}build: {build_line(record)}\n"


def _cell(text: str) -> str:
    """A bar would end the cell."""
    return text.replace("|", "\\|").replace("\n", " ")
