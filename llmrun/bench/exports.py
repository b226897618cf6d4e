"""A record in the formats that people and programs read: a table, Markdown, CSV, JSON, JSON lines, SQL.

Where llama-bench has the same figure, its name, its unit and its way to write it are kept, and its columns come first:
results of both paste side by side, and a program that reads one reads the other. Ours follow. Source: llama-bench.cpp
of the llama.cpp that llama-cpp-python 0.3.36 vendors (`get_fields`, `markdown_printer`, `sql_printer`).

Everything here is pure: a writer returns the text that comes next, whoever called it puts it somewhere.

    writer.begin(record, planned)  →  titles      the rows that will come, without samples, decide on the columns
    writer.row(row)                →  one row, as soon as it was measured
    writer.end(record)             →  what closes the document
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from llmrun.bench.record import Record, Row, Test, to_document
from llmrun.machine.energy import cost_per_million_tokens
from llmrun.machine.environment import BuildInfo, MachineInfo
from llmrun.models.model_info import ModelInfo
from llmrun.options.config import LoadConfig
from llmrun.units import UNKNOWN, duration, percent, significant

Format = Literal["table", "md", "csv", "json", "jsonl", "sql"]
STREAMED: frozenset[Format] = frozenset({"table", "md", "csv", "jsonl"})
"""Those of which the beginning can be read without the end."""


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


# -- llama-bench's fields ----------------------------------------------------------------------------------------------

Value = str | int | float | bool | None
_FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}  # llama_flash_attn_type

# What llama-bench takes when nothing was asked for; the threads are the machine's.
DEFAULTS: dict[str, Value] = {
    "n_batch": 2048,
    "n_ubatch": 512,
    "cpu_mask": "0x0",
    "cpu_strict": False,
    "poll": 50,
    "type_k": "f16",
    "type_v": "f16",
    "n_gpu_layers": -1,
    "n_cpu_moe": 0,
    "split_mode": "layer",
    "main_gpu": 0,
    "no_kv_offload": False,
    "flash_attn": -1,
    "devices": "auto",
    "tensor_split": "0.00",
    "tensor_buft_overrides": "none",
    "load_mode": "auto",
    "lazy_mode": "auto",
    "embeddings": False,
    "no_op_offload": 0,
    "no_host": False,
    "repack": True,
    "fit_target": 0,
    "fit_min_ctx": 0,
}
# Its options that llmrun has no counterpart for and leaves as llama.cpp has them. `poll` is of a thread pool that
# llmrun does not use: unknown.
_FIXED = {
    name: DEFAULTS[name]
    for name in "cpu_mask cpu_strict lazy_mode embeddings no_op_offload no_host fit_target fit_min_ctx".split()
}


def asked_settings(config: LoadConfig) -> dict[str, Any]:
    """What was asked for, by the names of a row's settings: for rows that are only planned. "auto" or None is what
    llmrun will decide."""
    known = config.as_dict()
    offload = known.pop("offload")
    offload["offload_kv"] = offload.pop("kv")
    for name in ("devices", "tensor_split", "override_tensor"):
        offload[name] = None if offload[name] is None else list(offload[name])
    return {**known, **offload}


def bench_settings(settings: Mapping[str, Any], machine: MachineInfo) -> dict[str, Value]:
    """Settings of a row by llama-bench's names and in its values; what the row does not tell is None."""
    known = {name: settings.get(name) for name in DEFAULTS if name not in _FIXED}
    known["n_threads"] = settings.get("n_threads")
    offload_kv, flash_attn = settings.get("offload_kv"), settings.get("flash_attn")
    known["no_kv_offload"] = None if offload_kv is None else not offload_kv
    known["flash_attn"] = _FLASH_ATTN.get(flash_attn) if isinstance(flash_attn, str) else None
    known["devices"] = _devices(settings.get("devices"), machine)
    known["tensor_split"] = _tensor_split(settings.get("tensor_split"))
    overrides = settings.get("override_tensor")
    known["tensor_buft_overrides"] = (
        None if overrides is None else ";".join(f"{pattern}={device}" for pattern, device in overrides) or "none"
    )
    return {**_FIXED, **known}


