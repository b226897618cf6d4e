"""`llmrun chat` as someone sits before it: keys in, the screen out."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import RunLlmrun
from terminal import Terminal
from waiting import HANGS_S, children_of, until_gone, until_it_sleeps

PROMPT = ">>>"
READY, GONE = b"\x1b[?2004h", b"\x1b[?2004l"
"""What the line editor begins and ends every prompt with: pastes are to be marked, and no longer."""
TOKEN = "A token is a piece of text"
Open = Callable[..., Terminal]


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Open]:
    """Open a chat with `tiny` that is ready for the first message."""
    opened: list[Terminal] = []

    def open_chat(*arguments: str, **options: object) -> Terminal:
        env = {"LLMRUN_HOME": str(tmp_path), "EDITOR": "true", "NO_COLOR": "", **dict(options.pop("env", {}))}  # type: ignore[call-overload]
        columns, lines = int(options.pop("columns", 90)), int(options.pop("lines", 24))  # type: ignore[call-overload]
        # Several for `run` without a prompt, which is the same chat.
        command = arguments if arguments[:1] == ("run",) else ("chat", "tiny", "--temp", "0", *arguments)
        terminal = Terminal(*command, columns=columns, lines=lines, env=env)
        opened.append(terminal)
        wait_for_prompt(terminal, 0)
        return terminal

    yield open_chat
    for terminal in opened:
        terminal.__exit__(None, None, None)


def say(terminal: Terminal, text: str, expect: str = "") -> str:
    """Type a message and wait for the prompt behind its answer; returns the screen."""
    n = prompts(terminal)
    terminal.type(text + "\r")
    wait_for_prompt(terminal, n)
    return terminal.wait_for(expect)


def prompts(terminal: Terminal) -> int:
    """How many there have been."""
    return terminal.raw.count(READY)


def wait_for_prompt(terminal: Terminal, n_before: int) -> None:
    """Until one more than before is drawn, with the cursor behind it and what stands below it."""
    terminal.wait_for_bytes(READY, n_before + 1)

    def drawn() -> bool:
        column, line = terminal.cursor
        return terminal.line(line).startswith(PROMPT) and column > len(PROMPT)

    terminal.wait_until(drawn, "a prompt")
    terminal.settle(0.1)


def test_a_question_and_its_answer(chat: Open) -> None:
    """The whole screen: question, answer wrapped between words, prompt, status line at the bottom."""
    terminal = chat(columns=60, lines=16)
    screen = say(terminal, "What is a token?", TOKEN)
    rows = terminal.rows
    assert rows[0].startswith("tiny: /help lists commands")
    assert rows[1] == ">>> What is a token?"
    assert rows[2].startswith(TOKEN) and all(len(row) < 60 for row in rows)
    assert PROMPT in rows
    assert " ".join(rows[2 : rows.index(PROMPT)]).endswith("not letters.")
    assert rows[-1].startswith("tiny Q8_0 · context ") and "t/s" in rows[-1], screen
    terminal.type("\x04")
    assert terminal.wait() == 0


def test_nothing_that_was_written_is_written_again(chat: Open, tmp_path: Path) -> None:
    """With the status line below it, a long answer goes out once: every word of it stands in the bytes one time."""
    terminal = chat(columns=70, lines=10)
    begin = len(terminal.raw)
    say(terminal, "Tell me a story about a fox.")
    data = terminal.raw[begin:].decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data)
    answer = json_of_last(tmp_path)["messages"][-1]["content"]
    for sentence in re.findall(r"[A-Z][a-z]+ [a-z]+ [a-z]+ [a-z]+", answer):
        assert plain.replace("\r", "").replace("\n", " ").count(sentence) <= answer.count(sentence), sentence
    assert "\x1b[2J" not in data and "\x1b[H" not in data


def json_of_last(home: Path) -> dict[str, list[dict[str, str]]]:
    done = subprocess.run(
        [sys.executable, "-m", "llmrun", "history", "show", "last", "--json"],
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        env={**os.environ, "LLMRUN_HOME": os.fspath(home)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_ctrl_c_stops_the_answer_and_goes_on(chat: Open, tmp_path: Path) -> None:
    """What was said stays on the screen, in the conversation and in the model's memory."""
    terminal = chat("--ignore-eos", "-c", "900")
    terminal.type("Tell me a story about a fox.\r")
    terminal.wait_for("Once")
    n = prompts(terminal)
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    wait_for_prompt(terminal, n)
    assert terminal.process.poll() is None
    said = json_of_last(tmp_path)["messages"]
    assert len(said) == 2 and said[1]["stop_reason"] == "cancelled" and said[1]["content"].startswith("Once")
    terminal.type("/set ignore-eos off\r")
    terminal.wait_for("ignore-eos is off")
    say(terminal, "What is a token?", TOKEN)
    # At an empty prompt it says how to leave, and in a half-written line it takes that back.
    terminal.type("half a line")
    terminal.wait_for("half a line")
    terminal.type("\x03")
    terminal.wait_for("Ctrl-D or /bye leaves")
    terminal.type("/bye\r")
    assert terminal.wait() == 0


