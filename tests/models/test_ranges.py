"""Which bytes are here, which come next, and over how many connections: without a network."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from llmrun.models.hub.connection_count import ConnectionCount
from llmrun.models.hub.ranges import LEAST_BYTES, Range, Ranges
from llmrun.models.store import partial
from llmrun.models.store.partial import Partial, bytes_here, extents_of, journal_of, merged, write_at

MIB = 1 << 20


# --- how many connections


def counts(
    rate_of: dict[int, float], n: int, *, left: float = 1e12, connections: ConnectionCount | None = None
) -> list[int]:
    """Of a line that brings `rate_of[count]` bytes per second, after each of `n` rates."""
    chosen = connections or ConnectionCount()
    return [chosen.measured(rate_of[chosen.count], int(left)) for _ in range(n)]


def test_grows_while_it_gains() -> None:
    """Each connection brings 20 MB/s, whatever the others do: eight after three changes, of two rates each."""
    assert counts({n: 20e6 * n for n in (1, 2, 4, 8)}, 8) == [1, 2, 2, 4, 4, 8, 8, 8]


def test_goes_back_where_it_gains_nothing() -> None:
    """The line is full with one: two are tried, and one it is; the next try comes twenty rates later, then forty."""
    found = counts({1: 50e6, 2: 55e6}, 100)
    tried = [i for i, (before, count) in enumerate(zip([1, *found], found, strict=False)) if (before, count) == (1, 2)]
    assert tried == [1, 25, 69]
    assert found.count(2) == 6


def test_stops_at_what_gained() -> None:
    """Four are faster than two, eight are not faster than four."""
    assert counts({1: 10, 2: 20, 4: 40, 8: 41}, 9) == [1, 2, 2, 4, 4, 8, 8, 4, 4]


def test_what_is_nearly_here_is_not_tried_for() -> None:
    """Two seconds' worth: the time for one more connection would not come back."""
    assert counts({1: 10e6}, 10, left=19e6) == [1] * 10


def test_a_machine_that_is_busy_with_one_is_not_tried_with_two() -> None:
    """They share a core, and one takes most of it."""
    chosen = ConnectionCount()
    assert [chosen.measured(200e6, 10**12, busy) for busy in (0.8, 0.8, 0.8, 0.8, 0.2)] == [1, 1, 1, 1, 2]


def test_a_silence_is_no_gain() -> None:
    """No bytes at all say nothing about one more connection."""
    assert counts({1: 0}, 10) == [1] * 10


def test_a_server_sets_the_limit() -> None:
    """Who is refused beside three others asks for no fourth again; the last one is never taken away."""
    chosen = ConnectionCount()
    assert counts({n: 10.0 * n for n in (1, 2, 4)}, 5, connections=chosen)[-1] == 4
    chosen.limit(3)
    assert counts({3: 30.0}, 50, connections=chosen) == [3] * 50
    chosen.limit(0)
    assert chosen.count == 1


def test_as_many_as_somebody_says() -> None:
    """Whatever they bring."""
    chosen = ConnectionCount(5)
    assert counts({5: 1.0}, 50, connections=chosen) == [5] * 50


# --- which bytes


def taken(ranges: Ranges, claimed: Range, n: int) -> int:
    n = ranges.room(claimed, n)
    ranges.took(claimed, n)
    return n


def test_one_connection_asks_once() -> None:
    """Alone, it asks for all that is missing and goes on from piece to piece."""
    ranges = Ranges(100 * MIB, [(0, 7 * MIB)], 16 * MIB)
    claimed = ranges.claim(1 << 40, alone=True)
    assert claimed is not None and (claimed.begin, claimed.asked_end) == (7 * MIB, 100 * MIB)
    assert taken(ranges, claimed, 93 * MIB) == 93 * MIB
    assert ranges.n_here == ranges.prefix == 100 * MIB


def test_pieces_in_order() -> None:
    """A second one has the next piece; the first then stops at its end, although its answer goes on."""
    ranges = Ranges(100 * MIB, (), 16 * MIB)
    first = ranges.claim(1 << 40, alone=True)
    assert first is not None and taken(ranges, first, MIB) == MIB
    second = ranges.claim(1 << 40, alone=False)
    assert second is not None and (second.begin, second.end, second.asked_end) == (16 * MIB, 32 * MIB, 32 * MIB)
    assert taken(ranges, first, 50 * MIB) == 15 * MIB
    assert taken(ranges, first, 50 * MIB) == 0
    ranges.release(first)
    third = ranges.claim(1 << 40, alone=False)
    assert third is not None and third.begin == 32 * MIB


def test_the_last_piece_is_shared() -> None:
    """Where nothing is left to claim, half of the longest that is on its way is; not of what is too short."""
    ranges = Ranges(16 * MIB, (), 16 * MIB)
    first = ranges.claim(1 << 40, alone=False)
    assert first is not None
    taken(ranges, first, 4 * MIB)
    second = ranges.claim(1 << 40, alone=False)
    assert second is not None and (second.begin, second.end, first.end) == (10 * MIB, 16 * MIB, 10 * MIB)
    taken(ranges, first, 6 * MIB - 2 * LEAST_BYTES + 1)
    taken(ranges, second, 6 * MIB - 2 * LEAST_BYTES + 1)
    assert ranges.claim(1 << 40, alone=False) is None


