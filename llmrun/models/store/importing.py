"""Makes files of this machine models of the store: a folder prepared out of sight, then one rename."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmrun import fs, paths
from llmrun.errors import Act, Change, NotFound, UsageError
from llmrun.gguf.rules import open_whole
from llmrun.models import quants
from llmrun.models.store import layout, state
from llmrun.models.store.layout import LOCAL, StagingFolder, local_folder
from llmrun.models.store.listing import FactReader, StoredModel, found_in_folder
from llmrun.models.store.state import HeaderFacts
from llmrun.text import printable


@dataclass(frozen=True)
class ImportProgress:
    """`done` of `total` bytes of an import have been copied."""

    file: str
    done: int
    total: int


def checked_name(name: str) -> str:
    """The name of an imported model without `local/`, in its one spelling. Raises `UsageError` for an unfit one."""
    name = name.lower().removeprefix(LOCAL).removesuffix(".gguf")
    if not layout.is_local_name(name):
        said = f"'{printable(name)}' is not a name for a model: letters, digits, '.', '_' and '-'"
        raise UsageError(said, field="name")
    return name


def name_from(file: str) -> str:
    """The name that an imported file gets: "qwen3-4b-q8_0" of "Qwen3-4B-Q8_0.gguf".

    Where it has no letter that a model's name can have, but for its level, a hash of it tells it from others.
    """
    stem = re.sub(r"(-\d{5}-of-\d{5})?(\.gguf)?$", "", file, flags=re.IGNORECASE)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._").lower()[:96].rstrip("-._")
    if not name or (quants.normalize(name) and not stem.isascii()):
        made = f"model-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}"
        return f"{made}-{name}" if name else made
    return name


def import_file(
    path: Path, *, copy: bool, name: str | None = None, on_event: Callable[[ImportProgress], None] | None = None
) -> StoredModel:
    """Makes a local GGUF file (all parts of a split one) a model called `local/<name>`, by link or by copy.

    Raises `BadModel` if it can't be run, `NotFound` for a missing file or part, `UsageError` for a name that is taken
    (see `is_taken`) or unfit, `DiskError`.
    """
    path = path.expanduser()
    # A link must not go through the current folder as somebody wrote it ("..", links): that may change.
    path = path.parent.resolve() / path.name
    sources = [path.with_name(part) for part in quants.split_parts(path.name)]
    for source in sources:
        if not source.exists():
            raise NotFound(f"no such file: {printable(str(source), 200)}")
    header = open_whole(sources)
    name = checked_name(name or name_from(path.name))
    if is_taken(name):
        raise UsageError(f"local/{name} exists already", hint=Act("rm", LOCAL + name))
    with fs.disk_errors(f"importing {printable(path.name)}"):
        total = sum(source.stat().st_size for source in sources)
        if copy:
            remedies = (Change({"copy": None}), "set LLMRUN_HOME to a folder on a larger disk")
            fs.check_space(paths.imported_models(), total, what=path.name, remedies=remedies)
        with staged(name) as folder:
            sha256 = _fill(folder, sources, copy=copy, total=total, on_event=on_event)
            layout.write_note(folder, sources, sha256)
            root = admit(folder, name)
    if len(sources) == 1:  # of a part: its own, not those of the whole
        state.remember(root / _gguf_name(sources[0]), facts=HeaderFacts.of(header))
    (found,) = found_in_folder(LOCAL + name, None, root)
    return FactReader().completed(found)


def is_taken(name: str) -> bool:
    """Whether `local/<name>` is a model, or a folder with anything that is not llmrun's.

    What `verify` has set aside, links to files that are gone and a split model that lacks a part are no model: an
    import takes their place.
    """
    root = local_folder(name.lower())
    if root.is_symlink() or not root.is_dir():
        return os.path.lexists(root)
    if any(found.complete for found in found_in_folder(LOCAL + name, None, root)):
        return True
    files = layout.files_below(root)
    return not all(layout.is_note(path) or layout.is_damaged_rest(path) or quants.is_gguf(path.name) for path in files)


@contextmanager
def staged(name: str, *, quantizing: bool = False) -> Iterator[Path]:
    """A folder in which to prepare `local/<name>`, gone afterwards unless it has been admitted."""
    folder = StagingFolder.mine(name, quantizing=quantizing).path
    with fs.disk_errors(f"writing {name}"):
        if folder.exists():  # of a process that had this one's number and was killed
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def admit(folder: Path, name: str) -> Path:
    """Makes a staged folder the model `local/<name>` by one rename, and returns its folder.

    The model is there whole or not at all, and of two processes that made the same one has it. Raises `UsageError` in
    the other, `OSError`.
    """
    root = local_folder(name)
    fs.fsync_folder(folder)
    if os.path.lexists(root) and not is_taken(name):
        shutil.rmtree(root)
    try:
        folder.rename(root)
    except OSError:
        if os.path.lexists(root):
            made = f"another process has made local/{name} meanwhile"
            raise UsageError(made, hint=Act("show", LOCAL + name)) from None
        raise
    fs.fsync_folder(root.parent)
    return root


def _fill(
    folder: Path, sources: list[Path], *, copy: bool, total: int, on_event: Callable[[ImportProgress], None] | None
) -> dict[str, str]:
    """Links or copies the files; returns the sha256 of those that were copied, by name."""
    done, sha256 = 0, {}
    for source in sources:
        target = folder / _gguf_name(source)
        if not copy:
            target.symlink_to(source)
            continue
        sha = hashlib.sha256()
        with source.open("rb", buffering=0) as src, target.open("xb", buffering=0) as dst:
            while chunk := src.read(fs.CHUNK_BYTES):
                sha.update(chunk)
                fs.write_all(dst.fileno(), chunk)
                done += len(chunk)
                if on_event is not None:
                    on_event(ImportProgress(source.name, done, total))
            os.fsync(dst.fileno())
        sha256[target.name] = sha.hexdigest()
    return sha256


def _gguf_name(source: Path) -> str:
    """What a file is called in the store: as before, with the ending of a GGUF file where it had none."""
    return source.name if quants.is_gguf(source.name) else f"{source.name}.gguf"
