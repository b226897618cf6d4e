"""One answer on stdout, by itself or as a turn of a kept conversation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

from llmrun.cli.terminal import screen
from llmrun.options.sampling import SamplingConfig

if TYPE_CHECKING:
    from llmrun.chat.answer_options import AnswerOptions
    from llmrun.chat.conversation import Chat, Event
    from llmrun.chat.store import Conversation, Conversations
    from llmrun.cli.terminal.markdown import Plain
    from llmrun.engine.engine import Engine, Generation


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
    ) -> None:
        self._engine, self._asked, self._sampling, self._answers = engine, asked, sampling, answers
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
            from llmrun.engine.protocol import Asking

            answers = self._answers
            asking = Asking(
                template=answers.chat_template,
                thinks=answers.thinks,
                think_budget=answers.think_budget,
                grammar=answers.grammar,
            )
            self._generation = self._engine.generate(self._asked, self._sampling, asking=asking, on_prefill=on_prefill)
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

    def show(self, *, quiet: bool) -> None:
        """Streams the answer to stdout; the thinking only to a terminal."""
        on_terminal = screen.is_terminal(sys.stdout)
        thoughts = Thoughts(self._answers.think if on_terminal else "hide")
        try:
            for piece in whole_line_ends(thoughts.split_off(self._all())):
                screen.out(piece)
        finally:
            # Whatever comes next, an error or the shell's prompt, begins on a line of its own.
            thoughts.close()
            if on_terminal and self.text and not self.text.endswith("\n"):
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
            from llmrun.cli.terminal.markdown import Plain

            self._plain = Plain(status_line.width, style="2", color=status_line.has_color())
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