def test_ctrl_d_leaves_and_the_terminal_is_as_before(chat: Open) -> None:
    terminal = chat()
    say(terminal, "What is a token?", TOKEN)
    children = children_of(terminal.process.pid)
    assert children
    terminal.type("\x04")
    assert terminal.wait() == 0
    assert not terminal.cursor_hidden
    assert terminal.raw.rstrip().endswith(b"\x1b[?2004l") or b"\x1b[?2004l" in terminal.raw[-200:]
    until_gone(*children)


def test_several_lines(chat: Open) -> None:
    '''Between """, behind a backslash, by Alt-Enter, and as a paste: one message.'''
    terminal = chat("--ephemeral")
    for typed in ('"""What is\ra token?"""\r', "What is\\\ra token?\r", "What is\x1b\ra token?\r"):
        say(terminal, "/clear")
        terminal.type(typed)
        terminal.wait_for(TOKEN)
        terminal.settle(0.2)
        say(terminal, "/tokens", "as the template has it")
        assert any(row.startswith("user") and "What is" in row for row in terminal.rows)
    terminal.paste("What is\na token?")
    terminal.wait_for("... a token?")
    terminal.type("\r")
    terminal.wait_for("TTFT")
    terminal.type("\x04")
    assert terminal.wait() == 0


def test_a_paste_of_10000_characters(chat: Open, tmp_path: Path) -> None:
    """It arrives whole, as one message, and nothing of it is taken for a command."""
    terminal = chat("-c", "8000", "-n", "4")
    lines = [f"{i:04d} /bye word word word word word word word" for i in range(240)]
    text = "\n".join(lines)
    assert len(text) > 10_000
    terminal.paste(text)
    terminal.wait_for("0239 /bye")
    n = prompts(terminal)
    terminal.type("\r")
    terminal.wait_for("tokens are reached")
    wait_for_prompt(terminal, n)
    assert json_of_last(tmp_path)["messages"][0]["content"] == text


def test_resize_while_it_answers(chat: Open) -> None:
    """Lines that come after the change are wrapped to the new width, and it goes on."""
    terminal = chat("--ignore-eos", "-n", "500", columns=100, lines=30)
    n = prompts(terminal)
    terminal.type("Tell me a story about a fox.\r")
    terminal.wait_for("Once")
    terminal.resize(40, 20)
    os.kill(terminal.process.pid, signal.SIGWINCH)
    terminal.wait_for("500 tokens are reached")
    wait_for_prompt(terminal, n)
    told = [row for row in terminal.rows if row and "·" not in row and "reached" not in row]
    assert told and all(len(row) < 40 for row in told[-8:-1])
    say(terminal, "/set n-predict -1", "n-predict is -1")
    say(terminal, "/set ignore-eos off", "ignore-eos is off")
    say(terminal, "What is a token?", "A token is a piece")


def test_history_across_sessions(chat: Open) -> None:
    """Arrow up and Ctrl-R find what was typed in another chat."""
    first = chat()
    say(first, "What is a token?", TOKEN)
    first.type("\x04")
    assert first.wait() == 0
    second = chat()
    second.type("\x1b[A")
    second.wait_for(">>> What is a token?")
    n = prompts(second)
    second.type("\x03")
    wait_for_prompt(second, n)
    second.type("\x12KV")
    second.settle(0.2)
    second.type("\x07\x12tok")
    second.wait_for("What is a token?")
    second.type("\r\r")
    second.wait_for(TOKEN)


