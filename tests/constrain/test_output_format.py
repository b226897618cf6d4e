"""Formats: what a schema's grammar makes is valid, what is valid can be made, what cannot be expressed is an error."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from llmrun.constrain import output_format
from llmrun.engine.grammar import compiled, judge
from llmrun.errors import UsageError

TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["name"],
        }
    },
    "$ref": "#/$defs/node",
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
OPTIONAL = {"type": "object", "properties": {name: {"type": "integer"} for name in "abcd"}, "required": ["c"]}
DRAFT7 = "http://json-schema.org/draft-07/schema#"

# Schema, texts that its grammar makes, texts that it doesn't.
SCHEMAS: list[tuple[Any, list[str], list[str]]] = [
    (True, ["1", '{"a": [null]}', '"x"'], ["", "nul"]),
    ({}, ["[]", "-1.5e+3", "true"], ["01", ".5"]),
    ({"type": "string"}, ['""', r'"\n\"é😀"'], ['"\n"', r'"\ud83d"', r'"\x"', '"']),
    ({"type": "integer"}, ["0", "-12"], ["1.0", "01", "+1", "-"]),
    ({"type": "number"}, ["0", "-1.5", "1e5", "2.5E-3"], ["1.", "e5", "NaN"]),
    ({"type": ["boolean", "null"]}, ["true", "null"], ["0"]),
    ({"type": ["integer", "number"]}, ["1", "1.5"], []),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', r'"aé\n"'], ['"a"', '"abcd"']),
    ({"maxLength": 0}, ['""'], ['"a"', "1"]),
    ({"type": "integer", "minimum": 0, "maximum": 255}, ["0", "9", "10", "199", "255"], ["256", "-1", "300", "00"]),
    ({"type": "integer", "minimum": -17, "maximum": 8}, ["-17", "-1", "0", "8"], ["-18", "9", "-20", "-170"]),
    ({"type": "integer", "minimum": 1}, ["1", "10", "1234567890123456"], ["0", "-1"]),
    ({"type": "integer", "maximum": -5}, ["-5", "-6", "-100"], ["-4", "0", "5"]),
    ({"type": "integer", "exclusiveMinimum": 4.5, "exclusiveMaximum": 1000}, ["5", "999"], ["4", "1000"]),
    ({"type": "integer", "minimum": 9007199254740991}, ["9007199254740991"], ["9007199254740990"]),
    ({"type": "integer", "minimum": 0, "multipleOf": 5}, ["10"], ["-5"]),
    ({"type": "number", "minimum": 0, "maximum": 1}, ["0.5"], ["-0.5"]),
    ({"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 3, "exclusiveMinimum": True},
     ["4"], ["3"]),
    ({"enum": ["red", "green", "gray", 1, None, True, {"a": [1, "x"]}, []]},
     ['"red"', '"gray"', "1", "null", '{"a": [1,"x"]}', "[]"], ['"g"', '"blue"', "false"]),
    ({"enum": ["a", 1, "bb"], "type": "string", "maxLength": 1}, ['"a"'], ["1", '"bb"']),
    ({"const": 'say "hi"\n\u0007'}, [r'"say \"hi\"\n\u0007"'], ['"say"']),
    ({"enum": ["a", "b"], "not": {"const": "b"}}, ['"a"'], ['"b"']),
    (PERSON, ['{"name":"A","age":0}', '{ "name": "é", "age": 150 }', '{\n  "name": "A",\n  "age": 1\n}'],
     ["{}", '{"age":0,"name":"A"}', '{"name":"","age":0}', '{"name":"A","age":151}', '{"name":"A","age":1,"x":1}']),
    (OPTIONAL, ['{"c":1}', '{"a":1,"c":1}', '{"b":1,"c":1,"d":1}', '{"a":1,"b":2,"c":3,"d":4}'],
     ["{}", '{"a":1}', '{"c":1,"a":1}', '{"c":1,}', '{,"c":1}', '{"c":1"d":1}']),
    ({"type": "object", "properties": {"a": True}}, ["{}", '{"a": [1]}'], ['{"b":1}']),
    ({"type": "object", "required": ["x y"]}, ['{"x y":1}'], ["{}"]),
    ({"type": "object"}, ["{}", '{"a":{"b":1}}'], ["[]"]),
    ({"additionalProperties": {"type": "integer"}}, ["{}", '{"a":1,"b":2}'], ['{"a":"x"}']),
    ({"properties": {"ab": {"type": "null"}, "ac": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
     ['{"ab":null,"x":1}', '{"a":1,"abc":2,"ad":3}', '{"ac":null}'], ['{"ab":1}', '{"x":1,"ac":2}']),
    ({"properties": {"a": False, "b": {"type": "null"}}}, ["{}", '{"b":null}'], ['{"a":1}']),
    ({"type": "object", "minProperties": 1, "additionalProperties": {"type": "boolean"}}, ['{"a":true}'], []),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3}, ["[1]", "[1, 2,3]"],
     ["[]", "[1,2,3,4]", "[1,]"]),
    ({"items": {"type": "null"}}, ["[]", "[null,null]"], ["[1]"]),
    ({"type": "array", "maxItems": 0}, ["[]", "[ ]"], ["[1]"]),
    ({"type": "array", "minItems": 2}, ['[1,"a"]'], ["[]", "[1]"]),
    ({"prefixItems": [{"type": "integer"}, {"type": "string"}]}, ["[]", "[1]", '[1,"a"]'], ['["a"]', '[1,"a",1]']),
    ({"prefixItems": [{"type": "integer"}, True], "items": {"type": "null"}, "minItems": 2, "maxItems": 4},
     ["[1,2]", "[1,2,null,null]"], ["[1]", "[1,2,3]", "[1,2,null,null,null]"]),
    ({"$schema": DRAFT7, "items": [{"type": "integer"}], "additionalItems": False}, ["[1]"], ["[1,2]"]),
    ({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 1}, "uniqueItems": True}, ["[0,1]"], []),
    ({"type": "array", "items": {"type": "integer"}, "contains": {"const": 7}}, ["[7]"], []),
    ({"type": "string", "pattern": "^[A-Z]{2}-\\d{3,}$"}, ['"AB-123"', '"AB-12345"'], ['"AB-12"', '"xAB-123"']),
    ({"type": "string", "pattern": "b+"}, ['"b"', '"abba"', r'"\n\"b"'], ['"a"']),
    ({"type": "string", "pattern": "^a|b$"}, ['"axx"', '"xxb"'], ['"xax"']),
    ({"type": "string", "pattern": r'^(?:[^"\\\s]|\\.|"\w*")*?\.[\x41-\u0043/\]-]+$'},
     [r'"ab.A"', r'"\\n\"x\".B/]-"'], ['"."']),
    ({"type": "string", "pattern": r"^(|a|b{0,2})*(x(y(z)?)?)?\W\D\S$"}, ['"abb!!!"', '"xyz?é!"'], ['"x"']),
    ({"type": "string", "pattern": "^a.c$"}, ['"abc"', r'"a\"c"'], [r'"a\nc"']),
    ({"type": "string", "pattern": "^\\x01\\t$", "minLength": 1}, [r'"\u0001\t"'], ['""']),
    ({"type": "string", "minLength": 0, "format": "uuid", "pattern": "^a{0}b{0,2}$"}, ['""', '"bb"'], ['"a"']),
    ({"type": "string", "format": "date"}, ['"2024-02-28"', '"1999-12-31"'], ['"2024-13-01"', '"2024-04-31"']),
    ({"type": "string", "format": "date-time"}, ['"2024-02-28T23:59:59.5+01:00"'], ['"2024-02-28"']),
    ({"type": "string", "format": "time"}, ['"12:00:00Z"'], ['"24:00:00Z"']),
    ({"type": "string", "format": "uuid"}, ['"00000000-aaaa-BBBB-0000-0123456789ab"'], ['"0"']),
    ({"type": "string", "format": "ipv4"}, ['"255.0.19.1"'], ['"256.0.0.1"', '"01.0.0.1"']),
    ({"type": "string", "format": "email"}, ['"a.b+c@x-1.example.org"'], ['"@"']),
    ({"type": "string", "format": "hostname"}, ['"example.org"'], ['"-a"']),
    ({"type": "string", "format": "zip-code"}, ['"whatever"'], ["1"]),
    (TREE, ['{"name":"a"}', '{"name":"a","children":[{"name":"b","children":[]}]}'], ['{"children":[]}']),
    ({"type": "array", "items": {"$ref": "#"}}, ["[]", "[[],[[]]]"], ["[1]"]),
    ({"definitions": {"a/b~c d": {"type": "null"}}, "items": {"$ref": "#/definitions/a~1b~0c%20d"}},
     ["[null]"], ["[1]"]),
    ({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]}, ["1", '"a"'], ["null", '"ab"']),
    ({"oneOf": [{"const": "a"}, {"type": "object", "properties": {"k": {"const": 1}}, "required": ["k"]}]},
     ['"a"', '{"k":1}'], ["{}"]),
    ({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
      "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, ['{"a":null}', '{"b":null}'], ["{}"]),
    ({"allOf": [{"properties": {"a": {"minimum": 1}}, "required": ["a"]},
                {"properties": {"a": {"type": "integer", "maximum": 3}, "b": {"type": "null"}}}]},
     ['{"a":1}', '{"a":3,"b":null}'], ['{"a":4}', "{}"]),
    ({"$defs": {"base": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}},
      "$ref": "#/$defs/base", "properties": {"next": {"$ref": "#"}}}, ['{"id":1,"next":{"id":2}}'], ['{"next":{}}']),
    ({"$schema": DRAFT7, "definitions": {"a": {"type": "null"}}, "$ref": "#/definitions/a", "type": "string"},
     ["null"], ['"a"']),
    ({"type": "string", "maxLength": 1, "nullable": True}, ["null", '"a"'], ['"ab"']),
    ({"properties": {"nullable": {"type": "integer", "nullable": True}}, "required": ["nullable"]},
     ['{"nullable":null}', '{"nullable":1}'], ["{}", "null"]),
    ({"type": "object", "properties": {"é\n\"": {"type": "null"}, "\u0085": {"type": "null"}}},
     ['{"é\\n\\"":null,"\u0085":null}'], []),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "unevaluatedProperties": False}, ['{"a":null}'], []),
    ({"title": "T", "description": "D", "default": 1, "examples": [1], "$comment": "c", "deprecated": True,
      "x-mine": 5, "type": "null"}, ["null"], []),
]  # fmt: skip

# Schema, what is said of it.
REFUSED: list[tuple[Any, str]] = [
    ([], "a schema is an object, or true or false, not an array"),
    ("5", "not a number"),
    (False, "#: nothing can be valid"),
    ({"type": "strin"}, "not a valid schema at #/type"),
    ({"type": "object", "properties": []}, "not a valid schema at #/properties"),
    ({"minLength": -1}, "not a valid schema at #/minLength"),
    ({"$ref": "https://example.com/x.json"}, "leads outside the schema"),
    ({"$ref": "other.json#/a"}, "leads outside the schema"),
    ({"items": {"$ref": "#anchor"}}, "#/items: $ref '#anchor' leads nowhere"),
    ({"$ref": "#/$defs/none"}, "leads nowhere"),
    ({"$ref": "#/title", "title": "x"}, "leads to something"),
    ({"$dynamicRef": "#x"}, "leads nowhere"),
    ({"$ref": "#"}, "refers to itself"),
    ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "refers to itself"),
    ({"allOf": [{"$ref": "#"}]}, "refers to itself"),
    ({"$ref": "#", "type": "object"}, "refers to itself"),
    ({"enum": [1], "$ref": "#"}, "refers to itself"),
    ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "refers to itself"),
    ({"type": "string", "pattern": "[a"}, "'[a' is not a pattern"),
    ({"type": "string", "pattern": "a{99999999999999999999}"}, "the counts in it are too large"),
    ({"type": "string", "pattern": "(" * 3000 + ")" * 3000}, "is not a pattern"),
    ({"patternProperties": {"(?<n>a)": {}}}, "is not a pattern"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "nothing can be valid"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "nothing can be valid"),
    ({"type": "array", "minItems": 3, "maxItems": 2}, "nothing can be valid"),
    ({"prefixItems": [True], "items": False, "minItems": 2}, "nothing can be valid"),
    ({"required": ["a"], "additionalProperties": False}, "nothing can be valid: required property 'a'"),
    ({"enum": ["a"], "type": "integer"}, "no value of 'enum' fits"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "nothing can be valid"),
    ({"allOf": [{"const": 1}, {"const": 2}]}, "nothing can be valid"),
    ({"title": "x" * (1 << 20)}, "at most 1048576"),
    ({"$schema": "http://json-schema.org/draft-03/schema#"}, "draft 3"),
    ({"default": float("nan")}, "the schema is not JSON"),
    ({"default": {1, 2}}, "the schema is not JSON"),
    ('{"a": 1e999}', "a number is too large"),
    ('{"a": NaN}', "NaN is not a JSON number"),
    ('{"a": ' + "9" * 5000 + "}", "a number with too many digits"),
    ('{"a": ' + "[" * 100_000, "nested too deeply"),
    ("{\n 'a': 1}", "line 2, column 2"),
]  # fmt: skip

# Schema, what the grammar can't hold of it, valid answers, answers that only the validation refuses.
LEFT: list[tuple[Any, str, list[str], list[str]]] = [
    ({"type": "integer", "not": {"const": 3}}, "not at #", ["2"], ["3"]),
    ({"type": "string", "if": {"minLength": 2}, "then": {"maxLength": 3}}, "if at #", ['"a"', '"abc"'], ['"abcd"']),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired at #", ['{"b":1}'], ['{"a":1}']),
    ({"$schema": DRAFT7, "type": "object", "dependencies": {"a": ["b"]}}, "dependentRequired at #", [], ['{"a":1}']),
    ({"type": "object", "propertyNames": {"maxLength": 1}}, "propertyNames at #", ['{"a":1}'], ['{"ab":1}']),
    ({"type": "array", "prefixItems": [True], "unevaluatedItems": False}, "unevaluatedItems at #", ["[1]"], ["[1,2]"]),
    ({"items": {"type": "integer"}, "contains": {"const": 1}}, "contains at #", ["[1]"], ["[2]"]),
    ({"items": {"type": "integer"}, "uniqueItems": True}, "uniqueItems at #", ["[1,2]"], ["[1,1]"]),
    ({"properties": {"a": {}, "b": {}}, "minProperties": 1}, "minProperties at #", ['{"a":1}'], ["{}"]),
    ({"type": "string", "pattern": "^(?!ab)a"}, "pattern at #", ['"ac"'], ['"abc"']),
    ({"type": "string", "pattern": "^[a&&b]$"}, "pattern at #", ['"a"', '"&"'], ['"c"']),
    ({"type": "string", "maxLength": 10**15}, "maxLength at #", ['"a"'], []),
    ({"type": "integer", "minimum": 10**30}, "minimum at #", [f"{10**30}"], ["5"]),
    ({"type": "array", "maxItems": 10**400}, "maxItems at #", ["[]"], []),
    ({"type": "number", "minimum": 19.99, "maximum": 19.99, "multipleOf": 0.01}, "multipleOf at #", ["19.99"], []),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf at #", ["1.5"], ["1"]),
    ({"allOf": [{"pattern": f"{c}.*{d}"} for c, d in zip("abcdefghijkl", "bcdefghijklm", strict=True)]},
     "everything but the type", [], ['"a"']),
    ({"$dynamicAnchor": "n", "items": {"$dynamicRef": "#n"}, "type": "array"}, "$dynamicRef at #/items",
     ["[[]]"], ["[1]"]),
]  # fmt: skip

# Schemas as they are found, answers that are valid, that are not.
FOUND: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, ["1"], ["0"]),
    ({"type": "array", "items": [{"type": "string"}, {"type": "number"}], "minItems": 2, "maxItems": 2},
     ['["a",1]'], ['[1,"a"]', '["a"]']),
    ({"items": [{"type": "null"}], "additionalItems": {"$ref": "#/items/0"}}, ["[null,null]"], ["[null,1]"]),
    ({"components": {"schemas": {"A": {"type": "string", "nullable": True}}}, "$ref": "#/components/schemas/A"},
     ['"a"', "null"], ["1"]),
    ({"properties": {"a": {"type": "null"}, "b": {"$ref": "#/properties/a"}}}, ['{"b":null}'], ['{"b":1}']),
    ({"$defs": {"x": {"$anchor": "foo", "type": "null"}}, "$ref": "#foo"}, ["null"], ["1"]),
    ({"$id": "https://example.com/s", "$defs": {"x": {"type": "null"}}, "$ref": "https://example.com/s#/$defs/x"},
     ["null"], ["1"]),
    ({"$id": "https://example.com/s", "$defs": {"x": {"$id": "d", "type": "null"}}, "items": {"$ref": "d"}},
     ["[null]"], ["[1]"]),
    ({"name": "x", "strict": True, "schema": {"type": "null"}}, ["null"], ["1"]),
    ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "null"}}}, ["null"], ["1"]),
    ({"type": "object", "patternProperties": {"^a": {"type": "null"}}, "additionalProperties": False},
     ['{"ab":null}'], ['{"b":null}', '{"a":1}']),
    ({"type": "string", "pattern": r"^\p{L}+$"}, ['"aé"'], ['"1"']),
    ({"type": "string", "maxLength": 10_000}, [json.dumps("a" * 10_000)], [json.dumps("a" * 10_001)]),
    ({"type": "number", "minimum": 0.1, "exclusiveMaximum": 0.3}, ["0.1", "0.29"], ["0.09", "0.3"]),
]  # fmt: skip


def nested(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def walk(grammar: str, chance: random.Random, most: int = 60) -> str | None:
    """A text out of a grammar, byte by byte at random, plain letters mostly; None if it would be longer than most."""
    matcher, out = compiled(grammar), bytearray()
    while len(out) < most:
        mask = matcher.compute_logit_bias()
        allowed = [token for token in range(len(mask)) if mask[token]]
        ends = [token for token in allowed if token > 255]
        if ends and (len(ends) == len(allowed) or chance.random() < 0.3):
            return out.decode()
        texts = [token for token in allowed if token < 256]
        token = chance.choice([token for token in texts if token in b'0123456789abc"{}[],:'] or texts)
        matcher.consume_token(token)
        out.append(token)
    return None


@pytest.mark.parametrize(("schema", "right", "wrong"), SCHEMAS + FOUND, ids=lambda value: str(value)[:50])
def test_schema(schema: Any, right: list[str], wrong: list[str]) -> None:
    """The grammar makes these texts and not those, and where it holds everything, every text out of it is valid."""
    wanted = output_format.of_schema(schema)
    assert [text for text in right if judge(wanted.grammar, text) != "complete"] == []
    assert [text for text in wrong if judge(wanted.grammar, text) == "complete"] == []
    assert [wanted.problem(text) for text in right] == [None] * len(right)
    chance = random.Random(str(schema))
    for _ in range(6):
        text = walk(wanted.grammar, chance)
        if text is not None and not wanted.left_to_validation:
            assert wanted.problem(text) is None, text


@pytest.mark.parametrize(("schema", "left", "right", "wrong"), LEFT, ids=lambda value: str(value)[:50])
def test_left_to_validation(schema: Any, left: str, right: list[str], wrong: list[str]) -> None:
    """What a grammar cannot hold is taken, named with its place, and found in the answer."""
    wanted = output_format.of_schema(schema)
    assert any(left in each for each in wanted.left_to_validation)
    assert [text for text in right + wrong if judge(wanted.grammar, text) != "complete"] == []
    assert [text for text in right if wanted.problem(text)] == []
    assert [text for text in wrong if not wanted.problem(text)] == []


@pytest.mark.parametrize(("schema", "words"), REFUSED, ids=lambda value: str(value)[:50])
def test_refused(schema: Any, words: str) -> None:
    """What a grammar cannot hold, or no one could mean, is a `UsageError` that says what and where."""
    with pytest.raises(UsageError) as caught:
        output_format.of_schema(schema)
    assert any(part in caught.value.message for part in words.split("|"))
    assert caught.value.field == "json_schema" and "--" not in caught.value.message
    assert caught.value.hint
    assert len(caught.value.message) < 500


def test_depth() -> None:
    """Nesting is bounded and never a RecursionError."""
    assert output_format.of_schema(nested(60)).problem("[" * 60 + "null" + "]" * 60) is None
    for depth in (64, 900, 100_000):
        with pytest.raises(UsageError, match="nested|not JSON"):
            output_format.of_schema(nested(depth))


def test_large_schemas() -> None:
    """A hundred optional properties, a thousand definitions in a row and an enum of 10,000 words are no trouble."""
    names = {"properties": {f"p{i}": {"type": "null"} for i in range(100)}}
    assert judge(output_format.of_schema(names).grammar, '{"p3":null,"p50":null,"p99":null}') == "complete"
    chain: dict[str, Any] = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(1000)}
    wanted = output_format.of_schema({"$defs": {**chain, "d1000": {"type": "null"}}, "$ref": "#/$defs/d0"})
    assert judge(wanted.grammar, "[" * 1000 + "null" + "]" * 1000) == "complete"
    words = [f"{i:04}" for i in range(10_000)]
    wanted = output_format.of_schema({"enum": words})
    assert [judge(wanted.grammar, json.dumps(word)) for word in words[::4999]] == ["complete"] * 3


def test_hostile_schemas_end() -> None:
    """What would be exponential, or deeper than any stack, is taken as far as it goes or refused in a sentence."""
    doubled = {f"d{i}": {way: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40) for way in ("anyOf", "allOf")}
    parts: list[dict[str, Any]] = [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(3)]} for i in range(30)]
    long = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(20_000)}
    for hostile in (
        {"$defs": {**doubled, "d40": {"type": "null"}}, "$ref": "#/$defs/d0"},
        {"allOf": parts},
        {"$defs": {**long, "d20000": {"type": "null"}}, "$ref": "#/$defs/d0"},
        {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (982451653, 982451629)]},
        {"type": "string", "pattern": "(a{0,1000}b{0,1000}){0,1000}"},
    ):
        try:
            assert output_format.of_schema(hostile).grammar
        except UsageError as error:
            assert error.field == "json_schema" and len(error.message) < 500


def test_impossible_alternatives_are_left_out() -> None:
    """An alternative that nothing can be leaves the others."""
    none = {"type": "object", "required": ["b"], "properties": {"b": {"type": "integer", "minimum": 2, "maximum": 1}}}
    grammar = output_format.of_schema({"anyOf": [none, {"type": "null"}]}).grammar
    assert [judge(grammar, text) for text in ("null", "{")] == ["complete", "wrong"]


def test_unknown_keywords_are_said() -> None:
    """A schema of which nothing is known is told with its place; annotations are known."""
    schema = {"title": "T", "x-y": 1, "properties": {"a": {"typ": "string"}, "b": {"description": "d"}}}
    assert output_format.of_schema(schema).unknown == ("#/properties/a",)
    assert output_format.of_schema({"propertys": {"a": {"b": 1}}}).unknown == ("#",)


def test_every_price_is_a_multiple_of_a_cent() -> None:
    """Decimal arithmetic: none of the 9,999 prices below 100 is refused, and no half cent is taken."""
    wanted = output_format.of_schema({"type": "number", "multipleOf": 0.01})
    assert [n for n in range(1, 10_000) if wanted.problem(f"{n // 100}.{n % 100:02}")] == []
    assert wanted.problem("0.005") == "the answer breaks the schema: 0.005 is not a multiple of 0.01 ($)"
    assert wanted.problem("1e300000000") is None and wanted.problem("1e-300000000")
    assert judge(wanted.grammar, "19.99") == "complete" and judge(wanted.grammar, "0.005") == "wrong"


def test_problems_with_json() -> None:
    """An answer that broke off, has something behind it, or breaks the schema is told in one sentence."""
    wanted = output_format.of_schema(PERSON)
    assert wanted.problem('\n {"name": "A", "age": 3}\n') is None
    assert wanted.problem('{"name": "A", "ag') == (
        "the answer ends early: line 1, column 15: Unterminated string starting at"
    )
    assert "Extra data" in str(wanted.problem('{"name": "A", "age": 3} Done.'))
    assert wanted.problem('{"name": "A", "age": -3}') == (
        "the answer breaks the schema: -3 is less than the minimum of 0 ($.age)"
    )
    assert "ends early" in str(wanted.problem(""))
    assert output_format.of_schema(True).problem("[" * 100_000) == "the answer is not JSON: nested too deeply"
    deep = "[" * 600 + "]" * 600
    assert output_format.of_schema({"items": {"$ref": "#"}}).problem(deep) in (
        None,
        "the answer cannot be validated: it is nested too deeply, or the schema refers to itself in circles",
    )


def test_json_mode() -> None:
    """Any object or array, nothing else."""
    wanted = output_format.of_json()
    for text in ("{}", "[]", '{"a": [1, {"b": null}]}', "[\n  1,\n  2\n]"):
        assert judge(wanted.grammar, text) == "complete"
        assert wanted.problem(text) is None
    for text in ('"a"', "1", "", "{", "{}x", "[NaN]", "[\n\n1]"):
        assert judge(wanted.grammar, text) != "complete"
    assert wanted.problem('"a"') == "the answer is neither an object nor an array"
    assert wanted.problem("[NaN]") == "the answer is not JSON: NaN is not a JSON number"


def test_choices() -> None:
    """One of these, to the letter, however they overlap."""
    choices = ["yes", "no", "not sure", "n", 'a "quote"', "é", "back\\slash", " x"]
    wanted = output_format.of_choices(choices)
    assert [text for text in choices if judge(wanted.grammar, text) != "complete"] == []
    assert [text for text in ("", "ye", "not", "yes ", "x") if judge(wanted.grammar, text) == "complete"] == []
    assert [wanted.problem(text) for text in choices] == [None] * len(choices)
    assert wanted.problem("not!") == "the answer 'not!' is not one of the choices"
    assert wanted.problem("not") == "the answer 'not' ends early and is not one of the choices"


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ([], "nothing to choose from"),
        (["a", ""], "is empty"),
        (["a", " "], "is empty"),
        (["a", "b", "a"], "'a' is given twice"),
        (["a\nb"], "a control character"),
        (["\0"], "a control character"),
        (["\ud800"], "not valid text"),
        (["x"] * 10_001, "10001 choices"),
    ],
)
def test_bad_choices(choices: list[str], words: str) -> None:
    """Choices that cannot be offered are a `UsageError`."""
    with pytest.raises(UsageError, match=f"choice: .*{words}"):
        output_format.of_choices(choices)


def test_grammar() -> None:
    """A grammar of the user's own judges the answer, too."""
    wanted = output_format.of_grammar('root ::= "a" [0-9]+ ";"')
    assert wanted.problem("a12;") is None
    assert wanted.problem("a12") == "the answer ends early, before the grammar does"
    assert wanted.problem("b") == "the answer breaks the grammar"
    with pytest.raises(UsageError, match="grammar: line 1: there is no rule 'b'"):
        output_format.of_grammar("root ::= b")


