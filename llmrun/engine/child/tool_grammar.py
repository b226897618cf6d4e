"""The grammar that keeps calls of tools well-formed: of a tool that is there, its arguments as its schema has them.

Child process only. It is llguidance's, which knows control tokens by their ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from llmrun.engine.child.tool_syntax import HARMONY, ID, INDEX, Parts, Places, ToolSyntax
from llmrun.engine.protocol import Tool

EMPTY = '""'

Controls = Callable[[str], "Sequence[str | int]"]
"""Cuts a text at the names of control tokens: texts, and ids of these."""


def grammar(syntax: ToolSyntax, tools: Sequence[Tool], controls: Controls, *, must: bool, several: bool) -> str | None:
    """For llguidance: text and calls, or calls alone where one `must` be; None: there is none for this syntax."""
    if syntax == HARMONY and not must:
        return None  # answers have headings of control tokens that only the tags know
    lines, schemas = [], []

    def literal(parts: Parts) -> str:
        return _literal(parts, controls)

    for i, tool in enumerate(tools):
        if syntax.places is None:
            schemas.append({"name": f"arguments{i}", "json_schema": _narrow(tool.schema)})
            arguments = f"@arguments{i}"
        else:
            arguments = f"places{i}"
            lines += _Arguments(syntax.places, tool, i, controls, schemas).rules
        behind = f"{_plain(tool.name)} {literal(syntax.mid)} {arguments} {literal(syntax.post)}"
        lines.append(f"call{i}: {literal(syntax.pre)} {behind}")
    any_call = " | ".join(f"call{i}" for i in range(len(tools)))
    repeated = f"({literal(syntax.sep)} call)*" if several and syntax.sep is not None else ""
    lines += [f"call: {any_call}", f"calls: {literal(syntax.lead)} call {repeated} {literal(syntax.end)}"]
    if must:
        lines.append("start: calls")
    else:
        lines += [r"TEXT: /(.|\n)*/", *_free(syntax, tools, controls, repeated)]
    made: list[dict[str, Any]] = [{"lark_grammar": "\n".join(reversed(lines)) + "\n"}, *schemas]
    return json.dumps({"grammars": made})


def _free(syntax: ToolSyntax, tools: Sequence[Tool], controls: Controls, repeated: str) -> list[str]:
    """Text, which may go over into calls: at a control token, or where a text stands that tells one. Behind the only
    call that may be nothing follows."""
    behind = "TEXT" if repeated else ""
    cut = controls(syntax.trigger)
    if cut and isinstance(cut[0], int):
        return [f"start: TEXT | TEXT calls {behind}"]
    # What stands behind the trigger is demanded from there on.
    whole = "".join(part for part in (*syntax.lead, *syntax.pre))
    begin = whole.find(syntax.trigger)
    head = "".join(_terms(whole[begin : begin + len(syntax.trigger)], lambda text: [text]))
    if syntax.trigger.startswith("{"):
        return [r"OTHER: /[^{](.|\n)*/", "start: calls | OTHER"]
    return [
        "start: TEXT | called",
        f"called: begun rest {behind}",
        f"begun[lazy]: TEXT {head}",
        _rest(syntax, tools, controls, repeated),
    ]


def _rest(syntax: ToolSyntax, tools: Sequence[Tool], controls: Controls, repeated: str) -> str:
    """Calls, without the trigger of the first one."""

    def literal(parts: Parts) -> str:
        return _literal(parts, controls)

    whole = (*syntax.lead, *syntax.pre)
    left, parts = syntax.trigger, list[str]()
    for part in whole:
        if not left:
            parts.append(part)
            continue
        stripped = part.lstrip() if not parts else part
        n = len(stripped) if len(stripped) < len(left) else len(left)
        left = left[n:]
        if stripped[n:]:
            parts.append(stripped[n:])
    n_lead = len(syntax.lead)
    first = literal(tuple(parts)) if n_lead == 0 or parts else ""
    names = " | ".join(f"after{i}" for i in range(len(tools)))
    made = [f"rest: {first} ({names}) {repeated} {literal(syntax.end)}"]
    for i, tool in enumerate(tools):
        arguments = f"@arguments{i}" if syntax.places is None else f"places{i}"
        made.append(f"after{i}: {_plain(tool.name)} {literal(syntax.mid)} {arguments} {literal(syntax.post)}")
    return "\n".join(made)


class _Arguments:
    """Of one tool, arguments with a place each, in the schema's order, as rules: `places0` for tool number 0."""

    def __init__(
        self, places: Places, tool: Tool, number: int, controls: Controls, schemas: list[dict[str, Any]]
    ) -> None:
        """`schemas` gets more: those of values that are JSON."""
        self.rules: list[str] = []
        self._places, self._number, self._controls, self._schemas = places, number, controls, schemas
        self._defs = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
        members = self._members(tool.parameters, self._place, places.between)
        self.rules.append(f"places{number}: {members}")

    def _rule(self, body: str, prefix: str = "place") -> str:
        name = f"{prefix}{self._number}_{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name

    def _written(self, text: str) -> str:
        return _literal((text,), self._controls)

    def _members(self, schema: dict[str, Any], rule_of: Callable[[str, Any], str], between: str) -> str:
        """Of an object: what has to be there and what may, with `between` from one to the next."""
        properties, required = schema.get("properties"), schema.get("required") or []
        more, first, sep = EMPTY, [EMPTY], self._written(between) if between else ""
        for key, each in reversed(properties.items() if isinstance(properties, dict) else ()):
            rule = rule_of(key, each)
            begun = f"{rule} {more}"
            first = [begun] if key in required else [begun, *first]
            more = self._rule(f"{sep} {rule} {more}" if key in required else f"({sep} {rule})? {more}")
        return " | ".join(first)

    def _place(self, key: str, schema: Any) -> str:
        places = self._places
        begin = f"{self._written(places.key)} {_plain(key)}"
        if places.quote:
            return self._rule(f"{begin} {self._written(places.value)} {self._value(schema)}")
        kinds = kinds_of(schema)
        text = kinds.pop("string", None)
        ways = [] if text is None else [f"{self._written(places.value)} {self._text(text, places.after)}"]
        if kinds or text is None:
            more = {"anyOf": [*kinds.values()]} if text is not None else schema
            ways.append(f"{self._written(places.other)} {self._json(more)} {self._written(places.after)}")
        return self._rule(f"{begin} ({' | '.join(ways)})")

    def _value(self, schema: Any) -> str:
        """As a literal. With Python's quotes all but texts may be JSON."""
        quote, kinds = self._places.quote, kinds_of(schema)
        if {*kinds} == {"string"}:
            return f"{self._written(quote)} {self._text(kinds['string'], quote)}"
        if not isinstance(schema, dict) or len(quote) == 1:
            return self._json(schema)
        kind = schema.get("type")
        if "string" in kinds:
            return "(" + " | ".join(self._value(each) for each in kinds.values()) + ")"
        if kind == "object" and schema.get("properties"):
            members = self._members(schema, lambda key, each: self._rule(f'{_plain(key)} ":" {self._value(each)}'), ",")
            return f'"{{" ({members}) "}}"'
        if kind == "array" and isinstance(schema.get("items"), dict):
            item, least, most = self._value(schema["items"]), schema.get("minItems", 0), schema.get("maxItems")
            item = self._rule(item)
            times = f"{{{max(least - 1, 0)},{most - 1}}}" if most else f"{{{max(least - 1, 0)},}}"
            more = "" if most == 1 else f'("," {item}){times}'
            return '"[" "]"' if most == 0 else f'"[" ({item} {more}){"" if least else "?"} "]"'
        return self._json(schema)

    def _json(self, schema: Any) -> str:
        name = f"value{self._number}_{len(self._schemas)}"
        schema = {**self._defs, **schema} if isinstance(schema, dict) else schema
        self._schemas.append({"name": name, "json_schema": _narrow(schema)})
        return f"@{name}"

    def _text(self, schema: dict[str, Any], end: str) -> str:
        """A text that keeps to its schema, and its end, which is not found in it."""
        if "enum" in schema:
            return f"({' | '.join(map(_plain, schema['enum']))}) {self._written(end)}"
        begin, *rest = self._controls(end) or [""]  # control tokens are in no text
        begin, rest = (begin, rest) if isinstance(begin, str) else ("", [begin, *rest])
        char = rf"[^\\\n{begin}]" if begin in ("'", '"') else r"(.|\n)"
        made = [
            f"/{char}{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}/",
            *_searched(schema.get("pattern")),
        ]
        if inner := begin.strip("\n"):  # around which newlines may be missing where it is read
            made.append(rf"~/(.|\n)*{_escaped(inner)}(.|\n)*/")
        ended = f" /{_escaped(begin)}/" if begin else ""
        name = self._rule(f"({' & '.join(made)}){ended}", "TEXT")
        return " ".join([name, *(self._written(each) if isinstance(each, str) else f"<[{each}]>" for each in rest)])


