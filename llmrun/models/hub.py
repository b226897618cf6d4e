"""The only door to the model hub and to huggingface_hub: asks, resolves, pulls, reads remote headers, searches.

A pull, step by step, and the reason for each:

1. `resolve` asks the hub once for commit, sizes and sha256 of every file. From here on the *commit* is pinned: a push
   to the branch in the middle of a pull changes nothing.
2. One lock per blob, the one that huggingface_hub takes as well, held until the files have their names. Who has to wait
   says so, and takes over if the holder dies.
3. The bytes go to `blobs/<sha256>.partial`, each as soon as it arrives, so a killed process loses only what was in the
   socket. A thread behind the download reads the file again and hashes it: what is verified is what is in the file,
   and on resume the old bytes are hashed while new ones arrive. (A hash state can't be saved, the bytes can.)
4. Before every request the hub is asked again, at the pinned commit, for a fresh signed URL, and whether the file still
   is what it promised.
5. The header is checked as soon as enough of it is here: a model that can't run is refused after a few MB.
6. Only when the sha256 is right: fsync, rename to `blobs/<sha256>`, then the link in `snapshots/`, which is what
   makes a file visible. All parts of a split model get their links together.

Why not `hf_hub_download` or `http_get`: the first starts at byte 0 after a kill and checks the size only; the second
retries inside with the URL that may have expired, keeps to itself that a server ignored the range, and writes in steps
of 10 MB. Why plain HTTP and not Xet: it does not resume after a kill either, and its chunks are not the bytes that we
hash as they arrive; the hub gives every file a plain URL as well.

Everything heavy is imported inside functions. Events are for showing: nothing here prints.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urljoin, urlsplit

from llmrun import __version__, fs, units
from llmrun.errors import BadModel, DiskError, IntegrityError, LlmrunError, NetworkError, NotFound, NotInStore
from llmrun.gguf.reader import Header, read_header
from llmrun.gguf.rules import check_runnable, whole_header
from llmrun.models import quants, store
from llmrun.models.store import SHA256, RepoFolder, State
from llmrun.text import printable

if TYPE_CHECKING:
    from llmrun.models.catalog import HubFile

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_SYNC_BYTES = 8 << 20
"""Written to the disk itself every so often, so that a power cut loses no more than this."""
_GOOD_PROGRESS_BYTES = 256 << 10
"""An attempt that brought this much was no failure in a row."""
_EARLY_CHECK_BYTES = 64 << 20
"""With less than this to go, a header is not checked before the sha256 is known."""
_CLEAR_ANSWERS = 3
"""So often in a row a server may say that its file is shorter than promised."""
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
_MAX_REDIRECTS = 5
_HEADER_STEPS = (1 << 20, 2 << 20, 4 << 20, 8 << 20)


@dataclass(frozen=True)
class Patience:
    """How long a pull waits, in seconds, and how often it tries again.

    Attributes:
        connect_s: for a connection.
        answer_s: for the hub's answer to a question; HF_HUB_ETAG_TIMEOUT, if set.
        read_s: for the next bytes of a file; HF_HUB_DOWNLOAD_TIMEOUT, if set.
        attempts: in a row without progress before giving up.
        pause_s: before the second attempt; doubles up to `max_pause_s`.
        window_bytes: the most that one request asks for; the hub's CDN does not serve more than 50 GB at once.
    """

    connect_s: float = 4.0
    answer_s: float = 6.0
    read_s: float = 10.0
    attempts: int = 5
    pause_s: float = 0.5
    max_pause_s: float = 8.0
    window_bytes: int = 32 << 30

    @classmethod
    def from_environment(cls) -> Patience:
        said = {"answer_s": "HF_HUB_ETAG_TIMEOUT", "read_s": "HF_HUB_DOWNLOAD_TIMEOUT"}
        found: dict[str, float] = {}
        for name, variable in said.items():
            with suppress(ValueError):
                found[name] = max(0.1, float(os.environ.get(variable, "")))
        return cls(**found)  # type: ignore[arg-type]  # the fields named above are floats

    @property
    def answer_timeout(self) -> Any:
        """In the form that the HTTP client takes: connect, read, write, pool."""
        return (min(self.connect_s, self.answer_s), self.answer_s, self.answer_s, self.answer_s)

    def pause(self, failures: int) -> float:
        return min(self.pause_s * 2.0 ** (failures - 1), self.max_pause_s)


# --- what the hub says ------------------------------------------------------------------------------------------------


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
    private: bool
    licence: str | None
    downloads: int | None = None
    tags: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[RepoFile, ...]:
        return tuple(file for file in self.files if quants.is_model_file(file.name))


@dataclass(frozen=True)
class Resolved:
    """What a reference means, exactly: these files at this commit.

    Attributes:
        quant: the quantization chosen; None if the file's name says none.
        why: why this one, for a person; empty when it was asked for by name.
        files: all parts of a split model, in order.
        revision: the branch or tag that was asked for; None when it was a commit.
    """

    repo: str
    commit: str
    quant: str | None
    why: str
    files: tuple[RepoFile, ...]
    revision: str | None = "main"
    gated: bool = False
    licence: str | None = None

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def name(self) -> str:
        return f"{self.repo}:{self.quant}" if self.quant else f"hf://{self.repo}/{self.files[0].name}"


def is_offline(offline: bool = False) -> bool:
    """Whether the network may not be used: asked for, or by HF_HUB_OFFLINE."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return offline or said.upper() in {"1", "ON", "YES", "TRUE"}


