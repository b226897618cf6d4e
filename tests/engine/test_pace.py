"""How much of a prompt is computed beside running answers, counted by hand."""

from __future__ import annotations

import random

import pytest

from llmrun.engine.child.pace import BEARABLE_S, DEEP, LEAST, SHARE, TILE, Pace, in_tiles


def settled(step_s: float, token_s: float, fixed_s: float = 0.0, *, most: int = 2048) -> Pace:
    """After some parts that took so long."""
    pace = Pace(most)
    for _ in range(20):
        pace.step_took(step_s)
        pace.part_took(pace.n_tokens, fixed_s + pace.n_tokens * token_s)
    return pace


@pytest.mark.parametrize(("step_s", "token_s"), [(0.05, 0.001), (0.05, 0.0002), (0.4, 0.004)])
def test_a_part_takes_its_share_of_a_step(step_s: float, token_s: float) -> None:
    """To within the eight tokens that it is rounded down to."""
    n = settled(step_s, token_s).n_tokens
    assert n % 8 == 0 and SHARE * step_s - 8 * token_s <= n * token_s <= SHARE * step_s


def test_what_is_over_soon_is_computed_in_long_parts() -> None:
    """A millisecond a token: 390 take less than readers bear. Of a prompt of 1,900 as many as that, of one of 2,100 a
    share of a step, until its end. And no more than a batch holds."""
    pace = settled(0.05, 0.001)
    assert (pace.part(390, 390), pace.part(410, 410), pace.part(1900, 1900)) == (390, 400, 400)
    assert (pace.part(2100, 2100), pace.part(410, 2100), pace.part(390, 2100)) == (pace.n_tokens, pace.n_tokens, 390)
    assert settled(0.05, 0.001, most=256).part(300, 300) <= 256
    slow = settled(0.2, 0.001)  # three steps take longer than readers bear else
    assert (slow.part(590, 1900), slow.part(1900, 1900), slow.part(590, 2100)) == (590, 600, slow.n_tokens)
    assert Pace(2048).part(100, 100) == 32  # nothing is known yet


@pytest.mark.parametrize(
    ("n", "n_left", "n_before", "found"),
    [
        (40, 300, 0, 40),  # with few tokens before them it makes no difference
        (40, 300, 3000, 64),
        (100, 300, 3000, 64),
        (200, 300, 3000, 192),
        (40, 100, 3000, 100),  # else 36 would be left, which take longer than a tile
        (64, 150, 3000, 64),
        (128, 150, 3000, 86),  # and 64 are left
        (40, 63, 3000, 40),  # fewer than a tile, whatever is done
        (2048, 530, 0, 466),  # not 512 and 18
        (2048, 2048, 0, 2048),
        (2048, 2088, 0, 2024),
        (512, 600, 0, 512),
    ],
)
def test_whole_tiles(n: int, n_left: int, n_before: int, found: int) -> None:
    assert in_tiles(n, n_left, n_before, 512) == found


@pytest.mark.parametrize("n_ubatch", [128, 200, 512])
def test_no_tile_is_cut(n_ubatch: int) -> None:
    """Whatever is wanted of whatever length: all is computed once, and behind many tokens in tiles, but for a prompt
    that has fewer."""
    chance = random.Random(1)
    for _ in range(2000):
        n_prompt, n_done = chance.randrange(1, 3000), chance.choice([0, 700, 2500])
        while n_prompt:
            wanted = chance.choice([4, 40, 64, 100, 500, 2048])
            n = in_tiles(wanted, n_prompt, n_done, n_ubatch)
            assert 0 < n <= min(n_prompt, max(wanted, 2 * TILE - 1))
            if n_done >= DEEP and n_prompt >= TILE:
                assert n >= TILE and (n % n_ubatch == 0 or n % n_ubatch >= TILE), (n, n_prompt)
            n_prompt, n_done = n_prompt - n, n_done + n


def test_bounds() -> None:
    """Never fewer than pay, whatever they take; never more than a batch holds."""
    assert settled(0.001, 1.0).n_tokens == LEAST
    assert settled(10.0, 0.00001, most=512).n_tokens == 512
    assert Pace(8).n_tokens == 8  # of a batch that is smaller than the first part


def test_where_few_take_as_long_each_as_many() -> None:
    """Sixteen tokens would take two steps: five do not."""
    assert settled(0.115, 0.0165).n_tokens == 5
    assert settled(0.115, 0.029).n_tokens == 4


@pytest.mark.parametrize(
    ("fixed_s", "step_s", "least_s", "most_s"),
    [(0.08, 0.15, 0.144, 0.176), (0.15, 0.1, 0.15, 0.17), (0.3, 1.0, 0.7, 0.76), (0.25, 0.5, 0.374, 0.401)],
)
def test_what_a_part_takes_by_itself(fixed_s: float, step_s: float, least_s: float, most_s: float) -> None:
    """80 ms, and 4 ms a token, as K-quants in the file's layout have it: a part of its share of a step would be of
    eight tokens, at 14 ms each. Half of what a part takes is for its tokens instead, while that is no more than one and
    a half steps, and readers bear it."""
    pace = Pace(2048)
    pace.prompt_took(200, fixed_s + 200 * 0.004)
    for _ in range(20):
        pace.step_took(step_s)
        pace.part_took(pace.n_tokens, fixed_s + pace.n_tokens * 0.004)
    assert least_s <= fixed_s + pace.n_tokens * 0.004 <= most_s


def test_one_disturbance() -> None:
    """A part that took ten times as long changes little; where all of them do, they soon become shorter."""
    pace = settled(0.05, 0.001)
    before = pace.n_tokens
    pace.part_took(before, 10 * before * 0.001)
    assert before / 2 <= pace.n_tokens <= before
    for _ in range(12):
        pace.part_took(pace.n_tokens, pace.n_tokens * 0.01)
    assert pace.n_tokens <= before // 4


CROWDS = (
    (6 / 2, 0.4, 3 * SHARE * 0.4),
    (1 / 8, 0.4, SHARE * 0.4),
    (1.0, 0.8, SHARE * 0.8),
    (1.0, 0.05, BEARABLE_S),
    (1 / 2, 0.05, BEARABLE_S / 2),
    (3.0, 0.05, BEARABLE_S),
)


@pytest.mark.parametrize(("crowd", "step_s", "part_s"), CROWDS)
def test_a_crowd(crowd: float, step_s: float, part_s: float) -> None:
    """Six prompts for two answers: parts take three times as long, or as long as readers bear. One prompt for eight: as
    ever."""
    pace = Pace(2048)
    for _ in range(20):
        pace.crowd = crowd
        pace.step_took(step_s)
        pace.part_took(pace.n_tokens, pace.n_tokens * 0.001)
    assert part_s - 8 * 0.001 <= pace.n_tokens * 0.001 <= part_s + 1e-9


def test_before_anything_is_known() -> None:
    """The first part is small."""
    assert Pace(2048).n_tokens == 32
    pace = Pace(2048)
    pace.part_took(32, 0.001)  # of no use without a step to compare with
    assert pace.n_tokens == 32