def _devices(chosen: Sequence[str] | None, machine: MachineInfo) -> str:
    """ "auto" is all GPUs, those that share the CPU's memory only where there are no others."""
    by_kind = {kind: [device.name for device in machine.devices if device.kind == kind] for kind in ("gpu", "igpu")}
    if chosen is None or set(chosen) == set(by_kind["gpu"] or by_kind["igpu"]):
        return "auto"
    return "/".join(chosen) or "none"


def _tensor_split(shares: Sequence[float] | None) -> str:
    # One share, or none, splits nothing.
    return "/".join(f"{share:.2f}" for share in shares) if shares and len(shares) > 1 else "0.00"


def bench_fields(record: Record, row: Row) -> dict[str, Value]:
    """llama-bench's fields of one row, in its order, and ours behind them. None is unknown.

    Ours: `kind` and `n_seq` of the test; rates in tokens per second (`…_ts`, as it writes them); seconds, bytes,
    shares of one. `joules_per_token` is that of `joules_boundary`, the widest that was measured.
    """
    model, machine, test = record.model, record.machine, row.test
    settings = bench_settings(row.settings, machine)
    ns = samples_ns(row)
    reads, boundary, joules = row.read_bytes_per_s, *shown_joules(row)
    return {
        "build_commit": record.build.ggml_commit or "unknown",
        "build_number": 0,
        "cpu_info": _described(machine, "cpu", "accel") or machine.cpu or "",
        "gpu_info": _described(machine, "gpu", "igpu"),
        "backends": machine.backends,
        "model_filename": model.files[0].name if model.files else model.name,
        "model_type": model.description,
        "model_size": model.weight_bytes,
        "model_n_params": model.n_params,
        "n_batch": settings["n_batch"],
        "n_ubatch": settings["n_ubatch"],
        "n_threads": settings["n_threads"],
        **{name: settings[name] for name in DEFAULTS if name not in ("n_batch", "n_ubatch")},
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
        "test_time": row.started,
        "avg_ns": sum(ns) // len(ns) if ns else None,
        "stddev_ns": int(statistics.stdev(ns)) if len(ns) > 1 else None,
        "avg_ts": row.mean_tps,
        "stddev_ts": row.stddev_tps,
        "record": record.id,
        "model_name": model.name,
        "model_sha256": model.files[0].sha256 if model.files else None,
        "test": test.name,
        "kind": test.kind,
        "n_seq": test.n_seq,
        "n_threads_batch": row.settings.get("n_threads_batch"),
        "median_ts": row.median_tps,
        "prefill_ts": row.prefill_tps,
        "decode_ts": row.decode_tps,
        "ttft_s": row.ttft_s,
        "gap_median_s": row.gap_median_s,
        "gap_p95_s": row.gap_p95_s,
        "load_s": row.load_s,
        "step_read_bytes": sum(row.step_read_bytes.values()) if row.step_read_bytes else None,
        "read_bytes_per_s": sum(reads.values()) if reads else None,
        "mbu": row.mbu,
        "mfu": row.mfu,
        "joules_per_token": joules,
        "joules_boundary": boundary,
        "cost_per_million_tokens": cost_per_million(record, row),
        "peak_rss_bytes": row.usage.peak_rss_bytes if row.usage else None,
        "ppl": _quality(record, "ppl"),
        "ppl_error": _quality(record, "ppl_error"),
        "kld": _quality(record, "kld", "kld", "value"),
        "warnings": ";".join(caveat.code for caveat in row.warnings),
        "error": row.error,
    }


def _quality(record: Record, *path: str) -> float | None:
    found: Any = record.quality
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


