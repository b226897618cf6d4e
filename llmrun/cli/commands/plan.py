"""`llmrun plan MODEL...`: whether a model fits, and how fast it would be, before it is downloaded."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

from llmrun.cli.framework import options, sweeps
from llmrun.cli.framework.options import Option
from llmrun.cli.terminal import screen, tables
from llmrun.errors import Act, UsageError
from llmrun.options.load import LoadConfig
from llmrun.options.spec import Number, Whole
from llmrun.units import UNKNOWN, significant, size

if TYPE_CHECKING:
    from llmrun.models.levels import LevelFile, Levels
    from llmrun.planning.predict.prediction import Prediction, Question, Range, Source

MAX_DEPTHS = 32
USUAL_DEPTHS = (0, 4096)


def plan(
    model: options.ModelNames,
    what_if: Annotated[
        str | None,
        Option(
            "--what-if",
            metavar="MACHINE",
            help="On a machine that is not here: 'RTX 4090', '2x RTX 3090', 'M3 Max 40c', 'DDR5-5600 x2 32gb',"
            " 'RTX 4090 + DDR5-5600 x2', 'kind=cpu,bandwidth=89.6,memory=32'.",
        ),
    ] = None,
    n_prompt: Annotated[int, Option("-p", "--n-prompt", kind=Whole(1, 1 << 24), help="Tokens of prompt.")] = 512,
    n_gen: Annotated[int, Option("-n", "--n-gen", kind=Whole(0, 1 << 24), help="Tokens of answer.")] = 128,
    n_depth: Annotated[
        list[str] | None,
        Option("-d", "--n-depth", metavar="N", help="Tokens before the one that is decoded.", without="0,4096"),
    ] = None,
    target_tps: Annotated[
        float | None,
        Option("--target-tps", kind=Number(0.001, 1e6), metavar="N", help="Name the best level that decodes so fast."),
    ] = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    *,
    load: LoadConfig,
) -> None:
    """Predict whether a model fits, and how fast it would be.

    For every level in a model's repository, or for the one that is named: only headers are read, a few MB each. Figures
    are the likeliest, and the range that holds the truth in 80 to 95 of 100 cases. How they are computed, and how wrong
    they were: docs/how-speed-is-predicted.md.
    """
    from llmrun.models.levels import levels_of
    from llmrun.planning.predict.prediction import Question

    depths = tuple(dict.fromkeys(sweeps.whole("-d/--n-depth", n_depth or [])))
    if len(depths) > MAX_DEPTHS:
        raise UsageError(f"{len(depths)} depths; {MAX_DEPTHS} are enough", field="n_depth")
    source = _source(what_if)
    documents, shown = [], []
    for name in model:
        levels = levels_of(name, offline=offline)
        if levels.note and not quiet:
            screen.note(levels.note)
        asked = Question(n_prompt, n_gen, depths or _usual_depths(levels), load)
        rows = [(file, source.predict(file.header, asked)) for file in levels.files]
        documents.append(_document(levels, source, rows, asked))
        shown.append((levels, rows, asked))
    if as_json:
        screen.out_json(documents if len(documents) > 1 else documents[0])
        return
    for i, (levels, rows, asked) in enumerate(shown):
        screen.out("\n" if i else "")
        _show(levels, rows, asked, what_if or "this machine", target_tps)


def _usual_depths(levels: Levels) -> tuple[int, ...]:
    """As deep as the model was trained for."""
    trained = levels.files[0].header.n_ctx_train or 0
    return tuple(depth for depth in USUAL_DEPTHS if depth < max(1, trained))


def _source(what_if: str | None) -> Source:
    """Who predicts for the machine that is meant. Raises `UsageError`."""
    if what_if is None:
        raise UsageError(
            "for this machine a prediction needs its measured profile, which llmrun does not make yet; for another,"
            " say which",
            field="what_if",
            hint=Act("plan", "MODEL", {"what_if": "RTX 4090"}),
        )
    from llmrun.planning.predict.elsewhere import Elsewhere
    from llmrun.planning.predict.machines import parse

    return Elsewhere(parse(what_if))


# -- JSON ---


def _document(
    levels: Levels, source: Source, rows: list[tuple[LevelFile, Prediction]], asked: Question
) -> dict[str, Any]:
    first, one = levels.files[0], len(levels.files) == 1
    header = first.header
    return {
        "model": {
            "name": levels.name,
            "path": os.fspath(first.path) if one and first.path else None,
            "architecture": header.architecture,
            "quantization": header.quantization_label if one else None,
            "n_params": header.n_params,
            "weight_bytes": header.weight_bytes if one else None,
        },
        "machine": dict(source.machine()),
        "rows": [_row(file, found, asked) for file, found in rows],
    }


def _row(file: LevelFile, found: Prediction, asked: Question) -> dict[str, Any]:
    return {
        "quant": file.quant,
        "file_bytes": file.file_bytes,
        "fits": found.fits,
        "n_gpu_layers": found.n_gpu_layers,
        "n_ctx": found.n_ctx,
        "memory_bytes": dict(found.memory_bytes),
        "pp_tps": _range(found.prefill_tps),
        "ttft_s": _range(found.ttft_s(asked.n_prompt)),
        "tg_tps": {str(depth): _range(each) for depth, each in found.decode_tps.items()},
    }


def _range(value: Range | None) -> dict[str, float] | None:
    return None if value is None else {"low": value.low, "mid": value.mid, "high": value.high}


# -- the table ---


def _show(
    levels: Levels,
    rows: list[tuple[LevelFile, Prediction]],
    asked: Question,
    machine: str,
    target_tps: float | None,
) -> None:
    header = levels.files[0].header
    screen.out(f"{levels.name} on {machine}: {rows[0][1].n_ctx} tokens of context, t/s and seconds\n\n")
    decode = [f">DECODE{f' AT {depth}' if depth else ''}" for depth in asked.depths]
    titles = ("LEVEL", ">SIZE", "FITS", ">LAYERS", ">MEMORY", f">PREFILL {asked.n_prompt}", ">TTFT", *decode, "…")
    n_layers = (header.n_layer or 0) + 1
    tables.show(titles, (_cells(file, found, asked, n_layers) for file, found in rows))
    if target_tps is not None:
        screen.out(f"\n{_best(rows, asked, target_tps)}\n")


def _cells(file: LevelFile, found: Prediction, asked: Question, n_layers: int) -> list[str]:
    return [
        file.quant or UNKNOWN,
        size(file.file_bytes),
        {True: "yes", False: "no", None: UNKNOWN}[found.fits],
        f"{found.n_gpu_layers}/{n_layers}",
        size(sum(found.memory_bytes.values())),
        _shown(found.prefill_tps),
        _shown(found.ttft_s(asked.n_prompt)),
        *(_shown(found.decode_tps[depth]) for depth in asked.depths),
        found.note,
    ]


def _shown(value: Range | None) -> str:
    """ "41.8 (37.0–47.2)"."""
    if value is None:
        return UNKNOWN
    return f"{significant(value.mid)} ({significant(value.low)}–{significant(value.high)})"


def _best(rows: list[tuple[LevelFile, Prediction]], asked: Question, target_tps: float) -> str:
    """The largest level whose likeliest speed reaches the target at every depth: more bits, better answers."""

    def slowest(found: Prediction) -> float:
        return min((each.mid if each else 0.0 for each in found.decode_tps.values()), default=0.0)

    reached = [(file, found) for file, found in rows if slowest(found) >= target_tps]
    wanted = f"{significant(target_tps)} t/s"
    if not reached:
        return f"none reaches {wanted}; the fastest is at {significant(max(slowest(found) for _, found in rows))}"
    file, found = max(reached, key=lambda each: each[0].file_bytes)
    sure = min(each.low if each else 0.0 for each in found.decode_tps.values()) >= target_tps
    return f"{file.quant or 'it'} is the best that reaches {wanted}" + ("" if sure else ", though not for certain")
