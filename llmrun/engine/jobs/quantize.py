"""Makes a smaller model of a larger one, with llama.cpp's own quantizer in a child process.

The new file appears whole or not at all: it is written beside its place, checked, synced to the disk and renamed. The
quantizer itself checks little: on a full disk it may report success.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llmrun import __version__, fs
from llmrun.engine.channel import Channel
from llmrun.engine.devices import does_not_start
from llmrun.engine.process import Child, Death
from llmrun.engine.protocol import Failed, Quantize, Quantized, QuantizingTensor, out_of_memory
from llmrun.errors import Act, BadModel, Change, DiskError, EngineCrashed, NotFound, OutOfMemory, UsageError
from llmrun.gguf.reader import Header
from llmrun.gguf.rules import open_runnable
from llmrun.gguf.types import FILE_TYPES
from llmrun.machine.hardware import available_memory, default_threads
from llmrun.models import quants
from llmrun.text import printable
from llmrun.units import size

FILE_TYPE_NUMBERS = {name: number for number, name in FILE_TYPES.items() if name != "NVFP4"}
"""The levels that llama.cpp can quantize to (NVFP4 it only reads), with their numbers in `enum llama_ftype`."""

OnProgress = Callable[[int, int], None]
"""Gets the bytes of the source that are done, and all."""

_PARTIAL = ".partial"
_METADATA_BYTES = 4096
"""More than the keys that we add take."""


@dataclass(frozen=True)
class Recipe:
    """How to quantize. `level` must be one of `FILE_TYPE_NUMBERS`; see `level_of`.

    Attributes:
        pure: every matrix in the level's own type, without the level's mix.
        keep_output: the output matrix stays as it is in the source.
        imatrix: an importance matrix, as llama-imatrix writes it.
        n_threads: None is one per physical core.
    """

    level: str
    pure: bool = False
    keep_output: bool = False
    imatrix: Path | None = None
    n_threads: int | None = None


@dataclass(frozen=True)
class Plan:
    """What will come of it: `n_bytes` of the new file (exact to 0.01 MiB), `n_fallback` tensors in another type."""

    n_bytes: int
    n_fallback: int


def level_of(text: str) -> str:
    """The level that was meant. Raises `UsageError` with those that there are."""
    levels = [f"{name}.gguf" for name in FILE_TYPE_NUMBERS]
    meant = quants.choose(levels, quants.normalize(text) or text)
    if meant is not None and meant.quant is not None:
        return meant.quant
    from difflib import get_close_matches

    near = get_close_matches(text.upper(), FILE_TYPE_NUMBERS, n=3, cutoff=0.4)
    offered = ", ".join(dict.fromkeys([*near, "Q4_K_M", "Q5_K_M", "Q8_0"]))
    problem = f"'{printable(text)}' is no level to quantize to; there are {offered} and others"
    raise UsageError(problem, hint=Act("help", "quantize"))


class Quantizer:
    """One source and one recipe. `plan()` costs no more than reading the header, `run()` does the work.

    `source` is the first file of the model, `header` that of all its parts together. A context manager: leaving it
    ends the child, whatever it is doing. Raises `BadModel`, `UsageError` (the level needs an importance matrix),
    `DiskError`, `OutOfMemory`, `EngineCrashed`.
    """

    def __init__(self, source: Path, header: Header, recipe: Recipe) -> None:
        self.source, self.header, self.recipe = source, header, recipe
        if recipe.imatrix is not None and not recipe.imatrix.is_file():
            raise NotFound(f"no such file: {printable(str(recipe.imatrix), 200)}")
        self._channel = Channel(Child("child.quantize"), who="quantizer", of_death=self._of_death)

    def __enter__(self) -> Quantizer:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    @property
    def pid(self) -> int:
        return self._channel.child.pid

    def plan(self) -> Plan:
        """How large the result will be: llama.cpp's own choice of a type for every tensor, without their weights."""
        done = self._do(Path(os.devnull), {}, dry_run=True)
        if done.needs_imatrix and self.recipe.imatrix is None:
            problem = f"{self.recipe.level} needs an importance matrix (`imatrix`) for this model"
            raise UsageError(problem, hint="take Q3_K_S or a larger level: they need none")
        return Plan(round(done.mib * (1 << 20)) + self.header.data_offset + _METADATA_BYTES, done.n_fallback)

    def run(
        self, target: Path, metadata: dict[str, str] | None = None, on_progress: OnProgress | None = None
    ) -> Header:
        """Quantizes into `target`, which must not exist yet; returns the header of the new file.

        `metadata` is added to that of the model.
        """
        _check_free(target)
        fs.check_space(target.parent, self.plan().n_bytes, what=target.name)
        metadata = {"general.quantized_by": f"llmrun {__version__}", **(metadata or {})}
        with _beside(target) as staged:
            self._do(staged, metadata, on_progress=on_progress)
            made = self._checked(staged)
            with fs.disk_errors(f"writing {target.name}"):
                with staged.open("rb+") as file:
                    os.fsync(file.fileno())
                _place(staged, target)
                fs.fsync_folder(target.parent)
        return made

    def _checked(self, path: Path) -> Header:
        """The header of the new file, which must have all tensors of the old one and all their bytes."""
        try:
            made = open_runnable(path)
        except (BadModel, NotFound) as error:
            raise self._not_whole(path, error.message) from None
        shapes = {tensor.name: tensor.shape for tensor in made.tensors}
        if shapes != {tensor.name: tensor.shape for tensor in self.header.tensors}:
            raise self._not_whole(path, "it does not have the tensors of its source")
        return made

    def _not_whole(self, path: Path, why: str) -> DiskError | EngineCrashed:
        """For a result that is none: nearly always the disk, about whose errors the quantizer keeps quiet."""
        try:
            # What it would have met, had it looked: one more byte at the end of what is there.
            with fs.disk_errors("quantizing"), path.open("ab", buffering=0) as file:
                os.posix_fallocate(file.fileno(), file.tell(), 1 << 20)
        except DiskError as error:
            return error
        except AttributeError:  # macOS has no posix_fallocate
            pass
        return EngineCrashed(f"the quantizer left a file that is no whole model: {why}")

    def _do(
        self, target: Path, metadata: dict[str, str], *, dry_run: bool = False, on_progress: OnProgress | None = None
    ) -> Quantized:
        recipe = self.recipe
        job = Quantize(
            source=os.fspath(self.source.absolute()),
            target=os.fspath(target.absolute()),
            file_type=FILE_TYPE_NUMBERS[recipe.level],
            n_threads=recipe.n_threads or default_threads(),
            pure=recipe.pure,
            keep_output=recipe.keep_output,
            imatrix=None if recipe.imatrix is None or dry_run else os.fspath(recipe.imatrix.absolute()),
            metadata=metadata,
            dry_run=dry_run,
        )
        sizes = {tensor.name: tensor.n_bytes for tensor in self.header.tensors}
        total, done, current = sum(sizes.values()), 0, ""
        told = on_progress or (lambda done, total: None)
        number = self._channel.request(job)
        while True:
            match message := self._channel.answer(number):
                case QuantizingTensor():
                    done += sizes.get(current, 0)
                    current = message.name
                    told(done, total)
                case Quantized():
                    told(total, total)
                    return message
                case Failed():
                    raise self._refused(message.message, target)
                case other:
                    raise self._channel.ended(f"sent {type(other).__name__} out of turn")

    def _of_death(self, death: Death) -> OutOfMemory | EngineCrashed:
        if death.out_of_memory:
            return _no_memory()
        return does_not_start(death) or EngineCrashed(f"the quantizer {death.reason}")

    def _refused(self, reason: str, target: Path) -> Exception:
        if out_of_memory(reason):
            return _no_memory()
        if "iostream" in reason or "ios_base" in reason:
            return self._not_whole(target, "writing failed")
        said = printable(reason, 300)
        if reason.startswith("imatrix"):
            return UsageError(f"the importance matrix does not do: {said}", hint="llama-imatrix makes one")
        return BadModel(f"{self.source.name}: llama.cpp can't quantize it: {said}")


