"""`llmrun list WORDS...`: the models on this machine, or those that have a short name."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated, Any

from llmrun.cli.framework import options
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.loading import stored
from llmrun.cli.terminal import screen, tables
from llmrun.models import quants
from llmrun.text import sanitize
from llmrun.units import UNKNOWN, ago, count, percent, size

if TYPE_CHECKING:
    from llmrun.models.store.listing import Leftover


def list_(
    words: Annotated[list[str] | None, Argument("WORD", "Only what has all of these words in its name.")] = None,
    catalog: Annotated[
        bool, Option("--catalog", help="The models that have a short name, here or not, and what they are for.")
    ] = False,
    names_only: Annotated[bool, Option("--names", "-q", help="Print the names only.", panel="Output")] = False,
    as_json: options.Json = False,
) -> None:
    """List the models on this machine, or those of the catalog."""
    wanted = [word.lower() for word in words or ()]
    rows = _catalog_rows() if catalog else _stored_rows()
    rows = [row for row in rows if all(word in _searched(row) for word in wanted)]
    if as_json:
        screen.out_json([stored.json_row(row) for row in rows])
    elif names_only:
        names = (row["name"] for row in rows if row.get("state", "complete") == "complete")
        screen.out("".join(sanitize(name) + "\n" for name in names))
    elif catalog:
        titles = ("NAME", ">PARAMETERS", ">ACTIVE", ">SIZE", ">CONTEXT", "LICENCE", "GOOD FOR…")
        tables.show(titles, map(_catalog_cells, rows))
    else:
        tables.show(("NAME", "QUANT", ">SIZE", ">PARAMETERS", "USED", "WHERE…"), map(_stored_cells, rows))


def _searched(row: dict[str, Any]) -> str:
    return " ".join(str(row.get(key) or "") for key in ("name", "repo", "file", "summary")).lower()


def _stored_rows() -> list[dict[str, Any]]:
    from llmrun.models.store.listing import list_leftovers, list_models

    names, models = stored.names(), list_models()
    rows = [_tiny_row()]
    rows += [stored.model_row(model, name) for model, name in zip(models, names.of_each(models), strict=True)]
    rows += [_leftover_row(item, names.of(item)) for item in list_leftovers()]
    return rows


def _tiny_row() -> dict[str, Any]:
    from llmrun.models.catalog import EMBEDDED
    from llmrun.models.store import state
    from llmrun.models.store.listing import FactReader

    ((name, path),) = EMBEDDED.items()
    facts = FactReader().facts(path)
    return {
        "name": name,
        "repo": None,
        "commit": None,
        "file": path.name,
        "quant": facts and facts.label,
        "size": path.stat().st_size,
        "parameters": facts and facts.n_params,
        "architecture": facts and facts.architecture,
        "last_used_s": state.last_used().get(name),
        "path": os.fspath(path),
        "where": "part of llmrun",
        "state": "complete",
    }


def _leftover_row(item: Leftover, name: str) -> dict[str, Any]:
    share = f"{percent(item.size / item.total)} of {size(item.total)}, " if item.total else ""
    return {
        "name": name,
        "repo": item.repo,
        "commit": None,
        "file": item.file,
        "quant": quants.quant_of(item.file or ""),
        "size": item.size,
        "total": item.total,
        "parameters": None,
        "architecture": None,
        "last_used_s": None,
        "path": os.fspath(item.path),
        "where": share + stored.LEFTOVER_WORDS[item.kind],
        "state": "partial" if item.kind == "quantizing" else item.kind,
    }


def _stored_cells(row: dict[str, Any]) -> list[str]:
    used = ago(None if row["last_used_s"] is None else time.time() - row["last_used_s"])
    return [row["name"], row["quant"] or UNKNOWN, size(row["size"]), count(row["parameters"]), used, row["where"]]


def _catalog_rows() -> list[dict[str, Any]]:
    from llmrun.models import catalog

    rows = []
    for entry in catalog.load().entries:
        level = entry.quant or quants.quant_of(entry.file or "") or quants.DEFAULT
        n_bytes = quants.model_bytes(entry.parameters, level) if entry.parameters else None
        rows.append({**vars(entry), "aliases": [*entry.aliases], "usual_quant": level, "usual_bytes": n_bytes})
    return rows


def _catalog_cells(row: dict[str, Any]) -> list[str]:
    return [
        row["name"],
        count(row["parameters"]),
        count(row["active_parameters"]) if row["active_parameters"] else "",
        "~" + size(row["usual_bytes"]) if row["usual_bytes"] else UNKNOWN,
        str(row["n_ctx"] or UNKNOWN),
        (row["licence"] or UNKNOWN) + (" (gated)" if row["gated"] else ""),
        row["summary"] or "",
    ]
