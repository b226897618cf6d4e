"""A file of results: appended whole, gone on with, and never somebody's own file damaged."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmrun.batch.results import Results
from llmrun.errors import DiskError, UsageError


def result(name: str, *, error: Any = None) -> dict[str, Any]:
    return {"id": f"row-{name}", "custom_id": name, "response": {"body": {"ä": 1}}, "error": error}


def test_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Results(path) as results:
        results.add(result("a"))
        results.add(result("b", error={"code": "x"}))
    with Results(path) as results:
        assert results.done == {"row-a": False, "row-b": True}
        results.add(result("c"))
        results.check(["row-a", "row-b", "row-c"])
        with pytest.raises(UsageError, match="row-c"):
            results.check(["row-a", "row-b"])
    assert [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] == ["a", "b", "c"]


def test_torn_anywhere(tmp_path: Path) -> None:
    """Cut at every byte: whole results stay, the part of one goes."""
    whole = tmp_path / "whole.jsonl"
    with Results(whole) as results:
        results.add(result("a"))
        results.add(result("b"))
    data = whole.read_bytes()
    first = data.index(b"\n") + 1
    for cut in range(first, len(data)):
        path = tmp_path / "torn.jsonl"
        path.write_bytes(data[:cut])
        with Results(path) as results:
            assert results.done == {"row-a": False}
            results.add(result("b"))
        assert path.read_bytes() == data


@pytest.mark.parametrize("text", ["my own notes", "my own notes\n", '{"id": 1}\n', '{"id":"row-a"', "\n"])
def test_somebodys_own_file(tmp_path: Path, text: str) -> None:
    """It is refused, and stays as it is; a torn first result alone is taken for what it is."""
    path = tmp_path / "notes.txt"
    path.write_text(text)
    if text.startswith('{"id":"row-'):
        with Results(path) as results:
            assert not results.done
        return
    with pytest.raises(UsageError, match="is not a file of results"):
        Results(path)
    assert path.read_text() == text


def test_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Results(path), pytest.raises(DiskError, match="another batch"):
        Results(path)
    with Results(path):
        pass


def test_a_full_disk(tmp_path: Path) -> None:
    """The file ends with the last whole line."""
    path = tmp_path / "out.jsonl"
    code = """
import sys
from pathlib import Path
from llmrun.batch.results import Results
from llmrun.errors import DiskError
with Results(Path(sys.argv[1])) as results:
    try:
        for i in range(100):
            results.add({"id": f"row-{i}", "response": {"x": "y" * 100}, "error": None})
    except DiskError as error:
        print(error.message)
"""
    limit = 2000

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n{code}", str(path)],
        capture_output=True, text=True, preexec_fn=limited, env=environment, check=True,
    )  # fmt: skip
    assert "larger than the limit" in done.stdout
    data = path.read_bytes()
    assert data.endswith(b"\n") and len(data) <= limit and all(json.loads(line) for line in data.splitlines())


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DiskError):
        Results(tmp_path)
    with pytest.raises(DiskError):
        Results(tmp_path / "nowhere" / "out.jsonl")
    with Results(Path(os.devnull)) as results:
        results.add(result("a"))
