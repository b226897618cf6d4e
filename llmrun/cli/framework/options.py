"""How a command declares what it takes, and what several commands share.

    def show(model: ModelName, output: Annotated[Path | None, Option("-o", "--output", metavar="FILE")] = None) -> None:

A parameter that is a dataclass of options, as `load: LoadConfig`, stands for all of these; a list of one with `Swept`
beside it for every combination of the several values that each option then takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from llmrun.cli.framework import completion
from llmrun.options import spec
from llmrun.options.parse import parallel as parse_parallel
from llmrun.options.spec import MODEL, OUTPUT, TEXT, Kind, Text, Written


@dataclass(frozen=True)
class Argument:
    """What stands without a name in front; of a `list`, all that is left. The rest follows from the parameter."""

    metavar: str
    help: str = ""
    complete: Callable[[str], Sequence[Any]] | None = None
    key: str = ""
    required: bool = True
    many: bool = False
    kind: Kind = field(default_factory=Text)


def Option(*names: str, help: str, **more: Any) -> spec.Option:
    """What stands behind a name: "-o", "--output"; "--ephemeral/--keep" where a flag has a contrary that is not
    "--no-ephemeral". `more` is as in `spec.Option`; the kind follows from the parameter's type where it is not given.
    """
    short = next((each[1:] for each in names if not each.startswith("--")), "")
    longs = [each[2:].partition("/") for each in names if each.startswith("--")]
    name, *aliases = [long for long, _, _ in longs] or [""]
    denial = next((contrary[2:] for _, _, contrary in longs if contrary), "")
    return spec.Option(
        name, more.pop("kind", Text()), short=short, aliases=tuple(aliases), denial=denial, help=help, **more
    )


@dataclass(frozen=True)
class Swept:
    """Beside a list of a dataclass of options: all combinations. `without`: keys of options that it does not take."""

    without: tuple[str, ...] = ()


_NAME_HELP = "tiny, qwen3:4b, user/repo:Q4_K_M, a hub URL, or a GGUF file."
ModelName = Annotated[str, Argument("MODEL", _NAME_HELP, completion.models)]
OptionalModelName = Annotated[str | None, Argument("MODEL", _NAME_HELP, completion.models)]
ModelNames = Annotated[list[str], Argument("MODEL", _NAME_HELP, completion.models)]
OptionalModelNames = Annotated[list[str] | None, Argument("MODEL", _NAME_HELP, completion.models)]
SomeModelNames = Annotated[list[str] | None, Argument("MODEL", "Names as `llmrun list` shows them.", completion.models)]

Offline = Annotated[bool, Option("--offline", help="Never touch the network; also HF_HUB_OFFLINE=1.")]

Json = Annotated[bool, Option("--json", help="Print one JSON document.", panel=OUTPUT)]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Show every timing.", panel=OUTPUT)]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Say nothing but errors.", panel=OUTPUT)]

NThreads = Annotated[int | None, Option("-t", "--threads", help="Threads.", without="physical cores")]


def parallel(help: str) -> spec.Option:
    """How many answers side by side."""
    kind = Written(parse_parallel, wanted="auto or a number")
    return Option("-np", "--parallel", metavar="auto|N", kind=kind, help=help, without="auto")


System = Annotated[str | None, Option("--system", metavar="TEXT", help="The system prompt.")]
Files = Annotated[
    list[Path] | None,
    Option("-f", "--file", metavar="FILE", help="Take the prompt, or more of it, from a file. Repeatable."),
]
Server = Annotated[
    str | None,
    Option(
        "--server",
        metavar="URL|auto",
        help="Ask a running `llmrun serve`, and load nothing; auto: the one that `llmrun ps` shows.",
        panel=MODEL,
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    Option("--api-key-file", metavar="FILE", help="The key that --server wants; also LLMRUN_API_KEY.", panel=MODEL),
]
Raw = Annotated[bool, Option("--raw", help="Continue the text as it is, without the chat template.", panel=TEXT)]
