"""The next token: llama.cpp's sampler chain, under a grammar where there is one. Child process only."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from llmrun.engine.child import native
from llmrun.engine.child.constraint import Constraint
from llmrun.engine.child.native import llama
from llmrun.engine.protocol import Logprob, TokenLogprobs

_BLOCK = 64


class DeadEnd(Exception):
    """No token of the vocabulary can continue the text as the grammar demands."""


class Sampler:
    """Samples tokens by the fields of `SamplingConfig`, from the logits of one of a batch's tokens. `close` it.

    What is sampled is accepted: penalties and grammar know of it from then on.

    Attributes:
        has_grammar: `constrain` is called before the first token is sampled.
    """

    def __init__(
        self,
        vocab: native.Vocab,
        sampling: dict[str, Any],
        n_ctx: int,
        *,
        has_grammar: bool = False,
        candidates: Candidates | None = None,
    ) -> None:
        """With `candidates`, room that several may share, only tokens that can be chosen are handed to the chain where
        it begins by cutting all others: ten times as fast with 150,000 of them. They take numpy, whose import costs
        more than a short answer."""
        penalties = (sampling["repeat_penalty"], sampling["frequency_penalty"], sampling["presence_penalty"])
        last_n = sampling["repeat_last_n"] if penalties != (1.0, 0.0, 0.0) else 0
        self._penalty_last_n = n_ctx if last_n == -1 else last_n
        self._vocab, self._chain = vocab, native.build_sampler(sampling, vocab.n_tokens, self._penalty_last_n)
        self._is_greedy = sampling["temperature"] == 0
        self.has_grammar = has_grammar
        self._n_best = 0  # tokens that the chain begins by cutting all others behind; 0: it does not
        if candidates is not None:
            self._candidates = candidates
            n_best = 1 if self._is_greedy else sampling["top_k"]
            is_plain = not self._penalty_last_n and not sampling["logit_bias"] and not has_grammar
            self._n_best = n_best if is_plain and n_best <= vocab.n_tokens // (4 * _BLOCK) else 0

    def constrain(self, constraint: Constraint) -> None:
        """From here on tokens can be sampled under this grammar."""
        self._constraint = constraint
        if not hasattr(self, "_candidates"):
            self._candidates = Candidates(self._vocab.n_tokens)

    def tell_logprobs(self) -> None:
        """`logprobs` will be asked for."""
        if not hasattr(self, "_candidates"):
            self._candidates = Candidates(self._vocab.n_tokens)

    def logprobs(self, context: Any, index: int, token: int, n: int) -> TokenLogprobs:
        """How likely a token was, and the `n` likeliest, before anything of sampling."""
        own, top = self._candidates.logprobs(context, index, token, n)

        def piece(token: int) -> bytes:
            return self._vocab.text_of(token, special=True)

        return TokenLogprobs(token, piece(token), own, [Logprob(i, piece(i), each) for i, each in top])

    def follow(self, token: int) -> None:
        """Have the grammar know of a token that was sampled without it; one that it does not allow ends it."""
        if self.has_grammar and not self._vocab.is_end(token):
            self.has_grammar = self._constraint.allows(token)
            if self.has_grammar:
                self._constraint.accept(token)

    def close(self) -> None:
        llama.llama_sampler_free(self._chain)

    def accept_prompt(self, tokens: Sequence[int]) -> None:
        """Have the penalties count the prompt's tokens as well."""
        if self._penalty_last_n:
            for token in tokens[-self._penalty_last_n :]:
                llama.llama_sampler_accept(self._chain, token)

    def accept(self, token: int) -> None:
        """Count a token that was put into the text without being sampled."""
        llama.llama_sampler_accept(self._chain, token)

    def sample(self, context: Any, index: int) -> int:
        """The next token; the grammar is left out of it."""
        if self._n_best:
            token = self._candidates.sample_best(self._chain, context, index, self._n_best)
            if token is not None:
                llama.llama_sampler_accept(self._chain, token)
                return token
        return llama.llama_sampler_sample(self._chain, context, index)  # type: ignore[no-any-return]

    def sample_constrained(self, context: Any, index: int) -> int:
        """The next token under the grammar. Raises `DeadEnd`.

        The chain sees only the tokens that the grammar allows. Greedily, its choice among all tokens is tried first: if
        that is allowed, it is the choice among the allowed ones, too, and the mask is spared. With top-k and its kin
        the same would give another distribution: they would cut the forbidden and the allowed tokens together.
        """
        candidates, constraint = self._candidates, self._constraint
        token = candidates.sample(self._chain, context, index) if self._is_greedy else None
        if token is None or not constraint.allows(token):
            allowed = constraint.allowed()
            if not len(allowed):
                raise DeadEnd
            token = candidates.sample(self._chain, context, index, allowed)
        llama.llama_sampler_accept(self._chain, token)
        if not self._vocab.is_end(token):
            constraint.accept(token)
        return token

    def logits(self, context: Any, index: int) -> Any:
        """Of all tokens: an array that holds until the next computation. Only a sampler with a grammar can tell."""
        return self._candidates.logits(context, index)

    def argmax(self, context: Any, index: int) -> int:
        """The likeliest token, without the grammar. It is not accepted. Only a sampler with a grammar can tell."""
        return self._candidates.argmax(context, index)


