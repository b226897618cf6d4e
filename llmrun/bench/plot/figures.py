"""What a picture of benches shows, in numbers: which panels, axes, lines and points. Nothing is drawn here.

    names ─ open_benches ─► Bench… ─ figure ─► Figure ─┬─ images.py: SVG, PNG
                                                       ├─ text.py:   text, for a terminal
                                                       └─ --json

A point is the mean of its samples' rates and their standard deviation over n-1, as a bench's table has them. Where
several settings vary, one is the x axis, and each combination of the others that tells rows apart is a line; what
follows from them (threads of the batch, from threads) is not said again.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

from llmrun.bench.load_row import QUANTILES, LoadRow
from llmrun.bench.record import Record, Row, deviation, mean
from llmrun.bench.sides import Entry, Setting, Side, open_bench
from llmrun.bench.spec import TestKind
from llmrun.errors import Act, Change, Remedy, UsageError
from llmrun.units import UNKNOWN, bandwidth, significant

Kind = Literal["sweep", "batch", "bars", "roofline", "load"]
Scale = Literal["linear", "log", "symlog"]
Mark = Literal["line", "bar", "dot", "roof"]

MIN_SWEPT = 3
"""Values of a setting from which on a curve says more than bars."""
MAX_TEXT = 60
MAX_NAMES = 3
"""Models or machines that a title lists."""


# -- the description ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One row, or several of the same test and settings.

    Attributes:
        x, y: in the units of the axes; of a bar, x is the number of its group.
        err: standard deviation of y; None: one sample, which says nothing of its spread.
        n: samples.
        label: what stands beside it; empty: nothing.
        limit: roofline only: y of the roof at this x; None: not measured.
        low, high: where the error bar ends, in place of `err`; of a prediction its range.
    """

    x: float
    y: float
    err: float | None = None
    n: int = 1
    label: str = ""
    limit: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def bar(self) -> tuple[float, float] | None:
        """How far the error bar reaches below and above y; None: there is none."""
        if self.low is not None and self.high is not None:
            return self.y - self.low, self.high - self.y
        return None if self.err is None else (self.err, self.err)


@dataclass(frozen=True)
class Series:
    """Points that belong together, by rising x. `label` is empty where there is nothing to tell them from."""

    label: str
    points: tuple[Point, ...]
    mark: Mark = "line"


@dataclass(frozen=True)
class Axis:
    """Attributes:
    label: with the unit.
    scale: "symlog" is logarithmic with a place for 0.
    ticks: positions and what stands there; empty: whoever draws it decides.
    """

    label: str
    scale: Scale = "linear"
    ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    kind: Kind
    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Figure:
    """Attributes:
    title: model, quantization, machine.
    notes: the footnote: what is measured, how many samples, what the error bars are.
    left_out: what is not shown, and why: to be said, not drawn.
    """

    title: str
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(dict.fromkeys(panel.kind for panel in self.panels))


# -- what is drawn -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """One bench. `record` is None where llama-bench wrote it: no ceilings then, and no steps."""

    side: Side
    record: Record | None = None

    @property
    def rows(self) -> tuple[Row | None, ...]:
        """The row of each of the side's entries."""
        if self.record is None:
            return (None,) * len(self.side.entries)
        return tuple(row for row in self.record.rows if row.samples_tps)

    @property
    def loads(self) -> tuple[LoadRow, ...]:
        """Those with an answer, of a bench of a server."""
        return tuple(row for row in self.record.loads if row.answered) if self.record else ()


def open_benches(names: Sequence[str]) -> list[Bench]:
    """Files, ids, "last", as `sides.open_side` takes them. Raises `NotFound` and `UsageError`."""
    return [Bench(*open_bench(name)) for name in names]


