"""Grammars of llama.cpp (GBNF), written as grammars of llguidance (a dialect of Lark).

The syntax is llama.cpp's, read strictly: an error is a `UsageError` with the line. A rule defined twice, an empty
class, a range that runs backwards and a grammar that can never end are refused as well: llama.cpp takes them for
something else than is written. Token references (`<[1]>`, `<think>`) belong to one model's vocabulary and are refused.
Left recursion, which llama.cpp does not support, is allowed, and so are repetitions beyond its 2000.

Every character is a terminal of its own: llguidance takes the longest match of a terminal, and of `[ab]* "ab"` it would
not find the end otherwise.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from typing import NoReturn, TypeAlias

from llmrun.errors import UsageError

MAX_TEXT = 4 << 20
MAX_RULES = 10_000
MAX_NESTING = 100
MAX_REPETITIONS = 1_000_000

_HINT = "the syntax: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md"
_LAST = 0x10FFFF
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_COMMENTS = {False: re.compile(r"(?:[ \t]|#[^\r\n]*)*"), True: re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")}
"""Blanks and comments, without line ends and with them."""
_COUNT = re.compile(r"[ \t]*([0-9]+)[ \t]*(?:(,)[ \t]*([0-9]*)[ \t]*)?\}")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}

Body: TypeAlias = "list[list[str | Body]]"
"""Of alternatives: what each can't be without, names of rules and groups."""


def to_lark(text: str, field: str = "grammar") -> str:
    """The same grammar for llguidance. Raises `UsageError`, whose `field` this is."""
    if len(text) > MAX_TEXT:
        problem = f"a grammar of {len(text)} characters; at most {MAX_TEXT} are possible"
        raise UsageError(problem, field=field, hint="a smaller grammar")
    return _Parser(text, field).grammar()


