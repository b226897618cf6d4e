"""llama-bench's names, units and ways to write a figure, for a row of ours.

Where it has the same figure, its name, its unit and its way to write it are kept, and its columns come first: results
of both paste side by side, and a program that reads one reads the other. Ours follow. Source: llama-bench.cpp of the
llama.cpp that llama-cpp-python 0.3.36 vendors (`get_fields`, `markdown_printer`, `sql_printer`).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from llmrun.bench.record import Record, Row, to_document
from llmrun.bench.spec import Test
from llmrun.machine.environment import BuildInfo, MachineInfo
from llmrun.models.model_info import ModelInfo
from llmrun.units import UNKNOWN, fixed

Value = str | int | float | bool | None
TABLE = "llmrun_bench"
"""Of SQL."""

# Words of settings that were asked for, as llama.cpp counts them: llama_flash_attn_type, `-ngl` of its common/arg.cpp.
_NUMBERS: dict[str, dict[str, int]] = {
    "flash_attn": {"auto": -1, "off": 0, "on": 1},
    "n_gpu_layers": {"auto": -1, "all": -2},
    "repack": {"off": 0, "on": 1, "both": 1},
}

# What llama-bench takes when nothing was asked for; the threads are the machine's.
DEFAULTS: dict[str, Value] = {
    "n_batch": 2048, "n_ubatch": 512, "cpu_mask": "0x0", "cpu_strict": False, "poll": 50, "type_k": "f16",
    "type_v": "f16", "n_gpu_layers": -1, "n_cpu_moe": 0, "split_mode": "layer", "main_gpu": 0, "no_kv_offload": False,
    "flash_attn": -1, "devices": "auto", "tensor_split": "0.00", "tensor_buft_overrides": "none", "load_mode": "auto",
    "lazy_mode": "auto", "embeddings": False, "no_op_offload": 0, "no_host": False, "repack": True, "fit_target": 0,
    "fit_min_ctx": 0,
}  # fmt: skip

# Its options that llmrun has no counterpart for and leaves as llama.cpp has them. `poll` is of a thread pool that
# llmrun does not use: unknown.
_FIXED = {
    name: DEFAULTS[name]
    for name in "cpu_mask cpu_strict lazy_mode embeddings no_op_offload no_host fit_target fit_min_ctx".split()
}


def quality_of(record: Record, *path: str) -> float | None:
    """A figure of `Record.quality`; None where it was not measured."""
    found: Any = record.quality
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


def settings_of(settings: Mapping[str, Any], machine: MachineInfo) -> dict[str, Value]:
    """Settings of a row by llama-bench's names and in its values; what the row does not tell is None."""
    known = {name: settings.get(name) for name in DEFAULTS if name not in _FIXED}
    known["n_threads"] = settings.get("n_threads")
    offload_kv = settings.get("offload_kv")
    known["no_kv_offload"] = None if offload_kv is None else not offload_kv
    for name, value in known.items():
        if isinstance(value, str) and name not in TEXT_FIELDS:
            known[name] = _NUMBERS.get(name, {}).get(value)
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
    return "/".join(fixed(share, 2) for share in shares) if shares and len(shares) > 1 else "0.00"


def fields_of(record: Record, row: Row) -> dict[str, Value]:
    """llama-bench's fields of one row, in its order, and ours behind them. None is unknown.

    Ours: `kind` and `n_seq` of the test; rates in tokens per second (`…_ts`, as it writes them); seconds, bytes,
    shares of one. `joules_per_token` is that of `joules_boundary`, the widest that was measured.
    """
    model, machine, test = record.model, record.machine, row.test
    settings = settings_of(row.settings, machine)
    ns = samples_ns(row)
    reads, (boundary, joules) = row.read_bytes_per_s, row.headline_joules or (None, None)
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
        "cost_per_million_tokens": record.cost_per_million(row),
        "peak_rss_bytes": row.usage.peak_rss_bytes if row.usage else None,
        "ppl": quality_of(record, "ppl"),
        "ppl_error": quality_of(record, "ppl_error"),
        "kld": quality_of(record, "kld", "kld", "value"),
        "warnings": ";".join(warning.code for warning in row.warnings),
        "error": row.error,
    }


def samples_of(row: Row) -> dict[str, Any]:
    """What JSON has beside the fields."""
    return {
        "settings": to_document(row.settings),
        "samples_ns": samples_ns(row),
        "samples_ts": list(row.samples_tps),
    }


def samples_ns(row: Row) -> list[int]:
    """The samples in nanoseconds, as llama-bench keeps them."""
    return [round(seconds * 1e9) for sample in row.samples if (seconds := row.seconds(sample)) is not None]


def _described(machine: MachineInfo, *kinds: str) -> str:
    return ", ".join(device.description for device in machine.devices if device.kind in kinds)


TEXT_FIELDS = frozenset(
    "build_commit cpu_info gpu_info backends model_filename model_type cpu_mask type_k type_v split_mode devices "
    "tensor_split tensor_buft_overrides load_mode lazy_mode test_time record model_name model_sha256 test kind "
    "joules_boundary warnings error".split()
)


REAL_FIELDS = frozenset(
    "avg_ts stddev_ts median_ts prefill_ts decode_ts ttft_s gap_median_s gap_p95_s load_s read_bytes_per_s mbu mfu "
    "joules_per_token cost_per_million_tokens ppl ppl_error kld".split()
)


def sql_type(name: str) -> str:
    return "TEXT" if name in TEXT_FIELDS else "REAL" if name in REAL_FIELDS else "INTEGER"


def plain(name: str, value: Value) -> str:
    """A value as llama-bench's CSV and Markdown have it: booleans are 0 and 1, rates have six decimals."""
    if isinstance(value, bool):
        return str(int(value))
    if name in ("avg_ts", "stddev_ts") and value is not None:
        return fixed(float(value), 6)
    return "" if value is None else str(value)


def size(n_bytes: int | None) -> str:
    """ "762.81 MiB", "4.36 GiB": two decimals, as llama-bench has it."""
    if n_bytes is None:
        return UNKNOWN
    return f"{fixed(n_bytes / (1 << 20), 2)} MiB" if n_bytes < 1 << 30 else f"{fixed(n_bytes / (1 << 30), 2)} GiB"


def params(n_params: int | None) -> str:
    """ "630.17 M", "1.24 B"."""
    if n_params is None:
        return UNKNOWN
    return f"{fixed(n_params / 1e6, 2)} M" if n_params < 1_000_000_000 else f"{fixed(n_params / 1e9, 2)} B"


def field_names() -> list[str]:
    return list(fields_of(_EMPTY, _EMPTY.rows[0]))


def mean_and_stddev(row: Row) -> str:
    """ "243.10 ± 1.23", as llama-bench has it; with one sample, whose deviation is not known, "243.10 ± –"."""
    if row.mean_tps is None:
        return UNKNOWN
    return f"{fixed(row.mean_tps, 2)} ± {fixed(row.stddev_tps, 2)}"


_EMPTY = Record("", "", MachineInfo(), BuildInfo(), ModelInfo(""), rows=(Row(Test("pp", 1)),))
"""Has every field's name."""
