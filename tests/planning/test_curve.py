"""Layers for speed: sums that can be done by hand."""

from __future__ import annotations

import pytest

from llmrun.gguf.shapes import Shape
from llmrun.gguf.synth import header_of
from llmrun.planning.footprint import CPU, Placement
from llmrun.planning.predict.curve import Costs, Curve, Home, Point, homes
from llmrun.planning.predict.prediction import Range

COSTS = Costs(
    {Home(CPU): 2.0, Home("A"): 1.0, Home("A", experts_in_ram=True): 1.5, Home("B"): 4.0},
    {CPU: 100.0, "A": 50.0, "B": 200.0},
    {"A": 7.0, "B": 9.0},
)
"""Seconds of a byte; what is outside of the layers; what handing over takes."""


def placed(*devices: str) -> list[Home]:
    return [Home(device) for device in devices]


def test_seconds_add_up() -> None:
    """Layers of 10 and 20 bytes; what is outside where the output lies; a device without it is handed over to, once."""
    sizes = (10, 20)
    assert COSTS.seconds(placed(CPU, CPU, CPU), sizes) == 30 * 2 + 100
    assert COSTS.seconds(placed(CPU, CPU, "A"), sizes) == 30 * 2 + 50
    assert COSTS.seconds(placed(CPU, "A", "A"), sizes) == 10 * 2 + 20 * 1 + 50
    assert COSTS.seconds(placed("A", "A", "B"), sizes) == 30 * 1 + 7 + 200
    assert COSTS.seconds([Home("A", experts_in_ram=True), *placed("A", "A")], sizes) == 10 * 1.5 + 20 * 1 + 50


def test_experts_in_ram() -> None:
    """Of the first layers, where they lie on a device and have experts at all."""
    shape = Shape(4, 256, 512, 4, 2, 512, arch="deepseek2", n_expert=8, n_expert_used=2, n_dense_lead=1)
    mixture = header_of(shape, "Q8_0")
    layers = Placement((CPU, "A", "A", "A", "A"))
    assert homes(mixture, layers, 0) == (Home(CPU), *placed("A", "A", "A", "A"))
    in_ram = Home("A", experts_in_ram=True)
    assert homes(mixture, layers, 3) == (Home(CPU), in_ram, in_ram, *placed("A", "A"))
    all_on = Placement(("A",) * 5)
    assert homes(mixture, all_on, 4) == (Home("A"), in_ram, in_ram, in_ram, Home("A"))


def curve(*seconds: float) -> Curve:
    """Of one token with 0, 1, 2 ... layers, each of 100 bytes."""
    points = tuple(
        Point(n, None, (n,), 100 * n, Range.around(10 * each, 1.1), Range.around(each, 1.1))
        for n, each in enumerate(seconds)
    )
    return Curve(("A",), 8, 0, points)


def test_best_and_where_it_crosses() -> None:
    """The first layer costs more than it gains, as handing over does."""
    found = curve(1.0, 1.2, 1.1, 0.9, 0.8, 0.95)
    assert found.best.n_gpu_layers == 4 and found.crosses_cpu_at == 3
    assert curve(1.0, 1.2, 1.4).crosses_cpu_at is None and curve(1.0, 1.2).best.n_gpu_layers == 0
    without = Curve(("A",), 8, 0, found.points[1:])
    assert without.alone is None and without.crosses_cpu_at is None


@pytest.mark.parametrize(
    ("seconds", "run"),
    [
        ((9, 8, 7, 6, 5, 4, 3, 5, 7), [0, 3, 6, 8]),
        ((1, 2, 3, 4, 5), [0, 2, 4]),
        ((5, 4, 3, 2, 1), [0, 2, 4]),
        ((1, 2), [0, 1]),
        ((1,), [0]),
    ],
)
def test_what_is_run(seconds: tuple[float, ...], run: list[int]) -> None:
    """Both ends, the best, and the middle of the widest gap."""
    assert curve(*seconds).to_confirm() == run


def test_runs_correct_what_lies_between() -> None:
    """Twice as slow at one end, four times at the other: in the middle the root of eight."""
    found = curve(1.0, 1.0, 1.0).corrected({0: (20.0, 2.0), 2: (10.0, 4.0)})
    first, middle, last = found.points
    assert (first.step_s.mid, last.step_s.mid) == (2.0, 4.0) and middle.step_s.mid == pytest.approx(8**0.5)
    assert middle.prefill_s.mid == pytest.approx(10 * 2**0.5) and last.prefill_s.mid == 10
    assert middle.step_s.high / middle.step_s.low == pytest.approx(1.1**2)
    assert (first.measured_step_s, middle.measured_step_s) == (2.0, None)
    assert curve(1.0, 2.0).corrected({}) == curve(1.0, 2.0)


def test_one_run_corrects_all() -> None:
    found = curve(1.0, 1.0, 1.0).corrected({1: (10.0, 3.0)})
    assert [point.step_s.mid for point in found.points] == [3.0, 3.0, 3.0]
