"""The same picture as text: bars for a terminal, and a line of samples in a few characters. No colour, no cursor."""

from __future__ import annotations

from collections.abc import Sequence

from llmrun.bench.plot.figures import Figure, Panel, Point, Series
from llmrun.units import UNKNOWN, percent, significant

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"
NARROWEST_BAR = 8
WIDEST = 100


def sketch(figure: Figure, width: int) -> str:
    """The figure in lines of at most `width` characters, where labels leave room for that."""
    blocks = [figure.title, *(_panel(panel, min(width, WIDEST)) for panel in figure.panels), "\n".join(figure.notes)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def bar(share: float, width: int) -> str:
    """A share of one as a bar of eighths of a character; something above 0 is never nothing."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    if share > 0:
        eighths = max(1, eighths)
    full, rest = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")


def sparkline(values: Sequence[float]) -> str:
    """A character for each, from the lowest to the highest of them; what is all the same is in the middle."""
    if not values:
        return ""
    low, high = min(values), max(values)
    if high == low:
        return _LEVELS[3] * len(values)
    return "".join(_LEVELS[round((value - low) / (high - low) * (len(_LEVELS) - 1))] for value in values)


def _panel(panel: Panel, width: int) -> str:
    if panel.kind == "roofline":
        return _roofline(panel, width)
    by = panel.x.label or "test"
    title = f"{panel.title} · {panel.y.label}, by {by}"
    highest = max(point.y for series in panel.series for point in series.points)
    rows: list[tuple[str, float, str]] = []
    if panel.kind == "bars":
        longest = max(len(test) for _, test in panel.x.ticks)
        for place, test in panel.x.ticks:
            bars = [(series.label, p) for series in panel.series for p in series.points if p.x == place]
            rows += [(f"{test:<{longest}}  {label}".rstrip(), p.y / highest, _value(p)) for label, p in bars]
        return "\n".join([title, *_rows(rows, width)])
    names = dict(panel.x.ticks)
    blocks = []
    for series in panel.series:
        rows = [(names.get(p.x) or _place(p), p.y / highest, _value(p)) for p in series.points]
        blocks += [*_heading(series, panel), *_rows(rows, width, ">")]
    return "\n".join([title, *blocks])


def _heading(series: Series, panel: Panel) -> list[str]:
    return [f"  {series.label}"] if series.label and len(panel.series) > 1 else []


def _roofline(panel: Panel, width: int) -> str:
    """Two logarithmic axes are not for text: how near each row comes to its roof is."""
    roofs = [series.label for series in panel.series if series.mark == "roof"]
    dots = [series for series in panel.series if series.mark != "roof"]
    several, longest = len(dots) > 1, max(len(point.label) for series in dots for point in series.points)
    rows = []
    for series in dots:
        for point in series.points:
            share = point.y / point.limit if point.limit else None
            label = f"{point.label:<{longest}}  {series.label if several else ''}".rstrip()
            rows.append((label, share or 0.0, f"{percent(share)} of {significant(point.limit)} GFLOP/s"))
    return "\n".join([f"{panel.title} · share of the roof ({'; '.join(roofs)})", *_rows(rows, width)])


def _rows(rows: Sequence[tuple[str, float, str]], width: int, align: str = "<") -> list[str]:
    """Label, bar, value: one below the other."""
    label = max(len(name) for name, _, _ in rows)
    value = max(len(text) for _, _, text in rows)
    room = max(NARROWEST_BAR, width - label - value - 6)
    return [f"  {name:{align}{label}}  {bar(share, room):<{room}}  {text}" for name, share, text in rows]


def _place(point: Point) -> str:
    return f"{point.label}: {significant(point.x)}" if point.label else f"{point.x:g}"


def _value(point: Point) -> str:
    spread = "" if point.err is None else f" ± {significant(point.err, 2)}"
    if point.low is not None and point.high is not None:
        spread = f" ({significant(point.low)} to {significant(point.high)})"
    return (significant(point.y) if point.y else UNKNOWN) + spread
