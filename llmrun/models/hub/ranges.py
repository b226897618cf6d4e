"""Which bytes of a file are here, which are on their way, and which a connection is to fetch next.

In order, piece by piece: what is here without a hole grows from the first byte, and whoever reads behind is never far
from the end. A connection that is alone goes on with its answer into the next piece. Where no piece is left, one more
connection takes the second half of the longest that is on its way, so that all end together.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from llmrun.models.store.partial import Extent, merged

LEAST_BYTES = 2 << 20
"""Less is not worth a request of its own."""


@dataclass(eq=False)
class Range:
    """What one connection fetches.

    Attributes:
        begin: of these bytes in the file.
        at: those before it are here.
        end: up to where they are its own.
        asked_end: up to where its answer goes.
    """

    begin: int
    at: int
    end: int
    asked_end: int


class Ranges:
    """The bytes of one file. Any thread may ask and tell.

    Attributes:
        n_here: bytes that are here.
        n_fetched: bytes that came in all, those that were thrown away as well.
        piece: bytes of a piece.
    """

    def __init__(self, size: int, here: Iterable[Extent], piece: int) -> None:
        self.size, self.piece, self.n_fetched = size, piece, 0
        self._lock = threading.Lock()
        self.reset(here)

    def reset(self, here: Iterable[Extent] = ()) -> None:
        """Only these bytes are here, and none on their way."""
        with self._lock:
            self._here = merged(here)
            self._open: list[Range] = []
            self.n_here = sum(end - begin for begin, end in self._here)

    @property
    def prefix(self) -> int:
        """How many bytes are here without a hole, from the first."""
        here = self.here()
        return here[0][1] if here and here[0][0] == 0 else 0

    def here(self) -> list[Extent]:
        with self._lock:
            return merged([*self._here, *((each.begin, each.at) for each in self._open)])

    def claim(self, window: int, *, alone: bool) -> Range | None:
        """What one more connection is to fetch, asking for at most `window` bytes; None: nothing is left that is worth
        one. `alone`: it is the only one, and asks for all that follows."""
        with self._lock:
            gap = self._gap_from(0) or self._halved()
            if gap is None:
                return None
            begin, limit = gap[0], min(gap[1], gap[0] + window)
            end = min(limit, begin + self.piece)
            claimed = Range(begin, begin, end, limit if alone else end)
            self._open.append(claimed)
            return claimed

    def room(self, claimed: Range, n: int) -> int:
        """How many of the next `n` bytes of its answer are its own. The next piece is, where nobody else has it."""
        with self._lock:
            while claimed.end - claimed.at < n and claimed.end < claimed.asked_end:
                gap = self._gap_from(claimed.end)
                if gap is None or gap[0] > claimed.end:
                    break
                claimed.end = min(gap[1], claimed.end + self.piece, claimed.asked_end)
            return min(n, claimed.end - claimed.at)

    def took(self, claimed: Range, n: int) -> None:
        """So many more bytes of it are here."""
        with self._lock:
            claimed.at += n
            self.n_here += n
            self.n_fetched += n

    def release(self, claimed: Range) -> None:
        """Its connection has ended; what it did not bring is anybody's."""
        with self._lock:
            if claimed in self._open:
                self._open.remove(claimed)
                self._here = merged([*self._here, (claimed.begin, claimed.at)])

    def _gap_from(self, at: int) -> Extent | None:
        """The first bytes from `at` on that are neither here nor on their way."""
        for begin, end in merged([*self._here, *((each.begin, each.end) for each in self._open)]):
            if at < begin:
                return at, begin
            at = max(at, end)
        return (at, self.size) if at < self.size else None

    def _halved(self) -> Extent | None:
        longest = max(self._open, key=lambda each: each.end - each.at, default=None)
        if longest is None or longest.end - longest.at < 2 * LEAST_BYTES:
            return None
        middle, end = (longest.at + longest.end) // 2, longest.end
        longest.end = middle
        return middle, end
