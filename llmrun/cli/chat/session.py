"""A chat from its beginning to its end: `llmrun chat`, and `llmrun run` without a prompt."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from llmrun import paths
from llmrun.cli.loading import load_model, recommended
from llmrun.cli.terminal import screen
from llmrun.errors import DiskError
from llmrun.options.load import COMFORTABLE_CTX, LoadConfig

if TYPE_CHECKING:
    from llmrun.chat.answer_options import AnswerOptions
    from llmrun.chat.conversation import Toolbox
    from llmrun.chat.store import Conversations
    from llmrun.cli.chat.repl import Open, Repl
    from llmrun.cli.loading.of_server import Asked
    from llmrun.cli.loading.tuned import TuningArguments
    from llmrun.cli.terminal.line_editor import Read
    from llmrun.engine.interface import Engine
    from llmrun.engine.process import Child
    from llmrun.models.resolve import Model

EXPECTED_TOKENS = 2 * COMFORTABLE_CTX
"""The context that layers are laid out for: a conversation grows, and layers on a GPU can't be moved later."""
CANCEL_S = 5.0
"""How long an answer may take to end after Ctrl-C before its engine is killed; a large batch takes a while."""


def converse(
    model: str,
    load: LoadConfig,
    chosen: recommended.Chosen,
    tuning: TuningArguments,
    answers: AnswerOptions,
    *,
    child: Child | None = None,
    remote: Asked | None = None,
    toolbox: Toolbox | None = None,
    system: str | None = None,
    resume: str | None = None,
    ephemeral: bool = False,
    plain: bool = False,
    with_status: bool = True,
    quiet: bool = False,
) -> None:
    """Runs a chat until the user leaves. `child` is one that was started early; with `remote`, nothing is loaded."""
    store = None if ephemeral else _store(required=resume is not None)
    with store or nullcontext():
        resumed = store.read(store.find(resume)) if store is not None and resume is not None else None
        keeps = tuning.prompt_cache and not ephemeral
        local = partial(_open, load=load, chosen=chosen, tuning=tuning, keeps_prefixes=keeps, quiet=quiet)
        open_: Open = remote.opened if remote else local
        found, engine = open_(model) if remote else local(model, child)

        from llmrun.chat.conversation import Chat
        from llmrun.cli.chat.repl import Repl

        chat = Chat(engine, model, options=answers, system=system or "", store=store, toolbox=toolbox)
        repl = Repl(chat, model, found, open_, chosen, plain=plain, with_status=with_status, quiet=quiet)
        try:
            if resumed is not None:
                chat.resume(resumed)
                if model != resumed.model:
                    chat.switch(engine, model)
                if system is not None:
                    chat.set_system(system)
            for note in engine.notes:
                repl.say(note)
            read = _reader(repl, keep=store is not None)
            if resumed is not None:
                repl.show_resumed()
            elif screen.is_terminal(sys.stdin):
                repl.say(f"{found.name}: /help lists commands, Ctrl-D leaves")
            repl.run(read)
            chat.engine.flush()
        finally:
            repl.close()


def _open(
    reference: str,
    child: Child | None = None,
    *,
    load: LoadConfig,
    chosen: recommended.Chosen,
    tuning: TuningArguments,
    keeps_prefixes: bool,
    quiet: bool,
) -> tuple[Model, Engine]:
    """Finds the model, pulls it if need be, loads it."""
    found = load_model.found(reference, quiet=quiet)
    from llmrun.engine.limits import Limits

    limits = replace(Limits(), cancel_s=CANCEL_S)
    load, _ = tuning.settled(reference, found, load, chosen, 0, quiet=quiet)
    engine = load_model.loaded(
        reference,
        found,
        load,
        child,
        EXPECTED_TOKENS,
        COMFORTABLE_CTX // 2,
        keeps_prefixes=keeps_prefixes,
        limits=limits,
        quiet=quiet,
    )
    return found, engine


def _store(*, required: bool) -> Conversations | None:
    """The store of conversations; None if it can't be opened and isn't required."""
    from llmrun.chat.store import Conversations

    try:
        return Conversations()
    except DiskError as error:
        if required:
            raise
        screen.note(f"the conversation can't be kept: {error.message}")
        return None


def _reader(repl: Repl, *, keep: bool) -> Read:
    from llmrun.cli.chat import slash
    from llmrun.cli.terminal import line_editor

    if not screen.is_terminal(sys.stdin):
        return line_editor.piped
    typed = paths.state() / "chat" / "typed" if keep else None
    status = repl.status if repl.with_status else None
    return line_editor.edited(typed, status, slash.names(), slash.words, lambda: bool(repl.attached))
