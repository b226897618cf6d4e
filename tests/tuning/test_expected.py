"""What settings should take by a profile: sums that can be done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmrun.gguf.shapes import Shape
from llmrun.gguf.synth import header_of
from llmrun.machine.profile import Overhead, ProductTime, Profile
from llmrun.tuning.dials import Dials, Workload
from llmrun.tuning.expected import batch_s, workload_s

SHAPE = Shape(n_layer=3, n_embd=256, n_ff=512, n_head=4, n_head_kv=2, n_vocab=1024)
LAYER = 256 * (256 + 128 + 128 + 256) + 3 * 256 * 512
OUTPUT = 256 * 1024
HEADER = header_of(SHAPE, "Q8_0")


def times(kind: str, per_weight: float, *, repack: bool = False, n_experts: int = 0) -> list[ProductTime]:
    """Of one column with two threads; 512 take 100 times as long; one thread half as fast."""
    return [
        ProductTime(
            "CPU", kind, repack, n, threads, 1000, 1000 * per_weight * slower / threads, n_experts, n_experts and 1
        )
        for threads in (1, 2)
        for n, slower in ((1, 2), (512, 200))
    ]


PROFILE = Profile("2026-11-28T10:00:00Z", products=(*times("Q8_0", 1e-9), *times("Q8_0", 5e-10, repack=True)))


def test_one_token() -> None:
    """All matrices once, the embedding not at all: it is looked up."""
    assert batch_s(PROFILE, HEADER, 1, 2, repack=False) == pytest.approx((3 * LAYER + OUTPUT) * 1e-9)
    assert batch_s(PROFILE, HEADER, 1, 1, repack=False) == pytest.approx((3 * LAYER + OUTPUT) * 2e-9)
    assert batch_s(PROFILE, HEADER, 1, 2, repack=True) == pytest.approx((3 * LAYER + OUTPUT) * 5e-10)


def test_an_embedding_that_is_the_output_too() -> None:
    """It is multiplied with once a token."""
    tied = header_of(replace(SHAPE, tied=True), "Q8_0")
    assert batch_s(PROFILE, tied, 1, 2, repack=False) == pytest.approx((3 * LAYER + OUTPUT) * 1e-9)


def test_a_prompt() -> None:
    """The output for its last token alone; every layer costs what a graph costs."""
    assert batch_s(PROFILE, HEADER, 512, 2, repack=False) == pytest.approx((3 * LAYER * 100 + OUTPUT) * 1e-9)
    slow = replace(PROFILE, overheads=(Overhead(1, 2, 64, 0.5, 0.0),))
    assert batch_s(slow, HEADER, 1, 2, repack=False) == pytest.approx(1.5 + (3 * LAYER + OUTPUT) * 1e-9)


def test_experts() -> None:
    """Those that a token uses; by products of experts where they were measured, else as a matrix."""
    mixture = header_of(replace(SHAPE, n_expert=8, n_expert_used=2), "Q8_0")
    plain = batch_s(PROFILE, mixture, 1, 2, repack=False)
    attention = 256 * (256 + 128 + 128 + 256)
    assert plain == pytest.approx((3 * (attention + 2 * 3 * 256 * 512) + OUTPUT) * 1e-9)
    own = replace(PROFILE, products=(*PROFILE.products, *times("Q8_0", 4e-9, n_experts=8)))
    found = batch_s(own, mixture, 1, 2, repack=False)
    assert found == pytest.approx((3 * (attention + 4 * 2 * 3 * 256 * 512) + OUTPUT) * 1e-9)


def test_a_workload() -> None:
    """1024 tokens of prompt are two batches, 10 of the answer ten steps; both layouts: each what it is best at."""
    two = replace(PROFILE, products=(*times("Q8_0", 1e-9), *times("Q8_0", 5e-10, repack=True)))
    prompt = batch_s(two, HEADER, 512, 2, repack=False)
    step = batch_s(two, HEADER, 1, 1, repack=True)
    assert prompt and step
    found = workload_s(two, HEADER, Workload(1024, 10), Dials("both", 1, 2, 512))
    assert found == pytest.approx(2 * prompt + 10 * step)
    assert workload_s(two, HEADER, Workload(1024, 10), Dials("both")) is None


def test_a_type_that_was_not_measured() -> None:
    assert batch_s(PROFILE, header_of(SHAPE, "Q4_0"), 1, 2, repack=False) is None
