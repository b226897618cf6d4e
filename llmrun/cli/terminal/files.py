"""Names of files as users type them, in a chat or behind an option: whatever they are, an error in words."""

from __future__ import annotations

import codecs
from pathlib import Path

from llmrun.cli.terminal import screen
from llmrun.errors import NotFound, UsageError
from llmrun.units import size

MAX_TEXT_BYTES = 64 << 20
"""Of a file that is text for a model; more tokens than any context has."""

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def path_of(option: str, name: str) -> Path:
    """The path, a ~ at its beginning followed. Raises `UsageError` for what can't be one."""
    try:
        path = Path(name).expanduser()
        path.exists()  # too long a name, a NUL in it
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{option}: '{name[:60]}' is no file's name: {reason}") from None
    return path


def is_file(name: str) -> bool:
    """Whether it is the name of a file; False for anything that can't be a name at all."""
    try:
        return path_of("", name).is_file()
    except (UsageError, OSError):
        return False


def read_bytes(option: str, name: str, *, most: int = MAX_TEXT_BYTES) -> bytes:
    """What a file of the user's holds; a pipe is read to its end. Raises `NotFound`, `UsageError`."""
    path = path_of(option, name)
    try:
        if path.is_dir():
            raise UsageError(f"{option}: '{name[:200]}' is a folder", hint=f"ls {path}")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise NotFound(f"{option}: there is no file '{name[:200]}'", hint=f"ls {path.parent}") from None
    except OSError as error:
        raise UsageError(f"{option}: can't read '{name[:200]}': {error.strerror}") from None
    if len(data) > most:
        raise UsageError(f"{option}: '{name[:200]}' is larger than {size(most)}")
    return data


def read_text(option: str, name: str) -> str:
    """The same as text. Raises `UsageError` for what is not UTF-8, or UTF-16 that says so."""
    text, problem = text_of(read_bytes(option, name))
    if problem:
        raise UsageError(f"{option}: '{name[:200]}' {problem}")
    return text


def text_of(data: bytes) -> tuple[str, str | None]:
    """A text without byte order mark and with line feeds alone at its lines' ends; and what is wrong with it.

    UTF-8, or what a byte order mark says. What can't be read is U+FFFD.
    """
    encoding = _encoding(data)
    problem = None
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        text = data.decode(encoding, errors="replace")
        problem = f"is not {_shown(encoding)} text: byte {error.start} is 0x{data[error.start]:02x}"
    return text.replace("\r\n", "\n"), problem


def text_or_note(data: bytes, what: str) -> str:
    """The same, and a note of what is wrong with it, or unusual: for texts that are of use all the same."""
    text, problem = text_of(data)
    if problem:
        screen.note(f"warning: {what} {problem}; what can't be read is \ufffd")
    elif _encoding(data) != "utf-8-sig":
        screen.note(f"{what} is {_shown(_encoding(data))}")
    return text


def _encoding(data: bytes) -> str:
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8-sig")


def _shown(encoding: str) -> str:
    return encoding.removesuffix("-sig").upper()
