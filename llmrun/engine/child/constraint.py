"""The grammar of an answer: which tokens may come next. Child process only.

What a grammar is compiled against, the vocabulary as llguidance wants it, takes 0.7 s for 150,000 tokens: it is made
beside the prefill, once per model.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import partial
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

    def copy(self) -> Constraint:
        """Another one that stands where this one does."""
        return Constraint(self._matcher.deep_copy(), self._n_tokens)

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


class Making:
    """A constraint that is being made on a thread of its own."""

    def __init__(self, make: Callable[[], Constraint]) -> None:
        self._make = make
        self._made: Constraint | Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self) -> Constraint | Exception:
        """What was asked for, or why it can't be."""
        self._thread.join()
        assert self._made is not None
        return self._made

    def _run(self) -> None:
        try:
            self._made = self._make()
        except Exception as error:  # noqa: BLE001  # raised where it is asked for
            self._made = error


class ConstraintMaker:
    """Makes constraints for one vocabulary."""

    def __init__(self, vocab: native.Vocab) -> None:
        self._vocab = vocab
        self._tokens: LLTokenizer | None = None
        self._making_tokens = threading.Lock()

    def begin(self, grammar: str) -> Making:
        return Making(partial(self._make, grammar))

    def _make(self, grammar: str) -> Constraint:
        import numpy  # noqa: F401  # here, beside the prefill, and not before the first token

        from llmrun.engine import grammar as llguidance

        with self._making_tokens:
            if self._tokens is None:
                self._tokens = llguidance.of_llama(*self._vocab.for_llguidance())
        return Constraint(llguidance.compiled(grammar, self._tokens), self._vocab.n_tokens)
