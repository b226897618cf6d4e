"""What is on disk: finds, lists, verifies, removes and imports models. Never touches the network.

Models that come from the hub lie in the standard Hugging Face cache, which llama.cpp and other tools share:

    <cache>/models--user--repo/
        blobs/<sha256>                  the bytes, named by what they must hash to
        blobs/<sha256>.partial          a download of ours that is not finished (at most one per blob)
        blobs/<sha256>.damaged          set aside by `verify`; nothing sees it any more
        snapshots/<commit>/<file>       a link to the blob: a file "is there" when this link is there
        refs/<branch or tag>            the commit that it stood for when last asked
    <cache>/.locks/models--user--repo/<sha256>.lock

Where other tools share downloads among repositories (`<cache>/blobs`), a blob may itself be a link; it is followed for
reading and never for deleting, unless nothing else points there.

Imported models lie in `<home>/models/<name>/` and are called `local/<name>`. What is merely remembered (header facts,
what has been verified, when a model was last used) is in one small SQLite file; losing it costs time, not models.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmrun import fs, paths
from llmrun.errors import Act, BadModel, LlmrunError, NotFound, UsageError
from llmrun.fs import check_space, disk_error, disk_errors, fsync_folder, write_all, write_atomically
from llmrun.gguf.reader import open_header
from llmrun.gguf.rules import open_runnable
from llmrun.models import quants
from llmrun.text import printable

if TYPE_CHECKING:
    import sqlite3

    from llmrun.gguf.reader import Header
    from llmrun.models.catalog import HubFile

HASH_CHUNK_BYTES = 1 << 20
SHA256 = re.compile(r"[0-9a-f]{64}")
LOCAL = "local/"
_HEADER_BUDGET_S = 0.25
_HEADERS_AT_LEAST = 16
"""So many headers are read whatever the clock says: a few models are known at once on the busiest machine."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_IMPORT_NOTE = ".import.json"
_DAMAGED = ".damaged"
_STAGING = re.compile(r"\.(?P<name>.+)\.(?P<pid>[0-9]{1,10})")
"""An import on its way into the store: ".NAME.PID"."""


def database() -> Path:
    return paths.state() / "store.sqlite"


# --- where things are -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RepoFolder:
    """The paths of one hub repository in the cache. What is put in must have been checked (see `hub.py`)."""

    path: Path

    @classmethod
    def of(cls, repo: str) -> RepoFolder:
        return cls(paths.hub_cache() / ("models--" + repo.replace("/", "--")))

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
        return self.blobs / f"{sha256}.partial"

    def pointer(self, commit: str, file: str) -> Path:
        return self.snapshots / commit / file

    def lock(self, name: str) -> Path:
        # The path that huggingface_hub locks too: its downloads and ours of one blob exclude each other.
        return self.path.parent / ".locks" / self.path.name / f"{name}.lock"

    def refs(self) -> dict[str, str]:
        """Branches and tags with the commits that they stood for when last asked."""
        found: dict[str, str] = {}
        for path in _files_below(self.path / "refs"):
            with suppress(OSError, UnicodeError):
                found[path.relative_to(self.path / "refs").as_posix()] = path.read_text().strip()
        return found


# --- what is remembered -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What `list` shows of a header without reading it again."""

    n_params: int
    architecture: str | None
    label: str | None
    n_ctx_train: int | None

    @classmethod
    def of(cls, header: Header) -> Facts:
        return cls(header.n_params, header.architecture, header.quantization_label, header.n_ctx_train)


