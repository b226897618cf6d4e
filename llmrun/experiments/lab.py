"""What an experiment measures with: models of real shapes, engines, this machine's devices, and cells that are kept.

Cells take turns: all of them once, then all of them again, so that a machine that drifts favours none. An engine stays
loaded while the next cell wants the same one.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from llmrun import fs
from llmrun.bench.load import Result as Load
from llmrun.bench.record import Row
from llmrun.bench.run import Instruments, measure, open_instruments
from llmrun.bench.spec import Case, MeasurementOptions, Test
from llmrun.clock import utc
from llmrun.engine.devices import Found
from llmrun.engine.engine import ChildEngine
from llmrun.engine.jobs.roofline import Prober
from llmrun.errors import DiskError, EngineCrashed, LlmrunError, UsageError
from llmrun.experiments.experiment import Cell, Sample
from llmrun.experiments.record import MACHINE, Cells
from llmrun.experiments.spread import Noise, Spread, of_samples
from llmrun.gguf import synth
from llmrun.gguf.reader import Header, open_header
from llmrun.machine import hardware
from llmrun.machine.proc import open_reader
from llmrun.models.resolve import Model
from llmrun.options.load import LoadConfig, Offload
from llmrun.planning.footprint import CPU
from llmrun.planning.predict.prediction import Source

ROUNDS, QUICK_ROUNDS = 3, 2
_LOOK_AT, _LOOK_S = "Q4_K", 0.3
"""Type of the matrix by which the machine is looked at, and for how long it reads, and multiplies."""


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        quick: fewer values and rounds.
        devices: to measure the toy on beside the CPU, and to put layers on, by name; all else is of the CPU.
        rpc: workers, "host:port", whose devices are then known as well.
        model: a real one, for what needs weights that mean something.
        watts: that this machine takes while it computes, where nothing counts joules.
        price_kwh: money for a kWh.
    """

    quick: bool = False
    devices: tuple[str, ...] = ()
    rpc: tuple[str, ...] = ()
    model: Path | None = None
    watts: float | None = None
    price_kwh: float = 0.30

    def settings(self) -> dict[str, str | bool | float | int | list[str] | None]:
        """As a record has them; of files and workers neither place nor address."""
        return {
            "quick": self.quick,
            "devices": [*self.devices],
            "workers": fs.digest_of(",".join(self.rpc)) if self.rpc else None,
            "model": self.model.name if self.model else None,
            "model_sha256": fs.sha256_of(self.model)[:16] if self.model else None,
            "watts": self.watts,
            "price_kwh": self.price_kwh,
        }


class _Loaded(NamedTuple):
    path: Path
    config: LoadConfig
    engine: ChildEngine


