"""What the parent asks, in the order in which it came, and which of it is wanted no more; and what it is answered."""

from __future__ import annotations

import os
import queue
import select
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from llmrun.engine import protocol
from llmrun.engine.protocol import NO_REQUEST, Cancel, Message

# All others end something that the parent waits for.
_UNAWAITED = (protocol.Progress, protocol.Started, protocol.Prefilled, protocol.Tokens, protocol.QuantizingTensor)


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


class Outbox:
    """Messages to the parent. One that nobody reads yet must not stop the clock of what is being measured."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._unsent, self._lock = descriptor, b"", threading.Lock()
        os.set_blocking(descriptor, False)

    def send(self, request: int, message: Message) -> None:
        """Send what is about a request, and wait for a reader only with the messages that end something."""
        with self._lock:
            self._unsent += protocol.encode(request, message)
            while self._unsent:
                try:
                    self._unsent = self._unsent[os.write(self._descriptor, self._unsent) :]
                except BlockingIOError:
                    if isinstance(message, _UNAWAITED):
                        return
                    select.select([], [self._descriptor], [])
