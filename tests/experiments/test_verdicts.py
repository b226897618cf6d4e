"""What is found follows from the samples: invented ones, each way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from llmrun.experiments import bandwidth, offload, seventy
from llmrun.experiments.experiment import Finding, Sample, judged
from llmrun.experiments.lab import Lab, Options
from llmrun.experiments.record import Cells, Setup
from llmrun.experiments.spread import Spread


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with (
        Cells(tmp_path / "x.partial.jsonl", Setup("x", {}, "", "")) as cells,
        Lab(Options(), cells, folder=tmp_path) as one,
    ):
        yield one


def told(lab: Lab, key: str, *values: Mapping[str, float | None]) -> None:
    for each in values:
        lab.cells.add(key, Sample(each))


def exactly(value: float) -> Spread:
    return Spread(value, value, value, 1)


def test_of_several() -> None:
    assert [judged(each) for each in ([True, True], [True, False], [False])] == [
        "holds",
        "holds in part",
        "does not hold",
    ]


@pytest.mark.parametrize(
    ("rates", "verdict"),
    [
        ({0: 10.0, 8: 9.0, 29: 8.0}, "holds"),
        ({0: 10.0, 8: 9.0, 29: 12.0}, "holds"),
        ({0: 10.0, 8: 12.0, 29: 20.0}, "does not hold"),
        ({0: 10.0, 29: 20.0}, "not measured"),
        ({8: 10.0, 20: 11.0, 29: 20.0}, "not measured"),
    ],
)
def test_layers(rates: dict[int, float], verdict: str) -> None:
    """Not where each further layer is faster, from the first on."""
    found = offload._layers_finding("a GPU", 29, {n: exactly(rate) for n, rate in rates.items()}, {})
    assert found.verdict == verdict


def memory(lab: Lab, seconds: Mapping[int, float], refused: set[int], crashed: set[int]) -> Finding:
    for n, each in seconds.items():
        told(lab, offload._of_crowd(n), {"e2e_s": each, "refused": 0.0})
    for n in refused:
        told(lab, offload._of_crowd(n), {"refused": 1.0})
    for n in crashed:
        lab.cells.fail(offload._of_crowd(n), "the engine was ended by SIGSEGV")
    return offload._memory_findings(lab, tuple(sorted({*seconds, *refused, *crashed})))[0]


@pytest.mark.parametrize(
    ("seconds", "refused", "crashed", "verdict"),
    [
        ({1: 1.0, 4: 3.0}, {16}, set(), "holds in part"),
        ({1: 1.0, 4: 1.0}, {16}, set(), "does not hold"),
        ({1: 1.0, 4: 3.0}, set(), {16}, "holds"),
        ({1: 1.0, 4: 3.0}, set(), set(), "not measured"),
        ({}, {1, 4}, set(), "not measured"),
    ],
)
def test_memory_that_is_full(
    lab: Lab, seconds: dict[int, float], refused: set[int], crashed: set[int], verdict: str
) -> None:
    """It crashes, it slows, or neither; a refusal is no crash."""
    assert memory(lab, seconds, refused, crashed).verdict == verdict


def points(*shares: float) -> list[tuple[float, Spread, Spread, Spread, str]]:
    return [(1e9, exactly(10), exactly(share * 50e9), exactly(50e9), f"model {share}") for share in shares]


def scaling(rates: Mapping[int, float], reads: Mapping[int, float]) -> list[tuple[int, Spread, Spread]]:
    return [(n, exactly(rate), exactly(reads[n])) for n, rate in rates.items()]


@pytest.mark.parametrize(
    ("shares", "reads", "verdict"),
    [
        ((0.7, 0.9), {1: 30e9, 4: 50e9}, "holds"),
        ((0.7, 0.9), {1: 13e9, 4: 50e9}, "holds in part"),
        ((0.3, 0.9), {1: 30e9, 4: 50e9}, "holds in part"),
        ((0.3, 0.5), {1: 30e9, 4: 50e9}, "does not hold"),
        ((), {1: 30e9, 4: 50e9}, "not measured"),
    ],
)
def test_memory_or_cores(shares: tuple[float, ...], reads: dict[int, float], verdict: str) -> None:
    """Memory is the limit where decoding comes near to what can be read, and more threads read no faster."""
    found = bandwidth._limits(points(*shares), scaling({1: 5, 4: 12}, reads), 4)
    assert found.verdict == verdict


def test_a_part_of_the_cores() -> None:
    """Two of four that give as much; all of four; siblings of cores are none."""
    reads = dict.fromkeys((1, 2, 4, 8), 1.0)
    assert bandwidth._cores(scaling({1: 5, 2: 9.9, 4: 10, 8: 12}, reads), 4).verdict == "holds"
    assert bandwidth._cores(scaling({1: 5, 2: 8, 4: 12, 8: 12}, reads), 4).verdict == "does not hold"
    assert bandwidth._cores(scaling({1: 5}, reads), 1).verdict == "not measured"


def test_larger_than_its_memory(lab: Lab) -> None:
    """Measured without the disk's rate, it is measured all the same; failed, it says why."""
    lab.cells.fail("mapped", "no control group")
    found = seventy._mapped_findings(lab)[0]
    assert (found.verdict, found.why) == ("not measured", "no control group")
    told(
        lab,
        "mapped",
        {"tps": 2.0, "whole_tps": 20.0, "disk_bytes_per_s": None, "missing_bytes": 1.0, "weight_bytes": 2.0},
    )
    assert seventy._mapped_findings(lab)[0].verdict == "holds"


def test_no_slower_than_its_memory(lab: Lab) -> None:
    told(
        lab,
        "mapped",
        {"tps": 19.0, "whole_tps": 20.0, "disk_bytes_per_s": 1e9, "missing_bytes": 1e8, "weight_bytes": 4e8},
    )
    found = seventy._mapped_findings(lab)[0]
    assert found.verdict == "does not hold" and "does not hold what was measured" in found.why
