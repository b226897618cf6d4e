"""Experiments 1 to 4: a stack of square linear layers, by its batch, its width, its depth, and its form.

The toy is the article's: x + W·x for each layer, no bias, numbers in F32. It is computed as a graph of ggml, by one
thread and by all; of the two the faster counts, as nobody would take the other. A GPU's column is a prediction:

    t = sync + 2 · layers · seconds of an operation + bytes / (share · bandwidth) + operations / (rate · FP32)

with the constants that `plan --what-if` has for the GPU's maker, fitted to language models:
an operation takes what a layer of those takes, divided by its operations. How far that carries to a toy nobody measured
here: its range is the middle divided and multiplied by 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llmrun.bench.plot.figures import Axis, Figure, Panel, Point, Series
from llmrun.engine.protocol import TimeLayers
from llmrun.errors import EngineCrashed, OutOfMemory
from llmrun.experiments.experiment import Cell, Finding, Result, Spread, Table, Verdict, shown
from llmrun.experiments.lab import Lab
from llmrun.machine import hardware
from llmrun.planning.footprint import CPU
from llmrun.planning.predict import speed
from llmrun.planning.predict.from_profile import MEASURED_OPERATIONS
from llmrun.planning.predict.machines import Part, parse
from llmrun.planning.predict.prediction import Range
from llmrun.units import count, duration, significant, size

GPU = "RTX 4090"
WIDTH, N_LAYERS = 128, 128
BATCHES = tuple(1 << n for n in range(12))
WIDTHS = tuple(64 << n for n in range(7))
DEPTHS = (128, 256, 512, 1024, 1920, 3840)
N_FIXED, N_FIXED_QUICK = 1 << 31, 1 << 27
_SYNC_S = 20e-6
"""What starting and waiting for a graph takes on a GPU, about."""
_DOUBT = 2.0
_MEMORY_SHARE = 0.7
"""Of the free memory that weights may take."""
_MS = 1e3


@dataclass(frozen=True)
class Toy:
    width: int
    n_layers: int

    @property
    def n_weights(self) -> int:
        return self.n_layers * self.width**2

    @property
    def n_bytes(self) -> int:
        return 4 * self.n_weights

    def key(self, device: str) -> str:
        return f"{self.n_layers} layers of {self.width} on {device}"

    def on_gpu(self, n_columns: int, gpu: Part | None = None) -> Range:
        """Seconds of a pass with so many inputs, predicted."""
        part = gpu or parse(GPU).parts[0]
        constants = speed.constants()
        decode, prefill = constants.decode[speed.group(part)], constants.prefill[speed.group(part)]
        seconds = _SYNC_S + 2 * self.n_layers * decode.layer_s / MEASURED_OPERATIONS
        seconds += self.n_bytes / (decode.share * part.bytes_per_s)
        seconds += 2 * self.n_weights * n_columns / (prefill.rate * (part.flops or math.inf))
        return Range.around(seconds, _DOUBT)


def cell(lab: Lab, toy: Toy, device: str, batches: Sequence[int], seconds: float) -> Cell:
    """Seconds of a pass, by batch and number of threads: "b64 t2"."""
    threads = sorted({1, lab.n_threads}) if device == CPU else [lab.n_threads]

    def take() -> Mapping[str, float | None]:
        free = hardware.available_memory()
        if device == CPU and free is not None and toy.n_bytes > _MEMORY_SHARE * free:
            raise OutOfMemory(f"its weights are {size(toy.n_bytes)}, and {size(free)} of RAM are free")
        asked = TimeLayers(device, toy.width, toy.n_layers, [*batches], threads, seconds)
        found = lab.prober.seconds_of(asked)
        if not found:
            raise EngineCrashed(f"{device} has no room for it, or can't compute it")
        return dict(zip((f"b{b} t{t}" for b in batches for t in threads), found, strict=True))

    return Cell(toy.key(device), take)


def fastest(lab: Lab, toy: Toy, device: str, n_columns: int) -> tuple[Spread | None, int]:
    """Seconds with the number of threads that is fastest, and that number."""
    threads = sorted({1, lab.n_threads}) if device == CPU else [lab.n_threads]
    known = [(found, n) for n in threads if (found := lab.spread(toy.key(device), f"b{n_columns} t{n}"))]
    return min(known, key=lambda each: each[0].median, default=(None, 0))


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """Of y ~ x^e through all points, by least squares of their logarithms; None of fewer than two."""
    if len(points) < 2:
        return None
    xs, ys = ([math.log(point[i]) for point in points] for i in (0, 1))
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    across = sum((each - x) ** 2 for each in xs)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / across if across else None


def crossing(points: Sequence[tuple[float, float, float]]) -> float | None:
    """The x, between two of (x, ours, theirs) by rising x, from which on ours takes longer; None: never, or always."""
    for (x0, ours0, theirs0), (x1, ours1, theirs1) in pairwise(points):
        if ours0 <= theirs0 and ours1 > theirs1:
            before, behind = math.log(ours0 / theirs0), math.log(ours1 / theirs1)
            return math.exp(math.log(x0) + (math.log(x1) - math.log(x0)) * -before / (behind - before))
    return None


def _method(lab: Lab, what: str) -> tuple[str, ...]:
    return (
        f"The toy: x + W·x, F32, no bias, {what}. ggml computes it as one graph; a figure is the median of a round's"
        " passes.",
        f"On the CPU with 1 and with {lab.n_threads} threads: the faster counts.",
        f"The {GPU} is predicted from its data sheet by the constants that `plan` has, divided and multiplied by"
        f" {_DOUBT:g}: it is not measured, and PyTorch, which starts every operation by itself, takes longer"
        " than that.",
    )


_LIMITS = (
    (
        "The article's CPU has sixteen cores and its caches hold more of the toy; where a curve bends is a matter"
        " of those."
    ),
    "A GPU that is not the article's, or another library, has other constants.",
)


@dataclass(frozen=True)
class _Row:
    x: float
    label: str
    toy: Toy
    n_columns: int


def _picture(lab: Lab, title: str, x: Axis, rows: Sequence[_Row], notes: Sequence[str] = ()) -> Figure:
    series = []
    for device in lab.devices():
        points = []
        for row in rows:
            found, _ = fastest(lab, row.toy, device, row.n_columns)
            if found:
                points.append(found.point(row.x, _MS))
        if points:
            series.append(Series(f"{device}, measured", tuple(points)))
    predicted = [(row.x, row.toy.on_gpu(row.n_columns)) for row in rows]
    gpu = tuple(Point(x, each.mid * _MS, low=each.low * _MS, high=each.high * _MS) for x, each in predicted)
    series.append(Series(f"{GPU}, predicted", gpu))
    ticks = tuple((row.x, row.label) for row in rows)
    panel = Panel("sweep", "a pass through all layers", Axis(x.label, "log", ticks), Axis("ms", "log"), tuple(series))
    bars = "error bars: of what is measured the least and the most of the rounds, of a prediction its range"
    return Figure(title, (panel,), (bars, *notes))


def _table(lab: Lab, title: str, x: str, rows: Sequence[_Row]) -> Table:
    devices = lab.devices()
    lines = []
    for row in rows:
        found = [fastest(lab, row.toy, device, row.n_columns) for device in devices]
        gpu = row.toy.on_gpu(row.n_columns)
        both = found[0][0]
        lines.append(
            (
                row.label,
                count(row.toy.n_weights),
                *(shown(spread, _MS) for spread, _ in found),
                str(found[0][1] or "–"),
                f"{significant(gpu.mid * _MS)} ({significant(gpu.low * _MS)} to {significant(gpu.high * _MS)})",
                significant(both.median / gpu.mid) if both else "–",
            )
        )
    columns = (f">{x}", ">weights", *(f">{device}, ms" for device in devices), ">threads", f">{GPU}, predicted, ms")
    return Table(title, (*columns, f">CPU ÷ {GPU}"), tuple(lines))


def _pairs(lab: Lab, rows: Sequence[_Row]) -> list[tuple[float, float, float]]:
    """x, seconds on the CPU, seconds predicted of the GPU."""
    found = [(row, fastest(lab, row.toy, CPU, row.n_columns)[0]) for row in rows]
    return [(row.x, each.median, row.toy.on_gpu(row.n_columns).mid) for row, each in found if each]


def _run(lab: Lab, toys: Sequence[Toy], batches: Sequence[int], seconds: float) -> None:
    lab.measure([cell(lab, toy, device, batches, seconds) for toy in toys for device in lab.devices()])


def _level(pairs: Sequence[tuple[float, float, float]]) -> str:
    """Up to where the CPU takes no longer than the GPU is predicted to, in words."""
    if not pairs:
        return "not measured"
    if pairs[0][1] > pairs[0][2]:
        return "the CPU is behind from the first value on"
    at = crossing(pairs)
    return "the CPU is ahead at all values" if at is None else f"level at {significant(at)}"


# -- the experiments ---------------------------------------------------------------------------------------------------


def batch(lab: Lab) -> Result:
    """1: the toy with 1 to 2,048 inputs at once, and a language model's step with several sequences beside it."""
    from llmrun.bench.spec import Test
    from llmrun.experiments.lab import figures_of

    toy = Toy(WIDTH, N_LAYERS)
    batches = BATCHES[::2] if lab.quick else BATCHES
    _run(lab, [toy], batches, 0.1 if lab.quick else 0.25)
    sequences = (1, 4, 16) if lab.quick else (1, 2, 4, 8, 16, 32)
    path, config = lab.model("qwen3-0.6b", "Q4_K_M"), lab.config(repack="off")
    cells = [
        Cell(f"{n} sequences", lambda n=n: figures_of(lab.bench(path, config, Test("pg", 16, 16, 0, n))))  # type: ignore[misc]
        for n in sequences
    ]
    lab.measure(cells)

    rows = [_Row(b, str(b), toy, b) for b in batches]
    pairs = _pairs(lab, rows)
    known = {x: ours for x, ours, _ in pairs}
    steps = {n: lab.spread(f"{n} sequences", "step_s") for n in sequences}
    findings = [_level_finding("The CPU is level with a GPU up to a batch of 64, then it takes longer.", pairs, 64)]
    if 1 in known and len(known) > 1:
        gpu = [toy.on_gpu(b).mid for b in (1, batches[-1])]
        flat = gpu[1] / gpu[0]
        grown = known[batches[-1]] / known[1]
        text = f"predicted: {significant(flat)} × from 1 to {batches[-1]}; the CPU, measured, {significant(grown)} ×"
        findings.append(Finding("A GPU's time stays flat.", "toy", text, "holds" if flat < 2 else "holds in part"))
    least, most = (steps.get(n) for n in (1, sequences[-1]))
    if least and most:
        grown = most.median / least.median
        text = (
            f"a step of {sequences[-1]} sequences takes {significant(grown)} × that of one:"
            f" {significant(sequences[-1] / grown)} × the tokens"
        )
        why = "A language model reads the same weights for all sequences, so that its step grows less than its batch."
        claim = "What holds for the toy holds for a language model."
        findings.append(Finding(claim, "toy", text, "holds" if grown > 2 else "holds in part", why))
    of_model = tuple(each.point(n, _MS) for n, each in steps.items() if each)
    picture = _picture(lab, f"{N_LAYERS} layers of {WIDTH}, by batch", Axis("inputs at once"), rows)
    series = (Series("Qwen3 0.6B's shape, Q4_K_M, a step", of_model),)
    ticks = tuple((float(n), str(n)) for n in sequences)
    panel = Panel("sweep", "a language model's step", Axis("sequences", "log", ticks), Axis("ms"), series)
    return Result(
        tuple(findings),
        (*_method(lab, f"{N_LAYERS} layers of {WIDTH}: {count(toy.n_weights)} weights"),
         "A language model beside it: Qwen3 0.6B's shape at Q4_K_M, decoding, every sequence behind 16 tokens."),
        (_table(lab, "The toy, by inputs at once", "batch", rows),
         Table("A language model's step", (">sequences", ">ms", ">tokens per second"),
               tuple((str(n), shown(each, _MS), significant(n / each.median)) for n, each in steps.items() if each))),
        {"": Figure(picture.title, (*picture.panels, panel), picture.notes)},
        _LIMITS,
    )  # fmt: skip


