"""A limit on the memory of one process, the pages of its mapped files among it: by a control group of Linux.

`ulimit` counts what is mapped, not what is resident; a control group is what can say "this process has so much RAM".
Making one takes the right to, which root has, and users of systemd may have.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmrun.errors import EngineCrashed

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@contextmanager
def memory_box(limit_bytes: int, *, v1: Path = _V1, v2: Path = _V2) -> Iterator[Path]:
    """A group with that limit; `put` moves a process into it. Removed at the end, when its processes are gone.

    Raises `EngineCrashed` where none can be made.
    """
    root, name = (v1, "memory.limit_in_bytes") if v1.is_dir() else (v2, "memory.max")
    group = root / f"llmrun-{os.getpid()}"
    try:
        if group.exists():  # of a process that was killed
            group.rmdir()
        group.mkdir()
        try:
            (group / name).write_text(str(limit_bytes))
        except OSError:
            group.rmdir()
            raise
    except OSError as error:
        raise EngineCrashed(
            f"no control group with a limit of memory can be made ({error.strerror}): that takes the right to"
        ) from None
    with suppress(OSError):
        (group / "memory.swap.max").write_text("0")
    try:
        yield group
    finally:
        with suppress(OSError):
            group.rmdir()


def put(group: Path, pid: int) -> None:
    """Raises `EngineCrashed`."""
    try:
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        raise EngineCrashed(f"a process can't be put into a control group: {error.strerror}") from None


def forget_pages(path: Path) -> None:
    """Take a file out of the page cache, so that whoever reads it next is charged for it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
