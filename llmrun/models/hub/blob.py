"""One file on its way into the cache: fetched over as many connections as pay, hashed while it grows, checked early,
resumed after a kill."""

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
from llmrun.gguf.rules import check_part, check_projector, check_runnable
from llmrun.models.hub import events
from llmrun.models.hub.connection import Connection, NoRanges
from llmrun.models.hub.connection_count import MOST, ConnectionCount
from llmrun.models.hub.http import Patience, http_errors, reason_of
from llmrun.models.hub.info import RepoFile, Resolved
from llmrun.models.hub.ranges import LEAST_BYTES, Ranges
from llmrun.models.hub.remote import HEADER_STEPS, AttemptFailed, RangeRefused, Refused, RemoteFile
from llmrun.models.store import partial as partials
from llmrun.models.store import state
from llmrun.models.store.layout import DAMAGED, RepoFolder
from llmrun.models.store.partial import Extent, Partial
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
_SMALL_BYTES = 16 << 20
"""A smaller file has one connection, unless somebody says how many."""
_MOST_PIECE_BYTES = 32 << 20
_TICK_S = 0.1
_RATE_S = 0.5
"""For so long bytes are counted for one rate."""
_STOP_S = 0.5
"""For so long connections that are to end are waited for: a user has pressed Ctrl-C."""


