"""What a context holds of a conversation: computed once, and never wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ENDLESS, EXACT
from waiting import until_it_sleeps

from llmrun.engine.child.kv_context import common_prefix
from llmrun.engine.engine import ChildEngine, plan_load
from llmrun.engine.generation import ChildGeneration
from llmrun.engine.protocol import PromptOptions
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig

GREEDY = SamplingConfig(temperature=0, max_tokens=12)
GOES_ON = PromptOptions(reuse=True)
WORDS = "the cat sat on a mat and saw a dog run by so it hid under the old red barn until the sun went down".split()


def open_file(path: Path, config: LoadConfig | None = None) -> ChildEngine:
    return ChildEngine(path, open_header(path), config)


def open_twice(path: Path, config: LoadConfig) -> ChildEngine:
    """With the weights in both layouts, though there is but one for F32: what is computed is the same then."""
    header = open_header(path)
    plan = plan_load(path, header, config)
    return ChildEngine.open(replace(plan, config=replace(config, repack="both")), header)


def small(tmp_path: Path, name: str) -> Path:
    path = tmp_path / f"{name}.gguf"
    synth.write(path, synth.small(synth.SHAPES[name], n_embd=64), "F32")
    return path


def text(n: int, seed: int = 0) -> str:
    choose = random.Random(seed).choice
    return " ".join(choose(WORDS) for _ in range(n))


def test_common_prefix() -> None:
    """As counted by hand, and as a loop counts it."""
    assert common_prefix([], [1]) == 0 == common_prefix([1], [2])
    assert common_prefix([1, 2, 3], [1, 2]) == 2 == common_prefix([1, 2, 3, 4], [1, 2, 9, 4])
    chance = random.Random(1)
    for _ in range(300):
        one = [chance.randrange(2) for _ in range(chance.randrange(12))]
        other = [chance.randrange(2) for _ in range(chance.randrange(12))]
        by_hand = next(
            (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        assert common_prefix(one, other) == by_hand


def test_a_conversation_is_computed_once(engine: ChildEngine) -> None:
    """Each turn computes its own tokens alone; asked again, one token."""
    messages: list[dict[str, str]] = []
    sampling = SamplingConfig(temperature=0, max_tokens=60)
    before = 0
    for question in ("What do GPU layers do?", "What is the KV cache?", "What is a token?"):
        messages.append({"role": "user", "content": question})
        generation = engine.generate(messages, sampling, options=GOES_ON)
        list(generation)
        timing = generation.timing
        assert timing.n_prompt - timing.n_cached < 20 and timing.n_cached >= before
        before = timing.n_prompt + timing.n_generated
        messages.append({"role": "assistant", "content": generation.text})
    again = engine.generate(messages[:-1], sampling, options=GOES_ON)
    assert "".join(again) == messages[-1]["content"]
    assert again.timing.n_cached == again.timing.n_prompt - 1


def test_nothing_is_reused_unasked(engine: ChildEngine) -> None:
    """Two requests that do not say that they belong together are measured as if each were the first."""
    for _ in range(2):
        generation = engine.generate("Once upon a time", GREEDY)
        list(generation)
        assert generation.timing.n_cached == 0


@pytest.mark.parametrize("opened", [open_file, open_twice])
@pytest.mark.parametrize("name", ["micro", "gemma3-1b", "gpt-oss-20b", "mamba2-2.7b", "lfm2-1.2b", "granite-4-h-tiny"])
def test_remembered_is_as_good_as_computed(
    tmp_path: Path, name: str, opened: Callable[[Path, LoadConfig], ChildEngine]
) -> None:
    """Full attention, windows, recurrent states, both together: going on, going back and starting over all give the
    answer that an engine without a past gives; also where another copy of the weights computes long prompts."""
    path = small(tmp_path, name) if name != "micro" else small(tmp_path, "llama-1.2b")
    story = text(120)
    prompts = [
        story[:200],
        story,  # goes on
        story + text(30, 1),
        story + text(30, 2),  # goes back a little
        story[:300],  # goes back far, out of any window
        text(25, 3),  # something else
        text(25, 3),  # the same again
    ]
    with open_file(path, EXACT) as fresh:
        expected = ["".join(fresh.generate(prompt, GREEDY)) for prompt in prompts]
    with opened(path, EXACT) as engine:
        cached = []
        for prompt, answer in zip(prompts, expected, strict=True):
            generation = engine.generate(prompt, GREEDY, options=GOES_ON)
            assert "".join(generation) == answer, prompt[:30]
            cached.append(generation.timing.n_cached)
    assert cached[0] == 0
    if name == "micro":
        assert all(n > 0 for n in cached[1:5]) and cached[6] > 0
    if name == "mamba2-2.7b":
        assert all(0 < n < 300 for n in cached[3:5])  # it can't be rolled back, but was kept where prompts had parted


def test_the_context_grows_and_forgets_nothing(tmp_path: Path) -> None:
    """A conversation longer than the first context: what was computed is carried over, not computed again."""
    path = tmp_path / "long.gguf"
    synth.write(path, replace(synth.SHAPES["micro"], n_ctx_train=32768), "F32")
    first, second = text(300), text(1000, 1)
    sampling = SamplingConfig(temperature=0, max_tokens=8)
    with open_file(path, EXACT) as engine:
        begun = engine.generate(first, sampling, options=GOES_ON)
        list(begun)
        longer = engine.generate(first + second, sampling, options=GOES_ON)
        answer = "".join(longer)
        assert begun.n_ctx is not None and longer.n_ctx is not None and longer.n_ctx > begun.n_ctx
        assert longer.timing.n_cached >= begun.timing.n_prompt - 1
    with open_file(path, replace(EXACT, n_ctx=32768)) as roomy:  # nothing ever copied
        list(roomy.generate(first, sampling, options=GOES_ON))
        assert "".join(roomy.generate(first + second, sampling, options=GOES_ON)) == answer


def test_the_context_grows_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    """An answer that nobody bounds goes on behind the first 4096 tokens, where there is a context for it."""
    never_ends = SamplingConfig(temperature=0, max_tokens=4300, ignore_eos=True)
    path = tmp_path / "long.gguf"
    synth.write(path, replace(synth.SHAPES["micro"], n_ctx_train=4600), "F32")
    with open_file(path, replace(EXACT, n_threads=1)) as engine:
        most = engine.n_ctx_most
        assert most == 4600
        generation = engine.generate("a b", SamplingConfig(temperature=0, ignore_eos=True), options=GOES_ON)
        n = sum(1 for _ in generation)
        assert n and generation.stop_reason == "context"
        assert generation.timing.n_prompt + generation.timing.n_generated == most + 1
        plain = engine.generate("a b", never_ends)
        list(plain)
        assert len(plain.token_ids) == 4300
        shared = min(len(plain.token_ids), len(generation.token_ids))
        assert plain.token_ids[:shared] == generation.token_ids[:shared]


def cancelled_in_prefill(engine: ChildEngine, prompt: str) -> ChildGeneration:
    """Ask, cancel while the prompt is read, and ask again: that answer, not begun yet."""
    for _ in range(100):  # the child does not wait for us: a cancel may come too late
        list(engine.generate("z", GREEDY, options=GOES_ON))  # nothing of the prompt is remembered
        begun: list[ChildGeneration] = []
        begun.append(engine.generate(prompt, ENDLESS, options=GOES_ON, on_prefill=lambda *_: begun[0].cancel()))  # noqa: B023
        list(begun[0])
        assert begun[0].stop_reason == "cancelled"
        if not begun[0].token_ids:
            return engine.generate(prompt, GREEDY, options=GOES_ON)
    raise AssertionError("no cancel came in time")


@pytest.mark.parametrize("opened", [open_file, open_twice])
def test_cancelled_and_gone_on(exact: Path, opened: Callable[[Path, LoadConfig], ChildEngine]) -> None:
    """After a cancel, in the prefill or in the answer, what is remembered is right."""
    prompt, config = text(800), replace(EXACT, n_batch=64, n_ubatch=64)
    with open_file(exact, config) as fresh:
        expected = "".join(fresh.generate(prompt, GREEDY))
    with opened(exact, config) as engine:
        again = cancelled_in_prefill(engine, prompt)
        assert "".join(again) == expected and 64 <= again.timing.n_cached < again.timing.n_prompt - 1
        in_answer = engine.generate(prompt, ENDLESS, options=GOES_ON)
        for i, _ in enumerate(in_answer):
            if i == 2:
                in_answer.cancel()
        assert in_answer.stop_reason == "cancelled"
        again = engine.generate(prompt, GREEDY, options=GOES_ON)
        assert "".join(again) == expected and again.timing.n_cached > 0


def test_cancel_before_it_began(engine: ChildEngine) -> None:
    generation = engine.generate("Once upon a time", options=GOES_ON)
    generation.cancel()
    list(generation)
    assert generation.stop_reason == "cancelled"
    assert "".join(engine.generate("Once upon a time", GREEDY))


def test_tokens_that_no_tokenizer_would_choose_are_kept(engine: ChildEngine) -> None:
    """A sampled answer is remembered by its own tokens: the next turn reads none of it again."""
    wild = SamplingConfig(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=2, max_tokens=60)
    messages = [{"role": "user", "content": "Hello"}]
    said = engine.generate(messages, wild, options=GOES_ON)
    messages += [{"role": "assistant", "content": "".join(said)}, {"role": "user", "content": "And?"}]
    assert engine.count(said.text) != len(said.token_ids)
    following = engine.generate(messages, GREEDY, options=GOES_ON)
    list(following)
    assert following.timing.n_cached >= said.timing.n_prompt + len(said.token_ids) - 1


def test_count(engine: ChildEngine) -> None:
    """A text's tokens, and a conversation's as the template renders it."""
    question = [{"role": "user", "content": "What is a token?"}]
    generation = engine.generate(question, GREEDY)
    list(generation)
    assert engine.count(question) == generation.timing.n_prompt
    assert 0 < engine.count("What is a token?") < engine.count(question)


def test_prepared_while_nobody_asks(engine: ChildEngine) -> None:
    """What a conversation begins with is computed before the message comes, and a message does not wait for it."""
    messages = [
        {"role": "system", "content": "Be brief. " * 20},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello! " * 10},
    ]
    question = [*messages, {"role": "user", "content": "What is a token?"}]
    expected = "".join(engine.generate(question, GREEDY))
    engine.prepare(messages)
    assert "".join(engine.generate(question, GREEDY, options=GOES_ON)) == expected
    with open_file(engine.path) as other:
        for _ in range(20):
            other.prepare(messages)
        other.prepare([])
        assert "".join(other.generate(question, GREEDY, options=GOES_ON)) == expected


def test_prepared_tokens_are_remembered(engine: ChildEngine) -> None:
    """Left alone long enough, all but the new message is computed already."""
    system = [{"role": "system", "content": "Be brief. " * 20}]
    engine.prepare(system)
    until_it_sleeps(engine.pid, children=True)  # one of its own renders the template
    generation = engine.generate([*system, {"role": "user", "content": "Hi"}], GREEDY, options=GOES_ON)
    list(generation)
    assert generation.timing.n_prompt - generation.timing.n_cached < 10
