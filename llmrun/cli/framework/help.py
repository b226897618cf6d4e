"""Help in plain text, options in named groups: a newcomer reads the first group and stops.

Typer draws groups only through Rich, which takes as long to import as everything else together.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from typer.core import TyperCommand, TyperGroup

from llmrun.cli.terminal import screen

# Groups of options that only `--help-all` lists: a newcomer sees ten, not sixty.
OUTPUT = "Output"
TEXT = "Prompt and answer"
SHAPE = "Shape of the answer"
SAMPLING = "Sampling"
SPEED = "Memory and speed"
OFFLOAD = "Where the layers lie"
MODEL = "The model"
_FOR_EXPERTS = (TEXT, SHAPE, SAMPLING, SPEED, OFFLOAD, MODEL)
_ALL = "llmrun.help-all"


class Command(TyperCommand):
    """A command whose `--help` lists its options under their `rich_help_panel`, in the order of definition."""

    def get_help_option(self, ctx: Any) -> Any:
        return through_screen(super().get_help_option(ctx))

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)
        if any(param_group(param) in _FOR_EXPERTS for param in params):
            params.append(_help_all(self.get_help_option(ctx)))
        return params

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        left_out: list[str] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if param_group(param) in _FOR_EXPERTS and not ctx.meta.get(_ALL):
                left_out.append(param_group(param))
                continue
            if param.param_type_name == "argument":
                # "MODEL <str>": that it is text, nobody needs to be told.
                groups.setdefault("Arguments", []).append((record[0].partition(" <")[0], record[1]))
            else:
                groups.setdefault(param_group(param), []).append(record)
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)
        if left_out:
            formatter.write_paragraph()
            about = ", ".join(group[0].lower() + group[1:] for group in dict.fromkeys(left_out))
            formatter.write_text(f"--help-all lists {len(left_out)} more: {about}.")


def _help_all(help_option: Any) -> Any:
    def show(ctx: Any, _param: Any, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            ctx.meta[_ALL] = True
            screen.out(ctx.get_help() + "\n")
            ctx.exit()

    option = copy(help_option)  # what Typer's own constructor wants changes from one version to the next
    option.name, option.opts, option.secondary_opts = "help_all", ["--help-all"], []
    option.help, option.callback = "Show every option and exit.", show
    return option


def param_group(param: Any) -> str:
    return getattr(param, "rich_help_panel", None) or "Options"


def through_screen(option: Any) -> Any:
    """The help option, printing through `screen.out`: a closed pipe or a full disk end as they do for every command."""
    if option is not None:

        def show(ctx: Any, _param: Any, wanted: bool) -> None:
            if wanted and not ctx.resilient_parsing:
                screen.out(ctx.get_help() + "\n")
                ctx.exit()

        option.callback = show
    return option


class Group(TyperGroup):
    """The list of commands, in the order in which a newcomer needs them."""

    def get_help_option(self, ctx: Any) -> Any:
        return through_screen(super().get_help_option(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)
