"""Tokens that are guessed ahead and computed with the next one, where that pays. Pure: no model.

Decoding reads all weights for one token, and for a few at once it takes little longer. A text that repeats something,
its prompt for one, is guessed by looking up where its last tokens were seen before (prompt look-up: Saxena 2023;
llama.cpp's `lookup`); any text by a smaller model (Leviathan et al. 2023, arXiv:2211.17192). A guess is right if the
sampler, asked as always, says the same: nothing changes in what is sampled, at any temperature. What is wrong is
computed in vain.

How many are guessed is decided by measurement alone: what steps of each size take here, and how many guesses were
right. What is looked up counts whether it is computed or not, since the text shows it: to learn that it fails costs
nothing. A model's guesses take time, so while they don't pay they are tried again more and more seldom.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

N_GRAMS = (6, 3, 2)
"""Lengths of the ends of a text that are looked up, the longest first."""
MOST = 15
"""Tokens that are guessed at once."""
_GAIN = 1.03
"""By so much a step with guesses must be better than one without, as figures are worth."""
_OPTIMISM = 0.06
"""What each token more is believed to add to a step of a size that was never seen, as a share of one token's."""
_NEGLIGIBLE = 0.02
"""A guess that is right so seldom is not looked at."""
_DECAY = 0.97
"""By how much less each earlier guess counts."""
_FORGOTTEN = 512
"""Steps."""
_PRIOR_RIGHT, _PRIOR_ALL = 0.5, 1.0
_TRIED_AGAIN, _LONGEST_PAUSE = 32, 512
"""Tokens without a model's guess, where they did not pay: twice as many each time."""
_TRIAL = 2
"""Tokens that are guessed then."""


