"""Reads the bytes of stored models again and compares them with what was promised."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from llmrun import fs
from llmrun.models import quants
from llmrun.models.store import layout, state
from llmrun.models.store.layout import DAMAGED, RepoFolder, blob_name
from llmrun.models.store.listing import StoredModel
from llmrun.models.store.remove import tidy_local


@dataclass(frozen=True)
class VerifyProgress:
    """`done` of `total` bytes of one file have been read."""

    model: StoredModel
    file: str
    done: int
    total: int


@dataclass(frozen=True)
class Verdict:
    """What became of one file.

    Attributes:
        ok: None where no checksum was known: what the file hashes to has been noted for the next time.
        set_aside: where a damaged blob went; None for a damaged file that is not llmrun's (an import by link), for one
            that could not be moved (a store that is read-only; the reason says so), and for a part that is `missing`.
    """

    model: StoredModel
    file: str
    ok: bool | None
    reason: str = ""
    set_aside: Path | None = None
    missing: bool = False


def verify_models(
    models: Iterable[StoredModel], on_event: Callable[[VerifyProgress], None] | None = None
) -> list[Verdict]:
    """Reads every byte again. What is damaged is set aside, so that nothing sees it and a pull brings it anew.

    Of a split model, only the damaged part is set aside: the others are kept for the next pull. A part that is not here
    has a verdict too. Raises `DiskError` for a file that can't be read for another reason than damage.
    """
    verdicts: list[Verdict] = []
    for model in models:
        here = {path.name: path for path in model.parts}
        for part in quants.split_parts(model.file):
            name = part.rpartition("/")[2]
            if name in here:
                verdicts.append(_verify_file(model, here[name], on_event))
            else:
                verdicts.append(Verdict(model, name, False, "is not here", missing=True))
    return verdicts


def _verify_file(model: StoredModel, path: Path, on_event: Callable[[VerifyProgress], None] | None) -> Verdict:
    expected = _promised_sha256(model, path)

    def on_bytes(done: int) -> None:
        if on_event is not None:
            on_event(VerifyProgress(model, path.name, done, total))

    try:
        total = path.stat().st_size
        found = fs.sha256_of(path, on_bytes)
    except FileNotFoundError:
        # Set aside a moment ago under another name, or removed by somebody.
        return Verdict(model, path.name, False, "is not here any more", missing=True)
    except OSError as error:
        if error.errno != errno.EIO:
            raise fs.disk_error(error, f"verifying {model.name}") from error
        # An unreadable sector is damage as well: the blob goes aside, and its place on the disk with it.
        found, reason = "", f"cannot be read: {error.strerror}"
    else:
        reason = f"has sha256 {found[:12]}…, it must be {expected[:12] if expected else ''}…"
    if expected is None and found:
        state.remember(path, sha256=found)
        layout.add_sha256(path, found)
        return Verdict(model, path.name, None, "no checksum was known; this one is noted for the next time")
    if found == expected:
        state.remember(path, sha256=found)
        return Verdict(model, path.name, True)
    try:
        return Verdict(model, path.name, False, reason, _set_aside(model, path))
    except OSError as error:
        return Verdict(model, path.name, False, f"{reason}; it can't be set aside: {error.strerror}")


def _promised_sha256(model: StoredModel, path: Path) -> str | None:
    if (blob := blob_name(path)) is not None and layout.SHA256.fullmatch(blob):
        return blob
    return layout.noted_sha256(path) if layout.is_local(model.repo) else state.verified_sha256(path)


def _set_aside(model: StoredModel, path: Path) -> Path | None:
    """Takes a damaged file out of sight; where it is then. Raises `OSError` if the store can't be changed."""
    state.forget(path)
    if model.commit is None:
        if path.is_symlink():  # somebody else's file: only our name for it goes
            path.unlink()
            tidy_local(layout.local_folder(model.repo))
            return None
        aside = path.with_name(path.name + DAMAGED)
        path.replace(aside)
        return aside
    folder = RepoFolder.around(path, model.commit)
    blob = blob_name(path)
    # The names first: from here on nothing finds the blob, whatever happens next.
    for pointer in list(layout.files_below(folder.snapshots)):
        if pointer == path or (blob is not None and blob_name(pointer) == blob):
            pointer.unlink(missing_ok=True)
    source = folder.blob(blob) if blob is not None else path
    aside = folder.blobs / f"{blob or path.name}{DAMAGED}"
    # A blob that another tool shares among repositories: its bytes go aside, not only our link to them.
    real = layout.shared_payload(source)
    (real or source).replace(aside)
    if real is not None:
        source.unlink(missing_ok=True)
    return aside
