"""A smaller model of the same vocabulary, which says how a text may go on. Child process only."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from llmrun import codec
from llmrun.engine.child import native
from llmrun.engine.child.batch import Batch
from llmrun.engine.child.kv_context import KVContext
from llmrun.engine.protocol import RequestFailed, Settings

_LEAST = 0.3
"""Guesses behind the first end where all of them together are less likely than this, by the model's own word."""
_FEW = 16
"""Tokens that are read with a guess."""
_MOST_DIFFERENCE = 128
"""Tokens that one vocabulary may have more than the other: what pads it (llama.cpp's speculative.cpp has the same)."""
_SEEN = 4096
"""Tokens whose texts are compared."""


def settings_of(settings: Settings) -> Settings:
    """How it is loaded, beside a model with these settings: in RAM, with nothing that is said of the other one."""
    assert settings.draft is not None
    alone = {"n_ctx": None, "n_ctx_most": None, "type_k": "f16", "type_v": "f16", "plain_prefill": False}
    in_ram = {"n_gpu_layers": 0, "devices": [], "tensor_split": [], "main_gpu": 0, "override_tensor": []}
    nothing_said = {"override_kv": [], "rope": {}, "lora": [], "n_draft": 0, "draft": None, "prefixes": None}
    return codec.replace(settings, repack=settings.draft.repack, **alone, **in_ram, **nothing_said)


def check_vocabulary(vocab: native.Vocab, other: native.Vocab) -> None:
    """Raises `RequestFailed` where the tokens of the draft model, `other`, mean something else."""
    if vocab.kind != other.kind or abs(vocab.n_tokens - other.n_tokens) > _MOST_DIFFERENCE:
        problem = f"it has {other.n_tokens} tokens of another kind than the {vocab.n_tokens} of the model"
    else:
        n = min(vocab.n_tokens, other.n_tokens)
        texts = ((i, each.text_of(i, special=True)) for i in range(0, n, max(1, n // _SEEN)) for each in (vocab, other))
        wrong = next((i for (i, mine), (_, its) in zip(texts, texts, strict=True) if mine != its), None)
        if wrong is None:
            return
        its, mine = (each.text_of(wrong, special=True) for each in (other, vocab))
        problem = f"token {wrong} is {its!r} there and {mine!r} here"
    raise RequestFailed("usage", f"the draft model has another vocabulary: {problem}", field="draft")


class DraftModel:
    """Its context grows with the texts."""

    def __init__(self, llama: Any, kv: KVContext, n_own: int, n_vocab: int, n_batch: int) -> None:
        """`n_own`: tokens of its vocabulary, `n_vocab`: of the model's whose text it is."""
        self._llama, self.kv, self._n_batch = llama, kv, n_batch
        self._n_own, self._n_vocab = n_own, n_vocab
        self._batch = Batch(n_batch)

    def set_threads(self, n: int, n_batch: int) -> None:
        if self.kv.context is not None:
            self._llama.llama_set_n_threads(self.kv.context, n, n_batch)

    def read(self, tokens: Sequence[int]) -> None:
        """Compute a text, where much of it is new."""
        if self._has_room(len(tokens)) and self._reuse(tokens) > _FEW:
            self._compute(tokens[len(self._sequence.tokens) : -1])

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """How a text goes on most likely, by at most so many tokens; fewer where the model is in doubt, none where
        there is no room."""
        found: list[int] = []
        if not self._has_room(len(tokens) + most):
            return found
        self._reuse(tokens)
        new, likely = tokens[len(self._sequence.tokens) :], 1.0
        while len(found) < most and self._compute(new):
            token, share = self._likeliest()
            likely *= share
            if (found and likely < _LEAST) or token >= self._n_vocab:
                break
            found.append(token)
            new = [token]
        return found

    @property
    def _sequence(self) -> Any:
        return self.kv.sequences[0]

    def _has_room(self, n_tokens: int) -> bool:
        n_ctx = self.kv.grow(n_tokens)
        return n_ctx is not None and n_ctx >= n_tokens

    def _reuse(self, tokens: Sequence[int]) -> int:
        """Tokens that are not computed yet."""
        return len(tokens) - int(self._sequence.reuse_prefix(tokens))

    def _compute(self, tokens: Sequence[int]) -> bool:
        """False where it was broken off."""
        sequence = self._sequence
        for begin in range(0, len(tokens), self._n_batch):
            part = list(tokens[begin : begin + self._n_batch])
            self._batch.clear()
            self._batch.add(0, part, len(sequence.tokens), n_wanted=1)
            if self._llama.llama_decode(self.kv.context, self._batch.raw):
                sequence.repair()
                return False
            sequence.tokens += part
        return True

    def _likeliest(self) -> tuple[int, float]:
        """The likeliest next token and its probability."""
        import numpy as np

        n = self._n_own
        pointer = ctypes.cast(self._llama.llama_get_logits_ith(self.kv.context, -1), ctypes.c_void_p).value
        assert pointer
        logits = np.frombuffer(memoryview((ctypes.c_float * n).from_address(pointer)), np.float32)
        token = int(logits.argmax())
        return token, 1 / float(np.exp(logits - logits[token]).sum())
