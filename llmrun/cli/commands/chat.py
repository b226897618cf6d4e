"""`llmrun chat MODEL`, and `llmrun run MODEL` without a prompt on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmrun import paths
from llmrun.cli.answering.answer_options import Wanted, with_manner
from llmrun.cli.framework import completion, options
from llmrun.cli.framework.load_options import with_load
from llmrun.cli.framework.sampling_options import with_sampling
from llmrun.cli.framework.user_settings import ModelCommand, fill_in
from llmrun.cli.loading import load_model
from llmrun.cli.terminal import screen
from llmrun.errors import DiskError, UsageError
from llmrun.options.config import COMFORTABLE_CTX, LoadConfig, SamplingConfig

if TYPE_CHECKING:
    from llmrun.chat.conversation import Chat, Manner
    from llmrun.chat.store import Conversations
    from llmrun.cli.chat.repl import Repl
    from llmrun.cli.terminal.line_editor import Lines
    from llmrun.engine.engine import Engine
    from llmrun.engine.process import Child
    from llmrun.models.resolve import Model

EXPECTED_TOKENS = 2 * COMFORTABLE_CTX
"""What layers are laid out for: a conversation grows, and layers that lie on a GPU can't be moved."""
CANCEL_S = 5.0
"""How long an answer may take to end at Ctrl-C before its engine is ended: a large batch is not left at once."""

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
@with_manner
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
    wanted: Wanted,
) -> None:
    """Talk with a model; /help there lists what can be done.

    Conversations keep themselves (`llmrun history`). From a pipe, every line is a message.
    """
    if continue_ and resume is not None:
        raise UsageError(f"--continue is the last conversation, --resume {resume} another: one of the two")
    if ephemeral and (continue_ or resume is not None):
        raise UsageError("--ephemeral keeps nothing, so there is nothing to go on with", hint="leave it out")
    assert model is not None  # ChatCommand found one
    converse(
        model,
        load,
        sampling,
        wanted,
        system=system,
        resume="last" if continue_ else resume,
        ephemeral=ephemeral,
        plain=plain,
        with_status=not no_status,
        overflow=ctx_overflow,
        quiet=quiet,
    )


def converse(
    model: str,
    load: LoadConfig,
    sampling: SamplingConfig,
    wanted: Wanted,
    *,
    system: str | None = None,
    resume: str | None = None,
    ephemeral: bool = False,
    plain: bool = False,
    with_status: bool = True,
    overflow: str = "drop",
    quiet: bool = False,
) -> None:
    """A chat from its beginning to its end."""
    from llmrun.chat.conversation import Chat
    from llmrun.cli.chat.repl import Repl
    from llmrun.engine.engine import started_early

    manner = manner_of(wanted, overflow)
    with _store(ephemeral=ephemeral, must=resume is not None) as store, started_early() as child:
        resumed = store.read(store.find(resume)) if store is not None and resume is not None else None
        found, engine = open_for_chat(model, load, child, quiet=quiet)

        def another(reference: str) -> tuple[Model, Engine]:
            return open_for_chat(reference, load, None, quiet=quiet)

        spoken = Chat(engine, model, sampling=sampling, manner=manner, system=system or "", store=store)
        repl = Repl(
            spoken, model, found, another, shape=wanted.shape, plain=plain, with_status=with_status, quiet=quiet
        )
        try:
            if resumed is not None:
                _take_up(spoken, resumed, system)
            if not quiet:
                for note in engine.notes:
                    screen.note(note)
            lines = _lines(repl, keep=store is not None)
            if resumed is not None:
                from llmrun.cli.chat.slash import tell_resumed

                tell_resumed(repl)
            elif screen.is_terminal(sys.stdin):
                repl.say(f"{found.name}: /help lists commands, Ctrl-D leaves")
            repl.run(lines)
        finally:
            repl.close()


def _take_up(spoken: Chat, resumed: Any, system: str | None) -> None:
    spoken.resume(resumed)
    if spoken.model != resumed.model:
        spoken.switch(spoken.engine, spoken.model)
    if system is not None:
        spoken.set_system(system)


def manner_of(wanted: Wanted, overflow: str = "drop") -> Manner:
    from llmrun.chat.conversation import Manner

    return Manner(
        think=wanted.think,
        think_budget=wanted.think_budget,
        grammar=wanted.shape.grammar if wanted.shape else None,
        template=wanted.template,
        overflow=overflow,  # type: ignore[arg-type]  # checked when it is made
    )


def open_for_chat(reference: str, load: LoadConfig, child: Child | None, *, quiet: bool) -> tuple[Model, Engine]:
    """Find the model, pull it if need be, load it."""
    from llmrun.engine.engine import Limits

    found = load_model.found(reference, quiet=quiet)
    limits = replace(Limits(), cancel_s=CANCEL_S)
    engine = load_model.loaded(
        reference, found, load, child, EXPECTED_TOKENS, COMFORTABLE_CTX // 2, limits=limits, quiet=quiet
    )
    return found, engine


@contextmanager
def _store(*, ephemeral: bool, must: bool) -> Iterator[Conversations | None]:
    """Where the conversation is kept; None where nothing is to be, or nothing can be, unless it `must` be there."""
    if ephemeral:
        yield None
        return
    from llmrun.chat.store import Conversations

    try:
        kept = Conversations()
    except DiskError as error:
        if must:
            raise
        screen.note(f"the conversation can't be kept: {error.message}")
        yield None
        return
    with kept:
        yield kept


def _lines(repl: Repl, *, keep: bool) -> Lines:
    from llmrun.cli.chat import slash
    from llmrun.cli.terminal import line_editor

    if not screen.is_terminal(sys.stdin):
        return line_editor.Piped()
    typed = paths.state() / "chat" / "typed" if keep else None
    return line_editor.Edited(
        typed, repl.status if repl.with_status else None, slash.names(), slash.words, lambda: bool(repl.attached)
    )
