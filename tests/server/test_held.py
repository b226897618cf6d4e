"""What a request asks for is held in each form, or refused: of one server, as a client would."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from serving import Server, serving

ASK = {"role": "user", "content": "What do GPU layers do?"}
BEGUN = "GPU layers say how"
CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"


def _text(path: str, found: Any) -> str:
    if path == MESSAGES:
        return "".join(block["text"] for block in found["content"])
    message = found["message"] if path.startswith("/api") else found["choices"][0]["message"]
    return str(message["content"])


def _body(path: str, messages: list[dict[str, str]], **more: Any) -> dict[str, Any]:
    if path.startswith("/api"):
        return {"model": "tiny", "messages": messages, "stream": False, "options": {"temperature": 0}, **more}
    return {"model": "tiny", "messages": messages, "max_tokens": 80, "temperature": 0, **more}


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/api/chat"])
def test_an_answer_that_is_begun_goes_on(tiny_server: Server, path: str) -> None:
    """An assistant's message at the end is no turn of its own, as llama.cpp, ollama and Anthropic have it."""
    status, whole = tiny_server.ask(path, _body(path, [ASK]))
    assert status == 200 and _text(path, whole).startswith(BEGUN)
    status, rest = tiny_server.ask(path, _body(path, [ASK, {"role": "assistant", "content": BEGUN}]))
    assert status == 200 and BEGUN + _text(path, rest) == _text(path, whole)


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (CHAT, {"response_format": {"type": "json_object"}}),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "a"}}], "tool_choice": "required"}),
        ("/api/chat", {"format": "json"}),
    ],
)
def test_a_form_begins_with_the_answer(tiny_server: Server, path: str, more: dict[str, Any]) -> None:
    status, found = tiny_server.ask(path, _body(path, [ASK, {"role": "assistant", "content": "{"}], **more))
    assert status == 400 and "beginning" in json.dumps(found)


@pytest.mark.parametrize("seed", [-1, 1 << 40, -5])
def test_seeds_of_others(tiny_server: Server, seed: int) -> None:
    """-1 is none, as llama.cpp and ollama have it; longer ones than 32 bits are OpenAI's."""
    body = {"model": "tiny", "messages": [ASK], "max_tokens": 12, "temperature": 1.5, "seed": seed}
    answers = [tiny_server.ask(CHAT, body) for _ in range(2)]
    assert [status for status, _ in answers] == [200, 200]
    if seed != -1:
        assert len({_text(CHAT, found) for _, found in answers}) == 1
    options = {"model": "tiny", "prompt": "Hi", "stream": False, "options": {"seed": seed, "num_predict": 2}}
    assert tiny_server.ask("/api/generate", options)[0] == 200


def test_more_answers_than_there_is_room_for(tmp_path: Path) -> None:
    """They would wait in vain; and with no queue at all one is answered."""
    body = {"messages": [ASK], "max_tokens": 2}
    with serving("tiny", "-np", "1", "--max-queue", "0", "-c", "2048", home=tmp_path) as server:
        server.ready()
        assert any("longer than the 1024" in line for line in server.said)
        assert server.ask(CHAT, body)[0] == 200
        status, found = server.ask(CHAT, {**body, "n": 2})
        assert status == 400 and found["error"]["param"] == "n"


def test_a_body_that_is_packed(tiny_server: Server) -> None:
    packed = gzip.compress(json.dumps({"messages": [ASK], "max_tokens": 2}).encode())
    status, found = tiny_server.ask(CHAT, packed, Content_Encoding="gzip")
    assert status == 415 and "gzip" in found["error"]["message"]


# -- responses ---


def _response(server: Server, **more: Any) -> Any:
    body = {"model": "tiny", "input": "What do GPU layers do?", "temperature": 0, "max_output_tokens": 80, **more}
    status, found = server.ask(RESPONSES, body)
    assert status == 200, found
    return found


def test_a_response_says_what_was_asked(tiny_server: Server) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    found = _response(
        tiny_server,
        instructions="Be brief.",
        metadata={"a": "b"},
        reasoning={"effort": "low"},
        text={"format": form},
    )
    assert (found["instructions"], found["metadata"]) == ("Be brief.", {"a": "b"})
    assert found["reasoning"]["effort"] == "low" and found["text"]["format"] == form
    assert found["tool_choice"] == "auto" and found["tools"] == []
    tool = {"type": "function", "name": "a", "parameters": {"type": "object", "properties": {}}}
    one = {"type": "function", "name": "a"}
    assert _response(tiny_server, tools=[tool], tool_choice=one)["tool_choice"] == one


def test_an_item_that_was_cut_is_incomplete(tiny_server: Server) -> None:
    for stream in (False, True):
        body = {"model": "tiny", "input": "What do GPU layers do?", "max_output_tokens": 3, "stream": stream}
        status, found = tiny_server.ask(RESPONSES, body)
        assert status == 200
        if stream:
            events = [json.loads(line[6:]) for line in found.splitlines() if line.startswith("data: ")]
            found = events[-1]["response"]
        assert found["status"] == "incomplete" and found["output"][-1]["status"] == "incomplete"
    assert _response(tiny_server)["output"][-1]["status"] == "completed"