def test_tab_completes(chat: Open, tmp_path: Path) -> None:
    (tmp_path / "notes-of-today.txt").write_text("hello")
    terminal = chat()
    terminal.type("/hel\t")
    terminal.wait_for(">>> /help")
    terminal.type("\x15/set temp\t")
    terminal.settle(0.2)
    terminal.type(f"\x15/read {tmp_path}/notes\t")
    terminal.wait_for("notes-of-today.txt")


def test_the_editor(chat: Open, tmp_path: Path) -> None:
    """Ctrl-G: what the editor leaves is the message."""
    editor = tmp_path / "editor.sh"
    editor.write_text('#!/bin/sh\nprintf "What is a token?" > "$1"\n')
    editor.chmod(0o755)
    terminal = chat(env={"EDITOR": str(editor), "VISUAL": str(editor)})
    terminal.type("What\x07")
    terminal.wait_for(">>> What is a token?")
    terminal.type("\r")
    terminal.wait_for(TOKEN)


# Slash commands: what each does is in test_slash.py; here, what needs a screen or a model.


def test_what_runs_here(chat: Open) -> None:
    """/show, /tokens and /stats have the real engine's figures."""
    terminal = chat(columns=100, lines=40)
    say(terminal, "/stats", "there is no answer yet")
    say(terminal, "What is a token?", TOKEN)
    say(terminal, "/stats", "remembered")
    say(terminal, "/show", "of weights")
    say(terminal, "/tokens", "as the template has it")


def test_another_answer(chat: Open) -> None:
    """/regen and /edit answer on the screen as a message does."""
    terminal = chat()
    say(terminal, "What is a token?", TOKEN)
    say(terminal, "/regen")
    assert terminal.text.count(TOKEN) == 2
    say(terminal, "/edit What is the KV cache?", "The KV cache ")


def test_another_model(chat: Open) -> None:
    """What can't be loaded changes nothing; what can be goes on with the conversation."""
    terminal = chat()
    say(terminal, "What is a token?", TOKEN)
    say(terminal, "/model ./nothing.gguf", "nothing.gguf")
    say(terminal, "/model tiny", "the conversation goes on")
    say(terminal, "What is the KV cache?", "The KV cache ")


def test_a_conversation_that_is_loaded_is_shown(chat: Open) -> None:
    """Its end stands on the screen as it did when it was said."""
    terminal = chat(columns=100, lines=40)
    say(terminal, "What is a token?", TOKEN)
    say(terminal, "/save My talk", "kept as 2")
    say(terminal, "/list", "My talk")
    say(terminal, "/clear", "a new conversation")
    say(terminal, "/load My talk", "2 turns")
    assert terminal.text.count(">>> What is a token?") == 2 and terminal.text.count(TOKEN) == 2


def test_a_command_that_fails(chat: Open) -> None:
    """An error, what to type next, and the chat goes on."""
    terminal = chat()
    say(terminal, "/hlep", "error: there is no command /hlep; the nearest is /help")
    say(terminal, "/copy", "there is no answer yet")
    say(terminal, "What is a token?", TOKEN)
    say(terminal, "/copy", "clipboard")
    terminal.type("/exit\r")
    assert terminal.wait() == 0


def test_help_is_one_screen(chat: Open) -> None:
    """80 × 24: from its first line to the prompt and the status line."""
    terminal = chat(columns=80, lines=24)
    say(terminal, "/help", "complete")
    assert terminal.rows[0].endswith("/help") or terminal.rows[0].startswith("/help")
    assert terminal.rows[-1].startswith("tiny") and len(terminal.rows) <= 24


def test_markdown_and_colours(chat: Open) -> None:
    """Emphasis is drawn, not spelled; --plain and NO_COLOR leave it as it is."""
    terminal = chat("--chat-template", "{{ messages[-1].content }}", "--choice", "**bold** `code`")
    terminal.type("x\r")
    terminal.wait_for("bold code")
    assert b"\x1b[1m" in terminal.raw or b"\x1b[0;1m" in terminal.raw or b";1" in terminal.raw
    plain = chat("--plain", "--chat-template", "{{ messages[-1].content }}", "--choice", "**bold** `code`")
    plain.type("x\r")
    plain.wait_for("**bold** `code`")


def test_no_status(chat: Open) -> None:
    terminal = chat("--no-status")
    say(terminal, "What is a token?", "not letters.")
    assert not any("context" in row and "·" in row for row in terminal.rows)
    assert terminal.rows[-1] == PROMPT  # on a line of its own


