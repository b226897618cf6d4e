"""Every quantization level that there is of a model, each with its header; what is on the hub, by range requests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmrun.errors import NetworkError
from llmrun.gguf.reader import Header
from llmrun.models import quants
from llmrun.models.catalog import load
from llmrun.models.reference import HubFile, parse
from llmrun.models.resolve import find_imported, find_stored, open_whole

if TYPE_CHECKING:
    from llmrun.models.store.listing import StoredModel

_AT_ONCE = 4
"""Headers that are read side by side; each is a few MB."""


@dataclass(frozen=True)
class LevelFile:
    """A model at one level.

    Attributes:
        quant: "Q4_K_M"; None where neither the file's name nor its header says.
        file_bytes: of all its files.
        path: of the first; None: it is not here.
        download_bytes: what a pull would fetch of it.
    """

    quant: str | None
    file_bytes: int
    header: Header
    path: Path | None = None
    download_bytes: int = 0


@dataclass(frozen=True)
class Levels:
    """What a name stands for.

    Attributes:
        name: as messages call it.
        files: the smallest first; at least one.
        note: what is to be told of them; mostly empty.
    """

    name: str
    files: tuple[LevelFile, ...]
    note: str = ""


def levels_of(reference: str, *, offline: bool = False) -> Levels:
    """All levels of the repository that is named; the one that the name says, or the one file that it is.

    Raises what naming, asking the hub and reading a header can end in.
    """
    named = parse(reference)
    if not isinstance(named, HubFile):
        return Levels(named.name, (_local(named.path),))
    if load().find(reference) is not None:  # a name alone: the level, or the file, is the catalog's choice
        named = replace(named, quant=None, file=None)
    if find_imported(named) is not None:
        offline = True
    from llmrun.models.hub.http import is_offline

    if named.quant or named.file or is_offline(offline):
        return Levels(str(named), (_one(named, offline=offline),))
    try:
        return Levels(named.name, _all_of(named))
    except NetworkError as error:
        if (stored := find_stored(named)) is None:
            raise
        return Levels(named.name, (_stored(stored[0]),), f"{error.message}; only what is here is told of")


def usual_level(reference: str, *, offline: bool = False) -> Levels:
    """The level that a name has when nobody says which. Raises as `levels_of`."""
    named = parse(reference)
    if not isinstance(named, HubFile):
        return Levels(reference, (_local(named.path),))
    return Levels(reference, (_one(named, offline=offline),))


def _local(path: Path) -> LevelFile:
    first, header = open_whole(path)
    n_bytes = sum(first.with_name(part).stat().st_size for part in quants.split_parts(first.name))
    return LevelFile(header.quantization_label, n_bytes, header, first)


def _stored(model: StoredModel) -> LevelFile:
    found = _local(model.path)
    return replace(found, quant=model.quant or found.quant)


def _one(named: HubFile, *, offline: bool) -> LevelFile:
    if (stored := find_stored(named)) is not None:
        return _stored(stored[0])
    from llmrun.models.hub.download import missing_bytes
    from llmrun.models.hub.info import resolve
    from llmrun.models.hub.remote import remote_header

    resolved = resolve(named, offline=offline)
    header, missing = remote_header(resolved), missing_bytes(resolved)
    return LevelFile(resolved.quant, resolved.total_bytes, header, download_bytes=missing)


def _all_of(named: HubFile) -> tuple[LevelFile, ...]:
    from llmrun.models.hub.info import model_info, quants_of

    info = model_info(named.repo, named.revision)
    wanted = [each.quant for each in quants_of(info) if quants.normalize(each.quant)]
    # A file without a level in its name, or no file at all: `resolve` takes it, or says what is wrong.
    chosen = [replace(named, repo=info.repo, revision=info.commit, quant=quant) for quant in dict.fromkeys(wanted)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda each: _one(each, offline=False), chosen or [named]))
    return tuple(sorted(found, key=lambda each: each.file_bytes))
