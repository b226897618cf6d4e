"""`llmrun plan MODEL...`: whether a model fits, and how fast it would be, before it is downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llmrun.cli.framework import options, spelling, sweeps
from llmrun.cli.framework.options import Option
from llmrun.cli.terminal import screen, tables
from llmrun.errors import Act, Change, LlmrunError, NetworkError, NotFound, UsageError
from llmrun.options.load import LoadConfig
from llmrun.options.spec import Number, Whole
from llmrun.units import UNKNOWN, duration, percent, significant, size

if TYPE_CHECKING:
    from llmrun.models.levels import LevelFile, Levels
    from llmrun.planning.predict.costs import Costs
    from llmrun.planning.predict.curve import Curve, Point
    from llmrun.planning.predict.prediction import Prediction, Question, Range, Source
    from llmrun.tuning.score import Compared

MAX_DEPTHS = 32
_BAR = 24
USUAL_DEPTHS = (0, 4096)

NGen = Annotated[int, Option("-n", "--n-gen", kind=Whole(0, 1 << 24), help="Tokens of answer.")]
NDepth = Annotated[
    list[str] | None,
    Option("-d", "--n-depth", metavar="N", help="Tokens before the one that is decoded.", without="0,4096"),
]


def plan(
    model: options.OptionalModelNames = None,
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
    n_gen: NGen = 128,
    n_depth: NDepth = None,
    target_tps: Annotated[
        float | None,
        Option("--target-tps", kind=Number(0.001, 1e6), metavar="N", help="Name the best level that decodes so fast."),
    ] = None,
    watts: Annotated[
        float | None,
        Option("--watts", kind=Number(0.1, 1e6), metavar="W", help="What the machine takes while it decodes: energy."),
    ] = None,
    price_kwh: Annotated[
        float | None,
        Option("--price-kwh", kind=Number(0, 1e9), metavar="P", help="Price of a kWh: cost of a million tokens."),
    ] = None,
    probe: Annotated[bool, Option("--probe", help="Measure it on this machine, by slices of the model.")] = False,
    curve: Annotated[
        bool, Option("--curve", help="Every number of layers on devices: by slices, and at most four runs of it.")
    ] = False,
    output: Annotated[
        Path | None, Option("-o", "--output", metavar="FILE", help="Draw the curve to this .svg or .png as well.")
    ] = None,
    accuracy: Annotated[bool, Option("--accuracy", help="Show how right predictions for runs here were.")] = False,
    forget: Annotated[bool, Option("--forget", help="Forget that, and the corrections that were learned.")] = False,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    *,
    load: LoadConfig,
) -> None:
    """Predict whether a model fits, and how fast it would be.

    For every level in a model's repository, or for the one that is named: only headers are read, a few MB each. Without
    a model: those of the catalog, the best for this machine first. Figures are the likeliest, and the range that holds
    the truth in 80 to 95 of 100 cases. For this machine they come from its profile, which is measured once, in half a
    minute. How they are computed, and how wrong they were: docs/how-speed-is-predicted.md.
    """
    from llmrun.models.store import state
    from llmrun.planning.predict.costs import Costs

    if (probe or curve) and what_if is not None:
        measured = "--curve" if curve else "--probe"
        raise UsageError(
            "another machine can't be measured", field="what_if", hint=f"leave out one of {measured}, --what-if"
        )
    if output is not None and not curve:
        raise UsageError("only a curve is drawn", field="output", hint="--curve")
    if accuracy or forget:
        if model:
            option = "--forget" if forget else "--accuracy"
            raise UsageError(f"{option} is about the runs of all models: name none", hint=f"llmrun plan {option}")
        _past(as_json=as_json, forget=forget)
        return
    depths = tuple(dict.fromkeys(sweeps.whole("-d/--n-depth", n_depth or [])))
    if len(depths) > MAX_DEPTHS:
        raise UsageError(f"{len(depths)} depths; {MAX_DEPTHS} are enough", field="n_depth")
    costs = Costs(state.download_rate(), watts, price_kwh)
    asked = _Asked(n_prompt, n_gen, depths, load, target_tps, costs, offline=offline, as_json=as_json, quiet=quiet)
    if curve:
        _curve(model or [], asked, output)
        return
    with _source(what_if, load, probe=probe, quiet=quiet) as source:
        if model:
            _tell(model, source, asked, _called(what_if))
        else:
            _rank(source, asked, _called(what_if))


def probe(
    model: options.ModelNames,
    n_prompt: Annotated[int, Option("-p", "--n-prompt", kind=Whole(1, 1 << 16), help="Tokens of prompt.")] = 512,
    n_gen: NGen = 128,
    n_depth: NDepth = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    *,
    load: LoadConfig,
) -> None:
    """Measure how fast a model would be here, without it: by slices of it.

    They take at most 4 GB. Its header is enough, of a file or of one on the hub; a model that is larger than this
    machine's memory can be measured as well. As `llmrun plan --probe`.
    """
    from llmrun.models.store import state
    from llmrun.planning.predict.costs import Costs

    depths = tuple(dict.fromkeys(sweeps.whole("-d/--n-depth", n_depth or [])))
    costs = Costs(state.download_rate())
    asked = _Asked(n_prompt, n_gen, depths, load, None, costs, offline=offline, as_json=as_json, quiet=quiet)
    with _source(None, load, probe=True, quiet=quiet) as source:
        _tell(model, source, asked, "this machine")


@dataclass(frozen=True)
class _Asked:
    """What is to be predicted of every model, and how it is shown."""

    n_prompt: int
    n_gen: int
    depths: tuple[int, ...]
    load: LoadConfig
    target_tps: float | None
    costs: Costs
    offline: bool
    as_json: bool
    quiet: bool

    def question(self, levels: Levels) -> Question:
        from llmrun.planning.predict.prediction import Question

        trained, n_ctx = levels.files[0].header.n_ctx_train, self.load.n_ctx
        asked = {"n_prompt": self.n_prompt, "n_gen": self.n_gen, "n_depth": max(self.depths, default=0)}
        for field, value in asked.items():
            if trained and value > trained:
                raise UsageError(
                    f"{value} tokens are more than the {trained} that {levels.name} was trained on",
                    field=field,
                    hint=Change({field: trained}),
                )
            if n_ctx and value > n_ctx:
                raise UsageError(
                    f"{value} tokens are more than a context of {n_ctx} holds",
                    field=field,
                    hint=Change({field: n_ctx}),
                )
        depths = self.depths or tuple(d for d in _usual_depths(levels) if not n_ctx or d < n_ctx)
        return Question(self.n_prompt, self.n_gen, depths, self.load)


def _tell(models: list[str], source: Source, asked: _Asked, machine: str) -> None:
    """Each model, every level of it."""
    from llmrun.models.levels import levels_of

    documents, shown = [], []
    for name in models:
        levels = levels_of(name, offline=asked.offline)
        if levels.note and not asked.quiet:
            screen.note(levels.note)
        question = asked.question(levels)
        rows = [(file, source.predict(file.header, question)) for file in levels.files]
        documents.append(_document(levels, source, rows, question, asked.costs))
        shown.append((levels, rows, question))
    if asked.as_json:
        screen.out_json(documents if len(documents) > 1 else documents[0])
        return
    for i, (levels, rows, question) in enumerate(shown):
        screen.out("\n" if i else "")
        _show(levels, rows, question, machine, asked)


ENOUGH_TPS = 10.0
"""Faster than most people read."""


def _rank(source: Source, asked: _Asked, machine: str) -> None:
    """The catalog, each model at its usual level: first those that fit and are as fast as wanted, the largest first, as
    more weights know more; then the others, the fastest first."""
    from llmrun.cli.terminal import progress
    from llmrun.models import catalog
    from llmrun.models.levels import usual_level

    wanted = asked.target_tps or ENOUGH_TPS
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
            question = asked.question(levels)
            found.append((levels, file, source.predict(file.header, question), question))
    if not found:
        kind, (why, *_) = next(iter(failed.items()), (NotFound, [f"none was trained on {longest} tokens"]))
        raise kind(f"none of the catalog's {len(entries)} models can be looked at; {why}", hint="llmrun plan tiny")
    for first, *others in failed.values() if not asked.quiet else ():
        screen.note(first + (f"; {len(others)} others alike" if others else ""))

    def place(row: tuple[Levels, LevelFile, Prediction, Question]) -> tuple[bool, float]:
        _, file, predicted, _ = row
        rate = _slowest(predicted)
        is_good = bool(predicted.fits) and rate >= wanted
        return not is_good, -float(file.header.n_params if is_good else rate)

    found.sort(key=place)
    if asked.as_json:
        screen.out_json([_document(names, source, [(file, each)], of, asked.costs) for names, file, each, of in found])
        return
    screen.out(
        f"the catalog on {machine}: at least {significant(wanted)} t/s first, the largest of them at the top\n\n"
    )
    downloads = _downloads([file for _, file, _, _ in found], asked.costs)
    titles = (
        *("MODEL", "LEVEL", ">SIZE", *downloads[0], "FITS", f">PREFILL {asked.n_prompt}", ">TTFT", ">DECODE"),
        "WHAT IT IS…",
    )
    summaries = {entry.name: entry.summary or "" for entry in entries}
    tables.show(
        titles,
        (
            (
                levels.name,
                file.quant or UNKNOWN,
                size(file.file_bytes),
                *download,
                _fits(each),
                _shown(each.prefill_tps),
                _shown(each.ttft_s(question.n_prompt)),
                _shown(each.decode_tps[question.depths[0]]),
                summaries.get(levels.name, ""),
            )
            for (levels, file, each, question), download in zip(found, downloads[1:], strict=True)
        ),
    )


def _usual_depths(levels: Levels) -> tuple[int, ...]:
    """As deep as the model was trained for."""
    trained = levels.files[0].header.n_ctx_train or 0
    return tuple(depth for depth in USUAL_DEPTHS if depth < max(1, trained))


@contextmanager
def _source(what_if: str | None, load: LoadConfig, *, probe: bool, quiet: bool) -> Iterator[Source]:
    """Who predicts for the machine that is meant. Raises `UsageError`."""
    if what_if is not None:
        from llmrun.planning.predict.elsewhere import Elsewhere
        from llmrun.planning.predict.machines import parse

        yield Elsewhere(parse(what_if))
        return
    from llmrun.cli.terminal import progress
    from llmrun.engine.jobs.roofline import Prober
    from llmrun.machine.energy import Joules
    from llmrun.machine.nvml import NoGpus
    from llmrun.tuning import sources

    # Ended before anything is planned: a worker serves one client at a time.
    with Prober(load.rpc, spins=False) as prober:
        found, now = prober.found, sources.Moment()
        known = None if probe else sources.profile_of(prober, on_measure=partial(_say, quiet))
        if known is not None:
            now = sources.moment_of(known, prober, Joules.open(NoGpus("of the CPU alone")))
    if known is not None:
        yield sources.Here(known, found, drift=now.drift, watts=now.watts)
        return
    with progress.bar("measuring slices", shown=not quiet) as bar:
        yield sources.Probe(found, on_round=lambda done, of: bar.update(done / of) if bar else None)


def _called(what_if: str | None) -> str:
    """The machine, as it is told of in text."""
    from llmrun.planning.predict.machines import parse

    return "this machine" if what_if is None else parse(what_if).title


def _say(quiet: bool) -> None:
    if not quiet:
        screen.note("measuring what this machine can do, once: half a minute")


def _past(*, as_json: bool, forget: bool) -> None:
    """How right predictions were; or no memory of it."""
    from llmrun.tuning import score

    if forget:
        screen.note(f"forgot {score.forget()} predictions, and what was learned from them")
        return
    found = [*score.kept()]
    if as_json:
        from llmrun import codec

        screen.out_json([codec.plain(each) for each in found])
        return
    if not found:
        raise NotFound(
            "no run here was compared with its prediction yet", hint="llmrun plan MODEL, and llmrun run MODEL"
        )
    tables.show(
        ("FIGURE", ">RUNS", ">MEDIAN ERROR", ">P90", ">BIAS", "…"),
        (
            (
                each.kind,
                str(each.n),
                percent(each.median),
                percent(each.p90),
                percent(each.bias, signed=True),
                _bars(found, each.kind),
            )
            for each in score.accuracy(found)
        ),
    )


def _bars(found: list[Compared], kind: str) -> str:
    """How many errors there are of each size: "-20 % ▁▂█▃▁ +20 %"."""
    edges = [-0.3, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.3]
    counts = [0] * (len(edges) + 1)
    for each in found:
        if each.kind == kind:
            counts[sum(each.error > edge for edge in edges)] += 1
    return "-30 % " + "".join(" ▁▂▃▄▅▆▇█"[-(-8 * n // max(counts))] for n in counts) + " +30 %"


# -- JSON ---


def _document(
    levels: Levels, source: Source, rows: list[tuple[LevelFile, Prediction]], asked: Question, costs: Costs
) -> dict[str, Any]:
    return {
        "model": _model_of(levels),
        "machine": dict(source.machine()),
        "rows": [_row(file, found, asked, costs) for file, found in rows],
    }


def _model_of(levels: Levels) -> dict[str, Any]:
    first, one = levels.files[0], len(levels.files) == 1
    header = first.header
    return {
        "name": levels.name,
        "path": os.fspath(first.path) if one and first.path else None,
        "architecture": header.architecture,
        "quantization": header.quantization_label if one else None,
        "n_params": header.n_params,
        "weight_bytes": header.weight_bytes if one else None,
    }


def _row(file: LevelFile, found: Prediction, asked: Question, costs: Costs) -> dict[str, Any]:
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
        "download_bytes": file.download_bytes,
        "download_s": costs.download_s(file.download_bytes),
        "joules_per_mtok": _range(costs.joules_per_mtok(found)),
        "price_per_mtok": _range(costs.price_per_mtok(found)),
    }


def _range(value: Range | None) -> dict[str, float] | None:
    return None if value is None else {"low": value.low, "mid": value.mid, "high": value.high}


# -- the table ---


def _show(
    levels: Levels,
    rows: list[tuple[LevelFile, Prediction]],
    question: Question,
    machine: str,
    asked: _Asked,
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
        columns.append((">J/TOKEN", *(_shown(each and each.times(1e-6)) for each in joules)))
    if any(prices):
        columns.append((">COST/M", *map(_shown, prices)))
    return [*zip(*columns, strict=True)] or [()] * (len(rows) + 1)


def _cells(found: Prediction, asked: Question, n_layers: int) -> list[str]:
    return [
        _fits(found),
        f"{found.n_gpu_layers}/{n_layers}",
        size(sum(found.memory_bytes.values())),
        _shown(found.prefill_tps),
        _shown(found.ttft_s(asked.n_prompt)),
        *(_shown(found.decode_tps[depth]) for depth in asked.depths),
    ]


def _fits(found: Prediction) -> str:
    return {True: "yes", False: "no", None: UNKNOWN}[found.fits]


def _shown(value: Range | None) -> str:
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


# -- layers for speed ---


def _curve(models: list[str], asked: _Asked, output: Path | None) -> None:
    """Every number of layers on devices of one model, at the level that a run would take."""
    from llmrun.bench.plot import images
    from llmrun.bench.plot.curve import figure
    from llmrun.cli.terminal import progress
    from llmrun.engine.devices import find_devices
    from llmrun.machine.environment import describe_machine
    from llmrun.models.levels import usual_level
    from llmrun.tuning import curve

    if len(models) != 1 or len(asked.depths) > 1:
        raise UsageError("a curve is of one model and one depth", field="curve", hint="llmrun plan MODEL --curve -d 0")
    if output is not None:
        images.format_of(output)
        images.require()  # before minutes are spent
    levels = usual_level(models[0], offline=asked.offline)
    (file,) = levels.files
    with progress.bar("measuring slices, and running it", shown=not asked.quiet) as bar:

        def on_part(what: str, done: int, of: int) -> None:
            if bar:
                bar.update((done / of + (what == "runs")) / 2)

        found = curve.curve(file.header, asked.question(levels), file.path, on_part=on_part)
    if output is not None:
        images.write(figure(found, f"{levels.name} · {file.quant or UNKNOWN}"), output)
        screen.note(f"wrote {output}")
    if asked.as_json:
        machine = asdict(describe_machine(find_devices(asked.load.rpc).devices))
        screen.out_json(_document_of(found, levels, machine))
    else:
        _show_curve(found, levels, asked)


def _document_of(found: Curve, levels: Levels, machine: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": _model_of(levels),
        "machine": dict(machine),
        "devices": [*found.devices],
        "points": [_point(point, found) for point in found.points],
        "best": _point(found.best, found),
        "crosses_cpu_at": found.crosses_cpu_at,
    }


def _point(point: Point, of: Curve) -> dict[str, Any]:
    step_s = point.measured_step_s
    return {
        "n_gpu_layers": point.n_gpu_layers,
        "n_cpu_moe": point.n_cpu_moe,
        "split": [*point.split],
        "pp_tps": _range(point.prefill_s.per(of.n_prompt)),
        "tg_tps": _range(point.step_s.per(1)),
        "measured_tg_tps": 1 / step_s if step_s else None,
    }


def _show_curve(found: Curve, levels: Levels, asked: _Asked) -> None:
    from llmrun.bench.plot.text import bar

    header, best, alone = levels.files[0].header, found.best, found.alone
    n_all, several = (header.n_layer or 0) + 1, len(found.devices) > 1
    fastest = best.step_s.per(1).high
    mixture = best.n_cpu_moe is not None
    screen.out(f"{levels.name}: layers on {', '.join(found.devices)}, t/s, decoding behind {found.n_depth} tokens\n\n")
    titles = [">LAYERS", *([">EXPERTS IN RAM"] * mixture), *([">SPLIT"] * several)]
    tables.show(
        [*titles, f">PREFILL {found.n_prompt}", ">DECODE", ">MEASURED", ""],
        (
            [
                str(point.n_gpu_layers),
                *([str(point.n_cpu_moe)] * mixture),
                *([",".join(map(str, point.split))] * several),
                significant(1 / point.prefill_s.mid * found.n_prompt),
                _shown(point.step_s.per(1)),
                significant(1 / point.measured_step_s) if point.measured_step_s else UNKNOWN,
                bar(1 / point.step_s.mid / fastest, _BAR),
            ]
            for point in found.points
        ),
    )
    fields: dict[str, object] = {"n_gpu_layers": best.n_gpu_layers}
    if best.n_gpu_layers:
        fields |= {"tensor_split": best.split} if several else {}
        fields |= {"n_cpu_moe": best.n_cpu_moe} if best.n_cpu_moe else {}
        fields |= {"rpc": asked.load.rpc} if asked.load.rpc else {}
    screen.out(f"\nbest: {spelling.typed(Act('run', levels.name, fields))}\n")
    if alone is not None:
        rate, crosses = significant(1 / alone.step_s.mid), found.crosses_cpu_at
        few = f"{crosses} layers are the fewest that are" if crosses else "no number of layers is"
        screen.out(f"{few} faster than the CPU alone, {rate} t/s\n")
    most = max(point.n_gpu_layers for point in found.points)
    if most < n_all:
        screen.out(f"more than {most} of {n_all} layers do not fit\n")
    if levels.files[0].path is None:
        screen.out("not confirmed: the model is not here to be run\n")
