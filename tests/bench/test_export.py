"""Exports: llmrun's rows and llama-bench's paste side by side, and programs that read one read the other.

The files in data/ are llama-bench's own output for the synthetic model "micro" in Q8_0 (llama.cpp as llama-cpp-python
0.3.36 vendors it), each pair from one run:

    llama-bench -m micro.gguf -t 2 -p 32 -n 16 -r 5 -o json -oe md >llama-bench.json 2>llama-bench.md
    llama-bench -m micro.gguf -t 1,2 -p 32 -n 16 -pg 16,8 -d 0,64 -b 128 -ctk q8_0 -fa on --repack 0 -nkvo 1 -sm none \
        -lm mmap -ot 'blk\\.1=CPU' -r 5 -o jsonl -oe md >llama-bench-sweep.jsonl 2>llama-bench-sweep.md
    llama-bench -m micro.gguf -t 2 -p 32 -n 0 -r 2 -o csv >llama-bench.csv
"""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_record import DECODE, PREFILL, RECORD
from waiting import HANGS_S

from llmrun.bench import journal
from llmrun.bench.export import llama_bench
from llmrun.bench.export.columns import notes
from llmrun.bench.export.formats import Format, export, writer
from llmrun.bench.record import Record, Row, Sample, Steps
from llmrun.bench.spec import Test, asked_settings
from llmrun.bench.warnings import RowWarning
from llmrun.machine.energy import Energy
from llmrun.machine.environment import BuildInfo, DeviceInfo, MachineInfo
from llmrun.models.model_info import ModelFile, ModelInfo
from llmrun.options.load import LoadConfig, Offload

DATA = Path(__file__).parent / "data"
FLASH_ATTN = {-1: "auto", 0: "off", 1: "on"}


def record_of(rows: list[dict[str, Any]]) -> Record:
    """The record that llmrun would have made of llama-bench's run."""
    first = rows[0]
    return Record(
        id="20261121-010203-ab12",
        created="2026-11-21T01:02:03Z",
        machine=MachineInfo(
            first["cpu_info"],
            default_threads=2,
            devices=(DeviceInfo("CPU", "cpu", first["cpu_info"], first["backends"]),),
        ),
        build=BuildInfo(),
        model=ModelInfo(
            "micro",
            (ModelFile(first["model_filename"]),),
            first["model_type"],
            n_params=first["model_n_params"],
            weight_bytes=first["model_size"],
        ),
        rows=tuple(row_of(row) for row in rows),
    )


def row_of(row: dict[str, Any]) -> Row:
    n_prompt, n_gen = row["n_prompt"], row["n_gen"]
    kept = ("n_batch", "n_ubatch", "n_threads", "type_k", "type_v", "n_gpu_layers", "n_cpu_moe", "split_mode")
    override = row["tensor_buft_overrides"]
    settings = {
        **{name: row[name] for name in (*kept, "main_gpu", "load_mode", "repack", "poll")},
        "offload_kv": not row["no_kv_offload"],
        "flash_attn": FLASH_ATTN[row["flash_attn"]],
        "devices": [],
        "tensor_split": [],
        "override_tensor": [] if override == "none" else [override.split("=")],
    }
    samples = []
    for ns in row["samples_ns"]:
        # One step is as good as another here: their sum is what was measured.
        steps = Steps(n_gen, ns / 1e9, ns / 1e9 / n_gen, ns / 1e9 / n_gen, ns / 1e9 / n_gen) if n_gen else None
        both = ns / 1e9 if n_prompt and n_gen else None
        samples.append(Sample(ns / 1e9 if n_prompt and not n_gen else None, steps, total_s=both))
    kind = "pg" if n_prompt and n_gen else "pp" if n_prompt else "tg"
    test = Test(kind, n_prompt, n_gen, row["n_depth"])  # type: ignore[arg-type]
    return Row(test, settings, tuple(samples), row["test_time"])


def golden(name: str) -> list[dict[str, Any]]:
    text = (DATA / name).read_text()
    if text.startswith("["):
        return list(json.loads(text))
    return [json.loads(line) for line in text.splitlines()]


