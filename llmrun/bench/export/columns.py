"""What a table says beside llama-bench's columns: ours, and the lines below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmrun.bench.export.llama_bench import quality_of
from llmrun.bench.record import Record, Row
from llmrun.units import duration, percent, significant


@dataclass(frozen=True)
class Column:
    """`width` below 0: to the left."""

    field: str
    title: str
    width: int


def to_width(text: str, width: int) -> str:
    return text.rjust(width) if width > 0 else text.ljust(-width)


def our_columns(record: Record, planned: Sequence[Row], *, energy: bool) -> list[Column]:
    """Our columns: those that say something of at least one of the tests."""
    kinds = {row.test.kind for row in planned}
    decodes = kinds & {"tg", "pg", "e2e"}
    settings = [row.settings for row in planned]
    batch_threads = any(each.get("n_threads_batch") not in (None, each.get("n_threads")) for each in settings)
    wanted = [
        (batch_threads, Column("n_threads_batch", "tb", 3)),
        (bool(kinds & {"pg", "e2e"}), Column("prefill", "prefill t/s", 11)),
        (bool(kinds & {"pg", "e2e"}), Column("decode", "decode t/s", 10)),
        (bool(decodes), Column("GB/s", "GB/s", 6)),
        (bool(decodes), Column("MBU", "MBU", 6)),
        ("pp" in kinds, Column("MFU", "MFU", 6)),
        ("e2e" in kinds, Column("TTFT", "TTFT", 8)),
        (bool(decodes), Column("gap p95", "gap p95", 8)),
        (energy, Column("J/token", "J/token", 8)),
        (any(record.prices), Column("cost", "cost/M", 8)),
    ]
    return [column for is_wanted, column in wanted if is_wanted]


def our_cells(record: Record, row: Row) -> dict[str, str]:
    reads, (_, joules) = row.read_bytes_per_s, row.headline_joules or (None, None)
    return {
        "prefill": significant(row.prefill_tps),
        "decode": significant(row.decode_tps),
        "GB/s": significant(sum(reads.values()) / 1e9 if reads else None),
        "MBU": percent(row.mbu),
        "MFU": percent(row.mfu),
        "TTFT": duration(row.ttft_s),
        "gap p95": duration(row.gap_p95_s),
        "J/token": significant(joules),
        "cost": significant(record.cost_per_million(row)),
    }


def notes(record: Record) -> list[str]:
    """What has to be said of the rows: errors, warnings and whose joules they are."""
    said = []
    for row in record.rows:
        said += [f"{row.test.name}: {row.error}"] if row.error else []
        said += [f"{row.test.name}: {warning}" for warning in row.warnings]
    boundaries = dict.fromkeys(row.headline_joules[0] for row in record.rows if row.headline_joules)
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


def quality_line(record: Record) -> str | None:
    """perplexity 8.213 ± 0.052 on quality.txt; divergence from Q8_0 0.0807 ± 0.0021 nats, same top token 84.1 %"""
    quality, ppl = record.quality, quality_of(record, "ppl")
    if quality is None or ppl is None:
        return None
    error = quality_of(record, "ppl_error")
    line = f"perplexity {significant(ppl, 4)}{'' if error is None else f' ± {significant(error, 2)}'}"
    line += f" on {quality.get('text')}, {quality.get('n_chunks')} chunks of {quality.get('n_ctx')}"
    kld, same = quality_of(record, "kld", "kld", "value"), quality_of(record, "kld", "same_top", "value")
    if kld is not None:
        line += f"; divergence from {quality.get('reference')} {significant(kld, 3)} nats"
        line += f", same top token {percent(same)}"
    return line