def model_info(repo: str, revision: str | None = None) -> RepoInfo:
    """Asks the hub about a repository. Raises `NotFound`, `NetworkError`, `IntegrityError` for a hostile answer."""
    from huggingface_hub import HfApi

    _check_repo(repo)
    patience = Patience.from_environment()

    def ask() -> Any:
        _session(patience)
        api = HfApi(library_name="llmrun", library_version=__version__)
        return api.model_info(repo, revision=revision, files_metadata=True, timeout=patience.answer_timeout)

    with _hub_errors(repo, revision):
        found = _with_retry(ask, patience)
    commit = str(found.sha)
    if not _COMMIT.fullmatch(commit):
        raise IntegrityError(f"the hub gives '{printable(commit)}' as commit of {repo}, which is none")
    return RepoInfo(
        repo=repo if repo.lower() != str(found.id).lower() else _checked_id(repo, str(found.id)),
        commit=commit,
        files=tuple(_repo_files(found.siblings or ())),
        gated=bool(found.gated),
        private=bool(found.private),
        licence=_licence(found),
        downloads=found.downloads if isinstance(found.downloads, int) else None,
        tags=tuple(str(tag) for tag in found.tags or ()),
    )


def resolve(ref: HubFile, *, offline: bool = False) -> Resolved:
    """Turns a reference into exact files, by one question to the hub; offline from what is stored.

    Raises `NotFound` (unknown repository, revision, file or quantization, or no access), `NetworkError`,
    `IntegrityError`; offline `NotInStore`.
    """
    if ref.repo.lower().startswith(store.LOCAL):
        raise NotInStore(f"there is no imported model called {ref}", hint="llmrun list")
    if is_offline(offline):
        return _resolve_from_store(ref)
    info = model_info(ref.repo, ref.revision)
    models = {file.name: file for file in info.models}
    if not models:
        raise NotFound(f"{info.repo} has no GGUF file", hint=f"llmrun search {info.repo.rpartition('/')[2]}")
    if ref.file is not None:
        first, why = _named_file(ref.file, info), ""
    else:
        first, why = _chosen_file(ref, info)
    names = quants.split_parts(first)
    missing = [name for name in names if name not in models]
    if missing:
        raise NotFound(f"{info.repo} lacks {len(missing)} of {len(names)} parts, {printable(missing[0])} first")
    files = tuple(models[name] for name in names)
    for file in files:
        _check_promise(file)
    revision = ref.revision or "main"
    return Resolved(
        repo=info.repo,
        commit=info.commit,
        quant=quants.quant_of(first),
        why=why,
        files=files,
        revision=None if _COMMIT.fullmatch(revision) else revision,
        gated=info.gated,
        licence=info.licence,
    )


def _resolve_from_store(ref: HubFile) -> Resolved:
    found = store.choice(ref)
    model, why = found if found is not None else (None, "")
    if model is None or model.commit is None:
        raise NotInStore(f"{_shown(ref)} is not on this machine, and the network may not be used", hint="llmrun list")
    files: list[RepoFile] = []
    names = quants.split_parts(model.file)
    for name, path in zip(names, model.parts, strict=True):
        blob = path.readlink().name if path.is_symlink() else ""
        files.append(RepoFile(name, path.stat().st_size, blob if SHA256.fullmatch(blob) else None))
    return Resolved(model.repo, model.commit, quants.quant_of(model.file), why, tuple(files), revision=None)


def _named_file(wanted: str, info: RepoInfo) -> str:
    """The first part of the file that was named, in any case if only one fits."""
    names = [file.name for file in info.models]
    found = [wanted] if wanted in names else [name for name in names if name.lower() == wanted.lower()]
    if len(found) != 1:
        raise NotFound(
            f"{info.repo} has no file {printable(wanted)}; it has {_listed(info)}", hint=f"llmrun show {info.repo}"
        )
    return quants.split_parts(found[0])[0]


def _chosen_file(ref: HubFile, info: RepoInfo) -> tuple[str, str]:
    chosen = quants.choose({file.name: file.size for file in info.models}, ref.quant)
    if chosen is None:
        raise NotFound(f"{info.repo} has no {ref.quant}; it has {_listed(info)}", hint=f"llmrun show {info.repo}")
    return chosen.file, chosen.why


def _listed(info: RepoInfo) -> str:
    """Quantizations with their sizes, smallest first: "Q4_K_M (2.3 GiB), Q8_0 (4.0 GiB)"."""
    return ", ".join(f"{offer.quant} ({units.size(offer.size)})" for offer in offers_of(info))


def _shown(ref: HubFile) -> str:
    rest = f"/{ref.file}" if ref.file else f":{ref.quant}" if ref.quant else ""
    return printable(f"{ref.repo}{rest}", 200)


def _repo_files(siblings: Sequence[Any]) -> Iterator[RepoFile]:
    for sibling in siblings:
        name, lfs = str(sibling.rfilename), sibling.lfs
        # A name that could lead out of the store does not exist for us. Nobody's honest file is called like that.
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


def _is_repo(name: str) -> bool:
    # "--" is what stands for "/" in the name of a repository's folder.
    return bool(_REPO.fullmatch(name)) and "--" not in name and ".." not in name


def _check_repo(repo: str) -> None:
    if not _is_repo(repo):
        raise NotFound(f"'{printable(repo, 120)}' can't be the name of a repository: it is like user/name")


def _checked_id(asked: str, answered: str) -> str:
    """The repository's name in its own spelling, so that it gets one folder whatever the user typed."""
    return answered if _is_repo(answered) else asked


def _check_promise(file: RepoFile) -> None:
    if file.sha256 is None or not SHA256.fullmatch(file.sha256):
        said = "none" if file.sha256 is None else f"'{printable(file.sha256)}'"
        raise IntegrityError(
            f"the hub gives no usable sha256 for {printable(file.name)} ({said}), so it can't be verified"
        )


def _licence(found: Any) -> str | None:
    for tag in found.tags or ():
        if str(tag).startswith("license:"):
            return printable(str(tag).removeprefix("license:"))
    return None


