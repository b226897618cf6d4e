"""A conversation with a model: its turns, which of them the context still holds, and where they are kept.

    chat = Chat(engine, "tiny")
    for event in chat.ask("What do GPU layers do?"):
        match event:
            case Piece(text, thought): ...
            case Notice(text): ...
            case Called(call): ...    # of a tool, which is run next
            case Result(call, text): ...

How it is shown is not known here. Every piece of an answer is on disk before the next one is asked for: a kill at any
moment loses no more than one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from llmrun.chat.answer_options import AnswerOptions
from llmrun.chat.store import Call, Conversation, Turn, title_of
from llmrun.clock import utc
from llmrun.engine.protocol import new_call_id
from llmrun.errors import DiskError, PromptTooLong, UsageError
from llmrun.options.sampling import SamplingConfig

if TYPE_CHECKING:
    from llmrun.chat.store import Conversations
    from llmrun.engine.interface import Engine, Generation
    from llmrun.engine.meter import Timing
    from llmrun.engine.protocol import Tool

# A full context loses so many turns that a quarter of it is free: whatever goes, all that follows is computed anew.
_FILL_AFTER_DROP = 0.75
_RESERVE = 512
"""Tokens to keep free for an answer without a bound; in a small context, an eighth of it."""
MOST_ROUNDS = 8
"""How often a model may call tools before it has to answer in words."""
STOPPED = "The user stopped this call."

# For models without a template of their own. Most base models have seen enough of it to follow it.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_END = "<|im_end|>"


@dataclass(frozen=True)
class Piece:
    """A piece of an answer, as it comes; `thought` is a piece of the thinking before it."""

    text: str
    thought: str = ""


@dataclass(frozen=True)
class Notice:
    """A line that the user should see."""

    text: str


@dataclass(frozen=True)
class Called:
    """The model calls a tool, which is run next."""

    call: Call


@dataclass(frozen=True)
class Result:
    """What came of it, as the model is told."""

    call: Call
    text: str


Event = Piece | Notice | Called | Result


class Toolbox(Protocol):
    """Tools, and who runs them."""

    @property
    def tools(self) -> Sequence[Tool]:
        """Those that the model may call."""

    def run(self, name: str, arguments: str) -> str:
        """What the model is told of a call: its result, or that the user did not allow it."""


class Chat:
    """A conversation, one answer at a time.

    Attributes:
        turns: all of them, in order; the first `n_dropped` are no longer given to the model.
        options: how answers are made.
        toolbox: what answers may call; None: nothing.
        system: the system prompt; empty: none.
        generation: the one that runs, or ran last.
        id: the id of the conversation in its store; None until there is something to keep.
    """

    def __init__(
        self,
        engine: Engine,
        model: str,
        *,
        sampling: SamplingConfig | None = None,
        options: AnswerOptions | None = None,
        system: str = "",
        store: Conversations | None = None,
        toolbox: Toolbox | None = None,
    ) -> None:
        self.sampling = sampling or SamplingConfig()
        self.options = options or AnswerOptions()
        self.toolbox = toolbox
        self.system = system
        self.turns: list[Turn] = []
        self.n_dropped = 0
        self.generation: Generation | None = None
        self.id: str | None = None
        self._store = store
        self.on_prefill: Callable[[int, int], None] | None = None
        self._held = ExitStack()
        self._failure = ""
        self._is_named = False
        self._replaced: list[Turn] = []  # turns that stay unless an answer replaces them
        self._prepared: tuple[Any, ...] | None = None
        self._take(engine, model)

    def close(self) -> None:
        """Release the conversation for other processes. The engine stays the caller's."""
        self._held.close()

    def _hold(self, id: str) -> None:
        """Lock the conversation for this process. Raises `UsageError` if another llmrun has it open."""
        assert self._store is not None
        with ExitStack() as stack:
            stack.enter_context(self._store.alone(id))
            self._held.close()
            self._held = stack.pop_all()
        self.id = id

    # -- the model ---

    def switch(self, engine: Engine, model: str) -> None:
        """Continue with another model, or with the same one after a reload. The caller closes the old engine."""
        self._take(engine, model)
        self._change(model=model)

    def _take(self, engine: Engine, model: str) -> None:
        self.engine, self.model = engine, model
        self.generation = None
        self.n_dropped = 0
        own = engine.header.chat_template
        self._fallback = CHATML if own is None and self.options.chat_template is None else None

    @property
    def is_templated(self) -> bool:
        """Whether the model has a chat template, or was given one."""
        return self._fallback is None

    @property
    def _template(self) -> str | None:
        """Instead of the model's own."""
        return self.options.chat_template or self._fallback

    # -- turns ---

    def resume(self, conversation: Conversation) -> None:
        """Continue a kept conversation. Answers without any text are left out. Raises `UsageError` if another llmrun
        has it open."""
        if self._store is None:
            self.copy(conversation)
            return
        if conversation.id != self.id:
            self._hold(conversation.id)
        self.system, self._is_named = conversation.system, True
        self.turns = [replace(turn) for turn in conversation.turns if _has_text(turn)]
        self.n_dropped = 0
        silent = [turn.id for turn in conversation.turns if turn.id is not None and not _has_text(turn)]
        with self._writing():
            if silent:
                self._store.drop(conversation.id, silent)

    def copy(self, conversation: Conversation) -> None:
        """Continue a conversation from a file, as a new one."""
        self.clear()
        self.system = conversation.system
        for turn in conversation.turns:
            if _has_text(turn):
                self._add(replace(turn, id=None))

    def clear(self) -> None:
        """Begin a new conversation; the system prompt stays."""
        self.turns, self.n_dropped, self.id, self._is_named = [], 0, None, False
        self._held.close()

    def set_system(self, text: str) -> None:
        self.system = text
        self._change(system=text)

    def set_title(self, title: str, store: Conversations | None = None) -> str:
        """Name the conversation, and keep it in `store` if it was not kept until now; returns its id.

        Raises `UsageError` if there are no turns, `DiskError` if it cannot be kept.
        """
        if not self.turns:
            raise UsageError("there is no message yet")
        if self._store is None and store is not None:
            self._store = store
            turns, self.turns, self.id = self.turns, [], None
            for turn in turns:
                self._add(turn)
        self._is_named = True
        if title:
            self._change(title=title)
        if self._store is None or self.id is None:
            failure, self._failure = self._failure, ""
            raise DiskError(failure or "the conversation is not kept")
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
        """A full or missing disk ends the keeping, not the conversation."""
        try:
            yield
        except DiskError as error:
            self._store = None
            self._failure = f"the conversation can't be kept any more: {error.message}"

    def _failures(self) -> Iterator[Event]:
        failure, self._failure = self._failure, ""
        if failure:
            yield Notice(failure)

    def _add(self, turn: Turn) -> None:
        self.turns.append(turn)
        if self._store is None:
            return
        with self._writing():
            if self.id is None:
                self._hold(self._store.create(self.model, system=self.system))
                assert self.id is not None
            turn.id = self._store.add(self.id, replace(turn, whole=True))

    def _remove(self, first: int) -> list[Turn]:
        """Remove the turns from number `first` on, and return them."""
        gone, self.turns = self.turns[first:], self.turns[:first]
        self.n_dropped = min(self.n_dropped, first)
        self._forget(gone)
        return gone

    def _forget(self, gone: Sequence[Turn]) -> None:
        """Remove turns from the store, and the conversation itself once it has neither turns nor a name."""
        kept = [turn.id for turn in gone if turn.id is not None]
        if not kept or self.id is None or self._store is None:
            return
        with self._writing():
            self._store.drop(self.id, kept)
            if not self.turns and not self._replaced and not self._is_named:
                id, self.id = self.id, None
                self._held.close()
                self._store.remove([id])

    def undo(self) -> str:
        """Remove the last message and its answer; returns the message. Raises `UsageError` if there is none."""
        last = self._last_of_user()
        return self._remove(last)[0].content

    def _last_of_user(self) -> int:
        for i in range(len(self.turns) - 1, -1, -1):
            if self.turns[i].role == "user":
                return i
        raise UsageError("there is no message yet")

    @property
    def last_message(self) -> str:
        """The user's last message. Raises `UsageError` if there is none."""
        return self.turns[self._last_of_user()].content

    @property
    def last_answer(self) -> Turn | None:
        return next((turn for turn in reversed(self.turns) if turn.role == "assistant"), None)

    @property
    def is_unanswered(self) -> bool:
        """Whether the last turn is the user's: a kill or a crash came before the answer."""
        return bool(self.turns) and self.turns[-1].role == "user"

    def as_conversation(self) -> Conversation:
        """The whole conversation as data, kept or not."""
        if self.id is not None and self._store is not None:
            return self._store.read(self.id)
        now = utc()
        turns = tuple(
            replace(turn, id=number, created=turn.created or now) for number, turn in enumerate(self.turns, 1)
        )
        title = title_of(self.turns[0].content) if self.turns else ""
        return Conversation("", now, now, self.model, title, self.system, {}, turns)

    # -- answers ---

    def ask(self, text: str) -> Generator[Event]:
        """Send a message; yields the answer as it is made. A message that gets no answer is removed again."""
        if self.is_unanswered:
            self._remove(len(self.turns) - 1)
            yield Notice("the previous message was never answered, and is left out")
        self._add(Turn("user", text))
        yield from self._failures()
        yield from self._answer()

    def again(self) -> Generator[Event]:
        """Answer the last message again; the old answer stays if there is no new one."""
        yield from self._instead(self._last_of_user() + 1)

    def edit(self, text: str) -> Generator[Event]:
        """Replace the last message and its answer; both stay if the new message gets no answer."""
        yield from self._instead(self._last_of_user(), text)

    def _instead(self, first: int, text: str | None = None) -> Generator[Event]:
        """Answer again from turn `first` on. The old turns are given up at the first piece of the new answer."""
        old, self.turns = self.turns[first:], self.turns[:first]
        before, self.n_dropped = self.n_dropped, min(self.n_dropped, first)
        is_replaced = False
        self._replaced = old
        try:
            if text is not None:
                self._add(Turn("user", text))
            with closing(self._answer(takes_back=text is not None)) as events:
                for event in events:
                    if isinstance(event, Piece | Called) and not is_replaced:
                        is_replaced, self._replaced = True, []
                        self._forget(old)
                    yield event
        finally:
            self._replaced = []
            if not is_replaced:
                self.turns, self.n_dropped = [*self.turns[:first], *old], before

    def prepare(self) -> None:
        """Have the engine compute the prompt so far, while the user types."""
        messages, template, options = self.messages(), self._template, self.options
        wanted = (self.engine, messages, template, options)
        if not self.is_unanswered and wanted != self._prepared:
            self._prepared = wanted
            self.engine.prepare(
                messages, template=template, thinks=options.thinks, special=options.special, tools=self._tools
            )

    @property
    def _tools(self) -> list[Tool] | None:
        return [*self.toolbox.tools] if self.toolbox else None

    def cancel(self) -> None:
        """End the answer soon; its text so far stays. May be called by a signal handler."""
        if self.generation is not None:
            self.generation.cancel()

    def messages(self) -> list[dict[str, Any]]:
        """What the model is given. Never the thinking: templates leave it out of earlier turns."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [_message(turn) for turn in self.turns[self.n_dropped :]]

    def _answer(self, *, takes_back: bool = True) -> Generator[Event]:
        """Make the next turn, and those that follow from it where it calls tools, until one is in words."""
        for n_rounds in range(MOST_ROUNDS + 1):
            tools = self._tools
            if tools and n_rounds == MOST_ROUNDS:
                yield Notice(f"tools were called {MOST_ROUNDS} times in a row: now an answer in words")
                tools = None
            turn = Turn("assistant", "", model=self.model)
            yield from self._make(turn, tools, takes_back=takes_back and not n_rounds)
            if not turn.calls:
                return
            yield from self._run(turn.calls)

    def _make(self, turn: Turn, tools: list[Tool] | None, *, takes_back: bool) -> Iterator[Event]:
        """If the turn stays empty, its message goes too: templates expect an answer to every message."""
        try:
            yield from self._make_room()
            yield from self._stream(turn, tools)
        finally:
            self.turns.append(turn)
            if turn.content or turn.calls or (turn.thinking and turn.stop_reason not in (None, "cancelled")):
                if turn.id is None:  # calls alone came in no piece
                    self._keep(turn, "", "")
                with self._writing():
                    if turn.id is not None and self._store is not None:
                        self._store.finish(turn.id, turn)
            else:
                self._remove(len(self.turns) - (2 if takes_back else 1))

    def _run(self, calls: Sequence[Call]) -> Iterator[Event]:
        """Every call gets a result: templates expect one."""
        assert self.toolbox is not None
        left = [*calls]
        try:
            for call in calls:
                yield Called(call)
                text = self.toolbox.run(call.name, call.arguments)
                self._add(Turn("tool", text, calls=(left.pop(0),)))
                yield Result(call, text)
        finally:
            for call in left:
                self._add(Turn("tool", STOPPED, calls=(call,)))

    def _stream(self, turn: Turn, tools: list[Tool] | None) -> Iterator[Event]:
        """The engine's answer; if the context fills up in the middle, room is made and the answer goes on."""
        thinks, begun = self.options.thinks, ""
        sampling = self.sampling
        if self._fallback:
            sampling = replace(sampling, stop=(*sampling.stop, CHATML_END))
        stretches: list[tuple[Timing, int]] = []
        while True:
            grammar = None if begun else self.options.grammar
            options = self.options.for_prompt(
                template=self._template,
                assistant_prefix=begun,
                reuse=True,
                thinks=thinks,
                grammar=grammar,
                tools=tools,
            )
            generation = self.generation = self.engine.generate(
                self.messages(), sampling, options=options, on_prefill=self.on_prefill
            )
            try:
                for text, thought in generation.pieces():
                    turn.content += text
                    turn.thinking += thought
                    self._keep(turn, text, thought)
                    yield Piece(text, thought)
                    yield from self._failures()
            except PromptTooLong:
                if generation.meter.n_generated or not self._may_drop():
                    raise
                yield self._drop(self.engine.n_ctx_most)
                continue
            finally:
                turn.stop_reason = generation.stop_reason
                stretches.append((generation.timing, generation.n_thinking))
                turn.timing = summary(stretches)
            left = sampling.max_tokens - generation.meter.n_generated
            if sampling.max_tokens >= 0:
                sampling = replace(sampling, max_tokens=max(0, left))
            if generation.stop_reason in ("end", "stop"):
                turn.calls = tuple(Call(new_call_id(), each.name, each.arguments) for each in generation.calls)
            elif generation.call_pieces:
                yield Notice("the call of a tool was cut short, and is not run")
            begins_anew = self.options.grammar or generation.call_pieces or self.engine.server
            if generation.stop_reason != "context" or begins_anew or not self._may_drop():
                return
            yield self._drop(generation.n_ctx or self.engine.n_ctx_most)
            begun, thinks = turn.content, False

    def _keep(self, turn: Turn, text: str, thought: str) -> None:
        if self._store is None or self.id is None:
            return
        with self._writing():
            if turn.id is None:
                turn.id = self._store.begin_answer(self.id, self.model)
            self._store.append(turn.id, text, thought)

    # -- the context ---

    @property
    def n_used(self) -> int:
        """Tokens of context that the last prompt and its answer take."""
        if self.generation is None:
            return 0
        return min(self.generation.meter.n_context, self.generation.n_ctx or self.engine.n_ctx_most)

    def n_tokens(self, messages: Sequence[dict[str, Any]]) -> int:
        """Tokens of the messages as the template has them."""
        options = self.options
        return self.engine.count(
            messages, template=self._template, thinks=options.thinks, special=options.special, tools=self._tools
        )

    def _may_drop(self) -> bool:
        return self.options.ctx_overflow == "drop" and self._next_user(self.n_dropped + 1) is not None

    def _next_user(self, first: int) -> int | None:
        return next((i for i in range(first, len(self.turns)) if self.turns[i].role == "user"), None)

    def _make_room(self) -> Iterator[Event]:
        """Drop turns before a prompt that would leave no room for its answer.

        Counted only if it is likely: at three bytes to a token, which is more tokens than most texts have.
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
        """Drop the oldest exchanges, whole, until a quarter of the context is free; the last message always stays."""
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


def _has_text(turn: Turn) -> bool:
    """False for an answer that a kill ended before its first word."""
    return turn.role != "assistant" or bool(turn.content or turn.calls or (turn.thinking and turn.stop_reason))


def _message(turn: Turn) -> dict[str, Any]:
    """As chat templates take it, in OpenAI's form."""
    said: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.role == "tool":
        call = turn.calls[0] if turn.calls else Call()
        return {**said, "tool_call_id": call.id, "name": call.name}
    if turn.calls:
        said["tool_calls"] = [
            {"id": each.id, "type": "function", "function": {"name": each.name, "arguments": each.arguments}}
            for each in turn.calls
        ]
    return said


def summary(stretches: Sequence[tuple[Timing, int]]) -> dict[str, Any]:
    """What is kept of an answer's timing: seconds, tokens, tokens per second; None is unknown.

    An answer that went on after the context was full has several stretches, each with its tokens of thinking; its
    prompt is that of the first.
    """
    first = stretches[0][0]
    n_generated = sum(timing.n_generated for timing, _ in stretches)
    n_gaps = sum(timing.n_steps for timing, _ in stretches)
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
