"""Help in plain text, options in named groups: a newcomer reads the first group and stops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrun.cli.framework import spelling
from llmrun.cli.framework.page import HELP, Rows, filled, page
from llmrun.options.spec import MODEL, OFFLOAD, OUTPUT, SAMPLING, SHAPE, SPEED, TEXT, Number, Option

if TYPE_CHECKING:
    from llmrun.cli.framework.command import Command
    from llmrun.cli.framework.options import Argument

# Groups of options that only `--help-all` lists: a newcomer sees ten, not sixty.
FOR_EXPERTS = (TEXT, SHAPE, SAMPLING, OFFLOAD, SPEED, MODEL)
_ORDER = (None, TEXT, OUTPUT, SHAPE, SAMPLING, OFFLOAD, SPEED, MODEL)
_HELP_ALL = ("--help-all", "Show every option and exit.")


def of_command(path: str, command: Command, subcommands: Rows = (), *, everything: bool = False) -> str:
    """The help of a command; of one that has `subcommands`, these too."""
    groups: dict[str, list[tuple[str, str]]] = {}
    if command.arguments:
        groups["Arguments"] = [
            (each.metavar, f"{each.help}{'  [required]' if each.required else ''}") for each in command.arguments
        ]
    left_out: list[str] = []
    experts = any(each.panel in FOR_EXPERTS for each in command.options)
    for panel in _ORDER:
        mine = [each for each in command.options if (each.panel if each.panel in _ORDER else None) == panel]
        if panel in FOR_EXPERTS and not everything:
            left_out += [panel or ""] * len(mine)
            continue
        rows = [_row(each) for each in mine]
        if panel is None:
            rows += [HELP, *([_HELP_ALL] if experts else [])]
        if rows:
            groups[panel or "Options"] = rows
    if subcommands:
        groups["Commands"] = list(subcommands)
    usage = ["llmrun", path, "[OPTIONS]", *map(in_usage, command.arguments)]
    usage += ["COMMAND", "[ARGS]..."] if subcommands else []
    text = page(" ".join(usage), command.help, groups.items())
    if left_out:
        about = ", ".join(panel[0].lower() + panel[1:] for panel in dict.fromkeys(left_out))
        text += "\n" + filled(f"--help-all lists {len(left_out)} more: {about}.", "")
    elif everything and command.model_of:
        text += "\n" + filled("What config.toml turns on, --no-NAME turns off.", "")
    return text + (f"\n{command.epilog()}\n" if command.epilog else "")


def in_usage(argument: Argument) -> str:
    plain = argument.metavar.strip("[]").removesuffix("...")
    return (plain if argument.required else f"[{plain}]") + ("..." if argument.many else "")


def _row(option: Option) -> tuple[str, str]:
    names = ", ".join(spelling.names_of(option))
    if "keep" in option.contrary:  # a contrary of its own name
        names += " / --keep"
    metavar = "" if option.is_flag else option.metavar or option.kind.metavar
    about = (spelling.text(option.help), _default(option), _range(option))
    return f"{names} {metavar}".rstrip(), "  ".join(filter(None, about))


def _default(option: Option) -> str:
    if option.without:
        return f"[default: {spelling.text(option.without)}]"
    is_plain = not (option.is_flag or option.repeatable or option.means) and option.default not in (None, (), "")
    return f"[default: {option.kind.typed(option.default)}]" if is_plain else ""


def _range(option: Option) -> str:
    kind = option.kind
    if option.attribute or not isinstance(kind, Number) or kind.low is None:
        return ""  # of a dataclass, whose ranges are so wide that they tell nobody anything
    return f"[at least {kind.low}]" if kind.high is None else f"[{kind.low} to {kind.high}]"
