"""From what a user typed to what is here, or to what the hub has. Nothing is fetched, and nothing counts as used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from llmrun import quants
from llmrun.catalog import Embedded, HubFile, LocalFile, parse
from llmrun.errors import LlmrunError, NotInStore, UsageError

if TYPE_CHECKING:
    from llmrun.gguf import Header
    from llmrun.hub import Resolved
    from llmrun.store import Leftover, StoredModel


def from_hub(reference: str, quant: str | None, revision: str | None) -> HubFile | Embedded:
    """What to pull. Raises `UsageError` for a file that is here, and where options and name contradict each other."""
    named = parse(reference)
    if isinstance(named, LocalFile):
        raise UsageError(f"{named} is a file on this machine already", hint=f"llmrun import {named}")
    if isinstance(named, Embedded):
        return named
    if quant is not None:
        wanted = quants.normalize(quant) or quant
        if named.file is not None:
            raise UsageError(f"--quant {quant}: '{reference}' names one file already")
        if named.quant not in (None, wanted):
            raise UsageError(f"--quant {quant}, but '{reference}' says {named.quant}")
        named = replace(named, quant=wanted)
    if revision is not None:
        if named.revision not in (None, revision):
            raise UsageError(f"--revision {revision}, but '{reference}' says {named.revision}")
        named = replace(named, revision=None if revision == "main" else revision)
    return named


def stored(reference: str) -> list[StoredModel]:
    """What is here under this name, incomplete models too. Raises `NotInStore`, and `UsageError` for what isn't ours.

    Without a level it can be several models of one repository; the same file at several commits is several as well.
    """
    from llmrun import store

    named = parse(reference)
    if isinstance(named, Embedded):
        raise UsageError(f"{named} is a part of llmrun itself")
    if isinstance(named, LocalFile):
        raise UsageError(f"{named} is a file of yours, which llmrun does not keep", hint="llmrun list")
    found = [m for m in store.list_models(header_budget_s=0) if m.repo.lower() == named.repo.lower()]
    if named.revision is not None:
        commit = store.RepoFolder.of(found[0].repo).refs().get(named.revision, named.revision) if found else ""
        found = [m for m in found if m.commit == commit]
    if named.file is not None:
        first = quants.split_parts(named.file)[0].lower()
        found = [m for m in found if m.file.lower() == first]
    elif named.quant is not None and found:
        chosen = quants.choose({m.file: m.size for m in found}, named.quant)
        found = [m for m in found if m.quant == named.quant or (chosen is not None and m.file == chosen.file)]
    if not found:
        raise NotInStore(f"{named} is not on this machine", hint="llmrun list")
    return found


@cache
def _names_by_repo() -> dict[str, str]:
    """Repositories (in lower case) with the short names that the catalog has for them; empty if that can't be read."""
    from llmrun import catalog
    from llmrun.cli import screen

    try:
        entries = catalog.load().entries
    except LlmrunError as error:
        screen.note(f"warning: {error.message}")
        return {}
    found: dict[str, str] = {}
    for entry in entries:
        found.setdefault(entry.repo.lower(), entry.name)
    return found


def typed_names(models: Sequence[StoredModel]) -> list[str]:
    """The `typed_name` of each, or the file's where two different files would have the same."""
    names = [typed_name(model) for model in models]
    files: dict[str, set[str]] = {}
    for name, model in zip(names, models, strict=True):
        files.setdefault(name, set()).add(model.file)
    return [
        name if len(files[name]) == 1 else f"hf://{model.repo}/{model.file}"
        for name, model in zip(names, models, strict=True)
    ]


def typed_name(model: StoredModel | Leftover) -> str:
    """What to type for exactly this model: the short name with the level if the catalog has one."""
    from llmrun import store

    if model.repo.startswith(store.LOCAL):
        return model.repo
    quant = getattr(model, "quant", None) or quants.quant_of(model.file or "")
    if quant is None:
        return f"hf://{model.repo}/{model.file}" if model.file else model.repo
    return f"{_names_by_repo().get(model.repo.lower(), model.repo)}:{quant}"


def remote_header(resolved: Resolved) -> Header:
    """The header of all parts of a model on the hub together, by range requests."""
    from llmrun import hub

    headers = [hub.open_remote_header(resolved, index) for index in range(len(resolved.files))]
    return replace(headers[0], tensors=tuple(tensor for header in headers for tensor in header.tensors))
