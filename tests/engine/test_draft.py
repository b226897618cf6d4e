"""Guesses ahead: what is looked up, and how many pay, by times that are made up."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from llmrun.engine.child.draft import Drafts, Lookup, LookupDrafts, ModelDrafts, StepCosts


def test_a_text_goes_on_as_before() -> None:
    """By the longest end that was seen, the last time that it was."""
    text = Lookup([1, 2, 3, 4, 5, 9, 1, 2, 7, 8, 1, 2])
    assert text.guess(3) == ([7, 8, 1], 2)
    text = Lookup([1, 2, 3, 4, 5, 9, 7, 2, 3])
    assert text.guess(4) == ([4, 5, 9, 7], 2)
    assert Lookup([1, 2, 3]).guess(4) == ([], 0) == Lookup().guess(4)
    six = [1, 2, 3, 4, 5, 6]
    assert Lookup([*six, 7, 5, 6, 8, *six]).guess(1) == ([7], 6)  # and not 8, which came behind 5 6 later


def test_what_repeats_itself_goes_on() -> None:
    """The guess is longer than what was seen behind: round and round."""
    assert Lookup([1, 2, 3, 1, 2, 3, 1, 2]).guess(7)[0] == [3, 1, 2, 3, 1, 2, 3]
    assert Lookup([5, 5, 5]).guess(4)[0] == [5, 5, 5, 5]


def simulated(
    answer: list[int], prompt: list[int], step_s: Callable[[int], float], costs: StepCosts | None = None
) -> tuple[float, Drafts]:
    """Seconds for an answer that is known, by what steps take."""
    return run(LookupDrafts(prompt, costs or StepCosts()), answer, step_s)


def run(
    drafts: Drafts, answer: list[int], step_s: Callable[[int], float], guessing: Callable[[], float] = lambda: 0.0
) -> tuple[float, Drafts]:
    """`guessing`: what guesses have taken so far."""
    at, seconds = 0, 0.0
    while at < len(answer):
        guess = drafts.next(15)
        took = step_s(1 + len(guess))
        drafts.took(1 + len(guess), took)
        seconds += took
        for i in range(len(guess) + 1):
            drafts.add(answer[at])
            at += 1
            if at == len(answer) or i == len(guess) or guess[i] != answer[at - 1]:
                break
            drafts.n_accepted += 1
    return seconds + guessing(), drafts


SHAPES: dict[str, Callable[[int], float]] = {
    "next to nothing for more": lambda n: 1 + 0.05 * (n - 1),
    "AVX2, plain": lambda n: {1: 1.0, 2: 1.5, 3: 1.9, 4: 2.2}.get(n, 5.7 + 0.09 * (n - 8)),
    "in proportion": lambda n: float(n),
}


@pytest.mark.parametrize("name", SHAPES)
def test_it_never_loses_much(name: str) -> None:
    """On a text without a repetition that holds, where all is learned in the first guesses."""
    chance = random.Random(1)
    answer = [chance.randrange(12) for _ in range(3000)]  # two alike are seen all the time, and mean nothing
    seconds, _ = simulated(answer, answer[:50], SHAPES[name])
    assert seconds <= 1.02 * len(answer)


@pytest.mark.parametrize(("name", "least"), [("next to nothing for more", 6.0), ("AVX2, plain", 1.7)])
def test_it_gains_where_a_text_repeats(name: str, least: float) -> None:
    """Word for word: nearly as much as the best length gives."""
    prompt = [*range(100, 500)]
    seconds, drafts = simulated([*prompt, *prompt], prompt, SHAPES[name])
    assert 800 / seconds >= least
    assert drafts.n_accepted > 0.8 * drafts.n_drafted


def test_where_batches_gain_nothing() -> None:
    """Not even on a text that repeats: each size is tried once and no more."""
    prompt = [*range(100, 500)]
    seconds, _ = simulated(prompt, prompt, SHAPES["in proportion"])
    assert seconds <= 1.1 * 400


def test_wrong_guesses_cost_nothing_to_learn_from() -> None:
    """They are compared with the text whether they were computed or not: a text that begins to repeat is noticed."""
    chance = random.Random(2)
    noise = [chance.randrange(6) for _ in range(600)]
    costs = StepCosts()
    _, before = simulated(noise, [], SHAPES["AVX2, plain"], costs)
    story = [*range(100, 300)]
    _, after = simulated([*noise, *story * 4], [], SHAPES["AVX2, plain"], costs)
    assert after.n_accepted - before.n_accepted > 300


class Guesser:
    """A model that is right so often, and takes so long for each token."""

    def __init__(self, answer: list[int], right: float, token_s: float) -> None:
        self.answer, self.right, self.token_s = answer, right, token_s
        self.random, self.now, self.n_asked = random.Random(3), 0.0, 0

    def __call__(self, tokens: list[int], most: int) -> list[int]:
        self.n_asked += 1
        n = len(tokens)
        self.now += most * self.token_s
        return [each if self.random.random() < self.right else -1 for each in self.answer[n : n + most]]

    def drafts(self) -> ModelDrafts:
        return ModelDrafts([], StepCosts(), self, clock=lambda: self.now)


@pytest.mark.parametrize(
    ("right", "token_s", "least", "most"),
    [(0.9, 0.05, 2.5, 9.0), (0.7, 0.1, 1.4, 9.0), (0.1, 0.1, 0.97, 1.1), (0.8, 1.0, 0.95, 1.0)],
    ids=["a good one", "a fair one", "one that knows nothing", "one as slow as the model"],
)
def test_a_model_that_guesses(right: float, token_s: float, least: float, most: float) -> None:
    """It gains where it is fast and right, its own time counted; where not it is hardly asked, and costs little."""
    chance = random.Random(4)
    answer = [chance.randrange(1000) for _ in range(3000)]
    guesser = Guesser(answer, right, token_s)
    seconds, drafts = run(guesser.drafts(), answer, SHAPES["next to nothing for more"], lambda: guesser.now)
    assert least <= len(answer) / seconds <= most
    if most <= 1.1:
        assert guesser.n_asked < 60 and drafts.n_drafted < 300


def test_a_model_that_becomes_right() -> None:
    """It is asked again now and then, and taken as soon as it is worth it."""
    chance = random.Random(5)
    answer = [chance.randrange(1000) for _ in range(6000)]
    guesser = Guesser(answer, 0.0, 0.05)
    drafts = guesser.drafts()
    run(drafts, answer[:2000], SHAPES["next to nothing for more"])
    guesser.answer, guesser.right = answer, 0.95
    before = guesser.now
    seconds, _ = run(drafts, answer[2000:], SHAPES["next to nothing for more"], lambda: guesser.now - before)
    assert 4000 / seconds > 1.8
