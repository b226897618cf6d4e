"""Text that knows which of its characters a chat template has written itself, and which it was given.

What users, files and tools say can contain "<|im_end|>", and must not end a turn with it. Marks inside the text would
be seen by a template that trims it, tests how it begins, or looks for "</think>". So the text stays as it is, for every
operation that Jinja knows, and what is known of its characters goes beside it. Of whatever else comes out, nothing is
the template's: an operation that is not here can cost a control token, never grant one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

_RUNS = re.compile(rb"\x00+|\x01+")


class Written(str):
    """A string; `_own` has a byte for each of its characters: 1 is the template's own, 0 is not.

    The name begins with an underscore so that no template sees it.
    """

    __slots__ = ("_own",)
    _own: bytes

    def __new__(cls, text: str, own: bytes | None = None) -> Written:
        """Without `own`, nothing of it is the template's."""
        made = super().__new__(cls, text)
        made._own = bytes(len(text)) if own is None else own
        return made

    # -- what is known of it ---

    def is_own(self, begin: int = 0, end: int | None = None) -> bool:
        """Whether all characters from `begin` to `end` are the template's."""
        return 0 not in self._own[begin:end]

    def runs(self) -> list[tuple[int, int, bool]]:
        """Begin, end, whether it is the template's: of the longest stretches that are of one kind."""
        return [(*found.span(), found[0][0] == 1) for found in _RUNS.finditer(self._own)]

    def pieces(self) -> list[str]:
        """The same text in pieces: what was given and what is the template's, in turns; the first may be empty."""
        runs = self.runs()
        return [""] * bool(runs and runs[0][2]) + [str.__getitem__(self, slice(begin, end)) for begin, end, _ in runs]

    # -- Python's own, with what is known ---

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: Any) -> Written:
        own = self._own[key]
        return Written(super().__getitem__(key), own if isinstance(own, bytes) else bytes([own]))

    def __add__(self, other: str) -> Written:
        if not isinstance(other, str) or hasattr(other, "__html__"):  # Markup escapes what stands beside it
            return NotImplemented
        return Written(super().__add__(other), self._own + _own(other))

    def __radd__(self, other: str) -> Written:
        if not isinstance(other, str):
            return NotImplemented
        return Written(str.__add__(other, self), _own(other) + self._own)

    def __mul__(self, n: Any) -> Written:
        return Written(super().__mul__(n), self._own * n)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> Written:
        given = values if isinstance(values, tuple) else values.values() if isinstance(values, dict) else (values,)
        return made_of(super().__mod__(values), self, *given)

    def join(self, parts: Iterable[str]) -> Written:
        every = list(parts)
        return Written(super().join(every), self._own.join(map(_own, every)))

    def replace(self, old: str, new: str, count: Any = -1) -> Written:
        if not old:
            return made_of(super().replace(old, new, count), self, new)
        return Written(new, _own(new)).join(self.split(old, count))

    def split(self, sep: str | None = None, maxsplit: Any = -1) -> list[str]:
        return self._found(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: Any = -1) -> list[str]:
        return self._found(super().rsplit(sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        found, at = [], 0
        for line, whole in zip(super().splitlines(), super().splitlines(True), strict=True):
            found.append(self[at : at + len(whole if keepends else line)])
            at += len(whole)
        return found  # type: ignore[return-value]

    def partition(self, sep: str) -> tuple[str, str, str]:
        return tuple(self._found(super().partition(sep), ""))  # type: ignore[return-value]

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        return tuple(self._found(super().rpartition(sep), ""))  # type: ignore[return-value]

    def lstrip(self, chars: str | None = None) -> Written:
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None) -> Written:
        return self[: len(super().rstrip(chars))]

    def strip(self, chars: str | None = None) -> Written:
        return self.rstrip(chars).lstrip(chars)

    def removeprefix(self, prefix: str) -> Written:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str) -> Written:
        return self[: len(self) - len(suffix)] if self.endswith(suffix) else self

    def _found(self, parts: Sequence[str], sep: str | None) -> list[str]:
        """Parts of this text, in their order, with `sep` between them; None is whitespace."""
        found: list[str] = []
        at = 0
        for part in parts:
            at = self.index(part, at) if sep is None else at
            found.append(self[at : at + len(part)])
            at += len(part) + len(sep or "")
        return found


def _whole(name: str) -> Any:
    plain = getattr(str, name)
    return lambda self, *more, **named: made_of(plain(self, *more, **named), self, *more, *named.values())


for _name in "capitalize casefold center expandtabs ljust lower rjust swapcase title translate upper zfill".split():
    setattr(Written, _name, _whole(_name))


Written.__module__, Written.__name__ = "builtins", "str"  # what a template that fails says of it


def made_of(text: str, *sources: object) -> Written:
    """`text` is the template's if all that it was made of is. Numbers are nobody's."""
    own = all(each.is_own() if isinstance(each, Written) else isinstance(each, int | float) for each in sources)
    return Written(text, bytes([own]) * len(text))


def concat(parts: Iterable[object]) -> Written:
    """All of them as text, one behind the other."""
    return Written("").join(map(str, parts))


def own(text: str) -> Written:
    """A text of the template's."""
    return Written(text, b"\1" * len(text))


def of_pieces(pieces: Iterable[str]) -> Written:
    """What `pieces` has cut."""
    return concat(own(piece) if number % 2 else Written(piece) for number, piece in enumerate(pieces))


def _own(text: str) -> bytes:
    return text._own if isinstance(text, Written) else bytes(len(text))
