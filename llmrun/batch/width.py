"""How many answers are made side by side: as many as make it faster, which is measured, and as there is memory for."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmrun.engine.interface import Engine

CANDIDATES = (1, 2, 4, 8, 16, 32)
UNMEASURED = 4
"""So many are always faster than fewer: a batch of four takes less than three times as long as one everywhere."""
_STEPS = 5
_GAIN = 1.05


@dataclass(frozen=True)
class Width:
    """Answers side by side.

    Attributes:
        n_seq: so many.
        n_ctx: tokens of prompt and answer that each has room for from the beginning.
        tried: tokens per second of those numbers that were measured.
    """

    n_seq: int
    n_ctx: int
    tried: Mapping[int, float] = field(default_factory=dict)


def fastest(engine: Engine, most: int, n_ctx: int) -> Width:
    """The smallest number up to `most` that is nearly as fast as the best one. Measured in steps of a token each; once
    more of them gain nothing, no larger number is tried."""
    most = max(1, min(most, CANDIDATES[-1]))
    if most <= UNMEASURED:
        return Width(most, n_ctx)
    tried: dict[int, float] = {}
    for n_seq in [*(n for n in CANDIDATES if n < most), most]:
        before = max(tried.values(), default=0.0)
        steps = engine.trial(0, _STEPS, n_seq=n_seq).step_s[1:]
        tried[n_seq] = n_seq / statistics.median(steps)
        if tried[n_seq] < _GAIN * before:
            break
    best = max(tried.values())
    return Width(min(n for n, rate in tried.items() if _GAIN * rate >= best), n_ctx, tried)


def most_that_fit(engine: Engine, n_ctx: int) -> int:
    """Answers of so many tokens that there is memory for beside the model."""
    return max((n for n in CANDIDATES if engine.most_context(n) >= n_ctx), default=1)


def chosen(engine: Engine, room: int, parallel: int | None, n_rows: int) -> Width:
    """As many as are asked for, or as are the fastest; each with so much room as the model has for it."""
    n_ctx = min(room, engine.n_ctx_most)
    if parallel:
        return Width(min(parallel, n_rows), n_ctx)
    return fastest(engine, min(n_rows, most_that_fit(engine, n_ctx)), n_ctx)
