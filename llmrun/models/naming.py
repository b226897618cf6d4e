"""What to type for a model that is here: the names of `list`, and what they have in common with those of users."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from llmrun.models import quants
from llmrun.models.catalog import CatalogEntry
from llmrun.models.reference import HubFile, parse
from llmrun.models.store.layout import RepoFolder, is_local
from llmrun.models.store.listing import Leftover, StoredModel, list_models

_COMMIT_DIGITS = 12
"""Of a commit in a name."""


class ModelNames:
    """The names of models here, with the short ones of these catalog entries."""

    def __init__(self, entries: Iterable[CatalogEntry]) -> None:
        self._by_repo: dict[str, str] = {}
        for entry in entries:
            self._by_repo.setdefault(entry.repo.lower(), entry.name)

    def of(self, model: StoredModel | Leftover) -> str:
        """The name of this model alone: the short name if the catalog has one, with the level.

        `hf://` and the file where its name tells no level, since the header's is in no name that the hub would know.
        """
        if is_local(model.repo):
            return model.repo
        by_file = model.by_file if isinstance(model, StoredModel) else not quants.is_model_file(model.file or "x.gguf")
        quant = None if by_file else quants.quant_of(model.file or "")
        if quant is None:
            return f"hf://{model.repo}/{model.file}" if model.file else model.repo
        return f"{self._by_repo.get(model.repo.lower(), model.repo)}:{quant}"

    def of_each(self, models: Sequence[StoredModel]) -> list[str]:
        """Names that tell these models apart; the file's where two different files would have the same.

        Of one file with two contents, which a repository that was changed leaves here, that of the main branch (or,
        without one, the only one that any branch or tag stands for) has the name, and the others have their commit
        behind it.
        """
        named = [(self.of(model), model) for model in models]
        same = _by_name(named)
        is_clear = {name: len({model.file for model in same[name]}) == 1 for name in same}
        named = [(name if is_clear[name] else f"hf://{model.repo}/{model.file}", model) for name, model in named]
        same = _by_name(named)
        return [
            name if len(same[name]) == 1 or model is _current(same[name]) else _at_commit(name, model)
            for name, model in named
        ]

    @cached_property
    def _listed(self) -> dict[Path, str]:
        models = list_models(header_budget_s=0)
        return dict(zip((model.path for model in models), self.of_each(models), strict=True))

    def listed(self) -> list[str]:
        """The names of all models here, as `list` has them when it is first asked for."""
        return [*self._listed.values()]

    def as_listed(self, model: StoredModel) -> str:
        """The name of this model as `list` has it."""
        return self._listed.get(model.path) or self.of(model)


def _by_name(named: Iterable[tuple[str, StoredModel]]) -> dict[str, list[StoredModel]]:
    found: dict[str, list[StoredModel]] = {}
    for name, model in named:
        found.setdefault(name, []).append(model)
    return found


def same(one: str, other: str) -> bool:
    """Whether two names mean the same: "pet" and "user/pet-GGUF", "q4_k_m" and "Q4_K_M"."""
    return _key(one) == _key(other)


def is_meant(reference: str, leftover: Leftover) -> bool:
    """Whether repository, level and file of the reference, as far as it names them, are those of a leftover."""
    named = parse(reference)
    if not isinstance(named, HubFile) or named.repo.lower() != leftover.repo.lower() or named.revision is not None:
        return False  # a leftover is of no commit
    file = leftover.file or ""
    if named.file is not None:
        return quants.split_parts(named.file.lower())[0] == quants.split_parts(file.lower())[0]
    return named.quant in (None, quants.quant_of(file))


def _key(reference: str) -> object:
    named = parse(reference)
    if isinstance(named, HubFile):
        return named.repo.lower(), named.quant, (named.file or "").lower(), named.revision
    return named


def _current(models: Sequence[StoredModel]) -> StoredModel | None:
    """The one whose commit is a branch's: what is taken when a reference has no revision."""
    refs = RepoFolder.of(models[0].repo).refs()
    for commits in ({refs.get("main", "main")}, {*refs.values()}):
        # By its links: of several commits that have the same content, `commit` is only one.
        current = [model for model in models if any(commits & {*link.parts} for link in model.links)]
        if len(current) == 1:
            return current[0]
    return None


def _at_commit(name: str, model: StoredModel) -> str:
    at = f"@{(model.commit or '')[:_COMMIT_DIGITS]}"
    return f"hf://{model.repo}{at}/{model.file}" if name.startswith("hf://") else name + at
