"""/openapi.json says what is served: each route, each field of a body, each form of an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from msgspec.structs import fields
from openapi_spec_validator import OpenAPIV31SpecValidator
from serving import Server

from llmrun.chat.answer_options import AnswerOptions
from llmrun.options.sampling import SamplingConfig
from llmrun.server import dialects
from llmrun.server.app import Api
from llmrun.server.description import Operation, document
from llmrun.server.guard import OPEN_PATHS
from llmrun.server.metrics import Metrics
from llmrun.server.pool import Pool
from llmrun.wire import openai
from llmrun.wire.request import Refused

API = Api(Pool([]), Metrics({}, {}))
DESCRIBED = document(API.operations(), needs_key=False)
SCHEMAS = DESCRIBED["components"]["schemas"]
WITH_BODY = [each for each in API.operations() if each.body is not None]


def described(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = DESCRIBED["paths"][operation.path.replace(":path", "")][operation.method.lower()]
    return found


@pytest.mark.parametrize("needs_key", [False, True])
def test_it_is_openapi(needs_key: bool) -> None:
    found = document(API.operations(), needs_key=needs_key)
    OpenAPIV31SpecValidator(found).validate()
    assert found["openapi"] == "3.1.0"


def test_every_route(tiny_server: Server) -> None:
    """A server serves what is described, no more, and tells so without a key."""
    assert tiny_server.get("/openapi.json") == (200, DESCRIBED)
    served = {(route.path.replace(":path", ""), method) for route in API.routes() for method in route.methods or ()}
    paths = DESCRIBED["paths"].items()
    assert served - {(path, "HEAD") for path, _ in paths} == {(path, name.upper()) for path, it in paths for name in it}
    for each in API.operations():
        if each.body is not None:
            assert tiny_server.ask(each.path, b"{")[0] == 400 and tiny_server.get(each.path)[0] == 405
        elif each.path != "/events":  # which never ends
            assert tiny_server.get(each.path.replace("{name:path}", "tiny"))[0] == 200
    assert "/openapi.json" in OPEN_PATHS


@pytest.mark.parametrize("operation", WITH_BODY, ids=lambda each: each.path)
def test_every_field(operation: Operation) -> None:
    """Of a body: what decodes it is what describes it."""
    assert operation.body is not None
    reference = described(operation)["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = SCHEMAS[reference.rpartition("/")[2]]
    declared = fields(operation.body)
    assert {*schema["properties"]} == {each.encode_name for each in declared}
    assert {*schema["required"]} == {each.encode_name for each in declared if each.required}


def test_no_inner_names() -> None:
    """Names of schemas are for others: none is private, and all that is referred to is there."""
    text = json.dumps(DESCRIBED)
    assert not [name for name in SCHEMAS if name.startswith(("_", "llmrun")) or "._" in name]
    referred = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert referred == {*SCHEMAS}


BOUNDED = {
    name: bounds
    for name, told in SCHEMAS["openai.ChatBody"]["properties"].items()
    for bounds in told.get("anyOf", [told])
    if "maximum" in bounds
}


@pytest.mark.parametrize("name", BOUNDED)
def test_ranges(name: str) -> None:
    """A number at the end of the range that is described is held, one behind it refused."""

    def ask(value: float) -> None:
        body = {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True, name: value}
        openai.request_of(json.dumps(body).encode(), openai.CHAT, SamplingConfig(), AnswerOptions(), live=True)

    low, high = BOUNDED[name]["minimum"], BOUNDED[name]["maximum"]
    for value in (low, high):
        ask(value)
    for value in (low - 1, high + 1):
        with pytest.raises(Refused):
            ask(value)


def test_what_has_a_range() -> None:
    assert {"temperature", "top_p", "top_k", "seed", "max_tokens", "max_completion_tokens", "n"} <= {*BOUNDED}


@pytest.mark.parametrize("dialect", [dialects.CHAT, dialects.RESPONSES, dialects.MESSAGES, dialects.OLLAMA_CHAT])
def test_errors(dialect: dialects.Dialect) -> None:
    """Each form's errors are what is said of them."""
    (name,) = [name for name in SCHEMAS if name == f"{dialect.error_type.__module__.rpartition('.')[2]}.ErrorBody"]
    schema = {"$ref": f"#/components/schemas/{name}", "components": DESCRIBED["components"]}
    for status in (400, 401, 403, 404, 413, 429, 500, 503):
        Draft202012Validator(schema).validate(dialect.error(status, "it is so", "model", None))


def test_keys() -> None:
    """A server without keys asks for none; one with them for all but the open paths, and says how."""
    assert "securitySchemes" not in DESCRIBED["components"]
    found = document(API.operations(), needs_key=True)
    assert {*found["components"]["securitySchemes"]} == {"bearer", "key"}
    for path, methods in found["paths"].items():
        (operation,) = methods.values()
        asks = path not in OPEN_PATHS
        assert (operation.get("security") == [{"bearer": []}, {"key": []}]) == ("401" in operation["responses"]) == asks
