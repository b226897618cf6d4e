"""What an experiment leaves behind: one record, from which its page is made; and while it runs, its cells.

    <folder>/batch.json            the record
    <folder>/batch.md, batch.svg   its page, and its pictures
    <folder>/batch.partial.jsonl   while it runs: what it was begun with, then a line for each sample

A line is one write, on the disk when it counts: an experiment that is ended at any moment goes on behind it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llmrun import codec, fs
from llmrun.errors import UsageError
from llmrun.experiments.experiment import Result, Sample
from llmrun.experiments.spread import Noise
from llmrun.machine.environment import BuildInfo, MachineInfo

SCHEMA = "llmrun.experiment/1"
MACHINE = "the machine itself"
"""What samples of `Record.moments` are kept under while an experiment runs."""
PARTIAL = ".partial.jsonl"


@dataclass(frozen=True)
class Setup:
    """What has to be the same for samples to belong together.

    Attributes:
        name: of the experiment.
        settings: what was asked for, by name.
        machine: a digest of the hardware and of the library that computes.
        llmrun: its version.
    """

    name: str
    settings: Mapping[str, str | bool | float | int | list[str] | None]
    machine: str
    llmrun: str


@dataclass(frozen=True)
class Record:
    """Attributes:
    created, ended: UTC.
    command: the words that make it again.
    repetitions: samples of each cell.
    cells: samples by the cell's key, in the order in which they were taken.
    errors: why a cell has no samples, by its key.
    moments: how fast the machine read and multiplied, once a round.
    noise: how far figures differ from one time to the next.
    """

    name: str
    title: str
    article: str
    created: str
    ended: str
    command: tuple[str, ...]
    setup: Setup
    repetitions: int
    machine: MachineInfo
    build: BuildInfo
    result: Result
    cells: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    moments: tuple[Sample, ...] = ()
    noise: Noise = field(default_factory=Noise)
    schema: str = SCHEMA


def read_record(path: Path) -> Record:
    """Raises `UsageError` for what is none."""
    try:
        found = codec.decode(path.read_bytes(), Record)
    except (OSError, codec.Malformed) as error:
        raise UsageError(f"{path} is not the record of an experiment: {error}") from None
    if found.schema != SCHEMA:
        raise UsageError(f"{path} is of another version: {found.schema[:40]}")
    return found


@dataclass(frozen=True)
class _Line:
    key: str
    sample: Sample | None = None
    error: str | None = None


class Cells:
    """Samples of a running experiment, on disk as they come. A context manager.

    Attributes:
        samples, errors: by the cell's key. Errors count as long as this runs: whoever goes on tries again.
        n_found: samples that an earlier run left.
    """

    def __init__(self, path: Path, setup: Setup) -> None:
        """Goes on with what is there, if it was begun with the same. Raises `DiskError`."""
        self.path = path
        self.samples: dict[str, list[Sample]] = {}
        self.errors: dict[str, str] = {}
        self.n_found = 0
        with fs.disk_errors(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = self._read(setup)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(self._fd, kept)
            os.lseek(self._fd, kept, os.SEEK_SET)
            if not kept:
                self._write(codec.encode(setup))

    def _read(self, setup: Setup) -> int:
        """Bytes of whole lines that belong to it; 0: nothing is there, or of something else."""
        if not self.path.exists():
            return 0
        data = self.path.read_bytes()
        kept = 0
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            try:
                if not kept:
                    if codec.decode(line, Setup) != setup:
                        return 0
                else:
                    self._take(codec.decode(line, _Line))
            except codec.Malformed:
                break
            kept += len(line)
        self.n_found = sum(len(samples) for key, samples in self.samples.items() if key != MACHINE)
        return kept

    def _take(self, line: _Line) -> None:
        if line.sample is not None:
            self.samples.setdefault(line.key, []).append(line.sample)

    def add(self, key: str, sample: Sample) -> None:
        """Raises `DiskError`."""
        self._keep(_Line(key, sample))

    def fail(self, key: str, error: str) -> None:
        """It can't be measured now. Raises `DiskError`."""
        self.errors[key] = error
        self._keep(_Line(key, error=error))

    def _keep(self, line: _Line) -> None:
        self._take(line)
        with fs.disk_errors(f"writing {self.path}"):
            self._write(codec.encode(line))

    def _write(self, line: bytes) -> None:
        fs.write_all(self._fd, line + b"\n")
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Cells:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