def _level_finding(claim: str, pairs: Sequence[tuple[float, float, float]], at: float) -> Finding:
    """Whether the CPU is as fast as the GPU is predicted to be up to `at`, within a factor of 4 of it."""
    if not pairs:
        return Finding(claim, "toy", "–", "not measured")
    found = crossing(pairs)
    first, last = pairs[0], pairs[-1]
    if found is None:
        ahead = last[1] <= last[2]
        ratio = last if ahead else first
        text = (
            f"the CPU is {'ahead' if ahead else 'behind'} at all values: {significant(ratio[1] / ratio[2])} × the GPU's"
            f" predicted time at {ratio[0]:g}"
        )
        return Finding(claim, "toy", text, "does not hold")
    text = f"measured here, predicted there: level at {significant(found, 2)}"
    near = 1 / 4 <= found / at <= 4
    why = "" if near else f"There is such a point, at another place than {at:g}."
    return Finding(claim, "toy", text, "holds" if near else "holds in part", why)


def width(lab: Lab) -> Result:
    """2: one input, 128 layers of 64 to 4,096."""
    widths = WIDTHS[:-1] if lab.quick else WIDTHS
    toys = [Toy(each, N_LAYERS) for each in widths]
    _run(lab, toys, [1], 0.1 if lab.quick else 0.3)
    rows = [_Row(toy.width, str(toy.width), toy, 1) for toy in toys]
    pairs = _pairs(lab, rows)
    steep = exponent([(x, ours) for x, ours, _ in pairs if x >= 512])
    findings = [_level_finding("The CPU is level with a GPU up to a width of 512 (33.6 M weights).", pairs, 512)]
    if steep is not None:
        text = f"time grows with the width to the {significant(steep, 2)}, from 512 on"
        why = (
            "Weights grow with the square, and one input has to read all of them: beyond the caches so does the time."
            if steep > 1.3
            else ""
        )
        claim = "Beyond, the CPU's time is linear in the width."
        findings.append(Finding(claim, "toy", text, "holds" if 0.7 <= steep <= 1.3 else "does not hold", why))
    return Result(
        tuple(findings),
        _method(lab, f"{N_LAYERS} layers, one input"),
        (_table(lab, "The toy, by width", "width", rows),),
        {"": _picture(lab, f"{N_LAYERS} layers, one input, by width", Axis("width"), rows)},
        _LIMITS,
    )


