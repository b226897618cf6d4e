"""The files of a model that is being quantized: their names and place, and what the new one says of its source.

The work itself is handed in: it belongs to the engine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmrun import fs
from llmrun.errors import Act, Change, UsageError
from llmrun.models import quants
from llmrun.models.resolve import Model
from llmrun.models.store import state
from llmrun.models.store.importing import admit, is_taken, staged
from llmrun.models.store.layout import LOCAL, repo_of, staging_folders, write_note

_NOT_MADE = ("MXFP4", "NVFP4")
"""Levels of files that llama.cpp reads, and does not make."""


Quantize = Callable[[Path, dict[str, str], Callable[[int, int], None]], object]
"""Quantizes into a file, whole or not at all, adds the metadata to its header, and tells of bytes done, and all."""


@dataclass(frozen=True)
class QuantizeProgress:
    """`done` of `total` bytes of one step: the source is hashed, the model quantized, the new file hashed."""

    step: Literal["hash source", "quantize", "hash result"]
    done: int
    total: int


OnQuantizeEvent = Callable[[QuantizeProgress], None]


def levels() -> list[quants.Level]:
    """Those that can be made, by size."""
    return [level for level in quants.LEVELS.values() if level.name not in _NOT_MADE]


# --- names ------------------------------------------------------------------------------------------------------------


def reference_of(source: Model) -> str:
    """What to type for exactly this source, its level included."""
    place = repo_of(source.path)
    if place is None:
        return source.name
    repo, _, file = place
    level = quants.quant_of(file)
    return f"{source.name}:{level}" if level else f"hf://{repo}/{file}"


def default_name(source: Model, level: str) -> str:
    """`qwen3-4b-q4_k_m` of "qwen3:4b": the model's name with its level, if it has one, replaced."""
    stem = source.name.rpartition("/")[2].removesuffix(".gguf")
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", stem)
    words = [word for word in re.split(r"[^A-Za-z0-9._]+", stem) if word]
    if len(words) > 1 and quants.normalize(words[-1]):
        words.pop()
    return "-".join([*words, level]).strip("-._").lower()[:96]


def checked_target(output: Path, name: str) -> Path:
    """The file to write; in a folder, one called by the name. Raises `UsageError` where it can't be made."""
    target = output.expanduser()
    target = target / _file_name(name) if target.is_dir() else target
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent}", hint=f"mkdir -p {target.parent}")
    if os.path.lexists(target):
        raise UsageError(f"{target} exists already", remedies=(Change({"output": "PATH"}), "remove it first"))
    return target


def check_free(name: str) -> None:
    """Raises `UsageError` if `local/<name>` exists, or if another process is making it."""
    if is_taken(name):
        raise UsageError(f"{LOCAL}{name} exists already", remedies=(Change({"name": "NAME"}), Act("rm", LOCAL + name)))
    for folder in staging_folders():
        if folder.quantizing and folder.name == name and folder.is_in_use():
            said = f"another process ({folder.pid}) is making {LOCAL}{name}"
            raise UsageError(said, remedies=("wait for it", Change({"name": "NAME"})))


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", name) + ".gguf"


# --- making -----------------------------------------------------------------------------------------------------------


def into_file(source: Model, level: str, quantize: Quantize, target: Path, on_event: OnQuantizeEvent) -> None:
    """Quantizes into this file. Raises what `quantize` raises, `DiskError`."""
    metadata = {
        "llmrun.quantize.source": source.header.name or source.path.name,
        "llmrun.quantize.source_file": source.path.name,
        "llmrun.quantize.source_quantization": source.header.quantization_label or "",
        "llmrun.quantize.source_sha256": _source_sha256(source.path, on_event),
    }
    if place := repo_of(source.path):
        metadata["llmrun.quantize.source_repo"], metadata["llmrun.quantize.source_commit"] = place[:2]
    metadata["llmrun.quantize.level"] = level
    quantize(target, metadata, lambda done, total: on_event(QuantizeProgress("quantize", done, total)))


def into_store(source: Model, level: str, quantize: Quantize, name: str, on_event: OnQuantizeEvent) -> Path:
    """Quantizes into a new model `local/<name>`, there whole or not at all; returns its file.

    Raises what `quantize` raises, `DiskError`, and `UsageError` if another process made that model meanwhile.
    """
    file = _file_name(name)
    with staged(name, quantizing=True) as folder:
        made = folder / file
        into_file(source, level, quantize, made, on_event)
        with fs.disk_errors(f"storing {LOCAL}{name}"):
            total = made.stat().st_size
            sha256 = fs.sha256_of(made, lambda done: on_event(QuantizeProgress("hash result", done, total)))
            write_note(folder, [source.path.absolute()], {file: sha256})  # for `verify`
            path = admit(folder, name) / file
    state.remember(path, sha256=sha256)
    return path


def _source_sha256(path: Path, on_event: OnQuantizeEvent) -> str:
    """Of the source's (first) file: from the hub where it came from there, else computed, which takes a while."""
    with fs.disk_errors(f"reading {path.name}"):
        total = path.stat().st_size
        found = state.sha256_of(path, lambda done: on_event(QuantizeProgress("hash source", done, total)))
    if found is None:
        raise UsageError(f"{path.name} was written to while it was read")
    return found
