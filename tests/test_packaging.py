"""What the wheel holds."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


def test_wheel_is_whole(tmp_path: Path) -> None:
    """The model, the catalog and the code are in it, and the model is at most 5 MB of it."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        assert archive.read("llmrun/models.toml") == (ROOT / "models.toml").read_bytes()
    assert 1_000_000 < sizes["llmrun/data/tiny.gguf"] <= 5_000_000
    assert wheel.stat().st_size <= 5_500_000
    assert {"llmrun/cli/app.py", "llmrun/engine/child/main.py", "llmrun/data/quality.txt"} <= sizes.keys()
    assert {
        "llmrun/server/page/index.html",
        "llmrun/server/page/page.js",
        "llmrun/server/page/page.css",
    } <= sizes.keys()
    shared = {name.partition(".data/data/share/")[2] for name in sizes}
    assert {"man/man1/llmrun.1", "man/man1/llmrun-run.1", "bash-completion/completions/llmrun"} <= shared
    assert {"zsh/site-functions/_llmrun", "fish/vendor_completions.d/llmrun.fish"} <= shared
    assert not [name for name in sizes if name.startswith(("tests", "scripts"))]


def test_no_lock_file_and_no_machine_paths() -> None:
    """Nothing that names a package host or a folder of one machine is tracked."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {"uv.lock", "poetry.lock", "pdm.lock"} & {Path(name).name for name in tracked}
    hosts = "pypi" + ".org", "pythonhosted" + ".org", "registry.npmjs" + ".org"
    for name in tracked:
        if Path(name).suffix in (".gguf", ".png"):
            continue
        text = (ROOT / name).read_text(errors="replace")
        assert not [host for host in hosts if host in text], name


def test_man_pages_are_those_of_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "make_man.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stderr}: run scripts/make_man.py"


def test_on_windows_one_line() -> None:
    """And no traceback of a module that there is not."""
    code = "import runpy, sys; sys.platform = 'win32'; runpy.run_module('llmrun', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "WSL 2" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("tag", "project", "changelog", "changed", "said"),
    [
        ("v1.2.0", "", "## 1.2.0\n", "", []),
        ("v1.2.1", "", "## 1.2.1\n", "", ["the tag is v1.2.1"]),
        ("v1.2.0", "", "## Unreleased\n", "", ["no part for 1.2.0"]),
        ("v1.2.0", "https://example.invalid/x", "## 1.2.0\n", " M x", ["placeholders", "not committed"]),
    ],
)
def test_what_is_no_release(tag: str, project: str, changelog: str, changed: str, said: list[str]) -> None:
    from check_release import problems

    found = problems(tag, '__version__ = "1.2.0"', project, changelog, changed)
    assert len(found) == len(said) and all(wanted in each for wanted, each in zip(said, found, strict=True))


def test_it_is_not_released_by_accident() -> None:
    """The addresses are placeholders as long as there are none."""
    from check_release import problems

    project = (ROOT / "pyproject.toml").read_text()
    assert any("placeholders" in each for each in problems("v0.1.0", "", project, "", ""))
