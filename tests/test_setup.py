"""The set-up scripts on a copy of the checkout: what is missing is named, what is done is not done again."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

TOOLS = "bash cat cp env flock getconf grep mkdir mktemp mv readlink rm sed sh tail uname".split()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that the set-up reads, and no .venv."""
    copy = tmp_path / "check out"  # a blank in the path must do no harm
    (copy / "scripts").mkdir(parents=True)
    for name in (
        "scripts/setup",
        "scripts/setup.sh",
        "scripts/llama_cpp.cmake",
        "scripts/llmrun",
        "scripts/constraints.txt",
        "pyproject.toml",
    ):
        shutil.copy(ROOT / name, copy / name)
    return copy


def tools(folder: Path, *, python: str | None = None) -> Path:
    """A folder of programs to be the whole PATH, no compiler among them. `python` is the text of another python3."""
    folder.mkdir()
    for name in TOOLS:
        real = shutil.which(name)
        if real:
            (folder / name).symlink_to(real)
    if python is None:
        (folder / "python3").symlink_to(sys.executable)
    else:
        (folder / "python3").write_text(python)
        (folder / "python3").chmod(0o755)
    return folder


def run(checkout: Path, path: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    return subprocess.run(
        [checkout / "scripts" / "llmrun", "--version"], env=environment, capture_output=True, text=True, timeout=600
    )


def test_missing_compiler_is_named(checkout: Path, tmp_path: Path) -> None:
    """Without a compiler and a kept build the set-up ends at once and says what to install."""
    done = run(checkout, tools(tmp_path / "bin"), tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert "a C++ compiler: " in done.stderr and "a C compiler: " in done.stderr
    assert not (checkout / ".venv" / "ready").exists()


def test_missing_venv_module_is_named(checkout: Path, tmp_path: Path) -> None:
    """Debian's python3 without python3-venv: the package is named."""
    stub = f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\nexec {shlex.quote(sys.executable)} "$@"\n'
    done = run(checkout, tools(tmp_path / "bin", python=stub), tmp_path)
    assert done.returncode == 1
    assert "has no venv module" in done.stderr and "Install it with: " in done.stderr


def test_missing_python_is_named(checkout: Path, tmp_path: Path) -> None:
    done = run(checkout, tools(tmp_path / "bin", python="#!/bin/sh\nexit 1\n"), tmp_path)
    assert done.returncode == 1
    assert "no Python 3.10 or newer was found" in done.stderr


def test_half_finished_venv_is_repaired(checkout: Path, tmp_path: Path) -> None:
    """A .venv that was interrupted, or copied from another folder, is made anew and not trusted."""
    broken = checkout / ".venv" / "bin"
    broken.mkdir(parents=True)
    (broken / "python").write_text("#!/bin/sh\nexit 1\n")
    (broken / "python").chmod(0o755)
    path = tools(tmp_path / "bin")
    for name in ("cc", "c++"):  # compilers that fail, so that it ends behind the .venv
        (path / name).write_text("#!/bin/sh\nexit 1\n")
        (path / name).chmod(0o755)
    (path / "python3").unlink()
    no_venv = 'case "$*" in *"-m venv"*) echo no venv today >&2; exit 1;; esac'
    no_pip = f'#!/bin/sh\n{no_venv}\nexec {shlex.quote(sys.executable)} "$@"\n'
    (path / "python3").write_text(no_pip)
    (path / "python3").chmod(0o755)
    done = run(checkout, path, tmp_path)
    assert done.returncode == 1
    assert "making .venv with Python" in done.stderr and "no venv today" in done.stderr
    assert "making .venv failed" in done.stderr and "scripts/setup" in done.stderr


def ready(checkout: Path, environment: dict[str, str]) -> bool:
    code = f'root={shlex.quote(str(checkout))}; . "$root/scripts/setup.sh"; is_ready "$root/.venv/ready"'
    return subprocess.run(["bash", "-c", code], env={**os.environ, **environment}).returncode == 0


def test_what_makes_a_setup_stale(checkout: Path) -> None:
    """Other flags, newer pins or another folder: set up again. Nothing changed: not again."""
    bin_folder = checkout / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    for name in ("python", "llmrun"):
        (bin_folder / name).write_text("#!/bin/sh\n")
        (bin_folder / name).chmod(0o755)
    stamp = checkout / ".venv" / "ready"
    assert not ready(checkout, {})
    code = f'root={shlex.quote(str(checkout))}; . "$root/scripts/setup.sh"; fingerprint > "$root/.venv/ready"'
    subprocess.run(["bash", "-c", code], check=True, env={**os.environ, "LLMRUN_CMAKE_ARGS": ""})
    assert ready(checkout, {"LLMRUN_CMAKE_ARGS": ""})
    assert not ready(checkout, {"LLMRUN_CMAKE_ARGS": "-DGGML_VULKAN=on"})
    (checkout / ".venv" / "cmake-args").write_text("-DGGML_VULKAN=on\n")
    assert not ready(checkout, {}) and ready(checkout, {"LLMRUN_CMAKE_ARGS": ""})
    subprocess.run(["bash", "-c", code], check=True)
    assert ready(checkout, {}) and ready(checkout, {"LLMRUN_CMAKE_ARGS": "-DGGML_VULKAN=on"})
    assert not ready(checkout, {"LLMRUN_CMAKE_ARGS": ""})  # others were given
    subprocess.run(["bash", "-c", code], check=True, env={**os.environ, "LLMRUN_CMAKE_ARGS": ""})
    moved = checkout.with_name("moved")
    shutil.copytree(checkout, moved)
    assert not ready(moved, {"LLMRUN_CMAKE_ARGS": ""})
    later = stamp.stat().st_mtime + 10
    os.utime(checkout / "scripts" / "constraints.txt", (later, later))
    assert not ready(checkout, {"LLMRUN_CMAKE_ARGS": ""})


def test_runs_from_any_folder_and_through_a_link(tmp_path: Path) -> None:
    """This very checkout, which is set up: no word about set-up, wherever it is called from."""
    link = tmp_path / "my-llmrun"
    link.symlink_to(ROOT / "scripts" / "llmrun")
    for _ in range(2):  # the first may have something to set up, when a file of the set-up was just edited
        done = subprocess.run([link, "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0 and done.stdout.startswith("llmrun ")
    assert done.stderr == ""
