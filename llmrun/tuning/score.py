"""How right predictions were on this machine: every run is compared with what the profile would have said of it.

    <state>/predictions.jsonl      a line for every run: model, settings, predicted and measured; no word of a prompt

Where the last runs were all faster or slower than predicted, later predictions are corrected by the median of their
ratios; `forget` ends that.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmrun import codec, fs, paths
from llmrun.clock import utc

Kind = Literal["prefill", "decode"]
LEAST_TOKENS = 16
"""Of prompt or answer: of fewer a rate says little."""
_LEAST_RUNS, _LAST_RUNS = 5, 20
_MOST_CORRECTION = 1.5
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Compared:
    """One figure of one run.

    Attributes:
        machine: digest of what the profile depends on.
        model: its name, as messages call it.
        layout: of the weights: "plain", "repacked", "both layouts".
        n_tokens: of the prompt, or of the answer.
        depth: tokens before them.
        predicted, measured: tokens per second; what was predicted without a correction.
        at: UTC.
    """

    machine: str
    model: str
    kind: Kind
    layout: str
    n_threads: int
    n_tokens: int
    depth: int
    predicted: float
    measured: float
    at: str = ""

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted / self.measured - 1


def path() -> Path:
    """Where the lines are. LLMRUN_HOME moves it, as it does the store."""
    return paths.state() / "predictions.jsonl"


def keep(found: Sequence[Compared]) -> None:
    """Append, one write; the older half goes when there is too much. Raises `DiskError`."""
    where = path()
    lines = "".join(json.dumps({**codec.plain(each), "at": utc()}) + "\n" for each in found)
    with fs.disk_errors(f"writing {where}"):
        where.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            if where.stat().st_size > _MOST_BYTES:
                kept = where.read_text().splitlines(keepends=True)
                fs.write_atomically(where, "".join(kept[len(kept) // 2 :]))
        descriptor = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fs.write_all(descriptor, lines.encode())
        finally:
            os.close(descriptor)


def kept() -> Iterator[Compared]:
    """All lines, the oldest first; one that is damaged is left out."""
    try:
        lines = path().read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        with suppress(ValueError):
            found = codec.decode(line.encode(), Compared)
            if found.predicted > 0 < found.measured:
                yield found


def forget() -> int:
    """Remove them, and so every correction; returns how many there were. Raises `DiskError`."""
    n = len([*kept()])
    with fs.disk_errors(f"removing {path()}"):
        path().unlink(missing_ok=True)
    return n


def correction(machine: str, kind: Kind) -> float:
    """What a predicted rate is multiplied by, by all runs of this kind here."""
    return learned([each.measured / each.predicted for each in kept() if (each.machine, each.kind) == (machine, kind)])


def learned(ratios: Sequence[float]) -> float:
    """The same, by measured / predicted of runs, the last one last: the median of the last twenty, at most half as much
    again; 1 where there are fewer than five."""
    if len(ratios) < _LEAST_RUNS:
        return 1.0
    return min(_MOST_CORRECTION, max(1 / _MOST_CORRECTION, statistics.median(ratios[-_LAST_RUNS:])))


@dataclass(frozen=True)
class Accuracy:
    """Attributes:
    n: figures.
    median, p90: of the sizes of the errors: 0.08 is 8 %.
    bias: the median error; above 0 it was predicted too fast.
    """

    kind: Kind
    n: int
    median: float
    p90: float
    bias: float


def accuracy(found: Sequence[Compared]) -> list[Accuracy]:
    """Of prefill and of decoding, as far as there are any."""
    made = []
    kinds: tuple[Kind, ...] = ("prefill", "decode")
    for kind in kinds:
        errors = [each.error for each in found if each.kind == kind]
        if errors:
            sizes = sorted(map(abs, errors))
            p90 = sizes[min(len(sizes) - 1, round(0.9 * (len(sizes) - 1)))]
            made.append(Accuracy(kind, len(errors), statistics.median(sizes), p90, statistics.median(errors)))
    return made
