"""From a request to the tokens of its prompt: messages through the chat template, and text cut. Child process only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from llmrun.engine.child.answer_text import overlap
from llmrun.engine.child.chat_template import TemplateError
from llmrun.engine.child.kv_context import common_prefix
from llmrun.engine.child.native import Vocab
from llmrun.engine.child.reasoning import Tags, opened_by
from llmrun.engine.child.template_process import TemplateProcess, TemplateProcessDied
from llmrun.engine.child.thinking import Thinking, way_out
from llmrun.engine.protocol import Generate, RequestFailed


class _Pieces(Protocol):
    """Of `Vocab`, what `with_known_tokens` asks."""

    adds_bos: bool

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]: ...

    def piece(self, token: int) -> bytes: ...

    def text_of(self, token: int, *, special: bool) -> bytes: ...

    def special_text(self, name: str) -> str: ...


class Prompts:
    """Makes prompts for one loaded model."""

    def __init__(self, llama: Any, model: Any, vocab: Vocab, templates: TemplateProcess) -> None:
        self._vocab, self._templates = vocab, templates
        own = llama.llama_model_chat_template(model, None)
        self._own_template: str | None = None if own is None else own.decode(errors="replace")

    def of(self, request: Generate, known: Sequence[int]) -> tuple[list[int], Thinking | None]:
        """The tokens of a request's prompt, and how its answer thinks; None: it does not, as far as one can tell.

        `known` is what the context holds: see `with_known_tokens`.
        """
        options = request.options
        if request.messages is None:
            return self._tokens((request.prompt or "") + options.assistant_prefix, request, known), None
        text, tags = self.render(request.messages, options.template, thinks=options.thinks)
        if tags is None:
            return self._tokens(text + options.assistant_prefix, request, known), None
        if not options.thinks:
            if opened_by(text, tags):
                text += way_out(tags)
            else:
                text += tags.direct[overlap(text, tags.direct) :]
        text += options.assistant_prefix
        budget = options.think_budget if options.thinks else 0
        thinking = Thinking(tags, self._vocab, is_open=opened_by(text, tags), budget=budget)
        return self._tokens(text, request, known), thinking

    def render(self, messages: list[dict[str, str]], template: str | None, *, thinks: bool) -> tuple[str, Tags | None]:
        """The prompt that a chat template makes of messages, and how the answer marks its thinking.

        Without a template of the request's it is the model's own. Raises `RequestFailed`.
        """
        source = self._own_template if template is None else template
        if source is None:
            raise RequestFailed("usage", "this model has no chat template")
        bos = self._vocab.special_text("bos")
        try:
            text, tags = self._templates.render(
                source, messages, bos_token=bos, eos_token=self._vocab.special_text("eos"), enable_thinking=thinks
            )
        except TemplateError as error:
            if template is not None:
                raise RequestFailed("usage", f"it fails: {error}", field="chat_template") from error
            raise RequestFailed("model", f"its chat template fails: {error}") from error
        except TemplateProcessDied as error:
            raise RequestFailed("engine", f"the chat template {error}") from error
        # Where the vocabulary adds BOS by itself, a template's own would be the second.
        if self._vocab.adds_bos and bos:
            text = text.removeprefix(bos)
        return text, tags

    def common_beginning(self, messages: list[dict[str, str]], template: str | None, *, thinks: bool) -> list[int]:
        """The tokens that the prompt will begin with, whatever the user says next."""
        made = []
        for word in ("a", "Z"):
            text, _ = self.render([*messages, {"role": "user", "content": word}], template, thinks=thinks)
            made.append(self._vocab.tokenize(text))
        return made[0][: common_prefix(*made)]

    def count(self, text: str) -> int:
        """The tokens of a text."""
        return len(self._vocab.tokenize(text))

    def _tokens(self, text: str, request: Generate, known: Sequence[int]) -> list[int]:
        tokens = self._vocab.tokenize(text)
        if not tokens:
            raise RequestFailed("usage", "the prompt is empty and this model has no token to begin with")
        return with_known_tokens(self._vocab, text, tokens, known) if request.options.reuse else tokens


def with_known_tokens(vocab: _Pieces, text: str, tokens: list[int], known: Sequence[int]) -> list[int]:
    """`tokens`, or the same text in the tokens of `known`, if it begins with theirs and goes on with a control token.

    A sampled answer is seldom cut into the tokens that a tokenizer would cut it into. Read back as text it would be
    computed again from the first difference on.
    """
    if common_prefix(known, tokens) >= len(known):
        return tokens
    bos = vocab.special_text("bos").encode() if vocab.adds_bos else b""
    known_text = b"".join(vocab.text_of(token, special=True) for token in known).removeprefix(bos)
    written = text.encode("utf-8", errors="replace")
    if not written.startswith(known_text):
        return tokens
    rest = vocab.tokenize(written[len(known_text) :].decode(errors="replace"), add_special=False)
    return [*known, *rest] if rest and not vocab.piece(rest[0]) else tokens
