"""Slash commands, over what they may do to a chat: no terminal, no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from scripted_engine import Script, ScriptedEngine

from llmrun.chat.conversation import Chat
from llmrun.chat.store import Conversations
from llmrun.cli.chat import slash
from llmrun.errors import LlmrunError, NotFound
from llmrun.models.resolve import Model, find_model


class Recorder:
    """The controls of a chat, noted down: `said` to the user, and the `done` that is a terminal's to do."""

    def __init__(self, engine: ScriptedEngine, store: Conversations | None) -> None:
        self.chat = Chat(engine, "tiny", store=store)
        self.found: Model = find_model("tiny")
        self.reference = "tiny"
        self.attached: list[str] = []
        self.verbose = False
        self.said: list[str] = []
        self.done: list[str] = []
        self._open = ExitStack()

    def say(self, text: str) -> None:
        self.said.append(text)

    def ask(self, text: str, *, instead: bool = False) -> None:
        whole = "\n\n".join([*self.attached, text])
        self.attached.clear()
        for _ in self.chat.edit(whole) if instead else self.chat.ask(whole):
            pass

    def again(self) -> None:
        for _ in self.chat.again():
            pass

    def edit_last(self) -> None:
        self.done.append(f"edit {self.chat.last_message}")

    def switch(self, reference: str) -> None:
        if reference != "tiny":
            raise NotFound(f"no such file: {reference}")
        self.done.append(f"switch to {reference}")

    def revive(self) -> None:
        self.done.append("revive")

    def keep_in(self, open_store: Callable[[], Conversations]) -> Conversations:
        return self._open.enter_context(open_store())

    def stats(self) -> Iterable[tuple[str, str]]:
        if self.chat.generation is not None:
            yield "answer", f"{self.chat.generation.timing.n_generated} tokens"

    def show_resumed(self) -> None:
        self.done.append(f"show {len(self.chat.turns)} turns")

    def close(self) -> None:
        self.chat.close()
        self._open.close()


class Talk:
    """A chat to type commands into."""

    def __init__(self, controls: Recorder, capture: pytest.CaptureFixture[str]) -> None:
        self.controls, self._capture = controls, capture
        self.chat = controls.chat

    def type(self, line: str) -> str:
        """What the command prints and says; the error's text where it fails."""
        n = len(self.controls.said)
        try:
            slash.run(self.controls, line)
        except LlmrunError as error:
            return f"error: {error.message} ({error.hint})"
        return self._capture.readouterr().out + "\n".join(self.controls.said[n:])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def open_chat(home: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Talk]]:
    """Open a chat with an engine that says these things, kept or not."""
    with ExitStack() as stack:

        def open_it(*scripts: Script | str, keep: bool = True, **engine: Any) -> Talk:
            store = stack.enter_context(Conversations()) if keep else None
            controls = Recorder(ScriptedEngine(*scripts, **engine), store)
            stack.callback(controls.close)
            return Talk(controls, capsys)

        yield open_it


Open = Callable[..., Talk]


@pytest.fixture
def talk(open_chat: Open) -> Talk:
    """One question and its answer, kept."""
    opened = open_chat("A token is a piece of text.", "Another answer.")
    opened.controls.ask("What is a token?")
    return opened


def contents(talk: Talk) -> list[str]:
    return [turn.content for turn in talk.chat.turns]


# -- lines ---


def test_every_command_has_a_test() -> None:
    """A command of the list is typed somewhere below."""
    source = Path(__file__).read_text()
    for each in slash.COMMANDS:
        for name in (each.name, *each.aliases):
            assert f'"{name}"' in source or f'"{name} ' in source, name


def test_unknown_and_superfluous(talk: Talk) -> None:
    """The nearest command is named; what takes nothing gets nothing."""
    assert "the nearest is /help" in talk.type("/hlep")
    assert "takes nothing, not 'extra'" in talk.type("/bye extra")
    assert "the nearest is" in talk.type("/")


@pytest.mark.parametrize("line", ["/bye", "/exit", "/BYE"])
def test_leaving(talk: Talk, line: str) -> None:
    assert slash.run(talk.controls, line) is False


@pytest.mark.parametrize("line", ["/help", "/?"])
def test_help(talk: Talk, line: str) -> None:
    """Every command has its line."""
    shown = talk.type(line)
    assert all(each.name in shown and each.help in shown for each in slash.COMMANDS)


# -- the conversation ---


def test_clear(talk: Talk) -> None:
    """Turns and files are gone from the chat; the conversation stays kept."""
    talk.controls.attached.append("a note")
    assert "a new conversation; the one before is kept" in talk.type("/clear")
    assert contents(talk) == [] and talk.controls.attached == [] and talk.chat.id is None
    with Conversations() as kept:
        assert kept.list()[0].n_turns == 2


def test_regen(talk: Talk) -> None:
    talk.type("/regen")
    assert contents(talk) == ["What is a token?", "Another answer."]


def test_undo(talk: Talk) -> None:
    assert talk.type("/undo") == "taken back: What is a token?"
    assert contents(talk) == []
    assert "there is no message yet" in talk.type("/undo")


