"""A load in a record: figures counted by hand, its way to JSON and back, compared, drawn and exported."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import RunLlmrun
from test_record import RECORD, ROOT

from llmrun.bench import compare, journal
from llmrun.bench.export.formats import Format, export
from llmrun.bench.load import Objectives
from llmrun.bench.load_row import LoadRow, LoadTest, Request, ServerInfo, warnings_of
from llmrun.bench.plot import figures, images
from llmrun.bench.plot.text import sketch
from llmrun.bench.record import Record, read_record, to_document
from llmrun.bench.sides import open_bench, open_side, side_of
from llmrun.errors import UsageError


def answer(asked_s: float, ttft_s: float, tpot_s: float, **more: Any) -> Request:
    """Eleven tokens in ten pieces, of a prompt of five tokens that took the server 0.1 s."""
    first = asked_s + ttft_s
    pieces = tuple(first + i * tpot_s * 10 / 9 for i in range(10))
    return Request(asked_s, pieces, **{"n_prompt": 5, "n_cached": 1, "n_made": 11, "server_prompt_s": 0.1, **more})


def load(n: int, ttft_s: Sequence[float] = (0.5,) * 20, tpot_s: float = 0.1, **more: Any) -> LoadRow:
    return LoadRow(LoadTest(128, 64, in_flight=n), tuple(answer(0.0, each, tpot_s) for each in ttft_s), **more)


FAILED = Request(0.0, (), error="503: the queue is full", error_kind="http 503")
LOADS = tuple(load(n, [0.5 * n + i / 100 for i in range(20)], 0.1 * n**0.5) for n in (1, 2, 4))
SERVED = replace(
    RECORD, rows=(), server=ServerInfo("llmrun 0.1.0", 4, 1024, is_here=True), loads=LOADS, settings={"seed": 1}
)


def served(*loads: LoadRow, **more: Any) -> Record:
    return replace(SERVED, loads=loads, **more)


# -- figures ---


def test_tokens_are_counted_by_the_server() -> None:
    """Pieces may have several: eleven tokens in ten pieces, 0.5 s and then ten gaps of 0.1 s, are 10 t/s each."""
    row = load(2, client_cpu_s=0.2)
    assert row.tps_each == pytest.approx(10.0) and row.seconds == pytest.approx(1.5)
    assert row.n_made == 220 and row.tokens_per_s == pytest.approx(220 / 1.5)
    assert row.client_s == pytest.approx(0.01) and row.client_cores == pytest.approx(0.2 / 1.5)
    uncounted = replace(row, requests=(*row.requests, answer(0.0, 0.5, 0.1, n_made=None)))
    assert (uncounted.n_made, uncounted.tokens_per_s) == (None, None)
    assert [each.code for each in warnings_of(uncounted)] == ["uncounted"]


def test_both_clocks() -> None:
    """The first token came after 0.5 s, of which the server says that 0.1 s were the prompt's: 0.4 s of waiting."""
    found = load(1).quantiles()
    assert found["ttft_p50_s"] == 0.5 and found["server_prompt_p90_s"] == 0.1
    assert found["waiting_p50_s"] == pytest.approx(0.4) and found["server_decode_p50_s"] is None
    assert load(1).tps_each_by_server is None
    silent = replace(load(1), requests=(Request(0.0, (0.5,)),))
    assert set(silent.quantiles().values()) == {None}


def test_quantiles_need_their_figures() -> None:
    """Twenty answers have a p90 and no p99; their 180 gaps have one."""
    found = LOADS[0].quantiles()
    assert found["ttft_p50_s"] == pytest.approx(0.59) and found["ttft_p90_s"] == pytest.approx(0.67)
    assert found["ttft_p99_s"] is None and found["itl_p99_s"] == pytest.approx(1 / 9)


