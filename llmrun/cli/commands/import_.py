"""`llmrun import PATH`: makes a GGUF file on this machine a model with a name."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

from llmrun.cli.framework import options
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.loading import stored
from llmrun.cli.terminal import progress, screen


def import_(
    path: Annotated[Path, Argument("PATH", "A GGUF file; of a split model any part.")],
    name: Annotated[
        str | None, Option("--name", metavar="NAME", help="It becomes local/NAME.", without="from the file")
    ] = None,
    copy: Annotated[bool, Option("--copy", help="Copy the file; otherwise a link leads to it.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a GGUF file on this machine a model with a name."""
    from llmrun.models.store.importing import ImportProgress, import_file

    def on_event(event: ImportProgress) -> None:
        copied.show(f"copying {path.name}", event.done, event.total)

    with closing(progress.Bytes(quiet=quiet)) as copied:
        model = import_file(path, copy=copy, name=name, on_event=on_event)
    if as_json:
        screen.out_json(stored.json_row(stored.model_row(model, model.name)))
    else:
        screen.out(model.name + "\n")
