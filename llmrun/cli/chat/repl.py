"""The conversation on the screen: what is typed goes to the model or to a slash command, what it says is shown."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from itertools import accumulate, takewhile
from types import FrameType
from typing import TYPE_CHECKING, Any

from llmrun.chat.conversation import Called, Chat, Event, Notice, Piece, Result
from llmrun.chat.store import Turn
from llmrun.cli.answering.single_answer import Thoughts
from llmrun.cli.chat import slash, tool_calls
from llmrun.cli.loading import load_model, recommended
from llmrun.cli.terminal import screen, status_line
from llmrun.cli.terminal.markdown import Markdown
from llmrun.cli.terminal.stream import Plain, Stream
from llmrun.errors import EngineCrashed, LlmrunError, OutOfMemory, UsageError
from llmrun.planning.footprint import CPU
from llmrun.text import sanitize
from llmrun.units import UNKNOWN, bandwidth, duration, percent, rate, size

if TYPE_CHECKING:
    from llmrun.chat.store import Conversations
    from llmrun.cli.terminal.line_editor import Read
    from llmrun.engine.interface import Engine, Generation
    from llmrun.models.resolve import Model

Open = Callable[[str], "tuple[Model, Engine]"]
"""Finds the model of a name, pulls it if need be, and loads it."""


class Repl:
    """One chat, from the first prompt to the last: the `slash.Controls` of a terminal or a pipe.

    Attributes:
        chat: the conversation.
        found: the model that answers, and `reference` what the user calls it.
        attached: texts of files that go before the next message.
        verbose: whether figures are shown after each answer.
    """

    def __init__(
        self,
        chat: Chat,
        reference: str,
        found: Model,
        open_model: Open,
        chosen: recommended.Chosen,
        *,
        plain: bool = False,
        with_status: bool = True,
        quiet: bool = False,
    ) -> None:
        self.chat, self.reference, self.found = chat, reference, found
        self.attached: list[str] = []
        self._prefill_line, self._edits = "", False
        self.verbose = False
        self.interactive, self.on_terminal = screen.is_terminal(sys.stdin), screen.is_terminal(sys.stdout)
        self.plain = plain or not self.on_terminal
        self.with_status = with_status and self.on_terminal
        self.quiet = quiet
        self._open, self._chosen = open_model, chosen
        self._ceilings: dict[str, float] | None = None
        self._prefill: tuple[int, int] | None = None
        self._watch, self._until_end = ExitStack(), ExitStack()
        self._sampler: Any = None
        self._area: status_line.AnswerArea | None = None
        chat.on_prefill = self._note_prefill
        self._usual = chat.sampling
        self._watch_engine()
        self._sample_as_recommended()

    # -- the loop ---

    def run(self, read: Read) -> None:
        """Until the user leaves."""
        while True:
            prefill, self._prefill_line = self._prefill_line, ""
            try:
                self._prepare()
                typed = read(prefill)
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                self._edits = False
                self.say("Ctrl-D or /bye leaves")
                continue
            except EOFError:
                return
            if not typed and not self.attached:
                continue
            try:
                if not self.handle(typed):
                    return
            except (Exception, KeyboardInterrupt) as problem:
                if not self.interactive or isinstance(problem, screen.OutputClosed):
                    raise  # a script needs the exit code
                if isinstance(problem, KeyboardInterrupt):
                    self.say("stopped")
                elif isinstance(problem, LlmrunError):
                    screen.error(problem)
                else:
                    traceback.print_exc()  # a bug of ours is no reason to end somebody's conversation
                    self.say("a bug in llmrun; the conversation goes on")

    def handle(self, typed: str) -> bool:
        """One message or command; False to leave."""
        if typed.startswith("/") and not typed.startswith("//"):
            return slash.run(self, typed)
        instead, self._edits = self._edits, False
        self.ask(typed.removeprefix("/") if typed.startswith("//") else typed, instead=instead)
        return True

    def ask(self, text: str, *, instead: bool = False) -> None:
        """Send a message, or send it `instead` of the last one. Files stay attached until there is an answer."""
        self.revive()
        whole = "\n\n".join([*self.attached, text] if text else self.attached)
        if self.show(self.chat.edit(whole) if instead else self.chat.ask(whole)):
            self.attached.clear()

    def edit_last(self) -> None:
        """Put the last message into the next prompt; what is sent from there replaces it."""
        if not self.interactive:
            raise UsageError("/edit: the input is not a terminal", hint="/edit NEW TEXT")
        self._prefill_line, self._edits = self.chat.last_message, True

    def keep_in(self, open_store: Callable[[], Conversations]) -> Conversations:
        """Open a store that stays open until the chat ends."""
        return self._until_end.enter_context(open_store())

    def close(self) -> None:
        self._watch.close()
        self.chat.close()
        self.chat.engine.close()
        self._until_end.close()

    def say(self, text: str) -> None:
        """Tell the user something, on stderr."""
        if not self.quiet:
            screen.note(text)

    # -- the model ---

    def switch(self, reference: str) -> None:
        """Continue with another model. The old one stays if the new one can't be loaded."""
        try:
            found, engine = self._open(reference)
        except OutOfMemory:
            if not self.chat.engine.alive:
                raise
            self.say(f"there is no memory for both models: {self.found.name} is closed first")
            self._watch.close()
            self.chat.engine.close()  # comes back with the next message, if this fails as well
            found, engine = self._open(reference)
        self._watch.close()
        self.chat.engine.close()
        is_another = reference != self.reference
        self.reference, self.found = reference, found
        self.chat.switch(engine, reference)
        self._watch_engine()
        if is_another:
            self._sample_as_recommended()
            for note in engine.notes:
                self.say(note)

    def _sample_as_recommended(self) -> None:
        """What nobody has set is sampled as this model's makers recommend; what /set has changed stays."""
        engine = self.chat.engine
        usual, said = recommended.sampling_of(self._chosen(self.reference), engine.header, engine.usual_sampling)
        now, before = vars(self.chat.sampling), vars(self._usual)
        changed = {name: value for name, value in now.items() if value != before[name]}
        self.chat.sampling, self._usual = replace(usual, **changed), usual
        for line in said:
            self.say(line)

    def _prepare(self) -> None:
        """Compute the prompt so far while the user types: thinking is left out of it, a system prompt may be new."""
        if self.interactive and self.chat.engine.alive:
            with suppress(LlmrunError):  # the next message meets the same error, and shows it
                self.chat.prepare()

    def revive(self) -> None:
        """Load the model again if its engine died; the conversation is still here."""
        if self.chat.engine.alive:
            return
        self.say("loading the model again")
        self.switch(self.reference)

    def _watch_engine(self) -> None:
        from llmrun.machine.nvml import open_nvml
        from llmrun.machine.sampler import Sampler

        self._sampler = None
        if not self.chat.engine.server:
            self._sampler = self._watch.enter_context(Sampler(lambda: self.chat.engine.pid, nvml=open_nvml()))
        if not self.chat.is_templated:
            self.say(f"{load_model.no_template(self.found)}: ChatML is used, which it may not know")

    # -- an answer on the screen ---

    def again(self) -> None:
        self.revive()
        self.show(self.chat.again())

    def show(self, events: Generator[Event]) -> bool:
        """Show an answer as it is made; returns whether there is one. Ctrl-C ends it, and its text so far stays."""
        self._prefill = None
        before = self.chat.last_answer
        try:
            with closing(events), _interrupting(self.chat):
                if self.on_terminal:
                    self._draw(events)
                else:
                    for event in events:
                        match event:
                            case Piece():
                                screen.out(event.text)
                            case Notice():
                                self.say(event.text)
                            case Result():
                                self.say(tool_calls.result_text(event.text))
                    screen.out("\n")
        except (EngineCrashed, OutOfMemory):
            self._watch.close()
            raise
        finally:
            self._prefill = None
        return self._close_answer(before)

    def _close_answer(self, before: Turn | None) -> bool:
        generation, answer = self.chat.generation, self.chat.last_answer
        if generation is None:
            return False
        if answer is None or answer is before:
            self.say("there is no answer; the conversation is as before")
            self._end_script(generation)
            return False
        why = {
            "cancelled": "stopped",
            "length": f"{self.chat.sampling.max_tokens} tokens are reached: /set n-predict -1",
            "context": "the context is full",
        }.get(generation.stop_reason or "")
        if why:
            self.say(f"({why})")
        if self.verbose:
            for name, value in self.stats():
                self.say(f"{name:8} {value}")
        wanted = self.chat.options.output_format
        if wanted is not None and (problem := wanted.problem(answer.content)):
            self.say(f"warning: the answer has the wrong format: {problem}")
        self._end_script(generation)
        return True

    def _end_script(self, generation: Generation) -> None:
        """Without a terminal to type on, Ctrl-C ends the chat and not only this answer."""
        if generation.stop_reason == "cancelled" and not self.interactive:
            raise KeyboardInterrupt

    def _draw(self, events: Iterator[Event]) -> None:
        with status_line.without_echo():
            area = self._area = status_line.AnswerArea(self.status if self.with_status else None)
            view = _View(self, area)
            try:
                area.refresh()
                for event in events:
                    match event:
                        case Piece():
                            view.add(event)
                        case Notice():
                            area.end()
                            self.say(event.text)
                        case Called():  # what asks for it, and what it says, have the screen for themselves
                            view.finish()
                            area.end()
                        case Result():
                            screen.draw(status_line.dim(sanitize(tool_calls.result_text(event.text))) + "\n")
                            view = _View(self, area)
                            area.refresh()
                view.finish()
            finally:
                area.end()
                self._area = None

    def stream(self) -> Stream:
        """What turns the text of an answer into what is drawn."""
        if self.plain:
            return Plain(screen.columns, color=status_line.has_color())
        return Markdown(screen.columns, color=status_line.has_color())

    def show_resumed(self) -> None:
        """Show the end of a conversation that goes on."""
        turns = self.chat.turns
        if self.on_terminal:  # in a pipe, what was said before is not an answer
            for turn in turns[-2:]:
                self._show_turn(turn)
        self.say(f"{len(turns)} turns, {self.chat.id or 'not kept'}")
        if self.chat.is_unanswered:
            self.say("the last message has no answer: /regen makes one")

    def _show_turn(self, turn: Turn) -> None:
        """An earlier turn, as it was shown then."""
        if turn.role == "user":
            screen.out(f">>> {turn.content}\n")
            return
        for call in turn.calls if turn.role == "assistant" else ():
            screen.draw(status_line.dim(sanitize(tool_calls.call_text(call.name, call.arguments))) + "\n")
        if turn.role == "tool":
            screen.draw(status_line.dim(sanitize(tool_calls.result_text(turn.content))) + "\n")
            return
        stream = self.stream()
        screen.draw(stream.feed(turn.content) + stream.finish())
        screen.draw("\n" if stream.column else "")

    def _note_prefill(self, done: int, of: int) -> None:
        self._prefill = (done, of)
        if self._area is not None:
            self._area.refresh()

    # -- the status line ---

    def status(self) -> str:
        """The parts that fit into one line of the terminal, the most important first."""
        lines = accumulate(self._parts(), lambda line, part: f"{line} · {part}")
        return max(takewhile(lambda line: len(line) < screen.columns(), lines), default="", key=len)

    def _parts(self) -> Iterator[str]:
        chat, generation = self.chat, self.chat.generation
        label = self.found.header.quantization_label
        name = self.found.name
        named = name if not label or name.lower().endswith(str(label).lower()) else f"{name} {label}"
        yield f"{named} at {chat.engine.server}" if chat.engine.server else named
        yield f"context {chat.n_used} of {chat.engine.n_ctx_most}"
        if generation is not None:
            yield from self._speed(generation)
        reading = self._sampler.now() if self._sampler else None
        if reading is not None and reading.process.rss_bytes is not None:
            yield f"RAM {size(reading.process.rss_bytes)}"
        if generation is not None:
            from llmrun.engine.buffers import by_device

            for device, kinds in by_device(generation.buffers, chat.engine.devices).items():
                if device != CPU:
                    yield f"{device} {size(sum(kinds.values()))}"

    def _speed(self, generation: Generation) -> Iterator[str]:
        meter = generation.meter
        if generation.stop_reason is None and not meter.n_generated:
            if self._prefill is not None and self._prefill[0] < self._prefill[1]:
                yield f"reading {self._prefill[0]} of {self._prefill[1]} tokens"
            else:
                yield "reading"
            return
        tps = meter.recent_tps() if generation.stop_reason is None else generation.timing.tg_tps
        if generation.n_thinking and generation.stop_reason is None and not generation.text:
            yield f"thinking {generation.n_thinking} tokens"
        yield rate(tps)
        yield f"TTFT {duration(meter.ttft_s)}"
        if self.chat.engine.server:
            return
        read = meter.read_bytes_per_s(tps)
        ceiling = self._ceiling()
        share = f" ({percent(read / ceiling)} of what was measured)" if ceiling and read is not None else ""
        yield f"{bandwidth(read)}{share}"

    def _ceiling(self) -> float | None:
        """Bytes per second that the memory of all layers can be read at, if that is one device and was measured."""
        engine = self.chat.engine
        on = set(engine.plan.placement.layers)
        if len(on) != 1:
            return None
        if self._ceilings is None:
            self._ceilings = _known_ceilings(engine)
        return self._ceilings.get(next(iter(on)))

    def stats(self) -> Iterator[tuple[str, str]]:
        """What the last answer took."""
        generation, engine = self.chat.generation, self.chat.engine
        if generation is None:
            return
        timing = generation.timing
        rest = f"the rest in {duration(timing.prefill_s)}, {rate(timing.pp_tps)}"
        yield "prompt", f"{timing.n_prompt} tokens, {timing.n_cached} of them remembered; {rest}"
        yield "TTFT", duration(timing.ttft_s)
        thought = f", {generation.n_thinking} of them thinking" if generation.n_thinking else ""
        yield "answer", f"{timing.n_generated} tokens{thought} in {duration(timing.decode_s)}, {rate(timing.tg_tps)}"
        if engine.server:
            yield "server", f"{engine.server}, by whose clock this is but for TTFT, which was seen from here"
            yield "context", f"{self.chat.n_used} tokens of {engine.n_ctx_most}"
            yield "stopped", f"{generation.stop_reason}, seed {UNKNOWN if generation.seed is None else generation.seed}"
            return
        yield "gaps", f"median {duration(timing.gap_s(0.5))}, p95 {duration(timing.gap_s(0.95))}"
        ceiling = self._ceiling()
        share = f", {percent(timing.read_bytes_per_s / ceiling)}" if ceiling and timing.read_bytes_per_s else ""
        known = f" of the {bandwidth(ceiling)} that this memory was measured at" if share else ""
        yield "read", f"{bandwidth(timing.read_bytes_per_s)}{share}{known}"
        yield "context", f"{self.chat.n_used} tokens of {engine.n_ctx_most}; {generation.n_ctx or UNKNOWN} are made"
        reading = self._sampler.now()
        yield "RAM", f"{size(reading.process.rss_bytes if reading else None)}, peak {size(timing.peak_rss_bytes)}"
        yield "load", duration(timing.load_s)
        yield "stopped", f"{generation.stop_reason}, seed {generation.seed}"