# --- asking -----------------------------------------------------------------------------------------------------------


def _session(patience: Patience) -> Any:
    """huggingface_hub's HTTP client, with time limits: of its own it has none for some calls."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import logging

    _check_token()
    # Its warnings repeat what a server says, control bytes and all; what matters comes as an error.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    client = get_session()
    client.timeout = (patience.connect_s, patience.read_s, patience.read_s, patience.read_s)
    return client


def _check_token() -> None:
    """Reads the token before the client does, which would blame the hub for it. Raises `DiskError`, `NotFound`."""
    from huggingface_hub import constants, get_token

    named = (name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name))
    where = next(named, printable(constants.HF_TOKEN_PATH, 200))
    hint = "set HF_TOKEN to one that works, or run: hf auth login"
    try:
        token = get_token()
    except OSError as error:
        raise fs.disk_error(error, f"reading the hub's token {where}") from error
    except UnicodeError as error:
        raise NotFound(f"the token in {where} is not text", hint=hint) from error
    if token and not re.fullmatch(r"[!-~]+", token):
        raise NotFound(f"the token in {where} has characters that no token has", hint=hint)


def _http_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    # huggingface_hub 1 is built on httpx, 2 on httpx2: so the client's errors are found and not named.
    from huggingface_hub.errors import HfHubHTTPError

    root = HfHubHTTPError.__bases__[0]
    library = sys.modules[root.__module__.partition(".")[0]]
    return root, library.InvalidURL, *more


def _with_retry(ask: Callable[[], Any], patience: Patience) -> Any:
    """A question to the hub; twice more after a server's own failure, once more when there is no answer at all."""
    for failures in range(1, 4):
        try:
            return ask()
        except _http_errors(OSError) as error:
            answered = hasattr(error, "response")
            if failures == (3 if answered else 2) or not _worth_retrying(error):
                raise
            time.sleep(max(patience.pause(failures), _retry_after(getattr(error, "response", None))))
    raise AssertionError("unreachable")


def _worth_retrying(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return not isinstance(error, OfflineModeIsEnabled)


def _retry_after(response: Any, at_most_s: float = 30.0) -> float:
    """What a busy server asks for, in seconds and within reason."""
    said = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(said), at_most_s) if said.isascii() and said.isdigit() else 0.0


@contextmanager
def _hub_errors(repo: str, revision: str | None = None, file: str | None = None) -> Iterator[None]:
    """Translates what huggingface_hub and its HTTP client raise into our errors, at this one seam."""
    from huggingface_hub import errors as hf

    try:
        yield
    except LlmrunError:
        raise
    except hf.OfflineModeIsEnabled as error:
        raise NotInStore(f"{repo} is not on this machine, and the network may not be used") from error
    except hf.HFValidationError as error:
        raise NotFound(f"'{printable(repo, 120)}' can't be the name of a repository: it is like user/name") from error
    except hf.GatedRepoError as error:
        raise NotFound(
            f"{repo} is gated: its terms must be accepted first",
            hint=f"accept them on {_endpoint()}/{repo}, then set HF_TOKEN or run: hf auth login",
        ) from error
    except hf.RevisionNotFoundError as error:
        raise NotFound(
            f"{repo} has no revision '{printable(revision or 'main')}'", hint=f"llmrun show {repo}"
        ) from error
    except hf.RepositoryNotFoundError as error:
        raise NotFound(
            f"the hub knows no {repo}, or shows it only to some",
            hint=f"llmrun search {repo.rpartition('/')[2]}; if it is private: set HF_TOKEN or run: hf auth login",
        ) from error
    except hf.EntryNotFoundError as error:
        raise NotFound(f"{repo} has no file {printable(file or '')}", hint=f"llmrun show {repo}") from error
    except hf.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise NotFound(
                f"the hub refuses access to {repo} ({status})", hint="set HF_TOKEN or run: hf auth login"
            ) from error
        raise NetworkError(f"the hub answers with an error about {repo} ({status})", hint="try again later") from error
    except _http_errors(ConnectionError, TimeoutError) as error:
        raise _network_error(error) from error
    except OSError as error:
        # The client's own files: certificates, the folder of the login.
        raise fs.disk_error(error, f"asking the hub about {repo}") from error
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        # Not JSON, or not the fields that it must have: a captive portal, or no hub at all.
        raise NetworkError(f"the hub's answer about {repo} can't be understood ({type(error).__name__})") from error


def _network_error(error: Exception, doing: str = "") -> NetworkError:
    host = urlsplit(_endpoint()).netloc
    if not re.match(r"https?://[^/]", _endpoint()):
        where = printable(_endpoint(), 120)
        return NetworkError(f"HF_ENDPOINT is '{where}', which is no web address", hint="unset HF_ENDPOINT")
    return NetworkError(
        f"{doing or f'the hub ({host}) can not be reached'}: {_reason(error)}",
        hint="check the network, or use what is here: llmrun list",
    )


def _reason(error: BaseException) -> str:
    text = printable(str(error).strip().partition("\n")[0], 120)
    kind = type(error).__name__
    known = {
        "ConnectTimeout": "no connection in time",
        "ReadTimeout": "it went silent",
        "RemoteProtocolError": "the connection was closed early",
        "ReadError": "the connection broke",
    }
    return known.get(kind) or text or kind


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


# --- events of a pull -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """The pull of one file begins; `resumed_at` of its bytes are here already."""

    file: str
    total: int
    resumed_at: int


@dataclass(frozen=True)
class Progress:
    """`done` of `total` bytes of one file are here, `hashed` of them verified so far; at most ten events a second."""

    file: str
    done: int
    total: int
    hashed: int


@dataclass(frozen=True)
class Checking:
    """Bytes that are here already, from another tool or an earlier pull, are being hashed."""

    file: str
    done: int
    total: int


