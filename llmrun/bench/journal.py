"""Where records are kept: a journal each, written while the bench runs, and the files that a user asked for.

    <state>/bench/20261121-010203-ab12.jsonl
        {"schema": …, "id": …, "machine": …}      the record without its rows
        {"row": …}                                each row when it is finished: one write, flushed to the disk
        {"record": {"schema": …, …}}              the first line again, when more became known
        {"ended": "2026-11-21T01:05:00Z"}         only if the bench came to its end

A bench that is killed at any moment leaves its finished rows: a last line without its end is as if it were not there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from llmrun import fs, paths
from llmrun.bench import exports
from llmrun.bench.exports import Format
from llmrun.bench.record import Record, Row, read_part, read_record, to_document
from llmrun.clock import utc
from llmrun.errors import NotFound, UsageError

_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{4}")
_SUFFIX = ".jsonl"
MAX_RECORD_BYTES = 1 << 28
"""A record of a day's bench has a few megabytes. What is larger is another file, given by mistake."""


def folder() -> Path:
    """Where journals lie: beside the store's own memory, so that LLMRUN_HOME moves it too."""
    return paths.state() / "bench"


# -- writing -----------------------------------------------------------------------------------------------------------


class Journal:
    """One bench's record on disk, as it grows. Each line is one write, and on the disk when the call returns.

    with Journal.of(record) as journal:
        journal.add(row)
    """

    def __init__(self, path: Path, record: Record) -> None:
        """Begins a new file; raises `DiskError` if it is there already, or can't be written."""
        self.path = path
        with fs.disk_errors(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._write(_head(record))
        fs.fsync_folder(path.parent)
        for row in record.rows:
            self.add(row)

    @classmethod
    def of(cls, record: Record) -> Journal:
        """In the folder for all of them, by the record's id."""
        return cls(folder() / (record.id + _SUFFIX), record)

    def add(self, row: Row) -> None:
        """Raises `DiskError`."""
        self._write({"row": to_document(row)})

    def update(self, record: Record) -> None:
        """Everything but the rows anew, with what became known meanwhile; the id stays."""
        self._write({"record": _head(record)})

    def end(self, ended: str | None = None) -> None:
        """The bench came to its end, now or at `ended` (UTC)."""
        self._write({"ended": ended or utc()})

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        with fs.disk_errors(f"writing {self.path}"):
            fs.write_all(self._fd, text.encode("utf-8", errors="replace") + b"\n")
            os.fsync(self._fd)


def _head(record: Record) -> dict[str, Any]:
    document: dict[str, Any] = to_document(record)
    del document["rows"]
    return document


class Output:
    """The file of `--output`, in any format but the terminal's, whole after every row.

    What can be read without its end is appended to, line by line, and flushed to the disk. JSON and SQL are replaced as
    a whole: whatever happens, even a SIGKILL, there is a document with all finished rows, or none.
    """

    def __init__(self, path: Path, format: Format) -> None:
        self.path = Path(os.path.realpath(path))  # a link stays one
        self._writer = exports.writer(format)
        # A pipe or a terminal takes text as it comes, and must not be replaced by a file.
        self._appends = format in exports.STREAMED or (self.path.exists() and not self.path.is_file())
        self._text = ""
        self._begun = False

    def begin(self, record: Record, planned: Sequence[Row], *, energy: bool = False) -> None:
        """Replaces what was in the file. Raises `DiskError`, as the others do."""
        self._record = record
        self._add(self._writer.begin(record, planned, energy=energy))

    def row(self, row: Row) -> None:
        self._record = replace(self._record, rows=(*self._record.rows, row))
        self._add(self._writer.row(row))

    def end(self, record: Record | None = None) -> None:
        """`record`: with whatever became known at the end; else as begun, with its rows."""
        if self._appends:
            self._add(self._writer.end(record or self._record))

    def _add(self, text: str) -> None:
        with fs.disk_errors(f"writing {self.path}"):
            if not self._appends:
                self._text += text
                fs.write_atomically(self.path, self._text + self._writer.end(self._record))
                return
            if not self._begun:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_APPEND if self._begun else os.O_TRUNC)
            fd = os.open(self.path, flags, 0o666)
            try:
                fs.write_all(fd, text.encode("utf-8", errors="replace"))
                with suppress(OSError):  # a pipe, /dev/stdout
                    os.fsync(fd)
            finally:
                os.close(fd)
            self._begun = True


# -- reading -----------------------------------------------------------------------------------------------------------


def read_file(path: Path) -> Record:
    """A record from its JSON document or its journal. Raises `NotFound` and `UsageError`."""
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise UsageError(f"{path} is no record of a bench: it has {path.stat().st_size} bytes")
        # A writer that was killed may have left half a character.
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}", hint="llmrun bench history list") from None
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror or error}") from None


def parse(text: str, where: str) -> Record:
    """The same from the text; `where` names it in messages."""
    first, _, rest = text.partition("\n")
    try:
        head = json.loads(first)
    except ValueError:
        head = None
    if not isinstance(head, dict) or "schema" not in head:  # not a journal: one document over many lines
        try:
            document = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{where}: no JSON of a bench: {error}") from None
        return read_record(document, where)
    if "rows" in head:
        return read_record(head, where)
    record = read_record({**head, "rows": []}, where)
    rows: list[Row] = []
    lines = rest.split("\n")
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            if number == len(lines) + 1:
                break  # no newline behind it: the writer was killed in the middle of it
            raise UsageError(f"{where}: line {number} is damaged") from None
        if isinstance(entry, dict) and "row" in entry:
            rows.append(read_part(Row, entry["row"], where, f"rows[{len(rows)}]"))
        elif isinstance(entry, dict) and isinstance(entry.get("record"), dict):
            record = read_record({**entry["record"], "rows": []}, where)
        elif isinstance(entry, dict) and isinstance(entry.get("ended"), str):
            record = replace(record, ended=entry["ended"])
    return replace(record, rows=tuple(rows))


@dataclass(frozen=True)
class Kept:
    """A journal in the folder. `record` is None where it can't be read, and `problem` says why."""

    id: str
    path: Path
    record: Record | None
    problem: str | None = None


def kept() -> list[Kept]:
    """Every journal there is, the oldest first."""
    found = []
    for path in _paths():
        try:
            found.append(Kept(path.stem, path, read_file(path)))
        except (UsageError, NotFound) as error:
            found.append(Kept(path.stem, path, None, error.message))
    return found


def find(id_or_prefix: str) -> Path:
    """The journal whose id is, or alone begins with, this; "last" is the newest. Raises `NotFound`, `UsageError`."""
    paths = _paths()
    if id_or_prefix == "last" and paths:
        return paths[-1]
    meant = [path for path in paths if id_or_prefix and path.stem.startswith(id_or_prefix)]
    if not meant:
        raise NotFound(f"no bench of this machine has the id {id_or_prefix!r}", hint="llmrun bench history list")
    if len(meant) > 1 and (folder() / (id_or_prefix + _SUFFIX)) not in meant:
        some = ", ".join(path.stem for path in meant[:3])
        raise UsageError(f"{len(meant)} benches have ids that begin with {id_or_prefix!r}: {some}", hint="write more")
    return meant[0]


def remove(path: Path) -> None:
    """Raises `DiskError`."""
    with fs.disk_errors(f"removing {path}"):
        path.unlink(missing_ok=True)


def _paths() -> list[Path]:
    try:
        return sorted(p for p in folder().iterdir() if p.suffix == _SUFFIX and _ID.fullmatch(p.stem))
    except OSError:
        return []
