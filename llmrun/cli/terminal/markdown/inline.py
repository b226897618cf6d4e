"""The text inside of lines: emphasis, code spans, links, mathematics."""

from __future__ import annotations

import re
from functools import lru_cache

from llmrun.cli.terminal.page import DIM, Page

_CODE = "36"  # an SGR code
_NEAR = 100  # characters in which a single * or _ or $ must find its end
_SPAN = 300  # and a code span
_LABEL = 120  # a link's text
_TARGET = 1000  # a link's address
_AFTER = frozenset(")]}")

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


class Inline:
    """The text of paragraphs, headings and cells. Emphasis goes on over newlines until `close`."""

    def __init__(self, page: Page) -> None:
        self._page = page
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
        if not self._page.color:
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
        if not self._page.color:
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
            self._page.text(f"({target})", ";".join(filter(None, (self.base, DIM))))
        self._prev, self._tail, self._url = ")", "", False
