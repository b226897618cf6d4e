"""`llmrun serve` as a process: what it says, what it refuses, how it ends."""

from __future__ import annotations

import json
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import RunLlmrun
from serving import Server, serving
from waiting import HANGS_S, until

from llmrun.gguf import synth

HI = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


def test_the_first_line_is_the_address(tiny_server: Server) -> None:
    assert tiny_server.said[0] == tiny_server.address and tiny_server.address.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", "/api/nothing", 404), ("GET", "/v1/chat/completions", 405)],
)
def test_what_is_not_there(tiny_server: Server, method: str, path: str, status: int) -> None:
    """In the form of whoever asks."""
    found, body = tiny_server.get(path)
    assert found == status
    assert isinstance(body["error"], str if path.startswith("/api") else dict)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 5000, b'{"messages": 1}', b'{"a": NaN}', b"{}" * 2],
)
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat", "/tokenize"]
)
def test_malformed(tiny_server: Server, path: str, body: bytes) -> None:
    """400 and a sentence, whatever comes; and the server goes on."""
    status, found = tiny_server.ask(path, body)
    assert status == 400 and found["error"], found
    assert tiny_server.get("/health") == (200, {"status": "ok"})


def test_messages_that_the_template_refuses(tmp_path: Path) -> None:
    """They are at fault, and not the model, which answers others."""
    template = "{% if messages[0].content == 'no' %}{{ raise_exception('not so') }}{% endif %}{{ messages[0].content }}"
    synth.write(tmp_path / "some.gguf", synth.SHAPES["micro"], "Q8_0", chat_template=template)
    no = {"messages": [{"role": "user", "content": "no"}], "max_tokens": 4}
    with serving(str(tmp_path / "some.gguf"), "-np", "1", home=tmp_path) as server:
        server.ready()
        for path in ("/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"):
            status, found = server.ask(path, no)
            assert status == 400 and "not so" in found["error"]["message"]
        assert server.ask("/v1/chat/completions", {**no, "stream": True})[0] == 400
        assert server.ask("/v1/chat/completions", HI)[0] == 200


def test_more_messages_than_there_is_room_for(tiny_server: Server) -> None:
    """They are refused, and not tried: a template that takes too long would end the engine for all."""

    def restarts() -> float:
        return _value(tiny_server.get("/metrics")[1], 'llamacpp:engine_restarts_total{model="tiny"}')

    before, many = restarts(), {"messages": [{"role": "user", "content": "Hi"}] * 200_000, "max_tokens": 1}
    status, found = tiny_server.ask("/v1/chat/completions", many)
    assert status == 400 and found["error"]["code"] == "context_length_exceeded"
    assert tiny_server.ask("/v1/messages/count_tokens", many)[0] == 400
    assert restarts() == before


def test_a_format_that_the_request_itself_cuts(tiny_server: Server) -> None:
    """An answer that stops where it was to stop is one, though no document."""
    asks = {**HI, "max_tokens": 50, "response_format": {"type": "json_object"}, "stop": ["{", "["]}
    status, found = tiny_server.ask("/v1/chat/completions", asks)
    assert status == 200 and found["choices"][0]["finish_reason"] == "stop"


def test_a_format_that_no_answer_can_keep_to(tiny_server: Server) -> None:
    """Items that must differ and can be one thing alone: a grammar can't tell, so the answer is made, and not given."""
    schema = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2, "uniqueItems": True}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    asked = {**HI, "max_tokens": 40, "response_format": form}
    status, found = tiny_server.ask("/v1/chat/completions", asked)
    assert (status, found["error"]["code"]) == (422, "format_not_held"), found
    status, found = tiny_server.ask("/v1/chat/completions", {**asked, "stream": True})
    assert status == 200 and '"code":"format_not_held"' in found.splitlines()[-2]


def test_tokens(tiny_server: Server) -> None:
    status, found = tiny_server.ask("/tokenize", {"content": "Hello there", "with_pieces": True})
    assert status == 200 and "".join(each["piece"] for each in found["tokens"]) == "Hello there"
    ids = [each["id"] for each in found["tokens"]]
    assert tiny_server.ask("/tokenize", {"content": "Hello there"}) == (200, {"tokens": ids})
    assert tiny_server.ask("/detokenize", {"tokens": ids}) == (200, {"content": "Hello there"})
    assert tiny_server.ask("/detokenize", {"tokens": [1 << 40]})[0] == 400


def test_metrics(tiny_server: Server) -> None:
    before = _value(tiny_server.get("/metrics")[1], 'llamacpp:tokens_predicted_total{model="tiny"}')
    tiny_server.ask("/v1/chat/completions", HI)
    text = tiny_server.get("/metrics")[1]
    assert _value(text, 'llamacpp:tokens_predicted_total{model="tiny"}') >= before + 4
    assert _value(text, 'vllm:time_to_first_token_seconds_count{model_name="tiny"}') >= 1
    (model,) = tiny_server.get("/props")[1]["models"]
    assert (model["model"], model["state"], model["n_slots"], model["n_ctx"]) == ("tiny", "ready", 4, 1024)


def _value(text: str, name: str) -> float:
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name)))


def test_others_are_refused(tiny_server: Server) -> None:
    """Through all of the server: a name of somebody's, and a page of somebody's."""
    assert tiny_server.get("/v1/models", Host="evil.example")[0] == 403
    assert tiny_server.get("/v1/models", Origin="https://evil.example")[0] == 403


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--api-key", "x"], "everybody on this machine can read a command line"),
        (["--host", "0.0.0.0"], "--allow-remote"),
        (["--host", "0.0.0.0", "--allow-remote"], "--api-key-file FILE"),
        (["--api-key-file", "/nowhere"], "--api-key-file"),
        (["--port", "99999"], "--port"),
        (["-np", "0"], "parallel"),
    ],
)
def test_refused(llmrun: RunLlmrun, arguments: list[str], said: str) -> None:
    done = llmrun("serve", "tiny", *arguments)
    assert done.returncode in (2, 4) and said in done.stderr and "Traceback" not in done.stderr


