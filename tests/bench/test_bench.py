"""The bench: what it takes from a command line, what it measures, and what is left when it is ended."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TOO_LONG
from waiting import HANGS_S

from llmrun.bench import journal, run
from llmrun.bench.record import Row, Sample, Steps
from llmrun.bench.spec import Case, MeasurementOptions, Test
from llmrun.bench.warnings import warnings_of
from llmrun.cli.app import command
from llmrun.cli.framework import sweeps
from llmrun.cli.framework.bench_options import tests_of as made
from llmrun.errors import UsageError
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.machine.sampler import Usage
from llmrun.models.resolve import find_model
from llmrun.options.load import LoadConfig, Offload
from llmrun.planning.footprint import CPU, Placement, flops_per_token, step_reads

QUICK = MeasurementOptions(repetitions=2, ceilings=False)


# -- the command line ---


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1,2,4"], ["1", "2", "4"]),
        (["1", "2,3"], ["1", "2", "3"]),
        (["1-4"], ["1", "2", "3", "4"]),
        (["16-64+16"], ["16", "32", "48", "64"]),
        (["1-16*2"], ["1", "2", "4", "8", "16"]),
        (["10-15+10,99"], ["10", "99"]),
        (["auto,all,0-1"], ["auto", "all", "0", "1"]),
    ],
)
def test_lists_and_ranges(texts: list[str], expected: list[str]) -> None:
    """llama-bench's syntax, both ends counted."""
    assert sweeps.values("-x", texts) == expected


@pytest.mark.parametrize("text", ["1,,2", "", "1-9+0", "0-9*2", "1-9*1", "1-999999999"])
def test_lists_without_end(text: str) -> None:
    with pytest.raises(UsageError, match="-x"):
        sweeps.values("-x", [text])


def swept(*words: str) -> list[LoadConfig]:
    configs: list[LoadConfig] = command("bench").group_of("configs", words)
    return configs


def test_all_combinations() -> None:
    """Every value of one with every value of the others; what was not given has its default."""
    configs = swept("-t", "1,2", "-ngl", "0,auto", "-nkvo", "0,1")
    found = [(config.offload.n_gpu_layers, config.offload.kv, config.n_threads) for config in configs]
    assert len(found) == 8 and len(set(found)) == 8
    assert {config.n_batch for config in configs} == {LoadConfig().n_batch}
    (split,) = swept("-ts", "3/1", "-dev", "A/B")
    assert split.offload == Offload(tensor_split=(3.0, 1.0), devices=("A", "B"))


def test_tests_in_llama_bench_order() -> None:
    assert [test.name for test in made(None, None, None, None, None)] == ["pp512", "tg128"]
    found = made(["16,32"], ["8"], ["16,4"], ["0,64"], None)
    assert [test.name for test in found] == [
        *("pp16", "pp32", "tg8", "pp16+tg4"),
        *("pp16 @ d64", "pp32 @ d64", "tg8 @ d64", "pp16+tg4 @ d64"),
    ]
    assert [test.name for test in made(["0"], ["8"], None, None, None)] == ["tg8"]
    assert [test.name for test in made(["16"], ["8"], None, None, ["1,4"])] == ["pp16+tg8", "pp16+tg8 x4"]
    assert made(["16"], ["8"], None, None, None, end_to_end=True)[-1] == Test("e2e", 16, 8)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", "x"],
        ["-p", "-1"],
        ["-p", "0", "-n", "0"],
        ["-pg", "512"],
        ["-pg", "0,1"],
        ["-B", "0"],
        ["-B", "1000"],
        ["-r", "0"],
        ["--delay", "-1"],
        ["-o", "yaml"],
        ["--output", "rows.doc"],
        ["-t", "0"],
        ["-t", "two"],
        ["-nkvo", "2"],
        ["-ctk", "f16,q9"],
        ["-ub", "1-9+0"],
        ["-ngl", "3"],
    ],
    ids=" ".join,
)
def test_bad_values_end_with_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    from llmrun.cli.app import run

    assert run(["bench", "tiny", *arguments]) == 2
    said = capfd.readouterr().err
    assert ("Traceback" not in said and arguments[0].lstrip("-") in said) or arguments[:2] == ["-p", "0"]


# -- what it measures ---


