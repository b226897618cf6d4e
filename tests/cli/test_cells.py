"""Cells of a terminal: what one character is to the eye, and tables, bars and words that are measured in them."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios

import pytest
from terminal import Terminal
from wcwidth import wcswidth

from llmrun.cli.terminal import cells, screen, tables
from llmrun.cli.terminal.page import wrapped

FAMILY = "👨\u200d👩\u200d👧"
ACCENT = "e\u0301"
HEART = "❤\ufe0f"
FLAG = "🇩🇪"
WAVE = "👋🏽"


@pytest.mark.parametrize(
    ("text", "n_cells"),
    [
        ("plain", 5),
        ("漢字", 4),
        ("한국어", 6),
        ("ｆｕｌｌ", 8),
        (ACCENT, 1),
        ("a\u0300\u0301b", 2),
        (FAMILY, 2),
        (HEART, 2),
        ("❤", 1),
        (FLAG, 2),
        (FLAG + FLAG, 4),
        (WAVE, 2),
        ("ไทย", 3),
        ("", 0),
    ],
)
def test_cells_of_a_text(text: str, n_cells: int) -> None:
    """Two for East Asian characters and emoji, none for what combines; wcwidth says the same of the whole."""
    assert cells.of_text(text) == n_cells == wcswidth(text)


@pytest.mark.parametrize(
    ("text", "room", "shown"),
    [
        ("four", 4, "four"),
        ("fiver", 4, "fiv…"),
        ("漢字漢字", 8, "漢字漢字"),
        ("漢字漢字", 7, "漢字漢…"),
        ("漢字漢字", 6, "漢字…"),
        (f"a{FAMILY}b", 3, "a…"),
        (f"{ACCENT}{ACCENT}{ACCENT}", 2, f"{ACCENT}…"),
        ("漢字", 1, "…"),
    ],
)
def test_clipped(text: str, room: int, shown: str) -> None:
    """No character is cut in two, and what is left out has a mark."""
    assert cells.clipped(text, room) == shown
    assert cells.of_text(shown) <= room


def test_words_wrap_by_cells() -> None:
    """Six characters of two cells are twelve cells; a word that would fit on the next line goes there whole."""
    assert wrapped("漢字漢字漢字", 8) == ["漢字漢字", "漢字"]
    assert wrapped("see a-word-of-thirty-characters-all", 34) == ["see", "a-word-of-thirty-characters-all"]
    assert wrapped(f"{FAMILY} {FAMILY} {FAMILY}", 5) == [f"{FAMILY} {FAMILY}", FAMILY]
    assert wrapped("", 8) == [""]


def test_columns_of_a_table_stand_below_each_other() -> None:
    """Whatever the cells are made of, the next column begins in the same cell, and no line is wider than asked."""
    names = ["plain", "漢字", FAMILY, ACCENT * 3, FLAG, HEART]
    rows = [(name, f"{name} " * 12) for name in names]
    made = tables.lines(("NAME", "WHAT…"), rows, 40)
    assert all(wcswidth(line) <= 40 for line in made)
    firsts = [line for line in made if line[0] != " "][1:]
    assert [wcswidth(line[: line.index(name, len(name))]) for line, name in zip(firsts, names, strict=True)] == [7] * 6


def resize(descriptor: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))


def test_the_terminal_is_asked_for_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """COLUMNS, which a shell may export and which follows no resize, does not count; a pipe has 80."""
    monkeypatch.setenv("COLUMNS", "33")
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "wb"), os.fdopen(theirs, "w") as stream:
        resize(theirs, 57)
        assert screen.columns(stream) == 57
        resize(theirs, 61)
        assert screen.columns(stream) == 61
    assert screen.columns(stream) == 80, "closed"
    reads, writes = os.pipe()
    with os.fdopen(reads, "rb"), os.fdopen(writes, "w") as stream:
        assert screen.columns(stream) == 80


def test_a_table_is_as_wide_as_the_terminal() -> None:
    """On 100 columns the catalog's descriptions are wrapped at 100, not at COLUMNS."""
    with Terminal("list", "--catalog", columns=100, lines=200, env={"COLUMNS": "50"}) as terminal:
        assert terminal.wait() == 0
        assert 80 < max(len(row) for row in terminal.rows) <= 100
