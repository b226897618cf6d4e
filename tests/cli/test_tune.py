"""`llmrun tune`, and what `run` and `bench` make of it: the real command, on a model large enough to be measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import RunLlmrun, written_once

from llmrun.cli.commands import tune
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.options.load import LoadConfig
from llmrun.tuning import kept
from llmrun.tuning.dials import Dials
from llmrun.tuning.search import Outcome


@pytest.fixture(scope="module")
def measurable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 60 MB in few layers: as small as is measured at its first use."""
    shape = replace(synth.small(synth.SHAPES["llama-1.2b"]), n_layer=4, n_embd=1024, n_ff=4096, n_head=8, n_head_kv=8)
    return written_once(tmp_path_factory, "measurable", replace(shape, n_vocab=24576), "Q4_0")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[dict[str, str]]:
    yield {"LLMRUN_HOME": str(tmp_path / "home"), "LLMRUN_CONFIG_DIR": str(tmp_path / "config")}


def settings(llmrun: RunLlmrun, model: Path, home: dict[str, str], *options: str) -> tuple[dict[str, object], str]:
    done = llmrun("run", str(model), "a", "-n", "2", "--json", *options, env=home)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)["settings"]
    return found, done.stderr


def test_first_use_then_kept(llmrun: RunLlmrun, measurable: Path, home: dict[str, str]) -> None:
    """Said once; the same settings the next time; what is typed counts, and --no-tune has the defaults."""
    first, said = settings(llmrun, measurable, home)
    assert "measuring which settings are the fastest here" in said and "kept" in said
    again, said = settings(llmrun, measurable, home)
    assert "measuring" not in said and again["repack"] == first["repack"]
    for wanted in ("on", "off"):
        assert settings(llmrun, measurable, home, "--repack", wanted)[0]["repack"] is (wanted == "on")
    plain, said = settings(llmrun, measurable, {**home, "LLMRUN_HOME": home["LLMRUN_HOME"] + "2"}, "--no-tune")
    assert "measuring" not in said and plain["repack"] is True  # Q4_0 by default
    listed = json.loads(llmrun("tune", "list", "--json", env=home).stdout)
    assert [(each["prompts"], each["by"]) for each in listed] == [
        (name, "first use") for name in ("short", "medium", "long")
    ]
    assert llmrun("tune", "rm", listed[0]["id"], env=home).returncode == 0
    assert json.loads(llmrun("tune", "list", "--json", env=home).stdout) == []
    assert llmrun("tune", "rm", listed[0]["id"], env=home).returncode == 4
    assert llmrun("tune", "rm", env=home).returncode == 2
    none = llmrun("tune", "rm", "--all", env=home)
    assert none.returncode == 0 and none.stderr.strip() == "nothing is kept"
    both = llmrun("tune", "rm", "--all", "x", env=home)
    assert both.returncode == 2 and "not both" in both.stderr


def kept_of(model: Path, home: dict[str, str], monkeypatch: pytest.MonkeyPatch, choice: kept.Choice) -> None:
    for name, value in home.items():
        monkeypatch.setenv(name, value)
    header = open_header(model)
    kept.keep(kept.key_of(header, LoadConfig()), "a name of before", {"short": choice})


