"""Options that nobody typed, filled in from `settings.py`; and which options there are.

Nothing here knows an option by name. A command says by `cls=ModelCommand` that its options are to be filled in by its
argument MODEL; whatever options it has can then be set, and pass the same checks as if they had been typed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import typer

from llmrun.cli.framework import spelling
from llmrun.cli.framework.help import Command
from llmrun.errors import NotFound, UsageError
from llmrun.options.user_config import Setting, load

APPLIED = "llmrun.settings"
"""In `ctx.meta`: parameter → the `Setting` that it was filled in from."""


class ModelCommand(Command):
    """A command with an argument MODEL, whose options have the user's and the catalog's settings as their defaults."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        left = super().parse_args(ctx, args)
        model = ctx.params.get("model")
        if isinstance(model, str) and not ctx.resilient_parsing:
            fill_in(self, ctx, model)
        return left

    def invoke(self, ctx: Any) -> Any:
        """Run it. An error about an option that nobody typed says where its value stands."""
        try:
            return super().invoke(ctx)
        except (UsageError, NotFound) as error:
            said = spelling.message(error)
            setting = _blamed(self, ctx, said)
            if setting is None:
                raise
            raise type(error)(f"{setting.where}: {said}", remedies=error.remedies) from error


def fill_in(command: Any, ctx: Any, model: str) -> None:
    """Give every option that nobody typed its setting for this model."""
    found = load().of(model, spellings(ctx))
    if not found:
        return
    options = options_of(command)
    typed = {name for name in ctx.params if _source(ctx, name) != "DEFAULT"}
    said = typed.union(*(pair for pair in getattr(command.callback, "either", ()) if typed & set(pair)))
    for name, setting in found.items():
        option = options.get(name)  # another command's, perhaps
        if option is None or option.param.name in said:
            continue
        source = ctx.get_parameter_source(option.param.name)
        ctx.params[option.param.name] = converted(option, ctx, setting)
        ctx.set_parameter_source(option.param.name, type(source).DEFAULT_MAP)
        ctx.meta.setdefault(APPLIED, {})[option.param.name] = setting


def _source(ctx: Any, name: str) -> str:
    """Where a parameter's value is from: "COMMANDLINE", "ENVIRONMENT", ...; "DEFAULT" where nobody said it."""
    source = ctx.get_parameter_source(name)
    return source.name if source else "COMMANDLINE"


def _blamed(command: Any, ctx: Any, message: str) -> Setting | None:
    """The setting whose option a message is about: the first that it names."""
    applied: Mapping[str, Setting] = ctx.meta.get(APPLIED, {})
    found = []
    for param in command.params:
        if param.name in applied:
            names = "|".join(re.escape(name) for name in sorted(param.opts, key=len, reverse=True))
            if match := re.search(rf"(?<![\w-])(?:{names})(?![\w-])", message):
                found.append((match.start(), applied[param.name]))
    return min(found, key=lambda each: each[0])[1] if found else None


# -- which options there are ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        param: typer's.
        kind: bool for a flag, int, float, or str for whatever else is text on the command line.
        is_list: it can be repeated.
    """

    param: Any
    kind: type[bool] | type[int] | type[float] | type[str]
    is_list: bool

    @property
    def name(self) -> str:
        return _long(self.param)[0]

    @property
    def spellings(self) -> tuple[str, ...]:
        """Its long names, without dashes."""
        return tuple(_long(self.param))

    @property
    def wanted(self) -> str:
        what = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[self.kind]
        return f"{what}, or a list" if self.is_list else what


def options_of(command: Any) -> dict[str, Option]:
    """Name → option, of everything that a file can set."""
    hints = get_type_hints(command.callback)
    found = {}
    for param in command.params:
        if param.param_type_name == "option" and param.name in hints and _long(param):
            kind, is_list = _kind(hints[param.name])
            option = Option(param, kind, is_list)
            found[option.name] = option
    return found


def _long(param: Any) -> list[str]:
    return [name[2:] for name in param.opts if name.startswith("--")]


def _kind(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (each for each in get_args(annotation) if each is not NoneType)
    is_list = get_origin(annotation) is list
    if is_list:
        (annotation,) = get_args(annotation)
    return annotation if annotation in (bool, int, float) else str, is_list


def model_commands(ctx: Any) -> dict[str, Any]:
    """The commands that take settings, by name."""
    root = ctx.find_root().command
    commands = getattr(root, "commands", {root.name: root})
    return {name: command for name, command in commands.items() if isinstance(command, ModelCommand)}


def all_options(ctx: Any) -> dict[str, Option]:
    """Of all these commands; one that several have is the first's."""
    found: dict[str, Option] = {}
    for command in model_commands(ctx).values():
        found = options_of(command) | found
    return found


def spellings(ctx: Any) -> dict[str, str]:
    """Every long spelling of an option, and the name of the option."""
    options = all_options(ctx).values()
    return {spelling: option.name for option in options for spelling in option.spellings}


def converted(option: Option, ctx: Any, setting: Setting) -> Any:
    """The value as it would be if it had been typed. Raises `UsageError` that says where it stands."""
    value = setting.value
    if isinstance(value, list):
        if option.is_list:
            value = [_text(option, setting, each) for each in value]
        elif option.kind is str and value:
            value = ",".join(_text(option, setting, each) for each in value)  # as lists within one option are written
        else:
            raise setting.wrong(f"must be {option.wanted}")
    elif option.kind is bool:
        if not isinstance(value, bool):
            raise setting.wrong("must be true or false")
    else:
        text = _text(option, setting, value)
        value = [text] if option.is_list else text
    try:
        return option.param.process_value(ctx, value)
    except typer.BadParameter as error:
        raise setting.wrong(error.message) from None


def _text(option: Option, setting: Setting, value: object) -> str:
    """As it would stand on the command line."""
    fits = isinstance(value, {int: int, float: int | float, str: int | float | str}[option.kind])
    if isinstance(value, bool) or not fits:
        shown = f"'{value}'" if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else value
        raise setting.wrong(f"must be {option.wanted}, not {shown}")
    return str(value)
