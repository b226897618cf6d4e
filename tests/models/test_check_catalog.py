"""`scripts/check_catalog.py`, which compares the catalog with the hub."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT
from hub_server import Hub
from waiting import HANGS_S

from llmrun.errors import NetworkError, NotFound
from llmrun.models.catalog import CatalogEntry


@dataclass(frozen=True)
class File:
    name: str
    size: int


@dataclass(frozen=True)
class Info:
    files: tuple[File, ...]
    gated: bool = False
    licence: str | None = "mit"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_catalog", ROOT / "scripts/check_catalog.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


ENTRY = CatalogEntry("m:4b", "u/m", parameters=4_000_000_000, licence="MIT")
GOOD = (File("m-Q4_K_M.gguf", 2_450_000_000), File("m-Q8_0.gguf", 4_250_000_000))


@pytest.mark.parametrize(
    ("entry", "info", "wrong"),
    [
        (ENTRY, Info(GOOD), ""),
        (ENTRY, Info(GOOD[:1]), ""),
        (ENTRY, Info(GOOD[1:]), ""),
        (ENTRY, Info((File("README.md", 1),)), "no GGUF model"),
        (ENTRY, Info(GOOD, gated=True), "gated, and the entry does not say so"),
        (CatalogEntry("m:4b", "u/m", gated=True), Info(GOOD), "not gated, and the entry says so"),
        (CatalogEntry("m:4b", "u/m", quant="Q5_K_M"), Info(GOOD), "no Q5_K_M; it has Q4_K_M, Q8_0"),
        (CatalogEntry("m:4b", "u/m", file="m-Q6_K.gguf"), Info(GOOD), "no file m-Q6_K.gguf"),
        (CatalogEntry("m:8b", "u/m", parameters=8_000_000_000), Info(GOOD), "8.00 B parameters, but files for 4.00 B"),
        (ENTRY, Info((File("m-Q4_K_M-00001-of-00002.gguf", 9),)), "1 of 2 parts missing"),
        (ENTRY, Info(tuple(File(f"m-Q8_0-0000{i}-of-00002.gguf", 2_125_000_000) for i in (1, 2))), ""),
    ],
)
def test_check(script: ModuleType, entry: CatalogEntry, info: Info, wrong: str) -> None:
    """Each thing that can be wrong with an entry is found, and nothing else."""
    assert "; ".join(script.check(entry, info).wrong) == wrong


def test_check_notes(script: ModuleType) -> None:
    """A level other than the default and another licence are worth a note, not wrong."""
    checked = script.check(ENTRY, Info(GOOD[1:], licence="llama3.1"))
    assert checked.wrong == ()
    assert checked.notes == ("the hub says licence llama3.1", "there is no Q4_K_M; Q8_0 is all there is")


def test_check_run(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line per entry; 1 if any is wrong, 5 when the hub is away, 2 for a name that is not in the catalog."""
    file = tmp_path / "models.toml"
    file.write_text('[[model]]\nname = "m:4b"\nrepo = "u/m"\nparameters = 4\n[[model]]\nname = "x:1b"\nrepo = "u/x"\n')

    def answer(repo: str) -> Info:
        if repo == "u/m":
            return Info(GOOD)
        raise NotFound(f"no repository {repo}")

    def away(repo: str) -> Info:
        raise NetworkError(f"no way to {repo}")

    run = [f"--catalog={file}"]
    assert script.main([*run, "m"], model_info=answer) == 0
    assert script.main(run, model_info=answer) == 1
    out = capsys.readouterr().out
    assert "no repository u/x" in out
    assert "2 entries, 1 wrong" in out
    assert script.main(run, model_info=away) == 5
    assert script.main([*run, "y"], model_info=answer) == 2


def test_check_against_a_hub(tmp_path: Path) -> None:
    """The script as it is run, with the real client, against a hub on loopback."""
    file = tmp_path / "models.toml"
    file.write_text(
        '[[model]]\nname = "good:1m"\nrepo = "u/good"\nparameters = 0.001\n'
        '[[model]]\nname = "heavy:9m"\nrepo = "u/good"\nparameters = 0.009\n'
        '[[model]]\nname = "gone:1m"\nrepo = "u/gone"\n'
        '[[model]]\nname = "locked:1m"\nrepo = "u/locked"\ngated = true\n'
    )
    with Hub() as served:
        served.add("u/good", {"m-Q4_K_M.gguf": bytes(612_000), "m-Q8_0.gguf": bytes(1_062_600), "README.md": b"#"})
        served.add("u/locked", {"m-Q4_K_M.gguf": bytes(600_000)}, access="gated")
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts/check_catalog.py"), f"--catalog={file}"],
            env={**os.environ, **served.env(tmp_path)},
            capture_output=True,
            text=True,
            timeout=HANGS_S,
        )
    lines = {line.split()[1]: line for line in done.stdout.splitlines()[:-1]}
    assert done.returncode == 1, done.stderr
    assert lines["good:1m"].startswith("ok")
    assert "Q4_K_M" in lines["good:1m"]
    assert "9.00 M parameters, but files for 1.00 M" in lines["heavy:9m"]
    assert lines["gone:1m"].startswith("WRONG")
    assert lines["locked:1m"].startswith("ok")
    assert "(gated)" in lines["locked:1m"]
    assert done.stdout.splitlines()[-1] == "4 entries, 2 wrong"
