"""`llmrun quantize MODEL LEVEL`: a smaller model of a larger one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llmrun.cli.framework import options
from llmrun.cli.framework.command import command
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.loading import load_model
from llmrun.cli.terminal import progress, screen, tables
from llmrun.models import quants
from llmrun.models.quantize import (
    QuantizeProgress,
    check_free,
    checked_target,
    default_name,
    into_file,
    into_store,
    levels,
    reference_of,
)
from llmrun.models.reference import LocalFile
from llmrun.models.store.importing import checked_name
from llmrun.models.store.layout import LOCAL, repo_of
from llmrun.options.spec import Whole
from llmrun.text import sanitize
from llmrun.units import count, duration, fixed, significant, size

if TYPE_CHECKING:
    from llmrun.engine.jobs.quantize import Plan
    from llmrun.models.resolve import Model

_EXAMPLE_PARAMETERS = 8.03e9
"""Llama 3.1 8B, for the table in `--help`."""


@command(epilog=lambda: levels_help())
def quantize(
    model: options.ModelName,
    level: Annotated[str | None, Argument("LEVEL", "Such as Q4_K_M. Without one: what each would give.")] = None,
    output: Annotated[
        Path | None,
        Option("--output", "-o", metavar="PATH", help="Write this file.", without="a new model of llmrun's"),
    ] = None,
    name: Annotated[str | None, Option("--name", metavar="NAME", help="The new model is called local/NAME.")] = None,
    pure: Annotated[bool, Option("--pure", help="Every matrix in one type, without the level's mix.")] = False,
    keep_output: Annotated[
        bool, Option("--leave-output-tensor", help="Leave the output matrix as it is: better, and larger.")
    ] = False,
    imatrix: Annotated[
        Path | None, Option("--imatrix", metavar="FILE", help="Importance matrix of llama-imatrix, in GGUF form.")
    ] = None,
    threads: Annotated[
        int | None, Option("-t", "--threads", kind=Whole(1, 512), help="Threads.", without="physical cores")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Say how large it would be; write nothing.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a smaller model of a larger one.

    llama.cpp's own quantizer does it, best from F16, BF16 or F32: a model that is quantized already loses twice. The
    new file appears whole or not at all, is a model like any other, and says in its metadata where it came from. Prints
    its name.
    """
    tell = progress.teller(quiet)
    if level is None:
        _show_levels(model, as_json=as_json, quiet=quiet)
        return

    from llmrun.engine.jobs.quantize import Quantizer, Recipe, level_of

    recipe = Recipe(level_of(level), pure, keep_output, imatrix, threads)
    source = load_model.found(model, quiet=quiet, use="keep")
    name = checked_name(name) if name else default_name(source, recipe.level)
    target = None if output is None else checked_target(output, name)
    if not dry_run and target is None:
        check_free(name)
    made_from = source.header.quantization_label
    if made_from not in ("F16", "BF16", "F32", None):
        tell(f"warning: {source.name} is {made_from} already; from F16 or BF16 the result would be better")
    begin_s = time.monotonic()
    with Quantizer(source.path, source.header, recipe) as quantizer:
        plan = quantizer.plan()
        document = _document(source, recipe.level, plan)
        if plan.n_fallback:
            tell(f"{plan.n_fallback} tensors have rows that don't fit {recipe.level}; they get a larger type")
        if not dry_run:
            tell(f"{source.name}: {size(document['source_bytes'])} -> {recipe.level}, {size(plan.n_bytes)}")
            steps = {
                "hash source": f"reading {source.path.name}",
                "quantize": f"quantizing to {recipe.level}",
                "hash result": f"reading {target.name if target else LOCAL + name} back",
            }
            with closing(progress.Bytes(quiet=quiet)) as bar:

                def on_event(event: QuantizeProgress) -> None:
                    bar.show(steps[event.step], event.done, event.total)

                if target is None:
                    made = LOCAL + name
                    path = into_store(source, recipe.level, quantizer.run, name, on_event)
                else:
                    made, path = LocalFile(target).name, target.absolute()
                    into_file(source, recipe.level, quantizer.run, target, on_event)
            document |= {"name": made, "path": os.fspath(path), "bytes": path.stat().st_size}
            document["seconds"] = time.monotonic() - begin_s
            tell(f"{document['name']}: {size(document['bytes'])} in {duration(document['seconds'])}")
    if as_json:
        screen.out_json(document)
    elif dry_run:
        bits = significant(document["bits_per_weight"])
        tables.show_pairs(
            [("name", name), ("level", recipe.level), ("size", size(plan.n_bytes)), ("bits/weight", bits)]
        )
    else:
        screen.out(sanitize(document["name"]) + "\n")


def _document(source: Model, level: str, plan: Plan) -> dict[str, Any]:
    repo, commit, _ = repo_of(source.path) or (None, None, None)
    return {
        "source": reference_of(source),
        "source_repo": repo,
        "source_commit": commit,
        "source_path": os.fspath(source.path),
        "source_quant": source.header.quantization_label,
        "source_bytes": source.header.weight_bytes,
        "level": level,
        "bytes": plan.n_bytes,
        "bits_per_weight": 8 * plan.n_bytes / max(1, source.header.n_params),
        "fallback_tensors": plan.n_fallback,
    }


# -- the table of levels ---


def _show_levels(model: str, *, as_json: bool, quiet: bool) -> None:
    """What each level would make of this model, without quantizing."""
    source = load_model.found(model, quiet=quiet, use="keep")
    if as_json:
        screen.out_json(
            [
                {
                    "level": level.name,
                    "bits_per_weight": level.bits_per_weight,
                    "bytes": quants.model_bytes(source.header.n_params, level.name),
                }
                for level in levels()
            ]
        )
    else:
        tables.show(*_table(source.header.n_params))


def _table(n_params: float) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    """Titles and rows."""
    rows = (
        (
            level.name,
            fixed(level.bits_per_weight, 2),
            "~" + size(quants.model_bytes(n_params, level.name)),
            level.good_for,
        )
        for level in levels()
    )
    return ("LEVEL", ">BITS/WEIGHT", f">SIZE ({count(n_params)})", "GOOD FOR…"), rows


def levels_help() -> str:
    """For the end of `llmrun quantize --help`."""
    return "\n".join(f"  {row}" for row in tables.lines(*_table(_EXAMPLE_PARAMETERS)))
