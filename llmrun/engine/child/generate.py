"""One answer while it is made: from a sampled token to text that is sent, until there is a reason to stop.

Child process only. Nothing here knows llama.cpp: `slots.py` has the context and drives this.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from llmrun.engine.child.answer_text import FIRST_SIGN, AnswerText
from llmrun.engine.child.special_tokens import Vocabulary, named_in
from llmrun.engine.child.thinking import Thinking
from llmrun.engine.child.tool_calls import ToolWatch
from llmrun.engine.protocol import CallPiece, Message, StopReason, TokenLogprobs, Tokens

COALESCE_S = 0.010
"""Every message wakes the parent on a core that decoding may be using. At thousands of tokens per second tokens are
sent together, never later than this: no eye sees the difference."""
BULK_S = 0.5
"""The same where nobody watches."""

Clock = Callable[[], float]


class _Untold(NamedTuple):
    """A token whose probabilities nobody knows yet.

    Attributes:
        number: its place in the answer.
        has_text: False: it is a control token, or ends in the middle of a character.
    """

    number: int
    logprobs: TokenLogprobs
    has_text: bool


class TokenBatch:
    """Tokens that were made and are not sent yet, with what they have added to the text."""

    def __init__(self, coalesce_s: float = COALESCE_S) -> None:
        """They wait for at most so long."""
        self._coalesce_s = coalesce_s
        self._made = Tokens([], [], "")
        self._n_thinking = 0
        self._sent_s: float | None = None

    def add(self, token: int, at_s: float) -> bool:
        """Take a token that was sampled at that time. Returns whether it is time to send.

        A token goes alone when the next one takes longer than anyone would wait with this one, else with others.
        """
        times = self._made.at_s
        before_s = times[-1] if times else self._sent_s
        self._made.ids.append(token)
        times.append(at_s)
        if before_s is None or self._sent_s is None:  # the very first one
            return True
        return at_s - before_s > self._coalesce_s / 2 or at_s - self._sent_s > self._coalesce_s

    def add_logprobs(self, logprobs: TokenLogprobs) -> None:
        self._made.logprobs.append(logprobs)

    def add_calls(self, calls: list[CallPiece]) -> None:
        self._made.calls += calls

    def add_text(self, text: str, thinking: str = "") -> None:
        self._made.text += text
        self._made.thought += thinking

    def take(self, now_s: float, n_thinking: int = 0) -> Tokens | None:
        """The message with all of them; None if there is nothing to send. `n_thinking` is of the answer so far."""
        made = self._made
        if not (made.ids or made.text or made.thought or made.calls or made.logprobs):
            return None
        made.n_thought = n_thinking - self._n_thinking
        self._made, self._n_thinking, self._sent_s = Tokens([], [], ""), n_thinking, now_s
        return made


class TokenSource(Protocol):
    """Where tokens come from: `sampler.Sampler`, on the logits that a llama.cpp context has of one of the last batch's
    tokens, by index. Tests have scripted ones."""

    has_grammar: bool

    def sample(self, context: Any, index: int) -> int: ...
    def sample_constrained(self, context: Any, index: int) -> int: ...
    def accept(self, token: int) -> None: ...
    def follow(self, token: int) -> None: ...
    def logprobs(self, context: Any, index: int, token: int, n: int) -> TokenLogprobs: ...


class StopTokens:
    """Control tokens in stop strings. They have no text that a string could be found in, so each gets a sign.

    Attributes:
        strings: the stop strings, and those with signs for the control tokens that they name.
    """

    def __init__(self, vocab: Vocabulary, strings: Sequence[str]) -> None:
        self._signs: dict[int, str] = {}
        self.strings, self._given = list(strings), list(strings)
        for string in strings:
            at, signed = 0, ""
            for begin, end, token in named_in(vocab, string):
                if not vocab.piece(token):
                    sign = self._signs.setdefault(token, chr(FIRST_SIGN + len(self._signs)))
                    signed, at = signed + string[at:begin] + sign, end
            if at:
                self.strings.append(signed + string[at:])
                self._given.append(string)

    def given(self, i: int) -> str:
        """The stop string that is number `i` of `strings`, as it was given."""
        return self._given[i]

    def sign(self, token: int) -> str:
        """What stands for the token among the text; "" for one that no stop string names."""
        return self._signs.get(token, "")


class GenerationState:
    """One answer while it is made. `step` until there is a `stop_reason`, then `finish`.

    Attributes:
        n_tokens: tokens made so far, thinking included, a final EOS not.
        stop_reason: why it has ended; None while it goes on.
    """

    def __init__(
        self,
        source: TokenSource,
        vocab: Vocabulary,
        send: Callable[[Message], None],
        *,
        max_tokens: int = -1,
        stop: Sequence[str],
        ignore_eos: bool = False,
        thinking: Thinking | None = None,
        tools: ToolWatch | None = None,
        n_logprobs: int | None = None,
        coalesce_s: float = COALESCE_S,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Tokens are sent as they are made, several at a time where they come within `coalesce_s`. `max_tokens` -1: no
        limit. `n_logprobs`: as `PromptOptions` has it."""
        self._n_logprobs = n_logprobs
        self._source, self._send, self._clock, self._thinking, self._tools = source, send, clock, thinking, tools
        self._piece: Callable[[int], bytes] = thinking.piece if thinking else vocab.piece
        if tools is not None:
            self._piece = tools.pieces(self._piece)
        self._is_end = vocab.is_end
        self._max_tokens = max_tokens
        self._ignore_eos = ignore_eos and not source.has_grammar  # a grammar says itself when a text is complete
        self._stops = StopTokens(vocab, stop)
        self._text = AnswerText(
            self._stops.strings,
            thinking.splitter if thinking else None,
            tools.splitter if tools else None,
            traced=n_logprobs is not None,
        )
        self._batch = TokenBatch(coalesce_s)
        self._untold: deque[_Untold] = deque()
        self.n_tokens = 0
        self.stop_reason: StopReason | None = "length" if max_tokens == 0 else None

    def step(self, context: Any, index: int = -1) -> int | None:
        """Sample one token from the context's logits of `index`. Returns the token, which has to be computed for the
        next step; None when the model has ended the answer. There may be a stop reason either way.

        Raises `sampler.DeadEnd`.
        """
        is_free = not self.is_constrained
        token = self._next_token(context, index)
        if self._is_end(token) and not self._ignore_eos:
            self.stop_reason = "end"
            return None
        is_due = self._batch.add(token, self._clock())
        self.n_tokens += 1
        thinking, text = self._thinking, self._text
        piece = self._piece(token)
        sign = "" if piece else self._stops.sign(token)  # a tag of the thinking has its text already
        was_inside = thinking is not None and thinking.splitter.inside
        n_read = text.n_read
        answer, thought = text.add(piece, sign, self.n_tokens)
        is_thought = was_inside or (thinking is not None and thinking.splitter.inside)
        if self._tools is not None:
            self._batch.add_calls(text.take_calls())
            if is_free and not is_thought and not self._tools.must:
                self._source.follow(token)
        if self._n_logprobs is not None:
            if not (was_inside and thinking is not None and thinking.splitter.inside):
                logprobs = self._source.logprobs(context, index, token, self._n_logprobs)
                self._untold.append(_Untold(self.n_tokens, logprobs, text.n_read > n_read))
            self._tell_logprobs()
        if thinking is not None:
            thinking.update(was_inside=was_inside)
        self._batch.add_text(answer, thought)
        if is_due:
            self._flush()
        if text.stopped:
            self.stop_reason = "stop"
        elif self.n_tokens == self._max_tokens:
            self.stop_reason = "length"
        return token

    @property
    def is_constrained(self) -> bool:
        """Whether the next token is sampled under a grammar."""
        thinking = self._thinking
        if thinking and thinking.forced:
            return False
        if self._tools is not None and not self._tools.must:
            is_thought = thinking is not None and thinking.splitter.inside
            return self._source.has_grammar and self._tools.inside and not is_thought
        return thinking.is_constrained if thinking else self._source.has_grammar

    @property
    def stop(self) -> str | None:
        """The stop string that ended it."""
        i = self._text.stop
        return None if i is None else self._stops.given(i)

    @property
    def n_left(self) -> int:
        """Tokens that may still be made."""
        return self._max_tokens - self.n_tokens if self._max_tokens >= 0 else 1 << 30

    def finish(self) -> None:
        """Send what is left, the text that was held back included."""
        self._batch.add_text(*self._text.finish(cut=self.stop_reason != "end"))
        self._batch.add_calls(self._text.take_calls())
        if self._n_logprobs is not None:
            self._tell_logprobs()
            if not (self._text.stopped or any(each.has_text for each in self._untold)):
                self._tell(self._untold)
        self._flush()

    def _tell_logprobs(self) -> None:
        """Of the tokens of which something is shown, and of those without a text of their own right before these, as a
        character may have several. None that is of a stop string, a tag or a call alone."""
        for number in self._text.take_shown_of():
            before: list[_Untold] = []
            while self._untold and self._untold[0].number <= number:
                each = self._untold.popleft()
                before = [] if each.has_text and each.number < number else [*before, each]
            self._tell(before)

    def _tell(self, tokens: Iterable[_Untold]) -> None:
        for each in tokens:
            self._batch.add_logprobs(each.logprobs)

    def _next_token(self, context: Any, index: int) -> int:
        thinking, source = self._thinking, self._source
        if thinking and thinking.forced:
            token = thinking.forced.popleft()
            source.accept(token)
            return token
        return source.sample_constrained(context, index) if self.is_constrained else source.sample(context, index)

    def _flush(self) -> None:
        message = self._batch.take(self._clock(), self._thinking.n_tokens if self._thinking else 0)
        if message is not None:
            self._send(message)
