"""Conversations on disk: nothing that was kept is lost, whatever happens to the process; search."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import HANGS_S

from llmrun.chat import store
from llmrun.chat.store import Conversations, Turn, excerpt, title_of
from llmrun.errors import Act, DiskError, NotFound, UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "conversations.db"


@pytest.fixture
def kept(path: Path) -> Iterator[Conversations]:
    with Conversations(path) as opened:
        yield opened


def said(kept: Conversations, *texts: str) -> str:
    """A conversation in which user and model say these in turn."""
    id = kept.create("tiny")
    for i, text in enumerate(texts):
        kept.add(id, Turn("assistant" if i % 2 else "user", text, model="tiny" if i % 2 else None))
    return id


def python(code: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "import sys\nfrom llmrun.chat.store import *\n" + code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload, no-any-return]


# -- one conversation --------------------------------------------------------------------------------------------------


def test_comes_back(kept: Conversations, path: Path) -> None:
    """What goes in comes out, of another connection as well; the file is the user's alone."""
    id = kept.create("qwen3:4b", system="Be kind.", settings={"temp": 0.6, "stop": ["\n"]})
    asked = kept.add(id, Turn("user", "Hello\nworld"))
    answered = kept.begin_answer(id, "qwen3:4b")
    kept.append(answered, "Good ", "hm")
    kept.append(answered, "day", "m")
    with Conversations(path) as other:
        growing = other.read(id).turns[1]
        assert (growing.content, growing.thinking, growing.whole, growing.stop_reason) == (
            "Good day",
            "hmm",
            False,
            None,
        )
    kept.finish(answered, Turn("assistant", "Good day.", thinking="Hmm.", timing={"ttft_s": 0.25}, stop_reason="stop"))
    with Conversations(path) as other:
        read = other.read(id)
    assert (read.model, read.title, read.system) == ("qwen3:4b", "Hello", "Be kind.")
    assert read.settings == {"temp": 0.6, "stop": ["\n"]}
    user, answer = read.turns
    assert (user.id, user.role, user.content, user.model, user.whole) == (asked, "user", "Hello\nworld", None, True)
    assert (answer.id, answer.content, answer.thinking, answer.model) == (answered, "Good day.", "Hmm.", "qwen3:4b")
    assert (answer.stop_reason, answer.timing, answer.whole) == ("stop", {"ttft_s": 0.25}, True)
    assert path.stat().st_mode & 0o777 == 0o600
    for suffix in ("-wal", "-shm"):
        assert path.with_name(path.name + suffix).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("a\0b", "a\0b"),
        ("\ud83d\ude00", "😀"),
        ("a\ud800", "a\ufffd"),
        ("\udc00b", "\ufffdb"),
        ("", ""),
        ("'; drop table turns --", "'; drop table turns --"),
    ],
)
def test_any_text(kept: Conversations, text: str, stored: str) -> None:
    """NUL, halves of surrogate pairs, quotes: in every field that takes text."""
    id = kept.create(text, system=text, settings={"x": text})
    kept.add(id, Turn("user", text, thinking=text))
    turn = kept.begin_answer(id, text)
    kept.append(turn, text, text)
    assert (kept.read(id).turns[1].content, kept.read(id).turns[1].model) == (stored, stored)
    kept.finish(turn, Turn("assistant", text, thinking=text, stop_reason="stop"))
    kept.change(id, title=text)
    read = kept.read(id)
    assert (read.model, read.system) == (stored, stored)
    assert [(turn.content, turn.thinking) for turn in read.turns] == [(stored, stored)] * 2


def test_title(kept: Conversations) -> None:
    """The first thing the user said, in one line, until one is given by hand."""
    assert title_of("\n \n  What   is\tthis?\nMore") == "What is this?"
    assert len(title_of("word " * 50)) <= 60 and title_of("word " * 50).endswith("word…")
    id = kept.create("tiny")
    assert kept.read(id).title == ""
    first = kept.add(id, Turn("user", "First"))
    kept.add(id, Turn("user", "Second"))
    assert kept.read(id).title == "First"
    kept.drop(id, [first])
    assert kept.read(id).title == "Second"
    kept.change(id, title="By\nhand")
    kept.drop(id, [turn.id or 0 for turn in kept.read(id).turns])
    assert kept.read(id).title == "By hand"
    kept.add(id, Turn("user", "Third"))
    kept.change(id, title="")
    assert kept.read(id).title == "Third"


