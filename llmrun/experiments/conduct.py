"""The experiments by name, and how one is conducted: from what was asked for to a record, a page and its pictures.

conduct(names) ──► each: cells, kept as they come ──► record, pictures, page ──► the front page of all that are there
                     ▲
                     └── what was ended before: finished experiments are not begun again, nor samples taken twice
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from llmrun import __version__, codec, fs, paths
from llmrun.bench.plot.figures import Figure
from llmrun.clock import utc
from llmrun.engine.devices import Found, find_devices
from llmrun.engine.jobs.roofline import key_of
from llmrun.errors import Change, LlmrunError, UsageError
from llmrun.experiments import report
from llmrun.experiments.experiment import ARTICLES, Result, Sample
from llmrun.experiments.lab import Lab, Options, Others
from llmrun.experiments.record import MACHINE, PARTIAL, Cells, Record, Setup, read_record
from llmrun.machine.environment import describe_build, describe_machine
from llmrun.units import fixed

_UNFINISHED = "unfinished.json"
_ELSEWHERE = Change({"output": "FOLDER"})
_LOOK_S = 0.3
_OTHERS = 0.5
"""Cores that others keep busy: from there on figures say more of them than of the machine."""


class Entry(NamedTuple):
    """Where an experiment is, and what it asks."""

    module: str
    function: str
    title: str
    article: str


EXPERIMENTS: dict[str, Entry] = {
    "batch": Entry("toy", "batch", "Many inputs at once: how far is a CPU level with a GPU?", "toy"),
    "width": Entry("toy", "width", "Wider layers: how far is a CPU level with a GPU?", "toy"),
    "depth": Entry("toy", "depth", "More layers, one after the other", "toy"),
    "fixed": Entry("toy", "fixed", "As many weights: few wide layers or many narrow ones?", "toy"),
    "quantization": Entry("quantization", "quantization", "Fewer bits: what they gain, and what they lose", "70b"),
    "bandwidth": Entry("bandwidth", "bandwidth", "Memory or cores: what does decoding wait for?", "dream"),
    "70b": Entry("seventy", "seventy", "Llama 3 70 B on a CPU, and what to run instead", "70b"),
    "offload": Entry("offload", "offload", "Layers on a device, and its memory until it is full", "mlops"),
    "latency": Entry("latency", "latency", "One answer's time and the throughput of many", "mlops"),
    "cost": Entry("cost", "cost", "What tokens cost: energy, money, machines", "rise"),
    "ratio": Entry("cost", "ratio", "GPU beside CPU: is it 5 to 6 times?", "dream"),
    "vectors": Entry("vectors", "vectors", "The same with fewer vector instructions", "rise"),
    "swarm": Entry("swarm", "swarm", "Many cheap machines together", "rise"),
}


@dataclass(frozen=True)
class _Unfinished:
    """A set of experiments that was begun. `done`: names of those that are finished."""

    names: tuple[str, ...]
    setup: Setup
    done: tuple[str, ...] = ()


class Hooks(NamedTuple):
    """Who is told.

    Attributes:
        began: of each experiment's name, and of the samples that an earlier run left.
        measuring: of the cell, the samples that are there, and those that there will be.
        ended: of each record, and of the files that were written.
        failed: of an experiment's name, and why there is nothing of it.
        note: of what is worth knowing.
    """

    began: Callable[[str, int], None] = lambda _name, _n: None
    measuring: Callable[[str, int, int], None] = lambda _cell, _done, _of: None
    ended: Callable[[Record, Sequence[Path]], None] = lambda _record, _files: None
    failed: Callable[[str, LlmrunError], None] = lambda _name, _error: None
    note: Callable[[str], None] = lambda _text: None


def chosen(names: Iterable[str]) -> list[str]:
    """Experiments by name, each once; "all" stands for all of them. Raises `UsageError`."""
    wanted = list(names)
    for name in wanted:
        if name != "all" and name not in EXPERIMENTS:
            from difflib import get_close_matches

            near = "".join(f"; the nearest is {each}" for each in get_close_matches(name.lower(), EXPERIMENTS, 1))
            raise UsageError(f"there is no experiment {name[:40]!r}{near}: {', '.join(EXPERIMENTS)}, all")
    return list(dict.fromkeys(each for name in wanted for each in (EXPERIMENTS if name == "all" else [name])))


def usual_folder() -> Path:
    """For pages and records where no other was asked for."""
    return paths.state() / "experiments"


def conduct(
    names: Sequence[str],
    options: Options,
    folder: Path,
    *,
    command: Callable[[str], tuple[str, ...]] = lambda name: (name,),
    hooks: Hooks = Hooks(),  # noqa: B008  # a tuple
) -> list[Record]:
    """Conducts these experiments and writes what they found to the folder; returns the records.

    `command`: the words that make one of them again. What can't be measured at all is told, and the others go on.
    Raises `UsageError`, `DiskError`, and the first error where nothing could be measured at all.
    """
    _check_folder(folder, names)
    found = find_devices(options.rpc)
    there = [device.name for device in found.devices]
    for name in options.devices:
        if name not in there:
            raise UsageError(f"there is no device {name}", field="devices", value=name)
    machine = key_of(found).digest
    settings = options.settings()
    models = paths.cache() / "experiments"
    with _alone(models):
        return _conduct(
            names, options, folder, models, Setup("", settings, machine, __version__), found, command, hooks
        )


def _check_folder(folder: Path, names: Sequence[str]) -> None:
    """What lies there and is none of ours is not replaced. Raises `UsageError`, `DiskError`."""
    fs.check_writable(folder)
    page = folder / "README.md"
    is_other = page.exists() and not page.read_text(errors="replace").startswith(report.TITLE)
    for name in names:
        record = folder / f"{name}.json"
        if record.exists() and not is_other:
            try:
                read_record(record)
            except UsageError:
                page, is_other = record, True
    if is_other:
        raise UsageError(f"{page} is none of an experiment's, and would be replaced", field="output")


@contextmanager
def _alone(models: Path) -> Iterator[None]:
    """One run of experiments at a time: two would measure each other. Models that one before has left are removed."""
    try:
        with fs.lock(models / "lock"):
            for left in models.glob("*.gguf"):
                left.unlink(missing_ok=True)
            yield
    except fs.Locked:
        raise UsageError("experiments are being conducted already: two at a time would measure each other") from None


def _conduct(
    names: Sequence[str],
    options: Options,
    folder: Path,
    models: Path,
    of_all: Setup,
    found: Found,
    command: Callable[[str], tuple[str, ...]],
    hooks: Hooks,
) -> list[Record]:
    begun = _begun(folder, tuple(names), of_all)
    others = Others()
    time.sleep(_LOOK_S)
    if (busy := others.cores() or 0.0) > _OTHERS:
        hooks.note(f"other processes keep {fixed(busy, 1)} cores busy: figures will tell of them as well")
    draws = importlib.util.find_spec("matplotlib") is not None
    if not draws:
        hooks.note("there is no matplotlib: pages without pictures; the extra `plot` brings it")
    records, errors = [], list[LlmrunError]()
    for name in names:
        partial = folder / f"{name}{'.quick' if options.quick else ''}{PARTIAL}"
        if name in begun.done and (folder / f"{name}.json").exists():
            hooks.note(f"{name} is finished already")
            partial.unlink(missing_ok=True)
            records.append(read_record(folder / f"{name}.json"))
            continue
        setup = replace(of_all, name=name)
        created = utc()
        try:
            with Cells(partial, setup) as cells:
                hooks.began(name, cells.n_found)
                before = _moments(folder, of_all.machine, without=name)
                with Lab(options, cells, folder=models, on_cell=hooks.measuring, moments=before) as lab:
                    entry = EXPERIMENTS[name]
                    function = getattr(import_module(f"llmrun.experiments.{entry.module}"), entry.function)
                    lab.devices()
                    result: Result = function(lab)
                    rounds, noise = lab.rounds, lab.noise
        except UsageError:
            raise
        except LlmrunError as error:
            hooks.failed(name, error)
            errors.append(error)
            continue
        record = Record(
            name=name,
            title=entry.title,
            article="; ".join(dict.fromkeys(ARTICLES[each.article] for each in result.findings))
            or ARTICLES[entry.article],
            created=created,
            ended=utc(),
            command=command(name),
            setup=setup,
            repetitions=rounds,
            machine=describe_machine(found.devices),
            build=describe_build(found.system_info, found.versions),
            result=result,
            cells={key: tuple(samples) for key, samples in cells.samples.items() if key != MACHINE},
            errors=dict(cells.errors),
            moments=tuple(cells.samples.get(MACHINE, ())),
            noise=noise,
        )
        files = _write(record, folder, draws=draws)
        begun = _finished(folder, begun, name)
        partial.unlink(missing_ok=True)
        records.append(record)
        hooks.ended(record, files)
    (folder / _UNFINISHED).unlink(missing_ok=True)
    if errors and not records:
        raise errors[0]
    front_page(folder, on_note=hooks.note)
    return records


def _moments(folder: Path, machine: str, *, without: str) -> list[Sample]:
    """What this machine did while the folder's other records were made."""
    found: list[Sample] = []
    for name in EXPERIMENTS:
        with suppress(UsageError):
            if name != without and (record := read_record(folder / f"{name}.json")).setup.machine == machine:
                found += record.moments
    return found


