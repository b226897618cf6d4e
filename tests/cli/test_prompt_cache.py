"""`llmrun prompt-cache`: what is kept of long prompts, listed and removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import RunLlmrun

from llmrun.engine import prefixes
from llmrun.engine.protocol import PrefixStore


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path))
    return tmp_path


def test_listed_and_removed(llmrun: RunLlmrun, home: Path) -> None:
    """By id, or all of it; nothing is left in the folder that could be read."""
    assert llmrun("prompt-cache", "list").returncode == 0 == llmrun("prompt-cache").returncode
    assert "nothing is kept" in llmrun("prompt-cache", "rm", "--all").stderr
    for n in (300, 500):
        store = PrefixStore(str(prefixes.folder() / "key"), "key", "user/repo:Q4_K_M", 1 << 30)
        prefixes.write(store, [*range(n)], memoryview(b"state" * 1000))
    assert prefixes.folder().is_relative_to(home)
    listed = json.loads(llmrun("prompt-cache", "list", "--json").stdout)
    assert {(each["model"], each["n_tokens"]) for each in listed} == {("user/repo:Q4_K_M", n) for n in (300, 500)}
    assert all(each["n_bytes"] > 5000 and each["used"].endswith("Z") for each in listed)
    shown = llmrun("prompt-cache", "list").stdout
    assert "user/repo:Q4_K_M" in shown and "300" in shown and listed[0]["id"] in shown
    removed = llmrun("prompt-cache", "rm", listed[0]["id"])
    assert removed.returncode == 0 and listed[0]["id"] in removed.stderr
    assert llmrun("prompt-cache", "rm", listed[0]["id"]).returncode == 4
    assert llmrun("prompt-cache", "rm").returncode == 2
    assert llmrun("prompt-cache", "rm", "--all").returncode == 0
    assert json.loads(llmrun("prompt-cache", "list", "--json").stdout) == []
    assert not [*prefixes.folder().rglob("*.prefix")]


def test_a_small_model_keeps_nothing(llmrun: RunLlmrun, home: Path) -> None:
    """Its prompts are computed before a file is read."""
    assert llmrun("run", "tiny", "b c d e " * 200, "-n", "2", "-q").returncode == 0
    assert prefixes.entries() == []