@pytest.mark.parametrize(("include", "status"), [("reasoning.encrypted_content", 200), ("foo.bar", 400)])
def test_what_a_response_is_to_include(tiny_server: Server, include: str, status: int) -> None:
    body = {"model": "tiny", "input": "Hi", "max_output_tokens": 2, "include": [include]}
    assert tiny_server.ask(RESPONSES, body)[0] == status
    body["include"] = ["message.output_text.logprobs"]
    assert tiny_server.ask(RESPONSES, body)[0] == 400


# -- ollama ---


def test_options_of_ollama(tiny_server: Server) -> None:
    """All that its documentation shows at once, but for a context that is longer than this model's."""
    options = json.loads(
        """{"num_keep": 5, "seed": 42, "num_predict": 4, "top_k": 20, "top_p": 0.9, "min_p": 0.0, "typical_p": 0.7,
        "repeat_last_n": 33, "temperature": 0.8, "repeat_penalty": 1.2, "presence_penalty": 1.5,
        "frequency_penalty": 1.0, "penalize_newline": true, "stop": ["\\n", "user:"], "numa": false,
        "num_ctx": 1024, "num_batch": 2, "num_gpu": 1, "main_gpu": 0, "use_mmap": true, "num_thread": 8,
        "vocab_only": false}"""
    )
    status, found = tiny_server.ask(
        "/api/generate", {"model": "tiny", "prompt": "Hi", "stream": False, "options": options}
    )
    assert status == 200 and found["done"]
    assert found["total_duration"] >= found["load_duration"] + found["eval_duration"]
    status, found = tiny_server.ask("/api/generate", {"model": "tiny", "prompt": "Hi", "raw": True, "system": "x"})
    assert status == 400 and "raw" in found["error"]


def test_a_digest_tells_models_apart(tiny_server: Server) -> None:
    (tag,) = tiny_server.get("/api/tags")[1]["models"]
    assert len(tag["digest"]) == 64 and {*tag["digest"]} <= {*"0123456789abcdef"}


# -- models without a template ---


def test_where_an_answer_to_messages_ends(micro: Path, tmp_path: Path) -> None:
    """ChatML's end counts beside the texts that a request has; not where one goes on with a text, nor where no end
    counts."""
    grammar = 'root ::= "a<|im_end|>" "a"+'
    asked = {"messages": [ASK], "max_tokens": 40, "temperature": 0, "grammar": grammar}
    with serving(str(micro), "-np", "1", home=tmp_path) as server:
        server.ready()
        for more, ends in (({}, True), ({"stop": ["zzz"]}, True), ({"ignore_eos": True}, False)):
            status, found = server.ask(CHAT, {**asked, **more})
            assert status == 200 and (_text(CHAT, found) == "a") == ends, found
        text = {"prompt": "Hi", "max_tokens": 40, "temperature": 0, "grammar": grammar}
        assert server.ask(COMPLETIONS, text)[1]["choices"][0]["text"].startswith("a<|im_end|>a")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/api/chat"])
def test_nothing_but_events(tiny_server: Server, path: str) -> None:
    """A ping is for who would else hear nothing for seconds."""
    asked = {"prompt": "a", "max_tokens": 12} if path == COMPLETIONS else _body(path, [ASK])
    _, found = tiny_server.ask(path, {**asked, "stream": True})
    lines = [line for line in found.splitlines() if line]
    assert len(lines) > 2 and all(line.startswith("{" if path == "/api/chat" else "data: ") for line in lines)


def test_thinking_is_held_or_refused(tiny_server: Server, tmp_path: Path) -> None:
    """Ollama's `think`, and the capability that its clients look at, by the template."""
    body = {"model": "tiny", "messages": [ASK], "stream": False, "options": {"num_predict": 8}}
    assert "thinking" not in tiny_server.ask("/api/show", {"model": "tiny"})[1]["capabilities"]
    assert tiny_server.ask("/api/show", {"model": "tiny", "banana": 1})[0] == 400
    status, found = tiny_server.ask("/api/chat", {**body, "think": True})
    assert status == 400 and "does not think" in found["error"]
    assert tiny_server.ask("/api/chat", {**body, "think": False})[0] == 200

    template = tmp_path / "thinks.jinja"
    template.write_text(
        "{% for message in messages %}{{ message.role }}: {{ message.content.split('</think>')[-1] }}\n"
        "{% endfor %}<think>"
    )
    with serving("tiny", "--chat-template", str(template), home=tmp_path) as server:
        assert "thinking" in server.ready().ask("/api/show", {"model": "tiny"})[1]["capabilities"]
        status, found = server.ask("/api/chat", {**body, "think": True})
    assert status == 200 and found["message"]["thinking"]
