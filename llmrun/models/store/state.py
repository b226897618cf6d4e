"""What is remembered of models: facts of headers, what has been verified, when a model was last used, how fast it came.

One small SQLite file, which knows files by path, size, mtime and inode. It is only a memory: losing it costs time, not
models. What can't be read or written (a full disk, a locked or damaged database) is as if forgotten.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrun import fs, paths
from llmrun.models.store.layout import SHA256

if TYPE_CHECKING:
    from llmrun.gguf.reader import Header


@dataclass(frozen=True)
class HeaderFacts:
    """What `list` shows of a header without reading it again."""

    n_params: int
    architecture: str | None
    label: str | None
    n_ctx_train: int | None

    @classmethod
    def of(cls, header: Header) -> HeaderFacts:
        return cls(header.n_params, header.architecture, header.quantization_label, header.n_ctx_train)


_RATE_BYTES = 8 << 20
_N_RATES = 10


def database() -> Path:
    return paths.state() / "store.sqlite"


_TABLES = """
    create table if not exists files (path text primary key, stamp text, sha256 text, facts text);
    create table if not exists used (model text primary key, at_s real);
    create table if not exists pulls (blob text primary key, repo text, file text, total integer);
    create table if not exists variants (model text primary key);
    create table if not exists rates (n_bytes integer, seconds real);
"""

# SQLite takes the JSON apart: to import a decoder for it takes longer than the rest of what `list` does.
_FILES = """
    select path, stamp, sha256, json_extract(facts, '$.n_params'), json_extract(facts, '$.architecture'),
        json_extract(facts, '$.label'), json_extract(facts, '$.n_ctx_train')
    from (select path, stamp, sha256, case when json_valid(facts) then facts end as facts from files)
"""


def _run(*statements: tuple[str, tuple[object, ...]]) -> list[tuple[Any, ...]]:
    import sqlite3

    path = database()
    rows: list[tuple[Any, ...]] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=2)) as db:
            # Losing the last moments of a memory in a power cut is no reason to wait for the disk.
            db.execute("pragma synchronous = off")
            if not db.execute("select 1 from sqlite_master where name = 'rates'").fetchone():
                db.executescript(_TABLES)
            with db:
                for sql, values in statements:
                    rows = db.execute(sql, [*map(_storable, values)]).fetchall()
    except sqlite3.OperationalError:
        return []
    except sqlite3.DatabaseError:
        with suppress(OSError):
            path.unlink()
    except OSError:
        return []
    return rows


def files() -> dict[str, tuple[str, str | None, HeaderFacts | None]]:
    """All that is remembered about files: path -> (stamp, sha256, facts)."""
    rows = _run((_FILES, ()))
    return {os.fsdecode(path): (stamp, sha256, _facts(*fields)) for path, stamp, sha256, *fields in rows}


def verified_sha256(path: Path) -> str | None:
    """What the file hashed to, if it is still the file that was hashed."""
    with suppress(OSError):
        rows = _run(("select sha256 from files where path = ? and stamp = ?", (os.path.realpath(path), stamp(path))))
        return rows[0][0] if rows else None
    return None


def remember(path: Path, *, sha256: str | None = None, facts: HeaderFacts | None = None) -> None:
    """Adds to what is known of the file as it is now."""
    text = None if facts is None else json.dumps(vars(facts))
    insert = """
        insert into files values (?, ?, ?, ?) on conflict (path) do update set
        sha256 = coalesce(excluded.sha256, sha256), facts = coalesce(excluded.facts, facts)
    """
    with suppress(OSError):
        now = (os.path.realpath(path), stamp(path))
        _run(("delete from files where path = ? and stamp <> ?", now), (insert, (*now, sha256, text)))


def forget(path: Path) -> None:
    """Drops what is known of the file."""
    _run(("delete from files where path = ?", (os.path.realpath(path),)))


def last_used() -> dict[str, float]:
    """Model -> Unix time of its last use."""
    return {os.fsdecode(model): at_s for model, at_s in _run(("select model, at_s from used", ()))}


def used_now(key: str) -> None:
    _run(("insert or replace into used values (?, ?)", (key, time.time())))


def variants() -> set[str]:
    """Models ("user/repo/file", in lower case) that their repository and level do not mean; see `set_variant`."""
    return {model for (model,) in _run(("select model from variants", ()))}


def set_variant(key: str, is_variant: bool) -> None:
    """Notes that the level means another file of the repository, which was removed; or this one again."""
    sql = "insert or ignore into variants values (?)" if is_variant else "delete from variants where model = ?"
    _run((sql, (key.lower(),)))


def pull_begins(blob: Path, repo: str, file: str, total: int) -> None:
    """Lets `list` say which file a partial is to become, and how much of it is missing."""
    _run(("insert or replace into pulls values (?, ?, ?, ?)", (str(blob), repo, file, total)))


def pull_ended(blob: Path) -> None:
    _run(("delete from pulls where blob = ?", (str(blob),)))


def note_rate(n_bytes: int, seconds: float) -> None:
    """Notes that so many bytes came from the hub in so long, pauses included; of few bytes it says little."""
    if n_bytes >= _RATE_BYTES and seconds > 0:
        _run(
            ("insert into rates values (?, ?)", (n_bytes, seconds)),
            ("delete from rates where rowid <= (select max(rowid) from rates) - ?", (_N_RATES,)),
        )


def download_rate() -> float | None:
    """Bytes per second from the hub: the median of the last files; None: none is remembered."""
    from statistics import median

    rates = [n_bytes / seconds for n_bytes, seconds in _run(("select n_bytes, seconds from rates", ()))]
    return median(rates) if rates else None


def pulls() -> dict[str, tuple[str, int]]:
    """Blob -> (file, bytes in all) of the pulls that have begun and not ended."""
    return {blob: (file, total) for blob, file, total in _run(("select blob, file, total from pulls", ()))}


def stamp(path: Path) -> str:
    """What changes when a file's content does. Raises `OSError`."""
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def sha256_of(path: Path, on_bytes: fs.OnBytes | None = None) -> str | None:
    """The sha256 of a file; computed once, and remembered for as long as its size, mtime and inode are the same.

    Files of the hub are named by it in the cache: what was pulled was checked against that. None: the file was written
    to while it was read. Raises `OSError` for one that can't be read.
    """
    target = Path(os.path.realpath(path))
    if "blobs" in (target.parent.name, target.parent.parent.name) and SHA256.fullmatch(target.name):
        return target.name
    known = verified_sha256(target)
    if known is None:
        before = stamp(target)
        known = fs.sha256_of(target, on_bytes)
        if stamp(target) != before:
            return None
        remember(target, sha256=known)
    return known


def _storable(value: object) -> object:
    """The name of a file that is not UTF-8 as the bytes that it is: SQLite has no text for it."""
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        return os.fsencode(value)
    return value


def _facts(*fields: object) -> HeaderFacts | None:
    """None for what `remember` did not write."""
    match fields:
        case (int() as n_params, str() | None as architecture, str() | None as label, int() | None as n_ctx_train):
            return HeaderFacts(n_params, architecture, label, n_ctx_train)
    return None