class State:
    """Remembers facts about files by path, size, mtime and inode, and when a model was last used.

    Only a memory: what can't be read or written (a full disk, a locked or damaged database) is as if forgotten.
    """

    _TABLES = """
        create table if not exists files (path text primary key, stamp text, sha256 text, facts text);
        create table if not exists used (model text primary key, at_s real);
        create table if not exists pulls (blob text primary key, repo text, file text, total integer);
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or database()

    def _run(self, *statements: tuple[str, tuple[object, ...]]) -> list[tuple[Any, ...]]:
        import sqlite3

        rows: list[tuple[Any, ...]] = []
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=2)) as db:
                # Losing the last moments of a memory in a power cut is no reason to wait for the disk.
                db.execute("pragma synchronous = off")
                self._prepare(db)
                with db:
                    for sql, values in statements:
                        rows = db.execute(sql, values).fetchall()
        except sqlite3.OperationalError:
            return []
        except sqlite3.DatabaseError:
            with suppress(OSError):
                self._path.unlink()
        except OSError:
            return []
        return rows

    def _prepare(self, db: sqlite3.Connection) -> None:
        if not db.execute("select 1 from sqlite_master where name = 'pulls'").fetchone():
            db.executescript(self._TABLES)

    def files(self) -> dict[str, tuple[str, str | None, Facts | None]]:
        """Everything remembered about files: path -> (stamp, sha256, facts)."""
        rows = self._run(("select path, stamp, sha256, facts from files", ()))
        return {path: (stamp, sha, _facts(text)) for path, stamp, sha, text in rows}

    def verified_sha256(self, path: Path) -> str | None:
        """What the file hashed to, if it is still the file that was hashed."""
        with suppress(OSError):
            real = os.path.realpath(path)
            rows = self._run(("select sha256 from files where path = ? and stamp = ?", (real, _stamp(path))))
            return rows[0][0] if rows else None
        return None

    def remember(self, path: Path, *, sha256: str | None = None, facts: Facts | None = None) -> None:
        """Adds to what is known of the file as it is now."""
        text = None if facts is None else json.dumps(vars(facts))
        with suppress(OSError):
            real = os.path.realpath(path)
            self._run(
                ("delete from files where path = ? and stamp <> ?", (real, _stamp(path))),
                (
                    "insert into files values (?, ?, ?, ?) on conflict (path) do update set "
                    "sha256 = coalesce(excluded.sha256, sha256), facts = coalesce(excluded.facts, facts)",
                    (real, _stamp(path), sha256, text),
                ),
            )

    def forget(self, path: Path) -> None:
        self._run(("delete from files where path = ?", (os.path.realpath(path),)))

    def last_used(self) -> dict[str, float]:
        return dict(self._run(("select model, at_s from used", ())))

    def used_now(self, key: str) -> None:
        self._run(("insert or replace into used values (?, ?)", (key, time.time())))

    def pull_begins(self, blob: Path, repo: str, file: str, total: int) -> None:
        """So that `list` can say of a partial whose it is and how much is missing."""
        self._run(("insert or replace into pulls values (?, ?, ?, ?)", (str(blob), repo, file, total)))

    def pull_ended(self, blob: Path) -> None:
        self._run(("delete from pulls where blob = ?", (str(blob),)))

    def pulls(self) -> dict[str, tuple[str, int]]:
        return {blob: (file, total) for blob, file, total in self._run(("select blob, file, total from pulls", ()))}


def _facts(text: str | None) -> Facts | None:
    try:
        return None if text is None else Facts(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


# --- what is there ----------------------------------------------------------------------------------------------------


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
        if self.repo.startswith(LOCAL):
            return self.repo
        level = quants.quant_of(self.file)
        return f"{self.repo}:{level}" if level else f"hf://{self.repo}/{self.file}"


@dataclass(frozen=True)
class Leftover:
    """Bytes on disk that are no model: an unfinished download, a damaged blob, a blob that nothing names.

    Attributes:
        kind: "partial" is ours and will be resumed, "incomplete" another tool's, "damaged" was set aside by `verify`
            or is an imported link whose file is gone, "orphan" is whole but has no name: one part of a split model
            whose pull is not finished, or the folder of an import that was killed.
        repo: "user/repo", or "local/name" for what is left of an import.
        file, total: what it is to become and how large, where known.
    """

    kind: Literal["partial", "incomplete", "damaged", "orphan"]
    repo: str
    path: Path
    size: int
    file: str | None = None
    total: int | None = None


def list_models(*, state: State | None = None, header_budget_s: float = _HEADER_BUDGET_S) -> list[StoredModel]:
    """All models here, by name. A thousand take well under a second.

    Headers that no earlier call has read are read for at most `header_budget_s` seconds, but some in any case, and the
    rest next time: their `n_params` is None until then.
    """
    state = state or State()
    known, used = state.files(), state.last_used()
    reader = _FactReader(state, known, time.monotonic() + header_budget_s)
    models = [reader.completed(found, used) for found in _all_found()]
    return sorted(models, key=lambda m: (m.repo.lower(), m.size, m.file))


def list_leftovers(*, state: State | None = None) -> list[Leftover]:
    """Unfinished, damaged and nameless files, for `list` to flag and `rm` to free."""
    pulls = (state or State()).pulls()
    found = [*_local_leftovers()]
    for folder in _repo_folders():
        linked: set[str] | None = None
        for entry in _entries(folder.blobs):
            base, _, suffix = entry.name.partition(".")
            if not SHA256.fullmatch(base) and not entry.name.endswith(_DAMAGED):
                continue
            kind: Literal["partial", "incomplete", "damaged", "orphan"]
            if suffix == "":
                if linked is None:
                    linked = {blob for blob in map(_blob_name, _files_below(folder.snapshots)) if blob}
                if base in linked:
                    continue
                kind = "orphan"
            elif suffix == "partial":
                kind = "partial"
            elif entry.name.endswith(_DAMAGED):
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
    for entry in _entries(paths.imported_models()):
        if not entry.is_dir(follow_symlinks=False):
            continue
        root = Path(entry.path)
        if entry.name.startswith("."):
            if name := _abandoned_import(root):
                yield Leftover("orphan", LOCAL + name, root, sum(_lsize(path) for path in _files_below(root)))
            continue
        for path in _files_below(root):
            if _is_damaged_rest(path):
                file = path.relative_to(root).as_posix().removesuffix(_DAMAGED)
                yield Leftover("damaged", LOCAL + entry.name, path, _lsize(path), file)


def _is_damaged_rest(path: Path) -> bool:
    """Whether this file of an import was set aside, or is a link to a file that is gone."""
    return path.name.endswith(_DAMAGED) or (path.is_symlink() and not path.exists())


def _abandoned_import(staging: Path) -> str | None:
    """The name that an import was to get whose process is no more; None if this is no such folder."""
    match = _STAGING.fullmatch(staging.name)
    if match is None:
        return None
    return None if fs.is_running(int(match["pid"])) else match["name"]


def _lsize(path: Path) -> int:
    """Bytes of a file; none of a link."""
    with suppress(OSError):
        status = path.lstat()
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return 0


def named(ref: HubFile, *, state: State | None = None) -> list[StoredModel]:
    """All that is here under the name of a reference, without asking the hub; incomplete models too.

    Without a level it can be several models of one repository; the same file with different content at several commits
    is several as well. A level is looked for in the files' names, and in the headers only where no name has it. A
    revision is any commit, branch or tag under which the model was found.
    """
    state = state or State()
    reader, used = _FactReader(state, state.files(), time.monotonic() + _HEADER_BUDGET_S), state.last_used()
    return [reader.completed(found, used) for found in _named(ref, reader)]


def choice(ref: HubFile, *, state: State | None = None) -> tuple[StoredModel, str] | None:
    """The one model of those `named` that is meant, whole; None if it is not here or not complete.

    No level named: Q4_K_M, else the nearest of those that are here. The text says why it is this one, in half a
    sentence for a person; empty when it is what was asked for, or the default.
    """
    state = state or State()
    reader = _FactReader(state, state.files(), time.monotonic() + _HEADER_BUDGET_S)
    found, why = [m for m in _named(ref, reader) if len(m.parts) == m.n_parts], ""
    if ref.file is None and found:
        # None: it was found by its header's level, of which no name knows.
        sizes = {m.file: m.size for m in found}
        if (chosen := quants.choose(sizes, ref.quant) or quants.choose(sizes)) is None:
            return None
        found = [m for m in found if m.file == chosen.file]
        if ref.quant is None and chosen.quant not in (None, quants.DEFAULT) and not ref.repo.lower().startswith(LOCAL):
            why = f"{chosen.why} here"
    if not found:
        return None
    # The same file in several commits: the main branch's, else one that a branch stands for, else the newest.
    refs = _refs_of(ref.repo)
    current = {*refs.values()}
    best = max(found, key=lambda m: (refs.get("main") in m.commits, bool(m.commits & current), m.mtime_s))
    return reader.completed(best, state.last_used()), why


def find(ref: HubFile, *, state: State | None = None) -> StoredModel | None:
    """The model of `choice`, without the reason."""
    found = choice(ref, state=state)
    return found[0] if found is not None else None


def _named(ref: HubFile, reader: _FactReader) -> list[_Found]:
    found = _found_in(ref.repo)
    if ref.revision is not None:
        commits = {ref.revision, *(c for name, c in _refs_of(ref.repo).items() if name == ref.revision)}
        found = [m for m in found if m.commits & commits]
    if ref.file is not None:
        wanted = ref.file.lower()
        return [m for m in found if wanted in m.names]
    if ref.quant is None:
        return found
    level = quants.normalize(ref.quant) or ref.quant
    if same := [m for m in found if quants.quant_of(m.file) == level]:
        return same
    if chosen := quants.choose({m.file: m.size for m in found}, level):
        return [m for m in found if m.file == chosen.file]
    return [m for m in found if quants.quant_of(m.file) is None and reader.label(m) == level]


def touch(model: StoredModel, *, state: State | None = None) -> None:
    """Notes that the model is used now."""
    (state or State()).used_now(f"{model.repo}/{model.file}")


@dataclass
class _Found:
    """A model as the folders show it, before anything was read."""

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


class _FactReader:
    def __init__(self, state: State, known: dict[str, tuple[str, str | None, Facts | None]], until_s: float) -> None:
        self._state, self._known, self._until_s = state, known, until_s
        self._n_read = 0

    def completed(self, found: _Found, used: dict[str, float]) -> StoredModel:
        facts = [self._facts(path) for path in found.parts]
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
            last_used_s=used.get(f"{found.repo}/{found.file}"),
            links=tuple(found.links),
        )

    def label(self, found: _Found) -> str | None:
        """The level that the header tells."""
        facts = self._facts(found.parts[0])
        return quants.normalize(facts.label) if facts and facts.label else None

    def _facts(self, path: Path) -> Facts | None:
        try:
            stamp, real = _stamp(path), os.path.realpath(path)
        except OSError:
            return None
        known = self._known.get(real)
        if known is not None and known[0] == stamp and known[2] is not None:
            return known[2]
        if self._n_read >= _HEADERS_AT_LEAST and time.monotonic() > self._until_s:
            return None
        self._n_read += 1
        try:
            facts = Facts.of(open_header(path))
        except LlmrunError:
            return None
        self._state.remember(path, facts=facts)
        return facts


def _all_found() -> Iterator[_Found]:
    for folder in _repo_folders():
        yield from _found_in_repo(folder)
    for entry in _entries(paths.imported_models()):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _found_in_folder(LOCAL + entry.name, None, Path(entry.path))


def _found_in(repo: str) -> list[_Found]:
    """What is here of one repository, its name in any case."""
    if repo.lower().startswith(LOCAL):
        names = (e.name for e in _entries(paths.imported_models()) if e.name.lower() == repo[len(LOCAL) :].lower())
        return [f for name in names for f in _found_in_folder(LOCAL + name, None, paths.imported_models() / name)]
    return [found for folder in _folders_of(repo) for found in _found_in_repo(folder)]


def _folders_of(repo: str) -> list[RepoFolder]:
    exact = RepoFolder.of(repo)
    if exact.path.is_dir():
        return [exact]
    return [folder for folder in _repo_folders() if folder.repo.lower() == repo.lower()]


def _refs_of(repo: str) -> dict[str, str]:
    return {name: commit for folder in _folders_of(repo) for name, commit in folder.refs().items()}


def _repo_folders() -> Iterator[RepoFolder]:
    for entry in _entries(paths.hub_cache()):
        if entry.name.startswith("models--") and entry.is_dir():
            yield RepoFolder(Path(entry.path))


def _found_in_repo(folder: RepoFolder) -> list[_Found]:
    """One entry per model and content: the same blobs in several snapshots are one model with several names."""
    merged: dict[tuple[str, tuple[str, ...]], _Found] = {}
    current = set(folder.refs().values())
    for entry in _entries(folder.snapshots):
        if not entry.is_dir(follow_symlinks=False):
            continue
        for found in _found_in_folder(folder.repo, entry.name, Path(entry.path)):
            key = (found.file, tuple(_blob_name(path) or str(path) for path in found.parts))
            if (same := merged.get(key)) is None:
                merged[key] = found
                continue
            # Shown under the commit that a branch stands for.
            kept, other = (found, same) if found.commit in current else (same, found)
            kept.links += other.links
            kept.commits |= other.commits
            merged[key] = kept
    return list(merged.values())


def _found_in_folder(repo: str, commit: str | None, root: Path) -> list[_Found]:
    groups: dict[tuple[str, ...], list[tuple[str, Path, os.stat_result]]] = {}
    for path in _files_below(root):
        name = path.relative_to(root).as_posix()
        if not quants.is_model_file(name):
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
            )
        )
    return found


def _blob_name(pointer: Path) -> str | None:
    """The name of the blob that a snapshot's link points to, by one step only; None if it is no such link."""
    try:
        target = pointer.readlink()
    except OSError:
        return None
    return target.name if target.parent.name == "blobs" else None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda e: e.name)
    except OSError:
        return []


