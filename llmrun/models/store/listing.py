"""What is on this machine: models, what is left of unfinished ones, and which model a name means."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmrun import paths
from llmrun.errors import LlmrunError
from llmrun.models import quants
from llmrun.models.store.layout import (
    DAMAGED,
    LOCAL,
    SHA256,
    RepoFolder,
    blob_name,
    entries,
    files_below,
    is_damaged_rest,
    is_local,
    own_size,
    repo_folders,
    repo_folders_of,
    size_below,
    staging_folders,
)
from llmrun.models.store.state import HeaderFacts, State, stamp

if TYPE_CHECKING:
    from llmrun.models.reference import HubFile

HEADER_BUDGET_S = 0.25
"""For headers that no earlier call has read."""
_HEADERS_AT_LEAST = 16
"""So many headers are read whatever the clock says: a few models are known at once on the busiest machine."""


@dataclass(frozen=True)
class StoredModel:
    """A model on this machine. Several files where it is split; `links` are all the names that lead to them.

    Attributes:
        repo: "user/repo" on the hub, or "local/name" for an imported one.
        file: name of the first file in the repository.
        quant: such as "Q4_K_M"; from the file's name, else from its header; None if neither says.
        size: bytes of all files that are here.
        parts: files that are here, in order.
        n_parts: files that there must be.
        commit: the snapshot that it was found in; None for an imported one.
        last_used_s: Unix time when llmrun last ran it; None if it never did.
        by_file: only its file's name means it: it goes with a model, or its level means another file.
    """

    repo: str
    file: str
    quant: str | None
    size: int
    parts: tuple[Path, ...]
    n_parts: int
    commit: str | None
    n_params: int | None = None
    architecture: str | None = None
    last_used_s: float | None = None
    links: tuple[Path, ...] = field(default=(), repr=False)
    by_file: bool = False

    @property
    def path(self) -> Path:
        """The file to open; llama.cpp finds the other parts next to it."""
        return self.parts[0]

    @property
    def complete(self) -> bool:
        return len(self.parts) == self.n_parts

    @property
    def name(self) -> str:
        """What to type: "user/repo:Q4_K_M"; the file where its name tells no level, as the hub knows no other."""
        if is_local(self.repo):
            return self.repo
        level = None if self.by_file else quants.quant_of(self.file)
        return f"{self.repo}:{level}" if level else f"hf://{self.repo}/{self.file}"


@dataclass(frozen=True)
class Leftover:
    """Bytes on disk that are no model: an unfinished download, a damaged blob, a blob that nothing names.

    Attributes:
        kind: "partial" is ours and will be resumed, "incomplete" another tool's, "damaged" was set aside by `verify`
            or is an imported link whose file is gone, "orphan" is whole but has no name: one part of a split model
            whose pull is not finished, or the folder of an import that was killed; "quantizing" is that of a quantizer.
        repo: "user/repo", or "local/name" for what is left of an import or a quantizer.
        file, total: what it is to become and how large, where known.
    """

    kind: Literal["partial", "incomplete", "damaged", "orphan", "quantizing"]
    repo: str
    path: Path
    size: int
    file: str | None = None
    total: int | None = None


def list_models(*, state: State | None = None, header_budget_s: float = HEADER_BUDGET_S) -> list[StoredModel]:
    """All models here, by name. A thousand take well under a second.

    Headers that no earlier call has read are read for at most `header_budget_s` seconds, but some in any case, and the
    rest next time: their `n_params` is None until then.
    """
    reader = FactReader(state or State(), header_budget_s)
    models = [reader.completed(found) for found in _all_found() if found.is_model or reader.was_pulled(found)]
    return sorted(models, key=lambda m: (m.repo.lower(), m.size, m.file))


def list_leftovers(*, state: State | None = None) -> list[Leftover]:
    """Unfinished, damaged and nameless files, for `list` to flag and `rm` to free."""
    pulls = (state or State()).pulls()
    found = [*_local_leftovers()]
    for folder in repo_folders():
        linked: set[str] | None = None
        for entry in entries(folder.blobs):
            base, _, suffix = entry.name.partition(".")
            if not SHA256.fullmatch(base) and not entry.name.endswith(DAMAGED):
                continue
            kind: Literal["partial", "incomplete", "damaged", "orphan"]
            if suffix == "":
                if linked is None:
                    linked = {blob for blob in map(blob_name, files_below(folder.snapshots)) if blob}
                if base in linked:
                    continue
                kind = "orphan"
            elif suffix == "partial":
                kind = "partial"
            elif entry.name.endswith(DAMAGED):
                kind = "damaged"
            elif suffix.endswith("incomplete"):
                kind = "incomplete"
            else:
                continue
            with suppress(OSError):
                file, total = pulls.get(str(folder.blob(base)), (None, None))
                found.append(Leftover(kind, folder.repo, Path(entry.path), entry.stat().st_size, file, total))
    return found


def _local_leftovers() -> Iterator[Leftover]:
    for staging in staging_folders():
        if not staging.is_in_use():
            kind: Literal["quantizing", "orphan"] = "quantizing" if staging.quantizing else "orphan"
            yield Leftover(kind, LOCAL + staging.name, staging.path, size_below(staging.path))
    for entry in entries(paths.imported_models()):
        if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
            continue
        root = Path(entry.path)
        for path in files_below(root):
            if is_damaged_rest(path):
                file = path.relative_to(root).as_posix().removesuffix(DAMAGED)
                yield Leftover("damaged", LOCAL + entry.name, path, own_size(path), file)


def find_all(ref: HubFile, *, state: State | None = None) -> list[StoredModel]:
    """All that is here under the name of a reference, without asking the hub; incomplete models too.

    Without a level it can be several models of one repository; the same file with different content at several commits
    is several as well. A level is looked for in the files' names, and in the headers only where no name has it. A
    revision is any commit, branch or tag under which the model was found.
    """
    reader = FactReader(state or State())
    return [reader.completed(found) for found in _matching(ref, reader)]


def choose(ref: HubFile, *, state: State | None = None) -> tuple[StoredModel, str] | None:
    """The one model of those of `find_all` that is meant, whole; None if it is not here or not complete.

    No level named: Q4_K_M, else the nearest of those that are here. The text says why it is this one, in half a
    sentence for a person; empty when it is what was asked for, or the default.
    """
    reader = FactReader(state or State())
    found, why = [m for m in _matching(ref, reader) if len(m.parts) == m.n_parts], ""
    if ref.file is None and found and not is_local(ref.repo):
        # None: it was found by its header's level, of which no name knows.
        sizes = {m.file: m.size for m in found}
        if (chosen := quants.choose(sizes, ref.quant) or quants.choose(sizes)) is None:
            return None
        found = [m for m in found if m.file == chosen.file]
        if ref.quant is None and chosen.quant not in (None, quants.DEFAULT):
            why = f"{chosen.why} here"
    if not found:
        return None
    # The same file in several commits: the main branch's, else one that a branch stands for, else the newest.
    refs = _refs_of(ref.repo)
    current = {*refs.values()}
    best = max(found, key=lambda m: (refs.get("main") in m.commits, bool(m.commits & current), m.mtime_s))
    return reader.completed(best), why


def find(ref: HubFile, *, state: State | None = None) -> StoredModel | None:
    """The model of `choose`, without the reason."""
    found = choose(ref, state=state)
    return found[0] if found is not None else None


def _matching(ref: HubFile, reader: FactReader) -> list[_Found]:
    found = _found_in(ref.repo)
    if ref.revision is not None:
        commits = {ref.revision, *(c for name, c in _refs_of(ref.repo).items() if name == ref.revision)}
        found = [m for m in found if m.commits & commits]
    if ref.file is not None:
        wanted = ref.file.lower()
        return [m for m in found if wanted in m.names]
    found = [m for m in found if m.is_model and not reader.is_variant(m)]
    if ref.quant is None:
        return found
    level = quants.normalize(ref.quant) or ref.quant
    if same := [m for m in found if quants.quant_of(m.file) == level]:
        return same
    if chosen := quants.choose({m.file: m.size for m in found}, level):
        return [m for m in found if m.file == chosen.file]
    return [m for m in found if quants.quant_of(m.file) is None and reader.label(m) == level]


def mark_used(model: StoredModel, *, state: State | None = None) -> None:
    """Notes that the model is used now."""
    (state or State()).used_now(f"{model.repo}/{model.file}")


@dataclass
class _Found:
    """A model as the folders show it, before anything was read.

    `is_model`: its path does not tell that it only goes with one, as a draft head does; it is then known by its file
    alone.
    """

    repo: str
    file: str
    commit: str | None
    n_parts: int
    parts: tuple[Path, ...]
    names: set[str]
    size: int
    mtime_s: float
    links: list[Path]
    commits: set[str]
    is_model: bool


class FactReader:
    """Adds what headers say, and when a model was last used, from memory where it is known.

    Other headers are read for at most `budget_s` seconds, but some in any case.
    """

    def __init__(self, state: State, budget_s: float = HEADER_BUDGET_S) -> None:
        self._state, self._known, self._used = state, state.files(), state.last_used()
        self._variants = state.variants()
        self._until_s = time.monotonic() + budget_s
        self._n_read = 0

    def completed(self, found: _Found) -> StoredModel:
        facts = [self.facts(path) for path in found.parts]
        first = facts[0]
        n_params = sum(f.n_params for f in facts if f) if all(facts) and len(facts) == found.n_parts else None
        return StoredModel(
            repo=found.repo,
            file=found.file,
            quant=quants.quant_of(found.file) or (first.label if first else None),
            size=found.size,
            parts=found.parts,
            n_parts=found.n_parts,
            commit=found.commit,
            n_params=n_params,
            architecture=first.architecture if first else None,
            last_used_s=self._used.get(f"{found.repo}/{found.file}"),
            links=tuple(found.links),
            by_file=not found.is_model or self.is_variant(found),
        )

    def is_variant(self, found: _Found) -> bool:
        """Whether its level means another file of its repository."""
        return f"{found.repo}/{found.file}".lower() in self._variants

    def was_pulled(self, found: _Found) -> bool:
        """Whether it was llmrun that brought it here: its sha256 is known."""
        return (known := self._known.get(os.path.realpath(found.parts[0]))) is not None and known[1] is not None

    def label(self, found: _Found) -> str | None:
        """The level that the header tells."""
        facts = self.facts(found.parts[0])
        return quants.normalize(facts.label) if facts and facts.label else None

    def facts(self, path: Path) -> HeaderFacts | None:
        """What the header of a file says; None for one that can't be read, or not in time."""
        try:
            now, real = stamp(path), os.path.realpath(path)
        except OSError:
            return None
        known = self._known.get(real)
        if known is not None and known[0] == now and known[2] is not None:
            return known[2]
        if self._n_read >= _HEADERS_AT_LEAST and time.monotonic() > self._until_s:
            return None
        from llmrun.gguf.reader import open_header

        self._n_read += 1
        try:
            facts = HeaderFacts.of(open_header(path))
        except LlmrunError:
            return None
        self._state.remember(path, facts=facts)
        return facts


