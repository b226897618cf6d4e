"""The next token: llama.cpp's sampler chain, under a grammar where there is one. Child process only."""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Sequence
from typing import Any

from llmrun.engine.child import native
from llmrun.engine.child.native import llama


class DeadEnd(Exception):
    """No token of the vocabulary can continue the text as the grammar demands."""


class BadGrammar(Exception):
    """llama.cpp rejects the grammar."""


class Sampler:
    """Samples tokens by the fields of `SamplingConfig`, from the logits of a context's last token. `close` it.

    What is sampled is accepted: penalties and grammar know of it from then on.
    """

    def __init__(self, vocab: native.Vocab, sampling: dict[str, Any], n_ctx: int, grammar: str | None = None) -> None:
        """`grammar` is GBNF. Raises `BadGrammar`."""
        self._vocab = vocab
        self._chain = native.build_sampler(sampling, vocab.n_tokens, n_ctx)
        penalties = (sampling["repeat_penalty"], sampling["frequency_penalty"], sampling["presence_penalty"])
        last_n = sampling["repeat_last_n"] if penalties != (1.0, 0.0, 0.0) else 0
        self._penalty_last_n = n_ctx if last_n == -1 else last_n
        self._grammar: Any = None
        if grammar is not None:
            self._grammar = llama.llama_sampler_init_grammar(vocab.handle, grammar.encode(), b"root")
            if not self._grammar:
                self.close()
                raise BadGrammar
            self._candidates = _Candidates(vocab.n_tokens)

    def close(self) -> None:
        llama.llama_sampler_free(self._chain)
        if self._grammar:
            llama.llama_sampler_free(self._grammar)

    @property
    def has_grammar(self) -> bool:
        return bool(self._grammar)

    def accept_prompt(self, tokens: Sequence[int]) -> None:
        """Have the penalties count the prompt's tokens as well."""
        if self._penalty_last_n:
            for token in tokens[-self._penalty_last_n :]:
                llama.llama_sampler_accept(self._chain, token)

    def accept(self, token: int) -> None:
        """Count a token that was put into the text without being sampled."""
        llama.llama_sampler_accept(self._chain, token)

    def sample(self, context: Any) -> int:
        """The next token; the grammar is left out of it."""
        return llama.llama_sampler_sample(self._chain, context, -1)  # type: ignore[no-any-return]

    def sample_constrained(self, context: Any) -> int:
        """The next token under the grammar. Raises `DeadEnd`.

        The token that is sampled without the grammar is nearly always one that the grammar allows. Only if it is not,
        the grammar is applied to the whole vocabulary, which takes much longer. llama.cpp's own tools do the same.
        """
        candidates = self._candidates
        candidates.fill(context)
        token = candidates.sample(self._chain)
        if not candidates.allows(self._grammar, token):
            candidates.fill(context)
            candidates.apply(self._grammar)
            token = candidates.sample(self._chain)
            if not candidates.allows(self._grammar, token):
                raise DeadEnd
        llama.llama_sampler_accept(self._chain, token)
        if not self._vocab.is_end(token):
            llama.llama_sampler_accept(self._grammar, token)
        return token

    def argmax(self, context: Any) -> int:
        """The likeliest token, without the grammar. It is not accepted. Only a sampler with a grammar can tell."""
        return self._candidates.argmax(context)


class _Candidates:
    """llama.cpp's array of candidates, one for each token of the vocabulary: {int32 id, float logit, float p}."""

    def __init__(self, n_vocab: int) -> None:
        self._n = n_vocab
        self._data = (llama.llama_token_data * n_vocab)()
        plain = memoryview(self._data).cast("B")
        self._ids, self._logits = plain.cast("i"), plain.cast("f")
        self._all_ids = array("i", range(n_vocab))
        self._array = llama.llama_token_data_array()

    def fill(self, context: Any) -> None:
        """Set all ids and logits anew, from the context's last token: samplers sort and cut the array."""
        address = ctypes.cast(llama.llama_get_logits_ith(context, -1), ctypes.c_void_p).value
        assert address
        logits = memoryview((ctypes.c_float * self._n).from_address(address)).cast("B").cast("f")
        self._ids[0::3] = memoryview(self._all_ids)
        self._logits[1::3] = logits
        self._array.data = self._data
        self._array.size, self._array.selected, self._array.sorted = self._n, -1, False

    def argmax(self, context: Any) -> int:
        self.fill(context)
        return max(range(self._n), key=self._logits[1::3].tolist().__getitem__)

    def apply(self, sampler: Any) -> None:
        llama.llama_sampler_apply(sampler, ctypes.byref(self._array))

    def sample(self, chain: Any) -> int:
        self.apply(chain)
        return int(self._array.data[self._array.selected].id)

    def allows(self, grammar: Any, token: int) -> bool:
        """Whether the grammar takes this token next."""
        one = (llama.llama_token_data * 1)(llama.llama_token_data(token, 1.0, 0.0))
        single = llama.llama_token_data_array()
        single.data, single.size, single.selected, single.sorted = one, 1, -1, False
        llama.llama_sampler_apply(grammar, ctypes.byref(single))
        return not math.isinf(one[0].logit)
