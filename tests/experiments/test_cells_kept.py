"""What is kept of an experiment while it runs, and what goes on with it."""

from __future__ import annotations

from pathlib import Path

from llmrun.experiments.experiment import Cell, Sample
from llmrun.experiments.lab import Lab, Options
from llmrun.experiments.record import MACHINE, Cells, Setup

SETUP = Setup("batch", {"quick": True}, "abc", "1.0")


def test_samples_outlive_their_process(tmp_path: Path) -> None:
    path = tmp_path / "batch.partial.jsonl"
    with Cells(path, SETUP) as cells:
        cells.add("a", Sample({"s": 1.5}, "2026-11-29T00:00:00Z", 0.1))
        cells.fail("b", "no room")
    with Cells(path, SETUP) as again:
        assert again.samples == {"a": [Sample({"s": 1.5}, "2026-11-29T00:00:00Z", 0.1)]}
        assert again.errors == {} and again.n_found == 1  # what failed is tried again


def test_half_a_line_is_nothing(tmp_path: Path) -> None:
    """Whoever was killed in the middle of a line: the others count, and what comes next is whole."""
    path = tmp_path / "batch.partial.jsonl"
    with Cells(path, SETUP) as cells:
        cells.add("a", Sample({"s": 1.0}))
        cells.add("a", Sample({"s": 2.0}))
    data = path.read_bytes()
    for cut in range(len(data.splitlines(keepends=True)[0]), len(data)):
        path.write_bytes(data[:cut])
        with Cells(path, SETUP) as again:
            n_whole = data[:cut].count(b"\n") - 1
            assert [each.values["s"] for each in again.samples.get("a", [])] == [1.0, 2.0][:n_whole]
            again.add("a", Sample({"s": 3.0}))
        with Cells(path, SETUP) as last:
            assert [each.values["s"] for each in last.samples["a"]] == [*[1.0, 2.0][:n_whole], 3.0]


def test_of_something_else_nothing_is_taken(tmp_path: Path) -> None:
    """Another machine, another version, other options: begun anew."""
    path = tmp_path / "batch.partial.jsonl"
    for other in (
        Setup("batch", {"quick": False}, "abc", "1.0"),
        Setup("batch", {"quick": True}, "abd", "1.0"),
        Setup("batch", {"quick": True}, "abc", "1.1"),
    ):
        with Cells(path, SETUP) as cells:
            cells.add("a", Sample({"s": 1.0}))
        with Cells(path, other) as begun:
            assert not begun.samples
        with Cells(path, other) as again:
            assert not again.samples


def test_cells_take_turns(tmp_path: Path) -> None:
    """All of them once, then all of them again; those that have a sample already are not asked for it."""
    order: list[str] = []

    def cell(key: str) -> Cell:
        def take() -> dict[str, float | None]:
            order.append(key)
            return {"s": float(len(order))}

        return Cell(key, take)

    with Cells(tmp_path / "x.partial.jsonl", SETUP) as cells:
        cells.add("b", Sample({"s": 9.0}))
        with Lab(Options(), cells, folder=tmp_path / "models") as lab:
            lab.measure([cell("a"), cell("b"), cell("c")], rounds=2)
            assert order == ["a", "c", "a", "b", "c"]
            assert lab.values("b", "s") == [9.0, 4.0]
            assert len(cells.samples[MACHINE]) == 2, "one look a round"
            found = lab.spread("a", "s")
            assert found and (found.median, found.n) == (2.0, 2) and found.low < 1.0 and found.high > 3.0


def test_what_fails_is_told_and_not_tried_again(tmp_path: Path) -> None:
    from llmrun.errors import OutOfMemory

    tried: list[int] = []

    def take() -> dict[str, float | None]:
        tried.append(1)
        raise OutOfMemory("no room for it")

    with Cells(tmp_path / "x.partial.jsonl", SETUP) as cells:
        with Lab(Options(), cells, folder=tmp_path / "models") as lab:
            lab.measure([Cell("a", take)], rounds=3)
        assert tried == [1] and cells.errors == {"a": "no room for it"}


def test_models_are_removed(tmp_path: Path) -> None:
    with Cells(tmp_path / "x.partial.jsonl", SETUP) as cells:
        with Lab(Options(), cells, folder=tmp_path / "models") as lab:
            path = lab.model("micro", "Q8_0")
            assert path.is_file() and lab.model("micro", "Q8_0") == path
        assert not path.exists()
