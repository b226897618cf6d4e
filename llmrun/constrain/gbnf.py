"""llama.cpp's grammars (GBNF), parsed and checked the way llama.cpp does, before it does.

llama.cpp (b9966 and near, in llama-cpp-python 0.3.36) reports some errors of a grammar to stderr and returns no
sampler; from others it dies or never returns, while it reads the grammar or many tokens later:

- `{3,1}` counts down from 2^64; a class or character that no text can have (`[z-a]`, `\\x00`, a lone surrogate) leaves
  no token to choose, and the next step aborts; a rule that only calls itself does the same;
- left recursion is found only where a rule in front is *directly* empty: behind `a ::= b` with `b ::= ""` it is not,
  and the parser's stacks grow for ever. The search itself visits a rule once per way that leads to it: 2^n of them for
  n rules of the form `a ::= b | b`;
- `{0,2001}` silently becomes `{0,}`; a NUL ends the text; an empty grammar is no constraint.

`parse` does what llama.cpp's parser does, repetitions written out as rules, and raises `UsageError` with the line and
the reason. Four things that llama.cpp accepts are refused as well, because nobody means them: a rule defined twice (the
last would count), an empty class (it would match the empty text), a range that runs backwards, and a grammar whose
root can never end. Token references (`<[1]>`, `<think>`) need a vocabulary, which is not known here: they are refused.

`Grammar.judge` runs the same machine over a finished text: a set of stacks, one step per character.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias

from llmrun.errors import UsageError

MAX_REPETITIONS = 2000
"""MAX_REPETITION_THRESHOLD of llama-grammar.cpp: of a repetition, and of repetitions times what they repeat."""
MAX_TEXT = 4 << 20
MAX_RULES = 100_000
MAX_ELEMENTS = 500_000
"""Characters, ranges and references, after repetitions are written out: 8 bytes each in llama.cpp, 60 here."""
MAX_NESTING = 100
MAX_CHAIN = 10_000
"""Rules that begin with rules that begin with rules: llama.cpp's search for left recursion is itself recursive."""
MAX_SEARCH = 50_000_000
"""Elements that this search looks at; 0.3 s."""
MAX_LEADS = 10_000
"""Ways to go on from one place: llama.cpp compares each with each, at every token."""
MAX_STEPS = 1_000_000
"""Of `judge`, in all: some 2 s. What takes longer is not judged."""

