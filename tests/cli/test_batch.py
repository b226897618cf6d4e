"""`llmrun batch` as a user meets it: files in, files out, killed and gone on with."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ENDLESS_OPTIONS, RunLlmrun
from waiting import HANGS_S, children_of, until, until_gone

STORIES = ("--raw", "--temp", "0", "-n", "12")


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def chat(name: str, text: str = "Hi", **body: Any) -> str:
    messages = [{"role": "user", "content": text}]
    request = {
        "custom_id": name,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": messages, **body},
    }
    return json.dumps(request)


def test_plain_lines(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """As one by one; the summary is one line, the answers are on stdout alone."""
    prompts = ["Once upon a time", "One day, Lily", "Once upon a time there was"]
    (tmp_path / "in.txt").write_text("\n".join(prompts) + "\n")
    done = llmrun("batch", "tiny", str(tmp_path / "in.txt"), *STORIES)
    assert done.returncode == 0, done.stderr
    found = sorted(map(json.loads, done.stdout.splitlines()), key=lambda each: int(each["custom_id"]))
    texts = [each["response"]["body"]["choices"][0]["text"] for each in found]
    assert texts == [llmrun("run", "tiny", each, *STORIES, "-q", "--no-newline").stdout for each in prompts]
    (line,) = done.stderr.splitlines()
    assert line.startswith("3 of 3 rows answered") and "t/s" in line
    assert llmrun("batch", "tiny", "-", *STORIES, input=(tmp_path / "in.txt").read_text()).stdout.count("\n") == 3


def test_openai_form(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Overrides of each row; errors by line number, exit 14, the last line says how many."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [chat("a", max_tokens=3), "{no json", chat("c", temperature=9000), chat("d", seed=1, max_tokens=2)]
    source.write_text("\n".join(lines))
    done = llmrun(
        "batch", "tiny", str(source), "-o", str(out), "--json", "--chat-template", "{{ messages[0].content }}"
    )
    assert done.returncode == 14
    assert done.stderr.splitlines()[-1] == "error: 2 of 4 rows are errors"
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["answered"], summary["errors"]) == (4, 2, 2)
    by_id = {each["custom_id"]: each for each in results(out)}
    assert by_id["a"]["response"]["body"]["usage"]["completion_tokens"] <= 3
    assert by_id[None]["error"]["message"].startswith("line 2: ")
    assert by_id["c"]["error"]["message"].startswith("line 3: temperature: 9000")
    again = llmrun("batch", "tiny", str(source), "-o", str(out), "--chat-template", "{{ messages[0].content }}")
    assert again.returncode == 14 and "4 of 4 rows have a result already" in again.stderr and len(results(out)) == 4


def test_a_table(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Columns are fields; a choice is what is asked of a thousand rows."""
    source, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    source.write_text('id,Mood,text\na,glad,"Once, upon"\nb,sad,a time\n')
    command = ("batch", "tiny", str(source), "-o", str(out), "--raw", "--template", "{mood}: {text} {what}")
    assert "no column is {what}; there are {id}, {mood}, {text}" in llmrun(*command).stderr
    done = llmrun(*command, "--field", "what=now", "--choice", "yes,no", "-q")
    assert done.returncode == 0 and not done.stderr
    assert [each["custom_id"] for each in results(out)] == ["a", "b"]
    assert {each["response"]["body"]["choices"][0]["text"] for each in results(out)} <= {"yes", "no"}


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        ("a\n", ("--json",), "-o"),
        ("", (), "has no rows"),
        ('{"custom_id": "a"}', ("--template", "{input}"), "JSON lines"),
        ("a\n", ("--field", "x"), "NAME=VALUE"),
    ],
)
def test_refused(llmrun: RunLlmrun, tmp_path: Path, content: str, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "in").write_text(content)
    done = llmrun("batch", "tiny", str(tmp_path / "in"), *arguments)
    assert done.returncode == 2 and said in done.stderr and not done.stdout


