"""Loads at a server: prompts, capacity by invented servers, the client at one that misbehaves; and a real server, by
the command."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import RunLlmrun
from test_load_row import FAILED, SERVED, load
from waiting import HANGS_S

from llmrun.bench import http_load, journal, serving
from llmrun.bench.http_load import HttpCall, Job, check_address
from llmrun.bench.load import Objectives
from llmrun.bench.load_row import LoadRow, ServerInfo
from llmrun.bench.record import Record
from llmrun.bench.serving import Server, Wanted
from llmrun.errors import NetworkError, UsageError


@pytest.mark.parametrize("most", [0, 1, 2, 3, 4, 7, 11, 63, 64])
def test_capacity(most: int) -> None:
    """Of a server whose first tokens take too long beyond so many: found exactly, in few loads."""
    asked: list[int] = []

    def measure(n: int) -> LoadRow:
        asked.append(n)
        return load(n, [0.1 if n <= most else 2.0] * 20, 0.01, objectives=Objectives(ttft_s=0.5))

    tried = [*serving.capacity(measure)]
    assert (serving.most_that_met(tried) or 0) == most and len(asked) <= 13 and len(set(asked)) == len(asked)


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (load(1, [0.1] * 20, 0.01), True),
        (load(1, [0.1] * 20, 0.2), False),
        (load(1, [0.1] * 18 + [9.0] * 2, 0.01), True),
        (load(1, [0.1] * 17 + [9.0] * 3, 0.01), False),
    ],
)
def test_nine_of_ten(row: LoadRow, met: bool) -> None:
    assert replace(row, objectives=Objectives(ttft_s=0.5, tpot_s=0.05)).is_met is met


def test_prompts() -> None:
    """Unlike each other from the first word on, but for what they share; the same another time."""
    wanted = Wanted(n_prompt=32, n_shared=8)
    made = serving.calls(wanted, 50)
    beginnings = {" ".join(call.prompt.split()[:8]) for call in made}
    assert len(beginnings) == 1 and len({call.prompt.split()[8] for call in made}) == 50
    assert made == serving.calls(wanted, 50) and made != serving.calls(wanted, 50, turn=1)
    assert len({call.prompt.split()[0] for call in serving.calls(Wanted(), 50)}) == 50


def test_spread() -> None:
    """Lengths lie evenly between half and one and a half times what was asked; without a spread all are the same."""
    made = serving.calls(Wanted(n_prompt=100, n_gen=60, n_shared=8, spread=0.5), 400)
    words = [len(call.prompt.split()) - 8 for call in made]
    tokens = [call.max_tokens for call in made]
    for found, asked, less in ((words, 100, 3), (tokens, 60, 0)):  # a prompt's first word is about four tokens
        assert min(found) >= asked // 2 - less and max(found) <= 3 * asked // 2 - less
        assert len(set(found)) > asked // 2 and abs(sum(found) / len(found) - asked + less) < asked / 10
    assert {call.max_tokens for call in serving.calls(Wanted(n_gen=1, spread=1.0), 50)} <= {1, 2}
    assert {call.max_tokens for call in serving.calls(Wanted(n_gen=60), 50)} == {60}
    assert Wanted(spread=0.5).test(in_flight=4).name_in_full == "4 at once, 128+64 ±50 %"


@pytest.mark.parametrize(
    ("given", "found"),
    [("http://a:1/", "http://a:1"), ("http://a:1/v1", "http://a:1"), ("https://a/x/v1/", "https://a/x")],
)
def test_addresses(given: str, found: str) -> None:
    assert check_address(given) == found


@pytest.mark.parametrize("given", ["a:1", "ftp://a", "http://", "http://a:b", "http://a:0", ""])
def test_no_addresses(given: str) -> None:
    with pytest.raises(UsageError):
        check_address(given)


# -- the client ---

_TEXT = b'data: {"choices": [{"delta": {"content": "word"}}]}\n\n'
_END = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
_USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}\n\n'
_TIMINGS = b'data: {"choices": [], "timings": {"prompt_ms": 20, "predicted_ms": 40, "predicted_per_second": 50}}\n\n'
_DONE = b"data: [DONE]\n\n"
_STREAMS = {
    "good": [_TEXT, b": a comment\n\n", _TEXT, _END, _USAGE, _TIMINGS, _DONE],
    "bare": [_TEXT, _TEXT, _DONE],
    "blanks": [_TEXT.replace(b": {", b":{", 1), _TEXT.replace(b": {", b":   {", 1), b"data:[DONE]\r\n\r\n"],
    "cut": [_TEXT, _TEXT],
    "empty": [_END, _DONE],
    "told": [_TEXT, b'data: {"error": {"message": "the engine was killed", "code": 503}}\n\n'],
    "garbage": [_TEXT, b"data: {not JSON}\n\n", _DONE],
    "boasts": [_TEXT, _USAGE.replace(b"3", b"-3"), _DONE],
    "endless": [_TEXT, b"data: {" + b" " * (1 << 20) + b"}\n\n", _DONE],
}


class _Misbehaving(BaseHTTPRequestHandler):
    """Does what the prompt says."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        word = body["messages"][0]["content"]
        if word == "hangs up":
            return
        self.send_response(429 if word == "full" else 200)
        self.end_headers()
        for each in _STREAMS.get(word, [b'{"error": {"message": "the queue is full"}}']):
            self.wfile.write(each)

    def do_GET(self) -> None:
        said: dict[str, Any] = {
            "/props": {"build_info": "b1-2", "total_slots": 3, "default_generation_settings": {"n_ctx": 512}},
            "/v1/models": {"data": [{"id": "some"}]},
        }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(said[self.path]).encode())

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def misbehaving() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Misbehaving) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_client() -> None:
    """What an answer's end says of it is kept; whatever goes wrong is an error of its kind, in the words of who said
    it; a stream that just stops has not ended well."""
    words = ["good", "bare", "blanks", "cut", "empty", "told", "garbage", "full", "hangs up", "boasts", "endless"]
    told: list[int] = []
    with misbehaving() as address:
        job = Job(address, None, None, [HttpCall(word, 9) for word in words], 1)
        requests, cpu_s = http_load.run(job, told.append)
    assert told == [*range(1, 12)] and cpu_s > 0
    good, bare, blanks, *bad = requests
    assert blanks.is_answered and len(blanks.piece_s) == 2
    assert len(good.piece_s) == 2 and good.asked_s <= good.piece_s[0] <= good.piece_s[1]
    assert (good.n_prompt, good.n_made, good.n_cached, good.error) == (7, 3, None, None)
    assert (good.server_prompt_s, good.server_decode_s, good.server_tps) == (0.02, 0.04, 50)
    assert bare.is_answered and (bare.n_made, bare.server_prompt_s) == (None, None)
    kinds = ["cut short", "no text", "stream", "stream", "http 429", "connection", "stream", "stream"]
    assert [each.error_kind for each in bad] == kinds
    assert bad[0].error == "the stream ended behind 2 pieces, before its answer did"
    assert bad[2].error == "the engine was killed" and bad[4].error == "429: the queue is full"


