"""Models on this machine as several commands show them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from llmrun.cli.terminal import screen
from llmrun.clock import utc_of
from llmrun.errors import LlmrunError
from llmrun.models import quants

if TYPE_CHECKING:
    from llmrun.models.naming import ModelNames
    from llmrun.models.store.listing import StoredModel

LEFTOVER_WORDS = {
    "partial": "unfinished: pull it again",
    "incomplete": "another tool's unfinished download",
    "damaged": "damaged, set aside",
    "orphan": "a part of an unfinished model",
    "quantizing": "of a quantizer that was killed",
}


def names() -> ModelNames:
    """What the models here are called; says so where the catalog, and with it its short names, can't be read."""
    from llmrun.models import catalog
    from llmrun.models.naming import ModelNames

    try:
        entries = catalog.load().entries
    except LlmrunError as error:
        screen.note(f"warning: {error.message}")
        entries = ()
    return ModelNames(entries)


def model_row(model: StoredModel, name: str) -> dict[str, Any]:
    """What `list` says of a model; `last_used_s` is a Unix time."""
    here, of = len(model.parts), model.n_parts
    where = "hub cache" if model.commit is not None else "imported"
    if quants.is_projector(model.file) and model.commit is not None:
        where = f"hub cache, goes with {model.repo}"
    if model.commit is None and model.path.is_symlink():
        where = f"link to {model.path.readlink()}"
    return {
        "name": name,
        "repo": model.repo,
        "commit": model.commit,
        "file": model.file,
        "quant": model.quant,
        "size": model.size,
        "parameters": model.n_params,
        "architecture": model.architecture,
        "last_used_s": model.last_used_s,
        "path": os.fspath(model.path),
        "where": where if model.complete else f"{where}, {here} of {of} parts",
        "state": "complete" if model.complete else "incomplete",
    }


def json_row(row: dict[str, Any]) -> dict[str, Any]:
    """The same for JSON: the Unix time as ISO 8601 in UTC, to the second."""
    if "last_used_s" not in row:
        return row
    at_s = row["last_used_s"]
    used = None if at_s is None else utc_of(at_s)
    return {**{key: value for key, value in row.items() if key != "last_used_s"}, "last_used": used}
