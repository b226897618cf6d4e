"""Kept conversations as a table, for `llmrun history` and /list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmrun.cli.terminal import screen, tables
from llmrun.units import UNKNOWN

if TYPE_CHECKING:
    from llmrun.chat.store import Summary


def show(conversations: Sequence[Summary]) -> None:
    """One conversation a line."""
    tables.show(("ID", "UPDATED (UTC)", "MODEL", ">TURNS", "TITLE…"), map(_row, conversations))
    if not conversations:
        screen.note("no conversation is kept yet")


def _row(each: Summary) -> tuple[str, ...]:
    when = each.updated.replace("T", " ").removesuffix("Z")
    return each.id, when, each.model or UNKNOWN, str(each.n_turns), each.title or UNKNOWN