def test_windows() -> None:
    """No request is for more than a window."""
    ranges = Ranges(100 * MIB, (), 16 * MIB)
    claimed = ranges.claim(10 * MIB, alone=True)
    assert claimed is not None and claimed.asked_end == claimed.end == 10 * MIB


@pytest.mark.parametrize("seed", range(20))
def test_every_byte_once(seed: int) -> None:
    """However many there are, whatever breaks off where: each byte is taken by one of them, and none is left."""
    chance = random.Random(seed)
    size = chance.randrange(1, 60 * MIB)
    cuts = sorted(chance.randrange(size + 1) for _ in range(4))
    ranges = Ranges(size, [(cuts[0], cuts[1]), (cuts[2], cuts[3])], chance.randrange(MIB, 16 * MIB))
    seen = [(cuts[0], cuts[1]), (cuts[2], cuts[3])]
    working: list[Range] = []
    while ranges.n_here < size:
        count = chance.choice((1, 2, 5))
        while len(working) < count and (claimed := ranges.claim(1 << 40, alone=count == 1)):
            working.append(claimed)
        claimed = chance.choice(working)
        begin, n = claimed.at, taken(ranges, claimed, chance.randrange(1, 4 * MIB))
        seen.append((begin, begin + n))
        if not n or chance.random() < 0.2:
            ranges.release(claimed)
            working.remove(claimed)
    assert merged(seen) == [(0, size)]
    assert sum(end - begin for begin, end in seen) == size
    assert ranges.prefix == size


# --- the journal


def in_folder(folder: Path) -> Partial:
    return Partial(folder / "x.partial", folder)


def test_a_partial_without_holes_needs_no_journal(tmp_path: Path) -> None:
    """Its size says all, as it did before there were several connections."""
    (tmp_path / "x.partial").write_bytes(b"a" * 1000)
    opened = in_folder(tmp_path)
    assert opened.found == [(0, 1000)] and not opened.has_journal
    opened.close()
    assert [path.name for path in tmp_path.iterdir()] == ["x.partial"]
    assert bytes_here(tmp_path / "x.partial") == 1000


def test_holes_are_remembered(tmp_path: Path) -> None:
    """What was noted is here for the next process, also where this one dies between two notes; the rest is not."""
    opened = in_folder(tmp_path)
    opened.begin_journal([], [])
    for begin, end in ((0, 100), (500, 700), (500, 800), (800, 900)):
        write_at(opened.fd, b"a" * (end - begin), begin)
        opened.written(begin, end)
    opened.sync(opened.fd, [(0, 100)])
    opened.written(800, 900)
    write_at(opened.fd, b"a" * 1000, 2000)  # and dies
    assert extents_of(opened.path) == [(0, 100), (500, 900)]
    again = in_folder(tmp_path)
    assert again.found == [(0, 100), (500, 900)] and again.has_journal
    assert extents_of(again.path) == again.found
    again.empty()
    again.close()
    assert [*tmp_path.iterdir()] == []


def test_holes_that_are_filled_are_forgotten(tmp_path: Path) -> None:
    """Then the size says all again; what lies behind and was not noted goes."""
    opened = in_folder(tmp_path)
    opened.begin_journal([(0, 500)], [])
    write_at(opened.fd, b"a" * 900, 0)
    assert in_folder(tmp_path).found == [(0, 500)]
    assert [path.name for path in tmp_path.iterdir()] == ["x.partial"]
    assert (tmp_path / "x.partial").stat().st_size == 500


def test_after_another_start_of_the_system(tmp_path: Path) -> None:
    """A power cut leaves what was on the disk itself, whatever had been written."""
    opened = in_folder(tmp_path)
    opened.begin_journal([(0, 300)], [(0, 200)])
    write_at(opened.fd, b"a" * 1000, 0)
    opened.written(400, 1000)
    assert extents_of(opened.path) == [(0, 300), (400, 1000)]
    opened.sync(opened.fd, [(0, 300), (400, 600)])
    journal = journal_of(opened.path)
    boot = next(line for line in journal.read_text().splitlines() if line.startswith("boot "))
    journal.write_text(journal.read_text().replace(boot, "boot of-yesterday"))
    assert extents_of(opened.path) == [(0, 300), (400, 600)]


@pytest.mark.parametrize(
    "text",
    ["", "= 0 5", "+ 1 2\n", "= 5\n= -1 5\n= 0 5 7\n=0 5\n", "\0" * 50, "= 9999 99999\n", "= 9 3\n", "ä = 0 5\n"],
)
def test_what_is_not_understood_counts_for_nothing(tmp_path: Path, text: str) -> None:
    """Torn, damaged, of another start, beyond the end: no byte is taken for one that is here."""
    (tmp_path / "x.partial").write_bytes(b"a" * 1000)
    journal_of(tmp_path / "x.partial").write_text(text)
    assert extents_of(tmp_path / "x.partial") == []


def test_a_journal_without_a_partial(tmp_path: Path) -> None:
    """Says nothing about the next one."""
    journal_of(tmp_path / "x.partial").write_text("= 0 1000\n")
    assert bytes_here(tmp_path / "x.partial") == 0
    opened = in_folder(tmp_path)
    assert opened.found == [] and not journal_of(opened.path).exists()
    opened.close()
    partial.remove(opened.path)
    assert [*tmp_path.iterdir()] == []
