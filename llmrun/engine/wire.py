"""How messages travel between a parent and its child: one a line, as `[7, "Tokens", {…}]`.

The number is that of the request that a message is about: the request itself has it, a `Cancel` of it, and all that is
answered. Numbers are given by the parent and count up from 1; 0 is about no request.

JSON and not pickle, because a hostile model file may own the child: what comes back must stay data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from llmrun import codec

M = TypeVar("M")

NO_REQUEST = 0


class Wire(Generic[M]):
    """A vocabulary: the messages that two processes understand, which are structs or dataclasses."""

    def __init__(self, kinds: Iterable[Any]) -> None:
        self._kinds: dict[str, type[M]] = {kind.__name__: kind for kind in kinds}

    def encode(self, request: int, message: M) -> bytes:
        """One line of JSON, newline included."""
        line = (request, type(message).__name__, message)
        try:
            return codec.encode(line) + b"\n"
        except UnicodeEncodeError:  # half of a surrogate pair, in the name of a file perhaps: only an escape can say it
            return json.dumps(codec.plain(line)).encode() + b"\n"

    def decode(self, line: bytes) -> tuple[int, M]:
        """The number of the request and the message, its fields of the types declared. Raises `codec.Malformed`."""
        try:
            try:
                request, name, fields = codec.decode(line, tuple[int, str, codec.Raw])
                return request, codec.decode(fields, self._kinds[name])
            except codec.Malformed:
                if rb"\ud" not in line:
                    raise
                request, name, plain = codec.convert(json.loads(line), tuple[int, str, Any])
                return request, codec.convert(plain, self._kinds[name])
        except (KeyError, ValueError, RecursionError) as error:
            raise codec.Malformed(f"not a message: {line[:200]!r}") from error
