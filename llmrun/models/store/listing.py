"""What is on this machine: models, what is left of unfinished ones, and which model a name means."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmrun import paths
from llmrun.errors import LlmrunError
from llmrun.models import quants
from llmrun.models.store import layout, state
from llmrun.models.store.layout import DAMAGED, LOCAL, RepoFolder, entries, files_below, is_local
from llmrun.models.store.partial import bytes_here
from llmrun.models.store.state import HeaderFacts

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
        mtime_s: Unix time of its newest file.
        commits: all the snapshots that it is in.
        last_used_s: Unix time when llmrun last ran it; None if it never did.
        by_file: only its file's name means it: it goes with a model, or its level means another file.

    Before headers and memory were asked (`FactReader.completed`), what they tell is None, and `by_file` says what the
    path does.
    """

    repo: str
    file: str
    quant: str | None
    size: int
    parts: tuple[Path, ...]
    n_parts: int
    commit: str | None
    mtime_s: float
    n_params: int | None = None
    architecture: str | None = None
    last_used_s: float | None = None
    links: tuple[Path, ...] = field(default=(), repr=False)
    commits: frozenset[str] = frozenset()
    by_file: bool = False

    @property
    def path(self) -> Path:
        """The file to open; llama.cpp finds the other parts next to it."""
        return self.parts[0]

    @property
    def complete(self) -> bool:
        return len(self.parts) == self.n_parts

    @property
    def key(self) -> str:
        """By which `state` knows it."""
        return f"{self.repo}/{self.file}"

    @property
    def name(self) -> str:
        """What to type: "user/repo:Q4_K_M"; the file where its name tells no level, as the hub knows no other."""
        if is_local(self.repo):
            return self.repo
        level = None if self.by_file else quants.quant_of(self.file)
        return f"{self.repo}:{level}" if level else f"hf://{self.repo}/{self.file}"


LeftoverKind = Literal["partial", "incomplete", "damaged", "orphan", "quantizing"]
_KINDS: dict[str, LeftoverKind] = {"": "orphan", "partial": "partial", "damaged": "damaged", "incomplete": "incomplete"}
"""By how a blob's name ends."""


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

    kind: LeftoverKind
    repo: str
    path: Path
    size: int
    file: str | None = None
    total: int | None = None


def list_models(*, header_budget_s: float = HEADER_BUDGET_S) -> list[StoredModel]:
    """All models here, by name. A thousand take well under a second.

    Headers that no earlier call has read are read for at most `header_budget_s` seconds, but some in any case, and the
    rest next time: their `n_params` is None until then.
    """
    reader = FactReader(header_budget_s)
    models = [reader.completed(found) for found in _all_found() if not found.by_file or reader.was_pulled(found)]
    return sorted(models, key=lambda m: (m.repo.lower(), m.size, m.file))


def list_leftovers() -> list[Leftover]:
    """Unfinished, damaged and nameless files, for `list` to flag and `rm` to free."""
    pulls = state.pulls()
    found = [*_local_leftovers()]
    for folder in layout.repo_folders():
        linked: set[str] | None = None
        for entry in entries(folder.blobs):
            base, _, suffix = entry.name.partition(".")
            kind = _KINDS.get(suffix.rpartition(".")[2])
            if kind is None or (kind != "damaged" and not layout.SHA256.fullmatch(base)):
                continue
            if kind == "orphan":
                if linked is None:
                    linked = {blob for blob in map(layout.blob_name, files_below(folder.snapshots)) if blob}
                if base in linked:
                    continue
            with suppress(OSError):
                file, total = pulls.get(str(folder.blob(base)), (None, None))
                size = bytes_here(Path(entry.path)) if kind == "partial" else entry.stat().st_size
                found.append(Leftover(kind, folder.repo, Path(entry.path), size, file, total))
    return found


def _local_leftovers() -> Iterator[Leftover]:
    for staging in layout.staging_folders():
        if not staging.is_in_use():
            kind: LeftoverKind = "quantizing" if staging.quantizing else "orphan"
            yield Leftover(kind, LOCAL + staging.name, staging.path, layout.size_below(staging.path))
    for entry in entries(paths.imported_models()):
        if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
            continue
        root = Path(entry.path)
        for path in files_below(root):
            if layout.is_damaged_rest(path):
                file = path.relative_to(root).as_posix().removesuffix(DAMAGED)
                yield Leftover("damaged", LOCAL + entry.name, path, layout.own_size(path), file)


def find_all(ref: HubFile) -> list[StoredModel]:
    """All that is here under the name of a reference, without asking the hub; incomplete models too.

    Without a level it can be several models of one repository; the same file with different content at several commits
    is several as well. A level is looked for in the files' names, and in the headers only where no name has it. A
    revision is any commit, branch or tag under which the model was found.
    """
    reader = FactReader()
    return [reader.completed(found) for found in _matching(ref, reader)]


def choose(ref: HubFile) -> tuple[StoredModel, str] | None:
    """The one model of those of `find_all` that is meant, whole; None if it is not here or not complete.

    No level named: Q4_K_M, else the nearest of those that are here. The text says why it is this one, in half a
    sentence for a person; empty when it is what was asked for, or the default.
    """
    reader = FactReader()
    found, why = [m for m in _matching(ref, reader) if m.complete], ""
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
    best = max(found, key=lambda m: (refs.get("main") in m.commits, bool(m.commits & {*refs.values()}), m.mtime_s))
    return reader.completed(best), why


