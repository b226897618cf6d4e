"""Options that several commands share, each written once. Those of loading and sampling: `load.py`, `sampling.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmrun.cli.framework import completion
from llmrun.cli.framework.help import OUTPUT, TEXT

_NAME_HELP = "tiny, qwen3:4b, user/repo:Q4_K_M, a hub URL, or a GGUF file."
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help=_NAME_HELP, show_default=False, autocompletion=completion.models)
]
OptionalModelName = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help=_NAME_HELP, show_default=False, autocompletion=completion.models),
]
ModelNames = Annotated[
    list[str], typer.Argument(metavar="MODEL", help=_NAME_HELP, show_default=False, autocompletion=completion.models)
]
SomeModelNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="Names as `llmrun list` shows them.",
        show_default=False,
        autocompletion=completion.models,
    ),
]

Offline = Annotated[bool, typer.Option("--offline", help="Never touch the network; also HF_HUB_OFFLINE=1.")]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=OUTPUT)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show every timing.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.", rich_help_panel=OUTPUT)]

NThreads = Annotated[int | None, typer.Option("-t", "--threads", help="Threads.  [default: physical cores]")]

System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system prompt.")]
Files = Annotated[
    list[Path] | None,
    typer.Option("-f", "--file", metavar="FILE", help="Take the prompt, or more of it, from a file. Repeatable."),
]
Raw = Annotated[
    bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.", rich_help_panel=TEXT)
]