def rows_of(tests: list[Test], config: LoadConfig | None = None, options: MeasurementOptions = QUICK) -> list[Row]:
    cases = [Case(config or LoadConfig(), test) for test in tests]
    with run.open_instruments(ceilings=options.ceilings) as instruments:
        return list(run.measure(find_model("tiny"), cases, options, instruments))


def test_every_kind_of_test() -> None:
    """Each has what it measures and nothing else: seconds of the prompt, one step for each token, TTFT end to end."""
    pp, tg, pg, deep, parallel, e2e = rows_of(
        [
            Test("pp", 48),
            Test("tg", 0, 8),
            Test("pg", 32, 4),
            Test("tg", 0, 4, 64),
            Test("pg", 16, 4, 0, 3),
            Test("e2e", 40, 6),
        ]
    )
    for row in (pp, tg, pg, deep, parallel, e2e):
        assert row.error is None and len(row.samples) == 2 and row.mean_tps and row.usage
    assert all(s.prefill_s and s.steps is None for s in pp.samples)
    assert all(s.prefill_s is None and s.steps and s.steps.n == 8 for s in tg.samples)
    assert all(s.prefill_s and s.steps and s.steps.n == 4 and s.total_s for s in pg.samples)
    assert all(s.steps and s.steps.n == 4 for s in parallel.samples)
    assert parallel.n_tokens(parallel.samples[0]) == 3 * (16 + 4)
    assert all(s.ttft_s and s.steps and s.steps.n == 5 and s.total_s for s in e2e.samples)
    assert tg.step_read_bytes and tg.step_read_bytes.keys() == {"RAM"} and pp.step_read_bytes is None
    assert deep.step_read_bytes and deep.step_read_bytes["RAM"] > tg.step_read_bytes["RAM"]
    assert pp.load_s and tg.load_s is None  # one engine for all of them
    assert pp.flops_per_token and pp.buffers and pp.buffers["RAM"]["weights"] > 4e6


def test_ceilings_are_taken_between_the_samples() -> None:
    (row,) = rows_of([Test("tg", 0, 4)], options=MeasurementOptions(repetitions=3))
    assert row.ceiling_bytes_per_s and len(row.ceiling_bytes_per_s["RAM"]) == 3
    assert row.ceiling_flops_per_s and len(row.ceiling_flops_per_s) == 3
    assert row.mbu and row.mbu > 0


def test_settings_that_do_not_fit_are_a_row_too(wide: Path) -> None:
    """One bad combination of a sweep has its error, and the others go on."""
    cases = [
        Case(LoadConfig(n_threads=1), Test("tg", 0, 2)),
        Case(LoadConfig(), Test("tg", 0, TOO_LONG)),
        Case(LoadConfig(n_threads=2), Test("tg", 0, 2)),
    ]
    with run.open_instruments(ceilings=False) as instruments:
        found = list(run.measure(find_model(str(wide)), cases, QUICK, instruments))
    assert [bool(row.samples) for row in found] == [True, False, True]
    assert "needs" in (found[1].error or "")


def test_offloaded_layers_read_elsewhere(rpc_worker: Any) -> None:
    """Bytes by memory follow the layers; a worker's ceiling can't be measured while it works, and is unknown."""
    config = LoadConfig(rpc=(rpc_worker(),), offload=Offload(n_gpu_layers=3))
    (row,) = rows_of([Test("tg", 0, 4)], config, MeasurementOptions(repetitions=2))
    assert row.step_read_bytes and row.step_read_bytes.keys() == {"RAM", "RPC0"}
    assert row.ceiling_bytes_per_s and row.ceiling_bytes_per_s.keys() == {"RAM"} and row.mbu is None


def test_reads_and_operations_by_hand(tmp_path: Path) -> None:
    """One layer on a device, one in RAM: bytes of a step, and operations of a token, counted by hand."""
    path = tmp_path / "m.gguf"
    synth.write(path, synth.Shape(2, 256, 512, 4, 2, 512), "F16")
    header = open_header(path)
    layer = 256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 512  # elements
    norms = 2 * 256 * 4
    found = step_reads(header, Placement((CPU, "A", "A")), 100, "f16", "f16")
    kv = 100 * 2 * (64 + 64) * 2
    assert found == {
        CPU: 256 * 2 + layer * 2 + norms + kv,
        "A": layer * 2 + norms + kv + 256 * 512 * 2 + 256 * 4,
    }
    attention = 2 * 4 * (64 + 64) * 100
    assert flops_per_token(header, 100) == 2 * (2 * layer + 256 * 512) + 2 * attention
    # Of a prompt of 128 tokens the last one's logits alone are computed.
    assert flops_per_token(header, 100, outputs=1 / 128) == 2 * (2 * layer + 256 * 4) + 2 * attention