def _begun(folder: Path, names: tuple[str, ...], setup: Setup) -> _Unfinished:
    """What an earlier run of the same left, or a new one."""
    path = folder / _UNFINISHED
    try:
        left = codec.decode(path.read_bytes(), _Unfinished)
    except (OSError, codec.Malformed):
        left = None
    if left is not None and (left.names, left.setup) == (names, setup):
        return left
    made = _Unfinished(names, setup)
    with fs.disk_errors(f"writing {path}"):
        folder.mkdir(parents=True, exist_ok=True)
        fs.write_atomically(path, codec.encode(made))
    return made


def _finished(folder: Path, begun: _Unfinished, name: str) -> _Unfinished:
    made = replace(begun, done=(*begun.done, name))
    fs.write_atomically(folder / _UNFINISHED, codec.encode(made))
    return made


def _write(record: Record, folder: Path, *, draws: bool) -> list[Path]:
    """Record, pictures and page. Raises `DiskError`."""
    files = []
    pictures: dict[str, str] = {}
    if draws:
        from llmrun.bench.plot import images

        for part, figure in record.result.figures.items():
            if any(panel.series for panel in figure.panels):
                path = folder / f"{record.name}{f'-{part}' if part else ''}.svg"
                with fs.disk_errors(f"writing {path}", elsewhere=_ELSEWHERE):
                    images.write(_placed(figure, record), path)
                pictures[part] = path.name
                files.append(path)
    for path, text in (
        (folder / f"{record.name}.json", codec.encode(record).decode() + "\n"),
        (folder / f"{record.name}.md", report.page(record, pictures)),
    ):
        with fs.disk_errors(f"writing {path}", elsewhere=_ELSEWHERE):
            fs.write_atomically(path, text)
        files.append(path)
    return files


def _placed(figure: Figure, record: Record) -> Figure:
    """With the machine below it, so that it can be read alone."""
    return replace(figure, notes=(*figure.notes, report.place(record)))


def front_page(folder: Path, *, on_note: Callable[[str], None] = lambda _: None) -> Path:
    """The table of all claims, of the records that lie in the folder. Raises `DiskError`."""
    records = []
    for name in EXPERIMENTS:
        if (there := folder / f"{name}.json").exists():
            try:
                records.append(read_record(there))
            except UsageError as error:
                on_note(f"left out of the front page: {error.message}")
    path = folder / "README.md"
    with fs.disk_errors(f"writing {path}", elsewhere=_ELSEWHERE):
        fs.write_atomically(path, report.front(records))
    return path
