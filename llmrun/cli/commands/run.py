"""`llmrun run MODEL [PROMPT]`: one prompt, one answer."""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from llmrun.chat.answer_options import AnswerOptions
from llmrun.cli.answering.answer_options import AnswerShape, answer_options
from llmrun.cli.framework import options
from llmrun.cli.framework.command import Invocation, command
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.loading.tuned import TuningArguments
from llmrun.cli.terminal import screen
from llmrun.errors import DiskError, LlmrunError, UsageError, WrongFormat
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig
from llmrun.options.spec import TEXT

if TYPE_CHECKING:
    from llmrun.cli.answering.report import Run
    from llmrun.engine.interface import Engine


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
        Option("--field", metavar="NAME=VALUE", help="A field of the template; @FILE for a file's text.", panel=TEXT),
    ] = None,
    continue_: Annotated[bool, Option("--continue", help="Go on with the last conversation.")] = False,
    save: Annotated[bool, Option("--save", help="Keep it as a conversation.", panel=TEXT)] = False,
    copy: Annotated[bool, Option("--copy", help="Copy the answer to the clipboard.", panel=TEXT)] = False,
    no_newline: Annotated[
        bool, Option("--no-newline", help="Write the answer alone, without a newline at its end.", panel=TEXT)
    ] = False,
    raw: options.Raw = False,
    server: options.Server = None,
    api_key_file: options.ApiKeyFile = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
    *,
    answering: AnswerOptions,
    shape: AnswerShape,
    sampling: SamplingConfig,
    load: LoadConfig,
    tuning: TuningArguments,
    invocation: Invocation,
) -> None:
    """Answer one prompt and exit; without a prompt on a terminal, chat.

    The prompt is what stands on standard input, in the files and in the argument, in this order. The answer, and
    nothing else, goes to standard output; what it took goes to standard error.
    """
    from llmrun.engine.process import started_early

    with ExitStack() as stack:
        # First of all: the child imports llama.cpp while all that follows is imported, read and looked up.
        child = stack.enter_context(started_early(model)) if server is None else None
        from llmrun.cli.answering import prompt
        from llmrun.cli.loading import of_server

        answers = replace(answer_options(answering, shape), weighs=as_json)
        remote = of_server.asked(server, api_key_file, invocation.given(model), answers)
        answers = remote.answers if remote else answers
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
            chosen = invocation.given
            converse(
                model,
                load,
                chosen,
                tuning,
                answers,
                child=child,
                remote=remote,
                system=system,
                resume=resume,
                quiet=quiet,
            )
            return
        if not text:
            raise UsageError(
                "there is no prompt: give it as an argument, in a file, or on standard input",
                hint='llmrun run tiny "Once upon a time"',
            )
        # All that is needed is imported before the engine is asked for anything: while it computes, this process leaves
        # the cores to it.
        from llmrun.chat.conversation import Chat
        from llmrun.chat.store import Conversations
        from llmrun.cli.answering import report
        from llmrun.cli.answering.single_answer import Answer, Thoughts, about_tokens, asked_of, expected_tokens
        from llmrun.cli.loading import load_model, recommended
        from llmrun.cli.terminal import progress
        from llmrun.gguf.rules import overridden
        from llmrun.machine.nvml import open_nvml
        from llmrun.machine.sampler import Sampler

        store = stack.enter_context(Conversations()) if continue_ or save else None
        resumed = store.read(store.find("last")) if store and continue_ else None
        engine: Engine | None = None
        if remote:
            found, engine = remote.opened(model)
        else:
            found = load_model.found(model, quiet=quiet)
        asked = asked_of(found, text, system, raw=raw, template=answers.chat_template)
        header, usual = overridden(found.header, load.override_kv), engine.usual_sampling if engine else None
        sampling, notes = recommended.sampling_of(invocation.given(model), header, usual)
        if isinstance(asked, str) and not raw:
            instead = "ChatML is used" if store else "the text is continued as it is"
            notes.append(f"{load_model.no_template(found)}: {instead}")
        for note in answers.output_format.notes(quiet=quiet) if answers.output_format else ():
            screen.note(note)
        earlier = [{"role": turn.role, "content": turn.content} for turn in resumed.turns] if resumed else []
        before = [*earlier, *(asked if isinstance(asked, list) else [])] or asked
        shown = answers.think == "show" and screen.is_terminal(sys.stdout) and not as_json
        thoughts = Thoughts(lambda text, _: screen.draw(text), shown=shown)
        tuned = sampler = None
        if engine is None:
            n_prompt = about_tokens(before)
            expected = expected_tokens(n_prompt, sampling.max_tokens)
            load, tuned = tuning.settled(model, found, load, invocation.given, n_prompt, quiet=quiet)
            keeps = tuning.prompt_cache
            engine = local = load_model.loaded(model, found, load, child, *expected, keeps_prefixes=keeps, quiet=quiet)
            sampler = stack.enter_context(Sampler(lambda: local.pid, nvml=open_nvml()))
        chat = None
        if store is not None:
            chat = Chat(engine, model, sampling=sampling, options=answers, system=system or "", store=store)
            stack.callback(chat.close)
        if chat is not None and resumed is not None:
            chat.resume(resumed)
            if system is not None:
                chat.set_system(system)
        with progress.bar("reading the prompt", shown=not quiet) as bar:
            on_prefill = (lambda done, of: bar.update(done / of)) if bar else None
            special = answers.special or (None if raw else False)
            answer = Answer(engine, asked, sampling, answers, chat, special=special, on_prefill=on_prefill)
        stack.callback(answer.close)
        for note in () if quiet else (*notes, *engine.notes):
            screen.note(note)
        generation = answer.generation
        try:
            if as_json:
                answer.finish()
            else:
                answer.show(thoughts, quiet=quiet, newline=not no_newline or screen.is_terminal(sys.stdout))
        except LlmrunError:
            if as_json and engine.server and answer.text:  # what had come is not lost with what did not
                screen.out_json(report.as_document(report.Run(found, engine, generation, load, sampling, answers)))
            raise
        usage = sampler.summary() if sampler else None
        done = report.Run(found, engine, generation, load, sampling, answers, usage, tuned)
        if as_json:
            screen.out_json(report.as_document(done))
        elif not quiet:
            for line in (report.meter_line(done), *(report.details(done) if verbose else ())):
                screen.note(line)
            if generation.stop_reason == "context":
                screen.note(f"the context of {generation.n_ctx} tokens is full, and the answer cut off: a larger -c")
        if not engine.server:
            _keep_score(done)
        engine.flush()
        if chat is not None and chat.id is not None and not quiet:
            screen.note(f"kept as {chat.id}; llmrun chat --resume {chat.id}")
        if copy:
            copied = clipboard.copy(answer.text)
            if not quiet:
                screen.note(copied)
        if answers.output_format is not None and (problem := answers.output_format.problem(answer.text)):
            limits = {"length": f"a larger -n than {sampling.max_tokens}", "context": "a larger -c"}
            hint = limits.get(generation.stop_reason or "")
            raise WrongFormat(f"the answer has the wrong format: {problem}", hint=hint)


_OTHERS = 0.3
"""Cores that others took: from here on a run says little of what was predicted."""


def _keep_score(run: Run) -> None:
    """Compare a run with what the machine's profile says of it, where there is a profile; no word of it is kept."""
    from llmrun.machine import profile
    from llmrun.tuning.first_use import is_small

    if is_small(run.engine.header) or not profile.folder().is_dir():
        return
    done, others = run.generation.done, run.usage.other_cores if run.usage else None
    if (done and done.threads) or (others is not None and others > _OTHERS):
        return
    from llmrun.tuning import score, sources

    with suppress(DiskError):
        score.keep(sources.compared(run.engine, run.found.name, run.generation.timing))
