"""What the parent asks, in the order in which it came, and which of it is wanted no more; and what it is answered."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from llmrun.engine import protocol
from llmrun.engine.protocol import Cancel, Message

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
    """Between the thread that reads the pipe (`put`) and the one that computes (`next`, `take`, `done`).

    The flag is up exactly while all requests being served are such as were cancelled, before their turn or during it:
    a computation for several is not broken off for one of them.

    Attributes:
        cancelled: numbers of those that are served and not wanted any more.
    """

    def __init__(self, flag: Flag, clock: Callable[[], float] = time.perf_counter) -> None:
        self._flag, self._clock = flag, clock
        self._requests: deque[Request] = deque()
        self._changed = threading.Condition()
        self._served: set[int] = set()
        self._unwanted: set[int] = set()  # of those that wait
        self.cancelled: set[int] = set()

    def put(self, number: int, message: Message) -> None:
        """A message as it comes in."""
        received_s = self._clock()
        with self._changed:
            if not isinstance(message, Cancel):
                self._requests.append(Request(number, message, received_s))
                self._changed.notify()
            elif number in self._served:
                self.cancelled.add(number)
                self._set_flag()
            elif any(request.number == number for request in self._requests):
                self._unwanted.add(number)

    def wait(self, timeout_s: float) -> bool:
        """Whether there is a request within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._requests), timeout_s)

    def next(self) -> Request:
        """Wait for the next request, which is then being served."""
        with self._changed:
            while not self._requests:
                self._changed.wait()
            return self._serve()

    def take(self, kind: type[Message] | tuple[type[Message], ...]) -> Request | None:
        """The next request, to be served beside others, if there is one and it is of that kind."""
        if not self.has(kind):
            return None
        with self._changed:
            return self._serve()

    def has(self, kind: type[Message] | tuple[type[Message], ...]) -> bool:
        """Whether `take` would find one."""
        return bool(self._requests) and isinstance(self._requests[0].message, kind)

    def done(self, number: int) -> None:
        """The request is answered: who cancels it now is too late."""
        with self._changed:
            self._served.discard(number)
            self.cancelled.discard(number)
            self._set_flag()

    def _serve(self) -> Request:
        request = self._requests.popleft()
        self._served.add(request.number)
        if request.number in self._unwanted:
            self._unwanted.remove(request.number)
            self.cancelled.add(request.number)
        self._set_flag()
        return request

    def _set_flag(self) -> None:
        if self._served and self._served <= self.cancelled:
            self._flag.set()
        else:
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
