"""A page of help: plain text of 80 columns, as Click lays it out."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from llmrun.cli.terminal import screen

Rows = Sequence[tuple[str, str]]
HELP = ("-h, --help", "Show this message and exit.")


def of_program(title: str, options: Rows, commands: Rows) -> str:
    return page("llmrun [OPTIONS] COMMAND [ARGS]...", title, [("Options", [*options, HELP]), ("Commands", commands)])


def page(usage: str, text: str, groups: Iterable[tuple[str, Rows]]) -> str:
    parts = [textwrap.fill(f"Usage: {usage}", _width(), subsequent_indent=" " * 7) + "\n"]
    parts += [filled(paragraph, "  ") for paragraph in re.split(r"\n\s*\n", text)]
    parts += [f"{title}:\n{_table(rows)}" for title, rows in groups if rows]
    return "\n".join(parts)


def _width() -> int:
    return max(min(screen.columns(), 80) - 2, 50)


def filled(text: str, indent: str) -> str:
    made = textwrap.fill(
        " ".join(text.split()), _width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    return f"{made}\n"


def _table(rows: Rows) -> str:
    first = min(max(len(left) for left, _ in rows), 30) + 2
    lines = []
    for left, right in rows:
        wrapped = textwrap.wrap(right, max(_width() - first - 2, 10), break_on_hyphens=False) or [""]
        if len(left) > first - 2:
            lines.append(f"  {left}")
            left = ""
        lines.append(f"  {left:<{first}}{wrapped[0]}".rstrip())
        lines += [" " * (first + 2) + each for each in wrapped[1:]]
    return "\n".join(lines) + "\n"
