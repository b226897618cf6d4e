"""An answer as it comes, on a terminal: markdown drawn token by token, and nothing that is written is touched again.

Everything here only ever appends. So a construct is decided before it is drawn, and what is undecided is held back: a
word until it ends (it may have to wrap), a delimiter until its next characters, a single `*` or `_`, a code span and
a link until they are closed or can't be any more, a line of code until its newline, a table until its end.

Four steps, each of which gives the same for the same text, however the text was cut into pieces:

    _Clean   harmless text          _Inline  emphasis, code spans, links
    Markdown lines and blocks       _Page    words, cells, line breaks, styles

What append-only costs:

- `**` and `~~` that are never closed lose their marker and hold until the paragraph ends. Where that is likely, the end
  must be near (`_NEAR` characters, same line) for emphasis to be some: of a single `*` or `_`, and of `**` before a
  small letter (`**kwargs`). A code span's end must be near as well (`_SPAN`). `**` inside a word is text: `2**8`.
- A line that makes the line above it a heading (`===`) comes too late: it stays text, and `---` is a rule.
- A table needs a `|` at the beginning of its rows. Reference links and footnotes are shown as they are written.
- A line that is not indented has left its list, one without `>` its quote: CommonMark would go on lazily.

A newline is kept: models mean it. Blank lines come out as one, those at the end not at all. In cells of tables `<br>`
breaks the line; all other HTML, and mathematics between `$` or `\\(` and `\\[`, is shown as it is written.

Without colour there is no escape sequence at all. Then the markers that would be colour stay: `#`, `**`, backticks,
fences; bullets, quotes, links and tables are drawn the same.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from llmrun.cli.terminal.screen import harmless

# SGR codes, of the 16 colours only: the terminal's own palette is readable on its own background.
_DIM = "2"
_CODE = "36"
_HEADINGS = ("1;4", "1", "1;3", "3", "3", "3")
_TOKENS = {
    "Comment": "2",
    "Keyword": "35",
    "Literal.String": "32",
    "Literal": "36",
    "Name.Builtin": "36",
    "Name.Class": "1",
    "Name.Function": "1",
    "Name.Namespace": "1",
    "Name.Decorator": "35",
    "Name.Tag": "35",
    "Name.Attribute": "36",
    "Generic.Deleted": "31",
    "Generic.Inserted": "32",
    "Generic.Heading": "1",
    "Generic.Subheading": "35",
    "Generic.Prompt": "2",
}

_NEAR = 100  # characters in which a single * or _ or $ must find its end
_SPAN = 300  # and a code span
_LABEL = 120  # a link's text
_TARGET = 1000  # a link's address
_HEAD = 200  # how long the beginning of a line may stay undecided
_DEPTH = 16  # lists and quotes in each other; more are text
_ROW = 8192  # characters of a table's row,
_ROWS = 200  # rows,
_COLUMNS = 64  # columns
_TABLE = 64 << 10  # and characters of a table; beyond, its rows are text
_CELL = 5  # cells of a column's width at least; where the screen is too narrow, rows become lists
_LINE = 4096  # characters of a line of code until it is written without colours
_LEXED_LINE = 500  # the same for lines that are complete: a lexer's regexes are not trusted with more
_LEXED_LINES = 400  # context for a line's colours
_LEXED = 16 << 10
_LEXED_S = 0.2  # of CPU time: what one line's colours may take before the block goes on without
_BLANKS = 64  # empty lines of code that are held back


class Stream(Protocol):
    """Text in pieces → what to write to the terminal."""

    @property
    def column(self) -> int:
        """The cursor's column in cells after everything returned so far; 0 to width."""
        ...

    def feed(self, text: str) -> str:
        """What to write now; "" while it is undecided."""
        ...

    def finish(self) -> str:
        """What was held back; styles are closed. Without a newline at its end."""
        ...


class _Clean:
    """`harmless`, in pieces: CR LF is a newline also when it is cut in two. Half of a surrogate pair is U+FFFD."""

    _HALF = re.compile("[\ud800-\udfff]")

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        return self._HALF.sub("\ufffd", harmless(text[: len(text) - len(self._held)]))

    def finish(self) -> str:
        held, self._held = self._held, ""
        return harmless(held)


# -- cells, words and lines ---

