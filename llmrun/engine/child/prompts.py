"""From a request to the tokens of its prompt: messages through the chat template, and text cut. Child process only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmrun.engine.child.answer_text import overlap
from llmrun.engine.child.chat_template import TemplateError
from llmrun.engine.child.kv_context import common_prefix
from llmrun.engine.child.native import Vocab, chat_template
from llmrun.engine.child.reasoning import Tags, opened_by
from llmrun.engine.child.special_tokens import Vocabulary, is_control, tokens_of
from llmrun.engine.child.template_process import TemplateProcess, TemplateProcessDied
from llmrun.engine.child.thinking import Thinking, way_out
from llmrun.engine.child.tool_calls import ToolWatch
from llmrun.engine.child.tool_syntax import ToolSyntax
from llmrun.engine.child.written import Written, own
from llmrun.engine.protocol import Count, FailureKind, Generate, Prepare, RequestFailed, Tool


class Prompts:
    """Makes prompts for one loaded model."""

    def __init__(self, model: Any, vocab: Vocab, templates: TemplateProcess) -> None:
        self._vocab, self._templates = vocab, templates
        self._own_template = chat_template(model)
        self._special = vocab.special_texts(model)

    def of(
        self, request: Generate, known: Sequence[Sequence[int]]
    ) -> tuple[list[int], Thinking | None, ToolWatch | None]:
        """The tokens of a request's prompt, how its answer thinks (None: it does not, as far as one can tell), and how
        it calls tools, if there are any.

        `known` is what the context holds, of each sequence: see `with_known_tokens`.
        """
        options = request.options
        if request.messages is None:
            prompt = _said((request.prompt or "") + options.assistant_prefix, options.special is not False)
            return self._tokens(self._without_bos(prompt), "", request, known), None, None
        source = self._source(options.template)
        text, tags, syntax = self.render(
            request.messages, options.template, thinks=options.thinks, special=options.special, tools=options.tools
        )
        thinking = watch = None
        if options.tools and syntax is not None:
            must, several = options.must_call, options.several_calls
            watch = ToolWatch(syntax, options.tools, self._vocab, must=must, several=several)
        if tags is not None:
            if not options.thinks:
                opened = opened_by(text, tags)
                text += own(way_out(tags) if opened else tags.direct[overlap(text, tags.direct) :])
            budget = options.think_budget if options.thinks else 0
            is_open = opened_by(text + options.assistant_prefix, tags)
            thinking = Thinking(tags, self._vocab, is_open=is_open, budget=budget)
        return self._tokens(text + options.assistant_prefix, source, request, known), thinking, watch

    def _source(self, template: str | None) -> str:
        source = self._own_template if template is None else template
        if source is None:
            raise RequestFailed("usage", "this model has no chat template")
        return source

    def render(
        self,
        messages: list[dict[str, Any]],
        template: str | None,
        *,
        thinks: bool,
        special: bool | None,
        tools: Sequence[Tool] | None = None,
    ) -> tuple[Written, Tags | None, ToolSyntax | None]:
        """The prompt that a chat template makes of messages, how the answer marks its thinking, and how it calls tools.

        Without a template of the request's it is the model's own. Raises `RequestFailed`.
        """
        try:
            source, specs = self._source(template), [spec_of(tool) for tool in tools] if tools else None
            prompt = self._templates.render(source, messages, self._special, enable_thinking=thinks, tools=specs)
        except TemplateError as error:
            if template is None:
                raise RequestFailed("model", f"its chat template fails: {error}") from error
            raise RequestFailed("usage", f"it fails: {error}", field="chat_template") from error
        except TemplateProcessDied as error:
            raise RequestFailed("engine", f"the chat template {error}") from error
        text = prompt.text
        if text.is_own() and any((message.get("content") or "").strip() for message in messages):
            kind: FailureKind = "model" if template is None else "usage"
            raise RequestFailed(kind, "the chat template leaves out what is asked", field="chat_template")
        return self._without_bos(own(text) if special else text), prompt.tags, prompt.syntax

    def _without_bos(self, text: Written) -> Written:
        """The text without a BOS of its own at its beginning, where the vocabulary adds one: there would be two."""
        bos = self._special["bos_token"] if self._vocab.adds_bos else ""
        begin = len(text) - len(text.lstrip())
        is_first = bos and text.startswith(bos, begin) and text.is_own(0, begin + len(bos))
        return text[begin + len(bos) :] if is_first else text

    def common_beginning(self, request: Prepare) -> list[int]:
        """The tokens that the prompt will begin with, whatever the user says next."""
        said = ([*request.messages, {"role": "user", "content": word}] for word in ("a", "Z"))
        one, other = (self._of_messages(messages, request) for messages in said)
        return one[: common_prefix(one, other)]

    def count(self, request: Count) -> int:
        """The tokens of messages, or of a text."""
        if request.messages is not None:
            return len(self._of_messages(request.messages, request))
        return len(tokens_of(self._vocab, _said(request.prompt or "", bool(request.special)), ""))

    def _of_messages(self, messages: list[dict[str, Any]], request: Prepare | Count) -> list[int]:
        text, _, _ = self.render(
            messages, request.template, thinks=request.thinks, special=request.special, tools=request.tools
        )
        return tokens_of(self._vocab, text, self._source(request.template))

    def _tokens(self, text: Written, markers: str, request: Generate, known: Sequence[Sequence[int]]) -> list[int]:
        tokens = tokens_of(self._vocab, text, markers)
        if not tokens:
            raise RequestFailed("usage", "the prompt is empty and this model has no token to begin with")
        if not request.options.reuse:
            return tokens
        likest = max(known, key=lambda each: common_prefix(each, tokens))
        return with_known_tokens(self._vocab, text, markers, tokens, likest)


def spec_of(tool: Tool) -> dict[str, Any]:
    """As templates are given it."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _said(text: str, special: bool) -> Written:
    """What was given; with `special` its control tokens count."""
    clean = text.encode(errors="replace").decode()
    return own(clean) if special else Written(clean)


def with_known_tokens(
    vocab: Vocabulary, text: Written, markers: str, tokens: list[int], known: Sequence[int]
) -> list[int]:
    """`tokens`, or the same text in the tokens of `known`, if it begins with theirs and goes on with a control token.

    A sampled answer is seldom cut into the tokens that a tokenizer would cut it into. Read back as text it would be
    computed again from the first difference on. What is a control token there is one of the template's here.
    """
    if common_prefix(known, tokens) >= len(known):
        return tokens
    behind = known[1:] if vocab.adds_bos else known
    controls = {token for token in set(behind) if is_control(vocab, token, markers)}
    at, plain = 0, b""
    try:
        for token in behind:
            piece = vocab.text_of(token, special=True)
            if token not in controls:
                plain += piece
                continue
            before, name = plain.decode(), piece.decode()
            begin = at + len(before)
            end = begin + len(name)
            if not (text.startswith(before, at) and text.startswith(name, begin) and text.is_own(begin, end)):
                return tokens
            at, plain = end, b""
        last = plain.decode()
    except UnicodeDecodeError:  # half a character: no text goes on there
        return tokens
    if not text.startswith(last, at):
        return tokens
    rest = tokens_of(vocab, text[at + len(last) :], markers, add_special=False)
    return [*known, *rest] if rest and not vocab.piece(rest[0]) else tokens
