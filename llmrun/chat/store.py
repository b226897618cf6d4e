"""Where conversations are kept: one SQLite file, written while they go on.

    <state>/conversations.db     conversations ── turns ── pieces of the answer that is being written
    <state>/chat/<id>.lock       held by the llmrun in which a conversation is open

What a method has done when it returns survives a kill -9: it is one transaction in the write-ahead log, which the
system has by then. (A power cut may lose the last moments and damages nothing: synchronous = normal.) A growing answer
costs one row per piece, however long it is; `finish` puts the whole text in the turn and drops the pieces. If `finish`
was never called, the pieces are the answer, and `Turn.whole` is False.

A search reads every turn: some 40 ms for 50,000 of them, and every build of SQLite can do it. LIKE ignores the case of
ASCII letters only. A text that needs more has its folded form beside it: one that contains "Ä", "ß", an umlaut of two
characters, or a NUL, where LIKE would stop.
"""

from __future__ import annotations

import bisect
import builtins
import errno
import fcntl
import itertools
import json
import os
import re
import shlex
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmrun import fs, paths
from llmrun.clock import utc
from llmrun.errors import Act, DiskError, LlmrunError, NotFound, UsageError
from llmrun.units import fixed

if TYPE_CHECKING:
    import sqlite3

Role = Literal["user", "assistant", "tool"]

TITLE_CHARACTERS = 60
EXCERPT_CHARACTERS = 80
BUSY_S = 5.0
"""Seconds to wait for another llmrun that writes. A transaction takes a millisecond."""
MAX_WORD_CHARACTERS = 1000
"""The longest word to search for. SQLite's LIKE takes 50,000 bytes."""

_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{4}")
_LIST = Act("history list")
_VERSIONS: tuple[tuple[str, ...], ...] = (
    (
        # `seq` orders by the last change where the clock's second is the same, or the clock was set back.
        "create table conversations (key integer primary key, id text not null unique, seq integer not null, "
        "created text not null, updated text not null, model text not null, title text not null, "
        "named integer not null, system text not null, settings text not null)",
        "create index conversations_by_seq on conversations (seq)",
        # The number of a turn that is gone is not given again: a piece for it must not get into another one.
        # `thinking` is the last, so that a search does not read it.
        "create table turns (id integer primary key autoincrement, "
        "conversation integer not null references conversations (key) on delete cascade, role text not null, "
        "whole integer not null, created text not null, model text, stop_reason text, timing text not null, "
        "content text not null, folded text, thinking text not null)",
        "create index turns_by_conversation on turns (conversation)",
        "create index turns_unfinished on turns (id) where not whole",
        "create table pieces (turn integer not null references turns (id) on delete cascade, n integer not null, "
        "content text not null, thinking text not null, primary key (turn, n)) without rowid",
    ),
    ("alter table turns add column calls text not null default '[]'",),
)
"""What makes each version of the tables from the one before it; `user_version` in the file says how many were done."""


def file() -> Path:
    """The database; LLMRUN_HOME moves it."""
    return paths.state() / "conversations.db"


# -- what is kept ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A call of a tool. `arguments`: JSON."""

    id: str = ""
    name: str = ""
    arguments: str = "{}"


@dataclass
class Turn:
    """What one side said, or what came of a call.

    Attributes:
        model: the model that answered; None for the user's turns.
        stop_reason: why the answer ended; None for the user's turns, and for an answer that a kill cut short.
        timing: the meter's numbers; empty where they are unknown.
        created: UTC, ISO 8601 to the second; empty where it is unknown.
        whole: False for an answer that was never finished; `content` is what had been written by then.
        id: its number in the store, or in a document; None where it is not kept.
        calls: of an answer; of a tool's result, the one that it is of.
    """

    role: Role
    content: str
    thinking: str = ""
    created: str = ""
    model: str | None = None
    stop_reason: str | None = None
    timing: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = True
    id: int | None = None
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Conversation:
    id: str
    created: str
    updated: str
    model: str
    title: str
    system: str
    settings: Mapping[str, Any]
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Summary:
    id: str
    created: str
    updated: str
    model: str
    title: str
    n_turns: int


