"""An unfinished file of the store, and which of its bytes are here.

Over one connection it grows from its first byte, and its size says all. Over several it has holes; then a journal lies
beside it, `blobs/<sha256>.partial.ranges`:

    boot 4c2f1e…                          what follows was written since the system started
    + 000000033554432 000000034603008     these bytes (from, up to) have been written
    = 000000033554432 000000034603008     they are on the disk itself

A line is written after its bytes, never before; that of "+" again and again in its place, with each piece that arrives.
What is written survives the death of the process, but not of the system: "+" counts until the next start, "=" always.
What no whole line tells of is fetched again.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from llmrun import fs

Extent = tuple[int, int]
"""Bytes from the first up to, and without, the second."""
JOURNAL = ".ranges"
"""What its name has behind that of the partial."""
_LINE = re.compile(r"([+=]) (\d{1,18}) (\d{1,18})")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def journal_of(partial: Path) -> Path:
    return partial.with_name(partial.name + JOURNAL)


def extents_of(partial: Path) -> list[Extent]:
    """The bytes of a partial that are here, in order; none where there is no partial."""
    try:
        size = partial.stat().st_size
        text = journal_of(partial).read_text("ascii", errors="replace")
    except FileNotFoundError:
        return merged([(0, size)]) if partial.exists() else []
    except OSError:
        return []
    found: list[Extent] = []
    same_boot, boot = False, f"boot {_boot_id()}"
    for line in text.split("\n")[:-1]:  # behind the last end of a line is one that was torn
        if match := _LINE.fullmatch(line):
            if match[1] == "=" or same_boot:
                found.append((int(match[2]), min(int(match[3]), size)))
        else:
            same_boot = line == boot
    return merged(found)


def bytes_here(partial: Path) -> int:
    """How many bytes of a partial are here; none where there is no partial."""
    return sum(end - begin for begin, end in extents_of(partial))


def merged(extents: Iterable[Extent]) -> list[Extent]:
    """The same bytes in order, what touches as one."""
    found: list[Extent] = []
    for begin, end in sorted(extents):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        elif begin < end:
            found.append((begin, end))
    return found


def remove(partial: Path) -> None:
    """Removes a partial and its journal, in this order: a journal without a partial says nothing."""
    for path in (partial, journal_of(partial)):
        path.unlink(missing_ok=True)


class Partial:
    """A partial that is being filled, by whoever has the lock of its blob. Any thread may write and tell.

    Attributes:
        found: the bytes that were here when it was opened.
    """

    def __init__(self, path: Path, staging_folder: Path) -> None:
        """Raises `OSError`; also for a link, which is not ours: what it points to must not be written."""
        self.path, self._staging_folder = path, staging_folder
        self.found = extents_of(path)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        self._lock = threading.Lock()
        self._journal: int | None = None
        self._lines: dict[int, int] = {}  # first byte of a "+" -> place of its line
        self._end = 0  # of the journal
        if len(self.found) > 1 or (self.found and self.found[0][0]):
            os.fsync(self.fd)
            self.begin_journal(self.found, self.found)
        else:  # no holes: from now on its size says all
            os.ftruncate(self.fd, self.found[0][1] if self.found else 0)
            journal_of(path).unlink(missing_ok=True)

    @property
    def has_journal(self) -> bool:
        return self._journal is not None

    def begin_journal(self, written: Iterable[Extent], synced: Iterable[Extent]) -> None:
        """From here on bytes may be written anywhere. `written` are here, `synced` on the disk itself."""
        text = _lines("=", synced) + f"boot {_boot_id()}\n" + _lines("+", written)
        path = journal_of(self.path)
        fs.write_atomically(path, text, staging_folder=self._staging_folder)
        journal = os.open(path, os.O_WRONLY)
        os.fsync(journal)
        fs.fsync_folder(path.parent)
        with self._lock:
            self._journal, self._lines, self._end = journal, {}, len(text)

    def written(self, begin: int, end: int) -> None:
        """These bytes have been; told again for the same `begin` as they become more."""
        if self._journal is None:
            return
        line = _lines("+", [(begin, end)])
        with self._lock:
            if self._journal is not None:
                # One call of the system: a kill leaves the whole of it or nothing.
                write_at(self._journal, line.encode(), self._place_of(begin, len(line)))

    def _place_of(self, begin: int, n: int) -> int:
        if begin not in self._lines:
            self._lines[begin] = self._end
            self._end += n
        return self._lines[begin]

    def sync(self, fd: int, here: list[Extent]) -> None:
        """Has the system put on the disk what is here."""
        sync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
        sync(fd)
        lines = _lines("=", here)
        with self._lock:
            if self._journal is None:
                return
            write_at(self._journal, lines.encode(), self._end)
            self._end += len(lines)
            journal = os.dup(self._journal)
        sync(journal)  # without the lock: a disk may be slow
        os.close(journal)

    def empty(self) -> None:
        os.ftruncate(self.fd, 0)
        self._drop_journal()

    def finish(self, blob: Path) -> None:
        """All bytes are here and right: gives it its name."""
        os.fsync(self.fd)
        self._drop_journal()  # there are no holes any more
        self.path.replace(blob)
        fs.fsync_folder(blob.parent)

    def remove(self) -> None:
        remove(self.path)

    def close(self) -> None:
        with suppress(OSError):
            if os.fstat(self.fd).st_size == 0:
                self.remove()
        os.close(self.fd)
        self._close_journal()

    def _drop_journal(self) -> None:
        if self._close_journal():
            journal_of(self.path).unlink(missing_ok=True)

    def _close_journal(self) -> bool:
        with self._lock:
            journal, self._journal = self._journal, None
            if journal is not None:
                os.close(journal)
            return journal is not None


def write_at(fd: int, data: bytes | memoryview, at: int) -> None:
    """At once: what has been written survives the death of this process."""
    view = memoryview(data)
    while view:
        n = os.pwrite(fd, view, at)
        view, at = view[n:], at + n


def _lines(kind: str, extents: Iterable[Extent]) -> str:
    return "".join(f"{kind} {begin:015} {end:015}\n" for begin, end in extents)


def _boot_id() -> str:
    """Of this start of the system; empty where it has none, and then a "+" counts for as long as the file."""
    with suppress(OSError):
        return _BOOT_ID.read_text("ascii").strip()
    return ""
