"""Calls of tools in one answer: told apart from its text as it comes.

    answer's text ──► CallSplitter ──► content, and calls: a name, then its arguments as JSON, piece by piece

Child process only. Whitespace between the texts of a call may be more or less than the template's: models vary it.
What begins like a call and turns out to be none is text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Literal

from llmrun.engine.child.answer_text import overlap
from llmrun.engine.child.literals import Literals, NotYet, json_of
from llmrun.engine.child.special_tokens import Vocabulary, is_control, named_in
from llmrun.engine.child.tool_grammar import grammar, kind_of, kinds_of
from llmrun.engine.child.tool_syntax import HARMONY, ID, INDEX, Parts, ToolSyntax
from llmrun.engine.protocol import CallPiece, Tool

Texts = Mapping[str, Mapping[str, Set[str]]]

_NAME = r"(?P<name>[^\s\"'<>{}()\[\]:,|=]{1,128}?)"
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


def _compiled(pattern: str) -> re.Pattern[str]:
    """Several places in a row where whitespace is free are one: each would try every share of a run of blanks."""
    return re.compile(re.sub(r"(?:\\s\*)+", r"\\s*", pattern))


def _exactly(text: str) -> str:
    """A pattern of a text, whose newlines may be missing."""
    return re.escape(text).replace("\\\n", "\n").replace("\n", r"\n?")


class CallSplitter:
    """Divides an answer into content and calls. How the text is cut into pieces changes nothing."""

    def __init__(self, syntax: ToolSyntax, texts: Texts) -> None:
        """`texts`: of each tool, the arguments that may be texts, and what else; where arguments have a place each."""
        self._syntax, self._texts = syntax, texts
        self._trigger = syntax.trigger
        self._triggers = [syntax.trigger]
        if syntax == HARMONY:  # whose models write the recipient before the channel as well, and turns in an answer
            self._triggers += ["<|end|>", "<|start|>assistant", "to=functions."]
        self._at: Literal["text", "head", "json", "places", "literals", "behind"] = "text"
        self._held = ""
        self._n = 0  # calls that have begun
        self._said = False  # something of the content was given out
        self._name = ""
        self._scan = _Json()
        self._arguments: dict[str, Any] = {}
        self._ahead: tuple[str, ...] = ()
        self._heading: re.Pattern[str] | None = None  # of content, behind which it goes on
        places = syntax.places
        if syntax == HARMONY:
            opened = r"(?:\s|<\|end\|>|<\|start\|>assistant|<\|channel\|>commentary)*to=functions\."
            follow = r"(?:\s|<\|channel\|>commentary|<\|constrain\|>|json)*<\|message\|>\s*(?=\{)"
            self._head = re.compile(opened + _NAME + follow)
            self._next = self._end = None
            self._close = re.compile(r"\s*<\|call\|>")
            # What is said before calls, and what may be left at the end.
            self._heading = re.compile(
                r"(?:\s|<\|end\|>|<\|start\|>assistant|<\|channel\|>(?:commentary|final))+"
                r"(?:<\|message\|>|$)"
            )
            return
        if places is None or places.quote:
            follow = r"\s*(?=\{)" if places is None else ""
        else:
            follow = rf"(?={_exactly(places.key)}|\s*{_pattern(syntax.post)})"
            self._place = re.compile(
                f"{_exactly(places.key)}(?P<key>[^<>\"'=]{{1,256}}?)(?:{_exactly(places.value)}|{_exactly(places.other)})"
                f"(?P<value>.*?){_exactly(places.after)}(?:{_loosely(places.between)})",
                re.DOTALL,
            )
        called = _pattern(syntax.pre) + _NAME + _pattern(syntax.mid) + follow
        self._head = _compiled(_pattern(syntax.lead) + r"\s*" + called)
        self._next = _compiled(r"\s*" + _pattern(syntax.sep) + r"\s*" + called) if syntax.sep is not None else None
        self._close = _compiled(r"\s*" + _pattern(syntax.post))
        self._end = _compiled(r"\s*" + _pattern(syntax.end)) if syntax.end else None
        ahead = (*syntax.sep, *syntax.pre) if syntax.sep is not None else ()
        self._ahead = (_compact(ahead), _compact(syntax.end))

    @property
    def inside(self) -> bool:
        """Whether what comes next belongs to calls."""
        return self._at != "text"

    @property
    def has_called(self) -> bool:
        """Whether a call has begun."""
        return self._n > 0

    @property
    def n_held(self) -> int:
        """Characters of which nothing is told yet."""
        return len(self._held)

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
                case "literals":
                    self._read_literals(calls)
                case "behind":
                    content += self._go_on(calls)
            if (self._at, len(self._held)) == before or not self._held:
                break
        return content, calls

    def finish(self, *, cut: bool = False) -> tuple[str, list[CallPiece]]:
        """What was held back, now that nothing follows. Of an answer that was `cut` the head of a call is none of its
        text."""
        held, self._held = self._held, ""
        calls = list[CallPiece]()
        if self._at in ("places", "literals"):
            self._end_places(calls)
            held = ""
        if self._at == "head" and (cut or (self._heading is not None and self._heading.fullmatch(held))):
            held = ""
        if self._at in ("text", "head"):
            if self._n and not held.strip():
                held = ""
            return held, calls
        return "", calls

    # -- content ---

    def _find_call(self) -> str:
        begin = min((at for each in self._triggers if (at := self._held.find(each)) >= 0), default=-1)
        if begin >= 0 and (not self._trigger.startswith("{") or not (self._said or self._held[:begin].strip())):
            shown, self._held = self._held[:begin].rstrip(), self._held[begin:]
            self._at = "head"
            return self._shown(shown)
        if self._trigger.startswith("{") and (self._said or not self._trigger.startswith(self._held.lstrip()[:64])):
            shown, self._held = self._held, ""
            return self._shown(shown)
        keep = max(overlap(self._held, each) for each in self._triggers)
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
            heading = self._heading.match(self._held) if self._heading is not None else None
            if heading is not None and heading[0].endswith("<|message|>"):
                self._held, self._at = self._held[heading.end() :], "text"
                return ""
            if len(self._held) > _LONGEST_HEAD:
                text, self._held, self._at = self._held, "", "text"
                return self._shown(text)
            return ""
        self._name, self._held = found["name"], self._held[found.end() :]
        calls.append(CallPiece(self._n, self._name, ""))
        self._n += 1
        self._scan, self._arguments = _Json(), {}
        places = self._syntax.places
        self._at = "json" if places is None else "literals" if places.quote else "places"
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

    def _read_literals(self, calls: list[CallPiece]) -> None:
        places, post = self._syntax.places, "".join(self._syntax.post).lstrip()
        assert places is not None
        try:
            self._arguments, end = Literals(places.quote).members(self._held, 0, places.value.strip(), post[0])
        except NotYet:
            return
        except ValueError:  # not a call that anybody could read
            end = len(self._held)
        self._held = self._held[end:]
        self._end_places(calls)

    def _take_place(self, key: str, value: str) -> None:
        kinds = self._texts.get(self._name, {}).get(key)
        found = value if kinds == set() else _value_of(value)
        self._arguments[key] = found if kinds is None or kind_of(found) in kinds else value

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
        return json_of(text)
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
        self.splitter = CallSplitter(syntax, texts_of(tools))
        self.must = must
        self._syntax, self._tools, self._vocab, self._several = syntax, tools, vocab, several

    @property
    def inside(self) -> bool:
        """Whether the grammar says what comes next: of calls, and that nothing follows the only one that may be."""
        return self.splitter.inside or (not self._several and self.splitter.has_called)

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
                if is_control(self._vocab, token, ""):
                    cut += [text[at:begin], token]
                    at = end
            return [each for each in (*cut, text[at:]) if each != ""]

        return grammar(self._syntax, self._tools, controls, must=self.must, several=self._several)


def texts_of(tools: Iterable[Tool]) -> Texts:
    """Of each tool, the arguments that may be texts, with the JSON types that they may be instead."""
    found = {}
    for tool in tools:
        properties = tool.parameters.get("properties")
        kinds = {key: kinds_of(schema) for key, schema in properties.items()} if isinstance(properties, dict) else {}
        found[tool.name] = {key: {*each} - {"string"} for key, each in kinds.items() if "string" in each}
    return found
