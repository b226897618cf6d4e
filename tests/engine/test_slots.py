"""Answers side by side: each as if it were alone, whatever the others do."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import EXACT, PATIENT
from test_kv_context import open_twice, text

from llmrun.engine.engine import ChildEngine
from llmrun.engine.interface import Parallel, Submitted
from llmrun.engine.protocol import PromptOptions
from llmrun.errors import PromptTooLong, UsageError
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.options.sampling import SamplingConfig

GREEDY = SamplingConfig(temperature=0, max_tokens=8)
SHARED, BULK, ALONE = PromptOptions(reuse=True), PromptOptions(reuse=True, bulk=True), PromptOptions()
ENDLESS = SamplingConfig(temperature=0, max_tokens=1500, ignore_eos=True)


def ended(answers: Parallel) -> list[Submitted]:
    """All that are being made, in the order in which they end."""
    found = []
    while (answer := answers.wait()) is not None:
        found.append(answer)
    return found


def prompts() -> list[str]:
    """Long and short ones, some of which begin alike."""
    story = text(40)
    return [story, text(9, 1), story + text(15, 2), text(20, 3), story + text(5, 4), text(9, 1), story, text(60, 5)]


@pytest.mark.parametrize("name", sorted(synth.SHAPES))
def test_as_one_by_one(tmp_path: Path, name: str) -> None:
    """Attention, windows, recurrent states, experts: 3 sequences for 8 prompts, the second time with all remembered."""
    path = tmp_path / "model.gguf"
    synth.write(path, replace(synth.small(synth.SHAPES[name], n_embd=64), n_ctx_train=4096), "F32")
    asked = prompts()
    with ChildEngine(path, open_header(path), EXACT) as engine:
        expected = ["".join(engine.generate(prompt, GREEDY)) for prompt in asked]
        for options in (SHARED, BULK, ALONE):
            with engine.parallel(3, 400) as answers:
                for _ in range(2 if options is SHARED else 1):
                    made = [answers.submit(prompt, GREEDY, options=options) for prompt in asked]
                    assert len(ended(answers)) == len(asked)
                    assert [each.text for each in made] == expected
                    assert all(each.stop_reason == "length" for each in made)
        assert "".join(engine.generate(asked[0], GREEDY)) == expected[0]


def test_seeds(engine: ChildEngine) -> None:
    """Each has its own chance: the same seed gives the same text, whoever is beside it."""
    seeds = [SamplingConfig(seed=seed, max_tokens=30) for seed in range(6)]
    expected = ["".join(engine.generate("Once upon a time", each)) for each in seeds]
    assert len(set(expected)) > 3
    with engine.parallel(6, 64) as answers:
        made = [answers.submit("Once upon a time", each) for each in seeds]
        ended(answers)
    n_same = sum(each.text == text_ for each, text_ in zip(made, expected, strict=True))
    assert n_same >= 3 and len({each.text for each in made}) > 3  # in Q8_0 a batch rounds differently


@pytest.mark.parametrize("opened_twice", [False, True])
def test_what_prompts_begin_with_is_computed_once(exact: Path, opened_twice: bool) -> None:
    """Also while the first of them is being computed, and by those that come later."""
    system = text(300)
    config = replace(EXACT, n_batch=64, n_ubatch=64)
    with open_twice(exact, config) if opened_twice else ChildEngine(exact, open_header(exact), config) as engine:
        asked = [system + text(20, i) for i in range(1, 9)]
        expected = ["".join(engine.generate(prompt, GREEDY)) for prompt in asked]
        with engine.parallel(4, 800) as answers:
            made = [answers.submit(prompt, GREEDY, options=BULK) for prompt in asked]
            ended(answers)
        assert [each.text for each in made] == expected
        computed = [each.timing.n_prompt - each.timing.n_cached for each in made]
        assert computed[0] > 250 and all(n < computed[0] / 4 for n in computed[1:]), computed


def test_recurrent_prompts_that_begin_alike(tmp_path: Path) -> None:
    """A state can't be rolled back: it is kept where the second prompt leaves the first one."""
    path = tmp_path / "model.gguf"
    synth.write(path, synth.small(synth.SHAPES["mamba2-2.7b"]), "F32")
    system = text(300)
    with ChildEngine(path, open_header(path), EXACT) as engine:
        asked = [system + text(20, i) for i in range(1, 7)]
        expected = ["".join(engine.generate(prompt, GREEDY)) for prompt in asked]
        with engine.parallel(2, 800) as answers:
            made = [answers.submit(prompt, GREEDY, options=BULK) for prompt in asked]
            ended(answers)
        assert [each.text for each in made] == expected
        assert all(each.timing.n_cached > 200 for each in made[2:]), [each.timing.n_cached for each in made]


def test_one_comes_while_others_are_made(exact: Path) -> None:
    """Its prompt is computed between their tokens, and ends none of them."""
    with ChildEngine(exact, open_header(exact), EXACT, limits=PATIENT) as engine:
        texts = [text(20, 1), text(20, 2)]
        wanted = []
        for each in texts:
            generation = engine.generate(each, ENDLESS)
            list(generation)
            wanted.append(generation.token_ids)
        late_text = text(600, 3)
        late_wanted = "".join(engine.generate(late_text, GREEDY))
        with engine.parallel(3, 2048) as answers:
            running = [answers.submit(each, ENDLESS, options=SHARED) for each in texts]
            while not all(each.meter.n_generated for each in running):
                assert answers.wait(0.01) is None
            late = answers.submit(late_text, GREEDY, options=SHARED)
            first = answers.wait()
            assert first is late and late.text == late_wanted
            ended(answers)
        assert [each.token_ids for each in running] == wanted
        assert late.meter.token_s[0] < min(each.meter.token_s[-1] for each in running)