class _Hasher(threading.Thread):
    """Hashes a file while it grows, from its first byte, reading it again: so what is hashed is what is in the file.

    It also asks the kernel every `_SYNC_BYTES` to write to the disk. Both let go of Python's lock, so the download is
    not slowed down.
    """

    def __init__(self, partial: Partial, ranges: Ranges) -> None:
        super().__init__(daemon=True, name="llmrun-hash")
        self.hashed = 0
        self.synced: list[Extent] = []
        self._partial, self._ranges = partial, ranges
        self._sha = hashlib.sha256()
        self._more, self._last, self._stopped = threading.Event(), False, False
        self._error: OSError | None = None
        self.start()

    def advance(self) -> None:
        """The file has grown."""
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
            with self._partial.path.open("rb+", buffering=0) as file:
                self._hash(file)
        except OSError as error:
            self._error = error

    def _hash(self, file: Any) -> None:
        buffer = bytearray(fs.CHUNK_BYTES)
        view = memoryview(buffer)
        n_synced = 0  # what an earlier process left may not be on the disk yet
        while not self._stopped:
            if self._ranges.n_here - n_synced >= _SYNC_BYTES:
                n_synced, here = self._ranges.n_here, self._ranges.here()
                self._partial.sync(file.fileno(), here)
                self.synced = here
            wanted = min(len(buffer), self._ranges.prefix - self.hashed)
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
        self,
        resolved: Resolved,
        file: RepoFile,
        folder: RepoFolder,
        on_event: events.OnPullEvent,
        patience: Patience,
        n_connections: int | None = None,
    ) -> None:
        """`n_connections`: None for as many as pay."""
        assert file.sha256 is not None
        self._resolved, self._file, self._folder = resolved, file, folder
        self._on_event, self._patience = on_event, patience
        self._remote = RemoteFile(resolved, file, patience)
        self._sha256 = file.sha256
        self._blob = folder.blob(self._sha256)
        self._shown_s = 0.0
        self._n_answers = 0  # that the bytes here came from; an earlier process's count as several
        self._next_look = HEADER_STEPS[0]
        self._facts: HeaderFacts | None = None
        self._ranges = Ranges(file.size, (), 1)
        self._n_connections = n_connections
        self._open: list[Connection] = []
        self._wake = threading.Event()

    def run(self) -> None:
        began_s = time.monotonic()
        with naming(f"{printable(self._file.name)} of {self._resolved.repo}"):
            if not self._is_here():
                state.pull_begins(self._blob, self._resolved.repo, self._file.name, self._file.size)
                fetching_s = time.monotonic()
                self._fetch()
                state.note_rate(self._ranges.n_fetched, time.monotonic() - fetching_s)
                state.remember(self._blob, sha256=self._sha256, facts=self._facts)
                state.pull_ended(self._blob)
        seconds = time.monotonic() - began_s
        self._on_event(events.PullFinished(self._file.name, self._file.size, self._ranges.n_fetched, seconds))

    # --- what is here already

    def _is_here(self) -> bool:
        """Whether the finished blob is in the cache, ours or another tool's. It is hashed once, then remembered."""
        partial = self._folder.partial(self._sha256)
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
        elif size < self._file.size and not partial.exists() and not self._blob.is_symlink():
            # Cut short by another tool: as good a beginning as any, if it is one.
            partials.remove(partial)  # the journal of one that is gone
            self._blob.replace(partial)
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
        self._partial = Partial(self._folder.partial(self._sha256), self._folder.path)
        try:
            self._fill_and_verify()
            self._refuse_if_unfit(lambda: self._checked_header(self._partial.path))
            self._partial.finish(self._blob)
        finally:
            self._partial.close()

    def _fill_and_verify(self) -> None:
        self._ranges.reset(self._partial.found)
        for last_chance in (False, True):
            if max((end for _, end in self._ranges.here()), default=0) > self._file.size:
                self._empty()
            self._n_answers = 2 if self._ranges.n_here else 0
            # What came in pieces that do not fit together comes in one.
            self._wanted = self._new_count(1 if last_chance else self._n_connections)
            self._on_event(events.PullStarted(self._file.name, self._file.size, self._ranges.n_here))
            found = self._filled_hash()
            if found == self._sha256:
                return
            self._empty()
            # Wrong bytes from one answer are the server's. From several, or from an earlier process, they may just not
            # belong together (a power cut, content that changed): then it may send the file once more in one piece.
            reason = f"its sha256 is {found[:12]}…, the hub promised {self._sha256[:12]}…"
            if last_chance or self._n_answers < 2:
                self._partial.remove()
                state.pull_ended(self._blob)
                said = f"{printable(self._file.name)} came damaged: {reason}. It has been thrown away"
                raise IntegrityError(said, hint=Act("pull", self._resolved.name))
            self._on_event(events.PullRestarted(self._file.name, reason))

    def _new_count(self, fixed: int | None) -> ConnectionCount:
        return ConnectionCount(fixed, most=MOST if self._file.size >= _SMALL_BYTES else 1)

    def _empty(self) -> None:
        self._partial.empty()
        self._ranges.reset()
        self._next_look = HEADER_STEPS[0]

    def _filled_hash(self) -> str:
        """Fetches what is missing and returns the sha256 of the whole."""
        self._hasher = _Hasher(self._partial, self._ranges)
        try:
            self._fetch_rest()
            return self._hasher.finish(self._show_progress)
        finally:
            self._hasher.stop()

    def _start_over(self, reason: str) -> None:
        self._hasher.stop()
        self._empty()
        self._n_answers = self._shown_bytes = 0
        self._wanted = self._new_count(1)
        self._hasher = _Hasher(self._partial, self._ranges)
        self._on_event(events.PullRestarted(self._file.name, reason))

    def _fetch_rest(self) -> None:
        """Until all bytes are here or it is clear that they won't come."""
        self._failures, self._in_short, self._refusals, self._best = 0, 0, 0, self._ranges.n_here
        self._failed_s = self._not_before_s = 0.0
        self._rate_s, self._rate_bytes, self._rate_busy_s = time.monotonic(), self._ranges.n_here, 0.0
        self._shown_bytes = self._ranges.n_here
        try:
            while self._ranges.n_here < self._file.size:
                self._look_at_header()
                self._open_connections()
                pause_s = self._not_before_s - time.monotonic()
                self._wake.wait(min(_TICK_S, pause_s) if pause_s > 0 else _TICK_S)
                self._wake.clear()
                self._hasher.advance()
                for connection in [each for each in self._open if each.ended]:
                    self._open.remove(connection)
                    self._rate_busy_s -= connection.busy_s
                    self._look_at_end(connection)
                self._choose_connections()
                if self._ranges.n_here > self._shown_bytes:
                    self._show_progress()
        finally:
            self._stop_connections()

    def _open_connections(self) -> None:
        while len(self._open) < self._wanted.count and time.monotonic() >= self._not_before_s:
            n = self._wanted.count
            self._ranges.piece = min(max(self._file.size // (4 * n), 2 * LEAST_BYTES), _MOST_PIECE_BYTES)
            prefix = self._ranges.prefix
            claimed = self._ranges.claim(self._patience.window_bytes, alone=n == 1)
            if claimed is None:
                return
            if not self._partial.has_journal and (self._open or claimed.begin != prefix):
                self._partial.begin_journal(self._ranges.here(), self._hasher.synced)
            self._open.append(Connection(self._remote, self._partial, self._ranges, claimed, self._wake))

    def _stop_connections(self) -> None:
        for connection in self._open:
            connection.stop()
        until_s = time.monotonic() + _STOP_S
        for connection in self._open:
            connection.join(max(0.0, until_s - time.monotonic()))
            self._n_answers += connection.n_taken > 0
        self._open = []

    def _choose_connections(self) -> None:
        now_s, n_here = time.monotonic(), self._ranges.n_here
        if now_s - self._rate_s >= _RATE_S:
            seconds, busy_s = now_s - self._rate_s, sum(each.busy_s for each in self._open)
            rate, busy = (n_here - self._rate_bytes) / seconds, (busy_s - self._rate_busy_s) / seconds
            self._wanted.measured(rate, self._file.size - n_here, busy)
            self._rate_s, self._rate_bytes, self._rate_busy_s = now_s, n_here, busy_s

    def _look_at_end(self, connection: Connection) -> None:
        """What the end of a connection means for those that follow."""
        self._n_answers += connection.n_taken > 0
        error = connection.error
        if error is None:
            return
        if isinstance(error, NetworkError):
            broken = AttemptFailed(error.message)
        elif isinstance(error, AttemptFailed):
            broken = error
        elif isinstance(error, http_errors()):
            broken = AttemptFailed(reason_of(error))
        else:
            raise error
        if self._open and isinstance(broken, NoRanges | Refused):
            # Beside others that get theirs: the server has no more to give.
            self._wanted.limit(len(self._open))
        elif isinstance(broken, NoRanges):
            self._start_over(broken.reason)
        elif connection.opened_s >= self._failed_s:  # else of the same break as one before
            self._count_failure(broken)

    def _count_failure(self, broken: AttemptFailed) -> None:
        if self._ranges.n_here >= self._best + _GOOD_PROGRESS_BYTES:
            self._failures, self._best = 0, self._ranges.n_here
        self._failures += 1
        # A server that says clearly what it has does not change its mind, as networks do.
        self._in_short = self._in_short + 1 if broken.short else 0
        if self._failures >= self._patience.attempts or self._in_short >= _CLEAR_ANSWERS:
            self._give_up(broken)
        self._refusals = self._refusals + 1 if isinstance(broken, RangeRefused) else 0
        if self._refusals >= 2 and self._ranges.n_here:
            self._start_over(broken.reason)
        pause_s = max(broken.pause_s, self._patience.pause(self._failures))
        self._on_event(
            events.PullRetrying(self._file.name, broken.reason, self._failures, self._patience.attempts, pause_s)
        )
        self._failed_s = time.monotonic()
        self._not_before_s = self._failed_s + pause_s

    def _give_up(self, broken: AttemptFailed) -> NoReturn:
        said = f"{printable(self._file.name)}: {broken.reason}"
        again: Remedy = "try again later"
        if n_here := self._ranges.n_here:
            said += f"; {units.size(n_here)} of {units.size(self._file.size)} are kept for the next pull"
            again = Act("pull", self._resolved.name)
        raise (IntegrityError if broken.short else NetworkError)(said, hint=again)

    def _show_progress(self) -> None:
        if self._is_time():
            here = self._shown_bytes = self._ranges.n_here
            self._on_event(events.PullProgress(self._file.name, here, self._file.size, self._hasher.hashed))

    # --- is it a model

    def _look_at_header(self) -> None:
        """Checks the header when it is here, long before the rest is.

        Not where the rest is small: then the sha256 comes first, and tells a model that can't run (exit 8) from one
        that came damaged (exit 6).
        """
        prefix = self._ranges.prefix
        if self._facts is not None or prefix < self._next_look or self._file.size - prefix < _EARLY_CHECK_BYTES:
            return
        self._next_look = 2 * prefix
        source = _GrowingFile(self._partial.fd, prefix, self._file.size)
        with suppress(_NotYet):
            self._refuse_if_unfit(lambda: self._checked(read_header(source)))

    def _refuse_if_unfit(self, check: Callable[[], HeaderFacts]) -> None:
        try:
            self._facts = check()
        except BadModel:
            self._partial.remove()
            state.pull_ended(self._blob)
            raise

    def _checked_header(self, path: Path) -> HeaderFacts:
        with path.open("rb", buffering=0) as file:
            return self._checked(read_header(_GrowingFile(file.fileno(), self._file.size, self._file.size)))

    def _checked(self, header: Header) -> HeaderFacts:
        files = self._resolved.files
        check_part(self._file.name.rpartition("/")[2], header, files.index(self._file), len(files))
        # A part of a split model is not a model by itself; `_check_whole` looks at them together.
        if self._resolved.goes_with:
            check_projector(header)
        elif len(files) == 1:
            check_runnable(header)
        return HeaderFacts.of(header)
