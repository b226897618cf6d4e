"""A conversation: what is said, taken back, kept, dropped. With a scripted engine, unless the model is the subject."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_engine import Script, ScriptedEngine

from llmrun import codec
from llmrun.chat.answer_options import AnswerOptions
from llmrun.chat.conversation import CHATML, MOST_ROUNDS, STOPPED, Called, Chat, Notice, Piece, Result
from llmrun.chat.store import Conversations, Turn
from llmrun.chat.transcript import as_document, as_markdown, from_document
from llmrun.cli.chat.tool_calls import AskedTools
from llmrun.constrain.output_format import of_choices
from llmrun.engine.engine import ChildEngine
from llmrun.engine.jobs.functions import UserFunctions
from llmrun.engine.protocol import Tool
from llmrun.errors import DiskError, EngineCrashed, PromptTooLong, UsageError
from llmrun.models.resolve import find_model
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig

GREEDY = SamplingConfig(temperature=0, max_tokens=40)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Conversations]:
    with Conversations(tmp_path / "conversations.db") as opened:
        yield opened


def open_tiny(n_ctx: int | None = None) -> ChildEngine:
    model = find_model("tiny")
    return ChildEngine(model.path, model.header, LoadConfig(n_ctx=n_ctx))


TOKEN, CACHE, LAYERS = "What is a token?", "What is the KV cache?", "What do GPU layers do?"


def said(events: Iterable[object]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def notices(events: Iterable[object]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


def test_what_the_model_is_given(engine: ChildEngine) -> None:
    """System prompt, then every turn; the answer is the engine's own for these messages."""
    chat = Chat(engine, "tiny", sampling=GREEDY, system="Be brief.")
    first = said(chat.ask("What is a token?"))
    second = said(chat.ask("What is the KV cache?"))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a token?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "What is the KV cache?"},
        {"role": "assistant", "content": second},
    ]
    assert chat.messages() == messages
    assert "".join(engine.generate(messages[:-1], GREEDY)) == second


def test_undo_and_regen(kept: Conversations) -> None:
    """What is taken back is gone from the model's sight and from what is kept."""
    engine = ScriptedEngine("one", "two", "three", "four")
    chat = Chat(engine, "tiny", store=kept)
    said(chat.ask(TOKEN))
    assert said(chat.ask(CACHE)) == "two"
    assert said(chat.again()) == "three"
    assert [turn.content for turn in chat.turns] == [TOKEN, "one", CACHE, "three"]
    assert engine.prompts[2] == engine.prompts[1]
    assert chat.undo() == CACHE
    assert chat.id is not None
    for turns in (chat.turns, kept.read(chat.id).turns):
        assert [turn.content for turn in turns] == [TOKEN, "one"]
    said(chat.ask(LAYERS))
    assert [message["content"] for message in engine.prompts[-1]] == [TOKEN, "one", LAYERS]
    chat.undo()
    chat.undo()
    with pytest.raises(UsageError, match="there is no message yet"):
        chat.undo()


def test_nothing_is_computed_twice(engine: ChildEngine) -> None:
    """Another answer to the same message computes its last token anew; what stays of a conversation is remembered."""
    chat = Chat(engine, "tiny", sampling=GREEDY)
    said(chat.ask(TOKEN))
    answer = said(chat.ask(CACHE))
    assert said(chat.again()) == answer and chat.generation is not None
    assert chat.generation.timing.n_cached == chat.generation.timing.n_prompt - 1
    chat.undo()
    said(chat.ask(LAYERS))
    assert chat.generation.timing.n_cached > 20


def test_kept_as_it_is_said(engine: ChildEngine, kept: Conversations) -> None:
    """Every piece is kept before the next one comes; at the end the whole answer with its figures."""
    chat = Chat(engine, "tiny", sampling=GREEDY, store=kept)
    so_far = ""
    for event in chat.ask("Tell me a story"):
        assert isinstance(event, Piece) and chat.id is not None
        so_far += event.text
        assert kept.read(chat.id).turns[-1].content == so_far
        assert not kept.read(chat.id).turns[-1].whole
    assert chat.id is not None
    turn = kept.read(chat.id).turns[-1]
    assert turn.whole and turn.content == so_far and turn.model == "tiny" and turn.stop_reason == "length"
    assert turn.timing["n_generated"] == 40 and turn.timing["tg_tps"] > 0


