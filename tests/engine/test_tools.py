"""Calls of tools: how a template wants them is found, what models write is read however it is cut, and grammars force
calls that keep to their schemas."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENT
from jsonschema import Draft202012Validator

from llmrun.engine.child.answer_text import AnswerText
from llmrun.engine.child.chat_template import Templates
from llmrun.engine.child.literals import Literals, NotYet
from llmrun.engine.child.tool_calls import CallSplitter, texts_of
from llmrun.engine.child.tool_grammar import grammar
from llmrun.engine.child.tool_syntax import GENERIC, HARMONY, ToolSyntax
from llmrun.engine.engine import ChildEngine
from llmrun.engine.grammar import judge
from llmrun.engine.protocol import PromptOptions
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.options.sampling import SamplingConfig
from llmrun.wire.request import Function, tools_of

BEGIN = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
)
END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CALLS = "{% for c in m.tool_calls or [] %}"

TEMPLATES = {
    # a tag around JSON, one after the other
    "hermes": BEGIN
    + "{{ m.content or '' }}"
    + CALLS
    + '\n<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    + "{% endfor %}"
    + END,
    # arguments as a text, put there as they are
    "as text": BEGIN
    + "{{ m.content or '' }}"
    + CALLS
    + "<tool_call>{{ c.function.name }}{{ '\\n' }}{{ c.function.arguments + '' }}</tool_call>{% endfor %}"
    + END,
    # one alone, without a tag
    "bare": BEGIN
    + "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one alone') }}{% endif %}"
    + "{% if m.tool_calls %}"
    + '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    + "{% else %}{{ m.content }}{% endif %}"
    + END,
    # a list, with an id of nine characters
    "list with ids": BEGIN
    + "{{ m.content or '' }}{% if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}"
    + "{% if c.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}"
    + '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
    + "{% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}"
    + END,
    # the place of a call among them
    "with an index": BEGIN
    + "{{ m.content or '' }}{% if m.tool_calls %}<|START_ACTION|>[\n{% for c in m.tool_calls %}"
    + '    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ c.function.name }}",'
    + ' "parameters": {{ c.function.arguments | tojson }}}{% if not loop.last %},{% endif %}\n{% endfor %}'
    + "]<|END_ACTION|>{% endif %}"
    + END,
    # a name, then a block of code
    "fenced": BEGIN
    + "{{ m.content or '' }}{% if m.tool_calls %}<|calls|>{% for c in m.tool_calls %}<|call|>function<|sep|>"
    + "{{ c.function.name }}\n```json\n{{ c.function.arguments | tojson }}\n```<|end_call|>"
    + "{% if not loop.last %}\n{% endif %}{% endfor %}<|end_calls|>{% endif %}"
    + END,
    # each argument with a place of its own
    "parameters": BEGIN
    + "{{ m.content or '' }}"
    + CALLS
    + "\n<tool_call>\n<function={{ c.function.name }}>\n"
    + "{% for k, v in c.function.arguments | items %}<parameter={{ k }}>\n{{ v if v is string else v | tojson }}\n"
    + "</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}"
    + END,
    "keys and values": BEGIN
    + "{{ m.content or '' }}"
    + CALLS
    + "\n<tool_call>{{ c.function.name }}{% for k, v in c.function.arguments | items %}\n<arg_key>{{ k }}</arg_key>\n"
    + "<arg_value>{{ v if v is string else v | tojson }}</arg_value>{% endfor %}\n</tool_call>{% endfor %}"
    + END,
    # the name is a key
    "name as a key": BEGIN
    + "{{ m.content or '' }}{% if m.tool_calls %}<|prefix|>[{% for c in m.tool_calls %}"
    + '{"{{ c.function.name }}": {{ c.function.arguments | tojson }}}{% if not loop.last %}, {% endif %}{% endfor %}'
    + "]<|suffix|>{% endif %}"
    + END,
    # arguments as literals: with a quote of the template's, and as Python has them
    "literals": BEGIN
    + '{% macro lit(v) %}{% if v is string %}<|"|>{{ v }}<|"|>{% elif v is mapping %}{ {%- for k, w in v | items %}'
    + "{{ k }}:{{ lit(w) }}{{ ',' if not loop.last }}{% endfor %}}{% elif v is iterable %}[{% for w in v %}{{ lit(w) }}"
    + "{{ ',' if not loop.last }}{% endfor %}]{% else %}{{ v | tojson }}{% endif %}{% endmacro %}"
    + "{{ m.content or '' }}"
    + CALLS
    + "<|tool_call>call:{{ c.function.name }}{{ lit(c.function.arguments) }}<tool_call|>{% endfor %}"
    + END,
    "as python": BEGIN
    + "{{ m.content or '' }}{% if m.tool_calls %}<|calls|>[{% for c in m.tool_calls %}{{ c.function.name }}("
    + "{% for k, v in c.function.arguments | items %}{{ k }}={% if v is string %}'{{ v }}'{% else %}{{ v }}{% endif %}"
    + "{{ ', ' if not loop.last }}{% endfor %}){{ ', ' if not loop.last }}{% endfor %}]<|end|>{% endif %}"
    + END,
    # a turn of its own, whose tag every turn has
    "a turn of its own": "{{ tools | tojson }}{% for m in messages %}<|role|>{{ m.role }}\n{{ m.content or '' }}"
    + '{% if m.tool_calls %}<|role|>call\n{"name": "{{ m.tool_calls[0].function.name }}", "arguments": '
    + "{{ m.tool_calls[0].function.arguments | tojson }}}{% endif %}<|im_end|>\n{% endfor %}"
    + "{% if add_generation_prompt %}<|role|>assistant\n{% endif %}",
    # lists that a template appends to, tools through a filter
    "with a queue": "{{ tools | map(attribute='function') | tojson }}{% set ns = namespace(ids=[]) %}"
    + BEGIN
    + "{{ m.content or '' }}"
    + CALLS
    + "{% set _ = ns.ids.append(c.function.name) %}<|call|>{{ ns.ids[-1] }}:{{ ns.ids | length }}<|args|>"
    + "{{ c.function.arguments | tojson }}<|end_call|>{% endfor %}"
    + END,
    # the template tells of no tools
    "tells of none": BEGIN.partition("{% endif %}")[2]
    + "{{ m.content or '' }}"
    + CALLS
    + "<|call|>{{ c.function.name }}<|args|>{{ c.function.arguments | tojson }}<|end_call|>{% endfor %}"
    + END,
}
TRIGGERS = {
    "hermes": "<tool_call>",
    "as text": "<tool_call>",
    "bare": '{"name": "',
    "list with ids": "[TOOL_CALLS]",
    "with an index": "<|START_ACTION|>",
    "fenced": "<|calls|>",
    "parameters": "<tool_call>",
    "keys and values": "<tool_call>",
    "name as a key": "<|prefix|>",
    "literals": "<|tool_call>",
    "as python": "<|calls|>",
    "a turn of its own": '<|role|>call\n{"name": "',
    "with a queue": "<|call|>",
    "tells of none": "<|call|>",
}
SINGLE = {"bare", "a turn of its own"}
TOLD_NOTHING = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"

WEATHER = Function(
    "get_weather",
    "The weather of a place",
    {
        "type": "object",
        "properties": {
            "place": {"type": "string", "maxLength": 12},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
            "unit": {"type": "string", "enum": ["C", "F"]},
        },
        "required": ["place", "days"],
        "additionalProperties": False,
    },
)
BOOK = Function(
    "book",
    "Books seats",
    {
        "type": "object",
        "properties": {
            "code": {"type": "string", "pattern": "^[A-Z]{2}/[0-9]{2}$"},
            "window": {"type": "boolean"},
            "who": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"$ref": "#/$defs/age"}},
                "required": ["name", "age"],
                "additionalProperties": False,
            },
            "seats": {"type": "array", "items": {"type": "integer", "maximum": 9}, "minItems": 1, "maxItems": 2},
            "note": {"anyOf": [{"type": "string", "minLength": 2, "maxLength": 4}, {"type": "null"}]},
            "class": {"const": "first"},
        },
        "required": ["code", "who", "seats", "class"],
        "additionalProperties": False,
        "$defs": {"age": {"type": "integer", "minimum": 1, "maximum": 99}},
    },
)
NOTHING = Function("stop", "Stop all", None)
TOOLS = tools_of([WEATHER, NOTHING], "tools")
STRICT_TOOLS = tools_of([WEATHER, NOTHING, BOOK], "tools")
ASKED = {"place": 'São "Paulo" <b>', "days": 3}
TEXTS = texts_of(TOOLS)


@pytest.fixture(scope="module")
def templates() -> Templates:
    return Templates()


def called(*calls: tuple[str, Any], content: str = "") -> dict[str, Any]:
    made = [
        {
            "id": f"abcdefgh{i}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
        }
        for i, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": content, "tool_calls": made}


def read(splitter: CallSplitter, pieces: Sequence[str]) -> tuple[str, list[tuple[str, Any]]]:
    content, found = "", dict[int, list[str]]()
    for more, calls in [*(splitter.add(piece) for piece in pieces), splitter.finish()]:
        content += more
        for call in calls:
            parts = found.setdefault(call.index, ["", ""])
            parts[0], parts[1] = parts[0] + call.name, parts[1] + call.arguments
    return content, [(name, json.loads(arguments)) for name, arguments in found.values()]


def written(templates: Templates, name: str, answer: dict[str, Any]) -> str:
    """What the template makes of an answer, without its heading and its end."""
    question = {"role": "user", "content": "Q?"}
    text = templates.render(TEMPLATES[name], [question, answer], {}, tools=[{"type": "function", "function": {}}])
    heading = "<|role|>" if "<|role|>" in text else "<|im_start|>"
    body = text.partition(f"Q?<|im_end|>\n{heading}assistant\n")[2]
    return body.rpartition(f"<|im_end|>\n{heading}assistant\n")[0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_found(templates: Templates, name: str) -> None:
    syntax = templates.syntax_of(TEMPLATES[name], {})
    assert not syntax.is_generic and syntax.trigger == TRIGGERS[name]
    assert (syntax.sep is None) == (name in SINGLE)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_writes_is_read(templates: Templates, name: str) -> None:
    """One call and several, with content before them; cut at every place, and into pieces of any length."""
    syntax = templates.syntax_of(TEMPLATES[name], {})
    answers = [called(("get_weather", ASKED)), called(("stop", {}))]
    if name not in SINGLE:
        answers.append(called(("get_weather", ASKED), ("stop", {}), ("get_weather", {"place": "x", "days": 7})))
        answers.append(called(("stop", {}), ("get_weather", ASKED), content="I will look."))
    for answer in answers:
        text = written(templates, name, answer)
        wanted = [
            (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in answer["tool_calls"]
        ]
        for i in range(len(text)):
            content, calls = read(CallSplitter(syntax, TEXTS), [text[:i], text[i:]])
            assert (content.strip(), calls) == (answer["content"], wanted), text[:i]
        assert read(CallSplitter(syntax, TEXTS), text)[1] == wanted
        traced = AnswerText([], None, CallSplitter(syntax, TEXTS), traced=True)
        shown = "".join(traced.add(character.encode(), token=i)[0] for i, character in enumerate(text))
        shown += traced.finish()[0]
        of = traced.take_shown_of()
        assert "".join(text[i] for i in of) == shown and of == sorted(of)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("text", ["Hello! <b>x</b> [1] {2}", "", "a < b", "  Hi", "<tool", "It is [TOOL_X]."])
def test_text_is_text(templates: Templates, name: str, text: str) -> None:
    syntax = templates.syntax_of(TEMPLATES[name], {})
    for pieces in ([text], [*text]):
        content, calls = read(CallSplitter(syntax, TEXTS), pieces)
        assert (content, calls) == (text, [])


def test_blanks_may_differ(templates: Templates) -> None:
    """As models vary them."""
    syntax = templates.syntax_of(TEMPLATES["hermes"], {})
    text = (
        '<tool_call>{"name":"get_weather","arguments":{"place":"x","days":1}}</tool_call>\n\n<tool_call>\n\n'
        '{ "name" : "stop", "arguments": {} }\n</tool_call>\n'
    )
    wanted = [("get_weather", {"place": "x", "days": 1}), ("stop", {})]
    assert read(CallSplitter(syntax, TEXTS), [text]) == ("", wanted) == read(CallSplitter(syntax, TEXTS), text)


@pytest.mark.parametrize("name", [*TEMPLATES, "harmony"])
def test_blanks_without_end(templates: Templates, name: str) -> None:
    """What begins like a call and goes on with blanks is looked at in steps, not in every way to share them out."""
    syntax = HARMONY if name == "harmony" else templates.syntax_of(TEMPLATES[name], {})
    begin = "".join((*syntax.lead, *syntax.pre))
    for text in (begin[:-1], f"{begin}stop"):
        assert all(not call.arguments for call in CallSplitter(syntax, TEXTS).add(text + " \n" * 1500)[1])


def test_what_is_cut_is_as_far_as_it_is(templates: Templates) -> None:
    syntax = templates.syntax_of(TEMPLATES["hermes"], {})
    splitter = CallSplitter(syntax, TEXTS)
    _, calls = splitter.add('<tool_call>\n{"name": "get_weather", "arguments": {"place": "x')
    assert [call.name for call in calls if call.name] == ["get_weather"]
    assert "".join(call.arguments for call in calls) == '{"place": "x' and splitter.finish() == ("", [])


def test_a_head_that_is_cut_is_no_text(templates: Templates) -> None:
    """By the limit; where the answer has ended so by itself, it was none of a call."""
    syntax = templates.syntax_of(TEMPLATES["hermes"], {})
    for cut, rest in ((True, ""), (False, '<tool_call>\n{"name": "get_w')):
        splitter = CallSplitter(syntax, TEXTS)
        assert splitter.add('So: <tool_call>\n{"name": "get_w') == ("So:", [])
        assert splitter.finish(cut=cut) == (rest, [])


def test_harmony() -> None:
    """gpt-oss writes the recipient before or behind the channel, and may say something in a turn before."""
    for text in (
        '<|channel|>commentary to=functions.stop <|constrain|>json<|message|>{"a": 1}<|call|>',
        '<|start|>assistant<|channel|>commentary to=functions.stop<|channel|>commentary json<|message|>{"a": 1}',
        ' to=functions.stop<|channel|>commentary json<|message|>{"a": 1}<|call|>',
    ):
        for pieces in ([text], text):
            content, calls = read(CallSplitter(HARMONY, {}), pieces)
            assert (content.strip(), calls) == ("", [("stop", {"a": 1})]), text
    said = "<|channel|>commentary<|message|>I stop it.<|end|>"
    text = (
        said + '<|start|>assistant<|channel|>commentary to=functions.stop <|constrain|>json<|message|>{"a": 1}<|call|>'
    )
    for whole, wanted in ((text, [("stop", {"a": 1})]), (said, [])):
        for pieces in ([whole], whole):
            assert read(CallSplitter(HARMONY, {}), pieces) == ("I stop it.", wanted)


def test_a_template_that_knows_of_none(templates: Templates) -> None:
    """Tools are told in words, and results handed in by the user."""
    assert templates.syntax_of(TOLD_NOTHING, {}) == GENERIC
    tools = [{"type": "function", "function": {"name": "stop", "parameters": {}}}]
    asked = [
        {"role": "user", "content": "Q?"},
        called(("stop", {"a": 1})),
        {"role": "tool", "content": "done", "tool_call_id": "x"},
    ]
    text = templates.render(TOLD_NOTHING, asked, {}, tools=tools)
    assert '{"name": "stop", "parameters": {}}' in text and "<|system|>You may call" in text
    assert '<|assistant|><tool_call>\n{"name": "stop", "arguments": {"a": 1}}\n</tool_call>' in text
    assert "<|user|><tool_response>\ndone\n</tool_response>" in text


def test_tools_are_told_in_words_and_called_as_the_template_has_it(templates: Templates) -> None:
    """Where it writes calls, but tells of no tools. Control tokens in the form of a call are the template's."""
    tools = [{"type": "function", "function": {"name": "stop", "parameters": {}}}]
    asked = [{"role": "system", "content": "Be <|call|>."}, {"role": "user", "content": "Q?"}, called(("stop", {}))]
    text = templates.render(TEMPLATES["tells of none"], asked, {}, tools=tools)
    form = "<|call|>NAME<|args|>ARGUMENTS<|end_call|>"
    at = text.index(form)
    assert text.startswith("<|im_start|>system\nBe <|call|>.\n\nYou may call") and text.is_own(at, at + len(form))
    assert not text.is_own(text.index("<|call|>"), at) and "<|call|>stop<|args|>{}<|end_call|><|im_end|>" in text


