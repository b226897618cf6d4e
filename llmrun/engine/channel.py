"""A child and the messages to it and from it: whoever talks to a child of this package does it here.

Requests have numbers, and what comes back goes to the one it is about. What comes about a request that is forgotten is
dropped; what comes about one that was never made, or is no message, ends the child: a hostile file may own it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

from llmrun.codec import Malformed
from llmrun.engine.process import Child, Death, Gone, IdleWatch
from llmrun.engine.wire import NO_REQUEST, Wire
from llmrun.errors import EngineCrashed
from llmrun.text import printable
from llmrun.units import duration

M = TypeVar("M")


class Died(Exception):
    """The child is gone, and closed; `death` says why."""

    def __init__(self, death: Death) -> None:
        super().__init__(death.reason)
        self.death = death


class Channel(Generic[M]):
    """Raises `Died` from whatever waits for the child, and `EngineCrashed` for one that had to be ended.

    Attributes:
        idle_s: how long the child may use no CPU while it is waited for.
        closed: whether the child was ended.
    """

    def __init__(self, child: Child, wire: Wire[M], *, who: str = "engine", idle_s: float = 300) -> None:
        """`who` the child is in messages to users."""
        self._child = child
        self._wire, self._who, self.idle_s = wire, who, idle_s
        self._last = NO_REQUEST
        self._arrived: dict[int, deque[M]] = {NO_REQUEST: deque()}
        self._outgoing: deque[bytes] = deque()
        self._writing = threading.Lock()
        self._is_torn = False

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.alive

    @property
    def closed(self) -> bool:
        return self._child.closed

    def close(self) -> None:
        """End the child, whatever it is doing, and wait until it is gone. Safe to call twice."""
        self._child.close()

    def log_tail(self) -> str:
        """The last 20 kB of llama.cpp's log."""
        return self._child.log_tail()

    def ended(self, what: str) -> EngineCrashed:
        """End the child and say so: "the engine did nothing for 300 s, and was ended"."""
        self.close()
        return EngineCrashed(f"the {self._who} {what}, and was ended")

    # -- to the child ---

    def new_request(self) -> int:
        """A number for a request, for which answers are kept until it is forgotten."""
        self._last += 1
        self._arrived[self._last] = deque()
        return self._last

    def request(self, message: M) -> int:
        """Send a new request; returns its number."""
        number = self.new_request()
        self.send(number, message)
        return number

    def send(self, number: int, message: M) -> None:
        """Send what is about a request. It arrives whole and in order, whoever else sends at the same time.

        That may be another thread, or a signal handler in the middle of a message: its own follows then. What an
        interrupt leaves in the middle is finished by the next call.
        """
        self._outgoing.append(self._wire.encode(number, message))
        while self._outgoing and self._writing.acquire(blocking=False):  # who holds it, sends ours as well
            try:
                self._flush()
            except Gone:
                raise self._died() from None
            finally:
                self._writing.release()

    def _flush(self) -> None:
        watch = None
        while self._outgoing:
            if self._is_torn:  # interrupted at the one place where it is not known what the child has got
                raise self.ended("was interrupted in the middle of a message")
            self._is_torn = True
            line = self._outgoing[0]
            n_written = self._child.write(line)
            if n_written == len(line):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = line[n_written:]
            self._is_torn = False
            if not n_written:
                watch = watch or IdleWatch(self.pid, self.idle_s)
                if watch.is_idle():
                    raise self.ended(f"did nothing for {duration(self.idle_s)}")
                self._child.wait_for_room(0.5)

    # -- from the child ---

    def receive(self, number: int, deadline: float) -> M | None:
        """The next message about a request, or None at the deadline (on `time.monotonic`)."""
        mine = self._arrived[number]
        while not mine:
            try:
                line = self._child.line(deadline)
            except Gone:
                raise self._died() from None
            if line is None:
                return None
            try:
                about, message = self._wire.decode(line)
            except Malformed as error:
                raise self.ended(f"sent what is {printable(str(error), 300)}") from None
            if about in self._arrived:
                self._arrived[about].append(message)
            elif not NO_REQUEST <= about <= self._last:
                raise self.ended("answered a request that was never made")
        return mine.popleft()

    def answer(self, number: int) -> M:
        """The next message about a request, however long it takes, as long as the child computes."""
        watch = None
        while (message := self.receive(number, time.monotonic() + 1)) is None:
            watch = watch or IdleWatch(self.pid, self.idle_s)
            if watch.is_idle():
                raise self.ended(f"did nothing for {duration(self.idle_s)}")
        return message

    def answer_within(self, number: int, limit_s: float, doing: str) -> M:
        """The next message about a request; a child that takes longer is ended."""
        message = self.receive(number, time.monotonic() + limit_s)
        if message is None:
            raise self.ended(f"was still {doing} after {duration(limit_s)}")
        return message

    def forget(self, number: int) -> None:
        """Drop what came, and what will come, about a request. Safe to call twice."""
        self._arrived.pop(number, None)

    def _died(self) -> Died:
        return Died(self._child.death())
