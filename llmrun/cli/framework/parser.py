"""From the words of a command line to the texts of options and arguments. The habits are those of Click and llama.cpp.

`-n 8`, `-n8`, `--n-predict 8` and `--n-predict=8` are the same; flags of one letter can be written together, `-qv`; a
name of several letters may have one dash, `-ngl`; a value may begin with a dash; behind `--` everything is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llmrun.cli.framework.spelling import names_of
from llmrun.errors import Act, UsageError
from llmrun.options.spec import Option

HELP, HELP_ALL = ("-h", "--help"), ("--help-all",)


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
    said = Words()
    left = list(words)
    known = _by_name(options)
    while left:
        word = left.pop(0)
        if word == "--":
            said.arguments += left
            break
        if len(word) < 2 or not word.startswith("-"):
            said.arguments.append(word)
            continue
        name, equals, text = word.partition("=")
        if name in known:
            _take(said, known[name], name, text if equals else None, left, command)
        elif not word.startswith("--") and word[:2] in known:
            _take_letters(said, known, word, left, command)
        elif strict:
            raise _unknown(name, known, command)
        else:
            said.arguments.append(word)
    return said


def _by_name(options: Sequence[Option]) -> dict[str, tuple[Option | None, bool]]:
    """As typed → the option, and whether it is denied; of help no option."""
    known: dict[str, tuple[Option | None, bool]] = {}
    for option in options:
        for name in names_of(option):
            known[name] = option, False
        for name in option.contrary:
            known.setdefault(f"--{name}", (option, True))
    for name in (*HELP, *HELP_ALL):
        known[name] = None, False
    return known


def _take(
    said: Words, meant: tuple[Option | None, bool], name: str, text: str | None, left: list[str], command: str
) -> None:
    option, denied = meant
    if option is None or option.is_flag:
        if text is not None:
            raise UsageError(f"{name} takes no value, not '{text[:40]}'", hint=Act("help", command))
        if option is None:
            said.help = said.help or name
        else:
            said.texts.setdefault(option.key, []).append(not denied)
        return
    if text is None:
        if not left:
            raise UsageError(
                f"{name} needs a value: {option.metavar or option.kind.metavar}", hint=Act("help", command)
            )
        text = left.pop(0)
    said.texts.setdefault(option.key, []).append(text)


def _take_letters(
    said: Words, known: Mapping[str, tuple[Option | None, bool]], word: str, left: list[str], command: str
) -> None:
    """`-qv`, and `-n8`."""
    for i, letter in enumerate(word[1:], 2):
        name = f"-{letter}"
        if name not in known:
            raise _unknown(name if i > 2 else word, known, command)
        option, _ = known[name]
        if option is None or option.is_flag:
            _take(said, known[name], name, None, left, command)
            continue
        _take(said, known[name], name, word[i:] or None, left, command)
        return


def _unknown(name: str, known: Mapping[str, object], command: str) -> UsageError:
    from llmrun.options.user_config import nearest

    dashes = "--" if name.startswith("--") else "-"
    near = dashes + nearest(name, [each[len(dashes) :] for each in known if each.startswith(dashes)])
    return UsageError(f"there is no option {name[:40]}; the nearest is {near}", hint=Act("help", command))
