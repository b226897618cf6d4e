"""One prompt, one answer: template, prefill, decode, sample. Child process only.

What the memory still holds of a conversation is not computed again, if the request says so: see `Memory`.
"""

from __future__ import annotations

import codecs
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from llmrun.engine.child import native, sampler
from llmrun.engine.child.kv_context import Memory
from llmrun.engine.protocol import (
    Buffer,
    Count,
    Counted,
    FailureKind,
    Generate,
    Message,
    Prefilled,
    Prepare,
    Prepared,
    Rendering,
    RequestFailed,
    Settings,
    Started,
    StopReason,
    Tokens,
)
from llmrun.options.config import COMFORTABLE_CTX

if TYPE_CHECKING:
    from llmrun.engine.child.chat_template import Templates
    from llmrun.engine.child.reasoning import Splitter, Tags

# Every message wakes the parent on a core that decoding may be using. At thousands of tokens per second they are sent
# together, never later than this: no eye sees the difference.
COALESCE_S = 0.010

clock = time.perf_counter


class Host(Protocol):
    """What the worker has to offer."""

    llama: Any
    model: Any
    vocab: native.Vocab
    memory: Memory
    settings: Settings
    cancelled: native.CancelFlag

    def send(self, message: Message) -> None: ...

    def buffers(self) -> list[Buffer]: ...

    def fail_from_log(self, kind: FailureKind, what: str, **numbers: int) -> NoReturn: ...


