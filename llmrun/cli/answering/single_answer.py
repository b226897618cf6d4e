"""One answer on stdout, by itself or as a turn of a kept conversation."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

from llmrun.cli.loading import load_model
from llmrun.cli.terminal import screen
from llmrun.errors import UsageError
from llmrun.options.load import COMFORTABLE_CTX

if TYPE_CHECKING:
    from llmrun.chat.answer_options import AnswerOptions
    from llmrun.chat.conversation import Chat, Event
    from llmrun.engine.interface import Engine, Generation, OnPrefill
    from llmrun.models.resolve import Model
    from llmrun.options.sampling import SamplingConfig


def about_tokens(asked: str | list[dict[str, str]]) -> int:
    """About how many tokens a prompt will have: memory is planned before it can be counted.

    English has some four bytes to a token, other languages and code fewer; a prompt that turns out longer is planned
    for again (`Engine.try_longer`).
    """
    texts = [asked] if isinstance(asked, str) else [message["content"] for message in asked]
    return sum(len(text.encode(errors="replace")) for text in texts) // 3 + 64 * len(texts)


def expected_tokens(n_prompt: int, max_tokens: int) -> tuple[int, int]:
    """How many tokens prompt and answer will have, and how few would do. An answer without a bound gets room as the
    engine will give it."""
    if max_tokens >= 0:
        return n_prompt + max_tokens, n_prompt + max_tokens
    return max(COMFORTABLE_CTX, n_prompt + COMFORTABLE_CTX // 2), n_prompt


def asked_of(
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


class Answer:
    """One answer while it is made, by itself or as a turn of a conversation; made, it has its first piece."""

    def __init__(
        self,
        engine: Engine,
        asked: str | list[dict[str, str]],
        sampling: SamplingConfig,
        answers: AnswerOptions,
        chat: Chat | None,
        *,
        special: bool | None,
        on_prefill: OnPrefill | None,
    ) -> None:
        self.text, self._think = "", answers.think
        self._chat = chat
        if chat is not None:
            chat.on_prefill = on_prefill
            self._pieces: Iterator[tuple[str, str]] = _of_chat(
                chat.ask(asked if isinstance(asked, str) else asked[-1]["content"])
            )
        else:
            options = answers.for_prompt(special=special)
            self._alone = engine.generate(asked, sampling, options=options, on_prefill=on_prefill)
            self._pieces = self._alone.pieces()
        self._first = next(self._pieces, ("", ""))

    @property
    def generation(self) -> Generation:
        generation = self._chat.generation if self._chat else self._alone
        assert generation is not None
        return generation

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
        if self._think == "fold" and not quiet and (n := self.generation.n_thinking):
            screen.note(f"thought for {n} tokens")


def _of_chat(events: Generator[Event]) -> Generator[tuple[str, str]]:
    from llmrun.chat.conversation import Notice, Piece

    with closing(events):
        for event in events:
            if isinstance(event, Piece):
                yield event.text, event.thought
            elif isinstance(event, Notice):
                screen.note(event.text)


class Thoughts:
    """The thinking before an answer, dimmed where it is `shown`. `write` appends text, and is told the column then."""

    def __init__(self, write: Callable[[str, int], None], *, shown: bool) -> None:
        self._write, self._plain, self.is_open = write, None, False
        if shown:
            from llmrun.cli.terminal import status_line
            from llmrun.cli.terminal.stream import Plain

            self._plain = Plain(screen.columns, style="2", color=status_line.has_color())

    def add(self, thought: str) -> None:
        if thought and self._plain is not None:
            self.is_open = True
            self._write(self._plain.feed(thought), self._plain.column)

    def close(self, gap: str = "") -> None:
        """The line is ended; then comes the `gap`."""
        if self.is_open and self._plain is not None:
            self._write(self._plain.finish() + ("\n" if self._plain.column else "") + gap, 0)
        self.is_open = False

    def split_off(self, pieces: Iterable[tuple[str, str]]) -> Iterator[str]:
        for text, thought in pieces:
            self.add(thought)
            if text:
                self.close("\n")
                yield text


def whole_line_ends(pieces: Iterable[str]) -> Iterator[str]:
    """The same text; no piece ends between a carriage return and the line feed that may follow."""
    held = ""
    for piece in pieces:
        text = held + piece
        held = "\r" if text.endswith("\r") else ""
        yield text.removesuffix("\r") if held else text
    yield held
