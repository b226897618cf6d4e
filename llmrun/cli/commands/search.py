"""`llmrun search WORDS...`: GGUF repositories on the hub."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from llmrun.cli.framework import options
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.terminal import screen, tables
from llmrun.cli.terminal.tables import Column
from llmrun.units import UNKNOWN, size


def search(
    words: Annotated[list[str], Argument("WORD", "Words in the repository's name.")],
    limit: Annotated[int, Option("--limit", "-n", min=1, max=100, help="At most this many repositories.")] = 10,
    as_json: options.Json = False,
) -> None:
    """Search the hub for GGUF models, with their levels and sizes."""
    from llmrun.models import hub

    hits = hub.search(words, limit)
    if as_json:
        screen.out_json([asdict(hit) for hit in hits])
        return
    if not hits:
        screen.note(f"the hub has no GGUF repository with '{' '.join(words)}' in its name")
    columns = (
        Column("REPOSITORY"),
        Column("DOWNLOADS", right=True),
        Column("LICENCE"),
        Column("LEVELS", flexible=True),
    )
    tables.show(
        columns,
        (
            [
                hit.repo,
                UNKNOWN if hit.downloads is None else f"{hit.downloads:,}",
                (hit.licence or UNKNOWN) + (" (gated)" if hit.gated else ""),
                ", ".join(f"{offer.quant} {size(offer.size)}" for offer in hit.offers) or UNKNOWN,
            ]
            for hit in hits
        ),
    )