def figure(benches: Sequence[Bench], kinds: Sequence[Kind] = (), x: str | None = None) -> Figure:
    """The picture of these benches; without `kinds`, of the kind that fits what varies.

    `x` is the setting of the x axis of a sweep, by its name in the record. Raises `UsageError` where there is nothing
    to draw.
    """
    if any(bench.loads for bench in benches):
        return _figure_of_loads(benches, kinds, x)
    items = _items(benches)
    if not items:
        raise UsageError("no row has samples", hint=Act("bench history show", "last"))
    panels: list[Panel] = []
    left_out: list[str] = []
    for kind in dict.fromkeys(kinds) or [_fitting(benches, items, x)]:
        made, not_shown = _MAKERS[kind](benches, items, x)
        if not made:
            said = f"'{kind}' can't be drawn: {_WANTED[kind]}"
            raise UsageError(said, field="kind", value=kind, hint=_REMEDIES[kind])
        panels += made
        left_out += not_shown
    failed = [row for bench in benches if bench.record for row in bench.record.rows if not row.samples_tps]
    if failed:
        left_out.append(f"not measured: {', '.join(dict.fromkeys(row.test.name for row in failed))}")
    return Figure(_title(benches), tuple(panels), _notes(benches, items, panels), tuple(left_out))


def kinds_of(texts: Iterable[str]) -> list[Kind]:
    """Kinds by their names, several to be split at commas. Raises `UsageError`."""
    found: list[Kind] = []
    for text in ",".join(texts).split(","):
        if text not in get_args(Kind):
            said = f"'{text[:40]}' is none of {', '.join(get_args(Kind))}"
            raise UsageError(said, field="kind", value=text, hint=Change({"kind": "sweep"}))
        found.append(text)  # type: ignore[arg-type]
    return found


# -- what varies -------------------------------------------------------------------------------------------------------

_ORDER = (
    "n_gpu_layers", "devices", "n_cpu_moe", "tensor_buft_overrides", "n_depth", "n_prompt", "n_threads", "n_ubatch",
    "n_batch", "n_gen", "n_seq", "type_k", "type_v", "flash_attn",
)  # fmt: skip
"""Of two settings that tell rows apart equally well, the first one is named. Where it runs comes before how."""

_AXES = {
    "n_threads": "threads",
    "n_threads_batch": "threads for the prompt",
    "n_ubatch": "micro-batch (tokens)",
    "n_batch": "batch (tokens)",
    "n_gpu_layers": "layers on the GPU",
    "n_cpu_moe": "layers with experts on the CPU",
    "n_depth": "depth (tokens in the context before)",
    "n_prompt": "prompt (tokens)",
    "n_gen": "answer (tokens)",
    "n_seq": "sequences in parallel",
}
_TESTS: dict[TestKind, str] = {"pp": "prefill", "tg": "decode", "pg": "prompt and answer", "e2e": "end to end"}


@dataclass(frozen=True)
class _Item:
    """One entry, with everything that may vary by its name. `bench` tells whose it is; empty where there is one."""

    bench: str
    entry: Entry
    row: Row | None
    values: Mapping[str, Setting]

    @property
    def kind(self) -> TestKind:
        return self.entry.test.kind


def _items(benches: Sequence[Bench]) -> list[_Item]:
    made = []
    for label, bench in zip(_labels(benches), benches, strict=True):
        for entry, row in zip(bench.side.entries, bench.rows, strict=True):
            test = entry.test
            sizes = {"n_prompt": test.n_prompt, "n_gen": test.n_gen, "n_depth": test.n_depth, "n_seq": test.n_seq}
            made.append(_Item(label, entry, row, {**sizes, **entry.settings}))
    return made


def _labels(benches: Sequence[Bench]) -> list[str]:
    """The shortest that tells them apart: the model, then with its quantization, the machine, the name as given."""
    if len(benches) < 2:
        return [""] * len(benches)
    tries: list[Callable[[Bench], str]] = [
        _model,
        lambda bench: _joined(_model(bench), _quantization(bench)),
        lambda bench: _plain(bench.side.facts.get("server", "")),
        _machine,
        lambda bench: _plain(bench.side.name),
    ]
    for name in tries:
        found = [name(bench) for bench in benches]
        if len(set(found)) == len(found) and all(found):
            return found
    return [f"{i}: {_plain(bench.side.name)}" for i, bench in enumerate(benches, start=1)]


