"""The record of a bench: its arithmetic, its way to JSON and back, and the journal that survives whatever happens."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from waiting import HANGS_S

from llmrun.bench import journal
from llmrun.bench.export.stream import ExportFile
from llmrun.bench.record import Record, Row, Sample, Steps, read_record, to_document
from llmrun.bench.spec import Test
from llmrun.bench.warnings import RowWarning
from llmrun.clock import new_id
from llmrun.errors import DiskError, NotFound, UsageError
from llmrun.machine.energy import Energy
from llmrun.machine.environment import BuildInfo, DeviceInfo, MachineInfo
from llmrun.machine.sampler import GpuUsage, Usage
from llmrun.models.model_info import ModelFile, ModelInfo

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).resolve().parents[2]
GPU = GpuUsage(0, "a GPU", 80, 1, 2, None, 0.5, 300.0, 350.0, 12.5, 1980.0, None, 60, ("power",))
USAGE = Usage(9, 2.0, 700, 600, 100, 0, 0, 3, 4.0, 0.1, None, (GPU,), None, None, cost_s=0.001, interval_s=0.25)
DECODE = Row(
    Test("tg", n_gen=4),
    {"n_threads": 2, "devices": [], "repack": True},
    # Four steps in 40 ms, then in 50 ms: 100 and 80 t/s.
    (Sample(steps=Steps.of([0.01] * 4), at_s=1.0), Sample(steps=Steps.of([0.01, 0.01, 0.01, 0.02]), at_s=2.0)),
    started="2026-11-21T01:02:04Z",
    load_s=0.5,
    step_read_bytes={"RAM": 100_000_000},
    ceiling_bytes_per_s={"RAM": (9e9, 11e9)},
    energy=(Energy("CPU package", 4.0, "RAPL"), Energy("CPU cores", 3.0, "RAPL")),
    usage=USAGE,
    buffers={"RAM": {"model": 5, "KV": 6}},
    warnings=(RowWarning("noisy", "the samples differ by 22 %", {"spread": 0.22}, "close what computes"),),
)
PREFILL = Row(Test("pp", n_prompt=512), samples=(Sample(prefill_s=2.0), Sample(prefill_s=1.0), Sample(prefill_s=4.0)))
RECORD = Record(
    id="20261121-010203-ab12",
    created="2026-11-21T01:02:03Z",
    machine=MachineInfo(
        "a CPU", devices=(DeviceInfo("CPU", "cpu", "a CPU", "CPU", 8, 4),), virtual=True, cpu_quota=1.5
    ),
    build=BuildInfo("0.1.0", "0.3.36", "0.25.3"),
    model=ModelInfo("tiny", (ModelFile("tiny.gguf", 10, "0" * 64),), "llama ?B Q8_0", tensor_types={"Q8_0": 9}),
    command=("llmrun", "bench", "tiny"),
    settings={"n_repetitions": 2},
    rows=(PREFILL, DECODE),
    ended="2026-11-21T01:03:00Z",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder of its own."""
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"


# -- arithmetic --------------------------------------------------------------------------------------------------------


def test_rates_of_prefill() -> None:
    """512 tokens in 2, 1 and 4 s are 256, 512 and 128 t/s: mean 298.67, median 256, over n-1 it deviates by 195.52."""
    assert list(PREFILL.samples_tps) == [256, 512, 128]
    assert PREFILL.mean_tps == pytest.approx(896 / 3)
    assert PREFILL.median_tps == PREFILL.prefill_tps == pytest.approx(256)
    # Squares of the distances from 298.67: 1820.44, 45511.11, 29127.11; over 2, the root.
    assert PREFILL.stddev_tps == pytest.approx(195.5232, abs=1e-4)
    assert (PREFILL.decode_tps, PREFILL.gap_p95_s, PREFILL.ttft_s) == (None, None, None)


