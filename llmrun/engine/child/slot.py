"""One answer while it is made, and which of several are computed together. Child process only.

Pure but for what its parts hold: no call of llama.cpp is here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from llmrun.engine import protocol
from llmrun.engine.child.inbox import Request
from llmrun.engine.child.kv_context import KVSequence, Snapshot
from llmrun.engine.child.pace import in_tiles

if TYPE_CHECKING:
    from llmrun.engine.child import sampler
    from llmrun.engine.child.choice_weights import ChoiceWeights
    from llmrun.engine.child.constraint import Making
    from llmrun.engine.child.draft import Drafts
    from llmrun.engine.child.generate import GenerationState
    from llmrun.engine.child.thinking import Thinking

_SMALL_PROMPT = 32
"""Tokens: prompts that are shorter are computed together, whatever their lengths."""


class Slot:
    """One answer, from its request to its end.

    Attributes:
        number: of the request.
        sequence: of the context, which it has alone.
        prompt: its tokens, and `n_done` of them that are computed or were known.
        state: the answer.
        token: the last one, which is not computed yet; None while there is none.
        cuts: numbers of its tokens at which others wait for what is computed.
        last_alone: the last token of the prompt is computed by itself.
        weights: of its choices; `n_before`: tokens before the first one's, and `before`, what the sequence held then,
            where it can't be cut.
        waits_for: the slot whose prompt begins as this one does, and with how many tokens.
    """

    def __init__(self, request: Request, message: protocol.Generate, sequence: KVSequence, prompt: list[int]) -> None:
        self.number, self.request, self.message = request.number, request, message
        self.sequence, self.prompt = sequence, prompt
        self.n_done = self.n_cached = 0
        self.token: int | None = None
        self.cuts: set[int] = set()
        self.last_alone = False
        self.waits_for: tuple[Slot, int] | None = None
        self.served_s = self.begin_s = 0.0
        self.source: sampler.Sampler
        self.state: GenerationState
        self.thinking: Thinking | None = None
        self.making: Making | None = None
        self.notes: list[str] = []
        self.drafts: Drafts | None = None
        self.weights: ChoiceWeights | None = None
        self.n_before = 0
        self.before: Snapshot | None = None

    @property
    def is_bulk(self) -> bool:
        return self.message.options.bulk

    @property
    def is_patient(self) -> bool:
        """Whether whole prompts of others may hold it up."""
        return self.message.options.bulk or self.message.options.patient

    @property
    def is_to_be_weighed(self) -> bool:
        """The answer is there, and its choices are not all looked into."""
        return self.token is None and not self.n_left and self.weights is not None

    @property
    def n_left(self) -> int:
        """Tokens of the prompt that are to be computed."""
        return len(self.prompt) - self.n_done

    def next_part(self, n: int, n_ubatch: int, *, tiles: bool, but_the_last: bool = False) -> list[int]:
        """Of the prompt, what comes next: about so many tokens, and none behind what others wait for. `tiles`: as
        `pace.in_tiles` has them; `but_the_last`: that one stays."""
        last = len(self.prompt) - ((self.last_alone or but_the_last) and self.n_left > 1)
        end = min([last, *(cut for cut in self.cuts if cut > self.n_done)])
        n_left = end - self.n_done
        n = in_tiles(n, n_left, self.n_done, n_ubatch) if tiles else min(n, n_left)
        return self.prompt[self.n_done : self.n_done + n]


def together(
    first: Slot, waiting: Iterable[Slot], limit: int, n_ubatch: int, *, tiles: bool
) -> list[tuple[Slot, list[int]]]:
    """What is computed at once of prompts, by slot: all in one micro-batch, or `first` alone.

    llama.cpp computes sequences together only as far as they are of one length, and if they are neighbours.
    """
    part = first.next_part(limit, n_ubatch, tiles=tiles)
    parts, n = [(first, part)], len(part)
    at = first.sequence.id
    for slot in sorted(waiting, key=lambda slot: slot.sequence.id):
        if slot.sequence.id != at + 1 or (len(parts) + 1) * n > min(limit, n_ubatch):
            continue
        other = slot.next_part(n, n_ubatch, tiles=False)
        if len(other) < n or (slot.n_left > n and n > _SMALL_PROMPT):
            continue
        parts.append((slot, other))
        at = slot.sequence.id
    return parts


def is_apart(ids: Iterable[int]) -> bool:
    """Whether there are others between these."""
    ids = [*ids]
    return max(ids) - min(ids) >= len(ids)
