"""The grammar of an answer: which tokens may come next. Child process only.

What a grammar is compiled against, the vocabulary as llguidance wants it, takes 0.7 s for 150,000 tokens: it is made
beside the prefill, once per model.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

from llmrun.engine.child import native

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


class Constraint:
    """Where an answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher, n_tokens: int) -> None:
        self._matcher = matcher
        self._n_tokens = n_tokens
        self._mask = ctypes.create_string_buffer((n_tokens + 31) // 32 * 4)

    def allows(self, token: int) -> bool:
        return bool(self._matcher.validate_tokens([token]) == 1)

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    def allowed(self) -> Any:
        """Ids of all tokens that may come next, as a numpy array; none if the grammar turned out to be too much."""
        import numpy as np

        if self._matcher.is_error():
            return np.empty(0, np.int32)
        self._matcher.unsafe_compute_mask_ptr(ctypes.addressof(self._mask), len(self._mask))
        bits = np.unpackbits(np.frombuffer(memoryview(self._mask), np.uint8), count=self._n_tokens, bitorder="little")
        return np.flatnonzero(bits).astype(np.int32)


class ConstraintMaker:
    """Makes constraints for one vocabulary, each on a thread of its own: `begin`, and later `finish`."""

    def __init__(self, vocab: native.Vocab) -> None:
        self._vocab = vocab
        self._tokens: LLTokenizer | None = None
        self._thread: threading.Thread | None = None
        self._made: Constraint | Exception | None = None

    def begin(self, grammar: str) -> None:
        self.finish()
        self._thread = threading.Thread(target=self._make, args=(grammar,), daemon=True)
        self._thread.start()

    def finish(self) -> Constraint | Exception | None:
        """What `begin` was asked for, or why it can't be."""
        if self._thread is not None:
            self._thread.join()
        made, self._thread, self._made = self._made, None, None
        return made

    def _make(self, grammar: str) -> None:
        import numpy  # noqa: F401  # here, beside the prefill, and not before the first token

        from llmrun.engine import grammar as llguidance

        try:
            if self._tokens is None:
                self._tokens = llguidance.of_llama(*self._vocab.for_llguidance())
            self._made = Constraint(llguidance.compiled(grammar, self._tokens), self._vocab.n_tokens)
        except Exception as error:  # noqa: BLE001  # raised where it is asked for
            self._made = error
