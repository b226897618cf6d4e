"""Calls of tools in one answer: told apart from its text as it comes, and the grammar that keeps them well-formed.

    answer's text ──► CallSplitter ──► content, and calls: a name, then its arguments as JSON, piece by piece

Child process only. Whitespace between the texts of a call may be more or less than the template's: models vary it.
What begins like a call and turns out to be none is text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from llmrun.engine.child.answer_text import overlap
from llmrun.engine.child.special_tokens import Vocabulary, named_in
from llmrun.engine.child.tool_syntax import HARMONY, ID, INDEX, Parts, ToolSyntax
from llmrun.engine.protocol import CallPiece, Tool

_NAME = r"(?P<name>[^\s\"'<>{}()\[\]:,|=]{1,128}?)"
EMPTY = '""'
_LONGEST_HEAD = 4096
"""Characters; what has no name by then is no call."""


def _loosely(text: str) -> str:
    """A pattern of a literal text, around whose words whitespace is free."""
    made = []
    for piece in re.findall(r"\s+|[{}\[\]:,\"]|[^\s{}\[\]:,\"]+", text):
        if piece.isspace():
            made.append(r"\s*")
        elif piece in '{}[]:,"':
            made.append(rf"\s*{re.escape(piece)}\s*")
        else:
            made.append(re.escape(piece))
    return "".join(made)


def _pattern(parts: Parts) -> str:
    kinds = {ID: r"[\w\-]+", INDEX: r"\d+"}
    return "".join(kinds.get(part) or _loosely(part) for part in parts)


def _exactly(text: str) -> str:
    """A pattern of a text, whose newlines may be missing."""
    return re.escape(text).replace("\\\n", "\n").replace("\n", r"\n?")


class CallSplitter:
    """Divides an answer into content and calls. How the text is cut into pieces changes nothing."""

    def __init__(self, syntax: ToolSyntax, strings: Mapping[str, set[str]]) -> None:
        """`strings`: of each tool, the arguments that are texts, where arguments have a place each."""
        self._syntax, self._strings = syntax, strings
        self._trigger = syntax.trigger
        self._at: Literal["text", "head", "json", "places", "behind"] = "text"
        self._held = ""
        self._n = 0  # calls that have begun
        self._said = False  # something of the content was given out
        self._name = ""
        self._scan = _Json()
        self._arguments: dict[str, Any] = {}
        self._ahead: tuple[str, ...] = ()
        places = syntax.places
        if syntax == HARMONY:
            opened = r"(?:<\|start\|>assistant)?\s*(?:<\|channel\|>commentary)?\s*to=functions\."
            follow = r"(?:<\|channel\|>commentary)?\s*(?:<\|constrain\|>)?(?:json)?\s*<\|message\|>\s*(?=\{)"
            self._head = re.compile(opened + _NAME + r"\s*" + follow)
            self._next = self._end = None
            self._close = re.compile(r"\s*(?:<\|call\|>)?")
            return
        if places is None:
            follow = r"\s*(?=\{)"
        else:
            follow = rf"(?={_exactly(places.key)}|\s*{_pattern(syntax.post)})"
            self._place = re.compile(
                f"{_exactly(places.key)}(?P<key>[^<>\"'=]{{1,256}}?)(?:{_exactly(places.value)}|{_exactly(places.other)})"
                f"(?P<value>.*?){_exactly(places.after)}(?:{_loosely(places.between)})",
                re.DOTALL,
            )
        called = _pattern(syntax.pre) + _NAME + _pattern(syntax.mid) + follow
        self._head = re.compile(_pattern(syntax.lead) + r"\s*" + called)
        self._next = re.compile(r"\s*" + _pattern(syntax.sep) + r"\s*" + called) if syntax.sep is not None else None
        self._close = re.compile(r"\s*" + _pattern(syntax.post))
        self._end = re.compile(r"\s*" + _pattern(syntax.end)) if syntax.end else None
        ahead = (*syntax.sep, *syntax.pre) if syntax.sep is not None else ()
        self._ahead = (_compact(ahead), _compact(syntax.end))

    @property
    def inside(self) -> bool:
        """Whether what comes next belongs to calls."""
        return self._at != "text"

    def add(self, text: str) -> tuple[str, list[CallPiece]]:
        """Content and calls that can be told after this piece; what may become a call is held back."""
        self._held += text
        content, calls = "", list[CallPiece]()
        while True:
            before = (self._at, len(self._held))
            match self._at:
                case "text":
                    content += self._find_call()
                case "head":
                    content += self._begin_call(self._head, calls)
                case "json":
                    self._read_json(calls)
                case "places":
                    self._read_places(calls)
                case "behind":
                    content += self._go_on(calls)
            if (self._at, len(self._held)) == before or not self._held:
                break
        return content, calls

    def finish(self) -> tuple[str, list[CallPiece]]:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        calls = list[CallPiece]()
        if self._at == "places":
            self._end_places(calls)
            held = ""
        if self._at in ("text", "head"):
            if self._n and not held.strip():
                held = ""
            return held, calls
        return "", calls

    # -- content ---

    def _find_call(self) -> str:
        begin = self._held.find(self._trigger)
        if begin >= 0 and (not self._trigger.startswith("{") or not (self._said or self._held[:begin].strip())):
            shown, self._held = self._held[:begin].rstrip(), self._held[begin:]
            self._at = "head"
            return self._shown(shown)
        if self._trigger.startswith("{") and (self._said or not self._trigger.startswith(self._held.lstrip()[:64])):
            shown, self._held = self._held, ""
            return self._shown(shown)
        keep = overlap(self._held, self._trigger)
        shown = self._held[: len(self._held) - keep].rstrip()
        self._held = self._held[len(shown) :]
        return self._shown(shown)

    def _shown(self, text: str) -> str:
        if not self._said:
            text = text.lstrip() if self._n else text
        self._said = self._said or bool(text.strip())
        return text

    # -- calls ---

    def _begin_call(self, pattern: re.Pattern[str], calls: list[CallPiece]) -> str:
        found = pattern.match(self._held)
        if found is None:
            if len(self._held) > _LONGEST_HEAD:
                text, self._held, self._at = self._held, "", "text"
                return self._shown(text)
            return ""
        self._name, self._held = found["name"], self._held[found.end() :]
        calls.append(CallPiece(self._n, self._name, ""))
        self._n += 1
        self._scan, self._arguments = _Json(), {}
        self._at = "json" if self._syntax.places is None else "places"
        return ""

    def _read_json(self, calls: list[CallPiece]) -> None:
        n = self._scan.feed(self._held)
        if n:
            calls.append(CallPiece(self._n - 1, "", self._held[:n]))
            self._held = self._held[n:]
        if self._scan.is_done:
            self._at = "behind"

    def _read_places(self, calls: list[CallPiece]) -> None:
        while found := self._place.match(self._held):
            self._take_place(found["key"].strip(), found["value"])
            self._held = self._held[found.end() :]
        if self._close.match(self._held) and self._held.strip():
            self._end_places(calls)

    def _take_place(self, key: str, value: str) -> None:
        if key in self._strings.get(self._name, ()):
            self._arguments[key] = value
            return
        self._arguments[key] = _value_of(value)

    def _end_places(self, calls: list[CallPiece]) -> None:
        calls.append(CallPiece(self._n - 1, "", json.dumps(self._arguments, ensure_ascii=False)))
        self._at = "behind"

    def _go_on(self, calls: list[CallPiece]) -> str:
        """Behind a call: another one, or the end of all."""
        begun = self._close.match(self._held)
        if begun is None:
            if len(self._held) > _LONGEST_HEAD:
                self._at = "text"
            return ""
        rest = self._held[begun.end() :]
        if self._next is not None and self._next.match(rest):
            self._held = rest
            return self._begin_call(self._next, calls)
        found = self._end.match(rest) if self._end is not None else None
        if found is None and any(_may_become(rest, text) for text in self._ahead):
            return ""
        self._held, self._at = rest[found.end() :] if found else rest, "text"
        return ""


def _may_become(text: str, wanted: str) -> bool:
    """Whether it could be the beginning of what is wanted, or goes on behind that; blanks don't count."""
    text = re.sub(r"\s", "", text)
    return bool(wanted) and (wanted.startswith(text) or text.startswith(wanted))