def test_errors_are_apart() -> None:
    """By kind, in no latency and no rate; an answer that failed meets no objective."""
    row = load(1, objectives=Objectives(ttft_s=0.5))
    broken = replace(row, requests=(*row.requests, FAILED, FAILED, replace(FAILED, error_kind="timeout")))
    assert broken.errors == {"http 503": 2, "timeout": 1} and broken.error == FAILED.error
    assert broken.quantiles() == row.quantiles() and broken.tokens_per_s == row.tokens_per_s
    assert row.is_met is True and broken.is_met is False and load(1).is_met is None
    assert broken.goodput_per_s == row.goodput_per_s == pytest.approx(20 / 1.5)
    (warning,) = warnings_of(broken)
    assert str(warning) == "3 of 23 requests failed (2 of http 503, 1 of timeout): 503: the queue is full"


def test_a_busy_client_is_a_warning() -> None:
    """It is Python, and has one core at most: 1.2 s of 1.5."""
    assert [each.code for each in warnings_of(load(1, client_cpu_s=1.2), on_battery=True)] == ["client-busy", "battery"]


# -- the record ---


def test_round_trip(tmp_path: Path) -> None:
    """What is written is read again, to the last field; a record of a model has no word of servers."""
    assert read_record(json.loads(json.dumps(to_document(SERVED))), "here") == SERVED
    assert not {"server", "loads"} & set(to_document(RECORD))
    path = tmp_path / "j.jsonl"
    begun = replace(SERVED, loads=(), ended=None)
    with journal.Journal(path, begun) as kept:
        assert journal.read_file(path) == begun
        for row in LOADS:
            kept.add(row)
        assert journal.read_file(path) == replace(SERVED, ended=None)
        kept.end(SERVED.ended)
    assert journal.read_file(path) == SERVED


def test_schema() -> None:
    """The published schema takes it, and refuses what the reader refuses."""
    schema = json.loads((ROOT / "docs" / "bench-record.schema.json").read_text(encoding="utf-8"))
    valid = jsonschema.Draft202012Validator(schema)
    document = json.loads(json.dumps(to_document(served(load(1, objectives=Objectives(0.5))))))
    assert list(valid.iter_errors(document)) == []
    document["loads"][0]["requests"][0]["piece_s"] = "x"
    assert len(list(valid.iter_errors(document))) == 1
    with pytest.raises(UsageError, match=r"loads\[0\].requests\[0\].piece_s must be a list"):
        read_record(document, "here")


# -- exports ---


@pytest.mark.parametrize("format", ["json", "jsonl"])
def test_json_has_figures_and_requests(format: Format, tmp_path: Path) -> None:
    """A comparison and a picture take the file as they take the record."""
    text = export(served(*LOADS, replace(LOADS[0], requests=(FAILED,))), format)
    rows = json.loads(text) if format == "json" else [json.loads(line) for line in text.splitlines()]
    assert [row["in_flight"] for row in rows] == [1, 2, 4, 1]
    assert rows[0]["ttft_p50_s"] == pytest.approx(0.59) and rows[0]["ttft_p99_s"] is None
    assert (rows[3]["n_answers"], rows[3]["errors"], rows[3]["tokens_per_s"]) == (0, "http 503:1", None)
    path = tmp_path / f"x.{format}"
    path.write_text(text)
    side, record = open_bench(str(path))
    assert record and record.loads[:3] == LOADS and record.server == ServerInfo("llmrun 0.1.0", 4)
    result = compare.compare(side_of(SERVED), side)
    assert len(result.matches) == 12 and all(match.comparison.ratio == pytest.approx(1) for match in result.matches)


def test_tables() -> None:
    """What was loaded, a line for each load, what has to be said of them; objectives have a column where there are
    some."""
    lines = export(served(load(1, client_cpu_s=0.2), load(16)), "table").splitlines()
    assert lines[0] == ("tiny · llmrun 0.1.0 · 4 side by side · a CPU · prompts of 128 words, answers of 64 tokens")
    assert lines[2].split()[:4] == ["LOAD", "T/S", "EACH", "BY"] and "GOOD/S" not in lines[2]
    assert lines[3].split()[:5] == ["1", "at", "once", "147", "10.0"] and lines[4].startswith("16 at once ")
    assert lines[6:] == [
        "the client took 10.0 ms of CPU time of a request, at most",
        "p99 takes 100 figures, p90 ten: a load had 20 answers",
    ]
    md = export(served(load(1, objectives=Objectives(ttft_s=1))), "md").splitlines()
    assert [cell.strip() for cell in md[2].split("|")][-3:-1] == ["good/s", "errors"]
    assert [cell.strip() for cell in md[4].split("|")][1:4] == ["1 at once", "147", "10.0"]