def quality_line(record: Record) -> str | None:
    """perplexity 8.213 ± 0.052 on quality.txt; divergence from Q8_0 0.0807 ± 0.0021 nats, same top token 84.1 %"""
    quality, ppl = record.quality, _quality(record, "ppl")
    if quality is None or ppl is None:
        return None
    error = _quality(record, "ppl_error")
    line = f"perplexity {significant(ppl, 4)}{'' if error is None else f' ± {significant(error, 2)}'}"
    line += f" on {quality.get('text')}, {quality.get('n_chunks')} chunks of {quality.get('n_ctx')}"
    kld, same = _quality(record, "kld", "kld", "value"), _quality(record, "kld", "same_top", "value")
    if kld is not None:
        line += (
            f"; divergence from {quality.get('reference')} {significant(kld, 3)} nats, same top token {percent(same)}"
        )
    return line


def samples_ns(row: Row) -> list[int]:
    """The samples in nanoseconds, as llama-bench keeps them."""
    return [round(seconds * 1e9) for sample in row.samples if (seconds := row.seconds(sample)) is not None]


def _described(machine: MachineInfo, *kinds: str) -> str:
    return ", ".join(device.description for device in machine.devices if device.kind in kinds)


_TEXT_FIELDS = frozenset(
    "build_commit cpu_info gpu_info backends model_filename model_type cpu_mask type_k type_v split_mode devices "
    "tensor_split tensor_buft_overrides load_mode lazy_mode test_time record model_name model_sha256 test kind "
    "joules_boundary warnings error".split()
)
_REAL_FIELDS = frozenset(
    "avg_ts stddev_ts median_ts prefill_ts decode_ts ttft_s gap_median_s gap_p95_s load_s read_bytes_per_s mbu mfu "
    "joules_per_token".split()
)


def _plain(name: str, value: Value) -> str:
    """A value as llama-bench's CSV and Markdown have it: booleans are 0 and 1, rates have six decimals."""
    if isinstance(value, bool):
        return str(int(value))
    if name in ("avg_ts", "stddev_ts") and value is not None:
        return f"{value:.6f}"
    return "" if value is None else str(value)


# -- Markdown ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """`width` below 0: to the left."""

    field: str
    title: str
    width: int


# llama-bench's `get_field_display_name` and `get_field_width`, in the order of its `print_header`.
_OPTIONAL = (
    _Column("n_gpu_layers", "ngl", 3),
    _Column("n_cpu_moe", "n_cpu_moe", 10),
    _Column("n_threads", "threads", 7),
    _Column("n_batch", "n_batch", 7),
    _Column("n_ubatch", "n_ubatch", 8),
    _Column("type_k", "type_k", 6),
    _Column("type_v", "type_v", 6),
    _Column("main_gpu", "main_gpu", 10),
    _Column("split_mode", "sm", 6),
    _Column("no_kv_offload", "nkvo", 13),
    _Column("flash_attn", "fa", 3),
    _Column("devices", "dev", -12),
    _Column("tensor_split", "ts", -12),
    _Column("tensor_buft_overrides", "ot", -21),
    _Column("load_mode", "lm", 10),
    _Column("repack", "rpk", 3),
)


def _is_shown(field: str, values: set[Value], machine: MachineInfo) -> bool:
    """llama-bench's rule: what varies or is not the default; the threads where the CPU computes, else the layers."""
    on_cpu = any(name in machine.backends for name in ("CPU", "BLAS", "ZenDNN"))
    if field == "n_gpu_layers":
        return not on_cpu
    if field == "n_threads":
        return on_cpu or len(values) > 1 or not values <= {machine.default_threads, None}
    # What llmrun decides is no default of llama-bench's where the two may differ: it repacks always.
    decided = set() if field == "repack" else {"auto", None}
    return len(values) > 1 or not values <= {DEFAULTS[field], *decided}


