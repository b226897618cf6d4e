"""Where the figures of a rerun are expected: by how far samples differ, and by how far the machine itself moves.

A figure is the median of n samples, and so is that of a rerun. Logarithms of samples are taken to be normal, with the
variance s² of their own cell, pulled to what is usual of the experiment's cells, as three samples alone say little;
what the machine does meanwhile, which all samples of a run share, has the variance m². Two such medians differ by

    t · √(2 · (v(n) · s² + m²))        v(n): the variance of a median of n, of a normal distribution

at most, 19 times of 20. m is of `moments`: how fast the machine reads and multiplies, again and again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmrun.bench.plot.figures import Point
from llmrun.units import significant

BARS = "error bars: where a rerun is expected, 19 times of 20"

_PRIOR = 4
"""Degrees of freedom that what is usual of all cells counts as."""
_T = {4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31}
"""Student's distribution: 19 of 20 lie within, by degrees of freedom."""
_MEDIAN_OF = {1: 1.0, 2: 0.5, 3: 0.449}
"""Variance of a median, by samples; of more about π/2 ÷ n."""
_USUAL = {2: 0.455, 3: 0.693}
"""The median of a variance estimated from so many samples, where the real one is 1 (χ² ÷ degrees of freedom)."""


@dataclass(frozen=True)
class Spread:
    """A figure. `low`, `high`: between them that of a rerun is expected; `n`: samples that it is the median of."""

    median: float
    low: float
    high: float
    n: int

    def point(self, x: float, scale: float = 1.0, label: str = "") -> Point:
        """In a picture, with its error bar."""
        low, high = (self.low * scale, self.high * scale) if self.n > 1 else (None, None)
        return Point(x, self.median * scale, None, self.n, label, low=low, high=high)

    def text(self, scale: float = 1.0, digits: int = 3) -> str:
        """ "41.8 (40.9 to 42.7)"."""
        middle, low, high = (significant(each * scale, digits) for each in (self.median, self.low, self.high))
        return middle if self.n < 2 or low == high else f"{middle} ({low} to {high})"


@dataclass(frozen=True)
class Noise:
    """How far figures of an experiment differ from one time to the next, as variances of logarithms.

    Attributes:
        usual: of samples of a cell.
        moved: of what the machine does.
    """

    usual: float = 0.0
    moved: float = 0.0

    @classmethod
    def of(cls, cells: Iterable[Sequence[float]], moments: Iterable[Sequence[float]] = ()) -> Noise:
        """By the samples of each figure, and by what was timed of the machine, each a series."""
        usual = [found / _USUAL.get(len(values), 1.0) for values in cells if (found := _variance(values)) is not None]
        moved = [found for values in moments if (found := _variance(values)) is not None]
        return cls(statistics.median(usual) if usual else 0.0, max(moved, default=0.0))

    @property
    def usual_by(self) -> float:
        """Samples of a cell, as a share: one standard deviation."""
        return math.expm1(math.sqrt(self.usual))

    @property
    def moved_by(self) -> float:
        """What the machine did, as a share: one standard deviation."""
        return math.expm1(math.sqrt(self.moved))

    def spread(self, values: Sequence[float]) -> Spread | None:
        """None without samples. What is no rate and no time, or the same each time, has no width."""
        if not values:
            return None
        middle, n = statistics.median(values), len(values)
        own = _variance(values)
        if own is None:
            return Spread(middle, min(values), max(values), n)
        of_one = (_PRIOR * self.usual + (n - 1) * own) / (_PRIOR + n - 1)
        of_median = _MEDIAN_OF.get(n, math.pi / 2 / n) * of_one
        factor = math.exp(_T.get(_PRIOR + n - 1, 2.2) * math.sqrt(2 * (of_median + self.moved)))
        return Spread(middle, middle / factor, middle * factor, n)


def _variance(values: Sequence[float]) -> float | None:
    """Of their logarithms; None of what has none, of one alone, and of what is the same each time."""
    if len(values) < 2 or min(values) <= 0 or min(values) == max(values):
        return None
    return statistics.variance([math.log(each) for each in values])


def of_samples(samples: Mapping[str, Sequence[Mapping[str, float | None]]]) -> list[list[float]]:
    """The series of each figure of each cell."""
    found = []
    for each in samples.values():
        for name in dict.fromkeys(name for values in each for name in values):
            series = [value for values in each if (value := values.get(name)) is not None]
            found.append(series)
    return found