_HINT = "the syntax: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md"
_LAST = 0x10FFFF
_DIGITS = frozenset("0123456789")
_HEX = _DIGITS | frozenset("abcdefABCDEF")
_WORD = _DIGITS | frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True)
class Chars:
    """One character out of inclusive ranges of code points, or one out of none of them."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def has(self, code: int) -> bool:
        return any(low <= code <= high for low, high in self.ranges) is not self.negated

    def valid_ranges(self) -> list[tuple[int, int]]:
        """Its code points that a text can have, in order: neither NUL nor surrogates nor what is beyond Unicode."""
        merged: list[tuple[int, int]] = []
        for low, high in sorted(self.ranges):
            if merged and low <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], high))
            else:
                merged.append((low, high))
        if self.negated:
            ends = [-1, *(high for _, high in merged)]
            begins = [*(low for low, _ in merged), _LAST + 1]
            merged = [(end + 1, begin - 1) for end, begin in zip(ends, begins, strict=True)]
        clipped = (
            (max(low, first), min(high, last)) for low, high in merged for first, last in ((1, 0xD7FF), (0xE000, _LAST))
        )
        return [(low, high) for low, high in clipped if low <= high]

    @property
    def n_elements(self) -> int:
        return max(1, sum(1 if low == high else 2 for low, high in self.ranges))


Element: TypeAlias = "int | Chars"
"""A rule by its number, or a character."""
Alternative: TypeAlias = "tuple[Element, ...]"
Verdict = Literal["complete", "incomplete", "wrong"]


@dataclass(frozen=True)
class Grammar:
    """A grammar with its repetitions written out.

    Attributes:
        names: of each rule; those of groups and repetitions have the name of the rule that they stand in.
        lines: where each is defined.
        rules: of each rule, its alternatives.
        root: the rule that a text has to match.
    """

    names: tuple[str, ...]
    lines: tuple[int, ...]
    rules: tuple[tuple[Alternative, ...], ...]
    root: int

    def judge(self, text: str) -> Verdict | None:
        """Whether `text` is complete, could go on to be, or breaks a rule; None where to know would take too long."""
        return _Machine(self).judge(text)


def check(text: str, field: str = "grammar") -> None:
    """Raises `UsageError` for a grammar that llama.cpp would refuse, die of or never return from."""
    parse(text, field)


def parse(text: str, field: str = "grammar") -> Grammar:
    """Reads a grammar as llama.cpp does. Raises `UsageError`, whose `field` this is."""
    if len(text) > MAX_TEXT:
        raise UsageError(
            f"a grammar of {len(text)} characters; at most {MAX_TEXT} are possible",
            field=field,
            hint="a smaller grammar",
        )
    grammar = _Parser(text, field).grammar()
    _Checks(grammar, field).all()
    return grammar


class _Parser:
    def __init__(self, text: str, field: str) -> None:
        self.text = text
        self.field = field
        self.pos = 0
        self.line_begins = [match.end() for match in re.finditer("\r\n|\r|\n", text)]
        self.ids: dict[str, int] = {}
        self.names: list[str] = []
        self.lines: list[int] = []
        self.rules: dict[int, list[list[Element]]] = {}
        self.defined: dict[int, int] = {}  # by rule: the position
        self.n_elements = 0
        self.interned: dict[Chars, Chars] = {}

    # -- errors ----------------------------------------------------------------------------------------------------

    def fail(self, problem: str, at: int | None = None, hint: str = _HINT) -> NoReturn:
        position = self.pos if at is None else at
        raise UsageError(f"line {self.line(position)}: {problem}", field=self.field, hint=hint)

    def line(self, position: int) -> int:
        return bisect_right(self.line_begins, position) + 1

    def here(self) -> str:
        """What stands at the position, as it can be shown."""
        rest = self.text[self.pos : self.pos + 20].splitlines()
        return repr(rest[0]) if rest and rest[0] else "the end of the line" if rest else "the end"

    # -- the text ---------------------------------------------------------------------------------------------------

    def grammar(self) -> Grammar:
        nul = self.text.find("\0")
        if nul >= 0:
            self.fail("a NUL character, which would end the grammar", nul)
        for position, character in enumerate(self.text):
            if "\ud800" <= character <= "\udfff":
                self.fail("bytes that are not UTF-8", position, "iconv -t UTF-8 FILE")
        self.skip(True)
        if not self.peek():
            raise UsageError("the grammar is empty", field=self.field, hint='such as: root ::= "yes" | "no"')
        while self.peek():
            self.rule()
        return self.finished()

    def finished(self) -> Grammar:
        for name, id_ in self.ids.items():
            if id_ not in self.rules:
                self.fail(f"there is no rule '{name}'", self.defined[id_], f"{name} ::= …")
        if "root" not in self.ids:
            known = ", ".join(list(self.ids)[:5])
            raise UsageError(
                f"there is no rule 'root', where the answer begins; there is {known}",
                field=self.field,
                hint="root ::= …",
            )
        rules = tuple(tuple(tuple(alternative) for alternative in self.rules[i]) for i in range(len(self.names)))
        return Grammar(tuple(self.names), tuple(self.lines), rules, self.ids["root"])

    def peek(self, ahead: int = 0) -> str:
        position = self.pos + ahead
        return self.text[position] if position < len(self.text) else ""

    def skip(self, newline_ok: bool) -> None:
        """Blanks and comments, line ends only where the rule may go on behind them."""
        blanks = " \t\r\n" if newline_ok else " \t"
        while (character := self.peek()) and (character in blanks or character == "#"):
            if character == "#":
                while self.peek() and self.peek() not in "\r\n":
                    self.pos += 1
            else:
                self.pos += 1

    def name(self) -> str:
        start = self.pos
        while self.peek() and self.peek() in _WORD:
            self.pos += 1
        return self.text[start : self.pos]

    def id_of(self, name: str, at: int) -> int:
        if name not in self.ids:
            self.ids[name] = self.new_rule(name, at)
        return self.ids[name]

    def new_rule(self, name: str, at: int) -> int:
        if len(self.names) >= MAX_RULES:
            self.fail(
                f"more than {MAX_RULES} rules once repetitions are written out", at, "fewer or smaller repetitions"
            )
        self.names.append(name)
        self.lines.append(self.line(at) if at >= 0 else self.lines[-1])
        self.defined[len(self.names) - 1] = at
        return len(self.names) - 1

    def count(self, n: int) -> None:
        self.n_elements += n
        if self.n_elements > MAX_ELEMENTS:
            self.fail(
                f"more than {MAX_ELEMENTS} elements once repetitions are written out",
                hint="fewer or smaller repetitions",
            )

    def rule(self) -> None:
        start = self.pos
        name = self.name()
        if not name:
            self.fail(f"a rule begins with its name (letters, digits and dashes), not with {self.here()}")
        self.skip(False)
        if self.text[self.pos : self.pos + 3] != "::=":
            underscore = "; a name has no underscores, write a dash" if self.peek() == "_" else ""
            self.fail(f"'::=' belongs behind the name '{name}', not {self.here()}{underscore}")
        id_ = self.id_of(name, start)
        if id_ in self.rules:
            self.fail(f"the rule '{name}' is defined again, first on line {self.lines[id_]}", start, "one of the two")
        self.lines[id_] = self.line(start)
        self.pos += 3
        self.skip(True)
        self.rules[id_] = self.alternatives(name, 0)
        if self.peek() == "\r":
            self.pos += 2 if self.peek(1) == "\n" else 1
        elif self.peek() == "\n":
            self.pos += 1
        elif self.peek():
            self.fail(self.leftover())
        self.skip(True)

    def leftover(self) -> str:
        match self.peek():
            case ")" | "]" | "}" as bracket:
                return f"a '{bracket}' without its beginning"
            case ":":
                return "'::=' in the middle of a line: every rule begins on a line of its own"
            case "'":
                return "a text stands in double quotes, not in single ones"
            case "_":
                return "a name has letters, digits and dashes, no underscores"
            case _:
                return f"{self.here()} cannot stand in a rule"

    def alternatives(self, name: str, depth: int) -> list[list[Element]]:
        found = [self.sequence(name, depth)]
        while self.peek() == "|":
            self.pos += 1
            self.skip(True)
            found.append(self.sequence(name, depth))
        self.count(len(found))
        return found

    def sequence(self, name: str, depth: int) -> list[Element]:
        """One alternative. `last` is where its last symbol begins, `n_before` llama.cpp's count of that one's rules."""
        out: list[Element] = []
        last = 0
        n_before = 1
        nested = depth > 0
        while character := self.peek():
            if character in "*+?{":
                at = self.pos
                least, most = self.repetition(nested)
                n_before *= self.repeat(out, last, n_before, least, most, name, at)
                continue
            if character == '"':
                symbol, n_before = self.literal(), 1
            elif character == "[":
                symbol, n_before = [self.char_class()], 1
            elif character == ".":
                self.pos += 1
                symbol, n_before = [self.chars(Chars((), negated=True))], 1
            elif character in _WORD:
                at = self.pos
                symbol, n_before = [self.id_of(self.name(), at)], 1
            elif character == "(":
                n_rules = len(self.names)
                symbol = [self.group(name, depth)]
                n_before = max(1, len(self.names) - n_rules)
            elif character in "<!":
                self.fail(
                    "a token (<[1]>, <think>) belongs to one model's vocabulary and cannot be checked; "
                    "write its text in double quotes"
                )
            else:
                break
            self.skip(nested)
            last = len(out)
            out += symbol
            self.count(sum(_weight(element) for element in symbol))
        return out

    def group(self, name: str, depth: int) -> int:
        if depth >= MAX_NESTING:
            self.fail(f"more than {MAX_NESTING} parentheses within each other", hint="rules of their own")
        opened = self.pos
        self.pos += 1
        self.skip(True)
        id_ = self.new_rule(name, opened)
        self.rules[id_] = self.alternatives(name, depth + 1)
        if self.peek() != ")":
            self.fail(f"the '(' of line {self.line(opened)} is not closed; there is {self.here()}")
        self.pos += 1
        return id_

    # -- characters -------------------------------------------------------------------------------------------------

    def chars(self, chars: Chars) -> Chars:
        return self.interned.setdefault(chars, chars)

    def character(self, opened: int, closing: str) -> int:
        character = self.peek()
        if not character:
            self.fail(f"the {closing} that closes it is missing", opened)
        if character != "\\":
            self.pos += 1
            return ord(character)
        escaped = self.peek(1)
        if escaped in _HEX_ESCAPES:
            n = _HEX_ESCAPES[escaped]
            digits = self.text[self.pos + 2 : self.pos + 2 + n]
            if len(digits) < n or not _HEX.issuperset(digits):
                self.fail(f"\\{escaped} takes {n} hexadecimal digits, not {digits!r}")
            self.pos += 2 + n
            return int(digits, 16)
        if escaped not in _ESCAPES:
            shown = f"'\\{escaped}'" if escaped.isprintable() else "a backslash before the end"
            self.fail(
                f'{shown} is not an escape; the escapes are \\n \\r \\t \\\\ \\" \\[ \\] \\- \\xHH \\uHHHH \\UHHHHHHHH'
            )
        self.pos += 2
        return ord(_ESCAPES[escaped])

    def literal(self) -> list[Element]:
        opened = self.pos
        self.pos += 1
        out: list[Element] = []
        while self.peek() != '"':
            at = self.pos
            code = self.character(opened, '"')
            chars = Chars(((code, code),))
            if not chars.valid_ranges():
                self.fail(f"no text has the character U+{code:04X}", at)
            out.append(self.chars(chars))
        self.pos += 1
        return out

    def char_class(self) -> Chars:
        opened = self.pos
        self.pos += 1
        negated = self.peek() == "^"
        if negated:
            self.pos += 1
        ranges = []
        while self.peek() != "]":
            at = self.pos
            low = high = self.character(opened, "]")
            if self.peek() == "-" and self.peek(1) != "]":
                self.pos += 1
                high = self.character(opened, "]")
            if high < low:
                self.fail(f"the range {self.text[at : self.pos]!r} runs backwards", at)
            ranges.append((low, high))
        self.pos += 1
        if not ranges:
            self.fail("an empty class; any character is a dot, a bracket in a class is \\[ or \\]", opened)
        chars = Chars(tuple(ranges), negated)
        if not chars.valid_ranges():
            self.fail(f"{self.text[opened : self.pos][:40]!r} matches no character", opened)
        return self.chars(chars)

    # -- repetitions ------------------------------------------------------------------------------------------------

    def number(self) -> int | None:
        start = self.pos
        while self.peek() and self.peek() in _DIGITS:
            self.pos += 1
        digits = self.text[start : self.pos].lstrip("0")
        if self.pos == start:
            return None
        if len(digits) > 9:
            self.fail(f"{digits[:12]}… repetitions; {MAX_REPETITIONS} is llama.cpp's limit", start)
        return int(digits or "0")

    def repetition(self, nested: bool) -> tuple[int, int | None]:
        """How often, at least and at most; None is without end."""
        character = self.peek()
        opened = self.pos
        self.pos += 1
        self.skip(nested)
        if character != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[character]
        least = self.number()
        if least is None:
            self.fail(f"a number belongs behind '{{', such as {{2}}, {{2,}} or {{2,5}}, not {self.here()}")
        self.skip(nested)
        most: int | None = least
        if self.peek() == ",":
            self.pos += 1
            self.skip(nested)
            most = self.number()
            self.skip(nested)
        if self.peek() != "}":
            self.fail(f"the '{{' of a repetition is not closed; there is {self.here()}")
        self.pos += 1
        self.skip(nested)
        if most is not None and most < least:
            self.fail(f"{{{least},{most}}}: at least {least} and at most {most}", opened)
        if least > MAX_REPETITIONS:
            self.fail(f"{least} repetitions; {MAX_REPETITIONS} is llama.cpp's limit", opened)
        if most is not None and most > MAX_REPETITIONS:
            self.fail(
                f"{{{least},{most}}}: llama.cpp's limit is {MAX_REPETITIONS}, and it takes more for no limit at all",
                opened,
                f"{{{least},{MAX_REPETITIONS}}} or {{{least},}}",
            )
        return least, most

    def repeat(
        self, out: list[Element], last: int, n_before: int, least: int, most: int | None, name: str, at: int
    ) -> int:
        """Rewrite the last symbol as llama.cpp does: copies of it, then a rule for each one that may be left out."""
        if last == len(out):
            self.fail("a repetition with nothing before it to repeat", at)
        symbol = out[last:]
        times = most or least or 1
        if n_before * times > MAX_REPETITIONS:
            self.fail(
                f"{times} repetitions of what makes {n_before} rules itself; together {MAX_REPETITIONS} at most",
                at,
                "make what is repeated a rule of its own",
            )
        n_optional = 1 if most is None else most - least
        weight = sum(_weight(element) for element in symbol)
        self.count((least - 1) * weight + n_optional * (weight + 3) + 1)
        if least == 0:
            del out[last:]
        else:
            out += symbol * (least - 1)
        rest: int | None = None
        for _ in range(n_optional):
            id_ = self.new_rule(name, -1)
            following = id_ if most is None else rest
            self.rules[id_] = [symbol if following is None else [*symbol, following], []]
            rest = id_
        if rest is not None:
            out.append(rest)
        return times


def _weight(element: Element) -> int:
    return 1 if isinstance(element, int) else element.n_elements


# -- what is wrong though it can be parsed ----------------------------------------------------------------------------


class _Checks:
    def __init__(self, grammar: Grammar, field: str) -> None:
        self.grammar = grammar
        self.field = field
        self.n = len(grammar.rules)

    def all(self) -> None:
        empty = _follows((rule, alternative) for rule, alternative in self.without_characters())
        empty_at_once = {rule for rule, alternative in self.without_characters() if not alternative}
        self.no_left_recursion(empty, empty_at_once)
        self.no_dead_end(empty)
        self.leads(empty)

    def alternatives(self) -> Iterator[tuple[int, Alternative]]:
        for rule, alternatives in enumerate(self.grammar.rules):
            for alternative in alternatives:
                yield rule, alternative

    def without_characters(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        for rule, alternative in self.alternatives():
            references = tuple(element for element in alternative if isinstance(element, int))
            if len(references) == len(alternative):
                yield rule, references

    def first(self, alternative: Alternative, empty: set[int]) -> Iterator[tuple[Element, bool]]:
        """What an alternative can begin with, and whether something stands behind it."""
        for i, element in enumerate(alternative):
            yield element, i + 1 < len(alternative)
            if not isinstance(element, int) or element not in empty:
                return

    def no_left_recursion(self, empty: set[int], empty_at_once: set[int]) -> None:
        """None that llama.cpp finds (whatever it is), and none that it overlooks and that makes its stacks grow."""
        graph: list[list[int]] = [[] for _ in range(self.n)]
        seen_by_llama: list[list[int]] = [[] for _ in range(self.n)]
        growing: list[tuple[int, int]] = []
        for rule, alternative in self.alternatives():
            for element, more in self.first(alternative, empty):
                if isinstance(element, int):
                    graph[rule].append(element)
                    if more:
                        growing.append((rule, element))
            for element, _ in self.first(alternative, empty_at_once):
                if isinstance(element, int):
                    seen_by_llama[rule].append(element)
        self.graph, self.component = graph, _components(graph)
        for rule, begin in growing:
            if self.component[rule] == self.component[begin]:
                self.recursive(rule, self.component)
        component = _components(seen_by_llama)
        n_members = [0] * self.n
        for rule in range(self.n):
            n_members[component[rule]] += 1
        for rule in range(self.n):
            if n_members[component[rule]] > 1 or rule in seen_by_llama[rule]:
                self.recursive(rule, component)
        self.search_is_affordable(seen_by_llama, component)

    def recursive(self, rule: int, component: list[int]) -> NoReturn:
        names = self.grammar.names
        through = {names[other] for other in range(self.n) if component[other] == component[rule]} - {names[rule]}
        by_way = f", through {', '.join(sorted(through)[:3])}" if through else ""
        raise UsageError(
            f"line {self.grammar.lines[rule]}: the rule '{names[rule]}' can begin with itself{by_way}, "
            "which llama.cpp does not support",
            field=self.field,
            hint=f'put the repetition behind: {names[rule]} ::= item ("," item)*',
        )

    def search_is_affordable(self, graph: list[list[int]], component: list[int]) -> None:
        """llama.cpp walks every way from a rule that it has not seen yet; there are as many as `work` says."""
        work = [0] * self.n
        chain = [0] * self.n
        for rule in sorted(range(self.n), key=component.__getitem__):  # what is called comes first
            length = 1 + sum(1 + sum(map(_weight, a)) for a in self.grammar.rules[rule])
            work[rule] = min(length + sum(work[called] for called in graph[rule]), MAX_SEARCH + 1)
            chain[rule] = 1 + max((chain[called] for called in graph[rule]), default=0)
        seen = [False] * self.n
        total = 0
        for rule in range(self.n):
            if seen[rule]:
                continue
            total += work[rule]
            todo = [rule]
            while todo:
                called = todo.pop()
                if not seen[called]:
                    seen[called] = True
                    todo += graph[called]
        if total > MAX_SEARCH:
            worst = max(range(self.n), key=work.__getitem__)
            self.too_much(worst, f"there are more ways to begin it than llama.cpp can try ({MAX_SEARCH} steps)")
        if max(chain) > MAX_CHAIN:
            worst = max(range(self.n), key=chain.__getitem__)
            self.too_much(worst, f"it begins with a rule that begins with a rule … {max(chain)} deep")

    def too_much(self, rule: int, problem: str) -> NoReturn:
        raise UsageError(
            f"line {self.grammar.lines[rule]}: the rule '{self.grammar.names[rule]}': {problem}",
            field=self.field,
            hint="fewer alternatives that begin alike",
        )

    def no_dead_end(self, empty: set[int]) -> None:
        """Every rule can begin, and the root can end."""

        def beginnings() -> Iterator[tuple[int, tuple[int, ...]]]:
            for rule, alternative in self.alternatives():
                for element, _ in self.first(alternative, empty):
                    yield rule, (element,) if isinstance(element, int) else ()

        begins = _follows(beginnings())
        for rule in range(self.n):
            if rule not in begins and rule not in empty:
                self.too_much(rule, "nothing can ever match it")
        ends = _follows(
            (rule, tuple(element for element in alternative if isinstance(element, int)))
            for rule, alternative in self.alternatives()
        )
        if self.grammar.root not in ends:
            self.too_much(self.grammar.root, "it has no end: whatever is written, it asks for more")

    def leads(self, empty: set[int]) -> None:
        """How many characters with what is to follow them can come first. Cycles here are of last calls only."""
        of = [0] * self.n  # by component
        for rule in sorted(range(self.n), key=self.component.__getitem__):
            mine = self.component[rule]
            for alternative in self.grammar.rules[rule]:
                for element, _ in self.first(alternative, empty):
                    if not isinstance(element, int):
                        of[mine] += 1
                    elif self.component[element] != mine:
                        of[mine] += of[self.component[element]]
            of[mine] = min(of[mine], MAX_LEADS + 1)
            if of[mine] > MAX_LEADS:
                self.too_much(rule, f"there are more than {MAX_LEADS} ways to begin it")


def _follows(clauses: Iterable[tuple[int, tuple[int, ...]]]) -> set[int]:
    """What is true if each clause's head is true as soon as all of its body is."""
    missing: list[int] = []
    heads: list[int] = []
    waiting: defaultdict[int, list[int]] = defaultdict(list)
    todo: list[int] = []
    for head, body in clauses:
        for needed in set(body):
            waiting[needed].append(len(heads))
        missing.append(len(set(body)))
        heads.append(head)
        if not body:
            todo.append(head)
    true: set[int] = set()
    while todo:
        fact = todo.pop()
        if fact in true:
            continue
        true.add(fact)
        for clause in waiting[fact]:
            missing[clause] -= 1
            if missing[clause] == 0:
                todo.append(heads[clause])
    return true


