"""The connection of an engine to its child: requests, answers, and errors of ours for whatever goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection

from llmrun.engine import devices, failures
from llmrun.engine.channel import Channel
from llmrun.engine.devices import Found
from llmrun.engine.failures import Situation
from llmrun.engine.limits import Limits
from llmrun.engine.process import Child, Death
from llmrun.engine.protocol import Cancel, Failed, Message
from llmrun.errors import EngineCrashed, LlmrunError, OutOfMemory, UsageError


class Connection(Channel):
    """Closed by every error after which the child is of no use: `EngineCrashed`, `OutOfMemory`.

    Attributes:
        situation: what is being done, for messages.
    """

    def __init__(
        self,
        situation: Situation,
        limits: Limits | None = None,
        *,
        module: str = "child.main",
        child: Child | None = None,
        spins: bool = False,
        explain: Callable[[LlmrunError], LlmrunError] = lambda error: error,
    ) -> None:
        """`module`: of this package, which the child runs; `spins`: as in `Child`.

        `explain` may say more of an error.
        """
        super().__init__(child or Child(module, spins=spins), limits=limits, of_death=self._of_death)
        self.situation, self._module, self._spins, self._explain = situation, module, spins, explain
        self._left: int | None = None

    def start_again(self) -> None:
        """A new child in place of this one."""
        self.close()
        self._begin(Child(self._module, spins=self._spins))
        self._left = None

    def find_devices(self) -> Found:
        """Wait for a new child, and ask it what there is."""
        return devices.ask(self, self.situation.config.rpc, start_s=self.limits.start_s)

    # -- requests ---

    def new_request(self) -> int:
        """A number for the next request, once the child has finished with one that was left."""
        self._check_open()
        if self._left is not None:
            left = self._left
            self.cancel(left)
            self._last_answer(left)
        return super().new_request()

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
        answer = self.answer(number)
        self._left = None
        self.forget(number)
        return answer

    def send(self, number: int, message: Message) -> None:
        self._check_open()
        super().send(number, message)

    def cancel(self, number: int) -> None:
        """Have the child end a request, which is answered as always. May be called by a signal handler."""
        self.send(number, Cancel())

    def receive(self, number: int, deadline: float) -> Message | None:
        self._check_open()
        return super().receive(number, deadline)

    def any_answer(self, numbers: Collection[int], deadline: float | None = None) -> tuple[int, Message] | None:
        self._check_open()
        return super().any_answer(numbers, deadline)

    # -- errors ---

    def error_of(self, failed: Failed) -> LlmrunError:
        """The error for what the child says went wrong."""
        return self._explained(failures.of_failed(failed, self.situation))

    def unexpected(self, message: Message, what: str) -> LlmrunError:
        """The error for an answer that nobody waits for, which a failure may be: "in the middle of an answer"."""
        if isinstance(message, Failed):
            return self.error_of(message)
        return self.ended(f"sent {type(message).__name__} {what}")

    def _of_death(self, death: Death) -> LlmrunError:
        return self._explained(failures.of_death(death, self.situation))

    def _explained(self, error: LlmrunError) -> LlmrunError:
        if isinstance(error, EngineCrashed | OutOfMemory):
            self.close()
        return self._explain(error)

    def _check_open(self) -> None:
        if self.child.closed:
            raise UsageError("the engine is closed", hint="open the model again")
