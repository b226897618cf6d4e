"""The results of a batch on disk: a line for each row, appended whole, so that the same file can be gone on with.

    {"id": "row-7-3f2a…", "custom_id": "a", "response": {"status_code": 200, "body": {…}}, "error": null}

A writer that is killed leaves whole lines and at most a part of one, which is taken off when the next one begins.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from llmrun import codec, fs
from llmrun.codec import Struct
from llmrun.errors import Change, DiskError, UsageError
from llmrun.text import printable

_GROUP, _GROUP_S = 64, 2.0
"""Results are on the disk, and not only with the system, after so many, or so many seconds."""


_ANOTHER = Change({"output": "ANOTHER"})
_BEGIN = b'{"id":"row-'
"""Of each line. Of what a file ends with, nothing else is taken off: it may be somebody's own."""


class _Known(Struct):
    id: str
    error: Any


class Results:
    """A file of results, locked while it is open. A context manager.

    Attributes:
        done: ids of the rows that have a result; whether it is an error.
    """

    def __init__(self, path: Path) -> None:
        """Begins the file, or goes on with it. Raises `DiskError`, and `UsageError` for a file that holds something
        else."""
        self.path, self._where = path, printable(str(path), 200)
        self._waiting, self._synced_s = 0, time.monotonic()
        self.done: dict[str, bool] = {}
        with fs.disk_errors(f"writing {self._where}"):
            is_new = not path.exists()
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)  # and not a pipe
        try:
            self._lock()
            with fs.disk_errors(f"reading {self._where}"):
                self._read()
            if is_new:
                fs.fsync_folder(path.parent)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """All of it is on the disk then."""
        try:
            self._sync()
        finally:
            os.close(self._fd)

    def add(self, result: dict[str, Any]) -> None:
        """Raises `DiskError`; the file then ends with the last whole line."""
        line = codec.encode(result) + b"\n"
        before = os.fstat(self._fd).st_size
        with fs.disk_errors(f"writing {self._where}"):
            try:
                fs.write_all(self._fd, line)
            except OSError:
                if self._is_file:
                    os.ftruncate(self._fd, before)
                raise
        self.done[str(result["id"])] = result["error"] is not None
        self._waiting += 1
        if self._waiting >= _GROUP or time.monotonic() - self._synced_s > _GROUP_S:
            self._sync()

    def check(self, ids: Iterable[str]) -> None:
        """Raises `UsageError` where there are results of rows that are not among these."""
        if strange := self.done.keys() - set(ids):
            one = min(strange)
            raise UsageError(
                f"{self._where} has results of other rows or with other options than these: {printable(one, 60)}",
                hint=_ANOTHER,
            )

    def _sync(self) -> None:
        if self._waiting and self._is_file:
            with fs.disk_errors(f"writing {self._where}"):
                os.fsync(self._fd)
        self._waiting, self._synced_s = 0, time.monotonic()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DiskError(f"another batch is writing to {self._where}", hint=_ANOTHER) from None
        except OSError:
            pass  # a disk that can't lock, or a pipe

    def _read(self) -> None:
        if not self._is_file:
            return
        with os.fdopen(os.dup(self._fd), "rb") as file:
            whole = self._known(file)
        if os.fstat(self._fd).st_size > whole:
            os.ftruncate(self._fd, whole)

    def _known(self, file: BinaryIO) -> int:
        """Takes note of what is there; the bytes of the lines that are whole."""
        whole = 0
        for number, line in enumerate(file, start=1):
            try:
                known = codec.decode(line, _Known)
            except codec.Malformed:
                if not line.endswith(b"\n") and (line.startswith(_BEGIN) or _BEGIN.startswith(line)):
                    break  # the writer was killed in the middle of it
                raise UsageError(
                    f"{self._where} is not a file of results: line {number} is not one", hint=_ANOTHER
                ) from None
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            self.done[known.id] = known.error is not None
        return whole