@pytest.mark.parametrize(("patient", "least", "most"), [(False, 9, 9999), (True, 0, 2)])
def test_whole_prompts_of_others(exact: Path, patient: bool, least: int, most: int) -> None:
    """A prompt of more than ten batches is computed at once beside answers that can wait; else between their tokens."""
    options = PromptOptions(reuse=True, patient=patient)
    with ChildEngine(exact, open_header(exact), replace(EXACT, n_batch=64, n_ubatch=64), limits=PATIENT) as engine:
        with engine.parallel(2, 2048) as answers:
            running = answers.submit(text(20, 1), ENDLESS, options=options)
            while running.meter.n_generated < 4:
                assert answers.wait(0.01) is None
            late = answers.submit(text(600, 3), GREEDY, options=options)
            assert answers.wait() is late
            running.cancel()
            ended(answers)
        assert late.timing.n_prompt > 10 * 64
        first_s = late.meter.token_s[0]
        begin_s = first_s - (late.timing.prefill_s or 0.0)
        assert least <= sum(begin_s <= at_s < first_s for at_s in running.meter.token_s) <= most


def test_one_is_cancelled(exact: Path) -> None:
    """The others are as they would be without it; its sequence is used again."""
    with ChildEngine(exact, open_header(exact), EXACT, limits=PATIENT) as engine:
        texts = [text(20, 1), text(20, 2), text(20, 3)]
        short = replace(ENDLESS, max_tokens=300)
        wanted = ["".join(engine.generate(each, short)) for each in texts]
        with engine.parallel(3, 2048) as answers:
            made = [answers.submit(texts[0], short), answers.submit(texts[1], ENDLESS)]
            made[1].cancel()
            made.append(answers.submit(texts[2], short))
            waiting = answers.submit(texts[1], short)
            ended(answers)
        assert made[1].stop_reason == "cancelled"
        assert [made[0].text, waiting.text, made[2].text] == wanted


def test_what_is_wrong_with_one(engine: ChildEngine) -> None:
    """It is told of that one; the others are answered."""
    with engine.parallel(2, 128) as answers:
        good = [answers.submit("Once upon", GREEDY), answers.submit("One day", GREEDY)]
        long = answers.submit("a b c d e " * 4000, GREEDY)
        wrong = answers.submit("Once", replace(GREEDY, logit_bias={10**6: 1.0}))
        grammar = answers.submit("Once", GREEDY, options=PromptOptions(grammar='start: "yes" | "no"'))
        last = answers.submit("Once", GREEDY)
        ended(answers)
    assert isinstance(long.error, PromptTooLong) and isinstance(wrong.error, UsageError)
    assert [each.error for each in (*good, grammar, last)] == [None] * 4
    assert grammar.text in ("yes", "no") and last.text


def test_each_has_a_context_of_its_own(tmp_path: Path) -> None:
    """One that is full ends, or grows; the others go on, with what they had."""
    path = tmp_path / "long.gguf"
    synth.write(path, replace(synth.SHAPES["micro"], n_ctx_train=2000), "F32")
    with ChildEngine(path, open_header(path), replace(EXACT, n_threads=1)) as engine:
        without_end = SamplingConfig(temperature=0, ignore_eos=True)
        short = replace(without_end, max_tokens=700)
        wanted = engine.generate("a b", without_end)
        beside = engine.generate("c d e", short)
        list(wanted), list(beside)
        with engine.parallel(2, 256) as answers:
            one = answers.submit("a b", without_end, options=BULK)
            other = answers.submit("c d e", short, options=BULK)
            ended(answers)
    assert one.stop_reason == "context" and one.timing.n_prompt + one.timing.n_generated == 2001
    assert other.stop_reason == "length" and other.token_ids == beside.token_ids
    assert one.token_ids == wanted.token_ids[: len(one.token_ids)]


def test_random_lengths_and_cancels(exact: Path) -> None:
    """Every answer begins as that prompt's does when it is alone."""
    chance = random.Random(4)
    with ChildEngine(exact, open_header(exact), EXACT, limits=PATIENT) as engine:
        texts = [text(chance.randrange(2, 120), seed) for seed in range(10)]
        known = {}
        for each in texts:
            generation = engine.generate(each, replace(ENDLESS, max_tokens=40))
            list(generation)
            known[each] = generation.token_ids
        with engine.parallel(5, 400) as answers:
            made: dict[Submitted, str] = {}
            for i in range(120):
                prompt = chance.choice(texts)
                sampling = replace(ENDLESS, max_tokens=chance.randrange(0, 41))
                made[answers.submit(prompt, sampling, options=chance.choice([SHARED, BULK, ALONE]))] = prompt
                if chance.random() < 0.2:
                    chance.choice([*made]).cancel()
                if i % 8 == 7:
                    answers.wait()
            ended(answers)
        assert len(made) == 120
        for answer, prompt in made.items():
            assert answer.token_ids == known[prompt][: len(answer.token_ids)]
            assert answer.stop_reason in ("length", "cancelled")


def test_left_in_the_middle(exact: Path) -> None:
    """Leaving ends what is being made, and the engine answers as before."""
    with ChildEngine(exact, open_header(exact), EXACT, limits=PATIENT) as engine:
        expected = "".join(engine.generate("Once upon a time", GREEDY))
        with engine.parallel(2, 2048) as answers:
            left = [answers.submit("a b c", ENDLESS) for _ in range(12)]
            with pytest.raises(UsageError, match="another generation"):
                list(engine.generate("Once upon a time", GREEDY))
        assert all(each.stop_reason is not None for each in left) and left[-1].stop_reason == "cancelled"
        assert "".join(engine.generate("Once upon a time", GREEDY)) == expected
