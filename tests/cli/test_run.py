"""`llmrun run` as a user meets it: real commands, real pipes, a real terminal."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ENDLESS_OPTIONS, ENDLESS_PROMPT, RunLlmrun
from terminal import Terminal
from waiting import HANGS_S, children_of, until_gone, until_it_has_a_child, until_it_sleeps, until_worked

from llmrun.cli.terminal import files, progress
from llmrun.gguf import synth
from llmrun.models.resolve import find_model
from llmrun.text import sanitize

STORY = ("run", "tiny", "Once upon a time", "--raw", "--temp", "0", "-n", "30")


# -- answers ---


def test_answer_alone_on_stdout(llmrun: RunLlmrun) -> None:
    """stdout is the answer, stderr is one meter line."""
    done = llmrun(*STORY)
    assert done.returncode == 0
    assert done.stdout.startswith((" ", ","))
    (line,) = done.stderr.splitlines()
    for part in ("prompt ", "TTFT ", " t/s", "GB/s read", "peak RAM "):
        assert part in line
    assert "–" not in line  # everything is known


def test_same_prompt_four_ways(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Argument, file, pipe and Python give the same answer."""
    prompt = "Once upon a time"
    (tmp_path / "p.txt").write_text(prompt + "\n")
    rest = ("--raw", "--temp", "0", "-n", "20", "-q", "--no-newline")
    expected = llmrun("run", "tiny", prompt, *rest).stdout
    assert expected
    assert llmrun("run", "tiny", "-f", str(tmp_path / "p.txt"), *rest).stdout == expected
    assert llmrun("run", "tiny", *rest, input=prompt + "\n").stdout == expected
    import llmrun as package

    with package.open_model("tiny") as model:
        answer = model.generate(prompt, package.SamplingConfig(temperature=0, max_tokens=20))
        assert "".join(answer) == expected


def test_threads_change_no_word(llmrun: RunLlmrun) -> None:
    """Of a short answer; here alone two of them compute."""
    asked = ("run", "tiny", "Once upon a time", "--temp", "0", "-n", "60")
    texts = [llmrun(*asked, "-t", str(n), env={"OMP_THREAD_LIMIT": str(n)}).stdout for n in (1, 2, 3)]
    assert texts[0] and len({*texts}) == 1


def test_an_answer_ends_with_a_newline(llmrun: RunLlmrun) -> None:
    """One that it has or one of ours, never two; none at all where that is asked for."""
    assert llmrun(*STORY, "-q").stdout == llmrun(*STORY, "-q", "--no-newline").stdout + "\n"
    ends = (*STORY[:-2], "--choice", "x\ny", "-q")
    assert llmrun("run", "tiny", "hi", "-n", "0", "-q").stdout == ""
    assert not llmrun(*ends).stdout.endswith("\n\n")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"Once upon a time\r\n", ""),
        (b"\xef\xbb\xbfOnce upon a time\n\n", ""),
        ("Once upon a time\r\n".encode("utf-16"), "is UTF-16"),
        ("Once upon a time".encode("utf-32"), "is UTF-32"),
        (b"Once upon a tim\xe9", "is not UTF-8 text: byte 15 is 0xe9"),
    ],
)
def test_texts_of_other_machines(llmrun: RunLlmrun, tmp_path: Path, data: bytes, said: str) -> None:
    """Windows' line ends and marks are as if they were not there; another encoding is said, -q or not."""
    file = tmp_path / "p.txt"
    file.write_bytes(data)
    rest = ("--raw", "--temp", "0", "-n", "5", "-q")
    text = "Once upon a time" if "not" not in said else "Once upon a tim\ufffd"
    expected = llmrun("run", "tiny", text, *rest).stdout
    named = llmrun("run", "tiny", "-f", str(file), *rest)
    with file.open("rb") as stdin:
        piped = subprocess.run(
            [sys.executable, "-m", "llmrun", "run", "tiny", *rest], stdin=stdin, capture_output=True, text=True
        )
    for done, what in ((named, str(file)), (piped, "standard input")):
        assert (done.returncode, done.stdout) == (0, expected)
        assert (f"{what} {said}" in done.stderr) if said else done.stderr == ""


