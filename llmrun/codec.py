"""Typed data to JSON and back: messages between processes, records on disk. msgspec does the work.

What comes back has the types that were declared, within the bounds of their `Meta`, or a `Malformed` says where it has
not. Fields that are not declared are ignored, so that older readers can read what newer writers wrote.

A `Struct` is msgspec's dataclass. `replace` and `plain` are its `dataclasses.replace` and `asdict`. A process that has
to start fast has its types as structs: to import `dataclasses` takes as long as to start Python.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Meta as Meta
from msgspec import Struct as Struct
from msgspec import field as field
from msgspec.structs import replace as replace

_T = TypeVar("_T")

Raw = msgspec.Raw
"""A part of JSON that is not decoded yet, for a field whose type another field tells."""

_LOOKING = threading.RLock()
_PLACE = re.compile(r"(?P<problem>.*?)(?: - at (?P<key>`key` in )?`\$\.?(?P<place>.*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected `([^`]+)`, got `([^`]+)`")
_BOUND = re.compile(r"Expected `([^`]+)` ([<>]=? .+)")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "object": "an object",
    "array": "a list",
}


def words(known: Iterable[str]) -> Meta:
    """Tells who reads `schemas` that a text is one of these. Whoever takes the value refuses others, in words of its
    own: those of a `Literal` don't say which there are."""
    return Meta(extra_json_schema={"enum": [*known]})


class Malformed(ValueError):
    """It is not what was declared. The text says what, and where: "Expected `int`, got `str` - at `$.n_ctx`".

    Attributes:
        place: of what is wrong: "rows[0].test.kind"; a key of a mapping is "[...]"; empty: the whole.
        problem: the same as the text in words that follow the place: "must be a whole number, not a text".
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        found = _PLACE.fullmatch(text)
        self.problem, self.place, key = found.group("problem", "place", "key") if found else (text, "", "")
        self.place = self.place or ""
        if missing := _MISSING.fullmatch(self.problem):
            self.place = f"{self.place}.{missing[1]}".lstrip(".")
            self.problem = "is missing"
        elif unknown := _UNKNOWN.fullmatch(self.problem):
            self.place = f"{self.place}.{unknown[1]}".lstrip(".")
            self.problem = "is a field that is not known here"
        elif wrong := _EXPECTED.fullmatch(self.problem):
            self.problem = f"must be {_in_words(wrong[1])}, not {_in_words(wrong[2])}"
        elif bound := _BOUND.fullmatch(self.problem):
            self.problem = f"must be {_in_words(bound[1])} {bound[2]}"
        elif self.problem == "Number out of range":
            self.problem = "is too large a number"
        elif self.problem.startswith("Invalid enum value "):
            self.problem = f"has an unknown value, {self.problem.removeprefix('Invalid enum value ')}"
        if key:
            self.problem = f"has a key that {self.problem}"


def _in_words(kinds: str) -> str:
    return " or ".join(_NAMES.get(kind, kind) for kind in kinds.split(" | "))


def encode(value: object) -> bytes:
    """JSON in UTF-8, on one line, of dataclasses, lists, mappings, numbers and texts. NaN and infinity become null."""
    return msgspec.json.encode(value, enc_hook=_known)


def plain(value: object) -> Any:
    """The same as dicts, lists, numbers and texts, for those who add to it or indent it."""
    return _finite(msgspec.to_builtins(value, str_keys=True, enc_hook=_known))


def decode(data: bytes | str | Raw, kind: type[_T]) -> _T:
    """The value of this type in `data`. Raises `Malformed`. 5.0 is a whole number too, as JSON has one kind alone."""
    decoder: msgspec.json.Decoder[_T] = _decoder(kind)
    try:
        try:
            return decoder.decode(data)
        except msgspec.ValidationError as error:
            if "`, got `float`" not in str(error):
                raise
            return decoder.decode(msgspec.json.encode(_whole(msgspec.json.decode(data))))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(str(error)) from error


def _whole(value: Any) -> Any:
    """The same with 5 for 5.0."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 63 else value


def convert(value: object, kind: type[_T]) -> _T:
    """The value of this type that dicts, lists, numbers and texts make. Raises `Malformed`."""
    _decoder(kind)  # what msgspec has to know of the type
    try:
        return msgspec.convert(value, type=kind, dec_hook=_made)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Malformed(str(error)) from error


def schemas(kinds: Sequence[Any], where: str) -> tuple[Sequence[dict[str, Any]], dict[str, dict[str, Any]]]:
    """JSON Schema (2020-12) of types: a reference to each, which begins with `where`, and by name what they refer to.
    Two types of one name have their module's before it: "openai.Message"."""
    references, found = msgspec.json.schema_components(kinds, ref_template=where + "{name}")
    named = {_outer(name): {**_renamed(each), "title": _outer(name)} for name, each in found.items()}
    return [_renamed(each) for each in references], named


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _outer(item) if key == "$ref" else _renamed(item) for key, item in value.items()}


def _outer(name: str) -> str:
    """ "#/llmrun.wire.openai._Message" is "#/openai.Message"."""
    return re.sub(r"(?:\w+\.)*(\w+\.)_?|(?<![\w.])_", r"\1", name)


def _known(value: object) -> object:
    """What msgspec has no words for: names of files, and mappings that can't be changed."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not data")


def _made(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"{kind.__name__} is not data")


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """Types are looked into by one thread at a time: msgspec notes what it knows of a struct before it knows it all,
    and another thread that decodes one meanwhile reads what is not there yet, which ends the process."""
    with _LOOKING:
        return _made_decoder(kind)


@cache
def _made_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, dec_hook=_made)


def _finite(value: Any) -> Any:
    """Lists for tuples and null for NaN and infinity, as `encode` has them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
