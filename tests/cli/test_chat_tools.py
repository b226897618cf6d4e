"""`llmrun chat --tools`: nothing runs before it was allowed, on a terminal and in a pipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RunLlmrun
from scripted_server import Reply, ScriptedServer, chunk
from terminal import Terminal
from waiting import until

FILE = '''
from pathlib import Path
import threading

def note(text: str, city: str = "Oslo"):
    """Notes a text."""
    print("noise")
    with Path(__file__).with_name("notes").open("a") as file:
        file.write(text + "\\n")
    return {"noted": text, "city": city}

def wait():
    """Waits for ever."""
    Path(__file__).with_name("waits").touch()
    threading.Event().wait()
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tools.py").write_text(FILE)
    return tmp_path / "tools.py"


def calling(*calls: tuple[str, Any]) -> Reply:
    told = chunk("", 5)
    functions = [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in calls]
    told["choices"][0]["delta"] = {"tool_calls": [{"index": i, "function": each} for i, each in enumerate(functions)]}
    return Reply(chunks=[told, chunk("", 5, finish="tool_calls"), "[DONE]"])


def saying(text: str) -> Reply:
    return Reply(chunks=[chunk(text, 1), chunk("", 1, finish="stop"), "[DONE]"])


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as opened:
        yield opened


def results(server: ScriptedServer) -> list[str]:
    """What the model was told last."""
    messages = server.bodies["/v1/chat/completions"][-1]["messages"]
    return [each["content"] for each in messages if each["role"] == "tool"]


def test_the_question(server: ScriptedServer, file: Path, tmp_path: Path) -> None:
    """Yes, no, always; what was typed before it is no answer to it; Ctrl-C at it ends the answer and runs nothing."""
    call = ("note", {"text": "a \x1b[31mb"})
    server.replies["/v1/chat/completions"] = [calling(call), saying("First.")]
    command = ("chat", "tiny", "--server", server.address, "--tools", str(file))
    with Terminal(*command, lines=70, env={"LLMRUN_HOME": str(tmp_path)}) as terminal:
        terminal.wait_for(">>>")

        def asks(*replies: Reply) -> None:
            server.replies["/v1/chat/completions"] = [*replies]
            n = terminal.raw.count(b"lways this one")
            terminal.type("do it\r")
            terminal.wait_for_bytes(b"lways this one", n + 1)

        def written() -> int:
            notes = tmp_path / "notes"
            return len(notes.read_text().splitlines()) if notes.exists() else 0

        asks(calling(call), saying("First."))
        assert 'run note(text="a \\u001b[31mb")?' in terminal.text and written() == 0
        terminal.type("xn")
        terminal.wait_for("First.")
        assert results(server) == ["The user did not allow this call."] and written() == 0

        asks(calling(call), saying("Second."))
        terminal.type("y")
        terminal.wait_for("Second.")
        assert json.loads(results(server)[-1]) == {"noted": "a \x1b[31mb", "city": "Oslo"} and written() == 1
        assert "→ {" in terminal.text and "noise" not in terminal.text

        asks(calling(call), saying("Third."))
        terminal.type("\x03")
        terminal.wait_for("stopped")
        assert written() == 1

        asks(calling(call, call), calling(call), saying("Fourth."))
        terminal.type("a")
        terminal.wait_for("Fourth.")
        assert written() == 4 and len(results(server)) == 6

        asks(calling(("wait", {})), saying("Fifth."))
        terminal.type("y")
        until((tmp_path / "waits").exists, "the call runs")
        terminal.type("\x03")
        terminal.wait_until(lambda: terminal.text.count("stopped") == 2, "the call was stopped")
        terminal.type("/undo\r")
        terminal.wait_for("taken back: do it")
        terminal.type("\x04")
        assert terminal.wait() == 0


def test_nobody_to_ask(server: ScriptedServer, file: Path, tmp_path: Path, llmrun: RunLlmrun) -> None:
    """In a pipe it is refused before anything; with --trust-tools it runs, and is said; the answer alone is stdout."""
    asked = ("chat", "tiny", "--server", server.address, "--tools", str(file))
    refused = llmrun(*asked, input="do it\n")
    assert refused.returncode == 2 and "--trust-tools" in refused.stderr and not server.bodies
    server.replies["/v1/chat/completions"] = [calling(("note", {"text": "a"}), ("note", {"text": 1})), saying("Done.")]
    env = {"LLMRUN_HOME": str(tmp_path / "home")}
    done = llmrun(*asked, "--trust-tools", input="do it\n", env=env)
    assert (done.returncode, done.stdout) == (0, "Done.\n"), done.stderr
    assert 'run note(text="a")' in done.stderr and '→ {"noted":"a"' in done.stderr and "noise" not in done.stderr
    assert results(server)[1].startswith("ValidationError: Expected `str`, got `int`")
    assert (tmp_path / "notes").read_text() == "a\n"
    body = server.bodies["/v1/chat/completions"][0]
    assert [each["function"]["name"] for each in body["tools"]] == ["note", "wait"] and body["tool_choice"] == "auto"
    (found,) = json.loads(llmrun("history", "list", "--json", env=env).stdout)
    kept = json.loads(llmrun("history", "show", found["id"], "--json", env=env).stdout)["messages"]
    assert [each["role"] for each in kept] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [each["name"] for each in kept[1]["calls"]] == ["note", "note"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nothing_of_that_name", "line 1: ModuleNotFoundError"),
        ("def f(a: int):\n    pass\n", "f has no docstring"),
        (None, "there is no file"),
    ],
)
def test_a_file_of_no_use(file: Path, llmrun: RunLlmrun, source: str | None, said: str) -> None:
    """Before the model is loaded, and before anybody is asked for one."""
    file.write_text(source) if source is not None else file.unlink()
    done = llmrun("chat", "tiny", "--tools", str(file), "--trust-tools", "--server", ":1", input="Hi\n")
    assert done.returncode == (4 if source is None else 2) and said in done.stderr and "Traceback" not in done.stderr


def test_what_does_not_go_together(file: Path, llmrun: RunLlmrun) -> None:
    form = llmrun("chat", "tiny", "--tools", str(file), "--trust-tools", "--json-mode", input="Hi\n")
    alone = llmrun("chat", "tiny", "--trust-tools", input="Hi\n")
    assert form.returncode == alone.returncode == 2
    assert "another form already" in form.stderr and "--tools FILE.py" in alone.stderr


def test_a_model_that_is_loaded_here(file: Path, llmrun: RunLlmrun) -> None:
    """It may call, and need not."""
    done = llmrun("chat", "tiny", "--temp", "0", "-n", "8", "--tools", str(file), "--trust-tools", input="Hi\n/show\n")
    assert done.returncode == 0 and "tools         note, wait" in done.stdout, done.stderr
