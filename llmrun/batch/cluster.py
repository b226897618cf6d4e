"""A batch over many machines: rows go to the members of a Dask cluster, and each result is kept once.

    rows ──► as many as a member answers in some seconds, by its measured speed ──► member.answer ──► results
      ▲                                                                                  │
      └──────────────────── a member that is gone gives its rows back ◄──────────────────┘

Dask runs what its scheduler sends, whoever sent it: a cluster belongs on a network of one's own. The only door to
`distributed`, which is an extra.
"""

from __future__ import annotations

import copyreg
import logging
import re
import socket
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmrun.batch import member
from llmrun.batch.job import Keeps, Tally, failed, unreadable
from llmrun.batch.member import Answered, Work
from llmrun.batch.rows import Row
from llmrun.batch.width import Width
from llmrun.errors import EngineCrashed, NetworkError, UsageError
from llmrun.text import printable
from llmrun.units import duration

if TYPE_CHECKING:
    from distributed import Client, Future

_CONNECT_S = 10.0
_MEMBERS_S = 60.0
"""So long a job waits for a member where there is none."""
_CHUNK_S = 10.0
"""Rows that a member gets at once are to take about so long: what is lost with one that dies."""
_FIRST = 4
"""Rows that a member gets at once before its speed is known."""
_AHEAD = 2
"""Lots of rows at a member: one is answered, one waits."""
_LOOK_S = 0.5
_FETCH_S = 30.0
_SUSPECT, _GUILTY = 2, 4
"""Members that died with a row: from then on it goes alone, and then it is an error."""


