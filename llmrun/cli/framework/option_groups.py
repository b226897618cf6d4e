"""Options that belong together, as one argument of a command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def gathered(
    name: str, make: Callable[..., Any], *, either: tuple[tuple[str, str], ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that gives a command the parameters of `make` as options of its own.

    When the command is called, `make` is called with their values first, and the command gets what it returns as
    `name`. Typer reads options from a function's signature; so the command is wrapped in a function that has them.

    `either`: parameters that say the same in two ways: where one is typed, a setting for the other does not count.
    """
    theirs = inspect.signature(make).parameters
    hints = get_type_hints(make, include_extras=True)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(**values: Any) -> Any:
            values[name] = make(**{key: values.pop(key) for key in theirs})
            return command(**values)

        own = get_type_hints(command, include_extras=True)
        signature = inspect.signature(command)
        kept = [parameter for parameter in signature.parameters.values() if parameter.name != name]
        added = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in theirs.values()]
        every = [
            parameter.replace(annotation=(own if parameter.name in own else hints)[parameter.name])
            for parameter in [*kept, *added]
        ]
        every.sort(key=lambda parameter: parameter.kind)
        wrapper.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        wrapper.makes = (*getattr(command, "makes", ()), make)  # type: ignore[attr-defined]  # for `llmrun config set`
        wrapper.either = (*getattr(command, "either", ()), *either)  # type: ignore[attr-defined]
        return wrapper

    return decorate
