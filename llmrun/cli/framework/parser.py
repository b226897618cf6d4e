"""From the words of a command line to the texts of options and arguments. The habits are those of Click and llama.cpp.

`-n 8`, `-n8`, `--n-predict 8` and `--n-predict=8` are the same; flags of one letter can be written together, `-qv`; a
name of several letters may have one dash, `-ngl`; a value may begin with a dash; behind `--` everything is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llmrun.cli.framework.spelling import names_of
from llmrun.errors import Act, UsageError
from llmrun.options.spec import Flag, Number, Option

HELP, HELP_ALL = ("-h", "--help"), ("--help-all",)
_HELP = Option("help", Flag())


@dataclass
class Words:
    """What a command line says.

    Attributes:
        texts: by key of the option, each time that it was given; of a flag True or False.
        arguments: in their order.
        help: "-h" or "--help-all" where one of them was given before anything was wrong.
    """

    texts: dict[str, list[str | bool]] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    help: str | None = None


def read(words: Iterable[str], options: Sequence[Option], *, command: str, strict: bool = True) -> Words:
    """Raises `UsageError` for an option that there is not, and for one without its value.

    With `strict` false, what looks like an option that there is not is an argument.
    """
    said, left, known, hint = Words(), list(words), _by_name(options), Act("help", command)
    while left:
        word = left.pop(0)
        if word == "--":
            said.arguments += left
            break
        name, equals, text = word.partition("=")
        value = text if equals else None
        if name not in known and word[:2] in known:  # `-qv`, and `-n8`
            name, value = word[:2], word[2:]
            if _is_no_value(known[name][0], value):  # `-temp`
                near = _near(f"--{word[1:]}", known)
                raise UsageError(f"there is no option {word[:40]}{near and f'; the nearest is {near}'}", hint=hint)
            if known[name][0].is_flag and not value.startswith("-"):
                left.insert(0, f"-{value}")
                value = None
        if name not in known:
            if strict and len(word) > 1 and word.startswith("-"):
                near = _near(name, known)
                raise UsageError(f"there is no option {name[:40]}{near and f'; the nearest is {near}'}", hint=hint)
            said.arguments.append(word)
            continue
        option, denied = known[name]
        if option.is_flag:
            if value is not None:
                raise UsageError(f"{name} takes no value, not '{value[:40]}'", hint=hint)
        elif value is None:
            if not left:
                raise UsageError(f"{name} needs a value: {option.metavar or option.kind.metavar}", hint=hint)
            value = left.pop(0)
        if option is _HELP:
            said.help = said.help or name
        else:
            said.texts.setdefault(option.key, []).append(not denied if value is None else value)
    return said


def _is_no_value(option: Option, text: str) -> bool:
    """Letters that stand right behind an option which takes a number."""
    return text[:1].isalpha() and text.isidentifier() and isinstance(option.kind, Number)


def _by_name(options: Sequence[Option]) -> dict[str, tuple[Option, bool]]:
    """As typed → the option, and whether it is denied."""
    known: dict[str, tuple[Option, bool]] = {}
    for option in options:
        for name in names_of(option):
            known[name] = option, False
        for name in option.contrary:
            known.setdefault(f"--{name}", (option, True))
    return known | dict.fromkeys((*HELP, *HELP_ALL), (_HELP, False))


def _near(name: str, known: Iterable[str]) -> str:
    """The option that was meant, if there may be one; else ""."""
    from difflib import SequenceMatcher

    from llmrun.options.user_config import nearest

    dashes = "--" if name.startswith("--") else "-"
    found = nearest(name, [each[len(dashes) :] for each in known if each.startswith(dashes)])
    said = name.strip("-").lower()
    is_near = found.startswith(said) or said.startswith(found) or SequenceMatcher(None, said, found).ratio() >= 0.5
    return dashes + found if is_near else ""