def test_rates_of_decode() -> None:
    """Four steps in 40 ms are 100 t/s, in 50 ms 80: mean and median 90, and a step takes 11.25 ms."""
    assert DECODE.samples_tps == pytest.approx((100, 80))
    assert DECODE.mean_tps == DECODE.decode_tps == pytest.approx(90)
    assert DECODE.stddev_tps == pytest.approx(200**0.5)
    assert DECODE.step_s == pytest.approx(0.01125)
    assert DECODE.gap_median_s == pytest.approx(0.01)
    assert DECODE.gap_p95_s == pytest.approx(0.015)  # of 10 and 20 ms


def test_bandwidth() -> None:
    """100 MB in 11.25 ms are 8.89 GB/s, of a ceiling of 10 (the median of 9 and 11) 89 %: memory holds it up."""
    assert DECODE.read_bytes_per_s == pytest.approx({"RAM": 100e6 / 0.01125})
    assert DECODE.mbu == pytest.approx(0.1e9 / 10e9 / 0.01125)
    assert DECODE.verdict == "memory"
    slow = replace(DECODE, ceiling_bytes_per_s={"RAM": (100e9,)})
    assert slow.mbu == pytest.approx(0.0889, abs=1e-4) and slow.verdict == "neither"


def test_bandwidth_of_two_memories() -> None:
    """One memory is read after the other: 10 ms of RAM and 1 ms of VRAM at their ceilings are 88 % of 12.5 ms."""
    row = Row(
        Test("tg", n_gen=2),
        samples=(Sample(steps=Steps.of([0.0125, 0.0125])),),
        step_read_bytes={"RAM": 100_000_000, "CUDA0": 2_000_000_000},
        ceiling_bytes_per_s={"RAM": (10e9,), "CUDA0": (2000e9,)},
    )
    assert row.mbu == pytest.approx(0.011 / 0.0125)
    assert replace(row, ceiling_bytes_per_s={"RAM": (10e9,)}).mbu is None
    assert replace(row, ceiling_bytes_per_s=None).verdict is None


def test_operations() -> None:
    """2 GFLOP a token at 256 t/s are 512 GFLOP/s: half of 1024, which no ceiling explains."""
    row = replace(PREFILL, flops_per_token=2e9, ceiling_flops_per_s=(1024e9,))
    assert row.mfu == pytest.approx(0.5) and row.verdict == "neither"
    assert replace(row, ceiling_flops_per_s=(700e9,)).verdict == "compute"
    assert replace(row, ceiling_flops_per_s=(400e9,)).verdict is None  # 128 %: that was no ceiling


def test_rates_of_several_sequences_and_of_requests() -> None:
    """Four sequences make four tokens a step. A request's rate counts all of its tokens and all of its time."""
    parallel = Row(Test("tg", n_gen=2, n_seq=4), samples=(Sample(steps=Steps.of([0.1, 0.1])),))
    assert parallel.mean_tps == pytest.approx(40)
    both = Row(Test("pg", 6, 4), samples=(Sample(prefill_s=1.0, steps=Steps.of([0.25] * 4)),))
    assert both.mean_tps == pytest.approx(5)  # 10 tokens in 2 s
    assert (both.prefill_tps, both.decode_tps) == (6, 4)
    request = Sample(prefill_s=1.0, steps=Steps.of([0.25] * 3), ttft_s=1.25, total_s=2.0)
    assert Row(Test("e2e", 6, 4), samples=(request,)).mean_tps == pytest.approx(2)  # 4 tokens, 3 gaps, 2 s


def test_joules_per_token() -> None:
    """Four joules for two samples of four tokens are half a joule each, the boundary named."""
    assert DECODE.joules_per_token == {"CPU package": 0.5, "CPU cores": 0.375}
    assert PREFILL.joules_per_token is None


