"""Chat templates: messages to the text that the model was trained on. In a process of its own: see `template_process`.

A template comes with the model file and is not to be trusted. Jinja's immutable sandbox keeps it from code, but not
from loops without end or strings of gigabytes: the operations that make much of little are bounded here, memory and
time of the process are bounded around it. What a template expects of its messages is found out by asking it: a marked
conversation is rendered, and what became of the marks decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmrun.engine.child import tool_messages, tool_syntax, written
from llmrun.engine.child.reasoning import Tags, tags_of
from llmrun.engine.child.tool_syntax import ToolSyntax
from llmrun.engine.child.written import Written
from llmrun.text import printable

if TYPE_CHECKING:
    from datetime import datetime

MEMORY_LIMIT = 512 << 20
"""Bytes by which the process may grow."""
SOURCE_LIMIT = 128 << 10
"""Characters of a template. The longest of those that llama.cpp ships has 17 thousand."""
PRODUCT_LIMIT = 16 << 20
"""Elements of a text or list times a number."""
POWER_LIMIT = 4096
"""Bits of a number raised to a power."""
GROWTH_LIMIT = 4
ADDED_LIMIT = 1 << 20
"""A prompt has at most so many times the characters of its messages, and so many more."""
REASON_LIMIT = 300
"""Characters of what a template may say about its own failure."""

_SWITCHES = "enable_thinking thinking reasoning enable_reasoning".split()
WITHOUT_THINKING: dict[str, Any] = dict.fromkeys(_SWITCHES, False) | {
    "skip_thinking": True,
    "thinking_mode": "disabled",
    "thinking_budget": 0,
    "thinking_option": "off",
}
"""What templates call the switch, and its position where the model shall answer at once."""

_NONE_GIVEN = {"tools": None, "documents": None}
"""As `apply_chat_template` has it: not undefined."""

# Letters only, so that neither escaping nor trimming changes them.
_MARK = "qzjxvkw"
_OTHER = "wkvxjzq"


class TemplateError(Exception):
    """The template could not be rendered; the text says why."""


class Templates:
    """Renders chat templates, in the environment that Hugging Face's `apply_chat_template` documents.

    Blocks are trimmed, `break`, `continue` and `generation` known; there are `raise_exception`, `strftime_now`, and
    `tojson` without HTML escapes. What a prompt knows of itself is in `written`. Making one imports Jinja.
    """

    def __init__(self) -> None:
        self._environment = _environment()
        self._compiled: tuple[str | None, Any] = (None, None)
        self._tags: dict[str, Tags | None] = {}
        self._syntaxes: dict[str, ToolSyntax] = {}

    def tags_of(self, template: str, special: Mapping[str, str]) -> Tags | None:
        """How an answer marks its thinking, found out once for each template."""
        if template not in self._tags:
            self._tags[template] = tags_of(template, lambda messages: self.render(template, messages, special))
        return self._tags[template]

    def syntax_of(self, template: str, special: Mapping[str, str]) -> ToolSyntax:
        """How an answer calls tools, found out once for each template."""
        if template not in self._syntaxes:

            def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
                return self._made(template, messages, special, tools, enable_thinking=False)

            self._syntaxes[template] = tool_syntax.syntax_of(template, render)
        return self._syntaxes[template]

    def render(
        self,
        template: str,
        messages: Sequence[dict[str, Any]],
        special: Mapping[str, str],
        *,
        enable_thinking: bool = True,
        now: datetime | None = None,
        tools: list[dict[str, Any]] | None = None,
    ) -> Written:
        """The prompt for `messages`, ready for the model's answer.

        Messages have role and content, and an assistant's may have reasoning_content, and tool_calls in OpenAI's form,
        whose results have the role "tool". `tools` are in that form, too. A system message goes before
        the next one's words where the template has no place for it. `special` are the texts of special tokens by what
        templates call them, "bos_token"; `now` is what the template takes for the time.

        Raises `TemplateError`. There is no limit in time here: a loop must be ended from outside.
        """
        if tools or any("tool_calls" in message or message["role"] == "tool" for message in messages):
            messages, tools = tool_messages.fitted(self.syntax_of(template, special), messages, tools)
        return self._made(template, messages, special, tools, enable_thinking=enable_thinking, now=now)

    def _made(
        self,
        template: str,
        messages: Sequence[dict[str, Any]],
        special: Mapping[str, str],
        tools: list[dict[str, Any]] | None,
        *,
        enable_thinking: bool,
        now: datetime | None = None,
    ) -> Written:
        if len(template) > SOURCE_LIMIT:
            raise TemplateError(f"it has {len(template)} characters, more than {SOURCE_LIMIT}")
        if now is None:
            from datetime import datetime

            now = datetime.now()
        variables: dict[str, Any] = {
            **{name: written.own(text) for name, text in special.items()},
            "add_generation_prompt": True,
            "date_string": now.strftime("%d %b %Y"),
            "datetime": now.strftime("%b %d %Y"),
            "strftime_now": lambda form: now.strftime(form),
            **({"enable_thinking": True} if enable_thinking else WITHOUT_THINKING),
            **({"tools": _as_given(tools)} if tools else {}),
        }
        try:
            try:
                text = self._render(template, messages, variables)
            except (MemoryError, TemplateError):
                raise
            except Exception as error:  # noqa: BLE001 - a program that came with a file can fail in any way
                raise TemplateError(_in_short(f"{type(error).__name__}: {error}")) from None
        except MemoryError as error:  # in making that text, too
            raise TemplateError(f"it takes more than {MEMORY_LIMIT >> 20} MiB") from error
        longest = GROWTH_LIMIT * _n_characters([*messages, tools]) + ADDED_LIMIT
        if len(text) > longest:
            raise TemplateError(f"it makes a prompt of {len(text)} characters, more than {longest}")
        return text

    def _render(self, source: str, messages: Sequence[dict[str, Any]], variables: dict[str, Any]) -> Written:
        if self._compiled[0] != source:
            self._compiled = (source, self._environment.from_string(source))
        try:
            return _rendered(_Template(self._compiled[1], {**_NONE_GIVEN, **variables}), source, messages)
        except TypeError:  # it takes tools for granted: "for tool in tools"
            return _rendered(_Template(self._compiled[1], variables), source, messages)


class _Template:
    """One template and everything but the messages that is given to it."""

    def __init__(self, template: Any, variables: dict[str, Any]) -> None:
        self._template, self._variables = template, variables

    def render(self, messages: list[dict[str, Any]]) -> Written:
        # Roles are not what anybody has said, and some templates make a token of them: '<|' + role + '|>'.
        given = [{**_as_given(message), "role": written.own(message["role"])} for message in messages]
        return self._template.render(messages=given, **self._variables)  # type: ignore[no-any-return]

    def shows(self, *messages: dict[str, Any]) -> bool:
        """Whether the mark comes through. A list that is printed as Python or JSON writes it does not count."""
        try:
            text = self.render([*messages])
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - to refuse is an answer as well
            return False
        return _MARK in text.casefold() and "'type': '" not in text and '"type": "' not in text


def _rendered(template: _Template, source: str, messages: Sequence[dict[str, Any]]) -> Written:
    return template.render(_fitted(template, source, [dict(message) for message in messages]))


def _fitted(template: _Template, source: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages in the shape that this template takes."""
    for message in messages:
        # Only gpt-oss's models know a developer beside the system.
        if message["role"] == "developer" and "<|channel|>" not in source:
            message["role"] = "system"
    if "functions in JSONSchema format" in source:  # whitespace drives StepFun's models into loops
        for message in messages:
            message.update(
                {key: text.strip() for key, text in message.items() if key != "role" and isinstance(text, str)}
            )
    typed = not template.shows(_said("user", _MARK, False)) and template.shows(_said("user", _MARK, True))
    if messages and messages[0]["role"] == "system":
        both = _said("system", _MARK, typed), _said("user", _OTHER, typed)
        merged = _said("user", f"{_MARK}\n{_OTHER}", typed)
        if not template.shows(*both) and template.shows(merged):
            messages = without_system(messages)
    if any(message.get("reasoning_content") for message in messages):
        _name_reasoning(template, messages)
    silent = any(
        message["role"] == "assistant" and message.get("content") == "" and "tool_calls" not in message
        for message in messages
    )
    refused = silent and not typed and _refuses_silence(template)
    for message in messages:
        if isinstance(message.get("content"), str) and (typed or (refused and message["content"] == "")):
            message["content"] = _said("", message["content"], True)["content"]
    return messages


