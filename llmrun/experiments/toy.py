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
from llmrun.engine.process import spins_for
from llmrun.engine.protocol import TimeLayers
from llmrun.errors import EngineCrashed, OutOfMemory
from llmrun.experiments.experiment import Cell, Finding, Result, Table, Verdict, judged, shown
from llmrun.experiments.lab import Lab
from llmrun.experiments.spread import BARS, Spread
from llmrun.machine import hardware
from llmrun.planning.footprint import CPU
from llmrun.planning.predict import speed
from llmrun.planning.predict.from_profile import MEASURED_OPERATIONS
from llmrun.planning.predict.machines import Part, parse
from llmrun.planning.predict.prediction import Range
from llmrun.units import UNKNOWN, count, duration, significant, size

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
    threads = _threads(lab, device)

    def take() -> Mapping[str, float | None]:
        free = hardware.available_memory()
        if device == CPU and free is not None and toy.n_bytes > _MEMORY_SHARE * free:
            raise OutOfMemory(f"its weights are {size(toy.n_bytes)}, and {size(free)} of RAM are free")
        asked = TimeLayers(device, toy.width, toy.n_layers, [*batches], threads, seconds)
        # As a model of that size would be run.
        found = lab.prober_of(spins=spins_for(toy.n_bytes)).seconds_of(asked)
        if not found:
            raise EngineCrashed(f"{device} has no room for it, or can't compute it")
        return dict(zip((f"b{b} t{t}" for b in batches for t in threads), found, strict=True))

    return Cell(toy.key(device), take)


def _threads(lab: Lab, device: str) -> list[int]:
    """Numbers of threads, of which the fastest counts: small layers are waited for longer than they take."""
    n = lab.n_threads
    return sorted({1, 2, 4, n // 4, n // 2, n} & set(range(1, n + 1))) if device == CPU else [n]


def fastest(lab: Lab, toy: Toy, device: str, n_columns: int) -> tuple[Spread | None, int]:
    """Seconds with the number of threads that is fastest, and that number."""
    threads = _threads(lab, device)
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
        f"On the CPU with {', '.join(map(str, _threads(lab, CPU)))} threads: the fastest counts.",
        f"The {GPU} is predicted from its data sheet by the constants that `plan` has, divided and multiplied by"
        f" {_DOUBT:g}: it is not measured.",
    )


_LIMITS = (
    "The article's CPU is a 7950X3D with sixteen cores; where a curve bends is a matter of cores and of caches.",
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
    bars = f"{BARS}; of a prediction its range"
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
                _quotient(both, gpu) if both else UNKNOWN,
            )
        )
    columns = (f">{x}", ">weights", *(f">{device}, ms" for device in devices), ">threads", f">{GPU}, predicted, ms")
    return Table(title, (*columns, f">CPU ÷ {GPU}"), tuple(lines))


def _quotient(ours: Spread, theirs: Range) -> str:
    low, high = ours.low / theirs.high, ours.high / theirs.low
    return f"{significant(ours.median / theirs.mid, 2)} ({significant(low, 2)} to {significant(high, 2)})"


def _gpu_of(lab: Lab) -> str | None:
    """A GPU of this machine that was asked for: then it is measured and nothing is predicted."""
    kinds = {device.name: device for device in lab.found.devices}
    asked = (kinds[name] for name in lab.devices() if name in kinds)
    return next((each.name for each in asked if each.kind == "gpu" and not each.backend.startswith("RPC")), None)


def _pairs(lab: Lab, rows: Sequence[_Row], which: str = "mid") -> list[tuple[float, float, float]]:
    """x, seconds on the CPU, seconds on the GPU: measured, or predicted as `which` of the range."""
    gpu = _gpu_of(lab)
    found = []
    for row in rows:
        ours = fastest(lab, row.toy, CPU, row.n_columns)[0]
        measured = fastest(lab, row.toy, gpu, row.n_columns)[0] if gpu else None
        if ours and (measured or not gpu):
            theirs = measured.median if measured else getattr(row.toy.on_gpu(row.n_columns), which)
            found.append((row.x, ours.median, theirs))
    return found


def _ahead(lab: Lab, row: _Row) -> str | None:
    """Who is: "CPU" or "GPU"; None where both intervals allow either."""
    gpu = _gpu_of(lab)
    ours = fastest(lab, row.toy, CPU, row.n_columns)[0]
    theirs = fastest(lab, row.toy, gpu, row.n_columns)[0] if gpu else row.toy.on_gpu(row.n_columns)
    if ours is None or theirs is None or (ours.low <= theirs.high and theirs.low <= ours.high):
        return None
    return "CPU" if ours.high < theirs.low else "GPU"


