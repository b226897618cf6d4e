"""The application without a network: what a client does that no real one does at will."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from test_runner import opener, run, width
from waiting import HANGS_S, until_gone

from llmrun import codec
from llmrun.engine.engine import ChildEngine
from llmrun.errors import OutOfMemory
from llmrun.options.load import LoadConfig
from llmrun.server import app
from llmrun.server.pool import Served


async def _asked(made: Any, path: str, body: dict[str, Any] | None, send: Any) -> None:
    """One request; its client says nothing more."""
    told = asyncio.Event()
    messages = [{"type": "http.request", "body": b"" if body is None else json.dumps(body).encode()}]

    async def receive() -> dict[str, Any]:
        if not messages:
            await told.wait()
        return messages.pop(0)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET" if body is None else "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
    }
    await made(scope, receive, send)


async def _told(made: Any, path: str) -> bytes:
    data = bytearray()

    async def send(message: dict[str, Any]) -> None:
        data.extend(message.get("body", b""))

    await _asked(made, path, None, send)
    return bytes(data)


async def _n_active(made: Any) -> int:
    return sum(model["n_active"] for model in json.loads(await _told(made, "/props"))["models"])


async def _idle(made: Any) -> None:
    while await _n_active(made):
        await asyncio.sleep(0.01)


@asynccontextmanager
async def _begun(made: Any) -> AsyncIterator[None]:
    """The application, from its start to its end."""
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    begun = asyncio.Event()

    async def told(message: dict[str, Any]) -> None:
        begun.set()

    lifespan = asyncio.create_task(made({"type": "lifespan", "asgi": {"version": "3.0"}}, events.get, told))
    events.put_nowait({"type": "lifespan.startup"})
    await begun.wait()
    yield
    events.put_nowait({"type": "lifespan.shutdown"})
    await lifespan


@pytest.mark.parametrize("dies_at", ["http.response.start", "http.response.body"])
def test_who_leaves_before_the_first_byte(busy: Path, dies_at: str) -> None:
    """The answer is ended, not made for nobody: also where its stream was never read from."""
    model = Served("busy", busy, opener(busy, LoadConfig()), width(1, 4096))
    made, stop = app.made([model], preload=False)

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == dies_at:
            raise OSError("the client is gone")

    async def work() -> None:
        async with _begun(made):
            body = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True, "stream": True}
            with pytest.raises(Exception, match=".*"):
                await _asked(made, "/v1/completions", body, send)
            await asyncio.wait_for(_idle(made), HANGS_S)
            assert b'llamacpp:requests_failed_total{model="busy"} 1.0' in await _told(made, "/metrics")
            await stop()

    run(work())


@pytest.mark.parametrize(("path", "form"), [("/v1/models", dict[str, dict[str, Any]]), ("/api/tags", dict[str, str])])
def test_a_mistake_of_ours(micro: Path, path: str, form: Any) -> None:
    """Whoever asks is told of it in their form; whoever serves writes its traceback."""
    facts = {"n_params": object()}  # which is no data
    made, _ = app.made([Served("a", micro, opener(micro), width(1), facts=facts)], preload=False)
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def work() -> None:
        async with _begun(made):
            with pytest.raises(TypeError):
                await _asked(made, path, None, send)

    run(work())
    assert sent[0]["status"] == 500
    codec.convert(json.loads(sent[1]["body"]), form)


def test_a_model_that_can_not_be_loaded_again(micro: Path) -> None:
    """Nothing can be asked then: /health says so, and why, until somebody asks with more luck."""
    engines: list[ChildEngine] = []
    load, lacks = opener(micro), "it needs more memory than is free"

    def opens() -> ChildEngine:
        if len(engines) == 1 and not has_failed:
            has_failed.append(True)
            raise OutOfMemory(lacks)
        engines.append(load())
        return engines[-1]

    has_failed: list[bool] = []
    made, stop = app.made([Served("micro", micro, opens, width(1))], preload=False)

    async def tokens() -> bytes:
        data = bytearray()

        async def send(message: dict[str, Any]) -> None:
            data.extend(message.get("body", b""))

        await _asked(made, "/tokenize", {"content": "a b"}, send)
        return bytes(data)

    async def work() -> None:
        async with _begun(made):
            found = await tokens()
            assert b'"tokens"' in found and json.loads(await _told(made, "/health")) == {"status": "ok"}
            os.kill(engines[0].pid, signal.SIGKILL)
            await asyncio.to_thread(until_gone, engines[0].pid)
            assert lacks in (await tokens()).decode()
            error = json.loads(await _told(made, "/health"))["error"]
            assert error["code"] == "not_loaded" and lacks in error["message"]
            assert await tokens() == found and json.loads(await _told(made, "/health")) == {"status": "ok"}
            await stop()

    run(work())
