"""`llmrun history`: the conversations, listed, shown, searched, exported, removed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from conftest import RunLlmrun
from terminal import Terminal

from llmrun.chat.store import Conversations, Turn, file
from llmrun.chat.transcript import as_document, from_document

History = Callable[..., "CompletedProcess[str]"]

EVIL = "red \x1b[31m \x9b31m \u202e end"


@pytest.fixture
def ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two conversations: the older one whole, in the newer one an answer that was killed."""
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path))
    with Conversations() as kept:
        first = kept.create("qwen3:4b", system="Be kind.")
        kept.add(first, Turn("user", "Where do Äpfel grow?\nBe brief."))
        kept.add(first, Turn("assistant", "On trees.", thinking="Apples.", model="qwen3:4b", stop_reason="stop"))
        second = kept.create("tiny")
        kept.add(second, Turn("user", EVIL))
        kept.append(kept.begin_answer(second, "tiny"), "half an ans")
    return [first, second]


@pytest.fixture
def history(ids: list[str], llmrun: RunLlmrun) -> History:
    return lambda *arguments, **options: llmrun("history", *arguments, **options)


def test_nothing(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Without a conversation every command says so."""
    env = {"LLMRUN_HOME": str(tmp_path)}
    done = llmrun("history", env=env)
    assert (done.returncode, done.stdout) == (0, "") and "no conversation is kept" in done.stderr
    assert json.loads(llmrun("history", "--json", env=env).stdout) == []
    assert llmrun("history", "show", "last", env=env).returncode == 4
    assert "no conversation is kept" in llmrun("history", "rm", "--all", env=env).stderr
    assert "no turn has" in llmrun("history", "search", "x", env=env).stderr


def test_list(history: History, ids: list[str]) -> None:
    """The last changed first, one line each; --limit shows fewer."""
    done = history()
    assert done.returncode == 0 and done.stdout == history("list").stdout
    title, newer, older = done.stdout.splitlines()
    assert title.split() == ["ID", "UPDATED", "(UTC)", "MODEL", "TURNS", "TITLE"]
    assert newer.startswith(ids[1]) and older.startswith(ids[0])
    assert older.endswith("qwen3:4b      2  Where do Äpfel grow?")
    assert len(history("list", "--limit", "1").stdout.splitlines()) == 2
    listed = json.loads(history("--json", "--limit", "1").stdout)
    assert [(each["id"], each["model"], each["n_turns"]) for each in listed] == [(ids[1], "tiny", 2)]
    assert history("list", "--limit", "0").returncode == 2


def test_show(history: History, ids: list[str]) -> None:
    """Markdown, thoughts only when asked for; --json is the whole."""
    shown = history("show", ids[0])
    assert shown.stdout.startswith("# Where do Äpfel grow?\n\nqwen3:4b · ") and "## You\n\nWhere do" in shown.stdout
    assert "> Apples." not in shown.stdout and "> Apples." in history("show", ids[0], "--thinking").stdout
    assert "*(cut short)*" in history("show", "last").stdout
    document = json.loads(history("show", ids[0], "--json").stdout)
    with Conversations() as kept:
        assert document == as_document(kept.read(ids[0]))
    missing = history("show", "1999")
    assert missing.returncode == 4 and "llmrun history list" in missing.stderr


def test_search(history: History, ids: list[str]) -> None:
    """Who said it and what is around it; in a killed answer as well."""
    assert history("search", "äpfel", "GROW").stdout.splitlines()[1:] == [
        f"{ids[0]}  you  Where do Äpfel grow? Be brief."
    ]
    (hit,) = json.loads(history("search", "half", "--json").stdout)
    assert (hit["id"], hit["role"], hit["excerpt"]) == (ids[1], "assistant", "half an ans")
    limited = history("search", "e", "--limit", "1")
    assert len(limited.stdout.splitlines()) == 2 and "the latest 1 turns" in limited.stderr
    nothing = history("search", "zebra")
    assert (nothing.returncode, nothing.stdout) == (0, "") and "no turn has all of these words" in nothing.stderr


def test_remove(history: History, ids: list[str]) -> None:
    """By name without a question; all only when it was confirmed."""
    assert history("rm", ids[0], "1999").returncode == 4
    assert history("rm").returncode == history("rm", "--all", ids[0]).returncode == 2
    asked = history("rm", "--all")
    assert asked.returncode == 2 and "no terminal to ask on" in asked.stderr
    assert history("rm", ids[0]).stderr == f"removed {ids[0]}\n"
    with Terminal("history", "rm", "--all") as terminal:
        terminal.wait_for("Remove 1 conversation? [y/N]")
        terminal.type("\n")
        assert "nothing was removed" in terminal.wait_for("nothing")
        assert terminal.wait() == 0
    with Conversations() as kept:
        assert [each.id for each in kept.list()] == [ids[1]]
        with kept.alone(ids[1]):
            open_ = history("rm", "last")
            assert open_.returncode == 2 and f"open in another llmrun (pid {os.getpid()})" in open_.stderr
    assert history("rm", "--all", "--yes").returncode == 0
    with Conversations() as kept:
        assert kept.list() == []


def test_export(history: History, ids: list[str], tmp_path: Path) -> None:
    """By the file's ending, to stdout without one; a file that is there stays unless --force says otherwise."""
    assert history("export", ids[0]).stdout == history("show", ids[0], "--thinking").stdout
    target = tmp_path / "mine.json"
    assert history("export", "last", "-o", str(target)).returncode == 0
    again = from_document(json.loads(target.read_text(encoding="utf-8")), "mine.json")
    assert [turn.content for turn in again.turns] == [EVIL, "half an ans"] and not again.turns[1].whole
    refused = history("export", "--all", "-o", str(target))
    assert refused.returncode == 2 and "exists already" in refused.stderr
    assert json.loads(target.read_text(encoding="utf-8"))["id"] == ids[1]
    assert history("export", "--all", "-o", str(target), "--force").returncode == 0
    assert [each["id"] for each in json.loads(target.read_text(encoding="utf-8"))] == ids[::-1]
    assert json.loads(history("export", ids[0], "--format", "json").stdout)["id"] == ids[0]
    everything = history("export", *ids).stdout
    assert everything.count("\n---\n") == 1 and everything.index(ids[0]) < everything.index(ids[1])
    assert history("export", "last", "-o", str(tmp_path / "x.pdf")).returncode == 2
    assert history("export", "last", "--format", "pdf").returncode == 2
    assert history("export", "last", "-o", str(tmp_path), "--force", "--format", "md").returncode == 2
    assert history("export").returncode == 2
    assert history("export", "last", "-o", "/proc/none/x.md").returncode == 7
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine.json", "state"]


def test_path(history: History) -> None:
    """Where the file is; and a damaged one is told with the way out."""
    where = Path(history("path").stdout.strip())
    assert where == file()
    where.write_bytes(b"garbage" * 1000)
    for arguments in (["list"], ["show", "last"], ["search", "x"], ["rm", "last"], ["export", "--all"]):
        done = history(*arguments)
        assert done.returncode == 7 and f"mv {where}" in done.stderr and "Traceback" not in done.stderr
    assert history("path").returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["show", "last"], ["show", "last", "--json"], ["search", "red"], ["export", "last"]],
    ids=" ".join,
)
def test_harmless(ids: list[str], arguments: list[str]) -> None:
    """What a model or a user wrote never reaches the terminal as a command to it."""
    with Terminal("history", *arguments) as terminal:
        assert terminal.wait() == 0
        assert "red" in terminal.text
        for evil in (b"\x1b[31m", "\x9b".encode(), "\u202e".encode()):
            assert evil not in terminal.raw