class Cluster:
    """The members behind a scheduler, as a `Job` is one engine.

    Attributes:
        members: how many rows each answers side by side, of those that have answered some.
    """

    width: Width | None

    def __init__(
        self,
        address: str,
        work: Work,
        *,
        on_note: Callable[[str], None] = lambda _: None,
        connect_s: float = _CONNECT_S,
        members_s: float = _MEMBERS_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises `NetworkError` where nobody answers there, and `UsageError` where Dask is not installed."""
        # Defaults of options are read-only mappings, which pickle does not know.
        copyreg.pickle(MappingProxyType, lambda mapping: (MappingProxyType, (dict(mapping),)))
        self._work, self._note, self._members_s, self._clock = work, on_note, members_s, clock
        self._client = _connected(address, connect_s)
        self._rates: dict[str, float] = {}  # rows per second, by member
        self._useless: set[str] = set()
        self._deaths: Counter[str] = Counter()
        self._flying: dict[Future, tuple[str, list[Row]]] = {}
        self.members: dict[str, int] = {}
        self.width = None
        self.notes: list[str] = []
        self.tally = Tally()

    def close(self) -> None:
        """What is being answered is given up."""
        for future in self._flying:
            future.cancel()
        self._flying.clear()
        self._client.close()

    def flush(self) -> None:
        """Members keep nothing for the next process."""

    def run(self, rows: Iterable[Row], results: Keeps, on_row: Callable[[Tally], None] = lambda _: None) -> None:
        """Raises `NetworkError` where no member is left, and `DiskError`."""
        begin_s = seen_s = self._clock()
        waiting: deque[Row] = deque()
        done: set[str] = set()

        def keep(result: dict[str, Any]) -> None:
            if result["id"] in done:
                return
            done.add(result["id"])
            results.add(result)
            self.tally.n_errors += result["error"] is not None
            self.tally.n_answered += result["error"] is None
            self.tally.seconds = self._clock() - begin_s
            on_row(self.tally)

        for row in rows:
            if row.request is None:
                keep({"id": row.id, "custom_id": row.custom_id, **unreadable(row)})
            else:
                waiting.append(row)
        while waiting or self._flying:
            there = [*self._client.nthreads()]
            self._take_back(there, waiting, keep)
            members = self._of_use(there)
            if members:
                seen_s = self._clock()
            elif self._clock() - seen_s > self._members_s:
                raise NetworkError(
                    f"no member of the cluster is there since {duration(self._members_s)}",
                    hint="docs/cluster.md says how to begin",
                )
            self._send(members, waiting)
            self._collect(waiting, keep)

    def _of_use(self, there: Iterable[str]) -> list[str]:
        """Those that can answer, the fastest first."""
        return sorted(set(there) - self._useless, key=lambda name: -self._rates.get(name, 0.0))

    def _send(self, members: list[str], waiting: deque[Row]) -> None:
        for _ in range(_AHEAD):
            for name in members:
                at_it = sum(1 for whose, _ in self._flying.values() if whose == name)
                if not waiting or at_it >= _AHEAD:
                    continue
                rows = self._lot(name, members, waiting)
                future = self._client.submit(
                    member.answer, self._work, rows, workers=[name], allow_other_workers=False, pure=False, retries=0
                )
                self._flying[future] = name, rows

    def _lot(self, name: str, members: list[str], waiting: deque[Row]) -> list[Row]:
        """Rows for a member: what it answers in some seconds, and near the end its share of half of what is left."""
        if self._deaths[waiting[0].id] >= _SUSPECT:
            return [waiting.popleft()]
        rate = self._rates.get(name)
        n = _FIRST
        if rate is not None:
            share = rate / sum(self._rates.get(each, rate) for each in members)
            n = max(1, min(round(rate * _CHUNK_S), round(len(waiting) * share / 2)))
        return [waiting.popleft() for _ in range(min(n, len(waiting)))]

    def _collect(self, waiting: deque[Row], keep: Callable[[dict[str, Any]], None]) -> None:
        """What has come in meanwhile; waits a little where nothing has."""
        from distributed import wait

        if not self._flying:
            time.sleep(_LOOK_S)
            return
        with suppress(Exception):  # time is up, or one of them is lost: all are looked at
            wait([*self._flying], timeout=_LOOK_S, return_when="FIRST_COMPLETED")
        for future in [future for future in self._flying if future.done()]:
            name, rows = self._flying.pop(future)
            try:
                answered: Answered = future.result(timeout=_FETCH_S)
            except Exception as error:  # noqa: BLE001  # whatever Dask calls a member that died, or what it runs raises
                self._gave_back(name, rows, waiting, keep, f"{type(error).__name__}: {error}")
                continue
            if answered.problem is not None:
                self._drop(name, answered.problem)
                waiting.extendleft(reversed(rows))
                continue
            self._count(name, answered)
            for result in answered.results:
                keep(result)

    def _count(self, name: str, answered: Answered) -> None:
        tally = answered.tally
        self.tally.n_prompt += tally.n_prompt
        self.tally.n_cached += tally.n_cached
        self.tally.n_generated += tally.n_generated
        self.members[name] = answered.n_seq
        if tally.seconds > 0:
            rate = len(answered.results) / tally.seconds
            known = self._rates.get(name)
            self._rates[name] = rate if known is None else (known + rate) / 2

    def _take_back(self, there: list[str], waiting: deque[Row], keep: Callable[[dict[str, Any]], None]) -> None:
        """Rows of members that are gone."""
        for future, (name, rows) in [*self._flying.items()]:
            if name not in there:
                del self._flying[future]
                future.cancel()
                self._gave_back(name, rows, waiting, keep, "it is gone")

    def _gave_back(
        self, name: str, rows: list[Row], waiting: deque[Row], keep: Callable[[dict[str, Any]], None], why: str
    ) -> None:
        self._rates.pop(name, None)
        self._note(f"{name} gave {len(rows)} rows back: {why}")
        for row in reversed(rows):
            self._deaths[row.id] += 1
            if self._deaths[row.id] >= _GUILTY:
                error = EngineCrashed(f"{_GUILTY} members died while it was answered")
                keep({"id": row.id, "custom_id": row.custom_id, **failed(row, error)})
            else:
                waiting.appendleft(row)

    def _drop(self, name: str, problem: str) -> None:
        if name not in self._useless:
            self._useless.add(name)
            self._note(f"{name} can't help: {problem}")


def await_members(address: str, n: int, timeout_s: float) -> None:
    """Wait until so many are there. Raises `NetworkError`."""
    from distributed import TimeoutError as TooLate

    client = _connected(address, timeout_s)
    try:
        client.wait_for_workers(n, timeout=timeout_s)
    except TooLate:
        raise NetworkError(f"not all of {n} members of the cluster came within {duration(timeout_s)}") from None
    finally:
        client.close()


def _connected(address: str, connect_s: float) -> Client:
    host, port = _place(address)
    try:
        from distributed import Client
    except ImportError:
        raise UsageError(
            "a cluster needs Dask, which is not installed", hint="pip install 'llmrun-cli[cluster]'"
        ) from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # it tells of what is told here

    class Quiet(Client):  # type: ignore[misc]
        def __del__(self) -> None:
            """Nothing: of one that never connected it would wait for twenty seconds."""

    made: list[Client] = []
    why = "it says nothing"

    def connect() -> None:
        nonlocal why
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of versions that differ a little
                url = address if "://" in address else f"tcp://{address}"
                made.append(Quiet(url, timeout=connect_s, set_as_default=False))
        except (OSError, TimeoutError, ValueError) as error:
            why = str(error)

    try:
        socket.create_connection((host, port), timeout=connect_s).close()
    except OSError as error:
        why = str(error)
    else:  # on a thread of its own: of whoever is there and says nothing Dask waits for an answer without end
        connecting = threading.Thread(target=connect, daemon=True)
        connecting.start()
        connecting.join(1.5 * connect_s)
    if not made:
        problem = f"no Dask scheduler answers at {address[:200]}: {why[:200]}"
        raise NetworkError(problem, hint="docs/cluster.md says how to begin")
    return made[0]


def _place(address: str) -> tuple[str, int]:
    """Host and port. Raises `UsageError`."""
    found = re.fullmatch(r"(?:tcp://)?(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})", address)
    if found is None or not 0 < int(found[2]) < 1 << 16:
        raise UsageError(f"a scheduler's address is tcp://HOST:PORT, not '{printable(address, 100)}'")
    return found[1].strip("[]"), int(found[2])
