"""From the bytes of tokens to text that can be shown: whole characters, thinking apart, nothing of a stop string.

Child process only. No part of this knows a model, and how an answer is cut into tokens changes nothing in its text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrun.engine.child.reasoning import Splitter
    from llmrun.engine.child.tool_calls import CallSplitter
    from llmrun.engine.protocol import CallPiece


FIRST_SIGN = 0xD800
"""Halves of surrogate pairs, which no text decodes to: they stand for control tokens that a stop string names."""
_OF_NONE = -1
"""The token of a character that stands for bytes which are none."""
_SIGNS = re.compile("[\ud800-\udfff]")


def overlap(text: str, beginning: str) -> int:
    """How many characters at the end of `text` are the first ones of `beginning`: the most that are."""
    longest = min(len(beginning), len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(beginning[:n])), 0)


class StopSearch:
    """Looks for stop strings in a text that comes in pieces, and holds back what may turn out to be one.

    Attributes:
        found: the number of the stop string that has come; it and what follows are not shown. None: none has.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = [(i, string) for i, string in enumerate(strings) if string]
        self._held = ""
        self.found: int | None = None

    @property
    def n_held(self) -> int:
        """Characters that are held back."""
        return len(self._held)

    def add(self, text: str) -> str:
        """What can be shown now."""
        if not self._strings:
            return text
        self._held += text
        found = ((at, i) for i, string in self._strings if (at := self._held.find(string)) >= 0)
        if first := min(found, default=None):
            at, self.found = first
            shown, self._held = self._held[:at], ""
            return shown
        cut = len(self._held) - max(overlap(self._held, string) for _, string in self._strings)
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


class _Trace:
    """Of each character that a stage gives, which token it is of. A stage holds some of what it takes back, leaves some
    out, and gives the rest in its order."""

    def __init__(self, *, at_end: bool) -> None:
        """`at_end`: what is left out of a piece stands before what is given, as a tag does; else mostly behind it, as
        a call or a stop string does."""
        self._text, self._of, self._at_end = "", list[int](), at_end

    def through(self, taken: str, of: list[int], given: str, n_held: int) -> list[int]:
        """The tokens of the characters in `given`; `of`: of those in `taken`."""
        text, self._of = self._text + taken, self._of + of
        n = len(text) - n_held
        begin = 0 if not self._at_end and text.startswith(given, 0, n) else text.rfind(given, 0, n)
        found = self._of[begin : begin + len(given)] if begin >= 0 else self._of[n - len(given) : n]
        self._text, self._of = text[n:], self._of[n:]
        return found


class AnswerText:
    """The text of one answer: bytes in, what can be shown of answer and thinking out.

    A token may end in the middle of a character, which then waits for the next; bytes that are not UTF-8 become U+FFFD.
    Stop strings are looked for in the answer alone.
    """

    def __init__(
        self,
        stop: Sequence[str],
        splitter: Splitter | None = None,
        calls: CallSplitter | None = None,
        *,
        traced: bool = False,
    ) -> None:
        """`splitter` tells thinking from the answer; None: all is answer. `calls` tells calls of tools from it.
        `traced`: it remembers which tokens the text that is shown is of."""
        self._calls = calls
        self._call_pieces: list[CallPiece] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._splitter = splitter
        self._stop = StopSearch(stop)
        self._traces = [_Trace(at_end=each == "tags") for each in ("tags", "calls", "stop")] if traced else None
        self._shown_of: list[int] = []
        self.n_read = 0
        """Characters that tokens had, shown or not."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.stop is not None

    @property
    def stop(self) -> int | None:
        """The number of the stop string that has come."""
        return self._stop.found

    def add(self, piece: bytes, sign: str = "", token: int = 0) -> tuple[str, str]:
        """What can be shown after these bytes, of the answer and of the thinking; `sign` is found, and never shown.
        `token`: its place in the answer."""
        text = self._decoder.decode(piece) + sign
        self.n_read += len(text)
        if self._traces is None and self._splitter is None and self._calls is None:
            return _shown(self._stop.add(text)), ""
        splitter, calls = self._splitter, self._calls
        answer, thinking = splitter.add(text) if splitter is not None else (text, "")
        content = answer
        if calls is not None:
            content, pieces = calls.add(answer)
            self._call_pieces += pieces
        shown = self._stop.add(content)
        self._trace(text, [token] * len(text), answer, content, shown)
        return _shown(shown), _shown(thinking)

    def _trace(self, text: str, of: list[int], answer: str, content: str, shown: str) -> None:
        """Through each stage."""
        if self._traces is None:
            return
        stages = (self._splitter, answer), (self._calls, content), (self._stop, shown)
        for trace, (stage, given) in zip(self._traces, stages, strict=True):
            of = trace.through(text, of, given, stage.n_held if stage is not None else 0)
            text = given
        self._shown_of += of

    def take_shown_of(self) -> list[int]:
        """The tokens of what was shown since the last time, one for each character."""
        taken, self._shown_of = self._shown_of, []
        return taken

    def take_calls(self) -> list[CallPiece]:
        """What has come of calls since the last time."""
        taken, self._call_pieces = self._call_pieces, []
        return taken

    def finish(self, *, cut: bool = False) -> tuple[str, str]:
        """What was held back, now that nothing follows: nothing behind a stop string.

        An answer that was `cut` in the middle of a character ends before it.
        """
        if self.stopped:
            return "", ""
        text, thinking = "" if cut else self._decoder.decode(b"", True), ""
        answer = text
        if self._splitter is not None:
            answer, thinking = self._splitter.add(text)
            rest, rest_of_thinking = self._splitter.finish()
            answer, thinking = answer + rest, thinking + rest_of_thinking
        content = answer
        if self._calls is not None:
            content, pieces = self._calls.add(answer)
            rest, more = self._calls.finish(cut=cut)
            self._call_pieces += [*pieces, *more]
            content += rest
        shown = self._stop.add(content)
        shown += "" if self.stopped else self._stop.finish()
        self._trace(text, [_OF_NONE] * len(text), answer, content, shown)
        return _shown(shown), _shown(thinking)


def _shown(text: str) -> str:
    return text if text.isascii() else _SIGNS.sub("", text)
