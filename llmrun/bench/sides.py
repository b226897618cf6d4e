"""What can be compared and drawn: rows with their rates and settings, out of a record or of llama-bench's JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from llmrun import codec
from llmrun.bench import journal
from llmrun.bench.export import llama_bench
from llmrun.bench.load_row import LoadRow, LoadTest, ServerInfo
from llmrun.bench.record import Record, Row, read_part
from llmrun.bench.spec import Test, TestKind
from llmrun.errors import UsageError
from llmrun.machine.environment import BuildInfo, MachineInfo
from llmrun.models.model_info import ModelFile, ModelInfo

Setting = str | int | float | bool | None


@dataclass(frozen=True)
class Entry:
    """One test of one side: its rates in tokens per second, its settings by llama-bench's names where it has them."""

    test: Test
    settings: Mapping[str, Setting]
    tps: tuple[float, ...]


@dataclass(frozen=True)
class LoadMeasure:
    """What is compared of a load: tokens per second of all answers together ("t/s") and of each ("each"), seconds to
    the first token ("TTFT") and to the last ("E2E")."""

    test: LoadTest
    what: Literal["t/s", "each", "TTFT", "E2E"]

    @property
    def name(self) -> str:
        return f"{self.test.name_in_full}: {self.what}"

    @property
    def is_time(self) -> bool:
        return self.what in ("TTFT", "E2E")


@dataclass(frozen=True)
class LoadEntry:
    """One measure of one load. `tps`: rates, of a time the times' inverse, so that more is better in all of them."""

    test: LoadMeasure
    settings: Mapping[str, Setting]
    tps: tuple[float, ...]


@dataclass(frozen=True)
class Side:
    """One of the two, whatever wrote it.

    Attributes:
        name: what the user called it.
        entries: of a bench of a model.
        loads: of a bench of a server, four of each load.
        facts: what else may be why: {"model": …, "sha256": …, "cpu": …, "llama.cpp": …}; what is not known is left out.
        id, interleaved_with: of the record; None for llama-bench's.
        warnings: codes of what made rows doubtful while they were measured.
    """

    name: str
    entries: tuple[Entry, ...]
    facts: Mapping[str, str]
    id: str | None = None
    interleaved_with: str | None = None
    warnings: tuple[str, ...] = ()
    loads: tuple[LoadEntry, ...] = ()


def open_side(name: str) -> Side:
    """A file (a record, a journal, llama-bench's JSON or JSON lines), or the id of a bench, or how one begins.

    Raises `NotFound` and `UsageError`.
    """
    return open_bench(name)[0]


def open_bench(name: str) -> tuple[Side, Record | None]:
    """The same, and the record that it was made of; None where llama-bench wrote it."""
    path = Path(name)
    if not path.is_file() and not (path.suffix or "/" in name):
        path = journal.find(name)
    text = journal.read_text(path)
    rows = _rows(text)
    if all("samples_ns" in row and "n_prompt" in row for row in rows) and rows:
        return _of_bench(rows, name), None
    if all("load" in row for row in rows) and rows:
        record = _of_loads(rows, name)
        return side_of(record, name), record
    record = journal.parse(text, str(path))
    return side_of(record, name), record


def side_of(record: Record, name: str | None = None) -> Side:
    """What a record has to compare; `name` is what messages call it, if not by its id."""
    entries = tuple(Entry(row.test, _settings(row, record), row.samples_tps) for row in record.rows if row.samples_tps)
    model, build = record.model, record.build
    file = model.files[0] if model.files else None
    known = {
        "model": model.description or (model.name if record.server else None),
        "size": str(model.weight_bytes) if model.weight_bytes else None,
        "sha256": file.sha256 if file else None,
        "cpu": record.machine.cpu,
        "llmrun": build.llmrun,
        "llama-cpp-python": build.llama_cpp_python,
        "ggml": build.ggml,
        "server": record.server.software if record.server else None,
    }
    facts = {key: value for key, value in known.items() if value}
    rows: tuple[Row | LoadRow, ...] = (*record.rows, *record.loads)
    warnings = tuple(dict.fromkeys(warning.code for row in rows for warning in row.warnings))
    loads = tuple(entry for row in record.loads for entry in _measures(row, record))
    return Side(name or record.id, entries, facts, record.id, record.interleaved_with, warnings, loads)


