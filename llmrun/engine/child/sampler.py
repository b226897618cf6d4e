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
    """The grammar wants what no token of the vocabulary can say."""


class BadGrammar(Exception):
    """llama.cpp does not take the grammar."""


class Chooser:
    """Chooses tokens by the fields of `SamplingConfig`; `close` it."""

    def __init__(self, vocab: native.Vocab, sampling: dict[str, Any], n_ctx: int, grammar: str | None = None) -> None:
        self._vocab = vocab
        self._chain = native.build_sampler(sampling, vocab.n_tokens, n_ctx)
        penalties = (sampling["repeat_penalty"], sampling["frequency_penalty"], sampling["presence_penalty"])
        last_n = sampling["repeat_last_n"] if penalties != (1.0, 0.0, 0.0) else 0
        self._looks_back = n_ctx if last_n == -1 else last_n
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

    def seen(self, prompt: Sequence[int]) -> None:
        """The penalties look back at the prompt as well."""
        if self._looks_back:
            for token in prompt[-self._looks_back :]:
                llama.llama_sampler_accept(self._chain, token)

    def peek(self, context: Any) -> int:
        """The likeliest token, whatever the grammar says; it does not count as chosen."""
        return self._candidates.likeliest(context)

    def free(self, context: Any) -> int:
        """The next token, whatever the grammar says."""
        return llama.llama_sampler_sample(self._chain, context, -1)  # type: ignore[no-any-return]

    def bound(self, context: Any) -> int:
        """The next token under the grammar. Raises `DeadEnd`.

        What is chosen without the grammar is nearly always what the grammar allows; only else all of the vocabulary
        is held against it, which takes much longer. As llama.cpp's own tools do it.
        """
        candidates = self._candidates
        candidates.fill(context)
        token = candidates.chosen_by(self._chain)
        if not candidates.allowed(self._grammar, token):
            candidates.fill(context)
            candidates.apply(self._grammar)
            token = candidates.chosen_by(self._chain)
            if not candidates.allowed(self._grammar, token):
                raise DeadEnd
        llama.llama_sampler_accept(self._chain, token)
        if not self._vocab.ends(token):
            llama.llama_sampler_accept(self._grammar, token)
        return token

    def forced(self, token: int) -> None:
        """A token that was not chosen, but put there."""
        llama.llama_sampler_accept(self._chain, token)


class _Candidates:
    """llama.cpp's array of candidates, one for each token of the vocabulary: {int32 id, float logit, float p}."""

    def __init__(self, n_vocab: int) -> None:
        self._n = n_vocab
        self._data = (llama.llama_token_data * n_vocab)()
        plain = memoryview(self._data).cast("B")
        self._ids, self._logits = plain.cast("i"), plain.cast("f")
        self._numbers = array("i", range(n_vocab))
        self._array = llama.llama_token_data_array()

    def fill(self, context: Any) -> None:
        """With the logits of the last token."""
        address = ctypes.cast(llama.llama_get_logits_ith(context, -1), ctypes.c_void_p).value
        assert address
        logits = memoryview((ctypes.c_float * self._n).from_address(address)).cast("B").cast("f")
        self._ids[0::3] = memoryview(self._numbers)  # samplers sort and cut the array
        self._logits[1::3] = logits
        self._array.data = self._data
        self._array.size, self._array.selected, self._array.sorted = self._n, -1, False

    def likeliest(self, context: Any) -> int:
        self.fill(context)
        return max(range(self._n), key=self._logits[1::3].tolist().__getitem__)

    def apply(self, sampler: Any) -> None:
        llama.llama_sampler_apply(sampler, ctypes.byref(self._array))

    def chosen_by(self, chain: Any) -> int:
        self.apply(chain)
        return int(self._array.data[self._array.selected].id)

    def allowed(self, grammar: Any, token: int) -> bool:
        """Whether the grammar takes this token next."""
        one = (llama.llama_token_data * 1)(llama.llama_token_data(token, 1.0, 0.0))
        single = llama.llama_token_data_array()
        single.data, single.size, single.selected, single.sorted = one, 1, -1, False
        llama.llama_sampler_apply(grammar, ctypes.byref(single))
        return not math.isinf(one[0].logit)
