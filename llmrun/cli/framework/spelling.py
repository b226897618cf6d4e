"""The core's errors in the words of the command line: a field as its option, a remedy as what to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from llmrun.errors import Act, Change, LlmrunError, Remedy, UsageError

if TYPE_CHECKING:
    from llmrun.options.spec import Option

_MENTION = re.compile(r"`(?:do: ([a-z ]+)|([a-z_]+))`")
_path = ""
_of_command: dict[str, Option] = {}


def command_is(path: str, options: Iterable[Option]) -> None:
    """This one runs, and has these: its errors are about them, and its help is what helps."""
    global _path, _of_command
    _path, _of_command = path, _by_field(options)


def _by_field(options: Iterable[Option]) -> dict[str, Option]:
    """Key, and name where that is another → option."""
    found: dict[str, Option] = {}
    for each in options:
        found.setdefault(each.key, each)
        found.setdefault(each.name.replace("-", "_"), each)
    return found


def option_of(field: str) -> Option | None:
    """The option of a field: of the command that runs, else of loading and sampling."""
    if found := _of_command.get(field):
        return found
    from llmrun.options.load import LoadConfig
    from llmrun.options.sampling import SamplingConfig
    from llmrun.options.spec import options_of

    return _by_field((*options_of(LoadConfig), *options_of(SamplingConfig))).get(field)


def names_of(option: Option) -> tuple[str, ...]:
    """As they are typed, the shortest first."""
    short = (f"-{option.short}",) if option.short else ()
    return (*short, *(f"--{name}" for name in option.plain_names if name))


def in_full(field: str) -> str:
    """The option of a field in both its forms: "-c/--ctx-size". A field that is no option is itself."""
    option = option_of(field)
    return "/".join(names_of(option)[:2]) if option else field


def short(field: str) -> str:
    """The option of a field as one types it: "-c"."""
    option = option_of(field)
    return names_of(option)[0] if option else field


def text(core: str) -> str:
    """A text of the core, with the fields and actions that it mentions as they are typed."""

    def typed(mention: re.Match[str]) -> str:
        if mention[1]:
            return f"`llmrun {mention[1]}`"
        return short(mention[2]) if option_of(mention[2]) else mention[0]

    return _MENTION.sub(typed, core)


def message(error: LlmrunError) -> str:
    """What happened, the option that it is about first."""
    said = f"{in_full(error.field)}: {text(error.message)}" if error.field else text(error.message)
    return f"{error.where}: {said}" if error.where else said


def hint(error: LlmrunError) -> str | None:
    """What to type next; where nobody knows better about an option, the help of the command that runs."""
    remedies = error.remedies or ((Act("help", _path),) if isinstance(error, UsageError) and error.field else ())
    return "  or  ".join(map(typed, remedies)) or None


def options(fields: Mapping[str, object]) -> str:
    """Fields with their values as one types them: "-c 4096 -nkvo". None is to leave the option out."""
    return " ".join(_typed_option(name, value) for name, value in fields.items())


def _typed_option(field: str, value: object) -> str:
    option = option_of(field)
    if option is None or value is None:
        return f"leave {short(field)} out" if value is None else f"{field} {shlex.quote(str(value))}"
    name = names_of(option)[0]
    if option.is_flag:
        return name if value is not option.negated else f"leave {name} out"
    return " ".join(f"{name} {shlex.quote(each)}" for each in option.texts(value))


def typed(remedy: Remedy) -> str:
    """A remedy as one types it, and what comes of it in brackets."""
    if not isinstance(remedy, str) and remedy.note:
        return f"{typed(remedy._replace(note=''))} ({remedy.note})"
    match remedy:
        case Change(fields):
            return options(fields)
        case Act("help", target):
            return f"llmrun {target} --help" if target else "llmrun --help"
        case Act(action, target, fields):
            words = ["llmrun", action, *([target if target.isupper() else shlex.quote(target)] if target else [])]
            return " ".join([*words, *(_option_of_another(*each) for each in (fields or {}).items())])
        case _:
            return text(remedy)


def _option_of_another(field: str, value: object) -> str:
    """An option of a command that may not be the one that runs: where nobody here knows it, by its full name."""
    if option_of(field):
        return _typed_option(field, value)
    name = f"--{field.replace('_', '-')}"
    return name if value is True else f"{name} {shlex.quote(str(value))}"
