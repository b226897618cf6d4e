"""Tokens per second by layers on devices (`planning.predict.curve`) as a figure."""

from __future__ import annotations

from collections.abc import Iterable

from llmrun.bench.plot.figures import Axis, Figure, Panel, Point, Series
from llmrun.planning.predict import curve as layers
from llmrun.planning.predict.curve import Curve

_TPS = Axis("tokens per second")


def figure(curve: Curve, title: str) -> Figure:
    """Decoding by the number of layers, and of a mixture by how many layers keep their experts in RAM."""
    least = min(point.n_cpu_moe or 0 for point in curve.points)
    whole = [point for point in curve.points if (point.n_cpu_moe or 0) == least]
    n_all = max(point.n_gpu_layers for point in curve.points)
    thin = [point for point in curve.points if point.n_gpu_layers == n_all and point.n_cpu_moe is not None]
    panels = [_panel("decode", "layers on devices", ((point.n_gpu_layers, point) for point in whole), curve)]
    if len(thin) > 1:
        by_experts = ((point.n_cpu_moe or 0, point) for point in reversed(thin))
        panels.append(_panel("all layers on devices", "layers whose experts stay in RAM", by_experts, curve))
    return Figure(title, tuple(panels), (f"behind {curve.n_depth} tokens",))


def _panel(title: str, x: str, found: Iterable[tuple[int, layers.Point]], curve: Curve) -> Panel:
    points = [*found]
    lines = [Series("predicted", tuple(Point(at, 1 / point.step_s.mid) for at, point in points))]
    measured = tuple(Point(at, 1 / point.measured_step_s) for at, point in points if point.measured_step_s)
    if measured:
        lines.append(Series("measured", measured, "dot"))
    if curve.alone is not None:
        lines.append(Series("CPU alone", tuple(Point(at, 1 / curve.alone.step_s.mid) for at, _ in points), "roof"))
    return Panel("sweep", title, Axis(x), _TPS, tuple(lines))
