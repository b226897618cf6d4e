"""Tables of plain text: aligned, and on a terminal no wider than it is."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from llmrun.cli.terminal import cells, screen
from llmrun.text import sanitize

_GAP = "  "
_NARROWEST = 24
"""With less room than this, a flexible column's text goes below the row."""
_INDENT = 4
_PAIR = ("", "…")


def show(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """The table on stdout, in a pipe one line per row, nothing at all without rows.

    Below a title such as ">SIZE", cells stand at the right; the last column is flexible below one such as "TITLE…": its
    text goes on in the next line where the terminal ends.
    """
    _show(lines(titles, rows, _width()))


def show_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Two columns without titles: name and value."""
    _show(lines(_PAIR, pairs, _width())[1:])


def _show(made: Iterable[str]) -> None:
    screen.out("".join(line + "\n" for line in made))


def _width() -> int | None:
    return screen.columns() if screen.is_terminal(sys.stdout) else None


def lines(titles: Sequence[str], rows: Iterable[Sequence[str]], width: int | None = None) -> list[str]:
    """The titles and a line per row; more lines per row only if `width` leaves a flexible column too little.

    Where not even the other columns fit, each row is a block of titles and values.
    """
    texts = [[_one_line(cell) for cell in row] for row in rows]
    if not texts:
        return []
    texts.insert(0, [title.removeprefix(">").removesuffix("…") for title in titles])
    right, flexible = [title.startswith(">") for title in titles], titles[-1].endswith("…")
    widths = [max(cells.of_text(row[i]) for row in texts) for i in range(len(titles))]
    last = len(titles) - 1
    before = sum(widths[:last]) + len(_GAP) * last
    needed = before - len(_GAP) if flexible else before + widths[last]
    if width is not None and len(titles) > 2 and needed > width:
        return _blocks(texts[0], texts[1:], width)
    made: list[str] = []
    for row in texts:
        fixed = _GAP.join(_padded(row[i], widths[i], right[i]) for i in range(last))
        text = _padded(row[last], widths[last], right[last])
        if width is None or not flexible or before + cells.of_text(row[last]) <= width:
            made.append((fixed + (_GAP if last else "") + text).rstrip())
        elif width - before >= _NARROWEST:
            first, *more = _wrapped(row[last], width - before)
            made += [fixed + _GAP + first, *(" " * before + line for line in more)]
        else:  # too little is left beside the other columns: below them, then
            below = _wrapped(row[last], max(_NARROWEST, width - _INDENT))
            made += [fixed.rstrip(), *(" " * _INDENT + line for line in below)]
    return made


def _blocks(titles: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """A line per value, with the column's title before it; a blank line between rows, empty values left out."""
    made: list[str] = []
    widest = max(map(len, titles))
    for row in rows:
        pairs = [(title.ljust(widest), cell) for title, cell in zip(titles, row, strict=True) if cell]
        made += [*([""] if made else []), *lines(_PAIR, pairs, width)[1:]]
    return made


def _wrapped(text: str, n_cells: int) -> list[str]:
    from llmrun.cli.terminal.page import wrapped

    return wrapped(text, n_cells)


def _one_line(text: str) -> str:
    return sanitize(text).replace("\n", " ").replace("\t", " ")


def _padded(text: str, width: int, right: bool) -> str:
    blank = " " * (width - cells.of_text(text))
    return blank + text if right else text + blank