class _Parser:
    def __init__(self, text: str, field: str) -> None:
        self.text, self.field, self.pos = text, field, 0
        self.line_begins = [match.end() for match in re.finditer("\r\n|\r|\n", text)]
        self.used: dict[str, int] = {}
        """Of every rule that is defined or named, where it is first."""
        self.bodies: dict[str, Body] = {}
        self.lines: dict[str, int] = {}

    # -- errors ----------------------------------------------------------------------------------------------------

    def fail(self, problem: str, at: int | None = None, hint: str = _HINT) -> NoReturn:
        line = self.line(self.pos if at is None else at)
        raise UsageError(f"line {line}: {problem}", field=self.field, hint=hint)

    def line(self, position: int) -> int:
        return bisect_right(self.line_begins, position) + 1

    def here(self) -> str:
        """What stands at the position, as it can be shown."""
        rest = self.text[self.pos : self.pos + 20].splitlines()
        return repr(rest[0]) if rest and rest[0] else "the end of the line" if rest else "the end"

    def leftover(self) -> str:
        known = {
            **{bracket: f"a '{bracket}' without its beginning" for bracket in ")]}"},
            ":": "'::=' in the middle of a line: every rule begins on a line of its own",
            "'": "a text stands in double quotes, not in single ones",
            "_": "a name has letters, digits and dashes, no underscores",
        }
        return known.get(self.peek(), f"{self.here()} cannot stand in a rule")

    # -- rules ------------------------------------------------------------------------------------------------------

    def grammar(self) -> str:
        if bad := re.search("[\0\ud800-\udfff]", self.text):
            if bad[0] == "\0":
                self.fail("a NUL character, which would end the grammar", bad.start())
            self.fail("bytes that are not UTF-8", bad.start(), "iconv -t UTF-8 FILE")
        self.skip(True)
        if not self.peek():
            raise UsageError("the grammar is empty", field=self.field, hint='such as: root ::= "yes" | "no"')
        lark = []
        while self.peek():
            lark.append(self.rule())
        for name, at in self.used.items():
            if name not in self.bodies:
                self.fail(f"there is no rule '{name}'", at, f"{name} ::= …")
        if "root" not in self.bodies:
            known = ", ".join(list(self.bodies)[:5])
            problem = f"there is no rule 'root', where the answer begins; there is {known}"
            raise UsageError(problem, field=self.field, hint="root ::= …")
        self.check_that_it_ends()
        return "%llguidance {}\n" + "\n".join(lark) + "\n"

    def check_that_it_ends(self) -> None:
        ending: set[str] = set()

        def ends(body: Body) -> bool:
            return any(all(one in ending if isinstance(one, str) else ends(one) for one in each) for each in body)

        n_known = -1
        while n_known < len(ending):
            n_known = len(ending)
            ending |= {name for name, body in self.bodies.items() if name not in ending and ends(body)}
        if "root" not in ending:
            problem = "the rule 'root': it has no end: whatever is written, it asks for more"
            raise UsageError(f"line {self.lines['root']}: {problem}", field=self.field, hint="an alternative that ends")

    def peek(self) -> str:
        return self.text[self.pos : self.pos + 1]

    def skip(self, newline_ok: bool) -> None:
        """Blanks and comments, line ends only where the rule may go on behind them."""
        found = _COMMENTS[newline_ok].match(self.text, self.pos)
        self.pos = found.end() if found else self.pos

    def name(self) -> str:
        found = _NAME.match(self.text, self.pos)
        name = found[0] if found else ""
        if name:
            self.used.setdefault(name, self.pos)
            self.pos += len(name)
            if len(self.used) > MAX_RULES:
                self.fail(f"more than {MAX_RULES} rules", hint="a smaller grammar")
        return name

    def rule(self) -> str:
        start = self.pos
        name = self.name()
        if not name:
            self.fail(f"a rule begins with its name (letters, digits and dashes), not with {self.here()}")
        self.skip(False)
        if not self.text.startswith("::=", self.pos):
            underscore = "; a name has no underscores, write a dash" if self.peek() == "_" else ""
            self.fail(f"'::=' belongs behind the name '{name}', not {self.here()}{underscore}")
        if name in self.bodies:
            self.fail(f"the rule '{name}' is defined again, first on line {self.lines[name]}", start, "one of the two")
        self.lines[name] = self.line(start)
        self.pos += 3
        self.skip(True)
        lark, self.bodies[name] = self.alternatives(0)
        if self.peek() and self.peek() not in "\r\n":
            self.fail(self.leftover())
        self.skip(True)
        return f"{_lark(name)}: {lark}"

    def alternatives(self, depth: int) -> tuple[str, Body]:
        found = [self.sequence(depth)]
        while self.peek() == "|":
            self.pos += 1
            self.skip(True)
            found.append(self.sequence(depth))
        return " | ".join(lark for lark, _ in found), [needed for _, needed in found]

    def sequence(self, depth: int) -> tuple[str, list[str | Body]]:
        out: list[str] = []
        needed: list[list[str | Body]] = []
        repeatable = False
        while character := self.peek():
            if character in "*+?{":
                at = self.pos
                least, lark = self.repetition()
                if not repeatable:
                    self.fail("a repetition with nothing before it to repeat", at)
                out[-1] = '""' if lark == "{0,0}" else f"({out[-1]}){lark}"
                needed[-1] = needed[-1] if least else []
                self.skip(depth > 0)
                continue
            needs: list[str | Body] = []
            repeatable = True
            if character == '"':
                text = self.literal()
                out.append(" ".join(json.dumps(character, ensure_ascii=False) for character in text) or '""')
                repeatable = bool(text)
            elif character == "[":
                out.append(self.char_class())
            elif character == ".":
                self.pos += 1
                out.append("/(?s:.)/")
            elif name := self.name():
                out.append(_lark(name))
                needs = [name]
            elif character == "(":
                lark, body = self.group(depth)
                out.append(f"({lark})")
                needs = [body]
            elif character in "<!":
                why = "belongs to one model's vocabulary and cannot be checked; write its text in double quotes"
                self.fail(f"a token (<[1]>, <think>) {why}")
            else:
                break
            needed.append(needs)
            self.skip(depth > 0)
        return " ".join(out) or '""', [one for each in needed for one in each]

    def group(self, depth: int) -> tuple[str, Body]:
        if depth >= MAX_NESTING:
            self.fail(f"more than {MAX_NESTING} parentheses within each other", hint="rules of their own")
        opened = self.pos
        self.pos += 1
        self.skip(True)
        found = self.alternatives(depth + 1)
        if self.peek() != ")":
            self.fail(f"the '(' of line {self.line(opened)} is not closed; there is {self.here()}")
        self.pos += 1
        return found

    # -- characters -------------------------------------------------------------------------------------------------

    def character(self, opened: int, closing: str) -> int:
        character = self.peek()
        if not character:
            self.fail(f"the {closing} that closes it is missing", opened)
        if character != "\\":
            self.pos += 1
            return ord(character)
        escaped = self.text[self.pos + 1 : self.pos + 2]
        if escaped in _HEX_ESCAPES and escaped:
            n = _HEX_ESCAPES[escaped]
            digits = self.text[self.pos + 2 : self.pos + 2 + n]
            if not re.fullmatch(f"[0-9a-fA-F]{{{n}}}", digits):
                self.fail(f"\\{escaped} takes {n} hexadecimal digits, not {digits!r}")
            self.pos += 2 + n
            return int(digits, 16)
        if escaped not in _ESCAPES:
            shown = f"'\\{escaped}'" if escaped.isprintable() and escaped else "a backslash before the end"
            known = '\\n \\r \\t \\\\ \\" \\[ \\] \\- \\xHH \\uHHHH \\UHHHHHHHH'
            self.fail(f"{shown} is not an escape; the escapes are {known}")
        self.pos += 2
        return ord(_ESCAPES[escaped])

    def literal(self) -> str:
        opened = self.pos
        self.pos += 1
        out = []
        while self.peek() != '"':
            at = self.pos
            code = self.character(opened, '"')
            if not _as_texts_have([(code, code)]):
                self.fail(f"no text has the character U+{code:04X}", at)
            out.append(chr(code))
        self.pos += 1
        return "".join(out)

    def char_class(self) -> str:
        opened = self.pos
        self.pos += 1
        negated = self.peek() == "^"
        self.pos += negated
        ranges = []
        while self.peek() != "]":
            at = self.pos
            low = high = self.character(opened, "]")
            if self.peek() == "-" and self.text[self.pos + 1 : self.pos + 2] != "]":
                self.pos += 1
                high = self.character(opened, "]")
            if high < low:
                self.fail(f"the range {self.text[at : self.pos]!r} runs backwards", at)
            ranges.append((low, high))
        self.pos += 1
        if not ranges:
            self.fail("an empty class; any character is a dot, a bracket in a class is \\[ or \\]", opened)
        ranges = _as_texts_have(_others(ranges) if negated else ranges)
        if not ranges:
            self.fail(f"{self.text[opened : self.pos][:40]!r} matches no character", opened)
        return "/[" + "".join(f"\\x{{{low:x}}}-\\x{{{high:x}}}" for low, high in ranges) + "]/"

    def repetition(self) -> tuple[int, str]:
        """How often at least, and the repetition for Lark."""
        character, opened = self.peek(), self.pos
        self.pos += 1
        if character != "{":
            return int(character == "+"), character
        found = _COUNT.match(self.text, self.pos)
        if not found:
            self.skip(False)
            if not self.peek().isdecimal():
                self.fail(f"a number belongs behind '{{', such as {{2}}, {{2,}} or {{2,5}}, not {self.here()}")
            self.fail("the '{' of a repetition is not closed: {2}, {2,} or {2,5}", opened)
        self.pos = found.end()
        least, most = (digits.lstrip("0") or "0" if digits else "" for digits in (found[1], found[3] or ""))
        if max(len(least), len(most)) > 9 or max(int(least), int(most or 0)) > MAX_REPETITIONS:
            self.fail(f"{max(least, most, key=len)[:12]}… repetitions; at most {MAX_REPETITIONS} are possible", opened)
        if most and int(most) < int(least):
            self.fail(f"{{{least},{most}}}: at least {least} and at most {most}", opened)
        if not found[2]:
            most = least
        return int(least), f"{{{least},{most}}}"


def _lark(name: str) -> str:
    """The name of a rule for Lark, which knows lower-case letters, digits and underscores."""
    made = "r_" + "".join(c if c.islower() or c.isdecimal() else f"_{ord(c)}_" for c in name)
    return "start" if name == "root" else made


def _others(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The code points outside of these ranges."""
    found, begin = [], 0
    for low, high in sorted(ranges):
        if low > begin:
            found.append((begin, low - 1))
        begin = max(begin, high + 1)
    return [*found, (begin, _LAST)]


def _as_texts_have(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neither NUL nor surrogates nor what is beyond Unicode."""
    texts = ((1, 0xD7FF), (0xE000, _LAST))
    clipped = ((max(low, first), min(high, last)) for low, high in ranges for first, last in texts)
    return [(low, high) for low, high in clipped if low <= high]