def _telling(items: Sequence[_Item], key: Callable[[_Item], Any], names: Iterable[str]) -> list[str]:
    """Of `names`, those that tell items with the same key apart; none that follows from those before it."""
    chosen: list[str] = []
    for name in names:
        seen: dict[Any, set[Setting]] = {}
        for item in items:
            seen.setdefault((key(item), *(item.values.get(c) for c in chosen)), set()).add(item.values.get(name))
        if any(len(values) > 1 for values in seen.values()):
            chosen.append(name)
    return chosen


def _names(items: Sequence[_Item]) -> list[str]:
    known = dict.fromkeys(name for item in items for name in item.values)
    return [name for name in _ORDER if name in known] + [name for name in known if name not in _ORDER]


def _said(name: str, value: Setting) -> str:
    """A setting's value as a legend has it: "2 threads", "depth 512", "type_k q8_0"."""
    number = value if isinstance(value, int) and not isinstance(value, bool) else None
    match name:
        case "n_gpu_layers" if number is not None:
            return "CPU" if number == 0 else f"{number} layers on GPU" if number > 0 else "all layers on GPU"
        case "devices":
            return {"none": "CPU", "auto": "all GPUs"}.get(str(value), _plain(str(value)))
        case "n_threads":
            return f"{value} thread{'' if number == 1 else 's'}"
        case "n_seq":
            return f"{value} sequence{'' if number == 1 else 's'}"
        case "n_depth" | "n_prompt" | "n_gen" | "n_ubatch" | "n_batch":
            return f"{ {'n_gen': 'answer'}.get(name, name.removeprefix('n_')) } {value}"
        case "flash_attn":
            return f"flash_attn { {-1: 'auto', 0: 'off', 1: 'on'}.get(number or 0, value) }"
    shown = ("on" if value else "off") if isinstance(value, bool) else UNKNOWN if value is None else str(value)
    return _plain(f"{name} {shown}")


def _lines(items: Sequence[_Item], names: Sequence[str]) -> dict[str, list[_Item]]:
    """Items by the bench and the values of `names`, under the label that says them."""
    found: dict[str, list[_Item]] = {}
    for item in items:
        said = [_said(name, item.values.get(name)) for name in names]
        found.setdefault(", ".join([*([item.bench] if item.bench else []), *said]), []).append(item)
    return found


def _point(x: float, tps: Sequence[float]) -> Point:
    return Point(x, mean(tps) or 0.0, deviation(tps), len(tps))


def _points(items: Iterable[_Item], x: str, rates: Callable[[_Item], Sequence[float]]) -> tuple[Point, ...]:
    """By rising x; what was measured twice is one point."""
    found: dict[float, list[float]] = {}
    for item in items:
        value = _number(item.values.get(x))
        if value is not None:
            found.setdefault(value, []).extend(rates(item))
    return tuple(_point(value, found[value]) for value in sorted(found) if found[value])