def usage(**more: Any) -> Usage:
    fields = dict.fromkeys(Usage.__dataclass_fields__, None)
    return Usage(**{**fields, "n_samples": 5, "watched_s": 1.0, "cost_s": 0.0, "interval_s": 0.25, **more})


def test_warnings() -> None:
    """Each doubt has a code that stays, numbers, and a sentence."""
    samples = tuple(Sample(steps=Steps.of([0.1 * (1 + i % 2)] * 4)) for i in range(4))
    busy = usage(other_cpu_s=0.5, steal_s=0.2, major_faults=7, peak_swap_bytes=1)
    row = Row(Test("tg", 0, 4), samples=samples, usage=busy)
    found = {each.code: each for each in warnings_of(row, 2)}
    assert found.keys() == {"few-samples", "noisy", "others-busy", "steal", "read-from-disk", "swapping"}
    assert found["others-busy"].numbers == {"cores": 0.5} and "0.50 cores" in found["others-busy"].message
    quiet = Row(Test("tg", 0, 4), samples=(samples[0],) * 5, usage=usage(other_cpu_s=0.01))
    assert not list(warnings_of(quiet, 5))
    assert [each.code for each in warnings_of(quiet, 5, on_battery=True)] == ["battery"]
    assert str(found["steal"]) == "the host took 0.20 cores away (measure later)"


# -- as a user sees it ---


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path))
    return tmp_path


def test_rows_formats_and_history(llmrun: Any, home: Path) -> None:
    """Rows on stdout, talk on stderr, a file by its suffix, and the bench is in the history."""
    arguments = ("bench", "tiny", "-p", "32", "-n", "4", "-r", "3", "-t", "1,2", "--no-ceilings")
    done = llmrun(*arguments, "-o", "md", "--output", str(home / "rows.json"))
    assert done.returncode == 0
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4 and "threads" in table[0] and "t/s" in table[0]
    assert re.search(r"\| +pp32 \| +[\d.]+ ± [\d.]+ \|", table[2])
    rows = json.loads((home / "rows.json").read_text())
    assert [row["n_threads"] for row in rows] == [1, 1, 2, 2]
    listed = json.loads(llmrun("bench", "history", "list", "--json").stdout)
    assert len(listed) == 1
    shown = json.loads(llmrun("bench", "history", "show", "last", "--json").stdout)
    assert shown["model"]["files"][0]["sha256"] and len(shown["rows"]) == 4 and shown["ended"]
    compared = llmrun("compare", "last", "last", "--json")
    assert compared.returncode == 0, compared.stderr


def test_json_is_json(llmrun: Any, home: Path) -> None:
    done = llmrun("bench", "tiny", "-p", "0", "-n", "3", "-r", "1", "--no-ceilings", "-o", "json")
    (row,) = json.loads(done.stdout)
    assert row["n_gen"] == 3 and row["avg_ts"] > 0


def test_several_models(llmrun: Any, home: Path, micro: Path) -> None:
    done = llmrun("bench", "tiny", str(micro), "-p", "8", "-n", "0", "-r", "1", "--no-ceilings", "-o", "jsonl")
    names = [json.loads(line)["model_filename"] for line in done.stdout.splitlines()]
    assert len(names) == 2 and names[1].endswith("micro.gguf")


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_several_models_in_one_file(home: Path, micro: Path, suffix: str) -> None:
    """One document with the rows of all models, whole after every row, whatever ends the bench."""
    rows = home / f"rows.{suffix}"
    arguments = [
        *("tiny", str(micro)),
        *("-p", "8", "-n", "0", "-r", "1", "-t", "1-10", "--no-ceilings", "-o", "jsonl"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "llmrun", "bench", *arguments, "--output", str(rows)],
        stdout=subprocess.PIPE,
        env={**os.environ, "LLMRUN_HOME": str(home)},
        text=True,
    )
    assert process.stdout
    while "micro.gguf" not in process.stdout.readline():
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=HANGS_S)
    text = rows.read_text()
    found = json.loads(text) if suffix == "json" else list(csv.DictReader(text.splitlines()))
    assert [row["model_filename"] for row in found][9:11] == ["tiny.gguf", "micro.gguf"]


