"""Programs that are built on clients drive a real server: pydantic-ai, and llm."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel, ConfigDict, Field
from serving import Server
from waiting import HANGS_S

SAID = "Hello! I am tiny, the demo model of llmrun."


# -- pydantic-ai ---


class Weather(BaseModel):
    model_config = ConfigDict(extra="forbid")
    days: Annotated[int, Field(ge=1, le=7)]


With = Callable[..., Any]


@pytest.fixture
def with_agent(tiny_server: Server) -> With:
    """`with_agent(work, **options)`: what `work` does with an agent of these options."""
    pytest.importorskip("pydantic_ai", reason="pydantic-ai needs Python 3.11")
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    def run(work: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
        async def all_of_it() -> Any:
            async with AsyncOpenAI(base_url=f"{tiny_server.address}/v1", api_key="none", max_retries=0) as client:
                model = OpenAIChatModel("tiny", provider=OpenAIProvider(openai_client=client))
                return await work(Agent(model, **options))

        return asyncio.run(all_of_it())

    return run


def test_an_agent_answers(with_agent: With) -> None:
    made = with_agent(lambda agent: agent.run("Hi", model_settings={"max_tokens": 12}))
    assert made.output == SAID and made.usage.output_tokens == 12
    assert made.response.finish_reason == "length" and made.response.model_name == "tiny"


def test_an_agent_streams(with_agent: With) -> None:
    async def read(agent: Any) -> tuple[list[str], int]:
        async with agent.run_stream("Hi", model_settings={"max_tokens": 12}) as stream:
            return [text async for text in stream.stream_text(delta=True, debounce_by=None)], stream.usage.output_tokens

    texts, n_tokens = with_agent(read)
    assert "".join(texts) == SAID and n_tokens == 12  # in one piece, where the machine is busy


@pytest.mark.parametrize("natively", [False, True])
def test_an_agent_is_answered_by_its_type(with_agent: With, natively: bool) -> None:
    """A type is the schema of a tool whose call is demanded, or of the answer; what comes is valid by the first try."""
    from pydantic_ai import NativeOutput

    kind: Any = NativeOutput(Weather) if natively else Weather
    made = with_agent(lambda agent: agent.run("Hi"), output_type=kind, retries=0)
    assert isinstance(made.output, Weather) and made.usage.requests == 1


# -- llm ---

Llm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def llm(tiny_server: Server, tmp_path: Path) -> Llm:
    """Runs llm's command with a model of the server."""
    known: dict[str, Any] = {"model_id": "here", "model_name": "tiny", "api_base": f"{tiny_server.address}/v1"}
    known |= {"supports_schema": True, "supports_tools": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([known]))  # JSON is YAML
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llm", "prompt", "-m", "here", *arguments]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANGS_S, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.mark.parametrize("more", [[], ["--no-stream"]])
def test_llm_answers_and_knows_what_it_took(llm: Llm, more: list[str]) -> None:
    done = llm("Hi", "--usage", "-o", "max_tokens", "12", *more)
    assert done.stdout == SAID + "\n" and "12 output" in done.stderr


def test_llm_with_a_schema_and_with_tools(llm: Llm) -> None:
    """It has no word to demand a call: a model that knows none answers with text."""
    assert json.loads(llm("Hi", "--schema", json.dumps(Weather.model_json_schema())).stdout)["days"] in range(1, 8)
    with_tools = llm("Hi", "-o", "max_tokens", "12", "--functions", "def add(a: int, b: int) -> int: return a + b")
    assert with_tools.stdout.strip()
