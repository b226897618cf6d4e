"""The context of a loaded model and the tokens whose keys and values it holds, by sequence. Child process only."""

from __future__ import annotations

import ctypes
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llmrun.engine.protocol import Settings

_CELLS = 256
"""llama.cpp rounds what each sequence has up to a multiple of this."""
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


class Snapshot(NamedTuple):
    """What a context held of a sequence: its tokens, and llama.cpp's bytes."""

    tokens: list[int]
    state: Any


class KVSequence:
    """One timeline of a context.

    Attributes:
        id: by which llama.cpp knows it.
        tokens: those whose keys and values (or states) are in the context, from position 0.
        pending: tokens of the answer behind them that were not computed: the last one of an answer that was cut short.
    """

    def __init__(self, of: KVContext, id_: int) -> None:
        self._of, self.id = of, id_
        self.tokens: list[int] = []
        self.pending: list[int] = []

    def clear(self) -> None:
        """Remove all tokens; the context stays."""
        if self._of.context is not None:
            self._of.remove(self.id, -1)
        self.tokens, self.pending = [], []

    def reuse_prefix(self, prompt: Sequence[int]) -> int:
        """Keep the tokens that `prompt` begins with too, remove the rest; returns how many are kept.

        At least the last token of `prompt` is left to be computed: its logits are needed. A content that can't be
        rolled back (recurrent states), or whose window has moved on, is removed whole.
        """
        self.pending = []
        self.roll_back(self.n_reusable(prompt))
        return len(self.tokens)

    def n_reusable(self, prompt: Sequence[int]) -> int:
        """How many tokens `prompt` begins with too, but for its last one."""
        return min(common_prefix(self.tokens, prompt), len(prompt) - 1)

    def roll_back(self, n: int) -> None:
        """Keep the first `n` tokens, or none where that is not possible."""
        if n == len(self.tokens):
            return
        if n > 0 and self._of.reaches_back_to(self.id, n) and self._of.remove(self.id, n):
            del self.tokens[n:]
        else:
            self.clear()

    def repair(self) -> None:
        """Remove what a computation that was broken off has left behind the tokens."""
        if not self._of.remove(self.id, len(self.tokens)):
            self.clear()

    def snapshot(self) -> Snapshot | None:
        """What is held, to be put into another sequence; None where llama.cpp can't tell."""
        state = self._of.saved(self.id)
        return None if state is None else Snapshot(list(self.tokens), state)

    def restore(self, snapshot: Snapshot | None) -> bool:
        """Hold that in place of what is here; False, and nothing is held, where llama.cpp can't."""
        self.clear()
        if snapshot is None or not self._of.restored(self.id, snapshot.state):
            self.clear()
            return False
        self.tokens = list(snapshot.tokens)
        return True

    def take_over(self, other: KVSequence) -> bool:
        """Hold what `other` holds, of this context or of one of the same model in another layout."""
        self.clear()
        return not other.tokens or self.restore(other.snapshot())


