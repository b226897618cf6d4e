"""Text to the clipboard: by the desktop's own tool, or by the terminal itself, which also works over ssh."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from typing import TextIO

from llmrun.cli.terminal import screen
from llmrun.errors import UsageError

_MAX_OSC52_BYTES = 74_994
"""Of base64's 100,000 characters, the most that terminals are known to take."""
_TIMEOUT_S = 5.0


def check() -> None:
    """Raise `UsageError` where there is no way, before anything is made to be copied."""
    if not _tools() and _terminal() is None:
        raise UsageError("there is no clipboard here: neither a tool for it nor a terminal", hint="> FILE")


def _terminal() -> TextIO | None:
    return next((each for each in (sys.stdout, sys.stderr) if screen.is_terminal(each)), None)


def copy(text: str) -> str:
    """Put `text` there; returns how, for people. Raises `UsageError` where there is no way."""
    data = text.encode("utf-8", errors="replace")
    for command in _tools():
        try:
            done = subprocess.run(
                command, input=data, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return f"copied by {command[0]}"
    check()
    stream = _terminal()
    if stream is None:
        raise UsageError("no tool for the clipboard works, and there is no terminal", hint="> FILE")
    if len(data) > _MAX_OSC52_BYTES:
        raise UsageError(
            f"{len(data)} bytes are more than a terminal takes for its clipboard ({_MAX_OSC52_BYTES})",
            hint="/export FILE, or install wl-copy, xclip or xsel",
        )
    # Ours, and base64 alone in it: nothing that the model said can end it early.
    screen.draw(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07", stream)
    return "handed to the terminal's clipboard (OSC 52), if it takes such"


def _tools() -> list[list[str]]:
    known = []
    if sys.platform == "darwin":
        known.append(["pbcopy"])
    if os.environ.get("WAYLAND_DISPLAY"):
        known.append(["wl-copy"])
    if os.environ.get("DISPLAY"):
        known += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
    return [command for command in known if shutil.which(command[0])]
