"""Tables between pipes: drawn when they are whole, as wide as there is room; as lists where there is too little."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from llmrun.cli.terminal import cells
from llmrun.cli.terminal.markdown.inline import Inline
from llmrun.cli.terminal.page import DIM, Page

MAX_COLUMNS = 64
_NARROWEST = 5  # cells of a column's width at least; where the screen is too narrow, rows become lists

DELIMITERS = re.compile(r"[ \t]*\|(?:[ \t]*:?-+:?[ \t]*\|)*[ \t]*(?::?-+:?[ \t]*)?")
_PIPE = re.compile(r"(?<!\\)\|")
_BREAK = re.compile(r"<br[ ]?/?>", re.IGNORECASE)
_BETWEEN = " │ "
_SGR = re.compile("\x1b\\[[0-9;]*m")


def _cell_texts(row: str) -> list[str]:
    row = row.strip().removeprefix("|")
    cells = _PIPE.split(row)
    if not cells[-1].strip():
        cells.pop()
    return [cell.strip().replace("\\|", "|") for cell in cells]


_Cell = list[tuple[str, int]]
"""A cell's lines, drawn, with their widths in cells."""


def _drawn_cell(text: str, width: int, style: str, color: bool) -> _Cell:
    """A cell's lines, drawn, with their widths in cells."""
    lines = []
    for part in _BREAK.split(text.replace("\t", " ")):
        page = Page(lambda: width + 1, color=color)
        inline = Inline(page)
        inline.start(style)
        page.begin()
        inline.feed(part)
        inline.end_line(final=True)
        page.finish()
        # A style is closed before a newline and opened again behind it, so that each line stands for itself.
        lines += [(line, cells.of_text(_SGR.sub("", line))) for line in page.read().split("\n")]
    return lines


def _fit(widths: list[int], room: int) -> list[int] | None:
    """Columns' widths for `room` cells in all: the widest give first. None where it is too narrow for a table."""
    if sum(widths) <= room:
        return widths
    if room < sum(min(width, _NARROWEST) for width in widths):
        return None
    ordered = sorted(widths)
    sums = [0, *accumulate(ordered)]

    def taken(cap: int) -> int:
        narrow = bisect_right(ordered, cap)
        return sums[narrow] + cap * (len(ordered) - narrow)

    cap = max(cap for cap in range(1, room + 1) if taken(cap) <= room)
    left = room - taken(cap)
    fitted = []
    for width in widths:
        extra = 1 if width > cap and left > 0 else 0
        left -= extra
        fitted.append(min(width, cap + extra))
    return fitted


@dataclass(frozen=True)
class Table:
    header: list[str]
    aligned: list[str]  # "<", ">" or "^"
    rows: list[list[str]]

    @classmethod
    def read(cls, lines: list[str]) -> Table | None:
        header = _cell_texts(lines[0])
        marks = _cell_texts(lines[1])
        if not header or len(marks) != len(header) or len(header) > MAX_COLUMNS:
            return None
        aligned = ["^" if m[0] == m[-1] == ":" and len(m) > 1 else ">" if m[-1] == ":" else "<" for m in marks]
        columns = len(header)
        rows = [[*cells, *[""] * (columns - len(cells))][:columns] for cells in map(_cell_texts, lines[2:])]
        return cls(header, aligned, rows)

    def draw(self, page: Page, begin: Callable[[], None], room: int) -> None:
        """`begin` begins a line of `page` that has `room` cells."""
        columns = range(len(self.header))
        rows = [self.header, *self.rows]
        drawn = [
            [_drawn_cell(cell, 1 << 16, "" if j else "1", page.color) for cell in row] for j, row in enumerate(rows)
        ]
        widths = [max(1, *(cells for row in drawn for _, cells in row[i])) for i in columns]
        fitted = _fit(widths, room - len(_BETWEEN) * (len(widths) - 1))
        if fitted is None:
            self._as_lists(page, begin, room)
            return
        for j, i in ((j, i) for j in range(len(rows)) for i in columns):
            if any(cells > fitted[i] for _, cells in drawn[j][i]):
                drawn[j][i] = _drawn_cell(rows[j][i], fitted[i], "" if j else "1", page.color)
        # Where a row has several lines, rules tell where it ends.
        tall = any(len(cell) > 1 for row in drawn[1:] for cell in row)
        for j, row in enumerate(drawn):
            if j == 1 or (j and tall):
                self._rule(page, begin, fitted)
            self._row(page, begin, row, fitted)
        if not self.rows:
            self._rule(page, begin, fitted)

    def _row(self, page: Page, begin: Callable[[], None], row: list[_Cell], widths: list[int]) -> None:
        between = f"\x1b[{DIM}m{_BETWEEN}\x1b[0m" if page.color else _BETWEEN
        for k in range(max(len(cell) for cell in row)):
            parts = []
            free = left = 0
            for i, cell in enumerate(row):
                text, cells = cell[k] if k < len(cell) else ("", 0)
                free = max(0, widths[i] - cells)
                left = {"<": 0, ">": free, "^": free // 2}[self.aligned[i]]
                parts.append(" " * left + text + " " * (free - left))
            # Nothing to see behind the last cell, and nothing to copy.
            unseen = free - left
            parts[-1] = parts[-1][: len(parts[-1]) - unseen]
            begin()
            page.drawn(between.join(parts), sum(widths) + len(_BETWEEN) * (len(widths) - 1) - unseen)

    def _rule(self, page: Page, begin: Callable[[], None], widths: list[int]) -> None:
        rule = "─┼─".join("─" * width for width in widths)
        begin()
        page.drawn(f"\x1b[{DIM}m{rule}\x1b[0m" if page.color else rule, len(rule))

    def _as_lists(self, page: Page, begin: Callable[[], None], room: int) -> None:
        """Too narrow: each row is a few lines, `header: cell`."""
        inline = Inline(page)

        def write(text: str, style: str) -> None:
            inline.start(style)
            inline.feed(text.replace("\t", " "))
            inline.end_line(final=True)
            inline.close()

        for j, row in enumerate(self.rows or [[""] * len(self.header)]):
            if j:
                begin()
                page.raw("─" * min(room, 3), DIM)
            for i, cell in enumerate(row):
                begin()
                write(self.header[i], "1")
                page.text(": ")
                write(cell, "")
        page.end()
