"""Where the files of models are and what their names mean.

Models that come from the hub lie in the standard Hugging Face cache, which llama.cpp and other tools share:

    <cache>/models--user--repo/
        blobs/<sha256>                  the bytes, named by what they must hash to
        blobs/<sha256>.partial          an unfinished download of llmrun (at most one per blob)
        blobs/<sha256>.partial.ranges   which of its bytes are here, where it has holes (see `partial.py`)
        blobs/<sha256>.damaged          set aside by `verify`; nothing sees it any more
        snapshots/<commit>/<file>       a link to the blob: a file "is there" when this link is there
        refs/<branch or tag>            the commit that it stood for when last asked
    <cache>/.locks/models--user--repo/<sha256>.lock

Where other tools share downloads among repositories (`<cache>/blobs`), a blob may itself be a link; it is followed for
reading and never for deleting, unless nothing else points there.

Imported and quantized models lie in `<home>/models/<name>/`, each with a note of where it came from, and are called
`local/<name>`.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrun import codec, fs, paths

SHA256 = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
LOCAL = "local/"
"""What the names of imported models begin with."""
DAMAGED = ".damaged"
PARTIAL = ".partial"
_IMPORT_NOTE = ".import.json"
_LOCAL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")
_QUANTIZING = ".quantizing"
_STAGING = re.compile(rf"\.(?P<name>.+)\.(?P<pid>[0-9]{{1,10}})(?P<quantizing>{re.escape(_QUANTIZING)})?")


@dataclass(frozen=True)
class RepoFolder:
    """The paths of one hub repository in the cache. What is put in must have been checked (see `hub/info.py`)."""

    path: Path

    @classmethod
    def of(cls, repo: str) -> RepoFolder:
        return cls(paths.hub_cache() / ("models--" + repo.replace("/", "--")))

    @classmethod
    def around(cls, pointer: Path, commit: str) -> RepoFolder:
        """The folder of the repository that has this link in the snapshot of this commit."""
        for parent in pointer.parents:
            if parent.name == commit and parent.parent.name == "snapshots":
                return cls(parent.parent.parent)
        raise AssertionError(f"{pointer} is in no snapshot")

    @property
    def repo(self) -> str:
        return self.path.name.removeprefix("models--").replace("--", "/")

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    def blob(self, sha256: str) -> Path:
        return self.blobs / sha256

    def partial(self, sha256: str) -> Path:
        return self.blobs / f"{sha256}{PARTIAL}"

    def pointer(self, commit: str, file: str) -> Path:
        return self.snapshots / commit / file

    def lock(self, name: str) -> Path:
        # The path that huggingface_hub locks too: its downloads and ours of one blob exclude each other.
        return self.path.parent / ".locks" / self.path.name / f"{name}.lock"

    def refs(self) -> dict[str, str]:
        """Branches and tags with the commits that they stood for when last asked."""
        found: dict[str, str] = {}
        for path in files_below(self.path / "refs"):
            with suppress(OSError, UnicodeError):
                found[path.relative_to(self.path / "refs").as_posix()] = path.read_text().strip()
        return found


def repo_folders() -> Iterator[RepoFolder]:
    """Those of all repositories in the cache."""
    for entry in entries(paths.hub_cache()):
        if entry.name.startswith("models--") and entry.is_dir():
            yield RepoFolder(Path(entry.path))


def repo_folders_of(repo: str) -> list[RepoFolder]:
    """Those of one repository, its name in any case: other tools make a folder for each. That of this case is first."""
    same = [folder for folder in repo_folders() if folder.repo.lower() == repo.lower()]
    return sorted(same, key=lambda folder: folder.repo != repo)


def repo_of(path: Path) -> tuple[str, str, str] | None:
    """Repository, commit and file of a link in the hub cache; None for any other path."""
    try:
        place = path.absolute().relative_to(paths.hub_cache().absolute()).parts
    except ValueError:
        return None
    if len(place) < 4 or place[1] != "snapshots":
        return None
    return RepoFolder(paths.hub_cache() / place[0]).repo, place[2], "/".join(place[3:])


def blob_name(pointer: Path) -> str | None:
    """The name of the blob that a snapshot's link points to, by one step only; None if it is no such link."""
    try:
        target = pointer.readlink()
    except OSError:
        return None
    return target.name if target.parent.name == "blobs" else None