def test_resumed_where_it_was(kept: Conversations) -> None:
    """Another engine, the same conversation: the same messages, and one llmrun at a time."""
    chat = Chat(ScriptedEngine(), "tiny", system="Be brief.", store=kept)
    said(chat.ask(TOKEN))
    messages, id = chat.messages(), chat.id
    assert id is not None
    engine = ScriptedEngine()
    second = Chat(engine, "tiny", store=kept)
    chat.close()
    second.resume(kept.read(id))
    assert second.messages() == messages and second.id == id
    said(second.ask(CACHE))
    second.close()
    assert engine.prompts == [[*messages, {"role": "user", "content": CACHE}]]
    assert len(kept.read(id).turns) == 4


def test_nothing_kept_where_nothing_is_to_be(kept: Conversations) -> None:
    """Without a store nothing is; /save keeps what was said until then, and what follows."""
    chat = Chat(ScriptedEngine(), "tiny")
    said(chat.ask(TOKEN))
    assert kept.list() == [] and chat.id is None
    id = chat.set_title("Tokens", kept)
    said(chat.ask(CACHE))
    conversation = kept.read(id)
    assert conversation.title == "Tokens" and len(conversation.turns) == 4


def test_cancelled_answers(kept: Conversations) -> None:
    """What was said until then stays; a message without any answer is taken back."""
    chat = Chat(ScriptedEngine("one two three four"), "tiny", store=kept)
    text = ""
    for event in chat.ask("Tell me a story about a fox"):
        text += said([event])
        if text == "one two":
            chat.cancel()
    assert text == "one two"
    assert chat.turns[-1].content == text and chat.turns[-1].stop_reason == "cancelled"
    said(chat.ask(TOKEN))
    assert len(chat.turns) == 4
    chat.sampling = SamplingConfig(max_tokens=0)
    assert said(chat.ask("never answered")) == "" and len(chat.turns) == 4
    assert chat.id is not None and len(kept.read(chat.id).turns) == 4


def test_a_message_that_was_never_answered(kept: Conversations) -> None:
    """A kill between question and answer: /regen answers it, another message leaves it out."""
    id = kept.create("tiny")
    kept.add(id, Turn("user", TOKEN))
    chat = Chat(ScriptedEngine(), "tiny", store=kept)
    chat.resume(kept.read(id))
    assert chat.is_unanswered
    said(chat.again())
    assert [turn.role for turn in chat.turns] == ["user", "assistant"]
    kept.add(id, Turn("user", "lost"))
    chat.close()
    other = Chat(ScriptedEngine(), "tiny", store=kept)
    other.resume(kept.read(id))
    events = list(other.ask(CACHE))
    assert "left out" in notices(events)[0]
    assert [turn.content for turn in other.turns if turn.role == "user"] == [TOKEN, CACHE]


def test_a_crash_loses_the_engine_only(engine: ChildEngine, kept: Conversations) -> None:
    chat = Chat(engine, "tiny", sampling=SamplingConfig(temperature=0), store=kept)
    said(chat.ask("What is a token?"))
    with pytest.raises(EngineCrashed):
        for i, _ in enumerate(chat.ask("Tell me a long story about a fox")):
            if i == 1:
                os.kill(engine.pid, signal.SIGKILL)
    assert len(chat.turns) == 4 and chat.turns[-1].content
    with open_tiny() as again:
        chat.switch(again, "tiny")
        assert said(chat.ask("What is the KV cache?"))
    assert chat.id is not None and len(kept.read(chat.id).turns) == 6


