"""The search for the fastest settings of a model and a workload: one dial after the other, each candidate measured in
turn with the best so far.

    layout ─► flash attention ─► decode threads ─► prefill threads ─► micro-batch ─► KV types ─► load mode

The dials hardly depend on each other, so that they need not be tried in all combinations (but flash attention and the
micro-batch, `UBATCH_WITHOUT_FLASH`). A candidate takes the place of the best so far when it is faster beyond noise and
by enough to be worth it; one that is slower beyond noise is given up at once. How much measurements scatter belongs to
the machine and the hour, so it is learned from all candidates together: after the first ones two pairs are often
enough. Medians, since what disturbs a measurement on a machine that others use as well makes it half as fast, not a
little slower.

Pure: what is measured comes from a function.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from llmrun.tuning.dials import UBATCH_WITHOUT_FLASH, Dials, Layout, Workload

WORTH = 0.02
"""What a candidate must gain, beyond noise: settings that change nothing stay as they are."""
WORTH_TWICE = 0.06
"""The same of weights in both layouts: they take twice the memory, and longer to load."""
WORTH_OTHER_PROCESS = 0.06
"""The same of what needs a process of its own (load mode): two processes with the same settings differ by as much, each
in what pages it got."""
HOPELESS = -0.30
"""A candidate that is predicted to lose more than this is not tried: less may be the prediction's error."""
_MOST_PAIRS = 8
_T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
"""Student's t, two-sided 95 %, by degrees of freedom from 1."""


class Measure(Protocol):
    def __call__(self, dials: Dials, *, prompt: bool, answer: bool) -> tuple[float, float]:
        """Seconds of a token of the prompt, and of the answer; any number for what is not asked for."""


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
class NotTried:
    """A candidate that is predicted to lose so much that it was not measured.

    Attributes:
        dial, dials: as of an `Outcome`.
        gain: what is predicted, -0.4 is 40 % slower.
    """

    dial: str
    dials: Dials
    gain: float


@dataclass(frozen=True)
class Candidates:
    """Values to try by dial, the one of before not among them."""

    repack: Sequence[Layout] = ()
    n_threads: Sequence[int] = ()
    n_threads_batch: Sequence[int] = ()
    n_ubatch: Sequence[int] = ()
    flash_attn: Sequence[str] = ()
    kv_type: Sequence[str] = ()
    load_mode: Sequence[str] = ()

    def in_order(self) -> Iterator[tuple[str, object]]:
        """Each dial and a value for it. The micro-batch that is good without flash attention comes before that: what
        it gains by itself is known by then."""
        first, others = ([n for n in self.n_ubatch if (n == UBATCH_WITHOUT_FLASH) is is_it] for is_it in (True, False))
        turns: Sequence[tuple[str, Sequence[object]]] = (
            ("repack", self.repack),
            ("n_ubatch", first),
            ("flash_attn", self.flash_attn),
            ("n_threads", self.n_threads),
            ("n_threads_batch", self.n_threads_batch),
            ("n_ubatch", others),
            ("kv_type", self.kv_type),
            ("load_mode", self.load_mode),
        )
        return ((dial, value) for dial, values in turns for value in values)


_PROMPT_ALONE, _ANSWER_ALONE = ("n_threads_batch", "n_ubatch"), ("n_threads",)
"""Dials that change nothing of the other part, which need not be measured again."""
_OWN_BUFFERS = ("flash_attn", "n_ubatch", "kv_type", "load_mode")
"""Dials whose values have a context each, or a process. Which pages it got decides as well, by a tenth and more where a
host gives memory in small pages: one that seems to win has to win twice, the second time with other pages."""
_Pair = tuple[tuple[float, float], tuple[float, float]]


class _TimeIsUp(Exception):
    pass


