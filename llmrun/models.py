"""From what a user calls a model to a checked file on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmrun.catalog import Embedded, HubFile, LocalFile, parse
from llmrun.errors import BadModel
from llmrun.gguf import Header, open_header, shown_name
from llmrun.gguf_rules import check_runnable, open_runnable
from llmrun.quants import split_parts

if TYPE_CHECKING:
    from llmrun.config import LoadConfig
    from llmrun.engine.client import Engine

Fetch = Callable[[HubFile], Path]
"""Gets a model that is not on this machine; returns its (first) file."""


@dataclass(frozen=True)
class Model:
    """A model that can be loaded: its header has been read and checked.

    Attributes:
        name: what to call it in messages.
    """

    name: str
    path: Path
    header: Header


def find_model(reference: str, *, fetch: Fetch | None = None) -> Model:
    """The model that `reference` names: the embedded one, a file, or one of the hub's, pulled when it is missing.

    `fetch` does the pulling; without one it is done quietly. Raises every `LlmrunError` that naming, pulling and
    reading a model can end in.
    """
    named = parse(reference)
    match named:
        case Embedded() | LocalFile():
            path = named.path
        case HubFile():
            path = _stored(named) or (fetch or _fetch_quietly)(named)
    first, header = open_whole(path)
    return Model(named.name, first, header)


def open_whole(path: Path) -> tuple[Path, Header]:
    """The first file of the model that `path` is, or is any part of, and the header of all parts together.

    Raises `NotFound` for a part that is not there, `BadModel` for what can't be run.
    """
    parts = [path.with_name(name) for name in split_parts(path.name)]
    if len(parts) == 1:
        return path, open_runnable(path)
    headers = [open_header(part) for part in parts]
    for i, header in enumerate(headers):
        if (header.split_no, header.split_count) != (i, len(parts)):
            raise BadModel(
                f"{shown_name(parts[i])} says that it is part {header.split_no + 1} of {header.split_count},"
                f" its name says {i + 1} of {len(parts)}"
            )
    whole = replace(headers[0], tensors=tuple(tensor for header in headers for tensor in header.tensors))
    check_runnable(whole)
    return parts[0], whole


def _stored(named: HubFile) -> Path | None:
    """Where the model lies already, whole; and that it was used now."""
    from llmrun import store

    found = store.find(named)
    if found is None or not found.complete:
        return None
    store.touch(found)
    return found.path


def _fetch_quietly(named: HubFile) -> Path:
    from llmrun import hub

    return hub.pull(hub.resolve(named))


def open_model(
    reference: str, config: LoadConfig | None = None, *, on_progress: Callable[[float], None] | None = None
) -> Engine:
    """Load a model in a process of its own; use it as a context manager.

    `reference` is what the command line takes: "tiny", "qwen3:4b", "user/repo:Q4_K_M", a path to a GGUF file. What is
    missing is pulled. Raises what `find_model` and `Engine` raise, all of it `LlmrunError`.
    """
    from llmrun.engine.client import Engine

    model = find_model(reference)
    return Engine(model.path, model.header, config, on_progress=on_progress)
