"""How a model calls tools: which texts its template puts around a call's name and its arguments.

    ⟨lead⟩ ⟨pre⟩NAME⟨mid⟩ARGUMENTS⟨post⟩ ⟨sep⟩ ⟨pre⟩NAME⟨mid⟩ARGUMENTS⟨post⟩ ⟨end⟩

Never by a model's name: conversations are rendered whose last answer calls tools with marks for names, and what stands
around the marks is looked at. Arguments are JSON, or each has a place of its own. Whether it was understood is tried by
reading what the template writes of other calls; where it was not, or a template writes none, calls are asked for in the
way that most models have seen (`GENERIC`). A template that writes calls but does not tell which tools there are keeps
its way; tools are told in words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from llmrun import codec
from llmrun.codec import Struct
from llmrun.engine.child.reasoning import tags_of

Render = Callable[[list[dict[str, Any]], "list[dict[str, Any]] | None"], str]
"""A conversation and tools through the template, ready for the next answer. It may raise."""

ID, INDEX = "\0id", "\0index"
"""Among literal texts: an id that a call has, and its place among the calls."""

Parts = tuple[str, ...]


class Places(Struct, frozen=True):
    """Of arguments that have a place each: ⟨key⟩KEY⟨value⟩VALUE⟨after⟩ ⟨between⟩ …

    Attributes:
        other: in place of `value` before what is no text.
        quote: around texts where values are literals, as in name='x', more={a:[1]}. Keys of objects are bare or quoted.
    """

    key: str
    value: str
    after: str
    between: str
    other: str
    quote: str = ""

    @property
    def texts(self) -> Parts:
        return self.key, self.value, self.after, self.between, self.other, self.quote


class ToolSyntax(Struct, frozen=True):
    """Texts as they stand in the token stream, control tokens written out.

    Attributes:
        trigger: the text that tells a call, wherever it stands: the first tag, or all that stands before a name.
        lead: before the first call.
        pre, mid, post: before the name, between it and the arguments, and behind those.
        sep: between calls; None: an answer calls one.
        end: behind the last call.
        places: of arguments that are no JSON.
        is_generic: the template writes no calls: tools are told in the system's words, calls are words as well.
        is_told: the template tells which tools there are; else they are told in the system's words.
        as_text: the template takes arguments as a text of JSON, not as an object.
        content: what an answer that only calls has for content: "", None, or it has none (False).
    """

    trigger: str
    lead: Parts
    pre: Parts
    mid: Parts
    post: Parts
    sep: Parts | None
    end: Parts
    places: Places | None = None
    is_generic: bool = False
    is_told: bool = True
    as_text: bool = False
    content: str | bool | None = ""

    @property
    def markers(self) -> str:
        """All literal texts, one behind the other."""
        parts = (*self.lead, *self.pre, *self.mid, *self.post, *(self.sep or ()), *self.end)
        places = self.places.texts if self.places is not None else ()
        return "".join(part for part in (*parts, *places) if part not in (ID, INDEX))


GENERIC = ToolSyntax(
    "<tool_call>",
    (),
    ('<tool_call>\n{"name": "',),
    ('", "arguments": ',),
    ("}\n</tool_call>",),
    ("\n",),
    (),
    is_generic=True,
)

HARMONY = ToolSyntax(
    "<|channel|>",
    ("<|channel|>commentary to=",),
    ("functions.",),
    (" <|constrain|>json<|message|>",),
    ("<|call|>",),
    None,
    (),
)
"""gpt-oss's: its template writes the recipient of earlier calls before the channel, the model behind it."""

_NAMES = ("qzjxvkwa", "qzjxvkwb", "qzjxvkwc")
_KEYS, _VALUE, _QUESTION, _ANSWER, _NEXT = ("jxqwvkza", "jxqwvkzb"), "vkwqzjxy", "wvzqkjxu", "kqxwjzvu", "xukqwjzv"
_NUMBER, _OBJECT = 8675309, {"a": [1, "b", None, {"c": True}]}
_IDS = ("qzj00000a", "qzj00000b", "qzj00000c")  # nine letters and digits, as Mistral's templates demand


def _spec(name: str) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": "a"} for key in _KEYS}
    parameters = {"type": "object", "properties": properties, "required": [*_KEYS]}
    return {"type": "function", "function": {"name": name, "description": "a", "parameters": parameters}}


