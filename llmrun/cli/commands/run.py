"""`llmrun run MODEL [PROMPT]`: one prompt, one answer."""

from __future__ import annotations

import sys
from typing import Annotated

from llmrun.cli.answering.answer_options import AnswerArguments
from llmrun.cli.framework import options
from llmrun.cli.framework.command import Invocation, command
from llmrun.cli.framework.options import Argument, Option
from llmrun.errors import UsageError
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig
from llmrun.options.spec import TEXT


@command(model_of=lambda typed: str(typed["model"]))
def run(
    model: options.ModelName,
    prompt_: Annotated[str | None, Argument("PROMPT", "What to answer or to continue; without one, a chat.")] = None,
    file: options.Files = None,
    system: options.System = None,
    template: Annotated[
        str | None,
        Option(
            "--template",
            metavar="NAME|FILE|TEXT",
            help="A prompt with {fields}: {input} is everything given, {prompt}, {stdin}, {files} its parts.",
            panel=TEXT,
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        Option(
            "--field",
            metavar="NAME=VALUE",
            help="A field of the template; @FILE for a file's text.",
            panel=TEXT,
        ),
    ] = None,
    continue_: Annotated[bool, Option("--continue", help="Go on with the last conversation.")] = False,
    save: Annotated[bool, Option("--save", help="Keep it as a conversation.", panel=TEXT)] = False,
    copy: Annotated[bool, Option("--copy", help="Copy the answer to the clipboard.", panel=TEXT)] = False,
    no_newline: Annotated[
        bool, Option("--no-newline", help="Write the answer alone, without a newline at its end.", panel=TEXT)
    ] = False,
    raw: options.Raw = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
    *,
    answering: AnswerArguments,
    sampling: SamplingConfig,
    load: LoadConfig,
    invocation: Invocation,
) -> None:
    """Answer one prompt and exit; without a prompt on a terminal, chat.

    The prompt is what stands on standard input, in the files and in the argument, in this order. The answer, and
    nothing else, goes to standard output; what it took goes to standard error.
    """
    from llmrun.engine.process import started_early

    # First of all: the child imports llama.cpp while all that follows is imported, read and looked up.
    with started_early() as child:
        from llmrun.cli.answering import prompt, single_answer
        from llmrun.cli.terminal import screen

        answers = answering.options()
        if raw and (continue_ or save):
            raise UsageError("--raw continues a text, which is not a conversation: neither --continue nor --save")
        if copy:
            from llmrun.cli.terminal import clipboard

            clipboard.check()
        text = prompt.composed(prompt_, file or [], template, field or [])
        if text is None and screen.is_terminal(sys.stdin) and screen.is_terminal(sys.stdout):
            for option, given in (("--raw", raw), ("--json", as_json)):
                if given:
                    raise UsageError(f"{option} is for one prompt, and there is none", hint="llmrun run MODEL PROMPT")
            from llmrun.cli.chat.session import converse

            resume = "last" if continue_ else None
            converse(model, load, invocation.given, answers, child=child, system=system, resume=resume, quiet=quiet)
            return
        if not text:
            raise UsageError(
                "there is no prompt: give it as an argument, in a file, or on standard input",
                hint='llmrun run tiny "Once upon a time"',
            )
        single_answer.answer_prompt(
            model,
            text,
            load,
            invocation.given,
            answers,
            child=child,
            system=system,
            resume=continue_,
            keep=continue_ or save,
            copy=copy,
            raw=raw,
            as_json=as_json,
            verbose=verbose,
            quiet=quiet,
            newline=not no_newline,
        )
