"""`llmrun quantize MODEL LEVEL`: a smaller model of a larger one."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llmrun import paths
from llmrun.cli.framework import options
from llmrun.cli.framework.command import command
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.terminal import progress, screen, tables
from llmrun.cli.terminal.tables import Column
from llmrun.errors import UsageError
from llmrun.models import quants
from llmrun.models.catalog import LocalFile
from llmrun.text import printable
from llmrun.units import count, duration, fixed, significant, size

if TYPE_CHECKING:
    from llmrun.engine.jobs.quantize import Plan, Quantizer
    from llmrun.models.resolve import Model

_EXAMPLE_PARAMETERS = 8.03e9
"""Llama 3.1 8B, for the table in `--help`."""
_WORKSHOP = ".quantizing"
_NO_TARGETS = ("MXFP4", "NVFP4")
"""Levels of files that llama.cpp reads, and does not make."""


@command(epilog=lambda: levels_help())
def quantize(
    model: options.ModelName,
    level: Annotated[
        str | None,
        Argument("LEVEL", "Such as Q4_K_M. Without one: what each would give."),
    ] = None,
    output: Annotated[
        Path | None,
        Option("--output", "-o", metavar="PATH", help="Write this file.  [default: a new model of llmrun's]"),
    ] = None,
    name: Annotated[str | None, Option("--name", metavar="NAME", help="The new model is called local/NAME.")] = None,
    pure: Annotated[bool, Option("--pure", help="Every matrix in one type, without the level's mix.")] = False,
    keep_output: Annotated[
        bool, Option("--leave-output-tensor", help="Leave the output matrix as it is: better, and larger.")
    ] = False,
    imatrix: Annotated[
        Path | None,
        Option("--imatrix", metavar="FILE", help="Importance matrix of llama-imatrix, in GGUF form."),
    ] = None,
    threads: Annotated[
        int | None, Option("-t", "--threads", min=1, max=512, help="Threads.  [default: physical cores]")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Say how large it would be; write nothing.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a smaller model of a larger one.

    llama.cpp's own quantizer does it, best from F16, BF16 or F32: a model that is quantized already loses twice. The
    new file appears whole or not at all, is a model like any other, and says in its metadata where it came from. Prints
    its name.
    """
    tell = progress.teller(quiet)
    if level is None:
        _show_levels(model, as_json=as_json, quiet=quiet)
        return

    from llmrun.engine.jobs.quantize import Quantizer, Recipe, level_of

    recipe = Recipe(level_of(level), pure, keep_output, imatrix, threads)
    source = _find(model, quiet=quiet)
    name = _checked_name(name) if name else _default_name(source, recipe.level)
    target = None if output is None else _checked_target(output, name)
    if not dry_run and target is None:
        _check_free(name)
    made_from = source.header.quantization_label
    if made_from not in ("F16", "BF16", "F32", None):
        tell(f"warning: {source.name} is {made_from} already; from F16 or BF16 the result would be better")
    begin_s = time.monotonic()
    with Quantizer(source.path, source.header, recipe) as quantizer:
        plan = quantizer.plan()
        document = _document(source, recipe.level, plan)
        if plan.n_fallback:
            tell(f"{plan.n_fallback} tensors have rows that don't fit {recipe.level}; they get a larger type")
        if not dry_run:
            tell(f"{source.name}: {size(document['source_bytes'])} -> {recipe.level}, {size(plan.n_bytes)}")
            document |= _made(quantizer, _origin(source), name, target, quiet=quiet)
            document["seconds"] = time.monotonic() - begin_s
            tell(f"{document['name']}: {size(document['bytes'])} in {duration(document['seconds'])}")
    if as_json:
        screen.out_json(document)
    elif dry_run:
        bits = significant(document["bits_per_weight"])
        tables.show_pairs(
            [("name", name), ("level", recipe.level), ("size", size(plan.n_bytes)), ("bits/weight", bits)]
        )
    else:
        screen.out(screen.harmless(document["name"]) + "\n")


def _find(model: str, *, quiet: bool) -> Model:
    from llmrun.cli.commands.pull import fetch_with_progress
    from llmrun.models.resolve import find_model

    found = find_model(model, fetch=fetch_with_progress(quiet))
    if found.note:
        progress.teller(quiet)(found.note)
    return found


def _document(source: Model, level: str, plan: Plan) -> dict[str, Any]:
    place = _hub_place(source)
    return {
        "source": _reference(source),
        "source_repo": place and place[0],
        "source_commit": place and place[1],
        "source_path": os.fspath(source.path),
        "source_quant": source.header.quantization_label,
        "source_bytes": source.header.weight_bytes,
        "level": level,
        "bytes": plan.n_bytes,
        "bits_per_weight": 8 * plan.n_bytes / max(1, source.header.n_params),
        "fallback_tensors": plan.n_fallback,
    }


