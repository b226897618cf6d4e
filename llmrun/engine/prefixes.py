"""What the beginnings of prompts were computed to, on disk, for the next process. Both sides of the engine use this.

    <cache>/prompts/<key>/<n>-<digest>.prefix

    a line of JSON    schema, key, model, n_tokens, n_bytes
    n_tokens x int32  the tokens, little endian
    n_bytes           the state, as llama.cpp gave it
    32 bytes          sha256 of all before

A key stands for the model's content, the build and the settings that change what is computed; a digest for the exact
tokens. A state is read by native code that trusts it: it reaches llama.cpp only after sum, key and tokens were found to
be right. It holds what somebody said: only its owner can read it, and `llmrun prompt-cache rm` removes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from llmrun import codec, fs, paths
from llmrun.codec import Struct
from llmrun.engine.protocol import PrefixStore

SCHEMA = "llmrun.prefix/1"
LIMIT_BYTES = 4 << 30
"""Of all of them together."""
LEAST_TOKENS = 256
"""Fewer are computed in the time that a file takes."""
_NAME = re.compile(r"(\d{1,9})-([0-9a-f]{32})\.prefix")
_SUM_BYTES = 32
_MOST_HEAD = 4096
_SAMPLES, _SAMPLE_BYTES = 64, 4096


class Damaged(Exception):
    """The file is not what it says."""


class _Head(Struct):
    schema: str
    key: str
    model: str
    n_tokens: int
    n_bytes: int


class Kept(NamedTuple):
    """A beginning: its tokens, and the state in memory of ours, from `offset` on."""

    tokens: list[int]
    data: bytearray
    offset: int
    n_bytes: int


def folder() -> Path:
    """Where all of them lie. LLMRUN_HOME moves it, as it does the store."""
    return paths.cache() / "prompts"


def key_of(files: Sequence[Path], settings: object) -> str:
    """Of a model's files and of all that changes what is computed.

    A file is known by its size and by 64 pieces of it: two models differ in nearly all of their weights, and reading
    all of a file would take longer than a prompt. Raises `OSError`.
    """
    found = hashlib.sha256(codec.encode(codec.plain(settings)))
    for path in files:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            found.update(size.to_bytes(8, "little"))
            for i in range(_SAMPLES):
                file.seek(i * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                found.update(file.read(_SAMPLE_BYTES))
    return found.hexdigest()[:32]


def longest(store: PrefixStore, tokens: Sequence[int], more_than: int) -> Path | None:
    """The longest beginning of these tokens that is kept, if it has more than so many; the last token is left to be
    computed."""
    named = [(int(match[1]), match[2], path) for path, match in _named(Path(store.folder))]
    found, hashed, done = None, hashlib.sha256(), 0
    for n, digest, path in sorted(named):
        if not more_than < n < len(tokens):
            continue
        hashed.update(_bytes_of(tokens[done:n]))
        done = n
        if hashed.copy().hexdigest()[:32] == digest:
            found = path
    return found


def read(store: PrefixStore, path: Path, tokens: Sequence[int]) -> Kept:
    """Raises `Damaged`, `OSError`. It counts as used now."""
    with path.open("rb") as file:
        data = bytearray(os.fstat(file.fileno()).st_size)
        n_read = file.readinto(data)
    end = len(data) - _SUM_BYTES
    if n_read != len(data) or end <= 0 or hashlib.sha256(memoryview(data)[:end]).digest() != data[end:]:
        raise Damaged("its sum is wrong")
    line = data.find(b"\n", 0, _MOST_HEAD)
    try:
        head = codec.decode(bytes(data[:line]), _Head)
    except codec.Malformed as error:
        raise Damaged(f"its head is wrong: {error}") from None
    begin = line + 1
    offset = begin + 4 * head.n_tokens
    if head.schema != SCHEMA or head.key != store.key or offset + head.n_bytes != end or head.n_tokens < 1:
        raise Damaged("it is of another model or build")
    if data[begin:offset] != _bytes_of(tokens[: head.n_tokens]):
        raise Damaged("it is of another prompt")
    with suppress(OSError):
        os.utime(path)
    return Kept(list(tokens[: head.n_tokens]), data, offset, head.n_bytes)


def write(store: PrefixStore, tokens: Sequence[int], state: memoryview) -> None:
    """Keep it as a whole or not at all, and remove the oldest ones where they are too many. Raises `OSError`."""
    target = Path(store.folder)
    path = target / f"{len(tokens)}-{hashlib.sha256(_bytes_of(tokens)).hexdigest()[:32]}.prefix"
    if path.exists():
        return
    head = codec.encode(_Head(SCHEMA, store.key, store.model, len(tokens), len(state))) + b"\n"
    needed = len(head) + 4 * len(tokens) + len(state) + _SUM_BYTES
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    if needed > store.limit_bytes or needed > fs.free_bytes(target) // 2:
        return
    make_room(target.parent, store.limit_bytes - needed)
    part = target / f".{os.getpid()}-{time.monotonic_ns()}.part"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            found = hashlib.sha256()
            for piece in (head, _bytes_of(tokens), state):
                found.update(piece)
                fs.write_all(descriptor, piece)
            fs.write_all(descriptor, found.digest())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Entry:
    """One of them, as it is listed. `used_s`: when it was last, seconds of the epoch."""

    path: Path
    model: str
    n_tokens: int
    n_bytes: int
    used_s: float

    @property
    def id(self) -> str:
        """Of it among all: of the file's name the digest."""
        return self.path.stem.partition("-")[2][:12]


def entries(where: Path | None = None) -> list[Entry]:
    """All, the one that was used last first. Of a file that can't be read the model is unknown."""
    found = []
    for path, match in _all(where or folder()):
        try:
            stat = path.stat()
            with path.open("rb") as file:
                model = codec.decode(file.readline(_MOST_HEAD), _Head).model
        except FileNotFoundError:
            continue
        except (OSError, codec.Malformed):
            model = ""
        found.append(Entry(path, model, int(match[1]), stat.st_size, stat.st_mtime))
    return sorted(found, key=lambda entry: -entry.used_s)


def make_room(where: Path, limit_bytes: int) -> None:
    """Remove the oldest ones, as far as all together are more than so many bytes; what a dead writer left goes too."""
    for part in where.glob("*/.*.part"):
        pid = part.name[1:].partition("-")[0]
        if not (pid.isdigit() and fs.is_running(int(pid))):
            part.unlink(missing_ok=True)
    total = 0
    for entry in entries(where):
        total += entry.n_bytes
        if total > limit_bytes:
            entry.path.unlink(missing_ok=True)


def _all(where: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    for each in sorted(where.glob("*")):
        yield from _named(each)


def _named(where: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    try:
        files = [*where.iterdir()]
    except OSError:
        return
    for path in files:
        if match := _NAME.fullmatch(path.name):
            yield path, match


def _bytes_of(tokens: Sequence[int]) -> bytes:
    numbers = array("i", tokens)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
