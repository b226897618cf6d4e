"""Writes docs/bench-record.schema.json, the JSON Schema (draft 2020-12) of what `llmrun bench --json` prints.

Made from the dataclasses that llmrun/bench/record.py is composed of, and what their docstrings say of each field. A
test fails when the file is not what this makes.

    .venv/bin/python scripts/make_schema.py
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llmrun.bench.record import SCHEMA, Record

PATH = Path(__file__).resolve().parents[1] / "docs" / "bench-record.schema.json"
PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def schema() -> dict[str, Any]:
    defined: dict[str, Any] = {}
    _reference(Record, defined)
    record = defined.pop(Record.__name__)
    record["properties"]["schema"] = {"const": SCHEMA, "description": "the name and major version of this format."}
    record["required"].insert(0, "schema")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{SCHEMA.replace('/', ':')}",
        "title": "Record of llmrun bench",
        **record,
        "$defs": dict(sorted(defined.items())),
    }


def _reference(kind: type, defined: dict[str, Any]) -> dict[str, Any]:
    if kind.__name__ not in defined:
        defined[kind.__name__] = {}  # a place, for what refers to itself
        defined[kind.__name__] = _object(kind, defined)
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _object(kind: type, defined: dict[str, Any]) -> dict[str, Any]:
    """Fields may be missing where a reader knows what that means; unknown ones are allowed, for newer writers."""
    summary, described = documentation(kind)
    types = get_type_hints(kind)
    properties = {name: {**_value(declared, defined), **described.get(name, {})} for name, declared in types.items()}
    required = [
        each.name
        for each in fields(kind)
        if each.default is MISSING and each.default_factory is MISSING and type(None) not in get_args(types[each.name])
    ]
    return {"description": summary, "type": "object", "properties": properties, "required": required}


def _value(declared: Any, defined: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(declared), get_args(declared)
    if declared is Any:
        return {}
    if is_dataclass(declared) and isinstance(declared, type):
        return _reference(declared, defined)
    if origin in (Union, UnionType):
        (inner,) = [_value(kind, defined) for kind in arguments if kind is not type(None)]
        if set(inner) == {"type"} and isinstance(inner["type"], str):
            return {"type": [inner["type"], "null"]}
        return {"anyOf": [inner, {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _value(arguments[0], defined)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _value(arguments[1], defined)}
    return {"type": PLAIN[declared]}


def documentation(kind: type) -> tuple[str, dict[str, dict[str, str]]]:
    """The docstring's text before "Attributes:", and {field: {"description": …}} of what stands behind it."""
    text, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")
    described = {}
    for names, said in re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n {8,}.*)*)", attributes, re.MULTILINE):
        for name in names.split(", "):
            described[name] = {"description": " ".join(said.replace("`", "").split())}
    return " ".join(text.split()), described


def text() -> str:
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
