"""Where the figures of a rerun are expected: invented machines that draw samples, and what a rerun then gives."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from llmrun.experiments.spread import Noise, Spread, of_samples


def samples(chance: random.Random, at: float, scatter: float, now: float, n: int) -> list[float]:
    return [at * math.exp(chance.gauss(0, scatter) + now) for _ in range(n)]


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize(("scatter", "moves"), [(0.02, 0.0), (0.03, 0.05), (0.01, 0.1)])
def test_a_rerun_is_within(n: int, scatter: float, moves: float) -> None:
    """Of a machine that scatters so much from sample to sample, and moves so much from run to run: about 19 of 20
    figures of a second run lie within the interval of the first one."""
    chance = random.Random(1)
    held = of = 0
    for _ in range(200):
        moments = [[1e-3 * math.exp(chance.gauss(0, moves)) for _ in range(30)]]
        now, later = (chance.gauss(0, moves) for _ in range(2))
        cells = [samples(chance, at, scatter, now, n) for at in (1e-3, 0.5, 20, 300, 7, 7, 7, 7)]
        noise = Noise.of(cells, moments)
        for at, cell in zip((1e-3, 0.5, 20, 300), cells, strict=False):
            found = noise.spread(cell)
            assert found is not None and found.median == statistics.median(cell)
            again = statistics.median(samples(chance, at, scatter, later, n))
            held, of = held + (found.low <= again <= found.high), of + 1
    assert 0.9 <= held / of <= 0.995


def test_one_disturbed_cell_is_not_all() -> None:
    """Its own interval is wide, those of the others are not."""
    quiet = [[1.0, 1.01, 0.99], [2.0, 2.02, 1.98], [3.0, 3.03, 2.97]]
    noise = Noise.of([*quiet, [1.0, 5.0, 0.2]])
    wide, narrow = noise.spread([1.0, 5.0, 0.2]), noise.spread(quiet[0])
    assert wide and narrow and wide.high > 3 and 1.01 < narrow.high < 1.06


def test_what_has_no_width() -> None:
    """One sample, what is the same each time, and what is no rate and no time."""
    noise = Noise.of([[1.0, 1.1, 0.9]], [[1.0, 1.2]])
    assert noise.spread([]) is None
    assert noise.spread([2.0]) == Spread(2.0, 2.0, 2.0, 1)
    assert noise.spread([7.0, 7.0, 7.0]) == Spread(7.0, 7.0, 7.0, 3)
    assert noise.spread([0.0, 1.0]) == Spread(0.5, 0.0, 1.0, 2)


def test_series_of_samples() -> None:
    assert of_samples({"a": [{"x": 1.0, "y": None}, {"x": 2.0, "z": 3.0}], "b": []}) == [[1.0, 2.0], [], [3.0]]


def test_texts() -> None:
    assert Spread(2.0, 1.0, 3.0, 3).text() == "2.00 (1.00 to 3.00)"
    assert Spread(2.0, 2.0, 2.0, 1).text(1e3) == "2000"
    point = Spread(2.0, 1.0, 4.0, 3).point(8, 10)
    assert (point.x, point.y, point.bar) == (8, 20.0, (10.0, 20.0))