def _files_below(root: Path) -> Iterator[Path]:
    """Files and links below a folder; linked folders are not entered."""
    for entry in _entries(root):
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(Path(entry.path))
        elif entry.is_symlink() or entry.is_file():
            yield Path(entry.path)


# --- verify -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verifying:
    """`done` of `total` bytes of one file have been read."""

    model: StoredModel
    file: str
    done: int
    total: int


@dataclass(frozen=True)
class Verdict:
    """`ok` None: nobody has promised a checksum for this file, so what it hashes to has been noted for the next time.

    `set_aside` is where a damaged blob went; None for a damaged file that is not ours (an import by link), for one that
    could not be moved (a store that is read-only; the reason says so), and for a part that is `missing`.
    """

    model: StoredModel
    file: str
    ok: bool | None
    reason: str = ""
    set_aside: Path | None = None
    missing: bool = False


def hash_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """The sha256 of a file in 64 hex digits; `on_bytes` gets the bytes read so far, once per chunk."""
    sha, buffer, done = hashlib.sha256(), bytearray(HASH_CHUNK_BYTES), 0
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            sha.update(view[:n])
            done += n
            if on_bytes is not None:
                on_bytes(done)
    return sha.hexdigest()


def verify(
    models: Iterable[StoredModel],
    on_event: Callable[[Verifying], None] | None = None,
    *,
    state: State | None = None,
) -> list[Verdict]:
    """Reads every byte again. What is damaged is set aside, so that nothing sees it and a pull brings it anew.

    All of a model's files are judged before any is set aside, and one damaged part makes the whole model unseen only
    by that part: the others are kept for the next pull. A part that is not here has a verdict too. Raises `DiskError`
    for a file that can't be read for another reason than damage.
    """
    state = state or State()
    verdicts: list[Verdict] = []
    for model in models:
        here = {path.name: path for path in model.parts}
        for part in quants.split_parts(model.file):
            name = part.rpartition("/")[2]
            if name in here:
                verdicts.append(_verify_file(model, here[name], on_event, state))
            else:
                verdicts.append(Verdict(model, name, False, "is not here", missing=True))
    return verdicts


