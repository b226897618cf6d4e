"""What a model should take by a profile of the machine: sums that can be done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmrun.gguf.reader import Header
from llmrun.gguf.shapes import SHAPES, Shape, Window, small
from llmrun.gguf.synth import header_of
from llmrun.machine.profile import AttentionTime, Overhead, ProductTime, Profile, StateTime
from llmrun.options.load import LoadConfig
from llmrun.planning.footprint import CPU, Placement
from llmrun.planning.kv_layout import layer_memories
from llmrun.planning.predict.from_profile import GraphTimes, operations_by_layer

SHAPE = Shape(n_layer=3, n_embd=256, n_ff=512, n_head=4, n_head_kv=2, n_vocab=1024)
LAYER = 256 * (256 + 128 + 128 + 256) + 3 * 256 * 512
OUTPUT = 256 * 1024
HEADER = header_of(SHAPE, "Q8_0")
NOTHING = Overhead(1, 2, 64, 0.0, 0.0)


def times(kind: str, per_weight: float, *, repack: bool = False, n_experts: int = 0) -> list[ProductTime]:
    """Of one column with two threads; 512 take 100 times as long; one thread half as fast."""
    return [
        ProductTime(
            "CPU", kind, repack, n, threads, 1000, 1000 * per_weight * slower / threads, n_experts, n_experts and 1
        )
        for threads in (1, 2)
        for n, slower in ((1, 2), (512, 200))
    ]


def attention(seconds: float) -> list[AttentionTime]:
    """Of one layer like this model's, at depths of 10 and 1000: one token, and 512."""
    return [
        AttentionTime("CPU", "F16", 64, 4, 2, depth, n, 2, seconds * n * depth / 1000)
        for depth in (10, 1000)
        for n in (1, 512)
    ]


PRODUCTS = (*times("Q8_0", 1e-9), *times("Q8_0", 5e-10, repack=True))
PROFILE = Profile("2026-11-28T10:00:00Z", products=PRODUCTS, attention=tuple(attention(1e-15)), overheads=(NOTHING,))


def of(
    profile: Profile,
    header: Header = HEADER,
    *,
    threads: int = 2,
    repack: bool = False,
    twice: bool = False,
    **fields: int,
) -> GraphTimes:
    n_layer = header.n_layer or 0
    placement = Placement((CPU,) * (n_layer + 1), repacked=frozenset({"Q8_0"} if repack else ()), twice=twice)
    return GraphTimes(header, placement, LoadConfig(**fields), profile, threads)  # type: ignore[arg-type]


def test_one_token() -> None:
    """All matrices once, the embedding not at all: it is looked up."""
    assert of(PROFILE).step_s(0) == pytest.approx((3 * LAYER + OUTPUT) * 1e-9)
    assert of(PROFILE, threads=1).step_s(0) == pytest.approx((3 * LAYER + OUTPUT) * 2e-9)
    assert of(PROFILE, repack=True).step_s(0) == pytest.approx((3 * LAYER + OUTPUT) * 5e-10)


def test_an_embedding_that_is_the_output_too() -> None:
    """It is multiplied with once a token."""
    tied = header_of(replace(SHAPE, tied=True), "Q8_0")
    assert of(PROFILE, tied).step_s(0) == pytest.approx((3 * LAYER + OUTPUT) * 1e-9)


def test_a_prompt() -> None:
    """In micro-batches, the output for the last token alone; threads of its own; with both layouts by the plain one."""
    prompt_s = (3 * LAYER * 100 + OUTPUT) * 1e-9
    assert of(PROFILE).prefill_s(512) == pytest.approx(prompt_s)
    assert of(PROFILE).prefill_s(1024) == pytest.approx(2 * prompt_s)
    assert of(PROFILE, threads=1, n_threads_batch=2).prefill_s(512) == pytest.approx(prompt_s)
    both = of(PROFILE, repack=True, twice=True)
    assert both.prefill_s(512) == pytest.approx(prompt_s)
    assert both.step_s(0) == pytest.approx((3 * LAYER + OUTPUT) * 5e-10)


def test_overheads() -> None:
    """Each layer's and one outside of them; of a prompt they grow with its tokens and with the model's width."""
    slow = replace(PROFILE, overheads=(Overhead(1, 2, 64, 0.5, 0.25), Overhead(64, 2, 512, 1.0, 0.0)))
    assert of(slow).step_s(0) == pytest.approx(1.75, rel=0.01)
    assert of(slow).prefill_s(512) == pytest.approx(3 * 1.0 * 8 * 0.5, rel=0.02)


