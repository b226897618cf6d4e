"""Stored models beside what the hub has of them now: by the hash of each file, not by the commit, which moves whenever
anything in a repository does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from llmrun.errors import LlmrunError
from llmrun.models import quants
from llmrun.models.hub.info import RepoFile, RepoInfo, model_info
from llmrun.models.store import layout
from llmrun.models.store.listing import StoredModel

State = Literal["current", "changed", "gone", "unknown"]


@dataclass(frozen=True)
class Freshness:
    """One model.

    Attributes:
        state: "current", "changed" on the hub, "gone" from it, or "unknown": the hub was not reached.
        commit: that the hub has now.
        fetch_bytes: of the files that are others now.
        error: why it is unknown.
    """

    model: StoredModel
    state: State
    commit: str | None = None
    fetch_bytes: int = 0
    error: LlmrunError | None = None


def freshness(models: Sequence[StoredModel]) -> Iterator[Freshness]:
    """Of each that is from the hub; one question a repository. Of a file that is here several times, the newest."""
    found = list(_each(models))
    current = {each.model.key for each in found if each.state == "current"}
    yield from (each for each in found if each.state == "current" or each.model.key not in current)


def _each(models: Sequence[StoredModel]) -> Iterator[Freshness]:
    known: dict[str, RepoInfo | LlmrunError] = {}
    for model in models:
        if layout.is_local(model.repo):
            continue
        if model.repo not in known:
            try:
                known[model.repo] = model_info(model.repo)
            except LlmrunError as error:
                known[model.repo] = error
        found = known[model.repo]
        yield Freshness(model, "unknown", error=found) if isinstance(found, LlmrunError) else _beside(model, found)


def _beside(model: StoredModel, info: RepoInfo) -> Freshness:
    there = {file.name: file for file in info.files}
    names = quants.split_parts(model.file)
    if any(name not in there for name in names):
        return Freshness(model, "gone", info.commit)
    here = {path.name: layout.blob_name(path) for path in model.parts}
    changed = [there[name] for name in names if not _is_same(there[name], here.get(name.rpartition("/")[2]))]
    return Freshness(model, "changed" if changed else "current", info.commit, sum(file.size for file in changed))


def _is_same(file: RepoFile, blob: str | None) -> bool:
    """Whether the blob, which is called by its hash, is this file. Without a promise, or a link, nobody can tell."""
    return file.sha256 is None or blob is None or blob == file.sha256
