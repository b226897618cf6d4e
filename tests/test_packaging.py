"""What the wheel holds."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

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