def test_recurrent_states() -> None:
    """Each token goes through the state of every recurrent layer; one of another kind than was measured: unknown."""
    header = header_of(small(SHAPES["mamba2-2.7b"]), "Q8_0")
    sizes = [memory.n_state for memory in layer_memories(header) or ()]
    with_f16 = replace(PROFILE, products=(*PRODUCTS, *times("F16", 1e-9)))  # of the convolution
    fast, slow = (replace(with_f16, states=(StateTime("mamba2", 1, 2, sizes[0] // 2, s),)) for s in (0.0, 0.25))
    assert (of(slow, header).step_s(0) or 0) - (of(fast, header).step_s(0) or 0) == pytest.approx(len(sizes) * 0.5)
    prompts = [of(each, header).prefill_s(100) or 0 for each in (slow, fast)]
    assert prompts[0] - prompts[1] == pytest.approx(len(sizes) * 0.5 * 100)
    assert of(with_f16, header).step_s(0) is None


def test_attention_by_depth_and_window() -> None:
    """In proportion to the depth, but not beyond a window."""
    slow = replace(PROFILE, attention=tuple(attention(1.0)))
    at_1000, at_4000 = (of(slow, threads=1).step_s(depth) or 0 for depth in (999, 3999))
    assert at_1000 == pytest.approx(3, rel=0.01) and at_4000 == pytest.approx(12, rel=0.01)
    header = header_of(replace(small(SHAPES["gemma3-1b"]), window=Window(500, 6)), "Q8_0")
    memories = layer_memories(header) or ()
    deep = of(slow, header, threads=1).step_s(3999) or 0
    tokens = sum(4000 if memory.window is None else 501 for memory in memories)
    heads = (header.n_head or (0,))[0] * (header.n_embd_head_k or 0) / (4 * 64)  # of what was measured
    assert len({memory.window for memory in memories}) == 2
    assert deep == pytest.approx(tokens / 1000 * heads, rel=0.02)


@pytest.mark.parametrize(
    ("depth", "threads", "fields", "attended"),
    [
        (1024, 1, {}, 1025),
        (1024, 2, {}, 1280),  # of five blocks the first thread has two and a half, all of them full
        (1024, 8, {}, 1280),
        (1279, 2, {}, 1280),
        (300, 2, {}, 512),
        (200, 2, {}, 201),  # less than two blocks: heads are shared instead
        (1024, 2, {"type_k": "q8_0", "type_v": "q8_0"}, 1025),
        (1024, 2, {"flash_attn": "off"}, 1280),  # what is masked is computed as well
        (10, 1, {"flash_attn": "off"}, 256),
    ],
)
def test_what_takes_the_time_of_a_token(depth: int, threads: int, fields: dict[str, str], attended: float) -> None:
    times = of(PROFILE, **fields)  # type: ignore[arg-type]
    assert times._attended(depth, None, threads) == attended


def test_a_window_that_goes_round() -> None:
    """512 tokens lie in 1,024 cells: in the mean the busier of two threads has three quarters of them."""
    times = of(PROFILE)
    assert times._attended(4096, 512, 2) == pytest.approx(2 * 384, rel=0.02)
    assert times._attended(4096, 512, 1) == 512
    assert times._attended(600, 512, 2) == 2 * 295  # 601 of 768 cells so far: one has 295 of them to look at, one 217
    assert of(PROFILE, n_ubatch=128)._attended(4096, 512, 2) == pytest.approx(2 * 341, rel=0.02)


def test_experts() -> None:
    """Those that a token uses; by products of experts where they were measured, else as a matrix; a prompt's tokens
    share all of them."""
    mixture = header_of(replace(SHAPE, n_expert=8, n_expert_used=2), "Q8_0")
    projections = 256 * (256 + 128 + 128 + 256)
    router = 256 * 8 * 2  # in F32, which takes twice as long as F16, by as many bytes
    with_f16 = replace(PROFILE, products=(*PRODUCTS, *times("F16", 1e-9)))
    expected = (3 * (projections + router + 2 * 3 * 256 * 512) + OUTPUT) * 1e-9
    assert of(with_f16, mixture).step_s(0) == pytest.approx(expected)
    own = replace(with_f16, products=(*with_f16.products, *times("Q8_0", 4e-9, n_experts=8)))
    expected = (3 * (projections + router + 4 * 2 * 3 * 256 * 512) + OUTPUT) * 1e-9
    assert of(own, mixture).step_s(0) == pytest.approx(expected)
    assert (of(with_f16, mixture).prefill_s(512) or 0) > (3 * 8 * 3 * 256 * 512) * 1e-9


def test_experts_of_a_prompt_are_slower_by_what_was_measured() -> None:
    """256 tokens of which each of 16 experts got 64: three times as long as 64 columns of one matrix. So are experts
    that get as many and more; of a type without a figure as of the next one that has it; of few columns less."""
    experts = ProductTime("CPU", "Q8_0", False, 256, 2, 1000, 0.0, n_experts=16, n_used=4)
    whole = Profile("", products=PRODUCTS).product_s("Q8_0", 1000, 64, 2) or 0
    experts = replace(experts, seconds=3 * whole / 64 * 256)
    made = replace(PROFILE, products=(*PRODUCTS, *times("F16", 1e-9), *times("Q5_0", 1e-9), experts))
    assert made.experts_slower("Q8_0", 64, 2) == pytest.approx(3)
    assert made.experts_slower("Q8_0", 500, 2) == pytest.approx(3)
    assert made.experts_slower("Q8_0", 8, 2) == pytest.approx(3**0.5)
    assert made.experts_slower("Q8_0", 1, 2, repack=True) == 1 and made.experts_slower("Q5_0", 64, 2) is None
    for level in ("Q8_0", "Q5_0"):
        mixture = header_of(replace(SHAPE, n_expert=4, n_expert_used=2), level)
        usual = replace(made, products=made.products[:-1])
        slow_s, usual_s = (of(each, mixture).prefill_s(512) or 0 for each in (made, usual))
        assert 2 * usual_s < slow_s < 3 * usual_s  # attention has matrices too


def test_the_machine_is_slower_now() -> None:
    slower = replace(of(PROFILE), drift={"CPU": 1.5})
    assert slower.step_s(0) == pytest.approx(1.5 * (of(PROFILE).step_s(0) or 0))


def test_what_was_not_measured() -> None:
    """Another type takes the time of the one next to it by its bytes; where there is none, nothing is said."""
    q5_1 = replace(PROFILE, products=(*times("Q5_0", 1e-9), *PRODUCTS))
    known = of(q5_1, header_of(SHAPE, "Q5_1")).step_s(0)
    assert known == pytest.approx((3 * LAYER * 24 / 22 + OUTPUT) * 1e-9, rel=0.1)
    assert of(PROFILE, header_of(SHAPE, "Q2_K")).step_s(0) is None
    assert of(replace(PROFILE, attention=())).step_s(0) is None
    assert of(replace(PROFILE, overheads=())).step_s(0) is None


# As a callback of llama.cpp's scheduler counted them, in its last layer: all but views, reshapes and turned tensors.
COUNTED = {
    "llama-1.2b": 19,
    "qwen3-0.6b": 23,
    "qwen3-30b-a3b": 38,
    "mixtral-8x7b": 28,
    "gemma2-2b": 24,
    "gemma3-1b": 28,
    "phi3-mini": 17,
    "gpt-oss-20b": 35,
    "deepseek-v2-lite": 42,
    "command-r7b": 17,
    "llama4-scout": 33,
}


@pytest.mark.parametrize("name", COUNTED)
def test_operations_of_a_layer(name: str) -> None:
    """By the names of its tensors: within an eighth of what llama.cpp computes."""
    assert operations_by_layer(header_of(SHAPES[name], "F16"))[-1] == pytest.approx(COUNTED[name], rel=0.125)


def test_a_layer_of_more_operations_takes_longer() -> None:
    """Threads wait behind each: of one token, in proportion; of many, what a layer is wide counts."""
    for shape, n in ((SHAPE, 19), (replace(SHAPE, arch="qwen3"), 23)):
        header = header_of(shape, "Q8_0")
        for n_tokens in (1, 512):
            beside = Overhead(n_tokens, 2, shape.n_embd, 0.001, 0.0)
            of_graph = of(replace(PROFILE, products=tuple(times("Q8_0", 1e-15)), overheads=(beside,)), header)
            taken = of_graph.step_s(10) if n_tokens == 1 else of_graph.prefill_s(512)
            assert taken == pytest.approx(0.003 * (n / 19 if n_tokens == 1 else 1), rel=0.02)
