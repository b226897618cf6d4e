"""What the user sees. stdout is data, stderr is talk; a terminal gets no control character that a model made up.

Rich is imported only where something is drawn, which a pipe or a quick command never needs.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from llmrun.errors import EXIT_BROKEN_PIPE, DiskError, LlmrunError

if TYPE_CHECKING:
    from rich.progress import Progress

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
# C0 but newline and tab, DEL, C1, line and paragraph separators, and what reorders the text around it.
_HARMFUL = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029{_BIDI}]")
_TO_ESCAPE = re.compile(f"[\x7f-\x9f\u2028\u2029\ud800-\udfff{_BIDI}]")


_WIDTH = 80
"""Where the terminal does not tell."""


class OutputClosed(LlmrunError):
    """Whoever read our output wants no more. Not worth a word."""

    exit_code = EXIT_BROKEN_PIPE


def harmless(text: str) -> str:
    """`text` for a terminal: control and reordering characters shown as pictures or as U+FFFD, not obeyed.

    Newline and tab stay; CR LF is a newline.
    """

    def picture(match: re.Match[str]) -> str:
        code = ord(match[0])
        return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"

    return _HARMFUL.sub(picture, text.replace("\r\n", "\n"))


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def width() -> int:
    """Of the terminal on stdout, in cells; asked of itself, because the variable COLUMNS does not follow a resize."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _WIDTH
    except (OSError, ValueError):
        return _WIDTH


def out(text: str) -> None:
    """Data to stdout, at once. Raises `OutputClosed` and `DiskError`."""
    _write(harmless(text) if is_terminal(sys.stdout) else text, sys.stdout)


def draw(text: str, stream: TextIO | None = None) -> None:
    """For a terminal: `text` with escape sequences of our own, everything else in it made harmless before."""
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

    What `harmless` would replace is an escape instead, and so is half of a surrogate pair, which UTF-8 has no bytes
    for: harmless on a terminal too, and nothing is lost.
    """
    import json

    text = json.dumps(data, indent=2, ensure_ascii=False)  # which escapes C0, so that what is left here is the rest
    out(_TO_ESCAPE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")


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
        stream.buffer.write(harmless(text).encode("utf-8", errors="replace") + b"\n")
        stream.buffer.flush()
    except (OSError, ValueError):
        _forget(stream)


def error(problem: LlmrunError) -> int:
    """Show what went wrong and what to type next; returns the exit code."""
    from llmrun.cli.framework import spelling

    if not isinstance(problem, OutputClosed):
        note(f"error: {spelling.message(problem)}")
        if hint := spelling.hint(problem):
            note(f"  try: {hint}")
    return problem.exit_code


def guarded(command: Callable[[], object]) -> int:
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
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    return 0


class Bar:
    """A progress bar on stderr, drawn only on a terminal and only when the work takes longer than a blink."""

    DELAY_S = 0.3

    def __init__(self, what: str) -> None:
        self._what = what
        self._begin_s = time.monotonic()
        self._progress: Progress | None = None
        self._task: Any = None

    def update(self, fraction: float) -> None:
        if self._progress is None:
            if time.monotonic() - self._begin_s < self.DELAY_S or fraction >= 1:
                return
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._progress.add_task(harmless(self._what), total=1.0)
            self._progress.start()
        self._progress.update(self._task, completed=fraction)

    def close(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None


@contextmanager
def bar(what: str, *, shown: bool = True) -> Iterator[Bar | None]:
    """A `Bar` while the block runs, or None where nobody would see it."""
    if not shown or not is_terminal(sys.stderr):
        yield None
        return
    drawn = Bar(what)
    try:
        yield drawn
    finally:
        drawn.close()
