"""A conversation with a model: its turns, which of them the context still holds, and where they are kept.

    chat = Chat(engine, "tiny")
    for event in chat.ask("What do GPU layers do?"):
        match event:
            case Piece(text, thought): ...
            case Notice(text): ...

What is on the screen is nobody's business here. Every piece of an answer is on disk before the next one is asked for:
a kill at any moment loses no more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from llmrun.clock import utc
from llmrun.engine.protocol import Asking
from llmrun.errors import DiskError, PromptTooLong, UsageError
from llmrun.options.config import SamplingConfig

if TYPE_CHECKING:
    from llmrun.chat.store import Conversation, Conversations, Role, Turn
    from llmrun.engine.engine import Engine, Generation
    from llmrun.engine.meter import Timing

Overflow = Literal["drop", "stop"]
Think = Literal["show", "fold", "hide", "off"]

# When the context is full so many turns go that a quarter of it is free: whatever goes, all behind it is computed anew.
_FILL_AFTER_DROP = 0.75
_RESERVE = 512
"""Tokens that an answer without a bound should find free, if the context is not a small one."""

# For models without a template of their own. Most base models have read enough of it to go along.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_END = "<|im_end|>"


@dataclass(frozen=True)
class Piece:
    """Of an answer, as it comes; `thought` is of the thinking before it."""

    text: str
    thought: str = ""


@dataclass(frozen=True)
class Notice:
    """Something that the user should be told."""

    text: str


Event = Piece | Notice


@dataclass
class Said:
    """One turn.

    Attributes:
        kept: its number among what is kept; None where nothing is.
        stop_reason: why an answer ended; None for the user's turns, and an answer that a kill cut short.
    """

    role: Role
    content: str
    thinking: str = ""
    model: str | None = None
    stop_reason: str | None = None
    timing: dict[str, Any] = field(default_factory=dict)
    kept: int | None = None


@dataclass(frozen=True)
class Manner:
    """How answers are made, beside how they are sampled.

    Attributes:
        think: "off" asks for none; the others are how it is shown.
        think_budget: the most tokens of it; None: no limit.
        grammar: GBNF that every answer keeps to.
        template: a chat template instead of the model's own.
        overflow: what happens when the context is full: "drop" the oldest turns, or "stop".
    """

    think: Think = "show"
    think_budget: int | None = None
    grammar: str | None = None
    template: str | None = None
    overflow: Overflow = "drop"

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--think", self.think, ("show", "fold", "hide", "off")),
            ("--ctx-overflow", self.overflow, ("drop", "stop")),
        ):
            if value not in known:
                raise UsageError(f"{option}: '{value}' is none of {', '.join(known)}", hint="llmrun chat --help")
        if self.think_budget is not None and self.think_budget < 0:
            raise UsageError(f"--think-budget: {self.think_budget} is below 0", hint="llmrun chat --help")


class Chat:
    """A conversation. One answer at a time.

    Attributes:
        turns: everything said, in order; the first `n_dropped` of them are no longer given to the model.
        system: the system prompt; empty: none.
        generation: the one that runs, or ran last.
        id: of the conversation where it is kept; None until there is something to keep.
    """

    def __init__(
        self,
        engine: Engine,
        model: str,
        *,
        sampling: SamplingConfig | None = None,
        manner: Manner | None = None,
        system: str = "",
        store: Conversations | None = None,
    ) -> None:
        self.sampling = sampling or SamplingConfig()
        self.manner = manner or Manner()
        self.system = system
        self.turns: list[Said] = []
        self.n_dropped = 0
        self.generation: Generation | None = None
        self.id: str | None = None
        self._store = store
        self.on_prefill: Callable[[int, int], None] | None = None
        self._held = ExitStack()
        self._told = ""
        self._is_named = False
        self._replaced: list[Said] = []  # turns that stay unless there is something in their place
        self._prepared: tuple[Any, ...] | None = None
        self._take(engine, model)

    def close(self) -> None:
        """Leave the conversation to others. The engine is the caller's."""
        self._held.close()

    def _hold(self, id: str) -> None:
        """This conversation is ours from now on. Raises `UsageError` where another llmrun has it open."""
        assert self._store is not None
        with ExitStack() as stack:
            stack.enter_context(self._store.alone(id))
            self._held.close()
            self._held = stack.pop_all()
        self.id = id

    # -- the model ---

    def switch(self, engine: Engine, model: str) -> None:
        """Go on with another model, or with the same one loaded anew. The caller closes the old engine."""
        self._take(engine, model)
        self._change(model=model)

    def _take(self, engine: Engine, model: str) -> None:
        self.engine, self.model = engine, model
        self.generation = None
        self.n_dropped = 0
        own = engine.header.chat_template
        self._fallback = CHATML if own is None and self.manner.template is None else None

    @property
    def is_templated(self) -> bool:
        """Whether the model has a chat template, or was given one."""
        return self._fallback is None

    # -- what was said ---

    def resume(self, conversation: Conversation) -> None:
        """Go on with one that was kept. An answer of which nothing was kept is left out. Raises `UsageError` where
        another llmrun has it open."""
        if self._store is None:
            self.copy(conversation)
            return
        if conversation.id != self.id:
            self._hold(conversation.id)
        self.system, self._is_named = conversation.system, True
        self.turns = [
            Said(turn.role, turn.content, turn.thinking, turn.model, turn.stop_reason, dict(turn.timing), turn.id)
            for turn in conversation.turns
            if _says(turn)
        ]
        self.n_dropped = 0
        silent = [turn.id for turn in conversation.turns if not _says(turn)]
        with self._writing():
            if silent:
                self._store.drop(conversation.id, silent)

    def copy(self, conversation: Conversation) -> None:
        """Go on with what a file holds, as a conversation of its own."""
        self.clear()
        self.system = conversation.system
        for turn in conversation.turns:
            if _says(turn):
                said = Said(turn.role, turn.content, turn.thinking, turn.model, turn.stop_reason, dict(turn.timing))
                self._add(said)

    def clear(self) -> None:
        """Begin another one; the system prompt stays."""
        self.turns, self.n_dropped, self.id, self._is_named = [], 0, None, False
        self._held.close()

    def set_system(self, text: str) -> None:
        self.system = text
        self._change(system=text)

    def set_title(self, title: str, store: Conversations | None = None) -> str:
        """Keep the conversation under a name, in `store` if it was not to be kept until now; returns its id."""
        if not self.turns:
            raise UsageError("nothing was said yet")
        if self._store is None and store is not None:
            self._store = store
            turns, self.turns, self.id = self.turns, [], None
            for said in turns:
                self._add(said)
        self._is_named = True
        if title:
            self._change(title=title)
        if self._store is None or self.id is None:
            told, self._told = self._told, ""
            raise DiskError(told or "the conversation is not kept")
        return self.id

    @property
    def is_kept(self) -> bool:
        return self._store is not None

    def _change(self, **what: Any) -> None:
        with self._writing():
            if self.id is not None and self._store is not None:
                self._store.change(self.id, **what)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A disk that is full, or gone, ends the keeping and not the conversation."""
        try:
            yield
        except DiskError as error:
            self._store = None
            self._told = f"the conversation can't be kept any more: {error.message}"

    def _trouble(self) -> Iterator[Event]:
        told, self._told = self._told, ""
        if told:
            yield Notice(told)

    def _add(self, said: Said) -> None:
        self.turns.append(said)
        if self._store is None:
            return
        with self._writing():
            if self.id is None:
                self._hold(self._store.create(self.model, system=self.system))
                assert self.id is not None
            said.kept = self._store.add(
                self.id,
                said.role,
                said.content,
                thinking=said.thinking,
                model=said.model,
                stop_reason=said.stop_reason,
                timing=said.timing,
            )

    def _remove(self, first: int) -> list[Said]:
        """Take back the turns from number `first` on."""
        gone, self.turns = self.turns[first:], self.turns[:first]
        self.n_dropped = min(self.n_dropped, first)
        self._forget(gone)
        return gone

    def _forget(self, gone: Sequence[Said]) -> None:
        """Take turns out of what is kept; a conversation without any, and without a name, is none."""
        kept = [said.kept for said in gone if said.kept is not None]
        if not kept or self.id is None or self._store is None:
            return
        with self._writing():
            self._store.drop(self.id, kept)
            if not self.turns and not self._replaced and not self._is_named:
                id, self.id = self.id, None
                self._held.close()
                self._store.remove([id])

    def undo(self) -> str:
        """Take back the last message and its answer; returns the message. Raises `UsageError` when there is none."""
        last = self._last_of_user()
        return self._remove(last)[0].content

    def _last_of_user(self) -> int:
        for i in range(len(self.turns) - 1, -1, -1):
            if self.turns[i].role == "user":
                return i
        raise UsageError("nothing was said yet")

    @property
    def last_message(self) -> str:
        """The user's. Raises `UsageError` when there is none."""
        return self.turns[self._last_of_user()].content

    @property
    def last_answer(self) -> Said | None:
        return next((said for said in reversed(self.turns) if said.role == "assistant"), None)

    @property
    def is_unanswered(self) -> bool:
        """The last word is the user's: a kill, or a crash, came before the answer."""
        return bool(self.turns) and self.turns[-1].role == "user"

    def as_conversation(self) -> Conversation:
        """All of it as plain data, kept or not."""
        from llmrun.chat.store import Conversation, Turn, title_of

        if self.id is not None and self._store is not None:
            return self._store.read(self.id)
        now = utc()
        turns = tuple(
            Turn(
                id=number,
                role=said.role,
                content=said.content,
                thinking=said.thinking,
                created=now,
                model=said.model,
                stop_reason=said.stop_reason,
                timing=said.timing,
                whole=True,
            )
            for number, said in enumerate(self.turns, 1)
        )
        title = title_of(self.turns[0].content) if self.turns else ""
        return Conversation("", now, now, self.model, title, self.system, {}, turns)

    # -- answers ---

    def ask(self, text: str) -> Generator[Event]:
        """Say something; yields the answer as it is made. A message that gets no answer is taken back."""
        if self.is_unanswered:
            self._remove(len(self.turns) - 1)
            yield Notice("the message before was never answered, and is left out")
        self._add(Said("user", text))
        yield from self._trouble()
        yield from self._answer()

    def again(self) -> Generator[Event]:
        """Another answer to the last message; the old one stays where there is none."""
        yield from self._instead(self._last_of_user() + 1)

    def edit(self, text: str) -> Generator[Event]:
        """Another message instead of the last one, and its answer; both old ones stay where there is none."""
        yield from self._instead(self._last_of_user(), text)

    def _instead(self, first: int, text: str | None = None) -> Generator[Event]:
        """Answer anew from turn `first` on. What was there is given up when there is something in its place."""
        old, self.turns = self.turns[first:], self.turns[:first]
        before, self.n_dropped = self.n_dropped, min(self.n_dropped, first)
        is_replaced = False
        self._replaced = old
        try:
            if text is not None:
                self._add(Said("user", text))
            with closing(self._answer(takes_back=text is not None)) as events:
                for event in events:
                    if isinstance(event, Piece) and not is_replaced:
                        is_replaced, self._replaced = True, []
                        self._forget(old)
                    yield event
        finally:
            self._replaced = []
            if not is_replaced:
                self.turns, self.n_dropped = [*self.turns[:first], *old], before

    def prepare(self) -> None:
        """Have the engine read what there is already, while the user thinks of something to say."""
        messages, template = self.messages(), self.manner.template or self._fallback
        wanted = (self.engine, messages, template, self.manner.think != "off")
        if not self.is_unanswered and wanted != self._prepared:
            self._prepared = wanted
            self.engine.prepare(messages, template=template, thinks=self.manner.think != "off")

    def cancel(self) -> None:
        """Have the answer end soon, with what is there. May be called by a signal handler."""
        if self.generation is not None:
            self.generation.cancel()

    def messages(self) -> list[dict[str, str]]:
        """What the model is given: never the thinking, which templates leave out of what lies behind."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [{"role": said.role, "content": said.content} for said in self.turns[self.n_dropped :]]

    def _answer(self, *, takes_back: bool = True) -> Generator[Event]:
        """The next turn. Without a word of it the message goes as well: templates want an answer to every message."""
        said = Said("assistant", "", model=self.model)
        try:
            yield from self._make_room()
            yield from self._stream(said)
        finally:
            if said.content or (said.thinking and said.stop_reason not in (None, "cancelled")):
                self.turns.append(said)
                with self._writing():
                    if said.kept is not None and self._store is not None:
                        self._store.finish(
                            said.kept,
                            said.stop_reason or "cancelled",
                            content=said.content,
                            thinking=said.thinking,
                            timing=said.timing,
                        )
            else:
                self.turns.append(said)
                self._remove(len(self.turns) - (2 if takes_back else 1))

    def _stream(self, said: Said) -> Iterator[Event]:
        """Have the engine answer; where the context is full in the middle, make room and go on."""
        thinks, begun = self.manner.think != "off", ""
        sampling = self.sampling
        if self._fallback:
            sampling = replace(sampling, stop=(*sampling.stop, CHATML_END))
        stretches: list[tuple[Timing, int]] = []
        while True:
            asking = Asking(
                template=self.manner.template or self._fallback,
                begun=begun,
                reuse=True,
                thinks=thinks,
                think_budget=self.manner.think_budget,
                grammar=self.manner.grammar if not begun else None,
            )
            generation = self.generation = self.engine.generate(
                self.messages(), sampling, asking=asking, on_prefill=self.on_prefill
            )
            try:
                for text, thought in generation.pieces():
                    said.content += text
                    said.thinking += thought
                    self._keep(said, text, thought)
                    yield Piece(text, thought)
                    yield from self._trouble()
            except PromptTooLong:
                if generation.token_ids or not self._may_drop():
                    raise
                yield self._drop(self.engine.n_ctx_most)
                continue
            finally:
                said.stop_reason = generation.stop_reason
                stretches.append((generation.timing, generation.n_thinking))
                said.timing = summary(stretches)
            left = sampling.max_tokens - len(generation.token_ids)
            if sampling.max_tokens >= 0:
                sampling = replace(sampling, max_tokens=max(0, left))
            if generation.stop_reason != "context" or self.manner.grammar or not self._may_drop():
                return
            yield self._drop(generation.n_ctx or self.engine.n_ctx_most)
            begun, thinks = said.content, False

    def _keep(self, said: Said, text: str, thought: str) -> None:
        if self._store is None or self.id is None:
            return
        with self._writing():
            if said.kept is None:
                said.kept = self._store.begin_answer(self.id, self.model)
            self._store.append(said.kept, text, thought)

    # -- the context ---

    @property
    def n_used(self) -> int:
        """Tokens of context that the last prompt and its answer took."""
        if self.generation is None:
            return 0
        return min(self.generation.meter.n_context, self.generation.n_ctx or self.engine.n_ctx_most)

    def n_tokens(self, messages: Sequence[dict[str, str]]) -> int:
        return self.engine.count(
            messages, template=self.manner.template or self._fallback, thinks=self.manner.think != "off"
        )

    def _may_drop(self) -> bool:
        return self.manner.overflow == "drop" and self._next_user(self.n_dropped + 1) is not None

    def _next_user(self, first: int) -> int | None:
        return next((i for i in range(first, len(self.turns)) if self.turns[i].role == "user"), None)

    def _make_room(self) -> Iterator[Event]:
        """Drop turns before a prompt that would leave no room for its answer.

        Counted only where it could be so: three bytes to a token are more tokens than most texts have.
        """
        n_ctx = self.engine.n_ctx_most
        bound = self.sampling.max_tokens
        reserve = min(bound if bound >= 0 else _RESERVE, n_ctx // 8)
        if self.n_used:
            likely = self.n_used + len(self.turns[-1].content.encode(errors="replace")) // 3 + 16
        else:
            likely = sum(len(each["content"].encode(errors="replace")) // 3 + 16 for each in self.messages())
        if likely + reserve > n_ctx and self._may_drop() and self.n_tokens(self.messages()) + reserve > n_ctx:
            yield self._drop(n_ctx)

    def _drop(self, n_ctx: int) -> Notice:
        """The oldest exchanges, whole, until a quarter of the context is free; the last message always stays."""
        before = self.n_dropped
        while (following := self._next_user(self.n_dropped + 1)) is not None:
            self.n_dropped = following
            if self.n_tokens(self.messages()) <= n_ctx * _FILL_AFTER_DROP:
                break
        n = self.n_dropped - before
        return Notice(
            f"the context of {n_ctx} tokens is full: the oldest {n} turns are no longer given to the model"
            " (they stay in the conversation)"
        )


def _says(turn: Turn) -> bool:
    """Whether it is a turn: an answer that a kill cut before its first word is none."""
    return turn.role == "user" or bool(turn.content or (turn.thinking and turn.stop_reason))


def summary(stretches: Sequence[tuple[Timing, int]]) -> dict[str, Any]:
    """What is kept of an answer's timing: seconds, tokens, tokens per second; None is unknown.

    An answer that went on over the edge of the context has several stretches, each with its tokens of thinking; its
    prompt is the first one's.
    """
    first = stretches[0][0]
    n_generated = sum(timing.n_generated for timing, _ in stretches)
    n_gaps = sum(len(timing.step_s) for timing, _ in stretches)
    decode_s = sum(timing.decode_s for timing, _ in stretches)
    return {
        "n_prompt": first.n_prompt,
        "n_cached": first.n_cached,
        "prefill_s": first.prefill_s,
        "pp_tps": first.pp_tps,
        "ttft_s": first.ttft_s,
        "n_generated": n_generated,
        "n_thinking": sum(n_thinking for _, n_thinking in stretches),
        "decode_s": decode_s,
        "tg_tps": n_gaps / decode_s if n_gaps and decode_s else None,
    }
