"""How fast a disk reads what is in no cache: what a model that is larger than memory pays for every token."""

from __future__ import annotations

import mmap
import os
import re
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from llmrun.machine.proc import ROOT, text_of

MIB = 1 << 20
_BLOCK = 4 * MIB
_IN_MEMORY = {"tmpfs", "ramfs"}


def read_bytes_per_s(
    folders: Iterable[Path], *, seconds: float = 0.5, least_bytes: int = 64 * MIB, mounts: Path = ROOT / "self/mounts"
) -> float | None:
    """Bytes per second of plain reads, past the page cache (O_DIRECT), of the disk on which the models lie.

    Of the largest model in the folders; a file of `least_bytes` is written to the first one that there is, for as long
    as that takes, where none is that large. None where the folders lie in memory, or the system can't read past its
    cache. What lies behind, a virtual machine's host for one, may have a cache of its own.
    """
    there = [folder for folder in folders if folder.is_dir() and _kind_of(folder, mounts) not in _IN_MEMORY]
    try:
        if model := _largest(there, least_bytes):
            return _direct_rate(model, seconds)
        if not there:
            return None
        with tempfile.NamedTemporaryFile(prefix=".llmrun-disk-", dir=there[0]) as made:
            for _ in range(0, least_bytes, MIB):
                made.write(os.urandom(MIB))  # what can't be compressed
            made.flush()
            os.fsync(made.fileno())
            return _direct_rate(Path(made.name), seconds)
    except OSError:
        return None


def _largest(folders: Iterable[Path], least_bytes: int) -> Path | None:
    """The largest file of a model; in the hub's cache these have no names of their own."""
    found = [
        (path.stat().st_size, path)
        for folder in folders
        for pattern in ("*.gguf", "*/*.gguf", "models--*/blobs/*")
        for path in folder.glob(pattern)
        if path.is_file()
    ]
    return max((each for each in found if each[0] >= least_bytes), default=(0, None))[1]


def _direct_rate(path: Path, seconds: float) -> float | None:
    if not hasattr(os, "O_DIRECT"):
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, _BLOCK) as block:  # aligned, as O_DIRECT wants it
            done, begin = 0, time.perf_counter()
            while (n := os.readv(descriptor, [block])) > 0:
                done += n
                if n < _BLOCK or time.perf_counter() - begin >= seconds:
                    break
            taken = time.perf_counter() - begin
        return done / taken if done >= _BLOCK else None
    finally:
        os.close(descriptor)


def _kind_of(folder: Path, mounts: Path) -> str | None:
    """The kind of file system that a folder is on: "ext4"; None where the system does not tell."""
    here, depth, kind = folder.resolve(), 0, None
    for line in text_of(mounts).splitlines():
        parts = line.split(" ")
        if len(parts) > 2:
            where = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), parts[1]))
            if here.is_relative_to(where) and len(where.parts) >= depth:  # the last one mounted hides the others
                depth, kind = len(where.parts), parts[2]
    return kind