def test_what_nobody_measured_is_unknown() -> None:
    """A row without samples has no rates; one sample has no deviation."""
    empty = Row(Test("tg", n_gen=4), error="out of memory")
    rates = (empty.mean_tps, empty.median_tps, empty.stddev_tps, empty.mbu, empty.verdict, empty.joules_per_token)
    assert rates == (None,) * 6
    assert replace(PREFILL, samples=PREFILL.samples[:1]).stddev_tps is None
    assert Steps.of([]) is None


def test_long_samples_are_summarised() -> None:
    """Of more steps than are kept, their number, sum, median, 95th percentile and longest stay."""
    step_s = [i / 1000 for i in range(1, 101)]
    assert Steps.of(step_s, keep=99) == Steps(100, math.fsum(step_s), 0.05, 0.095, 0.1, None)
    kept = Steps.of(step_s, keep=100)
    assert kept and kept.each_s == tuple(step_s)


def test_names_of_tests() -> None:
    """As llama-bench writes them; ours where it has none."""
    tests = [Test("pp", 512), Test("tg", n_gen=128, n_depth=4096), Test("pg", 512, 128), Test("e2e", 512, 128)]
    assert [t.name for t in tests] == ["pp512", "tg128 @ d4096", "pp512+tg128", "e2e512+128"]
    assert Test("tg", n_gen=128, n_depth=64, n_seq=4).name == "tg128 x4 @ d64"


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_round_trip() -> None:
    """What is written is read again, to the last field."""
    assert read_record(json.loads(json.dumps(to_document(RECORD))), "here") == RECORD
    assert list(to_document(RECORD))[:3] == ["schema", "id", "created"]


def test_unknown_fields_and_missing_ones() -> None:
    """A newer writer's fields are ignored; what may be unknown may be missing."""
    document = to_document(RECORD)
    document["later"] = 1
    document["rows"][0]["predicted"] = {"a": 1}
    del document["machine"]["cpu"], document["rows"][1]["usage"], document["command"]
    read = read_record(document, "here")
    assert read.machine.cpu is None and read.rows[1].usage is None and read.command == ()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("rows", 0, "test", "n_prompt"), "512", r"b.json: rows\[0\].test.n_prompt must be a whole number, not a text"),
        (("rows", 0, "test", "n_prompt"), True, r"rows\[0\].test.n_prompt must be a whole number"),
        (("rows", 0, "test", "kind"), "xx", r"rows\[0\].test.kind has an unknown value, 'xx'"),
        (("rows", 1, "samples", 0, "steps", "each_s", 2), None, r"samples\[0\].steps.each_s\[2\] must be a number"),
        (("machine", "virtual"), 1, "machine.virtual must be true or false"),
        (("machine", "devices"), {}, "machine.devices must be a list, not an object"),
        (("rows", 1, "buffers", "RAM"), 5, r"rows\[1\].buffers\[...\] must be an object, not a whole number"),
        (("schema",), "llmrun.bench/2", "written as 'llmrun.bench/2', this llmrun reads 'llmrun.bench/1'"),
        (("schema",), "other/1", "not a record of a bench"),
    ],
)
def test_wrong_types_are_refused(path: tuple[Any, ...], value: Any, message: str) -> None:
    """The error names the file and the field."""
    document = to_document(RECORD)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(UsageError, match=message):
        read_record(document, "b.json")


def test_missing_and_minor() -> None:
    """What a record can't be without is asked for; a minor version is no reason to refuse."""
    document = to_document(RECORD)
    assert read_record({**document, "schema": "llmrun.bench/1.3"}, "here").id == RECORD.id
    del document["model"]["name"]
    with pytest.raises(UsageError, match="model.name is missing"):
        read_record(document, "here")
    nothings: list[Any] = [None, [], 3, {"rows": []}]
    for nothing in nothings:
        with pytest.raises(UsageError, match="not a record"):
            read_record(nothing, "here")


