"""The format of an answer: JSON, a JSON schema, a choice, or a grammar of the user's own.

An `OutputFormat` has the grammar that tokens are sampled by, made with llguidance (`engine/grammar.py`), and `problem`,
which says of a finished answer whether it is what was asked for: a grammar allows no wrong token, but cannot make the
answer end, and holds only a part of JSON Schema.

A schema of any draft since 4, or of OpenAPI 3.0, is rewritten as one of 2020-12. What llguidance cannot hold is left to
the validation of the whole answer (`left_to_validation` names it); only what no answer can satisfy, or jsonschema
cannot validate, is refused. The grammar is narrower than the schema on purpose: properties come in the schema's order,
further ones only where the schema says so (or nothing says what the properties are), whitespace is a blank or a line
with up to 20 blanks.

Numbers are decimal: 19.99 is a multiple of 0.01. Patterns are ECMA-262's as far as Python's `re` agrees.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Literal, NoReturn
from urllib.parse import unquote

from llmrun.constrain import gbnf
from llmrun.errors import Change, Remedy, UsageError

MAX_SCHEMA = 1 << 20
MAX_NESTING = 64
"""Levels of the schema's JSON."""
MAX_SCHEMAS = 5000
"""Within each other; jsonschema takes 1 ms for each to see whether it is one."""
MAX_CHOICES = 10_000

_WHITESPACE = r" |\n[ \t]{0,20}"
"""Bounded: a model that may write blanks for ever does."""

Kind = Literal["grammar", "json_schema", "json", "choice"]


@dataclass(frozen=True)
class OutputFormat:
    """What an answer has to look like.

    Attributes:
        kind: what the user gave; `text` of it, where it was a grammar or a schema: GBNF, JSON.
        grammar: for llguidance.
        schema: the JSON schema that an answer is validated with: 2020-12, its numbers decimal.
        choices: the answer is exactly one of these.
        left_to_validation: keywords that the grammar does not enforce, with JSON pointers: "uniqueItems at #/…".
        unknown: pointers of schemas none of whose keywords are known, so that they say nothing about the answer.
    """

    kind: Kind
    grammar: str
    schema: Any | None = None
    choices: tuple[str, ...] = ()
    left_to_validation: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    text: str = ""

    def notes(self, *, quiet: bool = False) -> list[str]:
        """What the user should know before the answer begins; `quiet`: only what must be a mistake."""
        strange = "no keyword of JSON Schema in the schema at {}: it allows anything"
        late = f"checked only when the answer is complete: {', '.join(self.left_to_validation)}"
        return [*map(strange.format, self.unknown), *([late] if self.left_to_validation and not quiet else [])]

    def problem(self, answer: str) -> str | None:
        """Why the whole answer is not what was asked for, in one sentence; None if it is."""
        from llmrun.engine.grammar import judge

        if self.kind == "choice":
            how = "ends early and is" if any(choice.startswith(answer) for choice in self.choices) else "is"
            return None if answer in self.choices else f"the answer {_short(answer)} {how} not one of the choices"
        if self.kind == "grammar":
            verdict = judge(self.grammar, answer)
            early = "the answer ends early, before the grammar does" if verdict == "incomplete" else None
            return "the answer breaks the grammar" if verdict == "wrong" else early
        try:
            value = _loads(answer)
        except _NotJson as reason:
            is_early = str(reason).startswith("line") and judge(self.grammar, answer) == "incomplete"
            return f"the answer {'ends early' if is_early else 'is not JSON'}: {reason}"
        if self.kind == "json":
            return None if isinstance(value, dict | list) else "the answer is neither an object nor an array"
        try:
            # jsonschema compiles patterns as it goes; Python warns of `[[`, whose meaning may change one day.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                error = next(_validator(self.schema).iter_errors(value), None)
        except RecursionError:
            return "the answer cannot be validated: it is nested too deeply, or the schema refers to itself in circles"
        return None if error is None else f"the answer breaks the schema: {_sentence(error)}"