def _judged_ahead(rows: Sequence[_Row], ahead: Sequence[str | None]) -> tuple[Verdict, str]:
    """Of the claim that the GPU is slower everywhere, and where it is and is not."""
    where = {
        who: ", ".join(row.label for row, each in zip(rows, ahead, strict=True) if each == who)
        for who in ("CPU", "GPU", None)
    }
    said = [f"The {who} is ahead at {where[who]} layers." for who in ("CPU", "GPU") if where[who]]
    if where[None]:
        said.append(f"At {where[None]} the intervals of both overlap: that decides nothing.")
    if not where["GPU"] and not where[None]:
        return "holds", ""
    return ("does not hold" if where["GPU"] and not where["CPU"] else "holds in part"), " ".join(said)


def _beside(lab: Lab) -> str:
    return f"beside {_gpu_of(lab)}, measured" if _gpu_of(lab) else f"measured here, {GPU} predicted"


def _run(lab: Lab, toys: Sequence[Toy], batches: Sequence[int], seconds: float) -> None:
    lab.measure([cell(lab, toy, device, batches, seconds) for toy in toys for device in lab.devices()])


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

    rows = [_Row(b, str(b) if b < 1024 else f"{b >> 10}k", toy, b) for b in batches]
    pairs = _pairs(lab, rows)
    steps = {n: lab.spread(f"{n} sequences", "step_s") for n in sequences}
    findings = [_level_finding(lab, "The CPU is level with a GPU up to a batch of 64, then it takes longer.", rows, 64)]
    claim = "A GPU's time stays flat."
    if len(pairs) > 1:
        ours, theirs = (pairs[-1][i] / pairs[0][i] for i in (1, 2))
        text = (
            f"{significant(theirs)} × from {pairs[0][0]:g} to {pairs[-1][0]:g}, the CPU {significant(ours)} ×"
            f" ({_beside(lab)})"
        )
        verdict: Verdict = "holds" if theirs < 2 else "holds in part" if theirs < ours / 4 else "does not hold"
        findings.append(Finding(claim, "toy", text, verdict, predicted=_gpu_of(lab) is None))
    else:
        findings.append(_unknown(lab, claim, toy.key(CPU)))
    least, most = (steps.get(n) for n in (1, sequences[-1]))
    claim = "A language model's step, too, takes longer with the batch on a CPU."
    if least and most:
        grown = most.median / least.median
        text = (
            f"a step of {sequences[-1]} sequences takes {significant(grown)} × that of one:"
            f" {significant(sequences[-1] / grown)} × the tokens"
        )
        why = "All sequences share the reading of the weights, so that a step grows less than its batch."
        findings.append(Finding(claim, "toy", text, "holds" if grown > 1.5 else "does not hold", why))
    else:
        findings.append(_unknown(lab, claim, "1 sequences"))
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


def _unknown(lab: Lab, claim: str, key: str) -> Finding:
    return Finding(claim, "toy", UNKNOWN, "not measured", lab.cells.errors.get(key, ""))


def _level_finding(lab: Lab, claim: str, rows: Sequence[_Row], at: float) -> Finding:
    """Whether the CPU is as fast as the GPU up to `at`, within a factor of 4 of it."""
    pairs = _pairs(lab, rows)
    if not pairs:
        return _unknown(lab, claim, rows[0].toy.key(CPU))
    predicted = _gpu_of(lab) is None
    found = crossing(pairs)
    if found is None:
        ahead = pairs[-1][1] <= pairs[-1][2]
        x, ours, theirs = pairs[-1] if ahead else pairs[0]
        text = f"the CPU takes {significant(ours / theirs)} × the GPU's time at {x:g} ({_beside(lab)})"
        why = "The CPU is ahead at all values." if ahead else "The CPU is behind from the first value on."
        return Finding(claim, "toy", text, "does not hold", why, predicted)
    text = f"level at {significant(found, 2)}"
    if predicted:
        ends = [crossing(_pairs(lab, rows, which)) for which in ("low", "high")]
        sides = (
            significant(each, 2) if each else other for each, other in zip(ends, ("none", "beyond all"), strict=True)
        )
        text += f" ({' to '.join(sides)} by the prediction's range)"
    near = 1 / 4 <= found / at <= 4
    why = "" if near else f"There is such a point, at another place than {at:g}."
    return Finding(claim, "toy", f"{text}, {_beside(lab)}", "holds" if near else "holds in part", why, predicted)