def _n_characters(value: Any) -> int:
    """Of all texts in it."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + _n_characters(each) for key, each in value.items())
    return sum(map(_n_characters, value)) if isinstance(value, list) else 0


def _as_given(value: Any) -> Any:
    """The same, every text in it known not to be the template's, but where it is known already."""
    if isinstance(value, str):
        return value if isinstance(value, Written) else Written(value)
    if isinstance(value, dict):
        return {key: _as_given(each) for key, each in value.items()}
    return [_as_given(each) for each in value] if isinstance(value, list) else value


def _refuses_silence(template: _Template) -> bool:
    """Whether an earlier answer without a word is taken as a list of parts only."""
    text, parts = (
        template.shows(_said("user", _OTHER, False), _said("assistant", "", as_parts), _said("user", _MARK, False))
        for as_parts in (False, True)
    )
    return parts and not text


def _said(role: str, text: str, typed: bool) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}] if typed else text}


def _name_reasoning(template: _Template, messages: list[dict[str, Any]]) -> None:
    """Give earlier thinking under the name that the template knows: it may be a part of the content."""
    question, answer = _said("user", _OTHER, False), _said("assistant", _OTHER, False)
    named = dict.fromkeys(("reasoning_content", "thinking", "reasoning"), _MARK)
    in_parts = {**answer, "content": _with_thinking(_MARK, _OTHER)}
    parts = not template.shows(question, answer | named, question) and template.shows(question, in_parts, question)
    for message in messages:
        thinking = message.get("reasoning_content")
        if not thinking:
            message.pop("reasoning_content", None)
        elif parts:
            del message["reasoning_content"]
            message["content"] = _with_thinking(thinking, message["content"])
        else:
            message["thinking"] = message["reasoning"] = thinking