def test_windows_line_ends_inside(tmp_path: Path) -> None:
    """Of texts, and of what is read as a file of another option."""
    (tmp_path / "a.gbnf").write_bytes(b"\xef\xbb\xbfroot ::= a\r\na ::= 'x'\r\n")
    assert files.read_text("--grammar", str(tmp_path / "a.gbnf")) == "root ::= a\na ::= 'x'\n"
    assert files.text_of(b"a\r\nb\rc\r\n") == ("a\nb\rc\n", None)


def test_bytes_that_are_not_utf_8(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Files may have such names; texts may not, and a prompt says what became of them."""
    env = {"LLMRUN_HOME": str(tmp_path)}
    name = os.fsdecode(b"caf\xe9")
    model = tmp_path / f"{name}.gguf"
    model.write_bytes(find_model("tiny").path.read_bytes())
    quick = ("-p", "8", "-n", "0", "-r", "1", "--no-ceilings")
    for arguments in (
        ("bench", str(model), *quick),
        ("bench", str(model), *quick),  # its hash is known now
        ("import", str(model)),
        ("list",),
        ("quantize", str(model), "Q4_0", "-o", str(tmp_path / f"{name}-q4.gguf")),
        ("run", str(tmp_path / f"{name}-q4.gguf"), "hi", "-n", "1"),
        ("bench", "tiny", *quick, "--output", str(tmp_path / f"{name}.csv")),
    ):
        done = llmrun(*arguments, env=env)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    done = llmrun("run", "tiny", name, "-n", "1", "-q", env=env)
    assert done.returncode == 0 and done.stderr.startswith("warning: the prompt is not UTF-8 text: byte 3 is 0xe9")
    refused: list[tuple[str, ...]] = [("config", "set", "system", name), ("search", name)]
    refused += [("run", "tiny", "hi", option, name) for option in ("--system", "--stop", "--choice")]
    for words in refused:
        done = llmrun(*words, env=env)
        assert done.returncode == 2 and "is not UTF-8" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_stdin_that_can_not_be_read(tmp_path: Path) -> None:
    """Open for writing only, it is as if it were closed: no input."""
    for command, code in ((["run", "tiny", "hi", "-n", "1", "-q"], 0), (["chat", "tiny", "-q", "--ephemeral"], 0)):
        with (tmp_path / "out").open("wb") as stdin:
            done = subprocess.run(
                [sys.executable, "-m", "llmrun", *command], stdin=stdin, capture_output=True, text=True
            )
        assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("ignored", [False, True])
def test_interrupted_before_it_begins(ignored: bool) -> None:
    """Ctrl-C between the start of Python and the program's own beginning: not a word; ignored where it is ignored."""
    code = "import llmrun.__main__, os, signal; os.kill(os.getpid(), signal.SIGINT); print('goes on')"
    code = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {code}" if ignored else code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = (0, "goes on\n", "") if ignored else (-signal.SIGINT, "", "")
    assert (done.returncode, done.stdout, done.stderr) == expected


def test_stdin_stands_before_the_argument(llmrun: RunLlmrun, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("B")
    rest = ("--raw", "--temp", "0", "-n", "5", "-q")
    joined = llmrun("run", "tiny", "A\n\nB\n\nC", *rest).stdout
    assert llmrun("run", "tiny", "C", "-f", str(tmp_path / "p.txt"), *rest, input="A\n").stdout == joined


def test_chat_template_is_the_default(llmrun: RunLlmrun) -> None:
    """With its template the model answers and ends by itself; a system prompt is accepted."""
    done = llmrun("run", "tiny", "What is the KV cache?", "--temp", "0", "--system", "Be brief.", "--json")
    document = json.loads(done.stdout)
    assert document["stop_reason"] == "end" and len(document["answer"]) > 20


def test_json_document(llmrun: RunLlmrun) -> None:
    """One document, numbers that agree with each other, nothing on stderr."""
    done = llmrun(*STORY, "--json", "--seed", "3", "--stop", "never ever")
    assert done.stderr == ""
    document = json.loads(done.stdout)
    timing = document["timing"]
    assert document["stop_reason"] == "length" and len(document["tokens"]) == 30 == timing["n_generated"]
    assert timing["tg_tps"] == pytest.approx(29 / timing["decode_s"])
    assert timing["read_bytes_per_s"] == pytest.approx(timing["read_bytes"] / timing["decode_s"])
    assert document["settings"]["seed"] == 3 and document["settings"]["stop"] == ["never ever"]
    assert document["memory"]["peak_rss_bytes"] > 1 << 20
    assert document["versions"]["llama-cpp-python"] == "0.3.36"
    assert document["model"]["weight_bytes"] > 0


def test_verbose_and_quiet(llmrun: RunLlmrun) -> None:
    verbose = llmrun(*STORY, "--verbose").stderr
    for word in ("model", "load", "context", "memory", "prefill", "decode", "p95", "stopped", "seed"):
        assert word in verbose
    assert llmrun(*STORY, "--quiet").stderr == ""


def test_stop_and_bias_options(llmrun: RunLlmrun) -> None:
    whole = llmrun(*STORY, "-q").stdout
    assert llmrun(*STORY, "-q", "--no-newline", "--stop", whole[10:14]).stdout == whole[: whole.index(whole[10:14])]
    first = json.loads(llmrun(*STORY, "--json").stdout)["tokens"][0]
    assert json.loads(llmrun(*STORY, "--json", "-l", f"{first}-inf").stdout)["tokens"][0] != first


def test_the_child_is_started_first() -> None:
    """Until then a run imports neither the engine nor what plans, reads headers, fetches or draws."""
    code = "import sys; import llmrun.cli.app, llmrun.cli.commands.run, llmrun.engine.process; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS_S)
    late = (
        "engine.engine",
        "engine.protocol",
        "planning",
        "gguf",
        "models.hub",
        "chat.conversation",
        "chat.store",
        "chat.transcript",
        "cli.terminal.markdown",
        "constrain",
    )
    assert done.returncode == 0
    assert [name for name in done.stdout.split() if name.startswith(tuple(f"llmrun.{each}" for each in late))] == []


# -- what goes wrong ---


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("run", "tiny"), 2, "there is no prompt"),
        (("run", "tiny", "a", "-n", "-7"), 2, "--n-predict: -7 is outside -1 to"),
        (("run", "tiny", "a", "--temp", "nan"), 2, "--temp: nan is outside"),
        (("run", "tiny", "a", "-b", "-5"), 2, "--batch-size"),
        (("run", "tiny", "a", "-t", "100000"), 2, "--threads: 100000 is outside 1 to 512"),
        (("run", "tiny", "a", "--repack", "maybe"), 2, "none of auto, on, off"),
        (("run", "tiny", "a", "--logit-bias", "x"), 2, "TOKEN+BIAS"),
        (("run", "tiny", "a", "--raw", "--system", "s"), 2, "--system has no effect"),
        (("run", "tiny", "a", "--no-such-option"), 2, "--no-such-option"),
        (("runn", "tiny"), 2, "run"),
        (("run", "./nothing.gguf", "a"), 4, "nothing.gguf"),
        (("run", "tiny", "-f", "nowhere.txt"), 4, "nowhere.txt"),
        (("run", "tiny", "b " * 4000), 11, "tokens, the context holds"),
        (("run", "tiny", "Once upon a time", "-c", "3"), 11, "the context holds 3"),
    ],
)
def test_mistakes(llmrun: RunLlmrun, arguments: tuple[str, ...], code: int, words: str) -> None:
    """One line on stderr that says what is wrong, nothing on stdout, the documented exit code."""
    done = llmrun(*arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr


def test_what_is_no_model(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Exit 8, naming what the thing is; a FIFO does not hang."""
    (tmp_path / "page.gguf").write_text("<!DOCTYPE html><html><body>404</body></html>")
    (tmp_path / "pointer.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    (tmp_path / "empty.gguf").touch()
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    for name, words in (
        ("page", "HTML"),
        ("pointer", "LFS"),
        ("empty", "empty"),
        ("pipe", "FIFO"),
        ("folder", "folder"),
    ):
        done = llmrun("run", str(tmp_path / f"{name}.gguf"), "a")
        assert done.returncode == 8 and words.lower() in done.stderr.lower(), done.stderr


def test_debug_shows_the_traceback(llmrun: RunLlmrun) -> None:
    assert "Traceback" in llmrun("run", "./nothing.gguf", "a", env={"LLMRUN_DEBUG": "1"}).stderr


def test_broken_pipe_is_quiet() -> None:
    """`| head -c 20` ends us with 141 and not a word."""
    ours = f"{shlex.quote(sys.executable)} -m llmrun run tiny 'Tell me a story' -n 400 -q"
    command = f"{ours} | head -c 20; echo ${{PIPESTATUS[0]}} >&2"
    bash = ["bash", "-c", command]
    done = subprocess.run(bash, capture_output=True, text=True, timeout=HANGS_S, stdin=subprocess.DEVNULL)
    assert len(done.stdout) == 20
    assert done.stderr.split() == ["141"]


def test_full_disk_and_closed_streams() -> None:
    """`> /dev/full` is exit 7; closed standard streams are no traceback."""
    base = f"{shlex.quote(sys.executable)} -m llmrun run tiny 'Hello' --temp 0 -n 8"
    for redirect, code, words in (
        ("> /dev/full", 7, "no space"),
        (">&-", 7, "standard output"),
        ("2>&- >/dev/null", 0, ""),
        ("<&- >/dev/null", 0, ""),
        ("0<&- 1>&- 2>&-", 7, ""),
    ):
        done = subprocess.run(["bash", "-c", f"{base} {redirect}"], capture_output=True, text=True, timeout=HANGS_S)
        assert done.returncode == code, (redirect, done.stderr)
        assert words in done.stderr and "Traceback" not in done.stderr


def test_waits_for_no_terminal() -> None:
    """An open pipe that nobody writes to: it says what it is waiting for."""
    with subprocess.Popen(
        [sys.executable, "-m", "llmrun", "run", "tiny", "a", "-n", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        assert "waiting for standard input" in process.stderr.readline()
        process.communicate(timeout=HANGS_S)
        assert process.returncode == 0


# -- Ctrl-C, terminate ---


def reach(phase: str, process: subprocess.Popen[str]) -> None:
    """Wait until the command is in this phase, as far as can be seen from outside."""
    if phase == "load":
        until_it_has_a_child(process.pid)
    elif phase == "prefill":
        until_worked(until_it_has_a_child(process.pid), 4)  # of which libraries and weights take a fraction
    elif phase == "decode":
        assert process.stdout and process.stdout.read(1)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("phase", ["start", "load", "prefill", "decode"])
def test_interrupt_in_every_phase(busy: Path, phase: str, sent: signal.Signals, code: int) -> None:
    """Ended wherever it was, with the shell's exit code and no process left. How soon: scripts/fault_engine.py."""
    prompt = ENDLESS_PROMPT if phase == "prefill" else "b"
    with subprocess.Popen(
        [sys.executable, "-m", "llmrun", "run", str(busy), prompt, *ENDLESS_OPTIONS],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        reach(phase, process)
        children = children_of(process.pid)
        process.send_signal(sent)
        stdout, stderr = process.communicate(timeout=HANGS_S)
    # Before any code of ours has run, it is the kernel that ends it, or Python in its own way.
    is_early = phase == "start" and (process.returncode == -sent or "runpy" in stderr)
    assert process.returncode == code or is_early, stderr
    assert "Traceback" not in stderr or is_early
    assert children or phase == "start"
    assert not stdout or phase == "decode"
    until_gone(*children)


def test_interrupt_while_a_text_is_executed() -> None:
    """As dataclasses are made, in any import: Python would kill itself with SIGINT at its end, caught or not."""
    script = """if True:
        from llmrun.__main__ import leave
        try:
            exec("raise KeyboardInterrupt")
        except KeyboardInterrupt:
            leave(130)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=HANGS_S)
    assert (done.returncode, done.stderr) == (130, b"")


def test_killed_engine_seen_from_outside(busy: Path) -> None:
    """SIGSEGV in the engine: exit 9, one line."""
    with subprocess.Popen(
        [sys.executable, "-m", "llmrun", "run", str(busy), "b", *ENDLESS_OPTIONS],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stdout.read(1)  # it decodes
        os.kill(until_it_has_a_child(process.pid), signal.SIGSEGV)
        _, stderr = process.communicate(timeout=HANGS_S)
    assert process.returncode == 9
    assert "SIGSEGV" in stderr and "Traceback" not in stderr


# -- the terminal ---


def test_on_a_terminal() -> None:
    """The answer, a line end, the meter line, and a cursor that is to be seen."""
    with Terminal(*STORY, columns=160) as terminal:
        assert terminal.wait() == 0
        *answer, meter = terminal.text.splitlines()
        assert "TTFT" in meter and answer
        assert not terminal.cursor_hidden


def test_load_bar_on_a_terminal(busy: Path) -> None:
    """A load that takes longer than a blink draws a bar, which is gone afterwards."""
    with Terminal("run", str(busy), "b", "-n", "2", "--temp", "0", "--no-tune") as terminal:
        child = until_it_has_a_child(terminal.process.pid)
        os.kill(child, signal.SIGSTOP)
        until_it_sleeps(terminal.process.pid)  # it waits for the engine, which is not even there yet
        time.sleep(progress.DELAY_S)  # a blink at least, and as much longer as it likes
        os.kill(child, signal.SIGCONT)
        assert terminal.wait() == 0
        assert b"loading" in terminal.raw
        assert "loading" not in terminal.text and not terminal.cursor_hidden


def test_ctrl_c_typed_on_a_terminal(busy: Path) -> None:
    """A Ctrl-C key in the middle of an answer: 130, no child, the cursor back."""
    letter_a = synth.vocabulary(512)[0].index(b"a")
    with Terminal("run", str(busy), "b", *ENDLESS_OPTIONS, "-l", f"{letter_a}+9999") as terminal:
        terminal.wait_for("aaaa")
        children = children_of(terminal.process.pid)
        terminal.type("\x03")
        assert terminal.wait() == 130
        until_gone(*children)
        assert not terminal.cursor_hidden and "Traceback" not in terminal.text


HOSTILE = "\x1b[2J\x1b]0;title\x07 \x9b31m \r over \x08 \u202e drow end"


def test_hostile_output_is_shown_not_obeyed(tmp_path: Path) -> None:
    """A token that is an escape sequence: pictures on a terminal, itself in a pipe."""
    vocab = synth.vocabulary(512)
    vocab[0][400] = HOSTILE.encode()
    path = tmp_path / "hostile.gguf"
    synth.write(path, synth.SHAPES["micro"], "F16", vocab=vocab)
    arguments = ("run", str(path), "a", "--temp", "0", "-n", "1", "-l", "400+9999")
    with Terminal(*arguments) as terminal:
        assert terminal.wait() == 0
        shown = terminal.raw.decode()
        assert "␛[2J" in shown and "drow" in shown
        assert not any(bad in shown for bad in ("\x1b[2J", "\x1b]0", "\x07", "\x9b", "\u202e", "\r over", "\x08"))
    piped = subprocess.run([sys.executable, "-m", "llmrun", *arguments], capture_output=True, stdin=subprocess.DEVNULL)
    assert piped.stdout.decode() == HOSTILE + "\n"


def test_sanitize_keeps_text() -> None:
    """Newline, tab, other scripts and emoji with joiners are text."""
    text = "a\tb\nc 漢字 עברית 👩\u200d🚀 naïve"
    assert sanitize(text) == text
    every = "".join(chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\n\t")
    assert not set(every) & set(sanitize(every))


# -- the Python API in the README ---


def test_readme_example_runs() -> None:
    """The Python block of the README is run as it stands there."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr
    assert "t/s" in done.stdout


# -- the form of an answer ---

PERSON = '{"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}}, "required": ["age"]}'


def test_answers_of_a_form(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """What was asked for is what comes out, whatever the model would rather say."""
    rest = ("Tell me a story", "-q", "--seed", "1", "-n", "200")
    assert llmrun("run", "tiny", *rest, "--choice", "yes,no, may be").stdout in ("yes\n", "no\n", "may be\n")
    done = llmrun("run", "tiny", *rest, "--json-schema", PERSON)
    assert done.returncode == 0 and json.loads(done.stdout)["age"] <= 99
    (tmp_path / "schema.json").write_text(PERSON)
    assert "age" in json.loads(llmrun("run", "tiny", *rest, "--json-schema", str(tmp_path / "schema.json")).stdout)
    (tmp_path / "g.gbnf").write_text('root ::= [a-c]{3} "!"')
    answer = llmrun("run", "tiny", *rest, "--grammar", str(tmp_path / "g.gbnf")).stdout.removesuffix("\n")
    assert len(answer) == 4 and set(answer[:3]) <= set("abc") and answer[3] == "!"
    document = json.loads(llmrun("run", "tiny", *rest, "--choice", "a,b", "--json").stdout)
    assert document["answer"] in ("a", "b") and document["thinking"] == "" and document["timing"]["n_thinking"] == 0


def test_an_answer_that_was_cut_is_none(llmrun: RunLlmrun) -> None:
    """Half of a JSON document is exit 13, with the way out; what there is stays on stdout."""
    done = llmrun("run", "tiny", "Tell me a story", "--json-schema", PERSON, "-n", "3", "--seed", "1")
    assert done.returncode == 13 and done.stdout.startswith("{")
    assert "has the wrong format" in done.stderr and "a larger -n than 3" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--json-schema", '{"type": "strin"}'), 2, "not a valid schema"),
        (("--json-schema", '{"type": '), 2, "JSON"),
        (("--json-schema", "nowhere.json"), 4, "nowhere.json"),
        (("--json-schema", '{"$ref": "#/nowhere"}'), 2, "leads nowhere"),
        (("--json-schema", '{"type": "string", "minLength": 3, "maxLength": 2}'), 2, "maxLength"),
        (("--grammar", "nowhere.gbnf"), 4, "nowhere.gbnf"),
        (("--choice", ""), 2, "--choice"),
        (("--json-mode", "--choice", "a,b"), 2, "an answer has one format"),
        (("--think", "loud"), 2, "none of show, fold, hide, off"),
        (("--chat-template", "nowhere.jinja"), 4, "nowhere.jinja"),
        (("--template", "{language}"), 2, "no value for {language}"),
        (("--template", "{input} {0}"), 2, "is not a field"),
        (("--template", "{input"), 2, "--template"),
        (("--template", "nowhere"), 4, "no template of that name"),
        (("--template", "{input}", "--field", "a=b"), 2, "no such field"),
        (("--field", "a=b"), 2, "there is no template"),
        (("--raw", "--save"), 2, "--raw"),
    ],
)
def test_bad_forms(llmrun: RunLlmrun, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    """In words, before any native code; nothing on stdout."""
    done = llmrun("run", "tiny", "a", *arguments, env={"LLMRUN_HOME": str(tmp_path)})
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr


def test_forms_from_pipes(llmrun: RunLlmrun) -> None:
    """A schema, a grammar and a template come through a pipe, too, as `<(command)` has it."""
    for option, text, answer in (
        ("--json-schema", '{"const": "a"}', '"a"'),
        ("--grammar", 'root ::= root "a" | "b"\n', "b"),
        ("--template", "Say {input}", ""),
    ):
        done = llmrun("run", "tiny", "hi", option, "/dev/stdin", "--temp", "0", "-n", "3", "-q", input=text)
        assert done.returncode == 0 and done.stdout.startswith(answer), done.stderr


def test_what_a_schema_leaves_is_said(llmrun: RunLlmrun) -> None:
    """What only the whole answer can show, and a schema that says nothing, are told before the answer."""
    schema = {"title": "T", "properties": {"a": {"enum": [3]}, "b": {"typ": "x"}}, "not": {"required": ["c"]}}
    done = llmrun("run", "tiny", "hi", "--json-schema", json.dumps(schema), "--temp", "0", "-n", "60")
    assert "checked only when the answer is complete: not at #" in done.stderr
    assert "no keyword of JSON Schema in the schema at #/properties/b" in done.stderr


def test_prices_are_multiples_of_a_cent(llmrun: RunLlmrun) -> None:
    """4.35 is 435 cents, whatever it is in binary; the schema may be in OpenAI's wrapper."""
    wrapped = {"name": "price", "strict": True, "schema": {"const": 4.35, "multipleOf": 0.01}}
    done = llmrun("run", "tiny", "x", "--json-schema", json.dumps(wrapped), "--temp", "0", "-q")
    assert (done.returncode, done.stdout) == (0, "4.35\n")


def test_an_answer_cut_within_a_character(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """It ends before the character, and it is said that it ends early: no U+FFFD that the grammar never allowed."""
    (tmp_path / "g.gbnf").write_text('root ::= "a" [ぁ-ゟ]{3}')
    ends = ("run", "tiny", "x", "--grammar", str(tmp_path / "g.gbnf"), "--seed", "1", "-q", "--no-newline")
    whole = llmrun(*ends, env={"LC_ALL": "C"})
    assert whole.returncode == 0 and len(whole.stdout) == 4
    for n in range(1, 5):
        cut = llmrun(*ends, "-n", str(n))
        assert cut.returncode == 13 and "\ufffd" not in cut.stdout and whole.stdout.startswith(cut.stdout)
        assert "ends early" in cut.stderr


# -- prompts with fields, and conversations of one prompt each ---


def test_templates(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """A text, a file, a name in the folder of templates: all give the prompt that they spell."""
    rest = ("--raw", "--temp", "0", "-n", "12", "-q")
    expected = llmrun("run", "tiny", "Say hello to Bob\n\nnow", *rest).stdout
    typed = ("now", "--field", "who=Bob", *rest)
    text = "Say {what} to {who}\n\n{prompt}"
    (tmp_path / "greet.txt").write_text(text)
    (tmp_path / "config" / "llmrun" / "templates").mkdir(parents=True)
    (tmp_path / "config" / "llmrun" / "templates" / "greet.txt").write_text(text)
    (tmp_path / "what").write_text("hello\n")
    what = ("--field", f"what=@{tmp_path / 'what'}")
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    for name in (text, str(tmp_path / "greet.txt"), "greet"):
        assert llmrun("run", "tiny", "--template", name, *what, *typed, env=env).stdout == expected, name
    # A template without a place for the input does not lose it.
    assert llmrun("run", "tiny", "--template", "Say hello to {who}", *typed).stdout == expected


def test_save_and_continue(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Two commands, one conversation: the second knows what the first was told."""
    env = {"LLMRUN_HOME": str(tmp_path)}
    rest = ("--temp", "0", "-q", "--no-newline")
    first = llmrun("run", "tiny", "What is a token?", "--save", *rest, env=env).stdout
    second = llmrun("run", "tiny", "What is the KV cache?", "--continue", *rest, env=env).stdout
    kept = json.loads(llmrun("history", "show", "last", "--json", env=env).stdout)["messages"]
    assert [message["content"] for message in kept] == ["What is a token?", first, "What is the KV cache?", second]
    assert kept[3]["timing"]["n_prompt"] > kept[1]["timing"]["n_prompt"] + 20
    llmrun("run", "tiny", "Hello", *rest, env=env)
    assert len(json.loads(llmrun("history", "list", "--json", env=env).stdout)) == 1  # unasked, nothing is kept


def test_thinking_in_a_run(llmrun: RunLlmrun) -> None:
    """Apart in JSON, out of the way in a pipe."""
    template = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}<|assistant|><think>"
    rest = ("Tell me a story", "--temp", "0", "-n", "30", "--chat-template", template, "--think-budget", "6")
    document = json.loads(llmrun("run", "tiny", *rest, "--json").stdout)
    assert document["thinking"] and document["answer"] and document["timing"]["n_thinking"] >= 6
    assert llmrun("run", "tiny", *rest, "-q").stdout == document["answer"] + "\n"
    with Terminal("run", "tiny", *rest, "-q") as terminal:
        assert terminal.wait() == 0
        assert document["thinking"][:20] in terminal.text and b"\x1b[2m" in terminal.raw


def test_cut_off_by_the_context(llmrun: RunLlmrun) -> None:
    """It is told why the answer ends, with what to type; an answer that is as long as it was to be has no such line."""
    done = llmrun("run", "tiny", "hi", "-c", "8", "-n", "64")
    assert done.returncode == 0 and "the context of 8 tokens is full" in done.stderr and "-c" in done.stderr
    assert "is full" not in llmrun("run", "tiny", "hi", "-n", "2").stderr


# -- completion ---


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(llmrun: RunLlmrun, tmp_path: Path, shell: str) -> None:
    """Tab knows commands, options, and models: the embedded one, the catalog's, files."""
    (tmp_path / "mine.gguf").touch()

    def completed(words: str, at: int | None = None) -> str:
        env = {"_LLMRUN_COMPLETE": f"complete_{shell}", "LLMRUN_HOME": str(tmp_path)}
        if shell == "bash":
            env |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1 if at is None else at)}
        else:
            env |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        return llmrun(env=env, cwd=tmp_path).stdout

    assert "chat" in completed("llmrun ch")
    assert "--json-schema" in completed("llmrun run tiny --json-s")
    assert "tiny" in completed("llmrun run ti")
    assert "qwen3" in completed("llmrun chat qwen")
    assert "mine.gguf" in completed("llmrun run mi")
    if shell == "bash":  # it takes words apart at colons, and replaces what is behind the last one
        found = {*completed("llmrun\nrun\nqwen3\n:\n4", at=4).splitlines()}
        assert "4b" in found and not any(":" in each.removeprefix("4b") and "qwen" in each for each in found)
        assert "0.6b" in completed("llmrun\nrun\nqwen3\n:", at=3).splitlines()