@dataclass(frozen=True)
class Waiting:
    """Another process is pulling this file; it has `done` bytes. Repeated once a second."""

    file: str
    done: int
    total: int


@dataclass(frozen=True)
class Retrying:
    """An attempt failed for `reason`; the next begins in `pause_s`."""

    file: str
    reason: str
    failures: int
    attempts: int
    pause_s: float


@dataclass(frozen=True)
class StartedOver:
    """What was here could not be used, for `reason`; the file is fetched from its first byte."""

    file: str
    reason: str


@dataclass(frozen=True)
class Finished:
    """One file is here and verified; `fetched` of its bytes came over the network in this call."""

    file: str
    total: int
    fetched: int
    seconds: float


Event = Started | Progress | Checking | Waiting | Retrying | StartedOver | Finished
OnEvent = Callable[[Event], None]


# --- pull -------------------------------------------------------------------------------------------------------------


def missing_bytes(resolved: Resolved) -> int:
    """What a pull would fetch: all that is neither here nor in a partial."""
    folder = RepoFolder.of(resolved.repo)
    missing = 0
    for file in resolved.files:
        here = 0
        for path in (*_places(resolved, file, folder), folder.partial(str(file.sha256))):
            with suppress(OSError):
                here = max(here, path.stat().st_size)
        missing += max(0, file.size - here)
    return missing


def _places(resolved: Resolved, file: RepoFile, folder: RepoFolder) -> tuple[Path, Path]:
    """Where a finished file may be: among the blobs, or under its name on a file system without links."""
    return folder.blob(str(file.sha256)), folder.pointer(resolved.commit, file.name)


def pull(
    resolved: Resolved,
    on_event: OnEvent | None = None,
    *,
    offline: bool = False,
    patience: Patience | None = None,
    state: State | None = None,
) -> Path:
    """Brings all files of a model into the cache, verified, and returns the path of the first.

    May be killed at any point and called again: it goes on where it was. Raises `NetworkError` when the hub or the
    network gives up, `IntegrityError` when the bytes are not those promised, `DiskError` before or when the disk is
    full, `BadModel` when the file is no model that can be run, `NotFound`, and offline `NotInStore`.
    """
    folder = RepoFolder.of(resolved.repo)
    state = state or State()
    on_event = on_event or (lambda _event: None)
    for file in resolved.files:
        if not is_safe_name(file.name):
            raise IntegrityError(f"the file name '{printable(file.name)}' would lead out of the store")
    if not _COMMIT.fullmatch(resolved.commit):
        raise IntegrityError(f"'{printable(resolved.commit)}' is no commit")
    if is_offline(offline):
        return _pulled_offline(resolved, folder)
    for file in resolved.files:
        _check_promise(file)
    if _is_admitted(resolved, folder, state):
        for file in resolved.files:
            on_event(Finished(file.name, file.size, 0, 0.0))
        with suppress(OSError):  # a store that is read-only is good enough to read from
            _note_ref(resolved, folder)
        return folder.pointer(resolved.commit, resolved.files[0].name)
    room = "llmrun rm MODEL, or set HF_HUB_CACHE to a folder on a larger disk"
    fs.check_space(folder.path, missing_bytes(resolved), what=resolved.name, hint=room)
    patience = patience or Patience.from_environment()
    with fs.disk_errors(f"pulling {resolved.name}"):
        # Both: a repository without `snapshots` is one that huggingface_hub warns about.
        for path in (folder.blobs, folder.snapshots):
            path.mkdir(parents=True, exist_ok=True)
        try:
            with _locked(resolved, folder, on_event):
                for file in resolved.files:
                    _BlobPull(resolved, file, folder, on_event, patience, state).run()
                _check_whole(resolved, folder)
                return _admit(resolved, folder)
        except BadModel:
            store.tidy(folder)
            raise


@contextmanager
def _locked(resolved: Resolved, folder: RepoFolder, on_event: OnEvent) -> Iterator[None]:
    """One process at a time has a blob; the others wait, and one of them takes over should it die.

    All of a model's at once, until its files have their names: a finished part that has none yet is not `rm`'s to free.
    In one order for everybody, so that no two wait for each other.
    """
    with ExitStack() as locks:
        for sha256 in sorted({str(file.sha256) for file in resolved.files}):
            locks.enter_context(_blob_locked(resolved, sha256, folder, on_event))
        yield


@contextmanager
def _blob_locked(resolved: Resolved, sha256: str, folder: RepoFolder, on_event: OnEvent) -> Iterator[None]:
    from filelock import FileLock, Timeout

    path = folder.lock(sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(path))
    patience_s = 0.0
    while True:
        try:
            lock.acquire(timeout=patience_s, poll_interval=0.1)
            break
        except Timeout:
            patience_s = 1.0
            on_event(_waiting(resolved, folder))
        except NotImplementedError:
            # Some network file systems. Without locks two pulls could write one partial.
            raise DiskError(
                f"the disk of {printable(str(path.parent), 200)} can't lock files",
                hint="set HF_HUB_CACHE to a folder on a local disk",
            ) from None
    try:
        yield
    finally:
        lock.release()


def _waiting(resolved: Resolved, folder: RepoFolder) -> Waiting:
    """Which file another process is at, as the folder shows it: the one with a partial, else the first not here."""

    def state_of(file: RepoFile) -> tuple[int, int]:
        for order, path in enumerate((folder.partial(str(file.sha256)), folder.blob(str(file.sha256)))):
            with suppress(OSError):
                return 2 * order, path.stat().st_size
        return 1, 0

    (_, done), file = min(((state_of(file), file) for file in resolved.files), key=lambda pair: pair[0][0])
    return Waiting(file.name, done, file.size)