class Lab:
    """A context manager: leaving it ends what was started, and removes the models that were written.

    Attributes:
        on_cell: is told of what is measured, and of how many samples are there, and will be.
        moments: what the machine did while other experiments went on.
    """

    def __init__(
        self,
        options: Options,
        cells: Cells,
        *,
        folder: Path,
        on_cell: Callable[[str, int, int], None] = lambda _key, _done, _of: None,
        moments: Sequence[Sample] = (),
    ) -> None:
        """`folder`: for models."""
        self.options, self.cells, self.on_cell, self.moments = options, cells, on_cell, moments
        self._folder = folder
        self._noise: tuple[int, Noise] = (0, Noise())
        self._stack = ExitStack()
        self._probers: dict[bool, Prober] = {}
        self._loaded: _Loaded | None = None
        self._written: set[Path] = set()
        self._done = self._wanted = 0

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.unload()
        self._stack.close()
        for path in self._written:
            path.unlink(missing_ok=True)

    @property
    def quick(self) -> bool:
        return self.options.quick

    @property
    def rounds(self) -> int:
        return QUICK_ROUNDS if self.quick else ROUNDS

    @property
    def n_threads(self) -> int:
        return hardware.default_threads()

    # -- cells ---

    def measure(self, cells: Sequence[Cell], *, rounds: int | None = None) -> None:
        """A sample of each that lacks one, then of each the next. What can't be measured is noted, with why. Raises
        `DiskError`."""
        rounds = rounds or self.rounds
        self._done, self._wanted = 0, rounds * len(cells)
        for i in range(rounds):
            looked = False
            for cell in cells:
                if cell.key not in self.cells.errors and len(self.cells.samples.get(cell.key, ())) <= i:
                    if not looked:
                        self._look_at_machine()
                        looked = True
                    self.on_cell(cell.key, self._done, self._wanted)
                    self._sample(cell)
                self._done += 1

    def _sample(self, cell: Cell) -> None:
        others = Others()
        try:
            values = cell.take()
        except DiskError:
            raise
        except (LlmrunError, OSError) as error:
            self.cells.fail(cell.key, error.message if isinstance(error, LlmrunError) else str(error))
        else:
            self.cells.add(cell.key, Sample(dict(values), utc(), others.cores()))

    def _look_at_machine(self) -> None:
        """How fast it reads and multiplies, so that it shows what the machine did meanwhile. By large products: what
        small ones take is the waking of threads."""
        probed = self.prober.probe(CPU, _LOOK_AT, hardware.default_threads(), _LOOK_S)
        rates = {"read_bytes_per_s": probed.read_bytes_per_s, "flops_per_s": probed.flops_per_s}
        found = {name: statistics.median(each) if each else None for name, each in rates.items()}
        self.cells.add(MACHINE, Sample(found, utc()))

    @property
    def noise(self) -> Noise:
        """How far figures differ from one time to the next, by all that is known now."""
        known = self.cells.samples
        n = sum(map(len, known.values()))
        if self._noise[0] != n:
            of_cells = {key: [each.values for each in samples] for key, samples in known.items() if key != MACHINE}
            moments = [each.values for each in (*self.moments, *known.get(MACHINE, ()))]
            self._noise = n, Noise.of(of_samples(of_cells), of_samples({MACHINE: moments}))
        return self._noise[1]

    def values(self, key: str, name: str) -> list[float]:
        """One figure of all samples of a cell."""
        found = (sample.values.get(name) for sample in self.cells.samples.get(key, ()))
        return [value for value in found if value is not None]

    def spread(self, key: str, name: str) -> Spread | None:
        return self.noise.spread(self.values(key, name))

    # -- models ---

    def model(self, shape: synth.Shape | str, level: str, name: str = "") -> Path:
        """A file with noise for weights, of a shape by its name in `shapes.toml`, or of one that is given with a name.

        It is written where it is not there, and removed at the end. Raises `DiskError`.
        """
        known = synth.SHAPES[shape] if isinstance(shape, str) else shape
        path = self._folder / f"{name or shape}-{level.lower()}.gguf"
        if path not in self._written:
            needed = sum(tensor.n_bytes for tensor in synth.header_of(known, level).tensors)
            fs.check_space(self._folder, needed, what=f"a model of {name or shape} for an experiment")
            with fs.disk_errors(f"writing {path}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                synth.write(path, known, level, vocab=synth.vocabulary(known.n_vocab))
            self._written.add(path)
        return path

    def own(self, path: Path) -> Path:
        """Remove this file, too, at the end."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._written.add(path)
        return path

    @property
    def folder(self) -> Path:
        return self._folder

    def config(self, **fields: object) -> LoadConfig:
        """On the CPU alone; without what would be chosen by measuring, or changed on the way, but for what is given."""
        given = {"thread_guard": "off", "draft": "off", "offload": Offload(n_gpu_layers=0, devices=()), **fields}
        return replace(LoadConfig(), **given)  # type: ignore[arg-type]

    def engine(self, path: Path, config: LoadConfig) -> ChildEngine:
        """The model, loaded; the one before is unloaded if it is another. Raises what `ChildEngine` raises."""
        if self._loaded and (self._loaded[:2] != (path, config) or not self._loaded.engine.alive):
            self.unload()
        if self._loaded is None:
            self._loaded = _Loaded(path, config, ChildEngine(path, open_header(path), config))
        return self._loaded.engine

    def unload(self) -> None:
        if self._loaded:
            self._loaded.engine.close()
            self._loaded = None

    def bench(self, path: Path, config: LoadConfig, test: Test) -> Row:
        """One sample of a test, beside the ceilings of the moment, with a warm-up. Raises what `ChildEngine` raises."""
        model = Model(path.stem, path, open_header(path))
        self.unload()
        rows = measure(model, [Case(config, test)], MeasurementOptions(repetitions=1), self.instruments)
        with closing(rows):
            row = next(rows)
        if row.error:
            raise LlmrunError(row.error)
        return row

    # -- the machine ---

    @property
    def prober(self) -> Prober:
        """As models of real size are run: threads that wait sleep."""
        return self.prober_of(spins=False)

    def prober_of(self, *, spins: bool) -> Prober:
        """Another one where the one before has died."""
        known = self._probers.get(spins)
        if known is None or not known.alive:
            known = self._probers[spins] = self._stack.enter_context(Prober(self.options.rpc, spins=spins))
        return known

    @cached_property
    def instruments(self) -> Instruments:
        return self._stack.enter_context(open_instruments())

    @property
    def found(self) -> Found:
        return self.prober.found

    @cached_property
    def here(self) -> Source:
        """By the profile of this machine, which is measured where there is none. Raises `EngineCrashed`."""
        from llmrun.tuning.sources import Here, profile_of

        return Here(profile_of(self.prober), self.found)

    def devices(self) -> tuple[str, ...]:
        """The CPU, and those that were asked for. Raises `UsageError` for one that is not there."""
        names = [device.name for device in self.found.devices]
        for name in self.options.devices:
            if name not in names:
                raise UsageError(f"there is no device {name}", field="devices", value=name)
        return (CPU, *(name for name in self.options.devices if name != CPU))

    def header(self, shape: str, level: str) -> Header:
        """Of a model of this shape, of which nothing is written."""
        return synth.header_of(synth.SHAPES[shape], level)


def figures_of(row: Row) -> Mapping[str, float | None]:
    """What most experiments want of a row; rates in tokens per second."""
    reads = sum(row.step_read_bytes.values()) if row.step_read_bytes else None
    ceilings = [statistic for found in (row.ceiling_bytes_per_s or {}).values() for statistic in found]
    joules = row.headline_joules
    return {
        "tps": row.median_tps,
        "prefill_tps": row.prefill_tps,
        "decode_tps": row.decode_tps,
        "step_s": row.step_s,
        "step_read_bytes": reads,
        "ceiling_bytes_per_s": max(ceilings, default=None),
        "peak_rss_bytes": row.usage.peak_rss_bytes if row.usage else None,
        "joules_per_token": joules[1] if joules else None,
    }


def answered(found: Load) -> dict[str, float | None]:
    """Figures of a load whose requests were all answered. Raises `EngineCrashed` where one was not."""
    if found.n_errors:
        error = next(each.error for each in found.outcomes if each.error is not None)
        raise EngineCrashed(f"{found.n_errors} of {len(found.outcomes)} requests failed: {error}")
    return {
        "ttft_s": found.ttft_s(0.5),
        "e2e_s": found.e2e_s(0.5),
        "e2e_90_s": found.e2e_s(0.9),
        "tpot_s": found.tpot_s(0.5),
        "tps": found.tokens_per_s,
    }


class Others:
    """How many cores other processes keep busy from here on: all but this one and those that it started."""

    def __init__(self) -> None:
        self._busy_s, self._mine_s, self._at_s = _busy_s(), _mine_s(), time.monotonic()

    def cores(self) -> float | None:
        busy_s, mine_s, seconds = _busy_s(), _mine_s(), time.monotonic() - self._at_s
        if busy_s is None or self._busy_s is None or seconds < 0.1:
            return None
        return max(0.0, (busy_s - self._busy_s) - (mine_s - self._mine_s)) / seconds


def _busy_s() -> float | None:
    return open_reader(os.getpid()).machine().busy_s


def _mine_s() -> float:
    """CPU time of this process and of those below it, dead or alive."""
    import psutil

    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total