def test_forgetting(
    llmrun: RunLlmrun, measurable: Path, home: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's settings by whatever names it now; what is damaged too; folders are not ours."""
    choice = kept.Choice(Dials("on"), "tune", other_cores=1.9)
    (link := tmp_path / "link.gguf").symlink_to(measurable)
    for name in (str(link), "a name of before"):
        kept_of(measurable, home, monkeypatch, choice)
        assert "beside 1.9 busy cores" in llmrun("tune", "list", env=home).stdout
        assert llmrun("tune", "rm", "tiny", env=home).returncode == 4
        done = llmrun("tune", "rm", name, env=home)
        assert done.returncode == 0 and "a name of before" in done.stderr
        assert json.loads(llmrun("tune", "list", "--json", env=home).stdout) == []
    kept_of(measurable, home, monkeypatch, choice)
    (kept.folder() / "folder.json").mkdir()
    (kept.folder() / "broken.json").write_text("{")
    listed = llmrun("tune", "list", env=home)
    assert "a name of before" in listed.stdout and "1 damaged file: llmrun tune rm --all" in listed.stderr
    done = llmrun("tune", "rm", "--all", env=home)
    assert done.returncode == 0 and "broken, damaged" in done.stderr
    assert [each.name for each in kept.folder().iterdir()] == ["folder.json"]


def test_kept_types_and_flash_attention_off(
    llmrun: RunLlmrun, measurable: Path, home: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_of(measurable, home, monkeypatch, kept.Choice(Dials("on", kv_type="q8_0"), "tune"))
    assert settings(llmrun, measurable, home)[0]["type_v"] == "q8_0"
    assert settings(llmrun, measurable, home, "-fa", "off")[0]["type_v"] == "f16"


def test_tune(llmrun: RunLlmrun, measurable: Path, home: dict[str, str]) -> None:
    """A document of what was tried; `bench --tuned` takes what won."""
    done = llmrun("tune", str(measurable), "-p", "32", "-n", "8", "--seconds", "4", "--json", env=home)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["prompts"] == "short" and document["tried"][0]["dial"] == "repack"
    assert all(each["low"] <= each["gain"] <= each["high"] for each in document["tried"])
    bench = ("bench", str(measurable), "-p", "32", "-n", "0", "-r", "1", "--no-ceilings", "-o", "json")
    rows = json.loads(llmrun(*bench, "--tuned", env=home).stdout)
    assert rows[0]["n_prompt"] == 32
    assert all(each["prefill_s"] > 0 for each in document["tried"])
    shown = llmrun("tune", "list", env=home).stdout
    assert "tune" in shown and str(measurable) in shown
    assert llmrun("tune", "rm", str(measurable), env=home).returncode == 0  # all of a model
    assert str(measurable) not in llmrun("tune", "list", env=home).stdout


def test_tune_of_quantized_values(llmrun: RunLlmrun, measurable: Path, home: dict[str, str]) -> None:
    """They rule flash attention off out, which is not tried; what they are does not end the search."""
    done = llmrun("tune", str(measurable), "-p", "16", "-n", "2", "--seconds", "90", "-ctv", "q8_0", "--json", env=home)
    assert done.returncode == 0, done.stderr
    assert {each["dial"] for each in json.loads(done.stdout)["tried"]} >= {"repack", "n_ubatch"}
    assert "flash_attn" not in {each["dial"] for each in json.loads(done.stdout)["tried"]}


def test_a_time_too_short(llmrun: RunLlmrun, measurable: Path, home: dict[str, str]) -> None:
    """Nothing is measured, so that nothing is kept."""
    done = llmrun("tune", str(measurable), "-p", "512", "-n", "8", "--seconds", "0.1", env=home)
    assert done.returncode == 2 and "no setting could be measured in 100 ms" in done.stderr and "try: " in done.stderr
    assert json.loads(llmrun("tune", "list", "--json", env=home).stdout) == []


def test_where_nothing_can_be_kept(llmrun: RunLlmrun, measurable: Path, tmp_path: Path) -> None:
    """A first use says so, once for every run; tune does before it measures anything."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "cache").touch()
    env = {"LLMRUN_HOME": str(tmp_path / "home"), "LLMRUN_CONFIG_DIR": str(tmp_path / "config")}
    _, said = settings(llmrun, measurable, env)
    assert "measuring which settings" in said and "not kept: writing" in said
    done = llmrun("tune", str(measurable), env=env)
    assert done.returncode == 7 and not done.stdout and "a file is where a folder should be" in done.stderr


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.02, 0.15, "+2.00 % to +15.00 %"), (-1.0, 217403.19, "–"), (-0.95, 5.0, "–")]
)
def test_an_interval_that_says_nothing_is_not_shown(low: float, high: float, said: str) -> None:
    assert tune.cells(Outcome("repack", Dials("on"), 0.01, 0.1, 0.05, low, high, taken=False))[5] == said


def test_a_type_that_is_none(llmrun: RunLlmrun) -> None:
    """Of an option that is repeated every value is looked at."""
    done = llmrun("tune", "tiny", "--allow-kv", "q8_0", "--allow-kv", "foo")
    assert done.returncode == 2 and "--allow-kv: 'foo' is none of" in done.stderr


def test_what_is_looked_for_can_not_be_given(llmrun: RunLlmrun) -> None:
    done = llmrun("tune", "tiny", "-t", "1")
    assert done.returncode == 2 and "this is what is looked for" in done.stderr
    done = llmrun("tune", "tiny", "-p", "100000", "-n", "1")
    assert done.returncode == 2 and "trained on" in done.stderr and "try: " in done.stderr
    done = llmrun("tune", "tiny", "-p", "300", "-n", "20", "-c", "256")
    assert done.returncode == 2 and "more than the 256 of the context" in done.stderr and "-p 236" in done.stderr
