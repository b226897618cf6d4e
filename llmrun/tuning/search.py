"""The search for the fastest settings of a model and a workload: one dial after the other, each candidate measured in
turn with the best so far.

    layout ─► decode threads ─► prefill threads ─► micro-batch ─► flash attention

The dials hardly depend on each other, so that they need not be tried in all combinations. A candidate takes the place
of the best so far when it is faster beyond noise and by enough to be worth it; one that is slower beyond noise is given
up at once.

Pure: what is measured comes from a function.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmrun.tuning.dials import Dials, Workload

WORTH = 0.02
"""What a candidate must gain, beyond noise: settings that change nothing stay as they are."""
_LEAST_PAIRS, _MOST_PAIRS = 3, 7
_T_95 = {2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45}
"""Student's t, two-sided 95 %, by degrees of freedom."""

Measure = Callable[[Dials], tuple[float, float]]
"""Seconds of a token of the prompt, and of the answer."""


@dataclass(frozen=True)
class Outcome:
    """A candidate beside the best settings before it.

    Attributes:
        dial: what was turned.
        dials: the candidate's settings, all of them.
        prefill_s, decode_s: the candidate's medians, of a token.
        gain: of speed for the workload: 0.1 is a tenth faster.
        low, high: its 95 % interval.
        taken: whether it is the best now.
    """

    dial: str
    dials: Dials
    prefill_s: float
    decode_s: float
    gain: float
    low: float
    high: float
    taken: bool


@dataclass(frozen=True)
class Candidates:
    """Values to try by dial, the one of before not among them."""

    repack: Sequence[bool] = ()
    n_threads: Sequence[int] = ()
    n_threads_batch: Sequence[int] = ()
    n_ubatch: Sequence[int] = ()
    flash_attn: Sequence[str] = ()

    def of(self, dial: str) -> Sequence[object]:
        values: Sequence[object] = getattr(self, dial)
        return values


DIALS = ("repack", "n_threads", "n_threads_batch", "n_ubatch", "flash_attn")


class Search:
    """Attributes:
    best: the fastest settings so far.
    outcomes: all candidates that were measured, in order.
    """

    def __init__(
        self,
        measure: Measure,
        workload: Workload,
        begin: Dials,
        *,
        budget_s: float,
        clock: Callable[[], float] = time.monotonic,
        on_outcome: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        """`begin`: the settings of before. No pair of measurements is begun after `budget_s`."""
        self._measure, self._workload, self._clock = measure, workload, clock
        self._end_s = clock() + budget_s
        self._on_outcome = on_outcome
        self.best = begin
        self.outcomes: list[Outcome] = []

    def run(self, candidates: Candidates) -> Dials:
        """The best settings."""
        for dial in DIALS:
            for value in candidates.of(dial):
                candidate = replace(self.best, **{dial: value})  # type: ignore[arg-type]
                if candidate != self.best and self._clock() < self._end_s:
                    self._try(dial, candidate)
        return self.best

    def _try(self, dial: str, candidate: Dials) -> None:
        pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []
        while True:
            first = self._measure(self.best), self._measure(candidate)
            # The other way round next: whatever drifts favours each of them in turn.
            last = self._measure(candidate), self._measure(self.best)
            pairs += [first, last[::-1]]
            gain, low, high = _gain([self._log_ratio(pair) for pair in pairs])
            is_clear = low > WORTH or high < WORTH
            if (len(pairs) >= _LEAST_PAIRS and is_clear) or len(pairs) >= _MOST_PAIRS or self._clock() >= self._end_s:
                break
        taken = low > 0 and gain > WORTH
        prefill_s, decode_s = (float(np.median([theirs[i] for _, theirs in pairs])) for i in (0, 1))
        outcome = Outcome(dial, candidate, prefill_s, decode_s, gain, low, high, taken)
        if taken:
            self.best = candidate
        self.outcomes.append(outcome)
        self._on_outcome(outcome)

    def _log_ratio(self, pair: tuple[tuple[float, float], tuple[float, float]]) -> float:
        mine, theirs = (self._workload.seconds(1 / prefill_s, 1 / decode_s) for prefill_s, decode_s in pair)
        return math.log(mine / theirs)


def _gain(logs: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of the ratios, less one, and its 95 % interval."""
    mean, n = float(np.mean(logs)), len(logs)
    half = _T_95.get(n - 1, 2.36 if n > 1 else 12.7) * float(np.std(logs, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return math.expm1(mean), math.expm1(mean - half), math.expm1(min(mean + half, 700))


def candidates(
    begin: Dials,
    *,
    layouts: Iterable[bool],
    threads: Iterable[int],
    threads_batch: Iterable[int],
    n_ubatch: Iterable[int] = (64, 128, 256, 512),
) -> Candidates:
    """What is worth a try beside the settings of before."""
    return Candidates(
        repack=[each for each in layouts if each != begin.repack],
        n_threads=[each for each in threads if each != begin.n_threads],
        n_threads_batch=[each for each in threads_batch if each != begin.n_threads_batch],
        n_ubatch=[each for each in n_ubatch if each != begin.n_ubatch],
        flash_attn=["off" if begin.flash_attn in (None, "auto", "on") else "on"],
    )
