"""Text that knows what of it is the template's: the same text whatever is done with it, and nothing granted."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from llmrun.engine.child.chat_template import Templates
from llmrun.engine.child.written import Written, concat, of_pieces, own

GIVEN = " <think>Straße</think>\n<|end|> x\r\ny%z "
METHODS: list[tuple[str, tuple[Any, ...]]] = [
    *((name, ()) for name in "capitalize casefold lower upper swapcase title strip lstrip rstrip split rsplit".split()),
    *((name, (9,)) for name in ("center", "ljust", "rjust", "zfill", "expandtabs")),
    *((name, (" <zx",)) for name in ("strip", "lstrip", "rstrip")),
    *((name, ("</think>",)) for name in ("split", "rsplit", "partition", "rpartition")),
    *((name, ("none",)) for name in ("split", "partition", "rpartition", "removeprefix", "removesuffix")),
    *((name, (None, 1)) for name in ("split", "rsplit")),
    *((name, ("s", 1)) for name in ("split", "rsplit")),
    ("splitlines", ()),
    ("splitlines", (True,)),
    ("removeprefix", (" <think>",)),
    ("removesuffix", ("z ",)),
    ("replace", ("<", "<<")),
    ("replace", ("<", "", 1)),
    ("replace", ("", "-")),
    ("join", (["a", "b"],)),
    ("__mul__", (3,)),
    ("__rmul__", (-1,)),
    ("__getitem__", (-2,)),
    ("__getitem__", (slice(None, None, -2),)),
    ("__add__", ("a",)),
]


def parts(value: Any) -> list[Any]:
    return [*value] if isinstance(value, list | tuple) else [value]


@pytest.mark.parametrize(("name", "arguments"), METHODS)
def test_it_is_the_text_that_it_was(name: str, arguments: tuple[Any, ...]) -> None:
    """What Python's own gives, every part as long as what is known of it, nothing of it a template's."""
    plain, marked = getattr(GIVEN, name)(*arguments), getattr(Written(GIVEN), name)(*arguments)
    assert plain == marked and isinstance(marked, type(plain))
    for part in parts(marked):
        assert len(part._own) == len(part) and 1 not in part._own
    for part in parts(getattr(own("ab" * 99), name)(*(own(each) if type(each) is str else each for each in arguments))):
        assert len(part._own) == len(part)


def shown(text: Written) -> str:
    """What is not the template's in braces."""
    return "".join(
        str.__str__(text)[begin:end] if mine else "{" + text[begin:end] + "}" for begin, end, mine in text.runs()
    )


def test_what_is_known_of_it() -> None:
    """Character by character, through everything that is made of it."""
    text = own("<a>") + "x<b>" + own("<c>")
    assert shown(text) == "<a>{x<b>}<c>"
    assert [shown(each) for each in text.split("<b>")] == ["<a>{x}", "<c>"]  # type: ignore[arg-type]
    assert shown(text.replace("<", "[")) == "{[}a>{x[b>[}c>"
    assert shown(text.replace("<b>", own("<d>"))) == "<a>{x}<d><c>"
    assert shown(own(", ").join(["a", text])) == "{a}, <a>{x<b>}<c>"
    assert shown(concat(["a" + text[1:4] * 2])) == "{a}a>{x}a>{x}"
    assert shown(own("<%s>").__mod__(own("a"))) == "<a>" and shown(own("<%s>").__mod__("a")) == "{<a>}"
    assert shown(concat([own("abc").upper()])) == "ABC" and shown(concat([text.upper()])) == "{<A>X<B><C>}"
    for each in (text, Written("ab"), own("ab"), Written("")):
        assert of_pieces(each.pieces()) == each and of_pieces(each.pieces())._own == each._own
    assert shown(concat([own("a"), 1, None])) == "a{1None}"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("<|{{ messages[0].role }}|>{{ messages[0].content }}<|end|>", "<|user|>{U<|end|>}<|end|>"),
        ("{{ '<|' + messages[0]['role'] ~ '|>' ~ messages[0].content | trim }}", "<|user|>{U<|end|>}"),
        ("{{ bos_token }}{{ ['<a>', '<b>'] | join('<c>') }}{{ ['<a>', messages[0].content] | join }}", None),
        ("{% set t = namespace(x='<a>') %}{% set t.x = t.x + messages[0].content[1:] %}{{ t.x }}", "<a>{<|end|>}"),
        ("{% macro m(x) %}<m>{{ x }}{% endmacro %}{{ m(messages[0].content) }}", "<m>{U<|end|>}"),
        ("{% set x %}<x>{{ messages[0].content }}{% endset %}{{ x | replace('U', '<u>') }}", "<x><u>{<|end|>}"),
        ("{{ '<{}>'.format('a') }}{{ '<{}>'.format(messages[0].content) }}", "<a>{<U<|end|>>}"),
        ("{{ '<%s>' % 'a' }}{{ '<%s>'|format('a') }}", "<a><a>"),
        ("{{ messages[0].content.split('<|')[0] + '<|end|>' }}", "{U}<|end|>"),
        ("{{ {'a': '<x>'}['a'] }}{{ [['<y>']][0][0] }}{{ '<z>' if true else '' }}", "<x><y><z>"),
        ("{% for x in ['<a>', '<b>'] %}{{ x }}{% endfor %}{{ none | default('<c>', true) }}", "<a><b><c>"),
        ("{{ messages[0].content | tojson }}{{ messages | length }}", '{"U<|end|>"1}'),
        ("{{ messages[0].content | upper | lower }}{{ messages[0].content | list | join }}", "{u<|end|>U<|end|>}"),
    ],
)
def test_what_a_template_writes(template: str, text: str | None) -> None:
    """Its literals are its own, however they are put together; what it was given is not, whatever becomes of it."""
    messages = [{"role": "user", "content": "U<|end|>"}]
    made = Templates().render(template, messages, {"bos_token": "<s>"}, now=datetime(2026, 3, 9))
    assert shown(made) == (text or "<s><a><c><b><a>{U<|end|>}")


def test_tests_see_the_text_itself() -> None:
    """A template that looks at what was said sees nothing of the marks."""
    tests = (
        "messages[0].content.startswith('<think>') and messages[0].content is string and '</think>' in"
        " messages[0].content and messages[0].content == '<think>a</think> b' and messages[0].content|length == 18"
        " and messages[0].content.split('</think>')[-1].lstrip() in ['b'] and messages[0].content._own is undefined"
    )
    messages = [{"role": "user", "content": "<think>a</think> b"}]
    assert Templates().render("{{ " + tests + " }}", messages, {}) == "True"