def test_calls_that_something_has_to_follow(templates: Templates) -> None:
    """A template may leave out those of a last answer, for the model to go on with it."""
    template = "{% if messages[-1].role == 'assistant' %}{% set messages = messages[:-1] %}{% endif %}"
    found = templates.syntax_of(template + TEMPLATES["hermes"], {})
    assert found == templates.syntax_of(TEMPLATES["hermes"], {}) and found != GENERIC


LITERALS: list[tuple[str, str, Any]] = [
    ("'", """a='x', b="y\\n", c=[1, -2.5, 'z'])""", {"a": "x", "b": "y\n", "c": [1, -2.5, "z"]}),
    ("'", "d={'k': None, \"l\": [True]})", {"d": {"k": None, "l": [True]}}),
    ("'", r"""a='it\'s', b='')""", {"a": "it's", "b": ""}),
    ("'", "a='two\nlines', b=true)", {"a": "two\nlines", "b": True}),
    ('<|"|>', """a=<|"|>'x'\\<|"|>,b={<|"|>k<|"|>:1e3,l:[]})""", {"a": "'x'\\", "b": {"k": 1e3, "l": []}}),
    ("'", " )", {}),
]


@pytest.mark.parametrize(("quote", "text", "wanted"), LITERALS)
def test_literals(quote: str, text: str, wanted: dict[str, Any]) -> None:
    """Read as a whole; no part of them is taken for a whole."""
    assert Literals(quote).members(text, 0, "=", ")") == (wanted, len(text) - 1)
    for i in range(len(text)):
        with pytest.raises(NotYet):
            Literals(quote).members(text[:i], 0, "=", ")")


