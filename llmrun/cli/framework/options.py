"""How a command declares what it takes, and what several commands share.

    def show(model: ModelName, output: Annotated[Path | None, Option("-o", "--output", metavar="FILE")] = None) -> None:

A parameter that is a dataclass of options, as `load: LoadConfig`, stands for all of these; a list of one with `Swept`
beside it for every combination of the several values that each option then takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from llmrun.cli.framework import completion
from llmrun.options.spec import OUTPUT, TEXT

Completion = Callable[[str], Sequence[Any]]


@dataclass(frozen=True)
class Argument:
    """What stands without a name in front; of a `list`, all that is left."""

    metavar: str
    help: str = ""
    complete: Completion | None = None


@dataclass(frozen=True, init=False)
class Option:
    """What stands behind a name.

    Attributes:
        names: "-o", "--output"; "--ephemeral/--keep" where a flag has a contrary that is not "--no-ephemeral".
        panel: the group in the help.
    """

    names: tuple[str, ...]
    help: str
    metavar: str
    panel: str | None
    min: float | None
    max: float | None
    show_default: bool
    complete: Completion | None

    def __init__(
        self,
        *names: str,
        help: str,
        metavar: str = "",
        panel: str | None = None,
        min: float | None = None,
        max: float | None = None,
        show_default: bool = True,
        complete: Completion | None = None,
    ) -> None:
        self.__dict__.update(
            names=names,
            help=help,
            metavar=metavar,
            panel=panel,
            min=min,
            max=max,
            show_default=show_default,
            complete=complete,
        )


@dataclass(frozen=True)
class Swept:
    """Beside a list of a dataclass of options: all combinations. `without`: keys of options that it does not take."""

    without: tuple[str, ...] = ()


_NAME_HELP = "tiny, qwen3:4b, user/repo:Q4_K_M, a hub URL, or a GGUF file."
ModelName = Annotated[str, Argument("MODEL", _NAME_HELP, completion.models)]
OptionalModelName = Annotated[str | None, Argument("MODEL", _NAME_HELP, completion.models)]
ModelNames = Annotated[list[str], Argument("MODEL", _NAME_HELP, completion.models)]
SomeModelNames = Annotated[list[str] | None, Argument("MODEL", "Names as `llmrun list` shows them.", completion.models)]

Offline = Annotated[bool, Option("--offline", help="Never touch the network; also HF_HUB_OFFLINE=1.")]

Json = Annotated[bool, Option("--json", help="Print one JSON document.", panel=OUTPUT)]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Show every timing.", panel=OUTPUT)]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Say nothing but errors.", panel=OUTPUT)]

NThreads = Annotated[int | None, Option("-t", "--threads", help="Threads.  [default: physical cores]")]

System = Annotated[str | None, Option("--system", metavar="TEXT", help="The system prompt.")]
Files = Annotated[
    list[Path] | None,
    Option("-f", "--file", metavar="FILE", help="Take the prompt, or more of it, from a file. Repeatable."),
]
Raw = Annotated[bool, Option("--raw", help="Continue the text as it is, without the chat template.", panel=TEXT)]
