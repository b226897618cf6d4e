"""The process that renders chat templates, so that a hostile one reaches neither the engine's memory nor its time.

A template is a program that comes with a model file. Its limits are the system's own and hold for a whole process: the
engine's would hit a model that is being computed at the same moment. So this process is forked off before the engine
starts a thread or loads a library, imports Jinja while the engine loads llama.cpp, and lives as long as the engine.
A limit on memory it survives; a template without end it does not.

One line of JSON asks, one answers. What comes back is text and stays text, whoever has come to own that process.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from llmrun import codec
from llmrun.engine.child.chat_template import MEMORY_LIMIT, TemplateError, Templates
from llmrun.engine.child.reasoning import Tags
from llmrun.engine.child.tool_syntax import ToolSyntax
from llmrun.engine.child.written import Written, of_pieces
from llmrun.machine.proc import Proc

RENDER_CPU_S = 1.5
"""For one conversation, compiling the template included. The slowest of those that llama.cpp ships takes 0.05."""


class TemplateProcessDied(Exception):
    """It renders no more; the text says why: "took more than 1.5 s and was ended"."""


class Job(NamedTuple):
    """What to render: see `chat_template.Templates.render`."""

    template: str
    messages: list[dict[str, Any]]
    special: dict[str, str]
    enable_thinking: bool
    tools: list[dict[str, Any]] | None = None


class Outcome(NamedTuple):
    """The prompt in pieces (`Written.pieces`), how the answer marks its thinking (`reasoning.tags_of`) and how it calls
    tools (`tool_syntax.syntax_of`), or else what went wrong."""

    pieces: list[str]
    tags: Tags | None
    syntax: ToolSyntax | None
    error: str | None


class Prompt(NamedTuple):
    """`syntax`: None where there are no tools."""

    text: Written
    tags: Tags | None
    syntax: ToolSyntax | None


class TemplateProcess:
    """This side of it. `close` it, or end: it ends with the process that started it."""

    def __init__(self, cpu_s: float = RENDER_CPU_S) -> None:
        """Fork. Only where no other thread runs yet. `cpu_s`: of CPU time, for one conversation."""
        self._cpu_s = cpu_s
        asked, ask = os.pipe()
        answered, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(ask)
            os.close(answered)
            _run(asked, answer, cpu_s)
        os.close(asked)
        os.close(answer)
        self._to = os.fdopen(ask, "wb")
        self._from = os.fdopen(answered, "rb")

    def render(
        self,
        template: str,
        messages: Sequence[dict[str, Any]],
        special: Mapping[str, str],
        *,
        enable_thinking: bool = True,
        tools: list[dict[str, Any]] | None = None,
    ) -> Prompt:
        """The prompt for `messages`, and what an answer looks like: see `chat_template.Templates.render`.

        Raises `TemplateError`, `TemplateProcessDied`.
        """
        # Half of a surrogate pair, from an argument that is not UTF-8, becomes "?", as the tokenizer would write it.
        clean = [_clean(message) for message in messages]
        try:
            job = Job(template, clean, dict(special), enable_thinking, _clean(tools))
            self._to.write(codec.encode(job) + b"\n")
            self._to.flush()
            outcome = codec.decode(self._from.readline(), Outcome)
        except (OSError, ValueError):  # the end of a pipe, half an answer, a stream that was closed before
            raise TemplateProcessDied(self._death()) from None
        if outcome.error is not None:
            raise TemplateError(outcome.error)
        return Prompt(of_pieces(outcome.pieces), outcome.tags, outcome.syntax)

    def close(self) -> None:
        """End it and wait until it is gone. Safe to call twice."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self._death()

    def _death(self) -> str:
        """Why it is gone; ends it if it is not."""
        for stream in (self._to, self._from):
            with suppress(OSError):  # a request that is still buffered
                stream.close()
        if not self.pid:
            return "has been ended"
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
            return f"took more than {self._cpu_s:g} s and was ended"
        return f"died of signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "has ended its process"


def _run(asked: int, answer: int, cpu_s: float) -> NoReturn:
    """The other side. Leaves nothing of the process that it was forked from but its log."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends the engine, which ends us
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(2, 1)
        _serve(asked, answer, cpu_s)
    except BaseException:  # noqa: BLE001 - nothing of the process that was forked may run on
        import traceback

        traceback.print_exc()
    finally:
        os._exit(0)


def _serve(asked: int, answer: int, cpu_s: float) -> None:
    templates = Templates()
    _limit_memory()
    with os.fdopen(asked, "rb") as lines, os.fdopen(answer, "wb") as answers:
        for line in lines:
            job = codec.decode(line, Job)
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            outcome = _rendered(templates, job)
            signal.setitimer(signal.ITIMER_PROF, 0)
            answers.write(codec.encode(outcome) + b"\n")
            answers.flush()


def _rendered(templates: Templates, job: Job) -> Outcome:
    try:
        text = templates.render(
            job.template, job.messages, job.special, enable_thinking=job.enable_thinking, tools=job.tools
        )
        syntax = templates.syntax_of(job.template, job.special) if job.tools else None
        return Outcome(text.pieces(), templates.tags_of(job.template, job.special), syntax, None)
    except TemplateError as error:
        return Outcome([], None, None, str(error))
    except RecursionError:  # arguments of a call, which are read as JSON
        return Outcome([], None, None, "what it is given is nested too deeply")


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {key: _clean(each) for key, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list) else value


def _limit_memory() -> None:
    """Let the process grow by no more than `MEMORY_LIMIT`, for good."""
    in_use = Proc().memory().address_space_bytes
    if in_use is None:  # macOS does not tell, and does not enforce RLIMIT_AS either
        return
    limits = [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    limit = min([in_use + MEMORY_LIMIT, *limits])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
