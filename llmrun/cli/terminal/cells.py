"""How many cells of a terminal a text takes: by wcwidth's tables, and by what belongs together to the eye.

Two for most East Asian characters and for emoji, none for what combines with the character before it: accents, the
selector that makes an emoji of a character, the colour of a skin, what a joiner joins, the second half of a flag.
"""

from __future__ import annotations

from functools import lru_cache

_JOINER, EMOJI_STYLE = "\u200d", "\ufe0f"
_OPENING = frozenset("([{（「『【《〈〔［｛“‘")
_CLOSING = frozenset(")]}）」』】》〉〕］｝”’、。，．！？：；,.!?:;…ー～·%％")


@lru_cache(maxsize=4096)
def of_char(char: str) -> int:
    """Cells of one code point by itself: 0, 1 or 2."""
    from wcwidth import wcwidth

    return max(0, wcwidth(char))


def of_text(text: str) -> int:
    """Cells of a line without control characters."""
    if text.isascii():
        return len(text)
    cluster = Cluster()
    return sum(cluster.take(char)[0] for char in text)


def clipped(text: str, cells: int) -> str:
    """As much of a line as fits, with "…" at its end where something is left out. `cells` is at least 1."""
    if of_text(text) <= cells:
        return text
    cluster, used, end, whole = Cluster(), 0, 0, 0
    for end, char in enumerate(text):
        more, belongs = cluster.take(char)
        if not belongs:
            whole = end
        used += more
        if used > cells - 1:
            break
    return text[:whole] + "…"


@lru_cache(maxsize=1024)
def _may_widen(char: str) -> bool:
    """A narrow character that the emoji selector makes two cells wide."""
    from wcwidth import wcswidth

    return of_char(char) == 1 and wcswidth(char + EMOJI_STYLE) == 2


def _is_hangul(char: str) -> bool:
    return "\uac00" <= char <= "\ud7a3"


def may_break(before: str, after: str) -> bool:
    """Whether a line may end between two characters without a space, as between Chinese characters."""
    return (
        (of_char(before) == 2 or of_char(after) == 2)
        and before not in _OPENING
        and after not in _CLOSING
        and not _is_hangul(before)
        and not _is_hangul(after)
    )


class Cluster:
    """What is one character to the eye, code point by code point.

    Attributes:
        last: the code point that began it, which the next one may combine with; "" at a line's or word's beginning.
    """

    def __init__(self) -> None:
        self.begin("")

    def begin(self, char: str) -> None:
        """It is this character; "": none yet."""
        self.last = char
        self._joined = self._widened = self._half_flag = False

    def take(self, char: str) -> tuple[int, bool]:
        """The cells that a character adds, and whether it belongs to the one before it."""
        cells, last = of_char(char), self.last
        if cells == 0:
            self._joined = char == _JOINER and bool(last) and (self._widened or of_char(last) == 2)
            if char == EMOJI_STYLE and last and not self._widened and _may_widen(last):
                self._widened = True
                return 1, True
            return 0, True
        if self._joined and cells == 2:
            self._joined = False
            return 0, True
        if "\U0001f3fb" <= char <= "\U0001f3ff" and last:  # the colour of a skin
            if of_char(last) == 2 or self._widened:
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
        self.last = char
        self._joined = self._widened = False
        return cells, False
