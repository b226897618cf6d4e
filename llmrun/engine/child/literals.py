"""Values that are written as literals but not as JSON: {a:'x', "b":[1, True, None]}.

Texts stand between a quote of the template's, which may have many characters and then knows no escapes, or between
Python's or JSON's. Keys are bare or quoted. Child process only.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_WORD = re.compile(r"[\w.+-]+")
_KEY = re.compile(r"[^\s:=,\"'{}()\[\]<>]+")
_DEEPEST = 100


def json_of(text: str) -> Any:
    """Raises `ValueError`, for Python's NaN and Infinity as well."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


class NotYet(Exception):
    """The text ends before the value does."""


class Literals:
    """Reads values out of a text. Raises `NotYet` where more has to come, `ValueError` where there is none."""

    def __init__(self, quote: str) -> None:
        """`quote`: around texts."""
        self._quote = quote

    def members(self, text: str, at: int, between: str, end: str, depth: int = 0) -> tuple[dict[str, Any], int]:
        """Keys and values up to `end`, and where that stands; `between` key and value."""
        found: dict[str, Any] = {}
        at = _blanks(text, at)
        while not _stands(text, end, at):
            if found:
                at = _blanks(text, _behind(text, ",", at))
            if self._is_quoted(text, at):
                key, at = self._text(text, at)
            else:
                bare = _KEY.match(text, at)
                if bare is None:
                    raise ValueError("no key")
                key, at = bare[0], bare.end()
            at = _behind(text, between, _blanks(text, at))
            found[key], at = self._value(text, _blanks(text, at), depth)
            at = _blanks(text, at)
        return found, at

    def _value(self, text: str, at: int, depth: int) -> tuple[Any, int]:
        if depth > _DEEPEST:
            raise ValueError("too deep")
        if self._is_quoted(text, at):
            return self._text(text, at)
        if _stands(text, "{", at):
            members, at = self.members(text, at + 1, ":", "}", depth + 1)
            return members, at + 1
        if _stands(text, "[", at):
            items: list[Any] = []
            at = _blanks(text, at + 1)
            while not _stands(text, "]", at):
                if items:
                    at = _blanks(text, _behind(text, ",", at))
                item, at = self._value(text, at, depth + 1)
                items.append(item)
                at = _blanks(text, at)
            return items, at + 1
        word = _WORD.match(text, at)
        if word is None:
            raise ValueError("no value")
        if word.end() == len(text):  # it may go on
            raise NotYet
        return _WORDS[word[0]] if word[0] in _WORDS else json_of(word[0]), word.end()

    def _is_quoted(self, text: str, at: int) -> bool:
        return _stands(text, self._quote, at) or text[at] in "\"'"

    def _text(self, text: str, at: int) -> tuple[str, int]:
        quote = self._quote if text.startswith(self._quote, at) else text[at]
        begin = at + len(quote)
        if len(quote) > 1:
            end = text.find(quote, begin)
            if end < 0:
                raise NotYet
            return text[begin:end], end + len(quote)
        found = re.compile(rf"(?:[^\\{quote}]|\\.)*{quote}", re.DOTALL).match(text, begin)
        if found is None:
            raise NotYet
        return _unescaped(text[at : found.end()]), found.end()


def _unescaped(text: str) -> str:
    """Of what JSON or Python write; of anything else, what stands between the quotes."""
    for read in (json.loads, ast.literal_eval):
        try:
            return str(read(text))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text[1:-1]


def _stands(text: str, wanted: str, at: int) -> bool:
    if at >= len(text) or (len(text) - at < len(wanted) and wanted.startswith(text[at:])):
        raise NotYet
    return text.startswith(wanted, at)


def _behind(text: str, wanted: str, at: int) -> int:
    if not _stands(text, wanted, at):
        raise ValueError(f"no {wanted}")
    return at + len(wanted)


def _blanks(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
