"""An engine for the tests of conversations: it says what a script says, a word a token, and fails when it is told to.

It has a context like a real one: a prompt that is longer is refused, an answer that reaches its end is cut there. Its
clock is its own, a hundredth of a second a token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from llmrun.engine.engine import Engine, Generation
from llmrun.engine.meter import Meter, Timing
from llmrun.engine.protocol import Done, Prefilled, PromptOptions, Started, StopReason, Tokens
from llmrun.errors import EngineCrashed, LlmrunError, PromptTooLong
from llmrun.options.sampling import SamplingConfig

TOKEN_S = 0.01
MESSAGE_TOKENS = 2
"""What a template takes for each message."""


@dataclass
class Script:
    """One answer.

    Attributes:
        thinking: before the text.
        dies_after: so many tokens; then the engine is dead.
    """

    text: str = ""
    thinking: str = ""
    dies_after: int | None = None

    def tokens(self) -> list[tuple[str, str]]:
        """Text and thought of each."""
        return [("", word) for word in _words(self.thinking)] + [(word, "") for word in _words(self.text)]


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+", text)


class ScriptedEngine(Engine):
    """Answers with `scripts`, the last one again and again."""

    def __init__(self, *scripts: Script | str, n_ctx: int = 1000, has_template: bool = True) -> None:
        self.scripts = [Script(each) if isinstance(each, str) else each for each in scripts] or [Script("Yes.")]
        self._n_ctx = n_ctx
        self.header: Any = SimpleNamespace(chat_template="{{ messages }}" if has_template else None)
        self.is_alive = True
        self.prompts: list[Sequence[dict[str, str]]] = []
        self.asked: list[PromptOptions] = []
        self.prepared: list[Sequence[dict[str, str]]] = []
        self.left: list[tuple[str, str]] = []
        """Of an answer that the end of the context cut."""

    @property
    def n_ctx_most(self) -> int:
        return self._n_ctx

    @property
    def alive(self) -> bool:
        return self.is_alive

    def close(self) -> None:
        self.is_alive = False

    def count(self, prompt: str | Sequence[dict[str, str]], *, template: str | None = None, thinks: bool = True) -> int:
        texts = [prompt] if isinstance(prompt, str) else [each["content"] for each in prompt]
        return sum(len(text.split()) for text in texts) + (
            0 if isinstance(prompt, str) else MESSAGE_TOKENS * len(texts)
        )

    def prepare(self, messages: Sequence[dict[str, str]], *, template: str | None = None, thinks: bool = True) -> None:
        self.prepared.append([*messages])

    def generate(
        self,
        prompt: str | Sequence[dict[str, str]],
        sampling: SamplingConfig | None = None,
        *,
        options: PromptOptions | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> Generation:
        assert not isinstance(prompt, str)
        options = options or PromptOptions()
        self.prompts.append([*prompt])
        self.asked.append(options)
        return ScriptedGeneration(self, prompt, sampling or SamplingConfig(), options)

    def next_script(self) -> Script:
        return self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]


class ScriptedGeneration(Generation):
    def __init__(
        self, engine: ScriptedEngine, prompt: Sequence[dict[str, str]], sampling: SamplingConfig, options: PromptOptions
    ) -> None:
        self._scripted, self._prompt, self._sampling, self._options = engine, prompt, sampling, options
        self.meter = Meter()
        self.text = self.thinking = ""
        self.thinks: bool | None = None
        self.token_ids: list[int] = []
        self.n_thinking = 0
        self.stop_reason: StopReason | None = None
        self.n_ctx: int | None = None
        self.buffers = []
        self.done = None
        self.seed = 1
        self._is_cancelled = False

    def cancel(self) -> None:
        self._is_cancelled = True

    def close(self) -> None:
        self._is_cancelled = True

    @property
    def timing(self) -> Timing:
        return self.meter.timing()

    def pieces(self) -> Iterator[tuple[str, str]]:
        try:
            yield from self._pieces()
        except LlmrunError:
            self.stop_reason = "cancelled"
            raise
        finally:
            if self.stop_reason is None:
                self._end("cancelled")

    def _pieces(self) -> Iterator[tuple[str, str]]:
        engine, begun = self._scripted, self._options.assistant_prefix
        if not engine.alive:
            raise EngineCrashed("the engine is dead")
        n_prompt = engine.count(self._prompt) + len(begun.split())
        if n_prompt >= engine.n_ctx_most:
            raise PromptTooLong(f"{n_prompt} tokens, the context holds {engine.n_ctx_most}")
        script = engine.next_script() if not begun else Script()
        tokens = engine.left if begun else script.tokens()
        if not self._options.thinks:
            tokens = [each for each in tokens if not each[1]]
        self.n_ctx, self.thinks = engine.n_ctx_most, True
        self.meter.feed(
            Started(n_prompt=n_prompt, n_cached=0, n_ctx=self.n_ctx, request_s=0, begin_s=0, buffers=[], thinks=True)
        )
        self.meter.feed(Prefilled(n_tokens=n_prompt, at_s=TOKEN_S))
        n_most = self._sampling.max_tokens
        for n, (text, thought) in enumerate(tokens):
            if n == script.dies_after:
                engine.close()
                raise EngineCrashed("the engine was ended by SIGKILL")
            if self._is_cancelled or n == n_most or n_prompt + n == engine.n_ctx_most:
                engine.left = tokens[n:]
                self._end("cancelled" if self._is_cancelled else "length" if n == n_most else "context")
                return
            self.text += text
            self.thinking += thought
            self.token_ids.append(n)
            self.n_thinking += bool(thought)
            self.meter.feed(Tokens(ids=[n], at_s=[(n + 2) * TOKEN_S], text=text, thought=thought))
            yield text, thought
        self._end("cancelled" if self._is_cancelled else "end")

    def _end(self, reason: StopReason) -> None:
        self.stop_reason = reason
        self.meter.feed(Done(stop_reason=reason, peak_rss_bytes=None, rss_bytes=None, anonymous_bytes=None))