def _verify_file(model: StoredModel, path: Path, on_event: Callable[[Verifying], None] | None, state: State) -> Verdict:
    expected = _promised_sha256(model, path, state)

    def on_bytes(done: int) -> None:
        if on_event is not None:
            on_event(Verifying(model, path.name, done, total))

    try:
        total = path.stat().st_size
        found = hash_file(path, on_bytes)
    except FileNotFoundError:
        # Set aside a moment ago under another name, or removed by somebody.
        return Verdict(model, path.name, False, "is not here any more", missing=True)
    except OSError as error:
        if error.errno != errno.EIO:
            raise disk_error(error, f"verifying {model.name}") from error
        # An unreadable sector is damage as well: the blob goes aside, and its place on the disk with it.
        found, reason = "", f"cannot be read: {error.strerror}"
    else:
        reason = f"has sha256 {found[:12]}…, it must be {expected[:12] if expected else ''}…"
    if expected is None and found:
        state.remember(path, sha256=found)
        _note_sha256(path, found)
        return Verdict(model, path.name, None, "no checksum was known; this one is noted for the next time")
    if found == expected:
        state.remember(path, sha256=found)
        return Verdict(model, path.name, True)
    try:
        return Verdict(model, path.name, False, reason, _set_aside(model, path, state))
    except OSError as error:
        return Verdict(model, path.name, False, f"{reason}; it can't be set aside: {error.strerror}")


