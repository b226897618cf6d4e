"""The answer on a terminal, and the status line below it while it comes.

Nothing that was written is written again: text is appended at the cursor, and the line below it is erased before a line
break and drawn anew behind it. Everything between two looks of the eye goes out in one write.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from llmrun.cli.terminal import screen
from llmrun.text import sanitize

_REDRAW_S = 0.1


def has_color() -> bool:
    """Unless NO_COLOR says otherwise (no-color.org), or the terminal knows none."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[22m" if has_color() else text


class AnswerArea:
    """Text on the terminal on stdout, as it comes, and below it the line that `status` tells; None: there is none."""

    def __init__(self, status: Callable[[], str] | None) -> None:
        self._status = status if os.environ.get("TERM") != "dumb" else None
        self._column = 0
        self._is_drawn = False
        self._drawn_s = 0.0

    def write(self, text: str, column: int) -> None:
        """Append `text`, which is sanitized; the cursor is then at `column`, counted in cells from 0."""
        if self._status is None:
            screen.draw(text)
            self._column = column
            return
        now_s = time.monotonic()
        breaks = "\n" in text
        parts = [self._erased() if breaks else "", text]
        self._column = column
        if breaks or now_s - self._drawn_s >= _REDRAW_S:
            parts.append(self._drawn())
            self._drawn_s = now_s
        screen.draw("".join(parts))

    def refresh(self) -> None:
        """Draw the status line anew."""
        if self._status is not None:
            screen.draw(self._drawn())

    def end(self) -> None:
        """Take the status line away; what comes next begins on a line of its own."""
        screen.draw(self._erased() + ("\n" if self._column else ""))
        self._column = 0

    def _erased(self) -> str:
        if not self._is_drawn:
            return ""
        self._is_drawn = False
        return f"\x1b[B\r\x1b[J\x1b[A\x1b[{self._column + 1}G"

    def _drawn(self) -> str:
        assert self._status is not None
        line = sanitize(self._status())
        self._is_drawn = True
        # The line break scrolls at the bottom of the screen; one up is then the text's line all the same.
        return f"\n\r\x1b[K{dim(line)}\x1b[A\x1b[{self._column + 1}G"


@contextmanager
def without_echo() -> Iterator[None]:
    """What is typed meanwhile waits for the next prompt and does not show up in the text. Ctrl-C still interrupts."""
    import termios

    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):  # no terminal to type on
        yield
        return
    silent = [*before]
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    try:
        termios.tcsetattr(descriptor, termios.TCSANOW, silent)
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