def _compact(parts: Parts) -> str:
    """The literal beginning of these, without blanks."""
    literal = ""
    for part in parts:
        if part in (ID, INDEX):
            break
        literal += part
    return re.sub(r"\s", "", literal)


def _value_of(text: str) -> Any:
    """JSON; as Python writes it, where a template does so; else a text."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return found if isinstance(found, dict | list | bool | None) else text


class _Json:
    """Where a JSON object ends, however it is cut."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = self._escaped = False
        self.is_done = False

    def feed(self, text: str) -> int:
        """How many characters belong to it."""
        for i, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_text:
                self._escaped, self._in_text = char == "\\", char != '"'
            elif char == '"':
                self._in_text = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_done = True
                    return i + 1
        return len(text)


class ToolWatch:
    """The tools of one answer.

    Attributes:
        splitter: tells calls from content.
        must: the answer is calls, from its beginning on; else it may go over into calls.
    """

    def __init__(
        self, syntax: ToolSyntax, tools: Sequence[Tool], vocab: Vocabulary, *, must: bool, several: bool
    ) -> None:
        self.splitter = CallSplitter(syntax, strings_of(tools))
        self.must = must
        self._syntax, self._tools, self._vocab, self._several = syntax, tools, vocab, several

    def pieces(self, usual: Callable[[int], bytes]) -> Callable[[int], bytes]:
        """The text of a token: as usual, and of control tokens that calls are written with, their names."""
        markers, vocab = self._syntax.markers, self._vocab

        def piece(token: int) -> bytes:
            if found := usual(token):
                return found
            written = vocab.text_of(token, special=True)
            return written if written and written.decode(errors="replace") in markers else found

        return piece

    def grammar(self) -> str | None:
        """For llguidance; None: there is none for this way of calling."""

        def controls(text: str) -> list[str | int]:
            cut: list[str | int] = []
            at = 0
            for begin, end, token in named_in(self._vocab, text):
                if not self._vocab.piece(token):
                    cut += [text[at:begin], token]
                    at = end
            return [each for each in (*cut, text[at:]) if each != ""]

        return grammar(self._syntax, self._tools, controls, must=self.must, several=self._several)