def test_csv_and_sql() -> None:
    """Unknown is empty, and NULL; whole numbers are whole in a strict table."""
    (row,) = csv.DictReader(io.StringIO(export(served(load(1)), "csv")))
    assert (row["in_flight"], row["per_s"], row["n_made"], row["ttft_p99_s"]) == ("1", "", "220", "")
    db = sqlite3.connect(":memory:")
    met = load(4, objectives=Objectives(ttft_s=1))
    db.executescript(export(served(load(1), met), "sql").replace("\n);\n", "\n) STRICT;\n", 1))
    found = db.execute("select in_flight, n_made, ttft_p99_s, meets_objectives from llmrun_bench_serve").fetchall()
    assert found == [(1, 220, None, None), (4, 220, None, 1)]
    db.close()


# -- compared ---


def test_compare() -> None:
    """By load: each answer is a sample of its times and its rate; of all together there is one. Twice as fast is 2."""
    slow = [load(n, [1.0 + i / 100 for i in range(20)], 0.2) for n in (1, 4)]
    fast = [load(n, [0.5 + i / 200 for i in range(20)], 0.1) for n in (4, 1, 8)]
    result = compare.compare(side_of(served(*slow)), side_of(served(*fast, server=ServerInfo("llama.cpp b1", 4, 1024))))
    assert [match.test.name for match in result.matches[:4]] == [
        f"1 at once, 128+64: {what}" for what in ("t/s", "each", "TTFT", "E2E")
    ]
    together, each, ttft, e2e = result.matches[4:]
    assert together.comparison.word == "too few samples" and together.comparison.ratio == pytest.approx(2)
    assert each.comparison.word == ttft.comparison.word == e2e.comparison.word == "faster"
    assert ttft.comparison.ratio == pytest.approx(2, rel=0.01)
    assert ttft.times_s == pytest.approx((1.095, 0.5475), rel=0.001) and each.times_s is None
    assert result.differences == {"server": ("llmrun 0.1.0", "llama.cpp b1")}
    assert result.only_b == tuple(f"8 at once, 128+64: {what}" for what in ("t/s", "each", "TTFT", "E2E"))


def test_four_loads_of_a_kind_have_an_interval() -> None:
    """--concurrency 4,4,4,4 on both sides."""
    a, b = (served(*(load(4, tpot_s=tpot_s) for _ in range(4))) for tpot_s in (0.2, 0.1))
    (together, *_) = compare.compare(side_of(a), side_of(b)).matches
    assert (together.comparison.n_a, together.comparison.word) == (4, "faster")


def test_unlike_loads_are_not_compared() -> None:
    """Other prompts, other answers, or no server at all: the error names what each has."""
    other = served(replace(load(1), test=LoadTest(512, 64, 32, 1)))
    with pytest.raises(UsageError, match=r"ab12 has 1 at once, 128\+64; .*ab12 has 1 at once, 32\+512\+64$"):
        compare.compare(side_of(served(load(1))), side_of(other))
    with pytest.raises(UsageError, match=r"has pp512, tg4; .* has 1 at once, 128\+64$"):
        compare.compare(side_of(RECORD), side_of(served(load(1))))