@dataclass(frozen=True)
class Hit:
    """A turn in which all words occur; or, where a title given by hand has them, the conversation's first turn (or 0).

    `excerpt` is one line of about `EXCERPT_CHARACTERS` around the first of the words.
    """

    summary: Summary
    role: Role
    excerpt: str
    turn_id: int


# -- keeping it --------------------------------------------------------------------------------------------------------


class Conversations:
    """The conversations of this machine, through one connection. Several llmruns may have one each.

    with Conversations() as kept:
        id = kept.create("qwen3:4b")
        kept.add(id, Turn("user", "Hello"))
        number = kept.begin_answer(id, "qwen3:4b")
        kept.append(number, "Good ")
        kept.finish(number, Turn("assistant", "Good morning.", stop_reason="stop"))

    To be used by the thread that made it. All methods raise `DiskError` if the disk fails or the file is damaged, and
    `NotFound` for an id that is not there (any more).
    """

    def __init__(self, path: Path | None = None) -> None:
        """Makes folder and file if there are none. Raises `DiskError`, and `UsageError` for a newer llmrun's file."""
        try:
            import sqlite3
        except ImportError as error:
            raise DiskError(
                f"this Python has no SQLite, in which conversations are kept: {error}",
                hint="install a Python with its sqlite3 module",
            ) from None
        self._sqlite3 = sqlite3
        self.path = path or file()
        self._held: set[str] = set()
        with fs.disk_errors(f"making {self.path}"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Only what is new is opened: to close a descriptor of a file would end this process's locks on it.
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with self._errors():
            self._db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Conversations:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing --

    def create(self, model: str, *, system: str = "", settings: Mapping[str, Any] | None = None) -> str:
        """A conversation without turns; returns its id."""
        from llmrun.clock import new_id  # not above: what only reads would take a tenth longer to start

        model, system, now = _storable(model), _storable(system), utc()
        with self._transaction() as db:
            while True:
                id = new_id()
                if not db.execute("select 1 from conversations where id = ?", (id,)).fetchone():
                    break
            db.execute(
                "insert into conversations (id, seq, created, updated, model, title, named, system, settings) "
                "values (?, (select coalesce(max(seq), 0) + 1 from conversations), ?, ?, ?, '', 0, ?, ?)",
                (id, now, now, model, system, json.dumps(dict(settings or {}))),
            )
        return id

    def add(self, id: str, turn: Turn) -> int:
        """One turn more, as of now; returns its number. One that is not whole grows by `append` until `finish`."""
        model = None if turn.model is None else _storable(turn.model)
        with self._transaction() as db:
            key = self._touch(db, id)
            done = db.execute(
                "insert into turns "
                "(conversation, role, whole, created, model, stop_reason, timing, content, folded, thinking, calls) "
                "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (key, turn.role, turn.whole, utc(), model, turn.stop_reason, *_columns(turn)),
            )
            if turn.role == "user":
                self._retitle(db, key)
        assert done.lastrowid is not None
        return done.lastrowid

    def begin_answer(self, id: str, model: str) -> int:
        """A turn that will grow; returns its number."""
        return self.add(id, Turn("assistant", "", model=model, whole=False))

    def append(self, turn: int, content: str, thinking: str = "") -> None:
        """One piece more of an answer: kept from now on, whatever ends this process."""
        with self._errors():
            done = self._db.execute(
                "insert into pieces select id, (select coalesce(max(n), 0) + 1 from pieces where turn = ?1), ?2, ?3 "
                "from turns where id = ?1 and not whole",
                (turn, _storable(content), _storable(thinking)),
            )
        if done.rowcount == 0:
            raise _no_answer(turn)

    def finish(self, number: int, turn: Turn) -> None:
        """The answer as a whole, in the place of its pieces."""
        with self._transaction() as db:
            row = db.execute(
                "select id from conversations where key = (select conversation from turns where id = ? and not whole)",
                (number,),
            ).fetchone()
            if row is None:
                raise _no_answer(number)
            db.execute(
                "update turns set whole = 1, stop_reason = ?, timing = ?, content = ?, folded = ?, thinking = ?, "
                "calls = ? where id = ?",
                (turn.stop_reason or "cancelled", *_columns(turn), number),
            )
            db.execute("delete from pieces where turn = ?", (number,))
            self._touch(db, row[0])

    def drop(self, id: str, turn_ids: Sequence[int]) -> None:
        """Takes turns out of a conversation. A title that was theirs goes with them."""
        with self._transaction() as db:
            key = self._touch(db, id)
            db.executemany("delete from turns where id = ? and conversation = ?", [(turn, key) for turn in turn_ids])
            self._retitle(db, key, anew=True)

    def change(
        self,
        id: str,
        *,
        model: str | None = None,
        system: str | None = None,
        title: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Replaces what is given. A title stays as it is from then on; "" restores the automatic one."""
        plain = None if settings is None else json.dumps(dict(settings))
        with self._transaction() as db:
            key = self._touch(db, id)
            for column, text in (("model", model), ("system", system), ("settings", plain)):
                if text is not None:
                    db.execute(f"update conversations set {column} = ? where key = ?", (_storable(text), key))
            if title is not None:
                title = " ".join(_storable(title).split())
                db.execute("update conversations set title = ?, named = ? where key = ?", (title, title != "", key))
                self._retitle(db, key)

    def remove(self, ids: Sequence[str]) -> None:
        """Removes conversations, all or none, and gives their space back: nothing of them is left in the file.

        Raises `UsageError` for one that is open in another llmrun.
        """
        ids = [*dict.fromkeys(ids)]
        with ExitStack() as locks:
            for id in ids:
                # Not all of them: a thousand locks would be a thousand open files.
                if id not in self._held and self._lock_file(id).exists():
                    locks.enter_context(self.alone(id))
            with self._transaction() as db:
                for id in ids:
                    db.execute("delete from conversations where key = ?", (self._key(db, id),))
            with self._errors():
                # Without room for the copy that VACUUM makes, what was removed is overwritten all the same
                # (secure_delete), and its space is used again.
                with suppress(self._sqlite3.OperationalError):
                    self._db.execute("vacuum")
                # The log, too, still has what was removed.
                self._db.execute("pragma wal_checkpoint(truncate)").fetchall()

    @contextmanager
    def alone(self, id: str) -> Iterator[None]:
        """Inside, no other llmrun gets this conversation. Raises `UsageError` if one has it now.

        Not by `fs.lock`: the file says which process holds it, and is removed at the end. There is one for each
        conversation that was ever opened, where the files of `fs.lock`, which stay, are few.
        """
        path = self._lock_file(id)
        with fs.disk_errors(f"locking {path}"):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            fd = _locked(path, id)
        try:
            with fs.disk_errors(f"locking {path}"):
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            self._held.add(id)
            yield
        finally:
            self._held.discard(id)
            with suppress(OSError):
                path.unlink()  # while we hold it: whoever opened it meanwhile sees that it is gone, and makes a new one
            os.close(fd)

    def _lock_file(self, id: str) -> Path:
        if not _ID.fullmatch(id):
            raise _no_conversation(id)
        return self.path.parent / "chat" / f"{id}.lock"

    # -- reading --

    def find(self, reference: str) -> str:
        """The id that equals `reference`, or the only one that begins with it; "last" is the last changed.

        Raises `NotFound`, and `UsageError` if several begin with it.
        """
        if reference == "last" and (last := self.last()):
            return last
        with self._transaction("deferred") as db:
            rows = db.execute(
                "select id from conversations where substr(id, 1, length(?1)) = ?1 order by id = ?1 desc, id desc",
                (_storable(reference),),
            ).fetchall()
        ids = [row[0] for row in rows]
        if not ids or not reference:
            raise _no_conversation(reference)
        if len(ids) > 1 and ids[0] != reference:
            some = ", ".join(ids[:3])
            raise UsageError(
                f"{len(ids)} conversations have ids that begin with {reference!r}: {some}", hint="more of the id"
            )
        return str(ids[0])

    def read(self, id: str) -> Conversation:
        with self._transaction("deferred") as db:
            key = self._key(db, id)
            columns = "id, created, updated, model, title, system, settings"
            row = db.execute(f"select {columns} from conversations where key = ?", (key,)).fetchone()
            columns = "id, role, content, thinking, created, model, stop_reason, timing, whole, calls"
            rows = db.execute(f"select {columns} from turns where conversation = ? order by id", (key,)).fetchall()
            turns = []
            for turn, role, content, thinking, created, model, stop_reason, timing, whole, calls in rows:
                content, thinking = (content, thinking) if whole else self._pieces(db, turn)
                timing = _mapping(timing)
                said = Turn(role, content, thinking, created, model, stop_reason, timing, bool(whole), turn)
                said.calls = tuple(Call(*each) for each in json.loads(calls))
                turns.append(said)
        id, created, updated, model, title, system, settings = row
        return Conversation(id, created, updated, model, title, system, _mapping(settings), tuple(turns))

    def last(self) -> str | None:
        """The id of the conversation that was changed last."""
        with self._errors():
            row = self._db.execute("select id from conversations order by seq desc limit 1").fetchone()
        return row[0] if row else None

    def list(self, limit: int | None = None) -> builtins.list[Summary]:
        """The last changed first."""
        with self._errors():
            rows = self._db.execute(f"{_SUMMARIES} order by seq desc limit ?", (_limit(limit),)).fetchall()
        return [Summary(*row[1:]) for row in rows]

    def search(self, words: str, limit: int | None = None) -> builtins.list[Hit]:
        """The turns in which all of the words occur, the latest first; before them conversations with such a title.

        A word is any text between blanks; case is ignored. Thinking is not searched. Without words nothing is found.
        Raises `UsageError` for a word that is too long.
        """
        wanted = [*dict.fromkeys(_folded(_storable(words)).split())]
        if longest := max(map(len, wanted), default=0):
            if longest > MAX_WORD_CHARACTERS:
                raise UsageError(f"a word of {longest:,} characters is too long: up to {MAX_WORD_CHARACTERS:,}")
        else:
            return []
        with self._transaction("deferred") as db:
            found = [*self._in_titles(db, wanted), *self._in_turns(db, wanted, limit)]
            found = found if limit is None else found[: max(0, limit)]
            summaries = self._summaries(db, {key for key, *_ in found})
        return [Hit(summaries[key], role, excerpt(text, wanted[0]), turn) for key, turn, role, text in found]

    def _in_titles(self, db: sqlite3.Connection, wanted: builtins.list[str]) -> Iterator[_Found]:
        # An automatic title is from a turn, which is found itself.
        columns = "key, (select min(id) from turns where conversation = key), title"
        for key, turn, title in db.execute(f"select {columns} from conversations where named order by seq desc"):
            if _has(title, wanted):
                yield key, turn or 0, "user", title

    def _in_turns(self, db: sqlite3.Connection, wanted: builtins.list[str], limit: int | None) -> builtins.list[_Found]:
        has = " and ".join(["coalesce(folded, content) like ? escape '\\'"] * len(wanted))
        patterns = ["%" + re.sub(r"([\\%_])", r"\\\1", word) + "%" for word in wanted]
        found: builtins.list[_Found] = db.execute(
            f"select conversation, id, role, content from turns where {has} order by id desc limit ?",
            (*patterns, _limit(limit)),
        ).fetchall()
        for key, turn, role in db.execute("select conversation, id, role from turns where not whole").fetchall():
            content, _ = self._pieces(db, turn)
            if _has(content, wanted):
                found.append((key, turn, role, content))
        return sorted(found, key=lambda each: each[1], reverse=True)

    def _summaries(self, db: sqlite3.Connection, keys: Iterable[int]) -> dict[int, Summary]:
        rows = (db.execute(f"{_SUMMARIES} where key = ?", (key,)).fetchone() for key in keys)
        return {row[0]: Summary(*row[1:]) for row in rows}

    # -- the tables --

    def _key(self, db: sqlite3.Connection, id: str) -> int:
        row = db.execute("select key from conversations where id = ?", (_storable(id),)).fetchone()
        if row is None:
            raise _no_conversation(id)
        return int(row[0])

    def _touch(self, db: sqlite3.Connection, id: str) -> int:
        """Marks it as the last changed; returns its key."""
        key = self._key(db, id)
        db.execute(
            "update conversations set updated = ?, seq = (select max(seq) + 1 from conversations) where key = ?",
            (utc(), key),
        )
        return key

    def _retitle(self, db: sqlite3.Connection, key: int, *, anew: bool = False) -> None:
        """Titles it after the user's first turn unless it has a title; `anew`: unless it has one given by hand."""
        title, named = db.execute("select title, named from conversations where key = ?", (key,)).fetchone()
        if named or (title and not anew):
            return
        columns = "content from turns where conversation = ? and role = 'user' order by id limit 1"
        row = db.execute(f"select {columns}", (key,)).fetchone()
        db.execute("update conversations set title = ? where key = ?", (title_of(row[0]) if row else "", key))

    def _pieces(self, db: sqlite3.Connection, turn: int) -> tuple[str, str]:
        rows = db.execute("select content, thinking from pieces where turn = ? order by n", (turn,)).fetchall()
        return "".join(row[0] for row in rows), "".join(row[1] for row in rows)

    def _prepare(self) -> None:
        deadline_s = time.monotonic() + BUSY_S
        with self._errors():
            version = self._version()
            self._db.execute("pragma synchronous = normal")
            self._db.execute("pragma secure_delete = on")
            self._db.execute("pragma foreign_keys = on")
        while version < len(_VERSIONS):
            with self._errors():
                try:
                    self._db.execute("pragma journal_mode = wal").fetchall()
                except self._sqlite3.OperationalError as error:
                    # Another llmrun is making the file, too; here SQLite does not wait by itself.
                    if "locked" not in str(error) or time.monotonic() > deadline_s:
                        raise
                    time.sleep(0.02)
                    continue
            with self._transaction() as db:
                for statements in _VERSIONS[self._version() :]:
                    for statement in statements:
                        db.execute(statement)
                db.execute(f"pragma user_version = {len(_VERSIONS)}")
            version = len(_VERSIONS)

    def _version(self) -> int:
        version = int(self._db.execute("pragma user_version").fetchone()[0])
        if version > len(_VERSIONS):
            raise UsageError(
                f"{self.path} was written by a newer llmrun: its version is {version}, this llmrun knows up to "
                f"{len(_VERSIONS)}",
                hint=f"update llmrun, or begin anew: {_set_aside(self.path)}",
            )
        return version

    @contextmanager
    def _transaction(self, kind: Literal["immediate", "deferred"] = "immediate") -> Iterator[sqlite3.Connection]:
        """All of it or nothing; "deferred" is for reading one state, whatever others write meanwhile."""
        with self._errors():
            try:
                self._db.execute(f"begin {kind}")
                yield self._db
                self._db.execute("commit")
            except BaseException:  # a Ctrl-C, too
                if self._db.in_transaction:
                    with suppress(self._sqlite3.Error):
                        self._db.execute("rollback")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Translates SQLite's errors. Those that only a bug can cause stay as they are."""
        try:
            yield
        except (self._sqlite3.ProgrammingError, self._sqlite3.InterfaceError):
            raise
        except self._sqlite3.Error as error:
            # A plain `DatabaseError` is a damaged file; these say what else is wrong.
            others = (self._sqlite3.OperationalError, self._sqlite3.DataError, self._sqlite3.IntegrityError)
            raise _translated(self.path, str(error), damaged=not isinstance(error, others)) from error


_Found = tuple[int, int, Role, str]
"""The conversation's key, the turn, whose it is, its text."""
_SUMMARIES = (
    "select key, id, created, updated, model, title, (select count(*) from turns where conversation = key) "
    "from conversations"
)


def _translated(path: Path, reason: str, *, damaged: bool) -> LlmrunError:
    # By the text, which has been the same for decades: only Python 3.11 tells the code.
    if "full" in reason:
        return fs.disk_error(OSError(errno.ENOSPC, reason), f"writing {path}")
    if "readonly" in reason or "read-only" in reason:
        return DiskError(f"writing {path}: no permission, or the disk is read-only")
    if "unable to open" in reason:
        return DiskError(f"opening {path}: no permission, or no file that can be opened")
    if "locked" in reason:
        return DiskError(f"{path} has been in use by another program for {fixed(BUSY_S, 0)} s", hint=_LIST)
    if "disk I/O" in reason:
        return DiskError(f"{path}: the disk failed, or a file may not grow further (ulimit -f): {reason}")
    if damaged or any(sign in reason for sign in ("malformed", "no such", "has no column", "decode")):
        return DiskError(f"{path} is damaged: {reason}", hint=f"move it away: {_set_aside(path)}")
    return DiskError(f"{path}: {reason}")


def _set_aside(path: Path) -> str:
    return f"mv {shlex.quote(str(path))} {shlex.quote(f'{path}.old')}"


def _no_conversation(id: str) -> NotFound:
    return NotFound(f"no conversation on this machine has the id {id!r}", hint=_LIST)


def _no_answer(turn: int) -> NotFound:
    return NotFound(f"turn {turn} is not being written: it was finished or removed", hint=_LIST)


def _locked(path: Path, id: str) -> int:
    """A descriptor of the file at `path`, locked. Raises `UsageError`."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder removes it at the end: then we have locked a file that no other process will find.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return fd
        except BlockingIOError:
            pid = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            os.close(fd)
            whose = f" (pid {pid})" if pid.isdigit() else ""
            raise UsageError(f"conversation {id} is open in another llmrun{whose}", hint="close it there") from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _columns(turn: Turn) -> tuple[str, str, str | None, str, str]:
    """timing, content, folded, thinking, calls"""
    content, calls = _storable(turn.content), [[each.id, each.name, each.arguments] for each in turn.calls]
    return json.dumps({**turn.timing}), content, _kept_folded(content), _storable(turn.thinking), json.dumps(calls)


def _limit(limit: int | None) -> int:
    return -1 if limit is None else max(0, limit)


def _mapping(text: str) -> dict[str, Any]:
    with suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    return {}


# -- text --------------------------------------------------------------------------------------------------------------


def title_of(content: str) -> str:
    """The first line that is not blank, in at most `TITLE_CHARACTERS`."""
    line = next((line for line in content.splitlines() if line.strip()), "")
    title = " ".join(line.split())
    return title if len(title) <= TITLE_CHARACTERS else title[: TITLE_CHARACTERS - 1].rstrip() + "…"


def excerpt(text: str, word: str) -> str:
    """One line of about `EXCERPT_CHARACTERS` of the text, around the first `word` (folded)."""
    text = unicodedata.normalize("NFC", text)
    folded = _folded(text)
    at = max(0, folded.find(word))
    if len(folded) != len(text):  # "ß" became "ss": about the same place, then
        ends = [*itertools.accumulate(len(_folded(character)) for character in text)]
        at = bisect.bisect_right(ends, at)
    begin = max(0, min(at - EXCERPT_CHARACTERS // 3, len(text) - EXCERPT_CHARACTERS))
    end = begin + EXCERPT_CHARACTERS
    line = " ".join(text[begin:end].split())
    return ("…" if begin else "") + line + ("…" if end < len(text) else "")


def _storable(text: str) -> str:
    """As UTF-8 can hold it: halves of a surrogate pair become one character, a lone half U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _folded(text: str) -> str:
    """For comparison: without case, umlauts as one character, no NUL."""
    if text.isascii():
        return text.lower().replace("\0", " ")
    return unicodedata.normalize("NFC", text.casefold()).replace("\0", " ")


_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def _kept_folded(content: str) -> str | None:
    """What LIKE has to read instead of the content; None if the content will do."""
    if content.isascii() and "\0" not in content:
        return None
    folded = _folded(content)
    return None if folded == content.translate(_ASCII_LOWER) else folded


def _has(text: str, wanted: Iterable[str]) -> bool:
    folded = _folded(text)
    return all(word in folded for word in wanted)