def _all_found() -> Iterator[_Found]:
    for folder in repo_folders():
        yield from found_in_repo(folder)
    for entry in entries(paths.imported_models()):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from found_in_folder(LOCAL + entry.name, None, Path(entry.path))


def _found_in(repo: str) -> list[_Found]:
    """What is here of one repository, its name in any case."""
    if is_local(repo):
        names = (e.name for e in entries(paths.imported_models()) if e.name.lower() == repo[len(LOCAL) :].lower())
        return [f for name in names for f in found_in_folder(LOCAL + name, None, paths.imported_models() / name)]
    return [found for folder in repo_folders_of(repo) for found in found_in_repo(folder)]


def _refs_of(repo: str) -> dict[str, str]:
    return {name: commit for folder in reversed(repo_folders_of(repo)) for name, commit in folder.refs().items()}


def found_in_repo(folder: RepoFolder) -> list[_Found]:
    """One entry per model and content: the same blobs in several snapshots are one model with several names."""
    merged: dict[tuple[str, tuple[str, ...]], _Found] = {}
    current = set(folder.refs().values())
    for entry in entries(folder.snapshots):
        if not entry.is_dir(follow_symlinks=False):
            continue
        for found in found_in_folder(folder.repo, entry.name, Path(entry.path)):
            key = (found.file, tuple(blob_name(path) or str(path) for path in found.parts))
            if (same := merged.get(key)) is None:
                merged[key] = found
                continue
            # Shown under the commit that a branch stands for.
            kept, other = (found, same) if found.commit in current else (same, found)
            kept.links += other.links
            kept.commits |= other.commits
            merged[key] = kept
    return list(merged.values())


def found_in_folder(repo: str, commit: str | None, root: Path) -> list[_Found]:
    groups: dict[tuple[str, ...], list[tuple[str, Path, os.stat_result]]] = {}
    for path in files_below(root):
        name = path.relative_to(root).as_posix()
        if not quants.is_gguf(name):
            continue
        try:
            status = path.stat()
        except OSError:
            continue  # a link to a blob that is gone: not there
        if stat.S_ISREG(status.st_mode):
            groups.setdefault(quants.split_parts(name), []).append((name, path, status))
    found: list[_Found] = []
    for names, files in groups.items():
        here = {name: (path, status) for name, path, status in files}
        ordered = [here[name] for name in names if name in here]
        found.append(
            _Found(
                repo=repo,
                file=names[0],
                commit=commit,
                n_parts=len(names),
                parts=tuple(path for path, _ in ordered),
                names={name.lower() for name in names},
                size=sum(status.st_size for _, status in ordered),
                mtime_s=max(status.st_mtime for _, status in ordered),
                links=[path for path, _ in ordered],
                commits={commit} if commit else set(),
                is_model=commit is None or quants.is_model_file(names[0]),
            )
        )
    return found
