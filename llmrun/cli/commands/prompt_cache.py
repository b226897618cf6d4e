"""`llmrun prompt-cache`: what the beginnings of long prompts were computed to, and is kept on disk."""

from __future__ import annotations

from typing import Annotated

from llmrun.cli.framework import options
from llmrun.cli.framework.options import Option
from llmrun.cli.terminal import screen, tables
from llmrun.clock import utc_of
from llmrun.errors import NotFound, UsageError


def list_(as_json: options.Json = False) -> None:
    """Show what is kept of long prompts, the last used first."""
    from llmrun.engine import prefixes
    from llmrun.units import UNKNOWN, size

    found = prefixes.entries()
    if as_json:
        screen.out_json(
            [
                {
                    "id": each.id,
                    "model": each.model or None,
                    "n_tokens": each.n_tokens,
                    "n_bytes": each.n_bytes,
                    "used": utc_of(each.used_s),
                }
                for each in found
            ]
        )
        return
    rows = [
        (each.id, each.model or UNKNOWN, f"{each.n_tokens:,}", size(each.n_bytes), utc_of(each.used_s))
        for each in found
    ]
    tables.show(("ID", "MODEL…", ">TOKENS", ">SIZE", "USED"), rows)


def rm(
    ids: Annotated[list[str] | None, options.Argument("ID", "As `llmrun prompt-cache list` shows them.")] = None,
    all_: Annotated[bool, Option("--all", help="Everything that is kept of prompts.")] = False,
) -> None:
    """Remove it from the disk."""
    from llmrun import fs
    from llmrun.engine import prefixes

    there = {each.id: each for each in prefixes.entries()}
    if bool(ids) == all_:
        problem = "IDs and --all: one of the two" if all_ else "name what to remove, or give --all"
        raise UsageError(problem, hint="llmrun prompt-cache list")
    if not there and all_:
        screen.note("nothing is kept")
    for id in there if all_ else dict.fromkeys(ids or ()):
        if id not in there:
            raise NotFound(f"nothing is kept as '{id[:40]}'", hint="llmrun prompt-cache list")
        entry = there[id]
        with fs.disk_errors(f"removing {entry.path}"):
            entry.path.unlink(missing_ok=True)
        screen.note(f"removed {id}, {entry.n_tokens:,} tokens")
