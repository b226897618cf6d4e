"""`llmrun run MODEL [PROMPT]`: one prompt, one answer."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

from llmrun.chat.answer_options import AnswerOptions
from llmrun.cli.answering import prompt, report
from llmrun.cli.answering.answer_options import AnswerArguments
from llmrun.cli.answering.single_answer import Answer, Kept
from llmrun.cli.framework import options
from llmrun.cli.framework.command import command
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.loading import load_model
from llmrun.cli.terminal import clipboard, screen
from llmrun.errors import UsageError, WrongFormat
from llmrun.options.load import COMFORTABLE_CTX, LoadConfig
from llmrun.options.sampling import SamplingConfig
from llmrun.options.spec import TEXT

if TYPE_CHECKING:
    from llmrun.engine.engine import Generation
    from llmrun.models.resolve import Model


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
    raw: options.Raw = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
    *,
    answering: AnswerArguments,
    sampling: SamplingConfig,
    load: LoadConfig,
) -> None:
    """Answer one prompt and exit; without a prompt on a terminal, chat.

    The prompt is what stands on standard input, in the files and in the argument, in this order. The answer, and
    nothing else, goes to standard output; what it took goes to standard error.
    """
    answers = answering.options()
    fields = prompt.parse_fields(field or [])
    if fields and template is None:
        raise UsageError("--field: there is no template for it", hint="--template NAME")
    source = prompt.open_template(template) if template is not None else None
    if copy:
        clipboard.check()
    parts = prompt.gather(prompt_, file or [])
    if not parts.input and source is None and screen.is_terminal(sys.stdin) and screen.is_terminal(sys.stdout):
        _chat_instead(model, system, load, sampling, answers, resume=continue_, quiet=quiet, raw=raw, as_json=as_json)
        return
    text = parts.input if source is None else prompt.filled(source, parts, fields)
    if not text:
        raise UsageError(
            "there is no prompt: give it as an argument, in a file, or on standard input",
            hint='llmrun run tiny "Once upon a time"',
        )

    from llmrun.engine.engine import started_early
    from llmrun.machine.nvml import open_nvml
    from llmrun.machine.sampler import Sampler

    with ExitStack() as stack:
        child = stack.enter_context(started_early())
        kept = _kept(stack, system, resume=continue_, raw=raw) if continue_ or save else None
        found = load_model.found(model, quiet=quiet)
        asked = as_asked(found, text, system, raw=raw, template=answers.chat_template)
        if answers.output_format and answers.output_format.left_to_validation and not quiet:
            left = ", ".join(answers.output_format.left_to_validation)
            screen.note(f"held against the schema only when the answer is whole: {left}")
        before = [*(kept.messages() if kept else []), *(asked if isinstance(asked, list) else [])] or asked
        engine = load_model.loaded(
            model, found, load, child, *expected_tokens(before, sampling.max_tokens), quiet=quiet
        )
        sampler = stack.enter_context(Sampler(lambda: engine.pid, nvml=open_nvml()))
        answer = Answer(engine, asked, sampling, answers, kept, model)
        stack.callback(answer.close)
        with screen.bar("reading the prompt", shown=not quiet) as bar:
            answer.begin((lambda done, of: bar.update(done / of)) if bar else None)
        if not quiet:
            for note in engine.notes:
                screen.note(note)
        if as_json:
            answer.finish()
        else:
            answer.show(quiet=quiet)
        generation = answer.generation
        run = report.Run(found, engine, generation, load, sampling, sampler.summary())
        if as_json:
            screen.out_json(report.as_document(run))
        elif not quiet:
            screen.note(report.meter_line(run))
            if verbose:
                for line in report.details(run):
                    screen.note(line)
        if kept is not None and kept.id is not None and not quiet:
            screen.note(f"kept as {kept.id}; llmrun chat --resume {kept.id}")
        if copy:
            done = clipboard.copy(answer.text)
            if not quiet:
                screen.note(done)
        if answers.output_format is not None and (problem := answers.output_format.problem(answer.text)):
            raise WrongFormat(f"the answer is not what was asked for: {problem}", hint=_way_out(generation, sampling))


def _way_out(generation: Generation, sampling: SamplingConfig) -> str | None:
    if generation.stop_reason == "length":
        return f"a larger -n than {sampling.max_tokens}"
    return "a larger -c" if generation.stop_reason == "context" else None


def _chat_instead(
    model: str,
    system: str | None,
    load: LoadConfig,
    sampling: SamplingConfig,
    answers: AnswerOptions,
    *,
    resume: bool,
    quiet: bool,
    raw: bool,
    as_json: bool,
) -> None:
    for option, given in (("--raw", raw), ("--json", as_json)):
        if given:
            raise UsageError(f"{option} is for one prompt, and there is none", hint="llmrun run MODEL PROMPT")
    from llmrun.cli.chat.session import converse

    converse(model, load, sampling, answers, system=system, resume="last" if resume else None, quiet=quiet)


def _kept(stack: ExitStack, system: str | None, *, resume: bool, raw: bool) -> Kept:
    from llmrun.chat.store import Conversations

    if raw:
        raise UsageError("--raw continues a text, which is no conversation: neither --continue nor --save")
    store = stack.enter_context(Conversations())
    kept = Kept(store, store.read(store.find("last")) if resume else None, system)
    stack.callback(kept.close)
    return kept


def expected_tokens(asked: str | list[dict[str, str]], max_tokens: int) -> tuple[int, int]:
    """About how many tokens prompt and answer will have, and how few would do: memory is planned before the prompt can
    be counted.

    English has some four bytes to a token, other languages and code fewer; a prompt that turns out longer is planned
    for again (`Engine.try_longer`). An answer without a bound gets room as the engine will give it.
    """
    texts = [asked] if isinstance(asked, str) else [message["content"] for message in asked]
    n_prompt = sum(len(text.encode(errors="replace")) for text in texts) // 3 + 64 * len(texts)
    if max_tokens >= 0:
        return n_prompt + max_tokens, n_prompt + max_tokens
    return max(COMFORTABLE_CTX, n_prompt + COMFORTABLE_CTX // 2), n_prompt


def as_asked(
    found: Model, text: str, system: str | None, *, raw: bool, template: str | None = None
) -> str | list[dict[str, str]]:
    """The text as it is, or as a conversation where there is a chat template."""
    if raw or (found.header.chat_template is None and template is None):
        if system:
            why = "--raw leaves the chat template out" if raw else "this model has no chat template"
            raise UsageError(f"--system has no place: {why}", hint="put it at the beginning of the prompt")
        return text
    messages = [{"role": "user", "content": text}]
    return [{"role": "system", "content": system}, *messages] if system else messages
