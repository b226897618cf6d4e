"""The context of a loaded model and the tokens whose keys and values it holds. Child process only."""

from __future__ import annotations

import ctypes
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from llmrun.engine.protocol import Settings

PLAIN_TOKENS = 64
"""Of a model that is there in both layouts, shorter prompts are computed with the one that decodes: handing the state
over, twice in a conversation, takes as long as is gained."""


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common from their beginning."""
    n = min(len(one), len(other))
    return n if one[:n] == other[:n] else bisect_left(range(n), True, key=lambda i: one[: i + 1] != other[: i + 1])


def saved(llama: Any, context: Any, sequence: int = 0) -> Any:
    """What a context holds of a sequence, for `restore`; None where llama.cpp can't tell."""
    n_bytes = llama.llama_state_seq_get_size(context, sequence)
    state = (ctypes.c_uint8 * n_bytes)()
    return state if llama.llama_state_seq_get_data(context, state, n_bytes, sequence) == n_bytes else None


def restore(llama: Any, context: Any, state: Any, sequence: int = 0) -> bool:
    return state is not None and bool(llama.llama_state_seq_set_data(context, state, len(state), sequence))


class KVContext:
    """One context at a time, made when the first prompt's length is known: a KV cache takes memory, and clearing it
    takes time.

    Attributes:
        context: llama.cpp's; None before the first prompt.
        n_ctx: the tokens of it that may be used: llama.cpp rounds what it makes up to 256 cells.
        tokens: those whose keys and values (or states) are in the context, all of one sequence, from position 0.
        pending: tokens of the answer behind them that were not computed: the last one of an answer that was cut short.
    """

    def __init__(self, llama: Any, model: Any, settings: Settings, make: Callable[[int], Any]) -> None:
        """`make` makes a context of so many tokens, or returns None."""
        self._llama, self._model, self._settings, self._make = llama, model, settings, make
        self._n_ctx_train: int = llama.llama_model_n_ctx_train(model)
        self._n_swa: int = llama.llama_model_n_swa(model)
        self._n_ctx_most: int | None = settings.n_ctx_most
        self.context: Any = None
        self.n_ctx = 0
        self.tokens: list[int] = []
        self.pending: list[int] = []

    def close(self) -> None:
        if self.context is not None:
            self._llama.llama_free(self.context)
        self.context, self.n_ctx, self.tokens, self.pending = None, 0, [], []

    # -- its length ---

    def clamp_n_ctx(self, n_needed: int) -> int:
        """The length of a context for `n_needed` tokens: as many, within what configuration and model allow."""
        return self._settings.n_ctx or min(self._n_ctx_train, n_needed, self._n_ctx_most or n_needed)

    def reserve(self, n_needed: int) -> int | None:
        """Make a context for `n_needed` tokens if there is none; its content may be lost.

        Returns the tokens that may be used; None if llama.cpp can't make it.
        """
        n_ctx = self.clamp_n_ctx(n_needed)
        if not self._is_enough(n_ctx):
            self.close()
            self.context = self._make(n_ctx)
            if self.context is None:
                return None
        self.n_ctx = n_ctx
        return n_ctx

    def grow(self, n_needed: int) -> int | None:
        """As `reserve`, and the content stays: it is copied, so a context that has to grow grows twofold at least."""
        n_ctx = self.clamp_n_ctx(n_needed)
        if self.context is None:
            return self.reserve(n_needed)
        if n_ctx <= self.n_ctx:
            return self.n_ctx
        n_ctx = max(n_ctx, self.clamp_n_ctx(2 * self.n_ctx))
        if self._is_enough(n_ctx):
            self.n_ctx = n_ctx
            return n_ctx
        before, tokens = self.n_ctx, self.tokens
        state = saved(self._llama, self.context) if tokens else None
        self.close()
        for length in (n_ctx, before):
            self.context = self._make(length)
            if self.context is not None:
                self.n_ctx, self.tokens = length, tokens
                if not restore(self._llama, self.context, state):
                    self.clear()
                return length
            self._n_ctx_most = before  # it can't be made longer: don't try again at every token
        return None

    def _is_enough(self, n_ctx: int) -> bool:
        # llama.cpp rounds the cells up to 256, but not the batch, which it cuts to the length that was asked for.
        return (
            self.context is not None
            and self._llama.llama_n_ctx(self.context) >= n_ctx
            and self._llama.llama_n_batch(self.context) >= min(self._settings.n_batch, n_ctx)
        )

    # -- its content ---

    def clear(self) -> None:
        """Remove all tokens; the context stays."""
        if self.context is not None:
            self._llama.llama_memory_clear(self._llama.llama_get_memory(self.context), False)
        self.tokens, self.pending = [], []

    def reuse_prefix(self, prompt: Sequence[int]) -> int:
        """Keep the tokens that `prompt` begins with too, remove the rest; returns how many are kept.

        At least the last token of `prompt` is left to be computed: its logits are needed. A content that can't be
        rolled back (recurrent states), or whose window has moved on, is removed whole.
        """
        self.pending = []
        self.roll_back(min(common_prefix(self.tokens, prompt), len(prompt) - 1))
        return len(self.tokens)

    def roll_back(self, n: int) -> None:
        """Keep the first `n` tokens, or none where that is not possible."""
        if n == len(self.tokens):
            return
        memory = self._llama.llama_get_memory(self.context)
        if n > 0 and self._reaches_back_to(memory, n) and self._llama.llama_memory_seq_rm(memory, 0, n, -1):
            del self.tokens[n:]
        else:
            self.clear()

    def _reaches_back_to(self, memory: Any, n: int) -> bool:
        """Whether all keys that token `n` attends to are still there: a sliding window keeps no more than it needs."""
        if not self._n_swa:
            return True
        first = int(self._llama.llama_memory_seq_pos_min(memory, 0))
        return first == 0 or 0 < first < n - self._n_swa

    def take_over(self, other: KVContext) -> bool:
        """Hold what `other` holds, of the same model in another layout, in place of what is here; False, and nothing
        is held, where llama.cpp can't."""
        self.clear()
        if not other.tokens:
            return True
        if not restore(self._llama, self.context, saved(self._llama, other.context)):
            self.clear()
            return False
        self.tokens = list(other.tokens)
        return True

    def repair(self) -> None:
        """Remove what a computation that was broken off has left behind the tokens."""
        memory = self._llama.llama_get_memory(self.context)
        if not self._llama.llama_memory_seq_rm(memory, 0, len(self.tokens), -1):
            self.clear()
