"""Control tokens in a text: where they are, and which of them count. Child process only.

A tokenizer makes a control token of its name wherever that stands. In a prompt only the names count that the template
has written (`written.Written`); those in what users and files say are text like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol

from llmrun.engine.child.written import Written

_FORM = re.compile(r"<[|｜].+>|<.+[|｜]>")
# enum llama_token_attr
_UNKNOWN, _CONTROL, _USER_DEFINED, _LSTRIP, _RSTRIP = 1, 1 << 3, 1 << 4, 1 << 7, 1 << 8


class Vocabulary(Protocol):
    """Of `native.Vocab`, what an answer asks of it. Tests have one of words."""

    adds_bos: bool

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]: ...
    def text_of(self, token: int, *, special: bool) -> bytes: ...
    def attributes(self, token: int, /) -> int: ...
    def piece(self, token: int, /) -> bytes: ...
    def is_end(self, token: int, /) -> bool: ...


def name_of(vocab: Vocabulary, token: int) -> str:
    """What a token is written as that a tokenizer looks for before all others; "" for one of text."""
    is_one = vocab.attributes(token) & (_UNKNOWN | _CONTROL | _USER_DEFINED)
    return vocab.text_of(token, special=True).decode(errors="replace") if is_one else ""


def is_control(vocab: Vocabulary, token: int, markers: str) -> bool:
    """Whether the token is of the prompt's structure and not of its text.

    Some files call tokens of the first kind "user defined" (Command R its turns, Gemma 4 its channels), as they do with
    runs of spaces and HTML's tags: it is if its name is of that form, or stands in `markers`, which is the template.
    """
    if vocab.attributes(token) & (_UNKNOWN | _CONTROL):
        return True
    name = name_of(vocab, token)
    return len(name.strip()) > 2 and (name in markers or bool(_FORM.fullmatch(name)))


def named_in(vocab: Vocabulary, text: str) -> list[tuple[int, int, int]]:
    """Begin, end and id of the tokens that are found in a text by their names."""
    found, at = [], 0
    for token in vocab.tokenize(text, add_special=False):
        name = name_of(vocab, token)
        begin = text.find(name, at) if name else -1
        if begin >= 0:
            at = begin + len(name)
            found.append((begin, at, token))
    return found


def tokens_of(vocab: Vocabulary, text: Written, markers: str, *, add_special: bool = True) -> list[int]:
    """The tokens of a prompt. Those that `is_control` finds come from the template's own characters alone.

    Where no others are named, which is nearly always, they are those of the tokenizer.
    """
    tokens = vocab.tokenize(text, add_special=add_special)
    if not any(_is_given(text, name) for name in _control_names(vocab, tokens, markers)):
        return tokens
    made = vocab.tokenize("", add_special=add_special)
    at, skips = 0, False

    def add_text(end: int, *, strips: bool = False) -> None:
        plain = text[at:end].lstrip() if skips else text[at:end]
        made.extend(_as_text(vocab, plain.rstrip() if strips else plain, markers))

    for begin, end, is_own in text.runs():
        for first, last, token in named_in(vocab, text[begin:end]) if is_own else ():
            attributes = vocab.attributes(token)
            add_text(begin + first, strips=bool(attributes & _LSTRIP))
            made.append(token)
            at, skips = begin + last, bool(attributes & _RSTRIP)
    add_text(len(text))
    return made


def _control_names(vocab: Vocabulary, tokens: Iterable[int], markers: str) -> set[str]:
    return {name_of(vocab, token) for token in set(tokens) if is_control(vocab, token, markers)}


def _is_given(text: Written, name: str) -> bool:
    """Whether a name stands somewhere where not all of it is the template's."""
    found = re.finditer(f"(?={re.escape(name)})", text)
    return any(not text.is_own(here.start(), here.start() + len(name)) for here in found)


def _as_text(vocab: Vocabulary, text: str, markers: str) -> list[int]:
    """Tokens of a text, none of which is a control token."""
    pieces = [text]
    while True:
        tokens = [token for piece in pieces for token in vocab.tokenize(piece, add_special=False, parse_special=False)]
        cut = _cut(pieces, _control_names(vocab, tokens, markers))  # user-defined ones are found by their names even so
        if cut == pieces:
            return tokens
        pieces = cut


def _cut(pieces: list[str], names: Iterable[str]) -> list[str]:
    """The same text in more pieces, none of which has one of the names."""
    for name in names:
        inside = f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})"
        pieces = [part for piece in pieces for part in re.split(inside, piece)]
    return pieces
