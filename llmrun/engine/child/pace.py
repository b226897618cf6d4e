"""How much of a prompt is computed between two tokens of the answers beside it. Pure."""

from __future__ import annotations

SHARE, BEARABLE_S = 0.75, 0.4
"""A part of a prompt takes so many times as long as a step of the others. Steps become longer themselves while a long
prompt is computed, and some are disturbed: gaps stay below three times what they were before. But where as many wait as
are read, it may take as long as readers bear now and then: who waits for a first token waits for all of the parts and
the steps between. Four chats of 700 tokens with the share alone had theirs after 23 s, with 0.45 s after 4."""
_SOON = 3
"""Parts of such a length: a prompt that is over within so many is computed by them. In small ones it takes up to three
times as long, and every step between them as well."""
LEAST, _BEGIN = 4, 32.0
"""Tokens. Where few take as long each as many do (K-quants as they are in the file), sixteen take two steps."""
_OF = 8
"""Products are fastest with a multiple of so many columns."""
TILE, DEEP = 64, 512
"""ggml's flash attention takes so many tokens at once through the keys (ops.cpp, `GGML_FA_TILE_Q`), and fewer one by
one: behind 3,300 tokens 63 take three times as long as 64. With few tokens before them there is no difference."""


def in_tiles(n: int, n_left: int, n_before: int, n_ubatch: int) -> int:
    """How many tokens to compute next, where about `n` of those that are left are wanted: whole tiles, none of which is
    left over at the end of a micro-batch or of the prompt. At most 127 where fewer are wanted."""
    n = min(n, n_left)
    if n_before + n < DEEP or n_left < TILE:
        return n
    if n < n_left:
        n = max(TILE, n // TILE * TILE)
        if 0 < n_left - n < TILE:
            n = n_left - TILE if n_left >= 2 * TILE else n_left
    if n > n_ubatch and 0 < (rest := n % n_ubatch) < TILE:
        n -= rest if n < n_left else TILE
    return n


class Pace:
    """Tell it what took how long; it tells how many tokens are to be computed next.

    Attributes:
        crowd: prompts that wait for each answer that is being made. Where more wait than are made, a part may take so
            many times as long: what delays one answer serves several. Sixteen who come at once else wait for each other
            longer than if they were answered one by one.
    """

    def __init__(self, most: int) -> None:
        """`most`: tokens that are ever computed at once."""
        self._most = max(LEAST, most)
        self.crowd = 0.0
        self._step_s: float | None = None
        self._token_s: float | None = None
        self._of_tokens = 0  # of the part that this is known of
        self._n = min(_BEGIN, float(self._most))

    def step_took(self, seconds: float) -> None:
        """One token of each answer. A single slow one changes little, one that is faster is believed sooner."""
        known = self._step_s
        self._step_s = seconds if known is None else known + (seconds - known) * (0.1 if seconds > known else 0.3)

    def prompt_took(self, n_tokens: int, seconds: float) -> None:
        """So many tokens of one. A small part does not tell what those of a large one take."""
        if seconds > 0 and n_tokens >= LEAST:
            token_s = seconds / n_tokens
            if self._token_s is None or token_s < self._token_s or 2 * n_tokens >= self._of_tokens:
                self._token_s, self._of_tokens = token_s, n_tokens

    def part_took(self, n_tokens: int, seconds: float) -> None:
        """A part of a prompt. Half as long or twice as long next time at most: what disturbs once is soon forgotten."""
        self.prompt_took(n_tokens, seconds)
        if self._step_s and seconds > 0 and n_tokens >= LEAST:
            wanted_s = max(SHARE * max(1.0, self.crowd) * self._step_s, BEARABLE_S * min(1.0, self.crowd))
            fixed_s, token_s = self._cost(n_tokens, seconds)
            even = min(fixed_s, BEARABLE_S - fixed_s) / token_s  # as many as take what a part takes by itself
            wanted = max((wanted_s - fixed_s) / token_s, even)
            self._n = min(max(wanted, self._n / 2), 2 * self._n)
            self._n = min(max(self._n, LEAST), self._most)

    def _cost(self, n_tokens: int, seconds: float) -> tuple[float, float]:
        """What a part takes however small it is, and each token of it, by this one and one that is twice as large; else
        each token takes its share."""
        more = self._of_tokens
        token_s = ((self._token_s or 0.0) * more - seconds) / (more - n_tokens) if more >= 2 * n_tokens else 0.0
        share = seconds / n_tokens
        token_s = min(share, max(token_s, share / _OF)) if token_s > 0 else share
        return seconds - n_tokens * token_s, token_s

    def part(self, n_left: int) -> int:
        """Tokens to compute next of a prompt that has so many left: as many as take what readers bear now and then,
        where it is over soon by that. Fewer steps of a part of the answers lie between, which take as long as those of
        all."""
        if self._token_s is None or n_left * self._token_s >= _SOON * BEARABLE_S:
            return self.n_tokens
        bearable = BEARABLE_S / self._token_s
        return min(n_left if n_left < bearable else max(self.n_tokens, self._rounded(bearable)), self._most)

    @property
    def n_tokens(self) -> int:
        return self._rounded(self._n)

    def _rounded(self, n: float) -> int:
        return min(self._most, int(n) // _OF * _OF if n > _OF else int(n))