def _searched(pattern: str | None) -> list[str]:
    """For a schema's pattern, which is found anywhere unless it says where."""
    if pattern is None or re.search(r"\|.*\$$|^\^.*\|", pattern):  # which of them is anchored
        return []
    pattern = re.sub(r"(?<!\\)/", r"\/", pattern)
    inner, anywhere = pattern.removeprefix("^"), r"(.|\n)*"
    is_ended = inner.endswith("$") and not inner.endswith("\\$")
    inner = inner[:-1] if is_ended else inner
    return [f"/{'' if pattern.startswith('^') else anywhere}({inner}){'' if is_ended else anywhere}/"]


def _narrow(schema: Any) -> Any:
    """As llguidance is to read it: what it does not know is left out, and blanks are few."""
    if not isinstance(schema, dict):
        return schema
    return {**schema, "x-guidance": {"lenient": True, "whitespace_pattern": r" |\n[ \t]{0,20}"}}


def _terms(text: str, controls: Controls) -> list[str]:
    if text == ID:
        return ["/[a-zA-Z0-9]{9}/"]
    if text == INDEX:
        return ["/[0-9]{1,3}/"]
    return [f"<[{each}]>" if isinstance(each, int) else f"/{_escaped(each)}/" for each in controls(text) if each != ""]


def _literal(parts: Parts, controls: Controls) -> str:
    return " ".join(each for part in parts for each in _terms(part, controls))


def _plain(text: str) -> str:
    return f"/{_escaped(text)}/" if text else EMPTY


def _escaped(text: str) -> str:
    return "".join(f"\\x{{{ord(char):x}}}" for char in text)


# -- schemas ---


def kind_of(value: Any) -> str:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "null")


def kinds_of(schema: Any) -> dict[str, dict[str, Any]]:
    """The JSON types of what keeps to a schema, each with what is asked of it; none where that is not so simple."""
    if not isinstance(schema, dict):
        return {}
    found: dict[str, dict[str, Any]] = {}
    if "enum" in schema or "const" in schema:
        for value in schema.get("enum", [schema.get("const")]):
            found.setdefault(kind_of(value), {"enum": []})["enum"].append(value)
    elif choices := schema.get("anyOf") or schema.get("oneOf"):
        for each in map(kinds_of, choices):
            if not each or found.keys() & each.keys():
                return {}
            found |= each
    else:
        kinds = schema.get("type", [])
        found = {each: {**schema, "type": each} for each in ([kinds] if isinstance(kinds, str) else kinds)}
    if "number" in found:
        found.setdefault("integer", found["number"])
    return found