def of_grammar(text: str) -> OutputFormat:
    """A grammar of the user's own, in GBNF. Raises `UsageError`."""
    from llmrun.engine.grammar import BadGrammar, compiled, of_lark

    grammar = of_lark(gbnf.to_lark(text))
    try:
        compiled(grammar)
    except BadGrammar as error:
        raise UsageError(f"too much for a grammar: {str(error)[:200]}", field="grammar", hint="a smaller one") from None
    return OutputFormat("grammar", grammar, text=text)


def of_json() -> OutputFormat:
    """Any JSON object or array."""
    from llmrun.engine import grammar

    return OutputFormat("json", grammar.of_schema('{"type": ["object", "array"]}', whitespace_pattern=_WHITESPACE))


def of_choices(choices: list[str]) -> OutputFormat:
    """One of these texts. Raises `UsageError` for no text, an empty one, one twice, one with control characters."""
    from llmrun.engine.grammar import of_lark

    if not choices:
        raise _bad_choice("there is nothing to choose from")
    if len(choices) > MAX_CHOICES:
        raise _bad_choice(f"{len(choices)} choices; at most {MAX_CHOICES} are possible", hint=_GRAMMAR)
    first = {choice: i for i, choice in reversed([*enumerate(choices)])}
    for i, choice in enumerate(choices):
        if not choice.strip():
            raise _bad_choice("one of the choices is empty")
        if re.search("[\0-\x1f\x7f-\x9f]", choice):
            raise _bad_choice(f"{_short(choice)} has a control character", hint=_GRAMMAR)
        if re.search("[\ud800-\udfff]", choice):
            raise _bad_choice(f"{_short(choice)} is not valid text")
        if first[choice] < i:
            raise _bad_choice(f"{_short(choice)} is given twice")
    texts = "|".join("".join(f"\\x{{{ord(character):x}}}" for character in choice) for choice in choices)
    return OutputFormat("choice", of_lark(f"start: /{texts}/"), choices=tuple(choices))


def of_schema(schema: Any, source: str = "") -> OutputFormat:
    """What a JSON schema describes: its text, or the value that the text stands for. Raises `UsageError`.

    `source` is where a text is from; messages about its JSON begin with that.
    """
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise _bad_schema("the schema is not JSON") from None
    schema = _unwrapped(_read(text, f"{source}: " if source else ""))
    if not isinstance(schema, dict | bool):
        raise _bad_schema(f"a schema is an object, or true or false, not {_type_name(schema)}")
    if isinstance(schema, dict) and "draft-03" in str(schema.get("$schema")):
        raise _bad_schema("draft 3 of JSON Schema is not supported", hint="leave $schema out")
    if (n := sum(1 for _ in _all(schema))) > MAX_SCHEMAS:
        raise _bad_schema(f"{n} schemas within each other; at most {MAX_SCHEMAS} are possible")
    schema = _modern(schema, lonely_refs=bool(re.search("draft-0[4-7]", str(_get(schema, "$schema")))))
    _check_schema(schema)
    _check_references(schema)
    held = _Held(schema)
    grammar = held.grammar()
    return OutputFormat("json_schema", grammar, schema, (), tuple(held.left), tuple(held.unknown), text)


# -- JSON, read strictly ---------------------------------------------------------------------------------------------

_OBJECT = '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}'
_EXAMPLE = Change({"json_schema": _OBJECT})
_CHOICES = Change({"choice": "yes,no"})
_GRAMMAR = Change({"grammar": "FILE"})


def _bad_schema(problem: str, hint: Remedy = _EXAMPLE) -> UsageError:
    return UsageError(problem, field="json_schema", hint=hint)


def _bad_choice(problem: str, hint: Remedy = _CHOICES) -> UsageError:
    return UsageError(problem, field="choice", hint=hint)


class _NotJson(Exception):
    pass