def _promised_sha256(model: StoredModel, path: Path, state: State) -> str | None:
    if (blob := _blob_name(path)) is not None and SHA256.fullmatch(blob):
        return blob
    if model.repo.startswith(LOCAL):
        noted = _import_note(path.parent).get("sha256", {}).get(path.name)
        return str(noted) if noted else None
    return state.verified_sha256(path)


def _set_aside(model: StoredModel, path: Path, state: State) -> Path | None:
    """Takes a damaged file out of sight; where it is then. Raises `OSError` if the store can't be changed."""
    state.forget(path)
    if model.commit is None:
        if path.is_symlink():  # somebody else's file: only our name for it goes
            path.unlink()
            _tidy_local(paths.imported_models() / model.repo.removeprefix(LOCAL))
            return None
        aside = path.with_name(path.name + _DAMAGED)
        path.replace(aside)
        return aside
    folder = _folder_of_pointer(path, model.commit)
    blob = _blob_name(path)
    # The names first: from here on nothing finds the blob, whatever happens next.
    for pointer in list(_files_below(folder.snapshots)):
        if pointer == path or (blob is not None and _blob_name(pointer) == blob):
            pointer.unlink(missing_ok=True)
    source = folder.blob(blob) if blob is not None else path
    aside = folder.blobs / f"{blob or path.name}{_DAMAGED}"
    # A blob that another tool shares among repositories: its bytes go aside, not only our link to them.
    real = _shared_payload(source)
    (real or source).replace(aside)
    if real is not None:
        source.unlink(missing_ok=True)
    return aside


