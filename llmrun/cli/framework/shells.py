"""Completion in bash, zsh and fish, by Typer: its parameters are made of the same declarations that a command has."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Annotated, Any

import typer

from llmrun import fs
from llmrun.cli.framework import spelling
from llmrun.cli.framework.command import Command


def complete(words: list[str], commands: Mapping[str, str], load: Callable[[str], Command], title: str) -> None:
    """Offer what can follow, or install what asks for it, and exit.

    `commands` has the help of each by its path. Only the one that stands in the line is imported.
    """
    # What the script that Typer installed in the user's shell sends.
    begun = _whole_words(os.environ)
    line = (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or "").split()[1:]
    path = ""
    for word in line:
        if f"{path} {word}".strip() not in commands:
            break
        path = f"{path} {word}".strip()
    with fs.disk_errors("installing completion"), _without(begun):
        app(commands, path, load, title)(args=words, prog_name="llmrun")


def _whole_words(environment: MutableMapping[str, str]) -> str:
    """Put together what bash takes apart at colons, "qwen3:4b" as three words. Returns what of the last word bash has
    read already, "qwen3:", and leaves as it is."""
    if "COMP_WORDS" not in environment:
        return ""
    words, at = environment["COMP_WORDS"].split("\n"), int(environment.get("COMP_CWORD", 0))
    whole: list[str] = []
    for i, word in enumerate(words):
        if i > 1 and (word == ":" or whole[-1].endswith(":")):
            whole[-1] += word
            at -= i <= int(environment.get("COMP_CWORD", 0))
        else:
            whole.append(word)
    environment.update(COMP_WORDS="\n".join(whole), COMP_CWORD=str(at))
    last = whole[at] if at < len(whole) else ""
    return last[: last.rfind(":") + 1]


@contextmanager
def _without(begun: str) -> Iterator[None]:
    """What is printed inside, without this at the beginning of each line."""
    with redirect_stdout(StringIO()) as said:
        try:
            yield
        finally:
            lines = (line.removeprefix(begun) for line in said.getvalue().splitlines(keepends=True))
            print("".join(lines), end="", file=sys.__stdout__)


def app(commands: Mapping[str, str], path: str, load: Callable[[str], Command], title: str) -> typer.Typer:
    """The program as Typer has it, with the parameters of the command of that path."""
    made: dict[str, typer.Typer] = {"": _group(title)}
    for each in commands:
        above, _, name = each.rpartition(" ")
        if above not in made:
            continue
        function = parameters_of(load(each)) if each == path else _nothing
        if not any(other.startswith(f"{each} ") for other in commands) or (each == path and load(each).arguments):
            made[above].command(name, help=commands[each])(function)
        else:
            made[each] = _group(commands[each])
            made[each].callback(invoke_without_command=True)(function)
            made[above].add_typer(made[each], name=name)
    return made[""]


def _group(title: str) -> typer.Typer:
    return typer.Typer(help=title, rich_markup_mode=None, pretty_exceptions_enable=False)


def _nothing() -> None: ...


def parameters_of(command: Command) -> Callable[..., None]:
    """A function with the command's parameters as Typer wants them; it does nothing."""
    parameters = []
    for each in command.arguments:
        kind: Any = list[str] if each.many else str
        info = typer.Argument(metavar=each.metavar, help=each.help, autocompletion=each.complete)
        parameters.append((each.key, kind if each.required else kind | None, info, each.required))
    for option in command.options:
        names = list(spelling.names_of(option))
        if option.is_flag and names[-1].startswith("--"):
            names[-1] = f"{names[-1]}/--{option.contrary[0]}"
        kind = bool if option.is_flag else list[str] if option.repeatable else str
        about = typer.Option(*names, help=spelling.text(option.help), autocompletion=option.complete)
        parameters.append((option.key, kind | None, about, False))

    def function(**_values: Any) -> None: ...

    made = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=Annotated[kind, info],
            default=inspect.Parameter.empty if required else None,
        )
        for name, kind, info, required in parameters
    ]
    function.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
    function.__annotations__ = {each.name: each.annotation for each in made}
    return function
