"""A picture as an SVG or PNG file: the only door to matplotlib, which is an extra and imported late.

The same description gives the same bytes with the same matplotlib: no date, no random ids, no settings of the user's.
Text in an SVG stays text, to be found and read aloud. Nothing here opens a window: pyplot is not imported.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmrun import fs
from llmrun.bench.plot.figures import Axis, Figure, Panel, Point, Series
from llmrun.errors import Change, UsageError
from llmrun.units import significant

FORMATS = ("svg", "png")

# M. Okabe and K. Ito, Color Universal Design, 2008: told apart by those who see fewer colours, too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = "os^DvPX"
_STYLES = ("-", "--", ":")
_GREY = "#555555"

# Inches. A README shows pictures some 800 pixels wide.
_PANEL_WIDTH, _PANEL_HEIGHT = 4.4, 3.1
_NARROWEST = 6.2
_LINE = 0.19
_DPI = 150
_LABEL_HEIGHT = 9.5
_LABEL_WIDTH = 0.56 * (_LABEL_HEIGHT - 2)
"""Of a character, about."""
"""Points, as fonts are measured in."""
_POINT = 3.0
"""Half of what a marker takes, in points."""

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "llmrun",
    "text.parse_math": False,  # a model's name may have dollars
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "errorbar.capsize": 3.0,
}


def format_of(path: Path) -> str:
    """ "svg" or "png", by the file's suffix. Raises `UsageError`."""
    suffix = path.suffix[1:].lower()
    if suffix not in FORMATS:
        hint = Change({"output": f"{path.stem or 'x'}.svg"})
        raise UsageError(f"{path.name!r} is neither .svg nor .png", field="output", value=path, hint=hint)
    return suffix


def write(figure: Figure, path: Path) -> None:
    """The picture as a file, whole or not at all; a link stays one. Raises `UsageError` and `DiskError`."""
    data = render(figure, format_of(path))
    with fs.disk_errors(f"writing {path}"):
        fs.write_atomically(Path(os.path.realpath(path)), data)


def render(figure: Figure, format: str) -> bytes:
    """The bytes of such a file. Raises `UsageError` without matplotlib."""
    require()
    import matplotlib

    buffer = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")  # a glyph that no font has is a box, and no reason to talk
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        drawn = _drawn(figure)
        about: dict[str, Any] = {"Date": None, "Creator": "llmrun"} if format == "svg" else {"Software": "llmrun"}
        drawn.savefig(buffer, format=format, dpi=_DPI, metadata=about)
    return buffer.getvalue()


