"""Lines and the blocks that they make: paragraphs, headings, lists, quotes, tables, code."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from llmrun.cli.terminal.markdown.highlight import Highlighter, lexer_of
from llmrun.cli.terminal.markdown.inline import Inline
from llmrun.cli.terminal.markdown.table import DELIMITERS, MAX_COLUMNS, Table
from llmrun.cli.terminal.page import DIM, Page
from llmrun.cli.terminal.stream import Clean

# SGR codes, of the 16 colours only: the terminal's own palette is readable on its own background.
_HEADINGS = ("1;4", "1", "1;3", "3", "3", "3")

_HEAD = 200  # how long the beginning of a line may stay undecided
_DEPTH = 16  # lists and quotes in each other; more are text
_ROW = 8192  # characters of a table's row,
_ROWS = 200  # rows
_TABLE = 64 << 10  # and characters of a table; beyond, its rows are text
_LINE = 4096  # characters of a line of code until it is written without colours

_SPACES = re.compile(" +")
_HEADING = re.compile(r"(#{1,6})(?=[ \t\n])")
_HEADING_END = re.compile(r"(?:[ \t]+#+)?[ \t]*")
_FENCE = re.compile(r"(`{3,}|~{3,})")
_ITEM = re.compile(r"([-+*]|\d{1,9}[.)])(?=[ \t\n])")
_ITEM_BEGIN = re.compile(r"[-+*]|\d{1,9}[.)]?")
_TASK = re.compile(r"\[([ xX])\](?=[ \t\n])")
_TASK_BEGIN = re.compile(r"\[(?:[ xX]\]?)?")
_QUOTED = re.compile(r"[ \t]*> ?")
_MARKERS = frozenset(">#`~|-*_+[0123456789")


class _Item(NamedTuple):
    at: int  # the marker's column in its source, from the quote that it is in
    content: int
    mark: str


class _Lead(NamedTuple):
    """What stands before a line: what wraps hangs below its text, not below its bullet."""

    prefix: str
    hang: str
    marks: tuple[str, ...]


@dataclass(frozen=True)
class _Fence:
    char: str
    count: int
    column: int
    depth: int
    colors: Highlighter


class Markdown:
    """Markdown in pieces, drawn. `width` is asked for the terminal's columns at each line."""

    def __init__(self, width: Callable[[], int], *, color: bool = True) -> None:
        self._clean = Clean()
        self._page = Page(width, color=color)
        self._inline = Inline(self._page)
        self._rest = ""
        self._step: Callable[[str, int, int], int] = self._head
        self._final = False
        # Lists by quote: [[lists outside], [lists in the quote], [in the quote in it]...]
        self._lists: list[list[_Item]] = [[]]
        self._paragraph = self._was_blank = False
        self._heading = False
        self._heading_end: list[str] = []
        self._table: list[str] = []
        self._table_lead = _Lead("", "", ())
        self._table_raw = False
        self._fence: _Fence | None = None
        self._new_line()

    @property
    def column(self) -> int:
        return self._page.column

    def feed(self, text: str) -> str:
        self._advance(self._clean.feed(text))
        return self._page.read()

    def finish(self) -> str:
        self._final = True
        self._advance(self._clean.finish() + "\n")
        self._end_table()
        self._inline.close()
        self._page.finish()
        return self._page.read()

    def _advance(self, text: str) -> None:
        seen = len(self._rest)
        text = self._rest + text
        at = 0
        while at < len(text):
            end = self._step(text, at, seen)
            if end < 0:
                break
            at, seen = end, 0
        self._rest = text[at:]

    def _new_line(self) -> None:
        self._step = self._head
        self._depth = self._at = 0  # quotes, and the column after them
        self._after_quote = self._after_item = False
        self._opened: list[_Item] = []

    # - how a line begins. Every step takes the text and where it stands in it, and returns where to go on, -1 to wait.

    def _head(self, text: str, at: int, seen: int) -> int:
        """Character by character, so that where the text was cut can't matter. `seen` is undecided, and stays so."""
        if spaces := _SPACES.match(text, at):
            self._at += len(spaces[0]) - self._after_quote
            self._after_quote = False
            return spaces.end()
        if text[at] == "\t":
            self._at += 4 - self._at % 4
            self._after_quote = False
            return at + 1
        self._after_quote = False
        if text[at] == "\n":
            self._blank()
            return at + 1
        in_quote = text[at] == ">" and self._depth + 1 < len(self._lists)
        if text[at] not in _MARKERS or (self._inline.math and not in_quote):
            self._begin_text()
            return at
        for end in range(max(at, seen) + 1, len(text) + 1):
            used = self._decide(text[at:end])
            if used is not None:
                return at + used
        return -1

    def _decide(self, head: str) -> int | None:
        """What `head`, which may end in the line's newline, begins: how much of it is used up, None to wait."""
        char, whole = head[0], head[-1] == "\n"
        if char == ">" and self._room_inside():
            self._quote()
            return 1
        if char == "|":
            return self._row_begins()
        if char == "[" and self._after_item:
            if match := _TASK.match(head):
                item = self._opened.pop()
                box = "☐" if match[1] == " " else "☑"
                item = item._replace(mark=box if item.mark == "•" else f"{item.mark} {box}")
                self._opened.append(item)
                self._lists[self._depth][-1] = item
                self._after_item = False
                return match.end()
            if _TASK_BEGIN.fullmatch(head):
                return None
        if char == "#":
            if match := _HEADING.match(head):
                self._begin_heading(len(match[1]))
                return match.end()
            if len(head) <= 6 and head == "#" * len(head):
                return None
        if char in "`~" and len(head) <= _HEAD:
            if head == char * len(head):
                return None
            match = _FENCE.match(head)
            if match and not (char == "`" and "`" in head[match.end() :]):
                if not whole:
                    return None
                self._begin_code(match[1], head[match.end() :].strip())
                return len(head)
        if char in "-*_" and len(head) <= _HEAD and not head.strip(f"{char} \t\n"):
            if not whole:
                return None
            if head.count(char) >= 3:
                self._rule()
                return len(head)
        if match := _ITEM.match(head):
            if self._room_inside():
                return self._item(match[1])
        elif _ITEM_BEGIN.fullmatch(head):
            return None
        self._begin_text()
        return 0

    def _room_inside(self) -> bool:
        return sum(len(lists) + 1 for lists in self._lists[: self._depth + 1]) <= _DEPTH

    def _leave(self, step: int = 2) -> bool:
        """Leave the lists and quotes that this line isn't in; whether there were any."""
        items = self._lists[self._depth]
        left = len(items)
        while items and self._at < items[-1].at + step:
            items.pop()
        left -= len(items)
        if left or len(self._lists) > self._depth + 1:
            del self._lists[self._depth + 1 :]
            return True
        return False

    def _quote(self) -> None:
        items = self._lists[self._depth]
        if items and self._at < items[-1].at + 2:
            self._leave()
            self._close()
        self._depth += 1
        if self._depth == len(self._lists):
            self._close()
            self._lists.append([])
        self._at = 0
        self._after_quote, self._after_item = True, False

    def _item(self, marker: str) -> int:
        self._leave()
        self._close()
        mark = "•" if len(marker) == 1 else marker
        item = _Item(self._at, self._at + len(marker) + 1, mark)
        self._lists[self._depth].append(item)
        self._opened.append(item)
        self._at += len(marker)
        self._after_item = True
        return len(marker)

    def _lead(self) -> _Lead:
        """For a line at this place; the markers that it opened come once."""
        prefix = hang = ""
        marks: list[str] = []
        for depth, items in enumerate(self._lists[: self._depth + 1]):
            if depth:
                hang += "│ "
                if marks:
                    marks.append("│")
            for item in items:
                if any(item is opened for opened in self._opened):
                    prefix = prefix if marks else hang
                    marks.append(item.mark)
                hang += " " * (len(item.mark) + 1)
        self._opened = []
        return _Lead(prefix if marks else hang, hang, tuple(marks))

    def _begin(self, lead: _Lead) -> None:
        self._was_blank = False
        self._page.begin(lead.prefix, lead.hang)
        for mark in lead.marks:
            self._page.text(mark, DIM if mark == "│" else "")
            self._page.text(" ")

    def _close(self) -> None:
        """End the paragraph or table that is open."""
        self._end_table()
        self._inline.close()
        self._paragraph = self._table_raw = False

    def _block(self) -> None:
        """A block begins that goes on with nothing."""
        self._leave()
        self._close()

    def _blank(self) -> None:
        if self._opened:  # an item without text
            self._close()
            self._begin(self._lead())
            self._page.end()
        else:
            self._close()
            del self._lists[self._depth + 1 :]
            if not self._was_blank:
                self._page.blank("│ " * self._depth)
                self._was_blank = True
        self._new_line()

    # - text

    def _begin_text(self) -> None:
        if self._opened or (not self._inline.math and self._leave()):
            self._close()
        self._table_raw = False
        self._end_table()
        self._open_line()
        self._step = self._text

    def _open_line(self) -> None:
        """A line of a paragraph, new or not. Its indent is kept, where it doesn't follow a bullet."""
        items = self._lists[self._depth]
        indent = 0 if self._opened else self._at - (items[-1].content if items else 0)
        self._begin(self._lead())
        if indent > 0:
            self._page.text(" " * min(indent, 80))
        self._paragraph = True

    def _begin_heading(self, level: int) -> None:
        self._block()
        self._begin(self._lead())
        self._heading = True
        self._inline.start(_HEADINGS[level - 1])
        if not self._page.color:
            self._page.text("#" * level + " ")
        self._step = self._after_marker

    def _after_marker(self, text: str, at: int, seen: int) -> int:
        if text[at] in " \t":
            return at + 1
        self._step = self._text
        return at

    def _text(self, text: str, at: int, seen: int) -> int:
        stop = text.find("\n", at)
        end = len(text) if stop < 0 else stop
        piece = text[at:end]
        if self._heading:
            kept = piece.rstrip(" \t#")
            if kept:
                kept = "".join(self._heading_end) + kept
                self._heading_end.clear()
                self._inline.feed(kept)
                piece = piece[len(piece.rstrip(" \t#")) :]
            self._heading_end.append(piece)
        else:
            self._inline.feed(piece)
        if stop < 0:
            return end
        if self._heading:
            rest = "".join(self._heading_end)
            self._heading_end.clear()
            if not _HEADING_END.fullmatch(rest):
                self._inline.feed(rest)
        self._end_text()
        if self._heading:
            self._heading = False
            self._close()
        self._new_line()
        return stop + 1

    def _end_text(self) -> None:
        self._inline.end_line(final=self._final)
        self._page.end()

    def _rule(self) -> None:
        self._block()
        lead = self._lead()
        self._begin(lead)
        self._page.raw("─" * self._page.room(lead.hang), DIM)
        self._new_line()

    # - tables

    def _row_begins(self) -> int:
        if self._opened or self._leave():
            self._close()
        if self._table_raw:
            self._open_line()
            self._step = self._text
            return 0
        if not self._table:
            self._table_lead = self._lead()
        self._step = self._row
        return 0

    def _row(self, text: str, at: int, seen: int) -> int:
        stop = text.find("\n", max(at, seen), at + _ROW)
        if stop < 0 and len(text) - at < _ROW:
            return -1
        line = text[at : stop if stop >= 0 else at + _ROW]
        table = self._table
        if len(table) == 1 and not (stop >= 0 and DELIMITERS.fullmatch(line)):
            self._end_table()  # the row above was text, and this one may be the first
            self._table_lead = self._lead()
        self._table.append(line)
        is_large = len(self._table) > _ROWS + 2 or sum(map(len, self._table)) > _TABLE
        if stop < 0 or is_large or line.count("|") > MAX_COLUMNS + 1:
            self._as_text(end=stop >= 0)
            self._table_raw = True
            if stop < 0:
                self._step = self._text
                return at + _ROW
        self._new_line()
        return stop + 1

    def _end_table(self) -> None:
        if not self._table:
            return
        table = Table.read(self._table) if len(self._table) > 1 else None
        if table is None:
            self._as_text()
            return
        self._table = []
        self._inline.close()
        self._paragraph = False
        lead, begun = self._table_lead, False

        def begin() -> None:
            nonlocal begun
            self._begin(_Lead(lead.hang, lead.hang, ()) if begun else lead)
            begun = True

        table.draw(self._page, begin, self._page.room(lead.hang))

    def _as_text(self, *, end: bool = True) -> None:
        """The rows that were held back are lines of a paragraph; with `end` the last of them is complete."""
        lines, self._table = self._table, []
        lead = self._table_lead
        for i, line in enumerate(lines):
            self._begin(_Lead(lead.hang, lead.hang, ()) if i else lead)
            self._inline.feed(line)
            if end or i < len(lines) - 1:
                self._end_text()
        self._paragraph = True

    # - code

    def _begin_code(self, fence: str, info: str) -> None:
        self._block()
        # The list that the fence is in gives its indent away as well.
        colors = Highlighter(lexer_of(info) if self._page.color and info else None)
        self._fence = _Fence(fence[0], len(fence), self._at, self._depth, colors)
        if not self._page.color:
            self._begin(self._lead())
            self._page.raw(fence + info.replace("\t", " "))
        self._step = self._code

    def _code(self, text: str, at: int, seen: int) -> int:
        fence = self._fence
        assert fence
        stop = text.find("\n", max(at, seen), at + _LINE)
        if stop < 0 and len(text) - at < _LINE:
            return -1
        line = text[at : stop if stop >= 0 else at + _LINE]
        for _ in range(fence.depth):
            match = _QUOTED.match(line)
            if not match:  # the quote is over, and the code with it
                self._fence = None
                self._new_line()
                return at
            line = line[match.end() :]
        closing = line.strip(" \t")
        if stop >= 0 and len(closing) >= fence.count and closing == fence.char * len(closing):
            if not self._page.color:
                self._begin(self._lead())
                self._page.raw(closing)
            elif self._opened:
                self._begin(self._lead())
            self._fence = None
            self._new_line()
            return stop + 1
        line = line.expandtabs(4)
        line = line[min(fence.column, len(line) - len(line.lstrip(" "))) :]
        self._begin(self._lead())
        if stop < 0:
            fence.colors.stop()
            self._page.raw(line)
            self._step = self._long_line
            return at + _LINE
        for piece, style in fence.colors.line(line):
            self._page.raw(piece, style)
        return stop + 1

    def _long_line(self, text: str, at: int, seen: int) -> int:
        stop = text.find("\n", at)
        end = len(text) if stop < 0 else stop
        self._page.raw(text[at:end].replace("\t", "    "))
        if stop < 0:
            return end
        self._step = self._code
        return stop + 1