_SPECS = [_spec(name) for name in _NAMES]


Ask = Callable[[dict[str, Any]], str]
"""What stands behind the question when it is answered so; "" where the template fails."""

_TAG = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]|<\|[^|]+\|>")


class _Rendered(NamedTuple):
    """How the template is to be given calls, and what it writes of one."""

    as_text: bool
    content: str | bool | None
    text: str


def syntax_of(template: str, render: Render) -> ToolSyntax:
    """`template` is its source."""
    if "<|channel|>" in template and "commentary" in template and "functions." in template:
        return HARMONY
    tags = tags_of(template)
    close = tags.close if tags is not None else ""
    is_told = _NAMES[0] in _text(render, [_said(_QUESTION)])
    # Some templates leave out the calls of a last answer, or its end: they have the model go on with it.
    asks = [partial(_asked, render, behind) for behind in ([], [_said(_NEXT)])]
    tails = [ask({"role": "assistant", "content": _ANSWER}).partition(_ANSWER)[2] for ask in asks]
    for ask, tail in zip(asks, [tails[0] or tails[1], tails[1]], strict=True):
        try:
            found = _found(ask, close, tail)
        except Exception:  # noqa: BLE001 - whatever a template dies of, it has not told of calls
            found = None
        if found is not None and (is_told or found.places is None):
            return codec.replace(found, is_told=is_told)
    return GENERIC


def _asked(render: Render, behind: list[dict[str, Any]], answer: dict[str, Any]) -> str:
    """`behind`: what is said after the answer."""
    text = _text(render, [_said(_QUESTION), answer, *behind])
    return (text.rpartition(_NEXT)[0] if behind else text).rpartition(_QUESTION)[2]


def _found(ask: Ask, close: str, tail: str) -> ToolSyntax | None:
    """`close`: what ends thoughts, which a template may put before calls; `tail`: what stands behind every answer."""
    header, answered, _ = ask({"role": "assistant", "content": _ANSWER}).partition(_ANSWER)
    one = _one_call(ask)
    if not answered or one is None:
        return None

    def calls(*more: Any, **named: Any) -> str:
        return _behind(header, ask(_calls(*more, as_text=one.as_text, content=one.content, **named)), close)

    several = calls(3)
    cut = _cut(calls(1), several if all(name in several for name in _NAMES) else None, tail)
    if cut is not None and cut.places is not None:
        cut = _with_places(cut, calls(1, n_keys=2), calls(1, value=_NUMBER))
    if cut is None:
        return None
    trigger = _trigger((*cut.lead, *cut.pre), header + tail)
    made = codec.replace(cut, trigger=trigger, as_text=one.as_text, content=one.content)
    return made if trigger and _is_understood(made, calls) else None


def _trigger(parts: Parts, around: str) -> str:
    """The first tag; more of what stands before a name where that is found `around` every answer; "": all of it is."""
    begin = "".join(_until_variable(parts)).strip()
    ends = [found.end() for found in _TAG.finditer(begin)] if _TAG.match(begin) else []
    return next((begin[:end] for end in (*ends, len(begin)) if begin[:end] not in around), "")


def _one_call(ask: Ask) -> _Rendered | None:
    """In the first way that the template takes, so that name and argument come through as JSON or as text."""
    contents: tuple[str | bool | None, ...] = ("", None, False)
    for as_text, content in product((False, True), contents):
        text = ask(_calls(1, as_text=as_text, content=content))
        is_there = all(mark in text for mark in (_NAMES[0], _KEYS[0], _VALUE))
        if is_there and not re.search(rf"""'{_KEYS[0]}'|\\"{_KEYS[0]}""", text):  # as Python, JSON within JSON
            return _Rendered(as_text, content, text)
    return None


def _said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _calls(n: int, *, as_text: bool, content: str | bool | None, n_keys: int = 1, value: Any = None) -> dict[str, Any]:
    arguments: Any = dict.fromkeys(_KEYS[:n_keys], value or _VALUE)
    made = [_call(_IDS[i], _NAMES[i], json.dumps(arguments) if as_text else arguments) for i in range(n)]
    said = {} if content is False else {"content": content}
    return {"role": "assistant", **said, "tool_calls": made}


