"""What options of a bench say: the tests, the settings of one side of a comparison, where the rows go."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from llmrun.cli.framework import sweeps
from llmrun.cli.framework.options import Option
from llmrun.errors import Change, UsageError
from llmrun.options.spec import OUTPUT

if TYPE_CHECKING:
    from llmrun.bench.export.formats import Format
    from llmrun.bench.spec import Test
    from llmrun.cli.framework.command import Command
    from llmrun.options.load import LoadConfig

Texts = list[str] | None
RECORD = "A record's file, an id of `llmrun bench history`, how one begins, 'last'; or llama-bench's JSON."


OutputFormat = Annotated[
    str,
    Option("-o", "--output-format", metavar="FORMAT|FILE", help="table, md, csv, json, jsonl, sql.", panel=OUTPUT),
]
OutputFile = Annotated[
    Path | None,
    Option("--output", metavar="FILE", help="Write the rows to this file too, by its suffix.", panel=OUTPUT),
]


def outputs(output_format: str, output_file: Path | None) -> tuple[Format, Path | None, Format | None]:
    """The format on stdout, and the file beside it with its own. Raises `UsageError`.

    `-o rows.json` is a file, as it is for most programs.
    """
    from llmrun.bench.export.formats import parse_format

    if output_file is None and Path(output_format).suffix:
        output_format, output_file = "table", Path(output_format)
    format = parse_format(output_format)
    return format, output_file, parse_format(output_file.suffix[1:], "output_file") if output_file else None


def tests_of(
    n_prompt: Texts,
    n_gen: Texts,
    pg: Texts = None,
    depth: Texts = None,
    batch: Texts = None,
    *,
    end_to_end: bool = False,
) -> list[Test]:
    """The tests that options ask for. Raises `UsageError`."""
    from llmrun.bench.spec import make_tests

    return make_tests(
        sweeps.whole("-p/--n-prompt", n_prompt or ["512"]),
        sweeps.whole("-n/--n-gen", n_gen or ["128"]),
        pairs=[_pair(text) for text in pg or []],
        depths=sweeps.whole("-d/--n-depth", depth or ["0"]),
        sequences=sweeps.whole("-B/--n-parallel", batch, low=1) if batch else None,
        end_to_end=end_to_end,
    )


def _pair(text: str) -> tuple[int, int]:
    numbers = sweeps.whole("-pg", [text], low=1)
    if len(numbers) != 2:
        raise UsageError(f"'{text}' is not PP,TG", field="pg", value=text, hint=Change({"pg": "512,128"}))
    return numbers[0], numbers[1]


def one_config(text: str, command: Command) -> LoadConfig:
    """What `-t 2 -ngl 0` means, as options of the command `bench`. Raises `UsageError` for what is several things."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"'{text}': {error}") from None
    configs = command.group_of("configs", words)
    if len(configs) != 1:
        raise UsageError(f"'{text}' is {len(configs)} settings; a side of a comparison is one")
    config: LoadConfig = configs[0]
    return config
