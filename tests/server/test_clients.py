"""Real clients drive a real server: every document and every chunk is parsed by their own types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest
from serving import Server

HI: Any = [{"role": "user", "content": "Hi"}]
SAID = "Hello! I am tiny, the demo model of llmrun."
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 3}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.fixture
def openai_client(tiny_server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{tiny_server.address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(tiny_server: Server) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=tiny_server.address, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def ollama_client(tiny_server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(host=tiny_server.address) as client:
        yield client


# -- OpenAI ---


def test_chat(openai_client: Any) -> None:
    made: Any = openai_client.chat.completions.create(model="tiny", messages=HI, max_tokens=12)
    (choice,) = made.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", SAID, "length")
    assert made.model == "tiny" and made.usage.completion_tokens == 12
    assert made.usage.total_tokens == made.usage.prompt_tokens + 12
    assert made.timings["predicted_n"] == 12 and made.timings["predicted_per_second"] > 0


def test_chat_as_a_stream(openai_client: Any) -> None:
    """The role in the first chunk alone, the reason of the end in one without a delta, the usage in one without a
    choice; one id and one time for all."""
    stream: Any = openai_client.chat.completions.create(
        model="tiny",
        messages=HI,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert last.choices == [] and last.usage.completion_tokens == 12
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in [*chunks, last]}) == 1
    deltas = [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    assert all(delta.keys() == {"content"} and delta["content"] for delta in deltas[1:-1])
    assert "".join(delta["content"] for delta in deltas[1:-1]) == SAID
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


def test_the_stream_as_openai_reads_it(openai_client: Any) -> None:
    with openai_client.chat.completions.stream(model="tiny", messages=HI) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content.startswith(SAID)


def test_several_answers(openai_client: Any) -> None:
    made: Any = openai_client.chat.completions.create(
        model="tiny",
        messages=HI,
        max_tokens=4,
        n=3,
        temperature=1.5,
        seed=7,
    )
    assert [choice.index for choice in made.choices] == [0, 1, 2]
    assert made.usage.completion_tokens == sum(12 // 3 for _ in made.choices)
    stream: Any = openai_client.chat.completions.create(
        model="tiny",
        messages=HI,
        max_tokens=4,
        n=3,
        temperature=1.5,
        seed=7,
        stream=True,
    )
    texts = ["", "", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in made.choices]


def test_probabilities(openai_client: Any) -> None:
    """Of every token, the likeliest first; greedily that is the one that was made."""
    made: Any = openai_client.chat.completions.create(
        model="tiny",
        messages=HI,
        max_tokens=5,
        logprobs=True,
        top_logprobs=3,
    )
    told = made.choices[0].logprobs.content
    assert "".join(each.token for each in told) == made.choices[0].message.content and len(told) == 5
    for each in told:
        logprobs = [top.logprob for top in each.top_logprobs]
        assert len(logprobs) == 3 and logprobs == sorted(logprobs, reverse=True)
        assert each.top_logprobs[0].token == each.token and each.logprob == logprobs[0] <= 0
        assert bytes(each.bytes).decode() == each.token


def test_completion(openai_client: Any) -> None:
    made = openai_client.completions.create(model="tiny", prompt="Once upon a time", max_tokens=8, logprobs=2)
    (choice,) = made.choices
    assert choice.text and choice.finish_reason == "length" and choice.logprobs
    assert "".join(choice.logprobs.tokens or []) == choice.text
    assert (choice.logprobs.text_offset or [])[:1] == [0] and choice.logprobs.top_logprobs
    stream = openai_client.completions.create(model="tiny", prompt="Once upon a time", max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == choice.text


def test_a_schema_is_kept_to(openai_client: Any) -> None:
    made = openai_client.chat.completions.create(
        model="tiny",
        messages=HI,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    )
    assert json.loads(made.choices[0].message.content or "")["a"] in (1, 2, 3)


def test_a_stop(openai_client: Any) -> None:
    made = openai_client.chat.completions.create(model="tiny", messages=HI, stop=[" am"], max_tokens=12)
    assert (made.choices[0].message.content, made.choices[0].finish_reason) == ("Hello! I", "stop")


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"model": "gpt-none"}, openai.NotFoundError, None),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"extra_body": {"tempreature": 1}}, openai.BadRequestError, "tempreature"),
        ({"messages": [{"role": "user", "content": "a " * 4000}]}, openai.BadRequestError, None),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"top_logprobs": 3}, openai.BadRequestError, "top_logprobs"),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_refused_with_the_reason(
    openai_client: Any,
    fields: dict[str, Any],
    error: type[openai.APIStatusError],
    param: str | None,
    streams: bool,
) -> None:
    """Before the first byte of a stream, too."""
    with pytest.raises(error) as refused:
        openai_client.chat.completions.create(**{"model": "tiny", "messages": HI, "stream": streams, **fields})
    body: Any = refused.value.body
    assert (body["message"] and body["param"] == param and body["type"] == "invalid_request_error") or param is None


def test_too_long_says_by_how_much(openai_client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=r"has \d{4} tokens, the context holds 1024") as refused:
        openai_client.completions.create(model="tiny", prompt="a b" * 4000)
    assert refused.value.code == "context_length_exceeded"


def test_models(openai_client: Any) -> None:
    (model,) = openai_client.models.list().data
    assert model.id == "tiny" and openai_client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("none")


def test_responses(openai_client: Any) -> None:
    made: Any = openai_client.responses.create(model="tiny", input="Hi", max_output_tokens=12, instructions="Be short.")
    assert made.output_text and made.status == "incomplete" and made.incomplete_details.reason == "max_output_tokens"
    assert made.usage.output_tokens == 12
    events = list(
        openai_client.responses.create(
            model="tiny",
            input=[{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
            max_output_tokens=12,
            stream=True,
        )
    )
    assert [event.sequence_number for event in events] == [*range(len(events))]
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last: Any = events[-1]
    assert said == SAID == last.response.output_text
    with pytest.raises(openai.BadRequestError, match="nothing is kept"):
        openai_client.responses.create(model="tiny", input="Hi", previous_response_id="resp_1")


def test_the_stream_of_responses_as_openai_reads_it(openai_client: Any) -> None:
    with openai_client.responses.stream(model="tiny", input="Hi") as stream:
        assert stream.get_final_response().status == "completed"


# -- Anthropic ---


def test_messages(anthropic_client: Any) -> None:
    made: Any = anthropic_client.messages.create(model="tiny", messages=HI, max_tokens=12)
    (block,) = made.content
    assert (block.type, block.text, made.stop_reason) == ("text", SAID, "max_tokens")
    assert made.usage.output_tokens == 12
    asked: Any = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    among = anthropic_client.messages.create(
        model="tiny", messages=asked, max_tokens=12, system=[{"type": "text", "text": "Short."}]
    )
    assert among.stop_reason in ("end_turn", "max_tokens")


def test_which_stop_sequence_came(anthropic_client: Any) -> None:
    stops = ["no such text", SAID[4:7]]
    made: Any = anthropic_client.messages.create(model="tiny", messages=HI, max_tokens=12, stop_sequences=stops)
    assert (made.content[0].text, made.stop_reason, made.stop_sequence) == (SAID[:4], "stop_sequence", SAID[4:7])


def test_messages_as_a_stream(anthropic_client: Any) -> None:
    with anthropic_client.messages.stream(model="tiny", messages=HI, max_tokens=12) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert final.content[0].type == "text" and final.content[0].text == SAID
    assert final.stop_reason == "max_tokens" and final.usage.output_tokens == 12


def test_counted_as_it_is_asked(anthropic_client: Any) -> None:
    n = anthropic_client.messages.count_tokens(model="tiny", messages=HI).input_tokens
    made: Any = anthropic_client.messages.create(model="tiny", messages=HI, max_tokens=1)
    assert n == made.usage.input_tokens + made.usage.cache_read_input_tokens


def test_a_schema_is_kept_to_for_anthropic(anthropic_client: Any) -> None:
    """An effort beside it is how long to think; with tools it is refused, as an answer has one form."""
    asked: Any = {"model": "tiny", "messages": HI, "max_tokens": 100}
    output: Any = {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"}
    made: Any = anthropic_client.messages.create(**asked, output_config=output)
    assert json.loads(made.content[0].text)["a"] in (1, 2, 3) and made.stop_reason == "end_turn"
    tools: Any = [{"name": "get_weather", "input_schema": {"type": "object"}}]
    for more in ({"tools": tools, "output_config": output}, {"output_config": {"effort": "most"}}):
        with pytest.raises(anthropic.BadRequestError, match="output_config"):
            anthropic_client.messages.create(**asked, **more)


def test_of_messages_nothing_is_taken_away(anthropic_client: Any) -> None:
    """What claude-code asks for takes nothing away, and is held; what would is refused."""
    asked: Any = {"model": "tiny", "messages": HI, "max_tokens": 12, "thinking": {"type": "adaptive"}}
    keep: Any = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    made: Any = anthropic_client.messages.create(**asked, extra_body={"context_management": keep})
    assert made.content[0].text == SAID
    with pytest.raises(anthropic.BadRequestError, match="clear_tool_uses"):
        clear = {"edits": [{"type": "clear_tool_uses_20250919"}]}
        anthropic_client.messages.create(**asked, extra_body={"context_management": clear})


def test_refused_in_anthropic_s_form(anthropic_client: Any) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        anthropic_client.messages.create(model="tiny", messages=HI, max_tokens=1, extra_body={"temperature": -3})
    body: Any = refused.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        anthropic_client.messages.create(model="claude", messages=HI, max_tokens=1)


# -- ollama ---


def test_ollama(ollama_client: ollama.Client) -> None:
    made = ollama_client.chat("tiny", messages=HI, options={"num_predict": 12})
    assert made.message.content == SAID and made.done and made.done_reason == "length" and made.eval_count == 12
    assert made.prompt_eval_count and made.eval_duration
    pieces = [*ollama_client.chat("tiny:latest", messages=HI, options={"num_predict": 12}, stream=True)]
    assert "".join(piece.message.content or "" for piece in pieces) == SAID and pieces[-1].done
    written = ollama_client.generate("tiny", "Hi", options={"num_predict": 12})
    assert written.response == SAID
    raw = ollama_client.generate("tiny", "Once upon a time", raw=True, options={"num_predict": 3})
    assert raw.response and raw.response != SAID
    formed = ollama_client.chat("tiny", messages=HI, format=SCHEMA)
    assert json.loads(formed.message.content or "")["a"] in (1, 2, 3)


def test_what_ollama_lists(ollama_client: ollama.Client) -> None:
    (model,) = ollama_client.list().models
    assert model.model == "tiny" and model.details and model.details.quantization_level == "Q8_0"
    shown = ollama_client.show("tiny")
    assert shown.details and shown.details.format == "gguf" and shown.capabilities == ["completion", "tools"]
    (loaded,) = ollama_client.ps().models
    assert loaded.model == "tiny" and loaded.size and loaded.context_length == 1024


@pytest.mark.parametrize(
    "fields", [{"options": {"num_ctx": 1 << 20}}, {"options": {"mirostat": 2}}, {"options": {"tfs_z": 0.5}}]
)
def test_refused_in_ollama_s_form(ollama_client: ollama.Client, fields: dict[str, Any]) -> None:
    with pytest.raises(ollama.ResponseError) as refused:
        ollama_client.chat("tiny", messages=HI, **fields)
    assert refused.value.status_code == 400 and refused.value.error


# -- tools ---

WEATHER = {
    "type": "object",
    "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 7}, "unit": {"enum": ["C", "F"]}},
    "required": ["days", "unit"],
    "additionalProperties": False,
}
FUNCTION: Any = {"name": "get_weather", "description": "The weather", "parameters": WEATHER}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]


def _is_weather(name: str, arguments: Any) -> bool:
    return name == "get_weather" and 1 <= arguments["days"] <= 7 and arguments["unit"] in ("C", "F")


def test_tools(openai_client: Any) -> None:
    """Demanded of a model that knows none: by the grammar. As a whole, as a stream, and what came of it handed in."""
    asked: Any = {"model": "tiny", "messages": HI, "tools": TOOLS, "tool_choice": "required"}
    made = openai_client.chat.completions.create(**asked, parallel_tool_calls=False)
    (choice,) = made.choices
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls and choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.id
    assert _is_weather(call.function.name, json.loads(call.function.arguments))
    with openai_client.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls" and streamed.message.tool_calls
    for each in streamed.message.tool_calls:
        assert _is_weather(each.function.name, json.loads(each.function.arguments))
    told: Any = [*HI, choice.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "Rain."}]
    answer = openai_client.chat.completions.create(model="tiny", messages=told, tools=TOOLS, max_tokens=8)
    assert answer.choices[0].message.content
    one: Any = {"type": "function", "function": {"name": "get_weather"}}
    named = openai_client.chat.completions.create(**{**asked, "tool_choice": one})
    assert named.choices[0].message.tool_calls
    none = openai_client.chat.completions.create(**{**asked, "tool_choice": "none"}, max_tokens=12)
    assert none.choices[0].message.content == SAID and not none.choices[0].message.tool_calls


def test_tools_of_anthropic(anthropic_client: Any) -> None:
    tools: Any = [{"name": "get_weather", "description": "The weather", "input_schema": WEATHER}]
    asked: Any = {"model": "tiny", "messages": HI, "tools": tools, "tool_choice": {"type": "any"}, "max_tokens": 200}
    made: Any = anthropic_client.messages.create(**asked)
    assert made.stop_reason == "tool_use" and all(_is_weather(block.name, block.input) for block in made.content)
    with anthropic_client.messages.stream(**asked) as stream:
        for _ in stream:
            pass
        final: Any = stream.get_final_message()
    assert final.stop_reason == "tool_use" and all(_is_weather(block.name, block.input) for block in final.content)
    result = {"type": "tool_result", "tool_use_id": made.content[0].id, "content": "Rain."}
    said: Any = [
        *HI,
        {"role": "assistant", "content": [block.model_dump() for block in made.content]},
        {"role": "user", "content": [result]},
    ]
    answer: Any = anthropic_client.messages.create(model="tiny", messages=said, tools=tools, max_tokens=8)
    assert answer.content[0].type == "text"
    with_tools = anthropic_client.messages.count_tokens(model="tiny", messages=HI, tools=tools)
    without = anthropic_client.messages.count_tokens(model="tiny", messages=HI)
    assert with_tools.input_tokens > without.input_tokens + 20


def test_tools_of_responses(openai_client: Any) -> None:
    """What OpenAI's own servers would do is left out."""
    tools: Any = [{"type": "function", **FUNCTION}, {"type": "web_search"}]
    asked: Any = {"model": "tiny", "input": "Hi", "tools": tools, "tool_choice": "required"}
    made: Any = openai_client.responses.create(**asked)
    calls = [item for item in made.output if item.type == "function_call"]
    assert calls and all(_is_weather(call.name, json.loads(call.arguments)) for call in calls)
    with openai_client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds and "response.function_call_arguments.done" in kinds
    assert final.output[0].type == "function_call" and _is_weather(
        final.output[0].name, json.loads(final.output[0].arguments)
    )
    said: Any = [
        {"role": "user", "content": "Hi"},
        calls[0].model_dump(),
        {"type": "function_call_output", "call_id": calls[0].call_id, "output": "Rain."},
    ]
    answer = openai_client.responses.create(model="tiny", input=said, tools=tools, max_output_tokens=8)
    assert answer.output_text


def test_tools_of_ollama(ollama_client: ollama.Client) -> None:
    """It has no word to demand a call: a model that knows none answers with text."""
    called: Any = {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": {"days": 1}}}]}
    said: Any = [*HI, called, {"role": "tool", "tool_name": "get_weather", "content": "Rain."}]
    made = ollama_client.chat("tiny", messages=said, tools=TOOLS, options={"num_predict": 8})
    assert made.message.content and not made.message.tool_calls


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "no name"),
        ({"tools": [*TOOLS, *TOOLS]}, "twice"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "objekt"}}}]}, "a: "),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "b"}}}, "no tool 'b'"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "one form"),
        ({"tools": [{"type": "code_interpreter"}]}, "type"),
    ],
)
def test_tools_that_can_not_be_held(openai_client: Any, fields: Any, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        openai_client.chat.completions.create(**{"model": "tiny", "messages": HI, **fields})
