"""A command that is a group as well: a word in the place of its first argument leads to commands of its own."""

from __future__ import annotations

from typing import Any

import typer

from llmrun.cli.framework.help import Command


def with_subgroup(word: str, group: typer.Typer) -> type[Command]:
    """The class of such a command: `app.command("bench", cls=with_subgroup("history", history))(bench)`."""

    class WithSubgroup(Command):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args[:1] == [word] and not ctx.resilient_parsing:
                command = typer.main.get_command(group)
                # Not below `ctx`, whose own arguments the help would show as a part of the name.
                with command.make_context(f"{ctx.info_name} {word}", args[1:], parent=ctx.parent) as inner:
                    command.invoke(inner)
                ctx.exit()
            parsed: list[str] = super().parse_args(ctx, args)
            return parsed

    return WithSubgroup
