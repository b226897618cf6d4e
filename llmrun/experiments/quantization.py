"""Experiment 5: fewer bits: what they save and gain, and what they lose.

Speed and memory are of noise in a real shape, which costs what real weights cost. What is lost is judged where weights
mean something: of `tiny` from its own Q8_0 down, and of a real model, if one is given, from its own level down. A level
above the source's can't be had from it, and is not shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmrun.bench.perplexity import score
from llmrun.bench.plot.figures import Axis, Figure, Panel, Series
from llmrun.bench.quality import default_text
from llmrun.bench.spec import Test
from llmrun.engine.jobs.quantize import Quantizer, Recipe
from llmrun.experiments.experiment import Cell, Finding, Result, Table, shown
from llmrun.experiments.lab import Lab, figures_of
from llmrun.experiments.spread import BARS, Spread
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.models.resolve import Model, find_model
from llmrun.units import UNKNOWN, percent, significant, size

SHAPE = "llama-1.2b"
LEVELS = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
QUICK_LEVELS = ("F16", "Q8_0", "Q4_K_M", "Q2_K")
_GIB = 1 / (1 << 30)


def _bits(level: str) -> float:
    header = synth.header_of(synth.SHAPES[SHAPE], level)
    return 8 * header.weight_bytes / header.n_params


def _speed(lab: Lab, level: str) -> Cell:
    def take() -> Mapping[str, float | None]:
        path = lab.model(SHAPE, level)
        return figures_of(lab.bench(path, lab.config(), Test("pg", 128 if lab.quick else 256, 24)))

    return Cell(f"{SHAPE} at {level}", take)


def _loss(lab: Lab, source: Model, level: str, n_chunks: int | None) -> Cell:
    def take() -> Mapping[str, float | None]:
        path = source.path
        if level != source.header.quantization_label:
            path = lab.own(lab.folder / f"{source.name}-{level.lower()}.gguf")
            if not path.exists():
                with Quantizer(source.path, source.header, Recipe(level)) as quantizer:
                    quantizer.run(path)
        made = Model(f"{source.name} {level}", path, open_header(path))
        found = score(made, default_text(), n_ctx=256, max_chunks=n_chunks, reference=source)
        kld = found.kld
        return {
            "ppl": found.ppl,
            "kld": kld.kld.value if kld else None,
            "kld_error": kld.kld.error if kld else None,
            "same_top": kld.same_top.value if kld else None,
            "bytes": float(made.header.weight_bytes),
        }

    return Cell(f"{source.name} at {level}: loss", take)


def _sources(lab: Lab) -> list[tuple[Model, tuple[str, ...], int | None]]:
    """Models with weights that mean something, the levels below their own, and how much of the text is read."""
    found: list[tuple[Model, tuple[str, ...], int | None]] = []
    tiny = find_model("tiny")
    levels = ("Q6_K", "Q4_K_M", "Q2_K") if lab.quick else ("Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
    found.append((tiny, levels, 8 if lab.quick else 24))
    if lab.options.model is not None:
        real = _real(lab.options.model)
        below = _below(real, ("Q3_K_M", "Q2_K") if lab.quick else (*LEVELS[1:], "IQ4_XS", "Q3_K_S"))
        found.append((real, below, 4 if lab.quick else 12))
    return found


def _real(path: Path) -> Model:
    found = find_model(str(path))
    return Model(path.name.removesuffix(".gguf"), found.path, found.header)


def _below(source: Model, levels: tuple[str, ...]) -> tuple[str, ...]:
    """Those with fewer bits than the source's, by what they come to in a usual model."""
    own = source.header.quantization_label
    most = _bits(own) if own in synth.LEVELS else 8 * source.header.weight_bytes / source.header.n_params
    return tuple(level for level in levels if level in synth.LEVELS and _bits(level) < most)


