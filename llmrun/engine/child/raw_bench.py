"""Bare speed: random tokens through `llama_decode`, nothing sampled, nothing detokenized. Child process only.

The method is llama-bench's (and, for several sequences, llama-batched-bench's): a prompt in batches of `n_batch`, then
token by token with a synchronization behind each; what lies before (`n_depth`) is computed once, kept as a state, and
put back for every repetition, outside the clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from llmrun import codec
from llmrun.engine.child.kv_context import restore, saved
from llmrun.engine.child.native import Vocab, llama
from llmrun.engine.protocol import Settings, Trial

clock = time.perf_counter


class TrialFailed(Exception):
    """`llama_decode` has failed; the reason is in llama.cpp's log."""

    def __init__(self, status: int) -> None:
        super().__init__(f"llama_decode failed with {status}")


class RawBench:
    """Trials on one model. The context is kept from one to the next if it is large enough."""

    def __init__(self, vocab: Vocab, settings: Settings, new_context: Callable[[Settings, int, int], Any]) -> None:
        """`new_context` makes a context with settings for a number of tokens and one of sequences, or raises."""
        self._vocab, self._settings, self._new_context = vocab, settings, new_context
        self._n_batch = settings.n_batch
        self._context: Any = None
        self._size = (0, 0)
        self._made_with = settings
        self._depth = 0
        self._states: list[Any] = []
        self._random = random.Random(0)

    def run(self, trial: Trial) -> tuple[float | None, list[float]]:
        """Seconds of the prompt (None without one), and of every step. Raises `TrialFailed`."""
        context, settings = self._context_for(trial), self._settings
        llama.llama_set_n_threads(
            context, trial.n_threads or settings.n_threads, trial.n_threads_batch or settings.n_threads_batch
        )
        self._reset_to(trial.n_depth, trial.n_seq)
        prefill_s = None
        n_past = trial.n_depth
        if trial.n_prompt:
            prompts = self._prompts(trial.n_prompt, n_past, trial.n_seq)
            begin = clock()
            for batch in prompts:
                self._decode(batch)
            llama.llama_synchronize(context)
            prefill_s = clock() - begin
            n_past += trial.n_prompt
        return prefill_s, self._generate(trial.n_gen, n_past, trial.n_seq)

    def close(self) -> None:
        if self._context is not None:
            llama.llama_free(self._context)
        self._context, self._size, self._states = None, (0, 0), []

    # -- one trial ---

    def _context_for(self, trial: Trial) -> Any:
        n_ctx = max(trial.n_ctx, trial.n_seq * (trial.n_depth + trial.n_prompt + trial.n_gen))
        own = self._settings
        wanted = codec.replace(
            own, n_ubatch=trial.n_ubatch or own.n_ubatch, flash_attn=trial.flash_attn or own.flash_attn
        )
        fits = self._size[1] == trial.n_seq and self._size[0] >= n_ctx and self._made_with == wanted
        if self._context is None or not fits:
            self.close()
            self._context = self._new_context(wanted, n_ctx, trial.n_seq)
            self._size, self._made_with = (n_ctx, trial.n_seq), wanted
        return self._context

    def _reset_to(self, n_depth: int, n_seq: int) -> None:
        """Have the context hold `n_depth` tokens of every sequence and nothing else."""
        llama.llama_memory_clear(llama.llama_get_memory(self._context), False)
        if not n_depth:
            return
        if self._states and self._depth == n_depth:
            if all(restore(llama, self._context, state, sequence) for sequence, state in enumerate(self._states)):
                return
            llama.llama_memory_clear(llama.llama_get_memory(self._context), False)
        for batch in self._prompts(n_depth, 0, n_seq):
            self._decode(batch)
        llama.llama_synchronize(self._context)
        self._states = [saved(llama, self._context, sequence) for sequence in range(n_seq)]
        self._depth = n_depth

    def _prompts(self, n_tokens: int, n_past: int, n_seq: int) -> list[Any]:
        """Batches of at most n_batch tokens, sequence after sequence; logits for the last token of each sequence."""
        flat = [(n_past + i, sequence, i == n_tokens - 1) for sequence in range(n_seq) for i in range(n_tokens)]
        return [Batch(flat[i : i + self._n_batch], self._token) for i in range(0, len(flat), self._n_batch)]

    def _generate(self, n_gen: int, n_past: int, n_seq: int) -> list[float]:
        """Seconds of every step, each one token for every sequence."""
        if not n_gen:
            return []
        batch = Batch([(n_past, sequence, True) for sequence in range(n_seq)], self._token)
        decode, synchronize, context, raw = llama.llama_decode, llama.llama_synchronize, self._context, batch.raw
        tokens, positions, token = raw.token, raw.pos, self._token
        at_s = [clock()]
        for i in range(n_gen):
            status = decode(context, raw)
            if status:
                raise TrialFailed(status)
            synchronize(context)
            at_s.append(clock())
            for sequence in range(n_seq):
                tokens[sequence] = token()
                positions[sequence] = n_past + i + 1
        return [after - before for before, after in pairwise(at_s)]

    def _decode(self, batch: Batch) -> None:
        status = llama.llama_decode(self._context, batch.raw)
        if status:
            raise TrialFailed(status)

    def _token(self) -> int:
        return self._random.randrange(self._vocab.n_tokens)


class Batch:
    """A `llama_batch` of (position, sequence, whether its logits are wanted) with the next tokens. Freed with it."""

    def __init__(self, places: list[tuple[int, int, bool]], token: Callable[[], int]) -> None:
        self.raw = llama.llama_batch_init(len(places), 0, 1)
        self.raw.n_tokens = len(places)
        for i, (position, sequence, wanted) in enumerate(places):
            self.raw.token[i] = token()
            self.raw.pos[i] = position
            self.raw.n_seq_id[i] = 1
            self.raw.seq_id[i][0] = sequence
            self.raw.logits[i] = wanted

    def __del__(self) -> None:
        llama.llama_batch_free(self.raw)