def strings_of(tools: Iterable[Tool]) -> dict[str, set[str]]:
    """Of each tool, the arguments that its schema says are texts."""
    found = {}
    for tool in tools:
        properties = tool.parameters.get("properties")
        known = properties.items() if isinstance(properties, dict) else ()
        found[tool.name] = {key for key, schema in known if isinstance(schema, dict) and schema.get("type") == "string"}
    return found


# -- the grammar ---

Controls = Callable[[str], "Sequence[str | int]"]
"""Cuts a text at the names of control tokens: texts, and ids of these."""


def grammar(syntax: ToolSyntax, tools: Sequence[Tool], controls: Controls, *, must: bool, several: bool) -> str | None:
    """For llguidance: text and calls, or calls alone where one `must` be; None: there is none for this syntax."""
    if syntax == HARMONY and not must:
        return None  # answers have headings of control tokens that only the tags know
    lines, schemas = [], []

    def literal(parts: Parts) -> str:
        return " ".join(each for part in parts for each in _terms(part, controls))

    for i, tool in enumerate(tools):
        if syntax.places is None:
            schemas.append({"name": f"arguments{i}", "json_schema": _narrow(tool.schema)})
            arguments = f"@arguments{i}"
        else:
            arguments, more = _places(syntax, tool, i, literal, schemas)
            lines += more
        name = " ".join(_terms(tool.name, lambda text: [text]))
        lines.append(f"call{i}: {literal(syntax.pre)} {name} {literal(syntax.mid)} {arguments} {literal(syntax.post)}")
    any_call = " | ".join(f"call{i}" for i in range(len(tools)))
    repeated = f"({literal(syntax.sep)} call)*" if several and syntax.sep is not None else ""
    lines += [f"call: {any_call}", f"calls: {literal(syntax.lead)} call {repeated} {literal(syntax.end)}"]
    if must:
        lines.append("start: calls")
    else:
        lines += [r"TEXT: /(.|\n)*/", *_free(syntax, tools, controls, literal)]
    made: list[dict[str, Any]] = [{"lark_grammar": "\n".join(reversed(lines)) + "\n"}, *schemas]
    return json.dumps({"grammars": made})


