"""Answers with tokens that were guessed ahead: the same as without, and told how many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import EXACT
from test_kv_context import text

from llmrun.engine.engine import ChildEngine
from llmrun.engine.generation import ChildGeneration
from llmrun.engine.protocol import PromptOptions
from llmrun.errors import NotFound, UsageError
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.options.load import Draft, LoadConfig
from llmrun.options.sampling import SamplingConfig

LOOKUP = replace(EXACT, draft="lookup")
GREEDY = SamplingConfig(temperature=0, max_tokens=150, ignore_eos=True)


def answered(engine: ChildEngine, prompt: str, sampling: SamplingConfig, **options: object) -> ChildGeneration:
    generation = engine.generate(prompt, sampling, options=PromptOptions(**options))  # type: ignore[arg-type]
    list(generation)
    return generation


@pytest.mark.parametrize(
    "name", ["llama-1.2b", "gemma3-1b", "gpt-oss-20b", "mamba2-2.7b", "lfm2-1.2b", "qwen3-30b-a3b"]
)
def test_the_same_text(tmp_path: Path, name: str) -> None:
    """Greedily and by chance, in a conversation and behind a window: random weights repeat themselves soon."""
    path = tmp_path / "model.gguf"
    synth.write(path, replace(synth.small(synth.SHAPES[name], n_embd=64), n_ctx_train=4096), "F32")
    story = text(60)
    asked = [(story, GREEDY), (story + text(20, 1), GREEDY), (story, replace(GREEDY, temperature=0.7, seed=3))]
    asked += [(story * 3, replace(GREEDY, max_tokens=n)) for n in (1, 2, 17)]
    found = {}
    for config in (EXACT, LOOKUP):
        with ChildEngine(path, open_header(path), config) as engine:
            found[config.draft] = [answered(engine, prompt, sampling, reuse=True) for prompt, sampling in asked]
    for plain, guessed in zip(found["auto"], found["lookup"], strict=True):
        assert guessed.token_ids == plain.token_ids and guessed.stop_reason == plain.stop_reason
        assert guessed.text == plain.text and plain.timing.n_drafted == 0
        assert len(guessed.timing.step_s) == len(plain.timing.step_s)
    timings = [each.timing for each in found["lookup"]]
    assert all(timing.n_accepted <= timing.n_drafted for timing in timings)
    if name in ("mamba2-2.7b", "lfm2-1.2b"):
        assert not any(timing.n_drafted for timing in timings)  # a state can't be taken back


def test_an_answer_that_repeats_itself(exact: Path) -> None:
    """What it said is guessed to be said again; a bandwidth is that of the steps, not of the tokens."""
    with ChildEngine(exact, open_header(exact), LOOKUP) as engine:
        found = answered(engine, "a b c d " * 30, replace(GREEDY, max_tokens=600))
        timing = found.timing
        assert 0 <= timing.n_accepted <= timing.n_drafted > 0  # how many pay is measured
        reads = engine.reads
        n_steps = len(timing.step_s) - timing.n_accepted
        assert timing.read_bytes is not None
        least, most = (n_steps * (reads.at_depth(n) or 0) for n in (timing.n_prompt, timing.n_prompt + 600))
        assert least <= timing.read_bytes <= most


def test_stop_strings_and_grammars(exact: Path) -> None:
    """A guess behind the end is no part of the answer, and a grammar is kept to."""
    repeats = "a b c d " * 30
    grammar = 'start: ("a b c d ")+ "z"'
    answers = []
    for load in (EXACT, LOOKUP):
        with ChildEngine(exact, open_header(exact), load) as engine:
            stopped = answered(engine, repeats, replace(GREEDY, stop=("c",), max_tokens=200), reuse=True)
            bound = answered(engine, repeats, replace(GREEDY, max_tokens=60), reuse=True, grammar=grammar)
            again = answered(engine, repeats, GREEDY, reuse=True)
            answers.append([(each.text, each.token_ids, each.stop_reason) for each in (stopped, bound, again)])
    assert answers[0] == answers[1]


def test_when_it_is_done(exact: Path, tmp_path: Path) -> None:
    """By itself only where nobody wants the same text again, for models whose steps take long; whether it then pays is
    measured."""
    large = tmp_path / "large.gguf"
    synth.write(large, synth.Shape(2, 1024, 2816, 8, 8, 512), "F32")
    chance, repeats = SamplingConfig(temperature=0.01, max_tokens=4), "a b c d " * 30
    asked = {"chance": chance, "seed": replace(chance, seed=1), "greedy": replace(chance, temperature=0)}
    expected: list[tuple[Path, Draft, list[str]]] = [
        *((large, "auto", ["chance"]), (exact, "auto", []), (exact, "off", []), (exact, "lookup", [*asked]))
    ]
    for path, draft, drafts in expected:
        with ChildEngine(path, open_header(path), replace(EXACT, draft=draft)) as engine:
            wanted = [name for name, sampling in asked.items() if engine.request("a", sampling).drafts]
            assert [name for name in wanted if draft != "off"] == drafts
            if draft == "off":
                assert answered(engine, repeats, chance).timing.n_drafted == 0


def test_a_model_that_guesses(exact: Path) -> None:
    """Its text is the same greedily and by chance, with a grammar and in the next turn. One that says the same is right
    whenever it is asked; one of another vocabulary is refused, and so is what is no model."""
    chance = replace(GREEDY, temperature=0.7, seed=3)
    story = text(40)
    found = {}
    for draft in ("off", str(exact)):
        with ChildEngine(exact, open_header(exact), replace(EXACT, draft=draft)) as engine:
            made = [
                answered(engine, prompt, how, reuse=True)
                for prompt in (story, story + text(20, 1))
                for how in (GREEDY, chance)
            ]
            made.append(answered(engine, story, replace(GREEDY, max_tokens=60), grammar='start: ("a b c d ")+ "z"'))
            found[draft] = made
            if draft != "off":
                checks = engine.checks(made[0])
                taken, computed = (sum(getattr(each, name) for each in checks) for name in ("taken", "computed"))
                assert taken == pytest.approx(computed, rel=0.2)
    for plain, guessed in zip(found["off"], found[str(exact)], strict=True):
        assert guessed.token_ids == plain.token_ids and guessed.stop_reason == plain.stop_reason
    greedy = [each.timing for each in found[str(exact)][::2]]
    assert sum(timing.n_drafted for timing in greedy) > 0
    assert all(timing.n_accepted >= timing.n_drafted - 15 for timing in greedy[:2])  # the last guess may be cut
    with pytest.raises(UsageError, match="another vocabulary"):
        ChildEngine(exact, open_header(exact), replace(EXACT, draft="tiny"))
    with pytest.raises(NotFound):
        ChildEngine(exact, open_header(exact), replace(EXACT, draft=str(exact.with_name("none.gguf"))))


def test_a_model_that_can_t_guess(tmp_path: Path) -> None:
    """One whose states can't be taken back."""
    path = tmp_path / "model.gguf"
    synth.write(path, synth.small(synth.SHAPES["mamba2-2.7b"]), "F32")
    with pytest.raises(UsageError, match="recurrent layers"):
        ChildEngine(path, open_header(path), replace(EXACT, draft=str(path)))


@pytest.mark.parametrize(("value", "problem"), [("3", "says how many"), ("", "which model")])
def test_words(value: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        LoadConfig(draft=value)