def test_no_new_answer_leaves_the_old_one(kept: Conversations) -> None:
    """/regen and /edit give up what was there when there is something in its place: not at a crash, not at Ctrl-C."""
    engine = ScriptedEngine("one", "two")
    chat = Chat(engine, "tiny", store=kept)
    said(chat.ask(TOKEN))
    chat.sampling = SamplingConfig(max_tokens=0)
    assert said(chat.again()) == "" and said(chat.edit(CACHE)) == ""
    engine.close()
    for events in (chat.again(), chat.edit(CACHE)):
        with pytest.raises(EngineCrashed):
            said(events)
    assert chat.id is not None
    for turns in (chat.turns, kept.read(chat.id).turns):
        assert [turn.content for turn in turns] == [TOKEN, "one"]
    chat.switch(ScriptedEngine("three"), "tiny")
    chat.sampling = SamplingConfig()
    assert said(chat.edit(CACHE)) == "three"
    for turns in (chat.turns, kept.read(chat.id).turns):
        assert [turn.content for turn in turns] == [CACHE, "three"]


def test_a_crash_in_the_middle(kept: Conversations) -> None:
    """What was said before it stays, in the chat and in what is kept, as the answer that it is."""
    chat = Chat(ScriptedEngine(Script("one two three", dies_after=2)), "tiny", store=kept)
    with pytest.raises(EngineCrashed):
        said(chat.ask(TOKEN))
    assert chat.id is not None
    for turns in (chat.turns, kept.read(chat.id).turns):
        assert [turn.content for turn in turns] == [TOKEN, "one two"] and turns[-1].stop_reason == "cancelled"


def test_a_crash_before_the_first_word(kept: Conversations) -> None:
    """There is no answer: its message is taken back, and a conversation without a turn is none."""
    chat = Chat(ScriptedEngine(Script("one", dies_after=0)), "tiny", store=kept)
    with pytest.raises(EngineCrashed):
        said(chat.ask(TOKEN))
    assert chat.turns == [] and kept.list() == []


def test_nothing_answered_is_nothing_kept(kept: Conversations) -> None:
    """A conversation without a turn, and without a name, is none."""
    chat = Chat(ScriptedEngine(), "tiny", sampling=SamplingConfig(max_tokens=0), store=kept)
    assert said(chat.ask("Hello")) == "" and kept.list() == [] and chat.id is None
    with pytest.raises(UsageError, match="there is no message yet"):
        chat.set_title("x")
    unkept = Chat(ScriptedEngine(), "tiny")
    with pytest.raises(UsageError, match="there is no message yet"):
        unkept.set_title("x", kept)
    said(unkept.ask("a secret"))
    assert kept.list() == []


class FullDisk(Conversations):
    """There is room for the first piece, and then there is none."""

    room = 1

    def append(self, turn: int, content: str, thinking: str = "") -> None:
        self.room -= 1
        if self.room < 0:
            raise DiskError("no space is left")
        super().append(turn, content, thinking)


def test_a_full_disk_ends_the_keeping_only(tmp_path: Path) -> None:
    """It is said once, the answer goes on, and what was kept until then can be read."""
    with FullDisk(tmp_path / "conversations.db") as kept:
        chat = Chat(ScriptedEngine("one two three", "four"), "tiny", store=kept)
        events = [*chat.ask("Tell me a story"), *chat.ask("And another one")]
        assert notices(events) == ["the conversation can't be kept any more: no space is left"]
        assert [turn.content for turn in chat.turns][1::2] == ["one two three", "four"] and not chat.is_kept
        assert chat.id is not None
        turn = kept.read(chat.id).turns[1]
        assert turn.content == "one" and not turn.whole


# -- a full context ---


