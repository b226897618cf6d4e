"""One file on its way into the cache: fetched, hashed while it grows, checked early, resumed after a kill."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from llmrun import fs, units
from llmrun.errors import Act, BadModel, IntegrityError, NetworkError, Remedy
from llmrun.gguf.reader import Header, naming, read_header
from llmrun.gguf.rules import check_part, check_runnable
from llmrun.models.hub import events
from llmrun.models.hub.http import Patience, http_errors, reason_of
from llmrun.models.hub.info import RepoFile, Resolved
from llmrun.models.hub.remote import HEADER_STEPS, AttemptFailed, RangeRefused, RemoteFile
from llmrun.models.store import state
from llmrun.models.store.layout import DAMAGED, RepoFolder
from llmrun.models.store.state import HeaderFacts
from llmrun.text import printable

_SYNC_BYTES = 8 << 20
"""Written to the disk itself every so often, so that a power cut loses no more than this."""
_GOOD_PROGRESS_BYTES = 256 << 10
"""An attempt that brought this much does not count among the failures in a row."""
_EARLY_CHECK_BYTES = 64 << 20
"""With less than this to go, a header is not checked before the sha256 is known."""
_CLEAR_ANSWERS = 3
"""So often in a row a server may say that its file is shorter than promised."""


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
        buffer = bytearray(fs.CHUNK_BYTES)
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


class BlobDownload:
    """One file on its way into `blobs/`, whose lock we have."""

    def __init__(
        self, resolved: Resolved, file: RepoFile, folder: RepoFolder, on_event: events.OnPullEvent, patience: Patience
    ) -> None:
        assert file.sha256 is not None
        self._resolved, self._file, self._folder = resolved, file, folder
        self._on_event, self._patience = on_event, patience
        self._remote = RemoteFile(resolved, file, patience)
        self._sha256 = file.sha256
        self._blob, self._partial = folder.blob(self._sha256), folder.partial(self._sha256)
        self._shown_s = 0.0
        self._fd = -1
        self._at = 0  # bytes in the partial
        self._pieces = 0  # answers that these bytes came from; an earlier process's count as several
        self._fetched = 0
        self._next_look = HEADER_STEPS[0]
        self._facts: HeaderFacts | None = None

    def run(self) -> None:
        began_s = time.monotonic()
        with naming(f"{printable(self._file.name)} of {self._resolved.repo}"):
            if not self._is_here():
                state.pull_begins(self._blob, self._resolved.repo, self._file.name, self._file.size)
                fetching_s = time.monotonic()
                self._fetch()
                state.note_rate(self._fetched, time.monotonic() - fetching_s)
                state.remember(self._blob, sha256=self._sha256, facts=self._facts)
                state.pull_ended(self._blob)
        seconds = time.monotonic() - began_s
        self._on_event(events.PullFinished(self._file.name, self._file.size, self._fetched, seconds))

    # --- what is here already

    def _is_here(self) -> bool:
        """Whether the finished blob is in the cache, ours or another tool's. It is hashed once, then remembered."""
        try:
            size = self._blob.stat().st_size
        except OSError:
            return self._is_here_without_links()
        if size == self._file.size:
            if state.verified_sha256(self._blob) == self._sha256:
                return True
            if fs.sha256_of(self._blob, self._show_checking) == self._sha256:
                self._facts = self._checked_header(self._blob)
                state.remember(self._blob, sha256=self._sha256, facts=self._facts)
                return True
            self._blob.replace(self._blob.with_name(self._blob.name + DAMAGED))
            self._on_event(
                events.PullRestarted(self._file.name, "the copy in the cache is damaged and has been set aside")
            )
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
        if fs.sha256_of(pointer, self._show_checking) != self._sha256:
            return False
        state.remember(pointer, sha256=self._sha256)
        return True

    def _show_checking(self, done: int) -> None:
        if self._is_time():
            self._on_event(events.PullChecking(self._file.name, done, self._file.size))

    def _is_time(self) -> bool:
        now_s = time.monotonic()
        if is_time := now_s - self._shown_s >= 0.1:
            self._shown_s = now_s
        return is_time

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
            self._on_event(events.PullStarted(self._file.name, self._file.size, self._at))
            found = self._filled_hash()
            if found == self._sha256:
                return
            self._empty()
            # Wrong bytes from one answer are the server's. From several, or from an earlier process, they may just not
            # belong together (a power cut, content that changed): then it may send the file once more in one piece.
            reason = f"its sha256 is {found[:12]}…, the hub promised {self._sha256[:12]}…"
            if last_chance or self._pieces < 2:
                self._partial.unlink(missing_ok=True)
                state.pull_ended(self._blob)
                said = f"{printable(self._file.name)} came damaged: {reason}. It has been thrown away"
                raise IntegrityError(said, hint=Act("pull", self._resolved.name))
            self._on_event(events.PullRestarted(self._file.name, reason))

    def _empty(self) -> None:
        os.ftruncate(self._fd, 0)
        self._at, self._next_look = 0, HEADER_STEPS[0]

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
        self._on_event(events.PullRestarted(self._file.name, reason))

    def _fetch_rest(self) -> None:
        """Attempt after attempt, until all bytes are here or it is clear that they won't come."""
        failures, in_short, refusals, best = 0, 0, 0, self._at
        while self._at < self._file.size:
            try:
                self._attempt()
            except (NetworkError, AttemptFailed) as error:
                broken = error if isinstance(error, AttemptFailed) else AttemptFailed(error.message)
            except http_errors() as error:
                broken = AttemptFailed(reason_of(error))
            else:
                continue
            if self._at >= best + _GOOD_PROGRESS_BYTES:
                failures, best = 0, self._at
            failures += 1
            # A server that says clearly what it has does not change its mind, as networks do.
            in_short = in_short + 1 if broken.short else 0
            if failures >= self._patience.attempts or in_short >= _CLEAR_ANSWERS:
                self._give_up(broken)
            refusals = refusals + 1 if isinstance(broken, RangeRefused) else 0
            if refusals >= 2 and self._at:
                self._start_over(broken.reason)
            pause_s = max(broken.pause_s, self._patience.pause(failures))
            self._on_event(
                events.PullRetrying(self._file.name, broken.reason, failures, self._patience.attempts, pause_s)
            )
            time.sleep(pause_s)

    def _give_up(self, broken: AttemptFailed) -> NoReturn:
        said = f"{printable(self._file.name)}: {broken.reason}"
        again: Remedy = "try again later"
        if self._at:
            said += f"; {units.size(self._at)} of {units.size(self._file.size)} are kept for the next pull"
            again = Act("pull", self._resolved.name)
        raise (IntegrityError if broken.short else NetworkError)(said, hint=again)

    def _attempt(self) -> None:
        """One request, from where we are."""
        self._look_at_header()
        url = self._remote.locate()
        end = min(self._file.size, self._at + self._patience.window_bytes)
        with self._remote.body(url, self._at, end) as (response, first):
            if first != self._at:
                # It sends the whole file: all of it, then. The window was for what it does not do.
                self._start_over("the server can't go on in the middle of a file")
                end = self._file.size
            elif response.status_code == 200:
                end = self._file.size
            self._pieces += 1
            self._take(response, end)
        if self._at < end:
            raise AttemptFailed(f"the server ends the file after {self._at:,} of {self._file.size:,} bytes", short=True)

    def _take(self, response: Any, end: int) -> None:
        os.lseek(self._fd, self._at, os.SEEK_SET)
        told = self._at
        for chunk in response.iter_raw():
            data = chunk if len(chunk) <= end - self._at else chunk[: end - self._at]
            # At once and not in larger blocks: what has been written survives the death of this process.
            fs.write_all(self._fd, data)
            self._at += len(data)
            self._fetched += len(data)
            if self._at - told >= fs.CHUNK_BYTES:
                told = self._at
                self._hasher.advance(told)
                self._look_at_header()
            self._show_progress()
            if self._at >= end:
                return

    def _show_progress(self) -> None:
        if self._is_time():
            self._on_event(events.PullProgress(self._file.name, self._at, self._file.size, self._hasher.hashed))

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

    def _refuse_if_unfit(self, check: Callable[[], HeaderFacts]) -> None:
        try:
            self._facts = check()
        except BadModel:
            self._partial.unlink(missing_ok=True)
            state.pull_ended(self._blob)
            raise

    def _checked_header(self, path: Path) -> HeaderFacts:
        with path.open("rb", buffering=0) as file:
            return self._checked(read_header(_GrowingFile(file.fileno(), self._file.size, self._file.size)))

    def _checked(self, header: Header) -> HeaderFacts:
        files = self._resolved.files
        check_part(self._file.name.rpartition("/")[2], header, files.index(self._file), len(files))
        # A part of a split model is not a model by itself; `_check_whole` looks at them together.
        if len(files) == 1:
            check_runnable(header)
        return HeaderFacts.of(header)
