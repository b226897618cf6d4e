"""Bodies in OpenAI's form: every field is held, of no meaning, or refused with the reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmrun.chat.answer_options import AnswerOptions
from llmrun.options.sampling import SamplingConfig
from llmrun.wire.openai import CHAT, COMPLETIONS, request_of
from llmrun.wire.request import Refused, Request

USER = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def chat(**fields: Any) -> Request:
    body = json.dumps({"messages": USER, **fields}).encode()
    return request_of(body, CHAT, SamplingConfig(max_tokens=7), AnswerOptions())


def test_what_is_left_out_is_as_the_command_has_it() -> None:
    made = chat()
    assert made.asked == USER and made.sampling == SamplingConfig(max_tokens=7) and made.is_chat
    assert chat(temperature=None, stop=None, tools=None) == made


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1}, {"temperature": 0, "top_k": 3, "min_p": 0.1}),
        ({"max_tokens": 3}, {"max_tokens": 3}),
        ({"max_tokens": 3, "max_completion_tokens": 4}, {"max_tokens": 4}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"stop": ["x", "y"], "seed": 5}, {"stop": ("x", "y"), "seed": 5}),
        ({"logit_bias": {"17": -100}}, {"logit_bias": {17: -100}}),
        ({"presence_penalty": 1, "frequency_penalty": -1}, {"presence_penalty": 1, "frequency_penalty": -1}),
    ],
)
def test_sampling(fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    sampling = chat(**fields).sampling
    assert {name: getattr(sampling, name) for name in wanted} == wanted


def test_messages() -> None:
    """Parts of text are joined; a developer is the system."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    made = chat(messages=[{"role": "developer", "content": "short"}, {"role": "user", "content": parts}])
    assert made.asked == [{"role": "system", "content": "short"}, {"role": "user", "content": "ab"}]


def test_formats() -> None:
    """A schema wrapped and bare, JSON, a grammar: the same as the command line makes of them."""
    wrapped = chat(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}})
    bare = chat(response_format={"type": "json_schema", "schema": SCHEMA})
    assert wrapped.answers.output_format == bare.answers.output_format
    assert wrapped.answers.output_format and wrapped.answers.output_format.kind == "json_schema"
    anything = chat(response_format={"type": "json_object"}).answers.output_format
    assert anything and anything.kind == "json"
    ruled = chat(grammar='root ::= "a"').answers.output_format
    assert ruled and ruled.kind == "grammar"
    assert chat(response_format={"type": "text"}).answers.output_format is None


def test_thinking() -> None:
    assert not chat(reasoning_effort="none").answers.thinks
    assert chat(reasoning_effort="low").answers.think_budget == 2048
    assert chat(reasoning_effort="high").answers.think_budget is None
    assert not chat(chat_template_kwargs={"enable_thinking": False}).answers.thinks
    assert chat(chat_template_kwargs={"enable_thinking": True}).answers.thinks


def test_of_no_meaning() -> None:
    assert chat(user="me", store=True, metadata={"a": "b"}, cache_prompt=True) == chat()
    assert chat(model="gpt-4o").model == "gpt-4o"
    assert chat(n=1, stream=False, logprobs=False, tools=[], tool_choice="none") == chat()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tempature": 1}, "tempature"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"temperature": -1}, "temperature: -1"),
        ({"top_p": 2}, "top_p: 2"),
        ({"max_tokens": 1 << 40}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"n": 2}, "n is not held"),
        ({"stream": True}, "stream is not held"),
        ({"logprobs": True}, "logprobs is not held"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not held"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text alone"),
        ({"response_format": {"type": "json_schema"}}, "json_schema is missing"),
        ({"response_format": {"type": "json_schema", "schema": {"type": "nothing"}}}, "schema"),
        ({"response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'}, "one format"),
        ({"grammar": "nonsense"}, "grammar"),
    ],
)
def test_refused(fields: dict[str, Any], said: str) -> None:
    """With the field's name, and never as if it had not been asked for."""
    with pytest.raises(Refused) as refused:
        chat(**fields)
    assert said in refused.value.message
    assert refused.value.document()["type"] == "invalid_request_error"


def test_completions() -> None:
    made = request_of(b'{"prompt": "Once", "max_tokens": 3}', COMPLETIONS, SamplingConfig(), AnswerOptions())
    assert made.asked == "Once" and not made.is_chat and made.sampling.max_tokens == 3
    for body in (b'{"prompt": ["a", "b"]}', b'{"prompt": "a", "echo": true}', b'{"messages": []}', b"[]", b"{"):
        with pytest.raises(Refused):
            request_of(body, COMPLETIONS, SamplingConfig(), AnswerOptions())
    with pytest.raises(Refused, match="/v1/embeddings"):
        request_of(b"{}", "/v1/embeddings", SamplingConfig(), AnswerOptions())
