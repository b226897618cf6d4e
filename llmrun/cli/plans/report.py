"""Predictions as tables: of every level of a model, and of the catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrun.cli.plans.asked import Asked
from llmrun.cli.plans.document import document
from llmrun.cli.terminal import screen, tables
from llmrun.errors import LlmrunError, NetworkError, NotFound
from llmrun.units import UNKNOWN, duration, significant, size

if TYPE_CHECKING:
    from llmrun.models.levels import LevelFile, Levels
    from llmrun.planning.predict.costs import Costs
    from llmrun.planning.predict.prediction import Prediction, Question, Range, Source


def looked_up(models: list[str], asked: Asked) -> list[tuple[Levels, Question]]:
    """The levels of each, and what is to be known of them. Raises what is wrong with either, before anything is
    measured."""
    from llmrun.models.levels import levels_of

    found = []
    for name in models:
        levels = levels_of(name, offline=asked.offline)
        if levels.note and not asked.quiet:
            screen.note(levels.note)
        found.append((levels, asked.question(levels)))
    return found


def tell(models: list[tuple[Levels, Question]], source: Source, asked: Asked, machine: str) -> None:
    """Each model, every level of it."""
    documents, shown = [], []
    for levels, question in models:
        rows = [(file, source.predict(file.header, question)) for file in levels.files]
        documents.append(document(levels, source, rows, question, asked.costs))
        shown.append((levels, rows, question))
    if asked.as_json:
        screen.out_json(documents if len(documents) > 1 else documents[0])
        return
    for i, (levels, rows, question) in enumerate(shown):
        screen.out("\n" if i else "")
        _show(levels, rows, question, machine, asked)


ENOUGH_TPS = 10.0
"""Faster than most people read."""


def catalog_looked_up(asked: Asked) -> list[tuple[Levels, Question]]:
    """Each model of the catalog at its usual level, as far as its header can be had. Raises where none can."""
    from llmrun.cli.terminal import progress
    from llmrun.models import catalog
    from llmrun.models.levels import usual_level

    found, entries = [], catalog.load().entries
    offline = asked.offline
    failed: dict[type[LlmrunError], list[str]] = {}
    longest = max(asked.n_prompt, asked.n_gen, *asked.depths)
    with progress.bar("reading headers", shown=not asked.quiet) as bar:
        for i, entry in enumerate(entries):
            if bar:
                bar.update(i / len(entries))
            try:
                levels = usual_level(entry.name, offline=offline)
            except LlmrunError as error:
                failed.setdefault(type(error), []).append(f"{entry.name}: {error.message}")
                # The second time it is the network: what is here is enough, as each would wait as long again.
                offline = offline or len(failed.get(NetworkError, ())) > 1
                continue
            (file,) = levels.files
            if 0 < (file.header.n_ctx_train or 0) < longest:
                continue
            found.append((levels, asked.question(levels)))
    if not found:
        kind, (why, *_) = next(iter(failed.items()), (NotFound, [f"none was trained on {longest} tokens"]))
        raise kind(f"none of the catalog's {len(entries)} models can be looked at; {why}", hint="llmrun plan tiny")
    for first, *others in failed.values() if not asked.quiet else ():
        screen.note(first + (f"; {len(others)} others alike" if others else ""))
    return found


def rank(models: list[tuple[Levels, Question]], source: Source, asked: Asked, machine: str) -> None:
    """The catalog: first what fits and is as fast as wanted, the largest first, as more weights know more; then the
    others, the fastest first."""
    from llmrun.models import catalog

    wanted = asked.target_tps or ENOUGH_TPS
    found = [
        (levels, file, source.predict(file.header, question), question)
        for levels, question in models
        for file in levels.files
    ]

    def place(row: tuple[Levels, LevelFile, Prediction, Question]) -> tuple[bool, float]:
        _, file, predicted, _ = row
        rate = _slowest(predicted)
        is_good = bool(predicted.fits) and rate >= wanted
        return not is_good, -float(file.header.n_params if is_good else rate)

    found.sort(key=place)
    if asked.as_json:
        screen.out_json([document(names, source, [(file, each)], of, asked.costs) for names, file, each, of in found])
        return
    screen.out(
        f"the catalog on {machine}: at least {significant(wanted)} t/s first, the largest of them at the top\n\n"
    )
    downloads = _downloads([file for _, file, _, _ in found], asked.costs)
    titles = (
        *("MODEL", "LEVEL", ">SIZE", *downloads[0], "FITS", f">PREFILL {asked.n_prompt}", ">TTFT", ">DECODE"),
        "WHAT IT IS…",
    )
    summaries = {entry.name: entry.summary or "" for entry in catalog.load().entries}
    tables.show(
        titles,
        (
            (
                levels.name,
                file.quant or UNKNOWN,
                size(file.file_bytes),
                *download,
                _fits(each),
                shown(each.prefill_tps),
                shown(each.ttft_s(question.n_prompt)),
                shown(each.decode_tps[question.depths[0]]),
                summaries.get(levels.name, ""),
            )
            for (levels, file, each, question), download in zip(found, downloads[1:], strict=True)
        ),
    )


def _show(
    levels: Levels,
    rows: list[tuple[LevelFile, Prediction]],
    question: Question,
    machine: str,
    asked: Asked,
) -> None:
    header = levels.files[0].header
    screen.out(f"{levels.name} on {machine}: {rows[0][1].n_ctx} tokens of context, t/s and seconds\n\n")
    decode = [f">DECODE{f' AT {depth}' if depth else ''}" for depth in question.depths]
    titles = ("FITS", ">LAYERS", ">MEMORY", f">PREFILL {question.n_prompt}", ">TTFT", *decode)
    n_layers = (header.n_layer or 0) + 1
    download = _downloads([file for file, _ in rows], asked.costs)
    energy = _energy([found for _, found in rows], asked.costs)
    tables.show(
        ("LEVEL", ">SIZE", *download[0], *titles, *energy[0], "…"),
        (
            (
                *(file.quant or UNKNOWN, size(file.file_bytes), *download[i]),
                *(*_cells(found, question, n_layers), *energy[i], found.note),
            )
            for i, (file, found) in enumerate(rows, 1)
        ),
    )
    if asked.target_tps is not None:
        screen.out(f"\n{_best(rows, question, asked.target_tps)}\n")
    if asked.costs.price_kwh is not None and not any(energy) and not asked.quiet:
        screen.note("what it costs is not known, as the watts are not: --watts")


def _downloads(files: list[LevelFile], costs: Costs) -> list[tuple[str, ...]]:
    """The title and the cells of a column, which is none where all files are here."""
    if not any(file.download_bytes for file in files):
        return [()] * (len(files) + 1)
    times = (costs.download_s(file.download_bytes) for file in files)
    return [(">DOWNLOAD",), *(("here",) if seconds == 0 else (duration(seconds),) for seconds in times)]


def _energy(rows: list[Prediction], costs: Costs) -> list[tuple[str, ...]]:
    """Titles and cells of what is known."""
    joules = [costs.joules_per_mtok(found) for found in rows]
    prices = [costs.price_per_mtok(found) for found in rows]
    columns = []
    if any(joules):
        columns.append((">J/TOKEN", *(shown(each and each.times(1e-6)) for each in joules)))
    if any(prices):
        columns.append((">COST/M", *map(shown, prices)))
    return [*zip(*columns, strict=True)] or [()] * (len(rows) + 1)


def _cells(found: Prediction, asked: Question, n_layers: int) -> list[str]:
    return [
        _fits(found),
        f"{found.n_gpu_layers}/{n_layers}",
        size(sum(found.memory_bytes.values())),
        shown(found.prefill_tps),
        shown(found.ttft_s(asked.n_prompt)),
        *(shown(found.decode_tps[depth]) for depth in asked.depths),
    ]


def _fits(found: Prediction) -> str:
    return {True: "yes", False: "no", None: UNKNOWN}[found.fits]


def shown(value: Range | None) -> str:
    """ "41.8 (37.0–47.2)"."""
    if value is None:
        return UNKNOWN
    return f"{significant(value.mid)} ({significant(value.low)}–{significant(value.high)})"


def _best(rows: list[tuple[LevelFile, Prediction]], asked: Question, target_tps: float) -> str:
    """The largest level whose likeliest speed reaches the target at every depth: more bits, better answers."""
    reached = [(file, found) for file, found in rows if _slowest(found) >= target_tps]
    wanted = f"{significant(target_tps)} t/s"
    if not reached:
        fastest = max(_slowest(found) for _, found in rows)
        known = f"none reaches {wanted}; the fastest is at {significant(fastest)}"
        return known if fastest else f"none is known to reach {wanted}"
    file, found = max(reached, key=lambda each: each[0].file_bytes)
    sure = min(each.low if each else 0.0 for each in found.decode_tps.values()) >= target_tps
    return f"{file.quant or 'it'} is the best that reaches {wanted}" + ("" if sure else ", though not for certain")


def _slowest(found: Prediction) -> float:
    """The likeliest rate of decoding at the depth where it is lowest."""
    return min((each.mid if each else 0.0 for each in found.decode_tps.values()), default=0.0)
