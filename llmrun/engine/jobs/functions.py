"""The functions of a user's Python file, in a process of their own: what they print and how they end is theirs."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from llmrun.engine.channel import Channel, Died
from llmrun.engine.process import Child
from llmrun.engine.protocol import CallFunction, Failed, Functions, FunctionSpec, LoadFunctions, Message, Returned
from llmrun.errors import LlmrunError, UsageError
from llmrun.text import printable
from llmrun.units import duration

LOAD_S = 60.0
"""What the file may take to run."""
CALL_S = 120.0
"""The same of a call; then its process is ended."""
MOST_RESULT = 100_000
"""Characters of a result; more than most contexts have room for."""


class UserFunctions:
    """A context manager: leaving it ends the process. Raises `UsageError`, with the line, for a file that can't be run.

    Attributes:
        specs: of the functions, in the file's order.
    """

    def __init__(self, path: Path, *, load_s: float = LOAD_S, call_s: float = CALL_S) -> None:
        self._path, self._load_s, self._call_s = path, load_s, call_s
        self._channel: Channel | None = None
        try:
            self.specs: list[FunctionSpec] = self._load().specs
        except BaseException:
            self.close()
            raise

    def call(self, name: str, arguments: str) -> str:
        """What came of it, for a model: also that it failed, took too long, or ended its process. An interrupt ends
        the process; the next call has a new one, in which the file has run again."""
        try:
            if self._channel is None:
                self._load()
            answer = self._ask(CallFunction(name, arguments), self._call_s)
        except BaseException as error:
            self.close()
            if isinstance(error, Died):
                return f"{name} {error.death.reason}"
            if isinstance(error, LlmrunError):
                return error.message
            raise
        if answer is None:
            self.close()
            return f"{name} took more than {duration(self._call_s)}, and was ended"
        text = answer.text if isinstance(answer, Returned) else "no result"
        n_more = len(text) - MOST_RESULT
        return text if n_more <= 0 else f"{text[:MOST_RESULT]}… ({n_more} characters more)"

    def _load(self) -> Functions:
        # A process of its own each time: what a file has done to one can't be undone.
        self._channel = Channel(Child("child.functions"), who="functions")
        try:
            answer = self._ask(LoadFunctions(str(self._path.expanduser().absolute())), self._load_s)
        except Died as error:
            raise UsageError(f"{self._path}: its process {error.death.reason}", field="tools") from None
        match answer:
            case Functions():
                return answer
            case Failed():
                raise UsageError(f"{self._path}, {printable(answer.message, 400)}", field="tools")
            case _:
                raise UsageError(f"{self._path}: to run it takes more than {duration(self._load_s)}", field="tools")

    def _ask(self, message: Message, limit_s: float) -> Message | None:
        """None after so many seconds."""
        assert self._channel is not None
        return self._channel.answer_within(self._channel.request(message), limit_s)

    def close(self) -> None:
        """End the process, whatever it is doing. Safe to call twice."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def __enter__(self) -> UserFunctions:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