def test_compare_command(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Times in seconds, rates in tokens per second; a load is judged by what has an interval."""
    for name, tpot_s in (("a", 0.1), ("b", 0.2)):
        text = json.dumps(to_document(served(load(4, [0.5 + i / 100 for i in range(20)], tpot_s))))
        (tmp_path / f"{name}.json").write_text(text)
    a, b = (str(tmp_path / f"{name}.json") for name in "ab")
    done = llmrun("compare", a, b, "--json")
    found = {test["test"].split(": ")[1]: test for test in json.loads(done.stdout)["tests"]}
    assert (found["TTFT"]["median_a"], found["TTFT"]["verdict"]) == (pytest.approx(0.595, rel=0.001), "same")
    assert (found["each"]["median_b"], found["each"]["verdict"]) == (pytest.approx(5), "slower")
    assert found["t/s"]["verdict"] == "too few samples"
    assert llmrun("compare", a, b, "--fail-under", "0.9").returncode == 12
    assert llmrun("compare", b, a, "--fail-under", "0.9").returncode == 0


# -- drawn ---


def test_figure() -> None:
    """All together, each, the time to the first token by quantile, and each against all."""
    figure = figures.figure([figures.Bench(side_of(SERVED), SERVED)])
    together, each, ttft, against = figure.panels
    assert figure.kinds == ("load",) and figure.title == "tiny · a"
    assert together.x.label == "requests at once" and together.x.scale == "log"
    assert [(p.x, round(p.y, 3)) for p in each.series[0].points] == [(1, 10), (2, 7.071), (4, 5)]
    assert [series.label for series in ttft.series] == ["p50", "p90"]  # twenty answers have no p99
    assert [p.label for p in against.series[0].points] == ["1", "2", "4"]
    assert [p.x for p in against.series[0].points] == [p.y for p in together.series[0].points]
    assert figure.notes[0].startswith("20 answers to a load · ")
    text = sketch(figure, 60)
    assert "requests at once" in text and f"  1: {against.series[0].points[0].x:.0f}  " in text
    png = images.render(figure, "png")
    assert struct.unpack(">II", png[16:24])[0] == 1320


def test_figure_of_two() -> None:
    """A line for each server, and a panel for each quantile, so that a colour is a server."""
    other = replace(SERVED, server=ServerInfo("llama.cpp b1"))
    figure = figures.figure([figures.Bench(side_of(each), each) for each in (SERVED, other)])
    assert len(figure.panels) == 5
    assert {series.label for panel in figure.panels for series in panel.series} == {"llmrun 0.1.0", "llama.cpp b1"}


def test_figure_of_rates() -> None:
    """An open loop is drawn by requests a second."""
    rows = [replace(load(1), test=LoadTest(128, 64, per_s=per_s)) for per_s in (0.5, 1.0, 2.0)]
    figure = figures.figure([figures.Bench(side_of(served(*rows)), served(*rows))])
    panel = figure.panels[0]
    assert panel.x.label == "requests a second" and [p.x for p in panel.series[0].points] == [0.5, 1, 2]


@pytest.mark.parametrize(
    ("made", "kinds", "x", "said"),
    [
        ([served(load(1))], [], None, "nothing varies"),
        ([SERVED], ["sweep"], None, "kind: 'sweep' can't be drawn"),
        ([SERVED], [], "n_threads", "x: loads are drawn by how many"),
        ([SERVED, RECORD], [], None, "20261121-010203-ab12 has no loads"),
        ([RECORD], ["load"], None, "no server was measured"),
    ],
)
def test_nothing_to_draw(made: list[Record], kinds: list[figures.Kind], x: str | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        figures.figure([figures.Bench(side_of(each), each) for each in made], kinds, x)


def test_history(llmrun: RunLlmrun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed with who served it, shown as a table, plotted; one that was cut short says so."""
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path))
    journal.Journal.of(replace(SERVED, ended=None)).close()
    (line,) = llmrun("bench", "history").stdout.splitlines()[1:]
    assert "tiny, by llmrun 0.1.0" in line and "1 at once " in line and line.endswith("cut short")
    (summary,) = json.loads(llmrun("bench", "history", "--json").stdout)
    assert [each["test"] for each in summary["loads"]] == [f"{n} at once, 128+64" for n in (1, 2, 4)]
    done = llmrun("bench", "history", "show", "last")
    assert done.stdout.splitlines()[3].startswith("1 at once") and "3 loads were finished" in done.stderr
    assert open_side("last").loads and llmrun("plot", "last").returncode == 0