def _call(id_: str, name: str, arguments: Any) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def _behind(header: str, text: str, close: str) -> str:
    """What stands behind an answer's heading, and behind thoughts; of a heading that differs, what differs, from the
    beginning of its tag on."""
    if close and close in text.partition(_NAMES[0])[0]:
        begin = text.partition(_NAMES[0])[0].rindex(close) + len(close)
        return text[begin:].lstrip()
    if text.startswith(header):
        return text[len(header) :]
    n = len(_common_begin([header, text]))
    for opening, closing in ("<>", "[]"):
        begin = text.rfind(opening, 0, n)
        if begin > text.rfind(closing, 0, n):
            n = begin
    return text[n:]


def _cut(one: str, several: str | None, tail: str) -> ToolSyntax | None:
    """The texts around the marks of one call, and of three."""
    pattern = re.compile(rf'\{{\s*"{_KEYS[0]}"\s*:\s*"{_VALUE}"\s*\}}')
    is_json = pattern.search(one) is not None
    first = _split(one, 1, pattern if is_json else None)
    if first is None:
        return None
    before, mids, places, (rest,) = first
    ended = _without_tail(rest, tail)
    all_of = _split(several, 3, pattern if is_json else None) if several is not None else None
    if all_of is None:
        pre, mid = _general([before], [_IDS[0]]), _general(mids, [_IDS[0]])
        if pre is None or mid is None:
            return None
        post = _general([ended], [_IDS[0]])
        return None if post is None else ToolSyntax("", (), pre, mid, post, None, (), places)
    before, mids, _, gaps = all_of
    ended = _without_tail(gaps[2], tail)
    behind = [_marked(text, id_) for text, id_ in zip(gaps, _IDS, strict=True)]
    own_end = _marked(ended, _IDS[2])
    post_text = _whole_begin(_common_begin([behind[0], behind[1], own_end]))
    between = [text[len(post_text) :] for text in behind[:2]]
    # Ids of the next call stand before its name.
    between = [text.replace(_IDS[i + 1], ID) for i, text in enumerate(between)]
    leading = before.replace(_IDS[0], ID)
    pre_text = _whole_end(_common_end([leading, *between]))
    sep = _general([text[: len(text) - len(pre_text)] for text in between], None, first=1)
    pre, mid = _general([pre_text], None), _general(mids, list(_IDS))
    lead = _general([leading[: len(leading) - len(pre_text)]], None, first=0)
    post, end = _general([post_text], None), _general([own_end[len(post_text) :]], None)
    if None in (sep, pre, mid, lead, post, end):
        return None
    return ToolSyntax("", lead, pre, mid, post, sep, end, places)  # type: ignore[arg-type]


def _with_places(syntax: ToolSyntax, two: str, number: str) -> ToolSyntax | None:
    """Of arguments that have a place each: by a call with two of them, what belongs to one. Until now what stands
    before a key counts among `mid`, and what stands behind a value among `post`."""
    key, value = two.find(_KEYS[0]), two.find(_VALUE)
    next_key = two.find(_KEYS[1], value)
    if not 0 <= key < value < next_key or not syntax.mid or not syntax.post:
        return None
    to_value = two[key + len(_KEYS[0]) : value]
    gap = two[value + len(_VALUE) : next_key]
    found = number.partition(_KEYS[0])[2].partition(str(_NUMBER))
    to_number = found[0] if found[1] else to_value
    quote = to_value.removeprefix(to_number) if to_number else ""
    if quote and gap.startswith(quote) and syntax.post[0].startswith(quote):
        post = (syntax.post[0].removeprefix(quote), *syntax.post[1:])
        places = Places("", to_number, "", gap.removeprefix(quote), to_number, quote)
        return codec.replace(syntax, post=post, places=places) if post[0].strip() else None
    key_text = _whole_end(_common_end([syntax.mid[-1], gap]))
    gap = gap[: len(gap) - len(key_text)]
    after = _whole_begin(_common_begin([gap, syntax.post[0]]))
    if not key_text or not to_value or not after:
        return None
    mid = (*syntax.mid[:-1], syntax.mid[-1][: len(syntax.mid[-1]) - len(key_text)])
    post = (syntax.post[0][len(after) :], *syntax.post[1:])
    places = Places(key_text, to_value, after, gap[len(after) :], to_number)
    return codec.replace(syntax, mid=tuple(filter(None, mid)), post=tuple(filter(None, post)), places=places)


