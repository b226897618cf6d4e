"""Beginnings of prompts on disk: read before a prompt is computed, written beside what is computed. Child process only.

Imported only where they are kept: what sums are made with takes longer to import than a short answer.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from llmrun.engine import prefixes
from llmrun.engine.child.kv_context import KVSequence, Snapshot
from llmrun.engine.prefixes import LEAST_TOKENS, Damaged
from llmrun.engine.protocol import PrefixStore

_READ_BYTES_PER_S = 400e6
"""What is assumed of a disk, with sum and copies: slower than any of the last ten years that is not a card."""
_WORTH = 4
"""Computing has to take so many times as long as reading."""
_MOST_WAITING = 2


def is_worth_it(n_tokens: int, seconds: float, n_bytes: int, least_s: float) -> bool:
    """Whether tokens that took so long to compute are to be kept in so many bytes; with `least_s` 0 whatever it was."""
    reads_s = _WORTH * n_bytes / _READ_BYTES_PER_S if least_s else 0.0
    return n_tokens >= LEAST_TOKENS and seconds >= max(least_s, reads_s)


class KeptPrefixes:
    """Those of one model. What is written, is written by one thread, as long as there is something."""

    def __init__(self, store: PrefixStore) -> None:
        self._store = store
        self._waiting: deque[tuple[Sequence[int], memoryview]] = deque()
        self._changed = threading.Condition()
        self._is_writing = False

    def read_into(self, sequence: KVSequence, prompt: Sequence[int], *, rolls_back: bool) -> str | None:
        """Have a sequence hold what is kept of a prompt, if that is much more than it holds; what a user should be told
        of it."""
        if len(prompt) <= LEAST_TOKENS:
            return None
        path = prefixes.longest(self._store, prompt, len(sequence.tokens) + LEAST_TOKENS)
        if path is None:
            return None
        try:
            kept = prefixes.read(self._store, path, prompt)
            state = (ctypes.c_uint8 * kept.n_bytes).from_buffer(kept.data, kept.offset)
            problem = None if sequence.restore(Snapshot(kept.tokens, state)) else "llama.cpp does not take it"
        except OSError:
            return None  # it is gone, or can't be read: the prompt is computed
        except Damaged as error:
            problem = str(error)
        if problem is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return f"what was kept of a prompt is damaged, and removed: {problem}"
        if rolls_back:
            sequence.repair()  # the last token of that prompt may be among it
        return None

    def is_worth_it(self, n_tokens: int, seconds: float, n_bytes: int) -> bool:
        return is_worth_it(n_tokens, seconds, n_bytes, self._store.least_s)

    @property
    def is_writing(self) -> bool:
        return self._is_writing

    def write(self, tokens: Sequence[int], snapshot: Snapshot) -> None:
        """Soon. Dropped where the disk is too slow for so many."""
        with self._changed:
            if len(self._waiting) < _MOST_WAITING:
                self._waiting.append((tokens, memoryview(snapshot.state).cast("B")))
                if not self._is_writing:
                    self._is_writing = True
                    threading.Thread(target=self._run, daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        """Until all is written; False where it was not in that time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_writing, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._is_writing = False
                    self._changed.notify_all()
                    return
                tokens, state = self._waiting.popleft()
            with suppress(OSError):  # it is only about the next time
                prefixes.write(self._store, tokens, state)
