"""Several values for one option as llama-bench takes them, 1,2,4 or 1-8 or 16-64+16 or 1-16*2; all combinations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from llmrun.cli.framework.spelling import names_of
from llmrun.errors import UsageError
from llmrun.options import spec
from llmrun.options.spec import Option

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
        raise UsageError(f"{option}: '{','.join(texts)}' has an empty value", hint=f"{_short(option)} 1,2,4")
    return found


def _numbers(option: str, item: str, first: str, last: str, operator: str | None, step: str | None) -> Iterator[int]:
    number, end, by = int(first), int(last), int(step or 1)
    if by < 1 or (operator == "*" and (by < 2 or number < 1)):
        name = _short(option)
        raise UsageError(f"{option}: '{item}' never gets to its end", hint=f"{name} 1-8+1 or {name} 1-16*2")
    for _ in range(MAX_VALUES + 1):
        if number > end:
            return
        yield number
        number = number * by if operator == "*" else number + by


def _short(option: str) -> str:
    """Of "-d/--n-depth" what one types."""
    return option.partition("/")[0]


def whole(option: str, texts: Iterable[str], low: int = 0) -> list[int]:
    """The same as whole numbers of at least `low`."""
    found = values(option, texts)
    for text in found:
        if not text.isdigit() or int(text) < low or int(text) > 1 << 24:
            raise UsageError(
                f"{option}: '{text[:40]}' is not a whole number from {low} to {1 << 24}",
                hint=f"{_short(option)} {low},512",
            )
    return [int(text) for text in found]


@dataclass(frozen=True)
class _Several(spec.Kind):
    """Of one text, all values that it means."""

    option: Option

    def parse(self, text: str) -> Any:
        option = self.option
        every = [option.parse(each) for each in values(names_of(option)[0], [text])]
        return tuple(_Value(each is not option.negated if option.is_flag else each) for each in every)


@dataclass(frozen=True)
class _Value:
    """Kept apart from tuples, which are several values."""

    value: Any


def swept(options: Iterable[Option], without: Iterable[str] = ()) -> list[Option]:
    """The same options, each taking several values; those that are lists already take what they always take."""
    left_out = tuple(without)
    return [each if _is_fixed(each) else _several(each) for each in options if each.key not in left_out]


def _several(option: Option) -> Option:
    metavar = option.metavar or {spec.Flag: "0|1", spec.Choice: option.kind.metavar}.get(type(option.kind), "N")
    return replace(
        option, kind=_Several(option), metavar=metavar, repeatable=True, default=(), attribute="", negated=False
    )


def _is_fixed(option: Option) -> bool:
    return option.repeatable or option.swept == "once"


def combinations(options: Any, given: Mapping[str, Any]) -> Iterator[Any]:
    """The dataclass for each combination of the values that were given, by key."""
    mine = spec.options_of(options)
    fixed = {each.key: given[each.key] for each in mine if each.key in given and _is_fixed(each)}
    varied: dict[str, Sequence[_Value]] = {
        each.key: given[each.key] for each in mine if each.key in given and each.key not in fixed
    }
    for chosen in product(*varied.values()):
        values_ = {key: each.value for key, each in zip(varied, chosen, strict=True)}
        yield spec.made(options, spec.field_values(mine, {**fixed, **values_}))
