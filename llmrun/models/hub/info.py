"""What the hub says of a repository, and the exact files at one commit that a name means."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmrun import __version__, units
from llmrun.errors import Act, BadModel, IntegrityError, NotFound, NotInStore
from llmrun.models import quants
from llmrun.models.catalog import is_repo
from llmrun.models.hub.http import Patience, hub_errors, is_offline, session, with_retry
from llmrun.models.store import listing, state
from llmrun.models.store.layout import COMMIT, SHA256, RepoFolder, files_below, is_local
from llmrun.text import printable

if TYPE_CHECKING:
    from llmrun.models.reference import HubFile


@dataclass(frozen=True)
class RepoFile:
    """A file in a repository. `sha256` None: not a large file, so the hub promises nothing that could be checked."""

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class RepoInfo:
    """A repository at one commit. `gated`: its terms must be accepted on its page before it can be pulled."""

    repo: str
    commit: str
    files: tuple[RepoFile, ...]
    gated: bool
    licence: str | None
    downloads: int | None = None

    @property
    def models(self) -> tuple[RepoFile, ...]:
        return tuple(file for file in self.files if quants.is_model_file(file.name))


@dataclass(frozen=True)
class QuantFiles:
    """One quantization in a repository. `size` is that of all its files, in bytes."""

    quant: str
    size: int
    n_files: int


@dataclass(frozen=True)
class Resolved:
    """What a reference means, exactly: these files at this commit.

    Attributes:
        quant: the quantization chosen; None if the file's name says none.
        why: why this one, for a person; empty when it was asked for by name.
        files: all parts of a split model, in order.
        revision: the branch or tag that was asked for; None when it was a commit.
        goes_with: of a projector, the model that it belongs to; empty for a model.
    """

    repo: str
    commit: str
    quant: str | None
    why: str
    files: tuple[RepoFile, ...]
    revision: str | None = "main"
    licence: str | None = None
    goes_with: str = ""

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def name(self) -> str:
        return f"{self.repo}:{self.quant}" if self.quant else f"hf://{self.repo}/{self.files[0].name}"


def model_info(repo: str, revision: str | None = None) -> RepoInfo:
    """Asks the hub about a repository. Raises `NotFound`, `NetworkError`, `IntegrityError` for a hostile answer."""
    from huggingface_hub import HfApi

    if not is_repo(repo):
        raise NotFound(f"'{printable(repo, 120)}' can't be the name of a repository: it is like user/name")
    patience = Patience.from_environment()

    def ask() -> Any:
        session(patience)
        api = HfApi(library_name="llmrun", library_version=__version__)
        return api.model_info(repo, revision=revision, files_metadata=True, timeout=patience.answer_timeout)

    with hub_errors(repo, revision):
        found = with_retry(ask, patience)
    commit, own = str(found.sha), str(found.id)
    if not COMMIT.fullmatch(commit):
        raise IntegrityError(f"the hub gives '{printable(commit)}' as commit of {repo}, which is not one")
    return RepoInfo(
        # In its own spelling, so that it gets one folder whatever the user typed.
        repo=own if own.lower() == repo.lower() and is_repo(own) else repo,
        commit=commit,
        files=tuple(_repo_files(found.siblings or ())),
        gated=bool(found.gated),
        licence=_licence(found),
        downloads=found.downloads if isinstance(found.downloads, int) else None,
    )


def resolve(ref: HubFile, *, offline: bool = False) -> Resolved:
    """Turns a reference into exact files, by one question to the hub; offline from what is stored.

    Raises `NotFound` (unknown repository, revision, file or quantization, or no access), `NetworkError`,
    `IntegrityError`; offline `NotInStore`.
    """
    if is_local(ref.repo):
        raise NotInStore(f"there is no imported model called {ref}", hint=Act("list"))
    if is_offline(offline):
        return _resolve_from_store(ref)
    info = model_info(ref.repo, ref.revision)
    by_name = {file.name: file for file in info.files if quants.is_gguf(file.name)}
    if not by_name:
        raise NotFound(f"{info.repo} has no GGUF file", hint=Act("search", info.repo.rpartition("/")[2]))
    if ref.file is not None:
        first, why = _named_file(ref.file, info, list(by_name)), ""
    else:
        first, why = _chosen_file(ref, info, by_name)
        if f"{info.repo}/{first}".lower() in state.variants():
            state.set_variant(f"{info.repo}/{first}", is_variant=False)
    names = quants.split_parts(first)
    missing = [name for name in names if name not in by_name]
    if missing:
        raise NotFound(f"{info.repo} lacks {len(missing)} of {len(names)} parts, {printable(missing[0])} first")
    files = tuple(by_name[name] for name in names)
    for file in files:
        check_promise(file)
    revision = ref.revision or "main"
    return Resolved(
        repo=info.repo,
        commit=info.commit,
        quant=quants.quant_of(first),
        why=why,
        files=files,
        revision=None if COMMIT.fullmatch(revision) else revision,
        licence=info.licence,
    )


def resolve_projector(model: Resolved, *, offline: bool = False) -> Resolved:
    """The image or audio part (mmproj) that lies beside a model in its repository, at the same commit.

    Raises `NotFound` where there is none, and what `resolve` raises.
    """
    if is_offline(offline):
        folder = RepoFolder.of(model.repo).snapshots / model.commit
        here = {path.relative_to(folder).as_posix(): path for path in files_below(folder)}
        files = {name: RepoFile(name, path.stat().st_size, None) for name, path in here.items() if path.exists()}
    else:
        files = {file.name: file for file in model_info(model.repo, model.commit).files}
    name = quants.choose_projector(files, model.files[0].name)
    if name is None and is_offline(offline):
        raise NotInStore(f"no projector (mmproj) of {model.name} is on this machine", hint=Act("list"))
    if name is None:
        raise NotFound(f"{model.repo} has no projector (mmproj)", hint=Act("show", model.repo))
    return replace(model, quant=None, why="", files=(files[name],), goes_with=model.name)


def _resolve_from_store(ref: HubFile) -> Resolved:
    model, why = listing.choose(ref) or (None, "")
    if model is None or model.commit is None:
        raise NotInStore(f"{_shown(ref)} is not on this machine, and the network may not be used", hint=Act("list"))
    files: list[RepoFile] = []
    names = quants.split_parts(model.file)
    for name, path in zip(names, model.parts, strict=True):
        blob = path.readlink().name if path.is_symlink() else ""
        files.append(RepoFile(name, path.stat().st_size, blob if SHA256.fullmatch(blob) else None))
    return Resolved(model.repo, model.commit, quants.quant_of(model.file), why, tuple(files), revision=None)


def _named_file(wanted: str, info: RepoInfo, names: Sequence[str]) -> str:
    """The first part of the file that was named, in any case if only one fits."""
    found = [wanted] if wanted in names else [name for name in names if name.lower() == wanted.lower()]
    if len(found) != 1:
        said = f"{info.repo} has no file {printable(wanted)}; it has {_listed(info)}"
        raise NotFound(said, hint=Act("show", info.repo))
    return quants.split_parts(found[0])[0]


def _chosen_file(ref: HubFile, info: RepoInfo, by_name: Mapping[str, RepoFile]) -> tuple[str, str]:
    sizes = {file.name: file.size for file in info.models}
    if not sizes:
        first = min(by_name)
        raise NotFound(
            f"{info.repo} has no model, by the names of its files, only what goes with one: {printable(first)}",
            hint=Act("pull", f"hf://{info.repo}/{first}"),
        )
    while chosen := quants.choose(sizes, ref.quant):
        if not quants.is_in_doubt(chosen.file, sizes) or not _goes_with_a_model(by_name[chosen.file], info):
            return chosen.file, chosen.why
        for part in quants.split_parts(chosen.file):
            sizes.pop(part, None)
    others = replace(info, files=tuple(by_name[name] for name in sizes))
    had = f"it has {_listed(others)}" if sizes else "what it has only goes with one"
    raise NotFound(f"{info.repo} has no {ref.quant or 'model'}; {had}", hint=Act("show", info.repo))


def _goes_with_a_model(file: RepoFile, info: RepoInfo) -> bool:
    """Whether a file's header, read from the hub, says that it is an adapter, a draft head or the like."""
    from llmrun.gguf.rules import DRAFT_KIND, no_model, writes_no_text
    from llmrun.models.hub.remote import open_remote_header

    try:
        header = open_remote_header(Resolved(info.repo, info.commit, None, "", (file,)))
    except BadModel:
        return False  # the pull says what is wrong with it
    return no_model(header) is not None or writes_no_text(header) == DRAFT_KIND


