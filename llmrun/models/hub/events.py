"""What happens in a pull, step by step, for those who show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class PullStarted:
    """The pull of one file begins; `resumed_at` of its bytes are here already."""

    file: str
    total: int
    resumed_at: int


@dataclass(frozen=True)
class PullProgress:
    """`done` of `total` bytes of one file are here, `hashed` of them verified so far; at most ten events a second."""

    file: str
    done: int
    total: int
    hashed: int


@dataclass(frozen=True)
class PullChecking:
    """Bytes that are here already, from another tool or an earlier pull, are being hashed."""

    file: str
    done: int
    total: int


@dataclass(frozen=True)
class PullWaiting:
    """Another process is pulling this file; it has `done` bytes. Repeated once a second."""

    file: str
    done: int
    total: int


@dataclass(frozen=True)
class PullRetrying:
    """An attempt failed for `reason`; the next begins in `pause_s`."""

    file: str
    reason: str
    failures: int
    attempts: int
    pause_s: float


@dataclass(frozen=True)
class PullRestarted:
    """What was here could not be used, for `reason`; the file is fetched from its first byte."""

    file: str
    reason: str


@dataclass(frozen=True)
class PullFinished:
    """One file is here and verified; `fetched` of its bytes came over the network in this call."""

    file: str
    total: int
    fetched: int
    seconds: float


PullEvent = PullStarted | PullProgress | PullChecking | PullWaiting | PullRetrying | PullRestarted | PullFinished
OnPullEvent = Callable[[PullEvent], None]