def _pulled_offline(resolved: Resolved, folder: RepoFolder) -> Path:
    pointers = [folder.pointer(resolved.commit, file.name) for file in resolved.files]
    if not all(pointer.is_file() for pointer in pointers):
        raise NotInStore(f"{resolved.name} is not on this machine, and the network may not be used", hint="llmrun list")
    return pointers[0]


def _check_whole(resolved: Resolved, folder: RepoFolder) -> None:
    """The rules that concern all parts of a split model together: the keys are in the first, tensors in each."""
    from llmrun.gguf.reader import open_header

    if len(resolved.files) == 1:
        return  # has been checked while it arrived
    places = [_places(resolved, file, folder) for file in resolved.files]
    headers = [open_header(blob if blob.exists() else pointer) for blob, pointer in places]
    names = [file.name for file in resolved.files]
    try:
        whole_header(list(zip(names, headers, strict=True)))
    except BadModel as error:
        raise BadModel(f"{resolved.name}: {error.message}", remedies=error.remedies) from None


def _is_admitted(resolved: Resolved, folder: RepoFolder, state: State) -> bool:
    """Whether all of it is here, known to be verified, under its names: then nothing has to be locked or written."""
    for file in resolved.files:
        pointer = folder.pointer(resolved.commit, file.name)
        if not pointer.exists() or state.verified_sha256(pointer) != file.sha256:
            return False
    return True


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


