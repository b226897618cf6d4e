"""Rows put out as they are measured: to whoever takes text, or to a file that is whole after every row."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from llmrun import fs
from llmrun.bench.export.formats import STREAMED, Format, writer, writer_of_loads
from llmrun.bench.load_row import LoadRow
from llmrun.bench.observer import Observer
from llmrun.bench.record import Record, Row

_FOR_PEOPLE: frozenset[Format] = frozenset({"table", "md"})
"""A table for each bench; in the others, the rows of several benches are one document."""


class ExportStream(Observer):
    """The rows of one bench, or of several one after the other, in one format. A context manager: leaving it closes
    the document."""

    def __init__(self, format: Format, put: Callable[[str], None]) -> None:
        """`put` takes the text that comes next."""
        self._format, self._put = format, put
        self._writer, self._writer_of_loads = writer(format), writer_of_loads(format)
        self._record: Record | None = None

    def began(self, record: Record, planned: Sequence[Row], *, energy: bool) -> None:
        self._begin(record, self._writer.begin(record, planned, energy=energy))

    def loads_began(self, record: Record, planned: Sequence[LoadRow]) -> None:
        self._begin(record, self._writer_of_loads.begin(record, planned))

    def _begin(self, record: Record, text: str) -> None:
        is_first, self._record = self._record is None, record
        if is_first or self._format in _FOR_PEOPLE:
            self._put(text)

    def finished(self, row: Row) -> None:
        self._put(self._writer.row(row))

    def load_finished(self, row: LoadRow) -> None:
        self._put(self._writer_of_loads.row(row))

    def ended(self, record: Record) -> None:
        self._record = record
        if self._format in _FOR_PEOPLE:
            self._put(self._end(record))

    def close(self) -> None:
        if self._format not in _FOR_PEOPLE and self._record:
            self._put(self._end(self._record))

    def _end(self, record: Record) -> str:
        return self._writer.end(record) if record.server is None else self._writer_of_loads.end(record)

    def __enter__(self) -> ExportStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ExportFile(ExportStream):
    """The same in a file, whole after every row. Every method may raise `DiskError`.

    What can be read without its end is appended to, and flushed to the disk. JSON and SQL are replaced as a whole:
    whatever happens, even a SIGKILL, there is a document with all finished rows, or none.
    """

    def __init__(self, path: Path, format: Format) -> None:
        """Replaces what is in the file, once a bench begins."""
        super().__init__(format, self._write)
        self.path = Path(os.path.realpath(path))  # a link stays one
        # A pipe or a terminal takes text as it comes, and must not be replaced by a file.
        self._appends = format in STREAMED or (self.path.exists() and not self.path.is_file())
        self._text = ""
        self._begun = False

    def close(self) -> None:
        if self._appends:
            super().close()

    def _write(self, text: str) -> None:
        with fs.disk_errors(f"writing {self.path}"):
            if not self._appends:
                assert self._record
                self._text += text
                fs.write_atomically(self.path, self._text + self._end(self._record))
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