class Candidates:
    """llama.cpp's array of candidates, {int32 id, float logit, float p}: as many as are to be chosen from."""

    def __init__(self, n_vocab: int) -> None:
        import numpy as np

        self._np, self._n = np, n_vocab
        self._data = np.zeros(n_vocab, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._all_ids = np.arange(n_vocab, dtype=np.int32)
        self._array = llama.llama_token_data_array()

    def logits(self, context: Any, index: int) -> Any:
        address = ctypes.cast(llama.llama_get_logits_ith(context, index), ctypes.c_void_p).value
        assert address
        return self._np.frombuffer(memoryview((ctypes.c_float * self._n).from_address(address)), self._np.float32)

    def sample(self, chain: Any, context: Any, index: int, ids: Any = None) -> int:
        """The chain's choice among the tokens `ids`, None: all. The array is filled anew: samplers sort and cut it."""
        logits = self.logits(context, index)
        n = self._n if ids is None else len(ids)
        self._data["id"][:n] = self._all_ids if ids is None else ids
        self._data["logit"][:n] = logits if ids is None else logits[ids]
        self._array.data = ctypes.cast(self._data.ctypes.data, ctypes.POINTER(llama.llama_token_data))
        self._array.size, self._array.selected, self._array.sorted = n, -1, False
        llama.llama_sampler_apply(chain, ctypes.byref(self._array))
        return int(self._array.data[self._array.selected].id)

    def sample_best(self, chain: Any, context: Any, index: int, n: int) -> int | None:
        """The choice of a chain that begins by cutting all but the `n` likeliest; None where they can't be told apart.

        The n-th of the largest logits of blocks is at most the n-th of all: whatever is smaller is not among them.
        """
        logits, np = self.logits(context, index), self._np
        if n == 1:
            return int(logits.argmax())
        whole = self._n // _BLOCK * _BLOCK
        largest = logits[:whole].reshape(-1, _BLOCK).max(axis=1)
        ids = np.flatnonzero(logits >= np.partition(largest, -n)[-n])
        return self.sample(chain, context, index, ids) if n <= len(ids) <= _BLOCK * n else None

    def logprobs(self, context: Any, index: int, token: int, n: int) -> tuple[float, list[tuple[int, float]]]:
        np = self._np
        logits = self.logits(context, index).astype(np.float64)
        logits -= logits.max()
        logits -= np.log(np.exp(logits).sum())
        best = np.argpartition(logits, -n)[-n:] if 0 < n < self._n else np.arange(self._n)[: n and self._n]
        top = sorted(((float(logits[i]), int(i)) for i in best), key=lambda each: (-each[0], each[1]))
        return float(logits[token]), [(i, each) for each, i in top]

    def argmax(self, context: Any, index: int) -> int:
        return int(self.logits(context, index).argmax())
