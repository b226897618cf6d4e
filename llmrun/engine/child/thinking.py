"""A reasoning model's thinking in one answer: its budget, and what has to stand between it and the answer.

Child process only. Some tokens are not left to the model: those that end the thinking when its budget is spent, and,
under a grammar, the heading before the answer, of which the grammar knows nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from llmrun.engine.child.reasoning import Splitter, Tags
from llmrun.engine.child.special_tokens import Vocabulary


def way_out(tags: Tags) -> str:
    """The text that ends the thinking and begins the answer."""
    return f"{tags.close}{tags.answer}" if tags.answer else f"\n{tags.close}\n\n"


class Thinking:
    """The thinking of one answer. `update` it with every token.

    Attributes:
        splitter: where the text stands: in the thinking, in the answer, or at the beginning of either.
        forced: tokens that come next, whatever the model would say.
        n_tokens: tokens of thinking so far, those of its tags included.
    """

    def __init__(self, tags: Tags, vocab: Vocabulary, *, is_open: bool, budget: int | None) -> None:
        """`is_open`: the prompt has opened it. `budget`: the most tokens of thinking; None: no limit."""
        self.splitter = Splitter(tags, inside=is_open)
        self.forced: deque[int] = deque()
        self.n_tokens = 0
        self._tags, self._vocab, self._budget = tags, vocab, budget
        self._tag_text = tags.open + tags.close + tags.answer + tags.direct + tags.end
        self._has_grammar, self._way_on, self._way_out = False, tags.answer, way_out(tags)

    def piece(self, token: int) -> bytes:
        """The token's text. Control tokens have none, except where a tag is made of them."""
        piece = self._vocab.piece(token)
        if piece:
            return piece
        written = self._vocab.text_of(token, special=True)
        return written if written and written.decode(errors="replace") in self._tag_text else piece

    def constrain(self, argmax: Callable[[], int], *, answer_begun: bool, heads: bool = True) -> None:
        """The answer is under a grammar, the thinking is not: it may still come first, if the model wants to think.

        `argmax` gives the token that the model would begin with. `answer_begun`: the prompt ends with the heading of
        the answer or with its first words, so that no thinking can come. `heads`: an answer has its heading; calls have
        none, only what every turn begins with.
        """
        self._has_grammar, tags = True, self._tags
        if not heads and tags.answer:
            self._way_on = tags.answer.removesuffix(tags.direct) if tags.direct else ""
            self._way_out = tags.close + self._way_on
        if answer_begun or self.splitter.inside:
            return
        if self._budget != 0 and self._may_open_with(argmax()):
            self._force(tags.open)  # whole: harmony's calls and answers begin with its first token as well
        elif heads:
            self._force(tags.direct)

    @property
    def is_constrained(self) -> bool:
        """Whether the grammar binds the next token."""
        return self._has_grammar and not self.splitter.inside

    def update(self, *, was_inside: bool) -> None:
        """Take note of a token: whether the thinking went on before it."""
        inside = self.splitter.inside
        if was_inside and not inside and self._has_grammar and not self.forced:
            self._force(self._way_on)
        if was_inside or inside:
            self.n_tokens += 1
        if inside and not self.forced and self._budget in (0, self.n_tokens):
            self._force(self._way_out)

    def _may_open_with(self, token: int) -> bool:
        """Whether an answer that begins with this token begins with thinking."""
        written = self._vocab.text_of(token, special=True).decode(errors="replace").strip()
        is_control = not self._vocab.piece(token)
        return bool(written) and (written == self._tags.open or (is_control and self._tags.open.startswith(written)))

    def _force(self, text: str) -> None:
        if text:
            self.forced.extend(self._vocab.tokenize(text, add_special=False))