class _View:
    """One answer on the screen: its thinking dimmed, folded or hidden, then its text."""

    def __init__(self, repl: Repl, area: status_line.AnswerArea) -> None:
        self._chat, self._area, self._text = repl.chat, area, repl.stream()
        self._think = repl.chat.options.think
        self._thoughts = Thoughts(area.write, shown=self._think == "show")
        self._begin_s = time.monotonic()
        self._says = False

    def add(self, piece: Piece) -> None:
        if self._think == "show":
            self._thoughts.add(piece.thought)
        elif piece.thought:
            self._area.refresh()
        if piece.text:
            if not self._says:
                self._end_thinking()
            self._area.write(self._text.feed(piece.text), self._text.column)

    def _end_thinking(self) -> None:
        self._says = True
        self._thoughts.close("\n")
        generation = self._chat.generation
        if generation is not None and generation.n_thinking and self._think == "fold":
            taken = duration(time.monotonic() - self._begin_s)
            self._area.write(status_line.dim(f"thought for {taken}, {generation.n_thinking} tokens") + "\n\n", 0)

    def finish(self) -> None:
        self._thoughts.close()
        self._area.write(self._text.finish(), self._text.column)


@contextmanager
def _interrupting(chat: Chat) -> Iterator[None]:
    """Ctrl-C ends the answer; a second one does not wait for the engine to agree."""
    asked = False

    def on_interrupt(_signum: int, _frame: FrameType | None) -> None:
        nonlocal asked
        running = chat.generation is not None and chat.generation.stop_reason is None
        if asked or not running:
            raise KeyboardInterrupt
        asked = True
        chat.cancel()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _known_ceilings(engine: Engine) -> dict[str, float]:
    """Bytes per second by device, as `llmrun devices --measure` or a bench measured them."""
    from llmrun.engine.devices import Found
    from llmrun.engine.jobs.roofline import key_of
    from llmrun.machine import peaks

    key = key_of(Found(engine.devices, engine.system_info, engine.versions))
    return {
        each.device: each.read_bytes_per_s.median
        for each in peaks.load(key)
        if each.read_bytes_per_s is not None and each.n_threads in (None, engine.n_threads)
    }
