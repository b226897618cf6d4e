"""TOML files that a user may have written: read with bounds, and with file and line in every complaint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llmrun.errors import UsageError

MAX_BYTES = 1 << 20


def read_toml(path: Path, kind: str, shown: Path | None = None) -> tuple[dict[str, Any], str]:
    """The tables of a file that should be a `kind`, and its text. Raises `UsageError` with file (`shown`) and line."""
    tomllib = _toml_parser()
    name = shown or path
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise UsageError(f"{name}: more than {MAX_BYTES >> 20} MiB is not a {kind}")
        text = raw.decode()
        return tomllib.loads(text), text
    except OSError as error:
        raise UsageError(f"{name}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UsageError(f"{name}:{line}: not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        said, _, where = str(error).rpartition(" (at ")
        found = re.match(r"line (\d+)", where)
        line = int(found[1]) if found else len(text.splitlines())
        raise UsageError(f"{name}:{line}: not valid TOML: {said or where}") from error
    except RecursionError as error:
        raise UsageError(f"{name}: not valid TOML: brackets in brackets in brackets") from error


def is_option_value(value: object) -> bool:
    """Whether an option can have it: no table, no date, no list in a list."""
    each = value if isinstance(value, list) else [value]
    return all(isinstance(one, bool | int | float | str) for one in each)


def _toml_parser() -> Any:
    from importlib import import_module

    try:
        return import_module("tomllib")
    except ModuleNotFoundError:  # Python 3.10
        return import_module("tomli")
