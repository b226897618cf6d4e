"""What is computed at once: a `llama_batch` that is filled anew every time. Child process only."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from llmrun.engine.child.native import llama


class Batch:
    """Tokens of some sequences, and of which of them the logits are wanted.

    Attributes:
        raw: what llama.cpp takes.
    """

    def __init__(self, n_tokens: int, n_seq: int = 1) -> None:
        """Room for so many tokens, of so many sequences."""
        pointer = ctypes.POINTER(llama.llama_seq_id)
        self._ids = (llama.llama_seq_id * n_seq)(*range(n_seq))
        address, size = ctypes.addressof(self._ids), ctypes.sizeof(llama.llama_seq_id)
        self._pointers = [ctypes.cast(address + i * size, pointer) for i in range(n_seq)]
        self._tokens = (llama.llama_token * n_tokens)()
        self._positions = (llama.llama_pos * n_tokens)()
        self._n_ids = (ctypes.c_int32 * n_tokens)(*[1] * n_tokens)
        self._of = (pointer * n_tokens)()
        self._wanted = (ctypes.c_int8 * n_tokens)()
        self.raw = llama.llama_batch(0, self._tokens, None, self._positions, self._n_ids, self._of, self._wanted)

    def clear(self) -> None:
        self.raw.n_tokens = 0

    def add(self, sequence: int, tokens: Sequence[int], position: int, *, n_wanted: int = 0) -> int:
        """Tokens of a sequence from that position on; the logits of the last `n_wanted` can be read. Returns the index
        of the last one."""
        n = len(tokens)
        first: int = self.raw.n_tokens
        end = first + n
        self._tokens[first:end] = tokens
        self._positions[first:end] = range(position, position + n)
        self._of[first:end] = [self._pointers[sequence]] * n
        self._wanted[first:end] = [int(i >= n - n_wanted) for i in range(n)]
        self.raw.n_tokens = end
        return end - 1

    def put(self, index: int, token: int, position: int) -> None:
        """Another token at another position, of the same sequence as the one that is there."""
        self._tokens[index] = token
        self._positions[index] = position