def _folder_of_pointer(path: Path, commit: str) -> RepoFolder:
    for parent in path.parents:
        if parent.name == commit and parent.parent.name == "snapshots":
            return RepoFolder(parent.parent.parent)
    raise AssertionError(f"{path} is in no snapshot")


# --- remove -----------------------------------------------------------------------------------------------------------


def remove(models: Iterable[StoredModel], *, state: State | None = None) -> int:
    """Removes models and returns the bytes that this freed on disk.

    A blob goes when no name in its repository leads to it any more. Only names and blobs inside the cache are ever
    deleted, by their own directory entry: a link is unlinked, never followed. Raises `UsageError` if one is being
    pulled, `DiskError`.
    """
    state = state or State()
    freed = 0
    for model in models:
        with disk_errors(f"removing {model.name}"):
            if model.commit is None:
                freed += _remove_local(model)
            else:
                freed += _remove_from_cache(model, state)
        for path in model.parts:
            state.forget(path)
    return freed


def remove_leftovers(leftovers: Iterable[Leftover], *, state: State | None = None) -> int:
    """Frees unfinished and damaged files; returns the bytes. What is being pulled or imported now is left alone."""
    state = state or State()
    freed = 0
    for item in leftovers:
        if paths.imported_models() in item.path.parents:
            with disk_errors(f"removing {item.path.name}"):
                freed += _remove_local_leftover(item)
            continue
        folder = RepoFolder(item.path.parent.parent)
        sha256 = item.path.name.partition(".")[0]
        with suppress(UsageError), disk_errors(f"removing {item.path.name}"), blob_lock(folder, sha256):
            freed += _unlink(item.path)
            state.pull_ended(folder.blob(sha256))
            tidy(folder)
    return freed


def _remove_local(model: StoredModel) -> int:
    root = paths.imported_models() / model.repo.removeprefix(LOCAL)
    files = [path for path in _files_below(root) if path in model.parts or _is_damaged_rest(path)]
    freed = sum(map(_unlink, files))
    _tidy_local(root)
    return freed