def _with_thinking(thinking: str, text: str) -> list[dict[str, str]]:
    return [{"type": "thinking", "thinking": thinking}, {"type": "text", "text": text}]


def without_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation for a template that knows no system role: its text stands before the next message's."""
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    first, *rest = messages
    if not rest:
        return [{**first, "role": "user"}]
    return [{**rest[0], "content": f"{first['content']}\n{rest[0]['content']}"}, *rest[1:]]


def _in_short(text: str) -> str:
    """A template's own words, on one line and safe to show."""
    return printable(" ".join(text[: 2 * REASON_LIMIT].split()), REASON_LIMIT)


def _environment() -> Any:
    from jinja2 import Undefined, compiler, ext, filters, nodes, pass_eval_context, runtime, sandbox

    class Generation(ext.Extension):
        """`{% generation %}`: trainers mark the model's own words with it. Here they are words like any others."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's interface

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)  # type: ignore[no-any-return]

    class Generator(compiler.CodeGenerator):
        """Every text of the template's source is known as its own."""

        def write_commons(self) -> None:
            super().write_commons()
            self.writeline("own, str_join = environment.own, environment.concat")

        def visit_Const(self, node: nodes.Const, frame: compiler.Frame) -> None:
            if isinstance(node.value, str):
                self.write(f"own({node.value!r})")
            else:
                super().visit_Const(node, frame)

        def _output_const_repr(self, group: Iterable[Any]) -> str:
            return f"own({super()._output_const_repr(group)})"

    class Environment(sandbox.ImmutableSandboxedEnvironment):
        """The sandbox, with bounds on what makes much of little. They also keep Jinja from computing it early."""

        intercepted_binops = frozenset({"*", "**"})
        code_generator_class = Generator
        own = staticmethod(written.own)
        concat = staticmethod(written.concat)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            # Kimi K2's keeps a queue. All lists that a template sees are made for this one prompt.
            is_queue = type(obj) is list and attr in ("append", "pop")
            return is_queue or super().is_safe_attribute(obj, attr, value)

        def wrap_str_format(self, value: Any) -> Any:
            wrapped = super().wrap_str_format(value)
            if wrapped is None:
                return None
            form = value.__self__
            return lambda *more, **named: written.made_of(wrapped(*more, **named), form, *more, *named.values())

        def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
            if operator == "*":
                for many, times in ((left, right), (right, left)):
                    if hasattr(many, "__len__") and isinstance(times, int) and len(many) * times > PRODUCT_LIMIT:
                        raise MemoryError
            elif isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > POWER_LIMIT:
                raise OverflowError(f"a number raised to the power of {right}")
            return super().call_binop(context, operator, left, right)

    class Missing(Undefined):
        """A variable without a value. Next to a text it is nothing: some templates take tools for granted."""

        def _next_to(self, other: Any) -> Any:
            return other if isinstance(other, str) else self._fail_with_undefined_error()

        __add__ = __radd__ = _next_to

    @pass_eval_context
    def join(context: nodes.EvalContext, values: Any, d: str = "", attribute: str | int | None = None) -> Any:
        return filters.do_join(context, values, d if isinstance(d, Written) else Written(d), attribute)

    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[ext.loopcontrols, Generation],
        undefined=Missing,
        optimized=False,  # a list of constants stays a list of texts that are the template's
    )
    environment.filters |= {"join": join, "tojson": _tojson}
    environment.globals["raise_exception"] = _raise_exception
    del environment.globals["lipsum"]
    return environment


def _raise_exception(text: object) -> None:
    raise TemplateError(_in_short(str(text)))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    import json

    from jinja2 import Undefined

    if isinstance(value, Undefined):  # tools that there are none of, printed without a test
        value = None
    elif isinstance(value, Iterator):  # of `map`
        value = [*value]
    given = (separators[0], separators[1]) if separators else None
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=given, sort_keys=sort_keys)