def test_the_oldest_turns_are_dropped_whole() -> None:
    """The system prompt and the last message always stay; it says so; the conversation keeps everything."""
    engine = ScriptedEngine("word " * 20, n_ctx=100)
    chat = Chat(engine, "tiny", system="Be brief.")
    told: list[str] = []
    for i in range(8):
        told += notices(chat.ask(f"{i} what is it?"))
    for messages in engine.prompts:
        assert messages[0] == {"role": "system", "content": "Be brief."}
        assert messages[1]["role"] == messages[-1]["role"] == "user"
        assert engine.count(messages) <= 100
    assert [messages[-1]["content"][0] for messages in engine.prompts] == [*"01234567"]
    assert told[0] == (
        "the context of 100 tokens is full: the oldest 2 turns are no longer given to the model"
        " (they stay in the conversation)"
    )
    assert len(chat.turns) == 16 and chat.n_dropped > 0


def test_the_oldest_turns_are_dropped_by_the_real_count() -> None:
    """The same with the engine's own count of tokens."""
    with open_tiny(160) as engine:
        chat = Chat(engine, "tiny", sampling=GREEDY, system="Be brief.")
        told: list[str] = []
        for question in (TOKEN, CACHE, LAYERS, TOKEN):
            told += notices(chat.ask(question))
            assert chat.n_tokens(chat.messages()) <= 160 + 40
    assert told and "the oldest 2 turns are no longer given" in told[0] and "160 tokens" in told[0]


def test_an_answer_goes_on_after_the_context_was_full() -> None:
    """The rest is asked for with what there is as its beginning; together it is the whole answer."""
    words = " ".join(f"w{i}" for i in range(40))
    engine = ScriptedEngine("short", words, n_ctx=50)
    chat = Chat(engine, "tiny", sampling=SamplingConfig(max_tokens=45))
    said(chat.ask("one two three"))
    events = list(chat.ask("four five"))
    assert said(events) == words == chat.turns[-1].content
    assert len(notices(events)) == 1 and chat.n_dropped == 2
    assert words.startswith(engine.asked[-1].assistant_prefix) and engine.asked[-1].assistant_prefix
    assert chat.turns[-1].timing["n_generated"] == 40


def test_an_answer_goes_on_over_the_edge() -> None:
    """The context fills up in the middle of an answer: turns go, and the sentence goes on."""
    with open_tiny(200) as engine:
        chat = Chat(engine, "tiny", sampling=SamplingConfig(temperature=0))
        said(chat.ask("What is a token?"))
        said(chat.ask("What is the KV cache?"))
        events = list(chat.ask("Tell me a story about a fox"))
        assert any("is full" in notice for notice in notices(events))
        answer = said(events)
        assert answer == chat.turns[-1].content
        begun = next(i for i, event in enumerate(events) if isinstance(event, Notice))
        before, behind = said(events[:begun]), said(events[begun:])
        assert before and behind and answer == before + behind


def test_over_the_edge_is_counted_as_one(kept: Conversations) -> None:
    """-n bounds the whole answer, and its figures are those of all of it."""
    never_ends = SamplingConfig(temperature=0, max_tokens=60, ignore_eos=True)
    with open_tiny(100) as engine:
        chat = Chat(engine, "tiny", sampling=never_ends, store=kept)
        for question in ("What is a token?", "What is the KV cache?", "And a story?"):
            said(chat.ask(question))
            assert chat.turns[-1].timing["n_generated"] <= 60 and chat.n_used <= 100
        assert chat.n_dropped and chat.turns[-1].timing["n_generated"] == 60


def test_stop_instead_of_dropping() -> None:
    """The answer ends at the end of the context; what does not fit at all is an error, and is taken back."""
    chat = Chat(ScriptedEngine("word " * 100, n_ctx=60), "tiny", options=AnswerOptions(ctx_overflow="stop"))
    events = list(chat.ask(TOKEN))
    assert chat.generation is not None and chat.generation.stop_reason == "context"
    assert not notices(events) and chat.n_dropped == 0
    with pytest.raises(PromptTooLong):
        said(chat.ask(CACHE))
    assert len(chat.turns) == 2


