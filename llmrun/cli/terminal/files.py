"""Names of files as users type them, in a chat or behind an option: whatever they are, an error in words."""

from __future__ import annotations

from pathlib import Path

from llmrun.errors import NotFound, UsageError
from llmrun.units import size

MAX_TEXT_BYTES = 64 << 20
"""Of a file that is text for a model; more tokens than any context has."""


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


def read_bytes(option: str, name: str) -> bytes:
    """What a file of the user's holds; a pipe is read to its end. Raises `NotFound`, `UsageError`."""
    path = path_of(option, name)
    try:
        if path.is_dir():
            raise UsageError(f"{option}: '{name[:200]}' is a folder", hint=f"ls {path}")
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(f"{option}: there is no file '{name[:200]}'", hint=f"ls {path.parent}") from None
    except OSError as error:
        raise UsageError(f"{option}: can't read '{name[:200]}': {error.strerror}") from None
    if len(data) > MAX_TEXT_BYTES:
        raise UsageError(f"{option}: '{name[:200]}' is larger than {size(MAX_TEXT_BYTES)}")
    return data


def read_text(option: str, name: str) -> str:
    """The same as text. Raises `UsageError` for what is not UTF-8."""
    try:
        return read_bytes(option, name).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{option}: '{name[:200]}' is no UTF-8 text") from None