_JOINER, _EMOJI_STYLE = "\u200d", "\ufe0f"
# One cell each, whatever stands beside: the fast path.
_NARROW = "\x21-\x7e\xa0-\xac\xae-\u02ff\u0370-\u0377\u0384-\u038a\u038e-\u03a1\u03a3-\u0482\u048a-\u052f\u2010-\u2027"
_WORDS = re.compile(f"( +)|([{_NARROW}]+)|([^ {_NARROW}]+)")
_CELLS = re.compile(f"([ {_NARROW}]+)|([^ {_NARROW}]+)")
_AFTER = frozenset(")]}")
_OPENING = frozenset("([{（「『【《〈〔［｛“‘")
_CLOSING = frozenset(")]}）」』】》〉〕］｝”’、。，．！？：；,.!?:;…ー～·%％")


@lru_cache(maxsize=4096)
def _cells(char: str) -> int:
    from wcwidth import wcwidth

    return max(0, wcwidth(char))


@lru_cache(maxsize=1024)
def _may_widen(char: str) -> bool:
    """A narrow character that the emoji selector makes two cells wide."""
    from wcwidth import wcswidth

    return _cells(char) == 1 and wcswidth(char + _EMOJI_STYLE) == 2


def _is_hangul(char: str) -> bool:
    return "\uac00" <= char <= "\ud7a3"


def _may_break(before: str, after: str) -> bool:
    """Whether a line may end between two characters without a space, as between Chinese characters."""
    return (
        (_cells(before) == 2 or _cells(after) == 2)
        and before not in _OPENING
        and after not in _CLOSING
        and not _is_hangul(before)
        and not _is_hangul(after)
    )


_LONG_WORD = 24
"""Cells. Where so many are free, a word is shown as it comes: to wait for its end would be a token later for the eye.
A longer one is then broken at the edge."""


