"""Two benches side by side: how much faster is B, and is that more than chance?

Samples of speed are no bell curve. Whatever disturbs a run makes it slower, never faster, so that a mean and its
deviation are led by the one sample that was disturbed. What is used here asks for no distribution, holds exactly for
five samples, and shrugs at one that is off:

- Two runs: the ratio is the median of all n·m quotients bⱼ/aᵢ (Hodges and Lehmann, 1963: of the logarithms, the shift
  between the two). Its interval is cut from the same quotients, in order, at the ranks that the distribution of
  Mann and Whitney's U gives. Below four samples a side, not even all of them make 95 %: there is no interval.
- Pairs, taken in turn: the median of the pairs' ratios, which a drift of the machine leaves alone, as both of a pair
  had it. Its interval goes between two of the ratios, in order, by the sign test; it takes six pairs.

Of a load at a server, each answer is a sample: of its time to the first token and to the last, and of its rate between.
Of all answers together there is one rate, so that an interval takes four loads of the same kind.

Both assume samples that know nothing of each other, and two runs at different times are not only chance apart: the
machine is warmer, has other neighbours, other pages. Within `NOISE` of 1 a difference between two runs is therefore
none. To see less than that, take the samples in turn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, product, takewhile
from typing import Any, Literal

from llmrun.bench.sides import Entry, LoadEntry, LoadMeasure, Setting, Side
from llmrun.bench.spec import Test
from llmrun.errors import UsageError

LEVEL = 0.95
NOISE = 0.01
"""Two runs of the same thing at different times differ by so much, beyond what their samples tell."""
WIDE = 0.1
"""An interval that reaches so far from 1 to either side does not say "same"."""
MIN_SAMPLES = 4
MIN_PAIRS = 6

Word = Literal["faster", "slower", "same", "unclear", "too few samples"]


@dataclass(frozen=True)
class Comparison:
    """B against A.

    Attributes:
        n_a, n_b: samples.
        median_a, median_b: of their rates, in tokens per second.
        ratio: B's rate over A's; above 1 B is faster. See above for how: it need not be the medians' quotient.
        low, high: the interval that holds the true ratio with 95 % confidence or a little more; None: too few samples.
        paired: the i-th sample of A and of B were taken one right after the other.
    """

    n_a: int
    n_b: int
    median_a: float
    median_b: float
    ratio: float
    low: float | None
    high: float | None
    paired: bool

    @property
    def word(self) -> Word:
        """ "faster" or "slower" when the whole interval is beyond 1 (and, without pairs, beyond `NOISE` of it);
        "same" when it is not, and narrow; "unclear" when it is too wide to say that."""
        if self.low is None or self.high is None:
            return "too few samples"
        noise = 0.0 if self.paired else NOISE
        if self.low > 1 + noise:
            return "faster"
        if self.high < 1 - noise:
            return "slower"
        return "same" if self.low >= 1 - WIDE and self.high <= 1 + WIDE else "unclear"

    def is_below(self, bound: float) -> bool | None:
        """Whether the ratio is below a bound for sure; None: too few samples to tell."""
        return None if self.high is None else self.high < bound


def compare_samples(a: Sequence[float], b: Sequence[float], *, paired: bool) -> Comparison:
    """B's rates against A's, all above 0; paired samples have the same number. Raises `ValueError` otherwise."""
    if not a or not b or min(*a, *b, math.inf) <= 0 or (paired and len(a) != len(b)):
        raise ValueError(f"can't compare {len(a)} with {len(b)} samples")
    ratios = sorted(y / x for x, y in (zip(a, b, strict=True) if paired else product(a, b)))
    rank = sign_rank(len(ratios)) if paired else shift_rank(len(a), len(b))
    return Comparison(
        n_a=len(a),
        n_b=len(b),
        median_a=statistics.median(a),
        median_b=statistics.median(b),
        # Of an even number the geometric mean of the middle two, so that B against A is one over A against B.
        ratio=math.exp(statistics.median(map(math.log, ratios))),
        low=ratios[rank - 1] if rank else None,
        high=ratios[-rank] if rank else None,
        paired=paired,
    )


def sign_rank(n: int, level: float = LEVEL) -> int:
    """The rank r for which the r-th smallest and the r-th largest of n hold the median between them at this level.

    The largest r with P(X ≤ r-1) ≤ (1-level)/2, X binomial with n and ½. 0: there is none.
    """
    below = accumulate(math.comb(n, k) / 2**n for k in range(n // 2))
    return sum(each <= (1 - level) / 2 for each in below)


@cache
def shift_rank(n: int, m: int, level: float = LEVEL) -> int:
    """The same for the shift between n and m samples, of their n·m differences (or quotients).

    The largest r with P(U ≤ r-1) ≤ (1-level)/2, U of Mann and Whitney: exact up to forty samples a side, from its
    normal approximation (mean nm/2, variance nm(n+m+1)/12) beyond.
    """
    tail = (1 - level) / 2
    if max(n, m) > 40:
        z = statistics.NormalDist().inv_cdf(1 - tail)
        return max(0, math.floor(n * m / 2 - z * math.sqrt(n * m * (n + m + 1) / 12)))
    most = tail * math.comb(n + m, n)
    return sum(1 for _ in takewhile(lambda below: below <= most, accumulate(_u_counts(n, m))))


def _u_counts(n: int, m: int) -> list[int]:
    """In how many of the arrangements of n and m samples U is 0, 1, 2…: the coefficients of the Gaussian binomial
    ∏ (1-q^(m+i)) / (1-q^i) for i from 1 to n."""
    size = n * m + 1
    counts = [1] + [0] * (size - 1)
    for i in range(1, n + 1):
        for u in range(size - 1, m + i - 1, -1):
            counts[u] -= counts[u - m - i]
        for u in range(i, size):
            counts[u] += counts[u - i]
    return counts


# -- rows find each other ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """One test of both sides. `settings`: those that tell it from other rows of the same test."""

    test: Test | LoadMeasure
    settings: Mapping[str, Setting]
    comparison: Comparison

    @property
    def times_s(self) -> tuple[float, float] | None:
        """A's and B's median where it is a time; the rates compared are the inverse, and a ratio above 1 is faster."""
        if not isinstance(self.test, LoadMeasure) or not self.test.is_time:
            return None
        return 1 / self.comparison.median_a, 1 / self.comparison.median_b

    @property
    def judged_with(self) -> Hashable:
        """What has one verdict: a test with its settings, a load with all its measures."""
        return self.test.test if isinstance(self.test, LoadMeasure) else (self.test, *self.settings.items())


@dataclass(frozen=True)
class Result:
    """Two sides compared.

    Attributes:
        matches: what both have.
        differences: settings and facts that set the sides apart, {"n_threads": (A's, B's)}: what the ratio is about.
        only_a, only_b: tests that the other has not.
    """

    a: Side
    b: Side
    matches: tuple[Match, ...]
    differences: Mapping[str, tuple[Setting, Setting]]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


# -- which belongs to which --------------------------------------------------------------------------------------------


def compare(a: Side, b: Side) -> Result:
    """Match the rows of both sides and compare them. Raises `UsageError` where nothing matches.

    Rows belong together that have the same test, and the same values of every setting that takes several for one test
    on either side (a sweep). What is one value here and another there is what is being compared. Loads at servers
    belong together that have as many at once, or a second, and prompts and answers of the same lengths.
    """
    mine, theirs = (side.entries or side.loads for side in (a, b))
    swept = sorted(_swept(mine) | _swept(theirs))
    of_a, of_b = _by_key(mine, swept), _by_key(theirs, swept)
    paired = bool((a.id and b.interleaved_with == a.id) or (b.id and a.interleaved_with == b.id))
    matches = []
    for key in (key for key in of_a if key in of_b):
        rates, their_rates = _rates(of_a[key]), _rates(of_b[key])
        comparison = compare_samples(rates, their_rates, paired=paired and len(rates) == len(their_rates))
        matches.append(Match(of_a[key][0].test, dict(zip(swept, key[1:], strict=True)), comparison))
    if not matches:
        names = [", ".join(dict.fromkeys(map(_test, entries))) or "nothing" for entries in (mine, theirs)]
        raise UsageError(f"nothing to compare: {a.name} has {names[0]}; {b.name} has {names[1]}")
    settings = {key for entry in (*mine, *theirs) for key in entry.settings} - set(swept)
    differences: dict[str, tuple[Setting, Setting]] = {
        key: (a.facts[key], b.facts[key]) for key in a.facts if key in b.facts and a.facts[key] != b.facts[key]
    }
    for name in sorted(settings):
        mine_values, their_values = _values(mine, name), _values(theirs, name)
        # What follows from the test (several values, but one per test) is no difference between the sides.
        if len(mine_values) == len(their_values) == 1 and mine_values != their_values:
            differences[name] = (mine_values.pop(), their_values.pop())
    only_a = tuple(_named(of_a[key][0], swept) for key in of_a if key not in of_b)
    only_b = tuple(_named(of_b[key][0], swept) for key in of_b if key not in of_a)
    return Result(a, b, tuple(matches), differences, only_a, only_b)


AnyEntry = Entry | LoadEntry


def _test(entry: AnyEntry) -> str:
    """A load by its name alone: it has four measures."""
    return entry.test.name if isinstance(entry, Entry) else entry.test.test.name_in_full


def _swept(entries: Iterable[AnyEntry]) -> set[str]:
    """Settings that take several values for one test."""
    values: dict[tuple[Test | LoadMeasure, str], set[Setting]] = {}
    for entry in entries:
        for key, value in entry.settings.items():
            values.setdefault((entry.test, key), set()).add(value)
    return {key for (_, key), found in values.items() if len(found) > 1}


_Key = tuple[Any, ...]


def _by_key(entries: Iterable[AnyEntry], swept: Sequence[str]) -> dict[_Key, list[AnyEntry]]:
    found: dict[_Key, list[AnyEntry]] = {}
    for entry in entries:
        found.setdefault((entry.test, *(entry.settings.get(key) for key in swept)), []).append(entry)
    return found


def _rates(entries: Iterable[AnyEntry]) -> list[float]:
    """Of a test that was run several times with the same settings, all samples."""
    return [tps for entry in entries for tps in entry.tps]


def _values(entries: Iterable[AnyEntry], key: str) -> set[Setting]:
    """The values of one setting, where it is known."""
    return {value for entry in entries if (value := entry.settings.get(key)) is not None}


def _named(entry: AnyEntry, swept: Sequence[str]) -> str:
    return " ".join([entry.test.name, *(f"{key}={entry.settings.get(key)}" for key in swept)])
