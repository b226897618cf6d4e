"""Chat templates: what they are given, by what they take; and hostile ones. All of them are ours."""

from __future__ import annotations

from datetime import datetime

import pytest

from llmrun.engine.child import chat_template as template_module
from llmrun.engine.child.chat_template import TemplateError, Templates, without_system

SYSTEM, USER = {"role": "system", "content": "S"}, {"role": "user", "content": "U"}
ANSWER, NEXT = {"role": "assistant", "content": "A"}, {"role": "user", "content": "N"}
TALK = [SYSTEM, USER, ANSWER, NEXT]


def render(template: str, messages: list[dict[str, str]] = TALK, *, enable_thinking: bool = True) -> str:
    now, special = datetime(2026, 3, 9, 10, 11), {"bos_token": "<s>", "eos_token": "</s>"}
    return Templates().render(template, messages, special, now=now, enable_thinking=enable_thinking)


EACH = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def test_what_a_template_is_given() -> None:
    """Texts of the ends, the generation prompt, the time, thinking; blocks take their line with them."""
    assert render("{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}", [USER]) == "<s></s>True"
    assert render("{{ strftime_now('%d.%m.%Y') }} {{ date_string }} {{ datetime }}") == (
        "09.03.2026 09 Mar 2026 Mar 09 2026"
    )
    assert render("  {% if true %}\nx\n  {% endif %}\n{# no #}\ny\n") == "x\ny"
    assert render("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}") == "SUA"


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("{'b': '<ü>', 'a': [1]}|tojson", '{"b": "<ü>", "a": [1]}'),
        ("{'b': 1, 'a': 2}|tojson(separators=(',', ':'), sort_keys=true)", '{"a":2,"b":1}'),
        ("['ü']|tojson(ensure_ascii=true)", '["\\u00fc"]'),
        ("tools|tojson", "null"),
        ("'x' + tools", "x"),
        ("{'a': 1}.items()|list", "[('a', 1)]"),
        ("tools is none", "True"),
        ("documents is not none or documents is not defined", "False"),
        ("tools|length", "0"),
    ],
)
def test_what_templates_use(expression: str, text: str) -> None:
    """JSON without HTML escapes; what nobody gave is nothing next to a text."""
    assert render("{{ " + expression + " }}") == text


def test_generation_blocks_are_nothing() -> None:
    """Trainers mark the model's words with them; a variable set inside is seen outside."""
    assert render("{% generation %}{% set x = 1 %}a{% endgeneration %}{{ x }}") == "a1"


def test_system_role() -> None:
    """A template that shows it has it; one that refuses or loses it gets its text before the next message's."""
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + EACH
    loses = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    assert render(EACH) == "[system]S[user]U[assistant]A[user]N"
    assert render(refuses) == render(loses) == "[user]S\nU[assistant]A[user]N"
    assert render(loses, [SYSTEM]) == "[user]S"
    assert render(loses, [USER]) == "[user]U"


def test_an_error_of_another_cause_is_no_missing_role() -> None:
    """A template that always fails fails with its own words."""
    with pytest.raises(TemplateError, match="^always$"):
        render("{{ raise_exception('always') }}")


def test_without_system() -> None:
    """One newline between them; a conversation that begins otherwise stays."""
    assert without_system(TALK)[0] == {"role": "user", "content": "S\nU"}
    assert without_system([USER]) == [USER]
    assert without_system([]) == []


def test_developer_is_the_system_but_for_gpt_oss() -> None:
    developer = {"role": "developer", "content": "D"}
    assert render(EACH, [developer, USER]) == "[system]D[user]U"
    assert render("{# <|channel|> #}" + EACH, [developer, USER]) == "[developer]D[user]U"


def test_content_as_parts() -> None:
    """Where a text of one's own is lost or refused, it is given as a list of parts."""
    parts = "{% for m in messages %}{% for p in m.content %}{{ p['text'] }}{% endfor %};{% endfor %}"
    strict = "{% for m in messages %}{{ m.content[0].text + ';' }}{% endfor %}"
    either = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}P{{ p.text }}{% endfor %}{% endif %};{% endfor %}"
    )
    assert render(parts) == render(strict) == render(either) == "S;U;A;N;"


def test_an_answer_without_a_word() -> None:
    """Cancelled before its first token, it is no reason to fail."""
    template = (
        "{% for m in messages %}{% if not m.content %}{{ raise_exception('empty') }}{% endif %}"
        "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %};{% endfor %}"
    )
    assert render(template, [USER, {"role": "assistant", "content": ""}, NEXT]) == "U;;N;"


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_earlier_thoughts(name: str) -> None:
    """They go by the name that the template knows."""
    thought = {**ANSWER, "reasoning_content": "T"}
    template = "{% for m in messages %}{{ m." + name + " }}{{ m.content }}{% endfor %}"
    assert render(template, [USER, thought, NEXT]) == "UTAN"


def test_earlier_thoughts_as_a_part() -> None:
    """Some templates know thoughts as a part of the content only."""
    template = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{% if p.type == 'thinking' %}({{ p.thinking }}){% endif %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    assert render(template, [USER, {**ANSWER, "reasoning_content": "T"}, NEXT]) == "U(T)AN"


def test_thinking_switch() -> None:
    """On, templates hear no more than they do from llama.cpp; off, every name of the switch is off."""
    shown = "{{ enable_thinking }} {{ thinking is defined }} {{ thinking_budget is defined }}"
    assert render(shown) == "True False False"
    assert render(shown, enable_thinking=False) == "False True True"
    assert render("{{ thinking }} {{ thinking_budget }} {{ skip_thinking }}", enable_thinking=False) == "False 0 True"


def test_whitespace_that_confuses() -> None:
    """The models whose templates announce tools like this loop behind whitespace; others get every byte."""
    spaced = [{"role": "user", "content": " hi \n"}]
    assert render("{{ messages[0].content }}|", spaced) == " hi \n|"
    assert render("{# functions in JSONSchema format #}{{ messages[0].content }}|", spaced) == "hi|"


BOMBS = [
    ("{{ 'A' * 100000000 }}", "512 MiB"),
    ("{{ [1] * 100000000 }}", "512 MiB"),
    ("{{ 9 ** 9999999 }}", "OverflowError"),
    ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ("{{ " + "(" * 50_000 + ")" * 50_000 + " }}", "RecursionError"),
    ("x" * 300_000, "300000 characters"),
    ("{% for i in range(99) %}{{ 'A' * 100000 }}{% endfor %}", "9900000 characters"),
    ("{{ lipsum() }}", "undefined"),
    ("{{ messages.clear() }}", "SecurityError"),
]


@pytest.mark.parametrize(("template", "words"), BOMBS)
def test_bombs_are_defused(template: str, words: str) -> None:
    """Much of little ends, in words."""
    with pytest.raises(TemplateError, match=words):
        render(template)


def test_its_own_words_are_bounded() -> None:
    """What a template says of its failure is short, and moves no cursor."""
    with pytest.raises(TemplateError) as raised:
        render("{{ raise_exception('\\x1b[2J' ~ 'A' * 1000000) }}")
    assert len(str(raised.value)) == template_module.REASON_LIMIT
    assert str(raised.value).startswith("\\x1b[2JA")
    with pytest.raises(TemplateError, match="^a b$"):
        render("{{ raise_exception('a\n  b') }}")


def test_a_long_conversation_is_no_bomb() -> None:
    """The bound on the prompt grows with what was said."""
    long = [{"role": "user", "content": "x" * 3_000_000}]
    assert len(render("{{ messages[0].content * 3 }}", long)) == 9_000_000