class _Page:
    """Words laid into lines of `width() - 1` cells, which is asked anew for each line.

    The last column stays free, so that the cursor is always where `column` says and never beyond an edge.
    """

    def __init__(self, width: Callable[[], int], *, color: bool) -> None:
        self._width = width
        self._color = color
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
        self._last = ""  # what the next character may combine with
        self._joined = self._widened = self._half_flag = False
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
        self._forget()

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
        self._put(prefix, _DIM if prefix.strip() else "", len(prefix))
        self._bare = True

    def _wrap(self) -> None:
        self._newline()
        self._prefix(self._hang)

    # - writing

    def _to(self, style: str) -> None:
        if style != self._style and self._color:
            if self._style:
                self._written.append("\x1b[0m")
            if style:
                self._written.append(f"\x1b[{style}m")
            self._style = style

    def _put(self, text: str, style: str, cells: int) -> None:
        if text:
            self._to(style)
            self._written.append(text)
            self.column = min(self.column + cells, self._columns)
            self._bare = self._bare and not cells

    def _lay(self, text: str, style: str, cells: int) -> None:
        """Into the line, or broken at its edge. `text` is one cluster's part, or characters of one cell each."""
        if self.column + cells <= self._limit:
            self._put(text, style, cells)
        elif text == _EMOJI_STYLE:
            return  # no room to widen what stands before it
        elif len(text) == 1:
            if not self._bare:
                self._wrap()
            self._put(text, style, cells)
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
        if self._spilling or not self._word:
            return
        self._open()
        if self._bare:  # the gap is an indent
            self._write_gap(min(self._limit // 2, self._limit - self.column - self._word_cells))
        elif self.column + self._gap_cells + self._word_cells <= self._limit:
            self._write_gap(self._gap_cells)
        else:
            self._wrap()
        self._write_word()

    def _spill(self) -> None:
        """The word is longer than a line, or hardly can be too long for this one: it is written as it comes."""
        self._spilling = True
        self._open()
        text, _, first = self._word[0]
        if len(text) > 1:
            first = 1
        if self._bare:
            self._write_gap(min(self._limit // 2, self._limit - self.column - first))
        elif self.column + self._gap_cells + first <= self._limit:
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
        for text, style, cells in word:
            self._lay(text, style, cells)

    # - what is a cell

    def _forget(self) -> None:
        self._last = ""
        self._joined = self._widened = self._half_flag = False

    def _take(self, char: str) -> tuple[int, bool]:
        """The cells that a character adds, and whether it belongs to the one before it."""
        cells, last = _cells(char), self._last
        if cells == 0:
            self._joined = char == _JOINER and bool(last) and (self._widened or _cells(last) == 2)
            if char == _EMOJI_STYLE and last and not self._widened and _may_widen(last):
                self._widened = True
                return 1, True
            return 0, True
        if self._joined and cells == 2:
            self._joined = False
            return 0, True
        if "\U0001f3fb" <= char <= "\U0001f3ff" and last:  # the colour of a skin
            if _cells(last) == 2 or self._widened:
                return 0, True
            if _may_widen(last):
                self._widened = True
                return 1, True
        if "\U0001f1e6" <= char <= "\U0001f1ff":
            if self._half_flag:
                self._half_flag = False
                return 0, True
            self._half_flag = True
        else:
            self._half_flag = False
        self._last = char
        self._joined = self._widened = False
        return cells, False

    def _add(self, text: str, style: str, cells: int) -> None:
        if self._spilling:
            self._lay(text, style, cells)
            return
        fits_surely = not self._word and self._has_room(_LONG_WORD)
        self._word.append((text, style, cells))
        self._word_cells += cells
        self._word_chars += len(text)
        if fits_surely or self._word_cells > self.room(self._hang) or self._word_chars > 256 + 8 * self._limit:
            self._spill()

    def _has_room(self, cells: int) -> bool:
        """Whether a word of so many cells, beginning here, is on this line."""
        column = len(self._clipped(self._pending[-1])) if self._pending else self.column
        return column + self._gap_cells + cells <= self._limit

    def _end_word(self) -> None:
        self._flush()
        self._spilling = False

    def text(self, text: str, style: str = "") -> None:
        """Words, without a newline. One goes on where the last call ended."""
        for match in _WORDS.finditer(text):
            kind, run = match.lastindex, match[0]
            if kind == 1:
                self._end_word()
                self._forget()
                if self._gap_cells < self._limit:
                    self._gap.append((run, style))
                    self._gap_cells += len(run)
            elif kind == 2:
                if self._last and _cells(self._last) == 2 and _may_break(self._last, run[0]):
                    self._end_word()
                self._forget()
                self._last = run[-1]
                self._add(run, style, len(run))
            else:
                for char in run:
                    last = self._last
                    cells, belongs = self._take(char)
                    if not belongs and last and _may_break(last, char):
                        self._end_word()
                    self._add(char, style, cells)

    def raw(self, text: str, style: str = "") -> None:
        """Text that is broken at the edge and nowhere else: code."""
        if not text:
            return
        self._whole()
        for match in _CELLS.finditer(text):
            run = match[0]
            if match.lastindex == 1:
                self._forget()
                self._last = run[-1]
                self._lay(run, style, len(run))
            else:
                for char in run:
                    self._lay(char, style, self._take(char)[0])

    def drawn(self, text: str, cells: int) -> None:
        """A line that was laid out before, with its styles, which it closes."""
        self._whole()
        self._to("")
        self._put(text, "", cells)

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


class Plain:
    """Text as it is, wrapped at words. `style` is an SGR such as "2". Empty lines at both ends are left out."""

    def __init__(self, width: Callable[[], int], *, style: str = "", color: bool = True) -> None:
        self._clean = _Clean()
        self._page = _Page(width, color=color)
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


# -- inside a line ---

_SPECIAL = re.compile(r"[\\`*_~\[!$]")
_ESCAPABLE = frozenset("\\`*_~#+-.!|<>$&\"'")  # brackets and braces are mathematics more often than they are escapes
_RUNS = {char: re.compile(re.escape(char) + "+") for char in "`*_~"}
_ENDS = {
    # One that follows text, is not half of two, and doesn't stand inside a word.
    "*": re.compile(r"[^\s\\*]\*(?:\*\*(?!\*)|(?![*A-Za-z0-9_]))"),
    "_": re.compile(r"[^\s\\_]_(?:__)?(?!\w)"),
    "**": re.compile(r"[^\s\\]\*\*"),
    "__": re.compile(r"[^\s\\]__(?!\w)"),
    "$": re.compile(r"[^\s\\$]\$(?!\d)"),
}
_PRICE = re.compile(r"\$\d[\d.,]*[ )\-/]")
_BRACKET = re.compile(r"[\[\]]")
_TARGET_STOP = re.compile(r"[()\s]")
_TITLE = re.compile(r"[ \t]+(?:(?:\"[^\"]*\"|'[^']*')[ \t]*)?\)")


@lru_cache(maxsize=32)
def _ticks(count: int) -> re.Pattern[str]:
    return re.compile(rf"(?<!`)`{{{count}}}(?!`)")


def _is_space(char: str) -> bool:
    return not char or char.isspace()


def _in_word(char: str) -> bool:
    """A letter or digit of a script that has spaces: emphasis doesn't begin behind one."""
    return char == "_" or (char.isalnum() and char < "\u2e80")


class _Inline:
    """The text of paragraphs, headings and cells. Emphasis goes on over newlines until `close`."""

    def __init__(self, page: _Page, *, color: bool) -> None:
        self._page = page
        self._color = color
        self._held = ""
        self.base = ""
        self.math = ""  # what ends the mathematics that we are in
        self._open()

    def _open(self) -> None:
        self._bold = self._italic = ""  # the character that began it
        self._strike = self._link = False
        self._prev = ""
        self._literal = ""  # in a run of this character that is too long to mean something
        self._tail = ""
        self._url = False  # the word has :// in it
        self._restyle()

    def _restyle(self) -> None:
        codes = set(self.base.split(";")) if self.base else set()
        codes |= {code for code, on in (("1", self._bold), ("3", self._italic), ("4", self._link)) if on}
        if self._strike:
            codes.add("9")
        self._style = ";".join(sorted(codes))

    def start(self, base: str) -> None:
        """What follows has this style, whatever else it has."""
        self.base = base
        self._restyle()

    def feed(self, text: str) -> None:
        if text:
            text, self._held = self._held + text, ""
            self._scan(text, eol=False)

    def end_line(self, *, final: bool = False) -> None:
        """What is held back is decided. With `final`, a backslash at the end is one and no line break."""
        text, self._held = self._held, ""
        self._scan(text, eol=True)
        if final and text == "\\":
            self._emit(text)
        if self.math == "\\)":
            self.math = ""
        self._prev = self._literal = self._tail = ""
        self._url = False

    def close(self) -> None:
        """The paragraph is over, and with it all that was not closed."""
        self.base = self.math = ""
        self._open()

    def _emit(self, text: str, style: str | None = None) -> None:
        if not text:
            return
        self._prev = text[-1]
        cut = text.rfind(" ") + 1
        if cut:
            self._url, self._tail = False, ""
        tail = self._tail + text[cut:]
        self._url = self._url or "://" in tail
        self._tail = tail[-2:]
        self._page.text(text.replace("\t", "    "), self._style if style is None else style)

    def _scan(self, text: str, *, eol: bool) -> None:
        at = 0
        while at < len(text):
            if self._literal:
                start = at
                while at < len(text) and text[at] == self._literal:
                    at += 1
                self._emit(text[start:at])
                if at < len(text):
                    self._literal = ""
            elif self.math:
                end = text.find(self.math, at)
                if end >= 0:
                    at, start = end + len(self.math), at
                    self.math = ""
                    self._emit(text[start:at])
                else:
                    held = 0 if eol or text[-1] != self.math[0] else 1
                    self._emit(text[at : len(text) - held])
                    self._held = text[len(text) - held :]
                    return
            else:
                match = _SPECIAL.search(text, at)
                if not match:
                    self._emit(text[at:])
                    return
                self._emit(text[at : match.start()])
                at = self._special(text, match.start(), eol)
                if at < 0:
                    self._held = text[match.start() :]
                    return

    def _special(self, text: str, at: int, eol: bool) -> int:
        """What the character at `at` means: returns where to go on, -1 while that is undecided."""
        char = text[at]
        if char == "\\":
            return self._escape(text, at, eol)
        if char == "$":
            return self._dollar(text, at, eol)
        if char == "!":
            if at + 1 == len(text) and not eol:
                return -1
            if text[at + 1 : at + 2] != "[":
                self._emit("!")
                return at + 1
            return self._bracket(text, at, at + 1, eol)
        if char == "[":
            return self._bracket(text, at, at, eol)
        match = _RUNS[char].match(text, at)
        assert match
        count = len(match[0])
        if count > (16 if char == "`" else 3):
            self._emit(match[0])
            self._literal = char
            return match.end()
        if match.end() == len(text) and not eol:
            return -1
        if char == "`":
            return self._code(text, at, count, eol)
        return self._emphasis(text, at, match[0], eol)

    def _escape(self, text: str, at: int, eol: bool) -> int:
        following = text[at + 1 : at + 2]
        if not following:
            return at + 1 if eol else -1
        if following in "([":
            self.math = "\\)" if following == "(" else "\\]"
            self._emit(text[at : at + 2])
        elif following in _ESCAPABLE:
            self._emit(following)
        else:
            self._emit("\\")
            return at + 1
        return at + 2

    def _dollar(self, text: str, at: int, eol: bool) -> int:
        following = text[at + 1 : at + 2]
        if not following and not eol:
            return -1
        if following == "$":
            self.math = "$$"
            self._emit("$$")
            return at + 2
        end = at + 1
        if not _is_space(following) and not _PRICE.match(text, at):
            found = self._end_near(text, at, "$", eol)
            if found is None:
                return -1
            end = found or end
        self._emit(text[at:end])
        return end

    def _end_near(self, text: str, at: int, mark: str, eol: bool) -> int | None:
        """Where the closing `mark` ends for an opening one at `at`; 0 where there is none near, None: not known yet."""
        begin = at + len(mark)
        window = min(len(text), begin + _NEAR)
        match = _ENDS[mark].search(text, begin, window)
        if match and (match.end() < len(text) or eol):
            return match.end()
        # A match at the very end is judged again when its next character is here.
        return 0 if not match and (eol or window < len(text)) else None

    def _code(self, text: str, at: int, count: int, eol: bool) -> int:
        begin = at + count
        match = _ticks(count).search(text, begin, min(len(text), begin + _SPAN))
        if match and match.end() == len(text) and not eol:
            return -1
        if not match:
            if not eol and len(text) <= begin + _SPAN:
                return -1
            self._emit(text[at:begin])
            return begin
        code = text[begin : match.start()]
        if not self._color:
            self._emit(text[at : match.end()])
            return match.end()
        if code.strip() and code[0] == code[-1] == " ":
            code = code[1:-1]
        self._emit(code, ";".join(filter(None, (self._style, _CODE))))
        self._prev = "`"
        return match.end()

    def _emphasis(self, text: str, at: int, run: str, eol: bool) -> int:
        char, count, end = run[0], len(run), at + len(run)
        following = text[end : end + 1]
        closes = not _is_space(self._prev) and (char != "_" or not _in_word(following))
        opens = not _is_space(following) and not self._url and not _in_word(self._prev)
        if self._prev in _AFTER and _in_word(following):
            opens = False  # f(x)**2
        if char == "~":
            if count == 2 and (not _is_space(self._prev) if self._strike else opens):
                self._toggle(run, strike=not self._strike)
                return end
        elif count == 1:
            if closes and self._italic == char and not (_in_word(self._prev) and _in_word(following)):
                self._toggle(run, italic="")
                return end
            if opens and not self._italic:
                near = self._end_near(text, at, run, eol)
                if near is None:
                    return -1
                if near:
                    self._toggle(run, italic=char)
                    return end
        elif closes and self._bold == char:
            if count == 2:
                self._toggle(run, bold="")
            elif self._italic == char:
                self._toggle(run, bold="", italic="")
            else:
                self._emit(char)
                self._toggle(run[1:], bold="")
            return end
        elif opens and not self._bold and count == 2:
            near = self._end_near(text, at, run, eol) if following.islower() else end
            if near is None:
                return -1
            if near:
                self._toggle(run, bold=char)
                return end
        elif opens and not self._bold and not self._italic:
            self._toggle(run, bold=char, italic=char)
            return end
        self._emit(run)
        return end

    def _toggle(
        self, run: str, *, bold: str | None = None, italic: str | None = None, strike: bool | None = None
    ) -> None:
        if not self._color:
            self._emit(run)
        self._bold = self._bold if bold is None else bold
        self._italic = self._italic if italic is None else italic
        self._strike = self._strike if strike is None else strike
        self._prev = run[-1]
        self._restyle()

    def _bracket(self, text: str, at: int, bracket: int, eol: bool) -> int:
        """A link or, from its `!` on, an image. Its text may have emphasis, and no link in it."""
        begin = bracket + 1
        stop = _BRACKET.search(text, begin, min(len(text), begin + _LABEL))
        if not stop:
            if not eol and len(text) <= begin + _LABEL:
                return -1
            return self._no_link(text, at, begin)
        if stop[0] == "[" or stop.start() == begin:
            return self._no_link(text, at, begin)
        if stop.end() == len(text) and not eol:
            return -1
        if text[stop.end() : stop.end() + 1] != "(":
            return self._no_link(text, at, begin)
        found = self._target(text, stop.end() + 1, eol)
        if found is None:
            return -1
        target, end = found
        if not end:
            return self._no_link(text, at, begin)
        self._show_link(text[begin : stop.start()], target)
        return end

    def _no_link(self, text: str, at: int, begin: int) -> int:
        self._emit(text[at:begin])
        return begin

    def _target(self, text: str, begin: int, eol: bool) -> tuple[str, int] | None:
        """A link's address and where the link ends; 0 where it is none, None while that is undecided."""
        at, deep = begin, 0
        while stop := _TARGET_STOP.search(text, at, min(len(text), begin + _TARGET)):
            if stop[0] == ")" and not deep:
                return text[begin : stop.start()], stop.end()
            if stop[0] in "()":
                deep += 1 if stop[0] == "(" else -1
                at = stop.end()
                if deep > 2:
                    return "", 0
                continue
            title = _TITLE.match(text, stop.start(), min(len(text), begin + _TARGET))
            if title and not deep:
                return text[begin : stop.start()], title.end()
            break
        undecided = not eol and len(text) <= begin + _TARGET
        return None if undecided else ("", 0)

    def _show_link(self, label: str, target: str) -> None:
        target = target.strip("<>")
        before = self._bold, self._italic, self._strike
        self._link = True
        self._restyle()
        self._scan(label, eol=True)
        self._held = self.math = self._literal = ""
        self._bold, self._italic, self._strike = before
        self._link = False
        self._restyle()
        if target and label not in (target, target.rstrip("/"), target.partition("://")[2], target.partition(":")[2]):
            self._page.text(" ")
            self._page.text(f"({target})", ";".join(filter(None, (self.base, _DIM))))
        self._prev, self._tail, self._url = ")", "", False


# -- code ---


# What models write, under any name that Pygments has for it. Not all that it knows: some lexers take minutes for a line
# that was made for them. These were tried with such lines.
_LANGUAGES = frozenset(
    "python pycon pytb bash console fish powershell ps1con bat c cpp objective-c csharp java kotlin scala groovy go"
    " rust zig nim d swift dart javascript jsx typescript tsx json yaml toml ini html xml css scss sass less php ruby"
    " perl lua r julia matlab octave fortran haskell ocaml fsharp elixir erlang clojure lisp scheme racket sql"
    " postgresql mysql sqlite3 graphql protobuf docker make cmake nginx terraform nix diff latex markdown rst vim asm"
    " nasm llvm cuda glsl hlsl verilog systemverilog vhdl solidity ada vb.net awk sed jinja html+jinja vue properties"
    " http tcl wast gdscript crystal".split()
)


@lru_cache(maxsize=1)
def _languages() -> dict[str, str]:
    """All names of `_LANGUAGES` → Pygments' name. Only its own: a plugin of someone's is not asked."""
    from pygments.lexers import get_all_lexers  # type: ignore[import-untyped]

    known = [(name, aliases) for name, aliases, _, _ in get_all_lexers(plugins=False)]
    return {alias: name for name, aliases in known if _LANGUAGES.intersection(aliases) for alias in aliases}


def _lexer(info: str) -> Any:
    """Pygments' lexer for a fence's info string, None where it has none. The name is a model's: only looked up."""
    match = re.match(r"[ \t]*\{?\.?([A-Za-z0-9_+#-]{1,32})(?=[\s,:;{}]|$)", info)
    if not match:
        return None
    name = _languages().get(match[1].lower())
    if name is None:
        return None
    from pygments.lexers import find_lexer_class

    try:
        return find_lexer_class(name)(stripnl=False)
    except Exception:  # noqa: BLE001 - a lexer is a program for one language, and the answer goes on without
        return None


@lru_cache(maxsize=512)
def _color_of(kind: tuple[str, ...]) -> str:
    for length in range(len(kind), 0, -1):
        if style := _TOKENS.get(".".join(kind[:length])):
            return style
    return ""


class _Highlighter:
    """A block's lines, one after the other, with the colours that the block so far gives them.

    The block is lexed again for each line, which knows of strings and comments that began above. What is lexed begins
    anew where a line alone has the tokens that it has in its block, and otherwise ends after `_LEXED_LINES`.
    """

    def __init__(self, lexer: Any) -> None:
        self._lexer = lexer
        self._context: list[str] = []
        self._chars = 0

    def stop(self) -> None:
        self._lexer = None

    def line(self, line: str) -> list[tuple[str, str]]:
        """The line in pieces with their styles."""
        if self._lexer is None:
            return [(line, "")]
        if len(line) > _LEXED_LINE or len(self._context) >= _LEXED_LINES or self._chars > _LEXED:
            self.stop()
            return [(line, "")]
        begin_s = time.thread_time()
        tokens = self._lex("".join(self._context), line)
        if tokens is None or time.thread_time() - begin_s > _LEXED_S:
            self.stop()
            return [(line, "")]
        if len(self._context) > 3 and line.lstrip()[:1].isalpha() and self._lex("", line) == tokens:
            self._context, self._chars = [], 0
        self._context.append(line + "\n")
        self._chars += len(line) + 1
        return tokens

    def _lex(self, context: str, line: str) -> list[tuple[str, str]] | None:
        pieces: list[tuple[str, str]] = []
        begin, end = len(context), len(context) + len(line)
        at = begin
        try:
            for index, kind, value in self._lexer.get_tokens_unprocessed(context + line + "\n"):
                stop = min(index + len(value), end)
                if stop > at:
                    if index > at:
                        return None  # it left something out
                    pieces.append((value[at - index : stop - index], _color_of(tuple(kind))))
                    at = stop
        except Exception:  # noqa: BLE001 - as above
            return None
        return pieces if at == end and "".join(piece for piece, _ in pieces) == line else None


# -- tables ---

_DELIMITERS = re.compile(r"[ \t]*\|(?:[ \t]*:?-+:?[ \t]*\|)*[ \t]*(?::?-+:?[ \t]*)?")
_PIPE = re.compile(r"(?<!\\)\|")
_BREAK = re.compile(r"<br[ ]?/?>", re.IGNORECASE)
_BETWEEN = " │ "


def _cells_of(row: str) -> list[str]:
    row = row.strip().removeprefix("|")
    cells = _PIPE.split(row)
    if not cells[-1].strip():
        cells.pop()
    return [cell.strip().replace("\\|", "|") for cell in cells]


def _cell(text: str, width: int, style: str, color: bool) -> list[tuple[str, int]]:
    """A cell's lines, drawn, with their widths in cells."""
    lines = []
    for part in _BREAK.split(text.replace("\t", " ")):
        page = _Page(lambda: width + 1, color=color)
        inline = _Inline(page, color=color)
        inline.start(style)
        page.begin()
        inline.feed(part)
        inline.end_line(final=True)
        page.finish()
        # A style is closed before a newline and opened again behind it, so that each line stands for itself.
        lines += [(line, _drawn_cells(line)) for line in page.read().split("\n")]
    return lines


_SGR = re.compile("\x1b\\[[0-9;]*m")


def _drawn_cells(line: str) -> int:
    page = _Page(lambda: 1 << 20, color=False)
    page.begin()
    page.raw(_SGR.sub("", line))
    return page.column


def _fit(widths: list[int], room: int) -> list[int] | None:
    """Columns' widths for `room` cells in all: the widest give first. None where it is too narrow for a table."""
    if sum(widths) <= room:
        return widths
    if room < sum(min(width, _CELL) for width in widths):
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
class _Table:
    header: list[str]
    aligned: list[str]  # "<", ">" or "^"
    rows: list[list[str]]

    @classmethod
    def read(cls, lines: list[str]) -> _Table | None:
        header = _cells_of(lines[0])
        marks = _cells_of(lines[1])
        if not header or len(marks) != len(header) or len(header) > _COLUMNS:
            return None
        aligned = ["^" if m[0] == m[-1] == ":" and len(m) > 1 else ">" if m[-1] == ":" else "<" for m in marks]
        columns = len(header)
        rows = [[*cells, *[""] * (columns - len(cells))][:columns] for cells in map(_cells_of, lines[2:])]
        return cls(header, aligned, rows)

    def draw(self, page: _Page, begin: Callable[[], None], room: int, *, color: bool) -> None:
        """`begin` begins a line of `page` that has `room` cells."""
        columns = range(len(self.header))
        rows = [self.header, *self.rows]
        drawn = [[_cell(cell, 1 << 16, "" if j else "1", color) for cell in row] for j, row in enumerate(rows)]
        widths = [max(1, *(cells for row in drawn for _, cells in row[i])) for i in columns]
        fitted = _fit(widths, room - len(_BETWEEN) * (len(widths) - 1))
        if fitted is None:
            self._as_lists(page, begin, room, color)
            return
        for j, i in ((j, i) for j in range(len(rows)) for i in columns):
            if any(cells > fitted[i] for _, cells in drawn[j][i]):
                drawn[j][i] = _cell(rows[j][i], fitted[i], "" if j else "1", color)
        # Where a row has several lines, rules tell where it ends.
        tall = any(len(cell) > 1 for row in drawn[1:] for cell in row)
        for j, row in enumerate(drawn):
            if j == 1 or (j and tall):
                self._rule(page, begin, fitted, color)
            self._row(page, begin, row, fitted, color)
        if not self.rows:
            self._rule(page, begin, fitted, color)

    def _row(
        self, page: _Page, begin: Callable[[], None], row: list[list[tuple[str, int]]], widths: list[int], color: bool
    ) -> None:
        between = f"\x1b[{_DIM}m{_BETWEEN}\x1b[0m" if color else _BETWEEN
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

    def _rule(self, page: _Page, begin: Callable[[], None], widths: list[int], color: bool) -> None:
        rule = "─┼─".join("─" * width for width in widths)
        begin()
        page.drawn(f"\x1b[{_DIM}m{rule}\x1b[0m" if color else rule, len(rule))

    def _as_lists(self, page: _Page, begin: Callable[[], None], room: int, color: bool) -> None:
        """Too narrow: each row is a few lines, `header: cell`."""
        inline = _Inline(page, color=color)

        def write(text: str, style: str) -> None:
            inline.start(style)
            inline.feed(text.replace("\t", " "))
            inline.end_line(final=True)
            inline.close()

        for j, row in enumerate(self.rows or [[""] * len(self.header)]):
            if j:
                begin()
                page.raw("─" * min(room, 3), _DIM)
            for i, cell in enumerate(row):
                begin()
                write(self.header[i], "1")
                page.text(": ")
                write(cell, "")
        page.end()


# -- blocks ---

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
    colors: _Highlighter


class Markdown:
    """Markdown in pieces, drawn. `width` is asked for the terminal's columns at each line."""

    def __init__(self, width: Callable[[], int], *, color: bool = True) -> None:
        self._color = color
        self._clean = _Clean()
        self._page = _Page(width, color=color)
        self._inline = _Inline(self._page, color=color)
        self._rest = ""
        self._step: Callable[[str, int, int], int] = self._head
        self._final = False
        # Lists by quote: [[lists outside], [lists in the quote], [in the quote in it]...]
        self._lists: list[list[_Item]] = [[]]
        self._paragraph = self._was_blank = False
        self._heading = False
        self._heading_end: list[str] = []
        self._table: list[str] = []
        self._table_chars = 0
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
            self._page.text(mark, _DIM if mark == "│" else "")
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
        if not self._color:
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
        self._page.raw("─" * self._page.room(lead.hang), _DIM)
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
        if len(table) == 1 and not (stop >= 0 and _DELIMITERS.fullmatch(line)):
            self._end_table()  # the row above was text, and this one may be the first
            self._table_lead = self._lead()
        self._table.append(line)
        self._table_chars += len(line)
        if stop < 0 or len(self._table) > _ROWS + 2 or self._table_chars > _TABLE or line.count("|") > _COLUMNS + 1:
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
        table = _Table.read(self._table) if len(self._table) > 1 else None
        if table is None:
            self._as_text()
            return
        self._table, self._table_chars = [], 0
        self._inline.close()
        self._paragraph = False
        lead, begun = self._table_lead, False

        def begin() -> None:
            nonlocal begun
            self._begin(_Lead(lead.hang, lead.hang, ()) if begun else lead)
            begun = True

        table.draw(self._page, begin, self._page.room(lead.hang), color=self._color)

    def _as_text(self, *, end: bool = True) -> None:
        """The rows that were held back are lines of a paragraph; with `end` the last of them is complete."""
        lines, self._table, self._table_chars = self._table, [], 0
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
        colors = _Highlighter(_lexer(info) if self._color and info else None)
        self._fence = _Fence(fence[0], len(fence), self._at, self._depth, colors)
        if not self._color:
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
            if not self._color:
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
