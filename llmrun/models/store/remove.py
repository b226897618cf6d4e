"""Removes models and what is left of unfinished ones, and nothing that something else needs."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from llmrun import fs, paths
from llmrun.errors import Act, DiskError, UsageError
from llmrun.models import quants
from llmrun.models.store import layout, state
from llmrun.models.store.layout import RepoFolder, blob_name, entries, files_below
from llmrun.models.store.listing import Leftover, StoredModel, found_in_repo
from llmrun.models.store.partial import journal_of
from llmrun.text import printable


def remove_models(models: Iterable[StoredModel]) -> int:
    """Removes models and returns the bytes that this freed on disk.

    A blob goes when no name in its repository leads to it any more. Only names and blobs inside the cache are ever
    deleted, by their own directory entry: a link is unlinked, never followed. Raises `UsageError` if one is being
    pulled, `DiskError`.
    """
    freed = 0
    for model in models:
        _keep_meaning(model)
        with fs.disk_errors(f"removing {model.name}"):
            freed += _remove_local(model) if model.commit is None else _remove_from_cache(model, model.commit)
        for path in model.parts:
            state.forget(path)
    return freed


def _keep_meaning(model: StoredModel) -> None:
    """Another file of the level of a model that goes does not take over its name."""
    level = quants.quant_of(model.file)
    if model.commit is None or level is None or model.by_file:
        return
    found = [found for folder in layout.repo_folders_of(model.repo) for found in found_in_repo(folder)]
    same = [each.file for each in found if quants.quant_of(each.file) == level]
    if (chosen := quants.choose(same)) and chosen.file == model.file:
        for file in {*same} - {model.file}:
            state.set_variant(f"{model.repo}/{file}", is_variant=True)


def remove_leftovers(leftovers: Iterable[Leftover]) -> int:
    """Frees unfinished and damaged files; returns the bytes. What is being pulled or imported now is left alone."""
    freed = 0
    for item in leftovers:
        if paths.imported_models() in item.path.parents:
            with fs.disk_errors(f"removing {item.path.name}"):
                freed += _remove_local_leftover(item)
            continue
        folder = RepoFolder(item.path.parent.parent)
        sha256 = item.path.name.partition(".")[0]
        with suppress(UsageError), fs.disk_errors(f"removing {item.path.name}"), blob_lock(folder, sha256):
            freed += min(item.size, _unlink(item.path))  # one with holes is shorter than its end
            _unlink(journal_of(item.path))
            state.pull_ended(folder.blob(sha256))
            tidy(folder)
    return freed


def _remove_local(model: StoredModel) -> int:
    root = layout.local_folder(model.repo)
    freed = sum(_unlink(path) for path in files_below(root) if path in model.parts or layout.is_damaged_rest(path))
    tidy_local(root)
    return freed


def _remove_local_leftover(item: Leftover) -> int:
    if item.path.parent == paths.imported_models():
        staging = layout.staging_folder(item.path)
        if staging is None or staging.is_in_use():
            return 0
        shutil.rmtree(item.path)
        return item.size
    freed = _unlink(item.path)
    tidy_local(paths.imported_models() / item.path.relative_to(paths.imported_models()).parts[0])
    return freed


def tidy_local(root: Path) -> None:
    """Removes an import's folder when only the note about it is left."""
    files = [*files_below(root)]
    if all(map(layout.is_note, files)):
        for path in files:
            _unlink(path)
        _remove_empty(root, stop=paths.imported_models())


def _remove_from_cache(model: StoredModel, commit: str) -> int:
    folder, cache = RepoFolder.around(model.path, commit), paths.hub_cache()
    if folder.path.parent != cache:
        raise UsageError(f"{printable(str(folder.path))} is not in the cache {cache}")
    blobs = dict.fromkeys(blob for pointer in model.links if (blob := blob_name(pointer)) not in (None, ".", ".."))
    freed = 0
    with ExitStack() as locks:
        for blob in blobs:
            locks.enter_context(blob_lock(folder, str(blob)))
        for pointer in model.links:
            # A file instead of a link: how other tools store where the file system has no links.
            freed += _unlink(pointer)
            _remove_empty(pointer.parent, stop=folder.snapshots)
        still_named = {blob_name(pointer) for pointer in files_below(folder.snapshots)}
        for blob in blobs:
            if blob in still_named:
                continue
            path = folder.blob(str(blob))
            payload = layout.shared_payload(path)
            state.forget(path)
            freed += _unlink(path) + (_remove_shared(payload) if payload else 0)
    tidy(folder)
    return freed


def _remove_shared(payload: Path) -> int:
    """Frees a shared blob, under the lock that huggingface_hub takes, unless another repository still links to it."""
    try:
        with fs.lock(payload.with_name(payload.name + ".lock"), timeout_s=2):
            for entry in entries(paths.hub_cache()):
                if "--" in entry.name and entry.is_dir():
                    for blob in entries(Path(entry.path) / "blobs"):
                        if blob.is_symlink() and os.path.realpath(blob.path) == os.path.realpath(payload):
                            return 0
            freed = _unlink(payload)
            _unlink(payload.with_name(payload.name + ".refs"))
            return freed
    except (fs.Locked, OSError, DiskError):
        return 0  # left to its owner


def tidy(folder: RepoFolder) -> None:
    """Removes refs to snapshots that are gone, and the repository's folder when nothing but empty folders is left."""
    for name, commit in folder.refs().items():
        if not (folder.snapshots / commit).is_dir() or not layout.COMMIT.fullmatch(commit):
            _unlink(folder.path / "refs" / name)
            _remove_empty((folder.path / "refs" / name).parent, stop=folder.path / "refs")
    for staged in (*folder.blobs.glob("*.link"), *folder.path.glob(".*.tmp")):
        _unlink(staged)  # of a pull that died between two steps
    if next(files_below(folder.snapshots), None) is None and not entries(folder.blobs):
        for name in ("snapshots", "blobs", "refs"):
            _remove_empty(folder.path / name, stop=folder.path)
        _remove_empty(folder.path, stop=folder.path.parent)


def _unlink(path: Path) -> int:
    """Unlinks one directory entry. Returns the bytes that this freed: none for a link, none while a hard link stays."""
    try:
        status = path.lstat()
        path.unlink()
    except FileNotFoundError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0


def _remove_empty(folder: Path, *, stop: Path) -> None:
    """Removes a folder and those above it as long as they are empty, up to but without `stop`."""
    while folder != stop and stop in folder.parents:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


@contextmanager
def blob_lock(folder: RepoFolder, name: str) -> Iterator[None]:
    """The lock of one blob, not waited for. Raises `UsageError` while a pull holds it."""
    try:
        with fs.lock(folder.lock(name)):
            yield
    except fs.Locked:
        raise UsageError(f"{folder.repo} is being pulled by another process", hint=Act("list")) from None
