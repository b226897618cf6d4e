"""From what a user calls a model to a checked file on disk, or to what there is of it here or on the hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmrun.errors import Act, BadModel, LlmrunError, NotFound, NotInStore, UsageError
from llmrun.gguf import rules
from llmrun.gguf.reader import Header
from llmrun.models import quants
from llmrun.models.reference import Embedded, HubFile, LocalFile, parse
from llmrun.text import printable

if TYPE_CHECKING:
    from llmrun.models.store.listing import StoredModel

_COMMIT_PREFIX = re.compile(r"[0-9a-f]{7,39}")
Use = Literal["write", "read", "serve", "keep"]
"""What for: to write text, to have text put into its memory (prefill), to be asked for text or vectors, or nothing."""
Fetch = Callable[[HubFile], Path]
"""Gets a model that is not on this machine; returns its (first) file."""


@dataclass(frozen=True)
class Model:
    """A model that can be loaded: its header has been read and checked.

    Attributes:
        name: what to call it in messages.
        note: which of several levels was taken, and why, to be shown; empty where that is no surprise.
    """

    name: str
    path: Path
    header: Header
    note: str = ""


def find_model(reference: str, *, fetch: Fetch | None = None, use: Use = "write") -> Model:
    """The model that `reference` names: the embedded one, a file, or one of the hub's, pulled when it is missing.

    `fetch` does the pulling; without one it is done quietly. `use`: what the model must be good for. Raises
    every `LlmrunError` that naming, pulling and reading a model can end in.
    """
    named, note = parse(reference), ""
    if not isinstance(named, HubFile):
        path = named.path
    elif (found := find_stored(named)) is None:
        path = (fetch or _fetch_quietly)(named)
    else:
        from llmrun.models.store.listing import mark_used

        model, note = found
        path = model.path
        mark_used(model)
    first, header = open_whole(path)
    kind = rules.writes_no_text(header)
    is_unfit = {"write": True, "read": rules.is_encoder(header), "serve": kind != rules.EMBEDDING_KIND, "keep": False}
    if kind and is_unfit[use]:
        raise BadModel(f"{named.name} is {kind}: it writes no text", hint=Act("show", named.name))
    return Model(named.name, first, header, note)


def open_whole(path: Path) -> tuple[Path, Header]:
    """The first file of the model that `path` is, or is any part of, and the header of all parts together.

    Raises `NotFound` for a part that is not there, `BadModel` for what can't be run.
    """
    if not path.name:  # "/" and "."
        raise BadModel(f"{printable(str(path), 200)} is a folder", hint="a file's name")
    parts = [path.with_name(name) for name in quants.split_parts(path.name)]
    return parts[0], rules.open_whole(parts)


def find_stored(named: HubFile) -> tuple[StoredModel, str] | None:
    """The model if it is here, whole, and a sentence on which level was taken and why, empty where that is no surprise.

    Nothing is fetched, and nothing counts as used.
    """
    from llmrun.models.store import listing

    if (found := listing.choose(in_full(named))) is None:
        return None
    model, why = found
    return model, f"{named} is {model.quant}: {why}" if why else ""


def find_imported(named: HubFile) -> StoredModel | None:
    """The model if it is one that was imported or quantized here, which no hub knows."""
    from llmrun.models.store import layout, listing

    return listing.find(named) if layout.is_local(named.repo) else None


def all_stored(reference: str) -> list[StoredModel]:
    """What is here under this name, incomplete models too.

    Without a level it can be several models of one repository; the same file at several commits is several as well.
    Raises `NotInStore`, and `UsageError` for a model that is not kept in the store.
    """
    from llmrun.models.store import listing

    named = parse(reference)
    if isinstance(named, Embedded):
        raise UsageError(f"{named} is a part of llmrun itself")
    if isinstance(named, LocalFile):
        raise UsageError(f"{named} is a file of yours, which llmrun does not keep", hint=Act("list"))
    found = listing.find_all(in_full(named))
    if not found:
        raise NotInStore(f"{named} is not on this machine", hint=Act("list"))
    return found


def to_pull(reference: str, quant: str | None = None, revision: str | None = None) -> HubFile | Embedded:
    """What to pull. Raises `UsageError` for a file that is here, and where quant or revision contradict the name."""
    named = parse(reference)
    if isinstance(named, LocalFile):
        if named.path.is_file():
            raise UsageError(f"{named} is a file on this machine already", hint=Act("import", str(named)))
        meant = _as_hub_file(reference)
        raise NotFound(f"no such file: {named}", hint=Act("pull", str(meant)) if meant else None)
    if isinstance(named, Embedded):
        return named
    if quant is not None:
        wanted = quants.normalize(quant) or quant
        if named.file is not None:
            raise UsageError(f"{quant}, but '{reference}' names one file already", field="quant", value=quant)
        if named.quant not in (None, wanted):
            raise UsageError(f"{quant}, but '{reference}' says {named.quant}", field="quant", value=quant)
        named = replace(named, quant=wanted)
    if revision is not None:
        if named.revision not in (None, revision):
            raise UsageError(f"{revision}, but '{reference}' says {named.revision}", field="revision", value=revision)
        named = replace(named, revision=None if revision == "main" else revision)
    return in_full(named)


def _as_hub_file(reference: str) -> HubFile | None:
    """The file of a repository that was perhaps meant by a path to nothing."""
    try:
        named = parse(f"hf://{reference}")
    except LlmrunError:
        return None
    return named if isinstance(named, HubFile) and named.file else None


def in_full(named: HubFile) -> HubFile:
    """With the whole commit, where the revision is how the commit of a model that is here begins (as `list` has it)."""
    if named.revision is None or not _COMMIT_PREFIX.fullmatch(named.revision):
        return named
    from llmrun.models.store import listing

    here = {model.commit or "" for model in listing.find_all(replace(named, revision=None))}
    meant = [commit for commit in here if commit.startswith(named.revision)]
    return replace(named, revision=meant[0]) if len(meant) == 1 else named


def _fetch_quietly(named: HubFile) -> Path:
    from llmrun.models.hub import download, info

    return download.pull(info.resolve(named))
