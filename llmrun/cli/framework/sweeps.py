"""Several values for one option as llama-bench takes them, 1,2,4 or 1-8 or 16-64+16 or 1-16*2; all combinations."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from itertools import product
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from llmrun.errors import UsageError

MAX_VALUES = 10_000
_RANGE = re.compile(r"(\d+)-(\d+)(?:([+*])(\d+))?")


def values(option: str, texts: Iterable[str]) -> list[str]:
    """Every value in `texts`, in order: lists are split at commas, ranges of numbers written out, both ends counted."""
    found: list[str] = []
    for text in texts:
        for item in text.split(","):
            match = _RANGE.fullmatch(item)
            found += [item.strip()] if match is None else map(str, _numbers(option, item, *match.groups()))
            if len(found) > MAX_VALUES:
                raise UsageError(f"{option}: more than {MAX_VALUES} values")
    if not all(found):
        raise UsageError(f"{option}: '{','.join(texts)}' has an empty value", hint=f"{option} 1,2,4")
    return found


def _numbers(option: str, item: str, first: str, last: str, operator: str | None, step: str | None) -> Iterator[int]:
    number, end, by = int(first), int(last), int(step or 1)
    if by < 1 or (operator == "*" and (by < 2 or number < 1)):
        raise UsageError(f"{option}: '{item}' never gets to its end", hint=f"{option} 1-8+1 or {option} 1-16*2")
    for _ in range(MAX_VALUES + 1):
        if number > end:
            return
        yield number
        number = number * by if operator == "*" else number + by


def whole(option: str, texts: Iterable[str], low: int = 0) -> list[int]:
    """The same as whole numbers of at least `low`."""
    found = values(option, texts)
    for text in found:
        if not text.isdigit() or int(text) < low or int(text) > 1 << 24:
            raise UsageError(f"{option}: '{text[:40]}' is no whole number from {low} to {1 << 24}")
    return [int(text) for text in found]


class Swept:
    """The options of a function that makes a configuration, each taking several values, and one call for each
    combination of them.

    Options that are lists already, and those in `fixed`, take what they always take, once; those in `without` are left
    out.
    """

    def __init__(self, make: Callable[..., Any], fixed: Iterable[str] = (), without: Iterable[str] = ()) -> None:
        self._make = make
        self._hints = get_type_hints(make, include_extras=True)
        every = inspect.signature(make).parameters
        self._parameters = {name: parameter for name, parameter in every.items() if name not in tuple(without)}
        self._fixed = {*fixed, *(name for name in self._parameters if _is_list(self._kinds(name)))}

    @property
    def names(self) -> frozenset[str]:
        """Of the parameters."""
        return frozenset(self._parameters)

    def parameters(self) -> list[inspect.Parameter]:
        """For a command's signature: texts without defaults, so that what was typed can be told."""
        made = []
        for name, parameter in self._parameters.items():
            annotation = self._hints[name]
            if name not in self._fixed:
                again = copy(get_args(annotation)[1])
                again.metavar = again.metavar or ("0|1" if bool in self._kinds(name) else "N")
                annotation = Annotated[list[str] | None, again]
                parameter = parameter.replace(default=None)
            made.append(parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY))
        return made

    def combinations(self, given: dict[str, Any]) -> Iterator[Any]:
        """What the function makes of each combination of the values that were given."""
        swept: dict[str, Sequence[Any]] = {}
        rest = {}
        for name, value in given.items():
            if name in self._fixed:
                rest[name] = value
            elif value:
                option = self._option(name)
                swept[name] = [self._converted(name, option, text) for text in values(option, value)]
        for chosen in product(*swept.values()):
            yield self._make(**rest, **dict(zip(swept, chosen, strict=True)))

    def _kinds(self, name: str) -> tuple[Any, ...]:
        kind = get_args(self._hints[name])[0]
        return (kind,) if get_origin(kind) is list or not get_args(kind) else get_args(kind)

    def _option(self, name: str) -> str:
        """Its first spelling, which Typer keeps where a default would stand."""
        return str(get_args(self._hints[name])[1].default)

    def _converted(self, name: str, option: str, text: str) -> Any:
        kinds = self._kinds(name)
        if bool in kinds:
            known = {"0": False, "1": True, "off": False, "on": True}
            if text not in known:
                raise UsageError(f"{option}: '{text[:40]}' is neither 0 nor 1")
            return known[text]
        for kind in (int, float):
            if kind in kinds:
                try:
                    return kind(text)
                except ValueError:
                    raise UsageError(f"{option}: '{text[:40]}' is no number") from None
        return text.replace("/", ",") if name in ("device", "tensor_split") else text


def _is_list(kinds: tuple[Any, ...]) -> bool:
    return any(get_origin(kind) is list for kind in kinds)