def shared_payload(blob: Path) -> Path | None:
    """Where a blob's bytes are if it is another tool's link into the cache's own store of shared blobs."""
    try:
        target = Path(os.path.normpath(blob.parent / blob.readlink()))
    except OSError:
        return None
    shared = Path(os.path.normpath(paths.hub_cache())) / "blobs"
    inside = target.parent.parent == shared and SHA256.fullmatch(target.name) and target.parent.name == target.name[:2]
    return target if inside and target.is_file() and not target.is_symlink() else None


# --- imported models --------------------------------------------------------------------------------------------------


def is_local(repo: str) -> bool:
    """Whether this is the name of an imported model, in any case."""
    return repo.lower().startswith(LOCAL)


def local_folder(name: str) -> Path:
    """The folder of `local/<name>`, with or without `local/`."""
    return paths.imported_models() / name.removeprefix(LOCAL)


def is_local_name(name: str) -> bool:
    """Whether an imported model can be called so, without `local/`."""
    return bool(_LOCAL_NAME.fullmatch(name))


@dataclass(frozen=True)
class StagingFolder:
    """Where one process prepares `local/<name>`: a hidden folder `.NAME.PID` on the same disk, which nothing lists.

    Attributes:
        name: without `local/`.
        quantizing: whether the model is being quantized, and not imported; then the folder ends in `.quantizing`.
    """

    path: Path
    name: str
    pid: int
    quantizing: bool

    @classmethod
    def mine(cls, name: str, *, quantizing: bool) -> StagingFolder:
        """That of this process."""
        pid = os.getpid()
        path = paths.imported_models() / f".{name}.{pid}{_QUANTIZING if quantizing else ''}"
        return cls(path, name, pid, quantizing)

    def is_in_use(self) -> bool:
        """Whether its process still runs."""
        return fs.is_running(self.pid)


def staging_folder(path: Path) -> StagingFolder | None:
    """What the name of a folder of imported models says; None if it is not that of a staging folder."""
    match = _STAGING.fullmatch(path.name)
    return match and StagingFolder(path, match["name"], int(match["pid"]), bool(match["quantizing"]))


def staging_folders() -> list[StagingFolder]:
    """Those of all processes, also of those that are no more."""
    hidden = (Path(entry.path) for entry in entries(paths.imported_models()) if entry.is_dir(follow_symlinks=False))
    return [found for found in map(staging_folder, hidden) if found]


def is_damaged_rest(path: Path) -> bool:
    """Whether this file of an import was set aside, or is a link to a file that is gone."""
    return path.name.endswith(DAMAGED) or (path.is_symlink() and not path.exists())


def is_note(path: Path) -> bool:
    """Whether this file of an import is the note of where it came from, or was to become it."""
    return path.name == _IMPORT_NOTE or path.name.startswith(f".{_IMPORT_NOTE}.")


def write_note(folder: Path, sources: Sequence[Path], sha256: Mapping[str, str]) -> None:
    """Notes in an import's folder what it was made from, and the sha256 of those of its files that are known."""
    note = {"from": [os.fspath(source) for source in sources], "sha256": dict(sha256)}
    fs.write_atomically(folder / _IMPORT_NOTE, json.dumps(note))


def noted_sha256(path: Path) -> str | None:
    """What the note of an import says that this file of it must hash to."""
    noted = _note(path.parent).get("sha256", {}).get(path.name)
    return str(noted) if noted else None


def add_sha256(path: Path, sha256: str) -> None:
    """Adds what a file hashes to to the note of its import, where there is one and it can be written."""
    if note := _note(path.parent):
        note["sha256"][path.name] = sha256
        with suppress(OSError):
            fs.write_atomically(path.parent / _IMPORT_NOTE, json.dumps(note))


def _note(folder: Path) -> dict[str, Any]:
    try:
        note = codec.decode((folder / _IMPORT_NOTE).read_bytes(), dict[str, Any])
    except (OSError, ValueError):
        return {}
    return note if isinstance(note.get("sha256"), dict) else {}


# --- folders ----------------------------------------------------------------------------------------------------------


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; empty where it can't be read."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError:
        return []


def files_below(root: Path) -> Iterator[Path]:
    """Files and links below a folder; linked folders are not entered."""
    for entry in entries(root):
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(Path(entry.path))
        elif entry.is_symlink() or entry.is_file():
            yield Path(entry.path)


def own_size(path: Path) -> int:
    """Bytes of a file; none of a link."""
    with suppress(OSError):
        status = path.lstat()
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return 0


def size_below(root: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(map(own_size, files_below(root)))
