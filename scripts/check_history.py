"""Whether `llmrun history` is quick with many conversations, and whether a kill loses any of them.

    python scripts/check_history.py [--conversations 1000] [--turns 50] [--rounds 9] [--kills 50]

The conversations are made up in a temporary folder: turns of about 600 characters, of words as frequent as those of a
language. Times are of the whole process of the real command, with its modules compiled as in every installation that
was used once. Then a writer is killed again and again (SIGKILL) while it
appends; whatever it was told was kept must be there. Prints Markdown; exit 1 above 300 ms, or if anything is lost.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from llmrun.chat.store import Conversations, Turn  # noqa: E402

BAR_S = 0.3
RARE = "quokka"
COMMON = "the"


def sentences(random_: random.Random) -> Iterator[str]:
    """Endless text of 20,000 words, the n-th as frequent as 1/n; one in ten has a letter beyond ASCII."""
    syllables = "ba co di fu ge hi jo ka le mi no pu ra se ti vo we xa zy mär".split()
    words = [COMMON, *("".join(random_.choices(syllables, k=random_.randint(1, 4))) for _ in range(20_000))]
    weights = [*accumulate(1 / n for n in range(1, len(words) + 1))]
    while True:
        yield " ".join(random_.choices(words, cum_weights=weights, k=random_.randint(5, 20))).capitalize() + "."


def text(source: Iterator[str], n: float) -> str:
    parts: list[str] = []
    while sum(map(len, parts)) < n:
        parts.append(next(source))
    return " ".join(parts)


def fill(path: Path, n_conversations: int, n_turns: int) -> int:
    """Through the interface; returns the characters."""
    random_ = random.Random(1)
    source, total = sentences(random_), 0
    with Conversations(path) as kept:
        kept._db.execute("pragma synchronous = off")
        for i in range(n_conversations):
            id = kept.create("qwen3:4b")
            for turn in range(n_turns):
                content = text(source, random_.expovariate(1 / 560))
                content += f" A {RARE}." if (i, turn) == (n_conversations // 2, 0) else ""
                role, thinking = ("user", "") if turn % 2 == 0 else ("assistant", text(source, 300))
                kept.add(id, Turn(role, content, thinking=thinking))  # type: ignore[arg-type]
                total += len(content)
    return total


def timed(arguments: list[str], env: dict[str, str], n_lines: int) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "llmrun", *arguments], env=env, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    lines = done.stdout.decode().splitlines()
    assert len(lines) == n_lines, (arguments, len(lines), n_lines)
    return seconds


def check_times(home: Path, n_conversations: int, n_turns: int, rounds: int) -> bool:
    file = home / "state" / "conversations.db"
    total = fill(file, n_conversations, n_turns)
    n = n_conversations * n_turns
    print(
        f"{n_conversations:,} conversations of {n_turns} turns, {total / n:.0f} characters a turn on average, "
        f"{file.stat().st_size / 1e6:.0f} MB; {rounds} rounds\n"
    )
    env = {
        **os.environ,
        "LLMRUN_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "PYTHONPYCACHEPREFIX": str(home / "compiled"),
    }
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    commands = {
        "llmrun history path (to compare)": (["history", "path"], 1),
        "llmrun history list": (["history", "list"], n_conversations + 1),
        f"llmrun history search {COMMON} (common)": (["history", "search", COMMON], 51),
        f"llmrun history search {RARE} (once)": (["history", "search", RARE], 2),
        "llmrun history search eeeee (never)": (["history", "search", "eeeee"], 0),
        "llmrun history search über mär (two, beyond ASCII)": (["history", "search", "üb", "mär"], 0),
    }
    for arguments, n_lines in commands.values():
        timed(arguments, env, n_lines)  # not counted: it compiles
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, (arguments, n_lines) in commands.items():
            seconds[name].append(timed(arguments, env, n_lines))
    print("| command | median ms | worst ms |\n|---|---|---|")
    for name, values in seconds.items():
        print(f"| `{name.replace(' (', '` (', 1)}{'' if '(' in name else '`'} ", end="")
        print(f"| {statistics.median(values) * 1e3:.0f} | {max(values) * 1e3:.0f} |")
    return all(statistics.median(values) < BAR_S for values in seconds.values())


WRITER = """
import sys
from pathlib import Path
from llmrun.chat.store import Conversations, Turn
with Conversations(Path(sys.argv[1])) as kept:
    while True:
        id = kept.create("tiny")
        kept.add(id, Turn("user", "go"))
        turn = kept.begin_answer(id, "tiny")
        said = ""
        for n in range(300):
            piece = f"{n} "
            kept.append(turn, piece)
            said += piece
            print(id, n, flush=True)
        kept.finish(turn, Turn("assistant", said, stop_reason="stop"))
"""


def check_kills(home: Path, kills: int) -> bool:
    """Reads what the writer says was kept, kills it at a random moment, and looks for all of it."""
    file, random_ = home / "kills" / "conversations.db", random.Random(2)
    acknowledged: dict[str, int] = {}  # conversation → its last piece
    lost = damaged = 0
    for _ in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert child.stdout
        lines = [child.stdout.readline()]
        until_s = time.perf_counter() + random_.uniform(0, 0.2)
        while time.perf_counter() < until_s:
            lines.append(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines(keepends=True)
        child.stdout.close()
        child.wait()
        for line in lines:
            if line.endswith(b"\n"):
                id, number = line.decode().split()
                acknowledged[id] = int(number)
        with Conversations(file) as kept:
            there = {each.id for each in kept.list()}
            for id, last in acknowledged.items():
                said = kept.read(id).turns[1].content.split() if id in there else []
                lost += said[: last + 1] != [str(n) for n in range(last + 1)]
        with closing(sqlite3.connect(file)) as db:
            damaged += db.execute("pragma integrity_check").fetchall() != [("ok",)]
    pieces = sum(last + 1 for last in acknowledged.values())
    print(
        f"\n{kills} × kill -9 of a writer: {len(acknowledged):,} conversations with {pieces:,} acknowledged pieces, "
        f"{lost} of them incomplete; `pragma integrity_check` found damage {damaged} times"
    )
    return not lost and not damaged and bool(pieces)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--conversations", type=int, default=1000)
    arguments.add_argument("--turns", type=int, default=50)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--kills", type=int, default=50)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="check-history-") as folder:
        quick = check_times(Path(folder), chosen.conversations, chosen.turns, chosen.rounds)
        safe = check_kills(Path(folder), chosen.kills)
    return 0 if quick and safe else 1


if __name__ == "__main__":
    sys.exit(main())
