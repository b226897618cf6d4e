"""Who may ask, tried as an attacker would: host, origin, key, length."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest

from llmrun import codec
from llmrun.server.guard import Guard, Rules, TooLong, split_origins
from llmrun.wire import anthropic, ollama, openai

KEY = "secret-1"


def asked(
    rules: Rules,
    headers: dict[str, str],
    *,
    path: str = "/v1/models",
    method: str = "GET",
    pieces: tuple[bytes, ...] = (b"",),
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body of what comes back; 200 is what lies inside."""
    sent: list[MutableMapping[str, Any]] = []
    left = [*pieces]

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        n_bytes = 0
        for _ in pieces:
            n_bytes += len((await receive()).get("body", b""))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"n_bytes": n_bytes}).encode()})

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    given = {"host": "127.0.0.1:8080", **headers}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
    }
    asyncio.run(Guard(inside, rules)(scope, receive, send))
    begin, body = sent[0], b"".join(each.get("body", b"") for each in sent[1:])
    back = {name.decode(): value.decode() for name, value in begin["headers"]}
    return begin["status"], back, json.loads(body) if body else None


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("localhost.:8080", 200),
        ("[::1]:8080", 200),
        ("[::1]", 200),
        ("192.168.1.5:8080", 200),
        ("my.name:8080", 200),
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:8080", 403),
        ("", 403),
        ("evil.example:8080:127.0.0.1", 403),
    ],
)
def test_hosts(host: str, status: int) -> None:
    """A name that somebody has point at this machine is not this machine's."""
    assert asked(Rules(hosts=("my.name",)), {"host": host})[0] == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8080", 200),
        ("http://127.0.0.1:9090", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1:8080.evil.example", 403),
    ],
)
def test_origins(origin: str, status: int) -> None:
    """Pages may ask that come from here; what asks without one is no page."""
    assert asked(Rules(), {"origin": origin})[0] == status


def test_allowed_origins() -> None:
    rules = Rules(origins=tuple(split_origins("https://a.example/, http://localhost:3000")))
    assert rules.origins == ("https://a.example", "http://localhost:3000")
    for origin in rules.origins:
        status, headers, _ = asked(rules, {"origin": origin})
        assert status == 200 and headers["access-control-allow-origin"] == origin and headers["vary"] == "Origin"
    assert asked(rules, {"origin": "https://b.example"})[0] == 403
    assert asked(Rules(origins=("*",)), {"origin": "https://b.example"})[0] == 200


def test_preflight() -> None:
    """Before a browser asks, it asks whether it may: without a key, which it does not send."""
    rules = Rules((KEY,), origins=("https://a.example",))
    wanted = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    status, headers, _ = asked(rules, {"origin": "https://a.example", **wanted}, method="OPTIONS")
    assert status == 204 and headers["access-control-allow-origin"] == "https://a.example"
    assert "Authorization" in headers["access-control-allow-headers"]
    status, headers, _ = asked(rules, {"origin": "https://b.example", **wanted}, method="OPTIONS")
    assert status == 403 and "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"authorization": f"bearer  {KEY} "}, 200),
        ({"x-api-key": KEY}, 200),
        ({"authorization": "Bearer secret-2"}, 200),
        ({}, 401),
        ({"authorization": KEY}, 401),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"authorization": f"Bearer {KEY}x"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Bearer \xff"}, 401),
        ({"x-api-key": ""}, 401),
    ],
)
def test_keys(headers: dict[str, str], status: int) -> None:
    found, back, body = asked(Rules((KEY, "secret-2")), headers)
    assert found == status
    if status == 401:
        assert back["www-authenticate"] == "Bearer" and KEY not in json.dumps(body)


def test_with_a_key_any_host() -> None:
    """A page with a name of its own does not know the key."""
    assert asked(Rules((KEY,)), {"host": "my.machine", "x-api-key": KEY})[0] == 200
    assert asked(Rules((KEY,)), {"host": "evil.example"})[0] == 401


@pytest.mark.parametrize(("path", "form"), [("/v1/models", openai), ("/v1/messages", anthropic), ("/api/chat", ollama)])
def test_whoever_asks_is_refused_in_their_form(path: str, form: Any) -> None:
    """Also by who has not seen a body yet: 401, 403 and 413."""
    for rules, headers in (
        (Rules((KEY,)), {}),
        (Rules(), {"host": "evil.example"}),
        (Rules(most_body=1), {"content-length": "2"}),
    ):
        codec.convert(asked(rules, headers, path=path)[2], form.ErrorBody)


def test_what_needs_no_key() -> None:
    assert asked(Rules((KEY,)), {}, path="/health")[0] == asked(Rules((KEY,)), {}, path="/openapi.json")[0] == 200
    assert asked(Rules((KEY,)), {}, path="/healthy")[0] == asked(Rules((KEY,)), {}, path="/metrics")[0] == 401


def test_length() -> None:
    """By its header at once, and by what comes, whatever the header says."""
    rules = Rules(most_body=10)
    assert asked(rules, {"content-length": "10"}, pieces=(b"12345", b"67890"))[2] == {"n_bytes": 10}
    assert asked(rules, {"content-length": "11"})[0] == 413
    with pytest.raises(TooLong):
        asked(rules, {"content-length": "1"}, pieces=(b"12345", b"678901"))