class Search:
    """Attributes:
    best: the fastest settings so far.
    outcomes: all candidates that were measured, in order.
    not_tried: those that were not, because they are predicted to lose.
    ran_out: whether there was no time for all of them.
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
        is_possible: Callable[[Dials], bool] = lambda _: True,
        predict: Callable[[Dials], float | None] = lambda _: None,
        renew: Callable[[], None] = lambda: None,
    ) -> None:
        """`begin`: the settings of before. No measurement is begun after `budget_s`. `is_possible`: whether a model can
        run with them. `predict`: seconds of the workload, where something is known of it. `renew`: have what follows
        measured in memory of its own."""
        self._measure, self._workload, self._clock = measure, workload, clock
        self._end_s = clock() + budget_s
        self._on_outcome, self._is_possible, self._predict, self._renew = on_outcome, is_possible, predict, renew
        self._residuals: list[float] = []  # what pairs of one candidate differ from their median
        self._freedom = 0
        self._known: tuple[float, float] | None = None  # of the best
        self.best = self._begin = begin
        self.outcomes: list[Outcome] = []
        self.not_tried: list[NotTried] = []
        self.ran_out = False

    def run(self, candidates: Candidates) -> Dials:
        """The best settings."""
        self.ran_out = True
        with suppress(_TimeIsUp):
            for dial, value in candidates.in_order():
                candidate = replace(self.best, **{dial: value})  # type: ignore[arg-type]
                if (dial, value) == ("flash_attn", "off"):
                    candidate = replace(candidate, n_ubatch=min(candidate.n_ubatch or 512, UBATCH_WITHOUT_FLASH))
                if not self._is_possible(candidate):  # perhaps with flash attention as it was
                    was = self._begin
                    candidate = replace(candidate, flash_attn=was.flash_attn, n_ubatch=was.n_ubatch)
                if candidate == self.best or not self._is_possible(candidate):
                    continue
                gain = self._predicted_gain(candidate)
                if gain is not None and gain < HOPELESS:
                    self.not_tried.append(NotTried(dial, candidate, gain))
                else:
                    self._try(dial, candidate)
            self.ran_out = False
        return self.best

    def _predicted_gain(self, candidate: Dials) -> float | None:
        mine, theirs = self._predict(self.best), self._predict(candidate)
        return None if mine is None or theirs is None else mine / theirs - 1

    def _try(self, dial: str, candidate: Dials) -> None:
        pairs, (gain, low, high) = self._compared(dial, candidate)
        if _wins(dial, candidate, gain, low) and dial in _OWN_BUFFERS:
            self._renew()
            self._measured(self.best, dial)
            pairs, (gain, low, high) = self._compared(dial, candidate)
        taken = _wins(dial, candidate, gain, low)
        prefill_s, decode_s = (float(np.median([theirs[i] for _, theirs in pairs])) for i in (0, 1))
        outcome = Outcome(dial, candidate, prefill_s, decode_s, gain, low, high, taken)
        if taken:
            self.best, self._known = candidate, (prefill_s, decode_s)
        self.outcomes.append(outcome)
        self._on_outcome(outcome)

    def _compared(self, dial: str, candidate: Dials) -> tuple[list[_Pair], tuple[float, float, float]]:
        """Pairs of the best so far and the candidate, and what it gains: as many as it takes to tell, or as there is
        time for. Raises `_TimeIsUp` where that is not one each way round."""
        worth = _worth(dial, candidate)
        pairs: list[_Pair] = []
        self._measured(candidate, dial)  # what is used for the first time is slow: pages, caches, buffers
        while True:
            try:
                first = self._measured(self.best, dial), self._measured(candidate, dial)
                # The other way round next: whatever drifts favours each of them in turn.
                last = self._measured(candidate, dial), self._measured(self.best, dial)
            except _TimeIsUp:
                if not pairs:
                    raise
                break
            pairs += [first, last[::-1]]
            logs = [self._log_ratio(pair) for pair in pairs]
            gain, low, high = self._gain(logs)
            if low > worth or high < worth or len(pairs) >= _MOST_PAIRS:
                break
        self._residuals += _residuals(logs)
        self._freedom += len(logs) - 1
        return pairs, (gain, low, high)

    def _measured(self, dials: Dials, dial: str) -> tuple[float, float]:
        """With what is known of the best settings for the part that the dial does not change. Raises `_TimeIsUp`."""
        if self._clock() >= self._end_s:
            raise _TimeIsUp
        prompt, answer = dial not in _ANSWER_ALONE, dial not in _PROMPT_ALONE
        if not (prompt and answer) and self._known is None:
            self._known = self._measure(self.best, prompt=True, answer=True)
        prefill_s, decode_s = self._measure(dials, prompt=prompt, answer=answer)
        if self._known is not None:
            prefill_s, decode_s = (prefill_s if prompt else self._known[0]), (decode_s if answer else self._known[1])
        if dials == self.best:
            self._known = prefill_s, decode_s
        return prefill_s, decode_s

    def _log_ratio(self, pair: _Pair) -> float:
        mine, theirs = (self._workload.seconds(1 / prefill_s, 1 / decode_s) for prefill_s, decode_s in pair)
        return math.log(mine / theirs)

    def _gain(self, logs: Sequence[float]) -> tuple[float, float, float]:
        """The median of the ratios, less one, and its 95 % interval, by the scatter of all pairs so far.

        The standard deviation by the median of absolute residuals (x 1.48 for normal ones); that of a median is 1.25
        times that of a mean.
        """
        middle, n = float(np.median(logs)), len(logs)
        residuals, freedom = [*self._residuals, *_residuals(logs)], self._freedom + n - 1
        deviation = 1.4826 * float(np.median(np.abs(residuals))) * math.sqrt(len(residuals) / freedom)
        t = _T_95[freedom - 1] if freedom <= len(_T_95) else 2.0
        half = 1.2533 * t * deviation / math.sqrt(n)
        return math.expm1(middle), math.expm1(middle - half), math.expm1(min(middle + half, 700))


def _worth(dial: str, candidate: Dials) -> float:
    """What a candidate has to gain."""
    if dial == "load_mode":
        return WORTH_OTHER_PROCESS
    return WORTH_TWICE if dial == "repack" and candidate.repack == "both" else WORTH


def _wins(dial: str, candidate: Dials, gain: float, low: float) -> bool:
    return low > 0 and gain > _worth(dial, candidate)


def _residuals(logs: Sequence[float]) -> list[float]:
    middle = np.median(logs)
    return [float(each - middle) for each in logs]


def candidates(
    begin: Dials,
    *,
    layouts: Iterable[Layout],
    threads: Iterable[int],
    threads_batch: Iterable[int],
    n_ubatch: Iterable[int] = (64, 128, 256, 512),
    kv_types: Iterable[str] = (),
    load_modes: Iterable[str] = (),
) -> Candidates:
    """What is worth a try beside the settings of before."""
    return Candidates(
        repack=[each for each in layouts if each != begin.repack],
        n_threads=[each for each in threads if each != begin.n_threads],
        n_threads_batch=[each for each in threads_batch if each != begin.n_threads_batch],
        n_ubatch=[each for each in n_ubatch if each != begin.n_ubatch],
        flash_attn=["off" if begin.flash_attn in (None, "auto", "on") else "on"],
        kv_type=[*kv_types],
        load_mode=[*load_modes],
    )
