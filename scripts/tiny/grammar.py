"""A micro-grammar: `[a|b|c]` chooses one alternative (they nest), `{slot}` is filled in afterwards."""

import itertools
import random
import re

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])(?!one\b|uni|use|usu)")


def expand(template: str, rng: random.Random, slots: dict[str, str] | None = None) -> str:
    """Choose in every bracket, innermost first, then fill the slots; `{He}` is `{he}` with a capital.

    >>> expand("[Tea|Tea] for {n}.", random.Random(0), {"n": "two"})
    'Tea for two.'
    """
    while _CHOICE.search(template):
        template = _CHOICE.sub(lambda m: rng.choice(m[1].split("|")), template)
    return _SLOT.sub(lambda m: _fill(m[1], slots or {}), template)


def expansions(template: str, limit: int) -> list[str]:
    """The first `limit` texts that a template without slots can give, in a fixed order."""
    texts = [template]
    while any(_CHOICE.search(text) for text in texts):
        nested = (_branches(text) for text in texts)
        texts = list(itertools.islice(itertools.chain.from_iterable(nested), limit * 4))
    return texts[:limit]


def articles(text: str) -> str:
    """`a owl` becomes `an owl`."""
    return _ARTICLE.sub(lambda m: f"{m[1]}n ", text)


def _branches(text: str) -> list[str]:
    match = _CHOICE.search(text)
    if match is None:
        return [text]
    return [text[: match.start()] + choice + text[match.end() :] for choice in match[1].split("|")]


def _fill(name: str, slots: dict[str, str]) -> str:
    if name in slots:
        return slots[name]
    value = slots[name[0].lower() + name[1:]]
    return value[0].upper() + value[1:]