def test_change_and_drop(kept: Conversations) -> None:
    """What is not named stays; a turn that was dropped takes no more pieces, and neither does a finished one."""
    id = kept.create("tiny", system="Old", settings={"temp": 1})
    kept.change(id, model="qwen3:4b", settings={"temp": 0})
    read = kept.read(id)
    assert (read.model, read.system, read.settings) == ("qwen3:4b", "Old", {"temp": 0})
    turn = kept.begin_answer(id, "tiny")
    kept.append(turn, "x")
    kept.drop(id, [turn, 999])
    assert kept.read(id).turns == ()
    with pytest.raises(NotFound):
        kept.append(turn, "y")
    with pytest.raises(NotFound):
        kept.finish(turn, Turn("assistant", "y", stop_reason="stop"))
    assert kept.begin_answer(id, "tiny") != turn
    other = said(kept, "mine")
    kept.drop(id, [kept.read(other).turns[0].id or 0])
    assert len(kept.read(other).turns) == 1


def test_find_and_order(kept: Conversations) -> None:
    """By id, by how one alone begins, and "last": the one that was changed last, within a second too."""
    assert kept.last() is None and kept.list() == []
    for nothing in ("last", "", "2026"):
        with pytest.raises(NotFound):
            kept.find(nothing)
    first, second, third = (said(kept, f"question {i}", "answer") for i in range(3))
    assert [each.id for each in kept.list()] == [third, second, first]
    kept.add(first, Turn("user", "again"))
    assert kept.find("last") == kept.last() == first
    assert [each.id for each in kept.list(2)] == [first, third]
    assert [each.n_turns for each in kept.list()] == [3, 2, 2]
    assert kept.find(second) == second and kept.find(third[:-1]) == third
    with pytest.raises(UsageError, match="3 conversations"):
        kept.find("20")
    for unknown in ("%", "_", "20"[::-1], "x" * 10_000):
        with pytest.raises(NotFound):
            kept.find(unknown)
    for unknown in ("no", "../../x"):
        for use in (kept.read, lambda id: kept.remove([id]), lambda id: kept.add(id, Turn("user", "x"))):
            with pytest.raises(NotFound) as caught:
                use(unknown)
            assert caught.value.remedies == (Act("history list"),)


# -- search ------------------------------------------------------------------------------------------------------------


def found(kept: Conversations, words: str) -> list[str]:
    return [hit.excerpt for hit in kept.search(words)]


def test_search(kept: Conversations) -> None:
    """All words in one turn, anywhere in a word, without regard to case in any script; the latest first."""
    said(kept, "Äpfel und STRASSEN", "100% of_it c:\\temp", "ΣΊΣΥΦΟΣ", "a\0 behind NUL", "cafe\u0301 decomposed")
    said(kept, "plain words", "words, plainly")
    assert found(kept, "äpfel") == found(kept, "ÄPFEL straße") == ["Äpfel und STRASSEN"]
    assert found(kept, "äpfel plain") == []
    assert (
        found(kept, "%") == found(kept, "_") == found(kept, "OF_IT 0%") == found(kept, "\\t") == ["100% of_it c:\\temp"]
    )
    assert found(kept, "σίσυφος") == ["ΣΊΣΥΦΟΣ"]
    assert found(kept, "behind nul") == ["a\0 behind NUL"]
    assert found(kept, "café") == found(kept, "CAFE\u0301") == ["café decomposed"]
    assert found(kept, "word  PLAIN") == ["words, plainly", "plain words"]
    assert [hit.excerpt for hit in kept.search("plain", 1)] == ["words, plainly"]
    assert found(kept, "") == found(kept, " \n") == []
    with pytest.raises(UsageError, match="60,000"):
        kept.search("x" * 60_000)
    assert found(kept, "ä" * 1000) == []


def test_search_what_is_not_finished(kept: Conversations) -> None:
    """A killed answer is found by its pieces, even across two of them; a title by hand by its words."""
    id = said(kept, "question")
    turn = kept.begin_answer(id, "tiny")
    kept.append(turn, "an ele")
    kept.append(turn, "phant, ÜBER")
    (hit,) = kept.search("über elephant")
    assert (hit.turn_id, hit.role, hit.summary.id, hit.summary.n_turns) == (turn, "assistant", id, 2)
    kept.change(id, title="Großes Tier")
    (hit,) = kept.search("GROSSES")
    assert (hit.excerpt, hit.role, hit.turn_id) == ("Großes Tier", "user", kept.read(id).turns[0].id)


def test_excerpt() -> None:
    """One line of about 80 characters, around the word, also where folding changes the length."""
    assert excerpt("short\n text", "text") == "short text"
    for before in ("x " * 500, "ß " * 500, "e\u0301 " * 500):
        line = excerpt(before + "needle\n" + "y " * 500, "needle")
        assert "needle" in line and len(line) <= 82 and line[0] == line[-1] == "…"
    assert excerpt("x " * 500 + "needle", "needle").endswith("needle")