def width(lab: Lab) -> Result:
    """2: one input, 128 layers of 64 to 4,096."""
    widths = WIDTHS[:-1] if lab.quick else WIDTHS
    toys = [Toy(each, N_LAYERS) for each in widths]
    _run(lab, toys, [1], 0.1 if lab.quick else 0.3)
    rows = [_Row(toy.width, str(toy.width), toy, 1) for toy in toys]
    pairs = _pairs(lab, rows)
    steep = exponent([(x, ours) for x, ours, _ in pairs if x >= 512])
    findings = [_level_finding(lab, "The CPU is level with a GPU up to a width of 512 (33.6 M weights).", rows, 512)]
    claim = "Beyond, the CPU's time is linear in the width."
    if steep is not None:
        text = f"time grows with the width to the {significant(steep, 2)}, from 512 on"
        why = "Weights grow with the square, and one input has to read all of them." if steep > 1.3 else ""
        findings.append(Finding(claim, "toy", text, "holds" if 0.7 <= steep <= 1.3 else "does not hold", why))
    else:
        findings.append(_unknown(lab, claim, toys[-1].key(CPU)))
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
    predicted = _gpu_of(lab) is None
    claim, other = "Both are linear in the number of layers.", "The GPU is slower, whatever the number of layers."
    findings = []
    if ours is not None and theirs is not None:
        text = f"time grows as layers^{significant(ours)} on the CPU, as layers^{significant(theirs)} on the GPU"
        fits = [0.85 <= each <= 1.15 for each in (ours, theirs)]
        why = (
            ("Weights that no longer fit into a cache are read from the next one: time grows faster.")
            if ours > 1.15
            else ""
        )
        findings.append(Finding(claim, "toy", f"{text} ({_beside(lab)})", judged(fits), why, predicted and fits[0]))
        ahead = [_ahead(lab, row) for row in rows]
        first, last = pairs[0], pairs[-1]
        text = (
            f"a layer takes {duration(first[1] / first[0])} at {first[0]:g} and {duration(last[1] / last[0])} at"
            f" {last[0]:g} on the CPU, {duration(last[2] / last[0])} at {last[0]:g} on the GPU ({_beside(lab)})"
        )
        findings.append(Finding(other, "toy", text, *_judged_ahead(rows, ahead), predicted))
    else:
        findings += [_unknown(lab, each, toys[0].key(CPU)) for each in (claim, other)]
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
    claims = (
        "With as many weights, the fewer layers the faster.",
        "Beyond a size, GPUs help.",
        "GPUs are not for sequential work.",
    )
    findings = []
    predicted = _gpu_of(lab) is None
    if len(pairs) > 1:
        rates = [4 * n_weights / ours / 1e9 for _, ours, _ in pairs]
        few, many = pairs[0], pairs[-1]
        best = min(pairs, key=lambda pair: pair[1])
        ours, theirs = many[1] / few[1], many[2] / few[2]
        text = (
            f"{many[0]:g} layers take {significant(ours)} × the time of {few[0]:g} on the CPU,"
            f" {significant(theirs)} × on the GPU"
            f" ({_beside(lab)}); the CPU reads {significant(min(rates))} to {significant(max(rates))} GB/s of weights"
        )
        is_so = [ours > 1.15, theirs > 1.15]
        why = (
            ""
            if all(is_so)
            else (
                f"On the CPU {best[0]:g} layers are the fastest, and none takes"
                f" {significant(max(p[1] for p in pairs) / best[1])} times that."
            )
        )
        findings.append(Finding(claims[0], "toy", text, judged(is_so), why))
        ratio = few[1] / few[2]
        text = f"the CPU takes {significant(ratio)} × the GPU's time, at {count(n_weights)} weights ({_beside(lab)})"
        findings.append(Finding(claims[1], "toy", text, judged([ratio > 2]), predicted=predicted))
        text = (
            f"{significant(theirs)} × the time for the same weights in {many[0]:g} layers instead of {few[0]:g}"
            f" ({_beside(lab)})"
        )
        findings.append(Finding(claims[2], "toy", text, judged([theirs > 2]), predicted=predicted))
    else:
        findings += [_unknown(lab, each, toys[0].key(CPU)) for each in claims]
    findings += [
        _small(lab),
        Finding(("Training is where GPUs are needed first."), "toy", UNKNOWN, "not measured", "llmrun trains nothing."),
    ]
    return Result(
        tuple(findings),
        _method(lab, f"{count(n_weights)} weights ({size(4 * n_weights)}), one input"),
        (_table(lab, "As many weights, by the number of layers", "layers", rows),),
        {"": _picture(lab, f"{count(n_weights)} weights, one input, by the number of layers", Axis("layers"), rows)},
        _LIMITS,
    )


def _small(lab: Lab) -> Finding:
    """Whether the smallest toy is faster here than on the GPU: measured once more for this."""
    claim = "What does well on a CPU need not be faster on a GPU."
    toy = Toy(WIDTH, N_LAYERS)
    _run(lab, [toy], [1], 0.1)
    pairs = _pairs(lab, [_Row(1, "1", toy, 1)])
    if not pairs:
        return _unknown(lab, claim, toy.key(CPU))
    _, ours, theirs = pairs[0]
    text = (
        f"{toy.n_layers} layers of {toy.width}: {duration(ours)} on the CPU, {duration(theirs)} on the GPU"
        f" ({_beside(lab)})"
    )
    return Finding(claim, "toy", text, judged([ours <= theirs]), predicted=_gpu_of(lab) is None)