def _number(value: Setting) -> float | None:
    """Where on an axis; None for words, and for -1, which means "all" or "auto"."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    return float(value) if good else None  # type: ignore[arg-type]


def _x_axis(name: str, values: Iterable[float]) -> Axis:
    """With a tick where something was measured; logarithmic where the values are powers or grow by factors."""
    known = sorted(set(map(float, values)))
    positive = [value for value in known if value > 0]
    factors = [b / a for a, b in pairwise(positive)]
    scale: Scale = "linear"
    by_one_factor = bool(factors) and 1.5 <= max(factors) < 1.01 * min(factors)
    of_two = all(value.is_integer() and int(value).bit_count() == 1 for value in positive)
    if len(positive) >= MIN_SWEPT and (by_one_factor or of_two):
        scale = "log" if positive == known else "symlog"
    return Axis(_AXES.get(name, name), scale, tuple((value, f"{value:g}") for value in known))


def _by_kind(items: Sequence[_Item]) -> dict[TestKind, list[_Item]]:
    found = {kind: [item for item in items if item.kind == kind] for kind in _TESTS}
    return {kind: some for kind, some in found.items() if some}


def _panel_title(items: Sequence[_Item]) -> str:
    """ "decode, tg128"; only "decode" where several tests are in it."""
    names = {item.entry.test.name for item in items}
    return ", ".join([_TESTS[items[0].kind], *(names if len(names) == 1 else ())])


# -- the kinds ---------------------------------------------------------------------------------------------------------

_Made = tuple[list[Panel], list[str]]
_TPS = Axis("tokens per second")


def _fitting(benches: Sequence[Bench], items: Sequence[_Item], x: str | None) -> Kind:
    if x is not None:
        return "batch" if x == "n_seq" else "sweep"
    if len({item.entry.test.n_seq for item in items}) > 1:
        return "batch"
    for some in _by_kind(items).values():
        swept = _swept(some)
        if swept and len({item.values.get(swept) for item in some}) >= MIN_SWEPT:
            return "sweep"
    if _bars(benches, items, None)[0]:
        return "bars"
    if _roofline(benches, items, None)[0]:
        return "roofline"
    raise UsageError("nothing varies in it, and it has no ceilings", hint=_REMEDIES["sweep"])


def _swept(items: Sequence[_Item]) -> str | None:
    """The number that takes most values; of several the first of `_ORDER`."""
    counts = {}
    for name in _names(items):
        values = {item.values.get(name) for item in items}
        if len(values) > 1 and all(_number(value) is not None for value in values):
            counts[name] = len(values)
    return max(counts, key=lambda name: counts[name]) if counts else None


def _sweep(_: Sequence[Bench], items: Sequence[_Item], x: str | None) -> _Made:
    """A panel for each kind of test: rate against the setting."""
    if x is not None and not any(x in item.values for item in items):
        known = [name for name in _names(items) if _swept([*items]) and name in _AXES]
        hint = Change({"x": known[0] if known else "n_threads"})
        raise UsageError(f"no row has a setting {x[:40]!r}", field="x", value=x, hint=hint)
    panels, left_out = [], []
    for some in _by_kind(items).values():
        swept = x or _swept(some)
        series = _curves(some, swept) if swept else []
        if swept is None or not any(len(each.points) > 1 for each in series):
            left_out.append(f"{_panel_title(some)}: " + (f"{x} does not vary" if x else "nothing varies"))
            continue
        axis = _x_axis(swept, (point.x for each in series for point in each.points))
        panels.append(Panel("sweep", _panel_title(some), axis, _TPS, tuple(series)))
    return panels, left_out


def _curves(items: Sequence[_Item], x: str) -> list[Series]:
    telling = _telling(items, lambda item: (item.bench, item.values.get(x)), _names(items))
    lines = {label: _points(line, x, lambda item: item.entry.tps) for label, line in _lines(items, telling).items()}
    return [Series(label, points) for label, points in lines.items() if points]


def _batch(_: Sequence[Bench], items: Sequence[_Item], __: str | None) -> _Made:
    """All sequences together, and each of them: of decoding where the steps are known, else of the whole test."""
    known = [item for item in items if len({o.entry.test.n_seq for o in items if o.kind == item.kind}) > 1]
    if not known:
        return [], []
    decoded = all(_decode_rates(item) for item in known)

    def together(item: _Item) -> Sequence[float]:
        return _decode_rates(item) if decoded else item.entry.tps

    def each_of(item: _Item) -> Sequence[float]:
        return [tps / item.entry.test.n_seq for tps in together(item)]

    telling = _telling(known, lambda item: (item.bench, item.kind, item.entry.test.n_seq), _names(known))
    lines = _lines(known, telling)
    axis = _x_axis("n_seq", (item.entry.test.n_seq for item in known))
    what = "decode" if decoded else "prompt and answer"
    panels = []
    for title, rates in (("all sequences together", together), ("each sequence", each_of)):
        series = tuple(Series(label, _points(line, "n_seq", rates)) for label, line in lines.items())
        panels.append(Panel("batch", f"{what}, {title}", axis, _TPS, series))
    return panels, []


def _decode_rates(item: _Item) -> Sequence[float]:
    return item.row.samples_decode_tps if item.row else ()


def _bars(_: Sequence[Bench], items: Sequence[_Item], __: str | None) -> _Made:
    """A panel for each kind of test, a group for each test, a bar for each bench and each set of settings."""
    panels, left_out = [], []
    for some in _by_kind(items).values():
        tests = list(dict.fromkeys(item.entry.test.name for item in some))
        telling = _telling(some, lambda item: (item.bench, item.entry.test), _names(some))
        series = []
        for label, line in _lines(some, telling).items():
            rates: dict[int, list[float]] = {}
            for item in line:
                rates.setdefault(tests.index(item.entry.test.name), []).extend(item.entry.tps)
            points = tuple(_point(i, rates[i]) for i in sorted(rates))
            series.append(Series(label, points, "bar"))
        if sum(len(each.points) for each in series) < 2:
            left_out.append(f"{_panel_title(some)}: there is one")
            continue
        axis = Axis("", ticks=tuple(enumerate(tests)))
        panels.append(Panel("bars", _TESTS[some[0].kind], axis, _TPS, tuple(series)))
    return panels, left_out


def _roofline(benches: Sequence[Bench], items: Sequence[_Item], _: str | None) -> _Made:
    """Operations per second against operations per byte read from memory, under the measured roofs.

    The roof of a memory is min(bandwidth · x, operations per second), S. Williams, A. Waterman and D. Patterson:
    Roofline, CACM 52(4), 2009. Each ceiling is the highest of the rows' medians: a row with fewer threads has a lower
    one of its own.
    """
    found: list[tuple[_Item, float, str]] = []
    reads = {item.bench: item.row.step_read_bytes for item in items if item.row and item.row.step_read_bytes}
    for item in items:
        x = _intensity(item, reads.get(item.bench))
        memory = _memory(item)
        if x is not None and memory is not None:
            found.append((item, x, memory))
    if not found:
        return [], []
    telling = _telling([item for item, *_ in found], lambda item: (item.bench, item.entry.test), _names(items))
    series: list[Series] = []
    places = dict.fromkeys((item.bench, memory) for item, _, memory in found)
    roofs = {place: _roof([item for item, _, m in found if (item.bench, m) == place]) for place in places}
    xs = [x for _, x, _ in found]
    xs += [flops / per_s for per_s, flops in roofs.values() if flops]
    left, right = min(xs) / 3, max(xs) * 3
    for (bench, memory), (per_s, flops) in roofs.items():
        corners = [left, *([flops / per_s] if flops else []), right]
        points = tuple(Point(x, _under(x, per_s, flops) / 1e9) for x in corners)
        peak = f", {significant(flops / 1e9)} GFLOP/s" if flops else ""
        series.append(Series(_joined(bench, f"{memory}: {bandwidth(per_s)}{peak}"), points, "roof"))
    place = {id(item): (x, *roofs[item.bench, memory]) for item, x, memory in found}
    for label, line in _lines([item for item, *_ in found], telling).items():
        points = tuple(sorted((_roof_point(item, *place[id(item)]) for item in line), key=lambda p: (p.x, p.y)))
        series.append(Series(label or "measured", points, "dot"))
    shown = {id(item) for item, *_ in found}
    names = dict.fromkeys(item.entry.test.name for item in items if id(item) not in shown)
    left_out = [f"roofline: bytes or ceilings of {', '.join(names)} are not known"] if names else []
    x_axis, y_axis = Axis("operations per byte read", "log"), Axis("operations per second (GFLOP/s)", "log")
    return [Panel("roofline", "roofline", x_axis, y_axis, tuple(series))], left_out


def _intensity(item: _Item, step_reads: Mapping[str, int] | None) -> float | None:
    """Operations per byte: a step of one sequence reads the weights for one token, a prompt once per micro-batch."""
    row = item.row
    if row is None or not row.flops_per_token:
        return None
    if item.kind == "tg" and row.step_read_bytes and sum(row.step_read_bytes.values()):
        return row.flops_per_token / sum(row.step_read_bytes.values())
    if item.kind == "pp" and step_reads and sum(step_reads.values()):
        n_ubatch = _number(item.values.get("n_ubatch")) or 1
        tokens = min(n_ubatch, item.entry.test.n_prompt * item.entry.test.n_seq)
        return row.flops_per_token * tokens / sum(step_reads.values())
    return None


def _memory(item: _Item) -> str | None:
    """The memory that most is read from; of a prompt the fastest, whose device computes it."""
    row = item.row
    if row is None or not row.ceiling_bytes_per_s:
        return None
    medians = {memory: statistics.median(found) for memory, found in row.ceiling_bytes_per_s.items() if found}
    if row.step_read_bytes:
        read = {memory: n for memory, n in row.step_read_bytes.items() if memory in medians}
        return max(read, key=lambda memory: read[memory]) if read else None
    return max(medians, key=lambda memory: medians[memory]) if medians else None


def _roof(items: Sequence[_Item]) -> tuple[float, float | None]:
    """Bytes and operations per second."""
    rows = [(item.row, memory) for item in items if item.row and (memory := _memory(item))]
    per_s = max(statistics.median((row.ceiling_bytes_per_s or {})[memory]) for row, memory in rows)
    flops = [statistics.median(row.ceiling_flops_per_s) for row, _ in rows if row.ceiling_flops_per_s]
    return per_s, max(flops) if flops else None


def _under(x: float, per_s: float, flops: float | None) -> float:
    return x * per_s if flops is None else min(x * per_s, flops)


def _roof_point(item: _Item, x: float, per_s: float, flops: float | None) -> Point:
    assert item.row and item.row.flops_per_token
    giga = item.row.flops_per_token / 1e9
    made = _point(x, [tps * giga for tps in item.entry.tps])
    return Point(x, made.y, made.err, made.n, item.entry.test.name, _under(x, per_s, flops) / 1e9)


_MAKERS: dict[Kind, Callable[[Sequence[Bench], Sequence[_Item], str | None], _Made]] = {
    "sweep": _sweep,
    "batch": _batch,
    "bars": _bars,
    "roofline": _roofline,
    "load": lambda _benches, _items, _x: ([], []),  # of a bench of a server, which is none here
}
_WANTED: dict[Kind, str] = {
    "sweep": "no setting takes several numbers",
    "batch": "the number of sequences does not vary",
    "bars": "there is nothing to set side by side",
    "roofline": "bytes per step and ceilings were not measured",
    "load": "no server was measured",
}
_REMEDIES: dict[Kind, Remedy] = {
    "sweep": Act("bench", "MODEL", {"n_threads": "1,2,4"}),
    "batch": Act("bench", "MODEL", {"n_parallel": "1,2,4,8"}),
    "bars": Act("bench", "MODEL", {"n_gpu_layers": "0,all"}),
    "roofline": Act("bench", "MODEL"),
    "load": Act("bench serve", "MODEL"),
}


# -- loads at servers --------------------------------------------------------------------------------------------------


_Place = Callable[[LoadRow], float | None]
_PLACES: dict[str, _Place] = {"at once": lambda row: row.test.in_flight, "a second": lambda row: row.test.per_s}
"""On the x axis, by how loads are asked."""


def _figure_of_loads(benches: Sequence[Bench], kinds: Sequence[Kind], x: str | None) -> Figure:
    """What all get, what each gets, how long the first token takes, and what each gets against what all get."""
    without = [bench.side.name for bench in benches if not bench.loads]
    if without:
        raise UsageError(f"{without[0]} has no loads at a server: those are drawn by themselves")
    for kind in kinds:
        if kind != "load":
            raise UsageError(f"'{kind}' can't be drawn: loads at a server were measured", field="kind", value=kind)
    if x is not None:
        raise UsageError("loads are drawn by how many are at once, or a second", field="x", value=x)
    named = [(label, bench.loads) for label, bench in zip(_labels(benches), benches, strict=True)]
    panels: list[Panel] = []
    left_out: list[str] = []
    for title, place in _PLACES.items():
        some = [(label, [row for row in rows if place(row) is not None]) for label, rows in named]
        values = {at for _, rows in some for row in rows if (at := place(row)) is not None}
        if len(values) == 1:
            left_out.append(f"{values.pop():g} {title}: there is one")
        elif values:
            panels += _load_panels(some, _x_axis(f"requests {title}", values), place)
    if not panels:
        raise UsageError("nothing varies in it", hint=Act("bench serve", "MODEL", {"concurrency": "1,2,4,8"}))
    return Figure(_title(benches), tuple(panels), _notes_of_loads(benches), tuple(left_out))


def _load_panels(named: Sequence[tuple[str, Sequence[LoadRow]]], x: Axis, place: _Place) -> list[Panel]:
    def curves(figure: Callable[[LoadRow], float | None], said: str = "") -> list[Series]:
        found = []
        for label, rows in named:
            values: dict[float, list[float]] = {}
            for row in rows:
                if (at := place(row)) is not None and (value := figure(row)) is not None:
                    values.setdefault(at, []).append(value)
            points = tuple(_point(at, values[at]) for at in sorted(values))
            found.append(Series(", ".join(filter(None, (label, said))), points))
        return [series for series in found if series.points]

    quantiles = [(f"p{round(100 * q)}", partial(_ttft_s, q)) for q in QUANTILES]
    seconds, first = Axis("seconds"), "time to the first token"
    if len(named) == 1:
        found = [series for name, ttft_s in quantiles for series in curves(ttft_s, name)]
        waiting = [Panel("load", first, x, seconds, tuple(found))]
    else:
        waiting = [Panel("load", f"{first}, {name}", x, seconds, tuple(curves(ttft_s))) for name, ttft_s in quantiles]
    against: list[Series] = []
    for label, rows in named:
        points = [
            # Of several lines one has labels: the others bend where it does.
            Point(row.tokens_per_s, row.tps_each, label="" if against else f"{place(row):g}")
            for row in sorted(rows, key=lambda row: place(row) or 0)
            if row.tokens_per_s and row.tps_each
        ]
        against.append(Series(label, tuple(points)))
    made = [
        Panel("load", "all together", x, _TPS, tuple(curves(lambda row: row.tokens_per_s))),
        Panel("load", "each, behind its first token", x, _TPS, tuple(curves(lambda row: row.tps_each))),
        *waiting,
        Panel(
            "load", "each against all", Axis("tokens per second, all"), Axis("tokens per second, each"), tuple(against)
        ),
    ]
    return [panel for panel in made if any(series.points for series in panel.series)]


def _ttft_s(q: float, row: LoadRow) -> float | None:
    return row.result.ttft_s(q)


def _notes_of_loads(benches: Sequence[Bench]) -> tuple[str, ...]:
    rows = [row for bench in benches for row in bench.loads]
    counts = sorted(len(row.answered) for row in rows)
    lengths = dict.fromkeys(row.test.name_in_full.partition(", ")[2] for row in rows)
    first = f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} answers to a load"
    what = f"words of prompt and tokens of answer: {', '.join(lengths)}"
    builds = dict.fromkeys(f"by {server}" for bench in benches if (server := bench.side.facts.get("server")))
    notes = [" · ".join([first, what, *map(_plain, builds)])]
    if found := dict.fromkeys(code for bench in benches for code in bench.side.warnings):
        notes.append(f"warnings: {', '.join(map(_plain, found))}")
    return tuple(notes)


# -- words -------------------------------------------------------------------------------------------------------------


def _title(benches: Sequence[Bench]) -> str:
    """Model, quantization and machine; what several benches have in common is said once."""
    models = [_joined(_model(bench), _quantization(bench)) for bench in benches]
    return _joined(_listed(models, "models"), _listed(map(_machine, benches), "machines"))


def _listed(names: Iterable[str], what: str) -> str:
    known = [name for name in dict.fromkeys(names) if name]
    return ", ".join(known) if len(known) <= MAX_NAMES else f"{len(known)} {what}"


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def _model(bench: Bench) -> str:
    name = bench.record.model.name if bench.record else bench.side.facts.get("model", "")
    if name.endswith(".gguf"):  # a file: where it lies is nobody's business
        name = re.split(r"[/\\]", name)[-1].removesuffix(".gguf")
    return _plain(name)


def _quantization(bench: Bench) -> str:
    """Empty where the model's name has it already."""
    known = (bench.record.model.quantization if bench.record else None) or ""
    return "" if known.lower() in _model(bench).lower() else _plain(known)


