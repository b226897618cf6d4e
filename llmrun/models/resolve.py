"""From what a user calls a model to a checked file on disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmrun.gguf.reader import Header, open_header
from llmrun.gguf.rules import open_runnable, whole_header
from llmrun.models.catalog import Embedded, HubFile, LocalFile, parse
from llmrun.models.quants import split_parts

if TYPE_CHECKING:
    from llmrun.models.store import StoredModel

_COMMIT_PREFIX = re.compile(r"[0-9a-f]{7,39}")
Fetch = Callable[[HubFile], Path]
"""Gets a model that is not on this machine; returns its (first) file."""


@dataclass(frozen=True)
class Model:
    """A model that can be loaded: its header has been read and checked.

    Attributes:
        name: what to call it in messages.
        note: which of several levels was taken, and why, for a command to say; empty where that is no surprise.
    """

    name: str
    path: Path
    header: Header
    note: str = ""


def find_model(reference: str, *, fetch: Fetch | None = None) -> Model:
    """The model that `reference` names: the embedded one, a file, or one of the hub's, pulled when it is missing.

    `fetch` does the pulling; without one it is done quietly. Raises every `LlmrunError` that naming, pulling and
    reading a model can end in.
    """
    named, note = parse(reference), ""
    match named:
        case Embedded() | LocalFile():
            path = named.path
        case HubFile():
            path, note = _stored(named) or ((fetch or _fetch_quietly)(named), "")
    first, header = open_whole(path)
    return Model(named.name, first, header, note)


def open_whole(path: Path) -> tuple[Path, Header]:
    """The first file of the model that `path` is, or is any part of, and the header of all parts together.

    Raises `NotFound` for a part that is not there, `BadModel` for what can't be run.
    """
    parts = [path.with_name(name) for name in split_parts(path.name)]
    if len(parts) == 1:
        return path, open_runnable(path)
    return parts[0], whole_header([(part.name, open_header(part)) for part in parts])


def _stored(named: HubFile) -> tuple[Path, str] | None:
    """Where the model lies already, whole, and what to say of its level; notes that it was used now."""
    from llmrun.models import store

    found = store.choice(in_full(named))
    if found is None:
        return None
    model, why = found
    store.touch(model)
    return model.path, level_note(named, model, why)


def level_note(named: HubFile, model: StoredModel, why: str) -> str:
    """`why` of `store.choice` as a sentence; empty when it is."""
    return f"{named} is {model.quant}: {why}" if why else ""


def in_full(named: HubFile) -> HubFile:
    """With the whole commit, where the revision is how the commit of a model that is here begins (as `list` has it)."""
    from llmrun.models import store

    if named.revision is None or not _COMMIT_PREFIX.fullmatch(named.revision):
        return named
    here = {model.commit or "" for model in store.named(replace(named, revision=None))}
    meant = [commit for commit in here if commit.startswith(named.revision)]
    return replace(named, revision=meant[0]) if len(meant) == 1 else named


def _fetch_quietly(named: HubFile) -> Path:
    from llmrun.models import hub

    return hub.pull(hub.resolve(named))
