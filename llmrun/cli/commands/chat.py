"""`llmrun chat MODEL`, and `llmrun run MODEL` without a prompt on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llmrun.chat.answer_options import AnswerOptions
from llmrun.cli.answering.answer_options import AnswerShape, answer_options
from llmrun.cli.framework import completion, options
from llmrun.cli.framework.command import Invocation, command
from llmrun.cli.framework.options import Option
from llmrun.cli.loading.tuned import TuningArguments
from llmrun.errors import UsageError
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig
from llmrun.options.spec import TEXT

if TYPE_CHECKING:
    from llmrun.chat.conversation import Toolbox


def _model_of(params: Mapping[str, Any]) -> str:
    """Without MODEL, a conversation that goes on says which."""
    if params.get("model") is not None:
        return str(params["model"])
    if not params.get("continue_") and not params.get("resume"):
        raise UsageError("which model?", hint="llmrun chat tiny, or llmrun chat --continue; llmrun list has names")
    from llmrun.chat.store import Conversations

    with Conversations() as kept:
        return kept.read(kept.find(params.get("resume") or "last")).model


@command(model_of=_model_of)
def chat(
    model: options.OptionalModelName = None,
    system: options.System = None,
    continue_: Annotated[bool, Option("--continue", help="Go on with the last conversation.")] = False,
    resume: Annotated[
        str | None,
        Option(
            "--resume",
            metavar="ID",
            help="Go on with this conversation; `llmrun history` lists them.",
            complete=completion.conversations,
        ),
    ] = None,
    ephemeral: Annotated[bool, Option("--ephemeral/--keep", help="Keep nothing of it.")] = False,
    plain: Annotated[bool, Option("--plain", help="Show answers as they are, without Markdown and colours.")] = False,
    no_status: Annotated[bool, Option("--no-status", help="No status line.")] = False,
    ctx_overflow: Annotated[
        str,
        Option("--ctx-overflow", metavar="drop|stop", help="When the context is full: drop the oldest turns, or stop."),
    ] = "drop",
    tools: Annotated[
        Path | None,
        Option(
            "--tools",
            metavar="FILE.py",
            help="What the model may call: the functions of this file. Each call is asked for.",
            panel=TEXT,
        ),
    ] = None,
    trust_tools: Annotated[
        bool, Option("--trust-tools", help="Run what the model calls without asking.", panel=TEXT)
    ] = False,
    server: options.Server = None,
    api_key_file: options.ApiKeyFile = None,
    quiet: options.Quiet = False,
    *,
    answering: AnswerOptions,
    shape: AnswerShape,
    sampling: SamplingConfig,
    load: LoadConfig,
    tuning: TuningArguments,
    invocation: Invocation,
) -> None:
    """Talk with a model; /help there lists what can be done.

    Conversations keep themselves (`llmrun history`). From a pipe, every line is a message.
    """
    if continue_ and resume is not None:
        raise UsageError(f"--continue is the last conversation, --resume {resume} another: one of the two")
    if ephemeral and (continue_ or resume is not None):
        raise UsageError("--ephemeral keeps nothing, so there is nothing to go on with", hint="leave it out")
    assert model is not None  # `_model_of` found one
    from llmrun.cli.chat.session import converse
    from llmrun.cli.loading import of_server
    from llmrun.engine.process import started_early

    answers = replace(answer_options(answering, shape), ctx_overflow=ctx_overflow)  # type: ignore[arg-type]  # checked when it is made
    remote = of_server.asked(server, api_key_file, invocation.given(model), answers)
    with ExitStack() as stack:
        child = None if remote else stack.enter_context(started_early(model))
        toolbox = stack.enter_context(_toolbox(tools, trust_tools, answers))
        converse(
            model,
            load,
            invocation.given,
            tuning,
            remote.answers if remote else answers,
            child=child,
            remote=remote,
            toolbox=toolbox,
            system=system,
            resume="last" if continue_ else resume,
            ephemeral=ephemeral,
            plain=plain,
            with_status=not no_status,
            quiet=quiet,
        )


@contextmanager
def _toolbox(file: Path | None, trusted: bool, answers: AnswerOptions) -> Iterator[Toolbox | None]:
    """The functions of a file, in a process of theirs. Raises `UsageError`, `NotFound`."""
    if file is None:
        if trusted:
            raise UsageError("--trust-tools: there are none", hint="--tools FILE.py")
        yield None
        return
    from llmrun.cli.chat.tool_calls import AskedTools, check_somebody_is_there
    from llmrun.cli.terminal.files import read_bytes
    from llmrun.engine.jobs.functions import UserFunctions

    if answers.output_format is not None:
        raise UsageError("--tools: answers have another form already", hint="one of the two")
    check_somebody_is_there(trusted=trusted)
    read_bytes("--tools", str(file))  # for what is no file, in words
    with UserFunctions(file) as functions:
        yield AskedTools(functions, trusted=trusted)
