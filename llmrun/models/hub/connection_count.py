"""How many connections a file gets: as many as make it come faster."""

from __future__ import annotations

MOST = 8
"""More are unkind to a server, and gain little."""
_GAIN = 1.15
"""Twice as many have to bring this much more."""
_WORTH_S = 2.0
"""What is here in less is not worth a try."""
_BUSY = 0.45
"""Of a core, taken by those that fetch: twice as many would take more than there is for them, as they share Python's
lock."""
_PAUSE = 20
"""Rates until the next try, after one that gained nothing; then twice as many."""


class ConnectionCount:
    """Rates in, count out: twice as many while that gains, else as many as before, and another try later.

    Attributes:
        count: to have open now.
    """

    def __init__(self, fixed: int | None = None, *, most: int = MOST) -> None:
        self.count, self._most = fixed or 1, fixed or most
        self._before: tuple[int, float] | None = None  # count and rate before the last change
        self._is_new, self._pause, self._wait = True, _PAUSE, 0

    def limit(self, most: int) -> None:
        """The server wants no more than these, of which one is always left."""
        self._most = max(1, min(self._most, most))
        self.count = min(self.count, self._most)

    def measured(self, rate: float, n_left: int, busy: float = 0.0) -> int:
        """How many are to be open next, after `rate` bytes per second with `count` of them for some moments, in which
        they took so much of a core (`busy`), when `n_left` bytes are missing. The first rate after a change is not
        looked at: connections begin slowly."""
        if rate <= 0:
            return self.count  # a silence is nobody's gain
        if self._is_new:
            self._is_new = False
        elif self._before is not None and rate < _GAIN * self._before[1]:
            self._change(self._before[0])
            self._before, self._wait, self._pause = None, self._pause, 2 * self._pause
        elif self._wait:
            self._wait -= 1
        elif n_left > _WORTH_S * rate and self.count < self._most and busy < _BUSY:
            self._before = self.count, rate
            self._change(2 * self.count)
        else:
            self._before = None
        return self.count

    def _change(self, count: int) -> None:
        self.count, self._is_new = min(count, self._most), True
