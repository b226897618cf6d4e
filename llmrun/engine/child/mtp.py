"""A model's own head that guesses the token after the next one (multi-token prediction). Child process only.

    the model computes tokens ──► hidden state behind each ──► with the next token, through the head ──► its guess
                                                                        ▲                                   │
                                                                        └────── its own hidden state ◄──────┘

The head is one more layer behind the last (DeepSeek-V3, arXiv:2412.19437, section 2.2); llama.cpp has a context of its
own for it. That asks for functions of llama.cpp that are not in its C header yet (`llama-ext.h`): a build without them
is refused.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from llmrun.engine.child.kv_context import KVContext, common_prefix
from llmrun.engine.child.native import llama
from llmrun.engine.protocol import RequestFailed

_SYMBOLS = {
    "_Z26llama_set_embeddings_nextnP13llama_contextbb": ([ctypes.c_void_p, ctypes.c_bool, ctypes.c_bool], None),
    "_Z26llama_get_embeddings_nextnP13llama_context": ([ctypes.c_void_p], ctypes.c_void_p),
    "_Z30llama_get_embeddings_nextn_ithP13llama_contexti": ([ctypes.c_void_p, ctypes.c_int32], ctypes.c_void_p),
}
_DECODE = 1  # enum llama_process_type


def functions() -> tuple[Any, Any, Any]:
    """To have hidden states kept, for all tokens of a batch, for one of them. Raises `RequestFailed`."""
    found = []
    for name, (arguments, result) in _SYMBOLS.items():
        function = getattr(llama._lib, name, None)
        if function is None:
            raise RequestFailed("usage", f"this build of llama.cpp has no {name}, which its heads need", field="draft")
        function.argtypes, function.restype = arguments, result
        found.append(function)
    return found[0], found[1], found[2]


class Head:
    """Tell it what was `computed`; it guesses what follows.

    Attributes:
        kv: its context.
    """

    def __init__(self, model: Any, kv: KVContext, most: int) -> None:
        """`most`: tokens that are ever guessed at once."""
        self._keep, self._all, self._one = functions()
        self.kv = kv
        self._n_embd: int = llama.llama_model_n_embd_out(model)
        self._n_vocab: int = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self.most = most if llama.llama_model_n_layer_nextn(model) == 1 else 1  # each head is for a token of its own
        self._made_for: Any = None
        self._batch: Any = None
        self._tokens: list[int] = []  # in its context
        self._state: Any = None  # behind the last of them
        self._states: Any = ()  # of those that were computed last

    def watch(self, context: Any) -> None:
        """Have a context of the model keep its hidden states."""
        self._keep(context, True, False)

    def close(self) -> None:
        if self._batch is not None:
            llama.llama_batch_ext_free(self._batch)
        self._batch = self._made_for = None
        self._tokens = []
        self.kv.close()

    def begin(self, tokens: Sequence[int]) -> None:
        """The model holds these tokens: what is known of them is kept."""
        n = common_prefix(self._tokens, tokens)
        if n < len(self._tokens):
            self._cut(n)

    def computed(self, context: Any, tokens: Sequence[int], n_before: int) -> None:
        """`context` has just computed these tokens behind so many others."""
        import numpy as np

        address = self._all(context)
        if not address or not tokens or not self._has_room(n_before + len(tokens)):
            return
        pointer = (ctypes.c_float * (len(tokens) * self._n_embd)).from_address(address)
        states = np.frombuffer(memoryview(pointer), np.float32).reshape(len(tokens), self._n_embd).copy()
        if n_before < len(self._tokens):
            self._cut(n_before)
        if len(self._tokens) < n_before:  # what is there without having been computed here is unknown: begin anew
            self._cut(0)
            self._tokens = []
        first = self._state if self._state is not None and self._tokens else np.zeros(self._n_embd, np.float32)
        behind = np.concatenate([first[None], states[:-1]])
        if self._process([*tokens], behind, n_before, wanted=False):
            held = self._tokens if len(self._tokens) == n_before else [-1] * n_before
            self._tokens = [*held, *tokens]
            self._states, self._state = states, states[-1]
        else:
            self._cut(0)

    def accept(self, n: int) -> None:
        """Of the tokens that were computed last, so many stand."""
        n_gone = len(self._states) - n
        if n_gone > 0:
            self._cut(len(self._tokens) - n_gone)
            self._state = self._states[n - 1]

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """How a text goes on; its last token is not computed yet."""
        import numpy as np

        n, found = len(tokens) - 1, list[int]()
        if self._state is None or len(self._tokens) != n or not self._has_room(n + most + 1):
            return found
        state, last = self._state, tokens[-1]
        context = self.kv.context
        for i in range(min(most, self.most)):
            if not self._process([last], state[None], n + i, wanted=True):
                break
            logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, 0), (self._n_vocab,))
            last = int(logits.argmax())
            found.append(last)
            address = self._one(context, 0)
            if not address:
                break
            state = np.frombuffer(memoryview((ctypes.c_float * self._n_embd).from_address(address)), np.float32).copy()
        self.kv.remove(0, n)
        return found

    def _cut(self, n: int) -> None:
        if self.kv.context is not None and not self.kv.remove(0, n if n else -1):
            self.kv.remove(0, -1)
            n = 0
        self._tokens, self._state = self._tokens[:n], None

    def _has_room(self, n_tokens: int) -> bool:
        """Its content is lost where it has to grow: what it is good for is small beside copying it."""
        if self.kv.context is None or self.kv.n_ctx < n_tokens:
            if self._batch is not None:
                llama.llama_batch_ext_free(self._batch)
            self._batch = self._made_for = None
            if self.kv.reserve(2 * n_tokens) is None:
                return False
            self._tokens, self._state = [], None
        if self._made_for is not self.kv.context:
            self._made_for = self.kv.context
            self._keep(self._made_for, True, True)
            self._batch = llama.llama_batch_ext_init(self._made_for)
        return self.kv.n_ctx >= n_tokens

    def _process(self, tokens: list[int], states: Any, position: int, *, wanted: bool) -> bool:
        """Compute tokens with the hidden states behind the ones before them."""
        batch = self._batch
        llama.llama_batch_ext_clear(batch)
        for i, token in enumerate(tokens):
            row = states[i].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            index = llama.llama_batch_ext_add_token(batch, 0, token)
            if index < 0:
                return False
            at = (llama.llama_pos * 4)(position + i, 0, 0, 0)
            llama.llama_batch_ext_set_pos(batch, index, at)
            llama.llama_batch_ext_set_embd_token(batch, index, llama.llama_embd(row, 1, self._n_embd))
            llama.llama_batch_ext_set_output_logits(batch, index, wanted)
        return bool(llama.llama_process(self._made_for, _DECODE, batch) == 0)