def _measures(row: LoadRow, record: Record) -> Iterator[LoadEntry]:
    """A load has one rate of all answers together, and a sample of the others from each answer."""
    server = record.server or ServerInfo()
    own = {key: value for key, value in record.settings.items() if isinstance(value, str | int | float)}
    settings: dict[str, Setting] = {**own, "n_parallel": server.n_parallel, "n_ctx": server.n_ctx}
    answered = row.result.answered
    found: dict[Literal["t/s", "each", "TTFT", "E2E"], tuple[float, ...]] = {
        "t/s": (row.tokens_per_s,) if row.tokens_per_s else (),
        "each": row.samples_tps_each,
        "TTFT": tuple(1 / each.ttft_s for each in answered if each.ttft_s),
        "E2E": tuple(1 / each.e2e_s for each in answered if each.e2e_s),
    }
    for what, rates in found.items():
        if rates:
            yield LoadEntry(LoadMeasure(row.test, what), settings, rates)


_OURS = ("n_threads_batch", "numa", "rope", "override_kv", "lora")
"""Settings that llama-bench has no name for. Not n_ctx: it follows from the test."""


def _settings(row: Row, record: Record) -> dict[str, Setting]:
    known = llama_bench.settings_of(row.settings, record.machine)
    ours = {key: row.settings[key] for key in _OURS if row.settings.get(key)}
    return {**known, **{key: v if isinstance(v, str | int | float) else json.dumps(v) for key, v in ours.items()}}


def _rows(text: str) -> list[dict[str, Any]]:
    """The objects of a JSON array or of JSON lines; none of anything else."""
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
    except (ValueError, RecursionError):
        return []
    return rows if all(isinstance(row, dict) for row in rows) else []


@dataclass(frozen=True)
class _BenchRow:
    """A row of llama-bench's JSON, or of ours, which has `kind`, `n_seq`, `record` and exact `samples_ts` as well."""

    n_prompt: int
    samples_ns: tuple[float, ...]
    n_gen: int = 0
    n_depth: int = 0
    n_seq: int = 1
    kind: Any = None
    record: str | None = None
    samples_ts: tuple[float, ...] = ()

    @property
    def test(self) -> Test:
        kind: TestKind = "pg" if self.n_prompt and self.n_gen else "tg" if self.n_gen else "pp"
        kind = self.kind if self.kind in get_args(TestKind) else kind
        return Test(kind, self.n_prompt, self.n_gen, self.n_depth, self.n_seq)

    @property
    def samples_tps(self) -> tuple[float, ...]:
        """llama-bench rounds its samples_ts to six digits; its nanoseconds are exact."""
        if self.record is not None:
            return self.samples_ts
        return tuple(1e9 * (self.n_prompt + self.n_gen) / ns for ns in self.samples_ns)


def _read_row(document: Mapping[str, Any], where: str) -> _BenchRow:
    """Raises `UsageError`, naming the field."""
    try:
        row = codec.convert(document, _BenchRow)
    except codec.Malformed as error:
        raise UsageError(f"{where}: {error.place} {error.problem}") from None
    for name in ("n_prompt", "n_gen", "n_depth", "n_seq"):
        if getattr(row, name) < 0:
            raise UsageError(f"{where}: {name} must not be below 0")
    for name in ("samples_ns", "samples_ts"):
        if not all(0 < value < math.inf for value in getattr(row, name)):
            raise UsageError(f"{where}: {name} must be numbers above 0")
    return row


@dataclass(frozen=True)
class _LoadRow:
    """A load as our JSON has it."""

    load: LoadRow
    record: str = ""
    model_name: str = "unknown"
    model_sha256: str | None = None
    cpu_info: str | None = None
    server: str | None = None
    n_parallel: int | None = None


def _of_loads(rows: Sequence[dict[str, Any]], name: str) -> Record:
    """What our JSON keeps of the record. Raises `UsageError`."""
    found = [read_part(_LoadRow, row, name, f"row {i}") for i, row in enumerate(rows, start=1)]
    first = found[0]
    file = (ModelFile(first.model_name, sha256=first.model_sha256),) if first.model_sha256 else ()
    return Record(
        id=first.record,
        created=first.load.started or "",
        machine=MachineInfo(first.cpu_info),
        build=BuildInfo(),
        model=ModelInfo(first.model_name, file),
        server=ServerInfo(first.server, first.n_parallel),
        loads=tuple(each.load for each in found),
    )


def _of_bench(rows: Sequence[dict[str, Any]], name: str) -> Side:
    entries = []
    for number, document in enumerate(rows, start=1):
        row = _read_row(document, f"{name}: row {number}")
        names = (*llama_bench.DEFAULTS, "n_threads", "n_threads_batch")
        if row.samples_tps:
            settings = {key: document[key] for key in names if key in document}
            entries.append(Entry(row.test, settings, row.samples_tps))
    first = rows[0]
    known = {"model": "model_type", "size": "model_size", "sha256": "model_sha256", "cpu": "cpu_info"}
    return Side(name, tuple(entries), {key: str(first[field]) for key, field in known.items() if first.get(field)})
