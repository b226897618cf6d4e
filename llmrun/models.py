"""From what a user calls a model to a checked file on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmrun.errors import NotFound
from llmrun.gguf import Header, open_header
from llmrun.gguf_rules import check_runnable

if TYPE_CHECKING:
    from llmrun.config import LoadConfig
    from llmrun.engine.client import Engine

EMBEDDED = {"tiny": Path(__file__).parent / "data" / "tiny.gguf"}


@dataclass(frozen=True)
class Model:
    """A model that can be loaded: its header has been read and checked.

    Attributes:
        name: what to call it in messages.
    """

    name: str
    path: Path
    header: Header


def find_model(reference: str) -> Model:
    """The model that `reference` names. Raises `NotFound` and `BadModel`."""
    path = EMBEDDED.get(reference.lower())
    if path is None:
        path = Path(reference).expanduser()
        if not path.exists():
            raise NotFound(f"no model or file is called '{reference}'", hint="llmrun run tiny")
    header = open_header(path)
    check_runnable(header)
    return Model(reference, path, header)


def open_model(
    reference: str, config: LoadConfig | None = None, *, on_progress: Callable[[float], None] | None = None
) -> Engine:
    """Load a model in a process of its own; use it as a context manager.

    `reference` is what the command line takes: "tiny", a path to a GGUF file. Raises what `find_model` and `Engine`
    raise, all of it `LlmrunError`.
    """
    from llmrun.engine.client import Engine

    model = find_model(reference)
    return Engine(model.path, model.header, config, on_progress=on_progress)