def test_one_message_too_long() -> None:
    """Nothing could be dropped for it: it is an error, and the conversation goes on without it."""
    with open_tiny(100) as engine:
        chat = Chat(engine, "tiny", sampling=GREEDY)
        said(chat.ask(TOKEN))
        with pytest.raises(PromptTooLong):
            said(chat.ask("word " * 300))
        assert len(chat.turns) == 2
        chat.n_dropped = 0
        assert said(chat.ask("Hello"))


# -- thinking and form ---

THINKS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking %}<think>{% endif %}{% endif %}"
)
SHORT = SamplingConfig(temperature=0, max_tokens=30)


def test_thinking_is_kept_apart(engine: ChildEngine, kept: Conversations) -> None:
    """A budget ends it; it has a count of its own, is kept, and is not fed back."""
    options = AnswerOptions(chat_template=THINKS, think_budget=6)
    chat = Chat(engine, "tiny", sampling=SHORT, options=options, store=kept)
    events = list(chat.ask("Tell me a story"))
    thought = "".join(event.thought for event in events if isinstance(event, Piece))
    turn = chat.turns[-1]
    assert thought and turn.thinking == thought and turn.content == said(events) and turn.content
    assert "think>" not in thought + turn.content
    assert chat.generation is not None and 6 <= chat.generation.n_thinking < 20
    assert turn.timing["n_thinking"] == chat.generation.n_thinking
    assert chat.messages()[-1] == {"role": "assistant", "content": turn.content}
    assert chat.id is not None and kept.read(chat.id).turns[-1].thinking == thought


def test_thinking_alone_is_an_answer_too(kept: Conversations) -> None:
    """Cut by -n in the middle of its thoughts: the turn is there, now and after a resume. Ctrl-C there leaves none."""
    engine = ScriptedEngine(Script("never said", thinking="one two three"))
    chat = Chat(engine, "tiny", sampling=SamplingConfig(max_tokens=2), store=kept)
    for question in ("Tell me a story", "And another"):
        said(chat.ask(question))
    assert [turn.content for turn in chat.turns] == ["Tell me a story", "", "And another", ""] and chat.id is not None
    assert [turn.thinking for turn in chat.turns][1::2] == ["one two"] * 2
    before, id = chat.messages(), chat.id
    chat.close()
    other = Chat(ScriptedEngine(Script("never said", thinking="one two")), "tiny", store=kept)
    other.resume(kept.read(id))
    assert other.messages() == before and not other.is_unanswered
    for _ in (events := other.ask("Think")):
        events.close()
    assert other.messages() == before


def test_thinking_is_not_given_back() -> None:
    """The model sees its answers, never what it thought; with thinking off it is asked for none."""
    engine = ScriptedEngine(Script("an answer", thinking="a thought"))
    chat = Chat(engine, "tiny")
    said(chat.ask(TOKEN))
    assert chat.turns[-1].thinking == "a thought" and chat.turns[-1].content.strip() == "an answer"
    chat.options = AnswerOptions(think="off", think_budget=5)
    said(chat.ask(CACHE))
    assert "thought" not in str(engine.prompts)
    assert [(asked.thinks, asked.think_budget) for asked in engine.asked] == [(True, None), (False, 5)]


def test_prepared_once() -> None:
    """While the user types, the engine reads what there is: once, and again when it has changed."""
    engine = ScriptedEngine()
    chat = Chat(engine, "tiny")
    said(chat.ask(TOKEN))
    chat.prepare()
    chat.prepare()
    assert engine.prepared == [chat.messages()]
    chat.set_system("Be brief.")
    chat.prepare()
    assert len(engine.prepared) == 2


def test_thinking_turned_off(engine: ChildEngine) -> None:
    """By the template's switch; where it has none, by closing what the template opens."""
    for template in (THINKS, THINKS.replace("{% if enable_thinking %}<think>{% endif %}", "<think>")):
        chat = Chat(engine, "tiny", sampling=SHORT, options=AnswerOptions(chat_template=template, think="off"))
        events = list(chat.ask("Tell me a story"))
        assert said(events) and not any(event.thought for event in events if isinstance(event, Piece))