def test_nothing_measured_is_no_success(llmrun: Any, home: Path, wide: Path) -> None:
    """What can't be loaded at all is an error; among several things it is a row, and the others are measured, in any
    order; where none is left, the exit code is that of the first cause."""
    arguments = ("bench", str(wide), "-p", "8", "-n", "0", "-r", "1", "--no-ceilings", "-o", "csv")
    too_long = str(TOO_LONG)
    for depths in (f"0,{too_long}", f"{too_long},0"):
        done = llmrun(*arguments, "-d", depths)
        rows = {row["n_depth"]: row for row in csv.DictReader(done.stdout.splitlines())}
        assert done.returncode == 0 and rows["0"]["avg_ts"] and not rows["0"]["error"]
        assert not rows[too_long]["avg_ts"] and rows[too_long]["error"].startswith("needs ")
    alone = llmrun(*arguments, "-d", too_long)
    assert (alone.returncode, alone.stdout) == (10, "") and "try:" in alone.stderr
    none = llmrun(*arguments, "-d", too_long, "-t", "1,2")
    assert none.returncode == 10 and [row["n_threads"] for row in csv.DictReader(none.stdout.splitlines())] == [
        "1",
        "2",
    ]
    typo = llmrun(*arguments[:2], "no-such-model", *arguments[2:])
    assert (typo.returncode, typo.stdout) == (4, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ended_in_the_middle(home: Path, number: int) -> None:
    """Whatever ends it, the finished rows are in the history."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "llmrun",
            "bench",
            "tiny",
            "-p",
            "16",
            "-n",
            "4",
            "-r",
            "2",
            "--no-ceilings",
            "-t",
            "1-40",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LLMRUN_HOME": str(home)},
        text=True,
    )
    assert process.stdout
    while "tg4" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)  # eighty rows were to come
    process.communicate(timeout=HANGS_S)
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    (kept,) = journal.stored()
    assert kept.record and len(kept.record.rows) >= 2 and kept.record.ended is None
    assert kept.record.rows[0].samples


def test_quality_stands_beside_the_speed(llmrun: Any, home: Path) -> None:
    """--quality: perplexity in the record, in every row for programs, and under the table for people."""
    text = home / "text.txt"
    text.write_text((Path(run.__file__).parents[1] / "data" / "quality.txt").read_text()[:6000])
    arguments = ("bench", "tiny", "-p", "8", "-n", "0", "-r", "1", "--no-ceilings", "--quality", str(text))
    done = llmrun(*arguments, "--reference", "tiny", "-o", "json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["ppl"] > 1 and row["ppl_error"] > 0 and abs(row["kld"]) < 1e-6
    record = json.loads(llmrun("bench", "history", "show", "last", "--json").stdout)
    assert record["quality"]["text"] == "text.txt" and record["quality"]["reference"] == "tiny"
    assert "perplexity" in llmrun("bench", "history", "show", "last").stdout


def test_prices(llmrun: Any, home: Path) -> None:
    """An hour's price over the tokens of an hour, times a million."""
    arguments = ("bench", "tiny", "-p", "0", "-n", "4", "-r", "1", "--no-ceilings", "--price-hour", "2", "-o", "json")
    (row,) = json.loads(llmrun(*arguments).stdout)
    assert row["cost_per_million_tokens"] == pytest.approx(2e6 / row["median_ts"] / 3600)
    assert llmrun("bench", "tiny", "--price-kwh", "-1").returncode == 2


def test_two_settings_in_turn(llmrun: Any, home: Path) -> None:
    """compare --live: pairs of samples, two records that know of each other, a ratio with its interval."""
    arguments = ("compare", "-t 1", "-t 2", "--live", "tiny", "-p", "0", "-n", "4", "-r", "6", "--json")
    done = llmrun(*arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [test["test"] for test in found["tests"]] == ["tg4"]
    assert all(
        test["paired"] and test["n_a"] == 6 and test["low"] <= test["ratio"] <= test["high"] for test in found["tests"]
    )
    assert found["differences"]["n_threads"] == {"a": "1", "b": "2"} or found["differences"]["n_threads"] == {
        "a": 1,
        "b": 2,
    }
    records = [each.record for each in journal.stored()]
    assert len(records) == 2 and records[0] and records[1] and records[0].interleaved_with == records[1].id
    assert llmrun("compare", "-t 1,2", "", "--live", "tiny").returncode == 2
