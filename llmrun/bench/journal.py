"""Where records are kept: a journal each, written while the bench runs.

    <state>/bench/20261121-010203-ab12.jsonl
        {"schema": …, "id": …, "machine": …}      the record without its rows
        {"row": …}                                each row when it is finished: one write, flushed to the disk
        {"load": …}                               the same of a bench of a server
        {"record": {"schema": …, …}}              the first line again, when more became known
        {"ended": "2026-11-21T01:05:00Z"}         only if the bench came to its end

A bench that is killed at any moment leaves its finished rows: a last line without its end is as if it were not there.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmrun import fs, paths
from llmrun.bench.load_row import LoadRow
from llmrun.bench.record import Record, Row, read_part, read_record, to_document
from llmrun.clock import utc
from llmrun.errors import Act, NotFound, UsageError

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
        rows: tuple[Row | LoadRow, ...] = (*record.rows, *record.loads)
        for row in rows:
            self.add(row)

    @classmethod
    def of(cls, record: Record) -> Journal:
        """In the folder for all of them, by the record's id."""
        return cls(folder() / (record.id + _SUFFIX), record)

    def add(self, row: Row | LoadRow) -> None:
        """Raises `DiskError`."""
        self._write({"load" if isinstance(row, LoadRow) else "row": to_document(row)})

    def update(self, record: Record) -> None:
        """Everything but rows and loads anew, with what became known meanwhile; the id stays."""
        self._write({"record": _head(record)})

    def end(self, ended: str | None = None) -> None:
        """The bench came to its end, now or at `ended` (UTC)."""
        self._write({"ended": ended or utc()})

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        with fs.disk_errors(f"writing {self.path}"):
            fs.write_all(self._fd, text.encode("utf-8", errors="replace") + b"\n")
            os.fsync(self._fd)


def _head(record: Record) -> dict[str, Any]:
    return {name: value for name, value in to_document(record).items() if name not in ("rows", "loads")}


# -- reading -----------------------------------------------------------------------------------------------------------


def read_file(path: Path) -> Record:
    """A record from its JSON document or its journal. Raises `NotFound` and `UsageError`."""
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise UsageError(f"{path} is not a record of a bench: it has {path.stat().st_size} bytes")
        # A writer that was killed may have left half a character.
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}", hint=Act("bench history")) from None
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror or error}") from None


def parse(text: str, where: str) -> Record:
    """The same from the text; `where` names it in messages."""
    first, _, rest = text.partition("\n")
    head = None
    with suppress(ValueError):
        head = _loads(first)
    if not isinstance(head, dict) or "schema" not in head:  # not a journal: one document over many lines
        try:
            document = _loads(text)
        except ValueError as error:
            raise UsageError(f"{where}: not JSON of a bench: {error}") from None
        return read_record(document, where)
    if "rows" in head:
        return read_record(head, where)
    record = read_record({**head, "rows": []}, where)
    rows: list[Row] = []
    loads: list[LoadRow] = []
    lines = rest.split("\n")
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        try:
            entry = _loads(line)
        except ValueError:
            if number == len(lines) + 1:
                break  # no newline behind it: the writer was killed in the middle of it
            raise UsageError(f"{where}: line {number} is damaged") from None
        match entry:
            case {"row": row}:
                rows.append(read_part(Row, row, where, f"rows[{len(rows)}]"))
            case {"load": load}:
                loads.append(read_part(LoadRow, load, where, f"loads[{len(loads)}]"))
            case {"record": dict() as head}:
                record = read_record({**head, "rows": []}, where)
            case {"ended": str() as ended}:
                record = replace(record, ended=ended)
    return replace(record, rows=tuple(rows), loads=tuple(loads))


def _loads(text: str) -> Any:
    """json.loads without the NaN and Infinity that JSON has not. Raises `ValueError`."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number of JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("lists in lists, too deep to be read") from None


@dataclass(frozen=True)
class StoredBench:
    """A journal in the folder. `record` is None where it can't be read, and `problem` says why."""

    id: str
    path: Path
    record: Record | None
    problem: str | None = None


def stored() -> list[StoredBench]:
    """Every journal there is, the oldest first."""
    found = []
    for path in _paths():
        try:
            found.append(StoredBench(path.stem, path, read_file(path)))
        except (UsageError, NotFound) as error:
            found.append(StoredBench(path.stem, path, None, error.message))
    return found


def find(id_or_prefix: str) -> Path:
    """The journal whose id is, or alone begins with, this; "last" is the newest. Raises `NotFound`, `UsageError`."""
    paths = _paths()
    if id_or_prefix == "last":
        if not paths:
            raise NotFound("no bench is kept on this machine", hint=Act("bench", "MODEL"))
        return paths[-1]
    meant = [path for path in paths if id_or_prefix and path.stem.startswith(id_or_prefix)]
    if not meant:
        raise NotFound(f"no bench of this machine has the id {id_or_prefix!r}", hint=Act("bench history"))
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
