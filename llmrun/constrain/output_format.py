"""The format of an answer: JSON, a JSON schema, a choice, or a grammar of the user's own.

An `OutputFormat` has the grammar that llama.cpp samples by, made here and checked by `gbnf.py`, and `problem`, which
says of a finished answer whether it is what was asked for: a grammar allows no wrong token, but cannot make the answer
end.

The grammar enforces these keywords of a JSON schema: type, enum, const, properties, required, additionalProperties,
items, prefixItems, minItems, maxItems, minLength, maxLength, pattern, format, the bounds of integers, $ref within the
schema, anyOf, oneOf, allOf of what can be merged, nullable (OpenAPI's; it becomes a type "null"). Every text that it
can make is valid except for what is left to the validation of the whole answer (`OutputFormat.left_to_validation` names
them): uniqueItems, multipleOf, contains, minProperties, maxProperties, bounds of `number`, oneOf's "exactly one", a
length beside a pattern or format. It leaves some valid texts out, on purpose: properties come in the schema's order,
further ones only where `additionalProperties` says so (or nothing says what the properties are), whitespace is a blank
or a line with up to 20 blanks, numbers have up to 16 digits before and behind the point, no date is a February 29, and
a schema without `type` stands for the types that its keywords are about. A `format` that is not known, and one beside a
pattern, is an annotation, as the standard has it.

What a grammar cannot express is refused with its JSON pointer: not, if, dependentRequired and its kin,
patternProperties, propertyNames, unevaluatedItems, references to elsewhere, in patterns lookaround and backreferences.
Beside `enum` and `const` everything is allowed: their values are validated beforehand.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn
from urllib.parse import unquote

from llmrun.constrain import gbnf
from llmrun.errors import Change, Remedy, UsageError

MAX_SCHEMA = 1 << 20
MAX_NESTING = 64
"""Levels of the schema's JSON, and steps of references."""
MAX_ENUM = 10_000
MAX_CHOICES = 10_000
MAX_RULES = 20_000
_SOON = 16
"""Schemas nested deeper than this are converted after the outer ones: recursion stays shallow."""

_INTEGER_DIGITS = 16
_EXACT_INTEGER = 10**20 - 1
"""Bounds beyond it are cut to it: every int64 and uint64 is within."""

Kind = Literal["grammar", "json_schema", "json", "choice"]


@dataclass(frozen=True)
class OutputFormat:
    """What an answer has to look like.

    Attributes:
        kind: what the user gave.
        grammar: GBNF for llama.cpp's sampler; its root is "root".
        schema: the JSON schema that an answer is validated with, `nullable` replaced by what it means.
        choices: the answer is exactly one of these.
        left_to_validation: keywords that the grammar does not enforce, with JSON pointers: "uniqueItems at #/…".
    """

    kind: Kind
    grammar: str
    schema: Any | None = None
    choices: tuple[str, ...] = ()
    left_to_validation: tuple[str, ...] = ()

    def problem(self, answer: str) -> str | None:
        """Why the whole answer is not what was asked for, in one sentence; None if it is."""
        match self.kind:
            case "choice":
                return None if answer in self.choices else f"the answer {_short(answer)} is not one of the choices"
            case "grammar":
                return self._problem_with_grammar(answer)
            case _:
                return self._problem_with_json(answer)

    def _problem_with_grammar(self, answer: str) -> str | None:
        match gbnf.parse(self.grammar).judge(answer):
            case "wrong":
                return "the answer breaks the grammar"
            case "incomplete":
                return "the answer ends before the grammar does"
            case _:
                return None  # complete, or too much work to tell: the sampler kept to it

    def _problem_with_json(self, answer: str) -> str | None:
        try:
            value = _loads(answer)
        except _NotJson as reason:
            return f"the answer is not JSON: {reason}"
        if self.kind == "json":
            return None if isinstance(value, dict | list) else "the answer is neither an object nor an array"
        if self.schema is None:
            return None
        try:
            # jsonschema compiles patterns as it goes; Python warns of `[[`, whose meaning may change one day.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                error = next(_validator(self.schema).iter_errors(value), None)
        except RecursionError:
            return "the answer cannot be validated: it is nested too deeply, or the schema refers to itself in circles"
        return None if error is None else f"the answer breaks the schema: {_sentence(error)}"


def of_grammar(text: str) -> OutputFormat:
    """A grammar of the user's own. Raises `UsageError` if llama.cpp would refuse it or die of it."""
    gbnf.check(text)
    return OutputFormat("grammar", text)


def of_json() -> OutputFormat:
    """Any JSON object or array."""
    made = _Rules()
    made.rules["root"] = f"{made.shared('object')} | {made.shared('array')}"
    return OutputFormat("json", made.text("json_mode"))


def of_choices(choices: list[str]) -> OutputFormat:
    """One of these texts. Raises `UsageError` for no text, an empty one, one twice, one with control characters."""
    if not choices:
        raise _bad_choice("there is nothing to choose from")
    if len(choices) > MAX_CHOICES:
        raise _bad_choice(f"{len(choices)} choices; at most {MAX_CHOICES} are possible", hint=_GRAMMAR)
    seen = set()
    for choice in choices:
        if not choice.strip():
            raise _bad_choice("one of the choices is empty")
        if any(character < " " or "\x7f" <= character <= "\x9f" for character in choice):
            raise _bad_choice(f"{_short(choice)} has a control character", hint=_GRAMMAR)
        if _has_surrogate(choice):
            raise _bad_choice(f"{_short(choice)} is not valid text")
        if choice in seen:
            raise _bad_choice(f"{_short(choice)} is given twice")
        seen.add(choice)
    made = _Rules()
    made.rules["root"] = made.one_of(choices)
    return OutputFormat("choice", made.text("choice"), choices=tuple(choices))


def of_schema(schema: Any, source: str = "") -> OutputFormat:
    """What a JSON schema describes: its text, or the value that the text stands for. Raises `UsageError`.

    `source` is where a text is from; messages about its JSON begin with that.
    """
    if isinstance(schema, str):
        schema = _read(schema, f"{source}: " if source else "")
    else:
        try:
            schema = _read(json.dumps(schema, allow_nan=False))
        except (TypeError, ValueError, RecursionError):
            raise _bad_schema("the schema is not JSON") from None
    if not isinstance(schema, dict | bool):
        raise _bad_schema(f"a schema is an object, or true or false, not {_type_name(schema)}")
    if _depth(schema) > MAX_NESTING:
        raise _bad_schema(f"nested deeper than {MAX_NESTING} levels", hint='"$defs" with "$ref" are flat')
    _check_schema(schema)
    schema = _without_nullable(schema)
    _check_references(schema)
    converter = _Converter(schema)
    if type(converter.validator).__name__ == "Draft3Validator":
        raise _bad_schema("draft 3 of JSON Schema is not supported", hint="leave $schema out")
    grammar = converter.convert()
    return OutputFormat("json_schema", grammar, schema, left_to_validation=tuple(converter.left))


