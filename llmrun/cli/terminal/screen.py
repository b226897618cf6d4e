"""What the user sees. stdout is data, stderr is talk; a terminal gets no control character that a model made up."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TextIO

from llmrun.errors import EXIT_BROKEN_PIPE, DiskError, LlmrunError, Remedy, UsageError
from llmrun.text import HARMFUL, sanitize

_HARMFUL = re.compile(f"[{HARMFUL}]")
_COLUMNS = 80


class OutputClosed(LlmrunError):
    """Whoever read our output wants no more. Not worth a word."""

    exit_code = EXIT_BROKEN_PIPE


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def columns(stream: TextIO | None = None) -> int:
    """Of the terminal on `stream`, stdout if not given; 80 where it does not tell, or is none.

    The terminal itself is asked: the variable COLUMNS does not follow a resize.
    """
    try:
        return os.get_terminal_size((stream or sys.stdout).fileno()).columns or _COLUMNS
    except (OSError, ValueError, AttributeError):  # closed, or none at all
        return _COLUMNS


def out(text: str) -> None:
    """Data to stdout, at once. Raises `OutputClosed` and `DiskError`."""
    _write(sanitize(text) if is_terminal(sys.stdout) else text, sys.stdout)


def draw(text: str, stream: TextIO | None = None) -> None:
    """For a terminal: `text` with escape sequences of our own, everything else in it sanitized before."""
    if text:
        _write(text, stream or sys.stdout)


def _write(text: str, stream: TextIO | None) -> None:
    if stream is None:
        raise DiskError("standard output is closed")
    try:
        # Written as bytes: what a model says is UTF-8, whatever the locale is.
        stream.buffer.write(text.encode("utf-8", errors="replace"))
        stream.buffer.flush()
    except BrokenPipeError:
        _forget(stream)
        raise OutputClosed("the output was closed") from None
    except OSError as error:
        _forget(stream)
        reason = "no space is left" if error.errno == errno.ENOSPC else os.strerror(error.errno or 0)
        raise DiskError(f"can't write to standard output: {reason}") from None


def out_json(data: Any) -> None:
    """One JSON document to stdout, indented; non-ASCII stays readable.

    What `sanitize` would replace is an escape instead: harmless on a terminal too, and nothing is lost.
    """
    import json

    text = json.dumps(data, indent=2, ensure_ascii=False)  # which escapes C0 by itself
    out(_HARMFUL.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")


def _forget(stream: TextIO) -> None:
    """Point the descriptor at /dev/null: what is still buffered can't be written, and Python would complain at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def note(text: str) -> None:
    """A line of talk to stderr. Never an error: nobody may be listening."""
    stream = sys.stderr
    if stream is None:
        return
    try:
        stream.buffer.write(sanitize(text).encode("utf-8", errors="replace") + b"\n")
        stream.buffer.flush()
    except (OSError, ValueError):
        _forget(stream)


def confirmed(question: str, hint: Remedy) -> bool:
    """Asks on the terminal. Raises `UsageError`, with this hint, where there is none."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise UsageError("there is no terminal to ask on: -y removes without asking", hint=hint)
    draw(f"{sanitize(question)} [y/N] ", sys.stderr)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def error(problem: LlmrunError) -> int:
    """Show what went wrong and what to type next; returns the exit code."""
    from llmrun.cli.framework import spelling

    if not isinstance(problem, OutputClosed):
        note(f"error: {spelling.message(problem)}")
        if hint := spelling.hint(problem):
            note(f"  try: {hint}")
    return problem.exit_code


def run_command(command: Callable[[], object]) -> int:
    """Run a command; returns its exit code. The one place where an error becomes a line."""
    try:
        command()
    except LlmrunError as problem:
        if os.environ.get("LLMRUN_DEBUG"):
            import traceback

            traceback.print_exc()
            if log := getattr(problem, "log", ""):
                note(log)
        return error(problem)
    except UnicodeEncodeError as problem:
        if not "\ud800" <= problem.object[problem.start] <= "\udfff":
            raise
        return error(UsageError(f"'{problem.object[:100]}' is not UTF-8"))  # of a file's name, or typed
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    return 0
