"""One prompt, one answer: prefill, then sample and compute token by token. Child process only.

`GenerationState` is all that one answer is while it is made, and knows no llama.cpp; `Generator` has the context and
drives it. Tokens of the prompt that the context still holds are not computed again, if the request says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from llmrun.engine import protocol
from llmrun.engine.child import sampler
from llmrun.engine.child.answer_text import FIRST_SIGN, AnswerText
from llmrun.engine.child.constraint import Constraint, ConstraintMaker
from llmrun.engine.child.kv_context import PLAIN_TOKENS, KVContext
from llmrun.engine.child.prompts import Prompts
from llmrun.engine.child.special_tokens import Vocabulary, named_in
from llmrun.engine.child.thinking import Thinking
from llmrun.engine.child.thread_guard import GuardedThreads, IdleCore, preemptions
from llmrun.engine.protocol import Message, RequestFailed, StopReason, Tokens
from llmrun.options.defaults import COMFORTABLE_CTX

if TYPE_CHECKING:
    from llmrun.engine.child.main import Worker

COALESCE_S = 0.010
"""Every message wakes the parent on a core that decoding may be using. At thousands of tokens per second tokens are
sent together, never later than this: no eye sees the difference."""

Clock = Callable[[], float]


class TokenBatch:
    """Tokens that were made and are not sent yet, with what they have added to the text."""

    def __init__(self) -> None:
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
        return at_s - before_s > COALESCE_S / 2 or at_s - self._sent_s > COALESCE_S

    def add_text(self, text: str, thinking: str = "") -> None:
        self._made.text += text
        self._made.thought += thinking

    def take(self, now_s: float, n_thinking: int = 0) -> Tokens | None:
        """The message with all of them; None if there is nothing to send. `n_thinking` is of the answer so far."""
        made = self._made
        if not (made.ids or made.text or made.thought):
            return None
        made.n_thought = n_thinking - self._n_thinking
        self._made, self._n_thinking, self._sent_s = Tokens([], [], ""), n_thinking, now_s
        return made


class TokenSource(Protocol):
    """Where tokens come from: `sampler.Sampler` on the logits of a llama.cpp context. Tests have scripted ones."""

    has_grammar: bool

    def sample(self, context: Any) -> int: ...
    def sample_constrained(self, context: Any) -> int: ...
    def accept(self, token: int) -> None: ...


class StopTokens:
    """Control tokens in stop strings. They have no text that a string could be found in, so each gets a sign.

    Attributes:
        strings: the stop strings, and those with signs for the control tokens that they name.
    """

    def __init__(self, vocab: Vocabulary, strings: Sequence[str]) -> None:
        self._signs: dict[int, str] = {}
        self.strings = list(strings)
        for string in strings:
            at, signed = 0, ""
            for begin, end, token in named_in(vocab, string):
                if not vocab.piece(token):
                    sign = self._signs.setdefault(token, chr(FIRST_SIGN + len(self._signs)))
                    signed, at = signed + string[at:begin] + sign, end
            if at:
                self.strings.append(signed + string[at:])

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
        clock: Clock = time.perf_counter,
    ) -> None:
        """Tokens are sent as they are made, several at a time where they come fast. `max_tokens` -1: no limit."""
        self._source, self._send, self._clock, self._thinking = source, send, clock, thinking
        self._piece = thinking.piece if thinking else vocab.piece
        self._is_end = vocab.is_end
        self._max_tokens = max_tokens
        self._ignore_eos = ignore_eos and not source.has_grammar  # a grammar says itself when a text is complete
        self._stops = StopTokens(vocab, stop)
        self._text = AnswerText(self._stops.strings, thinking.splitter if thinking else None)
        self._batch = TokenBatch()
        self.n_tokens = 0
        self.stop_reason: StopReason | None = "length" if max_tokens == 0 else None

    def step(self, context: Any) -> int | None:
        """Sample one token from the context's logits. Returns the token, which has to be computed for the next step;
        None when the model has ended the answer. There may be a stop reason either way.

        Raises `sampler.DeadEnd`.
        """
        token = self._next_token(context)
        if self._is_end(token) and not self._ignore_eos:
            self.stop_reason = "end"
            return None
        is_due = self._batch.add(token, self._clock())
        self.n_tokens += 1
        thinking, text = self._thinking, self._text
        piece = self._piece(token)
        sign = "" if piece else self._stops.sign(token)  # a tag of the thinking has its text already
        was_inside = thinking is not None and thinking.splitter.inside
        answer, thought = text.add(piece, sign)
        if thinking is not None:
            thinking.update(was_inside=was_inside, answer=answer)
        self._batch.add_text(answer, thought)
        if is_due:
            self._flush()
        if text.stopped:
            self.stop_reason = "stop"
        elif self.n_tokens == self._max_tokens:
            self.stop_reason = "length"
        return token

    def finish(self) -> None:
        """Send what is left, the text that was held back included."""
        self._batch.add_text(*self._text.finish(cut=self.stop_reason != "end"))
        self._flush()

    def _next_token(self, context: Any) -> int:
        thinking, source = self._thinking, self._source
        if thinking and thinking.forced:
            token = thinking.forced.popleft()
            source.accept(token)
            return token
        is_constrained = thinking.is_constrained if thinking else source.has_grammar
        return source.sample_constrained(context) if is_constrained else source.sample(context)

    def _flush(self) -> None:
        message = self._batch.take(self._clock(), self._thinking.n_tokens if self._thinking else 0)
        if message is not None:
            self._send(message)


class Generator:
    """Serves `Generate`, `Prepare` and `Count` for the loaded model of a worker."""

    def __init__(self, host: Worker) -> None:
        self._host = host
        self._llama, self._vocab, self._kv = host.llama, host.vocab, host.kv
        self._constraints = ConstraintMaker(host.vocab)
        self._prompts = Prompts(host.model, host.vocab, host.templates)
        self.threads = GuardedThreads(
            host.settings.n_threads,
            self._set_threads,
            on=host.settings.guards_threads,
            preemptions=preemptions,
            has_idle_core=IdleCore(),
        )

    def count(self, request: protocol.Count) -> None:
        self._host.send(protocol.Counted(self._prompts.count(request)))

    def prepare(self, request: protocol.Prepare) -> None:
        self._make_room(0, -1, keep=True)
        if not self._kv.tokens:  # the weights are read once, from the disk perhaps
            self._compute(self._vocab.tokenize("a")[:1], self._kv)
            self._kv.clear()
        known = self._prompts.common_beginning(request)
        if known:
            self._prefill(known[self._kv.reuse_prefix([*known, -1]) :])
        self._host.send(protocol.Prepared(len(self._kv.tokens)))

    def generate(self, request: protocol.Generate) -> StopReason:
        """Send the answer as it is made; returns why it ended."""
        served_s = time.perf_counter()
        host, kv, sampling, options = self._host, self._kv, request.sampling, request.options
        if options.grammar is not None:
            self._constraints.begin(options.grammar)
        tokens, thinking = self._prompts.of(request, kv.tokens + kv.pending)
        n_ctx = self._make_room(len(tokens), sampling["max_tokens"], keep=options.reuse)
        self._check_bias(sampling["logit_bias"])
        if not options.reuse:
            kv.clear()
        n_cached = kv.reuse_prefix(tokens)
        source = sampler.Sampler(self._vocab, sampling, n_ctx, has_grammar=options.grammar is not None)
        try:
            begin_s = time.perf_counter()
            host.send(
                protocol.Started(
                    n_prompt=len(tokens),
                    n_cached=n_cached,
                    n_ctx=n_ctx,
                    request_s=host.request.received_s,
                    served_s=served_s,
                    begin_s=begin_s,
                    buffers=host.buffers(),
                    thinks=thinking is not None,
                )
            )
            source.accept_prompt(tokens)
            self.threads.before_prefill()
            reason = self._prefill(tokens[n_cached:], tell=True)
            self.threads.begin(time.perf_counter() - begin_s)
            if reason is not None:
                return reason
            if source.has_grammar:
                source.constrain(self._constraint())
            if source.has_grammar and thinking is not None:
                answer_begun = not options.thinks or bool(options.assistant_prefix)
                thinking.constrain(lambda: source.argmax(kv.context), answer_begun=answer_begun)
            asked = {name: sampling[name] for name in ("max_tokens", "stop", "ignore_eos")}
            state = GenerationState(source, self._vocab, host.send, thinking=thinking, **asked)
            return self._decode(state, may_grow=options.reuse, repeatable=request.repeatable)
        finally:
            source.close()

    def _constraint(self) -> Constraint:
        made = self._constraints.finish()
        if isinstance(made, Constraint):
            return made
        raise RequestFailed("usage", f"the grammar can't be used with this model: {made}")

    def _check_bias(self, bias: list[list[float]]) -> None:
        for token, _ in bias:
            if token >= self._vocab.n_tokens:
                there = f"there is no token {token}, the vocabulary has {self._vocab.n_tokens}"
                raise RequestFailed("usage", there, field="logit_bias")

    def _make_room(self, n_prompt: int, max_tokens: int, *, keep: bool) -> int:
        """A context for prompt and answer; returns its tokens."""
        # Clearing 4096 tokens of KV cache that are not used was a third of a short answer's wait: 0.4 of 1.2 s.
        bounded = max_tokens >= 0
        n_needed = n_prompt + max_tokens if bounded else max(COMFORTABLE_CTX, n_prompt + COMFORTABLE_CTX // 2)
        if keep:  # the next turns will come
            n_needed = max(n_needed, COMFORTABLE_CTX)
        n_ctx = self._kv.grow(n_needed) if keep else self._kv.reserve(n_needed)
        if n_ctx is None:
            wanted = self._kv.clamp_n_ctx(n_needed)
            self._host.fail_from_log("engine", f"llama.cpp can't make a context of {wanted} tokens", n_ctx=wanted)
        if plain := self._host.plain_kv:  # now, so that what it takes is known; without one the prompt is computed here
            plain.reserve(n_ctx)
        if n_prompt > n_ctx:
            n_ctx_train = self._llama.llama_model_n_ctx_train(self._host.model)
            numbers = {"n_prompt": n_prompt, "n_ctx": n_ctx, "n_ctx_train": n_ctx_train}
            raise RequestFailed("prompt", f"the prompt has {n_prompt} tokens, the context holds {n_ctx}", numbers)
        return n_ctx

    def _prefill(self, tokens: list[int], *, tell: bool = False) -> StopReason | None:
        """Compute tokens behind those of the context, in batches; a reason to stop, or None. `tell` of every batch.

        Where the weights are there in both layouts, a long prompt is computed with those as in the file, but for its
        last token, whose logits are wanted.
        """
        kv, plain = self._kv, self._host.plain_kv
        if plain is None or len(tokens) < PLAIN_TOKENS or plain.context is None or not plain.take_over(kv):
            return self._prefill_in(kv, tokens, tell=tell)
        before = len(kv.tokens)
        reason = self._prefill_in(plain, tokens[:-1], tell=tell)
        if not kv.take_over(plain):
            raise RequestFailed("engine", f"llama.cpp can't hand over the state of {len(plain.tokens)} tokens")
        return reason or self._prefill_in(kv, tokens[len(kv.tokens) - before :], tell=tell)

    def _prefill_in(self, kv: KVContext, tokens: list[int], *, tell: bool) -> StopReason | None:
        size = self._host.settings.n_batch
        for first in range(0, len(tokens), size):
            if self._host.cancelled:
                return "cancelled"
            batch = tokens[first : first + size]
            reason = self._compute(batch, kv)
            if reason:
                return reason
            kv.tokens += batch
            self._llama.llama_synchronize(kv.context)  # devices compute behind our back; the time is theirs
            if tell:
                self._host.send(protocol.Prefilled(len(kv.tokens), time.perf_counter()))
        return None

    def _set_threads(self, n: int) -> None:
        if self._kv.context is not None:
            self._llama.llama_set_n_threads(self._kv.context, n, self._host.settings.n_threads_batch)

    def _decode(self, state: GenerationState, *, may_grow: bool, repeatable: bool) -> StopReason:
        """Sample and compute until there is a reason to stop. The last token's logits are ready."""
        kv, cancelled, threads, clock = self._kv, self._host.cancelled, self.threads, time.perf_counter
        reason, token = state.stop_reason, None
        try:
            while reason is None:
                if cancelled:
                    reason = "cancelled"
                    break
                token = state.step(kv.context)
                reason = state.stop_reason
                if token is None or reason is not None:
                    continue
                if len(kv.tokens) == kv.n_ctx and not (may_grow and self._grow()):
                    reason = "context"
                    continue
                threads.before(len(kv.tokens), state.n_tokens, repeatable=repeatable)
                begin_s = clock()
                reason = self._compute([token], kv)
                threads.after(clock() - begin_s)
                if reason is None:
                    kv.tokens.append(token)
                    token = None
        except sampler.DeadEnd:
            raise RequestFailed("usage", "no token of this model continues the text as the grammar demands") from None
        finally:
            state.finish()
            threads.end()
        kv.pending = [] if token is None or not kv.tokens else [token]
        return reason

    def _compute(self, tokens: list[int], kv: KVContext) -> StopReason | None:
        """`llama_decode` on tokens, the last one's logits kept; a reason to stop, or None."""
        ids = (self._llama.llama_token * len(tokens))(*tokens)
        status = self._llama.llama_decode(kv.context, self._llama.llama_batch_get_one(ids, len(tokens)))
        if status == 0:
            return None
        kv.repair()
        if status not in (1, 2):
            self._host.fail_from_log("engine", f"llama_decode failed with {status}")
        return "context" if status == 1 else "cancelled"  # 1: no room in the KV cache; 2: aborted by our flag

    def _grow(self) -> bool:
        """Whether the context could be made longer than it is, with all that it holds."""
        n_ctx = self._kv.n_ctx
        longer = self._kv.grow(n_ctx + 1)
        if longer is None:
            self._host.fail_from_log("engine", f"llama.cpp can't make a context of {n_ctx} tokens again", n_ctx=n_ctx)
        self.threads.in_new_context()
        return longer > n_ctx and len(self._kv.tokens) >= n_ctx