@pytest.mark.parametrize("text", ["a=,", "a:1)", "=1)", "a='x' b=1)", "a=x)", "a=NaN)", "a=" + "[" * 200])
def test_no_literals(text: str) -> None:
    with pytest.raises((ValueError, NotYet)):
        Literals("'").members(text, 0, "=", ")")


@pytest.mark.parametrize("name", [*TEMPLATES, "generic"])
def test_a_grammar_forces_calls(exact: Path, name: str) -> None:
    """Of a model that knows nothing: every call is of a tool that is there, its arguments keep to the schema."""
    template = TEMPLATES.get(name, TOLD_NOTHING)
    known = {tool.name: Draft202012Validator(tool.parameters) for tool in STRICT_TOOLS}
    asked = [{"role": "user", "content": "b c d"}]
    with ChildEngine(exact, open_header(exact), limits=PATIENT) as engine:
        n_calls = 0
        for seed in range(2):
            options = PromptOptions(
                template=template, tools=[*STRICT_TOOLS], must_call=True, several_calls=seed % 2 > 0
            )
            answer = engine.generate(asked, SamplingConfig(seed=seed, max_tokens=400), options=options)
            text = "".join(answer)
            if answer.stop_reason == "length":  # noise may write blanks, or calls, for long
                continue
            assert not text.strip() and answer.calls
            assert len(answer.calls) == 1 or seed % 2
            for call in answer.calls:
                known[call.name].validate(json.loads(call.arguments))
            n_calls += len(answer.calls)
        assert n_calls