def _remove_local_leftover(item: Leftover) -> int:
    if item.path.parent == paths.imported_models():
        if _abandoned_import(item.path) is None:
            return 0
        shutil.rmtree(item.path)
        return item.size
    freed = _unlink(item.path)
    _tidy_local(paths.imported_models() / item.path.relative_to(paths.imported_models()).parts[0])
    return freed


def _tidy_local(root: Path) -> None:
    """Removes an import's folder when only the note about it is left."""
    files = [*_files_below(root)]
    if all(map(_is_note, files)):
        for path in files:
            _unlink(path)
        _remove_empty(root, stop=paths.imported_models())


def _is_note(path: Path) -> bool:
    return path.name == _IMPORT_NOTE or path.name.startswith(f".{_IMPORT_NOTE}.")


def _remove_from_cache(model: StoredModel, state: State) -> int:
    assert model.commit is not None
    folder = _folder_of_pointer(model.path, model.commit)
    cache = paths.hub_cache()
    if folder.path.parent != cache:
        raise UsageError(f"{printable(str(folder.path))} is not in the cache {cache}")
    blobs = dict.fromkeys(blob for pointer in model.links if (blob := _blob_name(pointer)) not in (None, ".", ".."))
    freed = 0
    with ExitStack() as locks:
        for blob in blobs:
            locks.enter_context(blob_lock(folder, str(blob)))
        for pointer in model.links:
            # A file instead of a link: how other tools store where the file system has no links.
            freed += _unlink(pointer)
            _remove_empty(pointer.parent, stop=folder.snapshots)
        still_named = {_blob_name(pointer) for pointer in _files_below(folder.snapshots)}
        for blob in blobs:
            if blob in still_named:
                continue
            path = folder.blob(str(blob))
            payload = _shared_payload(path)
            state.forget(path)
            freed += _unlink(path)
            if payload is not None:
                freed += _remove_shared(payload)
    tidy(folder)
    return freed


def _shared_payload(blob: Path) -> Path | None:
    """Where a blob's bytes are if it is another tool's link into the cache's own store of shared blobs."""
    try:
        target = Path(os.path.normpath(blob.parent / blob.readlink()))
    except OSError:
        return None
    shared = Path(os.path.normpath(paths.hub_cache())) / "blobs"
    inside = target.parent.parent == shared and SHA256.fullmatch(target.name) and target.parent.name == target.name[:2]
    return target if inside and target.is_file() and not target.is_symlink() else None


def _remove_shared(payload: Path) -> int:
    """Frees a shared blob, under the lock that huggingface_hub takes, unless another repository still links to it."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(str(payload) + ".lock", timeout=2):
            for entry in _entries(paths.hub_cache()):
                if "--" in entry.name and entry.is_dir():
                    for blob in _entries(Path(entry.path) / "blobs"):
                        if blob.is_symlink() and os.path.realpath(blob.path) == os.path.realpath(payload):
                            return 0
            freed = _unlink(payload)
            _unlink(payload.with_name(payload.name + ".refs"))
            return freed
    except (Timeout, OSError, NotImplementedError):
        return 0  # left to its owner


def tidy(folder: RepoFolder) -> None:
    """Removes refs to snapshots that are gone, and the repository's folder when nothing but its skeleton is left."""
    for name, commit in folder.refs().items():
        if not (folder.snapshots / commit).is_dir() or not _COMMIT.fullmatch(commit):
            _unlink(folder.path / "refs" / name)
            _remove_empty((folder.path / "refs" / name).parent, stop=folder.path / "refs")
    for staged in (*folder.blobs.glob("*.link"), *folder.path.glob(".*.tmp")):
        _unlink(staged)  # of a pull that died between two steps
    if next(_files_below(folder.snapshots), None) is None and not _entries(folder.blobs):
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


# --- import -----------------------------------------------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Copying:
    """`done` of `total` bytes of an import have been copied."""

    file: str
    done: int
    total: int


