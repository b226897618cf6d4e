"""`llmrun chat MODEL`, and `llmrun run MODEL` without a prompt on a terminal."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from llmrun.chat.answer_options import AnswerOptions
from llmrun.cli.answering.answer_options import with_answer_options
from llmrun.cli.framework import completion, options
from llmrun.cli.framework.load_options import with_load
from llmrun.cli.framework.sampling_options import with_sampling
from llmrun.cli.framework.user_settings import ModelCommand, fill_in
from llmrun.errors import UsageError
from llmrun.options.config import LoadConfig, SamplingConfig

Continue = Annotated[bool, typer.Option("--continue", help="Go on with the last conversation.")]
Ephemeral = Annotated[bool, typer.Option("--ephemeral/--keep", help="Keep nothing of it.")]
Plain = Annotated[bool, typer.Option("--plain", help="Show answers as they are, without Markdown and colours.")]
NoStatus = Annotated[bool, typer.Option("--no-status", help="No status line.")]
Overflow = Annotated[
    str,
    typer.Option(
        "--ctx-overflow", metavar="drop|stop", help="When the context is full: drop the oldest turns, or stop."
    ),
]


class ChatCommand(ModelCommand):
    """Without MODEL, a conversation that goes on says which."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        left = super().parse_args(ctx, args)
        if not ctx.resilient_parsing and ctx.params.get("model") is None:
            ctx.params["model"] = model = _model_of(ctx.params)
            fill_in(self, ctx, model)
        return left


def _model_of(params: dict[str, Any]) -> str:
    if not params.get("continue_") and not params.get("resume"):
        raise UsageError("which model?", hint="llmrun chat tiny, or llmrun chat --continue; llmrun list has names")
    from llmrun.chat.store import Conversations

    with Conversations() as kept:
        return kept.read(kept.find(params.get("resume") or "last")).model


@with_load
@with_sampling
@with_answer_options
def chat(
    model: options.OptionalModelName = None,
    system: options.System = None,
    continue_: Continue = False,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="ID",
            help="Go on with this conversation; `llmrun history` lists them.",
            autocompletion=completion.conversations,
        ),
    ] = None,
    ephemeral: Ephemeral = False,
    plain: Plain = False,
    no_status: NoStatus = False,
    ctx_overflow: Overflow = "drop",
    quiet: options.Quiet = False,
    *,
    load: LoadConfig,
    sampling: SamplingConfig,
    answers: AnswerOptions,
) -> None:
    """Talk with a model; /help there lists what can be done.

    Conversations keep themselves (`llmrun history`). From a pipe, every line is a message.
    """
    if continue_ and resume is not None:
        raise UsageError(f"--continue is the last conversation, --resume {resume} another: one of the two")
    if ephemeral and (continue_ or resume is not None):
        raise UsageError("--ephemeral keeps nothing, so there is nothing to go on with", hint="leave it out")
    assert model is not None  # ChatCommand found one
    from llmrun.cli.chat.session import converse
    from llmrun.engine.engine import started_early

    answers = replace(answers, ctx_overflow=ctx_overflow)  # type: ignore[arg-type]  # checked when it is made
    with started_early() as child:
        converse(
            model,
            load,
            sampling,
            answers,
            child=child,
            system=system,
            resume="last" if continue_ else resume,
            ephemeral=ephemeral,
            plain=plain,
            with_status=not no_status,
            quiet=quiet,
        )