def depth(lab: Lab) -> Result:
    """3: one input, 128 to 3,840 layers of 128."""
    depths = DEPTHS[::2] + DEPTHS[-1:] if lab.quick else DEPTHS
    toys = [Toy(WIDTH, n) for n in depths]
    _run(lab, toys, [1], 0.1 if lab.quick else 0.3)
    rows = [_Row(toy.n_layers, str(toy.n_layers), toy, 1) for toy in toys]
    pairs = _pairs(lab, rows)
    ours, theirs = (exponent([(pair[0], pair[i]) for pair in pairs]) for i in (1, 2))
    findings = []
    if ours is not None and theirs is not None:
        text = f"CPU, measured: layers to the {significant(ours)}; {GPU}, predicted: {significant(theirs)}"
        fits = 0.85 <= ours <= 1.15
        why = (
            "" if fits else "Weights that no longer fit into a cache are read from the next one: its time grows faster."
        )
        findings.append(
            Finding("Both are linear in the number of layers.", "toy", text, "holds" if fits else "holds in part", why)
        )
        slower = [mine < gpu for _, mine, gpu in pairs]
        first, last = pairs[0], pairs[-1]
        text = (
            f"{duration(first[1] / first[0])} and {duration(last[1] / last[0])} a layer here at {first[0]:g} and"
            f" {last[0]:g},"
            f" {duration(last[2] / last[0])} predicted of the {GPU}"
        )
        verdict: Verdict = "holds" if all(slower) else "holds in part" if any(slower) else "does not hold"
        ahead = (f"{pair[0]:g}" for pair, is_so in zip(pairs, slower, strict=True) if is_so)
        where = f"The CPU is ahead at {', '.join(ahead)} layers."
        claim = "The GPU is slower, whatever the number of layers."
        findings.append(Finding(claim, "toy", text, verdict, where if verdict == "holds in part" else ""))
    return Result(
        tuple(findings),
        _method(lab, f"layers of {WIDTH}, one input"),
        (_table(lab, "The toy, by layers", "layers", rows),),
        {"": _picture(lab, f"layers of {WIDTH}, one input, by their number", Axis("layers"), rows)},
        _LIMITS,
    )