@pytest.mark.parametrize("thinks", [True, False])
def test_a_grammar_forces_calls_of_harmony(tmp_path: Path, thinks: bool) -> None:
    """Whose channels have a text, as llama.cpp has it, and are cut otherwise with what follows."""
    texts, scores, types = synth.vocabulary(512)
    names = ["<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>"]
    for i, name in enumerate(names, 500):
        texts[i], types[i] = name.encode(), 3
    template = (
        "{{ tools | tojson }}{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
        "<|start|>assistant{% if false %}<|channel|>analysis<|channel|>commentary to=functions.{% endif %}"
    )
    path, shape = tmp_path / "model.gguf", replace(synth.SHAPES["micro"], n_ctx_train=4096)
    synth.write(path, shape, "F32", vocab=(texts, scores, types), chat_template=template)
    known = {tool.name: Draft202012Validator(tool.parameters) for tool in STRICT_TOOLS}
    with ChildEngine(path, open_header(path), limits=PATIENT) as engine:
        options = PromptOptions(tools=[*STRICT_TOOLS], must_call=True, thinks=thinks, think_budget=10)
        for seed in range(3):
            answer = engine.generate([{"role": "user", "content": "b"}], SamplingConfig(seed=seed), options=options)
            assert not "".join(answer).strip() and len(answer.calls) == 1
            known[answer.calls[0].name].validate(json.loads(answer.calls[0].arguments))