# -- JSON, read strictly ---------------------------------------------------------------------------------------------

_EXAMPLE = Change(
    {"json_schema": '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}'}
)
_CHOICES = Change({"choice": "yes,no"})
_GRAMMAR = Change({"grammar": "FILE"})


def _bad_schema(problem: str, hint: Remedy = _EXAMPLE) -> UsageError:
    return UsageError(problem, field="json_schema", hint=hint)


def _bad_choice(problem: str, hint: Remedy = _CHOICES) -> UsageError:
    return UsageError(problem, field="choice", hint=hint)


class _NotJson(Exception):
    pass


def _loads(text: str) -> Any:
    """JSON as the standard has it: no NaN, and no number that Python cannot hold."""

    def refuse(word: str) -> NoReturn:
        raise _NotJson(f"{word} is not a JSON number")

    try:
        value = json.loads(text.strip(" \t\r\n"), parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise _NotJson(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise _NotJson("nested too deeply") from None
    except ValueError:
        raise _NotJson("a number with too many digits") from None
    return value


def _read(text: str, source: str = "") -> Any:
    """The JSON of a schema. `source` is the beginning of messages."""
    if len(text) > MAX_SCHEMA:
        raise _bad_schema(
            f"{source}a schema of {len(text)} characters; at most {MAX_SCHEMA} are possible", hint=_EXAMPLE
        )
    try:
        schema = _loads(text)
        if _depth(schema) <= MAX_NESTING:
            json.dumps(schema, allow_nan=False)
    except _NotJson as error:
        raise _bad_schema(f"{source}not JSON: {error}") from None
    except ValueError:
        raise _bad_schema(f"{source}a number is too large, such as 1e999") from None
    return schema


def _depth(value: Any) -> int:
    """How deep lists and objects are nested; computed without recursion."""
    deepest = 0
    level = [value]
    while level := [v for v in level if isinstance(v, dict | list)]:
        deepest += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return deepest


def _short(value: Any, most: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = f"{text[:most]}…" if len(text) > most else text
    return repr(text) if isinstance(value, str) else text


def _type_name(value: Any) -> str:
    names: tuple[tuple[Any, str], ...] = (
        (bool, "a boolean"),
        (dict, "an object"),
        (list, "an array"),
        (str, "a text"),
        (int | float, "a number"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "null")


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


# -- the schema as such -----------------------------------------------------------------------------------------------

_ONE = (
    "additionalItems additionalProperties contains contentSchema else if items not propertyNames then "
    "unevaluatedItems unevaluatedProperties"
).split()
_MANY = "allOf anyOf oneOf prefixItems items".split()
_NAMED = "$defs definitions dependentSchemas dependencies patternProperties properties".split()


def _subschemas(schema: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The schemas directly within a schema, with the path to each."""
    for key in _ONE:
        if isinstance(schema.get(key), dict | bool):
            yield (key,), schema[key]
    for key in _MANY:
        if isinstance(schema.get(key), list):
            yield from (((key, str(i)), inner) for i, inner in enumerate(schema[key]))
    for key in _NAMED:
        if isinstance(schema.get(key), dict):
            named = ((name, inner) for name, inner in schema[key].items() if isinstance(inner, dict | bool))
            yield from (((key, name), inner) for name, inner in named)


def _point(pointer: str, *names: str) -> str:
    """The JSON pointer (RFC 6901), extended by these names."""
    return pointer + "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names)


def _validator(schema: Any) -> Any:
    """jsonschema's validator for the draft that `$schema` names, else 2020-12; it fetches nothing."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for
    from referencing import Registry

    return validator_for(schema, default=Draft202012Validator)(schema, registry=Registry())


def _sentence(error: Any) -> str:
    """A `ValidationError` in one line: what is wrong, and where."""
    words = " ".join(str(error.message).split())
    return f"{words[:200]}{'…' if len(words) > 200 else ''} ({error.json_path})"


def _check_schema(schema: Any) -> None:
    """Validates the schema against the meta-schema of its draft. Raises `UsageError`."""
    from jsonschema.exceptions import SchemaError

    try:
        with warnings.catch_warnings():  # about classes of patterns
            warnings.simplefilter("ignore")
            type(_validator(schema)).check_schema(schema)
    except OverflowError:  # of a pattern with a{99999999999}
        raise _bad_schema("not a valid schema: the counts in a pattern are too large") from None
    except SchemaError as error:
        where = _point("#", *map(str, error.path))
        words = " ".join(error.message.split())[:200]
        raise _bad_schema(f"not a valid schema at {where}: {words}") from None
    except RecursionError:
        raise _bad_schema("nested too deeply", hint='"$defs" with "$ref" are flat') from None


def _without_nullable(schema: Any) -> Any:
    """The same, with OpenAPI's `nullable` written the way of JSON Schema."""
    if not isinstance(schema, dict):
        return schema
    copy = dict(schema)
    for path, inner in _subschemas(schema):
        if len(path) == 1:
            copy[path[0]] = _without_nullable(inner)
            continue
        key, name = path
        if copy[key] is schema[key]:
            copy[key] = schema[key].copy()
        copy[key][int(name) if isinstance(copy[key], list) else name] = _without_nullable(inner)
    if copy.get("nullable") is not True:
        return copy
    del copy["nullable"]
    kept = {key: copy.pop(key) for key in ("$schema", "$id", "$defs", "definitions") if key in copy}
    return {**kept, "anyOf": [copy, {"type": "null"}]}


def _check_references(schema: Any) -> None:
    """Raises `UsageError` unless every `$ref` leads to a schema in this one and every pattern is valid: jsonschema
    would raise only when the answer is validated."""
    todo = [("#", schema)]
    while todo:
        pointer, inner = todo.pop()
        if not isinstance(inner, dict):
            continue
        for key in ("$dynamicRef", "$recursiveRef"):
            if key in inner:
                raise _bad_schema(f"{pointer}: {key} is not supported", hint='"$ref": "#/$defs/NAME"')
        if pointer != "#" and isinstance(inner.get("$id"), str):
            raise _bad_schema(f"{pointer}: an inner $id is not supported", hint="leave it out")
        if isinstance(inner.get("pattern"), str):
            _check_pattern(inner["pattern"], pointer)
        for pattern in inner.get("patternProperties", {}):
            _check_pattern(pattern, pointer)
        if isinstance(inner.get("$ref"), str):
            _resolve(schema, inner["$ref"], pointer)
        todo += [(_point(pointer, *path), further) for path, further in _subschemas(inner)]


def _check_pattern(pattern: str, pointer: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise _bad_schema(
            f"{pointer}: {_short(pattern)} is not a pattern: {error}", hint='"pattern": "^[a-z]+$"'
        ) from None


def _resolve(root: Any, reference: str, pointer: str) -> Any:
    hint = '"$ref": "#/$defs/NAME"'
    if reference != "#" and not reference.startswith("#/"):
        raise _bad_schema(f"{pointer}: $ref {_short(reference)} leads outside the schema", hint=hint)
    found = root
    for step in reference[2:].split("/") if len(reference) > 1 else ():
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and len(name) < 9 and int(name) < len(found):
            found = found[int(name)]
        else:
            raise _bad_schema(f"{pointer}: $ref {_short(reference)} leads nowhere", hint=hint)
    if not isinstance(found, dict | bool):
        raise _bad_schema(f"{pointer}: $ref {_short(reference)} leads to something that is not a schema", hint=hint)
    return found


# -- GBNF, written ----------------------------------------------------------------------------------------------------

_PLAIN_IN_CLASS = frozenset(" !#$%&()*+,./:;<=>?@_`{|}~") | frozenset(
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)
# What stands in a JSON string as it is. Control characters beyond ASCII are written as escapes only.
_RAW = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0xA0, 0xD7FF), (0xE000, 0x10FFFF))
_SHORT_ESCAPES = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 0x22: '"', 0x5C: "\\"}

# Texts of rules that name each other. `ws` is bounded: a model that may write blanks for ever does.
_SHARED = {
    "ws": r'| " " | "\n" [ \t]{0,20}',
    "hex": "[0-9a-fA-F]",
    "escape": r'"\\" (["\\/bfnrt] | "u" ([0-9a-ceA-CEfF] hex{3} | [dD] [0-7] hex{2} | '
    r'[dD] [89abAB] hex{2} "\\u" [dD] [c-fC-F] hex{2}))',
    "char": "RAW | escape",
    "string": r'"\"" char* "\""',
    "digits": '"0" | [1-9] [0-9]{0,15}',
    "integer": '"-"? digits',
    "tail": '("." [0-9]{1,16})? ([eE] [+-]? [0-9]{1,2})?',
    "number": '"-"? digits tail',
    "positive": "digits tail",
    "boolean": '"true" | "false"',
    "null": '"null"',
    "object": r'"{" ws (member ("," ws member)* ws)? "}"',
    "member": 'string ":" ws value',
    "array": r'"[" ws (value ("," ws value)* ws)? "]"',
    "value": "object | array | string | number | boolean | null",
    "date": '[0-9]{4} "-" (("0" [13578] | "1" [02]) "-" ("0" [1-9] | [12] [0-9] | "3" [01]) | '
    '("0" [469] | "11") "-" ("0" [1-9] | [12] [0-9] | "30") | "02-" ("0" [1-9] | "1" [0-9] | "2" [0-8]))',
    "time": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])',
    "date-time": 'date "T" time',
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
    "octet": '"25" [0-5] | "2" [0-4] [0-9] | "1" [0-9]{2} | [1-9] [0-9] | [0-9]',
    "ipv4": 'octet "." octet "." octet "." octet',
    "label": "[a-z0-9] ([a-z0-9-]{0,61} [a-z0-9])?",
    "hostname": 'label ("." label){0,3}',
    "atom": "[A-Za-z0-9_+-]{1,32}",
    "email": 'atom ("." atom){0,3} "@" label ("." label){1,3}',
}
_NOTHING = '""'
_NO_NAMES = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]')
_FORMATS = frozenset({"date", "time", "date-time", "uuid", "ipv4", "hostname", "email"})