# -- kills, crowds, damage ---------------------------------------------------------------------------------------------


WRITER = """
with Conversations(Path(sys.argv[1])) as kept:
    id = kept.create("tiny")
    kept.add(id, Turn("user", "go"))
    turn = kept.begin_answer(id, "tiny")
    print(id, flush=True)
    n = 0
    while True:
        kept.append(turn, f"{n} ", f"t{n} ")
        print(n, flush=True)
        n += 1
        if n % 40 == 0:
            kept.finish(turn, Turn("assistant", "".join(f"{i} " for i in range(n - 40, n)), stop_reason="stop"))
            turn = kept.begin_answer(id, "tiny")
"""


def test_kill(path: Path) -> None:
    """Eight times kill -9 at some moment: every piece whose append returned is there."""
    for round in range(8):
        child = python(WRITER, str(path))
        assert child.stdout
        id, acknowledged = child.stdout.readline().strip(), -1
        while acknowledged < 30 * round:
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        for line in child.stdout.read().splitlines(keepends=True):
            if line.endswith("\n"):
                acknowledged = int(line)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        with Conversations(path) as kept:
            turns = kept.read(id).turns[1:]
            numbers = [int(each) for each in "".join(turn.content for turn in turns).split()]
            assert numbers[: acknowledged + 1] == [*range(acknowledged + 1)]
            assert len(numbers) - (acknowledged + 1) in (0, 1)
            assert [turn.whole for turn in turns[:-1]] == [True] * (len(turns) - 1)
            assert len(kept.list()) == round + 1
    with sqlite3.connect(path) as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    db.close()


def test_crowd(path: Path) -> None:
    """Four processes that begin at once with no file there: each makes, writes, reads and removes without an error."""
    code = """
for i in range(20):
    with Conversations(Path(sys.argv[1])) as kept:
        id = kept.create(sys.argv[2])
        turn = kept.begin_answer(id, "tiny")
        for n in range(10): kept.append(turn, "x")
        kept.finish(turn, Turn("assistant", "x" * n, stop_reason="stop"))
        assert kept.find(id) == id and kept.search("x")
        if i % 5 == 0: kept.remove([kept.create("gone")])
"""
    children = [python(code, str(path), f"model{i}") for i in range(4)]
    for child in children:
        child.communicate(timeout=HANGS_S)
    assert [child.returncode for child in children] == [0] * 4
    with Conversations(path) as kept:
        assert sorted(each.model for each in kept.list()) == sorted([f"model{i}" for i in range(4)] * 20)


def test_two_in_one_process(path: Path) -> None:
    """A second connection does not end the first one's locks when it opens and closes."""
    with Conversations(path) as first, Conversations(path) as second:
        with first._transaction() as db:
            db.execute("insert into turns select * from turns")
            Conversations(path).close()
            second._db.execute("pragma busy_timeout = 10")
            with pytest.raises(DiskError, match="in use"):
                second.create("tiny")
        second.create("tiny")


def test_alone(kept: Conversations, path: Path) -> None:
    """One llmrun at a time; whoever is told so is told which. A kill leaves no lock, the end no file."""
    id = said(kept, "x")
    code = """
with Conversations(Path(sys.argv[1])) as kept, kept.alone(sys.argv[2]):
    print(1, flush=True)
    sys.stdin.read()
"""
    child = python(code, str(path), id, stdin=subprocess.PIPE)
    assert child.stdout and child.stdin
    child.stdout.readline()
    with pytest.raises(UsageError, match=f"{id} is open in another llmrun \\(pid {child.pid}\\)"), kept.alone(id):
        pass
    with pytest.raises(UsageError, match="is open"):
        kept.remove([id])
    child.kill()
    child.communicate()
    with kept.alone(id):
        open_here = pytest.raises(UsageError, match=f"pid {os.getpid()}")
        with Conversations(path) as other, open_here, other.alone(id):
            pass
        kept.remove([id])  # by the one that has it
    assert kept.list() == [] and [*(path.parent / "chat").iterdir()] == []
    with pytest.raises(NotFound), kept.alone("../x"):
        pass