def require() -> None:
    """Raises `UsageError`, with the command that installs what is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        # An environment made by uv has no pip.
        with_pip = importlib.util.find_spec("pip") is not None
        python = shlex.quote(sys.executable)
        pip = f"{python} -m pip install" if with_pip else f"uv pip install --python {python}"
        raise UsageError(
            f"an SVG or PNG is drawn by matplotlib, which is not installed ({error})", hint=f"{pip} matplotlib"
        ) from None


def _drawn(figure: Figure) -> Any:
    from matplotlib.figure import Figure as Drawn

    n_columns = min(2, len(figure.panels))
    n_rows = math.ceil(len(figure.panels) / n_columns)
    width = max(_NARROWEST, _PANEL_WIDTH * n_columns)
    looks = _looks(figure)
    legend = _Legend(looks, width)
    below = 0.1 + _LINE * 0.85 * len(figure.notes) + legend.height
    above = 0.38
    height = above + _PANEL_HEIGHT * n_rows + below
    drawn = Drawn(figsize=(width, height), layout="constrained")
    engine: Any = drawn.get_layout_engine()
    engine.set(rect=(0.01, below / height, 0.98, (height - above - below) / height))
    # A letter of this font is some 0.65 of its size wide.
    fitting = width * 72 / 0.65 / max(1, len(figure.title))
    drawn.text(0.012, 1 - 0.2 / height, figure.title, fontsize=min(11.0, fitting), fontweight="bold", va="center")
    for i, line in enumerate(reversed(figure.notes)):
        drawn.text(0.012, (0.08 + _LINE * 0.85 * i) / height, line, fontsize=7, color=_GREY, va="bottom")
    for i, panel in enumerate(figure.panels):
        # The last one of an odd number has its row to itself.
        last = i + 1 if i + 1 < len(figure.panels) else n_rows * n_columns
        axes = drawn.add_subplot(n_rows, n_columns, (i + 1, last))
        axes.set_title(panel.title, loc="left")
        _draw_axis(axes.xaxis, panel.x)
        _draw_axis(axes.yaxis, panel.y)
        if panel.kind == "bars":
            _draw_bars(axes, panel, looks)
        else:
            _draw_lines(axes, panel, looks)
        if panel.y.scale == "linear":
            axes.set_ylim(bottom=0)  # half as high is half as fast
    legend.draw(drawn, below - legend.height - 0.04, height)
    drawn.draw_without_rendering()  # everything has its place now, among which labels find theirs
    for panel, axes in zip(figure.panels, drawn.axes, strict=True):
        if panel.kind != "bars":
            _draw_labels(axes, [series for series in panel.series if series.mark != "roof"])
    return drawn


_Looks = dict[tuple[str, bool], dict[str, Any]]


def _looks(figure: Figure) -> _Looks:
    """A colour for each label, the same in every panel; roofs are grey."""
    made: _Looks = {}
    for panel in figure.panels:
        for series in panel.series:
            key = (series.label, series.mark == "roof")
            if key in made:
                continue
            i = sum(roof == key[1] for _, roof in made)
            style = _STYLES[i // len(_COLOURS) % len(_STYLES)]
            look: dict[str, Any] = {
                "color": _COLOURS[i % len(_COLOURS)],
                "marker": _MARKERS[i % len(_MARKERS)],
                "linestyle": style,
            }
            if series.mark == "dot":
                look["linestyle"] = "none"
            if series.mark == "bar":
                look |= {"marker": "s", "linestyle": "none", "markersize": 7}
            made[key] = {"color": _GREY, "marker": "", "linestyle": _STYLES[i % len(_STYLES)]} if key[1] else look
    return made


class _Legend:
    """One for all panels, below them; none where there is one label, or none."""

    def __init__(self, looks: _Looks, width: float) -> None:
        labels = {key: look for key, look in looks.items() if key[0]}
        self._labels = labels if len(labels) > 1 else {}
        longest = max((len(label) for label, _ in self._labels), default=1)
        self._n_columns = max(1, min(4, len(self._labels), int(width / (0.5 + 0.075 * longest))))
        self.height = 0.1 + _LINE * math.ceil(len(self._labels) / self._n_columns) if self._labels else 0.0

    def draw(self, drawn: Any, bottom: float, height: float) -> None:
        if not self._labels:
            return
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], label=label, **look) for (label, _), look in self._labels.items()]
        drawn.legend(
            handles=handles,
            loc="lower center",
            bbox_to_anchor=(0.5, bottom / height),
            ncols=self._n_columns,
            frameon=False,
            fontsize=8,
            borderaxespad=0.0,
            borderpad=0.2,
        )


def _draw_lines(axes: Any, panel: Panel, looks: _Looks) -> None:
    for series in panel.series:
        look = dict(looks[series.label, series.mark == "roof"])
        xs, ys = [p.x for p in series.points], [p.y for p in series.points]
        if series.mark == "roof":
            axes.plot(xs, ys, linewidth=1.2, **look)
            continue
        axes.errorbar(xs, ys, yerr=_errors(series), **{"linewidth": 1.5, "markersize": 4.5, "elinewidth": 1.0, **look})


def _errors(series: Series) -> list[list[float]] | None:
    """Below and above each point."""
    bars = [point.bar for point in series.points]
    if not any(bars):
        return None
    return [[max(0.0, bar[side]) if bar else math.nan for bar in bars] for side in (0, 1)]


def _draw_labels(axes: Any, drawn: Sequence[Series]) -> None:
    """Beside the highest point of each label, on the side of the farther edge; moved where it would lie upon another
    label, a point or a line."""
    highest: dict[str, Point] = {}
    for point in sorted((point for series in drawn for point in series.points), key=lambda p: p.y):
        if point.label:
            highest[point.label] = point
    if not highest:
        return
    scale = 72 / axes.figure.dpi
    (left, _), (right, _) = (axes.transAxes.transform((edge, 0.5)) * scale for edge in (0, 1))
    paths = [[axes.transData.transform((p.x, p.y)) * scale for p in series.points] for series in drawn]
    boxes = [(x - _POINT, x + _POINT, y - _POINT, y + _POINT) for path in paths for x, y in path]
    lines = [box for series, path in zip(drawn, paths, strict=True) if series.mark == "line" for box in _along(path)]
    for point in sorted(highest.values(), key=lambda p: -p.y):
        x, y = axes.transData.transform((point.x, point.y)) * scale
        width = _LABEL_WIDTH * len(point.label)
        sides = (-1, 1) if x > (left + right) / 2 else (1, -1)
        tries = [(side, step * _LABEL_HEIGHT) for step in (0, -1, 1, -2, 2, -3, 3) for side in sides]
        placed = [(side, down, _box(x, y + down, side * width)) for side, down in tries]
        inside = [each for each in placed if left <= each[2][0] and each[2][1] <= right]
        free = [each for each in inside if not any(_overlap(each[2], box) for box in boxes)]
        # A line may be crossed, rather than that the label is far from its point.
        clear = [e for e in free if abs(e[1]) <= _LABEL_HEIGHT and not any(_overlap(e[2], box) for box in lines)]
        side, down, box = (clear or free or inside or placed)[0]
        boxes.append(box)
        label = axes.annotate(
            point.label,
            (point.x, point.y),
            xytext=(8 * side, down),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=_LABEL_HEIGHT - 2,
        )
        label.set_in_layout(False)


def _along(path: Sequence[Sequence[float]]) -> Iterator[tuple[float, float, float, float]]:
    """Small boxes in a row on the lines between these places."""
    for (x, y), (to_x, to_y) in pairwise(path):
        n = math.ceil(math.dist((x, y), (to_x, to_y)) / _POINT)
        for at_x, at_y in ((x + (to_x - x) * i / n, y + (to_y - y) * i / n) for i in range(1, n)):
            yield at_x - 1, at_x + 1, at_y - 1, at_y + 1


def _box(x: float, y: float, width: float) -> tuple[float, float, float, float]:
    """Left, right, bottom, top in points; of a negative width it lies to the left."""
    begin, end = sorted((x + math.copysign(8, width), x + math.copysign(8, width) + width))
    return begin, end, y - _LABEL_HEIGHT / 2, y + _LABEL_HEIGHT / 2


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] - 0.5 and b[2] < a[3] - 0.5


def _draw_bars(axes: Any, panel: Panel, looks: _Looks) -> None:
    n = len(panel.series)
    width = 0.8 / n
    for i, series in enumerate(panel.series):
        at = [point.x - 0.4 + width * (i + 0.5) for point in series.points]
        look = looks[series.label, False]
        ys = [point.y for point in series.points]
        axes.bar(at, ys, width * 0.9, color=look["color"], yerr=_errors(series), error_kw={"elinewidth": 1.0})
        for x, point in zip(at, series.points, strict=True):
            top = point.y + (point.bar or (0.0, 0.0))[1]
            said = significant(point.y)
            axes.annotate(said, (x, top), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7.5)
    axes.margins(y=0.12)
    axes.grid(visible=False, axis="x")


def _draw_axis(axis: Any, described: Axis) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    axes = axis.axes
    set_scale = axes.set_xscale if axis is axes.xaxis else axes.set_yscale
    positions = [place for place, _ in described.ticks]
    if described.scale == "symlog":
        # What lies between 0 and the first power takes as much room as one power.
        first = min(place for place in positions if place > 0)
        set_scale("symlog", base=2, linthresh=first, linscale=0.7)
    elif described.scale == "log":
        set_scale("log", base=2 if described.ticks else 10)
    axis.set_label_text(described.label)
    if described.ticks:
        every = math.ceil(len(positions) / 12)
        axis.set_major_locator(FixedLocator(positions[::every]))
        names = dict(described.ticks)
        axis.set_major_formatter(FuncFormatter(lambda value, _: names.get(value, "")))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
