"""Which request is served, and which is cancelled: the child's side, without a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmrun.engine.child.inbox import Inbox
from llmrun.engine.protocol import Cancel, Count, Measure


class Flag:
    up = False

    def set(self) -> None:
        self.up = True

    def clear(self) -> None:
        self.up = False


@pytest.fixture
def flag() -> Flag:
    return Flag()


@pytest.fixture
def inbox(flag: Flag) -> Inbox:
    seconds = iter(range(100))
    return Inbox(flag, clock=lambda: float(next(seconds)))


def served(inbox: Inbox, flag: Flag, *, then: Callable[[], None] = lambda: None) -> tuple[int, bool]:
    """The number of the next request, and whether it was cancelled when it was done."""
    request = inbox.next()
    then()
    was_cancelled = flag.up
    inbox.done(request.number)
    return request.number, was_cancelled


def test_a_request_is_stamped_when_it_is_received(inbox: Inbox) -> None:
    """Not when its turn comes."""
    inbox.put(1, Count("a"))
    inbox.put(2, Count("b"))
    assert [inbox.next().received_s, inbox.next().received_s] == [0.0, 1.0]


def test_cancel_is_for_one_request(inbox: Inbox, flag: Flag) -> None:
    """For one that waits it is kept until its turn; the ones before and behind it are not touched."""
    for number in (1, 2, 3):
        inbox.put(number, Count("a"))
    inbox.put(2, Cancel())
    assert [served(inbox, flag) for _ in range(3)] == [(1, False), (2, True), (3, False)]


def test_cancel_during_a_request(inbox: Inbox, flag: Flag) -> None:
    inbox.put(1, Count("a"))
    inbox.put(2, Count("b"))
    assert served(inbox, flag, then=lambda: inbox.put(1, Cancel())) == (1, True)
    assert served(inbox, flag, then=lambda: inbox.put(1, Cancel())) == (2, False)


def test_a_later_message_clears_no_cancel(inbox: Inbox, flag: Flag) -> None:
    """What comes behind a cancel is no reason to go on."""

    def cancel_and_ask() -> None:
        inbox.put(1, Cancel())
        inbox.put(2, Count("b"))

    inbox.put(1, Count("a"))
    assert served(inbox, flag, then=cancel_and_ask) == (1, True)
    assert served(inbox, flag) == (2, False)


def test_cancel_of_what_is_not_there(inbox: Inbox, flag: Flag) -> None:
    """Over already, or never made: it changes nothing, and is not remembered."""
    inbox.put(1, Cancel())
    inbox.put(1, Count("a"))
    assert served(inbox, flag) == (1, False)
    inbox.put(1, Cancel())
    inbox.put(9, Cancel())
    inbox.put(2, Count("b"))
    assert served(inbox, flag) == (2, False)


def test_several_are_served(inbox: Inbox, flag: Flag) -> None:
    """What is computed for two is broken off when both are cancelled, and not for one of them."""
    for number in (1, 2, 3):
        inbox.put(number, Count("a"))
    first, second = inbox.next(), inbox.take(Count)
    assert second is not None and (first.number, second.number) == (1, 2)
    inbox.put(2, Cancel())
    assert not flag.up and inbox.cancelled == {2}
    inbox.put(1, Cancel())
    assert (flag.up, inbox.cancelled) == (True, {1, 2})
    inbox.done(1)
    assert (flag.up, inbox.cancelled) == (True, {2})
    third = inbox.take(Count)  # which is wanted: the flag would break off what is computed for it
    assert third is not None and (flag.up, inbox.cancelled) == (False, {2})
    inbox.done(2)
    assert (flag.up, inbox.cancelled) == (False, set())


def test_what_is_taken_is_the_next_one(inbox: Inbox) -> None:
    """Nobody overtakes: a request of another kind waits for its turn, and those behind it wait for it."""
    assert inbox.take(Count) is None
    inbox.put(1, Measure("a", None))  # type: ignore[arg-type]
    inbox.put(2, Count("a"))
    assert inbox.take(Count) is None
    assert inbox.next().number == 1
    second = inbox.take(Count)
    assert second is not None and second.number == 2