def import_file(
    path: Path,
    *,
    copy: bool,
    name: str | None = None,
    on_event: Callable[[Copying], None] | None = None,
    state: State | None = None,
) -> StoredModel:
    """Makes a local GGUF file (all parts of a split one) a model called `local/<name>`, by link or by copy.

    Raises `BadModel` if it is none that can be run, `NotFound` for a missing file or part, `UsageError` for a name
    that is taken (see `is_taken`) or unfit, `DiskError`.
    """
    state = state or State()
    path = path.expanduser()
    # A link must not go through the current folder as somebody wrote it ("..", links): that may change.
    path = path.parent.resolve() / path.name
    if not quants.is_model_file(path.name):
        raise BadModel(f"{printable(path.name)} is not named like a model file (.gguf)")
    sources = [path.with_name(part) for part in quants.split_parts(path.name)]
    for source in sources:
        if not source.exists():
            raise NotFound(f"no such file: {printable(str(source), 200)}")
    header = open_header(sources[0])
    if len(sources) == 1:
        open_runnable(sources[0])
    name = name.lower().removeprefix(LOCAL) if name else _name_from(path)
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{printable(name)}' is no name for a model: letters, digits, '.', '_' and '-'")
    root = paths.imported_models() / name
    if is_taken(name):
        raise UsageError(f"local/{name} exists already", hint=f"llmrun rm local/{name}")
    with disk_errors(f"importing {printable(path.name)}"):
        total = sum(source.stat().st_size for source in sources)
        paths.imported_models().mkdir(parents=True, exist_ok=True)
        if copy:
            hint = "without --copy a link leads to the file; or set LLMRUN_HOME to a folder on a larger disk"
            check_space(paths.imported_models(), total, what=path.name, hint=hint)
        # All of it under a name that nothing lists, then one rename.
        staging = paths.imported_models() / f".{name}.{os.getpid()}"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir()
            _fill(staging, sources, copy=copy, total=total, on_event=on_event)
            if os.path.lexists(root) and not is_taken(name):
                shutil.rmtree(root)
            staging.rename(root)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        fsync_folder(paths.imported_models())
    state.remember(root / sources[0].name, facts=Facts.of(header))
    (found,) = _found_in_folder(LOCAL + name, None, root)
    return _FactReader(state, state.files(), time.monotonic() + _HEADER_BUDGET_S).completed(found, {})


def is_taken(name: str) -> bool:
    """Whether `local/<name>` is a model, or a folder with anything that is not ours.

    What `verify` has set aside, links to files that are gone and a split model that lacks a part are no model: an
    import takes their place.
    """
    root = paths.imported_models() / name.lower().removeprefix(LOCAL)
    if root.is_symlink() or not root.is_dir():
        return os.path.lexists(root)
    if any(len(found.parts) == found.n_parts for found in _found_in_folder(LOCAL + name, None, root)):
        return True
    files = _files_below(root)
    return not all(_is_note(path) or _is_damaged_rest(path) or quants.is_model_file(path.name) for path in files)


def _fill(
    staging: Path, sources: list[Path], *, copy: bool, total: int, on_event: Callable[[Copying], None] | None
) -> None:
    done = 0
    note: dict[str, Any] = {"from": [str(source) for source in sources], "sha256": {}}
    for source in sources:
        target = staging / source.name
        if not copy:
            target.symlink_to(source)
            continue
        sha = hashlib.sha256()
        with source.open("rb", buffering=0) as src, target.open("xb", buffering=0) as dst:
            while chunk := src.read(HASH_CHUNK_BYTES):
                sha.update(chunk)
                write_all(dst.fileno(), chunk)
                done += len(chunk)
                if on_event is not None:
                    on_event(Copying(source.name, done, total))
            os.fsync(dst.fileno())
        note["sha256"][source.name] = sha.hexdigest()
    (staging / _IMPORT_NOTE).write_text(json.dumps(note))


def _name_from(path: Path) -> str:
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.name.removesuffix(".gguf"))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._").lower()[:96]


def _import_note(root: Path) -> dict[str, Any]:
    try:
        note = json.loads((root / _IMPORT_NOTE).read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) and isinstance(note.get("sha256"), dict) else {}


def _note_sha256(path: Path, sha256: str) -> None:
    if note := _import_note(path.parent):
        note["sha256"][path.name] = sha256
        with suppress(OSError):
            write_atomically(path.parent / _IMPORT_NOTE, json.dumps(note))