def _loads(text: str) -> Any:
    """JSON as the standard has it, its fractions decimal: no NaN, and no number that Python cannot hold."""

    def refuse(word: str) -> NoReturn:
        raise _NotJson(f"{word} is not a JSON number")

    try:
        return json.loads(text.strip(" \t\r\n"), parse_constant=refuse, parse_float=Decimal)
    except json.JSONDecodeError as error:
        raise _NotJson(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise _NotJson("nested too deeply") from None
    except (ValueError, ArithmeticError):
        raise _NotJson("a number with too many digits") from None


def _read(text: str, source: str = "") -> Any:
    """The JSON of a schema. `source` is the beginning of messages."""
    if len(text) > MAX_SCHEMA:
        raise _bad_schema(f"{source}a schema of {len(text)} characters; at most {MAX_SCHEMA} are possible")
    try:
        schema = _loads(text)
    except _NotJson as error:
        raise _bad_schema(f"{source}not JSON: {error}") from None
    level = [schema]
    for _ in range(MAX_NESTING):
        holders = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [inner for holder in holders for inner in holder]
        if any(isinstance(v, Decimal) and abs(v) > Decimal("1e308") for v in level):
            raise _bad_schema(f"{source}a number is too large, such as 1e999")
    if any(isinstance(v, dict | list) for v in level):
        raise _bad_schema(f"nested deeper than {MAX_NESTING} levels", hint='"$defs" with "$ref" are flat')
    return schema


def _text_of(value: Any) -> str:
    return json.dumps(value, default=float, ensure_ascii=False)


def _short(value: Any, most: int = 60) -> str:
    text = value if isinstance(value, str) else _text_of(value)
    text = f"{text[:most]}…" if len(text) > most else text
    return repr(text) if isinstance(value, str) else text


def _type_name(value: Any) -> str:
    names = {bool: "a boolean", dict: "an object", list: "an array", str: "a text", type(None): "null"}
    return names.get(type(value), "a number")


# -- any draft as 2020-12 ---------------------------------------------------------------------------------------------

_MAPS = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
_VALUES = ("enum", "const", "default", "example", "examples", "required", "dependentRequired", "type")
_TYPES = {
    "object": (*_MAPS[2:], "required", "additionalProperties", "minProperties", "maxProperties", "propertyNames",
               "dependentRequired", "unevaluatedProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains", "minContains", "maxContains",
              "unevaluatedItems"),
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}  # fmt: skip
"""What each type's keywords are."""
_APPLICATORS = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "$ref", "$dynamicRef")
_ANNOTATIONS = frozenset(
    "title description default example examples deprecated readOnly writeOnly discriminator externalDocs xml "
    "contentEncoding contentMediaType contentSchema definitions components openapi info paths".split()
)
_KNOWN = frozenset({"type", "enum", "const", *_APPLICATORS}).union(*_TYPES.values())


def _get(schema: Any, key: str) -> Any:
    return schema.get(key) if isinstance(schema, dict) else None


def _unwrapped(schema: Any) -> Any:
    """The schema in OpenAI's wrappers, {"name": …, "schema": {…}} and {"type": "json_schema", "json_schema": {…}}."""
    if _get(schema, "type") == "json_schema" and isinstance(_get(schema, "json_schema"), dict):
        schema = schema["json_schema"]
    inner = _get(schema, "schema")
    return inner if isinstance(inner, dict | bool) and not _KNOWN & set(schema) else schema