class MarkdownWriter:
    """llama-bench's table with our columns to its right, and below it what it was measured with."""

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        self._record = record
        asked = [bench_settings(row.settings, record.machine) for row in planned]
        chosen = [c for c in _OPTIONAL if _is_shown(c.field, {each[c.field] for each in asked}, record.machine)]
        self._columns = [
            _Column("model", "model", -30),
            _Column("size", "size", 10),
            _Column("params", "params", 10),
            _Column("backend", "backend", -10),
            *chosen,
            _Column("test", "test", 15),
            _Column("t/s", "t/s", 20),
            *_ours(record, planned, energy=energy),
        ]
        titles = "".join(f" {_to_width(column.title, column.width)} |" for column in self._columns)
        rules = "".join(f" {'-' * (abs(c.width) - 1)}{':' if c.width > 0 else '-'} |" for c in self._columns)
        return f"|{titles}\n|{rules}\n"

    def row(self, row: Row) -> str:
        model = self._record.model
        known = {
            **{name: _plain(name, value) for name, value in bench_fields(self._record, row).items()},
            "model": model.description or model.name,
            "size": bench_size(model.weight_bytes),
            "params": bench_params(model.n_params),
            "backend": self._record.machine.backends,
            "test": row.test.name,
            "t/s": mean_and_stddev(row),
            **_our_cells(self._record, row),
        }
        cells = (_cell(known[column.field]) or UNKNOWN for column in self._columns)
        return "|" + "".join(f" {_to_width(t, c.width)} |" for t, c in zip(cells, self._columns, strict=True)) + "\n"

    def end(self, record: Record) -> str:
        said = "".join(f"- {line}\n" for line in notes(record))
        return f"\n{said}{chr(10) if said else ''}build: {build_line(record)}\n"


def _to_width(text: str, width: int) -> str:
    return text.rjust(width) if width > 0 else text.ljust(-width)


def _cell(text: str) -> str:
    """A bar would end the cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def bench_size(n_bytes: int | None) -> str:
    """ "762.81 MiB", "4.36 GiB": two decimals, as llama-bench has it."""
    if n_bytes is None:
        return UNKNOWN
    return f"{n_bytes / (1 << 20):.2f} MiB" if n_bytes < 1 << 30 else f"{n_bytes / (1 << 30):.2f} GiB"


def bench_params(n_params: int | None) -> str:
    """ "630.17 M", "1.24 B"."""
    if n_params is None:
        return UNKNOWN
    return f"{n_params / 1e6:.2f} M" if n_params < 10**9 else f"{n_params / 1e9:.2f} B"


def mean_and_stddev(row: Row) -> str:
    """ "243.10 ± 1.23", as llama-bench has it; with one sample, whose deviation nobody knows, "243.10 ± –"."""
    if row.mean_tps is None:
        return UNKNOWN
    return f"{row.mean_tps:.2f} ± {UNKNOWN if row.stddev_tps is None else f'{row.stddev_tps:.2f}'}"


def _ours(record: Record, planned: Sequence[Row], *, energy: bool) -> list[_Column]:
    """Our columns: those that say something of at least one of the tests."""
    kinds = {row.test.kind for row in planned}
    decodes = kinds & {"tg", "pg", "e2e"}
    batch_threads = any(
        row.settings.get("n_threads_batch") not in (None, row.settings.get("n_threads")) for row in planned
    )
    wanted = [
        (batch_threads, _Column("n_threads_batch", "tb", 3)),
        (bool(kinds & {"pg", "e2e"}), _Column("prefill", "prefill t/s", 11)),
        (bool(kinds & {"pg", "e2e"}), _Column("decode", "decode t/s", 10)),
        (bool(decodes), _Column("GB/s", "GB/s", 6)),
        (bool(decodes), _Column("MBU", "MBU", 6)),
        ("pp" in kinds, _Column("MFU", "MFU", 6)),
        ("e2e" in kinds, _Column("TTFT", "TTFT", 8)),
        (bool(decodes), _Column("gap p95", "gap p95", 8)),
        (energy, _Column("J/token", "J/token", 8)),
        (any(_prices(record)), _Column("cost", "cost/M", 8)),
    ]
    return [column for is_wanted, column in wanted if is_wanted]


def _our_cells(record: Record, row: Row) -> dict[str, str]:
    reads, (_, joules) = row.read_bytes_per_s, shown_joules(row)
    return {
        "prefill": significant(row.prefill_tps),
        "decode": significant(row.decode_tps),
        "GB/s": significant(sum(reads.values()) / 1e9 if reads else None),
        "MBU": percent(row.mbu),
        "MFU": percent(row.mfu),
        "TTFT": duration(row.ttft_s),
        "gap p95": duration(row.gap_p95_s),
        "J/token": significant(joules),
        "cost": significant(cost_per_million(record, row)),
    }


def _prices(record: Record) -> tuple[float | None, float | None]:
    """Of a kWh and of an hour, as they were given to the bench."""
    found = [record.settings.get(name) for name in ("price_kwh", "price_hour")]
    kwh, hour = (float(price) if isinstance(price, int | float) else None for price in found)
    return kwh, hour


def cost_per_million(record: Record, row: Row) -> float | None:
    """Money for a million tokens of this row's kind; None where no price was given, or joules would be needed."""
    kwh, hour = _prices(record)
    return cost_per_million_tokens(shown_joules(row)[1], row.median_tps, kwh, hour)