def _free(syntax: ToolSyntax, tools: Sequence[Tool], controls: Controls, literal: Callable[[Parts], str]) -> list[str]:
    """Text, which may go over into calls: at a control token, or where a text stands that tells one."""
    cut = controls(syntax.trigger)
    if cut and isinstance(cut[0], int):
        return ["start: TEXT | TEXT calls TEXT"]
    # What stands behind the trigger is demanded from there on.
    whole = "".join(part for part in (*syntax.lead, *syntax.pre))
    begin = whole.find(syntax.trigger)
    head = "".join(_terms(whole[begin : begin + len(syntax.trigger)], lambda text: [text]))
    if syntax.trigger.startswith("{"):
        return [r"OTHER: /[^{](.|\n)*/", "start: calls | OTHER"]
    return [
        "start: TEXT | called",
        "called: begun rest TEXT",
        f"begun[lazy]: TEXT {head}",
        _rest(syntax, tools, literal),
    ]


def _rest(syntax: ToolSyntax, tools: Sequence[Tool], literal: Callable[[Parts], str]) -> str:
    """Calls, without the trigger of the first one."""
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
    made = [f"rest: {first} ({names}) ({literal(syntax.sep or ())} call)* {literal(syntax.end)}"]
    for i, tool in enumerate(tools):
        name = " ".join(_terms(tool.name, lambda text: [text]))
        arguments = f"@arguments{i}" if syntax.places is None else f"places{i}"
        made.append(f"after{i}: {name} {literal(syntax.mid)} {arguments} {literal(syntax.post)}")
    return "\n".join(made)


def _places(
    syntax: ToolSyntax,
    tool: Tool,
    i: int,
    literal: Callable[[Parts], str],
    schemas: list[dict[str, Any]],
) -> tuple[str, list[str]]:
    """Arguments with a place each, in the schema's order."""
    places = syntax.places
    assert places is not None
    properties = tool.parameters.get("properties")
    required = tool.parameters.get("required") or []
    made, terms = [], []
    for j, (key, schema) in enumerate(properties.items() if isinstance(properties, dict) else ()):
        begin = f"{literal((places.key,))} {' '.join(_terms(key, lambda text: [text]))} {literal((places.value,))}"
        rule = f"place{i}_{j}"
        if isinstance(schema, dict) and schema.get("type") == "string" and "enum" not in schema:
            made.append(f"text{i}_{j}[lazy]: /(.|\\n)*{_escaped(places.after)}/")
            made.append(f"{rule}: {begin} text{i}_{j}")
        else:
            schemas.append({"name": f"value{i}_{j}", "json_schema": _narrow(schema)})
            begin = begin.removesuffix(literal((places.value,))) + literal((places.other,))
            made.append(f"{rule}: {begin} @value{i}_{j} {literal((places.after,))}")
        terms.append(rule if key in required else f"{rule}?")
    between = f" {literal((places.between,))} " if places.between else " "
    made.append(f"places{i}: {between.join(terms) or EMPTY}")
    return f"places{i}", made


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


def _escaped(text: str) -> str:
    return "".join(f"\\x{{{ord(char):x}}}" for char in text)
