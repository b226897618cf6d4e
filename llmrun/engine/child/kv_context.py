"""The context of a loaded model and the tokens that it remembers. Child process only."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from llmrun.engine.protocol import Settings


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common from their beginning."""
    n = min(len(one), len(other))
    if one[:n] == other[:n]:
        return n
    low, high = 0, n  # the first `low` are equal, of the first `high` some differ
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


class Memory:
    """One context at a time, made when the first prompt is known: it is memory, and what nobody asked for is not taken.

    Attributes:
        context: llama.cpp's; None before the first prompt.
        n_ctx: the tokens of it that may be used: llama.cpp rounds what it makes up to 256 cells.
        held: the tokens whose keys and values (or states) are in it, all of one sequence, from position 0.
        spoken: what the model said behind them that was not computed: the last token of an answer that was cut short.
    """

    def __init__(self, llama: Any, model: Any, settings: Settings, make: Callable[[int], Any]) -> None:
        """`make` makes a context of so many tokens, or returns None."""
        self._llama, self._model, self._settings, self._make = llama, model, settings, make
        self._n_train: int = llama.llama_model_n_ctx_train(model)
        self._n_swa: int = llama.llama_model_n_swa(model)
        self._most: int | None = settings.n_ctx_most
        self.context: Any = None
        self.n_ctx = 0
        self.held: list[int] = []
        self.spoken: list[int] = []

    def close(self) -> None:
        if self.context is not None:
            self._llama.llama_free(self.context)
        self.context, self.n_ctx, self.held, self.spoken = None, 0, [], []

    # -- its length ---

    def granted(self, n_needed: int) -> int:
        """As many tokens as are needed and the configuration grants."""
        return self._settings.n_ctx or min(self._n_train, n_needed, self._most or n_needed)

    def ensure(self, n_needed: int) -> int | None:
        """A context for `n_needed` tokens of which nothing is remembered that the next prompt could need.

        Returns the tokens that may be used; None where llama.cpp can't make it.
        """
        wanted = self.granted(n_needed)
        if not self._is_enough(wanted):
            self.close()
            self.context = self._make(wanted)
            if self.context is None:
                return None
        self.n_ctx = wanted
        return wanted

    def extend(self, n_needed: int) -> int | None:
        """The same, and what is remembered stays: it is copied, so one that has to grow grows twofold at least."""
        wanted = self.granted(n_needed)
        if self.context is None:
            return self.ensure(n_needed)
        if wanted <= self.n_ctx:
            return self.n_ctx
        wanted = max(wanted, self.granted(2 * self.n_ctx))
        if self._is_enough(wanted):
            self.n_ctx = wanted
            return wanted
        before, held, state = self.n_ctx, self.held, self._state()
        self.close()
        for n_ctx in (wanted, before):
            self.context = self._make(n_ctx)
            if self.context is not None:
                self.n_ctx = n_ctx
                self.held = held if self._restored(state) else []
                return n_ctx
            self._most = before  # as long as it ever gets: don't try again at every token
        return None

    def _is_enough(self, wanted: int) -> bool:
        # llama.cpp rounds the cells up to 256, but not the batch that it cuts to the context it was asked for.
        return (
            self.context is not None
            and self._llama.llama_n_ctx(self.context) >= wanted
            and self._llama.llama_n_batch(self.context) >= min(self._settings.n_batch, wanted)
        )

    def _state(self) -> Any:
        if not self.held:
            return None
        n_bytes = self._llama.llama_state_seq_get_size(self.context, 0)
        state = (ctypes.c_uint8 * n_bytes)()
        return state if self._llama.llama_state_seq_get_data(self.context, state, n_bytes, 0) == n_bytes else None

    def _restored(self, state: Any) -> bool:
        if state is not None and self._llama.llama_state_seq_set_data(self.context, state, len(state), 0):
            return True
        self.forget()
        return False

    # -- its content ---

    def forget(self) -> None:
        """Everything."""
        if self.context is not None:
            self._llama.llama_memory_clear(self._llama.llama_get_memory(self.context), False)
        self.held, self.spoken = [], []

    def recall(self, tokens: Sequence[int]) -> int:
        """Keep as much as is also the beginning of `tokens`, forget the rest; returns how many tokens that are.

        At least the last of `tokens` is left to be computed: its logits are wanted. Memory that can't be rolled back
        (recurrent states), or whose window has moved on, is given up whole.
        """
        self.spoken = []
        n = min(common_prefix(self.held, tokens), len(tokens) - 1)
        self.roll_back(n)
        return len(self.held)

    def roll_back(self, n: int) -> None:
        """To the first `n` tokens, to none where that is not possible."""
        if n == len(self.held):
            return
        memory = self._llama.llama_get_memory(self.context)
        if n > 0 and self._reaches_back_to(memory, n) and self._llama.llama_memory_seq_rm(memory, 0, n, -1):
            del self.held[n:]
        else:
            self.forget()

    def _reaches_back_to(self, memory: Any, n: int) -> bool:
        """Whether all keys that token `n` attends to are still there: a window keeps no more than it needs."""
        if not self._n_swa:
            return True
        first = int(self._llama.llama_memory_seq_pos_min(memory, 0))
        return first == 0 or 0 < first < n - self._n_swa

    def repair(self) -> None:
        """After a computation that was broken off: parts of it may be remembered, nobody knows which."""
        memory = self._llama.llama_get_memory(self.context)
        if not self._llama.llama_memory_seq_rm(memory, 0, len(self.held), -1):
            self.forget()
