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
_SIGNS = re.compile("[\ud800-\udfff]")


def overlap(text: str, beginning: str) -> int:
    """How many characters at the end of `text` are the first ones of `beginning`: the most that are."""
    longest = min(len(beginning), len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(beginning[:n])), 0)


class StopSearch:
    """Looks for stop strings in a text that comes in pieces, and holds back what may turn out to be one.

    Attributes:
        found: the number of the stop string that has come; it and what follows are not shown. None: none has.
        n_given, n_shown: characters that came, and those of them that could be shown.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = [(i, string) for i, string in enumerate(strings) if string]
        self._held = ""
        self.found: int | None = None
        self.n_given = self.n_shown = 0

    def add(self, text: str) -> str:
        """What can be shown now."""
        self.n_given += len(text)
        shown = self._found_in(text) if self._strings else text
        self.n_shown += len(shown)
        return shown

    def _found_in(self, text: str) -> str:
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
        self.n_shown += len(held)
        return held


class AnswerText:
    """The text of one answer: bytes in, what can be shown of answer and thinking out.

    A token may end in the middle of a character, which then waits for the next; bytes that are not UTF-8 become U+FFFD.
    Stop strings are looked for in the answer alone.
    """

    def __init__(
        self, stop: Sequence[str], splitter: Splitter | None = None, calls: CallSplitter | None = None
    ) -> None:
        """`splitter` tells thinking from the answer; None: all is answer. `calls` tells calls of tools from it."""
        self._calls = calls
        self._call_pieces: list[CallPiece] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._splitter = splitter
        self._stop = StopSearch(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.stop is not None

    @property
    def stop(self) -> int | None:
        """The number of the stop string that has come."""
        return self._stop.found

    @property
    def n_given(self) -> int:
        """Characters of the answer so far, and of what may be a stop string."""
        return self._stop.n_given

    @property
    def n_shown(self) -> int:
        """Those of them that could be shown."""
        return self._stop.n_shown

    def add(self, piece: bytes, sign: str = "") -> tuple[str, str]:
        """What can be shown after these bytes, of the answer and of the thinking; `sign` is found, and never shown."""
        text = self._decoder.decode(piece) + sign
        if self._splitter is None and self._calls is None:
            return _shown(self._stop.add(text)), ""
        answer, thinking = self._splitter.add(text) if self._splitter is not None else (text, "")
        return _shown(self._stop.add(self._content(answer))), _shown(thinking)

    def _content(self, answer: str) -> str:
        """What of the answer calls nothing."""
        if self._calls is None:
            return answer
        content, calls = self._calls.add(answer)
        self._call_pieces += calls
        return content

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
        answer, thinking = "" if cut else self._decoder.decode(b"", True), ""
        if self._splitter is not None:
            answer, thinking = self._splitter.add(answer)
            rest, rest_of_thinking = self._splitter.finish()
            answer, thinking = answer + rest, thinking + rest_of_thinking
        if self._calls is not None:
            answer = self._content(answer)
            rest, calls = self._calls.finish(cut=cut)
            self._call_pieces += calls
            answer += rest
        shown = self._stop.add(answer)
        return _shown(shown if self.stopped else shown + self._stop.finish()), _shown(thinking)


def _shown(text: str) -> str:
    return text if text.isascii() else _SIGNS.sub("", text)