class _Broken(Exception):
    """An attempt failed in a way that the next may not.

    `short`: the server said clearly that what it has is not as long as the hub promised.
    """

    def __init__(self, reason: str, *, pause_s: float = 0.0, short: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.pause_s, self.short = reason, pause_s, short


class _RangeRefused(_Broken):
    """The server does not go on where we are."""


@dataclass(frozen=True)
class _Body:
    """An answer with bytes: `first` is the offset of the next byte in the file."""

    response: Any
    first: int


class _Remote:
    """One file on the hub, at the pinned commit: where its bytes are now, and the requests for them."""

    def __init__(self, resolved: Resolved, file: RepoFile, patience: Patience) -> None:
        self._resolved, self._file, self._patience = resolved, file, patience

    def locate(self) -> str:
        """Asks the hub, at the pinned commit, where the bytes are, and that they still are what it promised.

        A signed URL, so good for minutes only. Raises `NetworkError` where asking again may help.
        """
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        resolved, file = self._resolved, self._file
        with _hub_errors(resolved.repo, resolved.commit, file.name):
            _session(self._patience)
            url = hf_hub_url(resolved.repo, file.name, revision=resolved.commit)
            found = get_hf_file_metadata(
                url, timeout=self._patience.answer_timeout, library_name="llmrun", library_version=__version__
            )
        size = found.size if found.size is not None else file.size
        for what, said, before in (
            ("commit", found.commit_hash, resolved.commit),
            ("sha256", found.etag, file.sha256),
            ("size", f"{size:,}", f"{file.size:,}"),
        ):
            if said != before:
                raise IntegrityError(
                    f"the hub contradicts itself about {printable(file.name)}: "
                    f"{what} {printable(str(said), 40)}, a moment ago {printable(str(before), 40)}",
                    hint=f"llmrun pull {resolved.name}",
                )
        return urljoin(url, found.location)

    @contextmanager
    def body(self, url: str, first: int, end: int) -> Iterator[_Body]:
        """The bytes of the file from `first` up to (at most) `end`. Raises `_Broken`.

        The answer may begin at 0 instead, when the server does not do ranges. What it says about the file's length is
        compared with the promise before a byte of it is taken.
        """
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers = build_hf_headers(library_name="llmrun", library_version=__version__)
        headers["Accept-Encoding"] = "identity"
        if first > 0 or end < self._file.size:
            headers["Range"] = f"bytes={first}-{end - 1}"
        client = _session(self._patience)
        for _ in range(_MAX_REDIRECTS + 1):
            if _origin(url) != _origin(_endpoint()):
                # A signed URL needs no token, and another host must not see it.
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            with client.stream("GET", url, headers=headers, follow_redirects=False) as response:
                if response.status_code in (301, 302, 303, 307, 308):
                    url = urljoin(url, response.headers.get("Location", ""))
                    continue
                yield _Body(response, self._checked_start(response, first))
                return
        raise _Broken("the server sends from one address to the next")

    def _checked_start(self, response: Any, first: int) -> int:
        """Offset of the answer's first byte."""
        status, headers, size = response.status_code, response.headers, self._file.size
        if status == 416:
            raise _RangeRefused(f"the server refuses to go on at byte {first:,}", short=True)
        if status in (401, 403, 404, 410):
            raise _Broken(f"the address that the hub gave no longer works ({status})")
        if status not in (200, 206):
            raise _Broken(f"the server answers {status}", pause_s=_retry_after(response))
        if headers.get("Content-Encoding", "identity") != "identity":
            raise _Broken("the server compresses what must come as it is")
        if status == 200:
            length = headers.get("Content-Length", str(size))
            if length != str(size):
                raise _Broken(f"the server's file has {printable(length, 20)} bytes, not {size:,}", short=True)
            return 0
        found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", headers.get("Content-Range", ""))
        if not found or int(found[1]) != first:
            raise _RangeRefused(f"the server does not go on at byte {first:,}")
        if found[3] not in ("*", str(size)):
            raise _Broken(f"the server's file has {int(found[3]):,} bytes, not {size:,}", short=True)
        return first


def _origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address that can be asked. Raises `_Broken`."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}[parts.scheme]
    except (ValueError, KeyError):
        raise _Broken(f"the hub gave an address that is none: {printable(url)}") from None
    return parts.scheme, parts.hostname or "", port


class _Hasher(threading.Thread):
    """Hashes a file while it grows, from its first byte, reading it again: so what is hashed is what is in the file.

    It also asks the kernel every `_SYNC_BYTES` to write to the disk. Both let go of Python's lock, so the download is
    not slowed down.
    """

    def __init__(self, path: Path, available: int) -> None:
        super().__init__(daemon=True, name="llmrun-hash")
        self.hashed = 0
        self._available = available
        self._path = path
        self._sha = hashlib.sha256()
        self._more, self._last, self._stopped = threading.Event(), False, False
        self._error: OSError | None = None
        self.start()

    def advance(self, available: int) -> None:
        """The file has grown to `available` bytes."""
        self._available = available
        self._more.set()

    def finish(self, on_wait: Callable[[], None]) -> str:
        """All bytes are there: the digest. `on_wait` is called while there is something left to hash."""
        self._last = True
        self._more.set()
        while self.is_alive():
            self.join(0.1)
            on_wait()
        if self._error is not None:
            raise self._error
        return self._sha.hexdigest()

    def stop(self) -> None:
        self._stopped = True
        self._more.set()
        # Not for long: it may be waiting for a slow disk, and a user has pressed Ctrl-C.
        self.join(0.5)

    def run(self) -> None:
        try:
            with self._path.open("rb+", buffering=0) as file:
                self._hash(file)
        except OSError as error:
            self._error = error

    def _hash(self, file: Any) -> None:
        buffer = bytearray(store.HASH_CHUNK_BYTES)
        view = memoryview(buffer)
        synced = self._available
        sync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
        while not self._stopped:
            if self._available - synced >= _SYNC_BYTES:
                synced = self._available
                sync(file.fileno())
            wanted = min(len(buffer), self._available - self.hashed)
            if wanted > 0:
                n = file.readinto(view[:wanted])
                self._sha.update(view[:n])
                self.hashed += n
            elif self._last:
                return
            else:
                self._more.wait()
                self._more.clear()


class _NotYet(Exception):
    """The header is not all here yet."""


class _GrowingFile:
    """The part of a file that is here, as a source for `read_header`, which sees the size that it will have."""

    def __init__(self, fd: int, available: int, size: int) -> None:
        self.size: int | None = size
        self._fd, self._at, self._available = fd, 0, available

    def read(self, n: int, /) -> bytes:
        data = os.pread(self._fd, min(n, self._available - self._at), self._at)
        if not data and self._at < (self.size or 0):
            raise _NotYet
        self._at += len(data)
        return data


class _BlobPull:
    """One file on its way into `blobs/`, whose lock we have."""

    def __init__(
        self,
        resolved: Resolved,
        file: RepoFile,
        folder: RepoFolder,
        on_event: OnEvent,
        patience: Patience,
        state: State,
    ) -> None:
        assert file.sha256 is not None
        self._resolved, self._file, self._folder = resolved, file, folder
        self._on_event, self._patience, self._state = on_event, patience, state
        self._remote = _Remote(resolved, file, patience)
        self._sha256 = file.sha256
        self._blob, self._partial = folder.blob(self._sha256), folder.partial(self._sha256)
        self._shown_s = 0.0
        self._fd = -1
        self._at = 0  # bytes in the partial
        self._pieces = 0  # answers that these bytes came from; an earlier process's count as several
        self._fetched = 0
        self._next_look = _HEADER_STEPS[0]
        self._facts: store.Facts | None = None

    def run(self) -> None:
        began_s = time.monotonic()
        with self._naming_the_file():
            if not self._is_here():
                self._state.pull_begins(self._blob, self._resolved.repo, self._file.name, self._file.size)
                self._fetch()
                self._state.remember(self._blob, sha256=self._sha256, facts=self._facts)
                self._state.pull_ended(self._blob)
        seconds = time.monotonic() - began_s
        self._on_event(Finished(self._file.name, self._file.size, self._fetched, seconds))

    # --- what is here already

    def _is_here(self) -> bool:
        """Whether the finished blob is in the cache, ours or another tool's. It is hashed once, then remembered."""
        try:
            size = self._blob.stat().st_size
        except OSError:
            return self._is_here_without_links()
        if size == self._file.size:
            if self._state.verified_sha256(self._blob) == self._sha256:
                return True
            if store.hash_file(self._blob, self._show_checking) == self._sha256:
                self._facts = self._checked_header(self._blob)
                self._state.remember(self._blob, sha256=self._sha256, facts=self._facts)
                return True
            self._blob.replace(self._blob.with_name(self._blob.name + ".damaged"))
            self._on_event(StartedOver(self._file.name, "the copy in the cache is damaged and has been set aside"))
        elif size < self._file.size and not self._partial.exists() and not self._blob.is_symlink():
            # Cut short by another tool: as good a beginning as any, if it is one.
            self._blob.replace(self._partial)
        else:
            self._blob.unlink()
        return False

    def _is_here_without_links(self) -> bool:
        """On a file system without links a file lies where its name would be (see `_link`)."""
        pointer = self._folder.pointer(self._resolved.commit, self._file.name)
        if not pointer.is_file() or pointer.is_symlink() or pointer.stat().st_size != self._file.size:
            return False
        if store.hash_file(pointer, self._show_checking) != self._sha256:
            return False
        self._state.remember(pointer, sha256=self._sha256)
        return True

    def _show_checking(self, done: int) -> None:
        if self._is_time():
            self._on_event(Checking(self._file.name, done, self._file.size))

    def _is_time(self, every_s: float = 0.1) -> bool:
        now_s = time.monotonic()
        if now_s - self._shown_s < every_s:
            return False
        self._shown_s = now_s
        return True

    # --- fetching

    def _fetch(self) -> None:
        """Fills the partial, verifies it and gives it its name."""
        # O_NOFOLLOW: should a link lie there, it is not ours, and what it points to must not be written.
        self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            self._fill_and_verify()
            self._refuse_if_unfit(lambda: self._checked_header(self._partial))
            os.fsync(self._fd)
            self._partial.replace(self._blob)
            fs.fsync_folder(self._folder.blobs)
        finally:
            if os.fstat(self._fd).st_size == 0:
                self._partial.unlink(missing_ok=True)
            os.close(self._fd)

    def _fill_and_verify(self) -> None:
        self._at = os.fstat(self._fd).st_size
        for last_chance in (False, True):
            if self._at > self._file.size:
                self._empty()
            self._pieces = 2 if self._at else 0
            self._on_event(Started(self._file.name, self._file.size, self._at))
            found = self._filled_hash()
            if found == self._sha256:
                return
            self._empty()
            # Wrong bytes from one answer are the server's. From several, or from an earlier process, they may just not
            # belong together (a power cut, content that changed): then it may send the file once more in one piece.
            reason = f"its sha256 is {found[:12]}…, the hub promised {self._sha256[:12]}…"
            if last_chance or self._pieces < 2:
                self._partial.unlink(missing_ok=True)
                self._state.pull_ended(self._blob)
                raise IntegrityError(
                    f"{printable(self._file.name)} came damaged: {reason}. It has been thrown away",
                    hint=f"llmrun pull {self._resolved.name}",
                )
            self._on_event(StartedOver(self._file.name, reason))

    def _empty(self) -> None:
        os.ftruncate(self._fd, 0)
        self._at, self._next_look = 0, _HEADER_STEPS[0]

    def _filled_hash(self) -> str:
        """Fetches what is missing and returns the sha256 of the whole."""
        self._hasher = _Hasher(self._partial, self._at)
        try:
            self._fetch_rest()
            self._hasher.advance(self._at)
            return self._hasher.finish(self._show_progress)
        finally:
            self._hasher.stop()

    def _start_over(self, reason: str) -> None:
        self._hasher.stop()
        self._empty()
        self._pieces = 0
        self._hasher = _Hasher(self._partial, 0)
        self._on_event(StartedOver(self._file.name, reason))

    def _fetch_rest(self) -> None:
        """Attempt after attempt, until all bytes are here or it is clear that they won't come."""
        failures, in_short, refusals, best = 0, 0, 0, self._at
        while self._at < self._file.size:
            try:
                self._attempt()
            except (NetworkError, _Broken) as error:
                broken = error if isinstance(error, _Broken) else _Broken(error.message)
            except _http_errors() as error:
                broken = _Broken(_reason(error))
            else:
                continue
            if self._at >= best + _GOOD_PROGRESS_BYTES:
                failures, best = 0, self._at
            failures += 1
            # A server that says clearly what it has does not change its mind, as networks do.
            in_short = in_short + 1 if broken.short else 0
            if failures >= self._patience.attempts or in_short >= _CLEAR_ANSWERS:
                self._give_up(broken)
            refusals = refusals + 1 if isinstance(broken, _RangeRefused) else 0
            if refusals >= 2 and self._at:
                self._start_over(broken.reason)
            pause_s = max(broken.pause_s, self._patience.pause(failures))
            self._on_event(Retrying(self._file.name, broken.reason, failures, self._patience.attempts, pause_s))
            time.sleep(pause_s)

    def _give_up(self, broken: _Broken) -> NoReturn:
        where = f"{printable(self._file.name)}: {broken.reason}"
        kept = f"; {units.size(self._at)} of {units.size(self._file.size)} are kept" if self._at else ""
        hint = f"llmrun pull {self._resolved.name} goes on from there" if self._at else "try again later"
        if broken.short:
            raise IntegrityError(where + kept, hint=hint)
        raise NetworkError(where + kept, hint=hint)

    def _attempt(self) -> None:
        """One request, from where we are."""
        self._look_at_header()
        url = self._remote.locate()
        end = min(self._file.size, self._at + self._patience.window_bytes)
        with self._remote.body(url, self._at, end) as body:
            if body.first != self._at:
                # It sends the whole file: all of it, then. The window was for what it does not do.
                self._start_over("the server can't go on in the middle of a file")
                end = self._file.size
            elif body.response.status_code == 200:
                end = self._file.size
            self._pieces += 1
            self._take(body.response, end)
        if self._at < end:
            raise _Broken(f"the server ends the file after {self._at:,} of {self._file.size:,} bytes", short=True)

    def _take(self, response: Any, end: int) -> None:
        os.lseek(self._fd, self._at, os.SEEK_SET)
        told = self._at
        for chunk in response.iter_raw():
            data = chunk if len(chunk) <= end - self._at else chunk[: end - self._at]
            # At once and not in larger blocks: what has been written survives the death of this process.
            fs.write_all(self._fd, data)
            self._at += len(data)
            self._fetched += len(data)
            if self._at - told >= store.HASH_CHUNK_BYTES:
                told = self._at
                self._hasher.advance(told)
                self._look_at_header()
            self._show_progress()
            if self._at >= end:
                return

    def _show_progress(self) -> None:
        if self._is_time():
            self._on_event(Progress(self._file.name, self._at, self._file.size, self._hasher.hashed))

    # --- is it a model

    def _look_at_header(self) -> None:
        """Checks the header when it is here, long before the rest is.

        Not where the rest is small: then the sha256 comes first, and tells a model that can't run (exit 8) from one
        that came damaged (exit 6).
        """
        if self._facts is not None or self._at < self._next_look or self._file.size - self._at < _EARLY_CHECK_BYTES:
            return
        self._next_look = 2 * self._at
        source = _GrowingFile(self._fd, self._at, self._file.size)
        with suppress(_NotYet):
            self._refuse_if_unfit(lambda: self._checked(read_header(source)))

    def _refuse_if_unfit(self, check: Callable[[], store.Facts]) -> None:
        try:
            self._facts = check()
        except BadModel:
            self._partial.unlink(missing_ok=True)
            self._state.pull_ended(self._blob)
            raise

    def _checked_header(self, path: Path) -> store.Facts:
        with path.open("rb", buffering=0) as file:
            return self._checked(read_header(_GrowingFile(file.fileno(), self._file.size, self._file.size)))

    def _checked(self, header: Header) -> store.Facts:
        # A part of a split model is no model by itself; `_check_whole` looks at them together.
        if len(self._resolved.files) == 1:
            check_runnable(header)
        return store.Facts.of(header)

    @contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        try:
            yield
        except BadModel as error:
            name = f"{printable(self._file.name)} of {self._resolved.repo}"
            raise BadModel(f"{name}: {error.message}", remedies=error.remedies) from None


# --- looking without pulling ------------------------------------------------------------------------------------------


class _RemoteSource:
    """A remote file for `read_header`, by ranges that grow from 1 to 8 MiB: a header costs a few MB and requests."""

    def __init__(self, resolved: Resolved, file: RepoFile, patience: Patience) -> None:
        self.size: int | None = file.size
        self._remote = _Remote(resolved, file, patience)
        self._file, self._patience = file, patience
        self._url = ""
        self._buffer = memoryview(b"")
        self._at, self._step = 0, _HEADER_STEPS[0]

    def read(self, n: int, /) -> bytes:
        if not self._buffer and self._at < self._file.size:
            self._buffer = memoryview(self._fetched(self._at, min(self._at + self._step, self._file.size)))
            self._at += len(self._buffer)
            self._step = min(2 * self._step, _HEADER_STEPS[3])
        data, self._buffer = self._buffer[:n], self._buffer[n:]
        return bytes(data)

    def _fetched(self, first: int, end: int) -> bytes:
        for failures in range(1, self._patience.attempts + 1):
            try:
                self._url = self._url or self._remote.locate()
                with self._remote.body(self._url, first, end) as body:
                    return _slice_of(body, first, end)
            except _http_errors(NetworkError, _Broken) as error:
                self._url = ""  # it may have expired
                reason = error.message if isinstance(error, NetworkError) else _reason(error)
                if failures == self._patience.attempts:
                    raise NetworkError(f"{printable(self._file.name)}: {reason}", hint="try again later") from None
                time.sleep(self._patience.pause(failures))
        raise AssertionError("unreachable")


def _slice_of(body: _Body, first: int, end: int) -> bytes:
    """The bytes from `first` to `end` of an answer, which begins at 0 when the server does not do ranges."""
    at, taken = body.first, bytearray()
    for chunk in body.response.iter_raw():
        taken += chunk[max(0, first - at) : max(0, end - at)]
        at += len(chunk)
        if at >= end:
            break
    if len(taken) < end - first:
        raise _Broken(f"the server ends the file after {at:,} bytes")
    return bytes(taken)


def open_remote_header(resolved: Resolved, index: int = 0, *, patience: Patience | None = None) -> Header:
    """The header of a file on the hub (the `index`-th part of a split one), without fetching the file.

    Raises `BadModel`, and what `pull` raises about the network.
    """
    file = resolved.files[index]
    try:
        return read_header(_RemoteSource(resolved, file, patience or Patience.from_environment()))
    except BadModel as error:
        raise BadModel(f"{printable(file.name)} of {resolved.repo}: {error.message}", remedies=error.remedies) from None


@dataclass(frozen=True)
class Offer:
    """One quantization that a repository offers. `size` is that of all its files, in bytes."""

    quant: str
    size: int
    n_files: int


@dataclass(frozen=True)
class Hit:
    """A repository that a search found; `offers` from small to large, empty where the hub would not say."""

    repo: str
    downloads: int | None
    licence: str | None
    gated: bool
    offers: tuple[Offer, ...]


def search(words: Sequence[str], limit: int = 10) -> list[Hit]:
    """Repositories with GGUF files whose names have all the words, most downloaded first. Raises `NetworkError`."""
    from concurrent.futures import ThreadPoolExecutor

    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    if is_offline():
        raise NotInStore("searching needs the network, and it may not be used", hint="llmrun list")
    patience = Patience.from_environment()

    def ask() -> list[str]:
        # Not HfApi.list_models: it goes on for 24 s when the hub answers with errors.
        response = _session(patience).get(
            f"{_endpoint()}/api/models",
            params={"search": " ".join(words), "filter": "gguf", "sort": "downloads", "limit": limit},
            headers=build_hf_headers(library_name="llmrun", library_version=__version__),
            timeout=patience.answer_timeout,
        )
        hf_raise_for_status(response)
        return [str(found["id"]) for found in response.json()]

    with _hub_errors("the search"):
        repos = _with_retry(ask, patience)
    with ThreadPoolExecutor(max_workers=6) as pool:
        return [hit for hit in pool.map(_hit, repos) if hit is not None]


def _hit(repo: str) -> Hit | None:
    try:
        info = model_info(repo)
    except NotFound:
        return None  # gone since, or not for us
    except (NetworkError, IntegrityError):
        return Hit(repo, None, None, False, ())  # one that the hub can't tell about must not end the search
    return Hit(info.repo, info.downloads, info.licence, info.gated, offers_of(info))


def offers_of(info: RepoInfo) -> tuple[Offer, ...]:
    """The quantizations of a repository with their sizes, smallest first."""
    models = {file.name: file for file in info.models}
    found = []
    for name in models:
        parts = quants.split_parts(name)
        if parts[0] == name:
            size = sum(models[part].size for part in parts if part in models)
            found.append(Offer(quants.quant_of(name) or printable(name), size, len(parts)))
    return tuple(sorted(found, key=lambda offer: offer.size))