def test_schema_is_up_to_date() -> None:
    """The published schema is what the dataclasses say: .venv/bin/python scripts/make_schema.py"""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import make_schema
    finally:
        sys.path.pop(0)
    assert make_schema.PATH.read_text(encoding="utf-8") == make_schema.text()


def test_schema_accepts_records_and_nothing_else() -> None:
    """The sample record is valid, and what the reader refuses is not."""
    schema = json.loads((ROOT / "docs" / "bench-record.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    valid = jsonschema.Draft202012Validator(schema)
    document = json.loads(json.dumps(to_document(RECORD)))
    assert list(valid.iter_errors(document)) == []
    document["rows"][0]["test"]["kind"] = "xx"
    document["machine"]["physical_cores"] = 1.5
    assert len(list(valid.iter_errors(document))) == 2
    described = [
        (name, field)
        for name, kind in [("Record", schema), *schema["$defs"].items()]
        for field, said in kind["properties"].items()
        if name not in ("Usage", "GpuUsage") and "description" not in said
    ]
    assert described == []


# -- what version 0.1 wrote --------------------------------------------------------------------------------------------


def test_a_record_of_version_0_1() -> None:
    """Its document is read, and written again byte by byte."""
    text = (DATA / "record-0.1.json").read_text()
    record = journal.parse(text, "here")
    assert json.dumps(to_document(record), indent=2, ensure_ascii=False) + "\n" == text
    assert [row.test.name for row in record.rows] == ["pp512", "tg4", "e2e100+10", "pp16+tg2 x4 @ d64", "pp8"]
    assert record.rows[3].energy == (Energy("GPU 0", 12.5, "NVML", 60.0, 0.1), Energy("CPU package", 9.0, "RAPL"))
    assert record.machine.gpus[0].driver == "555.1" and record.rows[1].usage == USAGE


def test_a_journal_of_version_0_1(tmp_path: Path) -> None:
    """A journal that it wrote of a bench of tiny is read, and written again byte by byte."""
    record = journal.read_file(DATA / "journal-0.1.jsonl")
    assert [row.test.name for row in record.rows] == ["pp16", "tg4", "e2e16+4"] * 2
    assert record.ended and all(row.mean_tps and row.usage for row in record.rows)
    with journal.Journal(tmp_path / "again.jsonl", replace(record, ended=None)) as again:
        again.end(record.ended)
    assert (tmp_path / "again.jsonl").read_text() == (DATA / "journal-0.1.jsonl").read_text()


# -- the journal -------------------------------------------------------------------------------------------------------


def test_journal(tmp_path: Path) -> None:
    """Read at any moment it has the rows that are finished; at the end it is the record."""
    path = tmp_path / "new" / "one.jsonl"
    begun = replace(RECORD, rows=(), ended=None)
    with journal.Journal(path, replace(begun, model=ModelInfo("tiny"))) as kept:
        assert journal.read_file(path).model.description is None
        kept.add(PREFILL)
        kept.update(begun)  # what only the engine could tell
        assert journal.read_file(path) == replace(begun, rows=(PREFILL,))
        kept.add(DECODE)
        kept.end(RECORD.ended)
    assert journal.read_file(path) == RECORD
    assert len(path.read_text().splitlines()) == 5
    with pytest.raises(DiskError, match="one.jsonl: a file is in the way$"):
        journal.Journal(path, begun)


def test_torn_journal(tmp_path: Path) -> None:
    """Cut anywhere behind the first line, it has every row whose line is whole."""
    path, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    row = replace(DECODE, error="kein Platz für 3 × 4 €")
    with journal.Journal(path, replace(RECORD, rows=(PREFILL, row, PREFILL), ended=None)):
        pass
    data = path.read_bytes()
    ends = [i for i, byte in enumerate(data) if byte == 10]
    for cut in [*range(ends[0] + 1, ends[0] + 40), *range(ends[1], ends[1] + 30), *range(ends[2] - 90, len(data) + 1)]:
        torn.write_bytes(data[:cut])
        # A line is whole with its last brace; its newline may be what is missing.
        assert len(journal.read_file(torn).rows) == sum(end <= cut for end in ends[1:])
    damaged = data[: ends[0] + 1] + b"#" + data[ends[0] + 2 :]
    torn.write_bytes(damaged)
    with pytest.raises(UsageError, match="line 2 is damaged"):
        journal.read_file(torn)


_WRITER = """
import sys
from pathlib import Path
from dataclasses import replace
from llmrun.bench import journal
from llmrun.bench.export.stream import ExportFile
from test_record import PREFILL, RECORD
rows = ExportFile(Path(sys.argv[2]), "json"), ExportFile(Path(sys.argv[3]), "csv")
begun = replace(RECORD, rows=())
kept = journal.Journal(Path(sys.argv[1]), begun)
for output in rows:
    output.began(begun, [PREFILL], energy=False)
n = 0
while True:
    kept.add(PREFILL)
    for output in rows:
        output.finished(PREFILL)
    n += 1
    print(n, flush=True)
"""


def test_killed_writer(tmp_path: Path) -> None:
    """SIGKILL in the middle of writing: journal, JSON and CSV have every row that was reported finished."""
    paths = [tmp_path / name for name in ("j.jsonl", "o.json", "o.csv")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "bench"))),
    }
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, *map(str, paths)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert writer.stdout
    for _ in range(5):
        assert writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    said, _ = writer.communicate(timeout=HANGS_S)
    finished = int(["5", *said.split()][-1])
    assert writer.returncode == -signal.SIGKILL
    record = journal.read_file(paths[0])
    assert finished <= len(record.rows) <= finished + 1 and all(row == PREFILL for row in record.rows)
    assert record.ended is None or record.ended == RECORD.ended
    assert finished <= len(json.loads(paths[1].read_text())) <= finished + 1
    assert finished <= paths[2].read_text().count("\n") - 1 <= finished + 1


