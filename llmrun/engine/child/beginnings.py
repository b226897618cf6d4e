"""What prompts begin with, computed once: found in other sequences, in what was kept of them, and on disk.

    a prompt ──► held by another sequence, kept here ──► put into its own
             ──► being computed for another answer   ──► waited for
             ──► on disk                             ──► read

Child process only. Where a content can't be cut (recurrent states, windows that have moved), copies are kept at the
tokens where prompts part.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmrun.engine.child.kv_context import KVContext, KVSequence, Snapshot, common_prefix
from llmrun.engine.child.slot import Slot

if TYPE_CHECKING:
    from llmrun.engine.child.kept_prefixes import KeptPrefixes
    from llmrun.engine.protocol import PrefixStore

_LEAST = 32
"""So many tokens must be saved for the state of another sequence to be copied."""
_MOST_BYTES = 1 << 29
"""Of all copies."""


class Beginnings:
    """Those that the sequences of one context hold, and have held.

    Attributes:
        kv: the context; `forget` when it is another one.
    """

    def __init__(self, kv: KVContext, store: PrefixStore | None) -> None:
        self.kv = kv
        self._snapshots: list[Snapshot] = []  # the one that was used last at the end
        self._prompt_token_s = 0.0  # what a token of the last long prompt took
        self._due: dict[int, list[int]] = {}  # what sequences held, and is to be kept on disk
        self._on_disk: KeptPrefixes | None = None
        if store is not None:
            from llmrun.engine.child.kept_prefixes import KeptPrefixes

            self._on_disk = KeptPrefixes(store)

    def forget(self, kv: KVContext) -> None:
        """Nothing is held any more: this context begins empty."""
        self.kv = kv
        self._snapshots.clear()
        self._due.clear()

    def wait(self, timeout_s: float) -> bool:
        """Until all that is to be kept on disk is there; False where it was not in that time."""
        disk, end = self._on_disk, time.monotonic() + timeout_s
        while disk is not None and disk.wait(max(0.0, end - time.monotonic())):
            if not self._due:
                return True
            self.write_due(then_cut=True)
        return disk is None

    def prompt_took(self, n_tokens: int, seconds: float) -> None:
        if n_tokens >= _LEAST:
            self._prompt_token_s = seconds / n_tokens

    def find(self, slot: Slot, live: Sequence[Slot]) -> bool:
        """Whether more of its prompt than its own sequence holds is known, or will be soon: then it is put there, or
        waited for."""
        tokens, own = slot.prompt, slot.sequence.n_reusable(slot.prompt)
        if not self.kv.rolls_back and own < len(slot.sequence.tokens):
            own = 0  # unless a window reaches back so far
        if len(self.kv.sequences) == 1 and self.kv.rolls_back:
            return False
        least = own + _LEAST
        kept = max(self._snapshots, key=lambda each: _n_known(each.tokens, tokens), default=None)
        n_kept = _n_known(kept.tokens, tokens) if kept else 0
        others = [(min(common_prefix(each.prompt, tokens), len(tokens) - 1), each) for each in live if each.n_left]
        n_soon, other = max(others, key=lambda way: way[0], default=(0, None))
        if other is not None and n_soon >= max(least, n_kept + _LEAST) and n_soon > other.n_done:
            slot.waits_for = other, n_soon
            other.cuts.add(n_soon)
            return True
        if kept is not None and n_kept >= least:
            self._snapshots.remove(kept)
            self._snapshots.append(kept)
            return slot.sequence.restore(kept)
        n_held, holder = max(((each.n_reusable(tokens), each) for each in self.kv.sequences), key=lambda way: way[0])
        if n_held < least:
            return False
        if not self.kv.rolls_back and n_held < len(holder.tokens):
            slot.cuts.add(n_held)  # it can't be had from there; those that come will want it as well
            return False
        if not slot.sequence.take_over(holder):
            return False
        slot.sequence.reuse_prefix(tokens)
        self.keep(slot.sequence, n_held, n_held * self._prompt_token_s)
        return True

    def is_ready(self, slot: Slot, live: Sequence[Slot]) -> bool:
        """Whether what a slot waits for is computed by now, or will not be; then it is put into its sequence."""
        assert slot.waits_for is not None
        other, n = slot.waits_for
        if other in live and (other.waits_for is not None or len(other.sequence.tokens) < n):
            return False
        slot.waits_for = None
        kept = next((each for each in reversed(self._snapshots) if _n_known(each.tokens, slot.prompt) == n), None)
        if kept is not None:
            slot.sequence.restore(kept)
        elif self.kv.rolls_back:
            slot.sequence.take_over(other.sequence)
        slot.sequence.reuse_prefix(slot.prompt)
        return True

    def read(self, slot: Slot) -> None:
        """Take from the disk what is kept there of its prompt."""
        if note := self.read_into(slot.sequence, slot.prompt):
            slot.notes.append(note)
        if self._on_disk is not None and len(slot.prompt) - len(slot.sequence.tokens) > _LEAST:
            # Alone, as it will be the next time, when the others come from the disk: the same text comes of it then.
            slot.last_alone = True
            if not self.kv.rolls_back:
                slot.cuts.add(len(slot.prompt) - 1)  # what is behind can't be taken back

    def read_into(self, sequence: KVSequence, prompt: Sequence[int]) -> str | None:
        """As `read`; what a user should be told of it."""
        if self._on_disk is None:
            return None
        return self._on_disk.read_into(sequence, prompt, rolls_back=self.kv.rolls_back)

    def keep(self, sequence: KVSequence, n_tokens: int, seconds: float) -> None:
        """Remember what a sequence holds, for others; on disk too, where these tokens of it took that long."""
        snapshot = sequence.snapshot()
        if snapshot is not None and len(snapshot.state) <= _MOST_BYTES:
            self._snapshots.append(snapshot)
            while sum(len(each.state) for each in self._snapshots) > _MOST_BYTES:
                del self._snapshots[0]
        self.write(sequence, n_tokens, seconds)

    def write(self, sequence: KVSequence, n_tokens: int, seconds: float) -> None:
        """Keep on disk what a sequence holds, where the tokens that were computed for it took that long."""
        if (disk := self._disk_for(sequence, n_tokens, seconds)) and (snapshot := sequence.snapshot()) is not None:
            disk.write(snapshot.tokens, snapshot)

    def write_later(self, sequence: KVSequence, n_tokens: int, seconds: float) -> None:
        """The same of all but the last token, once there is time: `write_due`. To copy and to sum up 1,000 tokens of a
        0.6 B takes as long as six tokens of an answer, which would wait for it. Where a content can't be cut, it has
        to be kept as it is."""
        if self._disk_for(sequence, n_tokens, seconds):
            self._due[sequence.id] = sequence.tokens[:-1]

    @property
    def has_due(self) -> bool:
        return bool(self._due)

    def write_due(self, *, then_cut: bool = False) -> None:
        """One of them, if its sequence still holds it, and none is being written. What follows is cut off, as a context
        may be shorter the next time, and then put back; `then_cut`: it is not, as it is not expected to be wanted."""
        assert self._on_disk is not None
        if self._on_disk.is_writing:
            return
        number, tokens = self._due.popitem()
        sequence = next((each for each in self.kv.sequences if each.id == number), None)
        if sequence is None or sequence.tokens[: len(tokens)] != tokens:
            return
        whole, pending = None if then_cut else sequence.snapshot(), sequence.pending
        sequence.tokens, sequence.pending = list(tokens), []
        sequence.repair()
        if sequence.tokens and (snapshot := sequence.snapshot()) is not None:
            self._on_disk.write(tokens, snapshot)
        if whole is not None and sequence.restore(whole):
            sequence.pending = pending

    def _disk_for(self, sequence: KVSequence, n_tokens: int, seconds: float) -> KeptPrefixes | None:
        """Where to keep what a sequence holds, if that is worth it."""
        disk = self._on_disk
        return disk if disk and disk.is_worth_it(n_tokens, seconds, self.kv.n_state_bytes(sequence.id)) else None


def _n_known(known: list[int], tokens: list[int]) -> int:
    """How many tokens of a prompt are known where these are: all of them, or none."""
    n = len(known)
    return n if n < len(tokens) and known == tokens[:n] else 0