def test_a_terminal_that_knows_nothing(chat: Open) -> None:
    """TERM=dumb: no status, no colours, and the prompt behind the answer all the same."""
    terminal = chat(env={"TERM": "dumb"})
    terminal.type("What is a token?\r")
    terminal.wait_until(lambda: "not letters." in terminal.text and terminal.rows[-1].startswith(PROMPT), "a prompt")
    assert b"\x1b[2m" not in terminal.raw


def test_run_without_a_prompt_is_a_chat(chat: Open) -> None:
    terminal = chat("run", "tiny", "--temp", "0")
    say(terminal, "What is a token?", TOKEN)
    terminal.type("/bye\r")
    assert terminal.wait() == 0


def test_what_is_typed_meanwhile_waits(chat: Open) -> None:
    """Keys pressed during an answer are not mixed into it; they stand in the next prompt."""
    terminal = chat("--ignore-eos", "-n", "400")
    terminal.type("Tell me a story about a fox.\r")
    terminal.wait_for("Once")
    terminal.type("typed ahead")
    terminal.wait_for("400 tokens are reached")
    terminal.wait_for(">>> typed ahead")
    assert sum("typed ahead" in row for row in terminal.rows) == 1


@pytest.mark.parametrize("width", [20, 34])
def test_narrow(chat: Open, width: int) -> None:
    terminal = chat(columns=width, lines=30)
    say(terminal, "What is a token?", "A token is a")
    assert all(len(row) <= width for row in terminal.rows)


def test_kill_9_and_go_on(chat: Open, tmp_path: Path) -> None:
    """The conversation has what was on the screen; --continue goes on with it, and with its model."""
    terminal = chat("--ignore-eos", "-n", "900")
    terminal.type("Tell me a story about a fox.\r")
    terminal.wait_for("Once upon a time")
    os.kill(terminal.process.pid, signal.SIGKILL)
    terminal.wait()
    shown = " ".join(row for row in terminal.rows[2:] if "·" not in row).replace("\n", " ")
    again = Terminal("chat", "--continue", columns=90, lines=24, env={"LLMRUN_HOME": os.fspath(tmp_path)})
    with again:
        again.wait_for("2 turns")
        again.settle(0.1)
        kept = json_of_last(tmp_path)["messages"][-1]["content"]
        assert kept.startswith("Once upon a time")
        words = shown.split("Once", 1)[1].split()
        assert " ".join(kept.split()).find(" ".join(words[:-2])[:200]) >= 0


def test_a_third_ctrl_c(chat: Open) -> None:
    """An engine that does not listen is given up, and the next message has a new one, in step."""
    terminal = chat("--ignore-eos", "-n", "60")
    (child,) = psutil.Process(terminal.process.pid).children()
    child.suspend()
    terminal.type("Tell me a story\r")
    terminal.wait_for_bytes(GONE, 1)  # the line editor is
    for _ in range(3):
        until_it_sleeps(terminal.process.pid)  # for want of an engine
        terminal.type("\x03")
        terminal.settle(0.3)
    terminal.wait_for("stopped")
    say(terminal, "What is a token?", "60 tokens are reached")
    say(terminal, "What is the KV cache?", "60 tokens are reached")
    assert "the engine sent" not in terminal.text


def test_files_wait_for_an_answer(chat: Open, tmp_path: Path) -> None:
    """What /read took is sent once, with the message that is answered; bad files are none."""
    (tmp_path / "notes.txt").write_text("a note of mine")
    (tmp_path / "long.txt").write_text("long " * 2000)
    os.mkfifo(tmp_path / "pipe")
    terminal = chat("-c", "300", "-n", "8", lines=40, columns=160)
    say(terminal, f"/read {tmp_path}/pipe", "error: /read")
    say(terminal, f"/read {tmp_path}", "error: /read")
    say(terminal, f"/read {tmp_path}/long.txt", "more than 300")
    say(terminal, f"/read {tmp_path}/notes.txt", "before your")
    say(terminal, "word " * 400, "the context holds 300")
    say(terminal, "hello")
    said = json_of_last(tmp_path)["messages"]
    assert said[0]["content"] == "a note of mine\n\nhello"
    say(terminal, "again")
    assert json_of_last(tmp_path)["messages"][2]["content"] == "again"


