"""A channel to a child that the test plays: what arrives where, and what ends the child."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from llmrun.engine.channel import Channel, Died
from llmrun.engine.process import Child, Death, Gone
from llmrun.engine.protocol import Cancel, Count, Counted, Message, encode
from llmrun.errors import EngineCrashed


class Played(Child):
    """A child without a process: takes `room` bytes at a time, calls `on_write` before each, says `lines`."""

    def __init__(self, *, room: int = 1 << 20) -> None:
        self.room, self.taken, self.closed = room, b"", False
        self.lines: deque[bytes | None] = deque()
        self.on_write: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int:
        return os.getpid()

    @property
    def alive(self) -> bool:
        return not self.closed

    def write(self, data: bytes) -> int:
        self.on_write()
        n = min(self.room, len(data))
        self.taken += data[:n]
        return n

    def wait_for_room(self, timeout_s: float) -> None:
        pass

    def line(self, deadline: float) -> bytes | None:
        if not self.lines:
            raise Gone
        return self.lines.popleft()

    def close(self) -> None:
        self.closed = True

    def death(self) -> Death:
        self.close()
        return Death("was ended by SIGKILL", False, 9, "")

    def says(self, number: int, message: Message) -> None:
        self.lines.append(encode(number, message).removesuffix(b"\n"))


def sent(child: Played) -> list[tuple[int, str]]:
    """Numbers and kinds of the messages that the child got, each of them whole."""
    return [(line[0], line[1]) for line in map(json.loads, child.taken.splitlines())]


def test_requests_have_numbers() -> None:
    child = Played()
    channel = Channel(child)
    first, second = channel.request(Count("a")), channel.request(Count("b"))
    channel.send(first, Cancel())
    assert sent(child) == [(first, "Count"), (second, "Count"), (first, "Cancel")]


def test_a_child_that_takes_no_more() -> None:
    """Who has something else to do is told, and goes on later: all arrives, in order."""
    child, told = Played(room=3), list[bool]()
    channel = Channel(child)
    channel.on_full = lambda: told.append(True)
    first = channel.request(Count("a"))
    child.room = 0
    second = channel.request(Count("b"))
    channel.send(first, Cancel())
    assert sent(child) == [(first, "Count")] and len(told) == 2
    child.room = 1 << 20
    channel.flush()
    assert sent(child) == [(first, "Count"), (second, "Count"), (first, "Cancel")] and len(told) == 2


def test_answers_go_to_their_requests() -> None:
    """In whatever order they come; what comes about a forgotten one is dropped."""
    child = Played()
    channel = Channel(child)
    first, second, third = (channel.request(Count("a")) for _ in range(3))
    channel.forget(second)
    for number, n in ((third, 3), (second, 2), (first, 1)):
        child.says(number, Counted(n))
    assert channel.answer(first) == Counted(1) and channel.answer(third) == Counted(3)


@pytest.mark.parametrize(
    "line", [b"nonsense", b'[1, "Counted", {"n_tokens": "7"}]', b'[99, "Counted", {"n_tokens": 7}]', b"[" * 100_000]
)
def test_a_hostile_child_is_ended(line: bytes) -> None:
    """What is no message, and an answer to a request that was never made: a clear error, and no child."""
    child = Played()
    channel = Channel(child)
    number = channel.request(Count("a"))
    child.lines.append(line)
    with pytest.raises(EngineCrashed, match="the engine (sent what is not a message|answered a request)"):
        channel.answer(number)
    assert child.closed


def test_a_child_that_is_gone() -> None:
    channel = Channel(Played())
    with pytest.raises(Died, match="SIGKILL"):
        channel.answer(channel.request(Count("a")))


def test_a_cancel_in_the_middle_of_a_request() -> None:
    """A signal handler that cancels while a request is half written: the request is whole, and the cancel follows."""
    child = Played(room=5)
    channel = Channel(child)
    number = channel.new_request()
    n_writes = 0

    def handler() -> None:
        nonlocal n_writes
        n_writes += 1
        if n_writes == 3:
            channel.send(number, Cancel())

    child.on_write = handler
    channel.send(number, Count("a prompt that is longer than five bytes"))
    assert sent(child) == [(number, "Count"), (number, "Cancel")]


def test_an_interrupt_in_the_middle_of_a_request() -> None:
    """Where it can be seen how much was written, the rest is written by whoever sends next."""
    child = Played(room=5)
    channel = Channel(child)
    number = channel.new_request()

    def interrupt(timeout_s: float) -> None:
        raise KeyboardInterrupt

    child.room = 0
    child.wait_for_room = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        channel.send(number, Count("a prompt"))
    child.room = 5
    channel.send(number, Cancel())
    assert sent(child) == [(number, "Count"), (number, "Cancel")]


def test_an_interrupt_while_the_system_writes() -> None:
    """Where it can't be seen, the child is of no use any more."""
    child = Played(room=5)
    channel = Channel(child)
    number = channel.new_request()

    def interrupt() -> Any:
        raise KeyboardInterrupt

    child.on_write = interrupt
    with pytest.raises(KeyboardInterrupt):
        channel.send(number, Count("a prompt"))
    child.on_write = lambda: None
    with pytest.raises(EngineCrashed, match="in the middle of a message"):
        channel.send(number, Cancel())
    assert child.closed