@pytest.mark.parametrize("name", ["hermes", "literals", "keys and values"])
@pytest.mark.parametrize("must", [True, False])
def test_one_call_or_several(templates: Templates, name: str, must: bool) -> None:
    """As asked, whether calls are demanded or not: nothing follows the only one."""
    syntax = templates.syntax_of(TEMPLATES[name], {})
    one = written(templates, name, called(("stop", {}))).strip()
    two = written(templates, name, called(("stop", {}), ("get_weather", {"place": "x", "days": 1}))).strip()
    for several in (False, True):
        made = grammar(syntax, TOOLS, lambda text: [text], must=must, several=several)
        assert made is not None and judge(made, one) == "complete"
        assert (judge(made, two) == "complete") == several


def test_text_or_calls(exact: Path) -> None:
    """Where none is demanded, noise is text; one tool alone can be demanded."""
    asked = [{"role": "user", "content": "b c d"}]
    with ChildEngine(exact, open_header(exact), limits=PATIENT) as engine:
        options = PromptOptions(template=TEMPLATES["hermes"], tools=[*TOOLS])
        answer = engine.generate(asked, SamplingConfig(seed=1, max_tokens=20), options=options)
        assert "".join(answer) and not answer.calls
        only = PromptOptions(template=TEMPLATES["hermes"], tools=[TOOLS[1]], must_call=True, several_calls=False)
        answer = engine.generate(asked, SamplingConfig(seed=1, max_tokens=100), options=only)
        assert "".join(answer) == "" and [call.name for call in answer.calls] == ["stop"]


def test_pieces_are_the_whole(templates: Templates) -> None:
    """Random cuts, random calls: the same as at once."""
    chance = random.Random(5)
    for name in TEMPLATES:
        syntax: ToolSyntax = templates.syntax_of(TEMPLATES[name], {})
        for _ in range(10):
            value = "".join(chance.choice('ab{}[]",:\\ \n<>/é') for _ in range(chance.randint(0, 20)))
            if syntax.places is not None:
                value = value.replace("<", "(").replace("\\", "/").strip()
            text = written(templates, name, called(("get_weather", {"place": value, "days": 2})))
            pieces, at = [], 0
            while at < len(text):
                n = chance.randint(1, 9)
                pieces.append(text[at : at + n])
                at += n
            assert read(CallSplitter(syntax, TEXTS), pieces)[1] == [("get_weather", {"place": value, "days": 2})]
