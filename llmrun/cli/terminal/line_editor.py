"""What the user types in a chat: edited on a terminal, read line by line from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrun.cli.terminal import files, screen
from llmrun.text import sanitize

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completion

MANY = '"""'
"""Begins and ends a message of several lines."""
_PROMPT = ">>> "
_MORE = "... "


Read = Callable[[str], str]
"""The next message, of one line or several, that begins with this text where it is edited. Raises `EOFError` at the
end, `KeyboardInterrupt` for Ctrl-C."""


def is_open(text: str) -> bool:
    """Whether the message goes on in the next line."""
    stripped = text.lstrip()
    if stripped.startswith(MANY):
        return MANY not in stripped[len(MANY) :]
    return text.endswith("\\") and not text.endswith("\\\\")


def plain(text: str) -> str:
    """The message without what only marked its lines."""
    stripped = text.strip()
    if stripped.startswith(MANY):
        inner = stripped[len(MANY) :]
        return inner.removesuffix(MANY).strip("\n") if inner.endswith(MANY) else inner.replace(MANY, "", 1).strip("\n")
    return text.replace("\\\n", "\n").strip()


def piped(_prefill: str) -> str:
    """`Read` of standard input that is no terminal: every line is a message, if it does not say that it goes on."""
    text = ""
    while line := sys.stdin.buffer.readline() if sys.stdin else b"":
        text += files.text_or_note(line, "a line of standard input")
        if not is_open(text.rstrip("\n")):
            return plain(text)
    if not text.strip():
        raise EOFError
    return plain(text)


def edited(
    history: Path | None,
    status: Callable[[], str] | None,
    commands: Iterable[str],
    words: Callable[[str, str], Iterable[str]],
    sends_empty: Callable[[], bool],
) -> Read:
    """`Read` of a terminal: line editing, history with search, completion, an editor for the rest.

    `status` is the line at the bottom, `words` what can stand behind a slash command: (command, prefix) → names.
    `sends_empty`: whether a line without a word is a message just now.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output
    from prompt_toolkit.styles import Style

    session: PromptSession[str] = PromptSession(
        message=_PROMPT,
        multiline=True,
        prompt_continuation=_MORE,
        history=_history(history),
        key_bindings=_keys(sends_empty),
        completer=_completer(list(commands), words),
        complete_while_typing=False,
        enable_open_in_editor=True,
        enable_suspend=True,
        tempfile_suffix=".md",
        enable_history_search=False,
        bottom_toolbar=(lambda: sanitize(status())) if status is not None else None,
        style=Style.from_dict({"bottom-toolbar": "noreverse", "bottom-toolbar.text": "noreverse ansibrightblack"}),
        # Where the answers go into a file, the prompt is still for eyes.
        output=create_output(stdout=sys.stdout if screen.is_terminal(sys.stdout) else sys.stderr),
    )
    return lambda prefill: plain(session.prompt(default=prefill))


def _history(path: Path | None) -> Any:
    """What was typed, in a file for as long as it can be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Careful(FileHistory):
        is_broken = False

        def store_string(self, string: str) -> None:
            try:
                if not self.is_broken:
                    super().store_string(string)
            except OSError as error:
                self.is_broken = True
                screen.note(f"what is typed can't be kept any more: {error.strerror}")

        def load_history_strings(self) -> Iterable[str]:
            try:
                return [*super().load_history_strings()]
            except OSError:
                return []

    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        screen.note(f"what is typed can't be kept: {error.strerror}")
        return InMemoryHistory()
    return Careful(os.fspath(path))


def _keys(sends_empty: Callable[[], bool]) -> Any:
    from prompt_toolkit.filters import has_completions, is_searching
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter", filter=~is_searching & ~has_completions)
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.newline(copy_margin=False)
        elif buffer.text.strip() or sends_empty():
            buffer.validate_and_handle()

    @keys.add("enter", filter=has_completions & ~is_searching)
    def _take(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None
        else:
            buffer.cancel_completion()
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-g", filter=~is_searching)
    def _editor(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return keys


def _completer(commands: list[str], words: Callable[[str, str], Iterable[str]]) -> Any:
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)
    models = PathCompleter(expanduser=True, file_filter=lambda path: path.endswith(".gguf") or os.path.isdir(path))  # noqa: PTH112

    class Slash(Completer):
        def get_completions(self, document: Document, complete_event: Any) -> Iterator[Completion]:
            text = document.text_before_cursor
            if not text.startswith("/") or "\n" in text:
                return
            name, blank, rest = text.partition(" ")
            if not blank:
                yield from (Completion(each, -len(name)) for each in commands if each.startswith(name))
                return
            for each in words(name, rest):
                if each.startswith(rest):
                    yield Completion(each, -len(rest))
            if name in ("/read", "/load", "/export", "/model"):
                known = models if name == "/model" else paths
                yield from known.get_completions(Document(rest, len(rest)), complete_event)

    return Slash()
