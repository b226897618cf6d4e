"""What the parent asks: requests in the order in which they came, and which of them it wants no more. Pure."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from llmrun.engine.protocol import Cancel, Message
from llmrun.engine.wire import NO_REQUEST


class Request(NamedTuple):
    """Something to be answered.

    Attributes:
        number: of the request, for all that is answered.
        received_s: when it was read from the pipe, on `time.perf_counter()`.
    """

    number: int
    message: Message
    received_s: float


class Flag(Protocol):
    """What the computation looks at to know that it is to end."""

    def set(self) -> None: ...

    def clear(self) -> None: ...


class Inbox:
    """Between the thread that reads the pipe (`put`) and the one that computes (`next`, `done`).

    The flag is up exactly while the request being served is one that was cancelled, before its turn or during it.
    """

    def __init__(self, flag: Flag, clock: Callable[[], float] = time.perf_counter) -> None:
        self._flag, self._clock = flag, clock
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._served = NO_REQUEST
        self._waiting: dict[int, bool] = {}  # number → whether it was cancelled

    def put(self, number: int, message: Message) -> None:
        """A message as it comes in."""
        received_s = self._clock()
        with self._lock:
            if not isinstance(message, Cancel):
                self._waiting[number] = False
                self._requests.put(Request(number, message, received_s))
            elif number == self._served:
                self._flag.set()
            elif number in self._waiting:
                self._waiting[number] = True

    def next(self) -> Request:
        """Wait for the next request, which is then being served."""
        request = self._requests.get()
        with self._lock:
            self._served = request.number
            if self._waiting.pop(request.number):
                self._flag.set()
        return request

    def done(self) -> None:
        """The request is answered: who cancels it now is too late."""
        with self._lock:
            self._served = NO_REQUEST
            self._flag.clear()