def quantization(lab: Lab) -> Result:
    levels = QUICK_LEVELS if lab.quick else LEVELS
    lab.measure([_speed(lab, level) for level in levels])
    sources = _sources(lab)
    # The same text and the same weights give the same figures: once is enough.
    lab.measure([_loss(lab, source, level, n) for source, below, n in sources for level in below], rounds=1)

    rates = {level: lab.spread(f"{SHAPE} at {level}", "decode_tps") for level in levels}
    prompts = {level: lab.spread(f"{SHAPE} at {level}", "prefill_tps") for level in levels}
    n_bytes = {level: lab.header(SHAPE, level).weight_bytes for level in levels}
    rows = []
    for level in levels:
        key = f"{SHAPE} at {level}"
        rows.append(
            (
                level,
                significant(_bits(level)),
                size(n_bytes[level]),
                size(max(lab.values(key, "peak_rss_bytes"), default=None)),
                shown(prompts[level]),
                shown(rates[level]),
                shown(lab.spread(key, "ceiling_bytes_per_s"), 1e-9),
                percent(_used(lab, key)),
            )
        )
    speed = Table(
        f"{SHAPE}'s shape, by level",
        ("level", ">bits a weight", ">weights", ">peak RSS", ">prompt, t/s", ">decode, t/s", ">reads, GB/s", ">used"),
        tuple(rows),
    )
    findings = [_gain(rates, n_bytes), *(_loses(lab, source, below) for source, below, _ in sources)]
    decode = tuple(each.point(_bits(level)) for level, each in rates.items() if each)
    prompt = tuple(each.point(_bits(level)) for level, each in prompts.items() if each)
    panels = [
        Panel("sweep", "decode", Axis("bits a weight"), Axis("tokens per second"), (Series("decode", decode),)),
        Panel("sweep", "prompt", Axis("bits a weight"), Axis("tokens per second"), (Series("prompt", prompt),)),
    ]
    tables = [speed]
    for source, below, _ in sources:
        table, series = _quality(lab, source, below)
        tables.append(table)
        if series.points:
            panels.append(
                Panel("sweep", f"lost by {source.name}", Axis("bits a weight"), Axis("nats a token"), (series,))
            )
    return Result(
        tuple(findings),
        (
            f"Speed: noise in {SHAPE}'s shape at each level, a prompt of {128 if lab.quick else 256} tokens and 24"
            f" decoded, on the CPU with {lab.n_threads} threads; the read ceiling beside each. Where the CPU has a"
            " faster layout, weights are in it.",
            "Used: of that ceiling, what decoding reads.",
            (
                "Loss: the divergence from the source's own predictions on the text that comes with llmrun, chunks of"
                " 256 tokens."
            ),
        ),
        tuple(tables),
        {"": Figure(f"{SHAPE}'s shape, by bits a weight", tuple(panels), (BARS,))},
        (
            "Noise has no quality: what a 1.2 B model loses is not told by what these small ones lose, which is more.",
            "Levels made from a quantized source lose a little more than those made from the original weights.",
        ),
    )


def _gain(rates: Mapping[str, Spread | None], n_bytes: Mapping[str, int]) -> Finding:
    claim = "Fewer bits make running on a CPU possible."
    full, four = rates.get("F16"), rates.get("Q4_K_M")
    if not (full and four):
        return Finding(claim, "70b", UNKNOWN, "not measured")
    gain = four.median / full.median
    text = (
        f"Q4_K_M decodes {significant(gain)} × as fast as F16, with"
        f" {significant(n_bytes['Q4_K_M'] / n_bytes['F16'])} of"
        " the memory"
    )
    return Finding(
        claim, "70b", text, "holds" if gain > 1.2 else "holds in part", "" if gain > 1.2 else "In memory alone."
    )


def _loses(lab: Lab, source: Model, below: tuple[str, ...]) -> Finding:
    claim = f"It costs some quality ({source.name})."
    found = []
    for level in below:
        key = f"{source.name} at {level}: loss"
        size_, kld, error = (lab.spread(key, name) for name in ("bytes", "kld", "kld_error"))
        if size_ and kld:
            found.append((size_.median, level, kld.median, error.median if error else 0.0))
    if not found:
        return Finding(claim, "70b", UNKNOWN, "not measured")
    found.sort(reverse=True)
    ends = list(dict.fromkeys((found[0], found[-1])))
    text = "; ".join(f"{level} {significant(kld)} nats a token from its own" for _, level, kld, _ in ends)
    _, _, most, doubt = found[-1]
    return Finding(claim, "70b", text, "holds" if most > 2 * doubt else "does not hold")


def _used(lab: Lab, key: str) -> float | None:
    """Of the read ceiling beside it, the median share that decoding reads."""
    found = lab.cells.samples.get(key, ())
    shares = []
    for sample in found:
        reads, step_s, ceiling = (
            sample.values.get(name) for name in ("step_read_bytes", "step_s", "ceiling_bytes_per_s")
        )
        if reads and step_s and ceiling:
            shares.append(reads / step_s / ceiling)
    return sorted(shares)[len(shares) // 2] if shares else None


def _quality(lab: Lab, source: Model, below: tuple[str, ...]) -> tuple[Table, Series]:
    rows, points = [], []
    for level in below:
        key = f"{source.name} at {level}: loss"
        n_bytes, kld = lab.spread(key, "bytes"), lab.spread(key, "kld")
        if n_bytes is None or kld is None:
            rows.append((level, "–", "–", "–", "–", lab.cells.errors.get(key, "")))
            continue
        error = lab.spread(key, "kld_error")
        same = lab.spread(key, "same_top")
        bits = 8 * n_bytes.median / source.header.n_params
        shown_kld = f"{significant(kld.median)} ± {significant(error.median, 2)}" if error else significant(kld.median)
        rows.append(
            (
                level,
                significant(bits),
                shown(lab.spread(key, "ppl")),
                shown_kld,
                percent(same.median if same else None),
                "",
            )
        )
        points.append(kld.point(bits))
    own = source.header.quantization_label or "its own level"
    title = f"{source.name}, made from its {own}: how far its predictions move"
    columns = ("level", ">bits a weight", ">perplexity", ">divergence, nats", ">same top token", "")
    return Table(title, columns, tuple(rows)), Series(
        f"{source.name}, from {own}", tuple(sorted(points, key=lambda p: p.x))
    )
