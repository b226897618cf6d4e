"""How much of a prompt is computed between two tokens of the answers beside it. Pure."""

from __future__ import annotations

SHARE = 1.5
"""A part of a prompt takes so many times as long as a step of the others: gaps stay below three times the usual."""
LEAST = 16
"""Tokens: of fewer, each takes as long as a step."""


class Pace:
    """Tell it what took how long; it tells how many tokens are to be computed next."""

    def __init__(self, most: int) -> None:
        """`most`: tokens that are ever computed at once."""
        self._most = max(LEAST, most)
        self._step_s: float | None = None
        self._n = 2.0 * LEAST

    def step_took(self, seconds: float) -> None:
        """One token of each answer. A single slow one changes little, one that is faster is believed sooner."""
        known = self._step_s
        self._step_s = seconds if known is None else known + (seconds - known) * (0.1 if seconds > known else 0.3)

    def part_took(self, n_tokens: int, seconds: float) -> None:
        """A part of a prompt. Half as long or twice as long next time at most: what disturbs once is soon forgotten."""
        if self._step_s and seconds > 0 and n_tokens >= LEAST:
            wanted = n_tokens * SHARE * self._step_s / seconds
            self._n = min(max(wanted, self._n / 2), 2 * self._n)
            self._n = min(max(self._n, LEAST), self._most)

    @property
    def n_tokens(self) -> int:
        """A multiple of eight, as products are fastest with."""
        return min(self._most, int(self._n) // 8 * 8)