def test_form_after_thinking(engine: ChildEngine) -> None:
    """A grammar binds the answer and leaves the thinking free."""
    options = AnswerOptions(chat_template=THINKS, think_budget=5, output_format=of_choices(["yes", "no"]))
    chat = Chat(engine, "tiny", sampling=SHORT, options=options)
    events = list(chat.ask("Tell me a story"))
    assert said(events) in ("yes", "no")
    assert len("".join(event.thought for event in events if isinstance(event, Piece))) > 3


@pytest.mark.parametrize("wrong", [{"think": "loud"}, {"ctx_overflow": "burst"}, {"think_budget": -1}])
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    """The error names the field, and the value as it was given."""
    with pytest.raises(UsageError) as caught:
        AnswerOptions(**wrong)
    assert {caught.value.field: caught.value.value} == wrong


def test_chatml_for_a_model_without_a_template() -> None:
    """Its end is a stop text; a template that is given is used instead."""
    engine = ScriptedEngine(has_template=False)
    chat = Chat(engine, "base")
    assert not chat.is_templated
    said(chat.ask(TOKEN))
    assert engine.asked[-1].template == CHATML
    given = Chat(engine, "base", options=AnswerOptions(chat_template="{{ messages }}"))
    assert given.is_templated
    said(given.ask(TOKEN))
    assert engine.asked[-1].template == "{{ messages }}"


def test_without_a_template(micro: Path) -> None:
    """A base model is talked to in ChatML, whose end is not part of the answer."""
    from llmrun.gguf.reader import open_header

    with ChildEngine(micro, open_header(micro)) as engine:
        chat = Chat(engine, "micro", sampling=SHORT)
        assert not chat.is_templated
        said(chat.ask("a b c"))
        assert chat.generation is not None and chat.generation.timing.n_prompt > 10


# -- tools ---

CALL = ("weather", '{"city": "Oslo"}')


class Tools:
    """A toolbox with one tool, which says what it is told to say."""

    def __init__(self, *results: str | BaseException) -> None:
        parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        self.tools = [Tool("weather", "Tells it.", parameters, parameters)]
        self.results, self.asked = [*results], list[tuple[str, str]]()

    def run(self, name: str, arguments: str) -> str:
        self.asked.append((name, arguments))
        found = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(found, BaseException):
            raise found
        return found


def test_tools_are_called_until_there_are_words(kept: Conversations) -> None:
    """Call, result, call, result, words: told to the model, to the screen, and kept, in this order."""
    engine = ScriptedEngine(Script("I ask.", calls=[CALL, CALL]), Script(calls=[CALL]), "It rains.")
    tools = Tools("rain", "snow", "sun")
    chat = Chat(engine, "tiny", store=kept, toolbox=tools)
    kinds = [type(event) for event in chat.ask("How is it?") if not isinstance(event, Piece)]
    assert kinds == [Called, Result] * 3 and tools.asked == [CALL] * 3
    assert all(options.tools == tools.tools for options in engine.asked)
    last = engine.prompts[-1]
    assert [each["role"] for each in last] == ["user", "assistant", "tool", "tool", "assistant", "tool"]
    calls = [call for each in last for call in each.get("tool_calls", ())]
    assert [each["tool_call_id"] for each in last if each["role"] == "tool"] == [call["id"] for call in calls]
    assert calls[0]["function"] == dict(zip(("name", "arguments"), CALL, strict=True))
    assert chat.id is not None
    again = Chat(ScriptedEngine("More."), "tiny", store=kept, toolbox=tools)
    document = as_document(kept.read(chat.id))
    chat.close()
    again.resume(kept.read(chat.id))
    assert again.messages() == chat.messages() and [turn.content for turn in again.turns][-1] == "It rains."
    copied = from_document(document, "here")
    assert [turn.calls for turn in copied.turns] == [turn.calls for turn in chat.turns]
    markdown = as_markdown(copied)
    assert 'weather({"city": "Oslo"})' in markdown and "## Result of weather\n\nrain" in markdown
    again.close()


