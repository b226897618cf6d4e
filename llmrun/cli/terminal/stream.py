"""Text that comes in pieces, drawn on a terminal as it comes: as it is here, as Markdown in `markdown/`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llmrun.cli.terminal.page import Page
from llmrun.text import sanitize


class Stream(Protocol):
    """Text in pieces → what to write to the terminal."""

    @property
    def column(self) -> int:
        """The cursor's column in cells after everything returned so far; 0 to width."""

    def feed(self, text: str) -> str:
        """What to write now; "" while it is undecided."""

    def finish(self) -> str:
        """What was held back; styles are closed. Without a newline at its end."""


class Clean:
    """`sanitize`, in pieces: CR LF is a newline also when it is cut in two."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        return sanitize(text[: len(text) - len(self._held)])

    def finish(self) -> str:
        held, self._held = self._held, ""
        return sanitize(held)


class Plain:
    """Text as it is, wrapped at words. `style` is an SGR such as "2". Empty lines at both ends are left out."""

    def __init__(self, width: Callable[[], int], *, style: str = "", color: bool = True) -> None:
        self._clean = Clean()
        self._page = Page(width, color=color)
        self._style = style
        self._begun = False

    @property
    def column(self) -> int:
        return self._page.column

    def feed(self, text: str) -> str:
        self._write(self._clean.feed(text))
        return self._page.read()

    def finish(self) -> str:
        self._write(self._clean.finish())
        self._page.finish()
        return self._page.read()

    def _write(self, text: str) -> None:
        for i, line in enumerate(text.split("\n")):
            if i and self._begun:
                self._page.begin()
            if line:
                if not self._begun:
                    self._page.begin()
                    self._begun = True
                self._page.text(line.replace("\t", "    "), self._style)
