"""Chat templates: messages to the text that the model was trained on. Child process only, under limits.

A template comes with the model file and is not to be trusted. Jinja's immutable sandbox keeps it from code, but not
from loops without end or strings of gigabytes: the worker bounds memory around the call, the parent bounds time.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

MEMORY_LIMIT = 512 << 20


class TemplateError(Exception):
    """The template could not be rendered; the text says why."""


class Templates:
    """Renders chat templates, in the environment that Hugging Face's `apply_chat_template` documents.

    Blocks are trimmed, `break` and `continue` known; there are `raise_exception`, `strftime_now`, and `tojson` without
    HTML escapes. Making one imports Jinja.
    """

    def __init__(self) -> None:
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self._environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        self._environment.filters["tojson"] = _tojson
        self._environment.globals["raise_exception"] = _raise_exception
        self._environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def render(self, template: str, messages: Sequence[dict[str, str]], *, bos_token: str, eos_token: str) -> str:
        """The prompt for `messages` (dicts of role and content), ready for the model's answer.

        Raises `TemplateError`. There is no limit in time here: a loop must be ended from outside.
        """
        try:
            with _limited_memory():
                return self._environment.from_string(template).render(
                    messages=list(messages), add_generation_prompt=True, bos_token=bos_token, eos_token=eos_token
                )
        except MemoryError as error:
            raise TemplateError(f"it wants more than {MEMORY_LIMIT >> 20} MiB") from error
        except TemplateError:
            raise
        except Exception as error:  # a program that came with a file can fail in any way
            raise TemplateError(f"{type(error).__name__}: {error}") from error


def _raise_exception(text: str) -> None:
    raise TemplateError(text)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Let the process grow by no more than `MEMORY_LIMIT` of address space meanwhile."""
    try:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:  # macOS has no statm, and does not enforce RLIMIT_AS either
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = in_use + MEMORY_LIMIT
    bounded = limit if soft == resource.RLIM_INFINITY else min(soft, limit)
    resource.setrlimit(resource.RLIMIT_AS, (bounded, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def without_system(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The same conversation for a template that knows no system role: its text stands before the first user's."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return list(messages)
    first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]
