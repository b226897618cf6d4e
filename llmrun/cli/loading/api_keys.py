"""Keys of servers: from a file or the environment, never from the command line, which everybody here can read."""

from __future__ import annotations

import os
from pathlib import Path

from llmrun.errors import UsageError

NAME = "LLMRUN_API_KEY"
_MOST = 1 << 16
"""Bytes of a file."""


def read(path: Path | None) -> tuple[str, ...]:
    """All that there are, those of the file first: one a line, without blank ones and comments."""
    found = []
    if path is not None:
        from llmrun.cli.terminal import files

        text = files.read_bytes("--api-key-file", str(path), most=_MOST).decode(errors="replace")
        lines = [line.strip() for line in text.splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise UsageError(f"--api-key-file {path}: there is no key in it")
    return tuple(key for key in (*found, os.environ.get(NAME, "").strip()) if key)
