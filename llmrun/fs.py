"""The disk: files replaced as a whole, locks, free space, and what its errors mean."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from llmrun import units
from llmrun.errors import Act, DiskError, Remedy
from llmrun.text import printable


class Locked(Exception):
    """Somebody else holds the lock."""


FREE_SPACE = Act("rm", "MODEL")
"""What helps where a disk is full."""


@contextmanager
def lock(path: Path, *, timeout_s: float = 0) -> Iterator[None]:
    """An exclusive lock between processes; `timeout_s` -1 waits for ever. Raises `Locked`.

    It ends with its process, however that ends. The file stays: to remove it is to give two processes the lock.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(str(path))
    try:
        held.acquire(timeout=timeout_s)
    except Timeout:
        raise Locked(str(path)) from None
    try:
        yield
    finally:
        held.release()


def is_running(pid: int) -> bool:
    """Whether there is such a process, ours or not; a zombie counts."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # somebody else's
    return True


def check_space(folder: Path, needed: int, *, what: str, hint: Remedy | None = None) -> None:
    """Raises `DiskError`, with this hint or the usual one, unless so many bytes are free where `folder` lies."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DiskError(
            f"{printable(what)} needs {units.size(needed)}, {units.size(free)} are free on the disk of {existing}",
            hint=hint or FREE_SPACE,
        )


def write_all(fd: int, data: bytes | memoryview) -> None:
    """os.write until all is written; on a full disk the last part that fits has been."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_atomically(path: Path, data: str | bytes, *, staging_folder: Path | None = None) -> None:
    """Replaces a small file as a whole. `staging_folder` on the same disk, where a left-over does no harm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = (staging_folder or path.parent) / f".{path.name}.{os.getpid()}.tmp"
    try:
        if isinstance(data, str):
            staging.write_text(data)
        else:
            staging.write_bytes(data)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Makes a rename in this folder survive a power cut, where the file system can."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def _disk_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # no disk does that: whoever was shown the progress has gone
    except OSError as error:
        raise disk_error(error, doing) from error


def disk_errors(doing: str) -> AbstractContextManager[None]:
    """Inside, an `OSError` of the disk becomes a `DiskError` that says what was being done."""
    return _disk_errors(doing)


def disk_error(error: OSError, doing: str) -> DiskError:
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file is larger than the limit for files (ulimit -f) or than this disk can hold",
        errno.EROFS: "the disk is read-only",
        errno.EACCES: "no permission",
    }
    hints: dict[int, Remedy] = {errno.ENOSPC: FREE_SPACE, errno.EDQUOT: FREE_SPACE, errno.EFBIG: "ulimit -f unlimited"}
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    where = f" ({printable(str(error.filename), 200)})" if error.filename else ""
    return DiskError(f"{doing}: {reason}{where}", hint=hints.get(error.errno or 0))