def _machine(bench: Bench) -> str:
    """The CPU's name without what every name has, and the GPUs that a row used."""
    cpu = re.sub(r"\((R|TM|tm)\)| CPU| Processor| @.*", "", bench.side.facts.get("cpu", ""))
    used = {name for row in bench.rows if row for name in _devices(row.settings.get("layers"))}
    devices = bench.record.machine.devices if bench.record else ()
    gpus = [_plain(device.description) for device in devices if device.name in used and device.kind != "cpu"]
    return " + ".join([*([_plain(" ".join(cpu.split()))] if cpu else []), *dict.fromkeys(gpus)])


def _devices(layers: Any) -> set[str]:
    return {name for name in layers if isinstance(name, str)} if isinstance(layers, list | tuple) else set()


def _notes(benches: Sequence[Bench], items: Sequence[_Item], panels: Sequence[Panel]) -> tuple[str, ...]:
    points = [p for panel in panels for each in panel.series if each.mark != "roof" for p in each.points]
    counts = sorted({point.n for point in points})
    n = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    spread = "error bars: standard deviation" if any(p.err is not None for p in points) else "spread not known"
    first = [f"mean of {n} sample{'' if counts[-1] == 1 else 's'}, {spread}"]
    threads = {item.values.get("n_threads") for item in items}
    if len(threads) == 1 and (only := threads.pop()) is not None:
        first.append(_said("n_threads", only))
    facts = [bench.side.facts for bench in benches]
    builds = dict.fromkeys(f"{name} {each[name]}" for name in ("llmrun", "ggml") for each in facts if each.get(name))
    notes = [" · ".join([*first, *map(_plain, builds)])]
    if any(panel.kind == "roofline" for panel in panels):
        roof = "roof: plain reads and matrix products, measured beside the samples"
        notes.append(f"{roof}; a prompt reads the weights once per micro-batch")
    if found := dict.fromkeys(code for bench in benches for code in bench.side.warnings):
        notes.append(f"warnings: {', '.join(map(_plain, found))}")
    return tuple(notes)


def _plain(text: str) -> str:
    """One line that an SVG can hold, and not without end: a record's texts may be anybody's."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= MAX_TEXT else shown[: MAX_TEXT - 1] + "…"
