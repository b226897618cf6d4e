"""What is served, as an OpenAPI document: from the table of routes, and from the types that decode bodies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llmrun import __version__, codec
from llmrun.options.sampling import SamplingConfig
from llmrun.options.spec import Number, options_of
from llmrun.server import dialects
from llmrun.server.guard import OPEN_PATHS
from llmrun.wire.request import SEEDS

JSON = "application/json"
_SCHEMAS = "#/components/schemas/"
_WHY = {
    400: "The body is not as described, or asks for what is not held here.",
    401: "A key is needed, and this is none of those that are known.",
    403: "The host is not one that is served here, or the page may not ask.",
    404: "There is no such model.",
    413: "The body is longer than may be.",
    415: "The body is packed.",
    422: "What a grammar can't hold of a format was asked for, and the answer does not keep to it.",
    429: "As many requests wait already as may.",
    500: "The model can't be loaded.",
    503: "Not now: the engine is replaced, there is no memory for the model, or the server is stopping.",
}
_HEADERS = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


@dataclass(frozen=True)
class Operation:
    """A route, and what there is to say of it.

    Attributes:
        path: as Starlette has it, "/v1/models/{name:path}".
        summary: what it does, a sentence.
        handler: answers it.
        body: the type that decodes its body; None: it has none, and is a GET.
        media: of what it answers.
        failures: statuses that are its own: others follow from its body, and from who may ask.
    """

    path: str
    summary: str
    handler: Any
    body: type | None = None
    media: tuple[str, ...] = (JSON,)
    failures: tuple[int, ...] = ()

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"


def document(operations: Sequence[Operation], *, needs_key: bool) -> dict[str, Any]:
    """OpenAPI 3.1. Of answers that have no type it says that they are objects."""
    bodies = [each.body for each in operations if each.body is not None]
    kinds = [*dict.fromkeys([*bodies, *(dialects.dialect_of(each.path).error_type for each in operations)])]
    references, components = codec.schemas(kinds, _SCHEMAS)
    _add_ranges(components.values())
    schemas = dict(zip(kinds, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        path = re.sub(r"{(\w+):\w+}", r"{\1}", each.path)
        keyed = needs_key and each.path not in OPEN_PATHS
        paths.setdefault(path, {})[each.method.lower()] = _described(each, schemas, keyed=keyed)
    return {
        "openapi": "3.1.0",
        "info": {"title": "llmrun", "version": __version__},
        "paths": paths,
        "components": {"schemas": components, **({"securitySchemes": _KEYS} if needs_key else {})},
    }


def _described(each: Operation, schemas: dict[type, dict[str, Any]], *, keyed: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": each.summary}
    if names := re.findall(r"{(\w+)", each.path):
        schema = {"type": "string", "minLength": 1}
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]
    if each.body is not None:
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": schemas[each.body]}}}
    # Of a stream no schema: 3.1 can't say that it is of each event.
    answers = {kind: {"schema": {"type": "object"}} if kind == JSON else {} for kind in each.media}
    found["responses"] = {"200": {"description": each.summary, "content": answers}}
    failures = {403, *each.failures, *([401] if keyed else ()), *([400, 413, 415] if each.body is not None else ())}
    error = {JSON: {"schema": schemas[dialects.dialect_of(each.path).error_type]}}
    for status in sorted(failures):
        told: dict[str, Any] = {"description": _WHY[status], "content": error}
        if status in _HEADERS:
            told["headers"] = {_HEADERS[status]: {"required": True, "schema": {"type": "string"}}}
        found["responses"][str(status)] = told
    if keyed:
        found["security"] = [{name: []} for name in _KEYS]
    return found


def _add_ranges(components: Iterable[dict[str, Any]]) -> None:
    """Fields that are options of sampling are checked as such: their ranges stand there."""
    kinds = {each.field: each.kind for each in options_of(SamplingConfig)} | {"seed": SEEDS}
    also = dict.fromkeys(("max_completion_tokens", "max_output_tokens"), "max_tokens")
    for component in components:
        for name, told in component["properties"].items():
            kind = kinds.get(also.get(name, name))
            for each in told.get("anyOf", [told]):
                if isinstance(kind, Number) and each.get("type") in ("integer", "number"):
                    each |= {"minimum": kind.low, "maximum": kind.high}
