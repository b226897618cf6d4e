"""Bare speed: random tokens through `llama_decode`, nothing sampled, nothing detokenized. Child process only.

The method is llama-bench's (and, for several sequences, llama-batched-bench's): a prompt in batches of `n_batch`, then
token by token with a synchronization behind each; what lies before (`n_depth`) is computed once, kept as a state, and
put back for every repetition, outside the clock.
"""

from __future__ import annotations

import random
import time
from itertools import pairwise
from typing import Any, Protocol

from llmrun import codec
from llmrun.engine.child.batch import Batch
from llmrun.engine.child.kv_context import PLAIN_TOKENS, restore, saved
from llmrun.engine.child.native import Vocab, llama
from llmrun.engine.child.thread_guard import GuardedThreads, guarded
from llmrun.engine.protocol import Settings, Trial

clock = time.perf_counter


class TrialFailed(Exception):
    """`llama_decode` has failed; the reason is in llama.cpp's log."""

    def __init__(self, status: int) -> None:
        super().__init__(f"llama_decode failed with {status}")


class NewContext(Protocol):
    def __call__(self, settings: Settings, n_ctx: int, n_seq: int, *, plain: bool) -> Any:
        """A context with settings for a number of tokens and one of sequences, of the weights as they are in the file
        or of those that were loaded first. Raises where there is none to be had."""


class _Context:
    """One of the contexts that trials run in, with the states of the depths that it was last used at."""

    def __init__(self, handle: Any, made_for: tuple[int, int, Settings]) -> None:
        self.handle = handle
        self.n_ctx, self.n_seq, self.settings = made_for
        self.states: dict[int, list[Any]] = {}
        self.guard: GuardedThreads | None = None

    def clear(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self.handle), False)


_KEPT_CONTEXTS, _KEPT_STATES = 3, 2
"""Of each layout, and of each context: trials with one setting and another in turn make neither anew."""


