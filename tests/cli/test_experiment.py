"""`llmrun experiment`: real measurements of the smallest kind, ended in the middle as well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import RunLlmrun
from waiting import HANGS_S, until


@pytest.fixture
def llmrun(llmrun: RunLlmrun, tmp_path_factory: pytest.TempPathFactory) -> RunLlmrun:
    """With a home of its own: experiments are conducted one at a time."""
    home = tmp_path_factory.mktemp("home")

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return llmrun(*arguments, **{**options, "env": {"LLMRUN_HOME": str(home), **options.get("env", {})}})

    return run


def test_the_list(llmrun: RunLlmrun) -> None:
    done = llmrun("experiment")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 14
    listed = json.loads(llmrun("experiment", "--json").stdout)
    assert [each["name"] for each in listed][:4] == ["batch", "width", "depth", "fixed"]


def test_what_there_is_not(llmrun: RunLlmrun, tmp_path: Path) -> None:
    done = llmrun("experiment", "bandwith")
    assert done.returncode == 2 and "the nearest is bandwidth" in done.stderr and not done.stdout
    done = llmrun("experiment", "depth", "--quick", "--device", "CUDA7", "-o", str(tmp_path))
    assert done.returncode == 2 and "CUDA7" in done.stderr
    done = llmrun("experiment", "ratio", "--model", str(tmp_path / "none.gguf"), "-o", str(tmp_path))
    assert done.returncode != 0 and "none.gguf" in done.stderr


def test_a_prediction_alone(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Nothing is measured for it: the record says so, page and front page are there."""
    done = llmrun("experiment", "ratio", "--quick", "--json", "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["schema"] == "llmrun.experiment/1" and record["cells"] == {} and record["result"]["findings"]
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "ratio.json", "ratio.md", "ratio.svg"}
    assert "predicted" in (tmp_path / "README.md").read_text()
    assert "Nothing is measured" in (tmp_path / "ratio.md").read_text()


def test_killed_it_goes_on(tmp_path: Path) -> None:
    """In the middle of the second of two, by SIGKILL: the first is not measured again, nor are the samples of the
    second that were there."""
    command = [sys.executable, "-m", "llmrun", "experiment", "ratio", "depth", "--quick", "-o", str(tmp_path)]
    environment = {**os.environ, "LLMRUN_HOME": str(tmp_path / "home")}
    partial = tmp_path / "depth.quick.partial.jsonl"

    def n_lines() -> int:
        return partial.read_bytes().count(b"\n") if partial.exists() else 0

    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    until(lambda: n_lines() > 2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = (tmp_path / "ratio.json").read_bytes()
    kept = [json.loads(line) for line in partial.read_bytes().splitlines()[1:] if line.endswith(b"}")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr
    assert "ratio is finished already" in done.stderr and "samples are there already" in done.stderr
    assert (tmp_path / "ratio.json").read_bytes() == before and not partial.exists()
    assert not (tmp_path / "unfinished.json").exists()
    record = json.loads((tmp_path / "depth.json").read_text())
    for line in kept:
        if line.get("sample"):
            assert line["sample"] in (*record["cells"].get(line["key"], ()), *record["moments"])
    assert {len(samples) for samples in record["cells"].values()} == {2}


@pytest.mark.parametrize("options", [["--json"], []])
def test_several_at_once(llmrun: RunLlmrun, tmp_path: Path, options: list[str]) -> None:
    """A list of records, or the table of all of them."""
    done = llmrun("experiment", "ratio", "ratio", "-q", "-o", str(tmp_path), *options)
    assert done.returncode == 0 and not done.stderr
    assert json.loads(done.stdout)["name"] == "ratio" if options else done.stdout.startswith("# GPU beside CPU")


def test_what_is_none_of_ours_is_not_replaced(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """A README of somebody's, and a file that is called like a record; and an empty name is no folder."""
    folder = tmp_path / "out"
    folder.mkdir()

    def conduct(output: str) -> subprocess.CompletedProcess[str]:
        return llmrun("experiment", "ratio", "-q", "-o", output, cwd=folder)

    (folder / "README.md").write_text("# My project\n")
    done = conduct(str(folder))
    assert done.returncode == 2 and "README.md is none of an experiment's" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["README.md"]
    assert (folder / "README.md").read_text() == "# My project\n"
    (folder / "README.md").unlink()
    (folder / "ratio.json").write_text('{"mine": 1}')
    assert conduct(".").returncode == 2 and (folder / "ratio.json").read_text() == '{"mine": 1}'
    (folder / "ratio.json").unlink()
    assert conduct(".").returncode == 0
    assert conduct(".").returncode == 0  # its own it replaces
    empty = conduct("")
    assert empty.returncode == 2 and "an empty name" in empty.stderr


def test_a_device_that_there_is_not_leaves_nothing(llmrun: RunLlmrun, tmp_path: Path) -> None:
    done = llmrun("experiment", "depth", "--quick", "--device", "NOPE0", "-o", str(tmp_path / "out"))
    assert done.returncode == 2 and "there is no device NOPE0" in done.stderr
    assert not [*(tmp_path / "out").rglob("*.json*")]


def test_the_nearest_name(llmrun: RunLlmrun) -> None:
    for name in ("DEPTH", "depht"):
        assert "the nearest is depth" in llmrun("experiment", name).stderr
