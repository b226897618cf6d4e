#!/usr/bin/env python3
"""Refuses a release that is not one: scripts/check_release.py v0.1.0

The tag is the version, the changelog has a part for it, the project's addresses are no placeholders any more, and what
is built is committed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = "example.invalid"


def problems(tag: str, package: str, project: str, changelog: str, changed: str) -> list[str]:
    """What stands against it, by the texts of llmrun/__init__.py, pyproject.toml and CHANGELOG.md and what `git status`
    lists."""
    found = []
    version = re.search(r'^__version__ = "(.+)"$', package, re.MULTILINE)
    if version is None or tag != f"v{version[1]}":
        found.append(f"the tag is {tag}, the version {version[1] if version else 'missing'}")
    if not re.search(rf"^## {re.escape(tag.removeprefix('v'))}\b", changelog, re.MULTILINE):
        found.append(f"CHANGELOG.md has no part for {tag.removeprefix('v')}")
    if PLACEHOLDER in project:
        found.append("the project's addresses in pyproject.toml are placeholders")
    if changed.strip():
        found.append("there are changes that are not committed")
    return found


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: scripts/check_release.py TAG", file=sys.stderr)
        return 2
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
    package, project, changelog = (
        (ROOT / name).read_text() for name in ("llmrun/__init__.py", "pyproject.toml", "CHANGELOG.md")
    )
    found = problems(sys.argv[1], package, project, changelog, changed.stdout)
    for problem in found:
        print(f"not released: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