def test_edit(talk: Talk) -> None:
    """With a text it is sent instead of the last message; without one it is the line editor's."""
    talk.type("/edit What is the KV cache?")
    assert contents(talk) == ["What is the KV cache?", "Another answer."]
    talk.type("/edit")
    assert talk.controls.done == ["edit What is the KV cache?"]


def test_system(talk: Talk) -> None:
    """Set, shown, taken away."""
    assert "from the next answer on" in talk.type("/system Be brief.")
    assert talk.type("/system") == "Be brief.\n"
    assert talk.chat.messages()[0] == {"role": "system", "content": "Be brief."}
    assert talk.type("/system off") == "no system prompt"
    assert talk.type("/system") == "no system prompt\n"
    assert talk.type("/set system Be kind.") and talk.chat.system == "Be kind."


# -- options ---


def test_set(talk: Talk) -> None:
    """All options, one of them, a new value."""
    assert "repeat-penalty" in talk.type("/set")
    assert "temp is 0.5" in talk.type("/set temp 0.5")
    assert talk.chat.sampling.temperature == 0.5
    shown = talk.type("/set temp")
    assert "0 always takes the likeliest" in shown and "top-k" not in shown
    assert "temp is 0.25" in talk.type("/set parameter temperature 0.25")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/set tmep 1", "the nearest is temp"),
        ("/set temp hot", "is not a number"),
        ("/set temp 900", "outside 0 to 100"),
        ("/set ignore-eos maybe", "on"),
        ("/set format xml", "is not json"),
    ],
)
def test_set_what_cannot_be(talk: Talk, line: str, words: str) -> None:
    """Nothing is changed."""
    before = talk.chat.sampling, talk.chat.options
    assert words in talk.type(line)
    assert (talk.chat.sampling, talk.chat.options) == before


def test_set_format(talk: Talk) -> None:
    """Answers get a grammar, and lose it again."""
    assert talk.type("/set format json") == "answers are JSON"
    talk.controls.ask("Give me JSON")
    assert talk.type("/set noformat") == "answers are free"
    talk.controls.ask("Give me anything")
    with_grammar, without = cast(ScriptedEngine, talk.chat.engine).asked[-2:]
    assert with_grammar.grammar and without.grammar is None


def test_set_verbose(talk: Talk) -> None:
    talk.type("/set verbose")
    assert talk.controls.verbose
    talk.type("/set quiet")
    assert not talk.controls.verbose


def test_think(talk: Talk) -> None:
    """How it is shown, how much of it there may be; the engine is asked for none when it is off."""
    assert "thinking: fold, no budget" in talk.type("/think fold")
    assert "at most 9 tokens" in talk.type("/think budget 9")
    assert "no budget" in talk.type("/think budget none")
    assert "thinking: off" in talk.type("/set nothink")
    talk.type("/regen")
    assert cast(ScriptedEngine, talk.chat.engine).asked[-1].thinks is False
    assert "thinking: show" in talk.type("/set think")
    for line, words in (
        ("/think loud", "none of show, fold, hide, off"),
        ("/think budget few", "is not a number"),
        ("/think budget -1", "outside 0 to"),
    ):
        assert words in talk.type(line)
    assert talk.chat.options.think == "show" and talk.chat.options.think_budget is None


# -- about the model ---


def test_show(talk: Talk) -> None:
    assert "messages" in talk.type("/show template")
    assert talk.type("/show system") == "no system prompt\n"
    assert "repeat-penalty" in talk.type("/show parameters")
    assert talk.type("/show license")
    assert "none of info, template" in talk.type("/show weather")


def test_stats(open_chat: Open) -> None:
    talk = open_chat("one two three")
    assert "there is no answer yet" in talk.type("/stats")
    talk.controls.ask("count")
    assert "3 tokens" in talk.type("/stats")


def test_model(talk: Talk) -> None:
    """Without a name the models that are here; a name that there is not changes nothing."""
    assert "now tiny" in talk.type("/model")
    assert "the conversation goes on" in talk.type("/model tiny")
    assert talk.controls.done == ["switch to tiny"]
    assert "nothing.gguf" in talk.type("/model ./nothing.gguf")


def test_tokens(talk: Talk) -> None:
    """Of a text, and of every turn with what the template adds."""
    assert talk.type("/tokens one two three") == "3\n"
    talk.type("/system Be brief.")
    shown = talk.type("/tokens")
    assert "system" in shown and "What is a token?" in shown and "as the template has it" in shown
    assert "19 of 1000" in shown  # 2 + 4 + 7 words, and 2 for each of three messages


def test_tokens_of_what_is_dropped(open_chat: Open) -> None:
    """Turns that the model is no longer given are marked."""
    talk = open_chat("word " * 30, n_ctx=100)
    for _ in range(3):
        talk.controls.ask("more")
    assert talk.chat.n_dropped > 0
    assert talk.type("/tokens").count("no longer given to the model") == talk.chat.n_dropped


# -- files ---


