"""The disk: files replaced as a whole, locks, free space, and what its errors mean."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmrun import units
from llmrun.errors import Act, DiskError, Remedy
from llmrun.text import printable


class Locked(Exception):
    """Somebody else holds the lock."""


CHUNK_BYTES = 1 << 20
"""Large files are read and hashed in pieces of this size."""
OnBytes = Callable[[int], None]
"""Gets the bytes that are done so far."""

FREE_SPACE = Act("rm", "MODEL")
"""What helps where a disk is full."""


@contextmanager
def lock(path: Path, *, timeout_s: float = 0, hint: Remedy | None = None) -> Iterator[None]:
    """An exclusive lock between processes; `timeout_s` -1 waits for ever. Raises `Locked`.

    It ends with its process, however that ends. The file stays: to remove it is to give two processes the lock. Raises
    `DiskError`, with this hint, where files can't be locked, as on some network file systems.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(str(path))
    try:
        held.acquire(timeout=timeout_s)
    except Timeout:
        raise Locked(str(path)) from None
    except NotImplementedError:
        raise DiskError(f"the disk of {printable(str(path.parent), 200)} can't lock files", hint=hint) from None
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


def free_bytes(folder: Path) -> int:
    """Bytes that are free where a folder lies, or will lie."""
    return shutil.disk_usage(nearest(folder)).free


def nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def check_space(folder: Path, needed: int, *, what: str, remedies: Iterable[Remedy] = (FREE_SPACE,)) -> None:
    """Raises `DiskError`, with these remedies, unless so many bytes are free where `folder` lies."""
    free, where = free_bytes(folder), nearest(folder)
    if needed > free:
        raise DiskError(
            f"{printable(what)} needs {units.size(needed)}, {units.size(free)} are free on the disk of {where}",
            remedies=remedies,
        )


def check_writable(folder: Path) -> None:
    """Raises `DiskError` where nothing can be written to a folder, which is made."""
    import tempfile

    with disk_errors(f"writing to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # a full disk makes files, and has no room for what is in them


def digest_of(text: str) -> str:
    """Sixteen digits that stand for a text."""
    import hashlib

    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


def sha256_of(path: Path, on_bytes: OnBytes | None = None) -> str:
    """The sha256 of a file in 64 hex digits; `on_bytes` gets the bytes read so far, once per chunk."""
    import hashlib

    sha, buffer, done = hashlib.sha256(), bytearray(CHUNK_BYTES), 0
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            sha.update(view[:n])
            done += n
            if on_bytes is not None:
                on_bytes(done)
    return sha.hexdigest()


def read_ahead(path: Path) -> None:
    """Have the system read a file into its cache while something else is done, where it can."""
    if not hasattr(os, "posix_fadvise"):
        return

    def read() -> None:
        with suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    threading.Thread(target=read, daemon=True).start()


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
        staging.write_bytes(data.encode() if isinstance(data, str) else data)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def shared_file(name: str) -> Iterator[tuple[int, str]]:
    """A file that is gone with the block: its descriptor, and a path that other processes of this user can open.

    In memory where the system can do that, and then gone with this process, however it ends. Raises `OSError`.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(name)
        try:
            yield descriptor, f"/proc/{os.getpid()}/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        import tempfile

        with tempfile.NamedTemporaryFile(suffix=name) as file:
            yield file.fileno(), file.name


def fsync_folder(folder: Path) -> None:
    """Makes a rename in this folder survive a power cut, where the file system can."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def disk_errors(doing: str, *, elsewhere: Remedy | None = None) -> Iterator[None]:
    """Inside, an `OSError` of the disk becomes a `DiskError` that says what was being done. `elsewhere`: what helps
    where it is full and is not the disk of the models."""
    try:
        yield
    except BrokenPipeError:
        raise  # no disk does that: whoever was shown the progress has gone
    except OSError as error:
        raise disk_error(error, doing, elsewhere=elsewhere) from error


def disk_error(error: OSError, doing: str, *, elsewhere: Remedy | None = None) -> DiskError:
    full = "the file is larger than the limit for files (ulimit -f) or than this disk can hold"
    known: dict[int, tuple[str, Remedy | None]] = {
        errno.ENOSPC: ("the disk is full", elsewhere or FREE_SPACE),
        errno.EDQUOT: ("the disk quota is used up", elsewhere or FREE_SPACE),
        errno.EFBIG: (full, "ulimit -f unlimited"),
        errno.EROFS: ("the disk is read-only", None),
        errno.EACCES: ("no permission", None),
        errno.ENOTDIR: ("a file is where a folder should be", None),
        errno.EEXIST: ("a file is in the way", None),
    }
    reason, hint = known.get(error.errno or 0, (error.strerror or str(error), None))
    path = printable(str(error.filename or ""), 200)
    where = f" ({path})" if path and path not in doing else ""
    return DiskError(f"{doing}: {reason}{where}", hint=hint)