class Lookup:
    """A text, and where its last tokens were seen before."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._tokens: list[int] = []
        self._seen: dict[tuple[int, ...], int] = {}  # the end of a text → where what followed begins, the last time
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """The text goes on."""
        tokens = self._tokens
        n = len(tokens)
        for length in N_GRAMS:
            if n >= length:
                self._seen[tuple(tokens[n - length :])] = n
        tokens.append(token)

    def guess(self, most: int) -> tuple[list[int], int]:
        """How it may go on, and how many tokens were found alike. A text that has begun to repeat itself goes on so."""
        tokens = self._tokens
        n = len(tokens)
        for length in N_GRAMS:
            at = self._seen.get(tuple(tokens[n - length :])) if n >= length else None
            if at is not None:
                period = n - at
                return [tokens[at + i % period] for i in range(most)], length
        return [], 0


class Drafts(Protocol):
    """Guesses for one answer. Ask `next` before a step; tell `took` and `add` after it.

    Attributes:
        n_drafted, n_accepted: tokens that were computed ahead, and those that were right.
    """

    n_drafted: int
    n_accepted: int

    def next(self, most: int) -> list[int]:
        """The tokens to compute behind the next one: none where that would not be faster. At most so many."""

    def took(self, n_tokens: int, seconds: float) -> None:
        """A step of so many tokens, the guesses among them, took so long to compute."""

    def add(self, token: int) -> None:
        """The text goes on, computed ahead or not."""


class LookupDrafts(Drafts):
    """By what the text repeats."""

    def __init__(self, prompt: Sequence[int], costs: StepCosts, most: int = MOST) -> None:
        self._text, self._costs, self._most = Lookup(prompt), costs, most
        self._right = dict.fromkeys(N_GRAMS, _PRIOR_RIGHT)
        self._all = dict.fromkeys(N_GRAMS, _PRIOR_ALL)
        self._open: tuple[list[int], int, int] | None = None  # a guess, how many alike, and how much of it came true
        self.n_drafted = self.n_accepted = 0

    def next(self, most: int) -> list[int]:
        guess, length = self._text.guess(min(self._most, most))
        if not guess:
            self._open = None
            return []
        if self._open is None:
            self._open = guess, length, 0
        n = self._costs.best(self._right[length] / self._all[length], len(guess))
        self.n_drafted += n
        return guess[:n]

    def took(self, n_tokens: int, seconds: float) -> None:
        self._costs.took(n_tokens, seconds)

    def add(self, token: int) -> None:
        self._text.add(token)
        if self._open is None:
            return
        guess, length, n = self._open
        is_right = guess[n] == token
        self._right[length] = _DECAY * self._right[length] + is_right
        self._all[length] = _DECAY * self._all[length] + 1
        self._open = (guess, length, n + 1) if is_right and n + 1 < len(guess) else None


class ModelDrafts(Drafts):
    """By another model, whose time counts as the step's."""

    def __init__(
        self,
        prompt: Sequence[int],
        costs: StepCosts,
        guess: Callable[[list[int], int], list[int]],
        *,
        read: Callable[[list[int]], None] = lambda _: None,
        most: int = MOST,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`guess` says how a text may go on, by at most so many tokens; `read` has it take in what it does not know of
        the text yet."""
        self._tokens, self._costs, self._most = list(prompt), costs, most
        self._guess, self._read, self._clock = guess, read, clock
        self._right, self._all = _PRIOR_RIGHT, _PRIOR_ALL
        self._open: list[int] = []  # of a guess, what can still come true
        self._guess_s = 0.0  # what guessing took, where it is no part of a step yet
        self._waited, self._pause = 0, _TRIED_AGAIN
        self.n_drafted = self.n_accepted = 0

    def next(self, most: int) -> list[int]:
        self._open = []
        most = min(self._most, most)
        n = self._costs.best(self._right / self._all, most)
        if n:
            self._pause = _TRIED_AGAIN
        elif self._waited >= self._pause:
            n, self._pause = min(_TRIAL, most), min(2 * self._pause, _LONGEST_PAUSE)
        else:
            self._waited += 1
        if n <= 0:
            return []
        self._waited = 0
        self._read(self._tokens)  # a whole prompt, the first time: no step's time
        begin_s = self._clock()
        self._open = guess = self._guess(self._tokens, n)
        self._guess_s += self._clock() - begin_s
        self.n_drafted += len(guess)
        return guess

    def took(self, n_tokens: int, seconds: float) -> None:
        if n_tokens > 1:
            seconds, self._guess_s = seconds + self._guess_s, 0.0
        self._costs.took(n_tokens, seconds)

    def add(self, token: int) -> None:
        self._tokens.append(token)
        if self._open:
            is_right = self._open[0] == token
            self._right = _DECAY * self._right + is_right
            self._all = _DECAY * self._all + 1
            self._open = self._open[1:] if is_right else []


class StepCosts:
    """What steps take, by how many tokens are computed in one."""

    def __init__(self) -> None:
        self._s: dict[int, float] = {}
        self._largest = 0
        self._when: dict[int, int] = {}
        self._n_steps = 0

    def took(self, n_tokens: int, seconds: float) -> None:
        """Slow ones may have been disturbed: they count less, and what was long ago is forgotten, to be tried again."""
        known = self._s.get(n_tokens)
        self._s[n_tokens] = seconds if known is None else known + (seconds - known) * (0.05 if seconds > known else 0.2)
        if known is None:
            self._largest = max(self._largest, n_tokens)
        self._n_steps += 1
        self._when[n_tokens] = self._n_steps
        if self._n_steps % _FORGOTTEN == 0:
            for n in [n for n, when in self._when.items() if n > 1 and self._n_steps - when > _FORGOTTEN]:
                del self._s[n], self._when[n]
            self._largest = max(self._s)

    def best(self, rate: float, most: int) -> int:
        """How many guesses are computed with a token, where each is right so often if those before it are.

        Of k guesses 1 + r + r² + … + r^k tokens come (Leviathan et al. 2023, arXiv:2211.17192, eq. 1), in the time of
        a step of k + 1.
        """
        one_s = self._s.get(1)
        if one_s is None:
            return 0
        best, best_n, expected, right = _GAIN / one_s, 0, 1.0, 1.0
        known, n_below, below_s = self._s, 1, one_s
        for n in range(1, most + 1):
            right *= rate
            if right < _NEGLIGIBLE:
                break
            expected += right
            seconds = known.get(n + 1)
            if seconds is None:
                # From the nearest smaller one on as little more as can be hoped for, and no more than larger ones took.
                seconds = below_s + _OPTIMISM * one_s * (n + 1 - n_below)
                if n + 1 < self._largest:
                    seconds = min(seconds, min(s for size, s in known.items() if size > n + 1))
            else:
                n_below, below_s = n + 1, seconds
            if expected / seconds > best:
                best, best_n = expected / seconds, n
        return best_n
