"""Words laid into the lines of a terminal as they come: where they wrap, what stands before them, in which style.

Nothing that is written is touched again, so a word is held back until it ends, as it may have to wrap.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llmrun.cli.terminal import cells

DIM = "2"  # an SGR code

# One cell each, whatever stands beside: the fast path.
_NARROW = "\x21-\x7e\xa0-\xac\xae-\u02ff\u0370-\u0377\u0384-\u038a\u038e-\u03a1\u03a3-\u0482\u048a-\u052f\u2010-\u2027"
_WORDS = re.compile(f"( +)|([{_NARROW}]+)|([^ {_NARROW}]+)")
_CELLS = re.compile(f"([ {_NARROW}]+)|([^ {_NARROW}]+)")

_BLANKS = 64  # empty lines that are held back

_LONG_WORD = 24
"""Cells. Where so many are free, a word is shown as it comes: to wait for its end would be a token later for the eye.
A longer one is then broken at the edge."""


class Page:
    """Words laid into lines of `width() - 1` cells, which is asked anew for each line.

    The last column stays free, so that the cursor is always where `column` says and never beyond an edge.
    """

    def __init__(self, width: Callable[[], int], *, color: bool, as_it_comes: bool = True) -> None:
        """`as_it_comes`: a word is shown before its end where `_LONG_WORD` cells are free."""
        self._width = width
        self._as_it_comes = as_it_comes
        self.color = color
        self._written: list[str] = []
        self._style = ""
        self._pending: list[str] = []  # lines begun and not written: their prefixes
        self._begun = self._any = False
        self._hang = ""
        self._bare = True  # nothing but a prefix on this line yet
        self._gap: list[tuple[str, str]] = []
        self._gap_cells = 0
        self._word: list[tuple[str, str, int]] = []
        self._word_cells = self._word_chars = 0
        self._spilling = False  # in a word that is written as it comes
        self._cluster = cells.Cluster()
        self._measure()
        self.column = 0

    def _measure(self) -> None:
        self._columns = max(1, self._width())
        self._limit = max(1, self._columns - 1)

    def room(self, hang: str) -> int:
        """Cells of a line behind that indent, at least 1."""
        return self._limit - len(self._clipped(hang))

    def _clipped(self, prefix: str) -> str:
        """Half of a narrow screen is for the text, and a wide character has its place."""
        return prefix[: max(0, min(self._limit // 2, self._limit - 2))]

    # - lines

    def begin(self, prefix: str = "", hang: str = "") -> None:
        """A new line. `prefix` stands before it, `hang` before what wraps: one cell each character."""
        self.end()
        self._pending.append(prefix)
        self._hang = hang
        self._begun = True
        if len(self._pending) > _BLANKS:
            self._open()

    def blank(self, prefix: str = "") -> None:
        """An empty line, if more follows."""
        self.end()
        if self._begun:
            self._pending.append(prefix)

    def end(self) -> None:
        """The line's last word is complete."""
        self._flush()
        self._gap, self._gap_cells = [], 0
        self._spilling = False
        self._cluster.begin("")

    def _open(self) -> None:
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        if not self._any:
            self._measure()
        for i, prefix in enumerate(pending):
            if self._any:
                self._newline()
            self._any = True
            self._prefix(prefix.rstrip() if i < len(pending) - 1 else prefix)

    def _newline(self) -> None:
        self._to("")
        self._written.append("\n")
        self.column = 0
        self._measure()

    def _prefix(self, prefix: str) -> None:
        prefix = self._clipped(prefix)
        self._put(prefix, DIM if prefix.strip() else "", len(prefix))
        self._bare = True

    def _wrap(self) -> None:
        self._newline()
        self._prefix(self._hang)

    # - writing

    def _to(self, style: str) -> None:
        if style != self._style and self.color:
            if self._style:
                self._written.append("\x1b[0m")
            if style:
                self._written.append(f"\x1b[{style}m")
            self._style = style

    def _put(self, text: str, style: str, n_cells: int) -> None:
        if text:
            self._to(style)
            self._written.append(text)
            self.column = min(self.column + n_cells, self._columns)
            self._bare = self._bare and not n_cells

    def _lay(self, text: str, style: str, n_cells: int) -> None:
        """Into the line, or broken at its edge. `text` is one cluster's part, or characters of one cell each."""
        if self.column + n_cells <= self._limit:
            self._put(text, style, n_cells)
        elif text == cells.EMOJI_STYLE:
            return  # no room to widen what stands before it
        elif len(text) == 1:
            if not self._bare:
                self._wrap()
            self._put(text, style, n_cells)
        else:
            at = 0
            while at < len(text):
                if (room := self._limit - self.column) <= 0:
                    self._wrap()
                    room = self._limit - self.column
                part = text[at : at + room]
                self._put(part, style, len(part))
                at += room

    def _flush(self) -> None:
        """Write the word that is held back, on the next line where it doesn't fit on this one."""
        if self._word and not self._spilling:
            self._place(self._word_cells)

    def _spill(self) -> None:
        """The word is longer than a line, or hardly can be too long for this one: it is written as it comes."""
        self._spilling = True
        text, _, first = self._word[0]
        self._place(1 if len(text) > 1 else first)

    def _place(self, n_cells: int) -> None:
        """Write the word, of which so many cells stand together."""
        self._open()
        if self._bare:  # the gap is an indent
            self._write_gap(min(self._limit // 2, self._limit - self.column - n_cells))
        elif self.column + self._gap_cells + n_cells <= self._limit:
            self._write_gap(self._gap_cells)
        else:
            self._wrap()
        self._write_word()

    def _write_gap(self, room: int) -> None:
        for text, style in self._gap:
            text = text[: max(0, room)]
            room -= len(text)
            bare = self._bare
            self._put(text, style, len(text))
            self._bare = bare
        self._gap, self._gap_cells = [], 0

    def _write_word(self) -> None:
        word, self._word = self._word, []
        self._word_cells = self._word_chars = 0
        self._gap, self._gap_cells = [], 0
        for text, style, n_cells in word:
            self._lay(text, style, n_cells)

    # - words and code

    def _add(self, text: str, style: str, n_cells: int) -> None:
        if self._spilling:
            self._lay(text, style, n_cells)
            return
        fits_surely = self._as_it_comes and not self._word and self._has_room(_LONG_WORD)
        self._word.append((text, style, n_cells))
        self._word_cells += n_cells
        self._word_chars += len(text)
        if fits_surely or self._word_cells > self.room(self._hang) or self._word_chars > 256 + 8 * self._limit:
            self._spill()

    def _has_room(self, n_cells: int) -> bool:
        """Whether a word of so many cells, beginning here, is on this line."""
        column = len(self._clipped(self._pending[-1])) if self._pending else self.column
        return column + self._gap_cells + n_cells <= self._limit

    def _end_word(self) -> None:
        self._flush()
        self._spilling = False

    def text(self, text: str, style: str = "") -> None:
        """Words, without a newline. One goes on where the last call ended."""
        for match in _WORDS.finditer(text):
            kind, run = match.lastindex, match[0]
            if kind == 1:
                self._end_word()
                self._cluster.begin("")
                if self._gap_cells < self._limit:
                    self._gap.append((run, style))
                    self._gap_cells += len(run)
            elif kind == 2:
                last = self._cluster.last
                if last and cells.of_char(last) == 2 and cells.may_break(last, run[0]):
                    self._end_word()
                self._cluster.begin(run[-1])
                self._add(run, style, len(run))
            else:
                for char in run:
                    last = self._cluster.last
                    width, belongs = self._cluster.take(char)
                    if not belongs and last and cells.may_break(last, char):
                        self._end_word()
                    self._add(char, style, width)

    def raw(self, text: str, style: str = "") -> None:
        """Text that is broken at the edge and nowhere else: code."""
        if not text:
            return
        self._whole()
        for match in _CELLS.finditer(text):
            run = match[0]
            if match.lastindex == 1:
                self._cluster.begin(run[-1])
                self._lay(run, style, len(run))
            else:
                for char in run:
                    self._lay(char, style, self._cluster.take(char)[0])

    def drawn(self, text: str, n_cells: int) -> None:
        """A line that was laid out before, with its styles, which it closes."""
        self._whole()
        self._to("")
        self._put(text, "", n_cells)

    def _whole(self) -> None:
        """What comes is no word: a bullet before it is one."""
        self._end_word()
        self._open()
        self._write_gap(self._limit - self.column)

    # - what came of it

    def finish(self) -> None:
        self.end()
        self._to("")

    def read(self) -> str:
        text = "".join(self._written)
        self._written.clear()
        return text


def wrapped(text: str, n_cells: int) -> list[str]:
    """The lines of a text that is there as a whole, each of at most so many cells."""
    page = Page(lambda: n_cells + 1, color=False, as_it_comes=False)
    page.begin()
    page.text(text)
    page.finish()
    return page.read().split("\n")
