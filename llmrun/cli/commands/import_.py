"""`llmrun import PATH`: makes a GGUF file on this machine a model with a name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from llmrun.cli.framework import options
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.loading import stored
from llmrun.cli.terminal import progress, screen


def import_(
    path: Annotated[Path, Argument("PATH", "A GGUF file; of a split model any part.")],
    name: Annotated[
        str | None, Option("--name", metavar="NAME", help="It becomes local/NAME.  [default: from the file]")
    ] = None,
    copy: Annotated[bool, Option("--copy", help="Copy the file; otherwise a link leads to it.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a GGUF file on this machine a model with a name."""
    from llmrun.models.store.importing import ImportProgress, import_file

    bars: list[progress.Bytes] = []

    def on_event(event: ImportProgress) -> None:
        if not bars:
            bars.append(progress.Bytes(f"copying {path.name}", event.total, quiet=quiet))
        bars[0].update(event.done)

    try:
        model = import_file(path, copy=copy, name=name, on_event=on_event)
    finally:
        for bar in bars:
            bar.close()
    if as_json:
        screen.out_json(stored.json_row(stored.model_row(model, model.name)))
    else:
        screen.out(model.name + "\n")