def find(ref: HubFile) -> StoredModel | None:
    """The model of `choose`, without the reason."""
    found = choose(ref)
    return found[0] if found is not None else None


def _matching(ref: HubFile, reader: FactReader) -> list[StoredModel]:
    found = _found_in(ref.repo)
    if ref.revision is not None:
        commits = {ref.revision, _refs_of(ref.repo).get(ref.revision)}
        found = [m for m in found if m.commits & commits]
    if ref.file is not None:
        wanted = ref.file.lower()
        return [m for m in found if wanted in map(str.lower, quants.split_parts(m.file))]
    found = [m for m in found if not m.by_file and not reader.is_variant(m)]
    if ref.quant is None:
        return found
    level = quants.normalize(ref.quant) or ref.quant
    if same := [m for m in found if quants.quant_of(m.file) == level]:
        return same
    if chosen := quants.choose({m.file: m.size for m in found}, level):
        return [m for m in found if m.file == chosen.file]
    return [m for m in found if quants.quant_of(m.file) is None and reader.label(m) == level]


def mark_used(model: StoredModel) -> None:
    """Notes that the model is used now."""
    state.used_now(model.key)


class FactReader:
    """Adds what headers say, and when a model was last used, from memory where it is known.

    Other headers are read for at most `budget_s` seconds, but some in any case.
    """

    def __init__(self, budget_s: float = HEADER_BUDGET_S) -> None:
        self._known, self._used, self._variants = state.files(), state.last_used(), state.variants()
        self._until_s = time.monotonic() + budget_s
        self._n_read = 0

    def completed(self, found: StoredModel) -> StoredModel:
        facts = [self.facts(path) for path in found.parts]
        first = facts[0]
        return replace(
            found,
            quant=found.quant or (first.label if first else None),
            n_params=sum(f.n_params for f in facts if f) if all(facts) and found.complete else None,
            architecture=first.architecture if first else None,
            last_used_s=self._used.get(found.key),
            by_file=found.by_file or self.is_variant(found),
        )

    def is_variant(self, found: StoredModel) -> bool:
        """Whether its level means another file of its repository."""
        return found.key.lower() in self._variants

    def was_pulled(self, found: StoredModel) -> bool:
        """Whether it was llmrun that brought it here: its sha256 is known."""
        return (known := self._known.get(os.path.realpath(found.parts[0]))) is not None and known[1] is not None

    def label(self, found: StoredModel) -> str | None:
        """The level that the header tells."""
        facts = self.facts(found.parts[0])
        return quants.normalize(facts.label) if facts and facts.label else None

    def facts(self, path: Path) -> HeaderFacts | None:
        """What the header of a file says; None for one that can't be read, or not in time."""
        try:
            now, real = state.stamp(path), os.path.realpath(path)
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
        state.remember(path, facts=facts)
        return facts


def _all_found() -> Iterator[StoredModel]:
    for folder in layout.repo_folders():
        yield from found_in_repo(folder)
    for entry in entries(paths.imported_models()):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from found_in_folder(LOCAL + entry.name, None, Path(entry.path))


def _found_in(repo: str) -> list[StoredModel]:
    """What is here of one repository, its name in any case."""
    if is_local(repo):
        names = (e.name for e in entries(paths.imported_models()) if e.name.lower() == repo[len(LOCAL) :].lower())
        return [f for name in names for f in found_in_folder(LOCAL + name, None, paths.imported_models() / name)]
    return [found for folder in layout.repo_folders_of(repo) for found in found_in_repo(folder)]


def _refs_of(repo: str) -> dict[str, str]:
    return {name: commit for folder in reversed(layout.repo_folders_of(repo)) for name, commit in folder.refs().items()}


def found_in_repo(folder: RepoFolder) -> list[StoredModel]:
    """One entry per model and content: the same blobs in several snapshots are one model with several names."""
    merged: dict[tuple[str, tuple[str, ...]], StoredModel] = {}
    current = set(folder.refs().values())
    for entry in entries(folder.snapshots):
        if not entry.is_dir(follow_symlinks=False):
            continue
        for found in found_in_folder(folder.repo, entry.name, Path(entry.path)):
            key = (found.file, tuple(layout.blob_name(path) or str(path) for path in found.parts))
            if same := merged.get(key):
                # Shown under the commit that a branch stands for.
                kept, other = (found, same) if found.commit in current else (same, found)
                found = replace(kept, links=kept.links + other.links, commits=kept.commits | other.commits)
            merged[key] = found
    return list(merged.values())


def found_in_folder(repo: str, commit: str | None, root: Path) -> list[StoredModel]:
    groups: dict[tuple[str, ...], dict[str, tuple[Path, os.stat_result]]] = {}
    for path in files_below(root):
        name = path.relative_to(root).as_posix()
        with suppress(OSError):  # a link to a blob that is gone: not there
            if quants.is_gguf(name) and stat.S_ISREG((status := path.stat()).st_mode):
                groups.setdefault(quants.split_parts(name), {})[name] = path, status
    found = []
    for names, here in groups.items():
        paths_here, statuses = zip(*(here[name] for name in names if name in here), strict=True)
        found.append(
            StoredModel(
                repo=repo,
                file=names[0],
                quant=quants.quant_of(names[0]),
                size=sum(status.st_size for status in statuses),
                parts=paths_here,
                n_parts=len(names),
                commit=commit,
                mtime_s=max(status.st_mtime for status in statuses),
                links=paths_here,
                commits=frozenset({commit} if commit else ()),
                by_file=commit is not None and not quants.is_model_file(names[0]),
            )
        )
    return found
