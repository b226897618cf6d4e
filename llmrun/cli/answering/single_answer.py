"""One answer on stdout, by itself or as a turn of a kept conversation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from itertools import chain
from typing import TYPE_CHECKING

from llmrun.cli.loading import load_model, recommended
from llmrun.cli.terminal import progress, screen
from llmrun.errors import UsageError, WrongFormat
from llmrun.gguf.rules import overridden
from llmrun.options.load import COMFORTABLE_CTX, LoadConfig
from llmrun.options.sampling import SamplingConfig

if TYPE_CHECKING:
    from llmrun.chat.answer_options import AnswerOptions
    from llmrun.chat.conversation import Chat, Event
    from llmrun.chat.store import Conversation, Conversations
    from llmrun.cli.terminal.stream import Plain
    from llmrun.engine.interface import Engine, Generation
    from llmrun.engine.process import Child
    from llmrun.models.resolve import Model


def answer_prompt(
    model: str,
    text: str,
    load: LoadConfig,
    chosen: recommended.Chosen,
    answers: AnswerOptions,
    *,
    child: Child,
    system: str | None,
    resume: bool,
    keep: bool,
    copy: bool,
    raw: bool,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    newline: bool = True,
) -> None:
    """Answers one prompt: the answer to stdout, what it took to stderr, or both as one JSON document.

    All that is needed is imported before the engine is asked for anything: while it computes, this process leaves the
    cores to it. Raises `WrongFormat` for an answer that has not the format that was asked for.
    """
    with ExitStack() as stack:
        kept = _kept(stack, system, resume=resume) if keep else None
        found = load_model.found(model, quiet=quiet)
        asked = _asked(found, text, system, raw=raw, template=answers.chat_template)
        sampling, notes = recommended.sampling_of(chosen(model), overridden(found.header, load.override_kv))
        if isinstance(asked, str) and not raw:
            notes.append(
                f"{load_model.no_template(found)}: {'ChatML is used' if keep else 'the text is continued as it is'}"
            )
        for note in answers.output_format.notes(quiet=quiet) if answers.output_format else ():
            screen.note(note)
        before = [*(kept.messages() if kept else []), *(asked if isinstance(asked, list) else [])] or asked
        from llmrun.cli.answering import report
        from llmrun.machine.nvml import open_nvml
        from llmrun.machine.sampler import Sampler

        thoughts = Thoughts(answers.think if screen.is_terminal(sys.stdout) and not as_json else "hide")
        engine = load_model.loaded(
            model, found, load, child, *_expected_tokens(before, sampling.max_tokens), quiet=quiet
        )
        sampler = stack.enter_context(Sampler(lambda: engine.pid, nvml=open_nvml()))
        special = answers.special or (None if raw else False)
        answer = Answer(engine, asked, sampling, answers, kept, model, special=special)
        stack.callback(answer.close)
        with progress.bar("reading the prompt", shown=not quiet) as bar:
            answer.begin((lambda done, of: bar.update(done / of)) if bar else None)
        if not quiet:
            for note in (*notes, *engine.notes):
                screen.note(note)
        if as_json:
            answer.finish()
        else:
            answer.show(thoughts, quiet=quiet, newline=newline or screen.is_terminal(sys.stdout))
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
            from llmrun.cli.terminal import clipboard

            done = clipboard.copy(answer.text)
            if not quiet:
                screen.note(done)
        if answers.output_format is not None and (problem := answers.output_format.problem(answer.text)):
            raise WrongFormat(f"the answer has the wrong format: {problem}", hint=_remedy(generation, sampling))


def _remedy(generation: Generation, sampling: SamplingConfig) -> str | None:
    """For an answer that was cut."""
    if generation.stop_reason == "length":
        return f"a larger -n than {sampling.max_tokens}"
    return "a larger -c" if generation.stop_reason == "context" else None


def _kept(stack: ExitStack, system: str | None, *, resume: bool) -> Kept:
    from llmrun.chat.store import Conversations

    store = stack.enter_context(Conversations())
    kept = Kept(store, store.read(store.find("last")) if resume else None, system)
    stack.callback(kept.close)
    return kept


def _expected_tokens(asked: str | list[dict[str, str]], max_tokens: int) -> tuple[int, int]:
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


def _asked(
    found: Model, text: str, system: str | None, *, raw: bool, template: str | None = None
) -> str | list[dict[str, str]]:
    """The text as it is, or as messages if there is a chat template."""
    if raw or (found.header.chat_template is None and template is None):
        if system:
            why = "--raw leaves the chat template out" if raw else load_model.no_template(found)
            raise UsageError(f"--system has no effect: {why}", hint="put it at the beginning of the prompt")
        return text
    messages = [{"role": "user", "content": text}]
    return [{"role": "system", "content": system}, *messages] if system else messages


class Kept:
    """The conversation that a single prompt continues or begins."""

    def __init__(self, store: Conversations, resumed: Conversation | None, system: str | None) -> None:
        self.store, self.resumed, self.system = store, resumed, system
        self.chat: Chat | None = None

    @property
    def id(self) -> str | None:
        return self.chat.id if self.chat else None

    def messages(self) -> list[dict[str, str]]:
        turns = self.resumed.turns if self.resumed else ()
        return [{"role": turn.role, "content": turn.content} for turn in turns]

    def open(self, engine: Engine, model: str, sampling: SamplingConfig, answers: AnswerOptions) -> Chat:
        from llmrun.chat.conversation import Chat

        self.chat = chat = Chat(
            engine, model, sampling=sampling, options=answers, system=self.system or "", store=self.store
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
    """One answer while it is made, by itself or as a turn of a conversation."""

    def __init__(
        self,
        engine: Engine,
        asked: str | list[dict[str, str]],
        sampling: SamplingConfig,
        answers: AnswerOptions,
        kept: Kept | None,
        model: str,
        *,
        special: bool | None,
    ) -> None:
        self._engine, self._asked, self._sampling, self._answers = engine, asked, sampling, answers
        self._special = special
        self._chat: Chat | None = None
        if kept is not None:
            self._chat = kept.open(engine, model, sampling, answers)
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
        """Computes until there is a first piece."""
        if self._chat is not None:
            self._chat.on_prefill = on_prefill
            asked = self._asked if isinstance(self._asked, str) else self._asked[-1]["content"]
            self._pieces = _of_chat(self._chat.ask(asked))
        else:
            from llmrun.engine.protocol import PromptOptions

            answers = self._answers
            options = PromptOptions(
                template=answers.chat_template,
                thinks=answers.thinks,
                think_budget=answers.think_budget,
                grammar=answers.grammar,
                special=self._special,
            )
            self._generation = self._engine.generate(
                self._asked, self._sampling, options=options, on_prefill=on_prefill
            )
            self._pieces = self._generation.pieces()
        self._first = next(self._pieces, ("", ""))

    def close(self) -> None:
        """Ends the answer where it is; its text so far is kept. To be called before the conversation is closed."""
        if isinstance(self._pieces, Generator):
            self._pieces.close()

    def _all(self) -> Iterator[tuple[str, str]]:
        for text, thought in chain([self._first], self._pieces):
            self.text += text
            yield text, thought

    def finish(self) -> None:
        for _ in self._all():
            pass

    def show(self, thoughts: Thoughts, *, quiet: bool, newline: bool) -> None:
        """Streams the answer to stdout, with a newline at its end; the thinking only to a terminal."""
        try:
            for piece in whole_line_ends(thoughts.split_off(self._all())):
                screen.out(piece)
        finally:
            # Whatever comes next, an error or the shell's prompt, begins on a line of its own.
            thoughts.close()
            if newline and self.text and not self.text.endswith("\n"):
                screen.out("\n")
        if self._answers.think == "fold" and not quiet and (n := self.generation.n_thinking):
            screen.note(f"thought for {n} tokens")


def _of_chat(events: Generator[Event]) -> Generator[tuple[str, str]]:
    from llmrun.chat.conversation import Piece

    with closing(events):
        for event in events:
            if isinstance(event, Piece):
                yield event.text, event.thought
            else:
                screen.note(event.text)


class Thoughts:
    """The thinking before an answer, dimmed."""

    def __init__(self, think: str) -> None:
        self._plain: Plain | None = None
        if think == "show":
            from llmrun.cli.terminal import status_line
            from llmrun.cli.terminal.stream import Plain

            self._plain = Plain(screen.columns, style="2", color=status_line.has_color())
        self._open = False

    def split_off(self, pieces: Iterable[tuple[str, str]]) -> Iterator[str]:
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


def whole_line_ends(pieces: Iterable[str]) -> Iterator[str]:
    """The same text; no piece ends between a carriage return and the line feed that may follow."""
    held = ""
    for piece in pieces:
        text = held + piece
        held = "\r" if text.endswith("\r") else ""
        yield text.removesuffix("\r") if held else text
    yield held