# -- where it comes from ---


def _hub_place(source: Model) -> tuple[str, str, str] | None:
    """Repository, commit and file, of a source that lies in the hub cache."""
    from llmrun.models import store

    try:
        place = source.path.absolute().relative_to(paths.hub_cache().absolute()).parts
    except ValueError:
        return None
    if len(place) < 4 or place[1] != "snapshots":
        return None
    return store.RepoFolder(paths.hub_cache() / place[0]).repo, place[2], "/".join(place[3:])


def _reference(source: Model) -> str:
    """What to type for exactly this source, its level included."""
    place = _hub_place(source)
    if place is None:
        return source.name
    repo, _, file = place
    level = quants.quant_of(file)
    return f"{source.name}:{level}" if level else f"hf://{repo}/{file}"


def _origin(source: Model) -> dict[str, str]:
    """Metadata of the new file that says which file of the hub its source was; empty for one that is not from there."""
    place = _hub_place(source)
    return {"llmrun.quantize.source_repo": place[0], "llmrun.quantize.source_commit": place[1]} if place else {}


# -- where it goes ---


def _default_name(source: Model, level: str) -> str:
    """`qwen3-4b-q4_k_m` of "qwen3:4b": the model's name with its level, if it has one, replaced."""
    stem = source.name.rpartition("/")[2].removesuffix(".gguf")
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", stem)
    words = [word for word in re.split(r"[^A-Za-z0-9._]+", stem) if word]
    if len(words) > 1 and quants.normalize(words[-1]):
        words.pop()
    return "-".join([*words, level]).strip("-._").lower()[:96]


def _checked_name(name: str) -> str:
    """As `store.import_file` will have it, but asked before the work and not after it."""
    name = name.lower().removeprefix("local/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,95}", name):
        raise UsageError(f"'{printable(name)}' is no name for a model: letters, digits, '.', '_' and '-'")
    return name


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", name) + ".gguf"


def _checked_target(output: Path, name: str) -> Path:
    target = output.expanduser()
    target = target / _file_name(name) if target.is_dir() else target
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent}", hint=f"mkdir -p {target.parent}")
    if os.path.lexists(target):
        raise UsageError(f"{target} exists already", hint="another --output, or remove it first")
    return target


def _check_free(name: str) -> None:
    """Raises `UsageError` if the new model exists, or if another process is making it."""
    from llmrun.models import store

    if store.is_taken(name):
        raise UsageError(f"local/{name} exists already", hint=f"--name, or llmrun rm local/{name}")
    for workshop in _workshops():
        if workshop.name == f"local/{name}" and workshop.is_in_use():
            raise UsageError(
                f"another process ({workshop.pid}) is making local/{name}", hint="wait for it, or take another --name"
            )


def _made(
    quantizer: Quantizer, origin: dict[str, str], name: str, target: Path | None, *, quiet: bool
) -> dict[str, Any]:
    """Quantizes into the file that the user named, or into a new model of the store; what the document says of it."""
    if target is not None:
        n_bytes = _run(quantizer, target, origin, quiet=quiet)
        return {"name": LocalFile(target).name, "path": os.fspath(target.absolute()), "bytes": n_bytes}

    from llmrun.models import store

    file = _file_name(name)
    with _workshop(name) as folder:
        n_bytes = _run(quantizer, folder / file, origin, quiet=quiet)
        made = _stored(quantizer, folder, file, name, quiet=quiet)
    return {"name": store.LOCAL + name, "path": os.fspath(made), "bytes": n_bytes}


def _stored(quantizer: Quantizer, folder: Path, file: str, name: str, *, quiet: bool) -> Path:
    """Makes the workshop, with a finished file in it, a model of the store by one rename: it is there whole or not at
    all, and of two processes that made the same model one has it."""
    from llmrun import fs
    from llmrun.models import store

    made, room = folder / file, paths.imported_models() / name
    with progress.of_bytes(f"reading local/{name} back", made.stat().st_size, quiet=quiet) as bar:
        sha256 = store.hash_file(made, bar.update)
    note = {"from": [os.fspath(quantizer.source.absolute())], "sha256": {file: sha256}}  # for `llmrun verify`
    with fs.disk_errors(f"storing local/{name}"):
        fs.write_atomically(folder / store._IMPORT_NOTE, json.dumps(note))
        fs.fsync_folder(folder)
        if room.exists() and not store.is_taken(name):
            shutil.rmtree(room)
        try:
            folder.rename(room)
        except OSError:
            if os.path.lexists(room):
                raise UsageError(
                    f"another process has made local/{name} meanwhile", hint=f"llmrun show local/{name}"
                ) from None
            raise
        fs.fsync_folder(room.parent)
    store.State().remember(room / file, sha256=sha256)
    return room / file


