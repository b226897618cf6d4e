"""A child and the messages to it and from it: whoever talks to a child of this package does it here.

Requests have numbers, and what comes back goes to the one it is about. What comes about a request that is forgotten is
dropped; what comes about one that was never made, or is no message, ends the child: a hostile file may own it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection

from llmrun.codec import Malformed
from llmrun.engine import protocol
from llmrun.engine.limits import Limits
from llmrun.engine.process import Child, Death, Gone, IdleWatch
from llmrun.engine.protocol import NO_REQUEST, Message
from llmrun.errors import EngineCrashed
from llmrun.text import printable
from llmrun.units import duration


class Died(Exception):
    """The child is gone, and closed; `death` says why."""

    def __init__(self, death: Death) -> None:
        super().__init__(death.reason)
        self.death = death


class Channel:
    """Raises `EngineCrashed` for a child that had to be ended, and for one that is gone what `of_death` makes of it.

    Attributes:
        child: that there is now.
        limits: of its silence.
        of_death: the error for the end of a child that was waited for.
        on_full: told that the child takes no more at the moment, by who will `flush` later; None: who sends waits.
    """

    def __init__(
        self,
        child: Child,
        *,
        who: str = "engine",
        limits: Limits | None = None,
        of_death: Callable[[Death], Exception] = Died,
    ) -> None:
        """`who` the child is in messages to users."""
        self._who, self.limits, self.of_death = who, limits or Limits(), of_death
        self.on_full: Callable[[], None] | None = None
        self._writing = threading.Lock()
        self._begin(child)

    def _begin(self, child: Child) -> None:
        """Talk to this child, whose first request is to come."""
        self.child = child
        self._last = NO_REQUEST
        self._arrived: dict[int, deque[Message]] = {NO_REQUEST: deque()}
        self._outgoing: deque[bytes] = deque()
        self._is_torn = False

    def close(self) -> None:
        """End the child, whatever it is doing, and wait until it is gone. Safe to call twice."""
        self.child.close()

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

    def request(self, message: Message) -> int:
        """Send a new request; returns its number."""
        number = self.new_request()
        self.send(number, message)
        return number

    def send(self, number: int, message: Message) -> None:
        """Send what is about a request. It arrives whole and in order, whoever else sends at the same time.

        That may be another thread, or a signal handler in the middle of a message: its own follows then. What an
        interrupt leaves in the middle is finished by the next call.
        """
        self._outgoing.append(protocol.encode(number, message))
        self.flush()

    def flush(self) -> None:
        """Send what was not sent yet."""
        is_full = False
        while self._outgoing and not is_full and self._writing.acquire(blocking=False):  # who holds it, sends ours too
            try:
                is_full = not self._flush()
            except Gone:
                raise self.of_death(self.child.death()) from None
            finally:
                self._writing.release()

    def _flush(self) -> bool:
        """Whether everything is sent."""
        watch = None
        while self._outgoing:
            if self._is_torn:  # interrupted at the one place where it is not known what the child has got
                raise self.ended("was interrupted in the middle of a message")
            self._is_torn = True
            line = self._outgoing[0]
            n_written = self.child.write(line)
            if n_written == len(line):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = line[n_written:]
            self._is_torn = False
            if not n_written:
                if self.on_full is not None:
                    self.on_full()
                    return False
                watch = self._not_idle(watch)
                self.child.wait_for_room(0.5)
        return True

    def _not_idle(self, watch: IdleWatch | None) -> IdleWatch:
        """Watches the child that is waited for. Raises once it has used no CPU for too long."""
        watch = watch or self.watch()
        if watch.is_idle():
            raise self.hung()
        return watch

    def watch(self) -> IdleWatch:
        """Of the child: whether it has used no CPU for too long."""
        return IdleWatch(self.child.pid, self.limits.idle_s)

    def hung(self) -> EngineCrashed:
        """End a child that is idle, and say so."""
        return self.ended(f"did nothing for {duration(self.limits.idle_s)}")

    # -- from the child ---

    def receive(self, number: int, deadline: float) -> Message | None:
        """The next message about a request, or None at the deadline (on `time.monotonic`)."""
        mine = self._arrived[number]
        while not mine:
            if not self._read(deadline):
                return None
        return mine.popleft()

    def _read(self, deadline: float) -> bool:
        """Take in the next message, whatever it is about; False at the deadline."""
        try:
            line = self.child.line(deadline)
        except Gone:
            raise self.of_death(self.child.death()) from None
        if line is None:
            return False
        try:
            about, message = protocol.decode(line)
        except Malformed as error:
            raise self.ended(f"sent what is {printable(str(error), 300)}") from None
        if about in self._arrived:
            self._arrived[about].append(message)
        elif not NO_REQUEST <= about <= self._last:
            raise self.ended("answered a request that was never made")
        return True

    @property
    def has_read(self) -> bool:
        """Whether a message is there that was read already."""
        return self.child.has_read or any(self._arrived.values())

    def answer(self, number: int) -> Message:
        """The next message about a request, however long it takes, as long as the child computes."""
        watch = None
        while (message := self.receive(number, time.monotonic() + 1)) is None:
            watch = self._not_idle(watch)
        return message

    def any_answer(self, numbers: Collection[int], deadline: float | None = None) -> tuple[int, Message] | None:
        """The next message about any of these requests, and which it is about; None at the deadline. As `answer`."""
        watch = None
        while True:
            for number in tuple(numbers):  # another thread may ask more meanwhile
                if mine := self._arrived[number]:
                    return number, mine.popleft()
            soon = time.monotonic() + 1
            if not self._read(soon if deadline is None else min(soon, deadline)):
                if deadline is not None and time.monotonic() >= deadline:
                    return None
                watch = self._not_idle(watch)

    def answer_within(self, number: int, limit_s: float) -> Message | None:
        """The only message about a request, or None after so many seconds; the request is forgotten."""
        message = self.receive(number, time.monotonic() + limit_s)
        self.forget(number)
        return message

    def forget(self, number: int) -> None:
        """Drop what came, and what will come, about a request. Safe to call twice."""
        self._arrived.pop(number, None)