def _listed(info: RepoInfo) -> str:
    """Quantizations with their sizes, smallest first: "Q4_K_M (2.3 GiB), Q8_0 (4.0 GiB)"."""
    return ", ".join(f"{each.quant} ({units.size(each.size)})" for each in quants_of(info))


def _shown(ref: HubFile) -> str:
    rest = f"/{ref.file}" if ref.file else f":{ref.quant}" if ref.quant else ""
    return printable(f"{ref.repo}{rest}", 200)


def _repo_files(siblings: Sequence[Any]) -> Iterator[RepoFile]:
    for sibling in siblings:
        name, lfs = str(sibling.rfilename), sibling.lfs
        # A name that could lead out of the store is left out: no honest file is called like that.
        if not is_safe_name(name):
            continue
        size = lfs.size if lfs is not None else sibling.size
        if isinstance(size, int) and size >= 0:
            yield RepoFile(name, size, str(lfs.sha256) if lfs is not None else None)


def is_safe_name(name: str) -> bool:
    """Whether a file name from the hub stays inside its folder on every system, and can be shown."""
    parts = name.split("/")
    return (
        0 < len(name) <= 1024
        and name.isprintable()
        and "\\" not in name
        and ":" not in parts[0]
        and all(part not in ("", ".", "..") and len(os.fsencode(part)) <= 240 for part in parts)
    )


def check_promise(file: RepoFile) -> None:
    if file.sha256 is None or not SHA256.fullmatch(file.sha256):
        given = "none" if file.sha256 is None else f"'{printable(file.sha256)}'"
        said = f"the hub gives no usable sha256 for {printable(file.name)} ({given}), so it can't be verified"
        raise IntegrityError(said)


def _licence(found: Any) -> str | None:
    licences = (str(tag).removeprefix("license:") for tag in found.tags or () if str(tag).startswith("license:"))
    return next(map(printable, licences), None)


def quants_of(info: RepoInfo) -> tuple[QuantFiles, ...]:
    """The quantizations of a repository with their sizes, smallest first."""
    models = {file.name: file for file in info.models}
    found = []
    for name in models:
        parts = quants.split_parts(name)
        if parts[0] == name:
            size = sum(models[part].size for part in parts if part in models)
            found.append(QuantFiles(quants.quant_of(name) or printable(name), size, len(parts)))
    return tuple(sorted(found, key=lambda each: each.size))
