"""The rows of a batch: JSON lines in OpenAI's form, plain lines, or a table in CSV.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": […]}}
    What is the capital of France?
    name,city                                       with a template: "Where is {city}?"

A file is of JSON lines if its first line that is not blank begins with a brace, of CSV if its name ends in .csv or
.tsv. A row that can't be read is a row with a problem: the others are answered.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from llmrun import codec
from llmrun.codec import Raw, Struct
from llmrun.errors import UsageError
from llmrun.text import printable
from llmrun.wire.request import Refused, Request

Form = Literal["jsonl", "lines", "csv"]

_MAX_CELL = 1 << 24
_ID_COLUMNS = ("custom_id", "id")


class _Named(Struct):
    custom_id: str


class _Line(Struct, forbid_unknown_fields=True):
    custom_id: str
    url: str
    body: Raw
    method: str = "POST"


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        number: of its line in the file, from 1.
        id: of the row in this file: its number and a digest of what it says.
        custom_id: the user's; of a plain line its number.
        request: what is asked; None: it can't be read or held, and `problem` says why.
    """

    number: int
    id: str
    custom_id: str | None
    request: Request | None
    problem: Refused | None = None


@dataclass(frozen=True)
class Line:
    """A row as it stands in the file. `cells`: of CSV, by column."""

    number: int
    text: str | None
    cells: Mapping[str, str] | None = None

    def id(self, asked: str) -> str:
        """Of this row when it is `asked` so: with other options its result would be another."""
        said = self.text if self.text is not None else repr(sorted((self.cells or {}).items()))
        digest = hashlib.sha256("\n".join((asked, said)).encode(errors="replace")).hexdigest()
        return f"row-{self.number}-{digest[:16]}"


def form_of(data: bytes, name: str) -> Form:
    """By the name's ending (.csv, .tsv, .jsonl, .ndjson), else by the first line that is not blank."""
    if name.lower().endswith((".csv", ".tsv")):
        return "csv"
    if name.lower().endswith((".jsonl", ".ndjson")):
        return "jsonl"
    return "jsonl" if data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else "lines"


def lines_of(data: bytes, form: Form, name: str) -> list[Line]:
    """Those that are not blank. Raises `UsageError` for a table that is none."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    if form == "csv":
        return [*_table(data, name)]
    found = []
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if raw.strip():
            try:
                found.append(Line(number, raw.decode().rstrip("\r")))
            except UnicodeDecodeError:
                found.append(Line(number, None, {"": raw.hex()}))
    return found


def _table(data: bytes, name: str) -> Iterator[Line]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{printable(name, 200)} is not UTF-8: byte {error.start}") from None
    csv.field_size_limit(_MAX_CELL)
    reader = csv.reader(
        io.StringIO(text, newline=""), "excel-tab" if name.lower().endswith(".tsv") else "excel", strict=True
    )
    try:
        columns = next(reader, [])
        if not columns or len(set(columns)) != len(columns):
            raise UsageError(f"{printable(name, 200)}: its first line has to name each column, once")
        number = reader.line_num + 1
        for cells in reader:
            if cells:
                # A row that is too short or too long is told when it is its turn.
                named = dict(zip(columns, cells, strict=False)) if len(cells) == len(columns) else None
                said = None if named is not None else f"it has {len(cells)} cells, there are {len(columns)} columns"
                yield Line(number, said, named)
            number = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{printable(name, 200)}, line {reader.line_num}: {error}") from None


def _name_of(text: str | None) -> str | None:
    """What a row calls itself, whatever else is wrong with it."""
    try:
        return codec.decode(text or "", _Named).custom_id
    except codec.Malformed:
        return None


class Reading:
    """Lines to rows, one after the other: a `custom_id` is there once."""

    def __init__(
        self,
        form: Form,
        ask: Callable[[str | Mapping[str, str]], Request],
        hold: Callable[..., Request],
        asked: str = "",
    ) -> None:
        """`ask` makes a request of a plain line, or of the cells of a table; `hold` of a body and its url. `asked`: as
        in `Line.id`."""
        self._form, self._ask, self._hold, self._asked = form, ask, hold, asked
        self._known: dict[str, int] = {}

    def rows(self, lines: Sequence[Line]) -> Iterator[Row]:
        for line in lines:
            yield self._row(line)

    def _row(self, line: Line) -> Row:
        custom_id = _name_of(line.text) if self._form == "jsonl" else str(line.number)
        request, problem = None, None
        try:
            custom_id, ask = self._understood(line)
            self._once(custom_id, line.number)
            request = ask()
        except Refused as error:
            problem = error
        return Row(line.number, line.id(self._asked), custom_id, request, problem)

    def _understood(self, line: Line) -> tuple[str, Callable[[], Request]]:
        """Its name, and what makes a request of it. Raises `Refused`."""
        if self._form == "csv":
            if line.cells is None:
                raise Refused(line.text or "", code="invalid_row")
            named = (line.cells[each] for each in _ID_COLUMNS if each in line.cells)
            return next(named, str(line.number)), partial(self._ask, line.cells)
        if line.text is None:
            raise Refused("it is not UTF-8", code="invalid_row")
        if self._form == "lines":
            return str(line.number), partial(self._ask, line.text)
        read = self._read(line.text)
        return read.custom_id, partial(self._hold, read.body, read.url)

    def _read(self, text: str) -> _Line:
        try:
            read = codec.decode(text, _Line)
        except codec.Malformed as error:
            what = f"{error.place} {error.problem}".strip()
            is_json = not error.problem.startswith(("Input data", "JSON is malformed", "Invalid"))
            raise Refused(what if is_json else f"it is not JSON: {what}", error.place or None, "invalid_row") from None
        if read.method != "POST":
            raise Refused(f"method is {read.method!r}: there is POST", "method")
        return read

    def _once(self, custom_id: str, number: int) -> None:
        before = self._known.setdefault(custom_id, number)
        if before != number:
            raise Refused(f"custom_id {custom_id[:60]!r} is that of line {before} too", "custom_id")