@dataclass(frozen=True)
class Workshop:
    """The folder in which one process quantizes: `.NAME.PID.quantizing` among llmrun's models, on the same disk."""

    path: Path
    name: str
    pid: int

    @property
    def size(self) -> int:
        """Bytes of what is in it."""
        found = 0
        with suppress(OSError):  # somebody else is removing it
            for path in self.path.iterdir():
                found += path.lstat().st_size
        return found

    def is_in_use(self) -> bool:
        from llmrun import fs

        return fs.is_running(self.pid)

    def remove(self) -> int:
        """The bytes that this freed."""
        from llmrun import fs

        freed = self.size
        with fs.disk_errors(f"removing {self.path.name}"):
            shutil.rmtree(self.path)
        return freed


_WORKSHOP_NAME = re.compile(r"\.(?P<name>.+)\.(?P<pid>[0-9]{1,10})" + re.escape(_WORKSHOP))


def _workshops() -> Iterator[Workshop]:
    """Those of all processes. `list` looks into no hidden folder."""
    from llmrun.models import store

    for path in paths.imported_models().glob(f".*{_WORKSHOP}"):
        if (match := _WORKSHOP_NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink():
            yield Workshop(path, store.LOCAL + match["name"], int(match["pid"]))


@contextmanager
def _workshop(name: str) -> Iterator[Path]:
    """A folder of this process alone, gone afterwards unless it has become the model."""
    from llmrun import fs

    folder = paths.imported_models() / f".{name}.{os.getpid()}{_WORKSHOP}"
    with fs.disk_errors(f"writing {name}"):
        if folder.exists():  # of a process that had our number and was killed
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def abandoned() -> list[Workshop]:
    """What quantizers have left that were killed, for `list` to show and `rm` to free."""
    return [workshop for workshop in _workshops() if not workshop.is_in_use()]


def _run(quantizer: Quantizer, target: Path, origin: dict[str, str], *, quiet: bool) -> int:
    """Bytes of the new file."""
    total = sum(tensor.n_bytes for tensor in quantizer.header.tensors)
    sha256 = _source_sha256(quantizer, quiet=quiet)
    about = {
        "llmrun.quantize.source": quantizer.header.name or quantizer.source.name,
        "llmrun.quantize.source_file": quantizer.source.name,
        "llmrun.quantize.source_quantization": quantizer.header.quantization_label or "",
        "llmrun.quantize.source_sha256": sha256,
        **origin,
        "llmrun.quantize.level": quantizer.recipe.level,
    }
    with progress.of_bytes(f"quantizing to {quantizer.recipe.level}", total, quiet=quiet) as bar:
        quantizer.run(target, about, lambda done, _total: bar.update(done))
    return target.stat().st_size


def _source_sha256(quantizer: Quantizer, *, quiet: bool) -> str:
    """Of the source's (first) file: from the hub where it came from there, else computed, which takes a while."""
    from llmrun import fs
    from llmrun.models import store

    real = quantizer.source.resolve()
    known = real.name if store.SHA256.fullmatch(real.name) else store.State().verified_sha256(real)
    if known:
        return known
    with (
        progress.of_bytes(f"reading {quantizer.source.name}", real.stat().st_size, quiet=quiet) as bar,
        fs.disk_errors(f"reading {quantizer.source.name}"),
    ):
        found = store.hash_file(real, bar.update)
    store.State().remember(real, sha256=found)
    return found


# -- the table of levels ---


def _show_levels(model: str, *, as_json: bool, quiet: bool) -> None:
    """What each level would make of this model, without quantizing."""
    source = _find(model, quiet=quiet)
    if as_json:
        n = source.header.n_params
        screen.out_json(
            [
                {
                    "level": level.name,
                    "bits_per_weight": level.bits_per_weight,
                    "bytes": round(n * level.bits_per_weight / 8),
                }
                for level in _levels()
            ]
        )
    else:
        tables.show(_columns(count(source.header.n_params)), _level_rows(source.header.n_params))


def _levels() -> list[quants.Level]:
    return [level for level in quants.LEVELS.values() if level.name not in _NO_TARGETS]


def _columns(parameters: str) -> tuple[Column, ...]:
    return (
        Column("LEVEL"),
        Column("BITS/WEIGHT", right=True),
        Column(f"SIZE ({parameters})", right=True),
        Column("GOOD FOR", flexible=True),
    )


def _level_rows(n_params: float) -> Iterator[list[str]]:
    for level in _levels():
        n_bytes = n_params * level.bits_per_weight / 8
        yield [level.name, fixed(level.bits_per_weight, 2), "~" + size(n_bytes), level.good_for]


def levels_help() -> str:
    """For the end of `llmrun quantize --help`."""
    rows = tables.lines(_columns(count(_EXAMPLE_PARAMETERS)), _level_rows(_EXAMPLE_PARAMETERS))
    return "\n".join(f"  {row}" for row in rows)