class Text:
    """Tokens to text that can be shown: whole characters only, and nothing that may turn out to be a stop text.

    With a `splitter` thinking is told from the answer; stop texts are looked for in the answer alone.
    """

    def __init__(self, stop: list[str], splitter: Splitter | None = None) -> None:
        self._stop = stop
        self._splitter = splitter
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def add(self, piece: bytes, *, final: bool = False) -> tuple[str, str]:
        """What can be shown after this piece, of the answer and of the thinking; `final` gives out all that is held."""
        text, thought = self._decoder.decode(piece, final), ""
        if self._splitter is not None:
            text, thought = self._splitter.add(text)
            if final:
                rest = self._splitter.finish()
                text, thought = text + rest[0], thought + rest[1]
        return self._before_stop(text, final), thought

    def _before_stop(self, text: str, final: bool) -> str:
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = 0 if final else max((self._overlap(stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def _overlap(self, text: str) -> int:
        """The longest end of what is held that is a beginning of `text`."""
        longest = min(len(text) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(text[:n])), 0)


class Thinking:
    """How the model thinks, for one answer.

    Attributes:
        begins_inside: the prompt itself opens it.
        budget: tokens of thinking; None: as many as it takes.
    """

    def __init__(self, tags: Tags, vocab: native.Vocab, *, begins_inside: bool, budget: int | None) -> None:
        from llmrun.engine.child.reasoning import Splitter

        self.tags, self.begins_inside, self.budget = tags, begins_inside, budget
        self.splitter = Splitter(tags, inside=begins_inside)
        self._vocab = vocab
        self._tag_text = tags.open + tags.close + tags.answer + tags.direct + tags.end

    def piece(self, token: int) -> bytes:
        """Control tokens have no text, but where they are what a tag is made of."""
        piece = self._vocab.piece(token)
        if piece:
            return piece
        written = self._vocab.text_of(token, special=True)
        return written if written and written.decode(errors="replace") in self._tag_text else piece

    def may_begin_with(self, token: int) -> bool:
        """Whether an answer that begins with this token begins with thinking."""
        written = self._vocab.text_of(token, special=True).decode(errors="replace").strip()
        is_control = not self._vocab.piece(token)
        return bool(written) and (written == self.tags.open or (is_control and self.tags.open.startswith(written)))

    def way_out(self) -> list[int]:
        """The tokens that end it."""
        tags = self.tags
        return self._tokens(f"{tags.close}{tags.answer}" if tags.answer else f"\n{tags.close}\n\n")

    def heading(self, *, after_thoughts: bool) -> list[int]:
        """The tokens that stand before an answer."""
        return self._tokens(self.tags.answer if after_thoughts else self.tags.direct)

    def _tokens(self, text: str) -> list[int]:
        return self._vocab.tokenize(text, add_special=False) if text else []


class Answering:
    """Serves `Generate` and `Count` for one loaded model."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._llama, self._vocab, self._memory = host.llama, host.vocab, host.memory
        self._templates: Templates | None = None
        self._tags: dict[str, Tags | None] = {}

    # -- the prompt ---------------------------------------------------------------------------------------------------

    def count(self, request: Count) -> None:
        text = request.prompt
        if request.messages is not None:
            text, _ = self._rendered(request.messages, request.template, thinks=request.thinks)
        self._host.send(Counted(len(self._vocab.tokenize(text or ""))))

    def _rendered(
        self, messages: list[dict[str, str]], template: str | None, *, thinks: bool
    ) -> tuple[str, Tags | None]:
        """The prompt that the chat template makes of the messages, and how an answer marks its thinking."""
        from llmrun.engine.child.chat_template import TemplateError, Templates
        from llmrun.engine.child.reasoning import tags_of

        source = template
        if source is None:
            own = self._llama.llama_model_chat_template(self._host.model, None)
            if own is None:
                raise RequestFailed("usage", "this model has no chat template")
            source = own.decode(errors="replace")
        bos, eos = self._vocab.special_text("bos"), self._vocab.special_text("eos")
        if self._templates is None:
            self._templates = Templates()
        templates = self._templates

        def render(messages: list[dict[str, str]], *, thinks: bool = True) -> str:
            return templates.render(source, messages, bos_token=bos, eos_token=eos, enable_thinking=thinks)

        self._host.send(Rendering(done=False))
        try:
            text = render(messages, thinks=thinks)
            if source not in self._tags:
                self._tags[source] = tags_of(source, render)
        except TemplateError as error:
            if template is not None:
                raise RequestFailed("usage", f"--chat-template fails: {error}") from error
            raise RequestFailed("model", f"its chat template fails: {error}") from error
        self._host.send(Rendering(done=True))
        # Where the vocabulary adds BOS by itself, a template's own would be the second.
        if self._vocab.adds_bos and bos:
            text = text.removeprefix(bos)
        return text, self._tags[source]

    def _prompt(self, request: Generate) -> tuple[list[int], Thinking | None]:
        if request.messages is None:
            return self._tokens((request.prompt or "") + request.asking.begun, request), None
        text, tags = self._rendered(request.messages, request.asking.template, thinks=request.asking.thinks)
        if tags is None:
            return self._tokens(text + request.asking.begun, request), None
        from llmrun.engine.child.reasoning import opened_by

        if not request.asking.thinks:
            if opened_by(text, tags):
                text += f"{tags.close}{tags.answer}" if tags.answer else f"\n{tags.close}\n\n"
            elif tags.direct:
                text += tags.direct[_overlap(text, tags.direct) :]
        text += request.asking.begun
        budget = request.asking.think_budget if request.asking.thinks else 0
        inside = opened_by(text, tags)
        return self._tokens(text, request), Thinking(tags, self._vocab, begins_inside=inside, budget=budget)

    def _tokens(self, text: str, request: Generate) -> list[int]:
        tokens = self._vocab.tokenize(text)
        if not tokens:
            raise RequestFailed("usage", "the prompt is empty and this model has no token to begin with")
        return self._as_remembered(text, tokens) if request.asking.reuse else tokens

    def _as_remembered(self, text: str, tokens: list[int]) -> list[int]:
        """The same text in the tokens that the memory holds, where it goes on behind them with a control token.

        A sampled answer is seldom cut into the tokens that a tokenizer would cut it into. Read back as text it would
        be computed again from the first difference on.
        """
        from llmrun.engine.child.kv_context import common_prefix

        held = self._memory.held + self._memory.spoken
        if common_prefix(held, tokens) >= len(held):
            return tokens
        bos = b"" if not self._vocab.adds_bos else self._vocab.special_text("bos").encode()
        known = b"".join(self._vocab.text_of(token, special=True) for token in held).removeprefix(bos)
        written = text.encode("utf-8", errors="replace")
        if not written.startswith(known):
            return tokens
        rest = self._vocab.tokenize(written[len(known) :].decode(errors="replace"), add_special=False)
        return held + rest if rest and not self._vocab.piece(rest[0]) else tokens

    def prepare(self, request: Prepare) -> None:
        self._make_room(0, -1, keep=True)
        if not self._memory.held:  # the weights are read once, from the disk perhaps
            first = self._vocab.tokenize("a")[:1]
            self._compute((self._llama.llama_token * 1)(*first), 1)
            self._memory.forget()
        known = self._known_beginning(request)
        if known:
            self._prefill(known[self._memory.recall([*known, -1]) :], told=False)
        self._host.send(Prepared(len(self._memory.held)))

    def _known_beginning(self, request: Prepare) -> list[int]:
        """The tokens that the prompt will begin with, whatever the user says next."""
        from llmrun.engine.child.kv_context import common_prefix

        made = []
        for word in ("a", "Z"):
            said = {"role": "user", "content": word}
            text, _ = self._rendered([*request.messages, said], request.template, thinks=request.thinks)
            made.append(self._vocab.tokenize(text))
        return made[0][: common_prefix(*made)]

    # -- the answer ---------------------------------------------------------------------------------------------------

    def generate(self, request: Generate) -> StopReason:
        """Send the answer as it is made; returns why it ended."""
        request_s = clock()
        host, memory, sampling = self._host, self._memory, request.sampling
        tokens, thinking = self._prompt(request)
        n_ctx = self._make_room(len(tokens), sampling["max_tokens"], keep=request.asking.reuse)
        beyond = [token for token, _ in sampling["logit_bias"] if token >= self._vocab.n_tokens]
        if beyond:
            raise RequestFailed(
                "usage", f"--logit-bias: there is no token {beyond[0]}, the vocabulary has {self._vocab.n_tokens}"
            )
        if not request.asking.reuse:
            memory.forget()
        n_cached = memory.recall(tokens)
        try:
            chooser = sampler.Chooser(self._vocab, sampling, n_ctx, request.asking.grammar)
        except sampler.BadGrammar:
            host.fail_from_log("usage", "llama.cpp does not take this grammar")
        try:
            begin_s = clock()
            host.send(
                Started(len(tokens), n_cached, n_ctx, request_s, begin_s, host.buffers(), thinks=thinking is not None)
            )
            chooser.seen(tokens)
            return self._prefill(tokens[n_cached:]) or self._decode(request, chooser, thinking)
        finally:
            chooser.close()

    def _make_room(self, n_prompt: int, max_tokens: int, *, keep: bool) -> int:
        """A context for prompt and answer; returns its tokens."""
        # Clearing 4096 tokens of KV cache nobody will use was a third of a short answer's wait: measured 0.4 of 1.2 s.
        bounded = max_tokens >= 0
        n_needed = n_prompt + max_tokens if bounded else max(COMFORTABLE_CTX, n_prompt + COMFORTABLE_CTX // 2)
        if keep:  # the next turns will come
            n_needed = max(n_needed, COMFORTABLE_CTX)
        n_ctx = self._memory.extend(n_needed) if keep else self._memory.ensure(n_needed)
        if n_ctx is None:
            wanted = self._memory.granted(n_needed)
            self._host.fail_from_log("engine", f"llama.cpp can't make a context of {wanted} tokens", n_ctx=wanted)
        if n_prompt > n_ctx:
            raise RequestFailed(
                "prompt",
                f"the prompt has {n_prompt} tokens, the context holds {n_ctx}",
                n_prompt=n_prompt,
                n_ctx=n_ctx,
                n_ctx_train=self._llama.llama_model_n_ctx_train(self._host.model),
            )
        return n_ctx

    def _prefill(self, tokens: list[int], *, told: bool = True) -> StopReason | None:
        size, n_before = self._host.settings.n_batch, len(self._memory.held)
        for first in range(0, len(tokens), size):
            chunk = tokens[first : first + size]
            reason = self._compute((self._llama.llama_token * len(chunk))(*chunk), len(chunk))
            if reason:
                return reason
            self._memory.held += chunk
            self._llama.llama_synchronize(self._memory.context)  # devices compute behind our back; the time is theirs
            if told:
                self._host.send(Prefilled(n_before + first + len(chunk), clock()))
        return None

    def _compute(self, ids: Any, n: int) -> StopReason | None:
        """`llama_decode` on `n` tokens, the last one's logits kept; a reason to stop, or None."""
        if self._host.cancelled:
            return "cancelled"
        status = self._llama.llama_decode(self._memory.context, self._llama.llama_batch_get_one(ids, n))
        if status == 0:
            return None
        self._memory.repair()
        if status not in (1, 2):
            self._host.fail_from_log("engine", f"llama_decode failed with {status}")
        return "context" if status == 1 else "cancelled"  # 1: no room in the KV cache; 2: aborted by our flag

    def _decode(self, request: Generate, chooser: sampler.Chooser, thinking: Thinking | None) -> StopReason:
        """Sample and compute, token by token. The last token's logits are ready."""
        memory, held, vocab, send = self._memory, self._memory.held, self._vocab, self._host.send
        sampling = request.sampling
        max_tokens, goes_on = sampling["max_tokens"], sampling["ignore_eos"] and not chooser.has_grammar
        n_ctx, n_past = memory.n_ctx, len(held)
        splitter = thinking.splitter if thinking else None
        piece_of = thinking.piece if thinking else vocab.piece
        answer = Text(sampling["stop"], splitter)
        one = (self._llama.llama_token * 1)()
        ids: list[int] = []
        at_s: list[float] = []
        text: list[str] = []
        thoughts: list[str] = []
        forced: deque[int] = deque()
        uncomputed: list[int] = []
        n_made = n_thought = n_thought_sent = 0
        sent_s = before_s = clock()
        reason: StopReason | None = None

        # Under a grammar an answer may begin with thinking all the same, if that is what the model would do.
        thinking_begins = (
            chooser.has_grammar
            and thinking is not None
            and not thinking.begins_inside
            and thinking.budget != 0
            and not request.asking.begun
            and thinking.may_begin_with(chooser.peek(memory.context))
        )

        def choose() -> int:
            nonlocal thinking_begins
            if forced:
                token = forced.popleft()
                chooser.forced(token)
                return token
            if chooser.has_grammar and not thinking_begins and not (splitter and splitter.inside):
                return chooser.bound(memory.context)
            return chooser.free(memory.context)

        def flush() -> None:
            nonlocal sent_s, n_thought_sent
            if ids or text or thoughts:
                send(Tokens([*ids], [*at_s], "".join(text), "".join(thoughts), n_thought - n_thought_sent))
                n_thought_sent = n_thought
                for sent in (ids, at_s, text, thoughts):
                    sent.clear()
                sent_s = clock()

        answers_at_once = not thinking_begins and thinking is not None and not thinking.begins_inside
        asked_to_think = request.asking.thinks and not request.asking.begun
        if chooser.has_grammar and thinking is not None and answers_at_once and asked_to_think:
            forced.extend(thinking.heading(after_thoughts=False))
        # Nothing to decide about a token: the usual case, and fast.
        plain = not chooser.has_grammar and thinking is None
        sample, context = chooser.free, memory.context
        try:
            while reason is None:
                if n_made == max_tokens:
                    reason = "length"
                elif self._host.cancelled:
                    reason = "cancelled"
                else:
                    token = sample(context) if plain else choose()
                    if vocab.ends(token) and not goes_on:
                        reason = "end"
                        continue
                    now_s = clock()
                    uncomputed = [token]
                    n_made += 1
                    ids.append(token)
                    at_s.append(now_s)
                    if thinking is not None and splitter is not None:
                        was_inside = splitter.inside
                        shown, thought = answer.add(piece_of(token))
                        if thinking_begins and (splitter.inside or shown):
                            thinking_begins = False
                        if was_inside and not splitter.inside and chooser.has_grammar and not forced:
                            forced.extend(thinking.heading(after_thoughts=True))
                        if was_inside or splitter.inside:
                            n_thought += 1
                            if splitter.inside and not forced and n_thought == thinking.budget:
                                forced.extend(thinking.way_out())
                        if splitter.inside and thinking.budget == 0 and not forced:
                            forced.extend(thinking.way_out())
                        thoughts.append(thought)
                    else:
                        shown, _ = answer.add(piece_of(token))
                    text.append(shown)
                    # Alone when the next one takes longer than anyone would wait with this one, else together.
                    if n_made == 1 or now_s - before_s > COALESCE_S / 2 or now_s - sent_s > COALESCE_S:
                        flush()
                    before_s = now_s
                    if answer.stopped:
                        reason = "stop"
                    elif n_made == max_tokens:
                        reason = "length"
                    elif n_past == n_ctx and not (request.asking.reuse and self._grown(n_ctx)):
                        reason = "context"
                    else:
                        n_ctx, context, held = memory.n_ctx, memory.context, memory.held
                        one[0] = token
                        reason = self._compute(one, 1)
                        if reason is None:
                            held.append(token)
                            uncomputed = []
                            n_past += 1
        except sampler.DeadEnd:
            flush()
            raise RequestFailed("usage", "no token of this model goes on as the grammar wants it") from None
        memory.spoken = uncomputed if memory.held else []
        if not answer.stopped:
            shown, thought = answer.add(b"", final=True)
            text.append(shown)
            thoughts.append(thought)
        flush()
        return reason

    def _grown(self, n_ctx: int) -> bool:
        """Whether the context could be made longer than it is, with all that it remembers."""
        longer = self._memory.extend(n_ctx + 1)
        if longer is None:
            self._host.fail_from_log("engine", f"llama.cpp can't make a context of {n_ctx} tokens again", n_ctx=n_ctx)
        return longer > n_ctx and len(self._memory.held) >= n_ctx


def _overlap(text: str, beginning: str) -> int:
    """How much of `beginning` stands at the end of `text` already."""
    return next((n for n in range(len(beginning), 0, -1) if text.endswith(beginning[:n])), 0)