def test_read(talk: Talk, tmp_path: Path) -> None:
    """One file is put before the next message as it is; of several it is said which is which."""
    (tmp_path / "a note.txt").write_text("a note\n")
    (tmp_path / "b.txt").write_text("another")
    assert "2 tokens, before your next message" in talk.type(f"/read {tmp_path}/a note.txt")
    talk.controls.ask("What is it?")
    assert contents(talk)[2] == "a note\n\nWhat is it?"
    talk.type(f"/read '{tmp_path}/a note.txt' {tmp_path}/b.txt")
    assert talk.controls.attached == [f"{tmp_path}/a note.txt:\n\na note", f"{tmp_path}/b.txt:\n\nanother"]
    talk.controls.attached.clear()
    talk.type(f"/read {tmp_path}/*.txt")
    assert len(talk.controls.attached) == 2


def test_read_what_cannot_be(talk: Talk, tmp_path: Path) -> None:
    """Nothing is attached."""
    (tmp_path / "long.txt").write_text("long " * 8000)
    (tmp_path / "binary").write_bytes(b"\xff\xf0")
    for rest, words in (
        ("", "no file is named"),
        (f" {tmp_path}", "is not a file"),
        (f" {tmp_path}/none.txt", "there is no file"),
        (f" {tmp_path}/none*", "no file matches"),
        (f" {tmp_path}/binary", "UTF-8"),
        (f" {tmp_path}/long.txt", "more than 1000 tokens"),
        (" 'half", "No closing quotation"),
    ):
        assert words in talk.type(f"/read{rest}")
    assert talk.controls.attached == []


def test_export(talk: Talk, tmp_path: Path) -> None:
    """To the screen, as Markdown, as JSON; a file that exists is not replaced."""
    assert "## You\n\nWhat is a token?" in talk.type("/export")
    assert f"2 turns in {tmp_path}/talk.md" in talk.type(f"/export {tmp_path}/talk.md")
    assert "A token is a piece" in (tmp_path / "talk.md").read_text()
    talk.type(f"/export {tmp_path}/talk.json")
    assert [each["role"] for each in json.loads((tmp_path / "talk.json").read_text())["messages"]] == [
        "user",
        "assistant",
    ]
    assert "exists already" in talk.type(f"/export {tmp_path}/talk.json")


def test_copy(open_chat: Open) -> None:
    """The last fenced block, or an error where there is none. How text gets to a clipboard is a terminal's matter."""
    assert slash.last_code("a\n```python\none\n```\nb\n```\ntwo\n```\n") == "two\n"
    talk = open_chat("no code here")
    assert "there is no answer yet" in talk.type("/copy")
    talk.controls.ask("x")
    assert "there is no code in the last answer" in talk.type("/copy code")
    assert "is not code" in talk.type("/copy all")


# -- what is kept ---


def test_save_and_load(talk: Talk) -> None:
    """By title, by id, by the beginning of an id; what there is not changes nothing."""
    assert "My talk" in talk.type("/save My talk")
    assert "My talk" in talk.type("/list")
    id = talk.chat.id
    assert id is not None
    for reference in ("My talk", "my", id, id[:-1]):
        talk.type("/clear")
        assert talk.type(f"/load {reference}") == ""
        assert talk.controls.done[-1] == "show 2 turns" and talk.chat.id == id
    assert "no conversation is named" in talk.type("/load")
    assert "no conversation" in talk.type("/load nothing like it")
    assert talk.chat.id == id


def test_save_what_was_not_kept(open_chat: Open, home: Path) -> None:
    """A chat that keeps nothing is kept from /save on."""
    talk = open_chat("one", "two", keep=False)
    assert "there is no message yet" in talk.type("/save")
    talk.controls.ask("first")
    assert talk.type("/list") == ""
    talk.type("/save Kept after all")
    talk.controls.ask("second")
    with Conversations() as kept:
        (summary,) = kept.list()
    assert (summary.title, summary.n_turns) == ("Kept after all", 4)


def test_load_a_file(talk: Talk, tmp_path: Path) -> None:
    """It goes on as a conversation of its own."""
    talk.type(f"/export {tmp_path}/talk.json")
    before = talk.chat.id
    talk.type(f"/load {tmp_path}/talk.json")
    assert contents(talk)[0] == "What is a token?" and talk.chat.id not in (None, before)
    (tmp_path / "bad.json").write_text('{"schema": ')
    assert "is not JSON" in talk.type(f"/load {tmp_path}/bad.json")
    (tmp_path / "other.json").write_text("{}")
    assert "not a conversation" in talk.type(f"/load {tmp_path}/other.json")


# -- completion ---


@pytest.mark.parametrize(
    ("name", "word"),
    [("/set", "temp"), ("/show", "template"), ("/think", "fold"), ("/model", "tiny"), ("/copy", "code")],
)
def test_completion(home: Path, name: str, word: str) -> None:
    assert word in slash.words(name, "")


def test_completion_of_conversations(talk: Talk) -> None:
    assert [talk.chat.id] == list(slash.words("/load", ""))
    assert list(slash.words("/undo", "")) == []
