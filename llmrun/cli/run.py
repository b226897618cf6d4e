"""`llmrun run MODEL [PROMPT]`: one prompt, one answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from llmrun.cli import options, prompt, report, screen
from llmrun.cli.advice import with_smaller_quantization
from llmrun.cli.help import OUTPUT, TEXT
from llmrun.cli.load import with_load
from llmrun.cli.manner import Wanted, with_manner
from llmrun.cli.pull import fetch_with_progress
from llmrun.cli.sampling import with_sampling
from llmrun.config import COMFORTABLE_CTX, LoadConfig, SamplingConfig
from llmrun.errors import UsageError, WrongShape

if TYPE_CHECKING:
    from llmrun.chat import Chat, Event, Manner
    from llmrun.cli.markdown import Plain
    from llmrun.conversations import Conversation, Conversations
    from llmrun.engine.child import Child
    from llmrun.engine.client import Engine, Generation
    from llmrun.models import Model


@with_load
@with_sampling
@with_manner
def run(
    model: options.ModelName,
    prompt_: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="What to answer or to continue; without one, a chat.")
    ] = None,
    file: options.Files = None,
    system: options.System = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            metavar="NAME|FILE|TEXT",
            help="A prompt with {fields}: {input} is everything given, {prompt}, {stdin}, {files} its parts.",
            rich_help_panel=TEXT,
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            metavar="NAME=VALUE",
            help="A field of the template; @FILE for a file's text.",
            rich_help_panel=TEXT,
        ),
    ] = None,
    continue_: Annotated[bool, typer.Option("--continue", help="Go on with the last conversation.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Keep it as a conversation.", rich_help_panel=OUTPUT)] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the answer to the clipboard.", rich_help_panel=OUTPUT)
    ] = False,
    raw: options.Raw = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
    *,
    load: LoadConfig,
    sampling: SamplingConfig,
    wanted: Wanted,
) -> None:
    """Answer one prompt and exit; without a prompt on a terminal, chat.

    The prompt is what stands on standard input, in the files and in the argument, in this order. The answer, and
    nothing else, goes to standard output; what it took goes to standard error.
    """
    fields = prompt.parse_fields(field or [])
    if fields and template is None:
        raise UsageError("--field: there is no template for it", hint="--template NAME")
    source = prompt.open_template(template) if template is not None else None
    parts = prompt.gather(prompt_, file or [])
    if not parts.input and source is None and screen.is_terminal(sys.stdin) and screen.is_terminal(sys.stdout):
        _chat_instead(model, system, load, sampling, wanted, resume=continue_, quiet=quiet, raw=raw, as_json=as_json)
        return
    text = parts.input if source is None else prompt.filled(source, parts, fields)
    if not text:
        raise UsageError(
            "there is no prompt: give it as an argument, in a file, or on standard input",
            hint='llmrun run tiny "Once upon a time"',
        )

    from llmrun.engine.client import started_early
    from llmrun.models import find_model
    from llmrun.resources import Sampler, open_nvml

    with ExitStack() as stack:
        child = stack.enter_context(started_early())
        kept = _kept(stack, system, resume=continue_, raw=raw) if continue_ or save else None
        found = find_model(model, fetch=fetch_with_progress(quiet))
        if found.note and not quiet:
            screen.note(found.note)
        asked = as_asked(found, text, system, raw=raw, template=wanted.template)
        if wanted.shape and wanted.shape.left_to_validation and not quiet:
            left = ", ".join(wanted.shape.left_to_validation)
            screen.note(f"held against the schema only when the answer is whole: {left}")
        with screen.bar(f"loading {found.name}", shown=not quiet) as bar:
            expected = [*(kept.messages() if kept else []), *(asked if isinstance(asked, list) else [])] or asked
            engine = loaded(model, found, load, sampling, expected, bar, child)
        sampler = stack.enter_context(Sampler(engine.pid, nvml=open_nvml()))
        answer = Answer(engine, asked, sampling, wanted, kept, model)
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
        if kept is not None and not quiet:
            screen.note(f"kept as {kept.id}; llmrun chat --resume {kept.id}")
        if copy:
            from llmrun.cli.clipboard import copy as to_clipboard

            done = to_clipboard(generation.text)
            if not quiet:
                screen.note(done)
        if wanted.shape is not None and (problem := wanted.shape.problem(answer.text)):
            raise WrongShape(f"the answer is not what was asked for: {problem}", hint=_way_out(generation, sampling))


def _way_out(generation: Generation, sampling: SamplingConfig) -> str | None:
    if generation.stop_reason == "length":
        return f"a larger -n than {sampling.max_tokens}"
    return "a larger -c" if generation.stop_reason == "context" else None


def _chat_instead(
    model: str,
    system: str | None,
    load: LoadConfig,
    sampling: SamplingConfig,
    wanted: Wanted,
    *,
    resume: bool,
    quiet: bool,
    raw: bool,
    as_json: bool,
) -> None:
    for option, given in (("--raw", raw), ("--json", as_json)):
        if given:
            raise UsageError(f"{option} is for one prompt, and there is none", hint="llmrun run MODEL PROMPT")
    from llmrun.cli.chat import converse

    converse(model, load, sampling, wanted, system=system, resume="last" if resume else None, quiet=quiet)


def _kept(stack: ExitStack, system: str | None, *, resume: bool, raw: bool) -> Kept:
    from llmrun.conversations import Conversations

    if raw:
        raise UsageError("--raw continues a text, which is no conversation: neither --continue nor --save")
    store = stack.enter_context(Conversations())
    kept = Kept(store, store.read(store.find("last")) if resume else None, system)
    stack.callback(kept.close)
    return kept


class Kept:
    """The conversation that one prompt belongs to."""

    def __init__(self, store: Conversations, resumed: Conversation | None, system: str | None) -> None:
        self.store, self.resumed, self.system = store, resumed, system
        self.chat: Chat | None = None

    @property
    def id(self) -> str | None:
        return self.chat.id if self.chat else None

    def messages(self) -> list[dict[str, str]]:
        turns = self.resumed.turns if self.resumed else ()
        return [{"role": turn.role, "content": turn.content} for turn in turns]

    def open(self, engine: Engine, model: str, sampling: SamplingConfig, manner: Manner) -> Chat:
        from llmrun.chat import Chat

        self.chat = chat = Chat(
            engine, model, sampling=sampling, manner=manner, system=self.system or "", store=self.store
        )
        if self.resumed is not None:
            chat.resume(self.resumed)
            if self.system is not None:
                chat.set_system(self.system)
        return chat

    def close(self) -> None:
        if self.chat is not None:
            self.chat.close()


class Answer:
    """One answer as it comes, by itself or as a part of a conversation."""

    def __init__(
        self,
        engine: Engine,
        asked: str | list[dict[str, str]],
        sampling: SamplingConfig,
        wanted: Wanted,
        kept: Kept | None,
        model: str,
    ) -> None:
        self._engine, self._asked, self._sampling, self._wanted = engine, asked, sampling, wanted
        self._chat: Chat | None = None
        if kept is not None:
            from llmrun.cli.chat import manner_of

            self._chat = kept.open(engine, model, sampling, manner_of(wanted))
        self._pieces: Iterator[tuple[str, str]] = iter(())
        self._first = ("", "")
        self._generation: Generation | None = None
        self.text = ""

    @property
    def generation(self) -> Generation:
        generation = self._chat.generation if self._chat else self._generation
        assert generation is not None
        return generation

    def begin(self, on_prefill: Callable[[int, int], None] | None) -> None:
        """Until the first piece is there."""
        if self._chat is not None:
            self._chat.on_prefill = on_prefill
            asked = self._asked if isinstance(self._asked, str) else self._asked[-1]["content"]
            self._pieces = _of_chat(self._chat.ask(asked))
        else:
            from llmrun.engine.client import Asking

            wanted = self._wanted
            asking = Asking(
                template=wanted.template,
                thinks=wanted.think != "off",
                think_budget=wanted.think_budget,
                grammar=wanted.shape.grammar if wanted.shape else None,
            )
            self._generation = self._engine.generate(self._asked, self._sampling, asking=asking, on_prefill=on_prefill)
            self._pieces = self._generation.pieces()
        self._first = next(self._pieces, ("", ""))

    def _all(self) -> Iterator[tuple[str, str]]:
        for text, thought in chain([self._first], self._pieces):
            self.text += text
            yield text, thought

    def finish(self) -> None:
        for _ in self._all():
            pass

    def show(self, *, quiet: bool) -> None:
        """Stream the answer to stdout; the thinking only to eyes."""
        on_terminal = screen.is_terminal(sys.stdout)
        thoughts = Thoughts(self._wanted.think if on_terminal else "hide")
        try:
            for piece in whole_line_ends(thoughts.told_apart(self._all())):
                screen.out(piece)
        finally:
            # Whatever comes next, an error or the shell's prompt, begins on a line of its own.
            thoughts.close()
            if on_terminal and self.text and not self.text.endswith("\n"):
                screen.out("\n")
        if self._wanted.think == "fold" and not quiet and (n := self.generation.n_thinking):
            screen.note(f"thought for {n} tokens")


def _of_chat(events: Iterator[Event]) -> Iterator[tuple[str, str]]:
    from llmrun.chat import Piece

    for event in events:
        if isinstance(event, Piece):
            yield event.text, event.thought
        else:
            screen.note(event.text)


class Thoughts:
    """Dimmed, before the answer."""

    def __init__(self, think: str) -> None:
        self._plain: Plain | None = None
        if think == "show":
            from llmrun.cli import stage
            from llmrun.cli.markdown import Plain

            self._plain = Plain(stage.width, style="2", color=stage.has_color())
        self._open = False

    def told_apart(self, pieces: Iterable[tuple[str, str]]) -> Iterator[str]:
        for text, thought in pieces:
            if thought and self._plain is not None:
                self._open = True
                screen.draw(self._plain.feed(thought))
            if text:
                if self._open:
                    self.close()
                    screen.out("\n")
                yield text

    def close(self) -> None:
        if self._open and self._plain is not None:
            screen.draw(self._plain.finish() + ("\n" if self._plain.column else ""))
        self._open = False


def loaded(
    reference: str,
    found: Model,
    load: LoadConfig,
    sampling: SamplingConfig,
    asked: str | list[dict[str, str]],
    bar: screen.Bar | None,
    child: Child,
) -> Engine:
    """The engine; what does not fit gets a smaller quantization among its ways out."""
    from llmrun.engine.client import Engine
    from llmrun.planner import DoesNotFit

    expected, least = expected_tokens(asked, sampling.max_tokens)
    try:
        return Engine(
            found.path,
            found.header,
            load,
            on_progress=bar.update if bar else None,
            child=child,
            expected_tokens=expected,
            least_tokens=least,
        )
    except DoesNotFit as error:
        raise with_smaller_quantization(error, reference, found) from None


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


def whole_line_ends(pieces: Iterable[str]) -> Iterator[str]:
    """The same text, no piece ending between a carriage return and the line feed that may follow."""
    held = ""
    for piece in pieces:
        text = held + piece
        held = "\r" if text.endswith("\r") else ""
        yield text.removesuffix("\r") if held else text
    yield held