def test_a_server_says_who_it_is() -> None:
    """llama.cpp's; and where there is none, nothing is known, and nothing is raised."""
    with misbehaving() as address:
        assert serving.ask_who(Server(address)) == (ServerInfo("llama.cpp b1-2", 3, 512, True), "some")
    assert serving.ask_who(Server(address, "mine")) == (ServerInfo(is_here=True), "mine")


# -- what is kept ---


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path / "home"))
    return tmp_path


def kept() -> Record:
    return journal.read_file(journal.find("last"))


@pytest.mark.usefixtures("home")
def test_loads_are_kept_as_they_end() -> None:
    """Each is in the journal before the next begins; Ctrl-C in the third leaves two."""
    seen: list[int] = []

    def loads() -> Iterator[LoadRow]:
        for n in (1, 2):
            yield load(n)
            seen.append(len(kept().loads))
        raise KeyboardInterrupt

    begun = replace(SERVED, loads=(), ended=None)
    with pytest.raises(KeyboardInterrupt):
        serving.bench_server(begun, [load(1)], loads())
    assert seen == [1, 2] and kept() == replace(begun, loads=(load(1), load(2)))


@pytest.mark.usefixtures("home")
def test_a_server_that_is_gone_ends_it() -> None:
    """A load without an answer is kept, and is the last."""
    begun = replace(SERVED, loads=(), ended=None)
    gone = replace(load(2), requests=(FAILED,) * 3)
    with pytest.raises(NetworkError, match="2 at once: none of 3 requests was answered: 503: the queue is full"):
        serving.bench_server(begun, [load(1)], iter([load(1), gone, load(4)]))
    assert kept() == replace(begun, loads=(load(1), gone))