def test_output_leaves_what_is_no_file(tmp_path: Path) -> None:
    """A link stays a link; a pipe is written to, not replaced."""
    link, target = tmp_path / "link.json", tmp_path / "target.json"
    link.symlink_to(target)
    output = ExportFile(link, "json")
    output.began(replace(RECORD, rows=()), RECORD.rows, energy=False)
    assert json.loads(target.read_text()) == []
    for row in RECORD.rows:
        output.finished(row)
    output.close()
    assert link.is_symlink() and len(json.loads(target.read_text())) == 2
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    output = ExportFile(pipe, "json")
    output.began(replace(RECORD, rows=()), RECORD.rows, energy=False)
    output.finished(PREFILL)
    output.close()
    assert len(json.loads(os.read(reader, 1 << 16))) == 1
    os.close(reader)
    assert pipe.is_fifo()


def test_find(home: Path) -> None:
    """A prefix that only one id begins with is enough; "last" is the newest."""
    ids = ["20261121-010203-ab12", "20261121-010203-ab99", "20261122-000000-0000"]
    for each in ids:
        journal.Journal.of(replace(RECORD, id=each)).close()
    assert journal.find("20261121-010203-ab1").stem == ids[0]
    assert journal.find("20261122").stem == journal.find("last").stem == ids[2]
    with pytest.raises(UsageError, match="2 benches have ids that begin with '2026112"):
        journal.find("20261121")
    with pytest.raises(NotFound, match="'1999'"):
        journal.find("1999")
    assert [each.id for each in journal.stored()] == ids
    journal.remove(journal.find(ids[0]))
    (journal.folder() / "20261123-000000-0000.jsonl").write_text("{")
    assert [each.problem is None for each in journal.stored()] == [True, True, False]
    assert home in journal.folder().parents


def test_ids_sort_by_time() -> None:
    """Two of one second are two."""
    assert len({new_id() for _ in range(20)}) > 15
    assert new_id() > "20260101-000000-0000"
