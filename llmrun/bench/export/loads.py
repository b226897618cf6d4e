"""Loads at a server as rows: flat for programs, and the columns that people read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llmrun.bench.export.columns import build_line, to_width
from llmrun.bench.export.llama_bench import Value
from llmrun.bench.export.rows import Writer
from llmrun.bench.load_row import LoadRow, LoadTest, ServerInfo
from llmrun.bench.record import Record, to_document
from llmrun.machine.environment import BuildInfo, MachineInfo
from llmrun.models.model_info import ModelInfo
from llmrun.units import duration, fixed, significant

TABLE = "llmrun_bench_serve"
TEXT_FIELDS = frozenset("record started model_name model_sha256 cpu_info server test errors warnings error".split())
_COUNTS = frozenset(
    "in_flight n_parallel n_prompt_words n_shared_words n_gen n_requests n_answers n_errors n_made n_prompt n_cached"
    " meets_objectives".split()
)


def fields_of(record: Record, row: LoadRow) -> dict[str, Value]:
    """One row: seconds, tokens, tokens per second; None is unknown. `errors`: "http 503:3;timeout:1"."""
    test, answered, quantiles = row.test, row.answered, row.quantiles()
    prompts = sorted(each.n_prompt for each in answered if each.n_prompt is not None)
    cached = [each.n_cached for each in answered if each.n_cached is not None]
    return {
        "record": record.id,
        "started": row.started,
        "model_name": record.model.name,
        "model_sha256": record.model.files[0].sha256 if record.model.files else None,
        "cpu_info": record.machine.cpu,
        "server": record.server.software if record.server else None,
        "n_parallel": record.server.n_parallel if record.server else None,
        "test": test.name,
        "in_flight": test.in_flight,
        "per_s": test.per_s,
        "n_prompt_words": test.n_prompt,
        "n_shared_words": test.n_shared,
        "n_gen": test.n_gen,
        "spread": test.spread,
        "n_requests": len(row.requests),
        "n_answers": len(answered),
        "n_errors": len(row.requests) - len(answered),
        "errors": ";".join(f"{kind}:{n}" for kind, n in row.errors.items()),
        "seconds": row.seconds,
        "n_made": row.n_made,
        "n_prompt": prompts[len(prompts) // 2] if prompts else None,
        "n_cached": sum(cached) if cached else None,
        "tokens_per_s": row.tokens_per_s,
        "tokens_per_s_each": row.tps_each,
        "tokens_per_s_each_by_server": row.tps_each_by_server,
        **quantiles,
        "goodput_per_s": row.goodput_per_s,
        "meets_objectives": row.is_met,
        "client_cpu_s": row.client_s,
        "client_cores": row.client_cores,
        "warnings": ";".join(warning.code for warning in row.warnings),
        "error": row.error,
    }


def field_names() -> list[str]:
    return list(fields_of(_EMPTY, LoadRow(LoadTest(1, 1))))


def sql_type(name: str) -> str:
    return "TEXT" if name in TEXT_FIELDS else "INTEGER" if name in _COUNTS else "REAL"


def plain(_name: str, value: Value) -> str:
    return "" if value is None else str(int(value)) if isinstance(value, bool) else str(value)


def samples_of(row: LoadRow) -> dict[str, object]:
    """What a comparison or a picture takes: the row of the record."""
    return {"load": to_document(row)}


_EMPTY = Record("", "", MachineInfo(), BuildInfo(), ModelInfo(""))


# -- for people ---


class LoadTable(Writer[LoadRow]):
    """A table for the terminal: what was loaded above, a line for each load, what has to be said of them below."""

    def begin(self, record: Record, planned: Sequence[LoadRow], *, energy: bool = False) -> str:
        self._record = record
        self._columns = _columns(planned, is_short=True)
        titles = [column.title.upper() for column in self._columns]
        longest = max([10, *(len(row.test.name) for row in planned)])  # capacities are not planned
        self._widths = [-longest, *(max(7, len(title)) for title in titles[1:])]
        return f"{_head(record, planned)}\n\n{self._line(titles)}"

    def row(self, row: LoadRow) -> str:
        return self._line(_cells(self._columns, row))

    def end(self, record: Record) -> str:
        return "".join(f"{line}\n" for line in ("", *notes(record))) if record.loads else ""

    def _line(self, cells: Sequence[str]) -> str:
        return "  ".join(map(to_width, cells, self._widths)).rstrip() + "\n"


class LoadMarkdown(Writer[LoadRow]):
    """The same in Markdown, and with what it was measured."""

    def begin(self, record: Record, planned: Sequence[LoadRow], *, energy: bool = False) -> str:
        self._record = record
        self._columns = _columns(planned, is_short=False)
        titles = [column.title for column in self._columns]
        rules = "|".join(["---", *("--:" for _ in titles[1:])])
        return f"{_head(record, planned)}\n\n| {' | '.join(titles)} |\n|{rules}|\n"

    def row(self, row: LoadRow) -> str:
        return f"| {' | '.join(_cells(self._columns, row))} |\n"

    def end(self, record: Record) -> str:
        said = "".join(f"- {line}\n" for line in notes(record))
        return f"\n{said}{chr(10) if said else ''}build: {build_line(record)}\n"


MOST_NEEDED = 100
"""Figures for the rarest quantile, p99."""


def notes(record: Record) -> list[str]:
    """What has to be said of the loads: warnings, the client's part, and why a quantile is missing."""
    said = [f"{row.test.name}: {warning}" for row in record.loads for warning in row.warnings]
    costs = [row.client_s for row in record.loads if row.client_s is not None]
    if costs:
        said.append(f"the client took {duration(max(costs))} of CPU time of a request, at most")
    n_answers = sorted(len(row.answered) for row in record.loads)
    if n_answers and n_answers[0] < MOST_NEEDED:
        had = " to ".join(map(str, dict.fromkeys((n_answers[0], n_answers[-1]))))
        said.append(f"p99 takes {MOST_NEEDED} figures, p90 ten: a load had {had} answers")
    return list(dict.fromkeys(said))