def test_a_port_that_is_taken(llmrun: RunLlmrun) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = llmrun("serve", "tiny", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2 and "in use" in done.stderr and "Traceback" not in done.stderr


def test_with_a_key(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Of a file, and of the environment; `ps` needs it as well, and it stands nowhere."""
    (tmp_path / "keys").write_text("# ours\nfirst-key\n\nsecond-key\n")
    arguments = ["tiny", "--api-key-file", str(tmp_path / "keys")]
    with serving(*arguments, env={"LLMRUN_API_KEY": "third-key"}, home=tmp_path / "home") as server:
        server.ready()
        assert server.get("/v1/models")[0] == server.get("/v1/models", Authorization="Bearer x")[0] == 401
        for key in ("first-key", "second-key", "third-key"):
            assert server.get("/v1/models", Authorization=f"Bearer {key}")[0] == 200
            assert server.get("/v1/models", x_api_key=key)[0] == 200
        home = {"LLMRUN_HOME": str(tmp_path / "home")}
        listed = llmrun("ps", env=home)
        assert server.address in listed.stdout and "needs its key" in listed.stdout
        known = json.loads(llmrun("ps", "--json", env={**home, "LLMRUN_API_KEY": "third-key"}).stdout)
        assert known[0]["pid"] == server.process.pid and known[0]["props"]["models"][0]["model"] == "tiny"
        files = [path.read_text() for path in (tmp_path / "home").rglob("*.json")]
        assert files and not any(key in text for text in (*files, *server.said) for key in ("first-key", "third-key"))
    gone = llmrun("ps", env=home)
    assert gone.returncode == 0 and "no server runs" in gone.stderr


def _streamed(server: Server, max_tokens: int, pieces: list[str]) -> None:
    """Read a stream to its end, however it ends."""
    import httpx

    body = {**HI, "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
    with (
        httpx.Client(timeout=HANGS_S, trust_env=False) as client,
        client.stream("POST", f"{server.address}/v1/chat/completions", json=body) as response,
    ):
        pieces.extend(line for line in response.iter_lines() if line)


@pytest.mark.parametrize(("stop_timeout", "n"), [("300", 200), ("0", 1 << 20)])
def test_the_end(busy: Path, tmp_path: Path, stop_timeout: str, n: int) -> None:
    """What runs may end within the time for it; what does not is told why, and the process is gone either way."""
    with serving(str(busy), "--stop-timeout", stop_timeout, "-np", "2", "-c", "4096", home=tmp_path) as server:
        pieces: list[str] = []
        reader = threading.Thread(target=_streamed, args=(server.ready(), n, pieces))
        reader.start()
        until(lambda: len(pieces) > 2, "some of the answer")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(HANGS_S) == 0, server.said
        reader.join(HANGS_S)
        last: Any = [json.loads(each.removeprefix("data: ")) for each in pieces if each.startswith("data: {")][-1]
        if stop_timeout == "0":
            assert "error" in last
        else:
            assert pieces[-1] == "data: [DONE]" and last["choices"][0]["finish_reason"] == "length"
    assert not [*(tmp_path / "run").rglob("*.json")]


def test_a_model_that_is_none(llmrun: RunLlmrun, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    done = llmrun("serve", str(tmp_path / "x.gguf"), "--port", "0")
    assert done.returncode == 8 and "Traceback" not in done.stderr


def test_two_models(micro: Path, tmp_path: Path) -> None:
    """The second one is loaded when somebody asks for it; none is meant where two are there and none is named."""
    with serving("tiny", str(micro), "-np", "1", home=tmp_path) as server:
        server.ready()
        names = [model["id"] for model in server.get("/v1/models")[1]["data"]]
        assert names[0] == "tiny" and len(names) == 2
        assert [each["model"] for each in server.get("/props")[1]["models"]] == ["tiny"]
        assert server.ask("/v1/chat/completions", HI)[0] == 404
        status, found = server.ask("/v1/completions", {"model": names[1], "prompt": "a", "max_tokens": 2})
        assert status == 200 and found["model"] == names[1]
        assert sorted(each["model"] for each in server.get("/props")[1]["models"]) == sorted(names)
        assert server.ask("/api/generate", {"model": "tiny", "keep_alive": 0})[1]["done_reason"] == "unload"
        assert [each["model"] for each in server.get("/props")[1]["models"]] == [names[1]]


def test_the_page(tiny_server: Server) -> None:
    """Nothing of it comes from elsewhere, nor may."""
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for name, kind in (("", "text/html"), ("page.js", "text/javascript"), ("page.css", "text/css")):
        with opener.open(f"{tiny_server.address}/{name}") as response:
            assert response.headers["content-type"].startswith(kind)
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert b"://" not in response.read()
    assert tiny_server.get("/index.html")[0] == tiny_server.get("/../app.py")[0] == 404


def test_what_it_does_just_now(tiny_server: Server) -> None:
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{tiny_server.address}/events") as response:
        moment = json.loads(response.readline().removeprefix(b"data: "))
    (model,) = moment["models"]
    assert (model["model"], model["state"], model["n_slots"]) == ("tiny", "ready", 4)
    assert model["rss_bytes"] > 1 << 20 and model["shown"]["ram"].endswith("iB")
