"""The answers that are being made, side by side: prompts, then token by token, all of them in one computation.

    requests ──► admitted: a sequence of the context, what is known of the prompt ──► prompt, part by part ──┐
                                                                                                             ▼
    ended ◄── stop reason ◄── text, sent ◄── sampled, each with its own sampler ◄── one token of each, computed

Child process only. A slot is one answer; `Slots` has the context and drives them. With one sequence, which is the
usual case, there is one slot at a time, and the context grows with it. Tokens of a prompt that any sequence holds
already are not computed again, if the request says so. Between two tokens of answers that somebody watches no more of
a prompt is computed than takes about as long as a token, or a moment where as many wait (`pace.py`).
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from llmrun.engine import protocol
from llmrun.engine.child import sampler
from llmrun.engine.child.batch import Batch
from llmrun.engine.child.beginnings import Beginnings
from llmrun.engine.child.constraint import Constraint, ConstraintMaker, Making
from llmrun.engine.child.draft import Drafts, LookupDrafts, ModelDrafts, StepCosts
from llmrun.engine.child.generate import BULK_S, COALESCE_S, GenerationState
from llmrun.engine.child.inbox import Request
from llmrun.engine.child.kv_context import PLAIN_TOKENS, KVContext, KVSequence, common_prefix
from llmrun.engine.child.pace import DEEP, TILE, Pace
from llmrun.engine.child.prompts import Prompts
from llmrun.engine.child.slot import Slot, is_apart, together
from llmrun.engine.child.thread_guard import ContextThreads, guarded
from llmrun.engine.protocol import RequestFailed, StopReason
from llmrun.options.defaults import COMFORTABLE_CTX

if TYPE_CHECKING:
    from llmrun.engine.child.choice_weights import ChoiceWeights
    from llmrun.engine.child.main import Worker

clock = time.perf_counter

_WRITING_S = 10.0
"""At most so long what is to be kept on disk is waited for, where it would be lost."""
_PATIENCE = 4
"""Steps that answers which lie apart are computed in two parts, until they are moved together: another one may come to
lie between them by then."""


class Slots:
    """Serves `Generate`, `Prepare`, `Count` and `Reserve` for the loaded model of a worker."""

    def __init__(self, host: Worker) -> None:
        self._host = host
        self._llama, self._vocab, self._kv = host.llama, host.vocab, host.kv
        self._constraints = ConstraintMaker(host.vocab)
        self._prompts = Prompts(host.model, host.vocab, host.templates)
        self._plain = host.plain_kv
        self._live: list[Slot] = []
        self._in_plain: Slot | None = None  # whose prompt is being computed with the weights as in the file
        self._n_ctx = 0
        self._n_apart = 0  # steps in which the answers lay apart
        self._candidates: sampler.Candidates | None = None
        self._batch = Batch(host.settings.n_batch)
        self._pace = Pace(host.settings.n_batch)
        self._n_ubatch = min(host.settings.n_ubatch, host.settings.n_batch)
        self._tiles = host.settings.flash_attn != "off" and self._n_ubatch >= 2 * TILE
        self._costs = StepCosts()
        self._beginnings = Beginnings(self._kv, host.settings.prefixes)
        self._context_threads = ContextThreads(
            host.settings.n_threads, host.settings.n_threads_batch, self._set_threads
        )
        self.threads = guarded(host.settings.n_threads, self._context_threads.set, on=host.settings.guards_threads)

    # -- what is asked beside answers ---

    def count(self, request: protocol.Count) -> None:
        self._host.send(protocol.Counted(self._prompts.count(request)))

    def encode(self, request: protocol.Encode) -> None:
        ids = self._vocab.tokenize(request.text, add_special=request.add_special, parse_special=request.special)
        self._host.send(protocol.Encoded(ids, [self._vocab.text_of(token, special=True) for token in ids]))

    def decode(self, request: protocol.Decode) -> None:
        if wrong := next((token for token in request.ids if not 0 <= token < self._vocab.n_tokens), None):
            there = f"there is no token {wrong}, the vocabulary has {self._vocab.n_tokens}"
            raise RequestFailed("usage", there, field="tokens")
        self._host.send(protocol.Decoded(self._vocab.detokenize(request.ids)))

    def reserve(self, request: protocol.Reserve) -> None:
        """From now on so many answers side by side. What was remembered is lost, but for what is due on disk.

        Where the weights are there in both layouts, several are made with those as in the file: states can't be handed
        over between contexts of one sequence and of several (llama.cpp: "n_stream mismatch"), and for many at once
        these are as fast as the others (0.6 B Q4_K_M, 16 at once: 255 and 269 t/s, prompts 643 and 451).
        """
        self._beginnings.wait(_WRITING_S)
        self._kv.close()
        self._kv = self._host.kv
        self._plain = self._host.plain_kv
        if request.n_seq > 1 and self._plain is not None:
            self._kv, self._plain = self._plain, None
        self._kv.divide(request.n_seq, request.n_ctx_most)
        self._beginnings.forget(self._kv)
        self._batch = Batch(max(self._host.settings.n_batch, request.n_seq), request.n_seq)
        self._candidates = sampler.Candidates(self._vocab.n_tokens) if request.n_seq > 1 else None
        self._n_ctx = request.n_ctx
        n_ctx = self._reserved(request.n_ctx, keep=False) if request.n_seq > 1 else 0
        self._host.send(protocol.Reserved(n_ctx, self._host.buffers()))

    def flush(self, request: protocol.Flush) -> None:
        self._host.send(protocol.Flushed(self._beginnings.wait(request.timeout_s)))

    @property
    def has_due(self) -> bool:
        """Whether something is to be done once there is time for it."""
        return self._beginnings.has_due

    def do_due(self) -> None:
        self._beginnings.write_due()

    def prepare(self, request: protocol.Prepare) -> None:
        sequence = self._kv.sequences[0]
        self._make_room(0, -1, keep=True)
        if not sequence.tokens:  # the weights are read once, from the disk perhaps
            self._compute_prompt([(sequence, self._vocab.tokenize("a")[:1])], self._kv)
            sequence.clear()
        known = self._prompts.common_beginning(request)
        if known:
            sequence.reuse_prefix([*known, -1])
            self._beginnings.read_into(sequence, [*known, -1])
            n_before, begin_s = len(sequence.tokens), clock()
            self._prepare(sequence, known)
            self._beginnings.write(sequence, len(sequence.tokens) - n_before, clock() - begin_s)
        self._host.send(protocol.Prepared(len(sequence.tokens)))

    def _prepare(self, sequence: KVSequence, known: list[int]) -> None:
        """Until it is cancelled."""
        size = self._host.settings.n_batch
        plain = self._plain_for(sequence, known[len(sequence.tokens) :])
        inside, of = (plain.sequences[0], plain) if plain else (sequence, self._kv)
        while (n := len(inside.tokens)) < len(known) and not self._host.cancelled:
            if self._compute_prompt([(inside, known[n : n + size])], of) is not None:
                break
        if plain and not sequence.take_over(inside):
            raise _not_handed_over(len(inside.tokens))

    # -- answers ---

    def run(self, request: Request) -> None:
        """Serve a `Generate`, and those that come meanwhile as far as there are sequences, until none is left."""
        inbox, n_most = self._host.inbox, len(self._kv.sequences)
        more: Request | None = request
        while more is not None or self._live:
            while more is not None:
                self._admit(more)
                more = inbox.take(protocol.Generate) if len(self._live) < n_most else None
            self._host.answer_questions()
            self._end_cancelled()
            for slot in [slot for slot in self._live if slot.is_to_be_weighed]:
                self._weigh(slot)
            for slot in self._live:
                if slot.waits_for is not None and self._beginnings.is_ready(slot, self._live):
                    self._begin(slot)
            if self._live and not self._compute_prompts():
                self._decode()
            more = inbox.take(protocol.Generate) if len(self._live) < n_most else None

    def _admit(self, request: Request) -> None:
        try:
            slot = self._slot(request)
        except (RequestFailed, MemoryError) as error:
            self._host.fail(request.number, error)
            self._host.inbox.done(request.number)
        else:
            self._live.append(slot)

    def _slot(self, request: Request) -> Slot:
        """A slot for the request, with what is known of its prompt."""
        served_s, message = clock(), request.message
        assert isinstance(message, protocol.Generate)
        sampling, options = message.sampling, message.options
        making = self._constraints.begin(options.grammar) if options.grammar is not None else None
        free = self._free()
        tokens, thinking, tools = self._prompts.of(message, [each.tokens + each.pending for each in free])
        if tools is not None and (calls := tools.grammar()) is not None:
            making = self._constraints.begin(calls)
        n_answer = sampling["max_tokens"]
        if options.choices and n_answer >= 0:  # what choices have in common is computed, however short the answer is
            n_answer = max(n_answer, *(len(choice.encode()) for choice in options.choices))
        n_ctx = self._make_room(len(tokens), n_answer, keep=options.reuse)
        self._check_bias(sampling["logit_bias"])
        sequence = self._best_of(free, tokens if options.reuse else [])
        slot = Slot(request, message, sequence, tokens)
        slot.served_s, slot.thinking, slot.making = served_s, thinking, making
        slot.source = sampler.Sampler(
            self._vocab, sampling, n_ctx, has_grammar=making is not None, candidates=self._candidates
        )
        if options.n_logprobs is not None:
            slot.source.tell_logprobs()
        if message.drafts and self._host.settings.n_draft and not options.choices:
            slot.drafts = self._drafts(tokens)
        asked = {name: sampling[name] for name in ("max_tokens", "stop", "ignore_eos")}
        wait_s = BULK_S if slot.is_bulk else COALESCE_S
        send = partial(self._host.outbox.send, slot.number)
        slot.state = GenerationState(
            slot.source,
            self._vocab,
            send,
            thinking=thinking,
            tools=tools,
            n_logprobs=options.n_logprobs,
            coalesce_s=wait_s,
            **asked,
        )
        if not options.reuse:
            sequence.clear()
        elif not self._beginnings.find(slot, self._live):
            sequence.reuse_prefix(tokens)
        if slot.waits_for is None:
            if not options.anew:
                self._beginnings.read(slot)
            self._begin(slot)
        return slot

    def _fill_a_tile(self, slot: Slot) -> None:
        """Compute some of what is known once more, where that is faster: half of a tile takes as long as all of it."""
        n_left = len(slot.prompt) - len(slot.sequence.tokens) - slot.last_alone
        n_known = len(slot.prompt) - slot.last_alone - TILE
        if self._tiles and self._kv.rolls_back and TILE // 2 <= n_left < TILE and n_known >= 2 * DEEP:
            slot.sequence.roll_back(n_known)

    def _drafts(self, prompt: list[int]) -> Drafts:
        most, model = self._host.settings.n_draft, self._host.drafter
        if (head := self._host.head) is not None:
            return ModelDrafts(prompt, self._costs, head.guess, most=head.most)
        if model is None:
            return LookupDrafts(prompt, self._costs, most)
        return ModelDrafts(prompt, self._costs, model.guess, read=model.read, most=most)

    def _begin(self, slot: Slot) -> None:
        """Its sequence holds what is known of the prompt: the rest is computed from now on."""
        self._fill_a_tile(slot)
        slot.n_done = slot.n_cached = len(slot.sequence.tokens)
        if self._host.head is not None:
            self._host.head.begin(slot.sequence.tokens)
        slot.begin_s = clock()
        started = protocol.Started(
            n_prompt=len(slot.prompt),
            n_cached=slot.n_cached,
            n_ctx=self._kv.n_ctx,
            request_s=slot.request.received_s,
            served_s=slot.served_s,
            begin_s=slot.begin_s,
            buffers=self._host.buffers(),
            thinks=slot.thinking is not None,
            notes=slot.notes,
        )
        self._host.outbox.send(slot.number, started)
        slot.source.accept_prompt(slot.prompt)
        if all(each.token is None for each in self._live):
            self.threads.before_prefill()

    def _end(self, slot: Slot, reason: StopReason, *, pending: int | None = None) -> None:
        """`pending`: the last token, where it was not computed."""
        slot.state.finish()
        slot.sequence.pending = [] if pending is None or not slot.sequence.tokens else [pending]
        changes, drafts = self.threads.changes if len(self._live) == 1 else [], slot.drafts
        guessed = (drafts.n_drafted, drafts.n_accepted) if drafts else (0, 0)
        done = self._host.done(reason, changes, *guessed)
        if slot.weights is not None and reason != "cancelled" and not slot.weights.is_new:
            done.choices = slot.weights.probabilities()
        if reason == "stop":
            done.stop = slot.state.stop
        self._host.outbox.send(slot.number, done)
        self._forget(slot)

    def _fail(self, slot: Slot, error: RequestFailed | MemoryError) -> None:
        slot.state.finish()
        self._host.fail(slot.number, error)
        self._forget(slot)

    def _forget(self, slot: Slot) -> None:
        slot.source.close()
        self._live.remove(slot)
        if self._in_plain is slot:
            self._in_plain = None
        if not self._live:
            self.threads.end()
        self._host.inbox.done(slot.number)

    def _end_cancelled(self) -> None:
        if cancelled := self._host.inbox.cancelled:
            for slot in [slot for slot in self._live if slot.number in cancelled]:
                try:
                    self._leave_plain(slot)
                except RequestFailed as error:
                    self._fail(slot, error)
                else:
                    self._end(slot, "cancelled", pending=slot.token)

    def _constraint(self, making: Making) -> Constraint:
        made = making.finish()
        if isinstance(made, Constraint):
            return made
        raise RequestFailed("usage", f"the grammar can't be used with this model: {made}")

    def _check_bias(self, bias: list[list[float]]) -> None:
        for token, _ in bias:
            if token >= self._vocab.n_tokens:
                there = f"there is no token {token}, the vocabulary has {self._vocab.n_tokens}"
                raise RequestFailed("usage", there, field="logit_bias")

    # -- room ---

    def _make_room(self, n_prompt: int, max_tokens: int, *, keep: bool) -> int:
        """A context for prompt and answer; returns the tokens of it that one sequence has."""
        # Clearing 4096 tokens of KV cache that are not used was a third of a short answer's wait: 0.4 of 1.2 s.
        bounded = max_tokens >= 0
        n_needed = n_prompt + max_tokens if bounded else max(COMFORTABLE_CTX, n_prompt + COMFORTABLE_CTX // 2)
        if len(self._kv.sequences) > 1:
            n_needed, keep = max(self._n_ctx, n_needed), True
        elif keep:  # the next turns will come
            n_needed = max(n_needed, COMFORTABLE_CTX)
        n_ctx = self._reserved(n_needed, keep=keep)
        if n_prompt > n_ctx:
            n_ctx_train = self._llama.llama_model_n_ctx_train(self._host.model)
            numbers = {"n_prompt": n_prompt, "n_ctx": n_ctx, "n_ctx_train": n_ctx_train}
            raise RequestFailed("prompt", f"the prompt has {n_prompt} tokens, the context holds {n_ctx}", numbers)
        return n_ctx

    def _reserved(self, n_needed: int, *, keep: bool) -> int:
        n_ctx = self._grown(n_needed) if keep else self._kv.reserve(n_needed)
        if n_ctx is None:
            wanted = self._kv.clamp_n_ctx(n_needed)
            self._host.fail_from_log("engine", f"llama.cpp can't make a context of {wanted} tokens", n_ctx=wanted)
        if plain := self._plain:  # now, so that what it takes is known; without one the prompt is computed here
            plain.grow(n_ctx) if self._in_plain else plain.reserve(n_ctx)
        return n_ctx

    def _grow(self) -> bool:
        """Whether the context could be made longer than it is, with all that it holds."""
        n_ctx, context = self._kv.n_ctx, self._kv.context
        longer = self._grown(n_ctx + 1)
        if longer is None:
            self._host.fail_from_log("engine", f"llama.cpp can't make a context of {n_ctx} tokens again", n_ctx=n_ctx)
        if self._kv.context is not context:
            self.threads.in_new_context()
            self._context_threads.in_new_context()
        return longer > n_ctx

    def _grown(self, n_needed: int) -> int | None:
        """`KVContext.grow`; an answer whose tokens are lost by it is ended."""
        held = [(slot, len(slot.sequence.tokens)) for slot in self._live]
        n_ctx = self._kv.grow(n_needed)
        for slot, n in held:
            if len(slot.sequence.tokens) != n:
                self._fail(slot, _not_handed_over(n))
        return n_ctx

    def _free(self) -> list[KVSequence]:
        taken = {slot.sequence.id for slot in self._live}
        return [each for each in self._kv.sequences if each.id not in taken]

    def _best_of(self, free: list[KVSequence], tokens: list[int]) -> KVSequence:
        """The one that holds most of these tokens. Of several, one beside those that are taken: llama.cpp computes
        neighbours together, and others one after the other."""
        taken = [slot.sequence.id for slot in self._live] or [0]
        low, high = min(taken), max(taken)

        def rank(sequence: KVSequence) -> tuple[int, int, int]:
            away = max(low - sequence.id, sequence.id - high, 0)
            return sequence.n_reusable(tokens) if tokens else 0, -away, -sequence.id

        return max(free, key=rank)

    def _close_ranks(self, slots: list[Slot]) -> None:
        """Have these lie side by side, where others have ended between them and no more come."""
        taken = {slot.sequence.id: slot for slot in slots}
        free = {each.id: each for each in self._free()}
        while is_apart(taken):
            hole, last = next((i for i in range(min(taken), max(taken)) if i in free), None), max(taken)
            if hole is None or not free[hole].take_over(taken[last].sequence):
                return
            slot = taken[hole] = taken.pop(last)
            free[last], slot.sequence = slot.sequence, free.pop(hole)
            free[last].clear()

    # -- prompts ---

    def _compute_prompts(self) -> bool:
        """Of those that wait, a part of the oldest. Returns whether the next part comes before a step of the others:
        they can wait, and together they will be faster."""
        waiting = [slot for slot in self._live if slot.waits_for is None and slot.n_left]
        if not waiting:
            return False
        beside = [slot for slot in self._live if slot.token is not None]
        watched = bool(beside) and not all(slot.is_patient for slot in beside)
        if watched:
            self._pace.crowd = len(waiting) / len(beside)
        first = next((slot for slot in waiting if slot is self._in_plain), waiting[0])
        n_batch = self._host.settings.n_batch
        limit = min(self._pace.part(first.n_left, len(first.prompt) - first.n_cached), n_batch) if watched else n_batch
        begin_s = clock()
        n_before = sum(slot.n_done for slot in waiting)
        try:
            if self._goes_plain(first):
                self._compute_in_plain(first, limit)
            else:
                self._compute_here(first, waiting, limit)
        except RequestFailed as error:
            self._fail(first, error)
        took = self._pace.part_took if watched else self._pace.prompt_took
        took(sum(slot.n_done for slot in waiting) - n_before, clock() - begin_s)
        return not watched and any(slot.n_left for slot in self._live)

    def _goes_plain(self, slot: Slot) -> bool:
        if self._in_plain is slot:
            return True
        if self._in_plain is None and self._plain_for(slot.sequence, slot.prompt[slot.n_done :]):
            self._in_plain = slot
            return True
        return False

    def _plain_for(self, sequence: KVSequence, tokens: list[int]) -> KVContext | None:
        """Where the weights are there in both layouts, the context to compute a long prompt in with those as in the
        file, but for its last token, whose logits are wanted: with what the sequence holds."""
        plain = self._plain
        if plain is None or len(tokens) < PLAIN_TOKENS or plain.context is None:
            return None
        return plain if plain.sequences[0].take_over(sequence) else None

    def _compute_in_plain(self, slot: Slot, limit: int) -> None:
        plain = self._plain
        assert plain is not None
        part = slot.next_part(limit, self._n_ubatch, tiles=self._tiles, but_the_last=True) if slot.n_left > 1 else []
        reason = self._compute_prompt([(plain.sequences[0], part)], plain) if part else None
        if reason is None:
            slot.n_done += len(part)
        if reason is not None or slot.n_left <= 1 or slot.n_done in slot.cuts:
            self._leave_plain(slot)
        if reason is not None:
            self._end(slot, reason)
            return
        self._tell_progress(slot)
        if slot.n_left == 1 and self._in_plain is None:
            self._compute_here(slot, [slot], 1)

    def _leave_plain(self, slot: Slot) -> None:
        """Hand over what was computed there."""
        if self._in_plain is not slot:
            return
        plain, self._in_plain = self._plain, None
        assert plain is not None
        if not slot.sequence.take_over(plain.sequences[0]):
            raise _not_handed_over(len(plain.sequences[0].tokens))
        self._keep_at_cut(slot)

    def _compute_here(self, first: Slot, waiting: list[Slot], limit: int) -> None:
        parts = together(first, waiting, limit, self._n_ubatch, tiles=self._tiles)
        reason = self._compute_prompt([(slot.sequence, part) for slot, part in parts], self._kv)
        if reason is not None:
            for slot, _ in parts:
                self._end(slot, reason)
            return
        index = -1
        for slot, part in parts:
            index += len(part)
            slot.n_done += len(part)
            self._tell_progress(slot)
            self._keep_at_cut(slot)
        index = -1
        for slot, part in parts:
            index += len(part)
            if not slot.n_left:
                self._first_token(slot, index)

    def _tell_progress(self, slot: Slot) -> None:
        self._host.outbox.send(slot.number, protocol.Prefilled(slot.n_done, clock()))

    def _keep_at_cut(self, slot: Slot) -> None:
        if slot.n_done in slot.cuts and len(slot.sequence.tokens) == slot.n_done:
            slot.cuts.discard(slot.n_done)
            self._beginnings.keep(slot.sequence, slot.n_done - slot.n_cached, clock() - slot.begin_s)

    def _first_token(self, slot: Slot, index: int) -> None:
        """The prompt is computed."""
        prefill_s, n_new = clock() - slot.begin_s, len(slot.prompt) - slot.n_cached
        self._beginnings.prompt_took(n_new, prefill_s)
        if all(each.token is None for each in self._live):
            self.threads.begin(prefill_s)
        source, thinking, options = slot.source, slot.thinking, slot.message.options
        try:
            if slot.making is not None:
                constraint = self._constraint(slot.making)
                source.constrain(constraint)
                if options.choices:
                    slot.weights = self._weights(options.choices, constraint.copy())
                if thinking is not None and (not options.tools or options.must_call):
                    answer_begun = not options.thinks or bool(options.assistant_prefix)
                    argmax = partial(source.argmax, self._kv.context, index)
                    thinking.constrain(argmax, answer_begun=answer_begun, heads=not options.tools)
        except RequestFailed as error:
            self._fail(slot, error)
            return
        if slot.state.stop_reason is not None:  # no token is wanted
            self._end(slot, slot.state.stop_reason)
        else:
            self._sample(slot, index)
        if not slot.is_bulk and self._kv.rolls_back and len(slot.sequence.tokens) == len(slot.prompt):
            self._beginnings.write_later(slot.sequence, n_new, prefill_s)

    # -- token by token ---

    def _decode(self) -> None:
        """One token of each answer, over and over, until one ends or something else is to be done."""
        slots = [slot for slot in self._live if slot.token is not None]
        if not slots:
            return
        if len(self._live) == 1 and slots[0].drafts is not None:
            self._decode_ahead(slots[0], slots[0].drafts)
            return
        kv, inbox, threads, batch, n_all = self._kv, self._host.inbox, self.threads, self._batch, len(self._live)
        may_come = n_all < len(kv.sequences)
        if apart := is_apart([slot.sequence.id for slot in slots]):
            if self._n_apart >= _PATIENCE and n_all == len(slots):
                self._close_ranks(slots)
                apart, self._n_apart = False, 0
        else:
            self._n_apart = 0
        slots.sort(key=lambda slot: slot.sequence.id)
        batch.clear()
        for slot in slots:
            assert slot.token is not None
            batch.add(slot.sequence.id, [slot.token], len(slot.sequence.tokens), n_wanted=1)
        self._context_threads.are_several(len(slots) > 1)
        decode, raw, put, sample = self._llama.llama_decode, batch.raw, batch.put, self._sample
        repeatable = any(slot.message.repeatable for slot in slots)
        while not inbox.cancelled:
            n_past = max([len(slot.sequence.tokens) for slot in slots])
            if n_past >= kv.n_ctx and not self._has_room(slots):
                return
            threads.before(n_past, slots[0].state.n_tokens, repeatable=repeatable)
            begin_s = clock()
            status = decode(kv.context, raw)
            step_s = clock() - begin_s
            threads.after(step_s)
            if status:
                self._broken_off(slots, status)
                return
            for index, slot in enumerate(slots):
                slot.sequence.tokens.append(slot.token)  # type: ignore[arg-type]
                slot.token = None
                sample(slot, index)
            self._n_apart += apart
            if n_all != len(self._live) or n_all > len(slots) or self._n_apart == _PATIENCE:
                break
            if any(slot.is_to_be_weighed for slot in slots):
                break
            if (may_come and inbox.has(protocol.Generate)) or inbox.has(protocol.QUESTIONS):
                break
            for index, slot in enumerate(slots):
                put(index, slot.token, len(slot.sequence.tokens))  # type: ignore[arg-type]
        else:
            return
        self._pace.step_took(step_s)

    def _sample(self, slot: Slot, index: int) -> int | None:
        """Sample the next token of an answer, which is then to be computed; None: it has ended."""
        state, weights = slot.state, slot.weights
        if weights is not None and weights.is_new and state.is_constrained:
            self._look_at_choices(slot, weights, index)
        try:
            token = state.step(self._kv.context, index)
        except sampler.DeadEnd:
            why = "no token of this model continues the text as the grammar demands"
            self._fail(slot, RequestFailed("usage", why))
            return None
        if token is not None and slot.drafts is not None:
            slot.drafts.add(token)
        if state.stop_reason is not None:
            if weights is None or weights.is_new or weights.next() is None:
                self._end(slot, state.stop_reason, pending=token)
            return None  # others of the batch are sampled first: what is computed for the choices overwrites logits
        slot.token = token
        return token

    # -- choices ---

    def _weights(self, choices: list[str], constraint: Constraint) -> ChoiceWeights:
        from llmrun.engine.child.choice_weights import ChoiceWeights

        return ChoiceWeights(choices, constraint, self._vocab.piece, self._vocab.is_end)

    def _look_at_choices(self, slot: Slot, weights: ChoiceWeights, index: int) -> None:
        """The first token of the answer is about to be sampled."""
        first = weights.next()
        assert first is not None
        weights.look(first, slot.source.logits(self._kv.context, index))
        slot.n_before = len(slot.sequence.tokens)
        if weights.next() is not None and not self._kv.rolls_back:
            slot.before = slot.sequence.snapshot()

    def _weigh(self, slot: Slot) -> None:
        """Compute what its choices have in common, and end it."""
        weights, sequence, reason = slot.weights, slot.sequence, slot.state.stop_reason
        assert weights is not None and reason is not None
        while (node := weights.next()) is not None and not self._host.inbox.cancelled:
            n_same = common_prefix(sequence.tokens[slot.n_before :], node.tokens[:-1])
            if n_same == 0 and slot.before is not None:
                sequence.restore(slot.before)
            else:  # a beginning that goes on is computed by its last token alone
                sequence.roll_back(slot.n_before + n_same)
            held = sequence.tokens[slot.n_before :]
            if len(sequence.tokens) < slot.n_before and slot.before is not None:
                sequence.restore(slot.before)
                held = []
            if len(sequence.tokens) < slot.n_before or slot.n_before + len(node.tokens) > self._kv.n_ctx:
                break
            try:
                if self._compute_prompt([(sequence, node.tokens[len(held) :])], self._kv) is not None:
                    break
            except RequestFailed as error:
                self._fail(slot, error)
                return
            weights.look(node, slot.source.logits(self._kv.context, -1))
        self._end(slot, reason)

    def _decode_ahead(self, slot: Slot, drafts: Drafts) -> None:
        """As `_decode`, of the only answer: with every token some that are guessed to follow it, where that pays."""
        kv, inbox, threads, batch = self._kv, self._host.inbox, self.threads, self._batch
        sequence, may_come, most = slot.sequence, len(kv.sequences) > 1, self._host.settings.n_draft
        head, is_single = self._host.head, False
        while not inbox.cancelled:
            n_past = len(sequence.tokens)
            if n_past >= kv.n_ctx and not self._has_room([slot]):
                return
            room = min(kv.n_ctx - n_past - 1, slot.state.n_left - 1)
            guess = drafts.next(room) if kv.takes_back(n_past + 1 + most) else []
            assert slot.token is not None
            if guess or not is_single:
                batch.clear()
                batch.add(sequence.id, [slot.token, *guess], n_past, n_wanted=1 + len(guess))
            else:
                batch.put(0, slot.token, n_past)
            is_single = not guess
            if not guess:
                threads.before(n_past, slot.state.n_tokens, repeatable=slot.message.repeatable)
            begin_s = clock()
            status = self._llama.llama_decode(kv.context, batch.raw)
            if head is not None and not status:
                self._llama.llama_synchronize(kv.context)
                head.computed(kv.context, [slot.token, *guess], n_past)
            step_s = clock() - begin_s
            if status:
                self._broken_off([slot], status)
                return
            if not guess:
                threads.after(step_s)
            drafts.took(1 + len(guess), step_s)
            sequence.tokens.append(slot.token)
            for index in range(1 + len(guess)):
                slot.token = None
                token = self._sample(slot, index)
                if index == len(guess) or token != guess[index]:
                    break
                sequence.tokens.append(guess[index])
                drafts.n_accepted += 1
            if guess:
                kv.remove(sequence.id, len(sequence.tokens))
                if head is not None:
                    head.accept(len(sequence.tokens) - n_past)
            if token is None or (may_come and inbox.has(protocol.Generate)) or inbox.has(protocol.QUESTIONS):
                return

    def _has_room(self, slots: list[Slot]) -> bool:
        """Whether there is room for one token more, made for those whose context may grow; ends those without."""
        full = [slot for slot in slots if len(slot.sequence.tokens) >= self._kv.n_ctx]
        if full and any(slot.message.options.reuse for slot in full):
            try:
                if self._grow():
                    return all(slot in self._live for slot in slots)
            except RequestFailed as error:
                for slot in list(self._live):
                    self._fail(slot, error)
                return False
        for slot in full:
            if slot in self._live:
                self._end(slot, "context", pending=slot.token)
        return not full

    def _broken_off(self, slots: list[Slot], status: int) -> None:
        """A step was: take back what it has left."""
        for slot in slots:
            slot.sequence.repair()
        try:
            reason = self._reason_of(status)
        except RequestFailed as error:
            for slot in slots:
                self._fail(slot, error)
            return
        for slot in slots:
            self._end(slot, reason, pending=slot.token)

    # -- llama.cpp ---

    def _compute_prompt(self, parts: list[tuple[KVSequence, list[int]]], of: KVContext) -> StopReason | None:
        """Compute tokens behind those of sequences, the last one's logits of each kept; a reason to stop, or None."""
        batch = self._batch
        batch.clear()
        for sequence, tokens in parts:
            batch.add(sequence.id, tokens, len(sequence.tokens), n_wanted=1)
        self._context_threads.are_several(False)
        status = self._llama.llama_decode(of.context, batch.raw)
        if status:
            for sequence, _ in parts:
                sequence.repair()
            return self._reason_of(status)
        for sequence, tokens in parts:
            sequence.tokens += tokens
        self._llama.llama_synchronize(of.context)  # devices compute behind our back; the time is theirs
        if self._host.head is not None and len(parts) == 1:
            ((sequence, tokens),) = parts
            self._host.head.computed(of.context, tokens, len(sequence.tokens) - len(tokens))
        return None

    def _reason_of(self, status: int) -> StopReason:
        """Why `llama_decode` has ended: 1, no room in the KV cache; 2, aborted by our flag."""
        if status not in (1, 2):
            self._host.fail_from_log("engine", f"llama_decode failed with {status}")
        return "context" if status == 1 else "cancelled"

    def _set_threads(self, n: int, n_batch: int) -> None:
        if self._kv.context is not None:
            self._llama.llama_set_n_threads(self._kv.context, n, n_batch)
        if self._host.drafter is not None:
            self._host.drafter.set_threads(n, self._host.settings.n_threads_batch)


def _not_handed_over(n_tokens: int) -> RequestFailed:
    return RequestFailed("engine", f"llama.cpp can't hand over the state of {n_tokens} tokens")
