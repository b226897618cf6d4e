"""Pulls a model into the cache that all tools share, verified.

A pull, step by step, and the reason for each:

1. `resolve` asks the hub once for commit, sizes and sha256 of every file. From here on the *commit* is pinned: a push
   to the branch in the middle of a pull changes nothing.
2. One lock per blob, the one that huggingface_hub takes as well, held until the files have their names. Who has to wait
   says so, and takes over if the holder dies.
3. The bytes go to `blobs/<sha256>.partial`, each as soon as it arrives, so a killed process loses only what was in the
   socket. A thread behind the download reads the file again and hashes it: what is verified is what is in the file,
   and on resume the old bytes are hashed while new ones arrive. (A hash state can't be saved, the bytes can.)
   Over several connections the file has holes, and a journal says where (`store/partial.py`); pieces are fetched in
   order, so that the hash is never far behind (`ranges.py`). How many there are is found by trying
   (`connection_count.py`): they gain where the other side limits each, and not where the line or this machine does.
4. Before a request the hub is asked again, at the pinned commit, for a fresh signed URL, and whether the file still
   is what it promised; what it said some seconds ago is good for the other connections too.
5. The header is checked as soon as enough of it is here: a model that can't run is refused after a few MB.
6. Only when the sha256 is right: fsync, rename to `blobs/<sha256>`, then the link in `snapshots/`, which is what
   makes a file visible. All parts of a split model get their links together.

Why not `hf_hub_download` or `http_get`: the first starts at byte 0 after a kill and checks the size only; the second
retries inside with the URL that may have expired, keeps to itself that a server ignored the range, and writes in steps
of 10 MB. Why plain HTTP and not Xet: it does not resume after a kill either, and its chunks are not the bytes that we
hash as they arrive; the hub gives every file a plain URL as well.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from llmrun import fs
from llmrun.errors import Act, BadModel, IntegrityError, NotInStore
from llmrun.gguf.reader import naming, open_header
from llmrun.gguf.rules import whole_header
from llmrun.models.hub.blob import BlobDownload
from llmrun.models.hub.events import OnPullEvent, PullFinished, PullWaiting
from llmrun.models.hub.http import Patience, is_offline
from llmrun.models.hub.info import RepoFile, Resolved, check_promise, is_safe_name
from llmrun.models.store import partial, state
from llmrun.models.store.layout import COMMIT, RepoFolder, blob_name, files_below
from llmrun.models.store.remove import tidy
from llmrun.text import printable

_LOCAL_DISK = "set HF_HUB_CACHE to a folder on a local disk"
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


def missing_bytes(resolved: Resolved) -> int:
    """What a pull would fetch: all that is neither here nor in a partial."""
    folder = RepoFolder.of(resolved.repo)
    missing = 0
    for file in resolved.files:
        here = partial.bytes_here(folder.partial(str(file.sha256)))
        for path in _places(resolved, file, folder):
            with suppress(OSError):
                here = max(here, path.stat().st_size)
        missing += max(0, file.size - here)
    return missing


def _places(resolved: Resolved, file: RepoFile, folder: RepoFolder) -> tuple[Path, Path]:
    """Where a finished file may be: among the blobs, or under its name on a file system without links."""
    return folder.blob(str(file.sha256)), folder.pointer(resolved.commit, file.name)


def pull(
    resolved: Resolved,
    on_event: OnPullEvent | None = None,
    *,
    offline: bool = False,
    patience: Patience | None = None,
    n_connections: int | None = None,
) -> Path:
    """Brings all files of a model into the cache, verified, and returns the path of the first.

    May be killed at any point and called again: it goes on where it was. `n_connections` to fetch each file over; None:
    as many as pay. Raises `NetworkError` when the hub or the
    network gives up, `IntegrityError` when the bytes are not those promised, `DiskError` before or when the disk is
    full, `BadModel` when the file is not a model that can be run, `NotFound`, and offline `NotInStore`.
    """
    folder = RepoFolder.of(resolved.repo)
    on_event = on_event or (lambda _event: None)
    for file in resolved.files:
        if not is_safe_name(file.name):
            raise IntegrityError(f"the file name '{printable(file.name)}' would lead out of the store")
    if not COMMIT.fullmatch(resolved.commit):
        raise IntegrityError(f"'{printable(resolved.commit)}' is no commit")
    if is_offline(offline):
        return _pulled_offline(resolved, folder)
    for file in resolved.files:
        check_promise(file)
    if _is_admitted(resolved, folder):
        for file in resolved.files:
            on_event(PullFinished(file.name, file.size, 0, 0.0))
        with suppress(OSError):  # a store that is read-only is good enough to read from
            _note_ref(resolved, folder)
        return folder.pointer(resolved.commit, resolved.files[0].name)
    remedies = (fs.FREE_SPACE, "set HF_HUB_CACHE to a folder on a larger disk")
    fs.check_space(folder.path, missing_bytes(resolved), what=resolved.name, remedies=remedies)
    patience = patience or Patience.from_environment()
    with fs.disk_errors(f"pulling {resolved.name}"):
        # Both: a repository without `snapshots` is one that huggingface_hub warns about.
        for path in (folder.blobs, folder.snapshots):
            path.mkdir(parents=True, exist_ok=True)
        try:
            with _locked(resolved, folder, on_event):
                try:
                    for file in resolved.files:
                        BlobDownload(resolved, file, folder, on_event, patience, n_connections).run()
                    _check_whole(resolved, folder)
                except BadModel:
                    _discard(resolved, folder)
                    raise
                return _admit(resolved, folder)
        except BadModel:
            tidy(folder)
            raise


@contextmanager
def _locked(resolved: Resolved, folder: RepoFolder, on_event: OnPullEvent) -> Iterator[None]:
    """One process at a time has a blob; the others wait, and one of them takes over should it die.

    All of a model's at once, until its files have their names: a finished part that has none yet is not `rm`'s to free.
    In one order for everybody, so that no two wait for each other.
    """
    with ExitStack() as locks:
        for sha256 in sorted({str(file.sha256) for file in resolved.files}):
            wait_s = 0.0
            while True:
                try:
                    # A disk without locks is an error: two pulls could write one partial.
                    locks.enter_context(fs.lock(folder.lock(sha256), timeout_s=wait_s, hint=_LOCAL_DISK))
                    break
                except fs.Locked:
                    wait_s = 1.0
                    on_event(_waiting(resolved, folder))
        yield


def _waiting(resolved: Resolved, folder: RepoFolder) -> PullWaiting:
    """Which file another process is at, as the folder shows it: the one with a partial, else the first not here."""

    def state_of(file: RepoFile) -> tuple[int, int]:
        blob, unfinished = folder.blob(str(file.sha256)), folder.partial(str(file.sha256))
        if unfinished.exists():
            return 0, partial.bytes_here(unfinished)
        with suppress(OSError):
            return 2, blob.stat().st_size
        return 1, 0

    (_, done), file = min(((state_of(file), file) for file in resolved.files), key=lambda pair: pair[0][0])
    return PullWaiting(file.name, done, file.size)


def _pulled_offline(resolved: Resolved, folder: RepoFolder) -> Path:
    pointers = [folder.pointer(resolved.commit, file.name) for file in resolved.files]
    if not all(pointer.is_file() for pointer in pointers):
        raise NotInStore(f"{resolved.name} is not on this machine, and the network may not be used", hint=Act("list"))
    return pointers[0]


def _check_whole(resolved: Resolved, folder: RepoFolder) -> None:
    """The rules that concern all parts of a split model together: the keys are in the first, tensors in each."""
    if len(resolved.files) == 1:
        return  # has been checked while it arrived
    places = [_places(resolved, file, folder) for file in resolved.files]
    headers = [open_header(blob if blob.exists() else pointer) for blob, pointer in places]
    names = [file.name for file in resolved.files]
    with naming(resolved.name):
        whole_header(list(zip(names, headers, strict=True)))


def _discard(resolved: Resolved, folder: RepoFolder) -> None:
    """Frees the parts of what is not a model, but for those that have a name already."""
    named = {blob_name(pointer) for pointer in files_below(folder.snapshots)}
    for file in resolved.files:
        if file.sha256 not in named:
            folder.blob(str(file.sha256)).unlink(missing_ok=True)


def _is_admitted(resolved: Resolved, folder: RepoFolder) -> bool:
    """Whether all of it is here, known to be verified, under its names: then nothing has to be locked or written."""
    pointers = {folder.pointer(resolved.commit, file.name): file.sha256 for file in resolved.files}
    return all(path.exists() and state.verified_sha256(path) == sha256 for path, sha256 in pointers.items())


def _admit(resolved: Resolved, folder: RepoFolder) -> Path:
    """Gives the verified blobs their names. The first part's comes last: who sees it, sees a whole model."""
    for file in reversed(resolved.files):
        blob, pointer = _places(resolved, file, folder)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        _link(blob, pointer)
        fs.fsync_folder(pointer.parent)
    _note_ref(resolved, folder)
    return folder.pointer(resolved.commit, resolved.files[0].name)


def _note_ref(resolved: Resolved, folder: RepoFolder) -> None:
    if resolved.revision is None or not is_safe_name(resolved.revision):
        return
    path = folder.path / "refs" / resolved.revision
    with suppress(OSError):
        if path.read_text() == resolved.commit:
            return
    fs.write_atomically(path, resolved.commit, staging_folder=folder.path)


def _link(blob: Path, pointer: Path) -> None:
    if not blob.exists() and pointer.is_file():
        return  # a file system without links, see below
    target = os.path.relpath(blob, pointer.parent)
    with suppress(OSError):
        if str(pointer.readlink()) == target:
            return
    # Made among the blobs: should we die here, a forgotten name in `snapshots` would keep the blob alive.
    staging = blob.with_name(f"{blob.name}.{os.getpid()}.link")
    staging.unlink(missing_ok=True)
    try:
        staging.symlink_to(target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without links (exFAT): the file itself takes the place of its name, as with other tools.
        blob.replace(pointer)
        return
    staging.replace(pointer)
