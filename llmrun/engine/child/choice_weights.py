"""How likely each of several texts is to be the answer. Child process only.

    the grammar of the choices ──► tokens that may come next ──► softmax of their logits ──┬─► one choice is left: it
                                                                                          │   gets all of that
                                                                                          └─► several: looked into

What a model gives a choice is what sampling under its grammar gives at temperature 1, before all other options: at each
token the share of that token among those that are allowed. A choice can be written in several ways ("yes", "y" + "es"):
their sum is what counts. Where a token leaves one choice alone nothing more has to be computed, so words that begin
differently cost nothing. The others are looked into, the likeliest first, until little is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmrun.engine.child.constraint import Constraint

_LEFT = 1e-3
"""Of all: so little need not be looked into. It is shared as what is known is."""
_MOST_NODES = 1024
"""Computations of a token for one answer: words that begin alike for hundreds of tokens."""
_NEGLIGIBLE = 1e-6


@dataclass
class Node:
    """A beginning that several choices have in common.

    Attributes:
        probability: of the beginning.
        tokens: that it is made of, and `text`, what they say.
        choices: numbers of those that go on so.
    """

    probability: float
    tokens: list[int]
    text: bytes
    choices: list[int]
    constraint: Constraint


class ChoiceWeights:
    """Ask for the `next` node, compute its tokens, and `look` at the logits behind them; the first one has none."""

    def __init__(
        self,
        choices: Sequence[str],
        constraint: Constraint,
        piece: Callable[[int], bytes],
        is_end: Callable[[int], bool],
    ) -> None:
        """`constraint`: of these choices, at its beginning."""
        self._texts = [choice.encode() for choice in choices]
        self._piece, self._is_end = piece, is_end
        self._known = [0.0] * len(choices)
        self._open = [Node(1.0, [], b"", [*range(len(choices))], constraint)]
        self._n_nodes = 0

    @property
    def is_new(self) -> bool:
        """Nothing was looked at yet."""
        return self._n_nodes == 0

    def next(self) -> Node | None:
        """The likeliest that is still to be looked into; None where what is left is little."""
        left = sum(node.probability for node in self._open)
        if not self._open or left < _LEFT or self._n_nodes >= _MOST_NODES:
            return None
        return max(self._open, key=lambda node: node.probability)

    def look(self, node: Node, logits: Any) -> None:
        """`logits`: of all tokens behind those of the node, a numpy array."""
        import numpy as np

        self._open.remove(node)
        self._n_nodes += 1
        ids = node.constraint.allowed()
        if not len(ids):
            return
        values = logits[ids].astype(np.float64)
        values = np.exp(values - values.max())
        for token, share in zip(ids.tolist(), (values / values.sum()).tolist(), strict=True):
            if (probability := node.probability * share) > _NEGLIGIBLE:
                self._follow(node, token, probability)

    def _follow(self, node: Node, token: int, probability: float) -> None:
        if self._is_end(token):
            ended = [i for i in node.choices if self._texts[i] == node.text]
            for i in ended:
                self._known[i] += probability
            return
        text = node.text + self._piece(token)
        choices = [i for i in node.choices if self._texts[i].startswith(text)]
        if len(choices) == 1:
            self._known[choices[0]] += probability
        elif choices:
            constraint = node.constraint.copy()
            constraint.accept(token)
            self._open.append(Node(probability, [*node.tokens, token], text, choices, constraint))

    def probabilities(self) -> list[float] | None:
        """Of the choices, in their order; their sum is 1. None: too little was looked into to tell."""
        found = list(self._known)
        if sum(node.probability for node in self._open) >= _LEFT:
            return None
        for node in self._open:
            among = sum(self._known[i] for i in node.choices)
            for i in node.choices:
                share = self._known[i] / among if among else 1 / len(node.choices)
                found[i] += node.probability * share
        total = sum(found)
        return [each / total for each in found] if total else None