def _literal(text: str) -> str:
    """The text as a literal of GBNF."""
    out = []
    for character in text:
        if character in '"\\':
            out.append("\\" + character)
        elif character.isprintable():
            out.append(character)
        else:
            out.append(f"\\U{ord(character):08X}")
    return f'"{"".join(out)}"'


def _class(ranges: Iterable[tuple[int, int]]) -> str:
    def one(code: int) -> str:
        return chr(code) if chr(code) in _PLAIN_IN_CLASS else f"\\x{code:02X}" if code < 256 else f"\\U{code:08X}"

    return f"[{''.join(one(low) if low == high else f'{one(low)}-{one(high)}' for low, high in ranges)}]"


def _json_string(text: str) -> str:
    """The text as JSON; control characters and surrogates are escapes."""
    return re.sub(
        "[\x7f-\x9f\u2028\u2029\ud800-\udfff]",
        lambda match: f"\\u{ord(match[0]):04x}",
        json.dumps(text, ensure_ascii=False),
    )


class _Rules:
    """The rules of a grammar while it is made. `root` is first; shared rules are added when they are named."""

    def __init__(self) -> None:
        self.rules: dict[str, str] = {"root": ""}
        self.n_made = 0

    def shared(self, name: str) -> str:
        todo = [name]
        while todo:
            one = todo.pop()
            if one not in self.rules:
                self.rules[one] = _SHARED[one].replace("RAW", _class(_RAW))
                todo += [
                    word for word in re.findall(r"[a-z][a-z0-9-]+", _NO_NAMES.sub("", _SHARED[one])) if word in _SHARED
                ]
        return name

    def reserve(self) -> str:
        """A name for a rule whose body follows."""
        self.n_made += 1
        if self.n_made > MAX_RULES:
            raise _bad_schema(f"the schema makes more than {MAX_RULES} rules", hint="a smaller schema")
        name = f"r{self.n_made}"
        self.rules[name] = ""
        return name

    def add(self, body: str) -> str:
        name = self.reserve()
        self.rules[name] = body
        return name

    def one_of(self, texts: Iterable[str]) -> str:
        """One of the texts, by alternatives that begin differently: llama.cpp compares every alternative that can go
        on."""
        todo: list[tuple[str, list[str], int]] = []
        body = self._branches(sorted(set(texts)), 0, todo)
        while todo:
            name, rest, done = todo.pop()
            self.rules[name] = self._branches(rest, done, todo)
        return body

    def _branches(self, texts: list[str], done: int, todo: list[tuple[str, list[str], int]]) -> str:
        """The rest of sorted texts that agree in the first `done` characters; what branches again goes to `todo`."""
        found = []
        begin = 0
        while begin < len(texts):
            first = texts[begin]
            if len(first) == done:
                found.append('""')
                begin += 1
                continue
            end = begin + 1
            while end < len(texts) and texts[end][done] == first[done]:
                end += 1
            if end - begin == 1:
                found.append(_literal(first[done:]))
            else:
                last = texts[end - 1]
                common = done + 1
                while common < min(len(first), len(last)) and first[common] == last[common]:
                    common += 1
                name = self.reserve()
                todo.append((name, texts[begin:end], common))
                found.append(f"{_literal(first[done:common])} {name}")
            begin = end
        return " | ".join(found)

    def text(self, field: str) -> str:
        """The whole grammar, checked; errors are about `field`."""
        # A body may be missing where a schema turned out to be impossible; nothing that is used leads there.
        grammar = "".join(f"{name} ::= {body or _NOTHING}\n" for name, body in self.rules.items())
        gbnf.check(grammar, field)
        return grammar


