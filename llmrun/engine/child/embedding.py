"""Texts as vectors: a context of its own beside that of answers, made when the first text comes. Child process only.

Where every token sees all others (an encoder), a text is computed as a whole; where it sees those before it, in parts,
and the parts' vectors are put together as the pooling has it. Several short texts are computed at once.
"""

from __future__ import annotations

import ctypes
from array import array
from typing import TYPE_CHECKING, Any

from llmrun.engine.child.batch import Batch
from llmrun.engine.protocol import Embed, Embedded, RequestFailed

if TYPE_CHECKING:
    from llmrun.engine.child.main import Worker

_PART = 512
"""Tokens that are computed at once: all are outputs, and those of a model that writes have the logits of a whole
vocabulary each."""
_MOST_AT_ONCE = 16
_POOLING = {"mean": 1, "cls": 2, "last": 3}  # enum llama_pooling_type


class Embedder:
    """For one pooling of the loaded model."""

    def __init__(self, host: Worker, pooling: str, *, is_causal: bool) -> None:
        self._host, self._llama, self._vocab = host, host.llama, host.vocab
        self.pooling, self._is_causal = pooling, is_causal
        self._n_embd: int = host.llama.llama_model_n_embd_out(host.model)
        self._context: Any = None
        self._n_ctx = 0

    def embed(self, request: Embed) -> Embedded:
        """Raises `RequestFailed`: of kind "prompt" for a text that is too long, "usage" for one of no tokens."""
        texts = [self._tokens(given, i, request) for i, given in enumerate(request.inputs, request.first)]
        self._reserve(max(map(len, texts)))
        vectors: list[bytes] = []
        first = 0
        while first < len(texts):
            end, n = first + 1, len(texts[first])
            while end < len(texts) and end - first < _MOST_AT_ONCE and n + len(texts[end]) <= _PART:
                n += len(texts[end])
                end += 1
            vectors += self._vectors(texts[first:end])
            first = end
        return Embedded(vectors, [*map(len, texts)])

    def close(self) -> None:
        if self._context is not None:
            self._llama.llama_free(self._context)
            self._context = None

    def _tokens(self, given: str | list[int], i: int, request: Embed) -> list[int]:
        if isinstance(given, str):
            tokens = self._vocab.whole_text(given)
        else:
            tokens = given
            if wrong := next((token for token in tokens if not 0 <= token < self._vocab.n_tokens), None):
                there = f"there is no token {wrong}, the vocabulary has {self._vocab.n_tokens}"
                raise RequestFailed("usage", there, field="input")
        if not tokens:
            raise RequestFailed("usage", f"input[{i}] has no tokens", field="input")
        if len(tokens) > request.n_most:
            if not request.truncates:
                told = f"input[{i}] has {len(tokens)} tokens, {request.n_most} are possible"
                raise RequestFailed("prompt", told, {"n_prompt": len(tokens), "n_ctx_train": request.n_most})
            # What the vocabulary puts behind every text belongs behind one that was cut as well.
            n_behind = int(isinstance(given, str) and not self._vocab.piece(tokens[-1]))
            tokens = [*tokens[: request.n_most - n_behind], *tokens[len(tokens) - n_behind :]]
        return tokens

    def _reserve(self, n_longest: int) -> None:
        """A context in which the longest of them has room."""
        n_ctx = -(-max(n_longest, _PART) // _PART) * _PART
        if self._context is not None and n_ctx <= self._n_ctx:
            return
        self.close()
        self._n_ctx = n_ctx
        self._context = self._host.embedding_context(
            n_ctx, _PART if self._is_causal else n_ctx, _MOST_AT_ONCE, _POOLING[self.pooling]
        )

    def _vectors(self, texts: list[list[int]]) -> list[bytes]:
        """Of one that may be longer than a part, or of several that are computed at once."""
        self._forget()
        if len(texts) == 1 and self._is_causal:
            return [self._in_parts(texts[0])]
        batch = Batch(sum(map(len, texts)), len(texts))
        for sequence, tokens in enumerate(texts):
            batch.add(sequence, tokens, 0, n_wanted=len(tokens))
        self._compute(batch)
        return [_normalized(self._pooled(sequence)) for sequence in range(len(texts))]

    def _in_parts(self, tokens: list[int]) -> bytes:
        whole = array("d", bytes(8 * self._n_embd))
        for first in range(0, len(tokens), _PART):
            part = tokens[first : first + _PART]
            batch = Batch(len(part))
            batch.add(0, part, first, n_wanted=len(part))
            self._compute(batch)
            if self.pooling == "mean":
                found, n = self._pooled(0), len(part)
                whole = array("d", [before + n * value for before, value in zip(whole, found, strict=True)])
            elif self.pooling == "last" or not first:
                whole = array("d", self._pooled(0))
        return _normalized(whole)

    def _compute(self, batch: Batch) -> None:
        self._host.log.lines.clear()
        status = self._llama.llama_decode(self._context, batch.raw)
        if status == 2:  # llama.h: aborted
            raise RequestFailed("usage", "it was left")
        if status:
            self._host.fail_from_log("engine", f"llama.cpp can't compute it ({status})")

    def _pooled(self, sequence: int) -> Any:
        found = self._llama.llama_get_embeddings_seq(self._context, sequence)
        if not found:
            raise RequestFailed("engine", "llama.cpp gives no vector for it")
        return ctypes.cast(found, ctypes.POINTER(ctypes.c_float * self._n_embd)).contents

    def _forget(self) -> None:
        if memory := self._llama.llama_get_memory(self._context):
            self._llama.llama_memory_clear(memory, True)


def _normalized(vector: Any) -> bytes:
    """Of length 1, as float32 in the machine's order."""
    length = sum(value * value for value in vector) ** 0.5
    if not 0 < length < float("inf"):
        raise RequestFailed("model", "its vector is no direction: the model computes zeros, or what is no number")
    return array("f", [value / length for value in vector]).tobytes()