# -- as llama-bench has it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-bench.json", "llama-bench-sweep.jsonl"])
def test_markdown_begins_with_the_table_of_llama_bench(name: str) -> None:
    """The same columns in the same order and form, to the last blank; ours only to their right."""
    theirs = (DATA / name).with_suffix(".md").read_text().split("\n\n")[0].splitlines()
    ours = export(record_of(golden(name)), "md").split("\n\n")[0].splitlines()
    assert [line[: len(their)] for line, their in zip(ours, theirs, strict=True)] == theirs
    assert all(len(line) > len(their) and line.endswith(" |") for line, their in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", ["llama-bench.json", "llama-bench-sweep.jsonl"])
def test_json_has_the_fields_of_llama_bench(name: str) -> None:
    """Its names in its order, its types and its values; ours behind them."""
    theirs = golden(name)
    record = record_of(theirs)
    for ours in (json.loads(export(record, "json")), [json.loads(x) for x in export(record, "jsonl").splitlines()]):
        for mine, their in zip(ours, theirs, strict=True):
            fields = [field for field in their if not field.startswith("samples_")]
            assert list(mine)[: len(fields)] == fields
            for field in fields:
                # It prints rates with six decimals, and computes stddev_ns in whole numbers, whose roundings add up.
                close = {"avg_ts": 1e-6, "stddev_ts": 1e-6, "stddev_ns": 1e-3}.get(field)
                assert mine[field] == (pytest.approx(their[field], rel=close) if close else their[field]), field
                assert type(mine[field]) is type(their[field]), field
            assert mine["samples_ns"] == their["samples_ns"]
            assert mine["samples_ts"] == pytest.approx(their["samples_ts"], rel=1e-5)


def test_csv_has_the_columns_of_llama_bench() -> None:
    """A reader of the one finds its columns in the other, in the same place."""
    theirs = list(csv.reader((DATA / "llama-bench.csv").read_text().splitlines()))
    ours = list(csv.reader(export(record_of(golden("llama-bench.json")), "csv").splitlines()))
    assert ours[0][: len(theirs[0])] == theirs[0]
    same = [name for name in theirs[0] if not name.endswith(("_ns", "_ts", "test_time"))]
    assert [ours[1][ours[0].index(name)] for name in same] == [theirs[1][theirs[0].index(name)] for name in same]


_BENCH = Path("~/.cache/llmrun-peers/0.3.36/build/bin/llama-bench").expanduser()


@pytest.mark.skipif(not _BENCH.exists(), reason="scripts/compare_peers.py builds llama-bench")
def test_with_llama_bench_itself(micro: Path, tmp_path: Path) -> None:
    """The real program, now: the table that it prints is the beginning of ours."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(_BENCH.parent), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [str(_BENCH), "-m", "micro.gguf", "-t", "1", "-p", "8", "-n", "4,6", "-r", "2", "-o", "json", "-oe", "md"]
    done = subprocess.run(command, cwd=micro.parent, env=environment, capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr
    theirs = done.stderr.split("\n\n")[0].splitlines()
    ours = export(record_of(json.loads(done.stdout)), "md").split("\n\n")[0].splitlines()
    assert [line[: len(their)] for line, their in zip(ours, theirs, strict=True)] == theirs


# -- its rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "size", "params"),
    [
        (1537024, "1.47 MiB", "1.54 M"),
        (799_862_784, "762.81 MiB", "799.86 M"),
        ((1 << 30) - 1, "1024.00 MiB", "1.07 B"),
        (1 << 30, "1.00 GiB", "1.07 B"),
        (1_235_814_432, "1.15 GiB", "1.24 B"),
        (None, "–", "–"),
    ],
)
def test_sizes_and_counts(n: int | None, size: str, params: str) -> None:
    """Two decimals; MiB below a GiB, millions below a billion."""
    assert (llama_bench.size(n), llama_bench.params(n)) == (size, params)


def columns_of(machine: MachineInfo, *settings: dict[str, Any]) -> list[str]:
    record = replace(RECORD, machine=machine, rows=tuple(Row(Test("pp", 1), each) for each in settings))
    return [title.strip() for title in export(record, "md").splitlines()[0].strip("|").split("|")]


def test_columns_appear_where_they_say_something() -> None:
    """What varies or is not the default; the threads where the CPU computes, the layers where a GPU does."""
    gpus = (DeviceInfo("CUDA0", "gpu", "G", "CUDA"), DeviceInfo("CUDA1", "gpu", "G", "CUDA"))
    cpu, gpu = MachineInfo(default_threads=8), MachineInfo(default_threads=8, devices=gpus)
    base: dict[str, Any] = {
        "n_threads": 8,
        "repack": True,
        "devices": ["CUDA0", "CUDA1"],
        "tensor_split": [],
        "n_gpu_layers": 33,
        "flash_attn": "auto",
    }
    first, last = ["model", "size", "params", "backend"], ["test", "t/s", "MFU"]
    assert columns_of(cpu, {**base, "devices": []}) == [*first, "threads", *last]
    assert columns_of(gpu, base) == [*first, "ngl", *last]
    assert columns_of(gpu, base, {**base, "n_threads": 4}) == [*first, "ngl", "threads", *last]
    assert columns_of(gpu, {**base, "devices": ["CUDA1"]}) == [*first, "ngl", "dev", *last]
    assert columns_of(gpu, {**base, "tensor_split": [3.0, 1.0]}) == [*first, "ngl", "ts", *last]
    assert columns_of(gpu, {**base, "n_threads_batch": 16}) == [*first, "ngl", "test", "t/s", "tb", "MFU"]
    assert columns_of(gpu, {**base, "repack": False}) == [*first, "ngl", "rpk", *last]
    # Whether it repacks, llmrun decides; llama-bench always does.
    assert columns_of(gpu, asked_settings(LoadConfig())) == [*first, "ngl", "rpk", *last]
    swept = [{**base, "flash_attn": each, "n_ubatch": 256} for each in ("on", "off")]
    assert columns_of(gpu, *swept) == [*first, "ngl", "n_ubatch", "fa", *last]


def test_settings_in_the_words_of_llama_bench() -> None:
    """Devices by slashes, all of them "auto"; shares with two decimals; overrides by semicolons."""
    machine = MachineInfo(devices=(DeviceInfo("A0", "gpu", "", "A"), DeviceInfo("I0", "igpu", "", "A")))
    said = llama_bench.settings_of(
        {"devices": ["A0"], "tensor_split": [0.75, 0.25], "override_tensor": [["a", "CPU"], ["b", "A0"]]}, machine
    )
    assert (said["devices"], said["tensor_split"]) == ("auto", "0.75/0.25")
    assert said["tensor_buft_overrides"] == "a=CPU;b=A0"
    asked = asked_settings(LoadConfig(offload=Offload(devices=("A0",), override_tensor=(("a", "CPU"),))))
    said = llama_bench.settings_of(asked, MachineInfo())
    assert (said["devices"], said["tensor_buft_overrides"], said["no_kv_offload"]) == ("A0", "a=CPU", False)
    assert llama_bench.settings_of({"devices": ["A0", "I0"]}, machine)["devices"] == "A0/I0"
    assert llama_bench.settings_of({"devices": []}, machine)["devices"] == "none"
    assert llama_bench.settings_of({"devices": []}, MachineInfo())["devices"] == "auto"
    unknown = llama_bench.settings_of({}, MachineInfo())
    assert unknown["flash_attn"] is None and unknown["no_kv_offload"] is None


# -- ours --------------------------------------------------------------------------------------------------------------


def test_markdown_with_everything() -> None:
    """Our columns, then what has to be said of the rows. One sample has no deviation."""
    request = Sample(0.5, Steps.of([0.01] * 9), ttft_s=0.55, total_s=0.64)
    e2e = Row(Test("e2e", 100, 10), DECODE.settings, (request,), step_read_bytes={"RAM": 80_000_000})
    lines = export(replace(RECORD, rows=(DECODE, e2e, Row(Test("pp", 8), error="out of | memory"))), "md").splitlines()
    titles = [cell.strip() for cell in lines[0].split("|")]
    assert titles[-11:] == "test,t/s,prefill t/s,decode t/s,GB/s,MBU,MFU,TTFT,gap p95,J/token,".split(",")
    cells = [[cell.strip() for cell in line.split("|")][-11:-1] for line in lines[2:5]]
    assert cells[0] == ["tg4", "90.00 ± 14.14", "–", "90.0", "8.89", "88.9 %", "–", "–", "15.0 ms", "0.500"]
    assert cells[1] == ["e2e100+10", "15.62 ± –", "200", "100", "8.00", "–", "–", "550 ms", "10.0 ms", "–"]
    assert cells[2] == ["pp8", *["–"] * 9]
    assert "- tg4: the samples differ by 22 % (close what computes)" in lines
    assert "- pp8: out of | memory" in lines
    assert "- J/token: CPU package, idle power included" in lines
    assert lines[-1] == "build: llmrun 0.1.0, llama-cpp-python 0.3.36, ggml 0.25.3"


def test_table_of_the_terminal() -> None:
    """What is the same above, what varies in columns of a width that is known before the first row."""
    rows = [replace(DECODE, settings={**DECODE.settings, "n_threads": n}) for n in (2, 16)]
    table = writer("table")
    head = table.begin(RECORD, rows, energy=True)
    assert head.splitlines() == [
        "tiny · – · – parameters · CPU · a CPU",
        "",
        "TEST  N_THREADS                   T/S      GB/S       MBU   GAP P95   J/TOKEN",
    ]
    assert table.row(rows[0]) == "tg4           2         90.00 ± 14.14      8.89    88.9 %   15.0 ms     0.500\n"
    assert len(table.row(rows[1])) == len(table.row(rows[0]))
    assert "the samples differ by 22 %" in table.end(replace(RECORD, rows=tuple(rows)))


def test_streamed_rows_are_the_whole_export() -> None:
    """Row by row as they come is the same text as all at once."""
    for format in ("table", "md", "csv", "json", "jsonl", "sql"):
        stream = writer(format)
        text = stream.begin(replace(RECORD, rows=()), RECORD.rows, energy=True)
        for row in RECORD.rows:
            text += stream.row(row)
        assert text + stream.end(RECORD) == export(RECORD, format)


@pytest.mark.parametrize("format", ["table", "md", "csv", "json", "jsonl", "sql"])
def test_exports_of_version_0_1(format: Format) -> None:
    """The same record gives the same text as it did then, to the last blank."""
    record = journal.read_file(DATA / "record-0.1.json")
    assert export(record, format) == (DATA / f"record-0.1.export.{format}").read_text()


def test_sql_is_read_by_sqlite() -> None:
    """Types as declared, NULL for unknown, quotes that end nothing."""
    nasty = replace(RECORD, model=replace(RECORD.model, name="it's; DROP TABLE x"))
    db = sqlite3.connect(":memory:")
    db.executescript(export(nasty, "sql") + export(nasty, "sql"))  # several runs in one database
    rows = db.execute("select model_name, test, avg_ts, stddev_ts, mbu, n_gen, typeof(avg_ns) from llmrun_bench")
    found = rows.fetchall()
    assert len(found) == 4
    assert found[0] == ("it's; DROP TABLE x", "pp512", PREFILL.mean_tps, PREFILL.stddev_tps, None, 0, "integer")
    assert found[1][1:3] == ("tg4", DECODE.mean_tps)
    db.close()


def test_numbers_are_numbers_in_sql() -> None:
    """A strict table takes no fraction and no text for a whole number: not in what was measured, nor in what was asked
    for and could not be."""
    asked = asked_settings(LoadConfig(offload=Offload(n_gpu_layers="all", n_cpu_moe="all")))
    quality = {"ppl": 8.5, "ppl_error": 0.5, "kld": {"kld": {"value": 0.25}}}
    record = replace(
        RECORD,
        settings={**RECORD.settings, "price_hour": 2.5},
        quality=quality,
        rows=(DECODE, Row(Test("tg", 0, 4), asked, error="it did not fit")),
    )
    db = sqlite3.connect(":memory:")
    db.executescript(export(record, "sql").replace("\n);\n", "\n) STRICT;\n", 1))
    found = db.execute("select ppl, kld, typeof(cost_per_million_tokens), n_gpu_layers, n_cpu_moe from llmrun_bench")
    assert found.fetchall() == [(8.5, 0.25, "real", None, None), (8.5, 0.25, "null", -2, None)]
    db.close()


def test_csv_of_what_is_unknown_and_of_quotes() -> None:
    """Unknown is empty; a quote is two."""
    row = replace(DECODE, error='say "no", please', energy=None, step_read_bytes=None)
    (found,) = csv.DictReader(io.StringIO(export(replace(RECORD, rows=(row,)), "csv")))
    assert (found["error"], found["mbu"], found["joules_per_token"]) == ('say "no", please', "", "")
    assert (found["n_threads"], found["repack"], found["warnings"]) == ("2", "1", "noisy")


def test_notes_name_what_the_joules_are_of() -> None:
    """The widest boundary, or the reason why there are none; the same thing is said once."""
    row = replace(DECODE, energy=(Energy("GPU 0", 1.0, "NVML"),), warnings=(RowWarning("a", "b"),))
    said = notes(replace(RECORD, rows=(row, row, replace(PREFILL, energy_unknown="RAPL is closed"))))
    assert said == ["tg4: b", "J/token: GPU 0, idle power included", "J/token unknown: RAPL is closed"]
