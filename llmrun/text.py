"""Text of others, made safe to show: a name by `printable`, an answer by `sanitize`."""

from __future__ import annotations

import re

HARMFUL = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Characters, for a regular expression's brackets, that a terminal obeys or that UTF-8 has no bytes for: C0 but newline
and tab, DEL, C1, line and paragraph separators, halves of surrogate pairs, and what reorders the text around it."""

_HARMFUL = re.compile(f"[{HARMFUL}]")


def printable(text: str | bytes, limit: int = 60) -> str:
    """A name from a file or a server, for the inside of one line: at most `limit` characters, all of them visible.

    Everything that has no picture of its own is spelled as an escape (`\\x1b`), newlines and zero-width characters as
    well, so that two names that look the same are the same. For text that is to be read, see `sanitize`.
    """
    if isinstance(text, bytes):
        text = text[: 4 * limit].decode("utf-8", "replace")
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def sanitize(text: str) -> str:
    """Text of any length for a terminal, such as an answer: what is `HARMFUL` is shown as a picture or as U+FFFD.

    Newline and tab stay, CR LF is a newline, and joiners and selectors stay, which emoji and many scripts need. For
    names, see `printable`.
    """

    def picture(match: re.Match[str]) -> str:
        code = ord(match[0])
        return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"

    return _HARMFUL.sub(picture, text.replace("\r\n", "\n"))
