"""How much of a prompt is computed between two tokens of the answers beside it. Pure."""

from __future__ import annotations

SHARE, BEARABLE_S = 0.75, 0.4
"""A part of a prompt takes so many times as long as a step of the others. Steps become longer themselves while a long
prompt is computed, and some are disturbed: gaps stay below three times what they were before. But where as many wait as
are read, it may take as long as readers bear now and then: who waits for a first token waits for all of the parts and
the steps between. Four chats of 700 tokens with the share alone had theirs after 23 s, with 0.45 s after 4."""
_SOON_S, _STEPS = 2.0, 3.0
"""A prompt that takes no longer is computed in parts as long as readers bear, or as three steps take, however few wait.
In small ones it takes up to three times as long, with a step of all between each two: eight at once, lengths mixed, had
their first tokens after 8 s instead of 2."""
LEAST, _BEGIN = 4, 32.0
"""Tokens. Where few take as long each as many do (K-quants as they are in the file), sixteen take two steps."""
_OF = 8
"""Products are fastest with a multiple of so many columns."""
_NEW, _MOST_FIXED = 0.3, 64.0
"""How much the latest part changes what is known; and tokens that take as long as a part by itself, at most."""
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


class _Cost:
    """What a part of a prompt takes: so much for each token, and by itself as much as some tokens do.

    Attributes:
        token_s: of the latest parts, the last one most; 0.0: nothing is known.
    """

    def __init__(self) -> None:
        self.token_s = 0.0
        self._as_tokens: float | None = None
        self._last: tuple[int, float] | None = None

    @property
    def fixed_s(self) -> float:
        return (self._as_tokens or 0.0) * self.token_s

    def add(self, n: int, seconds: float) -> None:
        if self._last is not None and max(n, self._last[0]) >= 2 * min(n, self._last[0]):
            # By two in a row, as the machine may be another one a second later.
            slope = (seconds - self._last[1]) / (n - self._last[0])
            found = min(max(0.0, seconds / slope - n), _MOST_FIXED) if slope > 0 else _MOST_FIXED
            known = found if self._as_tokens is None else self._as_tokens
            self._as_tokens = known + _NEW * (found - known)
        self._last = n, seconds
        each_s = seconds / ((self._as_tokens or 0.0) + n)
        if self.token_s:  # what disturbs one for a moment is not what they take
            each_s = self.token_s + _NEW * (min(each_s, 2 * self.token_s) - self.token_s)
        self.token_s = each_s

    def tokens_in(self, seconds: float) -> float:
        return max(0.0, seconds - self.fixed_s) / self.token_s


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
        self._cost = _Cost()
        self._n = min(_BEGIN, float(self._most))

    def step_took(self, seconds: float) -> None:
        """One token of each answer. A single slow one changes little, one that is faster is believed sooner."""
        known = self._step_s
        self._step_s = seconds if known is None else known + (seconds - known) * (0.1 if seconds > known else 0.3)

    def prompt_took(self, n_tokens: int, seconds: float) -> None:
        """So many tokens of one, while nobody watched."""
        if seconds > 0 and n_tokens >= LEAST:
            self._cost.add(n_tokens, seconds)

    def part_took(self, n_tokens: int, seconds: float) -> None:
        """A part of a prompt. Half as long or twice as long next time at most: what disturbs once is soon forgotten."""
        self.prompt_took(n_tokens, seconds)
        cost = self._cost
        if self._step_s and cost.token_s:
            wanted_s = max(SHARE * max(1.0, self.crowd) * self._step_s, BEARABLE_S * min(1.0, self.crowd))
            # Half of it for the tokens, at least, while gaps stay below three steps.
            wanted_s = max(wanted_s, min(2 * cost.fixed_s, 2 * SHARE * self._step_s, BEARABLE_S))
            self._n = min(max(cost.tokens_in(wanted_s), self._n / 2), 2 * self._n)
            self._n = min(max(self._n, LEAST), self._most)

    def part(self, n_left: int, n_all: int) -> int:
        """Tokens to compute next of a prompt that has so many left, of so many that were to be computed: as many as
        take what readers bear now and then, where all of it is over soon, or at the end. Fewer steps of a part of the
        answers lie between, which take as long as those of all."""
        cost = self._cost
        if not cost.token_s:
            return min(self.n_tokens, n_left)
        is_soon = n_all * cost.token_s < _SOON_S
        bearable = cost.tokens_in(max(BEARABLE_S, _STEPS * (self._step_s or 0.0) if is_soon else 0.0))
        if n_left < bearable:
            return min(n_left, self._most)
        return max(self.n_tokens, self._rounded(bearable)) if is_soon else self.n_tokens

    @property
    def n_tokens(self) -> int:
        return self._rounded(self._n)

    def _rounded(self, n: float) -> int:
        return min(self._most, max(LEAST, int(n) // _OF * _OF if n > _OF else int(n)))
