"""Formats: what a schema's grammar makes is valid, what is valid can be made, what cannot be expressed is an error."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from test_gbnf import native, write

from llmrun.constrain import gbnf, output_format
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
    ({"type": "string"}, ['""', r'"\u00e9\n\"\ud83d\ude00é"'], ['"\n"', r'"\ud83d"', r'"\x"', '"']),
    ({"type": "integer"}, ["0", "-12"], ["1.0", "01", "+1", "-"]),
    ({"type": "number"}, ["0", "-1.5", "1e5", "2.5E-3"], ["1.", "e5", "NaN", "1e999"]),
    ({"type": ["boolean", "null"]}, ["true", "null"], ["0"]),
    ({"type": ["integer", "number"]}, ["1", "1.5"], []),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', r'"\u0041é\n"'], ['"a"', '"abcd"']),
    ({"maxLength": 0}, ['""'], ['"a"', "1"]),
    ({"type": "integer", "minimum": 0, "maximum": 255}, ["0", "9", "10", "199", "255"], ["256", "-1", "300", "00"]),
    ({"type": "integer", "minimum": -17, "maximum": 8}, ["-17", "-1", "0", "8"], ["-18", "9", "-20", "-170"]),
    ({"type": "integer", "minimum": 1}, ["1", "10", "1234567890123456"], ["0", "-1"]),
    ({"type": "integer", "maximum": -5}, ["-5", "-6", "-100"], ["-4", "0", "5"]),
    ({"type": "integer", "exclusiveMinimum": 4.5, "exclusiveMaximum": 1000}, ["5", "999"], ["4", "1000"]),
    ({"type": "integer", "minimum": 9223372036854775807}, ["9223372036854775807"], ["9223372036854775806"]),
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
     ['{"ab":null,"x":1}', '{"a":1,"abc":2,"ad":3}', '{"ac":null}'], ['{"ab":1}', '{"x":1,"ac":2}', '{"":1}']),
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
    ({"type": "string", "format": "email"}, ['"a.b+c@x-1.example.org"'], ['"a@b"', '"@"']),
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
     [r'{"é\n\"":null,"\u0085":null}'], []),
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
    ({"properties": {"a/b": {"not": {"type": "null"}}}}, "#/properties/a~1b: 'not' cannot"),
    ({"if": {"type": "null"}, "then": {}}, "'if' cannot"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "'dependentRequired' cannot"),
    ({"type": "object", "dependentSchemas": {"a": {}}}, "'dependentSchemas' cannot"),
    ({"$schema": DRAFT7, "type": "object", "dependencies": {"a": ["b"]}}, "'dependencies' cannot"),
    ({"type": "object", "patternProperties": {"^a": {}}}, "'patternProperties' cannot"),
    ({"type": "object", "propertyNames": {"maxLength": 1}}, "'propertyNames' cannot"),
    ({"type": "object", "unevaluatedProperties": {"type": "null"}}, "'unevaluatedProperties' cannot"),
    ({"type": "array", "unevaluatedItems": False}, "'unevaluatedItems' cannot"),
    ({"$ref": "https://example.com/x.json"}, "leads outside the schema"),
    ({"$ref": "other.json#/a"}, "leads outside the schema"),
    ({"items": {"$ref": "#anchor"}}, "#/items: $ref '#anchor' leads outside"),
    ({"$ref": "#/$defs/none"}, "leads nowhere"),
    ({"$ref": "#/title", "title": "x"}, "leads to something"),
    ({"$dynamicRef": "#x"}, "$dynamicRef is not supported"),
    ({"items": {"$id": "https://example.com/a", "type": "null"}}, "an inner $id"),
    ({"$ref": "#"}, "refers to itself"),
    ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "refers to itself"),
    ({"allOf": [{"$ref": "#"}]}, "leads back to itself"),
    ({"$ref": "#", "type": "object"}, "leads back to itself"),
    ({"enum": [1], "$ref": "#"}, "refers to itself"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "without end"),
    ({"type": "string", "pattern": "(?=a)b"}, "lookahead cannot"),
    ({"type": "string", "pattern": "(?<!a)b"}, "lookbehind cannot"),
    ({"type": "string", "pattern": r"(a)\1"}, "backreference"),
    ({"type": "string", "pattern": r"\bword"}, "the escape \\b is not supported"),
    ({"type": "string", "pattern": "(?i)a"}, "is not supported"),
    ({"type": "string", "pattern": "a$b"}, "a '$' that is not at the end"),
    ({"type": "string", "pattern": "(^a)"}, "a '^' that is not at the beginning"),
    ({"type": "string", "pattern": "a{3000}"}, "{3000}: llama.cpp's limit is 2000"),
    ({"type": "string", "pattern": "[a"}, "not a valid schema at #/pattern"),
    ({"type": "string", "pattern": "a{99999999999999999999}"}, "the counts in a pattern"),
    ({"type": "string", "pattern": "(" * 3000 + ")" * 3000}, "not a valid schema at #/pattern|too deeply|is not a pat"),
    ({"not": {"pattern": "(?<n>a)"}}, "not a valid schema at #/not/pattern"),
    ({"type": "string", "pattern": "[]a]"}, "write \\]"),
    ({"type": "string", "pattern": "(" * 70 + "a" + ")" * 70}, "64 groups"),
    ({"type": "string", "maxLength": 2_000_000}, "maxLength 2000000: llama.cpp's limit is 2000"),
    ({"type": "string", "minLength": 2001}, "minLength 2001"),
    ({"type": "array", "maxItems": 10**400}, "maxItems 100000000000…: llama.cpp's limit is 2001"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "at least 3 characters and at most 2"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "no such integer"),
    ({"type": "integer", "minimum": 10**30}, "no such integer"),
    ({"type": "array", "minItems": 3, "maxItems": 2}, "at least 3 items and at most 2"),
    ({"prefixItems": [True], "items": False, "minItems": 2}, "at least 2 items and at most 1"),
    ({"required": ["a"], "additionalProperties": False}, "'a' is required and not allowed"),
    ({"enum": ["a"], "type": "integer"}, "no value of 'enum' fits"),
    ({"enum": list(range(10_001))}, "10001 values in 'enum'"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "no type is left"),
    ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "'pattern' stands in several parts"),
    ({"allOf": [{"const": 1}, {"const": 2}]}, "two constants"),
    ({"anyOf": [{"enum": [f"{i:013b}{end}" for i in range(8192)]} for end in "abc"]}, "more than 20000 rules"),
    ({"title": "x" * (1 << 20)}, "at most 1048576"),
    ({"$schema": "http://json-schema.org/draft-03/schema#"}, "draft 3"),
    ({"default": float("nan")}, "the schema is not JSON"),
    ({"default": {1, 2}}, "the schema is not JSON"),
    ('{"a": 1e999}', "a number is too large"),
    ('{"a": NaN}', "NaN is not a JSON number"),
    ('{"a": ' + "9" * 5000 + "}", "no JSON|a number with too many digits"),
    ('{"a": ' + "[" * 100_000, "nested too deeply"),
    ("{\n 'a': 1}", "line 2, column 2"),
]  # fmt: skip


def nested(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def without_what_is_left(schema: Any) -> Any:
    """The schema without the keywords that the grammar leaves to the validation."""
    left = {"uniqueItems", "multipleOf", "contains", "minProperties", "maxProperties"}
    if schema.get("type") == "number":
        left |= {"minimum", "maximum"}
    if "pattern" in schema:
        left |= {"minLength"}
    return {key: value for key, value in schema.items() if key not in left}


@pytest.mark.parametrize(("schema", "right", "wrong"), SCHEMAS, ids=lambda value: str(value)[:50])
def test_schema(schema: Any, right: list[str], wrong: list[str]) -> None:
    """The grammar makes these texts and not those, and every text out of it is valid."""
    wanted = output_format.of_schema(schema)
    grammar = gbnf.parse(wanted.grammar)
    assert [text for text in right if grammar.judge(text) != "complete"] == []
    assert [text for text in wrong if grammar.judge(text) == "complete"] == []
    assert [wanted.problem(text) for text in right] == [None] * len(right)
    held = wanted
    if wanted.left_to_validation and isinstance(wanted.schema, dict):
        held = output_format.OutputFormat("json_schema", "", without_what_is_left(wanted.schema))
    chance = random.Random(str(schema))
    for _ in range(15):
        text = write(grammar, chance, most=150)
        assert held.problem(text) is None, text
        assert grammar.judge(text) == "complete"


def test_llama_cpp_follows_them() -> None:
    """llama.cpp loads every one of these grammars, and goes along with the same texts."""
    grammars = [output_format.of_schema(schema).grammar for schema, _, _ in SCHEMAS]
    asked = [(grammar, [*right, *wrong]) for grammar, (_, right, wrong) in zip(grammars, SCHEMAS, strict=True)]
    for (schema, right, wrong), found in zip(SCHEMAS, native(asked), strict=True):
        assert found == [True] * len(right) + [False] * len(wrong), schema


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


def test_optional_properties_are_linear() -> None:
    """A hundred optional properties make two rules each, not 2^100."""
    wanted = output_format.of_schema({"properties": {f"p{i}": {"type": "null"} for i in range(100)}})
    assert len(wanted.grammar) < 12_000
    assert gbnf.parse(wanted.grammar).judge('{"p3":null,"p50":null,"p99":null}') == "complete"


def test_chain_of_references() -> None:
    """A thousand definitions, each leading to the next, are no deeper than one."""
    chain: dict[str, Any] = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(1000)}
    wanted = output_format.of_schema({"$defs": {**chain, "d1000": {"type": "null"}}, "$ref": "#/$defs/d0"})
    grammar = gbnf.parse(wanted.grammar)
    assert grammar.judge("[" * 1000 + "null" + "]" * 1000) == "complete"
    assert grammar.judge("[" * 1001) == "wrong"


def test_impossible_alternatives_are_left_out() -> None:
    """An alternative that nothing can be leaves the others."""
    none = {"properties": {"a": {"properties": {"b": {"type": "integer", "minimum": 2, "maximum": 1}}}}}
    grammar = gbnf.parse(output_format.of_schema({"anyOf": [none, {"type": "null"}]}).grammar)
    assert [grammar.judge(text) for text in ("null", "{")] == ["complete", "wrong"]


def test_many_words() -> None:
    """An enum of 10,000 words begins in as many ways as there are first characters."""
    words = [f"{i:04}" for i in range(10_000)]
    wanted = output_format.of_schema({"enum": words})
    grammar = gbnf.parse(wanted.grammar)
    assert max(len(alternatives) for alternatives in grammar.rules) == 10
    assert [grammar.judge(json.dumps(word)) for word in words[::999]] == ["complete"] * 11


def test_left_to_validation() -> None:
    """What the grammar leaves is named with its place, and found in the answer."""
    left = {
        "type": "array", "uniqueItems": True, "contains": {"const": 1},
        "items": {"type": "number", "multipleOf": 0.5, "maximum": 2},
    }  # fmt: skip
    wanted = output_format.of_schema(left)
    assert wanted.left_to_validation == (
        "uniqueItems at #", "contains at #", "multipleOf at #/items", "maximum at #/items",
    )  # fmt: skip
    assert wanted.problem("[1, 2]") is None
    assert "non-unique" in str(wanted.problem("[1, 1]"))
    assert "does not contain" in str(wanted.problem("[2]"))
    assert wanted.problem("[1, 0.25]") == "the answer breaks the schema: 0.25 is not a multiple of 0.5 ($[1])"
    assert "3 is greater than the maximum of 2" in str(wanted.problem("[1, 3]"))
    one = output_format.of_schema({"oneOf": [{"type": "integer"}, {"type": "number"}]})
    assert one.left_to_validation == ("oneOf at #",)
    assert "valid under each of" in str(one.problem("1"))
    beside = output_format.of_schema({"type": "string", "pattern": "^a*$", "maxLength": 2, "minProperties": 3})
    assert beside.left_to_validation == ("maxLength at #",)


def test_problems_with_json() -> None:
    """An answer that broke off, has something behind it, or breaks the schema is told in one sentence."""
    wanted = output_format.of_schema(PERSON)
    assert wanted.problem('\n {"name": "A", "age": 3}\n') is None
    assert wanted.problem('{"name": "A", "ag') == (
        "the answer is not JSON: line 1, column 15: Unterminated string starting at"
    )
    assert "Extra data" in str(wanted.problem('{"name": "A", "age": 3} Done.'))
    assert wanted.problem('{"name": "A", "age": -3}') == (
        "the answer breaks the schema: -3 is less than the minimum of 0 ($.age)"
    )
    assert "not JSON" in str(wanted.problem(""))
    assert output_format.of_schema(True).problem("[" * 100_000) == "the answer is not JSON: nested too deeply"
    deep = "[" * 600 + "]" * 600
    assert output_format.of_schema({"items": {"$ref": "#"}}).problem(deep) in (
        None,
        "the answer cannot be validated: it is nested too deeply, or the schema refers to itself in circles",
    )


def test_json_mode() -> None:
    """Any object or array, nothing else."""
    wanted = output_format.of_json()
    grammar = gbnf.parse(wanted.grammar)
    for text in ("{}", "[]", '{"a": [1, {"b": null}]}', "[\n  1,\n  2\n]"):
        assert grammar.judge(text) == "complete"
        assert wanted.problem(text) is None
    for text in ('"a"', "1", "", "{", "{}x", "[NaN]", "[\n\n1]"):
        assert grammar.judge(text) != "complete"
    assert wanted.problem('"a"') == "the answer is neither an object nor an array"
    assert wanted.problem("[NaN]") == "the answer is not JSON: NaN is not a JSON number"


def test_choices() -> None:
    """One of these, to the letter, however they overlap."""
    choices = ["yes", "no", "not sure", "n", 'a "quote"', "é", "back\\slash", " x"]
    wanted = output_format.of_choices(choices)
    grammar = gbnf.parse(wanted.grammar)
    assert [text for text in choices if grammar.judge(text) != "complete"] == []
    assert [text for text in ("", "ye", "not", "yes ", "x") if grammar.judge(text) == "complete"] == []
    assert [wanted.problem(text) for text in choices] == [None] * len(choices)
    assert wanted.problem("not") == "the answer 'not' is not one of the choices"
    [found] = native([(wanted.grammar, [*choices, "not", "yess"])])
    assert found == [True] * len(choices) + [False, False]


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
    assert wanted.problem("a12") == "the answer ends before the grammar does"
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
    for _ in range(12):
        low, high = sorted(chance.sample(range(-1100, 1100), 2))
        grammar = gbnf.parse(output_format.of_schema({"type": "integer", "minimum": low, "maximum": high}).grammar)
        one = re.compile("-?(0|[1-9][0-9]*)")
        for number in range(-1100, 1101, 7):
            assert one.fullmatch(str(number))
            assert (grammar.judge(str(number)) == "complete") == (low <= number <= high)
        assert all(grammar.judge(str(edge)) == "complete" for edge in (low, high))
        assert all(grammar.judge(str(edge)) != "complete" for edge in (low - 1, high + 1))


def test_classes_mean_the_same_to_python() -> None:
    r"""What \d, \w, \s and their opposites become is within what Python's `re` means by them, for every code point."""
    for letter in "dwsDWS":
        grammar = gbnf.parse(output_format.of_schema({"pattern": f"^\\{letter}$"}).grammar)
        chars = [e for alternatives in grammar.rules for a in alternatives for e in a if isinstance(e, gbnf.Chars)]
        wanted = re.compile(f'[\\{letter}"\\\\bfnrt]')  # the rest of a JSON string: quotes and escapes
        for one in chars:
            for low, high in one.valid_ranges():
                text = "".join(map(chr, range(low, high + 1)))
                assert len(wanted.findall(text)) == len(text), (letter, hex(low), hex(high))