def fixed(lab: Lab) -> Result:
    """4: as many weights in few wide layers or in many narrow ones; and the article's conclusions."""
    n_weights = N_FIXED_QUICK if lab.quick else N_FIXED
    widths = [256 << n for n in range(7) if (n_weights >> (2 * (8 + n))) >= 1]
    toys = [Toy(each, n_weights // each**2) for each in reversed(widths)]
    _run(lab, toys, [1], 0.2 if lab.quick else 1.0)
    rows = [_Row(toy.n_layers, str(toy.n_layers), toy, 1) for toy in toys]
    pairs = _pairs(lab, rows)
    findings = []
    if len(pairs) > 1:
        rates = [toy.n_bytes / ours for toy, (_, ours, _) in zip(toys, pairs, strict=False)]
        few, many = pairs[0], pairs[-1]
        best = min(pairs, key=lambda pair: pair[1])
        text = (
            f"{many[0]:g} layers take {significant(many[1] / few[1])} × the time of {few[0]:g}; of the {GPU},"
            " predicted,"
            f" {significant(many[2] / few[2])} ×; {significant(min(rates) / 1e9)} to"
            f" {significant(max(rates) / 1e9)} GB/s"
            " are read here"
        )
        is_so = many[1] / few[1] > 1.15 and best[0] == few[0]
        why = f"Here {best[0]:g} layers are the fastest, and little is between them: memory is what the CPU waits for."
        claim = "With as many weights, the fewer layers the faster."
        findings.append(Finding(claim, "toy", text, "holds" if is_so else "holds in part", "" if is_so else why))
        ratio = few[1] / few[2]
        text = f"{significant(ratio)} × the time that is predicted of the {GPU}, at {count(n_weights)} weights"
        findings.append(Finding("Beyond a size, GPUs help.", "toy", text, "holds" if ratio > 2 else "does not hold"))
        text = "see batch and depth: there the CPU is level or ahead for small layers"
        claim = "What does well on a CPU need not be faster on a GPU."
        findings.append(Finding(claim, "toy", text, _small(lab)))
        apart = many[2] / few[2]
        text = (
            f"predicted: {significant(apart)} × the time for the same weights in {many[0]:g} layers instead of"
            f" {few[0]:g}"
        )
        claim = "GPUs are not for sequential work."
        findings.append(Finding(claim, "toy", text, "holds" if apart > 2 else "holds in part"))
        claim = "Training is where GPUs are needed first."
        findings.append(Finding(claim, "toy", "–", "not measured", "llmrun trains nothing."))
    return Result(
        tuple(findings),
        _method(lab, f"{count(n_weights)} weights ({size(4 * n_weights)}), one input"),
        (_table(lab, "As many weights, by the number of layers", "layers", rows),),
        {"": _picture(lab, f"{count(n_weights)} weights, one input, by the number of layers", Axis("layers"), rows)},
        _LIMITS,
    )


def _small(lab: Lab) -> Verdict:
    """Whether the smallest toy is faster here than it is predicted to be on the GPU: measured once for this."""
    toy = Toy(WIDTH, N_LAYERS)
    _run(lab, [toy], [1], 0.1)
    found, _ = fastest(lab, toy, CPU, 1)
    if found is None:
        return "not measured"
    return "holds" if found.median <= toy.on_gpu(1).high else "does not hold"