def shown_joules(row: Row) -> tuple[str | None, float | None]:
    """The boundary whose joules per token are shown, and these: above idle where that is known.

    The widest one that was measured; of layers on GPUs that of all GPUs, where nothing wider than the CPU is known.
    """
    joules = row.joules_above_idle_per_token or row.joules_per_token
    if not joules:
        return None, None
    gpus = {name: n for name, n in joules.items() if name.startswith("GPU ")}
    if gpus and "whole machine" not in joules and any(on != "CPU" for on in row.settings.get("layers") or ()):
        return " + ".join(gpus), sum(gpus.values())
    return next(iter(joules.items()))


def notes(record: Record) -> list[str]:
    """What has to be said of the rows: errors, warnings and whose joules they are."""
    said = []
    for row in record.rows:
        said += [f"{row.test.name}: {row.error}"] if row.error else []
        for caveat in row.warnings:
            said.append(f"{row.test.name}: {caveat.message}{f' ({caveat.advice})' if caveat.advice else ''}")
    boundaries = dict.fromkeys(name for row in record.rows if (name := shown_joules(row)[0]))
    idle = "above idle" if any(row.joules_above_idle_per_token for row in record.rows) else "idle power included"
    quality = quality_line(record)
    said += [quality] if quality else []
    said += [f"J/token: {' or '.join(boundaries)}, {idle}"] if boundaries else []
    unknown = dict.fromkeys(row.energy_unknown for row in record.rows if row.energy_unknown)
    return [*dict.fromkeys(said), *(f"J/token unknown: {reason}" for reason in unknown)]


def build_line(record: Record) -> str:
    """llmrun 0.1.0, llama-cpp-python 0.3.36, ggml 0.25.3 (1a2b3c4)"""
    build = record.build
    named = (("llmrun", build.llmrun), ("llama-cpp-python", build.llama_cpp_python), ("ggml", build.ggml))
    text = ", ".join(f"{name} {version}" for name, version in named if version)
    commit = build.ggml_commit
    return f"{text} ({commit})" if commit and commit != "unknown" else text or "unknown"


# -- the terminal's table ----------------------------------------------------------------------------------------------

_GAP = "  "


