#!/usr/bin/env python3
"""Whether every version in scripts/constraints.txt can be had on every Python that pyproject.toml names.

    .venv/bin/python scripts/check_constraints.py [3.10 …]

pip is asked, for each Python, as if it were that one: two to three minutes. A pin that needs a newer Python leaves
whoever has an older one with a set-up that fails, and is found by nobody who has not. llama-cpp-python has no wheels,
and is left out. Exit status: 1 where a version can't be had.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
NO_WHEELS = {"llama-cpp-python"}


def pythons() -> list[str]:
    """Those that the classifiers name."""
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())


def pins(python: str) -> list[str]:
    """What a Python of this version gets."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "scripts/constraints.txt").read_text().splitlines())
    wanted = [Requirement(line) for line in lines if line]
    here = {"python_version": python, "python_full_version": f"{python}.0"}
    return [
        f"{each.name}{each.specifier}"
        for each in wanted
        if each.name not in NO_WHEELS and (each.marker is None or each.marker.evaluate(here))
    ]


def refused(python: str, wanted: list[str]) -> list[str]:
    """Those of them that can't be had."""
    found = []
    while wanted:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--only-binary", ":all:"]
            command += ["--python-version", python, "--target", folder, *wanted]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        first = re.search(r"No matching distribution found for (\S+)", done.stderr)
        if first is None:
            sys.exit(f"pip failed:\n{done.stderr[-2000:]}")
        found.append(first[1])
        wanted = [each for each in wanted if each != first[1]]
    return found


def main() -> int:
    status = 0
    for python in sys.argv[1:] or pythons():
        wanted = pins(python)
        lacks = refused(python, wanted)
        status |= bool(lacks)
        print(
            f"Python {python}: {len(wanted)} pins, " + (f"not to be had: {', '.join(lacks)}" if lacks else "all there")
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
