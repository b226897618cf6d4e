"""The connection of an engine to its child: requests, answers, and errors of ours for whatever goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmrun.engine import devices, failures
from llmrun.engine.channel import Died
from llmrun.engine.devices import Found
from llmrun.engine.failures import Situation
from llmrun.engine.limits import Limits
from llmrun.engine.process import Child
from llmrun.engine.protocol import Cancel, Failed, Message
from llmrun.errors import EngineCrashed, LlmrunError, OutOfMemory, UsageError

Explain = Callable[[LlmrunError], LlmrunError]


class Connection:
    """Closed by every error after which the child is of no use: `EngineCrashed`, `OutOfMemory`.

    Attributes:
        situation: what is being done, for messages.
    """

    def __init__(
        self,
        situation: Situation,
        limits: Limits,
        *,
        module: str = "child.main",
        child: Child | None = None,
        explain: Explain = lambda error: error,
    ) -> None:
        """`module`: of this package, which the child runs; `explain` may say more of an error."""
        self.situation = situation
        self._limits, self._module, self._explain = limits, module, explain
        self._channel = devices.new_channel(module, child=child, idle_s=limits.idle_s)
        self._left: int | None = None

    @property
    def limits(self) -> Limits:
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self._channel.idle_s = limits.idle_s

    @property
    def alive(self) -> bool:
        return self._channel.alive

    @property
    def pid(self) -> int:
        """Of the child that there is now."""
        return self._channel.pid

    def close(self) -> None:
        """End the child, whatever it is doing, and wait until it is gone. Safe to call twice."""
        self._channel.close()

    def start_again(self) -> None:
        """A new child in place of this one."""
        self._channel.close()
        self._channel = devices.new_channel(self._module, idle_s=self._limits.idle_s)
        self._left = None

    def find_devices(self) -> Found:
        """Wait for a new child, and ask it what there is."""
        return devices.ask(self._channel, self.situation.config.rpc, start_s=self._limits.start_s)

    def log_tail(self) -> str:
        """The last 20 kB of llama.cpp's log."""
        return self._channel.log_tail()

    # -- requests ---

    def new_request(self) -> int:
        """A number for the next request, once the child has finished with one that was left."""
        self._check_open()
        if self._left is not None:
            left = self._left
            self.cancel(left)
            self._last_answer(left)
        return self._channel.new_request()

    def ask(self, message: Message) -> Message:
        """Send something and wait for what it is answered with.

        Left before that, at a Ctrl-C for one, it is ended before the next request is sent.
        """
        return self._last_answer(self.begin(message))

    def begin(self, message: Message) -> int:
        """Send something that nobody waits for: the next request ends it. Returns its number."""
        self._left = number = self.new_request()
        self.send(number, message)
        return number

    def _last_answer(self, number: int) -> Message:
        answer = self.receive(number)
        self._left = None
        self.forget(number)
        return answer

    def send(self, number: int, message: Message) -> None:
        self._check_open()
        with self._deaths():
            self._channel.send(number, message)

    def cancel(self, number: int) -> None:
        """Have the child end a request, which is answered as always. May be called by a signal handler."""
        self.send(number, Cancel())

    def receive(self, number: int) -> Message:
        """The next message about a request. Raises when the child dies, or hangs."""
        self._check_open()
        with self._deaths():
            return self._channel.answer(number)

    def receive_until(self, number: int, deadline: float) -> Message | None:
        """The next message about a request, or None at the deadline (on `time.monotonic`)."""
        self._check_open()
        with self._deaths():
            return self._channel.receive(number, deadline)

    def forget(self, number: int) -> None:
        """The request is over: what still comes about it is dropped."""
        self._channel.forget(number)

    # -- errors ---

    def error_of(self, failed: Failed) -> LlmrunError:
        """The error for what the child says went wrong."""
        return self._explained(failures.of_failed(failed, self.situation))

    def ended(self, what: str) -> EngineCrashed:
        """End the child, and say so: "the engine did nothing for 300 s, and was ended"."""
        return self._channel.ended(what)

    def unexpected(self, message: Message, what: str) -> LlmrunError:
        """The error for an answer that nobody waits for, which a failure may be: "in the middle of an answer"."""
        if isinstance(message, Failed):
            return self.error_of(message)
        return self.ended(f"sent {type(message).__name__} {what}")

    @contextmanager
    def _deaths(self) -> Iterator[None]:
        try:
            yield
        except Died as error:
            raise self._explained(failures.of_death(error.death, self.situation)) from None

    def _explained(self, error: LlmrunError) -> LlmrunError:
        if isinstance(error, EngineCrashed | OutOfMemory):
            self.close()
        return self._explain(error)

    def _check_open(self) -> None:
        if self._channel.closed:
            raise UsageError("the engine is closed", hint="open the model again")
