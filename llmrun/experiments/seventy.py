"""Experiment 7: Llama 3 70 B on a CPU: memory, size, speed; a model larger than its memory; and mixtures instead."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

from llmrun.bench.plot.figures import Axis, Figure, Panel, Point, Series
from llmrun.engine.engine import ChildEngine
from llmrun.engine.process import Child, spins_for
from llmrun.engine.protocol import Trial
from llmrun.experiments.experiment import Cell, Finding, Result, Table, judged, range_text, shown
from llmrun.experiments.lab import Lab
from llmrun.experiments.memory_box import forget_pages, memory_box, put
from llmrun.gguf.reader import Header, open_header
from llmrun.machine import disk
from llmrun.planning.footprint import Placement, footprint, place_layers
from llmrun.planning.predict.elsewhere import Elsewhere
from llmrun.planning.predict.machines import parse
from llmrun.planning.predict.prediction import Prediction, Question, Range, with_disk
from llmrun.tuning.sources import Probe
from llmrun.units import UNKNOWN, bandwidth, significant, size

DENSE, LEVEL = "llama-70b", "Q4_K_M"
LEVELS = ("F16", "Q8_0", "Q6_K", "Q4_K_M", "Q3_K_M", "Q2_K")
CONTEXTS = (512, 4096, 8192)
MIXTURES = (("qwen3-30b-a3b", "Q4_K_M"), ("gpt-oss-20b", "MXFP4_MOE"))
MACHINES = (
    ("i9-14900 32gb", "0.9"),
    ("i9-14900 64gb", "0.9 to 3 (CPUs)"),
    ("7950X3D 64gb", "0.9 to 3 (CPUs)"),
    ("RTX 3090", "17 and more"),
    ("2x RTX 3090", "17 and more"),
    ("RTX 4090 + DDR5-5600 x2 64gb", ""),
)
MAPPED = ("qwen3-0.6b", "Q8_0")
_LARGER = 1.3
_BESIDE_BYTES = 96 << 20
"""What an engine takes beside its weights: code, vocabulary, buffers."""
_GIB = 1 / (1 << 30)


def total_bytes(header: Header, n_ctx: int) -> int:
    """Weights, keys and values in RAM; compute buffers are less than 1 % here."""
    placement = Placement(place_layers(header.n_layer or 0, 0, (), ()))
    return footprint(header, placement, n_ctx).by_device["CPU"].total


def seventy(lab: Lab) -> Result:
    depths = (0,) if lab.quick else (0, 1024)
    models = [(DENSE, LEVEL), *(MIXTURES[:1] if lab.quick else MIXTURES)]
    question = Question(128 if lab.quick else 512, 16, depths, lab.config())

    def probed(shape: str, level: str) -> Cell:
        def take() -> Mapping[str, float | None]:
            found = Probe(lab.found, rounds=1).predict(lab.header(shape, level), question)
            return _values(found)

        return Cell(f"{shape} at {level}, by slices", take)

    def mapped() -> Mapping[str, float | None]:
        return _mapped(lab)

    lab.measure([probed(*each) for each in models])
    lab.measure([Cell("mapped", mapped)], rounds=1 if lab.quick else 2)
    lab.measure([Cell("by the profile", lambda: _by_profile(lab, models, question))], rounds=1)

    memory, largest = _memory(lab)
    findings = _size_findings(lab, largest)
    rows, predictions = _elsewhere(lab)
    findings += _speed_findings(lab, predictions, question)
    findings += _mapped_findings(lab)
    findings += _mixture_findings(lab, models)
    of_here = Table(
        "Here, without the weights: by slices of the model, and by the profile",
        (
            "model",
            "level",
            ">weights",
            "fits",
            ">decode by slices, t/s",
            ">by the profile, t/s",
            ">prompt by slices, t/s",
        ),
        tuple(
            (
                shape,
                level,
                size(lab.header(shape, level).weight_bytes),
                "".join("yes" if fits else "no" for fits in lab.values("by the profile", f"{shape} fits")),
                shown(lab.spread(f"{shape} at {level}, by slices", "tg_0")),
                range_text(_kept_range(lab, shape)),
                shown(lab.spread(f"{shape} at {level}, by slices", "pp")),
            )
            for shape, level in models
        ),
    )
    return Result(
        tuple(findings),
        (
            (
                "Memory: weights by the tensor table of each level, keys and values in F16, exact; no model of this"
                " size is here."
            ),
            "By slices: a few layers of the model's shapes and types run in the real graph, and all layers follow"
            " (`probe`);"
            " what does not fit into this machine's memory is told as if it did.",
            f"Mapped: {MAPPED[0]} at {MAPPED[1]} in a process whose memory is its weights' size divided by"
            f" {_LARGER}; its t/s beside the disk's"
            " rate of plain reads and what the formula says of both.",
            "Elsewhere: `plan`, from data sheets.",
        ),
        (memory, of_here, rows, *_mapped_table(lab)),
        {"": _picture(lab, models, predictions)},
        ("Slices have noise for weights: a mixture's router chooses as evenly as noise does, which reads the most.",),
    )


def _values(found: Prediction) -> dict[str, float | None]:
    tps = {f"tg_{depth}": None if each is None else each.mid for depth, each in found.decode_tps.items()}
    return {**tps, "pp": found.prefill_tps.mid if found.prefill_tps else None}


def _by_profile(lab: Lab, models: list[tuple[str, str]], question: Question) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for shape, level in models:
        found = lab.here.predict(lab.header(shape, level), question)
        rate = found.decode_tps.get(0)
        values[f"{shape} fits"] = None if found.fits is None else float(found.fits)
        for name in ("low", "mid", "high"):
            values[f"{shape} {name}"] = getattr(rate, name) if rate else None
    return values


def _kept_range(lab: Lab, shape: str) -> Range | None:
    found = [lab.values("by the profile", f"{shape} {name}") for name in ("low", "mid", "high")]
    return Range(*(each[0] for each in found)) if all(found) else None


def _memory(lab: Lab) -> tuple[Table, int]:
    rows, most = [], 0
    for level in LEVELS:
        header = lab.header(DENSE, level)
        totals = [total_bytes(header, n_ctx) for n_ctx in CONTEXTS]
        most = max(most, *totals)
        rows.append((level, size(header.weight_bytes), *(size(n) for n in totals)))
    columns = ("level", ">file", *(f">with {n} tokens" for n in CONTEXTS))
    return Table("Llama 3 70 B: memory", columns, tuple(rows)), most


def _size_findings(lab: Lab, most: int) -> list[Finding]:
    """Computed exactly from the tensor tables."""
    least, usual = (total_bytes(lab.header(DENSE, level), 512) for level in ("Q2_K", LEVEL))
    n_file = lab.header(DENSE, "F16").weight_bytes
    text = f"{size(least)} at Q2_K, {size(usual)} at {LEVEL}, {size(most)} at F16 with {CONTEXTS[-1]} tokens"
    inside = [32e9 <= usual <= 64e9, most > 100e9]
    why = f"32 GB do for levels below {LEVEL} alone; more than 100 GB is F16."
    text_of_file = f"{size(n_file)} at F16: {significant(n_file / 1e12)} TB"
    return [
        Finding("It takes 32 to 64 GB of memory, and often more than 100.", "70b", text, judged(inside), why),
        Finding("Large models take several terabytes on the disk.", "70b", text_of_file, judged([n_file > 2e12])),
    ]


def _elsewhere(lab: Lab) -> tuple[Table, dict[str, Prediction]]:
    header = lab.header(DENSE, LEVEL)
    found = {name: Elsewhere(parse(name)).predict(header, Question(512, 16, (0,))) for name, _ in MACHINES}
    rows = tuple(
        (
            parse(name).title,
            {True: "yes", False: "no", None: UNKNOWN}[found[name].fits]
            + (f": {found[name].note}" if found[name].note else ""),
            range_text(found[name].decode_tps[0]),
            told or UNKNOWN,
        )
        for name, told in MACHINES
    )
    columns = ("machine", "fits", ">decode, t/s, predicted", ">told by the article")
    return Table(f"Llama 3 70 B at {LEVEL} elsewhere: predicted", columns, rows), found


def _speed_findings(lab: Lab, found: dict[str, Prediction], question: Question) -> list[Finding]:
    def tps(name: str) -> Range | None:
        return found[name].decode_tps[0]

    small, cpu, one, two = (tps(name) for name in ("i9-14900 32gb", "i9-14900 64gb", "RTX 3090", "2x RTX 3090"))
    here = lab.spread(f"{DENSE} at {LEVEL}, by slices", "tg_0")
    held = small is not None and small.low <= 0.9 <= small.high
    findings = [
        Finding(
            "An i9-14900 with 32 GB gives 0.9 t/s.", "70b", f"{range_text(small)}, mapped from the disk",
            judged([held]),
            "" if held else f"At {LEVEL} it is larger than 32 GB, and what is missing is read again for every token."
            f" With 64 GB: {range_text(cpu)}.", predicted=True,
        ),
        Finding(
            "CPUs give 0.9 to 3 t/s.", "70b", f"{range_text(cpu)} (i9-14900, 64 GB); by slices here {shown(here)}",
            judged([cpu is not None and cpu.high >= 0.9 and cpu.low <= 3]), predicted=True,
        ),
        Finding(
            "An RTX 3090 gives 17 t/s and more.", "70b", f"one: {range_text(one)}, two: {range_text(two)}",
            judged([each is not None and each.high >= 17 for each in (one, two)]),
            "" if one else "One has 24 GB and can't hold the model.", predicted=True,
        ),
    ]  # fmt: skip
    claim = "A GPU is several orders of magnitude faster."
    if two and cpu:
        ratio = two.mid / cpu.mid
        text = (
            f"17 ÷ 0.9, as told, is {significant(17 / 0.9)}; predicted {significant(ratio)} × (two RTX 3090"
            " beside an i9-14900)"
        )
        findings.append(
            Finding(
                claim,
                "70b",
                text,
                judged([ratio >= 100]),
                "One order of magnitude." if 5 < ratio < 50 else "",
                predicted=True,
            )
        )
    return findings


# -- larger than its memory ---


def _mapped(lab: Lab) -> dict[str, float | None]:
    """Tokens per second of a model that does not fit, and of the same with all its memory; and of the disk."""
    path = lab.model(*MAPPED)
    lab.unload()
    header = open_header(path)
    config = lab.config(load_mode="mmap", repack="off", n_ctx=256)
    limit = int(header.weight_bytes / _LARGER) + _BESIDE_BYTES
    n_gen = 6 if lab.quick else 12
    rate = disk.read_bytes_per_s([lab.folder])
    with closing(ChildEngine(path, header, config)) as engine:
        whole = engine.run_trial(Trial(0, 16, n_ctx=256)).step_s[1:]
    with memory_box(limit) as group:
        forget_pages(path)
        with closing(Child("child.main", spins=spins_for(header.weight_bytes))) as child:
            put(group, child.pid)
            with closing(ChildEngine(path, header, config, child=child)) as engine:
                engine.run_trial(Trial(0, 1, n_ctx=256))
                steps = engine.run_trial(Trial(0, n_gen, n_ctx=256)).step_s
    return {
        "tps": len(steps) / sum(steps),
        "whole_tps": len(whole) / sum(whole),
        "disk_bytes_per_s": rate,
        "missing_bytes": float(header.weight_bytes - header.weight_bytes / _LARGER),
        "weight_bytes": float(header.weight_bytes),
    }


def _predicted_mapped(lab: Lab) -> Range | None:
    found = [lab.spread("mapped", name) for name in ("whole_tps", "disk_bytes_per_s", "missing_bytes", "weight_bytes")]
    if any(each is None for each in found):
        return None
    whole, rate, missing, weights = (each.median for each in found if each is not None)
    computing = Range(1 / whole, 1 / whole, 1 / whole)
    return with_disk(computing, missing / rate, weights / rate).per(1)


def _mapped_findings(lab: Lab) -> list[Finding]:
    claim = "What does not fit into memory can be run from the disk, far slower."
    measured, predicted = lab.spread("mapped", "tps"), _predicted_mapped(lab)
    whole, rate = lab.spread("mapped", "whole_tps"), lab.spread("mapped", "disk_bytes_per_s")
    if measured is None or whole is None:
        return [Finding(claim, "70b", UNKNOWN, "not measured", lab.cells.errors.get("mapped", ""))]
    text = f"{measured.text()} t/s, with all of its memory {whole.text()}"
    why = ""
    if predicted is not None and rate is not None:
        text += f"; predicted {range_text(predicted)} by the disk's {bandwidth(rate.median)}"
        why = (
            ""
            if predicted.low <= measured.median <= predicted.high
            else ("The prediction does not hold what was measured.")
        )
    return [Finding(claim, "70b", text, judged([measured.median < 0.5 * whole.median]), why)]


def _mapped_table(lab: Lab) -> tuple[Table, ...]:
    measured, predicted = lab.spread("mapped", "tps"), _predicted_mapped(lab)
    if measured is None:
        return ()
    weights, missing = lab.spread("mapped", "weight_bytes"), lab.spread("mapped", "missing_bytes")
    row = (
        " ".join(MAPPED),
        size(weights.median if weights else None),
        size(weights.median - missing.median if weights and missing else None),
        measured.text(),
        range_text(predicted),
        shown(lab.spread("mapped", "whole_tps")),
        shown(lab.spread("mapped", "disk_bytes_per_s"), 1e-9),
    )
    columns = ("model", ">weights", ">memory for them", ">t/s", ">predicted", ">with all memory, t/s", ">disk, GB/s")
    return (Table("Larger than its memory, mapped", columns, (row,)),)


# -- mixtures ---


def _mixture_findings(lab: Lab, models: list[tuple[str, str]]) -> list[Finding]:
    dense = lab.spread(f"{DENSE} at {LEVEL}, by slices", "tg_0")
    found, gains = [], []
    for shape, level in models[1:]:
        each = lab.spread(f"{shape} at {level}, by slices", "tg_0")
        if dense and each:
            gains.append(each.median / dense.median)
            found.append(
                f"{shape} {significant(each.median)} t/s, {significant(each.median / dense.median)} × the dense 70 B"
            )
    claim = "The way out is a smaller model: a mixture, of which a token needs a part."
    if not found:
        return [Finding(claim, "70b", UNKNOWN, "not measured")]
    return [Finding(claim, "70b", f"by slices here: {'; '.join(found)}", judged([gain > 2 for gain in gains]))]


def _picture(lab: Lab, models: list[tuple[str, str]], found: dict[str, Prediction]) -> Figure:
    bars: list[tuple[str, Point]] = []
    for i, (shape, level) in enumerate(models):
        spread = lab.spread(f"{shape} at {level}, by slices", "tg_0")
        if spread:
            bars.append((f"{shape} here", spread.point(i)))
    elsewhere = [(name, each.decode_tps[0]) for name, each in found.items() if each.decode_tps[0]]
    points = tuple(
        Point(i, each.mid, low=each.low, high=each.high) for i, (_, each) in enumerate(elsewhere) if each is not None
    )
    here = tuple(point for _, point in bars)
    names = (name.replace(" + DDR5-5600 x2 64gb", " + CPU") for name, _ in elsewhere)
    short = tuple(
        (float(i), name.replace(" 3", "\n3", 1) if "x " in name else name.replace(" ", "\n", 1))
        for i, name in enumerate(names)
    )
    panels = [
        Panel("bars", (f"Llama 3 70 B {LEVEL}, predicted by"
                      " data sheets"), Axis("", ticks=short), Axis("tokens per second"),
              (Series("predicted", points, "bar"),)),
    ]  # fmt: skip
    if here:
        ticks = tuple((float(i), shape) for i, (shape, _) in enumerate(models))
        panels.append(
            Panel(
                "bars",
                "here, by slices",
                Axis("", ticks=ticks),
                Axis("tokens per second"),
                (Series("by slices", here, "bar"),),
            )
        )
    note = "error bars: of predictions their range, of slices the least and the most of the rounds"
    return Figure("Llama 3 70 B: decoding", tuple(panels), (note,))