def _components(graph: list[list[int]]) -> list[int]:
    """The strongly connected component of each node, numbered so that a component only leads to smaller numbers.

    Tarjan's algorithm (1972), without recursion.
    """
    n = len(graph)
    order = [-1] * n
    low = [0] * n
    component = [-1] * n
    stack: list[int] = []
    n_seen = n_components = 0
    for start in range(n):
        if order[start] >= 0:
            continue
        calls = [(start, 0)]
        while calls:
            node, i = calls.pop()
            if i == 0:
                order[node] = low[node] = n_seen
                n_seen += 1
                stack.append(node)
            for j in range(i, len(graph[node])):
                other = graph[node][j]
                if order[other] < 0:
                    calls += [(node, j + 1), (other, 0)]
                    break
                if component[other] < 0:
                    low[node] = min(low[node], order[other])
            else:
                if low[node] == order[node]:
                    while component[node] < 0:
                        component[stack.pop()] = n_components
                    n_components += 1
                if calls:
                    caller = calls[-1][0]
                    low[caller] = min(low[caller], low[node])
    return component


# -- the machine -------------------------------------------------------------------------------------------------------


class _TooLong(Exception):
    pass


class _Machine:
    """llama.cpp's: a set of stacks of places in rules. Here equal stacks are one number, and steps are remembered.

    A place is an index into `elements`, where None ends an alternative; a stack is the place where it goes on and the
    stack below that. Stack 0 is the empty one: the text may end.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.elements: list[Element | None] = []
        self.begins: list[list[int]] = []  # by rule: the place of each alternative
        for alternatives in grammar.rules:
            begins = []
            for alternative in alternatives:
                begins.append(len(self.elements))
                self.elements += [*alternative, None]
            self.begins.append(begins)
        self.root = grammar.root
        self.stacks: list[tuple[int, int]] = [(-1, -1)]
        self.numbers: dict[tuple[int, int], int] = {}
        self.steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self.n_steps = 0

    def judge(self, text: str) -> Verdict | None:
        try:
            state = self.advance([self.push(0, begin) for begin in self.begins[self.root]])
            for character in text:
                state = self.step(state, character)
                if not state:
                    return "wrong"
        except _TooLong:
            return None
        return "complete" if 0 in state else "incomplete"

    def push(self, stack: int, place: int) -> int:
        """`stack` with `place` on top, unless there is nothing left to do there."""
        if self.elements[place] is None:
            return stack
        number = self.numbers.setdefault((place, stack), len(self.stacks))
        if number == len(self.stacks):
            self.stacks.append((place, stack))
        return number

    def advance(self, todo: list[int]) -> frozenset[int]:
        """The stacks that have a character on top, or nothing at all."""
        seen: set[int] = set()
        found: set[int] = set()
        while todo:
            stack = todo.pop()
            if stack in seen:
                continue
            seen.add(stack)
            self.n_steps += 1
            if self.n_steps > MAX_STEPS:
                raise _TooLong
            place, below = self.stacks[stack]
            element = self.elements[place] if stack else None
            if not isinstance(element, int):
                found.add(stack)
                continue
            following = self.push(below, place + 1)
            todo += [self.push(following, begin) for begin in self.begins[element]]
        return frozenset(found)

    def step(self, state: frozenset[int], character: str) -> frozenset[int]:
        known = self.steps.get((state, character))
        if known is not None:
            return known
        code = ord(character)
        todo = []
        for stack in state:
            place, below = self.stacks[stack]
            element = self.elements[place] if stack else None
            self.n_steps += 1
            if isinstance(element, Chars) and element.has(code):
                todo.append(self.push(below, place + 1))
        self.steps[state, character] = after = self.advance(todo)
        return after