class KVContext:
    """One context at a time, made when the first prompt's length is known: a KV cache takes memory, and clearing it
    takes time. Every sequence has a part of its own.

    Attributes:
        context: llama.cpp's; None before the first prompt.
        n_ctx: the tokens that each sequence may use: llama.cpp rounds what it makes up to 256 cells.
        sequences: at least one.
    """

    def __init__(
        self, llama: Any, model: Any, settings: Settings, make: Callable[[int, int], Any], *, attends: bool = False
    ) -> None:
        """`make` makes a context of so many tokens for all of so many sequences, or returns None. `attends`: there are
        no recurrent layers in it, whatever the model has."""
        self._llama, self._settings, self._make = llama, settings, make
        self._n_ctx_train: int = llama.llama_model_n_ctx_train(model)
        self._n_swa: int = llama.llama_model_n_swa(model)
        self._n_ctx_most: int | None = settings.n_ctx_most
        has_state = llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model)
        self._has_state = bool(has_state) and not attends
        self.rolls_back = not self._n_swa and not self._has_state
        """Whether what is held of a sequence can be cut anywhere."""
        self.context: Any = None
        self.n_ctx = 0
        self.sequences = [KVSequence(self, 0)]

    def close(self) -> None:
        if self.context is not None:
            self._llama.llama_free(self.context)
        self.context, self.n_ctx = None, 0
        for sequence in self.sequences:
            sequence.tokens, sequence.pending = [], []

    def divide(self, n_seq: int, n_ctx_most: int | None) -> None:
        """From now on so many sequences, of at most so many tokens each. What is held is lost."""
        self.close()
        self._n_ctx_most = n_ctx_most
        self.sequences = [KVSequence(self, i) for i in range(n_seq)]

    # -- its length ---

    def clamp_n_ctx(self, n_needed: int) -> int:
        """The length of a context for `n_needed` tokens: as many, within what configuration and model allow."""
        return self._settings.n_ctx or min(self._n_ctx_train, n_needed, self._n_ctx_most or n_needed)

    def reserve(self, n_needed: int) -> int | None:
        """Make a context for `n_needed` tokens of each sequence if there is none; its content may be lost.

        Returns the tokens that may be used; None if llama.cpp can't make it.
        """
        n_ctx = self.clamp_n_ctx(n_needed)
        if not self._is_enough(n_ctx):
            self.close()
            self.context = self._made(n_ctx)
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
        twice = max(n_ctx, self.clamp_n_ctx(2 * self.n_ctx))
        if self._is_enough(n_ctx):  # there are more cells than were asked for
            self.n_ctx = min(twice, int(self._llama.llama_n_ctx_seq(self.context)))
            return self.n_ctx
        n_ctx = twice
        before, pending = self.n_ctx, [sequence.pending for sequence in self.sequences]
        held = [sequence.snapshot() if sequence.tokens else None for sequence in self.sequences]
        self.close()
        for length in (n_ctx, before):
            self.context = self._made(length)
            if self.context is not None:
                self.n_ctx = length
                for sequence, snapshot, waits in zip(self.sequences, held, pending, strict=True):
                    if snapshot is not None and sequence.restore(snapshot):
                        sequence.pending = waits
                return length
            self._n_ctx_most = before  # it can't be made longer: don't try again at every token
        return None

    def _made(self, n_ctx: int) -> Any:
        n_seq = len(self.sequences)
        return self._make(n_ctx if n_seq == 1 else n_seq * -(-n_ctx // _CELLS) * _CELLS, n_seq)

    def _is_enough(self, n_ctx: int) -> bool:
        # llama.cpp rounds the cells up to 256, but not the batch, which it cuts to the length that was asked for.
        return (
            self.context is not None
            and self._llama.llama_n_ctx_seq(self.context) >= n_ctx
            and self._llama.llama_n_batch(self.context) >= min(self._settings.n_batch, n_ctx)
        )

    # -- what llama.cpp holds of a sequence ---

    def remove(self, sequence: int, first: int) -> bool:
        """Remove its tokens from that position on, -1: all. False where a part can't be removed."""
        return bool(self._llama.llama_memory_seq_rm(self._memory(), sequence, first, -1))

    def reaches_back_to(self, sequence: int, n: int) -> bool:
        """Whether all keys that token `n` attends to are still there: a sliding window keeps no more than it needs."""
        if not self._n_swa:
            return True
        first = int(self._llama.llama_memory_seq_pos_min(self._memory(), sequence))
        return first == 0 or 0 < first < n - self._n_swa

    def takes_back(self, n: int) -> bool:
        """Whether the last of `n` tokens of a sequence can be removed for certain: its window has not moved yet."""
        if self._has_state and self._llama.llama_n_rs_seq(self.context) < max(1, self._settings.n_draft):
            return False
        return not self._n_swa or n <= self._n_swa + self._settings.n_ubatch

    def n_state_bytes(self, sequence: int) -> int:
        """What `saved` would have."""
        return int(self._llama.llama_state_seq_get_size(self.context, sequence))

    def saved(self, sequence: int) -> Any:
        return saved(self._llama, self.context, sequence)

    def restored(self, sequence: int, state: Any) -> bool:
        return self.context is not None and restore(self._llama, self.context, state, sequence)

    def _memory(self) -> Any:
        return self._llama.llama_get_memory(self.context)
