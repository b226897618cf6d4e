"""`llmrun search WORDS...`: GGUF repositories on the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from llmrun.cli.framework import options
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.terminal import screen, tables
from llmrun.options.spec import Whole
from llmrun.units import UNKNOWN, size

if TYPE_CHECKING:
    from llmrun.models.hub.search import SearchResult


def search(
    words: Annotated[list[str], Argument("WORD", "Words in the repository's name.")],
    limit: Annotated[int, Option("--limit", "-n", kind=Whole(1, 100), help="At most this many repositories.")] = 10,
    as_json: options.Json = False,
) -> None:
    """Search the hub for GGUF models, with their levels and sizes."""
    from llmrun.models.hub import search as hub_search

    found = hub_search.search(words, limit)
    if as_json:
        screen.out_json([_document(each) for each in found])
        return
    if not found:
        screen.note(f"the hub has no GGUF repository with '{' '.join(words)}' in its name")
    tables.show(("REPOSITORY", ">DOWNLOADS", "LICENCE", "LEVELS…"), map(_row, found))


def _row(found: SearchResult) -> tuple[str, ...]:
    downloads = UNKNOWN if found.downloads is None else f"{found.downloads:,}"
    licence = (found.licence or UNKNOWN) + (" (gated)" if found.gated else "")
    levels = ", ".join(f"{files.quant} {size(files.size)}" for files in found.quants) or UNKNOWN
    return found.repo, downloads, licence, levels


def _document(found: SearchResult) -> dict[str, Any]:
    return {
        "repo": found.repo,
        "downloads": found.downloads,
        "licence": found.licence,
        "gated": found.gated,
        "offers": [vars(files) for files in found.quants],
    }