def test_other_rows(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Results of another file are not gone on with, and stay."""
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("a\nb\n")
    assert llmrun("batch", "tiny", str(source), "-o", str(out), *STORIES).returncode == 0
    before = out.read_bytes()
    source.write_text("a\nc\n")
    done = llmrun("batch", "tiny", str(source), "-o", str(out), *STORIES)
    assert done.returncode == 2 and "other rows" in done.stderr and out.read_bytes() == before
    source.write_text("a\nb\n")
    for more in (["-n", "3"], ["--choice", "yes,no"], ["--template", "{input}!"]):
        done = llmrun("batch", "tiny", str(source), "-o", str(out), *STORIES, *more)
        assert done.returncode == 2 and "other options" in done.stderr and out.read_bytes() == before
    assert llmrun("batch", "tiny", str(source), "-o", "-", *STORIES).stdout.count("\n") == 2
    unknown = llmrun("batch", "tniy", str(source), "-o", str(tmp_path / "new.jsonl"))
    assert unknown.returncode == 4 and not (tmp_path / "new.jsonl").exists()
    closed = llmrun("batch", "tiny", "-", preexec_fn=lambda: os.close(0))
    assert closed.returncode == 2 and "standard input" in closed.stderr
    assert llmrun("batch", "tiny", str(tmp_path / "none.txt")).returncode == 4
    csv = tmp_path / "in.csv"
    csv.write_text("a\n1\n")
    assert "template" in llmrun("batch", "tiny", str(csv)).stderr


def until_it_has_written(process: subprocess.Popen[bytes], out: Path, n: int) -> None:
    until(lambda: process.poll() is not None or (out.exists() and out.read_bytes().count(b"\n") >= n))


def test_killed_and_gone_on_with(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """kill -9 after some results, several times: in the end each row has one result, as without."""
    source, out, whole = tmp_path / "in.txt", tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    source.write_text("".join(f"Once upon a time {word}\n" for word in "a b c d e f g h i j k l m n o p".split()))
    assert llmrun("batch", "tiny", str(source), "-o", str(whole), *STORIES).returncode == 0
    command = [sys.executable, "-m", "llmrun", "batch", "tiny", str(source), "-o", str(out), *STORIES]
    chance = random.Random(7)
    for _ in range(3):
        n = len(results(out)) if out.exists() else 0
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        until_it_has_written(process, out, n + chance.randint(1, 4))
        pids = children_of(process.pid) if process.poll() is None else []
        process.kill()
        process.wait(HANGS_S)
        until_gone(*pids)
    assert llmrun(*command[3:]).returncode == 0

    def said(path: Path) -> dict[str, str]:
        found = results(path)
        assert len({each["id"] for each in found}) == len(found) == 16
        return {each["id"]: each["response"]["body"]["choices"][0]["text"] for each in found}

    assert said(out) == said(whole)


def test_ctrl_c(tmp_path: Path, busy: Path) -> None:
    """It ends at once, says how far it is, and what was answered is kept."""
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("b\nc\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "llmrun", "batch", str(busy), str(source), "-o", str(out), "--raw", *ENDLESS_OPTIONS],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: out.exists() and len(children_of(process.pid)) > 0)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=HANGS_S)
    assert process.returncode == 130 and "Traceback" not in said
    assert "0 of 2 rows have a result" in said and out.read_text() == ""


def test_side_by_side(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """So many as are asked for, each answer its own row's; what was found to be fastest is told."""
    prompts = [f"Once upon a time there was a number {n}" for n in range(12)]
    (tmp_path / "in.txt").write_text("\n".join(prompts))
    summaries = {}
    for n in ("1", "5", "auto"):
        out = tmp_path / f"{n}.jsonl"
        done = llmrun("batch", "tiny", str(tmp_path / "in.txt"), "-o", str(out), "--json", "-np", n, *STORIES)
        assert done.returncode == 0, done.stderr
        summaries[n] = json.loads(done.stdout)
        assert {each["custom_id"] for each in results(out)} == {str(i) for i in range(1, 13)}
        assert all(each["response"]["body"]["usage"]["completion_tokens"] for each in results(out))
    assert [summaries[n]["parallel"] for n in ("1", "5")] == [1, 5] and not summaries["5"]["parallel_tried"]
    assert 1 <= summaries["auto"]["parallel"] <= 12 and "1" in summaries["auto"]["parallel_tried"]
    for wrong in ("0", "257", "many"):
        assert llmrun("batch", "tiny", str(tmp_path / "in.txt"), "-np", wrong).returncode == 2