def test_tools_have_an_end(kept: Conversations) -> None:
    """After so many rounds the model gets no tools, and has to say something."""
    engine = ScriptedEngine(Script("So.", calls=[CALL]))
    chat = Chat(engine, "tiny", toolbox=Tools("rain"))
    told = notices(chat.ask("How is it?"))
    assert any(f"{MOST_ROUNDS} times in a row" in each for each in told)
    assert len(engine.asked) == MOST_ROUNDS + 1 and engine.asked[-1].tools is None
    assert chat.turns[-1].content == "So." and not chat.turns[-1].calls


def test_a_call_that_is_stopped(kept: Conversations) -> None:
    """Every call has a result, of those that were not run too, so that the conversation can go on."""
    engine = ScriptedEngine(Script(calls=[CALL, CALL, CALL]), "Well.")
    chat = Chat(engine, "tiny", store=kept, toolbox=Tools("rain", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        said(chat.ask("How is it?"))
    assert [turn.content for turn in chat.turns] == ["How is it?", "", "rain", STOPPED, STOPPED]
    assert said(chat.ask("And?")) == "Well."
    assert chat.id is not None and [turn.role for turn in kept.read(chat.id).turns][-2:] == ["user", "assistant"]
    chat.undo()
    assert said(chat.again()) == "Well." and [turn.role for turn in chat.turns] == ["user", "assistant"]


def test_another_answer_that_calls(kept: Conversations) -> None:
    """The old one goes when the new one calls, before it says a word."""
    engine = ScriptedEngine("Old.", Script(calls=[CALL]), "New.")
    chat = Chat(engine, "tiny", store=kept, toolbox=Tools("rain"))
    said(chat.ask("How is it?"))
    assert said(chat.again()) == "New."
    assert chat.id is not None
    for turns in (chat.turns, kept.read(chat.id).turns):
        assert [turn.content for turn in turns] == ["How is it?", "", "rain", "New."]


def test_a_call_that_is_cut_short() -> None:
    """At the end of the context: it is no call."""
    engine = ScriptedEngine(Script("a b c d e f", calls=[CALL]), n_ctx=8)
    tools = Tools("rain")
    chat = Chat(engine, "tiny", toolbox=tools, options=AnswerOptions(ctx_overflow="stop"))
    assert any("cut short" in each for each in notices(chat.ask("How?")))
    assert not tools.asked and chat.turns[-1].content == "a b c d e" and not chat.turns[-1].calls


class Forcing(ChildEngine):
    """Its model calls until it has a result."""

    def generate(self, prompt: Any, sampling: Any = None, *, options: Any = None, on_prefill: Any = None) -> Any:
        must = not any(each["role"] == "tool" for each in prompt)
        options = codec.replace(options, must_call=must, several_calls=False)
        return super().generate(prompt, sampling, options=options, on_prefill=on_prefill)


def test_a_real_model_and_real_functions(tmp_path: Path) -> None:
    """The grammar makes `tiny` call; the file's function gets what it was declared with; what it says is the answer."""
    path = tmp_path / "tools.py"
    path.write_text('def add(a: int, flag: bool):\n    "Adds."\n    return {"a": a + 1, "flag": flag}\n')
    model = find_model("tiny")
    with UserFunctions(path) as functions, Forcing(model.path, model.header) as engine:
        box = AskedTools(functions, trusted=True)
        chat = Chat(engine, "tiny", sampling=SamplingConfig(temperature=0, max_tokens=200), toolbox=box)
        events = [*chat.ask("Add.")]
    (result,) = [event for event in events if isinstance(event, Result)]
    given = json.loads(result.call.arguments)
    assert json.loads(result.text) == {"a": given["a"] + 1, "flag": given["flag"]}
    assert [turn.role for turn in chat.turns] == ["user", "assistant", "tool", "assistant"] and chat.turns[-1].content