def _no_memory() -> OutOfMemory:
    problem = f"out of memory while quantizing, {size(available_memory())} available"
    return OutOfMemory(problem, hint=Change({"n_threads": 1}, note="fewer threads"))


def _check_free(target: Path) -> None:
    if os.path.lexists(target):
        raise UsageError(f"{printable(str(target), 200)} exists already")


def _place(staged: Path, target: Path) -> None:
    """A rename that never replaces what another process has put there meanwhile."""
    try:
        os.link(staged, target)
    except FileExistsError:
        _check_free(target)
        raise
    except OSError:  # a file system without hard links: between the look and the rename there is a moment
        _check_free(target)
        staged.replace(target)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A hidden name in the target's folder, gone afterwards; also those that a killed process has left there."""
    with fs.disk_errors(f"writing {target.name}"):
        for left in target.parent.iterdir():
            if left.name.startswith(f".{target.name}.") and is_abandoned(left):
                left.unlink(missing_ok=True)
    staged = target.parent / f".{target.name}.{os.getpid()}{_PARTIAL}"
    try:
        yield staged
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def is_abandoned(path: Path) -> bool:
    """Whether this is the unfinished file of a quantizer whose process is no more: ".NAME.PID.partial"."""
    pid = path.name.removesuffix(_PARTIAL).rpartition(".")[2]
    return path.name.endswith(_PARTIAL) and pid.isdecimal() and not fs.is_running(int(pid))