def _inner(schema: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The schemas directly within a schema, with the path to each; under keywords that are not known, too, as a
    reference may lead there."""
    for key, value in schema.items():
        if key in _VALUES:
            continue
        if isinstance(value, list):
            yield from (((key, str(i)), one) for i, one in enumerate(value) if isinstance(one, dict))
        elif isinstance(value, dict) and key in _MAPS:
            yield from (((key, name), one) for name, one in value.items() if isinstance(one, dict))
        elif isinstance(value, dict):
            yield (key,), value


def _mapped(schema: dict[str, Any], change: Callable[[Any, tuple[str, ...]], Any]) -> dict[str, Any]:
    """The same with every schema directly within it changed."""
    copy = {key: value.copy() if isinstance(value, dict | list) else value for key, value in schema.items()}
    for path, one in _inner(schema):
        if len(path) == 1:
            copy[path[0]] = change(one, path)
        else:
            holder: Any = copy[path[0]]
            holder[int(path[1]) if isinstance(holder, list) else path[1]] = change(one, path)
    return copy


def _modern(schema: Any, *, lonely_refs: bool) -> Any:
    """The same as a schema of 2020-12. `lonely_refs`: until 2019 what stands beside a `$ref` does not count."""
    if not isinstance(schema, dict):
        return schema
    new = _mapped(schema, lambda one, _: _modern(one, lonely_refs=lonely_refs))
    new.pop("$schema", None)
    if lonely_refs and "$ref" in new:
        new = {key: value for key, value in new.items() if key not in _KNOWN or key == "$ref" or key in _MAPS[:2]}
    if isinstance(new.get("id"), str) and lonely_refs:
        new.setdefault("$id", new.pop("id"))
    if new.get("$recursiveRef") == "#":
        new.setdefault("$ref", new.pop("$recursiveRef"))
    if isinstance(new.get("$ref"), str):  # into a tuple, which has another name now
        new["$ref"] = re.sub(r"/items/(\d+)(?=/|$)", r"/prefixItems/\1", new["$ref"])
    rest = new.pop("additionalItems", None)
    if isinstance(new.get("items"), list):
        new["prefixItems"] = new.pop("items")
        if rest is not None:
            new["items"] = rest
    for bound in ("minimum", "maximum"):
        exclusive = f"exclusive{bound.capitalize()}"
        if isinstance(new.get(exclusive), bool) and new.pop(exclusive) and bound in new:
            new[exclusive] = new.pop(bound)
    needs = new.pop("dependencies", None)
    if isinstance(needs, dict):
        for name, needed in needs.items():
            new.setdefault("dependentRequired" if isinstance(needed, list) else "dependentSchemas", {})[name] = needed
    if new.pop("nullable", None) is True:
        types = new.get("type")
        if types is None:
            kept = {key: new.pop(key) for key in ("$id", *_MAPS[:2]) if key in new}
            return {**kept, "anyOf": [new, {"type": "null"}]}
        new["type"] = [*([types] if isinstance(types, str) else types), "null"]
        if isinstance(new.get("enum"), list) and None not in new["enum"]:
            new["enum"] = [*new["enum"], None]
    return new


# -- the schema as such -----------------------------------------------------------------------------------------------


def _point(pointer: str, *names: str) -> str:
    """The JSON pointer (RFC 6901), extended by these names."""
    return pointer + "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names)


def _found(pattern: str, text: str) -> bool:
    """Whether the pattern is in the text, as Python or with the classes of ASCII: ECMA-262 is in between.

    A pattern that Python does not know is the grammar's alone.
    """
    try:
        return bool(re.search(pattern, text) or re.search(pattern, text, re.ASCII))
    except (re.error, OverflowError, RecursionError):
        return True


def _is_multiple(value: Any, of: Any) -> bool:
    """In decimal arithmetic, whatever the exponents."""
    (_, digits, power), (_, of_digits, of_power) = Decimal(value).as_tuple(), Decimal(of).as_tuple()
    number, divisor = (int("".join(map(str, each))) for each in (digits, of_digits))
    shift = int(power) - int(of_power)
    if not number or shift >= 0:
        return number * pow(10, shift, divisor) % divisor == 0 if number else True
    return -shift < len(digits) + 1 and number % (divisor * 10**-shift) == 0


@cache
def _validator_class() -> Any:
    from jsonschema import Draft202012Validator, ValidationError
    from jsonschema.validators import extend

    def pattern(validator: Any, wanted: str, instance: Any, _: Any) -> Iterator[Any]:
        if isinstance(instance, str) and not _found(wanted, instance):
            yield ValidationError(f"{instance!r} does not match {wanted!r}")

    def multiple_of(validator: Any, of: Any, instance: Any, _: Any) -> Iterator[Any]:
        if validator.is_type(instance, "number") and not _is_multiple(instance, of):
            yield ValidationError(f"{instance} is not a multiple of {of}")

    def is_integer(_: Any, value: Any) -> bool:
        if isinstance(value, Decimal):
            return _is_multiple(value, 1)
        return isinstance(value, int) and not isinstance(value, bool)

    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", is_integer)
    return extend(  # type: ignore[no-untyped-call]
        Draft202012Validator, {"pattern": pattern, "multipleOf": multiple_of}, type_checker=types
    )


def _validator(schema: Any) -> Any:
    """jsonschema's validator; it fetches nothing."""
    from referencing import Registry

    return _validator_class()(schema, registry=Registry())


def _sentence(error: Any) -> str:
    """A `ValidationError` in one line: what is wrong, and where."""
    words = _words(error)
    return f"{words[:200]}{'…' if len(words) > 200 else ''} ({error.json_path})"


def _words(error: Any) -> str:
    return " ".join(re.sub(r"Decimal\('([^']*)'\)", r"\1", str(error.message)).split())


def _check_schema(schema: Any) -> None:
    """Validates the schema against the meta-schema. Raises `UsageError`."""
    from jsonschema import FormatChecker
    from jsonschema.exceptions import SchemaError

    try:
        _validator_class().check_schema(schema, format_checker=FormatChecker(formats=()))
    except SchemaError as error:
        where = _point("#", *map(str, error.path))
        raise _bad_schema(f"not a valid schema at {where}: {_words(error)[:200]}") from None
    except RecursionError:
        raise _bad_schema("nested too deeply", hint='"$defs" with "$ref" are flat') from None


def _check_references(schema: Any) -> None:
    """Raises `UsageError` unless every reference leads to a schema in this one, and not in circles, and every pattern
    is one: jsonschema would raise only when the answer is validated."""
    from graphlib import CycleError, TopologicalSorter

    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    if not isinstance(schema, dict):
        return
    hint = '"$ref": "#/$defs/NAME"'
    in_place: dict[str, list[str]] = {}
    todo = [("#", schema, Registry().resolver_with_root(DRAFT202012.create_resource(schema)))]
    while todo:
        pointer, inner, resolver = todo.pop()
        if pointer != "#" and isinstance(inner.get("$id"), str):
            resolver = resolver.in_subresource(DRAFT202012.create_resource(inner))
        further = [(path, _point(pointer, *path), one) for path, one in _inner(inner)]
        in_place[unquote(pointer)] = [unquote(at) for path, at, _ in further if path[0] in _APPLICATORS]
        for key in ("$ref", "$dynamicRef"):
            if not isinstance(reference := inner.get(key), str):
                continue
            try:
                target = resolver.lookup(reference).contents
            except (Unresolvable, ValueError, LookupError, TypeError, AttributeError):
                where = "nowhere" if reference.startswith("#") else "outside the schema"
                raise _bad_schema(f"{pointer}: {key} {_short(reference)} leads {where}", hint) from None
            if not isinstance(target, dict | bool):
                raise _bad_schema(f"{pointer}: {key} {_short(reference)} leads to something that is not a schema", hint)
            in_place[unquote(pointer)].append(unquote(reference))
        named, pattern = inner.get("patternProperties"), inner.get("pattern")
        wrong = [each for each in named if _python_says(each)] if isinstance(named, dict) else []
        if isinstance(pattern, str) and _python_says(pattern) and _problem({"type": "string", "pattern": pattern}):
            wrong.append(pattern)
        if wrong:
            problem = f"{pointer}: {_short(wrong[0])} is not a pattern: {_python_says(wrong[0])}"
            raise _bad_schema(problem, hint='"pattern": "^[a-z]+$"')
        todo += [(at, one, resolver) for _, at, one in further]
    try:
        TopologicalSorter(in_place).prepare()
    except CycleError as error:
        raise _bad_schema(f"{error.args[1][0]}: the schema refers to itself with nothing in between", hint) from None


def _trouble(pattern: str, on_warning: Literal["ignore", "error"]) -> Exception | None:
    """What Python's `re` raises for a pattern."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(on_warning)
            re.compile(pattern)
    except (Warning, re.error, OverflowError, RecursionError) as error:
        return error
    return None


def _python_says(pattern: str) -> str | None:
    """Why the pattern is not one for Python's `re`; None if it is."""
    error = _trouble(pattern, "ignore")
    if isinstance(error, OverflowError):
        return "the counts in it are too large"
    return None if error is None else str(error) or "nested too deeply"


# -- what a grammar can hold ------------------------------------------------------------------------------------------

_LEFT = (
    "not if contains minContains maxContains uniqueItems propertyNames dependentRequired dependentSchemas "
    "unevaluatedItems $dynamicRef"
).split()
_COMPOSED = ("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf")
_MORE = (*_COMPOSED, "additionalProperties", "patternProperties", "propertyNames", "dependentRequired",
         "dependentSchemas", "if", "minProperties")  # fmt: skip
_BOUNDS = {
    "string": ("pattern", "maxLength", "minLength"),
    "number": ("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "array": ("maxItems", "minItems"),
    "object": ("maxProperties", "minProperties"),
}
_FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())


class _Held:
    """Of a schema what llguidance can hold.

    Attributes:
        left: what it cannot: "keyword at pointer".
        unknown: pointers of schemas that say nothing.
    """

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.left: list[str] = []
        self.unknown: list[str] = []
        self._open = _open_references(schema)
        self._check = False  # every bound by itself: where the whole is too much

    def grammar(self) -> str:
        if self.schema is False:
            raise _bad_schema("#: nothing can be valid: the schema is false", hint="other bounds")
        held = {} if self.schema is True else self.of(self.schema, "#", closed=True)
        made = _made(_text_of(held))
        if isinstance(made, str):
            whole, self._check, self.left, self.unknown = held, True, [], []
            held = self.of(self.schema, "#", closed=True)
            made = _made(_text_of(held)) if held != whole else made
        if isinstance(made, str):
            unsatisfiable = made.partition("Unsatisfiable schema: ")[2]
            if unsatisfiable or "NoExtension" in made:
                reason = unsatisfiable or "every value would contain another of its kind, without end"
                raise _bad_schema(f"nothing can be valid: {reason[:200]}", hint="other bounds")
            self.left = [f"everything but the type ({made[:80]})"]
            made = _made(_text_of({"type": held["type"]} if "type" in held else {}))
            assert not isinstance(made, str)
        grammar, warnings_ = made
        if any("oneOf" in warning for warning in warnings_):
            self.left += [f"oneOf at {pointer}" for pointer, one in _all(self.schema) if "oneOf" in one]
        return grammar

    def leave(self, keyword: str, pointer: str) -> None:
        self.left.append(f"{keyword} at {pointer}")

    def of(self, schema: dict[str, Any], pointer: str, *, closed: bool, told: bool = True) -> dict[str, Any]:
        """`closed`: nothing beside this schema can ask for what it does not name. `told`: it surely is a schema."""
        closed = closed and unquote(pointer) not in self._open
        if told and schema and not _KNOWN & set(schema) and not all(_is_annotation(key) for key in schema):
            self.unknown.append(pointer)
        alone = not any(key in _KNOWN and key not in ("anyOf", "oneOf") for key in schema)
        new = _mapped(
            {key: value for key, value in schema.items() if key not in _LEFT},
            lambda one, path: self.of(
                one,
                _point(pointer, *path),
                closed=closed and alone if path[0] in _COMPOSED else True,
                told=told and (path[0] in _KNOWN or path[0] in _MAPS),
            ),
        )
        for keyword in _LEFT:
            if keyword in schema and not (keyword == "uniqueItems" and not schema[keyword]):
                self.leave(keyword, pointer)
        if "enum" in new or "const" in new:
            return self.values(schema, new, pointer)
        self.object(schema, new, pointer)
        if closed:
            _close(schema, new)
        if new.get("format") not in _FORMATS or "pattern" in new:
            new.pop("format", None)  # an annotation, as the standard has it
        if "pattern" in new and _is_ambiguous(new["pattern"]):
            self.leave("pattern", pointer)
            del new["pattern"]
        if self._check:
            self.bounds(new, pointer)
        return new

    def values(self, schema: dict[str, Any], new: dict[str, Any], pointer: str) -> dict[str, Any]:
        """Beside values everything is allowed: they are validated beforehand."""
        from referencing.exceptions import Unresolvable

        values = [schema["const"]] if "const" in schema else schema["enum"]
        rest = {key: value for key, value in schema.items() if key != ("const" if "const" in schema else "enum")}
        validator = _validator(self.schema).evolve(schema=rest)
        try:
            fitting = [value for value in values if validator.is_valid(value)]
        except (Unresolvable, RecursionError):  # a reference that needs its base
            return new
        if not fitting:
            what = "enum" if "enum" in schema else "const"
            raise _bad_schema(f"{pointer}: nothing can be valid: no value of '{what}' fits", hint="other values")
        kept = {key: new[key] for key in ("$id", "$anchor", *_MAPS[:2]) if key in new}
        return {**kept, "enum": fitting}

    def object(self, schema: dict[str, Any], new: dict[str, Any], pointer: str) -> None:
        if "unevaluatedProperties" in new:
            rule = new.pop("unevaluatedProperties")
            if rule is False and not any(key in schema for key in _MORE):
                new["additionalProperties"] = False
            else:
                self.leave("unevaluatedProperties", pointer)
        named = new.get("patternProperties")
        if named and (any(map(_is_ambiguous, named)) or _problem({"type": "object", "patternProperties": named})):
            self.leave("patternProperties", pointer)
            del new["patternProperties"]
            new.pop("additionalProperties", None)
        for keyword in ("minProperties", "maxProperties") if "properties" in new else ():
            if new.pop(keyword, None) is not None:
                self.leave(keyword, pointer)

    def bounds(self, new: dict[str, Any], pointer: str) -> None:
        """Drops what llguidance does not take, one by one."""
        for kind, keywords in _BOUNDS.items():
            name = "integer" if kind == "number" and new.get("type") == "integer" else kind
            mine = {key: new[key] for key in keywords if key in new}
            for keyword in tuple(mine):
                problem = _problem({"type": name, **mine})
                if problem is None or ("Unsatisfiable" in problem and not {"multipleOf", "pattern"} & set(mine)):
                    break
                del mine[keyword], new[keyword]
                self.leave(keyword, pointer)


def _close(schema: dict[str, Any], new: dict[str, Any]) -> None:
    """Of all that a schema allows without a word, only what it is about."""
    if "type" not in new and not any(key in schema for key in _APPLICATORS):
        types = [name for name, keywords in _TYPES.items() if any(key in schema for key in keywords)]
        new.update({"type": types} if types else {})
    if "properties" in new and not any(key in schema for key in _MORE):
        named: dict[str, Any] = {name: {} for name in new.get("required", ()) if name not in new["properties"]}
        new["properties"] = {**new["properties"], **named}
        new["additionalProperties"] = False
    if "prefixItems" in new and not any(key in schema for key in ("items", "contains", "unevaluatedItems", *_COMPOSED)):
        new["items"] = new.get("minItems", 0) > len(new["prefixItems"])


def _is_ambiguous(pattern: str) -> bool:
    """Whether llguidance may read sets within a class where Python reads characters: `[a&&b]`, `[[a]]`."""
    return isinstance(_trouble(pattern, "error"), FutureWarning)


def _is_annotation(key: str) -> bool:
    return key in _ANNOTATIONS or key.startswith(("$", "x-"))


@cache
def _made(schema: str) -> tuple[str, list[str]] | str:
    """llguidance's grammar of a schema and its warnings, or why there is none."""
    from llmrun.engine.grammar import BadGrammar, compiled, of_schema

    try:
        grammar = of_schema(schema, whitespace_pattern=_WHITESPACE)
        return grammar, compiled(grammar).get_grammar_warnings()
    except BadGrammar as error:
        return str(error)


def _problem(schema: dict[str, Any]) -> str | None:
    """Why llguidance does not take the schema; None if it does."""
    made = _made(_text_of(schema))
    return made if isinstance(made, str) else None


def _all(schema: Any, pointer: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema within a schema, itself included, with its pointer."""
    if isinstance(schema, dict):
        yield pointer, schema
        for path, one in _inner(schema):
            yield from _all(one, _point(pointer, *path))


def _open_references(schema: Any) -> set[str]:
    """Pointers of schemas that count together with others: what they do not name may be asked for beside them."""
    found: set[str] = set()
    n_known = -1
    while n_known < len(found):
        n_known = len(found)
        for pointer, one in _all(schema):
            together = unquote(pointer) in found or sum(key in _KNOWN for key in one) > 1
            for path, _ in _inner(one):
                if path[0] in _COMPOSED and (together or path[0] == "allOf"):
                    found.add(unquote(_point(pointer, *path)))
            if isinstance(one.get("$ref"), str) and together:
                found.add(unquote(one["$ref"]))
    return found
