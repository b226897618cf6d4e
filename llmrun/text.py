"""Text of others, made safe to show."""

from __future__ import annotations


def printable(text: str | bytes, limit: int = 60) -> str:
    """Text from a file, safe to show: no control, bidi or other invisible character, at most `limit` characters."""
    if isinstance(text, bytes):
        text = text[: 4 * limit].decode("utf-8", "replace")
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