# -- the command ---


def test_of_a_model(llmrun: RunLlmrun, home: Path) -> None:
    """A server is started for it, loaded, and gone; every answer has the length that was asked for; what was measured
    is in a file and in the history, is compared and drawn."""
    wanted = ("--concurrency", "1,3", "--requests", "6", "-p", "16", "-n", "8", "--ignore-eos", "--ttft", "1000")
    done = llmrun("bench", "serve", "tiny", *wanted, "--json", "--output", str(home / "rows.csv"))
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(each["in_flight"], each["n_requests"], each["n_errors"]) for each in rows] == [(1, 6, 0), (3, 6, 0)]
    for each in rows:
        assert each["tokens_per_s"] == pytest.approx(6 * 8 / each["seconds"]) and each["n_prompt"] > 16
        assert each["tokens_per_s_each_by_server"] > 0 and each["goodput_per_s"] > 0 and each["meets_objectives"]
        assert 0 < each["server_prompt_p50_s"] < each["ttft_p50_s"] and each["waiting_p50_s"] > 0
        assert each["client_cpu_s"] > 0
    record = kept()
    assert record.ended and record.model.files[0].sha256 and record.machine.devices and record.build.ggml
    assert record.server and record.server.is_here and record.server.n_parallel == 3
    assert [row.test.in_flight for row in record.loads] == [1, 3]
    assert (home / "rows.csv").read_text().count("\n") == 3
    assert llmrun("compare", "last", "last").returncode == 0
    assert "requests at once" in llmrun("plot", "last").stdout


def test_interrupted(home: Path) -> None:
    """Ctrl-C behind the first of 500 loads: the file is whole and has it, so has the history, and no server stays."""
    command = [sys.executable, "-m", "llmrun", "bench", "serve", "tiny", "--concurrency", ",".join("1" * 500)]
    process = subprocess.Popen(
        [*command, "-p", "4", "-n", "4", "-o", str(home / "rows.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    next(line for line in process.stdout if line.startswith("1 at once"))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=HANGS_S)
    assert process.returncode == 130 and "Traceback" not in said
    record = kept()
    assert record.ended is None and 1 <= len(record.loads) < 500
    assert len(json.loads((home / "rows.json").read_text())) == len(record.loads)
    address = re.search(r"http://\S+", said.replace(",", " "))
    assert address and serving.ask_who(Server(address[0])) == (ServerInfo(is_here=True), None)


def test_words(llmrun: RunLlmrun) -> None:
    done = llmrun("bench", "serve", "tiny", "--find-capacity", "--ttft", "0", "--requests", "2", "-n", "4", "-q")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Not even one alone gets the first token within 0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny", "--concurrency", "1", "--rate", "2"], "one of them at a time"),
        (["tiny", "--find-capacity"], "--ttft 0.5"),
        (["tiny", "--concurrency", "0"], "--concurrency"),
        (["tiny", "--rate", "x"], "--rate"),
        (["http://127.0.0.1:9"], "nothing listens at http://127.0.0.1:9"),
        (["http://[::1"], "is no address"),
        (["http://127.0.0.1:9/é"], "is no address"),
        (["http://me:secret@127.0.0.1:9"], "LLMRUN_API_KEY"),
        (["localhost:8080"], "http://127.0.0.1:8080 is one"),
        (["tiny", "-o", "yaml"], "-o/--output-format: 'yaml' is none of table, md"),
        (["tiny", "-o", "rows.doc"], "--output: 'doc' is none of table, md"),
        (["nowhere.gguf"], "nowhere.gguf"),
    ],
)
def test_refused(llmrun: RunLlmrun, arguments: list[str], said: str) -> None:
    done = llmrun("bench", "serve", *arguments, "-q")
    assert done.returncode not in (0, -6, -11) and said in done.stderr and "Traceback" not in done.stderr