# -- a schema as rules ------------------------------------------------------------------------------------------------

_REFUSED = (
    "not if dependentRequired dependentSchemas dependencies patternProperties propertyNames unevaluatedItems disallow "
    "extends divisibleBy"
).split()
_LEFT = {
    "array": ("uniqueItems", "contains"),
    "object": ("minProperties", "maxProperties"),
    "number": ("multipleOf",),
    "integer": ("multipleOf",),
}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_ABOUT = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties",
               "unevaluatedProperties"),
    "array": ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": (*_BOUNDS, "multipleOf"),
}  # fmt: skip
_KNOWN = frozenset({"type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf", *_REFUSED}).union(*_ABOUT.values())
_TYPES = ("object", "array", "string", "number", "boolean", "null")


class _Impossible(Exception):
    """No value satisfies the schema. `pointer` is filled in on the way up."""

    pointer: str | None = None


class _Converter(_Rules):
    """A JSON schema to GBNF.

    `open_` is the set of schemas that are being converted and have no text yet: a reference to one of these is left
    recursion.
    """

    def __init__(self, root: Any) -> None:
        super().__init__()
        self.root = root
        self.left: list[str] = []
        self.memo: dict[str, str] = {}
        self.later: list[tuple[str, dict[str, Any], str, str]] = []
        self.validator = _validator(root)
        # Until 2019 a `$ref` stood alone: what is beside it does not count.
        drafts = ("Draft3Validator", "Draft4Validator", "Draft6Validator", "Draft7Validator")
        self.lonely_refs = type(self.validator).__name__ in drafts

    def convert(self) -> str:
        try:
            self.rules["root"] = self.value(self.root, "#", frozenset(), 0)
            while self.later:
                name, schema, pointer, key = self.later.pop()
                self.rules[name] = self.body(schema, pointer, frozenset({key}), 1)
        except RecursionError:
            raise _bad_schema("nested too deeply", hint="a smaller schema") from None
        except _Impossible as impossible:
            self.fail(impossible.pointer or "#", f"nothing can be valid: {impossible}", "other bounds")
        try:
            return self.text("json_schema")
        except UsageError as error:
            if "no end" in error.message:
                problem = "every value would contain another of its kind, without end"
            else:
                problem = f"too much for a grammar: {error.message}"
            raise _bad_schema(problem, hint="a smaller schema") from None

    def fail(self, pointer: str, problem: str, hint: str = "leave it out, and check the answer yourself") -> NoReturn:
        raise _bad_schema(f"{pointer}: {problem}", hint=hint)

    def leave(self, keyword: str, pointer: str) -> None:
        entry = f"{keyword} at {pointer}"
        if entry not in self.left:
            self.left.append(entry)

    def value(self, schema: Any, pointer: str, open_: frozenset[str], depth: int) -> str:
        """The name of a rule for what a schema describes."""
        if depth > MAX_NESTING:
            self.fail(pointer, f"more than {MAX_NESTING} schemas within each other", "a smaller schema")
        if isinstance(schema, bool):
            if schema:
                return self.shared("value")
            raise _Impossible("the schema is false")
        schema = self.constraints(schema)
        if not schema:
            return self.shared("value")
        key = json.dumps(schema)
        if key in self.memo:
            if key in open_:
                self.fail(pointer, "the schema refers to itself with nothing in between", "leave this $ref out")
            return self.memo[key]
        if not open_ and depth > _SOON:
            self.memo[key] = name = self.reserve()
            self.later.append((name, schema, pointer, key))
            return name
        n_known = len(self.memo)
        try:
            if '"$ref"' in key:
                self.memo[key] = name = self.reserve()
                self.rules[name] = self.body(schema, pointer, open_ | {key}, depth + 1)
            else:
                body = self.body(schema, pointer, open_, depth + 1)
                self.memo[key] = name = body if body in self.rules else self.add(body)
        except _Impossible as impossible:
            impossible.pointer = impossible.pointer or pointer
            for made in list(self.memo)[n_known:]:  # they may need what is not possible
                del self.memo[made]
            raise
        return name

    def constraints(self, schema: dict[str, Any]) -> dict[str, Any]:
        if self.lonely_refs and "$ref" in schema:
            return {"$ref": schema["$ref"]}
        return {key: value for key, value in schema.items() if key in _KNOWN}

    def body(self, schema: dict[str, Any], pointer: str, open_: frozenset[str], depth: int) -> str:
        if "enum" in schema or "const" in schema:
            return self.literals(schema, pointer)
        if list(schema) == ["$ref"]:
            target = _resolve(self.root, schema["$ref"], pointer)
            return self.value(target, unquote(schema["$ref"]), open_, depth)
        if "$ref" in schema or "allOf" in schema:
            return self.body(self.flat(schema, pointer, ()), pointer, open_, depth)
        if "anyOf" in schema or "oneOf" in schema:
            return self.alternatives(schema, pointer, open_, depth)
        for keyword in _REFUSED:
            if keyword in schema:
                self.fail(pointer, f"'{keyword}' cannot be expressed as a grammar")
        types = schema.get("type")
        if types is None:
            types = [name for name, keywords in _ABOUT.items() if any(keyword in schema for keyword in keywords)]
            types = types or list(_TYPES)
        types = [types] if isinstance(types, str) else list(types)
        if "number" in types and "integer" in types:
            types.remove("integer")
        if not types:
            raise _Impossible("no type is left")
        for name in types:
            if name not in (*_TYPES, "integer"):
                self.fail(pointer, f"there is no type {_short(name)}", f"one of {', '.join(_TYPES)}, integer")
            for keyword in _LEFT.get(name, ()):
                if schema.get(keyword) is not None and schema[keyword] is not False:
                    self.leave(keyword, pointer)
        return " | ".join(self.of_type(name, schema, pointer, depth) for name in types)

    def of_type(self, name: str, schema: dict[str, Any], pointer: str, depth: int) -> str:
        match name:
            case "object":
                return self.object(schema, pointer, depth)
            case "array":
                return self.array(schema, pointer, depth)
            case "string":
                return self.string(schema, pointer)
            case "integer":
                return self.integer(schema)
            case "number":
                return self.number(schema, pointer)
            case _:
                return self.shared(name)

    # -- several schemas at once ------------------------------------------------------------------------------------

    def flat(self, schema: Any, pointer: str, seen: tuple[str, ...]) -> dict[str, Any]:
        """One schema without $ref and allOf, for what they say together."""
        if isinstance(schema, bool):
            if not schema:
                raise _Impossible("a part of it is false")
            return {}
        schema = self.constraints(schema)
        if len(seen) > MAX_NESTING:
            self.fail(pointer, f"more than {MAX_NESTING} references in a row", "a smaller schema")
        found: dict[str, Any] = {}
        for key, value in schema.items():  # in its order: that of the properties follows from it
            if key == "$ref":
                if value in seen:
                    self.fail(pointer, f"the $ref {_short(value)} leads back to itself", "leave it out")
                part = self.flat(_resolve(self.root, value, pointer), pointer, (*seen, value))
                found = self.merged(found, part, pointer)
            elif key == "allOf":
                for inner in value:
                    found = self.merged(found, self.flat(inner, pointer, seen), pointer)
            elif key not in ("properties", "additionalProperties"):
                found = self.merged(found, {key: value}, pointer)
            elif key == "properties" or "properties" not in schema:  # what they say, they say together
                both = {k: schema[k] for k in ("properties", "additionalProperties") if k in schema}
                found = self.merged(found, both, pointer)
        return found

    def merged(self, one: dict[str, Any], other: dict[str, Any], pointer: str) -> dict[str, Any]:
        """A schema that accepts what both accept."""
        found = dict(one)
        for key, value in other.items():
            if key not in found:
                found[key] = value
            elif key not in ("properties", "additionalProperties") and found[key] != value:
                found[key] = self.merged_keyword(key, found[key], value, pointer)
        if "properties" in one or "properties" in other:
            found["properties"] = self.merged_properties(one, other)
        if "additionalProperties" in one and "additionalProperties" in other:
            found["additionalProperties"] = _both(one["additionalProperties"], other["additionalProperties"])
        return found

    def merged_keyword(self, key: str, one: Any, other: Any, pointer: str) -> Any:
        plain = not any(isinstance(value, bool | list) for value in (one, other))
        match key:
            case "type":
                return _common_types(one, other)
            case "enum":
                return [value for value in one if any(_same(value, there) for there in other)]
            case "required":
                return list(dict.fromkeys([*one, *other]))
            case "minimum" | "minLength" | "minItems" | "minProperties":
                return max(one, other)
            case "maximum" | "maxLength" | "maxItems" | "maxProperties":
                return min(one, other)
            case "exclusiveMinimum" if plain:
                return max(one, other)
            case "exclusiveMaximum" if plain:
                return min(one, other)
            case "items" | "additionalItems" if plain or isinstance(one, bool) or isinstance(other, bool):
                return _both(one, other)
            case "const" if not _same(one, other):
                raise _Impossible("it would have to be two constants")
        if key not in ("uniqueItems", "multipleOf", "contains", "unevaluatedProperties", "format", "const"):
            self.fail(pointer, f"'{key}' stands in several parts of an allOf, $ref or anyOf: they cannot be merged")
        return one or other  # the validation has both

    def merged_properties(self, one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        ours, theirs = one.get("properties", {}), other.get("properties", {})
        found = {}
        for name in dict.fromkeys([*ours, *theirs]):
            schema = ours[name] if name in ours else one.get("additionalProperties", True)
            found[name] = _both(schema, theirs[name] if name in theirs else other.get("additionalProperties", True))
        return found

    def alternatives(self, schema: dict[str, Any], pointer: str, open_: frozenset[str], depth: int) -> str:
        """anyOf and oneOf, each alternative together with what stands beside them."""
        keyword = "anyOf" if "anyOf" in schema else "oneOf"
        beside = {key: value for key, value in schema.items() if key != keyword}
        if keyword == "oneOf" and len(schema["oneOf"]) > 1:
            self.leave("oneOf", pointer)
        found = []
        for i, branch in enumerate(schema[keyword]):
            if branch is False:
                continue
            where = _point(pointer, keyword, str(i))
            try:
                if beside:
                    branch = self.merged(beside, self.flat(branch, where, ()), where)
                    if branch.get("type") == []:
                        continue
                found.append(self.value(branch, where, open_, depth))
            except _Impossible:
                continue
        if not found:
            raise _Impossible(f"no alternative of '{keyword}' is possible")
        return " | ".join(dict.fromkeys(found))

    # -- values -----------------------------------------------------------------------------------------------------

    def literals(self, schema: dict[str, Any], pointer: str) -> str:
        """The values of enum and const that the other keywords allow."""
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        if len(values) > MAX_ENUM:
            self.fail(pointer, f"{len(values)} values in 'enum'; at most {MAX_ENUM} are possible", "a pattern")
        rest = {key: value for key, value in schema.items() if key != "enum" or "const" in schema}
        check = self.validator.evolve(schema=rest or True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = [value for value in values if check.is_valid(value)]
        except RecursionError:
            self.fail(pointer, "the schema refers to itself with nothing in between", "leave this $ref out")
        if not values:
            raise _Impossible(f"no value of '{'enum' if 'enum' in schema else 'const'}' fits the rest")
        plain = [_json(value) for value in values if not isinstance(value, dict | list)]
        found = [self.one_of(plain)] if plain else []
        found += dict.fromkeys(self.literal(value) for value in values if isinstance(value, dict | list))
        return " | ".join(found)

    def literal(self, value: Any) -> str:
        """A constant, with the same freedom of whitespace as all JSON here."""
        ws = self.shared("ws")
        if isinstance(value, dict) and value:
            members = (f"{_literal(_json(name) + ':')} {ws} {self.literal(inner)}" for name, inner in value.items())
            return f'"{{" {ws} ' + f' "," {ws} '.join(members) + f' {ws} "}}"'
        if isinstance(value, list) and value:
            return f'"[" {ws} ' + f' "," {ws} '.join(map(self.literal, value)) + f' {ws} "]"'
        return _literal(_json(value))

    def object(self, schema: dict[str, Any], pointer: str, depth: int) -> str:
        """Properties in order. Each has two rules for "the rest from here": one if nothing is written yet, one that
        begins with a comma. That is linear; one alternative per subset of n optional properties would be 2^n."""
        properties: dict[str, Any] = dict(schema.get("properties", {}))
        required = schema["required"] if isinstance(schema.get("required"), list) else []
        further = schema.get("additionalProperties")
        for name in required:
            if properties.get(name, further) is False:
                raise _Impossible(f"{_short(name)} is required and not allowed")
            properties.setdefault(name, True if further is None else further)
        if isinstance(schema.get("unevaluatedProperties"), dict):
            self.fail(pointer, "'unevaluatedProperties' cannot be expressed as a grammar")
        if further is None:
            further = not properties and schema.get("unevaluatedProperties") is not False
        properties = {name: inner for name, inner in properties.items() if inner is not False}
        if not properties and further is True:
            return self.shared("object")
        ws = self.shared("ws")
        first, later = ["", ""], [ws, ws]  # first: nothing is written yet
        if further is not False:
            value = self.value(further, _point(pointer, "additionalProperties"), frozenset(), depth)
            member = self.add(f'{self.key_beside(list(schema.get("properties", {})) + required)} ":" {ws} {value}')
            more = self.add(f'"," {ws} {member}')
            later[0] = self.add(f"{more}* {ws}")
            first[0] = self.add(f'"" | {member} {later[0]}')
        else:
            first[0] = self.add('""')
            later[0] = ws
        first_rest, later_rest = first[0], later[0]
        # The first property's rules are to have the smallest numbers: llama.cpp searches in their order.
        names = [(name, self.reserve(), self.reserve()) for name in properties]
        for name, first_name, later_name in reversed(names):
            value = self.value(properties[name], _point(pointer, "properties", name), frozenset(), depth)
            member = f"{_literal(_json(name) + ':')} {ws} {value}"
            optional = name not in required
            self.rules[first_name] = f"{member} {later_rest}" + (f" | {first_rest}" if optional else "")
            self.rules[later_name] = f'"," {ws} {member} {later_rest}' + (f" | {later_rest}" if optional else "")
            first_rest, later_rest = first_name, later_name
        return f'"{{" {ws} {first_rest} "}}"'

    def key_beside(self, names: list[str]) -> str:
        """A rule for any key but these; without escapes, so that there is one way to write each."""
        plain = _class(_RAW)
        raw = self.add(plain)
        after: dict[str, set[str]] = {"": set()}  # by what is written: the characters that lead to a name
        ends = set()
        for name in names:
            if any(not _within(_RAW, ord(character)) for character in name):
                continue
            ends.add(name)
            for i, character in enumerate(name):
                after.setdefault(name[:i], set()).add(character)
                after.setdefault(name[: i + 1], set())
            if len(after) > MAX_RULES:
                raise _bad_schema("the names of properties are too long", hint="shorter names")
        rules = {written: self.reserve() for written in after}
        for written, characters in after.items():
            codes = [(ord(character), ord(character)) for character in sorted(characters)]
            others = _without(_RAW, codes)
            found = ['""'] if written not in ends and written else []
            found += [f"{_literal(character)} {rules[written + character]}" for character in sorted(characters)]
            found.append(f"{_class(others)} {raw}*" if characters else f"{raw} {raw}*")
            self.rules[rules[written]] = " | ".join(found)
        return f'"\\"" {rules[""]} "\\""'

    def array(self, schema: dict[str, Any], pointer: str, depth: int) -> str:
        items = schema.get("items")
        first = schema.get("prefixItems", [])
        where_first, where_rest = "prefixItems", "items"
        if isinstance(items, list):
            first, items = items, schema.get("additionalItems")
            where_first, where_rest = "items", "additionalItems"
        least, most = self.counts(schema, "Items", pointer, gbnf.MAX_REPETITIONS + 1)
        if items is None:
            items = not first or least > len(first)
        if items is False:
            most = len(first) if most is None else min(most, len(first))
        if most is not None and least > most:
            raise _Impossible(f"at least {least} items and at most {most}")
        first = first if most is None else first[:most]
        ws = self.shared("ws")
        rest = ""
        if most is None or most > len(first):
            rest = self.value(items, _point(pointer, where_rest), frozenset(), depth)
        if not first:
            return f'"[" {ws} {self.items(rest, least, most)}'
        n = len(first)
        if rest:
            following = self.add(f'"," {ws} {rest}')
            tail = self.add(f'{_times(following, max(least - n, 0), None if most is None else most - n)} {ws} "]"')
        else:
            tail = self.add(f'{ws} "]"')
        for i in reversed(range(n)):
            item = self.value(first[i], _point(pointer, where_first, str(i)), frozenset(), depth)
            comma = f'"," {ws} ' if i else ""
            end = (f' | {ws} "]"' if i else ' | "]"') if i >= least else ""
            tail = self.add(f"{comma}{item} {tail}{end}")
        return f'"[" {ws} {tail}'

    def items(self, item: str, least: int, most: int | None) -> str:
        """From `least` to `most` items, and the closing bracket."""
        if most == 0:
            return '"]"'
        ws = self.shared("ws")
        following = self.add(f'"," {ws} {item}')
        repeated = _times(following, max(least - 1, 0), None if most is None else most - 1)
        body = f'{item} {repeated} {ws} "]"'
        return self.add(f'{body} | "]"' if least == 0 else body)

    def counts(self, schema: dict[str, Any], of: str, pointer: str, limit: int) -> tuple[int, int | None]:
        """minItems and maxItems, or minLength and maxLength; None is no bound."""
        for keyword in (f"min{of}", f"max{of}"):
            if schema.get(keyword, 0) > limit:
                self.fail(
                    pointer,
                    f"{keyword} {_short(schema[keyword], 12)}: llama.cpp's limit is {limit}",
                    f"{keyword} {limit} or less, or leave it out, and check the answer yourself",
                )
        most = schema.get(f"max{of}")
        return int(schema.get(f"min{of}", 0)), None if most is None else int(most)

    def string(self, schema: dict[str, Any], pointer: str) -> str:
        pattern, kind = schema.get("pattern"), schema.get("format")
        if pattern is not None or kind in _FORMATS:
            if schema.get("minLength", 0) > 0:
                self.leave("minLength", pointer)
            if "maxLength" in schema:
                self.leave("maxLength", pointer)
            body = _Pattern(self, pattern, pointer).body() if pattern is not None else self.shared(str(kind))
            return f'"\\"" {body} "\\""'
        least, most = self.counts(schema, "Length", pointer, gbnf.MAX_REPETITIONS)
        if most is not None and most < least:
            raise _Impossible(f"at least {least} characters and at most {most}")
        if least == 0 and most is None:
            return self.shared("string")
        return f'"\\"" {_times(self.shared("char"), least, most)} "\\""'

    def integer(self, schema: dict[str, Any]) -> str:
        least, most = _integer_bounds(schema)
        if least is None and most is None:
            return self.shared("integer")
        far = 10**_INTEGER_DIGITS - 1
        if least is None:
            least = -far if most is None or most > -far else -_EXACT_INTEGER
        if most is None:
            most = far if least < far else _EXACT_INTEGER
        least, most = max(least, -_EXACT_INTEGER), min(most, _EXACT_INTEGER)
        if least > most:
            raise _Impossible("there is no such integer")
        found = []
        if least < 0:
            found.append(f'"-" ({" | ".join(_between(max(-most, 1), -least))})')
        if most >= 0:
            found += _between(max(least, 0), most)
        return " | ".join(found)

    def number(self, schema: dict[str, Any], pointer: str) -> str:
        """Of its bounds, the grammar enforces one thing: where 0 is the least, no minus sign."""
        for keyword in _BOUNDS:
            if keyword in schema and not isinstance(schema[keyword], bool):
                self.leave(keyword, pointer)
        lows = [schema[keyword] for keyword in ("minimum", "exclusiveMinimum") if keyword in schema]
        positive = any(low >= 0 for low in lows if not isinstance(low, bool))
        return self.shared("positive" if positive else "number")


def _json(value: Any) -> str:
    return _json_string(value) if isinstance(value, str) else json.dumps(value)


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 equals 1.0, but not true."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _both(one: Any, other: Any) -> Any:
    """A schema that accepts what both accept."""
    if one is False or other is False:
        return False
    if one is True or one == other:
        return other
    return one if other is True else {"allOf": [one, other]}


def _common_types(one: Any, other: Any) -> list[str]:
    ours, theirs = ([types] if isinstance(types, str) else list(types) for types in (one, other))
    found = [name for name in ours if name in theirs or (name == "integer" and "number" in theirs)]
    return found + [name for name in theirs if name == "integer" and "number" in ours and "integer" not in ours]


def _times(symbol: str, least: int, most: int | None) -> str:
    match least, most:
        case 0, None:
            return f"{symbol}*"
        case _, None:
            return f"{symbol}{{{least},}}"
        case _, 0:
            return ""
        case _:
            return f"{symbol}{{{least},{most}}}"


def _integer_bounds(schema: dict[str, Any]) -> tuple[int | None, int | None]:
    """The least and the greatest integer; draft 4's exclusive bounds are booleans."""
    lows, highs = [], []
    if "minimum" in schema:
        low = math.ceil(schema["minimum"])
        lows.append(low + 1 if schema.get("exclusiveMinimum") is True and low == schema["minimum"] else low)
    if "maximum" in schema:
        high = math.floor(schema["maximum"])
        highs.append(high - 1 if schema.get("exclusiveMaximum") is True and high == schema["maximum"] else high)
    if not isinstance(schema.get("exclusiveMinimum", True), bool):
        lows.append(math.floor(schema["exclusiveMinimum"]) + 1)
    if not isinstance(schema.get("exclusiveMaximum", True), bool):
        highs.append(math.ceil(schema["exclusiveMaximum"]) - 1)
    return max(lows, default=None), min(highs, default=None)


def _between(low: int, high: int) -> list[str]:
    """Alternatives for the integers from low to high, where 0 <= low <= high, without leading zeros."""
    found = []
    whole: list[int] = []  # lengths of which every number is within
    for n in range(len(str(low)), len(str(high)) + 1):
        least, most = max(low, 10 ** (n - 1) if n > 1 else 0), min(high, 10**n - 1)
        if n > 1 and (least, most) == (10 ** (n - 1), 10**n - 1):
            whole.append(n)
        else:
            found.append(_digits(str(least), str(most)))
    if whole:
        found.append(f"[1-9] [0-9]{{{whole[0] - 1},{whole[-1] - 1}}}")
    return found


def _digits(low: str, high: str) -> str:
    """The texts of digits from `low` to `high`, which have one length."""
    if not low:
        return ""
    if low[0] == high[0]:
        return f'"{low[0]}" {_digits(low[1:], high[1:])}'.rstrip()
    n = len(low) - 1
    first, last = int(low[0]), int(high[0])
    found = []
    if low[1:] != "0" * n:
        found.append(f'"{low[0]}" {_digits(low[1:], "9" * n)}')
        first += 1
    if high[1:] != "9" * n:
        found.append(f'"{high[0]}" {_digits("0" * n, high[1:])}')
        last -= 1
    if first <= last:
        found.append(f"[{first}-{last}]" + (f" [0-9]{{{n}}}" if n else ""))
    return f"({' | '.join(found)})"


# -- regular expressions ----------------------------------------------------------------------------------------------

_Ranges = list[tuple[int, int]]
# What Python (which validates) and ECMA-262 (which the standard means) agree on: both match all of `narrow`, and
# neither matches anything outside of `wide`. Python's classes are Unicode's; of it, these are plain letters and plain
# signs.
_LETTERS = [(0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x17F), (0x391, 0x3A1), (0x3B1, 0x3C9), (0x410, 0x44F), (0x4E00, 0x9FA5)]
_SIGNS = [(0xA1, 0xA9), (0xAB, 0xAC), (0xAE, 0xB1), (0xB6, 0xB8), (0x2010, 0x2027), (0x20A0, 0x20BF), (0x2190, 0x21FF)]
_WORD = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]


def _ranges(ranges: Iterable[tuple[int, int]], negated: bool = False) -> _Ranges:
    return gbnf.Chars(tuple(ranges), negated).valid_ranges()


def _without(ranges: Iterable[tuple[int, int]], others: Iterable[tuple[int, int]]) -> _Ranges:
    return _ranges([*_ranges(ranges, negated=True), *others, (0, 0)], negated=True)


def _within(ranges: Iterable[tuple[int, int]], code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)


_SHORTHANDS: dict[str, tuple[_Ranges, _Ranges]] = {
    "d": ([(0x30, 0x39)], [(0x30, 0x39), *_without([(0x80, 0x10FFFF)], _LETTERS + _SIGNS)]),
    "w": (_WORD, [*_WORD, *_without([(0x80, 0x10FFFF)], _SIGNS)]),
    "s": (
        [(9, 13), (0x20, 0x20)],
        [(9, 13), (0x1C, 0x20), *_without([(0x80, 0x10FFFF)], _LETTERS + _SIGNS)],
    ),
}
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_NO_LINE_ENDS = _ranges([(10, 10), (13, 13), (0x2028, 0x2029)], negated=True)
_QUANTIFIER = re.compile(r"\{(\d+)(,(\d*))?\}")


class _Pattern:
    """A regular expression as GBNF for the inside of a JSON string. Unanchored: any text may stand before and behind.

    Supported are literals, classes, `.`, \\d \\w \\s and their opposites, groups, alternatives and quantifiers, ^ at
    the beginning and $ at the end of an alternative.
    """

    def __init__(self, rules: _Converter, pattern: str, pointer: str) -> None:
        self.rules = rules
        self.pattern = pattern
        self.pointer = pointer
        self.pos = 0

    def body(self) -> str:
        found = self.alternatives(0)
        if self.pos < len(self.pattern):
            self.fail("a ')' without its '('")
        return self.rules.add(" | ".join(alternative or '""' for alternative in found))

    def fail(self, problem: str) -> NoReturn:
        raise _bad_schema(
            f"{self.pointer}: the pattern {_short(self.pattern)}, at {self.pos + 1}: {problem}",
            hint="a pattern of classes, groups, | and quantifiers, such as ^[A-Z]{2}-[0-9]+$",
        )

    def peek(self) -> str:
        return self.pattern[self.pos : self.pos + 1]

    def take(self, text: str) -> bool:
        if not self.pattern.startswith(text, self.pos):
            return False
        self.pos += len(text)
        return True

    def alternatives(self, depth: int) -> list[str]:
        if depth > MAX_NESTING:
            self.fail(f"more than {MAX_NESTING} groups within each other")
        found = [self.sequence(depth)]
        while self.take("|"):
            found.append(self.sequence(depth))
        return found

    def sequence(self, depth: int) -> str:
        found = [self.anything()] if depth == 0 and not self.take("^") else []
        ended = False
        while self.peek() not in ("", "|", ")"):
            if self.take("$"):
                if depth or self.peek() not in ("", "|"):
                    self.fail("a '$' that is not at the end of the pattern")
                ended = True
                break
            found.append(self.repeated(self.atom(depth)))
        if depth == 0 and not ended:
            found.append(self.anything())
        return " ".join(part for part in found if part)

    def anything(self) -> str:
        return f"{self.rules.shared('char')}*"

    def atom(self, depth: int) -> str | list[str]:
        """A symbol of GBNF; of a group, its alternatives."""
        character = self.peek()
        if character == "^":
            self.fail("a '^' that is not at the beginning of the pattern")
        if character in ("*", "+", "?"):
            self.fail("a quantifier with nothing before it")
        if character == "(":
            return self.group(depth)
        if character == "[":
            return self.symbol(self.char_class())
        if character == "\\":
            escaped = self.escape(in_class=False)
            return self.symbol([(escaped, escaped)] if isinstance(escaped, int) else escaped[0])
        self.pos += 1
        return self.symbol(_NO_LINE_ENDS if character == "." else [(ord(character), ord(character))])

    def group(self, depth: int) -> list[str]:
        self.pos += 1
        if not self.take("?:") and self.peek() == "?":
            kinds = {"?=": "lookahead", "?!": "lookahead", "?<=": "lookbehind", "?<!": "lookbehind"}
            for begin, kind in kinds.items():
                if self.pattern.startswith(begin, self.pos):
                    self.fail(f"{kind} cannot be expressed as a grammar")
            if not re.compile(r"\?P<\w+>").match(self.pattern, self.pos):
                self.fail(f"a group '({self.pattern[self.pos : self.pos + 2]}…' is not supported")
            self.pos = self.pattern.index(">", self.pos) + 1
        found = self.alternatives(depth + 1)
        if not self.take(")"):
            self.fail("a '(' without its ')'")
        return found

    def repeated(self, atom: str | list[str]) -> str:
        least, most = self.quantifier()
        if isinstance(atom, list):
            if "" in atom and most is None:  # (|a)* is (a)*, and for llama.cpp the first is left recursion
                atom, least = [alternative for alternative in atom if alternative], 0
            if not any(atom):
                return ""
            atom = self.rules.add(" | ".join(alternative or '""' for alternative in atom))
        return atom if (least, most) == (1, 1) else _times(atom, least, most)

    def quantifier(self) -> tuple[int, int | None]:
        start = self.pos
        match = _QUANTIFIER.match(self.pattern, self.pos)
        if match:
            self.pos = match.end()
            numbers = [int(digits[:9]) for digits in (match[1], match[3]) if digits]
            if max(numbers) > gbnf.MAX_REPETITIONS:
                self.pos = start
                self.fail(f"{match[0][:24]}: llama.cpp's limit is {gbnf.MAX_REPETITIONS}")
            least = numbers[0]
            most = least if match[2] is None else numbers[1] if match[3] else None
        elif self.peek() in ("*", "+", "?") and self.peek():
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[self.peek()]
            self.pos += 1
        else:
            return 1, 1
        if self.peek() == "+":
            self.fail("a possessive quantifier is not supported")
        self.take("?")  # as few as possible: which texts match is the same
        return least, most

    # -- characters -------------------------------------------------------------------------------------------------

    def escape(self, in_class: bool) -> int | tuple[_Ranges, _Ranges]:
        """A code point, or a class as (what is surely in it, what may be)."""
        self.pos += 1
        letter = self.peek()
        self.pos += 1
        if letter.lower() in _SHORTHANDS and letter:
            narrow, wide = _SHORTHANDS[letter.lower()]
            return (narrow, wide) if letter.islower() else (_ranges(wide, negated=True), _ranges(narrow, negated=True))
        if letter in _CONTROLS:
            return _CONTROLS[letter]
        if letter == "b" and in_class:
            return 8
        if letter in ("x", "u"):
            n = 2 if letter == "x" else 4
            digits = self.pattern[self.pos : self.pos + n]
            if not re.fullmatch(f"[0-9a-fA-F]{{{n}}}", digits):
                self.fail(f"\\{letter} takes {n} hexadecimal digits")
            self.pos += n
            return int(digits, 16)
        if not letter or letter.isalnum():
            self.pos -= 1
            if letter.isdecimal():
                self.fail("a backreference cannot be expressed as a grammar")
            self.fail(f"the escape \\{letter} is not supported")
        return ord(letter)

    def char_class(self) -> _Ranges:
        self.pos += 1
        negated = self.take("^")
        if self.peek() == "]":
            self.fail("a class that begins with ']' means different things; write \\]")
        narrow: _Ranges = []
        wide: _Ranges = []
        while not self.take("]"):
            low = self.class_character()
            if isinstance(low, tuple):
                narrow += low[0]
                wide += low[1]
                continue
            high = low
            if self.peek() == "-" and self.pattern[self.pos + 1 : self.pos + 2] != "]":
                self.pos += 1
                end = self.class_character()
                if isinstance(end, tuple) or end < low:
                    self.fail("a range whose end is before its beginning, or is a class")
                high = end
            narrow.append((low, high))
            wide.append((low, high))
        return _ranges(wide, negated=True) if negated else _ranges(narrow)

    def class_character(self) -> int | tuple[_Ranges, _Ranges]:
        character = self.peek()
        if not character:
            self.fail("a '[' without its ']'")
        if character == "\\":
            return self.escape(in_class=True)
        self.pos += 1
        return ord(character)

    def symbol(self, ranges: _Ranges) -> str:
        """One of these characters as a JSON string spells it: itself, or an escape."""
        raw = _without(ranges, _without([(0, 0x10FFFF)], _RAW))
        found = []
        if len(raw) == 1 and raw[0][0] == raw[0][1]:
            found.append(_literal(chr(raw[0][0])))
        elif raw:
            found.append(_class(raw))
        short = [letter for code, letter in _SHORT_ESCAPES.items() if _within(ranges, code)]
        if short:
            found.append(_literal("\\") + " " + _class((ord(letter), ord(letter)) for letter in short))
        if not found:  # other control characters, where there is nothing else
            codes = [code for code in (*range(0x20), *range(0x7F, 0xA0)) if _within(ranges, code)]
            found = [_literal(f"\\u{code:04x}") for code in codes]
        if not found:
            self.fail("this class matches no character")
        body = " | ".join(found)
        if len(found) == 1 and not short:
            return body
        key = f"pattern:{body}"
        if key not in self.rules.memo:
            self.rules.memo[key] = self.rules.add(body)
        return self.rules.memo[key]