def _head(record: Record, planned: Sequence[LoadRow]) -> str:
    """Model, server, machine; how long prompts and answers are."""
    model, server = record.model, record.server or ServerInfo()
    slots = f"{server.n_parallel} side by side" if server.n_parallel else None
    cpu = record.machine.cpu if server.is_here else None
    sizes = None
    if planned:
        test = planned[0].test
        shared = f"{test.n_shared} shared words and " if test.n_shared else ""
        spread = f", each ±{100 * test.spread:g} %" if test.spread else ""
        sizes = f"prompts of {shared}{test.n_prompt} words, answers of {test.n_gen} tokens{spread}"
    return " · ".join(filter(None, (model.name, model.quantization, server.software, slots, cpu, sizes)))


@dataclass(frozen=True)
class _Column:
    """`of`: a name of `LoadRow.quantiles`, or what makes the cell. `is_short`: it stands in a terminal's table, too."""

    title: str
    of: str | Callable[[LoadRow], str]
    is_short: bool = True

    def cell(self, row: LoadRow, quantiles: Mapping[str, float | None]) -> str:
        return duration(quantiles[self.of]) if isinstance(self.of, str) else self.of(row)


_GOOD = _Column("good/s", lambda row: fixed(row.goodput_per_s, 2))
_COLUMNS = (
    _Column("load", lambda row: row.test.name),
    _Column("t/s", lambda row: significant(row.tokens_per_s)),
    _Column("each", lambda row: significant(row.tps_each)),
    _Column("by server", lambda row: significant(row.tps_each_by_server)),
    _Column("TTFT p50", "ttft_p50_s"),
    _Column("p90", "ttft_p90_s"),
    _Column("p99", "ttft_p99_s"),
    _Column("waiting", "waiting_p50_s"),
    _Column("gap p50", "itl_p50_s"),
    _Column("p90", "itl_p90_s", is_short=False),
    _Column("p99", "itl_p99_s"),
    _Column("TPOT p50", "tpot_p50_s", is_short=False),
    _Column("E2E p50", "e2e_p50_s"),
    _Column("p90", "e2e_p90_s", is_short=False),
    _Column("p99", "e2e_p99_s"),
    _GOOD,
    _Column("errors", lambda row: str(len(row.requests) - len(row.answered))),
)
"""`waiting` is the median of what the TTFT has beside the prompt's computation by the server's clock."""


def _columns(planned: Sequence[LoadRow], *, is_short: bool) -> list[_Column]:
    has_objectives = any(row.objectives for row in planned)
    return [c for c in _COLUMNS if (c.is_short or not is_short) and (has_objectives or c is not _GOOD)]


def _cells(columns: Sequence[_Column], row: LoadRow) -> list[str]:
    quantiles = row.quantiles()
    return [column.cell(row, quantiles) for column in columns]