def test_remove(kept: Conversations, path: Path) -> None:
    """The space is given back, and not a byte of what was said is left; what else there is stays."""
    stays = said(kept, "stays")
    goes = [said(kept, *[f"SECRET{i} " * 400] * 20) for i in range(20)]
    turn = kept.begin_answer(goes[0], "tiny")
    kept.append(turn, "SECRET piece", "SECRET thought")
    kept.change(goes[1], title="SECRET title", system="SECRET system")
    with pytest.raises(NotFound):
        kept.remove([goes[0], "20261121-000000-0000"])
    assert len(kept.list()) == 21
    before = sum(each.stat().st_size for each in path.parent.glob("conversations.db*"))
    kept.remove([*goes, goes[0]])
    assert [each.id for each in kept.list()] == [stays]
    assert path.stat().st_size < 16 * 4096 < before
    for file in path.parent.rglob("*"):
        assert not file.is_file() or b"SECRET" not in file.read_bytes(), file


def test_dropped_is_gone(path: Path) -> None:
    """A turn that was taken back is overwritten."""
    with Conversations(path) as kept:
        id = said(kept, "stays", "SECRET " * 2000)
        kept.drop(id, [kept.read(id).turns[1].id or 0])
    assert b"SECRET" not in path.read_bytes()


@pytest.mark.parametrize("damage", ["garbage", "header", "truncated", "middle", "no tables"])
def test_damaged(path: Path, damage: str) -> None:
    """An error in words with the way out, whatever the damage is; after it, a new file is made."""
    with Conversations(path) as kept:
        for i in range(40):
            said(kept, f"{i} " * 1000)
    data = path.read_bytes()
    spoilt = {
        "garbage": b"not a database" * 1000,
        "header": b"\xff" * 100 + data[100:],
        "truncated": data[: len(data) // 2],
        "middle": data[:4096] + b"\xa5" * (len(data) - 4096),
        "no tables": b"",
    }[damage]
    path.write_bytes(spoilt)
    if damage == "no tables":
        with sqlite3.connect(path) as db:
            db.execute("pragma user_version = 1")
        db.close()
    with pytest.raises(DiskError, match="is damaged") as caught, Conversations(path) as kept:
        kept.search("39")
        for each in kept.list():
            kept.read(each.id)
    assert caught.value.hint and f"mv {path} {path}.old" in caught.value.hint
    path.rename(f"{path}.old")
    with Conversations(path) as kept:
        assert kept.list() == []


def test_newer(path: Path) -> None:
    """A later version's file is left as it is."""
    Conversations(path).close()
    with sqlite3.connect(path) as db:
        db.execute("pragma user_version = 99")
    db.close()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="written by a newer llmrun: its version is 99"):
        Conversations(path)
    assert path.read_bytes() == before


def test_disk(path: Path) -> None:
    """No folder, no room, no right to write: an error of the disk, and what was kept stays."""
    with Conversations(path) as kept:
        id = said(kept, "stays")
    with pytest.raises(DiskError):
        Conversations(path / "conversations.db")
    with pytest.raises(DiskError, match="opening"):
        Conversations(path.parent)
    with Conversations(path) as kept:
        kept._db.execute("pragma max_page_count = 1")
        with pytest.raises(DiskError, match="the disk is full"):
            kept.add(id, Turn("user", "x" * 100_000))
        assert len(kept.read(id).turns) == 1
        kept._db.execute("pragma query_only = on")
        with pytest.raises(DiskError, match="read-only"):
            kept.add(id, Turn("user", "x"))


def test_ulimit(path: Path) -> None:
    """A file that may not grow (ulimit -f) is the disk's error too."""
    code = """
from llmrun.errors import DiskError
with Conversations(Path(sys.argv[1])) as kept:
    id = kept.create("tiny")
    try: kept.add(id, Turn("user", "x" * 1_000_000))
    except DiskError as error: print(error.message)
"""
    limit = 200_000
    child = python(code, str(path), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    out, _ = child.communicate(timeout=HANGS_S)
    assert child.returncode == 0 and "ulimit -f" in out, out


def test_no_sqlite(path: Path) -> None:
    """A Python without SQLite says so."""
    code = """
sys.modules["_sqlite3"] = None
from llmrun.errors import DiskError
try: Conversations(Path(sys.argv[1]))
except DiskError as error: print(error.message)
"""
    out, _ = python(code, str(path)).communicate(timeout=HANGS_S)
    assert "this Python has no SQLite" in out
    assert not path.exists()


def test_imported_late() -> None:
    """The module alone loads no SQLite."""
    child = python("print('sqlite3' in sys.modules, 'llama_cpp' in sys.modules)")
    assert child.communicate(timeout=HANGS_S)[0].split() == ["False", "False"]


def test_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLMRUN_HOME moves it."""
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path))
    assert store.file() == tmp_path / "state" / "conversations.db"
    with Conversations() as kept:
        assert kept.path == store.file() and kept.path.exists()