class RawBench:
    """Trials on one model. Contexts are kept from one to the next if they are large enough."""

    def __init__(self, vocab: Vocab, settings: Settings, new_context: NewContext) -> None:
        self._vocab, self._settings, self._new_context = vocab, settings, new_context
        self._n_batch = settings.n_batch
        self._contexts: dict[bool, list[_Context]] = {False: [], True: []}  # the one that was used last at the end
        self._random = random.Random(0)

    def run(self, trial: Trial) -> tuple[float | None, list[float]]:
        """Seconds of the prompt (None without one), and of every step. Raises `TrialFailed`."""
        layout = trial.layout or ("both" if self._settings.plain_prefill else "")
        context = self._context_for(trial, plain=layout == "off")
        hands_over = layout == "both" and trial.n_seq == 1 and trial.n_prompt >= PLAIN_TOKENS
        if not hands_over:
            self._reset_to(context, trial.n_depth, trial.n_seq)
        prefill_s, n_past = None, trial.n_depth
        if context.guard:
            context.guard.before_prefill()
        if trial.n_prompt:
            prefill = self._prefill_twice if hands_over else self._prefill
            prefill_s = prefill(context, trial)
            n_past += trial.n_prompt
        if context.guard:
            context.guard.begin(prefill_s or 0.0)
        return prefill_s, self._generate(context, trial.n_gen, n_past, trial.n_seq)

    def close(self) -> None:
        for contexts in self._contexts.values():
            while contexts:
                llama.llama_free(contexts.pop().handle)

    # -- one trial ---

    def _prefill(self, context: _Context, trial: Trial) -> float:
        prompts = self._prompts(trial.n_prompt, trial.n_depth, trial.n_seq)
        begin = clock()
        for batch in prompts:
            self._decode(context, batch)
        llama.llama_synchronize(context.handle)
        return clock() - begin

    def _prefill_twice(self, context: _Context, trial: Trial) -> float:
        """As `Generator` does it: all but the last token with the weights as in the file, their state handed over."""
        plain = self._context_for(trial, plain=True)
        self._reset_to(plain, trial.n_depth, 1)
        prompts = self._prompts(trial.n_prompt - 1, trial.n_depth, 1)
        (last,) = self._prompts(1, trial.n_depth + trial.n_prompt - 1, 1)
        begin = clock()
        for batch in prompts:
            self._decode(plain, batch)
        context.clear()
        if not restore(llama, context.handle, saved(llama, plain.handle)):
            raise TrialFailed(-1)
        self._decode(context, last)
        llama.llama_synchronize(context.handle)
        return clock() - begin

    def _context_for(self, trial: Trial, *, plain: bool) -> _Context:
        n_ctx, own = max(trial.n_ctx, trial.n_seq * (trial.n_depth + trial.n_prompt + trial.n_gen)), self._settings
        wanted = codec.replace(
            own,
            n_ubatch=trial.n_ubatch or own.n_ubatch,
            flash_attn=trial.flash_attn or own.flash_attn,
            type_k=trial.kv_type or own.type_k,
            type_v=trial.kv_type or own.type_v,
            n_draft=0,
        )
        contexts = self._contexts[plain]
        context = next((each for each in contexts if each.settings == wanted), None)
        if context is not None:
            contexts.remove(context)
            if context.n_ctx < n_ctx or context.n_seq != trial.n_seq:
                llama.llama_free(context.handle)
                context = None
        if context is None:
            while len(contexts) >= _KEPT_CONTEXTS:
                llama.llama_free(contexts.pop(0).handle)
            made = self._new_context(wanted, n_ctx, trial.n_seq, plain=plain)
            context = _Context(made, (n_ctx, trial.n_seq, wanted))
            if own.guards_threads:
                context.guard = self._guard(made)
        contexts.append(context)
        llama.llama_set_n_threads(
            context.handle, trial.n_threads or own.n_threads, trial.n_threads_batch or own.n_threads_batch
        )
        return context

    def _guard(self, handle: Any) -> GuardedThreads:
        """What has fewer threads decode while others want the cores, where that was asked for. It stays from one trial
        to the next, as that of a chat does from answer to answer."""
        own = self._settings

        def set_threads(n: int) -> None:
            llama.llama_set_n_threads(handle, n, own.n_threads_batch)

        return guarded(own.n_threads, set_threads, on=True)

    def _reset_to(self, context: _Context, n_depth: int, n_seq: int) -> None:
        """Have the context hold `n_depth` tokens of every sequence and nothing else."""
        context.clear()
        if not n_depth:
            return
        if states := context.states.get(n_depth):
            if all(restore(llama, context.handle, state, sequence) for sequence, state in enumerate(states)):
                return
            context.clear()
        for batch in self._prompts(n_depth, 0, n_seq):
            self._decode(context, batch)
        llama.llama_synchronize(context.handle)
        while len(context.states) >= _KEPT_STATES:
            del context.states[next(iter(context.states))]
        context.states[n_depth] = [saved(llama, context.handle, sequence) for sequence in range(n_seq)]

    def _prompts(self, n_tokens: int, n_past: int, n_seq: int) -> list[Batch]:
        """Batches of at most n_batch tokens, sequence after sequence; logits for the last token of each sequence."""
        batches: list[Batch] = []
        room = 0
        for sequence in range(n_seq):
            done = 0
            while done < n_tokens:
                if not room:
                    batches.append(Batch(min(self._n_batch, (n_seq - sequence) * n_tokens - done), n_seq))
                    room = self._n_batch
                n = min(room, n_tokens - done)
                tokens = [self._token() for _ in range(n)]
                batches[-1].add(sequence, tokens, n_past + done, n_wanted=int(done + n == n_tokens))
                done, room = done + n, room - n
        return batches

    def _generate(self, of: _Context, n_gen: int, n_past: int, n_seq: int) -> list[float]:
        """Seconds of every step, each one token for every sequence."""
        if not n_gen:
            return []
        batch = Batch(n_seq, n_seq)
        for sequence in range(n_seq):
            batch.add(sequence, [self._token()], n_past, n_wanted=1)
        guard = of.guard
        decode, synchronize, context, raw = llama.llama_decode, llama.llama_synchronize, of.handle, batch.raw
        put, token = batch.put, self._token
        at_s = [clock()]
        for i in range(n_gen):
            if guard:
                guard.before(n_past + i, i, repeatable=False)
            status = decode(context, raw)
            if status:
                raise TrialFailed(status)
            synchronize(context)
            at_s.append(clock())
            if guard:
                guard.after(at_s[-1] - at_s[-2])
            for sequence in range(n_seq):
                put(sequence, token(), n_past + i + 1)
        if guard:
            guard.end()
        return [after - before for before, after in pairwise(at_s)]

    def _decode(self, context: _Context, batch: Batch) -> None:
        status = llama.llama_decode(context.handle, batch.raw)
        if status:
            raise TrialFailed(status)

    def _token(self) -> int:
        return self._random.randrange(self._vocab.n_tokens)