def _split(
    text: str, n: int, pattern: re.Pattern[str] | None
) -> tuple[str, list[str], Places | None, list[str]] | None:
    """What stands before the first name, between names and arguments, and behind each call's arguments."""
    at, before, mids, gaps, places = 0, "", [], [], None
    for i in range(n):
        begin = text.find(_NAMES[i], at)
        if begin < 0:
            return None
        if i == 0:
            before = text[:begin]
        else:
            gaps.append(text[at:begin])
        end = begin + len(_NAMES[i])
        if pattern is not None:
            found = pattern.search(text, end)
            if found is None:
                return None
            mids.append(text[end : found.start()])
            at = found.end()
        else:
            key, value = text.find(_KEYS[0], end), text.find(_VALUE, end)
            if not end <= key < value:
                return None
            mids.append(text[end:key])
            places = Places("", text[key + len(_KEYS[0]) : value], "", "", "")
            at = value + len(_VALUE)
    gaps.append(text[at:])
    return before, mids, places, gaps


def _without_tail(text: str, tail: str) -> str:
    """What a call ends with, without what every answer ends with, whose token may be another one, or come twice."""
    common = _common_end([text, tail])
    ended = _whole_begin(text[: len(text) - len(common)])
    first = _TAG.match(tail)
    return ended.partition(first[0])[0] if first is not None else ended


def _whole_begin(text: str) -> str:
    """Without the beginning of a tag at its end."""
    begin = text.rfind("<")
    return text[:begin] if begin > text.rfind(">") else text


def _whole_end(text: str) -> str:
    """Without the end of a tag at its beginning."""
    end, begin = text.find(">"), text.find("<")
    return text[end + 1 :] if end >= 0 and (begin < 0 or end < begin) else text


def _common_begin(texts: Sequence[str]) -> str:
    first = min(texts, key=len)
    return first[: next((i for i, char in enumerate(first) if any(text[i] != char for text in texts)), len(first))]


def _common_end(texts: Sequence[str]) -> str:
    return _common_begin([text[::-1] for text in texts])[::-1]


def _marked(text: str, id_: str) -> str:
    return text.replace(id_, ID)


def _general(texts: Sequence[str], ids: Sequence[str] | None, first: int = 0) -> Parts | None:
    """The same text of each call as parts; the place of a call among them, counted from 0 or 1, is variable."""
    made = [_marked(text, ids[i]) if ids else text for i, text in enumerate(texts)]
    found = made[0]
    if len(set(made)) > 1:
        for begin in (first, first + 1):
            general = {_indexed(text, begin + i) for i, text in enumerate(made)}
            if len(general) == 1:
                (found,) = general
                break
        else:
            return None
    return tuple(part for part in re.split(f"({ID}|{INDEX})", found) if part)


def _indexed(text: str, index: int) -> str:
    return re.sub(rf"(?<!\d){index}(?!\d)", INDEX, text)


def _until_variable(parts: Sequence[str]) -> list[str]:
    variable = next((i for i, part in enumerate(parts) if part in (ID, INDEX)), len(parts))
    return list(parts[:variable])


def _text(render: Render, messages: list[dict[str, Any]]) -> str:
    try:
        return str.__str__(render(messages, _SPECS))  # a plain text, which forgets whose its characters are
    except Exception:  # noqa: BLE001 - as above
        return ""


def _is_understood(syntax: ToolSyntax, calls: Callable[..., str]) -> bool:
    """Whether calls that the template writes are read as they are."""
    from llmrun.engine.child.tool_calls import CallSplitter

    texts = {name: {key: set[str]() for key in _KEYS} for name in _NAMES}
    trials: list[tuple[int, int, Any]] = [(1, 1, _VALUE), (1, 2, _VALUE), (1, 2, _OBJECT)]
    for n, n_keys, value in [*trials, (3, 2, _VALUE)] if syntax.sep is not None else trials:
        splitter = CallSplitter(syntax, texts if value == _VALUE else {})
        pieces = [*splitter.add(calls(n, n_keys=n_keys, value=value))[1], *splitter.finish()[1]]
        found: dict[int, tuple[str, str]] = {}
        for piece in pieces:
            name, arguments = found.get(piece.index, ("", ""))
            found[piece.index] = name + piece.name, arguments + piece.arguments
        wanted = dict.fromkeys(_KEYS[:n_keys], value)
        read = [(name, _loaded(arguments)) for name, arguments in found.values()]
        if read != [(name, wanted) for name in _NAMES[:n]]:
            return False
    return True


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
