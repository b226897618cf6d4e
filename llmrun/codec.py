"""Typed data to JSON and back: messages between processes, records on disk. msgspec does the work.

What comes back has the types that were declared, or a `Malformed` says where it has not. Fields that are not declared
are ignored, so that older readers can read what newer writers wrote.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

_T = TypeVar("_T")


class Malformed(ValueError):
    """It is not what was declared. The text says what, and where: "Expected `int`, got `str` - at `$.n_ctx`"."""


def encode(value: object) -> bytes:
    """JSON in UTF-8, on one line, of dataclasses, lists, mappings, numbers and texts. NaN and infinity become null."""
    return msgspec.json.encode(value)


def plain(value: object) -> Any:
    """The same as dicts, lists, numbers and texts, for those who add to it or indent it."""
    return msgspec.to_builtins(value)


def decode(data: bytes | str, kind: type[_T]) -> _T:
    """The value of this type in `data`. Raises `Malformed`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(str(error)) from error


def convert(value: object, kind: type[_T]) -> _T:
    """The value of this type that dicts, lists, numbers and texts make. Raises `Malformed`."""
    try:
        return msgspec.convert(value, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Malformed(str(error)) from error
