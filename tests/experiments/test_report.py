"""A record as a page, and several as one table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmrun.bench.plot.figures import Axis, Figure, Panel, Point, Series
from llmrun.errors import UsageError
from llmrun.experiments import conduct, report
from llmrun.experiments.experiment import ARTICLES, Finding, Result, Sample, Table
from llmrun.experiments.record import Record, Setup, read_record
from llmrun.machine.environment import BuildInfo, MachineInfo

PANEL = Panel("sweep", "p", Axis("x"), Axis("ms"), (Series("CPU, measured", (Point(1, 2.0, low=1.0, high=3.0),)),))
RESULT = Result(
    (
        Finding("A claim.", "toy", "12 × here | there", "holds in part", "Where it is small."),
        Finding("Another.", "dream", "3 ×", "holds", predicted=True),
    ),
    ("This was done.",),
    (Table("What was found", ("", ">ms"), (("one", "1.00"),)),),
    {"": Figure("a figure", (PANEL,))},
    ("This is left out.",),
)
RECORD = Record(
    name="batch",
    title="A question?",
    article=ARTICLES["toy"],
    created="2026-11-29T00:00:00Z",
    ended="2026-11-29T00:01:00Z",
    command=("llmrun", "experiment", "batch", "-o", "a folder"),
    setup=Setup("batch", {"quick": True}, "abc", "1.0"),
    repetitions=3,
    machine=MachineInfo(cpu="A CPU", default_threads=2, ram_bytes=1 << 34),
    build=BuildInfo(llmrun="1.0", llama_cpp_python="0.3", ggml="0.2"),
    result=RESULT,
    cells={"a": (Sample({"s": 1.0}, "", 0.25), Sample({"s": None}))},
    errors={"b": "no room"},
)


def test_a_page() -> None:
    """Claim, number and verdict first; machine, versions and load in the head; the command that makes it again."""
    page = report.page(RECORD, {"": "batch.svg"})
    assert page.startswith("# A question?\n\n2026-11-29, A CPU, 2 threads, 16.0 GiB of RAM, others kept 0.2 cores busy")
    assert "| A claim. | 12 × here \\| there | **holds in part**. Where it is small. |" in page
    assert "![a figure](batch.svg)" in page and "- b: no room" in page and "2 samples of each cell, 2 in all" in page
    assert page.rstrip().endswith("llmrun experiment batch -o 'a folder'")


def test_one_table_of_all() -> None:
    """Of two machines it says which experiments are of which."""
    later = replace(RECORD, name="depth", created="2026-11-30T00:00:00Z")
    elsewhere = replace(RECORD.setup, machine="xyz")
    other = replace(RECORD, name="width", machine=MachineInfo(cpu="Another", default_threads=4), setup=elsewhere)
    alone, both = report.front([RECORD, later]), report.front([RECORD, other])
    assert "Measured on A CPU with 2 threads, 2026-11-29 to 2026-11-30." in alone
    assert "**Measured on 2 machines**" in both and "Another with 4 threads: width" in both
    assert both.count("[batch](batch.md)") == 2 and "**not measured, predicted: holds**" in both
    assert both.rstrip().endswith("2 holds in part; 2 not measured, predicted: holds.")


def test_a_record_is_read_again(tmp_path: Path) -> None:
    """Word for word, figures and samples included; anything else is refused."""
    from llmrun import codec

    path = tmp_path / "batch.json"
    path.write_bytes(codec.encode(RECORD))
    assert read_record(path) == RECORD
    for wrong in (b"{}", b"no JSON", codec.encode(replace(RECORD, schema="llmrun.experiment/9"))):
        path.write_bytes(wrong)
        with pytest.raises(UsageError):
            read_record(path)


def test_names() -> None:
    assert conduct.chosen(["swarm", "batch", "swarm"]) == ["swarm", "batch"]
    assert conduct.chosen(["all"]) == list(conduct.EXPERIMENTS) and len(conduct.EXPERIMENTS) == 13
    with pytest.raises(UsageError, match="the nearest is depth"):
        conduct.chosen(["detph"])
