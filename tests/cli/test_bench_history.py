"""`llmrun bench history`: what was run, shown again and removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_record import RECORD

from llmrun.bench import journal
from llmrun.cli import app

Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Bench:
    """`llmrun bench` with a history of two; returns exit code, stdout, stderr."""
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path))
    with journal.Journal.of(RECORD):
        pass
    with journal.Journal.of(replace(RECORD, id="20261122-000000-00ff", created="2026-11-22T00:00:00Z", ended=None)):
        pass

    def run(*arguments: str) -> tuple[int, str, str]:
        code = app.run(["bench", *arguments])
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def test_list(bench: Bench) -> None:
    """Id, time, model, and the first numbers; a bench that was cut short is called so."""
    for arguments in (["history"], ["history", "list"]):
        code, out, _ = bench(*arguments)
        assert code == 0
        assert [line.split()[0] for line in out.splitlines()] == ["ID", "20261121-010203-ab12", "20261122-000000-00ff"]
        assert "2026-11-21 01:02:03  tiny      2  pp512 256 t/s, tg4 90.0 t/s" in out
        assert out.count("cut short") == 1
    (first, _) = json.loads(bench("history", "list", "--json")[1])
    assert first["rows"][0]["median_tps"] == 256 and Path(first["path"]).is_file()
    assert json.loads(bench("history", "--json")[1])[0] == first


def test_show(bench: Bench) -> None:
    """In any format, by how its id begins; --json is the whole record."""
    assert json.loads(bench("history", "show", "20261121", "--json")[1])["machine"]["cpu"] == "a CPU"
    code, out, err = bench("history", "show", "last", "-o", "md")
    assert code == 0 and out.startswith("| model ") and "cut short: 2 rows" in err
    assert bench("history", "show", "20261121")[1].startswith("tiny · ")
    code, _, err = bench("history", "show", "20261121", "-o", "xml")
    assert code == 2 and "'xml' is none of table, md" in err
    assert bench("history", "show", "2025")[0] == 4
    assert bench("history", "show", "2026112")[0] == 2


def test_remove(bench: Bench) -> None:
    """All that are named, or none."""
    assert bench("history", "rm", "20261121", "1999")[0] == 4
    assert len(journal.stored()) == 2
    assert bench("history", "rm", "20261121", "last") == (
        0,
        "",
        "removed 20261121-010203-ab12\nremoved 20261122-000000-00ff\n",
    )
    assert bench("history") == (0, "", "no bench was run yet\n")


def test_path(bench: Bench) -> None:
    """The folder, or one record's file."""
    assert bench("history", "path")[1] == f"{journal.folder()}\n"
    assert bench("history", "path", "last")[1] == f"{journal.folder() / '20261122-000000-00ff.jsonl'}\n"


def test_other_words_are_models(bench: Bench) -> None:
    """Only "history" leads here."""
    assert "no/such/model.gguf" in bench("no/such/model.gguf")[2]
    code, out, _ = bench("history", "--help")
    assert code == 0 and "Usage: llmrun bench history" in out