def test_edit_in_the_line(chat: Open, tmp_path: Path) -> None:
    """/edit puts the last message into the prompt; left with Ctrl-C, nothing has changed."""
    terminal = chat()
    say(terminal, "What is a token?", TOKEN)
    terminal.type("/edit\r")
    terminal.wait_for_bytes(READY, 3)
    terminal.wait_for(">>> What is a token?")
    terminal.type("\x03")
    wait_for_prompt(terminal, 3)
    assert json_of_last(tmp_path)["messages"][0]["content"] == "What is a token?"
    terminal.type("/edit\r")
    wait_for_prompt(terminal, 4)
    say(terminal, "\x15What is the KV cache?", "The KV cache ")
    assert json_of_last(tmp_path)["messages"][0]["content"] == "What is the KV cache?"
    assert len(json_of_last(tmp_path)["messages"]) == 2


def test_from_a_pipe(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Every line is a message, the answers are the output; the first error is the exit code."""
    env = {"LLMRUN_HOME": str(tmp_path)}
    done = llmrun(
        "chat", "tiny", "--temp", "0", input='What is a token?\n"""What is\nthe KV cache?"""\n/bye\n', env=env
    )
    assert done.returncode == 0 and TOKEN in done.stdout and "\x1b" not in done.stdout
    assert len(done.stdout.strip().splitlines()) == 2
    assert llmrun("chat", "tiny", input="/nonsense\nHello\n", env=env).returncode == 2
    listed = llmrun("history", "list", "--json", env=env)
    assert json.loads(listed.stdout)[0]["n_turns"] == 4
    more = llmrun("chat", "--continue", "--temp", "0", "-q", input="What is a token?\n", env=env)
    assert more.stdout.startswith(TOKEN)  # the answer alone, nothing of what was said before
    llmrun("chat", "tiny", "--ephemeral", input="Hello\n", env=env)
    assert len(json.loads(llmrun("history", "list", "--json", env=env).stdout)) == 1


def test_lines_of_other_machines(llmrun: RunLlmrun) -> None:
    """A mark before a command, and Windows' line ends behind a line that goes on: as if they were not there."""
    rest = ("chat", "tiny", "--ephemeral", "--temp", "0", "-q")
    counted = llmrun(*rest, input="/tokens a\n").stdout
    assert counted == "1\n"  # and no BOS, which begins a prompt and not a text
    assert llmrun(*rest, input="\ufeff/tokens a\r\n").stdout == counted
    assert llmrun(*rest, input="What \\\r\nis tiny?\r\n").stdout == llmrun(*rest, input="What \\\nis tiny?\n").stdout


def test_where_nothing_can_be_kept(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """It is said, and the chat goes on; what is to be resumed has to be there."""
    (tmp_path / "home").write_text("a file where a folder should be")
    env = {"LLMRUN_HOME": str(tmp_path / "home")}
    done = llmrun("chat", "tiny", "--temp", "0", input="What is a token?\n", env=env)
    assert done.returncode == 0 and TOKEN in done.stdout and "can't be kept" in done.stderr
    assert llmrun("chat", "tiny", "--continue", input="Hello\n", env=env).returncode == 7


def test_settings_of_a_chat(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """config.toml turns keeping off, and the command line on again."""
    env = {"LLMRUN_HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert llmrun("config", "set", "ephemeral", "true", env=env).returncode == 0
    llmrun("chat", "tiny", input="Hello\n", env=env)
    assert json.loads(llmrun("history", "list", "--json", env=env).stdout) == []
    llmrun("chat", "tiny", "--keep", input="Hello\n", env=env)
    assert len(json.loads(llmrun("history", "list", "--json", env=env).stdout)) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("chat",), "which model?"),
        (("chat", "tiny", "--think", "loud"), "none of show, fold, hide, off"),
        (("chat", "tiny", "--ctx-overflow", "burst"), "none of drop, stop"),
        (("chat", "tiny", "--continue", "--resume", "x"), "one of the two"),
        (("chat", "tiny", "--ephemeral", "--continue"), "nothing to go on with"),
        (("chat", "tiny", "--json-mode", "--choice", "a,b"), "an answer has one format"),
        (("chat", "tiny", "--json-schema", '{"type": "objekt"}'), "not a valid schema"),
        (("chat", "tiny", "--think-budget", "-1"), "outside 0"),
    ],
)
def test_mistakes(llmrun: RunLlmrun, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = llmrun(*arguments, env={"LLMRUN_HOME": str(tmp_path)})
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr and done.stdout == ""