def test_where_a_schema_is_from() -> None:
    """Errors of its JSON begin with the source, and have line and column."""
    assert output_format.of_schema(' {"type": "null"} ').schema == {"type": "null"}
    with pytest.raises(UsageError, match=r"json_schema: schema.json: not JSON: line 2, column 2"):
        output_format.of_schema('{"type":\n nul}', "schema.json")
    with pytest.raises(UsageError, match="1048577 characters"):
        output_format.of_schema(" " * ((1 << 20) + 1))
    with pytest.raises(UsageError, match="json_schema: not JSON: line 1, column 2"):
        output_format.of_schema("{type: null}")


def test_integer_ranges_are_exact() -> None:
    """Every number from -1100 to 1100 is in a range or out of it as the bounds say."""
    chance = random.Random(3)
    for _ in range(4):
        low, high = sorted(chance.sample(range(-1100, 1100), 2))
        grammar = output_format.of_schema({"type": "integer", "minimum": low, "maximum": high}).grammar
        for number in (*range(-1100, 1101, 37), low - 1, low, high, high + 1):
            assert (judge(grammar, str(number)) == "complete") == (low <= number <= high)


def test_classes_of_patterns_are_valid() -> None:
    r"""What \d, \w, \s and their opposites allow is what the validation takes, in ASCII and beyond."""
    for letter in "dwsDWS":
        wanted = output_format.of_schema({"type": "string", "pattern": f"^\\{letter}$"})
        for character in "aZ5_ -!éß日٣\u00a0\u2028":
            text = json.dumps(character, ensure_ascii=False)
            assert judge(wanted.grammar, text) != "complete" or wanted.problem(text) is None, (letter, character)