class TableWriter:
    """For people: what is the same in all rows above the table, what varies in columns, one line per row."""

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        self._record = record
        varying = [name for name in _setting_names(planned) if len({_shown(row.settings, name) for row in planned}) > 1]
        self._columns = [_Column("test", "TEST", -max([4, *(len(row.test.name) for row in planned)]))]
        for name in varying:
            width = max(len(name), *(len(_shown(row.settings, name)) for row in planned))
            self._columns.append(_Column(f"settings.{name}", name.upper(), width))
        self._columns.append(_Column("t/s", "T/S", 20))
        ours = [column for column in _ours(record, planned, energy=energy) if column.field != "n_threads_batch"]
        self._columns += [_Column(column.field, column.title.upper(), max(column.width, 8)) for column in ours]
        model = record.model
        head = [
            model.name,
            *([model.quantization] if model.quantization else []),
            bench_size(model.weight_bytes),
            f"{bench_params(model.n_params)} parameters",
            record.machine.backends,
            f"{record.machine.cpu or 'unknown CPU'}",
        ]
        return " · ".join(head) + "\n\n" + self._line([column.title for column in self._columns])

    def row(self, row: Row) -> str:
        known = {
            "test": row.test.name,
            "t/s": mean_and_stddev(row),
            **_our_cells(self._record, row),
            **{f"settings.{name}": _shown(row.settings, name) for name in row.settings},
        }
        return self._line([known.get(column.field, UNKNOWN) for column in self._columns])

    def end(self, record: Record) -> str:
        said = "".join(f"{line}\n" for line in notes(record))
        return f"\n{said}" if said else ""

    def _line(self, cells: Sequence[str]) -> str:
        pairs = zip(cells, self._columns, strict=True)
        return _GAP.join(_to_width(" ".join(text.split()), column.width) for text, column in pairs).rstrip() + "\n"


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


# -- for programs ------------------------------------------------------------------------------------------------------


class CsvWriter:
    """All values quoted, as llama-bench does; what is unknown is empty and not quoted."""

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        self._record = record
        return ",".join(_field_names()) + "\n"

    def row(self, row: Row) -> str:
        values = bench_fields(self._record, row).items()
        cells = ("" if value is None else '"' + _plain(name, value).replace('"', '""') + '"' for name, value in values)
        return ",".join(cells) + "\n"

    def end(self, record: Record) -> str:
        return ""


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
            **to_document(bench_fields(self._record, row)),
            "settings": to_document(row.settings),
            "samples_ns": samples_ns(row),
            "samples_ts": list(row.samples_tps),
        }
        return json.dumps(document, ensure_ascii=False)


class JsonWriter(JsonlWriter):
    """The same objects in one array."""

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        self._between = ""
        return super().begin(record, planned, energy=energy) + "[\n"

    def row(self, row: Row) -> str:
        between, self._between = self._between, ",\n"
        return f"{between}  {self._object(row)}"

    def end(self, record: Record) -> str:
        return "\n]\n"


class SqlWriter:
    """For sqlite3 and its kind. The table is not llama-bench's, which has fewer columns; those of both are the same."""

    TABLE = "llmrun_bench"

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> str:
        self._record = record
        columns = ",\n".join(f"  {name} {_sql_type(name)}" for name in _field_names())
        return f"CREATE TABLE IF NOT EXISTS {self.TABLE} (\n{columns}\n);\n\n"

    def row(self, row: Row) -> str:
        fields = bench_fields(self._record, row)
        names, values = ", ".join(fields), ", ".join(map(_sql_value, fields.values()))
        return f"INSERT INTO {self.TABLE} ({names}) VALUES ({values});\n"

    def end(self, record: Record) -> str:
        return ""


def _sql_type(name: str) -> str:
    return "TEXT" if name in _TEXT_FIELDS else "REAL" if name in _REAL_FIELDS else "INTEGER"


def _sql_value(value: Value) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + value.replace("'", "''").replace("\0", "") + "'"
    return str(int(value)) if isinstance(value, bool) else repr(value)


def _field_names() -> list[str]:
    return list(bench_fields(_EMPTY, _EMPTY.rows[0]))


_EMPTY = Record("", "", MachineInfo(), BuildInfo(), ModelInfo(""), rows=(Row(Test("pp", 1)),))
"""Has every field's name."""
