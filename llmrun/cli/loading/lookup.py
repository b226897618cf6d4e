"""From what a user typed to what is here, or to what the hub has. Nothing is fetched, and nothing counts as used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from llmrun.errors import BadModel, LlmrunError, NotFound, NotInStore, UsageError
from llmrun.models import quants
from llmrun.models.catalog import Embedded, HubFile, LocalFile, parse

if TYPE_CHECKING:
    from llmrun.gguf.reader import Header
    from llmrun.models.hub import Resolved
    from llmrun.models.store import Leftover, StoredModel

_COMMIT_DIGITS = 12
"""Of a commit in a name."""


def from_hub(reference: str, quant: str | None, revision: str | None) -> HubFile | Embedded:
    """What to pull. Raises `UsageError` for a file that is here, and where options and name contradict each other."""
    from llmrun.models.resolve import in_full

    named = parse(reference)
    if isinstance(named, LocalFile):
        if named.path.is_file():
            raise UsageError(f"{named} is a file on this machine already", hint=f"llmrun import {named}")
        raise NotFound(f"no such file: {named}", hint=_as_hub_file(reference))
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
    return in_full(named)


def _as_hub_file(reference: str) -> str | None:
    """The command for a file of a repository that somebody named without saying that the hub is meant."""
    try:
        named = parse(f"hf://{reference}")
    except LlmrunError:
        return None
    return f"llmrun pull {named}" if isinstance(named, HubFile) and named.file else None


def stored(reference: str) -> list[StoredModel]:
    """What is here under this name, incomplete models too. Raises `NotInStore`, and `UsageError` for what isn't ours.

    Without a level it can be several models of one repository; the same file at several commits is several as well.
    """
    from llmrun.models import store
    from llmrun.models.resolve import in_full

    named = parse(reference)
    if isinstance(named, Embedded):
        raise UsageError(f"{named} is a part of llmrun itself")
    if isinstance(named, LocalFile):
        raise UsageError(f"{named} is a file of yours, which llmrun does not keep", hint="llmrun list")
    found = store.named(in_full(named))
    if not found:
        raise NotInStore(f"{named} is not on this machine", hint="llmrun list")
    return found


@cache
def _names_by_repo() -> dict[str, str]:
    """Repositories (in lower case) with the short names that the catalog has for them; empty if that can't be read."""
    from llmrun.cli.terminal import screen
    from llmrun.models import catalog

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
    """The `typed_name` of each; the file's where two different files would have the same.

    Of one file with two contents, which a repository that was changed leaves here, that of the main branch (or, without
    one, the only one that any branch or tag stands for) has the name, and the others have their commit behind it.
    """
    names = [typed_name(model) for model in models]
    files: dict[str, set[str]] = {}
    for name, model in zip(names, models, strict=True):
        files.setdefault(name, set()).add(model.file)
    names = [
        name if len(files[name]) == 1 else f"hf://{model.repo}/{model.file}"
        for name, model in zip(names, models, strict=True)
    ]
    same: dict[str, list[StoredModel]] = {}
    for name, model in zip(names, models, strict=True):
        same.setdefault(name, []).append(model)
    return [
        name if len(same[name]) == 1 or model is _current(same[name]) else _at_commit(name, model)
        for name, model in zip(names, models, strict=True)
    ]


def listed_names() -> dict[Path, str]:
    """The name of every model here as `llmrun list` has it, by path."""
    from llmrun.models import store

    models = store.list_models(header_budget_s=0)
    return dict(zip((model.path for model in models), typed_names(models), strict=True))


def name_in(listed: dict[Path, str], model: StoredModel) -> str:
    """Its name in `listed_names`, also if it came after they were asked for."""
    return listed.get(model.path) or typed_name(model)


def same(one: str, other: str) -> bool:
    """Whether two names mean the same: "pet" and "user/pet-GGUF", "q4_k_m" and "Q4_K_M"."""
    return _key(one) == _key(other)


def is_meant(reference: str, repo: str, file: str | None) -> bool:
    """Whether the reference's repository, level and file, as far as it names them, are those of a leftover."""
    named = parse(reference)
    if not isinstance(named, HubFile) or named.repo.lower() != repo.lower():
        return False
    if named.revision is not None:
        return False  # a leftover is of no commit
    if named.file is not None:
        return quants.split_parts(named.file.lower())[0] == quants.split_parts((file or "").lower())[0]
    return named.quant in (None, quants.quant_of(file or ""))


def _key(reference: str) -> object:
    named = parse(reference)
    if isinstance(named, HubFile):
        return named.repo.lower(), named.quant, (named.file or "").lower(), named.revision
    return named


def _current(models: Sequence[StoredModel]) -> StoredModel | None:
    """The one whose commit is a branch's: what `store.choice` takes when nobody names a commit."""
    from llmrun.models import store

    refs = store.RepoFolder.of(models[0].repo).refs()
    for commits in ({refs.get("main", "main")}, {*refs.values()}):
        # By its links: of several commits that have the same content, `commit` is only one.
        current = [model for model in models if any(commits & {*link.parts} for link in model.links)]
        if len(current) == 1:
            return current[0]
    return None


def _at_commit(name: str, model: StoredModel) -> str:
    at = f"@{(model.commit or '')[:_COMMIT_DIGITS]}"
    return f"hf://{model.repo}{at}/{model.file}" if name.startswith("hf://") else name + at


def typed_name(model: StoredModel | Leftover) -> str:
    """What to type for this model: the short name if the catalog has one, with the level; `hf://` where the file's
    name tells none, since then the header's level is in no name that the hub would know."""
    from llmrun.models import store

    if model.repo.startswith(store.LOCAL):
        return model.repo
    quant = quants.quant_of(model.file or "")
    if quant is None:
        return f"hf://{model.repo}/{model.file}" if model.file else model.repo
    return f"{_names_by_repo().get(model.repo.lower(), model.repo)}:{quant}"


def remote_header(resolved: Resolved) -> Header:
    """The header of all parts of a model on the hub together, by range requests. Raises `BadModel`, `NetworkError`."""
    from llmrun.gguf.rules import whole_header
    from llmrun.models import hub

    parts = [(file.name, hub.open_remote_header(resolved, index)) for index, file in enumerate(resolved.files)]
    try:
        return whole_header(parts)
    except BadModel as error:
        raise BadModel(f"{resolved.name}: {error.message}", remedies=error.remedies) from None
