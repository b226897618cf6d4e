"""Tools of a chat: the functions of a user's file, and a question before each call."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmrun.cli.terminal import screen, status_line
from llmrun.errors import Change, UsageError
from llmrun.text import sanitize

if TYPE_CHECKING:
    from llmrun.engine.jobs.functions import UserFunctions
    from llmrun.engine.protocol import FunctionSpec, Tool

NOT_ALLOWED = "The user did not allow this call."
_MOST_SHOWN = 300
"""Characters of a result; the model gets all of it."""


def check_somebody_is_there(*, trusted: bool) -> None:
    """Raises `UsageError` where nobody could be asked."""
    if not trusted and not (screen.is_terminal(sys.stdin) and screen.is_terminal(sys.stderr)):
        raise UsageError(
            "there is no terminal to ask on before a call",
            field="tools",
            hint=Change({"trust_tools": True}, "runs what the model calls without asking"),
        )


def tools_of(specs: Sequence[FunctionSpec]) -> list[Tool]:
    """Raises `UsageError` for a type that answers can't be held to."""
    from llmrun.wire.request import Function, Refused
    from llmrun.wire.request import tools_of as made

    try:
        return [*made([Function(each.name, each.description, each.parameters) for each in specs], "tools")]
    except Refused as error:
        raise UsageError(error.message, field="tools") from None


class AskedTools:
    """A `conversation.Toolbox`.

    Attributes:
        functions: what is called.
        trusted: without a question.
    """

    def __init__(self, functions: UserFunctions, *, trusted: bool = False) -> None:
        self.functions, self.trusted = functions, trusted
        self.tools: Sequence[Tool] = tools_of(functions.specs)
        self._always: set[str] = set()

    def run(self, name: str, arguments: str) -> str:
        shown = call_text(name, arguments)
        if self.trusted or name in self._always:
            screen.note(f"run {shown}")
        else:
            key = _asked(f"run {shown}?")
            if key == "n":
                return NOT_ALLOWED
            if key == "a":
                self._always.add(name)
        return self.functions.call(name, arguments)


def call_text(name: str, arguments: str) -> str:
    """weather(city="Oslo", days=3): all of it, as it is what is allowed."""
    try:
        given = json.loads(arguments)
        values = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items())
    except (ValueError, AttributeError, RecursionError):
        values = arguments
    return f"{name}({values})"


def result_text(text: str) -> str:
    line = " ".join(text[: 4 * _MOST_SHOWN].split())
    return f"→ {line if len(line) <= _MOST_SHOWN else line[:_MOST_SHOWN] + '…'}"


def _asked(question: str) -> str:
    """ "y", "n" or "a", as one key. Raises `KeyboardInterrupt`."""
    import termios

    descriptor = sys.stdin.fileno()
    with status_line.without_echo():
        termios.tcflush(descriptor, termios.TCIFLUSH)  # what was typed before is no answer to this
        screen.draw(f"{sanitize(question)} [y]es, [n]o, [a]lways this one ", sys.stderr)
        words = {"y": "yes", "n": "no", "a": "always"}
        key = ""
        try:
            while key not in words:
                key = os.read(descriptor, 1).decode(errors="replace").lower()
                key = "n" if key in ("", "\x04") else key  # the terminal is gone, or Ctrl-D
        finally:
            screen.draw(words.get(key, "") + "\n", sys.stderr)
    return key
